"""What a user asks of a calibration that looks at inputs: samples of each task, a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from magmerge import registry
from magmerge.errors import ParameterError, UnknownNameError, suggestion
from magmerge.recipe import Calibration, Sampling, explained
from magmerge.samples.rows import Inputs, SampleOptions

if TYPE_CHECKING:
    from torch import nn

    from magmerge.live_merge import Running


@dataclass(frozen=True, slots=True)
class Wanted:
    """The arguments of `merge` and `calibrate` that concern inputs, as they were given.

    `data` maps experts to sources of samples, or is one source for all experts.
    """

    data: Any = None
    samples: int | SampleOptions | Mapping[str, Any] = 8
    model: nn.Module | str | None = None
    build: str | None = None
    order: str = "once"
    precision: str = "float32"
    batchnorm: bool = False
    offload: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.data, Iterator):
            # Every expert reads it, from the start.
            object.__setattr__(self, "data", list(self.data))

    def check(self, calibrations: Sequence[Calibration]) -> None:
        """ParameterError where data is given in vain, or wanted and not given."""
        items = [registry.calibrators.get(one.method) for one in calibrations]
        hungry = [item.name for item in items if item.needs == "inputs"]
        if len(hungry) > 1:
            raise ParameterError(
                f"{' and '.join(hungry)} both look at inputs", remedy="calibrate with one of them"
            )
        if hungry and self.data is None:
            raise ParameterError(
                f"{hungry[0]} needs data",
                remedy="give a few unlabelled samples of each expert's task: --data NAME=FILE "
                '(data={"expert": samples})',
            )
        if self.data is not None and not hungry:
            raise ParameterError(
                "data is given, but no calibration looks at it",
                remedy="add --calibrate fsc (or --method fsc), or drop the data",
            )
        others = {"order": self.order != "once", "batchnorm": self.batchnorm}
        others |= {"offload": self.offload}
        others |= {"model": self.model is not None, "build": self.build is not None}
        if not hungry and any(others.values()):
            named = ", ".join(name for name, given in others.items() if given)
            raise ParameterError(
                f"{named}: only a calibration that looks at inputs takes this",
                remedy="add --calibrate fsc, or drop it",
            )

    def options(self, seed: int) -> SampleOptions:
        """What is drawn from each source, and how."""
        if isinstance(self.samples, SampleOptions):
            return self.samples
        if not isinstance(self.samples, int | Mapping):
            raise ParameterError(
                f"samples is {self.samples!r}",
                remedy="give a number, or the fields of SampleOptions as a mapping",
            )
        given = {"samples": self.samples} if isinstance(self.samples, int) else dict(self.samples)
        known = SampleOptions.__slots__
        for name in given:
            if name not in known:
                raise UnknownNameError(
                    f"samples has no setting {name!r}", remedy=suggestion(name, known)
                )
        return replace(SampleOptions(seed=seed), **given)

    def by_expert(self, experts: Sequence[str]) -> dict[str, Any]:
        """The source of each expert's samples; every expert must have one."""
        if not isinstance(self.data, Mapping) or not all(isinstance(k, str) for k in self.data):
            return dict.fromkeys(experts, self.data)
        for name in self.data:
            if name not in experts:
                raise UnknownNameError(
                    f"data is given for {name!r}, which is no expert",
                    remedy=suggestion(name, experts),
                )
        lacking = [name for name in experts if name not in self.data]
        if lacking:
            raise ParameterError(
                f"no data is given for {', '.join(lacking)}",
                remedy=f"add --data {lacking[0]}=FILE; one source for all experts is --data FILE",
            )
        return dict(self.data)

    def sampling(
        self, experts: Sequence[str], seed: int, calibrations: Sequence[Calibration]
    ) -> Sampling | None:
        """The same as data for the recipe; None where no calibration looks at inputs."""
        if not any(registry.calibrators.get(c.method).needs == "inputs" for c in calibrations):
            return None
        options = self.options(seed)
        fields: dict[str, Any] = {
            "data": {name: _spoken(one) for name, one in self.by_expert(experts).items()},
            "samples": options.samples,
            "seed": options.seed,
            "order": self.order,
            "precision": self.precision,
            "batchnorm": self.batchnorm,
            "offload": self.offload,
            "model": self.build or (None if self.model is None else _spoken(self.model)),
            "prepared": options.prepared,
        }
        try:
            return Sampling(**fields)
        except ValidationError as error:
            raise explained(error, "the arguments", Sampling.model_fields) from error

    def inputs(
        self, experts: Sequence[str], folder: Path | None, seed: int
    ) -> dict[str, list[Inputs]]:
        """The model's inputs, drawn and prepared with the tokenizer or processor in `folder`."""
        from magmerge.samples import calibration_inputs

        return calibration_inputs(
            self.by_expert(experts), folder=folder, options=self.options(seed)
        )

    def running(self, sampling: Sampling, origin: Any, device: str) -> Running:
        """How the merged model is run; `origin` is the module or folder it comes from."""
        from magmerge.live_merge import Running

        named = isinstance(self.model, str)
        if hasattr(origin, "named_modules") and (named or self.build):
            raise ParameterError(
                f"{self.build or self.model}: the merge is a module in memory, which is run itself",
                remedy="drop build and model, or give the base as a folder",
            )
        return Running(
            origin=origin if self.model is None or named else self.model,  # type: ignore[arg-type]
            model_class=self.model if named else None,  # type: ignore[arg-type]
            build=self.build,
            order=sampling.order,
            precision=sampling.precision,
            batchnorm=sampling.batchnorm,
            offload=self.offload,
            device=device,
        )


def _spoken(source: Any) -> str:
    """What the recipe calls a source: its path or name, or its type."""
    return str(source) if isinstance(source, str | Path) else f"a {type(source).__name__} in memory"
