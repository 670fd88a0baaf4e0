"""Where every output byte goes, decided before any of them exists."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

from magmerge import dtypes
from magmerge.types import Shard, Step

ALIGNMENT = 8
SUFFIX, FIRST = ".safetensors", "-00001-of-"
INDEX = f"{SUFFIX}.index.json"


def lay_out(
    steps: Sequence[Step], shard_size: int | None, file: str, metadata: Mapping[str, str]
) -> tuple[list[Step], list[Shard]]:
    """The steps with shard and offset set, and the files with finished headers.

    Shards are filled in the order of the steps up to `shard_size` bytes of tensors; a larger
    tensor has a shard of its own. With None one file takes all. `file` is that file's name, from
    which those of several are made.
    """
    groups = [list(range(len(steps)))] if shard_size is None else _fill(steps, shard_size)
    placed, shards = list(steps), []
    for number, group in enumerate(groups):
        header, offsets = _header([steps[i] for i in group], metadata)
        for i in group:
            name = steps[i].spec.name
            placed[i] = dataclasses.replace(steps[i], shard=number, offset=offsets[name])
        size = len(header) + sum(dtypes.nbytes(steps[i].spec) for i in group)
        shards.append(Shard(_name(file, number, len(groups)), header, size))
    return placed, shards


def index_of(steps: Sequence[Step], shards: Sequence[Shard]) -> dict[str, str]:
    """The index file's text by its name, in Hugging Face's format; empty where one shard needs
    none.
    """
    if len(shards) == 1:
        return {}
    stem = shards[0].file.rpartition(FIRST)[0]
    total = sum(dtypes.nbytes(step.spec) for step in steps)
    weight_map = {step.spec.name: shards[step.shard].file for step in steps}
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return {f"{stem}{INDEX}": json.dumps(content, indent=2) + "\n"}


def _fill(steps: Sequence[Step], shard_size: int) -> list[list[int]]:
    groups: list[list[int]] = [[]]
    filled = 0
    for i, step in enumerate(steps):
        size = dtypes.nbytes(step.spec)
        if groups[-1] and filled + size > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(i)
        filled += size
    return groups


def _name(file: str, number: int, count: int) -> str:
    stem = file.removesuffix(SUFFIX)
    return file if count == 1 else f"{stem}-{number + 1:05}-of-{count:05}{SUFFIX}"


def _header(steps: Sequence[Step], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """A safetensors header, and each tensor's offset from the beginning of the file.

    As safetensors writes it: wider formats first, then by name, so that data is aligned.
    """
    specs = [step.spec for step in steps]
    width = {spec.name: dtypes.nbytes(dataclasses.replace(spec, shape=())) for spec in specs}
    specs.sort(key=lambda spec: (-width[spec.name], spec.name))
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
