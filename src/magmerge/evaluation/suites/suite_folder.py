"""The folder of a suite, written whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from magmerge.checkpoints.output.own_files import LOCK, foreign
from magmerge.checkpoints.output.staging import Staging
from magmerge.checkpoints.output.target import Target
from magmerge.core.errors import OutputError, shortened
from magmerge.core.file_system import sync_tree
from magmerge.core.plain_yaml import yaml_of
from magmerge.core.whole_file import replace_whole

FILE, HEADS, DATA, LIST = "suite.yaml", "heads", "data", ".images"
MARK = "# Written by magmerge, which may replace this folder."
"""The first line of a suite file that is not a person's."""

_NAMED = re.compile(rf"^ *\w+: ({HEADS}/\S+\.safetensors|{DATA}/\S+\{LIST})$", re.MULTILINE)
"""Its lines that name files beside it."""


def check_out(out: Path, *, overwrite: bool) -> None:
    """OutputError unless a suite's folder can be written there: free, empty, or to be replaced.

    Only a folder that holds a suite of magmerge's and nothing else is ever replaced.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError("it is no folder", source=out, remedy="name another output")
    if not out.is_dir() or not any(out.iterdir()):
        return
    others = foreign(out, _own(out))
    if others:
        raise OutputError(
            "it holds other things than a suite that magmerge wrote, so it is never replaced: "
            f"{shortened(others)}",
            source=out,
            remedy="choose another output, or move these away yourself",
        )
    if not overwrite:
        raise OutputError(
            "it exists already", source=out, remedy="pass --yes (overwrite=True) to replace it"
        )


@contextmanager
def suite_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` to write to, which becomes `out` at the end; nothing if it fails."""
    check_out(out, overwrite=overwrite)
    try:
        target = Target(out, False, FILE, _own(out), overwrite)
        with Staging(target) as staging:
            yield staging.folder
            check_out(out, overwrite=overwrite)
            sync_tree(staging.folder)
            staging.publish()
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror}",
            source=out,
            remedy="choose a folder that you may write to",
        ) from error


def write_heads(folder: Path, heads: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Each task's head as heads/TASK.safetensors."""
    (folder / HEADS).mkdir()
    for name, tensors in heads.items():
        replace_whole(folder / HEADS / f"{name}.safetensors", save(dict(tensors)))


def write_list(folder: Path, name: str, split: str, rows: Sequence[tuple[Path, int]]) -> str:
    """An image list as data/TASK.SPLIT.images; its path from the suite file."""
    (folder / DATA).mkdir(exist_ok=True)
    lines = (json.dumps({"image": os.path.realpath(path), "label": label}) for path, label in rows)
    path = folder / DATA / f"{name}.{split}{LIST}"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return f"{DATA}/{path.name}"


def write_suite(folder: Path, content: Mapping[str, Any]) -> None:
    """The suite file; names in it are plain text, whatever they hold."""
    text = yaml_of(dict(content), width=100)
    (folder / FILE).write_text(f"{MARK}\n{text}", encoding="utf-8")


def _own(folder: Path) -> frozenset[str]:
    """The files that a named suite's own file tells: its heads and its lists of images."""
    try:
        written = (folder / FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return frozenset()
    # A kill right after the folder's rename leaves the lock in it.
    return frozenset({FILE, LOCK, *_NAMED.findall(written)} if written.startswith(MARK) else ())
