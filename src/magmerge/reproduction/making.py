"""Makes the models of a pipeline one by one: merges, calibrations, controls."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magmerge.checkpoints.own_files import foreign
from magmerge.engine.result import Result
from magmerge.pipeline import merge
from magmerge.reproduction.measuring import Machine, Measure
from magmerge.reproduction.preparing import Ready
from magmerge.reproduction.variants import CONTROLS, DRAWN, Variant, control
from magmerge.samples import Inputs


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every merge of a pipeline shares.

    `params` are parameters by method; `samples` is how many of each task are drawn.
    """

    ready: Ready
    measure: Measure
    folder: Path
    samples: int
    sensitive: tuple[str, ...]
    params: Mapping[str, Mapping[str, Any]]
    machine: Machine
    drawn: dict[int, dict[str, list[Inputs]]] = field(default_factory=dict)

    def make(self, variant: Variant) -> Path | dict[str, Any]:
        """One model: a folder, or its tensors in memory for a control."""
        if variant.space in CONTROLS:
            return self._control(variant)
        out = self.folder / variant.name
        calibrate = None if variant.space == "none" else variant.space
        self._merge(variant, calibrate, out=out, overwrite=True)
        return out

    def remove(self, variants: Sequence[Variant]) -> None:
        """Remove the folders of models that were measured, and theirs if it is empty then."""
        for variant in variants:
            place = self.folder / variant.name
            if place.is_dir() and not foreign(place, ()):
                shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _control(self, variant: Variant) -> dict[str, Any]:
        plain = self._merge(variant, None).state_dict()
        calibrated = self._merge(variant, "fsc")
        base = self.ready.weights_of_base()
        draw = variant.draw or 0
        return dict(control(variant.space, base, plain, calibrated.records, draw))

    def _merge(self, variant: Variant, calibrate: str | None, **out: Any) -> Result:
        sampled: dict[str, Any] = {}
        if calibrate is not None and variant.space in DRAWN:
            sampled = {"data": self._samples(variant.draw or 0), "model": self.measure.model_class}
        if calibrate is not None:
            sampled["sensitive"] = self.sensitive
        return merge(
            base=self.ready.base,
            experts=dict(self.ready.experts),
            method=variant.method,
            params=self.params.get(variant.method),
            calibrate=calibrate,
            ignore=self.ready.lacking,
            threads=self.machine.threads,
            device=self.machine.device,
            donor=self.ready.base if out else None,
            **sampled,
            **out,
        )

    def _samples(self, draw: int) -> dict[str, list[Inputs]]:
        if draw not in self.drawn:
            self.drawn[draw] = {
                task: self.measure.samples(task, self.samples, draw, self.ready.base)
                for task in self.ready.experts
            }
        return self.drawn[draw]
