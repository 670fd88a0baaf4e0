"""PEFT's folders, read: base_model.model.M.lora_A.weight and its kin, scaled by the configuration.

LoRA with its variants that are a task vector (DoRA and trainable tokens on a base alone), LoHa,
LoKr and (IA)3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from magmerge.checkpoints.adapters.formats.bare_parameters import expert_modules
from magmerge.checkpoints.adapters.formats.headers import finite, parts_of
from magmerge.checkpoints.adapters.formats.keys import (
    AGAIN,
    CONFIG,
    PEFT,
    Role,
    Roles,
    check_known,
    read_key,
    second_key,
)
from magmerge.checkpoints.adapters.formats.lora_config import (
    MERGED_BY_PEFT,
    REFUSED_IN_FOLDERS,
    ScaleOrigin,
    check_config,
    check_kind,
    sound_scale,
)
from magmerge.checkpoints.adapters.nouns import Adapter, Module, Replacement, Rescale, TokenRows
from magmerge.core import dtypes
from magmerge.core.errors import AdapterError, shortened
from magmerge.core.models import Checkpoint

_FACTOR = re.compile(
    r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(?:\.default)?(?:\.weight)?$"
)
_IA3 = re.compile(r"^(?P<module>.+)\.ia3_l(?:\.default)?$")
_TOKENS = re.compile(
    r"^(?P<module>.+?)(?:\.token_adapter)?(?:\.base_layer)?\.trainable_tokens_delta(?:\.default)?$"
)
_INSIDE = re.compile(r"\.(?:token_adapter|base_layer)(?=\.)")
"""Layers that PEFT puts around the model's own."""


@dataclass(slots=True)
class _Keys:
    """An adapter's keys, sorted by what they are, under its own names for the modules."""

    modules: dict[str, Roles] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    embeddings: set[str] = field(default_factory=set)
    spare: set[str] = field(default_factory=set)
    multiplied: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    def known(self) -> set[str]:
        """Those that have a place."""
        factors = {key for roles in self.modules.values() for key in roles.values()}
        single = (self.replaced, self.multiplied, self.tokens)
        return factors | self.spare | {key for table in single for key in table.values()}


def read_peft(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    files: Sequence[Path],
    metadata: Mapping[str, str],
) -> Adapter:
    """The adapter of one model. Modules are named as in the model, without base_model.model.

    AdapterError for what is no task vector, and for keys that do not go together.
    """
    check_config(config, checkpoint.source, REFUSED_IN_FOLDERS)
    keys = _sort_keys(checkpoint)
    experts = expert_modules(checkpoint, keys.modules, config)
    check_kind(config, keys.modules, checkpoint.source)
    _check_lokr(checkpoint, keys.modules)
    parts = parts_of(checkpoint, keys.modules, partial(_scale, checkpoint, config))
    for name in keys.embeddings & parts.stored.keys():
        parts.stored[name] = _as_embedding(parts.stored[name])
    rescales = {name: _factors(checkpoint, key) for name, key in keys.multiplied.items()}
    return Adapter(
        checkpoint.source,
        tuple(files),
        "peft",
        parts.stored,
        {name: Replacement.of(checkpoint, key, name) for name, key in keys.replaced.items()},
        metadata,
        config,
        added=parts.added,
        rescales={**parts.rescales, **rescales},
        experts=experts,
        tokens={
            f"{module}.weight": _token_rows(checkpoint, key, module, config)
            for module, key in keys.tokens.items()
        },
    )


def _check_lokr(checkpoint: Checkpoint, modules: Mapping[str, Roles]) -> None:
    """AdapterError for PEFT's LoKr of a one-dimensional convolution: it multiplies W1 with W2's
    inputs and kernel places where the definition has outputs and inputs.
    """
    for roles in modules.values():
        if "lokr_w2" in roles and len(checkpoint.specs[roles["lokr_w2"]].shape) == 3:
            raise AdapterError(
                "refused: PEFT's LoKr of a one-dimensional convolution is no Kronecker product",
                source=checkpoint.source,
                tensor=roles["lokr_w2"],
                remedy=MERGED_BY_PEFT,
            )


def _sort_keys(adapter: Checkpoint) -> _Keys:
    """What each key of an adapter is; AdapterError for half pairs, unknown keys, keys twice."""
    keys = _Keys()
    for key in adapter.specs:
        _sort(keys, key.removeprefix(PEFT), key)
    pairs = [(name, roles.keys() & {"up", "down"}) for name, roles in keys.modules.items()]
    halves = sorted(name for name, roles in pairs if len(roles) == 1)
    if halves:
        raise AdapterError(
            f"half of a pair is missing for {shortened(list(halves))}",
            source=adapter.source,
            remedy=f"{AGAIN}: each module needs lora_A and lora_B",
        )
    if not keys.known():
        raise AdapterError("it holds no tensors", source=adapter.source, remedy=AGAIN)
    known = keys.known()
    for key in [key for key in adapter.specs if key not in known]:
        problem = "another key is of the same factor of the same module"
        raise second_key(problem, adapter.source, key)
    alone = not (keys.modules or keys.multiplied or keys.tokens)
    strange = [key for key in keys.replaced.values() if not key.startswith(PEFT) or alone]
    check_known(strange, adapter.source)
    return keys


def _sort(keys: _Keys, path: str, key: str) -> None:
    """Put one key where it belongs."""
    if match := _FACTOR.match(path):
        roles = keys.modules.setdefault(match["module"], {})
        roles["down" if match["factor"] == "A" else "up"] = key
        # PEFT keeps an embedding's task vector as [features, tokens].
        if match["embedding"]:
            keys.embeddings.add(match["module"])
    elif match := _IA3.match(path):
        keys.multiplied[match["module"]] = key
    elif match := _TOKENS.match(path):
        keys.tokens[match["module"]] = key
    elif (own := read_key(key)) and own.role in _BESIDE:
        keys.modules.setdefault(own.module.removeprefix(PEFT), {})[own.role] = key
    else:
        _sort_replaced(keys, path, key)


_BESIDE: frozenset[Role] = frozenset(
    """
    dora bias hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2
    lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2
    """.split()  # type: ignore[arg-type]  # noqa: SIM905
)
"""What PEFT writes under the same names as others."""


def _sort_replaced(keys: _Keys, path: str, key: str) -> None:
    """One tensor of the model's own; PEFT saves some embeddings as trained and as they were too."""
    if ".original_module." in path:
        keys.spare.add(key)
        return
    clean = _INSIDE.sub("", re.sub(r"\.modules_to_save\.(default\.)?", ".", path))
    before = keys.replaced.get(clean)
    if before is not None and ".modules_to_save." in before:
        keys.spare.add(key)
        return
    if before is not None and ".modules_to_save." in path:
        keys.spare.add(before)
    keys.replaced[clean] = key


def _scale(
    checkpoint: Checkpoint, config: Mapping[str, Any], name: str, roles: Roles
) -> float | None:
    """The scale of a module's task vector as the configuration has it."""
    origin = ScaleOrigin(checkpoint.source, CONFIG, f"restore lora_alpha in {CONFIG}", name)
    if "down" not in roles:
        return sound_scale(name, None, config, origin)
    shape = checkpoint.specs[roles["down"]].shape
    return sound_scale(name, shape[0], config, origin) if shape and shape[0] else 1.0


def _as_embedding(module: Module) -> Module:
    return module._replace(spec=replace(module.spec, kind="embedding"))


def _factors(checkpoint: Checkpoint, key: str) -> Rescale:
    """(IA)3's: of rows [out, 1], or, before a feed-forward layer, of columns [1, in]."""
    spec = checkpoint.specs[key]
    if len(spec.shape) != 2 or 1 not in spec.shape or spec.dtype not in dtypes.FLOATS:
        raise AdapterError(
            f"(IA)3's factors of a linear layer are one row or column, and these are {spec.dtype} "
            f"{list(spec.shape)}",
            source=checkpoint.source,
            tensor=key,
            remedy=MERGED_BY_PEFT,
        )
    axis: Literal["out", "in"] = "out" if spec.shape[1] == 1 and spec.shape[0] != 1 else "in"
    return Rescale(partial(finite, checkpoint, key), axis, math.prod(spec.shape), normed=False)


def _token_rows(
    checkpoint: Checkpoint, key: str, module: str, config: Mapping[str, Any]
) -> TokenRows:
    """The rows of an embedding that were trained; AdapterError unless there is a token for each."""
    tensor = Replacement.of(checkpoint, key, f"{module}.weight")
    told = config.get("trainable_token_indices") or config.get("token_indices")
    if isinstance(told, Mapping):
        ends = [name for name in told if f".{module}".endswith(f".{name}")]
        told = told[max(ends, key=len)] if ends else None
    rows = told if isinstance(told, list) else []
    sound = all(type(row) is int and row >= 0 for row in rows) and len(set(rows)) == len(rows)
    if not sound or len(tensor.spec.shape) != 2 or len(rows) != tensor.spec.shape[0]:
        raise AdapterError(
            f"{CONFIG} names {len(rows)} tokens for rows {list(tensor.spec.shape)}",
            source=checkpoint.source,
            tensor=key,
            remedy=f"restore trainable_token_indices in {CONFIG}",
        )
    return TokenRows(tuple(rows), tensor)
