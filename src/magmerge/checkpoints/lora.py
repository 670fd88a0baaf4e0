"""PEFT LoRA adapters as experts: task vectors on a base, without building the whole model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from magmerge import dtypes
from magmerge.checkpoints.product import rows_between
from magmerge.errors import AdapterError
from magmerge.kinds import kinds_of, read_model_config
from magmerge.models import Checkpoint
from magmerge.types import Kind, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"^(?P<module>.+)\.lora_(?:embedding_)?(?P<factor>[AB])(?:\.default)?(?:\.weight)?$"
)
_MAGNITUDE = re.compile(r"\.lora_(magnitude|mag)|\.lora_B(\.default)?\.bias$")


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The factors of one tensor's task vector: `scale * B A`, turned over if `transposed`."""

    down: str
    up: str
    scale: float
    transposed: bool


@dataclass(slots=True)
class _Found:
    """An adapter's keys, sorted by what they are, under its own names for the modules."""

    down: dict[str, str] = field(default_factory=dict)
    up: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    embeddings: set[str] = field(default_factory=set)


class LoraExpert:
    """An adapter on `base`: what it does not touch has a task vector of zeros.

    Modules that the base lacks, and shapes that do not fit it, stand in `specs` and `faults`, so
    that the plan can report all of them at once.
    """

    def __init__(
        self, name: str, adapter: Checkpoint, config: Mapping[str, Any], base: Checkpoint
    ) -> None:
        self.name = name
        self.source = adapter.source
        self.files = adapter.files
        if adapter.folder is not None:
            self.files = (*adapter.files, adapter.folder / CONFIG)
        self.adapter = adapter
        self.whole = None
        self.ties = base.ties
        self._kinds = kinds_of(base, read_model_config(base))
        check_config(config, adapter.source)
        found = sort_keys(adapter)
        self.faults: list[str] = []
        unknown: list[str] = []
        self._pairs: dict[str, LoraPair] = {}
        self._replaced: dict[str, str] = {}
        for module in found.down:
            target = base_name(f"{module}.weight", base)
            if target is None:
                unknown.append(f"{module}.weight")
            elif target in self._pairs:
                self.faults.append(f"{target} has the task vector of two modules of {name}")
            else:
                self._pairs[target] = self._pair(module, found, config, base.specs[target])
        for key, stored in found.replaced.items():
            target = base_name(key, base)
            if target is None:
                unknown.append(key)
            elif target in self._pairs or target in self._replaced:
                self.faults.append(f"{target} has the task vector of two modules of {name}")
            else:
                self._replaced[target] = stored
        specs = dict(base.specs)
        for target, stored in self._replaced.items():
            own = adapter.specs[stored]
            specs[target] = TensorSpec(target, own.shape, own.dtype)
        for key in unknown:
            specs[key] = TensorSpec(key, (), "F32")
        self.specs = MappingProxyType(specs)
        self.untouched = frozenset(set(base.specs) - set(self._pairs) - set(self._replaced))

    def weight(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """The base's entries with the adapter merged into them."""
        return self.delta(name, base, start, out).add_(base)

    def delta(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """scale * B A in the dtype of `base`; or the replaced tensor less the base's; or zeros."""
        import torch

        from magmerge.device import moved

        stop = start + base.numel()
        if name in self._replaced:
            part = self.adapter.read_part(self._replaced[name], start, stop)
            return moved(part, base, out).sub_(base)
        if name not in self._pairs:
            return torch.zeros_like(base) if out is None else out.zero_()
        pair = self._pairs[name]
        down = self.adapter.read(pair.down).to(base).flatten(1)
        up = self.adapter.read(pair.up).to(base).flatten(1)
        # As the base stores it, out times in or turned over, in rows of which some are wanted.
        left, right = (down.T, up.T) if pair.transposed else (up, down)
        part = rows_between(left, right, start, stop).reshape(base.shape).mul_(pair.scale)
        return part if out is None else out.copy_(part)

    @property
    def scales(self) -> dict[str, float]:
        """The factor on each adapted tensor's B A."""
        return {name: pair.scale for name, pair in self._pairs.items()}

    def changes_nothing(self) -> bool:
        """Whether every B is zero, as in an adapter that was never trained."""
        ups = (
            pair.scale != 0
            and bool(self.adapter.read(pair.up).any())
            and bool(self.adapter.read(pair.down).any())
            for pair in self._pairs.values()
        )
        return not self._replaced and not any(ups)

    def _pair(
        self, module: str, found: _Found, config: Mapping[str, Any], target: TensorSpec
    ) -> LoraPair:
        down, up = self.adapter.specs[found.down[module]], self.adapter.specs[found.up[module]]
        turned = module in found.embeddings or is_turned(
            down, up, target, self._kinds.get(target.name, "matrix"), config
        )
        rank = down.shape[0] if down.shape else 0
        pair = LoraPair(down.name, up.name, scale_of(module, rank, config), turned)
        if not fits(pair, down, up, target):
            self.faults.append(
                f"{target.name}: the task vector {list(up.shape)} x {list(down.shape)} of "
                f"{self.name} does not fit the base's {list(target.shape)}"
            )
        return pair


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
            clean = path.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")
            found.replaced[clean] = key
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


def base_name(key: str, base: Checkpoint) -> str | None:
    """The base's name for an adapter's tensor, also where one of them wraps the model once more.

    An adapter for BertForSequenceClassification says bert.encoder..., the bare encoder says
    encoder...; None where neither the name nor one level more or less is in the base. For a
    tensor that shares another's memory it is that other's name.
    """
    inner = key.partition(".")[2]
    outer = [name for name in base.specs if name.partition(".")[2] == key]
    candidates = [key, inner, *(outer if len(outer) == 1 else [])]
    found = next((name for name in candidates if name in base.specs), None)
    return None if found is None else base.ties.get(found, found)


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


def is_turned(
    down: TensorSpec, up: TensorSpec, target: TensorSpec, kind: Kind, config: Mapping[str, Any]
) -> bool:
    """Whether B A must be transposed to fit a layer that is stored as [in, out].

    The shapes tell, unless the matrix is square. fan_in_fan_out comes last, since PEFT changes it
    for each module in turn and saves the last value for all of them.
    """
    if len(target.shape) != 2 or len(down.shape) != 2 or len(up.shape) != 2:
        return False
    if target.shape[0] != target.shape[1]:
        return (down.shape[1], up.shape[0]) == target.shape
    return kind == "transposed" or bool(config.get("fan_in_fan_out"))


def fits(pair: LoraPair, down: TensorSpec, up: TensorSpec, target: TensorSpec) -> bool:
    """Whether B A is defined and has the shape of the base's tensor."""
    factors = all(len(spec.shape) >= 2 and spec.dtype in dtypes.FLOATS for spec in (down, up))
    if not factors or not target.shape or up.shape[1] != down.shape[0]:
        return False
    product = (up.shape[0], math.prod(down.shape[1:]))
    rows = (target.shape[0], math.prod(target.shape[1:]))
    return math.prod(up.shape[2:]) == 1 and rows == (product[::-1] if pair.transposed else product)


def _by_pattern(module: str, patterns: Any, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the whole path, or its end after a dot."""
    if not isinstance(patterns or {}, dict):
        raise AdapterError(
            f"a pattern table is {patterns!r}",
            source=CONFIG,
            remedy="restore alpha_pattern in adapter_config.json",
        )
    for pattern, value in (patterns or {}).items():
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
