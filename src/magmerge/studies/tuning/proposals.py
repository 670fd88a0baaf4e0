"""What is tried next, by Optuna: a function of the trials so far, a seed and the trial's number.

Nothing of it is kept between two trials, so that a search that goes on proposes what it would have.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from magmerge.core.errors import UnknownNameError, suggestion
from magmerge.core.extras import needed
from magmerge.core.marks import Choices, Mark
from magmerge.linalg.draws import derive_seed
from magmerge.studies.tuning.space import Space
from magmerge.studies.tuning.trials import Trial

SAMPLERS: Mapping[str, Callable[[Any, int], Any]] = {
    "tpe": lambda samplers, seed: samplers.TPESampler(seed=seed),
    "random": lambda samplers, seed: samplers.RandomSampler(seed=seed),
}
"""Ways to choose, by name: a tree-structured Parzen estimator, or at random."""


def check_sampler(name: str) -> None:
    """UnknownNameError for a sampler that there is not; MissingExtraError without Optuna."""
    if name not in SAMPLERS:
        raise UnknownNameError(
            f"there is no sampler {name!r}", remedy=suggestion(name, list(SAMPLERS))
        )
    needed("optuna", "searching a recipe")


def propose(
    space: Space, trials: Sequence[Trial], sampler: str, seed: object, *, rising: bool
) -> dict[str, Any]:
    """A value for each mark that counts, by its path."""
    with _quiet() as optuna:
        chooser = SAMPLERS[sampler](optuna.samplers, derive_seed("tune", seed) % 2**32)
        direction = "maximize" if rising else "minimize"
        study = optuna.create_study(direction=direction, sampler=chooser)
        study.add_trials([_told(optuna, space, trial) for trial in trials])
        asked = study.ask()
        values: dict[str, Any] = {}
        # Methods come first, and decide which of the others count.
        for name, mark in space.marks.items():
            if name in space.active(values):
                values[name] = _chosen(asked, name, mark)
    return values


def _told(optuna: Any, space: Space, trial: Trial) -> Any:
    """A trial as Optuna knows it."""
    marks = {name: mark for name, mark in space.marks.items() if name in trial.values}
    failed = trial.score is None
    states = optuna.trial.TrialState
    return optuna.trial.create_trial(
        params={name: _spoken(mark, trial.values[name]) for name, mark in marks.items()},
        distributions={name: _distribution(optuna, mark) for name, mark in marks.items()},
        value=trial.score,
        state=states.PRUNED if failed else states.COMPLETE,
    )


def _distribution(optuna: Any, mark: Mark) -> Any:
    """A mark's values as Optuna knows them; choices by their places, whatever they hold."""
    space, kinds = mark.space, optuna.distributions
    if isinstance(space, Choices):
        return kinds.CategoricalDistribution(tuple(range(len(space.values))))
    if space.whole:
        return kinds.IntDistribution(space.low, space.high, log=space.log, step=space.step or 1)
    return kinds.FloatDistribution(space.low, space.high, log=space.log, step=space.step)


def _chosen(asked: Any, name: str, mark: Mark) -> Any:
    """What Optuna chooses, as the recipe has it."""
    space = mark.space
    if isinstance(space, Choices):
        return space.values[asked.suggest_categorical(name, tuple(range(len(space.values))))]
    if space.whole:
        step = space.step or 1
        return asked.suggest_int(name, space.low, space.high, log=space.log, step=step)
    value = asked.suggest_float(name, space.low, space.high, log=space.log, step=space.step)
    return space.rounded(value)


def _spoken(mark: Mark, value: Any) -> Any:
    """What a recipe has, as Optuna knows it."""
    if not isinstance(mark.space, Choices):
        return value
    return next(i for i, own in enumerate(mark.space.values) if value in Choices((own,)))


@contextmanager
def _quiet() -> Iterator[Any]:
    """Optuna, which says nothing on its own."""
    optuna = needed("optuna", "searching a recipe")
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield optuna
    finally:
        optuna.logging.set_verbosity(before)
