"""Regular expressions that are searched for in names, in a time that grows with the name's length.

They come from recipes of others, and Python's own may take for ever on a hostile one. So they are
run here by all their states at once, without ever going back: groups, alternatives, sets, \\d, \\w,
\\s, ^, $ and repetitions, greedy or not. What needs more is refused: look-arounds, references to
groups, boundaries of words.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from magmerge.core.errors import ParameterError

LONGEST, MOST_STATES, MOST_KNOWN = 200, 1000, 10_000
"""Characters of a pattern; states that it is made into; steps that are kept for the next name."""
START, END = "start", "end"
"""What stands before and after a name's characters."""
REMEDY = (
    "use letters, ., [...], \\d, \\w, \\s, (...|...), *, +, ?, {2,3}, ^ and $: "
    "/layers\\.[0-9]+\\.mlp/"
)
REPEAT = re.compile(r"([*+?]|\{(\d*)(,?)(\d*)\})(\+|\??)")
TIMES = {"*": (0, None), "+": (1, None), "?": (0, 1)}

Test = Callable[[str], bool]


class Node(NamedTuple):
    """A part of a pattern: one symbol (`test`), or `parts`: one of them with `either`, else all in
    turn, and that from `least` to `most` times.
    """

    test: Test | None = None
    parts: tuple[Node, ...] = ()
    either: bool = False
    least: int = 1
    most: int | None = 1


def check(pattern: str, shown: str) -> None:
    """ParameterError, which calls the pattern `shown`, for one that cannot be searched for."""
    NameRegex(pattern, shown)


class NameRegex:
    """A pattern to search for in names; ParameterError for one that cannot be."""

    def __init__(self, pattern: str, shown: str = "the filter") -> None:
        self._shown = shown
        if len(pattern) > LONGEST:
            self._refuse(f"is longer than {LONGEST} characters")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            self._refuse(f"is no regular expression: {error}")
        self._pattern, self._at, self._steps = pattern, 0, 0
        self._edges: list[list[tuple[Test | None, int]]] = [[]]
        self._last = self._build(self._alternatives(), 0)
        self._first = self._reached({0})
        self._known: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def search(self, name: str) -> bool:
        """Whether the pattern is anywhere in the name."""
        states = self._first
        for symbol in (START, *name, END):
            if self._last in states:
                return True
            states = self._after(states, symbol)
        return self._last in states

    def _after(self, states: frozenset[int], symbol: str) -> frozenset[int]:
        key = (states, symbol)
        if key not in self._known:
            if len(self._known) > MOST_KNOWN:
                self._known.clear()
            to = {end for at in states for test, end in self._edges[at] if test and test(symbol)}
            self._known[key] = self._reached(to) | self._first
        return self._known[key]

    def _reached(self, states: set[int]) -> frozenset[int]:
        """The states, and those that are reached from them without a symbol."""
        left, reached = list(states), set(states)
        while left:
            for test, end in self._edges[left.pop()]:
                if test is None and end not in reached:
                    reached.add(end)
                    left.append(end)
        return frozenset(reached)

    def _refuse(self, problem: str) -> NoReturn:
        raise ParameterError(f"{self._shown} {problem}", remedy=REMEDY)

    def _state(self) -> int:
        self._edges.append([])
        return len(self._edges) - 1

    def _build(self, node: Node, start: int) -> int:
        """Add the node's states after `start`; the last of them."""
        self._steps += 1
        if self._steps > MOST_STATES or (node.most or node.least) > MOST_STATES:
            self._refuse("repeats too much")
        once = node._replace(least=1, most=1)
        if (node.least, node.most) != (1, 1):
            for _ in range(node.least):
                start = self._build(once, start)
            end = self._state()
            self._edges[start].append((None, end))
            if node.most is None:
                self._edges[self._build(once, end)].append((None, end))
                return end
            for _ in range(node.most - node.least):
                start = self._build(once, start)
                self._edges[start].append((None, end))
            return end
        if node.test is not None:
            end = self._state()
            self._edges[start].append((node.test, end))
            return end
        if not node.either:
            for part in node.parts:
                start = self._build(part, start)
            return start
        end = self._state()
        for part in node.parts:
            begin = self._state()
            self._edges[start].append((None, begin))
            self._edges[self._build(part, begin)].append((None, end))
        return end

    def _alternatives(self) -> Node:
        options = [self._sequence()]
        while self._pattern.startswith("|", self._at):
            self._at += 1
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Node(parts=tuple(options), either=True)

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            node = self._atom()
            repeat = REPEAT.match(self._pattern, self._at)
            if repeat and repeat[1] != "{}":
                self._at = repeat.end()
                node = Node(parts=(node,), least=(times := self._times(repeat))[0], most=times[1])
            parts.append(node)
        return Node(parts=tuple(parts))

    def _times(self, repeat: re.Match[str]) -> tuple[int, int | None]:
        word, low, comma, high, manner = repeat.groups()
        if manner == "+":
            self._refuse("has a repetition that gives nothing back (a + after it)")
        if word in TIMES:
            return TIMES[word]
        least = int(low or 0)
        return least, (int(high) if high else None) if comma else least

    def _atom(self) -> Node:
        pattern, at = self._pattern, self._at
        mark = pattern[at]
        self._at += 1
        if mark == "(":
            if pattern.startswith("?:", self._at):
                self._at += 2
            elif pattern.startswith("?", self._at):
                self._refuse(f"has {pattern[at : at + 4]!r}, which looks around or sets an option")
            inner = self._alternatives()
            self._at += 1
            return inner
        if mark in "^$":
            end = START if mark == "^" else END
            return Node(lambda symbol: symbol == end)
        if mark == "[":
            # A first ] belongs to the set.
            self._at += pattern.startswith("^", self._at)
            self._at += 1
            while pattern[self._at] != "]":
                self._at += 2 if pattern[self._at] == "\\" else 1
            self._at += 1
        elif mark == "\\":
            if pattern[self._at].isalnum() and pattern[self._at] not in "dwsDWS":
                self._refuse(f"has {pattern[at : at + 2]!r}")
            self._at += 1
        one = re.compile(re.escape(mark) if mark == "{" else pattern[at : self._at])
        return Node(lambda symbol: symbol not in (START, END) and one.fullmatch(symbol) is not None)
