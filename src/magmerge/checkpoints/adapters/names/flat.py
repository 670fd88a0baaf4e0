"""Names whose dots were written as _ : read back by a vocabulary of the segments between dots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

Vocabulary: TypeAlias = Mapping[str, int]
"""Segments, and how many numbers follow each: down_blocks.0 has one, conv_in none."""

LONGEST = 512
"""No module's name is longer; a hostile one costs no time."""


def flat(dotted: str) -> str:
    """The name with _ for dots."""
    return dotted.replace(".", "_")


def dotted(flat_name: str, vocabulary: Vocabulary) -> str | None:
    """The only dotted name of segments in `vocabulary` that is written so; None where none is, or
    more than one.
    """
    if len(flat_name) > LONGEST:
        return None
    tokens = flat_name.split("_")
    longest = max(segment.count("_") for segment in vocabulary) + 1
    # At each token the readings of the rest, two at most: more than one is as bad as many.
    rest: list[list[str]] = [[] for _ in tokens] + [[""]]
    for start in reversed(range(len(tokens))):
        for stop in range(start + 1, min(start + longest, len(tokens)) + 1):
            segment = "_".join(tokens[start:stop])
            numbers = vocabulary.get(segment)
            if numbers is None or stop + numbers > len(tokens):
                continue
            indices = tokens[stop : stop + numbers]
            if all(_is_index(index) for index in indices):
                head = ".".join([segment, *indices])
                tails = rest[stop + numbers]
                rest[start] += [f"{head}.{tail}" if tail else head for tail in tails]
        rest[start] = rest[start][:2]
    return rest[0][0] if len(rest[0]) == 1 else None


def _is_index(token: str) -> bool:
    return token.isascii() and token.isdigit() and (token == "0" or token[0] != "0")
