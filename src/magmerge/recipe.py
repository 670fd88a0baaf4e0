"""What the user asked for, as data: checked, with a digest, to and from YAML."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from magmerge import registry
from magmerge.errors import MagmergeError, ParameterError, UnknownNameError, suggestion
from magmerge.filters import Item, items_of, stored, varies
from magmerge.types import Calibrator, Method, Parameter

FINITE = ConfigDict(allow_inf_nan=False)


class Calibration(BaseModel):
    """One calibrator and its parameters, defaults filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    params: dict[str, Any] = {}


class Sampling(BaseModel):
    """What a calibration looked at besides weights: where each expert's samples are from, how many
    were drawn by which seed, in what order layers were measured, and in what format.

    `prepared`: how rows were made inputs, where that was said: column, split, batch, size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: dict[str, str]
    samples: int
    seed: int = 0
    order: Literal["once", "forward"] = "once"
    precision: Literal["float32", "bfloat16"] = "float32"
    batchnorm: bool = False
    offload: bool = False
    model: str | None = None
    prepared: dict[str, Any] = Field(default_factory=dict)


class AdapterOutput(BaseModel):
    """How a merge of adapters is written: of what rank, and under what naming.

    `rank` is a number; "auto", enough to keep the share `energy` of the squared norm; "exact", all
    that the inputs span; or None, the largest of the inputs' in each module. `naming` None is the
    first expert's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int | Literal["auto", "exact"] | None = None
    energy: float | None = None
    naming: str | None = None


class Recipe(BaseModel):
    """A merge (`method`) or the calibration of a merge that exists (`merged`).

    Models are named by path, or described where they are in memory. `ignore` holds patterns of
    tensors that are not compared and that the result takes from its layout model as they are;
    `skip` patterns of tensors that are merged but not calibrated; `sensitive` the layers that the
    gate lets only shrink; `sampling` is None where only weights are looked at. `dtype` is the
    output's, the base's own if None. `adapter` is set where adapters are merged without a base.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str | None = None
    experts: dict[str, str]
    merged: str | None = None
    method: str | None = None
    params: dict[str, Any] = {}
    calibrate: tuple[Calibration, ...] = ()
    gate: Literal["on", "off"] = "on"
    sensitive: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    dtype: str | None = None
    seed: int = 0
    sampling: Sampling | None = None
    adapter: AdapterOutput | None = None

    @field_validator("gate", mode="before")
    @classmethod
    def _gate_in_yaml(cls, value: object) -> object:
        # YAML reads a bare on or off as a boolean.
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe in canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self) -> str:
        """The recipe as YAML, which `from_yaml` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str, source: str = "recipe") -> Recipe:
        """Read a recipe; ParameterError for an unknown key or a wrong value."""
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ParameterError(
                f"not YAML: {error}", source=source, remedy="mend the line it names"
            ) from error
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise explained(error, source, cls.model_fields) from error


def check_parameters(item: Method | Calibrator, params: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of `item` by public name: those given, checked, and the other defaults.

    A method's parameter may vary by layer: a list of {"filter": F, "value": V}, as in `filters`.
    """
    if not isinstance(params, Mapping):
        raise ParameterError(
            f"params is a {type(params).__name__}", remedy='give a mapping, like {"density": 0.2}'
        )
    known = {parameter.name: parameter for parameter in item.parameters}
    for name in params:
        if name not in known:
            raise UnknownNameError(
                f"{item.name} has no parameter {name!r}", remedy=suggestion(name, known)
            )
    return {
        name: _given(item, parameter, params[name]) if name in params else parameter.default
        for name, parameter in known.items()
    }


def _given(item: Method | Calibrator, parameter: Parameter, value: Any) -> Any:
    """A parameter's checked value; of one that varies by layer, its items, the last for the rest.

    Without an item for all tensors the default is added as one.
    """
    if not varies(value):
        return _checked(item, parameter, value, parameter.name)
    if isinstance(item, Calibrator):
        raise ParameterError(
            f"{parameter.name} of {item.name} cannot vary by layer: a calibrator's parameters hold "
            "for all layers",
            remedy="give it one value; exempt layers with --skip (skip=)",
        )
    items = [
        Item(
            one.filter,
            _checked(
                item,
                parameter,
                one.value,
                parameter.name if one.filter is None else f"{parameter.name}@{one.filter}",
            ),
        )
        for one in items_of(parameter.name, value)
    ]
    if items[-1].filter is not None:
        items.append(Item(None, parameter.default))
    return items[0].value if len(items) == 1 else stored(items)


def _checked(item: Method | Calibrator, parameter: Parameter, value: Any, shown: str) -> Any:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(parameter.annotation, config=FINITE)
        valid = adapter.validate_python(value, strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ParameterError(
            f"{shown} = {value!r} for {item.name}: {fault['msg'].lower()}",
            remedy=f"{parameter.name}: {parameter.meaning or 'see its method'}; "
            f"the default is {parameter.default!r}{_example(parameter.default)}",
        ) from error
    return list(valid) if isinstance(valid, tuple) else valid


def _example(default: object) -> str:
    return "" if default is not None else ". On the command line: --set 'weights=[0.5, 0.5]'"


def keywords(item: Method | Calibrator, values: Mapping[str, Any]) -> dict[str, Any]:
    """Checked parameters by the keywords of the item's function."""
    return {p.keyword: values[p.name] for p in item.parameters if p.name in values}


Calibrations = str | Mapping[str, Any] | Calibration | None


def check_calibrations(
    wanted: Calibrations | list[Calibrations] | tuple[Calibrations, ...],
) -> tuple[Calibration, ...]:
    """From "wsc", {"method": "wsc", "params": {...}} or a sequence of such, applied in order."""
    if wanted is None:
        return ()
    if isinstance(wanted, list | tuple):
        return tuple(found for one in wanted for found in check_calibrations(one))
    if isinstance(wanted, str):
        wanted = {"method": wanted}
    if isinstance(wanted, Mapping) and wanted.get("method") in COMPOSED:
        return _composed(wanted)
    if isinstance(wanted, Mapping):
        try:
            wanted = Calibration.model_validate(wanted)
        except ValidationError as error:
            raise explained(error, "calibrate", Calibration.model_fields) from error
    if not isinstance(wanted, Calibration):
        raise ParameterError(
            f"calibrate is a {type(wanted).__name__}",
            remedy='give a name like "wsc", or {"method": "wsc", "params": {...}}',
        )
    item = registry.calibrators.get(wanted.method, besides=COMPOSED)
    return (Calibration(method=item.name, params=check_parameters(item, wanted.params)),)


COMPOSED = {"dsc": ("wsc", "fsc")}
"""Calibrations that are several in turn: MAGIC's DSC is WSC, then FSC on its result."""


def _composed(wanted: Mapping[str, Any]) -> tuple[Calibration, ...]:
    """Each with those of the given parameters that are its own."""
    params = dict(wanted.get("params") or {})
    found: list[Calibration] = []
    for name in COMPOSED[wanted["method"]]:
        own = {p.name for p in registry.calibrators.get(name).parameters}
        spelt = {key: key.removeprefix(f"{name}.") for key in params}
        mine = {short: params.pop(key) for key, short in spelt.items() if short in own}
        found += check_calibrations({"method": name, "params": mine})
    if params:
        known = [
            p.name
            for n in COMPOSED[wanted["method"]]
            for p in registry.calibrators.get(n).parameters
        ]
        raise UnknownNameError(
            f"{wanted['method']} has no parameter {next(iter(params))!r}",
            remedy=suggestion(next(iter(params)), known),
        )
    return tuple(found)


def read_sensitive(path: Path) -> tuple[str, ...]:
    """Layer names from JSON (a list, or an object with "sensitive") or text, one a line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(
            "cannot be read", source=path, remedy="check the path given to --sensitive"
        ) from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        if text.lstrip().startswith(("{", "[")):
            raise ParameterError("not JSON", source=path, remedy="mend the file") from None
        content = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(content, dict):
        content = content.get("sensitive")
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ParameterError(
            "holds no list of layer names",
            source=path,
            remedy='write one name a line, or {"sensitive": ["layer", ...]}',
        )
    return tuple(content)


def explained(error: ValidationError, source: str, known: Mapping[str, Any]) -> MagmergeError:
    fault = error.errors()[0]
    key = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return UnknownNameError(
            f"unknown key {key!r}", source=source, remedy=suggestion(str(fault["loc"][-1]), known)
        )
    return ParameterError(
        f"{key}: {fault['msg'].lower()}" if key else fault["msg"].lower(),
        source=source,
        remedy=f"known keys: {', '.join(known)}",
    )
