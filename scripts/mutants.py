"""Change the core in one place, thirty times, and see whether the quick tests notice.

.venv/bin/python -m scripts.mutants                       # 30 mutants of seed 0, two at a time
.venv/bin/python -m scripts.mutants --seed 3 --count 100  # other ones, and more
.venv/bin/python -m scripts.mutants --all                 # slow tests too, for what quick ones miss

A mutant that no test kills is either a missing test or a change without an effect; it is shown, so
that somebody looks at it. The checkout stays as it is: each mutant lives in a temporary copy.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parents[1]
PACKAGE = Path("src") / "magmerge"
COPIED = ("src", "tests", "examples", "scripts", "docs", "benchmarks")
CORE = ("methods/*.py", "calibrators/*.py", "linalg/*.py", "engine/layer.py", "engine/steps.py")
ONLY = {"engine/steps.py": "cast_result"}
"""The one function of a file that counts as core."""
TESTS = {
    "methods": ("tests/methods", "tests/contracts/test_methods.py", "tests/golden"),
    "calibrators": ("tests/calibrators", "tests/contracts/test_calibrators.py", "tests/golden"),
    "linalg": ("tests/linalg", "tests/methods", "tests/golden"),
    "engine": ("tests/engine", "tests/front_door/test_pipeline.py", "tests/golden"),
}
"""The tests that concern a room; those of the file itself come first."""
TWINS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt,
    ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or,
    ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
QUICK = ["-m", "not slow"]
TIMEOUT = 600


@dataclass(frozen=True)
class Mutant:
    """A file of the core with one expression changed."""

    file: str
    line: int
    before: str
    after: str
    source: str

    @property
    def tests(self) -> list[str]:
        room, name = self.file.split("/")
        own = f"tests/{room}/test_{name}"
        return [*([own] if (ROOT / own).exists() else []), *TESTS[room]]


def main() -> int:
    options = _options()
    sources = _core()
    mutants = pick(sources, options.seed, options.count)
    print(f"{len(mutants)} mutants of {len(sources)} files, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.jobs):
            copies.put(_copied(Path(folder) / str(number)))

        def attempt(mutant: Mutant) -> bool:
            place = copies.get()
            try:
                return _killed(mutant, place, slow=options.all)
            finally:
                copies.put(place)

        with ThreadPoolExecutor(options.jobs) as pool:
            killed = list(pool.map(attempt, mutants))
    print(f"{sum(killed)} killed, {len(killed) - sum(killed)} survived")
    return 0 if all(killed) else 1


def pick(sources: dict[str, str], seed: int, count: int) -> list[Mutant]:
    """Mutants of all files in turn, the same for the same seed."""
    draw = random.Random(seed)
    left = {}
    for file, source in sources.items():
        left[file] = list(mutants_of(file, source))
        draw.shuffle(left[file])
    files = sorted(left)
    draw.shuffle(files)
    chosen: list[Mutant] = []
    while len(chosen) < count and any(left.values()):
        for file in files:
            if left[file] and len(chosen) < count:
                chosen.append(left[file].pop())
    return chosen


def mutants_of(file: str, source: str) -> Iterator[Mutant]:
    """Every change of one expression that runs in the file's functions."""
    tree = ast.parse(source)
    for path, node in _expressions(tree, ONLY.get(file)):
        for changed in _changes(node):
            whole = copy.deepcopy(tree)
            _put(whole, path, changed)
            yield Mutant(
                file, node.lineno, ast.unparse(node), ast.unparse(changed), ast.unparse(whole)
            )


Way = tuple[tuple[str, int | None], ...]


def _expressions(tree: ast.Module, only: str | None) -> Iterator[tuple[Way, ast.expr]]:
    """The expressions in functions' bodies, but those of messages, with the way to each."""

    def walk(node: ast.AST, path: Way) -> Iterator[tuple[Way, ast.expr]]:
        if isinstance(node, ast.expr):
            yield path, node
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "args") and isinstance(
                node, (ast.FunctionDef, ast.AnnAssign, ast.arg)
            ):
                continue
            children = value if isinstance(value, list) else [value]
            for number, child in enumerate(children):
                if isinstance(child, ast.AST) and not isinstance(
                    child, (ast.Raise, ast.JoinedStr, ast.Assert)
                ):
                    place = number if isinstance(value, list) else None
                    yield from walk(child, (*path, (name, place)))

    for number, node in enumerate(tree.body):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and only in (None, node.name):
            yield from walk(node, (("body", number),))


def _changes(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.BinOp() | ast.BoolOp() if type(node.op) in TWINS:
            yield _with(node, op=TWINS[type(node.op)]())
        case ast.Compare() if type(node.ops[0]) in TWINS:
            yield _with(node, ops=[TWINS[type(node.ops[0])](), *node.ops[1:]])
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node.operand
        case ast.IfExp():
            yield _with(node, body=node.orelse, orelse=node.body)
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield ast.Constant(node.value + 1)


def _with(node: ast.expr, **fields: object) -> ast.expr:
    changed = copy.deepcopy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _put(tree: ast.AST, path: Way, changed: ast.expr) -> None:
    node = tree
    for name, number in path[:-1]:
        node = getattr(node, name) if number is None else getattr(node, name)[number]
    name, number = path[-1]
    if number is None:
        setattr(node, name, changed)
    else:
        getattr(node, name)[number] = changed


def _core() -> dict[str, str]:
    files = [path for pattern in CORE for path in sorted((ROOT / PACKAGE).glob(pattern))]
    found = {}
    for path in files:
        file = path.relative_to(ROOT / PACKAGE).as_posix()
        found[file] = path.read_text(encoding="utf-8")
    return found


def _copied(place: Path) -> Path:
    for name in COPIED:
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("*.md"), *ROOT.glob("*.t*ml"), *ROOT.glob("*.txt")):
        shutil.copy(file, place)
    (place / ".venv").symlink_to((ROOT / ".venv").resolve())
    return place


def _killed(mutant: Mutant, place: Path, *, slow: bool) -> bool:
    target = place / PACKAGE / mutant.file
    before, started = target.read_text(encoding="utf-8"), time.perf_counter()
    target.write_text(mutant.source, encoding="utf-8")
    found = _noticed(mutant.tests, place, QUICK)
    if slow and not found:
        found = _noticed(["tests"], place, ["-m", ""])
    target.write_text(before, encoding="utf-8")
    word, seconds = "killed" if found else "SURVIVED", time.perf_counter() - started
    print(
        f"{word:9}{mutant.file}:{mutant.line}  {mutant.before}  ->  {mutant.after}  "
        f"[{found or 'no test fails'}, {seconds:.0f} s]",
        flush=True,
    )
    return bool(found)


def _noticed(tests: list[str], place: Path, options: list[str]) -> str:
    """The first test that fails, '' if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "--no-header", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(place / "src"), "OMP_NUM_THREADS": "1"}
    if options == QUICK:
        environment["MAGMERGE_QUICK_TESTS"] = "1"
    try:
        run = subprocess.run(
            [*command, *options, *tests], cwd=place, env=environment, capture_output=True,
            text=True, timeout=TIMEOUT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "it takes too long"
    if run.returncode == 0:
        return ""
    lines = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if run.returncode not in (1, 2, 3, 4) or not lines:
        return "the tests end at once"
    return lines[0].split(" - ")[0].split(" ", 1)[1][:90]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--all", action="store_true", help="all tests, if the quick ones pass")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
