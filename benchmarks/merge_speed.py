"""Wall clock, CPU time and memory of merges, beside mergekit 0.1.5, each as a whole process.

Builds Llama-shaped bfloat16 bases of several sizes, each with experts in numbered shards, and
mergekit in an environment of its own, all under benchmarks/.cache. Then it runs mergekit and
magmerge in turn on the same experts, in float32 arithmetic, several times, and prints medians; what
one more parameter costs, by the difference of two sizes; and two floors (speed/floor.py).

    .venv/bin/python -m benchmarks.merge_speed                        # all of it: hours
    .venv/bin/python -m benchmarks.merge_speed --cases linear --experts 3 --parts warm --repeat 3
    .venv/bin/python -m benchmarks.merge_speed --summary              # of all runs so far

Parts: floors; startup, a merge of a tiny model; warm, with the inputs in the page cache; and cold.
magmerge's first run with a set of models is told apart from later ones, which know their digests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from benchmarks.speed.floor import data_files
from benchmarks.speed.process import CACHE, HERE, Cost, cool, middle, run, warm
from benchmarks.speed.summary import Run, show

RESULTS = HERE / "results" / "merge_speed.jsonl"
MERGEKIT = "0.1.5"
OUT = str(CACHE / "out")
PARTS = ("floors", "startup", "warm", "cold")
OWN = {"XDG_CACHE_HOME": str(CACHE / "user")}
"""magmerge's own cache while it is measured: its kernels stay in it, its digests do not."""


class Case(NamedTuple):
    """One merge, as both programs are told to do it; `rival` is None where mergekit cannot."""

    name: str
    words: tuple[str, ...]
    method: str = ""
    rival: Mapping[str, float | bool] | None = None


THINNED = MappingProxyType({"weight": 1.0, "density": 0.2})
DENSITY = ("--method", "ties", "--set", "density=0.2", "--set")
CASES = {
    case.name: case
    for case in (
        Case("linear", ("--method", "average"), "linear", {"weight": 1.0}),
        Case(
            "task_arithmetic",
            ("--method", "task_arithmetic", "--set", "lambda=0.3"),
            "task_arithmetic",
            {"weight": 1.0, "lambda": 0.3},
        ),
        Case("ties", (*DENSITY, "scope=tensor"), "ties", THINNED),
        Case("ties-model", (*DENSITY, "scope=model")),
        Case("dare_ties", ("--method", "dare_ties", "--set", "p=0.8"), "dare_ties", THINNED),
        Case("average+wsc", ("--method", "average", "--calibrate", "wsc")),
        Case("ties-model+wsc", (*DENSITY, "scope=model", "--calibrate", "wsc")),
    )
}


class Place(NamedTuple):
    """The models of one size, of which a merge takes the base and some experts."""

    size: str
    experts: int

    @property
    def folders(self) -> list[Path]:
        """The base's, then each expert's."""
        root = CACHE / f"llama-{self.size}"
        return [root / "base", *(root / f"expert-{i}" for i in range(1, self.experts + 1))]

    @property
    def files(self) -> list[Path]:
        """All shards that a merge reads."""
        return [file for folder in self.folders for file in data_files(folder)]

    def build(self) -> None:
        """Make what is missing."""
        words = [str(CACHE / f"llama-{self.size}"), str(self.experts), self.size]
        subprocess.run([sys.executable, "-m", "benchmarks.speed.build", *words], check=True)


def main() -> None:
    """Build what is missing, run, write JSON lines, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--sizes", default="0.35,1.3", help="billions of parameters, of two sizes")
    parser.add_argument("--experts", default="3,8")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--without-rival", action="store_true")
    parser.add_argument("--summary", action="store_true", help="only print all runs so far")
    chosen = parser.parse_args()
    if chosen.summary:
        lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
        show([Run(*row) for line in lines for row in line["runs"]])
        return
    line: dict[str, object] = {"cores": os.cpu_count(), "repeat": chosen.repeat}
    line["kernels"] = kernels()
    if "floors" in chosen.parts:
        line["bandwidth"] = bandwidth()
    print(json.dumps(line))
    every = []
    for runs in pieces(chosen):
        every += runs
        # What is measured stays, whatever becomes of the rest.
        with RESULTS.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line | {"runs": runs}) + "\n")
    show(every)


def pieces(chosen: argparse.Namespace) -> Iterator[list[Run]]:
    """What the command line chooses, with fewer experts and smaller models first."""
    rival = None if chosen.without_rival else mergekit()
    parts = chosen.parts.split(",")
    if "startup" in parts:
        tiny = Place("tiny", 3)
        tiny.build()
        yield measure(tiny, CASES["linear"], "warm", chosen.repeat, rival)
    for experts in chosen.experts.split(","):
        for size in chosen.sizes.split(","):
            place = Place(size, int(experts))
            place.build()
            if "floors" in parts:
                yield floors(place, chosen.repeat)
            for name in chosen.cases.split(","):
                for state in ("cold", "warm"):
                    if state in parts:
                        yield measure(place, CASES[name], state, chosen.repeat, rival)


def measure(place: Place, case: Case, state: str, repeat: int, program: Path | None) -> list[Run]:
    """A case by both programs in turn, the page cache prepared before each process."""
    tries: dict[str, Callable[[], Cost]] = {}
    prepare = cool if state == "cold" else warm
    own = magmerge_command(case, place)
    if program is not None and case.rival is not None:
        words = mergekit_command(program, case, place)
        tries["mergekit"] = lambda: run(words)
    tries["magmerge, first"] = lambda: run_first(own)
    tries["magmerge, later"] = lambda: run(own, OWN)
    costs: dict[str, list[Cost]] = {name: [] for name in tries}
    for _ in range(repeat):
        for name, attempt in tries.items():
            prepare(place.files)
            costs[name].append(attempt())
    return [named(place, case.name, name, state, costs[name]) for name in tries]


def named(place: Place, case: str, name: str, state: str, costs: list[Cost]) -> Run:
    """The medians under their names, told at once to whoever waits."""
    program, _, time = name.partition(", ")
    row = Run(*place, case, program, f"{state} {time}".strip(), *middle(costs))
    sys.stderr.write(f"{json.dumps(row)}\n")
    return row


def run_first(command: list[str]) -> Cost:
    """magmerge when it does not know any input's digest."""
    for file in Path(OWN["XDG_CACHE_HOME"], "magmerge").iterdir():
        if file.is_file():
            file.unlink()
    return run(command, OWN)


def floors(place: Place, repeat: int) -> list[Run]:
    """All inputs read, as much as the result written, and nothing done with them."""
    words = [sys.executable, "-m", "benchmarks.speed.floor", "copy", str(CACHE / "out")]
    command = [*words, *map(str, place.folders)]
    runs = []
    for state, prepare in (("cold", cool), ("warm", warm)):
        costs = []
        for _ in range(repeat):
            prepare(place.files)
            costs.append(run(command))
        runs.append(named(place, "read and write", "floor", state, costs))
    return runs


def output(command: list[str]) -> str:
    """What a program prints."""
    whole = {**os.environ, **OWN}
    done = subprocess.run(command, env=whole, cwd=HERE.parent, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def bandwidth() -> list[float]:
    """Bytes of memory that one thread, and two, read and write in a second."""
    return list(json.loads(output([sys.executable, "-m", "benchmarks.speed.floor", "bandwidth"])))


def kernels() -> str:
    """What magmerge says of its library, which is built by this if need be."""
    words = output([sys.executable, "-m", "magmerge", "--version", "--verbose"]).splitlines()
    return "; ".join(line for line in words if not line.startswith("library"))


def mergekit() -> Path:
    """mergekit's program, installed where it is missing."""
    folder = CACHE / f"mergekit-{MERGEKIT}"
    program = folder / "bin" / "mergekit-yaml"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        torch = next(
            line
            for line in (HERE.parent / "constraints.txt").read_text().splitlines()
            if line.startswith("torch==")
        )
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", torch, f"mergekit=={MERGEKIT}"]
        subprocess.run(pip, check=True)
    return program


def magmerge_command(case: Case, place: Place) -> list[str]:
    """The command line of this project's own program."""
    base, *experts = map(str, place.folders)
    words = [sys.executable, "-m", "magmerge", "merge", "--base", base, *case.words]
    return [*words, *(word for expert in experts for word in ("--expert", expert)), OUT]


def mergekit_command(program: Path, case: Case, place: Place) -> list[str]:
    """The same merge for mergekit, by the numbers of threads that it takes itself."""
    base, *experts = map(str, place.folders)
    recipe: dict[str, object] = {
        "merge_method": case.method,
        "models": [{"model": expert} for expert in experts],
        "parameters": dict(case.rival or {}),
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    if case.method != "linear":
        recipe["base_model"] = base
    # JSON is YAML.
    (CACHE / "recipe.yml").write_text(json.dumps(recipe))
    flags = ["--device", "cpu", "--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
    return [str(program), str(CACHE / "recipe.yml"), OUT, *flags]


if __name__ == "__main__":
    main()
