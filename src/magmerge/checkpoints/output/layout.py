"""Where every output byte goes, decided before any of them exists."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from magmerge.core import dtypes
from magmerge.core.types import Shard, Step, TensorSpec

ALIGNMENT = 8
SUFFIX, FIRST = ".safetensors", "-00001-of-"
INDEX = f"{SUFFIX}.index.json"


def lay_out(
    steps: Sequence[Step],
    shard_size: int | None,
    file: str,
    metadata: Mapping[str, Mapping[str, str]],
    weights: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[Step], list[Shard]]:
    """The steps with shard and offset set, and the files with finished headers.

    Each part of the result, which is a folder in it, has files of its own. They are filled in the
    order of the steps up to `shard_size` bytes of tensors; a larger tensor has one of its own. With
    None one file takes all. `file` is that file's name, from which those of several are made, or
    the part's in `weights`; `metadata` the header entries of each part. Steps of one tensor have
    one place.
    """
    placed: list[Step] = list(steps)
    shards: list[Shard] = []
    for part in dict.fromkeys(step.part for step in steps) or {"": None}:
        tensors = {step.spec.name: step.stored for step in steps if step.part == part}
        groups = _fill(list(tensors.values()), shard_size)
        places: dict[str, tuple[int, int]] = {}
        for number, group in enumerate(groups):
            header, offsets = _header(group, metadata.get(part, {}))
            places |= {name: (len(shards), offset) for name, offset in offsets.items()}
            own, count = weights.get(part, file), len(groups)
            stem = own.removesuffix(SUFFIX)
            name = own if count == 1 else f"{stem}-{number + 1:05}-of-{count:05}{SUFFIX}"
            size = len(header) + sum(dtypes.nbytes(spec) for spec in group)
            shards.append(Shard(f"{part}/{name}" if part else name, header, size))
        for i, step in enumerate(steps):
            if step.part == part:
                shard, offset = places[step.stored.name]
                placed[i] = dataclasses.replace(step, shard=shard, offset=offset)
    return placed, shards


def index_of(steps: Sequence[Step], shards: Sequence[Shard]) -> dict[str, str]:
    """The text of each part's index by its name, as Hugging Face has it; none for one shard."""
    texts = {}
    for part in dict.fromkeys(step.part for step in steps):
        tensors = {step.stored.name: step for step in steps if step.part == part}
        first = shards[min(step.shard for step in tensors.values())].file
        if FIRST not in first:
            continue
        total = sum(dtypes.nbytes(step.tensor) for step in tensors.values())
        files = {name: shards[step.shard].file for name, step in tensors.items()}
        weight_map = {name: file.removeprefix(f"{part}/") for name, file in files.items()}
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        texts[f"{first.rpartition(FIRST)[0]}{INDEX}"] = json.dumps(content, indent=2) + "\n"
    return texts


def _fill(tensors: Sequence[TensorSpec], shard_size: int | None) -> list[list[TensorSpec]]:
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in tensors:
        size = dtypes.nbytes(spec)
        if groups[-1] and shard_size is not None and filled + size > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += size
    return groups


def _header(
    tensors: Sequence[TensorSpec], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """A safetensors header, wider formats first as safetensors has it; each tensor's offset."""
    specs = sorted(tensors, key=lambda spec: (-dtypes.width(spec.dtype), spec.name))
    entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    offsets, position = {}, 0
    for spec in specs:
        end = position + dtypes.nbytes(spec)
        entries[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [position, end],
        }
        offsets[spec.name], position = position, end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    start = 8 + len(text)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: start + offset for name, offset in offsets.items()}
