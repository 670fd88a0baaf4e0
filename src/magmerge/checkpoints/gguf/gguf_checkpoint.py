"""A model in GGUF files: under transformers' names, dequantised as it is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from magmerge.checkpoints.gguf.gguf_header import (
    FORMATS,
    GgufHeader,
    GgufTensor,
    read_gguf_header,
)
from magmerge.checkpoints.gguf.gguf_names import (
    ARCHITECTURES,
    COMPUTED,
    OWN_NAMES,
    Part,
    parts_of,
)
from magmerge.checkpoints.open_files import Handles, read_into
from magmerge.core import dtypes
from magmerge.core.errors import CheckpointError, shortened
from magmerge.core.extras import needed
from magmerge.core.types import Kind, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURE = "general.architecture"
SPLIT = "split.count"
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
SHAPE = "comfy.gguf.orig_shape."
"""Where ComfyUI-GGUF says what shape a tensor had that it wrote in another one."""
WRITTEN = "BF16"
"""What is written where nothing else is said, and the file is quantised."""
SOURCE = (
    "give the safetensors that this file was written from: its publisher names them, or "
    "general.base_model in the file does"
)


class GgufCheckpoint:
    """The tensors `parts`, each put together from GGUF files as it is read.

    `written` is the format that a result has which is laid out like a quantised one, where no other
    is asked for.
    """

    def __init__(
        self,
        stored: Mapping[str, GgufTensor],
        parts: Mapping[str, Part],
        source: str,
        folder: Path | None,
    ) -> None:
        self.source = source
        self.folder = folder
        self.files = tuple(sorted({tensor.file for tensor in stored.values()}))
        self.ties: Mapping[str, str] = MappingProxyType({})
        self.kinds: Mapping[str, Kind] = MappingProxyType({})
        self.notes: tuple[str, ...] = ()
        self._stored, self._parts = stored, parts
        self._handles = Handles()
        specs = {
            name: TensorSpec(name, part.shape, _code(stored[part.stored].code))
            for name, part in parts.items()
        }
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)
        quantised = any(_is_packed(tensor.code) for tensor in stored.values())
        self.written = WRITTEN if quantised else None
        if quantised:
            # A file that needs it is refused before any work where it is not there.
            needed("gguf", "a quantised GGUF file")

    def read(self, name: str) -> Tensor:
        """The tensor `name`, in memory of its own."""
        shape = self.specs[name].shape
        return self.read_part(name, 0, math.prod(shape)).reshape(shape)

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor, in memory of their own or in `out`."""
        part = self._parts[name]
        if part.heads and stop > start:
            entries = self._turned(name, part, start, stop)
        else:
            entries = self._entries(name, part.start + start, part.start + stop)
        if part.shift:
            entries = entries.sub_(part.shift)
        return entries if out is None else out.copy_(entries)

    def _turned(self, name: str, part: Part, start: int, stop: int) -> Tensor:
        """The same of a query or key: within a head the file has each row of the first half before
        the row of the second half that it is turned with.
        """
        head = math.prod(part.shape) // part.heads
        first, last = start // head, -(-stop // head)
        whole = self._entries(name, first * head, last * head)
        half = part.shape[0] // part.heads // 2
        own = whole.reshape(last - first, half, 2, -1).transpose(1, 2).reshape(-1)
        return own[start - first * head : stop - first * head]

    def _entries(self, name: str, start: int, stop: int) -> Tensor:
        """Entries [start, stop) of the stored tensor, as numbers."""
        import torch

        tensor = self._stored[self._parts[name].stored]
        _, size, width = FORMATS[tensor.code]
        first, last = start // size, -(-stop // size)
        content = torch.empty((last - first) * width, dtype=torch.uint8)
        if len(content):
            with self._handles.opened(tensor.file) as handle:
                begin = tensor.begin + first * width
                read_into(handle, content.numpy().data, tensor.file, begin, name)
        if not _is_packed(tensor.code):
            return content.view(dtypes.torch_dtype(_code(tensor.code)))
        quants = needed("gguf.quants", "a quantised GGUF file")
        numbers = (
            quants.dequantize(content.numpy(), _kind(tensor.code)) if len(content) else content
        )
        values = torch.as_tensor(numbers, dtype=torch.float32).reshape(-1)
        return values[start - first * size : stop - first * size]


def open_gguf(file: Path, source: str, folder: Path | None, _: str | None = None) -> GgufCheckpoint:
    """The model in a GGUF file, or in all the files that it is split into; CheckpointError for a
    model of no known architecture, or with tensors that have no name in transformers.
    """
    headers = _headers(file)
    facts = headers[0].facts
    stored = {tensor.name: tensor for header in headers for tensor in header.tensors}
    if len(stored) != sum(len(header.tensors) for header in headers):
        raise CheckpointError("a tensor is in two of its files", source=file, remedy=SOURCE)
    architecture = facts.get(ARCHITECTURE)
    if architecture in OWN_NAMES:
        parts = {name: _own(tensor, facts) for name, tensor in stored.items()}
    else:
        parts = _renamed(stored, facts, file)
    for tensor in stored.values():
        _check_format(tensor)
    checkpoint = GgufCheckpoint(stored, parts, source, folder)
    if checkpoint.written:
        names = sorted({FORMATS[t.code][0] for t in stored.values() if _is_packed(t.code)})
        note = f"{source} is quantised ({', '.join(names)}): read as what its numbers stand for"
        checkpoint.notes = (note,)
    return checkpoint


def _headers(file: Path) -> Sequence[GgufHeader]:
    """The header of the file, and of the others that the model is split into."""
    header = read_gguf_header(file)
    count, match = header.facts.get(SPLIT), SHARD.fullmatch(file.name)
    if not isinstance(count, int) or count < 2:
        return [header]
    total = int(match[3]) if match is not None else 0
    if match is None or total != count:
        raise CheckpointError(
            f"it is one of {count} files, and its name does not tell the others",
            source=file,
            remedy="give it the name that it was published with: NAME-00001-of-0000N.gguf",
        )
    files = [file.with_name(f"{match[1]}-{n:05d}-of-{total:05d}.gguf") for n in range(1, total + 1)]
    missing = [other.name for other in files if not other.is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of its {total} files are missing: {shortened(missing)}",
            source=file,
            remedy="fetch the missing files into this folder",
        )
    return [read_gguf_header(other) for other in files]


def _renamed(
    stored: Mapping[str, GgufTensor], facts: Mapping[str, Any], file: Path
) -> dict[str, Part]:
    """The tensors under transformers' names."""
    architecture = facts.get(ARCHITECTURE)
    kind = ARCHITECTURES.get(str(architecture))
    if kind is None:
        raise CheckpointError(
            f"its architecture {architecture!r} is none whose names are known here: "
            f"{', '.join(sorted([*ARCHITECTURES, *OWN_NAMES]))}",
            source=file,
            remedy=SOURCE,
        )
    parts: dict[str, Part] = {}
    odd = []
    for name, tensor in stored.items():
        if COMPUTED.fullmatch(name):
            continue
        try:
            own = parts_of(name, tensor.shape, kind, facts)
        except ValueError as error:
            raise CheckpointError(str(error), source=file, tensor=name, remedy=SOURCE) from error
        parts |= own
        odd += [] if own else [name]
    if odd:
        raise CheckpointError(
            f"it is a {architecture}, and these of its tensors have no name in transformers: "
            f"{shortened(odd)}",
            source=file,
            remedy=SOURCE,
        )
    return parts


def _own(tensor: GgufTensor, facts: Mapping[str, Any]) -> Part:
    """A tensor under its own name, in the shape that it had before it was written."""
    shape = facts.get(f"{SHAPE}{tensor.name}")
    plain = isinstance(shape, list) and all(isinstance(n, int) and n >= 0 for n in shape)
    if plain and shape is not None and math.prod(shape) == math.prod(tensor.shape):
        return Part(tensor.name, tuple(shape))
    return Part(tensor.name, tensor.shape)


def _check_format(tensor: GgufTensor) -> None:
    """CheckpointError for a format that the library does not turn into numbers."""
    if not _is_packed(tensor.code):
        return
    quants = needed("gguf.quants", "a quantised GGUF file")
    try:
        quants.dequantize(_zeros(tensor.code), _kind(tensor.code))
    except (NotImplementedError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"it is {FORMATS[tensor.code][0]}, which the library gguf that is installed does not "
            "read",
            source=tensor.file,
            tensor=tensor.name,
            remedy=f"pip install --upgrade gguf, or {SOURCE}",
        ) from error


def _zeros(code: int) -> Any:
    import numpy as np

    return np.zeros(FORMATS[code][2], dtype=np.uint8)


def _kind(code: int) -> Any:
    """The library's own noun for a format."""
    return needed("gguf", "a quantised GGUF file").GGMLQuantizationType(code)


def _is_packed(code: int) -> bool:
    """Whether its numbers are several in a block."""
    return FORMATS[code][1] > 1


def _code(code: int) -> str:
    """safetensors' code of what is read of a format."""
    return "F32" if _is_packed(code) else FORMATS[code][0]
