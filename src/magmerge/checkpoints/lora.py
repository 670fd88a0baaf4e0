"""PEFT's adapter_config.json and keys: what is plain LoRA, how it is scaled, what is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magmerge.core.errors import AdapterError
from magmerge.core.models import Checkpoint

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
REPEATS, LONGEST = 2, 300
"""How many repetitions a file's pattern may have, and how long a name it is then tried on."""
_FACTOR = re.compile(
    r"^(?P<module>.+)\.lora_(?:embedding_)?(?P<factor>[AB])(?:\.default)?(?:\.weight)?$"
)
_MAGNITUDE = re.compile(r"\.lora_(magnitude|mag)|\.lora_B(\.default)?\.bias$")


@dataclass(slots=True)
class _Found:
    """An adapter's keys, sorted by what they are, under its own names for the modules."""

    down: dict[str, str] = field(default_factory=dict)
    up: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    embeddings: set[str] = field(default_factory=set)
    spare: set[str] = field(default_factory=set)


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's configuration; AdapterError if it cannot be read."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(
            f"cannot be read: {error}", source=path, remedy="fetch the adapter once more"
        ) from error
    if not isinstance(config, dict):
        raise AdapterError("is no JSON object", source=path, remedy="fetch the adapter once more")
    return config


def check_config(config: Mapping[str, Any], source: str) -> None:
    """Refuse what is not plain LoRA, since its task vector is not scale * B A."""
    refused = {
        "use_dora": "DoRA rescales whole columns of the base",
        "lora_bias": "its B factors have biases",
        "layer_replication": "it copies layers of the base",
        "alora_invocation_tokens": "it is active for some tokens only",
        "trainable_token_indices": "it replaces single tokens of the embedding",
        "target_parameters": "it adapts bare parameters, not modules",
    }
    kind = config.get("peft_type")
    reason = None
    if kind != "LORA":
        reason = f"its peft_type is {kind!r}, not LORA"
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        reason = f"it was started with {start}, which changes the base itself"
    for key, why in refused.items():
        if config.get(key):
            reason = reason or f"it sets {key}: {why}"
    if reason:
        raise AdapterError(
            f"refused: {reason}",
            source=source,
            remedy="merge it into its base with PEFT (merge_and_unload) and give the whole model",
        )


def sort_keys(adapter: Checkpoint) -> _Found:
    """What each key of an adapter is; AdapterError for half pairs and unknown keys."""
    found = _Found()
    for key in adapter.specs:
        if _MAGNITUDE.search(key):
            raise AdapterError(
                "refused: a DoRA magnitude or a LoRA bias",
                source=adapter.source,
                tensor=key,
                remedy="merge it into its base with PEFT and give the whole model",
            )
        path = key.removeprefix(PREFIX)
        match = _FACTOR.match(path)
        if match is None:
            _sort_replaced(found, path, key)
            continue
        (found.down if match["factor"] == "A" else found.up)[match["module"]] = key
        # PEFT keeps an embedding's task vector as [features, tokens].
        if "lora_embedding_" in path:
            found.embeddings.add(match["module"])
    halves = sorted(set(found.down) ^ set(found.up))
    if halves:
        raise AdapterError(
            f"half of a pair is missing for {', '.join(halves)}",
            source=adapter.source,
            remedy="fetch the adapter once more: each module needs lora_A and lora_B",
        )
    if not found.down and not found.replaced:
        raise AdapterError(
            "it holds no tensors", source=adapter.source, remedy="fetch the adapter once more"
        )
    return found


def _sort_replaced(found: _Found, path: str, key: str) -> None:
    """One tensor of the model's own; PEFT saves some embeddings as trained and as they were too."""
    if ".original_module." in path:
        found.spare.add(key)
        return
    clean = re.sub(r"\.modules_to_save\.(default\.)?", ".", path).replace(".base_layer.", ".")
    before = found.replaced.get(clean)
    if before is not None and ".modules_to_save." in before:
        found.spare.add(key)
        return
    if before is not None and ".modules_to_save." in path:
        found.spare.add(before)
    found.replaced[clean] = key


def scale_of(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """alpha / r, or alpha / sqrt(r) for a rank-stabilised adapter (arXiv:2312.03732)."""
    alpha = _by_pattern(module, config.get("alpha_pattern"), config.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AdapterError(
            f"lora_alpha is {alpha!r} for {module}",
            source=CONFIG,
            remedy="restore lora_alpha in adapter_config.json",
        )
    if rank < 1:
        raise AdapterError("rank 0", tensor=module, remedy="train the adapter with rank 1 or more")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(module: str, patterns: Any, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the whole path, or its end after a dot."""
    if not isinstance(patterns or {}, dict):
        raise AdapterError(
            f"a pattern table is {patterns!r}",
            source=CONFIG,
            remedy="restore alpha_pattern in adapter_config.json",
        )
    for pattern, value in (patterns or {}).items():
        if _is_endless(str(pattern), module):
            raise AdapterError(
                f"the pattern {str(pattern)[:80]!r} could take for ever to match",
                source=CONFIG,
                remedy="write plain module names in alpha_pattern and rank_pattern",
            )
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise AdapterError(
                f"{pattern!r} is no regular expression: {error}",
                source=CONFIG,
                remedy="restore alpha_pattern in adapter_config.json",
            ) from error
    return default


def _is_endless(pattern: str, module: str) -> bool:
    """Whether a file's own pattern may need more than some million steps on this name."""
    repeats = len(re.findall(r"[*+{]", pattern))
    groups = re.search(r"\)[*+{?]|\\[0-9]", pattern) is not None
    return groups or repeats > REPEATS or (repeats > 0 and len(module) > LONGEST)
