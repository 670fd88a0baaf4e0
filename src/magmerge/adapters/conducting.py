"""From a recipe and opened adapters to one merged adapter: plan, work, writing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from magmerge import dtypes
from magmerge.adapters.checking import (
    check_distinct,
    strangers,
)
from magmerge.adapters.content import bytes_of, content_of, replaced
from magmerge.adapters.formats import encode
from magmerge.adapters.merging import (
    ModuleRecord,
    merge_modules,
    stated_dtype,
)
from magmerge.adapters.nouns import Content
from magmerge.adapters.planning import plan_adapters
from magmerge.adapters.publishing import adapter_target, write_adapter
from magmerge.adapters.union import union_of
from magmerge.binding import bind
from magmerge.conducting import correlations
from magmerge.device import open_device
from magmerge.faults import reading_notes
from magmerge.models import Sources
from magmerge.provenance import FILE, document
from magmerge.publishing import check_unchanged, digest_inputs, report_on, warn
from magmerge.reading import Reader
from magmerge.recipe import AdapterOutput, Recipe
from magmerge.report.writing import REPORT
from magmerge.request import thread_count
from magmerge.result import Result
from magmerge.run import Progress, Work


@dataclass(frozen=True, slots=True, repr=False)
class AdapterResult(Result):
    """A finished merge of adapters: `content` is the adapter, `modules` what became of each module,
    `dtype` the format that it is stored in. Its alphas are equal to its ranks.
    """

    content: Content | None = None
    modules: tuple[ModuleRecord, ...] = ()
    dtype: str = "F32"

    def state_dict(self) -> dict[str, Tensor]:
        """The adapter's tensors by the keys that its file has."""
        assert self.content is not None
        return {
            f"{part}/{key}" if part else key: tensor
            for part, encoded in encode(self.content).items()
            for key, tensor in encoded.tensors.items()
        }

    def save(
        self,
        out: str | Path,
        *,
        overwrite: bool = False,
        shard_size: str | int = "5GB",  # noqa: ARG002 - an adapter is one file
    ) -> Path:
        """Write the adapter: a folder for PEFT's naming, else one .safetensors file."""
        assert self.content is not None
        files = [file for one in self.sources.experts for file in one.files]
        check_unchanged(self.sources.stamps)
        digests = _digested(self.sources)
        text = document(self.recipe, digests, self.records, self.warnings, (), self.modules)
        beside = {FILE: text.encode()}
        if self.recipe.calibrate:
            beside |= report_on(REPORT, text, Path(out))
        return write_adapter(
            Path(out), self.content, inputs=files, overwrite=overwrite, beside=beside
        )


def carry_out_adapters(
    recipe: Recipe,
    sources: Sources,
    *,
    out: str | Path | None,
    overwrite: bool,
    threads: int | None,
    memory: str | int,
    progress: Progress | None,
) -> AdapterResult:
    """Merge, and write the adapter if `out` is given."""
    union, output = union_of(sources), recipe.adapter or AdapterOutput()
    count, engine = thread_count(threads), open_device("cpu")
    found = plan_adapters(recipe, sources, threads=count, memory=memory)
    if out is not None:
        check_output(out, recipe, sources, overwrite=overwrite)
    check_distinct(sources)
    work = Work(found, bind(recipe), sources, Reader(sources, engine), engine, recipe.seed)
    dtype = stated_dtype(union, recipe.dtype)
    merged = merge_modules(
        work, output, dtypes.torch_dtype(dtype), threads=count, progress=progress
    )
    records = tuple(one.record for one in merged.values())
    whole, notes = replaced(recipe, sources, dtype)
    check_unchanged(sources.stamps)
    notes = (*reading_notes(sources), *notes, *strangers(union))
    notes += correlations(recipe, list(records))
    warn(notes)
    content = content_of(recipe, sources, merged, whole, output)
    result = AdapterResult(
        recipe=recipe,
        plan=replace(found, disk=bytes_of(content)),
        records=records,
        warnings=notes,
        path=None,
        sources=sources,
        donor=None,
        tensors=None,
        content=content,
        modules=tuple(one.module for one in merged.values()),
        dtype=dtype,
    )
    if out is None:
        return result
    return replace(result, path=result.save(out, overwrite=overwrite))


def check_output(out: str | Path, recipe: Recipe, sources: Sources, *, overwrite: bool) -> None:
    """OutputError where the adapter cannot be written to `out`, before any work."""
    asked = None if recipe.adapter is None else recipe.adapter.naming
    adapter_target(
        Path(out),
        asked or union_of(sources).naming,  # type: ignore[arg-type]
        inputs=[file for one in sources.experts for file in one.files],
        overwrite=overwrite,
        beside=(FILE, REPORT) if recipe.calibrate else (FILE,),
    )


def _digested(sources: Sources, progress: Progress | None = None) -> list[dict[str, Any]]:
    """The adapters as the provenance tells them."""
    return digest_inputs(
        [("expert", one.source, one.files) for one in sources.experts], (), 1, progress
    )
