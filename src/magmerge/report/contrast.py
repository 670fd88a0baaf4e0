"""Where two calibrators pull apart, and what the gate made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from magmerge.report.account import FactorAccount, LayerModule
from magmerge.report.sentences import count_text, factor_text, name_of

OPPOSITE = 1.1
"""A factor above this and one below its inverse pull to opposite sides."""
RATIO = 1.5
"""What two calibrators ask for in all differs by more than this where they pull apart."""


@dataclass(frozen=True, slots=True)
class Encounter:
    """A layer that two calibrators acted on in turn.

    The second saw what the first had made, so `further`, its factor, is 1 where it agrees; in all
    it asks for the first's factor after the gate times its own.
    """

    module: LayerModule
    first: FactorAccount
    second: FactorAccount
    own: float
    further: float

    @property
    def total(self) -> float:
        """What the second asks for in all."""
        return (self.own if self.first.gated is None else self.first.gated) * self.further

    @property
    def ratio(self) -> float:
        """Between what the two ask for; at least 1."""
        low, high = sorted((self.own, self.total))
        return high / low if low > high * 1e-300 else 1e300

    @property
    def apart(self) -> bool:
        """Whether they pull apart: to opposite sides, or to the same by much."""
        low, high = sorted((self.own, self.further))
        return (low < 1 / OPPOSITE and high > OPPOSITE) or self.ratio > RATIO

    @property
    def outcome(self) -> str:
        """What the gate did."""
        verbs = [
            (_verb(factor), name_of(factor.calibrator)) for factor in (self.first, self.second)
        ]
        if verbs[0][0] == verbs[1][0]:
            return f"{verbs[0][0]} both"
        return " and ".join(f"{verb} {name}" for verb, name in verbs)


def encounters(modules: Sequence[LayerModule], names: tuple[str, str]) -> tuple[Encounter, ...]:
    """The layers that both calibrators acted on, as far as their factors are known."""
    pairs = []
    for module in modules:
        first, second = map(module.lead.factor_of, names)
        if first and second and (own := first.free or 0) > 0 < (further := second.free or 0):
            pairs.append(Encounter(module, first, second, own, further))
    return tuple(pairs)


def furthest_first(pairs: Sequence[Encounter]) -> tuple[Encounter, ...]:
    """Those that pull apart."""
    return tuple(
        sorted(
            (encounter for encounter in pairs if encounter.apart),
            key=lambda encounter: -encounter.ratio,
        )
    )


def _verb(factor: FactorAccount) -> str:
    if not factor.held:
        return "kept"
    return "stopped" if factor.gated == 1 else "held back"


def contrast_text(pairs: Sequence[Encounter], names: tuple[str, str], *, gated: bool) -> str:
    """How many layers they pull apart on, that nobody knows who is right, and what was done."""
    first, second = map(name_of, names)
    apart = furthest_first(pairs)
    if not apart:
        return f"Nowhere do {first} and {second} pull apart."
    text = (
        f"On {count_text(len(apart), 'layer')} of {len(pairs):,} {first} and {second} pull apart: "
        "one would grow what it sees and the other shrink it, by more than 10 % each, or what they "
        f"ask for in all differs by a factor above {factor_text(RATIO).rstrip('0')}. Which of the "
        "two is right is an open question of the paper (arXiv:2512.19320); this report does not "
        "answer it. "
    )
    if not gated:
        return f"{text}The gate was off, so both factors were applied."
    outcomes = Counter(encounter.outcome for encounter in apart).most_common()
    deeds = ", and ".join(
        f"{outcome} on {count_text(count, 'layer')}" for outcome, count in outcomes
    )
    return f"{text}What was done is the gate's rule, not a judgement: it {deeds}."
