"""Checkpoints of the real CLIP classes, made once by a process of its own (`clip_classes.py`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shared import shared_folder

ROOT = Path(__file__).parents[1]
LIBRARIES = ROOT / ".venv" / "clip"
SCRIPT = ROOT / "tests" / "checkpoints" / "clip_classes.py"


def run(verb: str, folder: Path) -> None:
    """Run the script with open_clip and timm, which are not installed beside the rest."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), verb, str(folder)],
        env={**os.environ, "PYTHONPATH": str(LIBRARIES), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that `clip_classes.build` writes."""
    if not (LIBRARIES / "open_clip").is_dir():
        pytest.skip("open_clip and timm are not in .venv/clip")
    return shared_folder(tmp_path_factory, "clips", lambda folder: run("build", folder))
