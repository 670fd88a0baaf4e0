"""What a conversion tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Conversion:
    """What adapter was converted: where it is now, from which naming to which, how many modules."""

    path: Path
    source: str
    before: str
    after: str
    modules: int


@dataclass(frozen=True, slots=True)
class ModelConversion:
    """What model was converted: where it is now, and from which names to which.

    `before` and `after` are families of CLIP names, or "its own names". `holds` is what the file
    held, in words; `passed` counts how often it names each class that no tensor came from;
    `left_out` has the tensors that the new names do without, and why.
    """

    path: Path
    source: str
    before: str
    after: str
    tensors: int
    holds: str
    passed: Mapping[str, int]
    left_out: Mapping[str, str]
