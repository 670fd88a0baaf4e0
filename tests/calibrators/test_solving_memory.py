"""What solving for a layer takes beside the sums stays within what the plan counts for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import magmerge
from magmerge.engine.memory import EQUATIONS
from tests.quick import quick_ones

COLUMNS, ROWS, EXPERTS = 2200, 64, 4
SLACK = 16_000_000
"""Bytes for code that is loaded late, and for what the C library keeps."""
PROGRAM = f"""
import sys, torch, magmerge
from pathlib import Path
from magmerge.core.parameters import SolvedWeight
n, rows, experts = {COLUMNS}, {ROWS}, {EXPERTS}
name, _, bias = sys.argv[1].partition(" ")
item = magmerge.calibrator(name)
def status(key):
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition(key + ":")[2].split()[0])
def solve(n):
    x = torch.randn(30, n)
    one = item.gather(*[x] * (2 if item.fed_by == "both" else 1))
    sums = torch.empty(experts, *one.shape)
    for own in sums:
        own.copy_(one)
    del one
    deltas = torch.randn(experts, rows, n)
    more = {{"base": deltas[0]}} if "base" in item.supplied else {{}}
    before = status("VmRSS")
    if bias:
        weight = SolvedWeight(deltas[0], deltas, deltas[1])
        item.bias(deltas[:, :, 0], deltas[0, :, 0], sums=sums, weight=weight)
    else:
        item.fn(deltas, deltas.mean(0), sums=sums, **more)
    return status("VmHWM") - before
solve(50)
print(solve(n))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak")
@pytest.mark.parametrize(
    "name",
    quick_ones(
        ["regmean", "featcal", "featcal bias", "regression_samples"],
        lambda name: name == "featcal bias",
    ),
)
def test_solving_stays_within_the_plan(name: str) -> None:
    item = magmerge.calibrator(name.partition(" ")[0])
    assert item.entries is not None
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, check=True
    )
    stated = EQUATIONS * item.entries(COLUMNS) + 3 * 8 * ROWS * COLUMNS
    if item.scratch is not None:
        stated += item.scratch((ROWS, COLUMNS), EXPERTS)
    assert int(run.stdout) <= stated + SLACK
