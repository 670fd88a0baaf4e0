"""Where an adapter's modules are in a base, whatever names the two have for them; and whether it
was trained on another diffusion model, as shapes tell.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from magmerge.checkpoints.adapters.base_names import WEIGHT, rows_of
from magmerge.checkpoints.adapters.names.naming import in_parts, to_diffusers
from magmerge.checkpoints.adapters.names.vocabulary import flat
from magmerge.checkpoints.adapters.nouns import Adapter, ModuleSpec
from magmerge.checkpoints.adapters.rows import Rows, height, whole
from magmerge.checkpoints.kinds import kinds_of, read_model_config
from magmerge.checkpoints.names.pairs import OTHERWISE, pair
from magmerge.core.components import DIFFUSION, layout_of
from magmerge.core.models import Checkpoint
from magmerge.core.types import TensorSpec

_IMAGE_MODELS = re.compile(
    rf"(?:lora_unet_|lora_transformer_|unet\.|transformer\.|(?:{re.escape(DIFFUSION)})"
    r"|diffusion_model\.)"
)
"""What an adapter's names for the modules of an image model begin with."""
INPUTS = {768: "an SD1", 1024: "an SD2", 2048: "an SDXL"}
"""Features of the text that cross-attention takes in each version of Stable Diffusion."""

_CROSS = re.compile(r"(?:.*[._])?attn2[._](?:processor[._])?to_[kv](?:_lora|\.weight)?")
_FLUX = re.compile(r"(?:.*[._])?(?:double_blocks|single_blocks|single_transformer_blocks)[._]\d+.*")
_LAYOUTS = {"sd1": "an SD1", "sd2": "an SD2", "sdxl": "an SDXL", "flux": "a Flux"}


class Place(NamedTuple):
    """Rows of a module's task vector, and the rows of the base's tensor that they are added to.

    `rows` of them, from `row` on and from `at` on. `turned`: the tensor is the whole module's task
    vector transposed; rows are those of the module then.
    """

    module: str
    row: int
    tensor: str
    at: int
    rows: int
    turned: bool = False


@dataclass(slots=True)
class Placement:
    """Modules' places; those the base lacks; module, tensor and shape of its rows that misfit;
    the base's names of the adapter's tensors that are a tensor of the base as a whole, and what is
    to be said of names that are not the base's.
    """

    places: list[Place] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    misfits: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)
    names: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find(adapter: Adapter, base: Checkpoint) -> Placement:
    """Every module in the base, by whole tensors or by rows of those that fuse several modules."""
    placement, modules = _named(adapter, base), adapter.modules
    kinds = kinds_of(base, read_model_config(base))
    # Decides about square matrices only: PEFT saves one value for modules of both sorts.
    every = bool(adapter.config.get("fan_in_fan_out"))
    turnable = {name for name, kind in kinds.items() if kind == "transposed" or every}
    pairs = _pairs(adapter, placement.names, base)
    rows: Counter[str | None] = Counter()
    for own, theirs in pairs:
        for part in own:
            rows[part.module] += part.stop - part.start
        module, tensor = modules[own[0].module or ""], base.specs[theirs[0].module or ""]
        if _is_whole(own, module.shape) and _is_whole(theirs, tensor.shape):
            turned = _is_turned(module, tensor, tensor.name in turnable)
            shape = tensor.shape[::-1] if turned else tensor.shape
            _check(placement, module, tensor, shape)
            placement.places.append(Place(module.name, 0, tensor.name, 0, module.shape[0], turned))
            continue
        _check(placement, module, tensor, (height(theirs), *tensor.shape[1:]), own)
        placement.places += _overlaid(own, theirs)
    placement.lacking = [name for name, spec in modules.items() if rows[name] < spec.shape[0]]
    return placement


def _named(adapter: Adapter, base: Checkpoint) -> Placement:
    """A placement that knows the base's names for the adapter's tensors, and no place yet.

    What shares another's memory in the base is that other.
    """
    alike = adapter.naming == "peft" and not in_parts(adapter.modules)
    modules = [f"{name}{WEIGHT}" for name in adapter.modules]
    keys = [key for key in modules if alike or key in base.specs]
    bare = [name for name, rescale in adapter.rescales.items() if not rescale.normed]
    beside = [*adapter.whole, *adapter.tokens, *adapter.experts]
    beside += [f"{module}.{leaf}" for module in bare for leaf in ("weight", "bias")]
    keys += [key for key in beside if key not in set(keys)]
    names, kinds = pair(keys, base.specs)
    names |= {key: name for key in keys if key not in names and (name := _wrapped(key, base))}
    notes: tuple[str, ...] = ()
    if kinds:
        count = sum(old != new for old, new in names.items())
        notes = (f"{adapter.source}: {count} {OTHERWISE} {base.source} ({', '.join(kinds)})",)
    return Placement(
        names={key: base.ties.get(own, own) for key, own in names.items()}, notes=notes
    )


def _wrapped(key: str, base: Checkpoint) -> str | None:
    """The base's name for one that has one level more or less; None if there is not just one.

    An adapter for BertForSequenceClassification says bert.encoder..., the bare encoder encoder...
    """
    inner = key.partition(".")[2]
    outer = [name for name in base.specs if name.partition(".")[2] == key]
    return inner if inner in base.specs else (outer[0] if len(outer) == 1 else None)


def mismatch(adapter: Adapter, placement: Placement, base: Checkpoint) -> str | None:
    """What tells that the adapter is for another model than the base; None if nothing does."""
    own, its = _inputs(adapter.modules), _inputs(base.specs)
    theirs = _family(base.specs, its) or _LAYOUTS.get(layout_of(base.specs) or "")
    mine = _family(adapter.modules, own)
    pair = None if mine is None or theirs is None else f"{mine} adapter on {theirs} base"
    if placement.misfits and own is not None and its is not None and own != its:
        text = f"its cross-attention has {own} inputs where the base's has {its}"
        return f"{text}: {pair}" if pair else text
    different = (placement.misfits or placement.lacking) and mine != theirs
    return pair if different else None


def _family(names: Iterable[str], inputs: int | None) -> str | None:
    if any(_FLUX.fullmatch(name) for name in names):
        return "a Flux"
    return None if inputs is None else INPUTS.get(inputs)


def _inputs(specs: Mapping[str, ModuleSpec] | Mapping[str, TensorSpec]) -> int | None:
    shapes = (spec.shape for name, spec in specs.items() if _CROSS.fullmatch(name))
    return next((shape[1] for shape in shapes if len(shape) == 2), None)


def _check(
    placement: Placement,
    module: ModuleSpec,
    tensor: TensorSpec,
    shape: tuple[int, ...],
    own: Sequence[Rows] = (),
) -> None:
    """Note where the module's task vector, or those rows of it, has another shape."""
    rows = height(own) or module.shape[0]
    if not shape or rows != shape[0] or not _same_features(module.shape[1:], shape[1:]):
        placement.misfits.append((module.name, tensor.name, shape))


def _same_features(own: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether the inputs are as many, and kernels equal; a linear layer is one of 1 x 1."""
    if len(own) > 1 and len(other) > 1:
        return own == other
    kernels = own[1:] + other[1:]
    return math.prod(own) == math.prod(other) and math.prod(kernels) == 1


def _is_turned(module: ModuleSpec, tensor: TensorSpec, turnable: bool) -> bool:
    """Whether the tensor is the task vector's transpose. The shapes tell, unless it is square."""
    if module.kind == "embedding":
        return True
    if len(module.shape) != 2 or len(tensor.shape) != 2:
        return False
    if tensor.shape[0] != tensor.shape[1]:
        return module.shape[::-1] == tensor.shape
    return turnable


def _is_whole(rows: Sequence[Rows], shape: tuple[int, ...]) -> bool:
    return len(rows) == 1 and rows[0].start == 0 and rows[0].stop == (shape or (0,))[0]


def _overlaid(own: Sequence[Rows], theirs: Sequence[Rows]) -> Iterator[Place]:
    """The same rows told as a module's and as the base's, cut wherever either changes."""
    left, right = list(own), list(theirs)
    while left and right:
        mine, its = left.pop(0), right.pop(0)
        rows = min(mine.stop - mine.start, its.stop - its.start)
        yield Place(mine.module or "", mine.start, its.module or "", its.start, rows)
        for queue, part in ((left, mine), (right, its)):
            if part.start + rows < part.stop:
                queue.insert(0, part._replace(start=part.start + rows))


def _pairs(
    adapter: Adapter, names: Mapping[str, str], base: Checkpoint
) -> list[tuple[tuple[Rows, ...], tuple[Rows, ...]]]:
    """Rows of the adapter's modules, and the rows of the base's tensors that they stand for."""
    modules, naming = adapter.modules, adapter.naming
    direct = {name: names[f"{name}{WEIGHT}"] for name in modules if f"{name}{WEIGHT}" in names}
    rest = {name: spec for name, spec in modules.items() if name not in direct}
    theirs = rows_of(base) if rest else {}
    pairs: list[tuple[tuple[Rows, ...], tuple[Rows, ...]]] = []
    while rest:
        named = to_diffusers(naming, rest).rows
        new = [(own, theirs[name]) for name, own in named.items() if name in theirs]
        pairs += new
        placed = {rows.module for own, _ in new for rows in own}
        # Of modules with one name in diffusers the first is named: the others come in turn.
        rest = {name: spec for name, spec in rest.items() if name not in placed}
        if not placed:
            break
    direct |= _by_own_names(list(rest), base)
    for name, tensor in direct.items():
        rows = (base.specs[tensor].shape or (0,))[0]
        pairs.append((whole(name, modules[name]), (Rows(tensor, 0, rows),)))
    return pairs


def _by_own_names(modules: Sequence[str], base: Checkpoint) -> dict[str, str]:
    """Modules of an image model of any kind that is named in the adapter as in the base."""
    if not modules:
        return {}
    names = {
        name: flat(name.removeprefix(DIFFUSION).removesuffix(".weight"))
        for name in base.specs
        if name.endswith(".weight")
    }
    often = Counter(names.values())
    known = {spoken: name for name, spoken in names.items() if often[spoken] == 1}
    tensors = {}
    for module in modules:
        prefix = _IMAGE_MODELS.match(module)
        tensor = known.get(flat(module[prefix.end() :])) if prefix else None
        if tensor is not None:
            tensors[module] = base.ties.get(tensor, tensor)
    return tensors
