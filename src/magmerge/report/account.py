"""What magmerge.json tells, checked: layers in model order, numbers that are finite or None."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from magmerge.core.errors import CheckpointError

FILE = "magmerge.json"
TOLERANCE = 1e-4
"""Relative difference of two mean factors from which on the gate is said to have acted."""
STEM = re.compile(r"(?s)(.+?)[._](?:weight|bias)")
DIGITS = re.compile(r"([0-9]+)")


def _finite(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("should be a number")
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


Number = Annotated[float | None, BeforeValidator(_finite)]
"""A finite number; None stands for null, for NaN and for what is beyond the largest float."""


class FilePart(BaseModel):
    """A part of a file that magmerge wrote; a newer magmerge may have written more into it."""

    model_config = ConfigDict(frozen=True, extra="ignore")


T = TypeVar("T", bound=FilePart)


class FactorAccount(FilePart):
    """What one calibrator found for one layer; see `types.Factor`."""

    calibrator: str
    free: Number = None
    gated: Number = None
    experts: tuple[Number, ...] = ()

    @property
    def held(self) -> bool:
        """Whether the gate changed it."""
        return differs(self.free, self.gated)


class LayerAccount(FilePart):
    """One merged tensor; see `types.LayerRecord`."""

    name: str
    action: str = "merge"
    kind: str = ""
    sensitive: bool = False
    xi: Number = None
    xi_min: Number = None
    xi_max: Number = None
    xi_free: Number = None
    norm_before: Number = None
    norm_after: Number = None
    norm_experts: Number = None
    cosine: Number = None
    calibrated_by: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    factors: tuple[FactorAccount, ...] = ()

    @property
    def held(self) -> bool:
        """Whether the gate changed its factor."""
        held = any(factor.held for factor in self.factors)
        return held if self.factors else differs(self.xi_free, self.xi)

    @property
    def stopped(self) -> bool:
        """Whether the gate left every row of it as the merge made it."""
        return self.held and self.xi_min == self.xi_max == 1.0

    def factor_of(self, calibrator: str) -> FactorAccount | None:
        """What a calibrator found for it; None where it did nothing."""
        return next((factor for factor in self.factors if factor.calibrator == calibrator), None)

    def deviation(self, norm: float | None) -> float | None:
        """`norm` over the mean norm of the experts' task vectors; None where that says nothing."""
        if norm is None or self.norm_experts is None or not norm > 0 < self.norm_experts:
            return None
        return _finite(norm / self.norm_experts) or None


class InputAccount(FilePart):
    """One model that was read, with the digests of its files and what its folder tells of it; by
    an earlier `document`, where one is told.
    """

    role: str
    document: str | None = None
    source: str
    files: dict[str, str | None] = {}
    facts: dict[str, Any] = {}


class UncoveredAccount(FilePart):
    """A layer that a calibrator could not see, and why."""

    layer: str
    reason: str = ""


class ModuleAccount(FilePart):
    """One module of a merged adapter; see `engine.low_rank.ModuleRecord`."""

    name: str
    shape: tuple[int, ...] = ()
    rank: int = 0
    error: Number = None
    norms: tuple[Number, ...] = ()
    merged: Number = None
    written: Number = None

    @property
    def mean(self) -> float | None:
        """The mean norm of the inputs' task vectors; None where none is told, or all are zero."""
        known = [norm for norm in self.norms if norm is not None and norm > 0]
        return _finite(sum(known) / len(known)) if known else None

    def share(self, norm: float | None) -> float | None:
        """`norm` over that mean; None where that says nothing."""
        if norm is None or not norm > 0 or self.mean is None:
            return None
        return _finite(norm / self.mean) or None


class VerdictAccount(FilePart):
    """What magmerge.json tells under `verdict`; see `live.verdict` and `engine.norm_verdict`."""

    judge: str = ""
    best: str = ""
    text: str = ""
    next: str = ""
    rows: dict[str, int] = {}
    calibrated_to: dict[str, str] = {}
    nearer: int = 0
    farther: int = 0
    models: dict[str, dict[str, Number]] = {}
    experts: dict[str, dict[str, dict[str, Number]]] = {}


class MergeAccount(FilePart):
    """A whole magmerge.json."""

    magmerge: str
    recipe: dict[str, Any]
    recipe_digest: str = ""
    inputs: tuple[InputAccount, ...] = ()
    versions: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    layers: tuple[LayerAccount, ...]
    uncovered: tuple[UncoveredAccount, ...] = ()
    modules: tuple[ModuleAccount, ...] = ()
    samples: dict[str, int] = {}
    check: dict[str, Any] = {}
    verdict: VerdictAccount | None = None

    @property
    def read(self) -> tuple[InputAccount, ...]:
        """The inputs of this recipe alone, results of earlier documents among them."""
        return tuple(entry for entry in self.inputs if entry.document is None)

    @property
    def sources(self) -> tuple[InputAccount, ...]:
        """All that it was made of, less results of earlier documents."""
        made = {entry.document for entry in self.inputs}
        return tuple(entry for entry in self.inputs if entry.source not in made)

    @property
    def experts(self) -> tuple[str, ...]:
        """Their names, as far as the recipe tells them."""
        named = self.recipe.get("experts")
        return tuple(map(str, named)) if isinstance(named, Mapping) else ()

    @property
    def calibrators(self) -> tuple[str, ...]:
        """The calibrators in their order."""
        return tuple(dict.fromkeys(name for layer in self.layers for name in layer.calibrated_by))

    @property
    def calibrated(self) -> tuple[LayerAccount, ...]:
        """The layers that have a factor."""
        return tuple(layer for layer in self.layers if layer.calibrated_by and layer.xi is not None)

    @property
    def gated(self) -> bool:
        """Whether the gate was on."""
        return bool(self.recipe.get("gate", "on") == "on")


@dataclass(frozen=True, slots=True)
class LayerModule:
    """A weight, and its bias if no calibrator gave that another factor than the weight."""

    name: str
    tensors: tuple[LayerAccount, ...]

    @property
    def lead(self) -> LayerAccount:
        """The tensor that stands for all: the weight."""
        return _lead(self.tensors)


def read_account(document: Mapping[str, Any]) -> MergeAccount:
    """The document, checked; CheckpointError where it is not what magmerge writes."""
    account = parse(MergeAccount, document, FILE)
    return account.model_copy(update={"layers": in_model_order(account.layers)})


def parse(kind: type[T], content: object, source: str) -> T:
    """`content` as a `kind`; CheckpointError that names the first key that does not fit."""
    try:
        return kind.model_validate(dict(content) if isinstance(content, Mapping) else content)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(map(str, fault["loc"]))
        raise foreign(f"{key}: {fault['msg'].lower()}" if key else "no object", source) from error
    except (RecursionError, TypeError, ValueError) as error:
        raise foreign("it cannot be read", source) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file that magmerge wrote; CheckpointError where it is none."""
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror}", source=path, remedy="check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise foreign("it is not JSON", path) from error


def foreign(problem: str, source: str | Path) -> CheckpointError:
    """That a file is not magmerge's."""
    return CheckpointError(
        f"not as magmerge writes it: {problem}",
        source=source,
        remedy="give a checkpoint, or results, that magmerge made and nobody changed",
    )


def in_model_order(layers: Sequence[LayerAccount]) -> tuple[LayerAccount, ...]:
    """As they are, but names sorted letter by letter (as safetensors does) by their numbers."""
    names = [layer.name for layer in layers]
    return tuple(sorted(layers, key=_natural) if names == sorted(names) else layers)


def _natural(layer: LayerAccount) -> list[tuple[int, str]]:
    """Words, and numbers by their size: layer.2 before layer.10."""
    parts = DIGITS.split(layer.name)
    return [
        (len(part.lstrip("0")), part.lstrip("0")) if place % 2 else (0, part)
        for place, part in enumerate(parts)
    ]


def modules_of(layers: Sequence[LayerAccount]) -> tuple[LayerModule, ...]:
    """Calibrated layers, with weight and bias as one where they got the same factor.

    A calibrator that is for matrices only acts on the weight alone, which is no other factor.
    """
    groups: dict[tuple[str, bool], list[LayerAccount]] = {}
    for layer in layers:
        stem = STEM.fullmatch(layer.name)
        groups.setdefault((stem[1] if stem else layer.name, layer.sensitive), []).append(layer)
    return tuple(
        module
        for (stem, _), tensors in groups.items()
        for module in (
            [LayerModule(stem, tuple(tensors))]
            if all(_follows(tensor, _lead(tensors)) for tensor in tensors)
            else [LayerModule(tensor.name, (tensor,)) for tensor in tensors]
        )
    )


def _lead(tensors: Sequence[LayerAccount]) -> LayerAccount:
    return next((tensor for tensor in tensors if tensor.kind != "vector"), tensors[0])


def _follows(layer: LayerAccount, lead: LayerAccount) -> bool:
    """Whether every factor of the layer is one of the lead's."""
    if layer.factors:
        return set(layer.factors) <= set(lead.factors)
    ends = ("xi", "xi_min", "xi_max", "xi_free", "factors")
    return all(getattr(layer, end) == getattr(lead, end) for end in ends)


def differs(first: float | None, second: float | None) -> bool:
    """Whether two factors are known, and not the same but for rounding."""
    if first is None or second is None:
        return False
    return abs(first - second) > TOLERANCE * max(abs(first), abs(second))
