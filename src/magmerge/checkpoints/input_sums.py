"""Files of sums over what an expert's layers are fed: safetensors, written as the layers come."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from magmerge.checkpoints.output.own_files import disk_errors
from magmerge.checkpoints.safetensors import SafetensorsCheckpoint, read_header
from magmerge.core.errors import CheckpointError, NonFiniteError
from magmerge.core.lazy import Tensor, torch
from magmerge.core.whole_file import unfinished

FORM = "sums of [x, 1]'[x, 1] over what an expert's layers are fed, 2"
"""What such a file's header says it is."""
GATHER = "gather it with magmerge statistics"


class SumsWriter:
    """Writes such a file at `path` from [n + 1, n + 1] matrices; it gets its name when it is whole.

    `most` are the layers that may come, and their shapes; `told` what the header tells beside them.
    Raises OutputError where the system refuses.
    """

    def __init__(
        self, path: Path, most: Mapping[str, tuple[int, ...]], told: Mapping[str, str]
    ) -> None:
        self._path, self._metadata = path, {"magmerge": FORM, **told}
        self._entries: dict[str, Any] = {}
        self._next, largest = 0, sum(4 * math.prod(shape) for shape in most.values())
        fullest = {name: _entry(shape, largest, largest) for name, shape in most.items()}
        # Room for the header of all layers is left before them.
        self._room = len(self._header(fullest))
        self._place = ExitStack()
        with disk_errors(path):
            self._stream = self._place.enter_context(unfinished(path)).open("wb")
            self._stream.seek(8 + self._room)

    def __enter__(self) -> SumsWriter:
        return self

    def keep(self, name: str, matrix: Tensor) -> None:
        """Write one layer's sums."""
        data = matrix.float().contiguous().numpy().tobytes()
        self._entries[name] = _entry(tuple(matrix.shape), self._next, self._next + len(data))
        self._next += len(data)
        with disk_errors(self._path):
            self._stream.write(data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with disk_errors(self._path), self._place:
            with self._stream as stream:
                if kind is None:
                    stream.seek(0)
                    stream.write(self._room.to_bytes(8, "little"))
                    stream.write(self._header(self._entries).ljust(self._room))
            if kind is not None:
                self._place.__exit__(kind, error, trace)

    def _header(self, entries: Mapping[str, Any]) -> bytes:
        content = {"__metadata__": self._metadata, **entries}
        text = json.dumps(content, separators=(",", ":")).encode()
        return text.ljust(-(-len(text) // 8) * 8)


def _entry(shape: tuple[int, ...], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}


class SumsOfExperts(Mapping[str, Tensor]):
    """The sums [K, n + 1, n + 1] of each layer that all files have, read when asked for.

    NonFiniteError or CheckpointError where what is read is no such sums.
    """

    def __init__(self, files: Mapping[str, SafetensorsCheckpoint]) -> None:
        self._files = list(files.values())
        first, *others = (dict(file.specs) for file in self._files)
        self.shapes = {
            name: spec.shape for name, spec in first.items() if all(name in o for o in others)
        }

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        sums = torch.empty(len(self._files), *self.shapes[name])
        for own, file in zip(sums, self._files, strict=True):
            own.copy_(_sound(file.read(name), file, name))
        return sums

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _sound(sums: Tensor, file: SafetensorsCheckpoint, name: str) -> Tensor:
    """The sums; an error where they are not finite, or one of squares is negative."""
    # The extremes are NaN where an entry is, and nothing of the sums' size is made for them.
    if not all(bool(extreme.isfinite()) for extreme in sums.aminmax()):
        remedy = f"look for NaN and infinity in the samples, and {GATHER}"
        raise NonFiniteError(
            "these sums are not finite", source=file.source, tensor=name, remedy=remedy
        )
    if bool((sums.diagonal() < 0).any()):
        raise CheckpointError(
            "sums of squares are negative", source=file.source, tensor=name, remedy=GATHER
        )
    return sums


def open_sums(path: Path) -> tuple[SafetensorsCheckpoint, Mapping[str, str]]:
    """Such a file and what its header tells; CheckpointError where it is none."""
    if not path.is_file():
        raise CheckpointError("there is no such file of statistics", source=path, remedy=GATHER)
    file, told = SafetensorsCheckpoint([path], str(path)), read_header(path).entries
    if told.get("magmerge") != FORM:
        raise CheckpointError("it holds no statistics of inputs", source=path, remedy=GATHER)
    for name, spec in file.specs.items():
        if spec.dtype != "F32" or len(spec.shape) != 2 or spec.shape[0] != spec.shape[1]:
            problem = f"sums are square and F32, and this is {spec.dtype} {list(spec.shape)}"
            raise CheckpointError(problem, source=path, tensor=name, remedy=GATHER)
    return file, told


def models_told(path: Path, told: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The SHA-256 of the models' files by role and name, as the header tells; CheckpointError where
    it tells them in no such form.
    """
    try:
        models = json.loads(told.get("models", "{}"))
    except (ValueError, RecursionError):
        models = None
    roles = models.values() if isinstance(models, dict) else [None]
    texts = [text for own in roles for text in (own.values() if isinstance(own, dict) else [None])]
    if not all(isinstance(text, str) for text in texts):
        problem = "its header does not tell of which models it was gathered"
        raise CheckpointError(problem, source=path, remedy=GATHER)
    return dict(models)
