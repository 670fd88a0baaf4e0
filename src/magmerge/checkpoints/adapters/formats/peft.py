"""PEFT's folders: adapter_config.json and base_model.model.M.lora_A.weight beside it; and the files
of an adapter under any naming.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from magmerge.checkpoints.adapters.formats.headers import stored_module
from magmerge.checkpoints.adapters.formats.keys import (
    AGAIN,
    CONFIG,
    PEFT,
    Roles,
    check_known,
    second_key,
)
from magmerge.checkpoints.adapters.formats.lora_config import (
    AGAINST,
    REFUSED_IN_FOLDERS,
    ScaleOrigin,
    check_config,
    config_fields,
    sound_scale,
)
from magmerge.checkpoints.adapters.formats.single_files import (
    other_entries,
    write_diffusers,
    write_kohya,
)
from magmerge.checkpoints.adapters.names.naming import in_parts
from magmerge.checkpoints.adapters.names.vocabulary import prefixed
from magmerge.checkpoints.adapters.nouns import Adapter, Content, Encoded, Module, Replacement
from magmerge.core.errors import AdapterError
from magmerge.core.models import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_FACTOR = re.compile(
    r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(?:\.default)?(?:\.weight)?$"
)
_MAGNITUDE = re.compile(r"\.lora_(magnitude|mag)|\.lora_B(\.default)?\.bias$")


@dataclass(slots=True)
class _Keys:
    """An adapter's keys, sorted by what they are, under its own names for the modules."""

    modules: dict[str, Roles] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    embeddings: set[str] = field(default_factory=set)
    spare: set[str] = field(default_factory=set)


def read_peft(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    files: Sequence[Path],
    metadata: Mapping[str, str],
) -> Adapter:
    """The adapter of one model. Modules are named as in the model, without base_model.model.

    AdapterError for anything but plain LoRA, and for keys that do not go together.
    """
    check_config(config, checkpoint.source, REFUSED_IN_FOLDERS)
    keys = _sort_keys(checkpoint)
    stored = {name: _module(checkpoint, name, keys, config) for name in keys.modules}
    replaced = {name: Replacement.of(checkpoint, key, name) for name, key in keys.replaced.items()}
    return Adapter(checkpoint.source, tuple(files), "peft", stored, replaced, metadata, config)


def _sort_keys(adapter: Checkpoint) -> _Keys:
    """What each key of an adapter is; AdapterError for half pairs, unknown keys, keys twice."""
    keys = _Keys()
    for key in adapter.specs:
        if _MAGNITUDE.search(key):
            problem = "refused: a DoRA magnitude or a LoRA bias"
            remedy = "merge it into its base with PEFT and give the whole model"
            raise AdapterError(problem, source=adapter.source, tensor=key, remedy=remedy)
        path = key.removeprefix(PEFT)
        match = _FACTOR.match(path)
        if match is None:
            _sort_replaced(keys, path, key)
            continue
        roles = keys.modules.setdefault(match["module"], {})
        roles["down" if match["factor"] == "A" else "up"] = key
        # PEFT keeps an embedding's task vector as [features, tokens].
        if match["embedding"]:
            keys.embeddings.add(match["module"])
    halves = sorted(name for name, roles in keys.modules.items() if len(roles) == 1)
    if halves:
        raise AdapterError(
            f"half of a pair is missing for {', '.join(halves)}",
            source=adapter.source,
            remedy=f"{AGAIN}: each module needs lora_A and lora_B",
        )
    if not keys.modules and not keys.replaced:
        raise AdapterError("it holds no tensors", source=adapter.source, remedy=AGAIN)
    factors = {key for roles in keys.modules.values() for key in roles.values()}
    known = factors | keys.spare | set(keys.replaced.values())
    for key in [key for key in adapter.specs if key not in known]:
        problem = "another key is of the same factor of the same module"
        raise second_key(problem, adapter.source, key)
    strange = [key for key in keys.replaced.values() if not key.startswith(PEFT) or not factors]
    check_known(strange, adapter.source)
    return keys


def _sort_replaced(keys: _Keys, path: str, key: str) -> None:
    """One tensor of the model's own; PEFT saves some embeddings as trained and as they were too."""
    if ".original_module." in path:
        keys.spare.add(key)
        return
    clean = re.sub(r"\.modules_to_save\.(default\.)?", ".", path).replace(".base_layer.", ".")
    before = keys.replaced.get(clean)
    if before is not None and ".modules_to_save." in before:
        keys.spare.add(key)
        return
    if before is not None and ".modules_to_save." in path:
        keys.spare.add(before)
    keys.replaced[clean] = key


def _module(checkpoint: Checkpoint, name: str, keys: _Keys, config: Mapping[str, Any]) -> Module:
    roles = keys.modules[name]
    shape = checkpoint.specs[roles["down"]].shape
    scale = 1.0
    if shape and shape[0]:
        origin = ScaleOrigin(checkpoint.source, CONFIG, f"restore lora_alpha in {CONFIG}", name)
        scale = sound_scale(name, shape[0], config, origin)
    module = stored_module(checkpoint, name, roles, scale)
    if name not in keys.embeddings:
        return module
    return module._replace(spec=dataclasses.replace(module.spec, kind="embedding"))


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
    homeless = [*content.whole, *embeddings]
    if homeless:
        raise AdapterError(
            f"the {content.naming} format has no place for {', '.join(homeless)}",
            remedy="write the adapter as a PEFT folder",
        )
    kohya = content.naming not in ("diffusers", "diffusers_old")
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
        config=config if isinstance(config, Mapping) else {},
    )


def _folder(content: Content) -> Encoded:
    from magmerge.checkpoints.adapters.formats.products import stored_factors

    if not content.modules:
        raise AdapterError(
            f"it replaces {', '.join(content.whole)} and adapts no module",
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
