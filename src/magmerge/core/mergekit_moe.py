"""Recipes of mergekit-moe: a dialect, told by their experts' source_model, in magmerge's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from magmerge.core.errors import ParameterError
from magmerge.core.models import named_by_path
from magmerge.core.moe import explained

ROUTERS = {
    "hidden": "hidden",
    "hidden_avg": "hidden",
    "hidden_last": "hidden",
    "cheap_embed": "embedding",
    "random": "random",
    "uniform_random": "random",
}
"""What its gate modes are here. Its hidden states are those before a block's norm and of the last
token; here they are what the router sees, and the mean. Its random gates are normal draws.
"""
NAMES = {"mixtral": "mixtral", "qwen3 moe": "qwen3_moe", "qwen moe": "qwen2_moe"}
"""Its architectures by their names in lower case, of which a beginning will do."""
OWN = ("name", "seed", "rename", "weights", "output")
"""Keys of a recipe's own that may stand beside."""
DOCUMENT = (
    "write base_model:, gate_mode: and experts: [{source_model: PATH, positive_prompts: ['...']}]"
)


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MergekitExpert(_Data):
    """One expert as mergekit-moe has it."""

    source_model: str
    positive_prompts: list[str] | None = None
    negative_prompts: list[str] | None = None
    residual_scale: float | None = None
    noise_scale: Annotated[float, Field(ge=0)] | None = None


class MergekitMoe(_Data):
    """A document of mergekit-moe's, with its defaults."""

    base_model: str
    experts: list[MergekitExpert]
    shared_experts: list[MergekitExpert] | None = None
    gate_mode: Literal[
        "hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random"
    ] = "hidden"
    experts_per_token: int = 2
    dtype: str | None = None
    architecture: str | None = None


def translated(contents: Sequence[Any], source: str) -> list[Any]:
    """The documents of a file, those of mergekit-moe's in the words of a recipe."""
    return [
        _recipe(content, source) if _is_of_mergekit_moe(content) else content
        for content in contents
    ]


def _is_of_mergekit_moe(content: object) -> bool:
    """Whether its experts are a list of mappings with a source_model."""
    experts = content.get("experts") if isinstance(content, dict) else None
    return isinstance(experts, list) and any(
        isinstance(expert, dict) and "source_model" in expert for expert in experts
    )


def _recipe(content: Mapping[Any, Any], source: str) -> dict[str, Any]:
    """A document in the words of a recipe; errors that name its key."""
    own = {key: content[key] for key in OWN if key in content}
    try:
        document = MergekitMoe.model_validate(
            {key: value for key, value in content.items() if key not in own}
        )
    except ValidationError as error:
        known = [*MergekitMoe.model_fields, *MergekitExpert.model_fields, *OWN]
        fault = explained(error, [], known, DOCUMENT)
        fault.source = source
        raise fault from error
    shared = document.shared_experts or []
    experts = [*document.experts, *shared]
    names = list(named_by_path([expert.source_model for expert in experts]))
    by_name = dict(zip(names, experts, strict=True))
    scales = {name: e.residual_scale for name, e in by_name.items() if e.residual_scale is not None}
    moe = {
        "shape": _shape(document, source),
        "router": ROUTERS[document.gate_mode],
        "prompts": {n: e.positive_prompts for n, e in by_name.items() if e.positive_prompts},
        "negative_prompts": {
            name: e.negative_prompts for name, e in by_name.items() if e.negative_prompts
        },
        "experts_per_token": document.experts_per_token,
        "shared": names[len(document.experts) :],
        # It scales nothing by itself, where a shared expert halves the others here.
        "residual_scale": {**dict.fromkeys(names if shared else [], 1.0), **scales},
        "noise": {name: e.noise_scale for name, e in by_name.items() if e.noise_scale},
    }
    output = {"dtype": document.dtype} if document.dtype else {}
    told = {**own, "base": document.base_model, "moe": moe}
    told["experts"] = {name: expert.source_model for name, expert in by_name.items()}
    return {**told, "output": {**output, **own.get("output", {})}}


def _shape(document: MergekitMoe, source: str) -> str | None:
    """The kind of mixture; None where the base's kind tells it."""
    if document.architecture is None:
        return "qwen2_moe" if document.shared_experts else None
    word = document.architecture.lower()
    fitting = [shape for name, shape in NAMES.items() if name.startswith(word)]
    if not fitting:
        raise ParameterError(
            f"architecture {document.architecture!r} is not written here",
            source=source,
            remedy="write architecture: mixtral, qwen or qwen3, or leave it out",
        )
    # A beginning that several have: shared experts are in one of them only.
    if len(fitting) > 1:
        return "qwen2_moe" if document.shared_experts else None
    return fitting[0]
