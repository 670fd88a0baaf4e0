"""Parameters and calibrations as users give them, checked against what is registered."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from magmerge.core import registry
from magmerge.core.errors import ParameterError, UnknownNameError, suggestion
from magmerge.core.filters import varies
from magmerge.core.lazy import load
from magmerge.core.recipe import EVERY, Calibration, Recipe
from magmerge.core.traits import Calibrator, Method
from magmerge.core.types import Naming

COMPOSED = {"dsc": ("wsc", "fsc")}
"""Calibrations that are several in turn: MAGIC's DSC is WSC, then FSC on its result."""
AUTO = "auto"
"""In place of a method's or a calibrator's name: one is chosen, see core.choice."""
NO_PARAMS = "magmerge.core.choice:check_no_params"


def is_auto(recipe: Recipe) -> bool:
    """Whether the method or a calibration is still to be chosen."""
    return recipe.method == AUTO or any(c.method == AUTO for c in recipe.calibrate)


def check_method(
    method: str | None, params: Mapping[str, Any]
) -> tuple[str | None, dict[str, Any]]:
    """A method's own name, and all its parameters."""
    if method is None:
        return None, {}
    if method == AUTO:
        load(NO_PARAMS)(params)
        return AUTO, {}
    item = registry.methods.get(method, besides=(AUTO,))
    checked = check_parameters(item, params)
    # Values that vary by layer are checked by the plan, which knows where they meet.
    if item.check is not None and not any(map(varies, checked.values())):
        item.check(**keywords(item, checked))
    return item.name, checked


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
    values = {name: parameter.default for name, parameter in known.items()}
    if params:
        check_value = load("magmerge.core.parameter_values:check_value")
        values |= {name: check_value(item, known[name], value) for name, value in params.items()}
    return values


def keywords(item: Method | Calibrator, values: Mapping[str, Any]) -> dict[str, Any]:
    """Checked parameters by the keywords of the item's function."""
    return {p.keyword: values[p.name] for p in item.parameters if p.name in values}


Calibrations = str | Mapping[str, Any] | Calibration | None


def check_calibrations(
    calibrate: Calibrations | list[Calibrations] | tuple[Calibrations, ...],
) -> tuple[Calibration, ...]:
    """From "wsc", {"method": "wsc", "params": {...}} or a sequence of such, applied in order."""
    if calibrate is None:
        return ()
    if isinstance(calibrate, list | tuple):
        return tuple(item for part in calibrate for item in check_calibrations(part))
    if isinstance(calibrate, str):
        calibrate = {"method": calibrate}
    if not isinstance(calibrate, Calibration | Mapping):
        raise ParameterError(
            f"calibrate is a {type(calibrate).__name__}",
            remedy='give a name like "wsc", or {"method": "wsc", "params": {...}}',
        )
    if isinstance(calibrate, Mapping):
        try:
            calibrate = Calibration.model_validate(calibrate)
        except ValidationError as error:
            raise load("magmerge.core.recipe_faults:explained")(
                error, "calibrate", Calibration.model_fields
            ) from error
    if calibrate.method in COMPOSED:
        return _composed(calibrate)
    if calibrate.method == AUTO:
        load(NO_PARAMS)(calibrate.params)
        return (calibrate,)
    calibrator = registry.calibrators.get(calibrate.method, besides=(*COMPOSED, AUTO))
    params = check_parameters(calibrator, calibrate.params)
    return (Calibration(method=calibrator.name, params=params),)


def _composed(calibration: Calibration) -> tuple[Calibration, ...]:
    """Each part with those of the parameters that are its own."""
    params, parts = dict(calibration.params), COMPOSED[calibration.method]
    calibrations: list[Calibration] = []
    for name in parts:
        own = {p.name for p in registry.calibrators.get(name).parameters}
        short = {key: key.removeprefix(f"{name}.") for key in params}
        mine = {short[key]: params.pop(key) for key in short if short[key] in own}
        calibrations += check_calibrations({"method": name, "params": mine})
    if params:
        known = [p.name for name in parts for p in registry.calibrators.get(name).parameters]
        odd = next(iter(params))
        raise UnknownNameError(
            f"{calibration.method} has no parameter {odd!r}", remedy=suggestion(odd, known)
        )
    return tuple(calibrations)


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


def check_naming(naming: object) -> Naming:
    """The naming of this name; UnknownNameError with a suggestion if there is none."""
    known = get_args(Naming)
    if naming not in known:
        raise UnknownNameError(
            f"there is no naming {naming!r}", remedy=suggestion(str(naming), known)
        )
    return naming  # type: ignore[return-value]


def check_rank(
    rank: object, energy: object, *, merged: bool = True
) -> tuple[int | Literal["auto", "exact"] | None, float]:
    """What is asked of each module of an adapter; ParameterError for values that mean nothing.

    Only where adapters are merged their inputs tell a rank: the largest of them, or "exact".
    """
    number = int(rank) if isinstance(rank, str) and rank.isdecimal() else rank
    positive = isinstance(number, int) and not isinstance(number, bool) and number >= 1
    if not (positive or number in ((None, "auto", "exact") if merged else ("auto",))):
        words = "auto, or exact" if merged else "or auto"
        raise ParameterError(f"the rank is {rank!r}", remedy=f"give a number of 1 or more, {words}")
    if isinstance(energy, bool) or not isinstance(energy, int | float) or not 0 < energy <= 1:
        raise ParameterError(
            f"the energy is {energy!r}",
            remedy="give the share of the squared norm to keep, above 0 and up to 1, like 0.99",
        )
    return number, float(energy)  # type: ignore[return-value]


def check_rename(rename: Mapping[str, Mapping[str, str]], experts: Collection[str]) -> None:
    """Errors for a map of names for an expert that there is not, and for names that map nothing."""
    for expert, patterns in rename.items():
        if expert != EVERY and expert not in experts:
            raise UnknownNameError(
                f"rename: there is no expert {expert!r}",
                remedy=suggestion(expert, [*experts, EVERY]),
            )
        for old, new in patterns.items():
            if not old or not new or old.count("*") != new.count("*"):
                raise ParameterError(
                    f"rename: {old!r} cannot become {new!r}",
                    remedy="write both, with as many * in the new name as in the old one: each "
                    "stands for what it was in the old name",
                )
