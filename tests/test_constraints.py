"""The pins with hashes are the pins: whoever installs by them gets what was tested."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)", re.MULTILINE)


def pins(text: str) -> dict[str, str]:
    """Versions by normalised names."""
    return {re.sub(r"[-_.]+", "-", n).lower(): version for n, version in PIN.findall(text)}


def test_each_pin_has_its_hashes() -> None:
    text = (ROOT / "constraints-hashes.txt").read_text()
    assert pins(text) == pins((ROOT / "constraints.txt").read_text())
    blocks = re.split(r"\n(?=[A-Za-z])", text)
    hashed = [b for b in blocks if re.search(r"--hash=sha256:[0-9a-f]{64}\b", b)]
    assert len(hashed) == len(pins(text))
