"""What an unfinished result holds already: the parts that were written, and their checksums."""

from __future__ import annotations

import hashlib
import json
import threading
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from magmerge.core import dtypes
from magmerge.core.types import Shard, Step
from magmerge.core.whole_file import replace_whole

LEDGER, FINDINGS, SPOOL = ".ledger", ".findings", ".spool"


class WrittenPart(NamedTuple):
    """Bytes of a tensor from the entry `start` on: how many, and their CRC-32, which tells a
    torn write and costs a quarter of what SHA-256 does."""

    start: int
    size: int
    digest: str


class Ledger:
    """One line for each finished step, in the staging folder: its parts and what became of it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEDGER
        self._findings = folder / FINDINGS
        self._lock = threading.Lock()
        self._stream: Any = None
        self._parts: dict[str, list[WrittenPart]] = {}
        self.written: dict[str, list[WrittenPart]] = {}

    def note(self, step: Step, start: int, data: memoryview) -> None:
        """A part of a step was written."""
        part = WrittenPart(start, len(data), f"{zlib.crc32(data):08x}")
        with self._lock:
            self._parts.setdefault(step.key, []).append(part)
            self.written.setdefault(step.key, []).append(part)

    def finish(self, step: Step, outcome: bytes) -> None:
        """The step is done, with this JSON of what became of it: nothing is written any more."""
        with self._lock:
            line = json.dumps({"step": step.key, "parts": self._parts.pop(step.key, [])})
            if self._stream is None:
                self._stream = self._path.open("ab", buffering=0)
            self._stream.write(b'%b, "outcome": %b}\n' % (line[:-1].encode(), outcome))

    def finished(
        self, steps: Mapping[str, Sequence[Step]], shards: tuple[Shard, ...]
    ) -> dict[str, Mapping[str, Any]]:
        """The line of each step whose bytes are there, with the checksums that were noted. `steps`
        are each one with those that share its memory: they have the same bytes.
        """
        lines: dict[str, Mapping[str, Any]] = {}
        for line in self._lines():
            tied = steps.get(line["step"], ())
            if tied and all(_holds(self._path.parent, s, shards, line["parts"]) for s in tied):
                lines[line["step"]] = line
        return lines

    def keep_findings(self, content: bytes) -> None:
        """What the passes before the last one found."""
        replace_whole(self._findings, hashlib.sha256(content).hexdigest().encode() + content)

    def findings(self) -> bytes | None:
        """The same, if it is there and whole."""
        try:
            text = self._findings.read_bytes()
        except OSError:
            return None
        digest, content = text[:64], text[64:]
        return content if hashlib.sha256(content).hexdigest().encode() == digest else None

    def _lines(self) -> list[dict[str, Any]]:
        """The lines that were written whole."""
        lines: list[dict[str, Any]] = []
        try:
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return lines
        for line in text.splitlines():
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                entry = json.loads(line)
                entry["parts"] = sorted(WrittenPart(*part) for part in entry["parts"])
                whole = all(type(n) is int for part in entry["parts"] for n in part[:2])
                if whole and isinstance(entry["step"], str) and isinstance(entry["outcome"], dict):
                    lines.append(entry)
        return lines


def _holds(folder: Path, step: Step, shards: tuple[Shard, ...], parts: list[WrittenPart]) -> bool:
    """Whether the step's file has these parts, and they are all of it."""
    width = dtypes.width(step.spec.dtype)
    first = step.first if step.whole is not None else 0
    reached = first * width
    for part in parts:
        # One part after the other, without holes and overlaps.
        if part.start * width != reached or part.size < 0:
            return False
        reached += part.size
    if reached != first * width + dtypes.nbytes(step.spec):
        return False
    try:
        with (folder / shards[step.shard].file).open("rb") as stream:
            for part in parts:
                stream.seek(step.offset + part.start * width)
                if f"{zlib.crc32(stream.read(part.size)):08x}" != part.digest:
                    return False
    except OSError:
        return False
    return True
