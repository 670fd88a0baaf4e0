"""Figures as files: SVG with tooltips, PNG and PDF, each written whole and without a date."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

from magmerge.errors import OutputError, printable
from magmerge.figures.canvas import FINE, INCH, UNDATED, Canvas
from magmerge.figures.palette import PAPER

SVG = "http://www.w3.org/2000/svg"
LINK = "http://www.w3.org/1999/xlink"


def save(canvas: Canvas, path: Path, title: str) -> None:
    """Write the sheet in the format that the name ends in; OutputError where that fails."""
    kind = path.suffix.lower().removeprefix(".")
    raw = BytesIO()
    dots = FINE if kind == "png" else INCH
    canvas.figure.savefig(raw, format=kind, dpi=dots, facecolor=PAPER, metadata=UNDATED[kind])
    content = raw.getvalue()
    _replace(path, _told(content, title, canvas.tips) if kind == "svg" else content)


def _told(content: bytes, title: str, tips: Mapping[str, Sequence[str]]) -> bytes:
    """The SVG with what it shows in words, and what each mark stands for."""
    root = ElementTree.fromstring(content)
    for child in root.findall("{*}metadata"):
        root.remove(child)
    root.set("role", "img")
    root.set("aria-label", printable(title))
    for group in root.iter(f"{{{SVG}}}g"):
        texts = tips.get(group.attrib.get("id", ""), ())
        marks = group.findall(".//{*}use") if texts else []
        if len(marks) == len(texts):
            for mark, text in zip(marks, texts, strict=True):
                ElementTree.SubElement(mark, f"{{{SVG}}}title").text = printable(text)
        elif texts:
            told = ElementTree.Element(f"{{{SVG}}}title")
            told.text = printable("; ".join(texts))
            group.insert(0, told)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", LINK)
    return b'<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root)


def _replace(path: Path, content: bytes) -> None:
    """Write in one step, as readable as the user's other files."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".magmerge-partial-")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror}",
            source=path,
            remedy="choose a folder that you may write to",
        ) from error
