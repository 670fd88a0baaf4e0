"""What a merge is, as data: checked, with a digest, to and from YAML. It covers all that decides
the result; what only decides how fast it is there is in `Machine`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from magmerge.core import lazy
from magmerge.core.errors import ParameterError
from magmerge.core.models import named_by_path, strengths_as_weights
from magmerge.core.parameters import BOUND, Bound, Dtype, Size, named, paths, switch
from magmerge.core.plain_yaml import yaml_of

Weights = Literal["ema", "model"]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Calibration(_Data):
    """One calibrator and its parameters, defaults filled in."""

    method: str
    params: dict[str, Any] = {}


class Samples(_Data):
    """What a calibration looks at besides weights: where each expert's samples are from, how many
    are drawn by which seed, how rows become inputs, in what order layers are measured, and in what
    format the model runs.

    `prepared`: the fields of `SampleOptions` that were said: column, split, batch, size. `model` is
    the class in transformers that is run, `build` the name of a function that returns the module:
    it is recorded, and never called unless it is given with the call too.
    """

    data: dict[str, str]
    samples: int = 8
    seed: int = 0
    order: Literal["once", "forward"] = "once"
    precision: Literal["float32", "bfloat16"] = "float32"
    batchnorm: bool = False
    model: str | None = None
    build: str | None = None
    prepared: dict[str, Any] = Field(default_factory=dict)


class ModelOutput(_Data):
    """A whole model: its format (None: the base's own), the largest file in bytes, the folder that
    config and tokenizer are taken from (None: the base's), and the family of CLIP's names that its
    tensors get (None: their own). `force` writes also a folder that would not load.
    """

    kind: Literal["model"] = "model"
    dtype: Dtype = None
    shard_size: Size = 5_000_000_000
    donor: str | None = None
    names: str | None = None
    force: bool = False

    @model_serializer(mode="wrap")
    def _told(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name != "force" or value}


class AdapterOutput(_Data):
    """An adapter: of what rank, under what naming, in what format.

    `rank` is a number; "auto", enough to keep the share `energy` of the squared norm; "exact", all
    that the inputs span; or None, the largest of the inputs' in each module. `naming` None is the
    first expert's. `targets` are the tensors or modules that an adapter of whole models holds.
    """

    kind: Literal["adapter"] = "adapter"
    rank: int | Literal["auto", "exact"] | None = None
    energy: float | None = None
    naming: str | None = None
    dtype: Dtype = None
    targets: tuple[str, ...] = ()


EVERY = "*"
"""What stands for all experts in a map of names."""


class TokenSource(_Data):
    """The row that a model gets for a token that it has not; with `force` all get it, so that the
    result has it as it is.

    `source`: base or an expert's name; {kind: zero}; {kind: model_token, model: NAME, token: TEXT},
    or token_id in place of token.
    """

    source: str | dict[str, str | int]
    force: bool = False


class Slice(_Data):
    """Some blocks of the result, one after the other, and the blocks that they are merged of.

    `layers` tells for the base and each expert that has a part in it which of its own blocks they
    are, from the first to before the last, as many in each; None: all that it has. `stack` is the
    stack of blocks that they are in (model.layers, encoder.block), by its name or a part of it that
    only one has; None: the only one, or the greatest. `base` is the expert that is the base here.
    """

    layers: Annotated[dict[str, tuple[int, int] | None], BeforeValidator(named)]
    stack: str | None = None
    base: str | None = None


LISTS = ("sensitive", "skip", "ignore")
LATER = (
    *("rename", "weights", "tokenizer", "tokens", "pad_to_multiple_of"),
    *("slices", "chat_template", "moe", "statistics", "bound", "keep_best"),
)
"""Fields that recipes once had not: where they are not set the digest is what it was."""


class Recipe(_Data):
    """A merge (`method`), the calibration of a merge that exists (`merged`), or one model as it is.

    Models are named by path, or described where they are in memory. `ignore` holds patterns of
    tensors that are not compared and that the result takes from its layout model as they are;
    `rename` maps names of experts, each alone or all of them, before they are compared;
    `skip` patterns of tensors that are merged but not calibrated; `sensitive` the layers that the
    gate lets only shrink; `bound` what no factor exceeds, or off; `weights` what is read of models
    that hold their weights and the average of these, for all or by name (None: what their program
    reads); `samples` is None where only weights are looked at. `name` is what later documents of
    the same file call this one's result.
    `tokenizer` is base, union or an expert's name: whose tokens the result has, None for those of
    all; `tokens` tells where rows of single tokens are from, and `pad_to_multiple_of` what the
    number of rows is a multiple of. `slices` are the result's blocks, where they are not those of
    the models, each merged with the others of its place; `chat_template` is the result's: auto, one
    by name, or a text. With `moe` (`core.moe.Moe`) the experts stand side by side in a mixture.
    `statistics`: in place of samples a file for each expert, as `magmerge statistics` writes them.
    `keep_best`: a calibration that is worse than the merge on held-out samples is left out.
    """

    name: str | None = None
    base: str | None = None
    experts: dict[str, str] = Field(default_factory=dict)
    merged: str | None = None
    method: str | None = None
    params: dict[str, Any] = {}
    calibrate: tuple[Calibration, ...] = ()
    gate: Literal["on", "off"] = "on"
    bound: Bound = BOUND
    sensitive: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    rename: dict[str, dict[str, str]] = Field(default_factory=dict)
    weights: Weights | dict[str, Weights] | None = None
    seed: int = 0
    tokenizer: str | None = None
    tokens: dict[str, TokenSource] = Field(default_factory=dict)
    pad_to_multiple_of: Annotated[int, Field(gt=0)] | None = None
    slices: tuple[Slice, ...] = ()
    chat_template: str | None = None
    moe: dict[str, Any] | None = None
    samples: Samples | None = None
    statistics: Annotated[dict[str, str], BeforeValidator(paths)] = Field(default_factory=dict)
    keep_best: bool = False
    output: ModelOutput | AdapterOutput = Field(default_factory=ModelOutput, discriminator="kind")

    _notes: tuple[str, ...] = PrivateAttr(())
    _drops_idle_filters: bool = PrivateAttr(False)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of how it was read from a file. They are no part of it."""
        return self._notes

    @property
    def drops_idle_filters(self) -> bool:
        """Whether filters that take no tensor are left out when models are opened, not refused."""
        return self._drops_idle_filters

    def with_notes(self, notes: Iterable[str], *, drops_idle_filters: bool = False) -> Recipe:
        """The same recipe with these notes, and left to drop what takes no tensor."""
        recipe = self.model_copy()
        recipe._notes, recipe._drops_idle_filters = tuple(notes), drops_idle_filters
        return recipe

    @model_validator(mode="before")
    @classmethod
    def _as_people_write_it(cls, content: object) -> object:
        """`experts` may be a list of paths, with strengths, `calibrate` and patterns one of their
        kind, `data` one source for all, and `rename` one map for all.
        """
        if not isinstance(content, dict):
            return content
        experts, method, params = map(content.get, ("experts", "method", "params"))
        experts, params = strengths_as_weights(experts, method, params)
        calibrate = content.get("calibrate")
        experts = named(experts)
        if isinstance(experts, list) and all(isinstance(path, str) for path in experts):
            experts = named_by_path(experts)
        if isinstance(calibrate, str | dict):
            calibrate = [calibrate]
        lists = {key: [content[key]] for key in LISTS if isinstance(content.get(key), str)}
        if isinstance(calibrate, list):
            calibrate = [{"method": part} if isinstance(part, str) else part for part in calibrate]
        rename, samples = content.get("rename"), content.get("samples")
        if isinstance(rename, dict) and any(isinstance(new, str) for new in rename.values()):
            rename = {EVERY: rename}
        if isinstance(samples, dict) and isinstance(samples.get("data"), str):
            samples = {**samples, "data": dict.fromkeys(experts or (), samples["data"])}
        output = content.get("output")
        if isinstance(output, dict) and "kind" not in output:
            alone = set(AdapterOutput.model_fields) - set(ModelOutput.model_fields)
            output = {"kind": "adapter" if alone & set(output) else "model", **output}
        plain = {"experts": experts, "params": params, "calibrate": calibrate, "rename": rename,
                 "samples": samples, "output": output}  # fmt: skip
        told = {key: value for key, value in plain.items() if value is not None}
        return {**content, **lists, **told}

    @model_validator(mode="wrap")
    @classmethod
    def _in_our_words(
        cls, content: object, handler: ModelWrapValidatorHandler[Recipe], info: ValidationInfo
    ) -> Recipe:
        try:
            return handler(content)
        except ValidationError as error:
            source = (info.context or {}).get("source", "the recipe")
            explained = lazy.load("magmerge.core.recipe_faults:explained")
            raise explained(error, source, cls.model_fields) from error

    @field_validator("gate", mode="before")
    @classmethod
    def _gate_in_yaml(cls, value: object) -> object:
        return switch(value)

    @field_validator("moe", mode="before")
    @classmethod
    def _moe_written_out(cls, value: object) -> object:
        return value if value is None else lazy.load("magmerge.core.moe:written_out")(value)

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe in canonical JSON."""
        text = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _content(self, **how: Any) -> dict[str, Any]:
        content = self.model_dump(mode="json", **how)
        return {
            k: v
            for k, v in content.items()
            if k not in LATER or (v and (k != "bound" or v != BOUND))
        }

    @property
    def models(self) -> dict[str, str]:
        """What the recipe reads, by role: base, merged, and experts by their own names."""
        named = {"base": self.base, "merged": self.merged, **self.experts}
        return {role: path for role, path in named.items() if path is not None}

    def to_yaml(self) -> str:
        """The recipe as YAML, which `from_yaml` reads back to an equal recipe."""
        return yaml_of(self._content(exclude_none=True))

    @classmethod
    def from_yaml(cls, text: str, source: str = "recipe") -> Recipe:
        """Read one recipe; ParameterError for an unknown key or a wrong value."""
        recipes = cls.all_from_yaml(text, source)
        if len(recipes) > 1:
            problem = f"it holds {len(recipes)} recipes"
            raise ParameterError(problem, source=source, remedy="run the file as a whole")
        return recipes[0]

    @classmethod
    def all_from_yaml(
        cls, text: str, source: str = "recipe", rules: str = "better"
    ) -> list[Recipe]:
        """Every document of a file; mergekit's are translated, by `rules` better or mergekit."""
        read = lazy.load("magmerge.core.recipe_documents:recipes_of")
        recipes: list[Recipe] = read(text, source, rules)
        return recipes
