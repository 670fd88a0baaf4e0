"""A mixture of experts out of dense models, as a recipe tells it: checked, defaults written out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from magmerge.core.errors import MagmergeError, ParameterError, UnknownNameError, suggestion
from magmerge.core.recipe import ModelOutput, Recipe

Router = Literal["hidden", "embedding", "random", "uniform"]
PROMPTED = ("hidden", "embedding")
"""Routers that are made of prompts."""
GATE = 0.5
"""What a shared expert without prompts is multiplied with in every token: a gate of zeros."""
OF_A_MERGE = (
    *("method", "merged", "calibrate", "samples", "slices", "ignore", "tokenizer", "tokens"),
    "pad_to_multiple_of",
)
"""Fields of a recipe that speak of a merge."""
FIRST = (
    "drop it; what is to be merged or calibrated is a document of its own before this one (--- and "
    "name:), whose result is named here as the base or an expert"
)
LACKING = (
    "write under moe: prompts: {{{name}: ['a text that it should take', ...]}}; or router: random, "
    "which knows none"
)


class Moe(BaseModel):
    """Dense models side by side in each block, and the router that sends each token to some.

    `shape` is the kind of mixture, None: the one that the base's kind goes into. `router`: hidden
    is the mean of what enters a block's MLP over an expert's prompts, less that of its negative
    ones; embedding the same of the token embeddings; random is drawn by the recipe's seed, uniform
    are zeros. `shared` experts take every token, beside those that are routed. `residual_scale`
    multiplies what an expert adds, and `noise` is the deviation of noise in its weights, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    shape: Literal["mixtral", "qwen2_moe", "qwen3_moe"] | None = None
    router: Router = "hidden"
    prompts: dict[str, tuple[str, ...]] = {}
    negative_prompts: dict[str, tuple[str, ...]] = {}
    experts_per_token: Annotated[int, Field(gt=0, strict=True)] = 2
    shared: tuple[str, ...] = ()
    residual_scale: dict[str, float] = {}
    noise: dict[str, Annotated[float, Field(ge=0)]] = {}

    @model_validator(mode="before")
    @classmethod
    def _as_people_write_it(cls, content: object) -> object:
        """One prompt, or one shared expert, needs no list; a bare number may be a name."""
        if not isinstance(content, Mapping):
            return content
        told = dict(content)
        if isinstance(told.get("shared"), str):
            told["shared"] = [told["shared"]]
        for key in ("prompts", "negative_prompts", "residual_scale", "noise"):
            if isinstance(told.get(key), Mapping):
                told[key] = {
                    str(name) if type(name) is int else name: [value]
                    if isinstance(value, str)
                    else value
                    for name, value in told[key].items()
                }
        return told

    @property
    def prompted(self) -> bool:
        """Whether the router is made of prompts."""
        return self.router in PROMPTED

    def routed(self, names: Mapping[str, Any]) -> list[str]:
        """The experts that the router chooses among, in the recipe's order."""
        return [name for name in names if name not in self.shared]


def written_out(content: Any) -> dict[str, Any]:
    """The content of `moe:` with every default; an error that names the key where it is wrong."""
    try:
        return Moe.model_validate(content).model_dump(mode="json")
    except ValidationError as error:
        written = "moe is fields with values: {router: hidden, prompts: {maths: ['...']}}"
        raise explained(error, ["moe"], Moe.model_fields, written) from error


def explained(
    error: ValidationError, above: list[str], known: Iterable[str], written: str
) -> MagmergeError:
    """A pydantic error as one of magmerge's own, which names the key below those `above`."""
    fault = error.errors()[0]
    key = ".".join([*above, *map(str, fault["loc"])])
    if fault["type"] == "extra_forbidden":
        remedy = suggestion(fault["loc"][-1], known)
        return UnknownNameError(f"unknown key {key!r}", remedy=remedy)
    return ParameterError(f"{key}: {fault['msg'].lower()}", remedy=written)


def checked(recipe: Recipe) -> dict[str, Any]:
    """The recipe's mixture with what depends on its experts written out too. Errors for what does
    not go together, before any file is opened.
    """
    moe = Moe.model_validate(recipe.moe)
    for field in OF_A_MERGE:
        if getattr(recipe, field):
            raise ParameterError(
                f"{field} speaks of a merge, and moe takes the weights of models as they are",
                remedy=FIRST,
            )
    if not isinstance(recipe.output, ModelOutput) or recipe.output.names is not None:
        raise ParameterError(
            "moe makes a whole model under its own names, and the output is another",
            remedy="drop rank, energy, naming and names from output:",
        )
    if recipe.base is None:
        raise ParameterError(
            "moe needs a base, whose attention, norms and embeddings the mixture has",
            remedy="name it: base: PATH; it may be one of the experts too",
        )
    _check_names(moe, recipe.experts)
    _check_count(moe, recipe.experts)
    if moe.prompted:
        _check_prompts(moe, recipe.experts)
    if moe.shared and not moe.residual_scale:
        # Beside a gate of one half they add up to one expert's output where all are the same.
        scales = dict.fromkeys(moe.routed(recipe.experts), 1 - GATE)
        moe = moe.model_copy(update={"residual_scale": scales})
    return moe.model_dump(mode="json")


def _check_names(moe: Moe, experts: Mapping[str, str]) -> None:
    for field in ("prompts", "negative_prompts", "shared", "residual_scale", "noise"):
        for name in getattr(moe, field):
            if name not in experts:
                raise UnknownNameError(
                    f"moe.{field} speaks of {name!r}, which is no expert of the recipe",
                    remedy=suggestion(name, experts),
                )


def _check_count(moe: Moe, experts: Mapping[str, str]) -> None:
    count = len(moe.routed(experts))
    if count == 0:
        raise ParameterError(
            "no expert is left for the router to choose",
            remedy="name experts: {maths: PATH, code: PATH} that are not all in moe.shared",
        )
    if moe.experts_per_token > count:
        raise ParameterError(
            f"experts_per_token is {moe.experts_per_token}, and the router chooses among {count}",
            remedy=f"write experts_per_token: {count} or less",
        )


def _check_prompts(moe: Moe, experts: Mapping[str, str]) -> None:
    routed = moe.routed(experts)
    for name in routed:
        if not moe.prompts.get(name):
            raise ParameterError(
                f"the router is {moe.router}, and the expert {name!r} has no prompts",
                remedy=LACKING.format(name=name),
            )
    for field in ("prompts", "negative_prompts"):
        for name, texts in getattr(moe, field).items():
            if name not in moe.prompts or not all(text.strip() for text in texts):
                raise ParameterError(
                    f"moe.{field} of {name!r} holds an empty text, or stands alone",
                    remedy=LACKING.format(name=name),
                )
    told = {(moe.prompts[name], moe.negative_prompts.get(name, ())) for name in routed}
    if len(told) == 1 < len(routed):
        raise ParameterError(
            "all experts have the same prompts, so the router could not tell them apart",
            remedy="give each prompts of its own, or write router: random",
        )
