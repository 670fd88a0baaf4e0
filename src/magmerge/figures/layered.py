"""The figures of layers: sensitivity, read or computed, and the factors of calibrations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ConfigDict

from magmerge.engine.result import Result
from magmerge.errors import ParameterError
from magmerge.figures.asking import Asked
from magmerge.figures.document import (
    Bounded,
    Count,
    Factors,
    LayerFactor,
    LayerHarm,
    read_json,
)
from magmerge.figures.ground import Ground
from magmerge.figures.measuring import Bench, draws
from magmerge.machine import Progress
from magmerge.report.account import LayerAccount, Part, checked, in_model_order, modules_of
from magmerge.sensing import Sensitivity, sensitivity
from magmerge.validation import read_sensitive


class Ranked(Part):
    """A file of `magmerge sensitivity`: layers in the order of the model."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sensitive: tuple[str, ...]
    score: str = "drift"
    mode: str = ""
    factor: Bounded = 1.1
    alpha: Count = 10
    samples: Count | None = None
    layers: tuple[LayerHarm, ...]


class Order(NamedTuple):
    """Layers from the most sensitive one on, as far as they do harm, and how many were ranked."""

    layers: tuple[str, ...]
    ranked: int


def read_ranking(path: Path) -> Ranked:
    """The harm of each layer; MagmergeError where the file is no ranking."""
    content = read_json(path)
    if not isinstance(content, dict) or "layers" not in content:
        raise ParameterError(
            "it does not tell each layer's sensitivity",
            source=path,
            remedy="give the file that `magmerge sensitivity` wrote",
        )
    return checked(Ranked, content, str(path))


def read_order(path: Path) -> Order:
    """The layers' order from a ranking, or from any list that `--sensitive` takes."""
    listed = read_sensitive(path)
    if path.suffix == ".json":
        content = read_json(path)
        if isinstance(content, dict) and "layers" in content:
            return order_of(checked(Ranked, content, str(path)).layers)
    return Order(listed, len(listed))


def order_of(layers: Sequence[LayerHarm]) -> Order:
    """The layers that do harm, worst first."""
    worst = sorted(layers, key=lambda one: -one.worse)
    return Order(tuple(one.layer for one in worst if one.worse > 0), len(layers))


def ranked(
    ground: Ground,
    *,
    samples: int,
    seed: int = 0,
    alpha: int = 10,
    mode: str = "exact",
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Sensitivity:
    """The layers' sensitivity by the drift of the last features, on samples of all tasks."""
    ground.check_samples()
    calls = [call for own in ground.inputs(samples, seed).values() for call in own]
    return sensitivity(
        base=ground.base,
        experts=ground.experts,
        data=calls,
        mode=mode,  # type: ignore[arg-type]
        alpha=alpha,
        seed=seed,
        model=ground.entry.model.class_,
        build=ground.entry.model.build,
        threads=threads,
        device=device,
        progress=progress,
    )


def harms(found: Sensitivity) -> tuple[LayerHarm, ...]:
    """The same as a document holds it, in the order of the model."""
    return tuple(LayerHarm(layer=name, worse=worse) for name, worse in found.layers.items())


def runs(asked: Asked) -> list[tuple[str, str, int | None]]:
    """The calibrations whose factors are shown: method, calibration and seed."""
    return [
        (method, name, seed)
        for method in asked.methods
        for name in asked.calibrations
        for seed in (range(asked.seeds) if draws(name) else (None,))
    ]


def factors(bench: Bench, asked: Asked, run: tuple[str, str, int | None]) -> Factors:
    """What one calibration finds for each layer."""
    method, name, seed = run
    result = bench.calibrated(
        bench.merged(method),
        name,
        samples=asked.samples,
        seed=seed or 0,
        sensitive=bench.how.sensitive,
    )
    return Factors(method=method, calibration=name, seed=seed, layers=layers_of(result))


def layers_of(result: Result) -> tuple[LayerFactor, ...]:
    """Each calibrated layer's factor; a bias that follows its weight is not told twice."""
    records = [
        LayerAccount(
            name=one.name, kind=one.kind, sensitive=one.sensitive, xi=one.xi, xi_free=one.xi_free,
            xi_min=one.xi_min, xi_max=one.xi_max, calibrated_by=one.calibrated_by,
        )
        for one in result.records
        if one.calibrated_by
    ]  # fmt: skip
    return tuple(
        LayerFactor(
            layer=module.name,
            sensitive=module.lead.sensitive,
            xi=module.lead.xi,
            xi_free=module.lead.xi_free,
            xi_min=module.lead.xi_min,
            xi_max=module.lead.xi_max,
        )
        for module in modules_of(in_model_order(records))
    )
