"""The header entry lora_adapter_metadata of diffusers' files: PEFT's settings, by component."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from magmerge.checkpoints.adapters.formats.headers import checked_scale
from magmerge.checkpoints.adapters.formats.patterns import AGAINST, fields
from magmerge.checkpoints.adapters.formats.sorting import Roles
from magmerge.checkpoints.adapters.names.components import COMPONENTS, is_text, prefixed
from magmerge.checkpoints.adapters.nouns import Content
from magmerge.checkpoints.lora import check_config, scale_of
from magmerge.core.errors import AdapterError
from magmerge.core.models import Checkpoint

ENTRY = "lora_adapter_metadata"
REMEDY = f"remove the entry {ENTRY} from the header, or restore it"


def read(metadata: Mapping[str, str], source: str) -> dict[str, dict[str, Any]]:
    """PEFT's settings of each component; under "" those of a file that names no component.

    AdapterError for an entry that is no JSON object, and for settings other than plain LoRA's.
    """
    if ENTRY not in metadata:
        return {}
    try:
        entries = json.loads(metadata[ENTRY])
    except (ValueError, RecursionError) as error:
        raise _fault(f"is no JSON: {error}", source) from error
    if not isinstance(entries, dict):
        raise _fault("is no JSON object", source)
    configs: dict[str, dict[str, Any]] = {}
    for key, value in entries.items():
        component, _, name = key.partition(".")
        if component in COMPONENTS and name:
            configs.setdefault(component, {})[name] = value
        else:
            configs.setdefault("", {})[key] = value
    for config in configs.values():
        check_config({**config, "peft_type": "LORA"}, source)
    return configs


def scale(
    checkpoint: Checkpoint, name: str, roles: Roles, configs: Mapping[str, Mapping[str, Any]]
) -> float | None:
    """The scale of a module's task vector as the settings have it; None where they say nothing."""
    part = prefixed(name)
    if part is None or "down" not in roles:
        return None
    config = configs.get(part.component, configs.get(""))
    shape = checkpoint.specs[roles["down"]].shape
    if config is None or not shape or not shape[0]:
        return None
    try:
        found = scale_of(part.name, shape[0], config)
    except AdapterError as error:
        raise _fault(f"cannot be used: {error.problem}", checkpoint.source) from error
    except OverflowError as error:
        raise _fault(f"has a lora_alpha too large for {name}", checkpoint.source) from error
    alpha = found * shape[0]
    return checked_scale(alpha, found, checkpoint.source, roles["down"], REMEDY)


def updated(content: Content) -> dict[str, str]:
    """The header's entries for the content once its scales are in the up factors.

    The settings are told anew where the input told them, and where ranks differ: from them a
    loader would guess other scales.
    """
    metadata = dropped(content)
    before = read(content.metadata, "the adapter")
    names: dict[str, dict[str, int]] = {}
    for name, factors in content.modules.items():
        part = prefixed(name)
        if part is not None:
            names.setdefault(part.component, {})[_bare(part.component, part.name)] = len(
                factors.down
            )
    if not before and all(len(set(ranks.values())) == 1 for ranks in names.values()):
        return metadata
    entries: dict[str, Any] = {}
    for component, ranks in names.items():
        kept = before.get(component, before.get("", {}))
        config = {key: value for key, value in kept.items() if key not in AGAINST}
        config |= fields({name: (rank, 1.0) for name, rank in ranks.items()})
        entries |= {f"{component}.{key}": value for key, value in config.items()}
    return {**metadata, ENTRY: json.dumps(entries, indent=2, sort_keys=True)}


def dropped(content: Content) -> dict[str, str]:
    """The header's entries without this one."""
    rest = {key: text for key, text in content.metadata.items() if key != ENTRY}
    return {"format": "pt", **rest}


def _bare(component: str, name: str) -> str:
    # Newer versions of transformers have no text_model in their names; PEFT matches ends.
    return name.removeprefix("text_model.") if is_text(component) else name


def _fault(problem: str, source: str) -> AdapterError:
    return AdapterError(f"its header entry {ENTRY} {problem}", source=source, remedy=REMEDY)
