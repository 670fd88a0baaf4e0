"""PEFT's folders: adapter_config.json and base_model.model.M.lora_A.weight beside it; and the files
of an adapter under any naming.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from magmerge.checkpoints.adapters.formats.keys import (
    CONFIG,
    PEFT,
)
from magmerge.checkpoints.adapters.formats.lora_config import (
    AGAINST,
    config_fields,
)
from magmerge.checkpoints.adapters.formats.single_files import (
    other_entries,
    write_diffusers,
    write_kohya,
)
from magmerge.checkpoints.adapters.names.naming import in_parts
from magmerge.checkpoints.adapters.names.vocabulary import prefixed
from magmerge.checkpoints.adapters.nouns import Content, Encoded
from magmerge.core.errors import AdapterError, shortened

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def encode(content: Content) -> dict[str, Encoded]:
    """The files that hold an adapter, by the folder that they belong in.

    One file under "" for the namings of single files. For PEFT, a folder with its
    adapter_config.json for each model of a pipeline; under "" if there is only one. AdapterError
    for an adapter without modules, and for what the format has no place for: replaced tensors and
    embeddings in any but PEFT's.
    """
    if not content.modules:
        raise AdapterError("an adapter without modules", remedy="merge adapters that have some")
    if content.naming == "peft":
        return _folders(content)
    embeddings = [name for name, kind in content.kinds.items() if kind == "embedding"]
    kohya = content.naming not in ("diffusers", "diffusers_old")
    homeless = [*content.whole, *embeddings, *(() if kohya else content.added)]
    if homeless:
        raise AdapterError(
            f"the {content.naming} format has no place for {shortened(homeless)}",
            remedy="write the adapter as a PEFT folder",
        )
    return {"": write_kohya(content) if kohya else write_diffusers(content)}


def _folders(content: Content) -> dict[str, Encoded]:
    """One folder's files for each model; "" is the name where there is only one."""
    if not in_parts([*content.modules, *content.whole]):
        return {"": _folder(content)}
    names = (*content.modules, *content.whole)
    components = dict.fromkeys(name.partition(".")[0] for name in names)
    return {component: _folder(_inside(component, content)) for component in components}


def _inside(component: str, content: Content) -> Content:
    """What of an adapter is of one model, with the configuration of that model's own folder."""

    def own(table: Mapping[str, T]) -> dict[str, T]:
        parts = {name: prefixed(name) for name in table}
        own_parts = {n: part for n, part in parts.items() if part and part.component == component}
        return {part.name: table[name] for name, part in own_parts.items()}

    config = content.config.get(component)
    return dataclasses.replace(
        content,
        modules=own(content.modules),
        kinds=own(content.kinds),
        whole=own(content.whole),
        added=own(content.added),
        config=config if isinstance(config, Mapping) else {},
    )


def _folder(content: Content) -> Encoded:
    from magmerge.checkpoints.adapters.formats.products import stored_factors

    if not content.modules:
        raise AdapterError(
            f"it replaces {shortened(list(content.whole))} and adapts no module",
            remedy="merge these as whole models",
        )
    tensors: dict[str, Tensor] = {}
    for name, (up, down, _) in stored_factors(content):
        what, ending = ("embedding_", "") if content.kinds[name] == "embedding" else ("", ".weight")
        tensors[f"{PEFT}{name}.lora_{what}A{ending}"] = down
        tensors[f"{PEFT}{name}.lora_{what}B{ending}"] = up
    for name, tensor in content.whole.items():
        path, _, leaf = name.rpartition(".")
        # PEFT saves the own weight of an adapted layer under the layer that it wraps.
        own = f"{path}.base_layer.{leaf}" if path in content.modules else name
        tensors[f"{PEFT}{own}"] = tensor.contiguous()
    for name, tensor in content.added.items():
        module = name.removesuffix(".bias")
        tensors[f"{PEFT}{module}.lora_B.bias"] = tensor / content.modules[module].scale
    text = json.dumps(_config(content), indent=2, sort_keys=True)
    return Encoded(tensors, other_entries(content), {CONFIG: f"{text}\n"})


def _config(content: Content) -> dict[str, Any]:
    ranks = {name: (len(factors.down), factors.scale) for name, factors in content.modules.items()}
    return {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_dropout": 0.0,
        "task_type": None,
        **{key: value for key, value in content.config.items() if key not in AGAINST},
        **config_fields(ranks),
        "lora_bias": bool(content.added),
        "modules_to_save": _modules_to_save(content),
        "peft_type": "LORA",
    }


def _modules_to_save(content: Content) -> list[str] | None:
    """The input's modules_to_save that are here, and the modules that these leave out."""
    before = content.config.get("modules_to_save")
    names = [str(name) for name in before] if isinstance(before, list | tuple) else []
    paths = [name.rpartition(".")[0] for name in content.whole]
    saved = [name for name in names if any(_covers([name], path) for path in paths)]
    for name, path in zip(content.whole, paths, strict=True):
        bias = content.config.get("bias", "none") != "none" and name.endswith(".bias")
        if path not in content.modules and not bias and not _covers(saved, path):
            saved.append(path)
    return saved or None


def _covers(saved: list[str], path: str) -> bool:
    """Whether one of the names is a run of the path's parts."""
    return any(f".{name}." in f".{path}." for name in saved)
