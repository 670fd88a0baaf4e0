"""Write report.html beside the magmerge.json that it is made from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from magmerge.checkpoints.output.own_files import not_own
from magmerge.core.errors import CheckpointError, MagmergeError, OutputError, ParameterError
from magmerge.core.whole_file import check_free, write_whole
from magmerge.report.account import FILE, foreign, read_json
from magmerge.report.page import render
from magmerge.report.several import render_several

REPORT = "report.html"
SUFFIXES = (".html", ".htm")
MADE = b'name="generator" content="magmerge'
"""What every report has in its head."""

Scores = str | Path | Mapping[str, Any]
"""A result of `magmerge evaluate --json`, or a table; a file with one, or with a list of them."""


def write_report(
    checkpoint: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    scores: Sequence[Scores] = (),
    *,
    title: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the report of a checkpoint that magmerge made, and give its path.

    `checkpoint` is a folder, a .safetensors file or the magmerge.json itself. Without `out` the
    report goes beside it: FOLDER/report.html, or NAME.report.html for a file NAME.safetensors.
    Several checkpoints are compared on one page, which `out` names.
    """
    if not isinstance(checkpoint, str | Path) and len(checkpoint) != 1:
        return _write_several([*map(Path, checkpoint)], out, scores, overwrite=overwrite)
    one = checkpoint if isinstance(checkpoint, str | Path) else checkpoint[0]
    record = record_of(Path(one))
    target = Path(out) if out is not None else report_of(record)
    _check(target, overwrite=overwrite)
    document = _document(record)
    try:
        text = render(document, tables_of(scores), title)
    except MagmergeError as error:
        # The page knows contents, not files.
        if error.source == FILE:
            error.source = str(record)
        raise
    write_whole(target, text)
    return target


def _write_several(
    checkpoints: Sequence[Path],
    out: str | Path | None,
    scores: Sequence[Scores],
    *,
    overwrite: bool,
) -> Path:
    """Write the page that compares several results."""
    if out is None or scores or not checkpoints:
        raise ParameterError(
            "several results are compared on a page of their own, without scores",
            remedy="give results, name the page with --out FILE.html (out=), and leave --scores "
            "out",
        )
    _check(Path(out), overwrite=overwrite)
    documents = {str(path): _document(record_of(path)) for path in checkpoints}
    write_whole(Path(out), render_several(documents))
    return Path(out)


def _document(record: Path) -> dict[str, Any]:
    """The content of a record that has a report; CheckpointError for any other file."""
    document = read_json(record)
    if not isinstance(document, dict):
        raise foreign("it is no object", record)
    if _is_extraction(document):
        raise CheckpointError(
            "an adapter that was extracted has no report",
            source=record,
            remedy="this file has its numbers: error, modules, lost",
        )
    return document


def record_of(checkpoint: Path) -> Path:
    """Where the provenance of a checkpoint is; CheckpointError where there is none."""
    record = checkpoint
    if os.path.isdir(checkpoint):
        record = checkpoint / FILE
    elif checkpoint.suffix == ".safetensors":
        record = checkpoint.with_name(f"{checkpoint.stem}.{FILE}")
    if os.path.isfile(record):
        return record
    missing = record if os.path.exists(checkpoint) else checkpoint
    raise CheckpointError(
        "no such file",
        source=missing,
        remedy="give a folder or file that `magmerge merge` or `magmerge calibrate` wrote, "
        f"with its {FILE}",
    )


def report_of(record: Path) -> Path:
    """Where the report on `record` goes: magmerge.json has it as report.html beside it."""
    if record.name == FILE:
        return record.with_name(REPORT)
    name = record.name.removesuffix(f".{FILE}")
    stem = record.stem if name == record.name else name
    return record.with_name(f"{stem}.{REPORT}")


def _is_extraction(document: Mapping[str, Any]) -> bool:
    """Whether the record is of a model's adapter: nothing was merged, and what is lost is told."""
    recipe = document.get("recipe")
    merged = isinstance(recipe, Mapping) and recipe.get("method") is not None
    return "extraction" in document or ("lost" in document and not merged)


def _check(target: Path, *, overwrite: bool) -> None:
    if target.suffix.lower() not in SUFFIXES:
        raise OutputError(
            "a report is an .html file", source=target, remedy=f"name it like {REPORT}"
        )
    check_free(target, overwrite=overwrite)
    if os.path.isfile(target) and MADE not in target.read_bytes():
        raise not_own(target)


def tables_of(scores: Sequence[Scores]) -> list[Mapping[str, Any]]:
    """What evaluations found, from files and from memory."""
    tables: list[Mapping[str, Any]] = []
    for score in scores:
        tables += [score] if isinstance(score, Mapping) else _tables(Path(score))
    return tables


def _tables(file: Path) -> list[Mapping[str, Any]]:
    content = read_json(file)
    tables = content if isinstance(content, list) else [content]
    if not all(isinstance(table, dict) for table in tables):
        raise foreign("it holds no results", file)
    return tables
