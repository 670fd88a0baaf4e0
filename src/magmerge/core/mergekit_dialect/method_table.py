"""mergekit 0.1.5's twenty methods: what each takes, its defaults, and what it is called here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple


class Word(NamedTuple):
    """A parameter of mergekit's: a number, a count or a flag; for each model, or one for all.

    `name` is what it is called here, None where it has no effect. Without a `default` it must be
    said.
    """

    name: str | None
    default: Any = ...
    each: bool = False
    kind: type = float


class MergekitMethod(NamedTuple):
    """A method: its name here, what it takes, its part for base_model, and how many others it has.

    `base`: needed, possible, or a model like the others (which slerp needs: t is 0 there).
    """

    name: str
    words: Mapping[str, Word]
    base: Literal["needed", "possible", "other"]
    experts: tuple[int, int | None]


WEIGHT = Word("weights", each=True)
MASK = Word(None, False, kind=bool)


def _flag(name: str | None, default: bool) -> Word:
    return Word(name, default, kind=bool)


def _task_vectors(
    name: str, *, normalize: bool, rescale: str | None, scaled: bool, **more: Word
) -> MergekitMethod:
    """The family that adds up task vectors. `rescale` is what that flag is called here."""
    words = {
        "weight": WEIGHT,
        "density": Word("density", 1.0, each=True),
        "lambda": Word("lambda", 1.0),
        "normalize": _flag("normalize", normalize),
        "rescale": _flag(rescale, scaled),
        "int8_mask": MASK,
        **more,
    }
    return MergekitMethod(name, words, "needed", (1, None))


EPSILON = {"epsilon": Word("epsilon", 0.15, each=True)}
GAMMA = {"gamma": Word("gamma", 0.01, each=True)}
RAM_EPSILON = Word("epsilon", 1e-5)

METHODS = {
    "linear": MergekitMethod(
        "average", {"weight": WEIGHT, "normalize": _flag("normalize", True)}, "other", (1, None)
    ),
    "slerp": MergekitMethod("slerp", {"t": Word("t")}, "other", (2, 2)),
    "nuslerp": MergekitMethod(
        "nuslerp",
        {
            "weight": WEIGHT,
            "nuslerp_flatten": _flag("flatten", True),
            "nuslerp_row_wise": _flag("row_wise", False),
        },
        "possible",
        (2, 2),
    ),
    "multislerp": MergekitMethod(
        "multislerp",
        {
            "weight": WEIGHT,
            "normalize_weights": _flag("normalize_weights", True),
            "eps": Word("eps", 1e-8),
        },
        "possible",
        (1, None),
    ),
    "karcher": MergekitMethod(
        "karcher",
        {"max_iter": Word("max_iter", 10, kind=int), "tol": Word("tol", 1e-5)},
        "other",
        (1, None),
    ),
    "task_arithmetic": _task_vectors(
        "task_arithmetic", normalize=False, rescale=None, scaled=False, density=Word(None, 1.0)
    ),
    "ties": _task_vectors("ties", normalize=True, rescale="rescale", scaled=False),
    "dare_ties": _task_vectors("dare_ties", normalize=False, rescale="rescale", scaled=True),
    "dare_linear": _task_vectors("dare", normalize=False, rescale="rescale", scaled=True),
    "della": _task_vectors("della", normalize=True, rescale="rescale", scaled=True, **EPSILON),
    "della_linear": _task_vectors(
        "della_linear", normalize=False, rescale="rescale", scaled=True, **EPSILON
    ),
    "breadcrumbs": _task_vectors(
        "breadcrumbs", normalize=False, rescale="rescale", scaled=False, **GAMMA
    ),
    "breadcrumbs_ties": _task_vectors(
        "breadcrumbs_ties", normalize=False, rescale="rescale", scaled=False, **GAMMA
    ),
    "model_stock": MergekitMethod(
        "model_stock", {"filter_wise": _flag("filter_wise", False)}, "needed", (2, None)
    ),
    "nearswap": MergekitMethod("nearswap", {"t": Word("t")}, "needed", (1, 1)),
    "sce": MergekitMethod(
        "sce", {"select_topk": Word("select_topk", 1.0), "int8_mask": MASK}, "needed", (1, None)
    ),
    "ram": MergekitMethod("ram", {"epsilon": RAM_EPSILON}, "needed", (1, None)),
    "ramplus_tl": MergekitMethod(
        "ramplus_tl",
        {"r": Word("r", 0.1), "alpha": Word("alpha", 0.2), "epsilon": RAM_EPSILON},
        "needed",
        (1, None),
    ),
    "arcee_fusion": MergekitMethod("arcee_fusion", {}, "needed", (1, 1)),
    "passthrough": MergekitMethod("passthrough", {"scale": Word("scale", 1.0)}, "other", (1, 1)),
}
"""By mergekit's names. passthrough's scale is that of the only model which a slice has."""

KNOWN = {name for method in METHODS.values() for name in method.words} | {"embed_slerp"}
"""Parameters that some method of mergekit's takes, or once took."""
EACH = {
    *(name for method in METHODS.values() for name, word in method.words.items() if word.each),
    "scale",
}
"""Those that each model may have for itself."""
ELECTING = ("ties", "dare_ties", "della", "breadcrumbs_ties")
"""Methods that elect a sign."""
DRAWING = ("dare_ties", "dare_linear", "della", "della_linear")
"""Methods that draw at random."""


class Stack(NamedTuple):
    """A module of mergekit's: what is in the name of its stack of blocks here (None: the main one),
    and in the names of all its tensors (None: all that no other module has).
    """

    stack: str | None = None
    part: str | None = None
    blocks: bool = True


VISION = Stack("vis", "vis")
MODULES = {
    "default": Stack(),
    "text_decoder": Stack(),
    "vision_tower": VISION,
    "vision_model": VISION,
    "encoder": Stack("encoder", "encoder."),
    "decoder": Stack("decoder", "decoder."),
    "shared": Stack(None, "shared", blocks=False),
    "multi_modal_projector": Stack(None, "multi_modal_projector", blocks=False),
}
"""By mergekit's names. A module that is not among them is a part of a stack's name."""
