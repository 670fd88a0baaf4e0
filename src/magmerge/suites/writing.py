"""The folder of a suite, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from magmerge.errors import OutputError
from magmerge.suites.head_files import save_head

FILE, HEADS, DATA = "suite.yaml", "heads", "data"


def check_out(out: Path, *, overwrite: bool) -> None:
    """OutputError unless a suite's folder can be written there: free, empty, or to be replaced.

    Only a folder that holds a suite and nothing else is ever replaced.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError("it is no folder", source=out, remedy="name another output")
    entries = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if not entries:
        return
    if FILE not in entries or entries - {FILE, HEADS, DATA}:
        raise OutputError(
            "it holds other things than a suite, so it is never replaced",
            source=out,
            remedy="choose another output, or empty the folder yourself",
        )
    if not overwrite:
        raise OutputError(
            "it exists already", source=out, remedy="pass --yes (overwrite=True) to replace it"
        )


@contextmanager
def suite_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` to write to, which becomes `out` at the end; nothing if it fails."""
    check_out(out, overwrite=overwrite)
    made: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.magmerge-partial-"))
        made.chmod(0o755)
        yield made
        check_out(out, overwrite=overwrite)
        _publish(made, out)
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror}",
            source=out,
            remedy="choose a folder that you may write to",
        ) from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def write_heads(folder: Path, heads: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Each task's head as heads/TASK.safetensors."""
    (folder / HEADS).mkdir()
    for name, tensors in heads.items():
        save_head(folder / HEADS / f"{name}.safetensors", tensors)


def write_list(folder: Path, name: str, split: str, rows: Sequence[tuple[Path, int]]) -> str:
    """An image list as data/TASK.SPLIT.images; its path from the suite file."""
    (folder / DATA).mkdir(exist_ok=True)
    lines = (json.dumps({"image": str(path.resolve()), "label": label}) for path, label in rows)
    path = folder / DATA / f"{name}.{split}.images"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return f"{DATA}/{path.name}"


def write_suite(folder: Path, content: Mapping[str, Any]) -> None:
    """The suite file; names in it are plain text, whatever they hold."""
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=100)
    (folder / FILE).write_text(text, encoding="utf-8")


def _publish(made: Path, out: Path) -> None:
    """Give the finished folder its name; the one that it replaces is put aside first."""
    if not out.exists():
        os.rename(made, out)
        return
    aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.magmerge-old-"))
    os.rename(out, aside / "old")
    try:
        os.rename(made, out)
    except OSError:
        os.rename(aside / "old", out)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
