"""What a mixture is put together of, what of it does not fit, and what its reader should know."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from magmerge.checkpoints.donor import same_tokens
from magmerge.checkpoints.kinds import read_model_config
from magmerge.checkpoints.mixture_shapes import DENSE, PARTS, SHAPES, Shape, told_of, windows_of
from magmerge.core.errors import Fault
from magmerge.core.models import Checkpoint, Expert
from magmerge.core.moe import GATE, Moe
from magmerge.core.stacks import block_of
from magmerge.data.tokens import FILES

ALIKE = (
    "give experts that were tuned from the base, or from a model of its sizes: the MLPs of a "
    "mixture are all of one shape"
)
PLAIN = "give a base and experts whose {} have none"
ON_MLPS = (
    "drop it, or give an adapter that was trained on gate_proj, up_proj and down_proj; where the "
    "base's own MLPs are meant to be an expert, name the base itself"
)
WINDOWS = "give a base whose blocks all have the window, or none (use_sliding_window: false)"
TOKENIZER = (
    "name the base's folder with its tokenizer files, or write router: random, which needs none"
)


class Parts(NamedTuple):
    """What a mixture is put together of: its shape, what the recipe says, the base with its stack
    of blocks and their count, and the experts that are routed, and shared.
    """

    shape: Shape
    moe: Moe
    base: Checkpoint
    config: Mapping[str, Any]
    stack: str
    blocks: int
    routed: Sequence[Expert]
    shared: Sequence[Expert]

    def mlp(self, block: int, part: str) -> str:
        """The name of a matrix of an MLP in the dense models."""
        return f"{self.stack}.{block}.mlp.{part}.weight"

    def named(self, block: int, inner: str) -> str:
        """The name of what a block of the mixture has."""
        return f"{self.stack}.{block}.{inner}"


def mixture_faults(parts: Parts) -> Iterator[Fault]:
    """Everything that does not fit, from headers and configs."""
    yield from _block_faults(parts)
    yield from _shape_faults(parts)
    for expert in (*parts.routed, *parts.shared):
        yield from expert.faults
        yield from _expert_faults(parts, expert)


def _block_faults(parts: Parts) -> Iterator[Fault]:
    """What the base's blocks have that the mixture's have not, and the other way round."""
    source, count = parts.base.source, parts.blocks
    mlp = {f"mlp.{part}.weight" for part in PARTS}
    blocks: dict[str, int] = {}
    for block in map(block_of, parts.base.specs):
        if block is not None and block.stack == parts.stack:
            blocks[block.inner] = blocks.get(block.inner, 0) + 1
    held = {inner for inner in blocks if "rotary_emb" not in inner}
    shape, remedy = parts.shape, _another_shape(parts, held - mlp)
    for inner in sorted(held - mlp - shape.needed - shape.optional):
        told = f"{source} has {parts.named(0, inner)}, and the blocks of {shape.model_type} have no"
        yield Fault(f"{told} {inner}", remedy or PLAIN.format(inner.rpartition(".")[0]))
    for inner in sorted(inner for inner in shape.needed | mlp if blocks.get(inner, 0) < count):
        text = f"{source} has {inner} in {blocks.get(inner, 0)} of its {count} blocks"
        yield Fault(f"{text}, and {shape.model_type} in each", remedy or ALIKE)


def _another_shape(parts: Parts, held: Collection[str]) -> str:
    """The remedy to write another shape, where there is one that such blocks go into."""
    for name in DENSE[parts.config["model_type"]].shapes:
        shape = SHAPES[name]
        if shape.needed <= set(held) <= shape.needed | shape.optional:
            return f"write shape: {name}" if shape is not parts.shape else ""
    return ""


def _shape_faults(parts: Parts) -> Iterator[Fault]:
    """What the mixture cannot be by its kind: shared experts, windows; and texts without tokens."""
    shape, base, several = parts.shape, parts.base, set(windows_of(parts.config, parts.blocks))
    kinds = DENSE[parts.config["model_type"]].shapes
    sharing = [name for name in kinds if SHAPES[name].shared]
    if parts.shared and not shape.shared:
        remedy = f"write shape: {sharing[0]}, or drop shared" if sharing else "drop shared"
        yield Fault(f"{shape.model_type} has no shared experts", remedy)
    elif len(parts.shared) > 1:
        text = f"{shape.model_type} has one shared expert, and {len(parts.shared)} are named"
        yield Fault(text, "name one under shared:")
    if len(several) > 1 and not shape.shared:
        text = f"some blocks of {base.source} have a sliding window, and others none"
        yield Fault(f"{text}: those of {shape.model_type} are all alike", WINDOWS)
    folder = base.folder
    if parts.moe.prompted and not any(folder and (folder / name).is_file() for name in FILES):
        yield Fault(f"there is no tokenizer in {folder or base.source} for the prompts", TOKENIZER)


def _expert_faults(parts: Parts, expert: Expert) -> Iterator[Fault]:
    """What an expert's MLPs have otherwise than the base's."""
    base, own = parts.base.specs, expert.specs
    names = [parts.mlp(block, part) for block in range(parts.blocks) for part in PARTS]
    names = [name for name in names if name in base]
    for words, odd in (
        ("is missing from", [name for name in names if name not in own]),
        ("has another shape in", [n for n in names if n in own and own[n].shape != base[n].shape]),
    ):
        if odd:
            more = f", and {len(odd) - 1} more" if len(odd) > 1 else ""
            shapes = (
                f": {list(own[odd[0]].shape)}, not {list(base[odd[0]].shape)}"
                if (odd[0] in own)
                else ""
            )
            yield Fault(f"{odd[0]} {words} {expert.source}{shapes}{more}", ALIKE)
    blocks = [block for block in map(block_of, own) if block and block.stack == parts.stack]
    count = max((block.number for block in blocks), default=-1) + 1
    if count > parts.blocks:
        text = f"{expert.source} has {count} blocks, and the base {parts.blocks}"
        yield Fault(f"{text}: some of them would be lost", ALIKE)
    biases = [block.inner for block in blocks if block.inner.startswith("mlp.")]
    biases = sorted({inner for inner in biases if inner.endswith(".bias")})
    if biases:
        text = f"{expert.source} has {biases[0]}, and the experts of a mixture have no biases"
        yield Fault(text, PLAIN.format("MLPs"))
    if expert.whole is None:
        if not expert.faults and expert.untouched.issuperset(names):
            yield Fault(f"the adapter {expert.source} changes no MLP of the base", ON_MLPS)
        return
    config = read_model_config(expert.whole)
    act, other = config.get("hidden_act"), told_of(parts.config)["hidden_act"]
    if act is not None and act != other:
        yield Fault(f"the MLPs of {expert.source} have {act}, and the base's {other}", ALIKE)


def mixture_notes(parts: Parts) -> Iterator[str]:
    """What its reader should know."""
    moe, count, shape = parts.moe, len(parts.routed), parts.shape
    experts = [*parts.routed, *parts.shared]
    if shape.shared and not parts.shared:
        yield f"{shape.model_type} has a shared expert in each block: one of zeros adds nothing"
    for expert in parts.shared:
        if moe.prompted and expert.name in moe.prompts:
            yield f"{expert.name} is shared: a gate made of its prompts says how much it adds"
        else:
            yield f"{expert.name} is shared: it adds {GATE} of its output to every token's"
    if moe.router == "uniform" and moe.experts_per_token < count:
        yield (
            "to a uniform router all experts are equal, and ties are broken by place: every "
            f"token takes the same {moe.experts_per_token} of {count}; write experts_per_token: "
            f"{count} for the mean of all, or router: random"
        )
    if moe.prompts and not moe.prompted:
        yield f"the router is {moe.router}: the prompts are not used"
    if moe.prompted:
        yield from _alike(moe, [expert.name for expert in parts.routed])
    yield from _reading_notes(parts, experts)


def _alike(moe: Moe, names: Sequence[str]) -> Iterator[str]:
    first: dict[Any, str] = {}
    for name in names:
        key = (moe.prompts[name], moe.negative_prompts.get(name, ()))
        if key in first:
            yield f"{name} and {first[key]} have the same prompts, and always go together"
        first.setdefault(key, name)


def _reading_notes(parts: Parts, experts: Sequence[Expert]) -> Iterator[str]:
    """What of the experts has no place in the mixture."""
    mlps = {parts.mlp(block, part) for block in range(parts.blocks) for part in PARTS}
    for expert in experts:
        lost = sorted(parts.base.specs.keys() - mlps - expert.untouched)
        if expert.whole is None and lost:
            yield (
                f"the adapter {expert.source} also changes {len(lost)} tensors that are no MLP "
                f"({lost[0]}, ...): these are the base's in a mixture"
            )
    whole = [expert for expert in experts if expert.whole is not None]
    other = [e.source for e in whole if not same_tokens([parts.base, e])]
    if other:
        yield (
            f"{', '.join(other)}: another vocabulary than the base's, which the mixture has; MLPs "
            "know no tokens, so that it does not matter"
        )
    noisy = [expert for expert in experts if parts.moe.noise.get(expert.name)]
    contents = {expert.files or (expert.source,) for expert in experts}
    if len(contents) == 1 and len(experts) > 1 and not noisy:
        yield "all experts are the same model: the mixture computes what one of them would"
