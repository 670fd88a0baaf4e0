"""A run stays within the memory that its plan states."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import magmerge
from tests.quick import quick_ones

PROGRAM = """
import sys
from pathlib import Path
import torch, magmerge.pipeline.merge
from magmerge.cli import main
torch.ones(3) @ torch.ones(3)
def peak():
    # The process's own peak: getrusage would count that of the process it was forked from.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
before = peak()
folder, method = Path(sys.argv[1]), sys.argv[2]
experts = [folder / f"{i}.safetensors" for i in (1, 2, 3)]
out = folder / "out.safetensors"
plan = magmerge.plan(
    base=folder / "0.safetensors", experts=experts, method=method, calibrate="wsc", threads=2,
    memory="1GB",
)
sys.argv = ["magmerge", "merge", "--base", str(folder / "0.safetensors"), "--method", method]
for expert in experts:
    sys.argv += ["--expert", str(expert)]
sys.argv += ["--calibrate", "wsc", "--threads", "2", "--memory", "1GB", str(out), "--json"]
sys.stdout = open("/dev/null", "w")
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(plan.memory, peak() - before, file=sys.__stdout__)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak")
@pytest.mark.parametrize(
    "method",
    quick_ones(
        ["average", "ties", "dare_ties", "della", "sce", "karcher", "iso_c", "tsv_m", "wudi"],
        lambda method: method == "ties",
    ),
)
def test_the_plan_states_a_bound_that_holds_and_is_not_idle(tmp_path: Path, method: str) -> None:
    # Several layers, of which two are at work at once: the whole model must never be.
    layers = "abcd" if method in ("iso_c", "tsv_m", "wudi") else "abcdef"
    for i in range(4):
        generator = torch.Generator().manual_seed(i)
        state = {
            f"{n}.weight": torch.randn(2048, 2048, generator=generator).bfloat16() for n in layers
        }
        save_file(state, tmp_path / f"{i}.safetensors")
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), method],
        capture_output=True,
        text=True,
        check=True,
    )
    stated, measured = map(int, run.stdout.split())
    assert measured <= stated
    assert measured > stated / 8


@pytest.mark.parametrize(
    ("method", "shape", "most"),
    [
        ("tsv_m", (4096, 14336), 2_000_000_000),
        ("tsv_m", (14336, 4096), 2_000_000_000),
        ("iso_c", (4096, 14336), 2_000_000_000),
        ("iso_c", (14336, 4096), 2_000_000_000),
        # Its equations have columns^2 entries in float64, six times.
        ("wudi", (4096, 14336), 13_000_000_000),
        ("wudi", (14336, 4096), 4_000_000_000),
    ],
    ids=str,
)
def test_a_large_layer_of_four_experts_is_merged_within(
    tmp_path: Path, method: str, shape: tuple[int, int], most: int
) -> None:
    size = 2 * shape[0] * shape[1]
    header = json.dumps({"a.weight": {"dtype": "BF16", "shape": shape, "data_offsets": [0, size]}})
    for i in range(5):
        with (tmp_path / f"{i}.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header.encode())
            # A plan reads the header alone: the zeros take no room on the disk.
            file.truncate(8 + len(header) + size)
    models = [tmp_path / f"{i}.safetensors" for i in range(5)]
    plan = magmerge.plan(
        base=models[0], experts=models[1:], method=method, calibrate="wsc", memory=most
    )
    assert plan.memory <= most
