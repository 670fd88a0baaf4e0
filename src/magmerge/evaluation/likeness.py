"""Model folders that make the same of texts and images, and the same module."""

from __future__ import annotations

from pathlib import Path

from magmerge.evaluation.weights import Weights
from magmerge.samples.pixels import PROCESSOR
from magmerge.samples.tokens import FILES

DECIDING = (
    "config.json",
    PROCESSOR,
    "processor_config.json",
    *FILES,
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
"""Files beside the weights that decide how inputs are prepared and what module is built."""


def same_preparation(one: Weights, other: Weights) -> bool:
    """Whether the first model's folder can stand for the second's.

    The deciding files must be the same byte for byte, and the tensors of the same names and shapes.
    """
    if one.folder == other.folder:
        return True
    if one.folder is None or other.folder is None or one.shapes != other.shapes:
        return False
    return all(_content(one.folder / name) == _content(other.folder / name) for name in DECIDING)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
