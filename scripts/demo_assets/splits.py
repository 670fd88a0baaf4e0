"""Deduplicate labelled texts and split them so that no two splits share a text or a group."""

import random
from collections import Counter, defaultdict
from typing import NamedTuple

from .texts import words

SHINGLE = 3
SPARE = 2  # candidates looked at per text wanted: deduplication removes some


class Example(NamedTuple):
    """A text, its class, and the group of texts that must stay in one split ("" = its own)."""

    text: str
    label: int
    group: str = ""


Splits = dict[str, list[Example]]


def split(examples: list[Example], sizes: dict[str, int], seed: int) -> Splits:
    """Draw splits of the given sizes, in the order of `sizes`.

    Classes get equal shares as far as they have texts, the same shares in every split. The last
    split takes what is left up to its size; the others must be met exactly.
    Raises ValueError if there are not enough texts.
    """
    rng = random.Random(seed)
    pool = _unambiguous(examples)
    rng.shuffle(pool)
    pool = _thin(pool, SPARE * sum(sizes.values()))
    pool = _without_near_duplicates(pool)
    available = _balanced_counts(pool, sum(sizes.values()))
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in pool:
        groups[example.group or example.text].append(example)
    splits: Splits = {}
    last = list(sizes)[-1]
    for name, size in sizes.items():
        splits[name] = _draw(groups, _quotas(available, size))
        if name != last and len(splits[name]) != size:
            raise ValueError(f"{name}: {len(splits[name])} texts, {size} wanted")
    return splits


def _unambiguous(examples: list[Example]) -> list[Example]:
    """One example per normalised text; texts that occur under two labels are dropped."""
    first: dict[str, Example] = {}
    labels: dict[str, set[int]] = defaultdict(set)
    for example in examples:
        key = " ".join(words(example.text))
        first.setdefault(key, example)
        labels[key].add(example.label)
    return [example for key, example in first.items() if key and len(labels[key]) == 1]


def _thin(pool: list[Example], size: int) -> list[Example]:
    """Keep the first `size` texts, shared equally between the classes."""
    share = size // len({example.label for example in pool})
    seen: Counter[int] = Counter()
    kept = []
    for example in pool:
        seen[example.label] += 1
        if seen[example.label] <= share:
            kept.append(example)
    return kept


def _without_near_duplicates(pool: list[Example]) -> list[Example]:
    """Drop a text if one earlier text has more than half of its three-word shingles."""
    owners: dict[tuple[str, ...], list[int]] = defaultdict(list)
    kept: list[Example] = []
    for example in pool:
        shingles = _shingles(example.text)
        shared = Counter(owner for shingle in shingles for owner in owners[shingle])
        if shared and max(shared.values()) > len(shingles) / 2:
            continue
        for shingle in shingles:
            owners[shingle].append(len(kept))
        kept.append(example)
    return kept


def _shingles(text: str) -> set[tuple[str, ...]]:
    tokens = words(text)
    count = max(1, len(tokens) - SHINGLE + 1)
    return {tuple(tokens[start : start + SHINGLE]) for start in range(count)}


def _balanced_counts(pool: list[Example], wanted: int) -> dict[int, int]:
    """Texts to use per class: equal numbers, or all of a class that has fewer."""
    counts = Counter(example.label for example in pool)
    share = -(-wanted // len(counts))
    return {label: min(counts[label], share) for label in sorted(counts)}


def _quotas(available: dict[int, int], size: int) -> dict[int, int]:
    """Divide `size` in proportion to `available`, by largest remainders."""
    total = sum(available.values())
    exact = {label: size * count / total for label, count in available.items()}
    quotas = {label: int(share) for label, share in exact.items()}
    by_remainder = sorted(exact, key=lambda label: (quotas[label] - exact[label], label))
    for label in by_remainder[: size - sum(quotas.values())]:
        quotas[label] += 1
    return quotas


def _draw(groups: dict[str, list[Example]], quotas: dict[int, int]) -> list[Example]:
    """Take whole groups out of `groups` until the quotas are met; surplus rows are dropped."""
    open_quotas = Counter(quotas)
    drawn: list[Example] = []
    for name in list(groups):
        taken = []
        for example in groups[name]:
            if open_quotas[example.label] > 0:
                open_quotas[example.label] -= 1
                taken.append(example)
        if taken:
            drawn += taken
            del groups[name]
    return drawn
