"""mergekit's recipes by mergekit 0.1.5 and by magmerge, compared tensor by tensor.

Builds tiny models of many architectures, runs mergekit in its own environment (one process for all
recipes) and magmerge on the same recipes, with `--as mergekit` and without. For each recipe: equal
(but for the rounding of the output's format), knowingly different (the rule named), mergekit fails
and magmerge not, or magmerge fails.

    .venv/bin/python -m benchmarks.mergekit_recipes
    .venv/bin/python -m benchmarks.mergekit_recipes --only ties      # names with this in them
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.console import Console
from rich.table import Table

import magmerge
from benchmarks.merge_speed import mergekit
from benchmarks.mergekit.comparison import difference, loaded, tensors
from benchmarks.mergekit.tiny_models import build_models

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "mergekit_recipes.jsonl"
RECIPES = sorted((HERE / "mergekit").glob("*_recipes.yaml"))
RIVAL = HERE / "mergekit" / "rival.py"
WAYS = ("mergekit", "better")
COLUMNS = ("equal", "knowingly different", "mergekit fails, magmerge not", "magmerge fails")


class Case(NamedTuple):
    """A recipe, and the rules by which magmerge differs from mergekit whatever it is told. With
    `loaded` what transformers loads is compared, not what is stored.
    """

    name: str
    recipe: str
    rules: Sequence[str] = ()
    loaded: bool = False


class Verdict(NamedTuple):
    """In which column a recipe stands, and what is to be said of it."""

    column: str
    detail: str


def main() -> None:
    """Build, run, compare, print, write the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it there")
    options = parser.parse_args()
    texts = [file.read_text(encoding="utf-8") for file in RECIPES]
    cases = [Case(**entry) for text in texts for entry in yaml.safe_load(text)]
    cases = [case for case in cases if options.only in case.name]
    with _folder(options.keep) as folder:
        if not (folder / "llama").is_dir():
            build_models(folder)
        theirs = by_mergekit(cases, folder)
        rows = [compared(case, way, folder, theirs) for case in cases for way in WAYS]
    Console(width=220).print(as_table(rows))
    RESULTS.parent.mkdir(exist_ok=True)
    lines = [json.dumps(row) for row in rows]
    if not options.only:
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _place(case: Case, folder: Path, way: str) -> Path:
    return folder / "out" / f"{re.sub('[^a-z0-9]+', '-', case.name.lower())}-{way}"


def by_mergekit(cases: Sequence[Case], folder: Path) -> Mapping[str, str | None]:
    """mergekit's results, one process for all: the error of each, None where there is none."""
    jobs = []
    for case in cases:
        place = _place(case, folder, "theirs")
        place.parent.mkdir(exist_ok=True)
        recipe = place.with_suffix(".yml")
        recipe.write_text(case.recipe, encoding="utf-8")
        jobs.append({"recipe": str(recipe), "out": str(place)})
    listing = folder / "jobs.json"
    listing.write_text(json.dumps(jobs), encoding="utf-8")
    python = mergekit().with_name("python")
    with (folder / "mergekit.log").open("wb") as log:
        done = subprocess.run(
            [str(python), str(RIVAL), str(listing)],
            cwd=folder, stdout=subprocess.PIPE, stderr=log, check=True, text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    results = [json.loads(line.removeprefix("RESULT ")) for line in lines]
    return {result["out"]: result["error"] for result in results}


def by_magmerge(case: Case, folder: Path, way: str) -> tuple[str | None, list[str]]:
    """magmerge's result: its error if there is one, and the rules that it told."""
    place = _place(case, folder, way)
    try:
        with contextlib.chdir(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recipe = _place(case, folder, "theirs").with_suffix(".yml")
            recipes = magmerge.read_recipes(recipe, "mergekit" if way == "mergekit" else "better")
            magmerge.run(recipes, place, overwrite=True)
    except magmerge.MagmergeError as error:
        return str(error).replace("\n", " "), []
    except Exception as error:
        return f"{type(error).__name__}: {error}", []
    notes = [note for recipe in recipes for note in recipe.notes]
    return None, [note.partition("rule ")[2].partition(":")[0] for note in notes]


def compared(
    case: Case, way: str, folder: Path, theirs: Mapping[str, str | None]
) -> dict[str, Any]:
    """One recipe in one way: both programs' results, and the verdict."""
    place = _place(case, folder, "theirs")
    failed = theirs[str(place)]
    error, rules = by_magmerge(case, folder, way)
    verdict = _verdict(case, folder, way, failed, error, rules)
    return {"recipe": case.name, "way": way, **verdict._asdict(), "mergekit": failed}


def _verdict(
    case: Case, folder: Path, way: str, failed: str | None, error: str | None, rules: list[str]
) -> Verdict:
    if error is not None:
        return Verdict(COLUMNS[3], error)
    if failed is not None:
        return Verdict(COLUMNS[2], failed)
    read = loaded if case.loaded else tensors
    gap = difference(read(_place(case, folder, way)), read(_place(case, folder, "theirs")))
    dropped = f"; mergekit drops {len(gap.more)} tensors" if gap.more else ""
    if gap.equal:
        return Verdict(COLUMNS[1] if gap.more else COLUMNS[0], dropped.removeprefix("; "))
    told = f"{gap.share:.1%} of entries, at most {gap.gap:.1e}{dropped}"
    if gap.shapes:
        told += f"; {gap.shapes[0]}"
    named = [*dict.fromkeys([*case.rules, *(rule for rule in rules if rule != "no-effect")])]
    if gap.missing or not named:
        return Verdict(
            COLUMNS[3], f"{told}{'; lacks ' * bool(gap.missing)}{', '.join(gap.missing[:2])}"
        )
    return Verdict(COLUMNS[1], f"{', '.join(named)}: {told}")


def as_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each recipe and way, and what they come to."""
    counts = [
        f"{way}: " + ", ".join(f"{column} {_count(rows, way, column)}" for column in COLUMNS)
        for way in WAYS
    ]
    table = Table("recipe", "as", "", "", title="\n".join(counts), title_justify="left",
                  box=None, pad_edge=False)  # fmt: skip
    for row in rows:
        table.add_row(row["recipe"], row["way"], row["column"], row["detail"][:140])
    return table


def _count(rows: Sequence[Mapping[str, Any]], way: str, column: str) -> int:
    return sum(row["way"] == way and row["column"] == column for row in rows)


if __name__ == "__main__":
    main()
