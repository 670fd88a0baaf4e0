"""The file of results of one suite: JSON lines, one a cell, with what it got right row by row."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.league.cells import Cell
from benchmarks.suites.law import Right

RESULTS = Path(__file__).parents[1] / "results"


class Book:
    """What is known of one suite. Its first line tells the tasks and their numbers of test rows."""

    def __init__(self, suite: str, folder: Path = RESULTS) -> None:
        self.suite, self.path = suite, folder / f"league-{suite}.jsonl"
        self.tasks: dict[str, int] = {}
        self.lines: dict[Cell, dict[str, Any]] = {}
        texts = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        for text in texts:
            line = json.loads(text)
            if "tasks" in line:
                self.tasks = line["tasks"]
            else:
                self.lines[Cell.of(line["cell"])] = line

    def keep(self, cell: Cell, right: Right, about: Mapping[str, Any]) -> None:
        """Write a cell's line. ValueError where the file is of other tasks or test rows."""
        tasks = {task: len(rows) for task, rows in right.items()}
        if not self.tasks:
            self.tasks = tasks
            self._append({"suite": self.suite, "tasks": tasks})
        if tasks != self.tasks:
            raise ValueError(f"{self.path} was measured on {self.tasks}, not on {tasks}")
        scores = [round(float(rows.double().mean()), 5) for rows in right.values()]
        bits = np.concatenate([rows.numpy() for rows in right.values()])
        packed = base64.b64encode(np.packbits(bits).tobytes()).decode()
        line = {"cell": cell.key, **about, "scores": scores, "right": packed}
        self.lines[cell] = line
        self._append(line)

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def right(self, cell: Cell) -> Right:
        """What the cell got right."""
        packed = np.frombuffer(base64.b64decode(self.lines[cell]["right"]), np.uint8)
        bits = torch.from_numpy(np.unpackbits(packed, count=sum(self.tasks.values())))
        return dict(zip(self.tasks, bits.split([*self.tasks.values()]), strict=True))

    def draws(self, cell: Cell) -> list[Cell]:
        """The cells that are known of the same merge, calibration and number of rows."""
        return sorted(one for one in self.lines if one[:3] == cell[:3])
