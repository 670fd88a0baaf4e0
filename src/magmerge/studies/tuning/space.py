"""The space that a recipe's marks span: which count together, and where the search begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from magmerge.core import registry
from magmerge.core.errors import ParameterError
from magmerge.core.marks import Choices, Mark, Marked, Range, has_mark, read_marked
from magmerge.core.plain_yaml import MARK, yaml_of
from magmerge.core.recipe import Recipe
from magmerge.core.traits import Parameter
from magmerge.core.validation import COMPOSED

OF_CALIBRATION = ("skip", "gate", "bound", "sensitive")
OF_SAMPLES = ("samples",)
"""Keys of a recipe that speak of a calibration, and of one that looks at inputs."""
Values = Mapping[str, Any]
"""What is chosen for marks, by their paths."""


@dataclass(frozen=True, slots=True)
class Section:
    """A method or calibrator of a recipe with its parameters, whose names `kind` tells."""

    kind: str
    content: Mapping[str, Any]

    @property
    def methods(self) -> list[str]:
        """The methods that it may have, that of the first trial first."""
        method = self.content.get("method")
        if not isinstance(method, Mark):
            return [method] if isinstance(method, str) else []
        assert isinstance(method.space, Choices)
        names = [*method.default, *method.space.values]
        return [name for name in names if isinstance(name, str)]

    @property
    def params(self) -> Mapping[str, Any]:
        """Its parameters as they are written."""
        params = self.content.get("params")
        return params if isinstance(params, dict) else {}


@dataclass(frozen=True, slots=True)
class Space:
    """A recipe's marks. What a trial's values make needless is left out of it: parameters with
    marks that its method does not take, and, where the calibration is searched, what speaks of one
    if there is none.
    """

    marked: Marked
    source: str

    @property
    def marks(self) -> dict[str, Mark]:
        """All marks by their paths; methods first, which decide what else counts."""
        deciding = {id(s.content.get("method")) for s in self.sections()}
        for document in self.marked.documents:
            if isinstance(document, dict):
                deciding |= {id(mark) for mark in _marks_in(document.get("calibrate"))}
        marks = self.marked.marks.items()
        return dict(sorted(marks, key=lambda item: id(item[1]) not in deciding))

    def sections(self) -> Iterator[Section]:
        """Methods and calibrators of all documents."""
        for document in self.marked.documents:
            if not isinstance(document, dict):
                continue
            yield Section("methods", document)
            calibrate = document.get("calibrate")
            for part in calibrate if isinstance(calibrate, list) else [calibrate]:
                if isinstance(part, dict):
                    yield Section("calibrators", part)

    def active(self, values: Values) -> dict[str, Mark]:
        """The marks that count where the methods are those of `values`."""
        return {
            name: mark for name, mark in self.marks.items() if name in self._pruned(values).marks
        }

    def text(self, values: Values) -> str:
        """The recipe with these values, as YAML."""
        return yaml_of(*self._pruned(values).filled(values))

    def recipes(self, values: Values) -> list[Recipe]:
        """The same as recipes."""
        return Recipe.all_from_yaml(self.text(values), self.source)

    def start(self) -> dict[str, Any]:
        """Where the search begins: what each mark says, the parameter's default if it is among what
        is searched, else the first choice or the middle of the range.
        """
        defaults: dict[int, list[Any]] = {}
        for section in self.sections():
            for name, value in section.params.items():
                known = [_parameters(section.kind, m).get(name) for m in section.methods]
                own = [parameter.default for parameter in known if parameter is not None]
                for mark in _marks_in(value):
                    defaults.setdefault(id(mark), []).extend(own)
            if section.kind == "methods":
                for name, value in section.content.items():
                    if isinstance(value, Mark) and name in Recipe.model_fields:
                        defaults[id(value)] = [Recipe.model_fields[name].default]
        values: dict[str, Any] = {}
        for name, mark in self.marks.items():
            among = [*mark.default, *defaults.get(id(mark), [])]
            first = mark.space.values[0] if isinstance(mark.space, Choices) else mark.space.middle
            values[name] = next((value for value in among if value in mark.space), first)
        return {name: values[name] for name in self.active(values)}

    def notes(self) -> list[str]:
        """What is odd about the marks: whole numbers where the parameter takes others too."""
        doubtful: set[int] = set()
        for section in self.sections():
            if "merge_method" in section.content:
                # mergekit's parameters are numbers of any kind but for a few.
                doubtful |= {id(mark) for mark in _marks_in(section.content)}
            for key, value in section.params.items():
                known = [_parameters(section.kind, m).get(key) for m in section.methods]
                if any(p is not None and _takes_fractions(p) for p in known):
                    doubtful |= {id(mark) for mark in _marks_in(value)}
        return [
            f"{name} in line {mark.line} is searched in whole numbers; for all between write "
            f"{MARK} [{mark.space.low}.0, {mark.space.high}.0]"
            for name, mark in self.marks.items()
            if id(mark) in doubtful and isinstance(mark.space, Range) and mark.space.whole
        ]

    def _pruned(self, values: Values) -> Marked:
        """Without parameters that are searched, and that the methods of `values` do not take."""
        chosen = {id(mark): values.get(name) for name, mark in self.marked.marks.items()}

        def part(kind: str, content: Any) -> Any:
            if not isinstance(content, dict):
                return content
            section, method = Section(kind, content), content.get("method")
            if not isinstance(method, Mark) or not section.params:
                return dict(content)
            taken = _parameters(kind, chosen.get(id(method)))
            kept = {k: v for k, v in section.params.items() if k in taken or not has_mark(v)}
            return {**content, "params": kept}

        documents = []
        for document in self.marked.documents:
            made = part("methods", document)
            calibrate = made.get("calibrate") if isinstance(made, dict) else None
            if isinstance(calibrate, list):
                made["calibrate"] = [part("calibrators", entry) for entry in calibrate]
            elif isinstance(calibrate, dict):
                made["calibrate"] = part("calibrators", calibrate)
            if has_mark(calibrate):
                (told,) = Marked((made["calibrate"],), self.marked.marks).filled(values)
                needless = _needless(told)
                made = {key: value for key, value in made.items() if key not in needless}
            documents.append(made)
        there = {id(mark) for document in documents for mark in _marks_in(document)}
        marks = {name: mark for name, mark in self.marked.marks.items() if id(mark) in there}
        return Marked(tuple(documents), marks)


def read_space(text: str, source: str) -> Space:
    """The space of a recipe's marks; ParameterError or UnknownNameError for what is wrong in it."""
    space = Space(read_marked(text, source), source)
    if not space.marks:
        raise ParameterError(
            "nothing is marked to be searched",
            source=source,
            remedy=f"mark values, such as density: {MARK} [0.1, 0.9] or method: {MARK} [ties, "
            "tsv_m]",
        )
    for section in space.sections():
        method = section.content.get("method")
        if isinstance(method, Mark) and not isinstance(method.space, Choices):
            raise ParameterError(
                f"line {method.line} marks a method as a range of numbers",
                source=source,
                remedy=f"name methods: {MARK} [ties, tsv_m]",
            )
        taken = {name for own in section.methods for name in _parameters(section.kind, own)}
        for name, value in section.params.items():
            if isinstance(method, Mark) and has_mark(value) and name not in taken:
                raise ParameterError(
                    f"no method that is searched takes {name!r}",
                    source=source,
                    remedy=f"drop it, or name a method that takes it; these take "
                    f"{', '.join(sorted(taken)) or 'none'}",
                )
    for document in space.marked.documents:
        calibrate = document.get("calibrate") if isinstance(document, dict) else None
        for entry in calibrate if isinstance(calibrate, list) else [calibrate]:
            for choice in _choices_of(entry):
                _needless(choice)
    space.recipes(space.start())
    return space


def _choices_of(value: Any) -> tuple[Any, ...]:
    space = value.space if isinstance(value, Mark) else None
    return space.values if isinstance(space, Choices) else ()


def _marks_in(value: Any) -> list[Mark]:
    return list(Marked.of([value]).marks.values())


def _needless(calibrate: Any) -> tuple[str, ...]:
    """Keys of a recipe that say nothing where it is calibrated so."""
    entries = calibrate if isinstance(calibrate, list) else [calibrate]
    names = [entry.get("method") if isinstance(entry, dict) else entry for entry in entries]
    named = [name for name in names if isinstance(name, str)]
    parts = [part for name in named for part in COMPOSED.get(name, (name,))]
    if not parts:
        return (*OF_CALIBRATION, *OF_SAMPLES)
    items = [registry.calibrators.get(part, besides=COMPOSED) for part in parts]
    return () if any(item.needs == "inputs" for item in items) else OF_SAMPLES


def _parameters(kind: str, method: Any) -> dict[str, Parameter]:
    """What a method or calibrator takes, by name; UnknownNameError where there is none such."""
    if not isinstance(method, str):
        return {}
    if kind == "methods":
        return {p.name: p for p in registry.methods.get(method).parameters}
    parts = COMPOSED.get(method, (method,))
    items = [registry.calibrators.get(part, besides=COMPOSED) for part in parts]
    own = {p.name: p for item in items for p in item.parameters}
    if method in COMPOSED:
        own |= {f"{item.name}.{p.name}": p for item in items for p in item.parameters}
    return own


def _takes_fractions(parameter: Parameter) -> bool:
    return float in (parameter.annotation, *get_args(parameter.annotation))
