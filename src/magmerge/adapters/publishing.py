"""The one way an adapter gets to the disk: staged, verified, and named when it is whole."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from magmerge import dtypes
from magmerge.adapters.formats import encode
from magmerge.adapters.nouns import Content, Encoded, Naming
from magmerge.checkpoints.layout import lay_out
from magmerge.checkpoints.own_files import ADAPTER
from magmerge.checkpoints.safetensors import SafetensorsCheckpoint
from magmerge.checkpoints.staging import Staging, sync_folder
from magmerge.checkpoints.target import check_siblings, check_space, check_target
from magmerge.checkpoints.writer import DiskErrors
from magmerge.errors import OutputError
from magmerge.types import Step, TensorSpec

WEIGHTS = "adapter_model.safetensors"
"""What PEFT calls an adapter's tensors."""
FOLDER: Naming = "peft"
"""The naming whose adapters are folders."""
SINGLE = ".safetensors"
"""What the name of any other ends in."""
NOTHING: Mapping[str, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Weights:
    """A safetensors file to be: its header, its tensors in the order of their bytes, its specs."""

    header: bytes
    tensors: tuple[Tensor, ...]
    specs: Mapping[str, TensorSpec]

    @property
    def size(self) -> int:
        return len(self.header) + sum(one.numel() * one.element_size() for one in self.tensors)


def write_adapter(
    out: Path,
    content: Content,
    *,
    inputs: Iterable[Path],
    overwrite: bool,
    beside: Mapping[str, bytes] = NOTHING,
) -> Path:
    """Write an adapter: a folder under PEFT's naming, else one .safetensors file; gives its path.

    `inputs` are the files that it is made of, which it may not replace. `beside` are further
    files: in the folder, or beside the single file as STEM.NAME. Nothing is at `out` before all is
    on the disk and found to be as planned; a link at `out` is followed. Raises OutputError where
    `out` is taken, is an input, does not fit the naming, or cannot be written.
    """
    target = adapter_target(
        out, content.naming, inputs=inputs, overwrite=overwrite, beside=tuple(beside)
    )
    single = content.naming != FOLDER
    weights, texts = _files(target, encode(content), beside, single=single)
    sizes = [one.size for one in weights.values()] + [len(text) for text in texts.values()]
    check_space(target, sum(sizes))
    own = (*weights, *texts)
    with (
        Staging(target, single=single, overwrite=overwrite, own=own) as staging,
        DiskErrors(target),
    ):
        for name, text in texts.items():
            _write(staging.folder / name, [text])
        for name, one in weights.items():
            _write(staging.folder / name, [one.header, *map(_bytes_of, one.tensors)])
        _verify(staging, weights)
        for folder in {(staging.folder / name).parent for name in own}:
            sync_folder(folder)
        sync_folder(staging.folder)
        staging.publish(texts if single else ())
    return target


def adapter_target(
    out: Path,
    naming: Naming,
    *,
    inputs: Iterable[Path],
    overwrite: bool,
    beside: Collection[str] = (),
) -> Path:
    """Where `write_adapter` would write, checked in the same way, before there is any content."""
    if naming == FOLDER and out.suffix == SINGLE:
        raise OutputError(
            "an adapter for PEFT is a folder, and this is a file's name",
            source=out,
            remedy="drop the suffix, or write a single file with --format kohya (naming=)",
        )
    if naming != FOLDER and out.suffix != SINGLE:
        raise OutputError(
            f"an adapter named as in {naming} is one file",
            source=out,
            remedy=f"end the name in {SINGLE}, or write a folder with --format peft (naming=)",
        )
    # A link is followed once, here: what is renamed in the end is what it leads to.
    target = out.resolve() if out.is_symlink() or ".." in out.parts else out
    files = list(inputs)
    files += [file.parent for file in files]
    single = naming != FOLDER
    own = {*ADAPTER, *beside}
    check_target(target, files, single=single, overwrite=overwrite, own=own)
    if single:
        siblings = [target.parent / f"{target.stem}.{name}" for name in beside]
        check_siblings(target, siblings, overwrite=overwrite)
    return target


def _files(
    target: Path, encoded: Mapping[str, Encoded], beside: Mapping[str, bytes], *, single: bool
) -> tuple[dict[str, _Weights], dict[str, bytes]]:
    """The files by their paths relative to the target, or to its folder if it is a single one."""
    weights, texts = {}, {}
    for part, one in encoded.items():
        folder = f"{_plain(part)}/" if part else ""
        weights[target.name if single else f"{folder}{WEIGHTS}"] = _laid_out(one)
        for name, text in one.beside.items():
            texts[f"{folder}{_plain(name)}"] = text.encode()
    texts |= {_plain(name): text for name, text in beside.items()}
    assert not single or len(encoded) == 1, "a single file has no parts"
    return weights, {f"{target.stem}.{n}": t for n, t in texts.items()} if single else texts


def _plain(name: str) -> str:
    """A name that leads nowhere else: parts of modules' names are an input's."""
    if name != os.path.basename(name) or name in ("", ".", "..") or not name.isprintable():
        raise OutputError(f"{name!r} cannot be a file's name", remedy="rename that module")
    return name


def _laid_out(encoded: Encoded) -> _Weights:
    specs = {name: _spec(name, tensor) for name, tensor in encoded.tensors.items()}
    steps = [Step(s, "other", "carry", "", False, False, None, 0, 0) for s in specs.values()]
    placed, (shard,) = lay_out(steps, None, WEIGHTS, encoded.metadata)
    placed.sort(key=lambda step: step.offset)
    tensors = tuple(encoded.tensors[step.spec.name] for step in placed)
    return _Weights(shard.header, tensors, specs)


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    code = dtypes.code_of(tensor.dtype)
    assert code is not None, f"{name} is {tensor.dtype}"
    return TensorSpec(name, tuple(tensor.shape), code)


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream:
        for part in parts:
            stream.write(part)
        stream.flush()
        os.fsync(stream.fileno())


def _verify(staging: Staging, weights: Mapping[str, _Weights]) -> None:
    """safetensors' own reader finds in each file the tensors that belong there."""
    for name, one in weights.items():
        found = SafetensorsCheckpoint([staging.folder / name], str(staging.target)).specs
        if found != one.specs:
            raise OutputError(
                f"the written {name} is not as planned",
                source=staging.target,
                remedy="report this; nothing was left at the output",
            )
