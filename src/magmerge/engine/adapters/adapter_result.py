"""A finished adapter: what it holds, what was lost, and how near it comes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from magmerge.checkpoints.adapters.formats.peft import encode
from magmerge.checkpoints.adapters.nouns import Content
from magmerge.checkpoints.output.provenance import Account
from magmerge.checkpoints.output.spool import Spool
from magmerge.checkpoints.output.target import Target
from magmerge.checkpoints.output.writer import MemorySink
from magmerge.core import dtypes
from magmerge.core.errors import AdapterError, StructureError, printable
from magmerge.engine.adapters.content import content_of, files_of
from magmerge.engine.adapters.extraction import ExtractedModule, LostTensor
from magmerge.engine.adapters.finished import finished_outcomes
from magmerge.engine.job import Job, Work
from magmerge.engine.norm_verdict import norm_verdict
from magmerge.engine.notes import correlations, warn
from magmerge.engine.publish import Files, Report, check_unchanged
from magmerge.engine.result import Result

NAMED = 3
"""Tensors of one reason that a warning names."""


@dataclass(frozen=True, slots=True, repr=False)
class AdapterResult(Result):
    """A finished adapter: `content` is what its files hold, `modules` what became of each module,
    `dtype` the format that it is stored in.
    """

    content: Content | None = None

    @property
    def modules(self) -> tuple[Any, ...]:
        """What became of each module: `ModuleRecord`, of an extraction `ExtractedModule`."""
        return tuple(self.account.modules)

    @property
    def dtype(self) -> str:
        """The format of the factors, as safetensors calls it."""
        assert self.content is not None
        up = next(iter(self.content.modules.values())).up
        return dtypes.code_of(up.dtype) or "F32"

    @property
    def naming(self) -> str:
        """How its modules are named."""
        assert self.content is not None
        return self.content.naming

    def state_dict(self) -> dict[str, Tensor]:
        """The adapter's tensors by the keys that its file has."""
        assert self.content is not None
        return {
            f"{part}/{key}" if part else key: tensor
            for part, encoded in encode(self.content).items()
            for key, tensor in encoded.tensors.items()
        }

    def files(self, job: Job, target: Target) -> tuple[Files, Mapping[str, Tensor]]:
        """The files of the adapter at a target, and its tensors by the keys of their steps."""
        assert self.content is not None
        return files_of(job, self.content, target)


@dataclass(frozen=True, slots=True, repr=False)
class Extraction(AdapterResult):
    """An adapter on a base, and how near it comes to the model, or the merge, that it is made of.

    `error` is |model - (base + adapter)| / |model - base| over all tensors that were not ignored,
    with the factors as stored and with what is `lost`; `norm` is the divisor. Each module's alpha
    is its rank.
    """

    lost: tuple[LostTensor, ...] = ()
    norm: float = 0.0
    error: float = 0.0

    @property
    def base(self) -> str:
        """The base that it is an adapter on."""
        return self.job.models.layout.source

    @property
    def model(self) -> str:
        """What it was made of."""
        return ", ".join(expert.source for expert in self.job.models.experts)

    def document(self) -> dict[str, Any]:
        """All but the tensors, for a program to read."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "warnings": list(self.warnings),
            "modules": [asdict(module) for module in self.modules],
            **self.account.extra,
        }


def result_of(
    work: Work, notes: tuple[str, ...], report: Report, spool: Spool | None = None
) -> AdapterResult:
    """The pass of factors into memory, and what it says of the adapter. What the spool has of a run
    before this one is not made again, and what is finished is kept there.
    """
    job, memory = work.job, MemorySink()
    outcomes = finished_outcomes(work, memory, spool)
    check_unchanged(job)
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    modules = [outcome.module for outcome in outcomes if outcome.module is not None]
    verdict = norm_verdict(records)
    alike = correlations(job, records)
    warn(alike)
    notes = (*notes, *alike)
    if job.models.union is not None:
        content = content_of(job, work.plan, memory.tensors)
        size = sum(tensor.numel() * tensor.element_size() for tensor in memory.tensors.values())
        plan = replace(work.plan, disk=size)
        dropped = {source: own for source, own in job.models.union.dropped_entries.items() if own}
        extra: dict[str, Any] = {"dropped_entries": dropped} if dropped else {}
        extra |= {"verdict": verdict} if verdict else {}
        account = Account(records, modules, notes, extra=extra)
        return AdapterResult(job, plan, account, report=report, content=content)
    lost = tuple(module for module in modules if isinstance(module, LostTensor))
    held = [module for module in modules if isinstance(module, ExtractedModule)]
    _check_held(job, held, lost)
    gone = [tensor.norm for tensor in lost]
    norm = math.hypot(*(module.norm for module in held), *gone)
    missed = math.hypot(*(module.norm * module.error for module in held), *gone)
    more = _loss_notes(lost, norm)
    warn(more)
    extra = {"norm": norm, "error": missed / norm, "lost": [asdict(tensor) for tensor in lost]}
    account = Account(records, held, (*notes, *more), extra=extra)
    content = content_of(job, work.plan, memory.tensors)
    return Extraction(
        job,
        work.plan,
        account,
        report=report,
        content=content,
        lost=lost,
        norm=norm,
        error=missed / norm,
    )


def _check_held(job: Job, held: Sequence[ExtractedModule], lost: Sequence[LostTensor]) -> None:
    """An error where there is nothing to write."""
    model = job.models.experts[0].source if job.takes else "the merge"
    if not held and not lost:
        raise StructureError(
            [f"{model} is equal to the base {job.models.layout.source}: nothing was learnt"],
            remedy="check which model is the base",
        )
    if not held:
        raise AdapterError(
            f"nothing that an adapter holds was changed: {'; '.join(_by_reason(lost))}",
            source=model,
            remedy="name what else may be adapted with --target (targets=)",
        )


def _loss_notes(lost: Sequence[LostTensor], norm: float) -> tuple[str, ...]:
    if not lost:
        return ()
    share = math.hypot(*(tensor.norm for tensor in lost)) / norm
    count = f"{len(lost)} changed tensor{'' if len(lost) == 1 else 's'}"
    return (
        f"{count} not in the adapter, {100 * share:.3g} % of the change's norm: "
        f"{'; '.join(_by_reason(lost))}",
    )


def _by_reason(lost: Sequence[LostTensor]) -> list[str]:
    """The tensors by reason, the largest first."""
    reasons: dict[str, list[str]] = {}
    for tensor in sorted(lost, key=lambda tensor: -tensor.norm):
        reasons.setdefault(tensor.reason, []).append(printable(tensor.name))
    return [
        ", ".join(names[:NAMED])
        + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        + f" ({reason})"
        for reason, names in reasons.items()
    ]
