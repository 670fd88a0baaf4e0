"""safetensors files, single or sharded: headers first, then tensors by their byte ranges."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from magmerge import dtypes
from magmerge.errors import CheckpointError
from magmerge.types import Checkpoint, Kind, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

COMPLETE = "fetch or save this file once more: it is not a complete safetensors file"


class _Place(NamedTuple):
    file: Path
    start: int


class SafetensorsCheckpoint:
    """Tensors of one or several safetensors files, read by byte ranges: no page stays mapped."""

    def __init__(self, files: Iterable[Path], source: str, folder: Path | None = None) -> None:
        self.source = source
        self.folder = folder
        self.files = tuple(files)
        self.ties: MappingProxyType[str, str] = MappingProxyType({})
        self.kinds: MappingProxyType[str, Kind] = MappingProxyType({})
        self._places: dict[str, _Place] = {}
        specs: dict[str, TensorSpec] = {}
        for file in self.files:
            for spec, place in read_header(file):
                if spec.name in specs:
                    raise CheckpointError(
                        f"it is also in {self._places[spec.name].file.name}",
                        source=file,
                        tensor=spec.name,
                        remedy="remove the shard that does not belong to this checkpoint",
                    )
                specs[spec.name] = spec
                self._places[spec.name] = place
        self.specs = MappingProxyType(specs)

    def read(self, name: str) -> Tensor:
        """The tensor `name`, in memory of its own."""
        import torch

        spec, place = self.specs[name], self._places[name]
        tensor = torch.empty(dtypes.nbytes(spec), dtype=torch.uint8)
        view, done = tensor.numpy().data, 0
        with place.file.open("rb", buffering=0) as stream:
            stream.seek(place.start)
            while done < len(view):
                got = stream.readinto(view[done:])
                if not got:
                    raise CheckpointError(
                        "the file has become shorter while it was read",
                        source=place.file,
                        tensor=name,
                        remedy="keep the inputs unchanged while magmerge runs",
                    )
                done += got
        return tensor.view(dtypes.torch_dtype(spec.dtype)).reshape(spec.shape)


def read_header(file: Path) -> list[tuple[TensorSpec, _Place]]:
    """The tensors that a file declares and where their bytes begin.

    safetensors' own reader checks the file (length, overlaps, holes, sizes); this only takes the
    offsets, which that reader does not tell.
    """
    _validate(file)
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(length), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"its header is not valid JSON: {error}", source=file, remedy=COMPLETE
            ) from error
    header.pop("__metadata__", None)
    found = []
    for name, entry in header.items():
        if not dtypes.known(entry["dtype"]):
            raise CheckpointError(
                f"its format {entry['dtype']} is unknown to magmerge",
                source=file,
                tensor=name,
                remedy="convert the checkpoint to bfloat16 or float32 first",
            )
        spec = TensorSpec(name, tuple(entry["shape"]), entry["dtype"])
        found.append((spec, _Place(file, 8 + length + entry["data_offsets"][0])))
    return found


def read_index(index: Path) -> tuple[list[Path], dict[str, str]]:
    """The shards that an index names, all of them there and inside its folder; and its map."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
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
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of its {len(shards)} shards are missing: {', '.join(missing)}",
            source=index,
            remedy="fetch the missing files into this folder",
        )
    return [index.parent / shard for shard in shards], weight_map


def check_against_index(checkpoint: Checkpoint, weight_map: dict[str, str]) -> None:
    """CheckpointError unless the shards hold exactly the tensors that the index lists."""
    absent = sorted(set(weight_map) - set(checkpoint.specs))
    unlisted = sorted(set(checkpoint.specs) - set(weight_map))
    faults = [f"{name} is listed but in no shard" for name in absent]
    faults += [f"{name} is in a shard but not listed" for name in unlisted]
    if faults:
        raise CheckpointError(
            f"its index and shards disagree: {'; '.join(faults)}",
            source=checkpoint.source,
            remedy="fetch the folder once more: shards of two versions are mixed",
        )


def _validate(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        # safetensors' own message for a file that may not be read is that it does not exist.
        file.open("rb").close()
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror}", source=file, remedy="check its permissions"
        ) from error
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
