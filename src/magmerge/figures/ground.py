"""What a figure stands on: a suite with the base, the experts and the samples of its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magmerge.engine.publish import warn
from magmerge.errors import ParameterError, UnknownNameError, suggestion
from magmerge.evaluation.entries import SuiteEntry, resolved
from magmerge.evaluation.suite import Suite
from magmerge.evaluation.tasks import data_source
from magmerge.samples import Inputs, Preparation, prepare, read_samples

UNLABELLED = ("calibration", "train")
"""Splits of a task that calibrations may see, the first that it has."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Where the samples of one task come from; `name` is what the draw depends on."""

    name: str
    source: str
    split: str | None = None
    text_field: str | None = None
    pair_field: str | None = None
    preparation: Preparation = field(default_factory=Preparation)


@dataclass(slots=True)
class Ground:
    """An opened suite, its base, its experts by name, and each expert's samples."""

    suite: Suite
    base: str
    experts: Mapping[str, str]
    draws: Mapping[str, tuple[Draw, ...]]
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

    def inputs(self, samples: int, seed: int) -> dict[str, list[Inputs]]:
        """`samples` rows of each task as the model's inputs, by expert; never test rows."""
        if self._latest is None or self._latest[0] != (samples, seed):
            found = {
                name: [call for draw in draws for call in self._prepared(draw, samples, seed)]
                for name, draws in self.draws.items()
            }
            self._latest = (samples, seed), found
        return self._latest[1]

    def _prepared(self, draw: Draw, samples: int, seed: int) -> list[Inputs]:
        rows = read_samples(
            draw.source,
            name=draw.name,
            field=draw.text_field,
            pair_field=draw.pair_field,
            samples=samples,
            seed=seed,
            split=draw.split,
        )
        warn(rows.notes)
        folder = Path(self.base) if Path(self.base).is_dir() else self.suite.base
        return prepare(rows, folder, draw.preparation)


def open_ground(
    suite: Suite,
    *,
    base: str | Path | None = None,
    experts: Mapping[str, str | Path] | None = None,
    data: Any = None,
) -> Ground:
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
    named = {name: str(path) for name, path in (experts or {}).items()}
    tasks = {name: [name] for name in named}
    if not named:
        # An expert that several tasks share has the name of the first.
        shared: dict[str, list[str]] = {}
        for name, entry in suite.entry.tasks.items():
            if entry.expert is not None:
                shared.setdefault(resolved(suite.path.parent, entry.expert), []).append(name)
        named = {own[0]: path for path, own in shared.items()}
        tasks = {own[0]: own for own in shared.values()}
    if not named:
        raise ParameterError(
            "the suite names no experts",
            source=suite.path,
            remedy="give them with --expert TASK=PATH (experts=), or add expert: to its tasks",
        )
    draws = {name: _suite_draws(suite, own) for name, own in tasks.items()}
    sources = (
        data if isinstance(data, Mapping) else {} if data is None else dict.fromkeys(named, data)
    )
    for name, source in sources.items():
        if name not in named:
            raise UnknownNameError(
                f"data is given for {name!r}, which is no expert",
                remedy=suggestion(str(name), named),
            )
        draws[name] = (_draw(suite, name, str(source), None),)
    return Ground(suite, str(origin), named, draws)


def _suite_draws(suite: Suite, tasks: Sequence[str]) -> tuple[Draw, ...]:
    """The unlabelled splits of these tasks; none where the suite knows none."""
    found: dict[tuple[str, str | None], Draw] = {}
    for name in tasks:
        entry = suite.entry.tasks.get(name)
        if entry is None:
            continue
        # Of one source that has splits, train.
        known = ("train",) if isinstance(entry.data, str) else entry.data
        split = next((one for one in UNLABELLED if one in known), None)
        if split is None:
            continue
        try:
            place = data_source(name, entry, split, suite.path)
        except ParameterError:
            # One file without splits holds the rows that are measured.
            continue
        # Two metrics of one task share its rows, which are drawn once.
        found.setdefault(place, _draw(suite, name, *place))
    return tuple(found.values())


def _draw(suite: Suite, name: str, source: str, split: str | None) -> Draw:
    """Samples that are read and prepared as the rows of the task of that name, if there is one."""
    whole, entry = suite.entry, suite.entry.tasks.get(name)
    if entry is None:
        how = Preparation(whole.max_length, whole.image_size, whole.mean, whole.std)
        return Draw(name, source, preparation=how)
    return Draw(name, source, split, entry.text_field, entry.pair_field, whole.preparation(entry))
