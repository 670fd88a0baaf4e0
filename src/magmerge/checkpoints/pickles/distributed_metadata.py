"""The .metadata file of torch's distributed checkpoints: which tensors there are, and in which
files, and where in them, their blocks are. It is a pickle, of which the records of the names in
`KNOWN` alone have a meaning.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from magmerge.checkpoints.pickles.containers import read
from magmerge.checkpoints.pickles.limits import DamagedError, RefusedError, spoken
from magmerge.checkpoints.pickles.records import WIDTHS, OddKey, Record, name_of_dtype
from magmerge.core import dtypes
from magmerge.core.types import TensorSpec

MODULE = "torch.distributed.checkpoint.metadata."
KNOWN = {
    "Metadata": f"{MODULE}Metadata",
    "tensor": f"{MODULE}TensorStorageMetadata",
    "properties": f"{MODULE}TensorProperties",
    "block": f"{MODULE}ChunkStorageMetadata",
    "index": f"{MODULE}MetadataIndex",
    "place": "torch.distributed.checkpoint.filesystem._StorageInfo",
}
TOGETHER = (
    "write it as one file: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
    "FOLDER OUT.pt"
)


class Block(NamedTuple):
    """A part of a tensor: where it begins and how large it is in each dimension, and its bytes."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: Path
    begin: int
    length: int


class Stored(NamedTuple):
    """A tensor: its path in what was saved, its header, and its blocks in the order of rows."""

    path: tuple[str, ...]
    spec: TensorSpec
    blocks: tuple[Block, ...]


def read_metadata(file: Path) -> list[Stored]:
    """Every tensor that a .metadata file tells of; RefusedError where it is not sound."""
    held, _ = read(file)
    content = _state(held, "Metadata")
    headers, places = content.get("state_dict_metadata"), content.get("storage_data")
    if not isinstance(headers, dict) or not isinstance(places, dict):
        raise DamagedError("it tells of no tensors")
    blocks = dict(_places(places, file.parent))
    paths = content.get("planner_data")
    tensors = []
    for name, header in headers.items():
        if isinstance(header, Record) and header.name == KNOWN["tensor"] and isinstance(name, str):
            path = paths.get(name) if isinstance(paths, dict) else None
            tensors.append(_stored(name, _path(name, path), header, blocks))
    return tensors


def _state(value: Any, kind: str) -> dict[Any, Any]:
    """The state of a record of that kind; DamagedError for anything else."""
    if not isinstance(value, Record) or value.name != KNOWN[kind]:
        raise DamagedError(f"where a {kind} should be it has a {spoken(type(value).__name__)}")
    if not isinstance(value.state, dict):
        raise DamagedError(f"a {kind} in it has no state")
    return value.state


def _path(name: str, path: Any) -> tuple[str, ...]:
    """Where in what was saved a tensor was: keys of mappings in each other."""
    if isinstance(path, tuple) and path and all(isinstance(key, str | int) for key in path):
        return tuple(map(str, path))
    return (name,)


Key = tuple[str, tuple[int, ...]]


def _places(places: Mapping[Any, Any], folder: Path) -> Iterable[tuple[Key, tuple[Path, int, int]]]:
    """By name and offsets: the file of a block, where in it the block begins, and its length."""
    sizes: dict[str, int] = {}
    for key, value in places.items():
        index = _state(key.value if isinstance(key, OddKey) else key, "index")
        place, offset = _state(value, "place"), index.get("offset")
        name, file = index.get("fqn"), place.get("relative_path")
        begin, length = place.get("offset"), place.get("length")
        if not isinstance(name, str) or not isinstance(file, str):
            raise DamagedError("it tells of a place without a name")
        if not isinstance(begin, int) or not isinstance(length, int) or min(begin, length) < 0:
            raise DamagedError(f"its {spoken(name)} is nowhere")
        if place.get("transform_descriptors"):
            raise RefusedError(f"its {spoken(name)} is stored compressed or encoded", TOGETHER)
        # A name with a separator could lead out of the folder.
        if file != Path(file).name or "\\" in file or file in ("", "..") or "\0" in file:
            raise RefusedError(
                f"it names a file outside its folder: {spoken(file)}",
                "do not use this checkpoint: a sound one names files beside itself",
            )
        if file not in sizes:
            if not (folder / file).is_file():
                raise RefusedError(
                    f"its file {spoken(file)} is missing", "fetch the missing files into its folder"
                )
            sizes[file] = (folder / file).stat().st_size
        if begin + length > sizes[file]:
            raise DamagedError(f"its {spoken(name)} reaches beyond the end of {spoken(file)}")
        offsets = offset if isinstance(offset, tuple) and _counts(offset) else ()
        yield (name, offsets), (folder / file, begin, length)


def _stored(
    name: str,
    path: tuple[str, ...],
    header: Record,
    places: Mapping[Key, tuple[Path, int, int]],
) -> Stored:
    """One tensor; RefusedError unless its blocks are it, without a hole and once each."""
    state = _state(header, "tensor")
    shape, blocks = state.get("size"), state.get("chunks")
    properties = state.get("properties")
    if not isinstance(properties, Record) or properties.name != KNOWN["properties"]:
        raise DamagedError(f"its {spoken(name)} has no dtype")
    values = properties.state
    first = values[0] if isinstance(values, tuple) and values else None
    dtype = name_of_dtype(values.get("dtype") if isinstance(values, dict) else first)
    code = dtypes.code_of(dtype)
    if code is None or dtype not in WIDTHS:
        raise RefusedError(f"its {spoken(name)} is of a dtype that is not read: {spoken(dtype)}")
    if not isinstance(shape, tuple) or not _counts(shape) or not isinstance(blocks, list):
        raise DamagedError(f"its {spoken(name)} has no shape")
    parts = [_block(name, _state(block, "block"), len(shape), places) for block in blocks]
    if any(math.prod(part.sizes) * WIDTHS[dtype] > part.length for part in parts):
        raise DamagedError(f"a block of its {spoken(name)} is larger than its bytes")
    _check_grid(name, shape, parts)
    return Stored(
        path, TensorSpec(name, shape, code), tuple(sorted(parts, key=lambda b: b.offsets))
    )


def _block(
    name: str, content: Mapping[Any, Any], dimensions: int, places: Mapping[Key, Any]
) -> Block:
    offsets, sizes = content.get("offsets"), content.get("sizes")
    if not isinstance(offsets, tuple) or not isinstance(sizes, tuple):
        raise DamagedError(f"a block of its {spoken(name)} has no place")
    if not _counts((*offsets, *sizes)) or {len(offsets), len(sizes)} != {dimensions}:
        raise DamagedError(f"a block of its {spoken(name)} has no place")
    if (name, offsets) not in places:
        raise DamagedError(f"a block of its {spoken(name)} is in no file")
    return Block(offsets, sizes, *places[name, offsets])


def _check_grid(name: str, shape: tuple[int, ...], blocks: Sequence[Block]) -> None:
    """DamagedError unless the blocks are the cells of a grid over the tensor, each once."""
    filled = [block for block in blocks if 0 not in block.sizes]
    if 0 in shape and not filled:
        return
    cells = 1
    for axis, size in enumerate(shape):
        stretches = sorted({(block.offsets[axis], block.sizes[axis]) for block in filled})
        ends = [0, *itertools.accumulate(length for _, length in stretches)]
        if [begin for begin, _ in stretches] != ends[:-1] or ends[-1] != size:
            raise DamagedError(f"the blocks of its {spoken(name)} are not the whole of it")
        cells *= len(stretches)
    if len(filled) != cells or len({block.offsets for block in filled}) != cells:
        raise DamagedError(f"the blocks of its {spoken(name)} are not the whole of it")


def _counts(values: Iterable[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 2**62 for value in values)
