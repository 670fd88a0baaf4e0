"""The last results of the programs that run at night, in the repository with their commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "faults" / "results"


def commit() -> str:
    """The commit that is checked out."""
    call = ["git", "rev-parse", "HEAD"]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def kept(name: str, text: str) -> Path:
    """The file of a program's last results, written."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(f"{text}\n")
    return file
