"""run(): a recipe, or the several documents of a recipe's file, to a result."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from magmerge import live, report
from magmerge.checkpoints.digests import DigestMemory
from magmerge.checkpoints.loader import Model, adapts, open_checkpoint
from magmerge.checkpoints.output.own_files import RECORD, REPORT
from magmerge.checkpoints.output.target import Target
from magmerge.checkpoints.safetensors import SafetensorsCheckpoint
from magmerge.core.errors import MissingExtraError, ParameterError, suggestion
from magmerge.core.machine import Machine
from magmerge.core.recipe import Recipe
from magmerge.engine.job import Findings, Job, Live, Work
from magmerge.engine.notes import warn
from magmerge.engine.outputs import target_for
from magmerge.engine.resolve import EXPERT, open_job
from magmerge.engine.result import Result
from magmerge.engine.run import run_job


def run(
    recipe: Recipe | Sequence[Recipe] | str | Path,
    out: str | Path | None = None,
    *,
    models: Mapping[str, Model] | None = None,
    machine: Machine | None = None,
    live: Live | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Result:
    """Carry a recipe out, whatever it is: a merge, a calibration, an extraction, a conversion.

    `recipe` is one, several of which later ones name the results of earlier ones as models, or the
    path of a YAML file of such documents. `models` are models in memory, by their role in the
    recipe (base, merged) or their expert's name, in place of its paths. With `out` the result of
    the last is written there, else it stays in memory; with `resume` what a killed run of the same
    recipe left is gone on with. Raises MagmergeError's children.
    """
    recipes = read_recipes(recipe) if isinstance(recipe, str | Path) else recipe
    recipes = [recipes] if isinstance(recipes, Recipe) else list(recipes)
    check_documents(recipes)
    machine = machine or Machine()
    with _shelf(out, several=len(recipes) > 1, keep=resume) as shelf:
        for place, document in enumerate(recipes):
            last = place == len(recipes) - 1
            known = {one.name: shelf / str(one.name) for one in recipes[:place] if one.name}
            given = {} if models is None else dict(models)
            given |= {
                key: _result(known[path], path)
                for key, path in _named_models(document).items()
                if path in known and key not in given
            }
            job = open_job(document, given, machine=machine, live=live, documents=recipes[:place])
            where = out if last else shelf / str(document.name)
            if not last and resume and _is_done(job, Path(where or "")):
                continue
            target = None
            if where is not None:
                replaces = overwrite if last else True
                target = target_for(job, where, overwrite=replaces, resume=resume)
            result = run_job(job, target, measure=measured, report=calibration_report)
    return result


def read_recipes(path: str | Path) -> list[Recipe]:
    """The documents of a recipe's file; ParameterError where it is none, with the key and remedy.

    A file is read as data: no tag in it makes an object.
    """
    file = Path(path)
    try:
        contents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        near = [one.name for one in file.parent.iterdir()] if file.parent.is_dir() else []
        told = suggestion(file.name, near) if near and not file.exists() else ""
        remedy = told if told.startswith("did you mean") else "check the path of the recipe"
        raise ParameterError("cannot be read", source=file, remedy=remedy) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ParameterError(
            f"not YAML: {error}", source=file, remedy="mend the line it names"
        ) from error
    contents = [content for content in contents if content is not None]
    if not contents:
        raise ParameterError("it holds no recipe", source=file, remedy="write one: base, experts")
    return [Recipe.checked(content, str(file)) for content in contents]


def check_documents(recipes: Sequence[Recipe]) -> None:
    """ParameterError where a document's result cannot be named: by no name, or by one of two."""
    names = [recipe.name for recipe in recipes]
    for place, recipe in enumerate(recipes[:-1]):
        if recipe.name is None or recipe.name != Path(recipe.name).name or recipe.name[:1] == ".":
            raise ParameterError(
                f"document {place + 1} has no name that others could call its result by",
                remedy="give it one: name: stage-1",
            )
        if names.index(recipe.name) != place:
            raise ParameterError(
                f"two documents are named {recipe.name!r}", remedy="give each a name of its own"
            )
        later = [path for one in recipes[place + 1 :] for path in one.models.values()]
        if recipe.name not in later:
            raise ParameterError(
                f"no document reads the result of {recipe.name!r}",
                remedy="name it as the base or an expert of a later one, or drop it",
            )


def measured(work: Work, inputs: Mapping[str, Any]) -> Findings:
    """A pass into the live model, which is loaded where there are samples."""
    return live.estimate(work, inputs)


def calibration_report(record: str, target: Target) -> dict[str, bytes]:
    """A calibration's report, made from its record; a warning where it cannot be drawn here."""
    content = json.loads(record)
    if not content["recipe"]["calibrate"]:
        return {}
    name = target.named(REPORT)
    try:
        return {name: report.render(content).encode()}
    except MissingExtraError as error:
        warn([f"no {name} is written: {error.problem}; {error.remedy}, then "
              f"magmerge report {target.path}"])  # fmt: skip
        return {}


def _result(folder: Path, name: str) -> Model:
    """A document's result, which messages and records call by its name, wherever it lies."""
    if adapts(folder):
        return folder
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint, SafetensorsCheckpoint)
    checkpoint.source = name
    return checkpoint


def _named_models(recipe: Recipe) -> dict[str, str]:
    """What the recipe reads, by the keys of a call's models."""
    roles = {"base": recipe.base, "merged": recipe.merged}
    experts = {f"{EXPERT}{name}": path for name, path in recipe.experts.items()}
    return {key: path for key, path in {**roles, **experts}.items() if path is not None}


@contextmanager
def _shelf(out: str | Path | None, *, several: bool, keep: bool) -> Iterator[Path]:
    """Where the results of earlier documents are: beside the output, so that they have its disk.

    It is removed at the end, but for a run that failed and may be gone on with.
    """
    if not several:
        yield Path()
        return
    if out is None:
        with tempfile.TemporaryDirectory(prefix="magmerge-") as place:
            yield Path(place)
        return
    target = Path(out)
    folder = target.parent / f".{target.name}.magmerge-documents"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _is_done(job: Job, folder: Path) -> bool:
    """Whether a run before this one finished the document, from the same files."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
        digests = [one["files"] for one in record["inputs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    memory = DigestMemory()
    now = [{file.name: memory.digest(file) for file in entry.files} for entry in job.inputs]
    return bool(record.get("recipe_digest") == job.recipe.digest and digests == now)
