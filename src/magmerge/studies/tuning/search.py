"""The search: each trial's recipe is merged in memory, measured on held-out rows, and kept."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from magmerge.core.errors import (
    MagmergeError,
    MagmergeWarning,
    NonFiniteError,
    ParameterError,
    UnknownNameError,
)
from magmerge.engine.notes import warn
from magmerge.evaluation.live_model import ModelWeights
from magmerge.studies.tuning.merged_models import Measuring
from magmerge.studies.tuning.objective import Answers, Objective
from magmerge.studies.tuning.proposals import propose
from magmerge.studies.tuning.space import Space
from magmerge.studies.tuning.trials import Trial, TrialFile, best_of

OF_VALUES = (ParameterError, UnknownNameError, NonFiniteError)
"""What a trial's values may be to blame for, where no trial before it went well."""
ATTEMPTS = 10
"""How often another recipe is asked for, where one was tried already."""
CONFIGS = ("config.json", "generation_config.json")
"""Files that do not change what texts and images are to a model."""


@dataclass(frozen=True, slots=True)
class Proposing:
    """How many trials there are, how their values are chosen, and whether more is better."""

    trials: int
    rising: bool
    seed: int = 0
    sampler: str = "tpe"


class Search:
    """The trials of a space. `open_objective` makes the rows ready for the models of a folder."""

    def __init__(
        self,
        space: Space,
        measuring: Measuring,
        open_objective: Callable[[Path | None], Objective],
        file: TrialFile,
    ) -> None:
        self.space, self.file = space, file
        self._measuring, self._open = measuring, open_objective
        self._objective: Objective | None = None
        self._folder: Path | None = None
        self._answers: dict[int, Answers] = {}
        self._told: set[str] = set()

    @property
    def trials(self) -> list[Trial]:
        """The trials so far."""
        return self.file.trials

    @property
    def objective(self) -> Objective:
        """What the trials were measured by; there is one as soon as a model was merged."""
        assert self._objective is not None
        return self._objective

    def prepare(self, folder: Path | None) -> None:
        """Make the rows ready."""
        self._objective, self._folder = self._open(folder), folder

    def run(self, how: Proposing, each: Callable[[Trial, Trial | None], None]) -> None:
        """Do the trials that are not there yet; `each` hears of every one, and of the best so far.

        Raises what the first trial does where its values are not to blame.
        """
        while len(self.trials) < how.trials:
            with self._warnings_once():
                trial = self._next(how)
            self.file.add(trial)
            best = best_of(self.trials, rising=how.rising)
            each(trial, best)
            kept = {0, best.number if best else 0}
            self._answers = {n: own for n, own in self._answers.items() if n in kept}

    def answers(self, trial: Trial) -> Answers:
        """What a trial's model makes of the rows; merged once more where that is not known."""
        if trial.number not in self._answers:
            weights = self._merged(trial)
            if self._objective is None:
                self.prepare(weights.folder)
            self._answers[trial.number] = self._measured(weights)
        return self._answers[trial.number]

    def _next(self, how: Proposing) -> Trial:
        number, start = len(self.trials), time.monotonic()
        values, same = self._values(how, number)
        trial = Trial(number, values)
        if same is not None:
            return replace(same, number=number, values=values, same_as=same.number, seconds=0.0)
        with _caught(number) as faults:
            weights = self._merged(trial)
        if not faults:
            # What is wrong with the rows is wrong for every trial.
            if self._objective is None:
                self.prepare(weights.folder)
            with _caught(number) as faults:
                self._answers[number] = self._measured(weights)
        seconds = time.monotonic() - start
        if faults:
            return replace(trial, fault=_short(faults[0]), seconds=seconds)
        answers = self._answers[number]
        score, tasks = self.objective.value(answers), self.objective.numbers(answers)
        return replace(trial, score=score, tasks=tasks, seconds=seconds)

    def _values(self, how: Proposing, number: int) -> tuple[dict[str, Any], Trial | None]:
        """The next values, and the trial that had the same recipe already, if any."""
        if number == 0:
            return self.space.start(), None
        known: dict[str, Trial] = {}
        for trial in self.trials:
            known.setdefault(self.space.text(trial.values), trial)
        for attempt in range(ATTEMPTS):
            seed = (how.seed, number, attempt)
            values = propose(self.space, self.trials, how.sampler, seed, rising=how.rising)
            same = known.get(self.space.text(values))
            if same is None:
                break
        return values, same

    def _merged(self, trial: Trial) -> ModelWeights:
        recipes = self.space.recipes(trial.values)
        return self._measuring.bench.merged(recipes, f"trial {trial.number}")

    def _measured(self, weights: ModelWeights) -> Answers:
        """What a model makes of the rows; ParameterError where it reads texts or images otherwise
        than the first, since their numbers cannot be compared.
        """
        first = self._folder
        if weights.folder != first and _token_files(weights.folder) != _token_files(first):
            raise ParameterError(
                "its tokenizer is not that of the first trial, so that they cannot be compared",
                remedy="do not search what decides the tokenizer",
            )
        return self._measuring.answers(weights, self.objective.tasks)

    @contextmanager
    def _warnings_once(self) -> Iterator[None]:
        """Each warning of magmerge's once, however many trials give it."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        texts = [str(w.message) for w in caught if issubclass(w.category, MagmergeWarning)]
        warn([text for text in dict.fromkeys(texts) if text not in self._told])
        self._told.update(texts)


@contextmanager
def _caught(number: int) -> Iterator[list[MagmergeError]]:
    """Holds the error of a trial; of the first one only what its values may be to blame for."""
    faults: list[MagmergeError] = []
    try:
        yield faults
    except MagmergeError as error:
        if number == 0 and not isinstance(error, OF_VALUES):
            raise
        faults.append(error)


def _token_files(folder: Path | None) -> dict[str, bytes]:
    """What is beside a model's config, by its path."""
    files = folder.rglob("*") if folder is not None else ()
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()  # type: ignore[arg-type]
        for file in files
        if file.is_file() and file.name not in CONFIGS
    }


def _short(error: MagmergeError) -> str:
    """An error as one line."""
    return " ".join(str(error).replace("\n  remedy: ", "; ").split())
