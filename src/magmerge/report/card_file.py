"""The model card of a folder that magmerge wrote, made anew from its magmerge.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from magmerge.checkpoints.donor import companion_files
from magmerge.checkpoints.output.own_files import CARD, FACTORS, RECIPE, is_own_card
from magmerge.core.errors import CheckpointError, OutputError
from magmerge.core.whole_file import write_whole
from magmerge.report.account import FILE, foreign, read_json
from magmerge.report.card import card_files
from magmerge.report.html_file import Scores, record_of, tables_of

ADAPTER = "adapter_config.json"


def card(
    checkpoint: str | Path,
    scores: Sequence[Scores] = (),
    *,
    write: bool = False,
    overwrite: bool = False,
) -> str:
    """The text of the model card of a folder that magmerge wrote, with evaluations if some are
    given; with `write` it is also written there, as README.md.

    A card that somebody wrote or changed is replaced only with `overwrite`. CheckpointError where
    the folder has no magmerge.json, OutputError where the card may not be written.
    """
    folder = Path(checkpoint)
    if folder.is_file():
        raise CheckpointError(
            "a single file has no model card", source=folder, remedy="give a model's folder"
        )
    document = read_json(record_of(folder))
    if not isinstance(document, Mapping):
        raise foreign("it is no object", folder / FILE)
    files = card_files(document, _texts(folder), tables_of(scores))
    if write:
        path = folder / CARD
        if path.exists() and not overwrite and not is_own_card(path):
            raise OutputError(
                "somebody wrote or changed it, so it is not replaced",
                source=path,
                remedy="print the card and copy what you need of it, or pass --yes "
                "(overwrite=True) to replace it",
            )
        for name in (FACTORS, CARD):
            if name in files:
                write_whole(folder / name, files[name].decode())
    return files[CARD].decode()


def _texts(folder: Path) -> dict[str, bytes]:
    """The configs and the recipe of a folder, by their names within it."""
    files = dict(companion_files(folder))
    files |= {name: folder / name for name in (RECIPE, ADAPTER)}
    files |= {path.relative_to(folder).as_posix(): path for path in folder.glob(f"*/{ADAPTER}")}
    return {name: path.read_bytes() for name, path in files.items() if path.is_file()}
