"""Names for methods and calibrators: one registry for both, open to third parties."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from importlib import import_module, metadata
from types import SimpleNamespace
from typing import Annotated, Any, Generic, Protocol, TypeVar, get_args, get_origin, get_type_hints

from typing_extensions import Doc

from magmerge.core.errors import MagmergeError, UnknownNameError, suggestion
from magmerge.core.parameters import PerExpert, Supplied
from magmerge.core.traits import Calibrator, Method, Parameter
from magmerge.core.types import Kind

FIXED = frozenset({"name", "fn", "source", "summary", "parameters", "supplied"})
"""Fields that are no traits: the function, or the registry, tells them."""


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)
F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Items by name and alias, each imported when it is first asked for.

    The table BUILTIN of `package` tells for each name or alias the module that registers it. Names
    that are not among them are looked for in the entry points of the group `package`.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._items: dict[str, T] = {}
        self._aliases: dict[str, str] = {}
        self._lock = threading.RLock()
        self._loading = False
        self._loaded = False

    @property
    def _builtin(self) -> Mapping[str, str]:
        table: Mapping[str, str] = import_module(self._package).BUILTIN
        return table

    def is_builtin(self, name: str) -> bool:
        """Whether the name is one of magmerge's own."""
        return name in self._builtin

    def add(self, item: T, aliases: tuple[str, ...] = ()) -> None:
        """Register `item`; a name that is taken is refused."""
        for name in (item.name, *aliases):
            if name in self._builtin:
                self._import(name)
            if name in self._items or name in self._aliases:
                raise MagmergeError(
                    f"a {self.kind} named {name} is registered already",
                    remedy="choose another name; registered items are never replaced in silence",
                )
        self._items[item.name] = item
        self._aliases.update(dict.fromkeys(aliases, item.name))

    def get(self, name: str, besides: Iterable[str] = ()) -> T:
        """The item of this name or alias; UnknownNameError with a suggestion if there is none.

        The suggestion may also be one of the names `besides`.
        """
        if name in self._builtin:
            self._import(name)
        else:
            self._load_entries()
        name = self._aliases.get(name, name)
        if name not in self._items:
            known = {*self._builtin, *self._items, *self._aliases, *besides}
            raise UnknownNameError(
                f"there is no {self.kind} named {name!r}", remedy=suggestion(name, known)
            )
        return self._items[name]

    def aliases(self, name: str) -> tuple[str, ...]:
        """The other names of the item `name`."""
        self.get(name)
        return tuple(alias for alias, target in self._aliases.items() if target == name)

    def __iter__(self) -> Iterator[T]:
        for name in self._builtin:
            self._import(name)
        self._load_entries()
        return iter(sorted(self._items.values(), key=lambda item: item.name))

    def _import(self, name: str) -> None:
        # Without a lock of our own: where another thread imports the module, Python waits for it.
        import_module(f"{self._package}.{self._builtin[name]}")

    def _load_entries(self) -> None:
        """Load the entry points once; other threads wait until all are there."""
        with self._lock:
            if self._loaded or self._loading:
                return
            self._loading = True
            try:
                for entry in metadata.entry_points(group=self._package):
                    self._load_entry(entry)
            finally:
                self._loading = False
            self._loaded = True

    def _load_entry(self, entry: metadata.EntryPoint) -> None:
        try:
            entry.load()
        except Exception as error:
            raise MagmergeError(
                f"the entry point {entry.name} = {entry.value} cannot be loaded: {error}",
                remedy="update or uninstall the package that provides it",
            ) from error


methods: Registry[Method] = Registry("method", "magmerge.methods")
calibrators: Registry[Calibrator] = Registry("calibrator", "magmerge.calibrators")


def parameters_of(fn: Callable[..., Any]) -> tuple[Parameter, ...]:
    """The user's parameters of `fn`: its keyword-only arguments, less those marked `Supplied`.

    A trailing underscore, which keeps a name from being a Python keyword, is not part of the
    public name: `lambda_` is `lambda` in recipes and on the command line.
    """
    hints = _hints_of_keywords(fn)
    parameters = []
    for argument in inspect.signature(fn).parameters.values():
        if argument.kind is not argument.KEYWORD_ONLY:
            if argument.default is not argument.empty:
                raise MagmergeError(
                    f"parameter {argument.name} of {fn.__name__} is not keyword-only, so it could "
                    "never be set",
                    remedy=f"put a * before {argument.name} in its signature",
                )
            continue
        if argument.default is argument.empty:
            raise MagmergeError(
                f"parameter {argument.name} of {fn.__name__} has no default",
                remedy="give every keyword argument of a registered function a default",
            )
        annotation = hints.get(argument.name, Any)
        marks = _marks(annotation)
        if any(isinstance(mark, Supplied) for mark in marks):
            continue
        meaning = next((mark.documentation for mark in marks if isinstance(mark, Doc)), "")
        name = argument.name.rstrip("_")
        each = next((mark for mark in marks if isinstance(mark, PerExpert)), None)
        parameters.append(
            Parameter(name, argument.name, argument.default, annotation, meaning, each)
        )
    return tuple(parameters)


def supplied_of(fn: Callable[..., Any]) -> frozenset[str]:
    """The keywords of `fn` that are marked `Supplied`."""
    return frozenset(
        name
        for name, annotation in _hints_of_keywords(fn).items()
        if any(isinstance(mark, Supplied) for mark in _marks(annotation))
    )


def _hints_of_keywords(fn: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of the keyword-only arguments. Those of tensors are not looked at: that takes
    libraries which a merge may do without.
    """
    plain = inspect.unwrap(fn)
    named = inspect.getfullargspec(plain).kwonlyargs
    own = {name: plain.__annotations__[name] for name in named if name in plain.__annotations__}
    holder = SimpleNamespace(__annotations__=own)
    return get_type_hints(holder, getattr(plain, "__globals__", None), include_extras=True)


def _marks(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


def register_method(
    name: str, *, source: str, aliases: tuple[str, ...] = (), **traits: Any
) -> Callable[[F], F]:
    """Decorator: make `fn(tensors, **params)` the merge method `name`.

    `source` is where the method is defined (an arXiv id). `traits` are the fields of `Method`
    that differ from their defaults: acts_on, kinds, cut, random, ordered, base_free, experts,
    survey, workspace.
    """

    _check_traits(Method, traits)

    def register(fn: F) -> F:
        traits["supplied"] = supplied_of(fn)
        methods.add(
            Method(name, fn, source, _summary(fn), parameters_of(fn), **traits), aliases=aliases
        )
        return fn

    return register


def register_calibrator(
    name: str,
    *,
    source: str,
    acts_on: frozenset[Kind],
    aliases: tuple[str, ...] = (),
    **traits: Any,
) -> Callable[[F], F]:
    """Decorator: make `fn(deltas, merged, **params)` the calibrator `name`.

    `traits` are the fields of `Calibrator` that differ from their defaults.
    """

    _check_traits(Calibrator, traits)

    def register(fn: F) -> F:
        traits["supplied"] = supplied_of(fn)
        calibrators.add(
            Calibrator(name, fn, source, _summary(fn), parameters_of(fn), acts_on, **traits),
            aliases=aliases,
        )
        return fn

    return register


def _check_traits(kind: type[Method] | type[Calibrator], traits: Mapping[str, Any]) -> None:
    """UnknownNameError, with a suggestion, for a trait that there is not."""
    known = [field.name for field in fields(kind) if field.name not in FIXED]
    for name in traits:
        if name not in known:
            raise UnknownNameError(
                f"a {kind.__name__.lower()} has no trait {name!r}", remedy=suggestion(name, known)
            )


def _summary(fn: Callable[..., Any]) -> str:
    return (inspect.getdoc(fn) or "").partition("\n")[0].rstrip(".")
