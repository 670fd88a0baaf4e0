"""Kill every verb that writes at random places, and go on, on every night.

    python -m scripts.nightly_kills --points 300 --write

Prints how many runs were killed and how many bytes compared; --write keeps that with the commit.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults.kills import Kills

from scripts.nightly_results import commit, kept


def run(
    points: int, seed: int, names: list[str] | None = None, minutes: float | None = None
) -> dict[str, Any]:
    """Kill at so many random places, the same number for each case, or at those that there is time
    for; what was found.
    """
    draw, start = random.Random(seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="magmerge-kills-") as folder:
        kills = Kills(Path(folder), names)
        faults, done, compared = [], Counter[str](), 0
        for number in range(points):
            if minutes is not None and time.monotonic() - start > 60 * minutes:
                break
            name = list(kills.cases)[number % len(kills.cases)]
            at = draw.randint(1, kills.changes[name])
            fault = kills.kill(name, at)
            done[name] += 1
            compared += sum(map(len, kills.whole[name].values()))
            if fault:
                faults.append({"case": name, "at": at, "fault": fault})
                print(name, at, fault, file=sys.stderr)
        kills.program.close()
    return {
        "commit": commit(),
        "seed": seed,
        "points": dict(done),
        "killed": sum(done.values()),
        "bytes compared": compared,
        "faults": faults,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill every verb that writes, and go on.")
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="stop after so many")
    parser.add_argument("--case", action="append", help="only this one; repeat for more")
    parser.add_argument("--write", action="store_true", help="keep the results in the repository")
    own = parser.parse_args()
    told = run(own.points, own.seed, own.case, own.minutes)
    text = json.dumps(told, indent=1)
    print(text)
    if own.write:
        kept("kills", text)
    return 1 if told["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
