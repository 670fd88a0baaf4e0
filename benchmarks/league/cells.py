"""The league's cells: what is merged how, and in which order the cells are measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "average": ("average", {}),
    "tsv_m": ("tsv_m", {}),
    "ties": ("ties", {}),
    "task_arithmetic": ("task_arithmetic", {"lambda": 0.3}),
    "iso_c": ("iso_c", {}),
    "wudi tikhonov 0.1": ("wudi", {"filter": "tikhonov", "ridge": 0.1}),
    "knots": ("knots", {}),
    "wudi": ("wudi", {}),
    "dare": ("dare", {}),
    "iso_cts": ("iso_cts", {}),
    "consensus_ta": ("consensus_ta", {}),
    "breadcrumbs": ("breadcrumbs", {}),
    "della": ("della", {}),
    "model_stock": ("model_stock", {}),
    "sce": ("sce", {}),
}
"""Merges by name: method and parameters, all at their defaults but where the name tells."""
STAGES: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "wsc": ("wsc",),
    "svc": ("svc",),
    "regression": ("regression",),
    "fsc": ("fsc",),
    "dsc": ("dsc",),
    "fsc unchecked": ("fsc",),
    "dsc unchecked": ("dsc",),
    "regression_samples": ("regression", "regression_samples"),
    "regmean": ("regmean",),
    "regmean_plusplus": ("regmean_plusplus",),
    "featcal": ("featcal",),
}
"""Calibrations by name: the calibrators in turn. The last one alone sees rows."""
CONTROLS = ("tuned", "global", "shuffled")
"""The merge's task vector times the factor that is best on labelled validation rows; FSC's mean
factor at all its layers; FSC's factors, each at another layer."""
BUDGETS = (0, 1, 8, 64, 256)
SEEDS = 5


class Cell(NamedTuple):
    """One model of the league; `seed` draws its rows, and shuffles."""

    merge: str
    calibrate: str = "none"
    rows: int = 0
    seed: int = 0

    @property
    def key(self) -> str:
        """What the cell is called in the file of results."""
        return f"{self.merge} | {self.calibrate} | {self.rows} | {self.seed}"

    @classmethod
    def of(cls, key: str) -> Cell:
        """The cell that is called so."""
        merge, calibrate, rows, seed = key.split(" | ")
        return cls(merge, calibrate, int(rows), int(seed))


LIMITS = (Cell("base"), Cell("experts"))
STRONGEST = ("regression_samples", "featcal", "fsc", "dsc", "regmean", "regmean_plusplus")
MAGIC = ("fsc", "dsc")
CHECKED = ("fsc unchecked", "global", "shuffled", "dsc unchecked")
"""MAGIC without the check on rows kept aside, and FSC's controls."""
STARTS = ("tsv_m", "average", "ties")


def _tier(
    merges: Sequence[str], calibrations: Sequence[str], rows: int = 0, seed: int = 0
) -> Iterator[Cell]:
    for calibration in calibrations:
        # RegMean gives the same weights after any merge, but where no row has a feature.
        starts = merges[:1] if calibration == "regmean" else merges
        yield from (Cell(merge, calibration, rows, seed) for merge in starts)


def _core() -> Iterator[Cell]:
    """What is worth knowing first: the gap, the best recipes at 0, 8 and 64 rows, and MAGIC."""
    yield from (*LIMITS, *_tier(("average", "tsv_m", "ties"), ["none"]), Cell("average", "tuned"))
    yield Cell("tsv_m", "regression")
    solved = ("regression_samples", "featcal", "regmean")
    yield from (*_tier(["tsv_m"], solved, 8), *_tier(["average"], MAGIC, 8))
    yield from _tier(["tsv_m"], solved, 64)
    yield from (Cell("ties", "dsc", 8), Cell("task_arithmetic"), Cell("task_arithmetic", "fsc", 8))
    yield from (Cell("iso_c"), Cell("iso_c", "dsc", 8), Cell("tsv_m", "dsc", 8))
    yield from (Cell("task_arithmetic", "svc"), Cell("knots"), Cell("wudi tikhonov 0.1"))
    yield from _tier(["average"], CHECKED, 8)


def cells() -> tuple[Cell, ...]:
    """All cells, those that tell most first."""
    names = tuple(METHODS)
    found = [*_core(), *_tier(STARTS, ["regression", "wsc"])]
    found += _tier(["tsv_m"], ["regression_samples", "featcal", "regmean"], 1)
    found += _tier(["average"], MAGIC, 1)
    for rows in (8, 64, 1, 256):
        found += _tier(STARTS, STRONGEST, rows)
    found += [*_tier(("tsv_m", "ties", "iso_c"), ["tuned"]), *_tier(names, ["none"])]
    found += _tier(("task_arithmetic", "iso_c"), [*MAGIC, *CHECKED], 8)
    for seed in range(1, SEEDS):
        for rows in (8, 1, 64, 256):
            found += _tier(STARTS, STRONGEST, rows, seed)
    found += _tier(names, ["wsc", "svc", "regression", "tuned"])
    for seed in range(SEEDS):
        for rows in BUDGETS[1:]:
            found += _tier(names, [*STRONGEST, *CHECKED], rows, seed)
    return tuple(dict.fromkeys(found))
