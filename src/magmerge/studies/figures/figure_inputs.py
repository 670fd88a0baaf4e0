"""What a figure is drawn of: a suite with the base, the experts and the samples of its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magmerge.core.errors import ParameterError, UnknownNameError, suggestion
from magmerge.data import Inputs
from magmerge.evaluation.calibration_samples import SampleSource, calibration_split, sample_source
from magmerge.evaluation.entries import SuiteEntry, resolved
from magmerge.evaluation.task_suite import Suite


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
        lacking = [name for name in self.experts if not self.draws.get(name)]
        if lacking:
            raise ParameterError(
                f"no unlabelled samples are known for {', '.join(lacking)}",
                source=self.suite.path,
                remedy=f"add --data {lacking[0]}=FILE, or a calibration or train split to the "
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
    paths = {name: str(path) for name, path in (experts or {}).items()}
    tasks = {name: [name] for name in paths}
    if not paths:
        # An expert that several tasks share has the name of the first.
        shared: dict[str, list[str]] = {}
        for name, entry in suite.entry.tasks.items():
            if entry.expert is not None:
                shared.setdefault(resolved(suite.path.parent, entry.expert), []).append(name)
        tasks = {names[0]: names for names in shared.values()}
        paths = {names[0]: path for path, names in shared.items()}
    if not paths:
        raise ParameterError(
            "the suite names no experts",
            source=suite.path,
            remedy="give them with --expert TASK=PATH (experts=), or add expert: to its tasks",
        )
    draws = {name: _suite_draws(suite, names) for name, names in tasks.items()}
    sources = (
        data if isinstance(data, Mapping) else dict.fromkeys(() if data is None else paths, data)
    )
    for name, source in sources.items():
        if name not in paths:
            raise UnknownNameError(
                f"data is given for {name!r}, which is no expert",
                remedy=suggestion(str(name), paths),
            )
        draws[name] = (sample_source(suite, name, str(source)),)
    return FigureInputs(suite, str(origin), paths, draws)


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
