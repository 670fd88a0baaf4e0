"""What an extraction gives: the adapter, its modules, what is lost, and how it is saved."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from magmerge.adapters.base_naming import content_of
from magmerge.adapters.nouns import Content, Naming
from magmerge.adapters.publishing import write_adapter
from magmerge.adapters.task_vectors import Extracted, ExtractedModule, LostTensor
from magmerge.errors import AdapterError, OutputError, StructureError, printable
from magmerge.models import Sources
from magmerge.provenance import FILE, versions
from magmerge.publishing import check_unchanged, digest_inputs, warn
from magmerge.version import __version__

NAMED = 3
"""Tensors of one reason that a warning names."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """An adapter that was made of a model, and how near to the model it is.

    `error` is |model - (base + adapter)| / |model - base| over all tensors that were not ignored,
    with the factors as stored in `dtype` and with what is `lost`; `norm` is the divisor. Each
    module's alpha is its rank. `path` is where it was written, None if it is in memory only.
    """

    base: str
    model: str
    modules: tuple[ExtractedModule, ...]
    lost: tuple[LostTensor, ...]
    norm: float
    error: float
    dtype: str
    warnings: tuple[str, ...]
    path: Path | None
    content: Content = field(repr=False)
    asked: Mapping[str, Any] = field(repr=False)
    inputs: tuple[tuple[str, str, tuple[Path, ...]], ...] = field(repr=False)
    stamps: Mapping[Path, str] = field(repr=False, default_factory=dict)

    def save(self, out: str | Path, *, overwrite: bool = False, threads: int = 1) -> Path:
        """Write the adapter with its provenance: a folder for PEFT, else one .safetensors file."""
        files = [file for _, _, own in self.inputs for file in own]
        check_unchanged(self.stamps)
        # No time and no machine is in it, so that equal runs give equal bytes.
        content = {
            "magmerge": __version__,
            "inputs": digest_inputs(self.inputs, (), threads, None),
            "versions": versions(),
            **self.document(),
        }
        beside = {FILE: f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode()}
        return write_adapter(
            path_of(out), self.content, inputs=files, overwrite=overwrite, beside=beside
        )

    def document(self) -> dict[str, Any]:
        """All but the tensors, for a program to read."""
        return {
            "extraction": dict(self.asked),
            "warnings": list(self.warnings),
            "norm": self.norm,
            "error": self.error,
            "modules": [asdict(one) for one in self.modules],
            "lost": [asdict(one) for one in self.lost],
        }


def concluded(
    sources: Sources,
    found: Sequence[Extracted | LostTensor | None],
    dtype: str,
    naming: Naming,
    asked: Mapping[str, Any],
    told: Sequence[str] = (),
) -> Extraction:
    """The result, and its warnings; an error where there is nothing to write."""
    (model,), base = sources.experts, sources.layout
    made = [one for one in found if isinstance(one, Extracted)]
    lost = tuple(one for one in found if isinstance(one, LostTensor))
    if not made and not lost:
        raise StructureError(
            [f"{model.source} is equal to the base {base.source}: nothing was learnt"],
            remedy="check which model is the base",
        )
    if not made:
        raise AdapterError(
            f"nothing that an adapter holds was changed: {'; '.join(_told(lost))}",
            source=model.source,
            remedy="name what else may be adapted with --target (targets=)",
        )
    records = tuple(one.record for one in made)
    norm = math.hypot(*(one.norm for one in records), *(one.norm for one in lost))
    missed = math.hypot(*(one.norm * one.error for one in records), *(one.norm for one in lost))
    notes = (*told, *_notes(lost, norm))
    warn(notes)
    return Extraction(
        base=base.source,
        model=model.source,
        modules=records,
        lost=lost,
        norm=norm,
        error=missed / norm,
        dtype=dtype,
        warnings=notes,
        path=None,
        content=content_of(base, made, naming),
        asked=asked,
        inputs=(("base", base.source, base.files), ("model", model.source, model.files)),
        stamps=sources.stamps,
    )


def _notes(lost: Sequence[LostTensor], norm: float) -> tuple[str, ...]:
    if not lost:
        return ()
    share = math.hypot(*(one.norm for one in lost)) / norm
    count = f"{len(lost)} changed tensor{'' if len(lost) == 1 else 's'}"
    return (
        f"{count} not in the adapter, {100 * share:.3g} % of the change's norm: "
        f"{'; '.join(_told(lost))}",
    )


def _told(lost: Sequence[LostTensor]) -> list[str]:
    """The tensors by reason, the largest first."""
    reasons: dict[str, list[str]] = {}
    for one in sorted(lost, key=lambda one: -one.norm):
        reasons.setdefault(one.reason, []).append(printable(one.name))
    return [
        ", ".join(names[:NAMED])
        + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        + f" ({reason})"
        for reason, names in reasons.items()
    ]


def path_of(out: str | Path) -> Path:
    """A path as the user gave it; OutputError for an empty one."""
    if str(out) == "":
        raise OutputError("the output's name is empty", remedy="name a folder or a file")
    return Path(out)
