"""A run stays within the memory that its plan states."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

PROGRAM = """
import resource, sys
from pathlib import Path
import torch, magmerge.pipeline
torch.ones(3) @ torch.ones(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
folder, method = Path(sys.argv[1]), sys.argv[2]
experts = [folder / f"{i}.safetensors" for i in (1, 2, 3)]
arguments = dict(base=folder / "0.safetensors", experts=experts, method=method, threads=2)
arguments.update(calibrate="wsc", out=folder / "out.safetensors")
print(magmerge.plan(**arguments).memory)
magmerge.merge(**arguments)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
"""


@pytest.mark.parametrize("method", ["average", "ties", "dare_ties"])
def test_the_plan_states_a_bound_that_holds_and_is_not_idle(tmp_path: Path, method: str) -> None:
    for i in range(4):
        generator = torch.Generator().manual_seed(i)
        # Six layers, of which two are at work at once: the whole model must never be.
        state = {
            f"{n}.weight": torch.randn(2048, 2048, generator=generator).bfloat16() for n in "abcdef"
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
    assert measured > stated / 4
