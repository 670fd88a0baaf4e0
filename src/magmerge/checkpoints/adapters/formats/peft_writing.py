"""A finished adapter as PEFT's folders: one for each model, with its adapter_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from magmerge.checkpoints.adapters.formats import diffusers_metadata
from magmerge.checkpoints.adapters.formats.patterns import AGAINST, fields
from magmerge.checkpoints.adapters.formats.writable import stored_factors
from magmerge.checkpoints.adapters.names.components import prefixed
from magmerge.checkpoints.adapters.names.naming import in_parts
from magmerge.checkpoints.adapters.nouns import Content, Encoded
from magmerge.checkpoints.lora import CONFIG, PREFIX
from magmerge.core.errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor


def write_peft(content: Content) -> dict[str, Encoded]:
    """One folder's files for each model; "" is the name where there is only one."""
    if not in_parts([*content.modules, *content.whole]):
        return {"": _folder(content, content.config)}
    parts: dict[str, Content] = {}
    for name, factors in content.modules.items():
        component, own = _place(name)
        part = parts.setdefault(component, _empty(content))
        parts[component] = replace(
            part,
            modules={**part.modules, own: factors},
            kinds={**part.kinds, own: content.kinds[name]},
        )
    for name, tensor in content.whole.items():
        component, own = _place(name)
        part = parts.setdefault(component, _empty(content))
        parts[component] = replace(part, whole={**part.whole, own: tensor})
    return {
        component: _folder(part, _config_of(component, content.config))
        for component, part in parts.items()
    }


def _empty(content: Content) -> Content:
    return replace(content, modules={}, kinds={}, whole={})


def _place(name: str) -> tuple[str, str]:
    part = prefixed(name)
    assert part is not None
    return part


def _config_of(component: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an input of several folders had in this one's."""
    own = config.get(component)
    return own if isinstance(own, Mapping) else {}


def _folder(content: Content, given: Mapping[str, Any]) -> Encoded:
    if not content.modules:
        raise AdapterError(
            f"it replaces {', '.join(content.whole)} and adapts no module",
            remedy="merge these as whole models",
        )
    tensors: dict[str, Tensor] = {}
    for name, (up, down, _) in stored_factors(content):
        what, ending = ("embedding_", "") if content.kinds[name] == "embedding" else ("", ".weight")
        tensors[f"{PREFIX}{name}.lora_{what}A{ending}"] = down
        tensors[f"{PREFIX}{name}.lora_{what}B{ending}"] = up
    for name, tensor in content.whole.items():
        path, _, leaf = name.rpartition(".")
        # PEFT saves the own weight of an adapted layer under the layer that it wraps.
        own = f"{path}.base_layer.{leaf}" if path in content.modules else name
        tensors[f"{PREFIX}{own}"] = tensor.contiguous()
    text = json.dumps(_config(content, given), indent=2, sort_keys=True)
    return Encoded(tensors, diffusers_metadata.dropped(content), {CONFIG: f"{text}\n"})


def _config(content: Content, given: Mapping[str, Any]) -> dict[str, Any]:
    ranks = {name: (len(factors.down), factors.scale) for name, factors in content.modules.items()}
    return {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_dropout": 0.0,
        "task_type": None,
        **{key: value for key, value in given.items() if key not in AGAINST},
        **fields(ranks),
        "modules_to_save": _saved(content, given),
        "peft_type": "LORA",
    }


def _saved(content: Content, given: Mapping[str, Any]) -> list[str] | None:
    """The input's modules_to_save that are here, and the modules that these leave out."""
    before = given.get("modules_to_save")
    asked = [str(name) for name in before] if isinstance(before, list | tuple) else []
    paths = [name.rpartition(".")[0] for name in content.whole]
    saved = [name for name in asked if any(_covers([name], path) for path in paths)]
    for name in content.whole:
        path = name.rpartition(".")[0]
        bias = given.get("bias", "none") != "none" and name.endswith(".bias")
        if path in content.modules or bias or _covers(saved, path):
            continue
        saved.append(path)
    return saved or None


def _covers(saved: list[str], path: str) -> bool:
    parts = path.split(".")
    ends = {
        ".".join(parts[start:stop]) for stop in range(1, len(parts) + 1) for start in range(stop)
    }
    return any(name in ends for name in saved)
