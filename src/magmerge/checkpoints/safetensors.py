"""safetensors files, single or sharded: headers first, then tensors by their byte ranges."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from magmerge.checkpoints.digests import stamp
from magmerge.checkpoints.kinds import read_model_config
from magmerge.checkpoints.open_files import Handles, read_errors, read_into
from magmerge.checkpoints.tensor_digests import FileDigest, Offset, opened
from magmerge.core import dtypes
from magmerge.core.errors import CheckpointError, shortened
from magmerge.core.file_system import give_back, read_at
from magmerge.core.lazy import Tensor, torch
from magmerge.core.models import Checkpoint
from magmerge.core.types import Kind, TensorSpec

if TYPE_CHECKING:
    from magmerge.core.models import Bytes

COMPUTED = frozenset(
    {"inv_freq", "original_inv_freq", "cos_cached", "sin_cached", "masked_bias", "position_ids"}
)
"""Last parts of names of tables that models compute by themselves, and were once stored."""
MASKED = (".attn", ".attention")
"""How the names of layers end whose masks were once stored."""
COMPLETE = "fetch or save this file once more: it is not a complete safetensors file"


class Header(NamedTuple):
    """The tensors that a file declares with where their bytes begin, and its other entries."""

    tensors: list[tuple[TensorSpec, Offset]]
    entries: Mapping[str, str]


class SafetensorsCheckpoint:
    """Tensors of one or several safetensors files, read by byte ranges: no page stays mapped."""

    def __init__(self, files: Iterable[Path], source: str, folder: Path | None = None) -> None:
        self.source = source
        self.folder = folder
        self.files = tuple(files)
        self.ties: MappingProxyType[str, str] = MappingProxyType({})
        self.kinds: MappingProxyType[str, Kind] = MappingProxyType({})
        self.notes: tuple[str, ...] = ()
        self._places: dict[str, Offset] = {}
        self._handles = Handles()
        self._digests: dict[Path, FileDigest] = {}
        specs: dict[str, TensorSpec] = {}
        for spec, place in itertools.chain(*map(self._header, self.files)):
            if spec.name in specs:
                raise CheckpointError(
                    f"it is also in {self._places[spec.name].file.name}",
                    source=place.file,
                    tensor=spec.name,
                    remedy="remove the shard that does not belong to this checkpoint",
                )
            specs[spec.name] = spec
            self._places[spec.name] = place
        self.specs = MappingProxyType(specs)

    def file_of(self, name: str) -> Path:
        """The file that the tensor `name` is in."""
        return self._places[name].file

    def read(self, name: str) -> Tensor:
        """The tensor `name`, in memory of its own."""
        spec = self.specs[name]
        return self.read_part(name, 0, math.prod(spec.shape)).reshape(spec.shape)

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor, in memory of their own or in `out`."""
        if out is None:
            out = torch.empty(stop - start, dtype=dtypes.torch_dtype(self.specs[name].dtype))
        self.read_bytes(name, start, stop, out.view(torch.uint8).numpy())
        return out

    def raw(self, name: str) -> bool:
        """Every tensor's stored bytes can be read."""
        return name in self.specs

    def read_bytes(self, name: str, start: int, stop: int, out: Bytes) -> None:
        """The stored bytes of entries [start, stop) of the flattened tensor, into all of `out`."""
        width, place = dtypes.width(self.specs[name].dtype), self._places[name]
        if stop > start:
            self._fill(out.data, place.file, place.start + start * width, name)

    def read_strewn(self, name: str, spans: Iterable[tuple[int, int]], out: Bytes) -> None:
        """The same of many small parts, end to end. As a sample: what is read is not digested."""
        width, place, done = dtypes.width(self.specs[name].dtype), self._places[name], 0
        with read_errors(place.file), self._handles.opened(place.file) as handle:
            for start, stop in spans:
                size, offset = (stop - start) * width, place.start + start * width
                part = out.data[done : done + size]
                # What is rare, less than was asked for, is left to the slower way.
                if read_at(handle, part, offset) != size:
                    read_into(handle, part, place.file, offset, name)
                done += size

    def give_back(self, name: str, start: int, stop: int) -> None:
        """Let go of the memory in which the system keeps these entries of the file."""
        place, width = self._places[name], dtypes.width(self.specs[name].dtype)
        if stop > start:
            with self._handles.opened(place.file) as handle:
                give_back(handle, place.start + start * width, (stop - start) * width)

    def _header(self, file: Path) -> list[tuple[TensorSpec, Offset]]:
        """The tensors of a file; from now on what is read of it can be digested."""
        with read_errors(file):
            state = stamp(file)
        header = read_header(file)
        self._digests[file] = opened(FileDigest(state, *header))
        return header.tensors

    def _fill(self, view: memoryview, file: Path, offset: int, name: str) -> None:
        """A file's bytes from `offset` on into `view`; each of them is digested where that is
        asked for, while it is in the processor's cache.
        """
        with self._handles.opened(file) as handle:
            read_into(handle, view, file, offset, name)
        self._digests[file].note(name, offset - self._places[name].start, view)


def read_header(file: Path) -> Header:
    """What a file declares. safetensors' own reader checks the file (length, overlaps, holes,
    sizes); this takes the offsets, which it does not tell.
    """
    _validate(file)
    with read_errors(file), file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(length), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"its header is not valid JSON: {error}", source=file, remedy=COMPLETE
            ) from error
    entries = header.pop("__metadata__", None) or {}
    tensors = []
    for name, entry in header.items():
        if not dtypes.known(entry["dtype"]):
            raise CheckpointError(
                f"its format {entry['dtype']} is unknown to magmerge",
                source=file,
                tensor=name,
                remedy="convert the checkpoint to bfloat16 or float32 first",
            )
        spec = TensorSpec(name, tuple(entry["shape"]), entry["dtype"])
        tensors.append((spec, Offset(file, 8 + length + entry["data_offsets"][0])))
    return Header(tensors, entries)


def read_index(index: Path) -> tuple[list[Path], dict[str, str]]:
    """The shards that an index names, all of them there and inside its folder; and its map."""
    weight_map = read_index_map(index)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of its {len(shards)} shards are missing: {', '.join(missing)}",
            source=index,
            remedy="fetch the missing files into this folder",
        )
    return [index.parent / shard for shard in shards], weight_map


def read_index_map(index: Path) -> dict[str, str]:
    """The map of an index from tensors to shards, all of them inside its folder."""
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"not a checkpoint index: {type(error).__name__}: {error}",
            source=index,
            remedy='an index is JSON with a "weight_map" from tensors to file names',
        ) from error
    for shard in shards:
        if not isinstance(shard, str) or shard != os.path.basename(shard) or "\\" in shard:
            raise CheckpointError(
                f"it names a shard outside its folder: {shard!r}",
                source=index,
                remedy="do not use this checkpoint: a sound index names files beside itself",
            )
    if not shards:
        remedy = "fetch the index once more"
        raise CheckpointError("it lists no tensors", source=index, remedy=remedy)
    return weight_map


def check_against_index(checkpoint: Checkpoint, weight_map: Mapping[str, str]) -> tuple[str, ...]:
    """What to know of an index; CheckpointError unless each shard holds exactly the tensors that
    are listed in it, but for tables that models compute themselves and heads that are embeddings.
    """
    absent = sorted(set(weight_map) - set(checkpoint.specs))
    tied = read_model_config(checkpoint).get("tie_word_embeddings") is True
    tables = [
        name
        for name in absent
        if _is_computed(name, weight_map) or (tied and name.endswith("lm_head.weight"))
    ]
    unlisted = sorted(set(checkpoint.specs) - set(weight_map))
    faults = [f"{name} is listed but in no shard" for name in absent if name not in tables]
    faults += [f"{name} is in a shard but not listed" for name in unlisted]
    if isinstance(checkpoint, SafetensorsCheckpoint):
        held = {name: checkpoint.file_of(name).name for name in checkpoint.specs}
        faults += [
            f"{name} is listed in {shard} and is in {held[name]}"
            for name, shard in weight_map.items()
            if held.get(name, shard) != shard
        ]
    if faults:
        raise CheckpointError(
            f"its index and shards disagree: {shortened(faults)}",
            source=checkpoint.source,
            remedy="fetch the folder once more: shards of two versions are mixed",
        )
    if not tables:
        return ()
    return (
        f"the index of {checkpoint.source} lists {shortened(tables)}, which no shard holds: it is "
        "read without, as transformers makes them anew",
    )


def _is_computed(name: str, listed: Collection[str]) -> bool:
    """Whether a tensor is a table that its model computes by itself. A causal mask is called like
    the bias of a layer, and has no weight beside it.
    """
    stem, _, last = name.rpartition(".")
    mask = stem.endswith(MASKED) and last == "bias" and f"{stem}.weight" not in listed
    return last in COMPUTED or mask


def _validate(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    with read_errors(file):
        # safetensors' own message for a file that may not be read is that it does not exist.
        file.open("rb").close()
    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"not a sound safetensors file: {error}", source=file, remedy=COMPLETE
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a name occurs twice")
    return unique
