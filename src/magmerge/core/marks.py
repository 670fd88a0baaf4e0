"""Marks in a recipe's YAML that say what is searched there: !tune [low, high], !tune [ties, tsv_m].

They are data: a loader of their own makes them, and nothing but the verb tune reads with it. Values
are put in their places before anything reads the text as a recipe, so that it may be any dialect.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from magmerge.core.errors import ParameterError, printable, suggestion
from magmerge.core.plain_yaml import MARK, PlainLoader
from magmerge.core.recipe_faults import not_read

EXAMPLE = f"write {MARK} [0.1, 0.9], {MARK} [ties, tsv_m], or {MARK} {{low: 0.1, high: 0.9}}"
KEYS = ("low", "high", "log", "step", "choices", "default")
LARGEST = 1e15
"""Numbers beyond are no bounds of a range."""
CLOSE = 1e-8
"""Part of a step that rounding may have taken."""
PLAIN_KEY = re.compile(r"[A-Za-z_][\w/-]*")


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones if both are. `log`: even in their
    logarithm; `step`: only low, low + step, and so on.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether it is of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def middle(self) -> float:
        """Of a logarithmic one the geometric mean; a number of the range itself."""
        both = math.sqrt(self.low) * math.sqrt(self.high) if self.log else 0.0
        value = both or self.low + (self.high - self.low) / 2
        if self.step is not None:
            value = self.low + self.step * ((value - self.low) // self.step)
        return round(value) if self.whole else value

    def rounded(self, value: float) -> float:
        """A number of the range near `value`, with as many digits as its width is worth."""
        if self.whole or self.step is not None:
            return value
        if self.log:
            short = float(f"{value:.4g}")
        else:
            short = round(value, 3 - math.floor(math.log10(self.high - self.low)))
        return min(max(short, self.low), self.high)

    def __contains__(self, value: object) -> bool:
        kinds: tuple[type, ...] = (int,) if self.whole else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool):
            return False
        assert isinstance(value, int | float)
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return self.low <= value <= self.high and abs(steps - round(steps)) < CLOSE


@dataclass(frozen=True, slots=True)
class Choices:
    """Values of which one is chosen: any plain data."""

    values: tuple[Any, ...]

    def __contains__(self, value: object) -> bool:
        return any(_same(value, other) for other in self.values)


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """A place of a recipe and what is searched there. `default` holds what the first trial has; it
    is empty where the mark does not say that.
    """

    space: Range | Choices
    line: int
    default: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Marked:
    """A recipe's documents as data, with marks in them, by the path of their first place."""

    documents: tuple[Any, ...]
    marks: Mapping[str, Mark]

    @classmethod
    def of(cls, documents: Sequence[Any]) -> Marked:
        """With all marks that are in the documents; ParameterError for one in place of a key."""
        marks: dict[int, tuple[str, Mark]] = {}
        for number, document in enumerate(documents):
            prefix = f"{number + 1}:" if len(documents) > 1 else ""
            for path, mark in _marks(document, prefix, set()):
                marks.setdefault(id(mark), (path, mark))
        return cls(tuple(documents), dict(marks.values()))

    def filled(self, values: Mapping[str, Any]) -> list[Any]:
        """The documents with a value for each mark. A key whose value is chosen to be null is left
        out.
        """
        chosen = {id(mark): values[name] for name, mark in self.marks.items() if name in values}
        known: dict[int, Any] = {}
        return [_filled(document, chosen, known) for document in self.documents]


class MarkLoader(PlainLoader):
    """YAML as plain data with marks in it."""


def read_marked(text: str, source: str) -> Marked:
    """The documents of a recipe with marks; ParameterError, with the line, for one that is none."""
    try:
        return Marked.of([part for part in yaml.load_all(text, MarkLoader) if part is not None])
    except ParameterError as error:
        raise ParameterError(error.problem, source=source, remedy=error.remedy) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise not_read(error, source) from error


def has_mark(value: Any) -> bool:
    """Whether there is a mark in a value."""
    return any(True for _ in _marks(value, "", set()))


def _mark(loader: MarkLoader, node: yaml.Node) -> Mark:
    """A mark from its node: a list, or a mapping with the names of its parts."""
    line = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        content: Any = loader.construct_sequence(node, deep=True)
    elif isinstance(node, yaml.MappingNode):
        content = loader.construct_mapping(node, deep=True)
    else:
        raise _fault(line, f"{node.value!r} is neither a range nor a list of choices", EXAMPLE)
    if has_mark(content):
        raise _fault(line, "there is a mark within the mark", "let one mark end before the next")
    if isinstance(content, list):
        numbers = [_number(value) for value in content]
        if len(content) == 2 and None not in numbers:
            content = {"low": content[0], "high": content[1]}
        else:
            content = {"choices": content}
    return _declared(content, line)


MarkLoader.add_constructor(MARK, _mark)


def _declared(content: Mapping[Any, Any], line: int) -> Mark:
    """A mark from its parts by name."""
    for key in content:
        if key not in KEYS:
            raise _fault(line, f"it has an unknown part {key!r}", suggestion(key, KEYS))
    if "choices" in content:
        if set(content) - {"choices", "default"}:
            raise _fault(line, "choices go with no range", "give choices, or low and high")
        space: Range | Choices = _choices(content["choices"], line)
    else:
        space = _range(content, line)
    if "default" not in content:
        return Mark(space, line)
    default = content["default"]
    default = _number(default) if isinstance(space, Range) else default
    if default not in space:
        problem = f"its default {content['default']!r} is none of what is searched"
        raise _fault(line, problem, "name one within the range, or one of the choices")
    return Mark(space, line, (default,))


def _range(content: Mapping[str, Any], line: int) -> Range:
    low, high = _number(content.get("low")), _number(content.get("high"))
    if low is None or high is None:
        raise _fault(line, "a range has two numbers, low and high", EXAMPLE)
    step, log = content.get("step"), content.get("log", False)
    if not low < high:
        raise _fault(line, f"{low!r} is not below {high!r}", "write the smaller number first")
    if not isinstance(log, bool) or (log and low <= 0):
        raise _fault(line, "log is of numbers above zero", "raise low, or leave log out")
    if step is not None:
        step = _number(step)
        if step is None or not 0 < step <= high - low or log:
            remedy = "give a step above zero and within the range, and no log with it"
            raise _fault(line, f"its step is {content['step']!r}", remedy)
        if not isinstance(step, int):
            low, high = float(low), float(high)
    return Range(low, high, log, step)


def _choices(values: Any, line: int) -> Choices:
    if not isinstance(values, list) or len(values) < 2:
        raise _fault(line, "there are no two choices", EXAMPLE)
    for value in values:
        # A search that goes on reads them from JSON.
        if not _is_plain(value):
            problem = f"the choice {value!r} is no plain value"
            remedy = "choose among texts, numbers, booleans, lists, and mappings with texts as keys"
            raise _fault(line, problem, remedy)
    if any(_same(a, b) for i, a in enumerate(values) for b in values[:i]):
        raise _fault(line, "one choice stands twice", "leave it out once")
    return Choices(tuple(values))


def _is_plain(value: Any) -> bool:
    """Whether JSON gives a value back as it is."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False


def _same(first: Any, second: Any) -> bool:
    """Whether two plain values are written alike: true is not 1."""
    try:
        return json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    except (TypeError, ValueError):
        return False


def _number(value: Any) -> float | None:
    """A finite number, also one like 1e-5, which YAML takes for a text; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+[eE][-+]?[0-9]+", value):
        try:
            value = float(value)
        except ValueError:
            return None
    if type(value) not in (int, float) or not -LARGEST <= value <= LARGEST:
        return None
    return value  # type: ignore[no-any-return]


def _fault(line: int, problem: str, remedy: str) -> ParameterError:
    return ParameterError(f"the mark {MARK} in line {line}: {printable(problem)}", remedy=remedy)


def _marks(node: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Mark]]:
    """All marks below a node by their paths; what stands there several times is looked at once."""
    if isinstance(node, Mark):
        yield path, node
    if not isinstance(node, dict | list) or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, list):
        for place, value in enumerate(node):
            yield from _marks(value, f"{path}[{place}]", seen)
        return
    for key, value in node.items():
        if isinstance(key, Mark):
            raise _fault(key.line, "it stands for a key", "mark the key's value")
        plain = isinstance(key, str) and PLAIN_KEY.fullmatch(key)
        name = key if plain else json.dumps(key, default=str)
        dot = "." if path and not path.endswith(":") else ""
        yield from _marks(value, f"{path}{dot}{name}", seen)


def _filled(node: Any, chosen: Mapping[int, Any], known: dict[int, Any]) -> Any:
    """A copy of a node with values for its marks; what is one object stays one."""
    if isinstance(node, Mark):
        return copy.deepcopy(chosen.get(id(node)))
    if not isinstance(node, dict | list):
        return node
    if id(node) in known:
        return known[id(node)]
    made: Any = [] if isinstance(node, list) else {}
    known[id(node)] = made
    if isinstance(node, list):
        made += [_filled(value, chosen, known) for value in node]
        return made
    for key, value in node.items():
        if not isinstance(value, Mark) or chosen.get(id(value)) is not None:
            made[key] = _filled(value, chosen, known)
    return made
