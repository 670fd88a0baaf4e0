"""A finished pass of factors as an adapter: its modules, what it replaces, its header's entries."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from magmerge.checkpoints.adapters.base_names import WEIGHT, OnBase
from magmerge.checkpoints.adapters.base_names import content_of as content_on_base
from magmerge.checkpoints.adapters.formats.peft import encode
from magmerge.checkpoints.adapters.nouns import Content, LowRank
from magmerge.checkpoints.adapters.translation import rename_content
from magmerge.checkpoints.adapters.union import AdapterUnion
from magmerge.checkpoints.output.target import Target
from magmerge.core import dtypes
from magmerge.core.errors import OutputError
from magmerge.core.types import Plan, Step, TensorSpec
from magmerge.core.validation import check_naming
from magmerge.engine.adapters.extraction import module_kind
from magmerge.engine.adapters.module_merge import DOWN, UP
from magmerge.engine.job import Job
from magmerge.engine.outputs import place
from magmerge.engine.publish import Files, origin

HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
"""Header entries that say what an input's bytes were."""


def content_of(job: Job, plan: Plan, tensors: Mapping[str, Tensor]) -> Content:
    """The adapter of a pass's factors, under the naming of the recipe or of the first input."""
    steps = [step for step in plan.steps if f"{step.spec.name}{UP}" in tensors]
    union, naming = job.models.union, job.adapter_output.naming
    if union is None:
        modules = {
            step.spec.name.removesuffix(WEIGHT): OnBase(
                _factors(step, tensors), module_kind(step), step.kind == "transposed"
            )
            for step in steps
        }
        return content_on_base(job.models.layout, modules, check_naming(naming or "peft"))
    replaced = {name: tensors[name] for name in union.replaced if name in tensors}
    taken = job.takes
    content = Content(
        naming=union.adapters[0].naming,
        modules={
            step.spec.name: _factors(
                step, tensors, union.modules[step.spec.name].scale if taken else 1.0
            )
            for step in steps
        },
        kinds={step.spec.name: union.modules[step.spec.name].kind for step in steps},
        whole=replaced,
        keys=union.keys if naming is None else {},
        added={name: tensors[name] for name in union.added if name in tensors},
        metadata=union.adapters[0].metadata if taken else {**_first_entries(union), **origin(job)},
        config=union.adapters[0].config
        if taken
        else _config([adapter.config for adapter in union.adapters if adapter.config], replaced),
    )
    return rename_content(content, check_naming(naming or union.naming))


def files_of(job: Job, content: Content, target: Target) -> tuple[Files, dict[str, Tensor]]:
    """The files of an adapter, and its tensors by the keys of their steps."""
    encoded = encode(content)
    steps, tensors, texts = [], {}, {}
    for part, file in encoded.items():
        folder = f"{_plain(part)}/" if part else ""
        for name, tensor in file.tensors.items():
            code = dtypes.code_of(tensor.dtype)
            assert code is not None, f"{name} is {tensor.dtype}"
            spec = TensorSpec(name, tuple(tensor.shape), code)
            step = Step(spec, "other", "carry", "", part=_plain(part) if part else "")
            steps.append(step)
            tensors[step.key] = tensor
        for name, text in file.beside.items():
            texts[target.named(f"{folder}{_plain(name)}")] = text.encode()
    metadata = {part: file.metadata for part, file in encoded.items()}
    placed, shards = place(steps, job, target, metadata)
    return Files(placed, shards, texts), tensors


def _factors(step: Step, tensors: Mapping[str, Tensor], scale: float = 1.0) -> LowRank:
    name = step.spec.name
    return LowRank(tensors[f"{name}{UP}"], tensors[f"{name}{DOWN}"], scale)


def _plain(name: str) -> str:
    """A name that leads nowhere else: parts of modules' names are an input's."""
    if name != os.path.basename(name) or name in ("", ".", "..") or not name.isprintable():
        raise OutputError(f"{name!r} cannot be a file's name", remedy="rename that module")
    return name


def _config(many: Sequence[Mapping[str, Any]], whole: Mapping[str, Tensor]) -> dict[str, Any]:
    """What all have alike; of PEFT's settings of biases the widest, where there are any."""
    config = _shared(many)
    biases = [config.get("bias") for config in many]
    widest = next((setting for setting in ("all", "lora_only") if setting in biases), None)
    if widest and any(name.endswith(".bias") for name in whole):
        config["bias"] = widest
    elif "bias" in config:
        config["bias"] = "none"
    return config


def _first_entries(union: AdapterUnion) -> dict[str, str]:
    """The header entries of the first adapter, but for digests of what it was."""
    return {key: text for key, text in union.entries.items() if key not in HASHES}


def _shared(many: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries that all have, and alike."""
    if not many:
        return {}
    first, *others = many
    return {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }
