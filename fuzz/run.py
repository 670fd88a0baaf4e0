"""Fuzz every target within a bound: python -m fuzz.run --inputs 500000.

With atheris installed coverage guides what is tried; without it files of the corpus are damaged at
random. Each target runs in a process of its own, for its share of the inputs. Prints a line for
each: how many were tried, how many read, what refused the others. What breaks a target is written
to fuzz/found/TARGET, and goes to fuzz/regressions/TARGET when it is mended.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FOUND = HERE / "found"
PATIENCE = 20
"""Seconds after which an input counts as a hang."""
MEMORY = 6 << 30


def files_of(name: str) -> list[bytes]:
    """The corpus of a target and what once broke it."""
    places = [HERE / "corpus" / name, HERE / "regressions" / name]
    return [file.read_bytes() for place in places for file in sorted(place.glob("*"))]


class Trial:
    """A target at work: counts, and keeps what breaks it."""

    def __init__(self, name: str, folder: Path) -> None:
        from fuzz.targets import TARGETS, prepared

        self.name, self.target = name, TARGETS[name]
        self.place = prepared(self.target, folder)
        self.told = Counter[str]()
        self.faults: list[str] = []

    def __call__(self, content: bytes) -> None:
        from fuzz.targets import tried

        signal.alarm(PATIENCE)
        try:
            self.told[tried(self.target, self.place, content)] += 1
        except Exception as error:
            self.told["fault"] += 1
            text = f"{type(error).__name__}: {str(error)[:200]}"
            if text not in self.faults and len(self.faults) < 50:
                self.faults.append(text)
                place = FOUND / self.name
                place.mkdir(parents=True, exist_ok=True)
                (place / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
        finally:
            signal.alarm(0)

    def say(self, guide: str, seconds: float) -> None:
        """One JSON line to standard output."""
        counts = {"target": self.name, "guide": guide, "tried": sum(self.told.values())}
        more = {"seconds": round(seconds), "outcomes": dict(self.told), "faults": self.faults}
        print("RESULT " + json.dumps({**counts, **more}), flush=True)


def work(name: str, inputs: int, seed: int) -> None:
    """Fuzz one target in this process."""
    signal.signal(signal.SIGALRM, _too_long)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    guided, start = find_spec("atheris") is not None, time.process_time()
    with tempfile.TemporaryDirectory(prefix="magmerge-fuzz-") as folder:
        if not guided:
            from fuzz.mutations import damaged

            trial, files, draw = Trial(name, Path(folder)), files_of(name), random.Random(seed)
            for content in files:
                trial(content)
            for _ in range(inputs - len(files)):
                trial(damaged(files, draw))
            trial.say("random", time.process_time() - start)
            return
        import atheris

        with atheris.instrument_imports(include=["magmerge", "yaml", "json"]):
            import fuzz.targets  # noqa: F401
        trial = Trial(name, Path(folder))
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, content in enumerate(files_of(name)):
            (corpus / str(number)).write_bytes(content)

        def counted(content: bytes) -> None:
            trial(content)
            if sum(trial.told.values()) == inputs:
                trial.say("coverage", time.process_time() - start)

        options = [f"-runs={inputs + 10}", f"-seed={seed + 1}", "-max_len=4096", "-verbosity=0"]
        atheris.Setup(["fuzz", *options, str(corpus)], counted)
        atheris.Fuzz()


def _too_long(*_: object) -> None:
    raise TimeoutError(f"longer than {PATIENCE} s")


def run(inputs: int, seed: int, names: list[str]) -> dict[str, Any]:
    """Each target in turn, in a process of its own, with its share of the inputs."""
    told = []
    for name in names:
        share = max(1, inputs // len(names))
        words = ["--target", name, "--inputs", str(share), "--seed", str(seed), "--here"]
        call = [sys.executable, "-W", "ignore", "-m", "fuzz.run", *words]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        ended = f"ended with {done.returncode}: {done.stderr[-2000:]}"
        own: dict[str, Any] = {"target": name, "tried": 0, "faults": [ended]}
        if lines:
            own = json.loads(lines[0].removeprefix("RESULT "))
        print(json.dumps(own), flush=True)
        told.append(own)
    total = sum(entry["tried"] for entry in told)
    faults = sum(len(entry["faults"]) for entry in told)
    return {"seed": seed, "inputs": total, "faults": faults, "targets": told}


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz what magmerge reads.")
    parser.add_argument("--inputs", type=int, default=500_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", help="only this one; repeat for more")
    parser.add_argument("--here", action="store_true", help="one target, in this process")
    parser.add_argument("--write", action="store_true", help="keep the results in the repository")
    own = parser.parse_args()
    if own.here:
        work(own.target[0], own.inputs, own.seed)
        return 0
    from fuzz.targets import TARGETS

    told = run(own.inputs, own.seed, own.target or list(TARGETS))
    print(f"{told['inputs']} inputs, {told['faults']} faults")
    if own.write:
        from scripts.nightly_results import commit, kept

        kept("fuzz", json.dumps({"commit": commit(), **told}, indent=1))
    return 1 if told["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
