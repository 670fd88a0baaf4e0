"""convert(): an adapter to another naming, or a whole model to safetensors and CLIP's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from magmerge import dtypes
from magmerge.checkpoints.donor import MODEL, companion_files, read_companions, weights_file
from magmerge.checkpoints.layout import SUFFIX
from magmerge.checkpoints.opening import adapts, open_checkpoint
from magmerge.checkpoints.saving import save_checkpoint
from magmerge.checkpoints.torch_pickle import TorchCheckpoint
from magmerge.clip_names import family_of, in_family
from magmerge.errors import OutputError, ParameterError
from magmerge.models import Checkpoint
from magmerge.run import Progress

if TYPE_CHECKING:
    from magmerge.adapters.converting import Conversion

UNNAMED = "its own names"


@dataclass(frozen=True, slots=True)
class ModelConversion:
    """What model was converted: where it is now, and from which names to which.

    `before` and `after` are families of CLIP names, or "its own names". `holds` is what the file
    held, in words; `passed` counts how often it names each class that no tensor came from;
    `left_out` has the tensors that the new names do without, and why.
    """

    path: Path
    source: str
    before: str
    after: str
    tensors: int
    holds: str
    passed: Mapping[str, int]
    left_out: Mapping[str, str]


def convert(
    model: str | Path,
    out: str | Path,
    *,
    naming: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Conversion | ModelConversion:
    """Write an adapter under another naming, or a whole model as safetensors.

    An adapter needs the `naming`: peft (a folder), diffusers, kohya, and the others; task vectors
    are kept as they are, to the rounding of the stored format where parts that one naming fuses are
    put together. A whole model keeps its names, or gets those of a family of CLIP: hf_clip,
    open_clip or timm_clip. It may be a pickled object: nothing in it is run. `out` is a file that
    ends in .safetensors, or a folder, which then has model.safetensors. Tensors of floating-point
    numbers are written in `dtype` if that is given. Raises MagmergeError's children: AdapterError
    or CheckpointError where something has no name in the new naming.
    """
    if not adapts(model):
        return _convert_model(model, Path(out), naming, dtype, overwrite, progress)
    from magmerge.adapters.converting import convert_adapter

    if naming is None:
        raise ParameterError(
            "it is an adapter, and no naming is given",
            source=model,
            remedy="add --format (naming=): peft, diffusers, kohya, kohya_ldm or kohya_flux",
        )
    return convert_adapter(model, out, naming=naming, dtype=dtype, overwrite=overwrite)


def _convert_model(
    model: str | Path,
    out: Path,
    naming: str | None,
    dtype: str | None,
    overwrite: bool,
    progress: Progress | None,
) -> ModelConversion:
    if out == Path():
        raise OutputError("the output's name is empty", remedy="name a folder or a file")
    code = None if dtype is None else dtypes.parse_float_dtype(dtype)
    read = open_checkpoint(model)
    renamed = None if naming is None else in_family(read, naming)
    written: Checkpoint = read if renamed is None else renamed
    before = family_of(read.specs) or UNNAMED
    torch_file = read if isinstance(read, TorchCheckpoint) else None
    keeps = naming in (None, before)
    path = save_checkpoint(
        out,
        written,
        dtype=code,
        beside=_companions(read, out, code) if keeps else {},
        file=weights_file(read.folder) if keeps else MODEL,
        overwrite=overwrite,
        progress=progress,
    )
    return ModelConversion(
        path=path,
        source=read.source,
        before=before,
        after=naming or before,
        tensors=len(written.specs),
        holds="tensors" if torch_file is None else torch_file.holds,
        passed={} if torch_file is None else dict(torch_file.passed),
        left_out={} if renamed is None else dict(renamed.left_out),
    )


def _companions(read: Checkpoint, out: Path, code: str | None) -> dict[str, bytes]:
    """The config and tokenizer of the model's folder, for one that is written to a folder."""
    if out.suffix == SUFFIX or read.folder is None:
        return {}
    return read_companions(companion_files(read.folder), code)
