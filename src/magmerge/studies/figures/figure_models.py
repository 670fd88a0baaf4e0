"""Merges, calibrations and scores of one suite, each made once: what the points are made of."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from magmerge.checkpoints import open_checkpoint
from magmerge.core.errors import MagmergeWarning
from magmerge.engine.result import Result
from magmerge.evaluation.scores import LOWER_IS_BETTER, Scores
from magmerge.pipeline.merge import calibrate, merge
from magmerge.studies.figures.figure_inputs import FigureInputs
from magmerge.studies.figures.figure_spec import FigureSpec, draws

State = Mapping[str, Tensor]


@dataclass(slots=True)
class FigureModels:
    """A suite at work; equal weights are measured once, and the latest merge is kept."""

    inputs: FigureInputs
    request: FigureSpec
    warned: dict[str, None] = field(default_factory=dict)
    _known: dict[str, Scores] = field(default_factory=dict)
    _merge: tuple[str, dict[str, Tensor]] | None = None
    _origin: dict[str, Tensor] | None = None

    @property
    def _machine(self) -> dict[str, Any]:
        return {key: getattr(self.request, key) for key in ("threads", "memory", "device")}

    def merged(self, method: str) -> dict[str, Tensor]:
        """The merge as it is."""
        if self._merge is None or self._merge[0] != method:
            with _listening(self.warned):
                found = merge(
                    base=self.inputs.base,
                    experts=self.inputs.experts,
                    method=method,
                    params=self.request.params.get(method),
                    **self._machine,
                )
            self._merge = method, found.state_dict()
        return self._merge[1]

    def scaled(self, state: State, factor: float) -> State:
        """base + factor * (merged - base), in float32, stored as the merge is."""
        if factor == 1.0:
            return state
        if self._origin is None:
            checkpoint = open_checkpoint(self.inputs.base)
            self._origin = {name: checkpoint.read(name) for name in checkpoint.specs}
        origin = self._origin
        return {
            name: (origin[name].float() + factor * (tensor.float() - origin[name].float())).to(
                tensor.dtype
            )
            if tensor.is_floating_point() and name in origin
            else tensor
            for name, tensor in state.items()
        }

    def calibrated(
        self,
        state: State,
        calibration: str,
        seed: int | None = None,
        *,
        samples: int | None = None,
        sensitive: tuple[str, ...] | None = None,
    ) -> Result:
        """A merge calibrated; samples and sensitive layers are by default the request's."""
        request, seen = self.request, dict[str, Any]()
        with _listening(self.warned):
            if draws(calibration):
                model, seed = self.inputs.entry.model, seed or 0
                inputs = self.inputs.samples(samples or request.samples, seed)
                seen = {"data": inputs, "seed": seed, "model": model.class_, "build": model.build}
            return calibrate(
                state,
                base=self.inputs.base,
                experts=self.inputs.experts,
                method=calibration,
                params=request.params.get(calibration),
                gate=request.gate,
                sensitive=request.sensitive if sensitive is None else sensitive,
                **self._machine,
                **seen,
            )

    def scores(self, states: Sequence[State]) -> list[Scores]:
        """The scores of each of these weights on all tasks, in one pass over the data."""
        keys = [digest_of(state) for state in states]
        new = {
            key: state for key, state in zip(keys, states, strict=True) if key not in self._known
        }
        if new:
            with _listening(self.warned):
                self._known |= self.inputs.suite.evaluate_all(
                    new,
                    split=self.request.split,
                    tasks=self.request.tasks,
                    dtype=self.request.dtype,
                    **self._machine,
                )
        return [self._known[key] for key in keys]


@contextmanager
def _listening(told: dict[str, None]) -> Iterator[None]:
    """Keeps magmerge's warnings, each once: a figure makes many models that warn of the same."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", MagmergeWarning)
        yield
    for one in heard:
        if issubclass(one.category, MagmergeWarning):
            told[str(one.message)] = None


def digest_of(state: State) -> str:
    """The same for equal tensors under equal names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        content = state[name].detach().cpu().contiguous().flatten()
        digest.update(f"{name} {content.dtype} {tuple(state[name].shape)}".encode())
        digest.update(content.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def error_of(scores: Scores) -> float | None:
    """Half the 95 % interval of the mean, if the tasks' rows are independent; None without any.

    The root of the sum of the tasks' squares, over their number.
    """
    halves = [
        (one.high - one.low) / 2
        for one in scores.tasks
        if one.metric not in LOWER_IS_BETTER and one.high is not None and one.low is not None
    ]
    return math.hypot(*halves) / len(halves) if halves else None


def experts_of(scores: Scores) -> float | None:
    """The mean score of the experts, each on its own task; None unless all are known."""
    found = [one.expert for one in scores.tasks if one.metric not in LOWER_IS_BETTER]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None
