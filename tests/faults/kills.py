"""Every verb that writes, killed at one place, and gone on with.

Each run dies at one call that changes the disk, a write in its middle. Then there is no result, or
a whole one; the same call with `resume` makes the very bytes that a run without a kill makes; and
nothing of magmerge's is left beside it. Nothing of a run before it is lost where one is replaced.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.faults.program import KILLED, LIBRARIES, LIVE, Program
from tests.faults.verbs import Case, cases, live_cases, other_cases

TIMES = ("seconds",)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder by their paths from it; of a search's trials not their seconds."""
    return {
        file.relative_to(folder).as_posix(): _timeless(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix not in {".svg", ".png"}
    }


def _timeless(file: Path) -> bytes:
    if file.name != "trials.jsonl":
        return file.read_bytes()
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
    except json.JSONDecodeError:
        # A kill has torn the last line; the next run puts it right.
        return file.read_bytes()
    return json.dumps(
        [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    ).encode()


class Kills:
    """Runs of the cases, each in a folder of its own."""

    def __init__(self, folder: Path, names: list[str] | None = None) -> None:
        self.folder, self.number = folder, 0
        (folder / "inputs").mkdir()
        known, libraries = cases(folder / "inputs"), LIBRARIES
        if names is None or set(names) - known.keys():
            known, libraries = known | other_cases(folder / "inputs"), LIBRARIES + LIVE
        if names is None or set(names) - known.keys():
            known |= live_cases(folder / "inputs")
        self.cases = {name: known[name] for name in names or known}
        self.program = Program(folder, libraries)
        self.whole: dict[str, dict[str, bytes]] = {}
        self.changes: dict[str, int] = {}
        for name, case in self.cases.items():
            place = self.place()
            ending = self.program.call(case.verb, case.at(place), below=place)
            assert ending.code == 0, (name, ending.message)
            self.whole[name], self.changes[name] = contents(place), ending.changes

    def place(self) -> Path:
        """A new folder for a run."""
        self.number += 1
        place = self.folder / f"run-{self.number:04}" / "place"
        place.mkdir(parents=True)
        return place

    def kill(self, name: str, at: int) -> str:
        """What is wrong after a kill at a change and a run after it; empty where all is well."""
        case, whole, place = self.cases[name], self.whole[name], self.place()
        ending = self.program.call(case.verb, case.at(place), below=place, fault="kill", at=at)
        if ending.code != KILLED:
            return f"was not killed: {ending.code} {ending.message}"
        shown = {path: own for path, own in contents(place).items() if not path.startswith(".")}
        result = {path for path in whole if path.split("/")[0] == case.out}
        half = result & set(shown) and any(shown.get(path) != whole[path] for path in result)
        if half:
            return f"half a result: {sorted(shown)}"
        return self._go_on(case, whole, place, done=bool(result & set(shown)))

    def _go_on(self, case: Case, whole: dict[str, bytes], place: Path, *, done: bool) -> str:
        every = {"resume": True, "overwrite": done}
        more: dict[str, Any] = {name: every[name] for name in case.again}
        ending = self.program.call(case.verb, case.at(place, **more), below=place)
        if ending.code:
            return f"cannot be gone on with: {ending.message}"
        after = contents(place)
        odd = [path for path in sorted(after.keys() | whole) if after.get(path) != whole.get(path)]
        return f"other bytes: {odd}" if odd else ""
