"""tune(): the best values for a recipe's marks, found on held-out rows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from magmerge.checkpoints.output.target import check_apart_and_free
from magmerge.core.errors import MagmergeError, ParameterError, suggestion
from magmerge.core.lazy import Tabular
from magmerge.core.machine import Machine
from magmerge.core.recipe import Recipe
from magmerge.core.whole_file import write_whole
from magmerge.engine.job import Live
from magmerge.engine.notes import warn
from magmerge.engine.outputs import named_path
from magmerge.engine.result import Result
from magmerge.evaluation.entries import ModelEntry
from magmerge.pipeline.documents import run
from magmerge.pipeline.recipe_files import check_called, recipe_text
from magmerge.studies.tuning.measures import Measure, OpenMeasure, open_measure
from magmerge.studies.tuning.merged_models import Bench, Measuring
from magmerge.studies.tuning.proposals import check_sampler
from magmerge.studies.tuning.search import Proposing, Search
from magmerge.studies.tuning.search_folder import BEST, own_folder
from magmerge.studies.tuning.space import Space, read_space
from magmerge.studies.tuning.trials import Trial, TrialFile, best_of
from magmerge.studies.tuning.tuning_plot import check_drawing, draw_trials

FOLDER = ".tune"
"""What the folder of a search ends in, beside its output."""
NOISE = 2.0
"""Standard errors that a gain must be worth."""
Each = Callable[[Trial, Trial | None], None]
"""Called with each trial, and the best so far."""


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """How a search goes beside what it is measured by: see `tune`."""

    seed: int = 0
    sampler: str = "tpe"
    machine: Machine = field(default_factory=Machine)
    resume: bool = False
    overwrite: bool = False
    each: Each | None = None


@dataclass(frozen=True, slots=True)
class TuneResult(Tabular):
    """What a search found. Scores are `words`, and `rising` tells whether more is better.

    `gain` is by how much the best is better than the default, on the same rows, with its standard
    `error` from a bootstrap over the rows; both None where the default failed. `rows` says which
    rows of each task were looked at. `recipe` is the best as YAML; `folder` holds it as best.yml,
    with all trials and plots; `result` is the best as it was merged at the end, with `out`.
    """

    tabled: ClassVar[str] = "magmerge.studies.result_tables:tuning_table"
    trials: tuple[Trial, ...]
    default: Trial
    best: Trial
    gain: float | None
    error: float | None
    count: int
    rows: Mapping[str, str]
    words: str
    rising: bool
    recipe: str
    folder: Path | None
    result: Result | None
    seconds: float

    @property
    def in_noise(self) -> bool:
        """Whether the gain is no more than chance might make it."""
        return self.gain is not None and self.gain <= NOISE * (self.error or 0.0)

    def document(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "result"}
        own |= {"default": asdict(self.default), "best": asdict(self.best)}
        own["trials"] = [asdict(trial) for trial in self.trials]
        path = self.result.path if self.result is not None else None
        places = {"folder": self.folder, "path": path}
        return {**own, **{k: None if v is None else str(v) for k, v in places.items()}}


def tune(
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    suite: Any = None,
    perplexity: Any = (),
    unlabelled: Any = None,
    trials: int = 20,
    **options: Any,
) -> TuneResult:
    """Search the values that a recipe marks, such as `density: !tune [0.1, 0.9]`.

    `recipe` is the path of a YAML file, or its text. Each trial is merged in memory and measured on
    one of `suite` (a suite file, or an opened suite: its validation rows, else some of its training
    rows, never its test rows), `perplexity` (files of texts: the mean loss of a language model),
    and `unlabelled` (samples of each expert by its name, or one source for all: how near the
    outputs are to the expert's). The first of `trials` is the recipe at its defaults. `options` are
    the fields of `Measure` (metric, tasks, split, rows, seed, text_field, max_length, allow_code)
    and of `TuneOptions` (seed, sampler, machine, resume, overwrite, each).

    With `out` the best is merged there. The folder OUT.tune, else RECIPE.tune, holds trials.jsonl,
    best.yml and plots; with `resume` a search that was stopped goes on as if it had not been.
    A trial that fails is left behind, with its reason. Raises MagmergeError's children.
    """
    start, how, measure = time.monotonic(), *_options(options, suite, perplexity, unlabelled)
    if not isinstance(trials, int) or trials < 1:
        raise ParameterError(f"{trials} trials", remedy="make one or more")
    check_sampler(how.sampler)
    check_drawing()
    text, source = _text(recipe)
    space = read_space(text, source)
    recipes = space.recipes(space.start())
    opened = open_measure(measure, recipes)
    _check_out(out, recipes, overwrite=how.overwrite)
    folder = _folder(recipe, out)
    warn(space.notes())
    own = own_folder(folder, resume=how.resume, overwrite=how.overwrite)
    with own, tempfile.TemporaryDirectory(prefix="magmerge-tune-") as texts:
        said = _said(text, measure, opened, how)
        file = TrialFile(folder, said, resume=how.resume)
        entry = opened.entry.model if opened.entry is not None else ModelEntry.model_validate({})
        # Of what a trial does the number of trials alone is told.
        quiet = replace(how.machine, progress=None)
        bench = Bench(quiet, Path(texts), entry, opened.base, build=measure.allow_code)
        measuring = Measuring(bench)
        search = Search(space, measuring, partial(opened.objective, measuring), file)
        found = _searched(
            search, opened, Proposing(trials, opened.rising, how.seed, how.sampler), how
        )
        _keep(found, space, folder, source)
    result = None
    if out is not None:
        best = Recipe.all_from_yaml(found["recipe"], source)
        live = Live(build=measure.allow_code)
        result = run(best, out, machine=how.machine, live=live, overwrite=how.overwrite)
    seconds = time.monotonic() - start
    return TuneResult(**found, folder=folder, result=result, seconds=seconds)


def _searched(
    search: Search, opened: OpenMeasure, proposing: Proposing, how: TuneOptions
) -> dict[str, Any]:
    """The fields of the result that the trials tell."""
    if opened.base is not None:
        search.prepare(opened.base)
    progress = how.machine.progress

    def each(trial: Trial, best: Trial | None) -> None:
        if how.each is not None:
            how.each(trial, best)
        if progress is not None:
            progress("trials", trial.number + 1, proposing.trials)

    search.run(proposing, each)
    trials = search.trials[: proposing.trials]
    best, default = best_of(trials, rising=opened.rising), trials[0]
    if best is None:
        raise MagmergeError(
            f"all {len(trials)} trials failed; the first: {default.fault}",
            source=search.space.source,
            remedy="see that the recipe runs with other values: magmerge merge with its marks "
            "replaced",
        )
    gain, error = None, None
    after = search.answers(best)
    if default.score is not None:
        gain, error = search.objective.gain(search.answers(default), after)
    objective = search.objective
    return {
        "trials": tuple(trials),
        "default": default,
        "best": best,
        "gain": gain,
        "error": error,
        "count": objective.count,
        "rows": {name: task.rows for name, task in objective.tasks.items()},
        "words": objective.words,
        "rising": opened.rising,
        "recipe": search.space.text(best.values),
    }


def _keep(found: Mapping[str, Any], space: Space, folder: Path | None, source: str) -> None:
    """The best recipe, and the plots, beside the trials."""
    if folder is None:
        return
    best, default = found["best"], found["default"]
    scores = ", ".join(
        f"{name} {'failed' if trial.score is None else format(trial.score, '.5g')}"
        for name, trial in (("best", best), ("default", default))
    )
    head = f"# {' '.join(source.split())} as magmerge tune found it: trial {best.number}.\n"
    head += f"# {found['words']}, on {found['count']} held-out rows: {scores}.\n"
    write_whole(folder / BEST, head + found["recipe"])
    draw_trials(found["trials"], space.marks, folder, found["words"], best)


def _options(
    options: Mapping[str, Any], suite: Any, perplexity: Any, unlabelled: Any
) -> tuple[TuneOptions, Measure]:
    """The options of a call by their homes; TypeError for any other, as Python has it."""
    own = {f.name for f in fields(TuneOptions)}
    of_measure = {f.name for f in fields(Measure)} - {"suite", "perplexity", "unlabelled"}
    for name in options:
        if name not in own | of_measure:
            near = suggestion(name, own | of_measure)
            raise TypeError(f"tune() got an unexpected keyword argument {name!r}; {near}")
    files = [perplexity] if isinstance(perplexity, str | Path) else list(perplexity)
    measure = Measure(
        suite, files, unlabelled, **{k: v for k, v in options.items() if k in of_measure}
    )
    return TuneOptions(**{k: v for k, v in options.items() if k in own}), measure


def _text(recipe: str | Path) -> tuple[str, str]:
    """A recipe's text, and what messages call it: a text has several lines."""
    if isinstance(recipe, str) and "\n" in recipe:
        return recipe, "the recipe"
    text = recipe_text(recipe)
    check_called(recipe)
    return text, str(recipe)


def _folder(recipe: str | Path, out: str | Path | None) -> Path | None:
    """Where the search is kept: beside the output, else beside the recipe."""
    if out is not None:
        path = named_path(out)
        return path.with_name(f"{path.name}{FOLDER}")
    if isinstance(recipe, str) and "\n" in recipe:
        return None
    return Path(recipe).with_suffix(FOLDER)


def _check_out(out: str | Path | None, recipes: list[Recipe], *, overwrite: bool) -> None:
    if out is not None:
        inputs = [Path(path) for recipe in recipes for path in recipe.models.values()]
        check_apart_and_free(named_path(out), inputs, overwrite=overwrite)


def _said(text: str, measure: Measure, opened: OpenMeasure, how: TuneOptions) -> dict[str, Any]:
    """All that decides what the trials are, as data."""
    plain = {f.name: getattr(measure, f.name) for f in fields(Measure)}
    plain["suite"] = None if opened.entry is None else opened.entry.model_dump(mode="json")
    if not isinstance(measure.unlabelled, Mapping | str | Path | None):
        plain["unlabelled"] = f"a {type(measure.unlabelled).__name__}"
    elif isinstance(measure.unlabelled, Mapping):
        plain["unlabelled"] = {str(k): str(v)[:200] for k, v in measure.unlabelled.items()}
    told = {key: value if isinstance(value, bool | int | list | dict | None) else str(value)
            for key, value in plain.items()}  # fmt: skip
    told["perplexity"] = [str(file) for file in measure.perplexity]
    return {"recipe": text, **told, "sampler": how.sampler}
