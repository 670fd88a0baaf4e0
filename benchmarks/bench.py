"""A suite of experts at work: merges, calibrations from its rows, and what a model gets right."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

import magmerge
from benchmarks.demo_controls import read_all
from benchmarks.suites.law import THREADS, Judge

SUITES = Path(__file__).parent / ".cache" / "suites"
RESULTS = Path(__file__).parent / "results"
MEMORY = "8GB"
State = Mapping[str, Any]


class Bench(Judge):
    """A suite that `benchmarks.suites` made. Everything runs on one thread, in float32."""

    def __init__(self, name: str) -> None:
        super().__init__(SUITES / name)
        self.data: dict[str, str] = {}
        for task in self.experts:
            files = self.suite.entry.tasks[task].data
            assert isinstance(files, Mapping)
            self.data[task] = str(SUITES / name / files["calibration"])

    @cached_property
    def origin(self) -> dict[str, Tensor]:
        """The base's tensors."""
        return read_all(self.base)

    @cached_property
    def validation(self) -> Judge:
        """The judge of the validation rows."""
        return Judge(self.suite.path.parent, "validation")

    @cached_property
    def rows(self) -> int:
        """How many calibration rows every task has."""
        made = json.loads((self.suite.path.parent / "made.json").read_text(encoding="utf-8"))
        return min(made[task]["sizes"]["calibration"] for task in self.data)

    def calibrated(self, merged: State, method: str, **options: Any) -> magmerge.Result:
        """A merge that exists, calibrated."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", magmerge.MagmergeWarning)
            return magmerge.calibrate(
                merged, base=self.base, experts=self.experts, method=method, threads=THREADS,
                memory=MEMORY, **options,
            )  # fmt: skip

    def sampled(
        self, merged: State, method: str, rows: int, seed: int, **options: Any
    ) -> magmerge.Result:
        """The same, from rows of the calibration split."""
        entry = self.suite.entry
        how = {"samples": rows, "seed": seed, "max_length": entry.max_length}
        options |= {"model": entry.model.class_, "build": entry.model.build}
        return self.calibrated(merged, method, data=self.data, samples=how, **options)
