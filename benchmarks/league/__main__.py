"""The league: every merge, calibration and number of rows on the suites of experts.

Each cell is a merge, perhaps calibrated without rows or from 1, 8, 64 or 256 unlabelled rows a task
of the calibration split (five draws), measured on all test rows; with the controls of an honest
comparison. Cells come in the order of what they tell. What benchmarks/results/league-SUITE.jsonl
holds is not measured again, so a run that was stopped goes on.

    .venv/bin/python -m benchmarks.suites text lora-text vision-efficientnet vision-resnet
    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.league text lora-text --minutes 10
    .venv/bin/python -m benchmarks.league.page
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

import magmerge
from benchmarks.bench import Bench, State
from benchmarks.demo_controls import scaled, scaled_by_layer, shuffle
from benchmarks.league.cells import LIMITS, METHODS, STAGES, Cell, cells
from benchmarks.league.results import Book
from benchmarks.suites.law import mean

FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


class Entrant:
    """One suite's models, each made once a run: merges, and FSC's factors for the controls."""

    def __init__(self, name: str) -> None:
        self.bench, self.book = Bench(name), Book(name)
        self._states: dict[tuple[str, ...], State] = {}
        self._factors: dict[Cell, Mapping[str, float]] = {}

    def start(self, merge: str, stages: tuple[str, ...] = ()) -> State:
        """A merge, and what follows it without rows."""
        key = (merge, *stages)
        if key not in self._states:
            if stages:
                before = self.start(merge, stages[:-1])
                found = self.bench.calibrated(before, stages[-1]).state_dict()
            else:
                found = self.bench.merged(*METHODS[merge])
            self._states[key] = found
        return self._states[key]

    def sampled(self, cell: Cell, state: State) -> magmerge.Result:
        """The cell's last calibrator from its rows."""
        last = STAGES[cell.calibrate][-1]
        options: dict[str, Any] = {}
        if cell.calibrate.endswith("unchecked"):
            options = {"params": {"check": "off"}}
        return self.bench.sampled(state, last, cell.rows, cell.seed, **options)

    def factors(self, cell: Cell) -> Mapping[str, float]:
        """FSC's factor at each layer, from the cell's rows."""
        key = cell._replace(calibrate="fsc")
        if key not in self._factors:
            self.remember(key, self.sampled(key, self.start(cell.merge)))
        return self._factors[key]

    def remember(self, cell: Cell, result: magmerge.Result) -> None:
        """Keep FSC's factors for the controls."""
        self._factors[cell] = {r.name: r.xi for r in result.records if r.calibrated_by}

    def model(self, cell: Cell) -> tuple[State, dict[str, Any]]:
        """The cell's weights, and what is worth telling of them."""
        plain = self.start(cell.merge)
        if cell.calibrate == "tuned":
            # Orthogonal task vectors of one length are as long as their mean times this.
            guess = len(self.bench.experts) ** 0.5 if cell.merge == "average" else 1.0
            factor = self.tuned(plain, guess)
            return scaled(self.bench.origin, plain, factor), {"factor": factor}
        if cell.calibrate in ("global", "shuffled"):
            factors = self.factors(cell)
            middle = statistics.mean(factors.values())
            other = shuffle(dict(factors), cell.seed)
            chosen = dict.fromkeys(factors, middle) if cell.calibrate == "global" else other
            return scaled_by_layer(self.bench.origin, plain, chosen), {"mean xi": round(middle, 4)}
        stages = STAGES[cell.calibrate]
        if not cell.rows:
            return self.start(cell.merge, stages), {}
        result = self.sampled(cell, self.start(cell.merge, stages[:-1]))
        if cell.calibrate == "fsc":
            self.remember(cell, result)
        check = result.account.extra.get("check")
        kept = {"kept": [group["share"] for group in check["groups"]]} if check else {}
        return result.state_dict(), kept

    def tuned(self, plain: State, guess: float) -> float:
        """The factor that is best on validation rows: uphill through FACTORS from a guess."""
        known: dict[int, float] = {}

        def score(place: int) -> float:
            if not 0 <= place < len(FACTORS):
                return -1.0
            if place not in known:
                state = scaled(self.bench.origin, plain, FACTORS[place])
                known[place] = mean(self.bench.validation.right(state))
            return known[place]

        place = min(range(len(FACTORS)), key=lambda i: abs(FACTORS[i] - guess))
        step = 1 if score(place + 1) >= score(place) else -1
        while score(place + step) >= score(place):
            place += step
        return FACTORS[place]

    def measure(self, cell: Cell) -> None:
        """Measure the cell, and write it down."""
        begun, about = time.process_time(), dict[str, Any]()
        if cell not in LIMITS:
            state, about = self.model(cell)
            about["cpu_s"] = round(time.process_time() - begun, 1)
            right = self.bench.right(state)
        elif cell.merge == "base":
            right = self.bench.right(self.bench.base)
        else:
            right = self.bench.own()
        self.book.keep(cell, right, about)
        seconds = time.process_time() - begun
        line = f"{self.book.suite:20} {cell.key:44} {100 * mean(right):6.2f} {seconds:6.1f} s"
        print(line, about, flush=True)


def main() -> None:
    """Measure cells of the suites that are named, in their order, until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="+")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no cell is begun")
    parser.add_argument("--cells", type=int, default=None, help="only the first of the order")
    parser.add_argument("--match", default="", help="only those whose key has this pattern")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * chosen.minutes
    entrants = [Entrant(name) for name in chosen.suites]
    order = [cell for cell in cells() if re.search(chosen.match, cell.key)]
    for cell in order[: chosen.cells]:
        for entrant in entrants:
            there = cell in entrant.book.lines or cell.rows > entrant.bench.rows
            if there or time.monotonic() > end:
                continue
            try:
                entrant.measure(cell)
            except magmerge.MagmergeError as error:
                print(entrant.book.suite, cell.key, error, flush=True)


if __name__ == "__main__":
    main()
