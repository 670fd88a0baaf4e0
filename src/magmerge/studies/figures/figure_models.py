"""The models of a figure: base, experts and samples; merges and their scores, each made once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.output.provenance import content_digest
from magmerge.core.errors import MagmergeWarning, ParameterError, UnknownNameError, suggestion
from magmerge.data.rows import Inputs
from magmerge.engine.result import Result
from magmerge.evaluation.calibration_samples import SampleSource, calibration_split, sample_source
from magmerge.evaluation.entries import SuiteEntry, path_of
from magmerge.evaluation.scores import LOWER_IS_BETTER, Scores
from magmerge.evaluation.task_suite import Suite
from magmerge.pipeline.merge import calibrate, merge
from magmerge.studies.figures.figure_spec import FigureSpec, draws


@dataclass(slots=True)
class FigureInputs:
    """An opened suite, its base, its experts by name, and each expert's samples."""

    suite: Suite
    base: str
    experts: Mapping[str, str]
    draws: Mapping[str, tuple[SampleSource, ...]]
    _latest: tuple[tuple[int, int], dict[str, list[Inputs]]] | None = None

    @property
    def entry(self) -> SuiteEntry:
        """The suite file's content."""
        return self.suite.entry

    def check_samples(self) -> None:
        """ParameterError where an expert has no samples."""
        bare = [name for name in self.experts if not self.draws.get(name)]
        if bare:
            raise ParameterError(
                f"no unlabelled samples are known for {', '.join(bare)}",
                source=self.suite.path,
                remedy=f"add --data {bare[0]}=FILE, or a calibration or train split to the "
                "task's data; wsc alone (--calibrate wsc) needs none",
            )

    def samples(self, samples: int, seed: int) -> dict[str, list[Inputs]]:
        """`samples` rows of each task as the model's inputs, by expert; never test rows."""
        if self._latest is None or self._latest[0] != (samples, seed):
            folder = Path(self.base) if Path(self.base).is_dir() else self.suite.base
            calls = {
                name: [call for draw in draws for call in draw.inputs(samples, seed, folder)]
                for name, draws in self.draws.items()
            }
            self._latest = (samples, seed), calls
        return self._latest[1]


def figure_inputs(
    suite: Suite,
    *,
    base: str | Path | None = None,
    experts: Mapping[str, str | Path] | None = None,
    data: Any = None,
) -> FigureInputs:
    """What the suite names, or what is given instead.

    `data` is a source for each expert by its name, or one for all; where it is silent an expert's
    samples are the calibration split of its tasks, else their train split. ParameterError where no
    base or no experts are known.
    """
    origin = base if base is not None else suite.base
    if origin is None:
        raise ParameterError(
            "the suite names no base",
            source=suite.path,
            remedy="give it with --base (base=), or add base: FOLDER to the suite",
        )
    named = {name: (str(path), [name]) for name, path in (experts or {}).items()}
    named = named or _suite_experts(suite)
    if not named:
        raise ParameterError(
            "the suite names no experts",
            source=suite.path,
            remedy="give them with --expert TASK=PATH (experts=), or add expert: to its tasks",
        )
    draws = {name: _suite_draws(suite, tasks) for name, (_, tasks) in named.items()}
    sources = {} if data is None else data
    if not isinstance(sources, Mapping):
        sources = dict.fromkeys(named, data)
    for name, source in sources.items():
        if name not in named:
            raise UnknownNameError(
                f"data is given for {name!r}, which is no expert",
                remedy=suggestion(str(name), named),
            )
        draws[name] = (sample_source(suite, name, str(source)),)
    paths = {name: path for name, (path, _) in named.items()}
    return FigureInputs(suite, str(origin), paths, draws)


def _suite_experts(suite: Suite) -> dict[str, tuple[str, list[str]]]:
    """The experts that a suite names, and their tasks; one of several has the name of the first."""
    tasks: dict[str, list[str]] = {}
    for name, entry in suite.entry.tasks.items():
        if entry.expert is not None:
            tasks.setdefault(path_of(suite.path.parent, entry.expert), []).append(name)
    return {names[0]: (path, names) for path, names in tasks.items()}


def _suite_draws(suite: Suite, tasks: Sequence[str]) -> tuple[SampleSource, ...]:
    """The unlabelled splits of these tasks; none where the suite knows none."""
    draws: dict[tuple[str, str | None], SampleSource] = {}
    for name in tasks:
        if name in suite.entry.tasks:
            try:
                place = calibration_split(suite, name)
            except ParameterError:
                continue
            # Two metrics of one task share its rows, which are drawn once.
            draws.setdefault(place, sample_source(suite, name, *place))
    return tuple(draws.values())


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
        machine = self.request.machine
        return {key: getattr(machine, key) for key in ("threads", "memory", "device")}

    def plain_merge(self, method: str) -> dict[str, Tensor]:
        """The merge as it is."""
        if self._merge is None or self._merge[0] != method:
            with _keep_warnings(self.warned):
                result = merge(
                    base=self.inputs.base,
                    experts=self.inputs.experts,
                    method=method,
                    params=self.request.params.get(method),
                    **self._machine,
                )
            self._merge = method, result.state_dict()
        return self._merge[1]

    def scale(self, state: State, factor: float) -> State:
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

    def calibration(
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
        with _keep_warnings(self.warned):
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
        keys = [content_digest(open_checkpoint(state)) for state in states]
        new = {
            key: state for key, state in zip(keys, states, strict=True) if key not in self._known
        }
        if new:
            with _keep_warnings(self.warned):
                self._known |= self.inputs.suite.evaluate_all(
                    new,
                    split=self.request.split,
                    tasks=self.request.tasks,
                    dtype=self.request.dtype,
                    **self._machine,
                )
        return [self._known[key] for key in keys]


@contextmanager
def _keep_warnings(texts: dict[str, None]) -> Iterator[None]:
    """Keeps magmerge's warnings, each once: a figure makes many models that warn of the same."""
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always", MagmergeWarning)
        yield
    for warning in messages:
        if issubclass(warning.category, MagmergeWarning):
            texts[str(warning.message)] = None


def error_of(scores: Scores) -> float | None:
    """Half the 95 % interval of the mean, if the tasks' rows are independent; None without any.

    The root of the sum of the tasks' squares, over their number.
    """
    halves = [
        (task.high - task.low) / 2
        for task in scores.tasks
        if task.metric not in LOWER_IS_BETTER and task.high is not None and task.low is not None
    ]
    return math.hypot(*halves) / len(halves) if halves else None


def experts_of(scores: Scores) -> float | None:
    """The mean score of the experts, each on its own task; None unless all are known."""
    experts = [task.expert for task in scores.tasks if task.metric not in LOWER_IS_BETTER]
    known = [value for value in experts if value is not None]
    return sum(known) / len(known) if known and len(known) == len(experts) else None
