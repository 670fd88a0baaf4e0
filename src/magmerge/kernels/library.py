"""The compiled kernels: found or built at their first use, checked, loaded once.

The environment variable MAGMERGE_KERNELS says off, or a level (sse2, avx2, neon); else the highest
level is taken that the processor has. The bits of a result are the same with any of them, and those
of torch where the processor multiplies and adds in one step.
"""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magmerge.core.errors import (
    MagmergeError,
    MagmergeWarning,
    ParameterError,
    printable,
    suggestion,
)
from magmerge.core.machine import user_cache
from magmerge.kernels.compile import (
    HERE,
    LEVELS,
    NoLibraryError,
    Target,
    build_library,
    find_compiler,
    this_machine,
)
from magmerge.kernels.trust import writers

ABI = 1
"""The number that `version` in kernels.c gives: raised with any change of arguments."""
VARIABLE = "MAGMERGE_KERNELS"
AUTO, OFF = "auto", "off"
CHOICES = (AUTO, OFF, *(level for levels in LEVELS.values() for level in levels))


@dataclass(frozen=True, slots=True)
class Library:
    """The kernels of one level, which this processor has. `compiler` is what made them."""

    level: str
    compiler: str
    path: Path
    handle: ctypes.CDLL

    def call(self, name: str) -> Any:
        """The C function magmerge_<level>_<name>: always the same object, which keeps what is set
        in it (`argtypes`, `restype`). AttributeError where there is none.
        """
        return getattr(self.handle, f"magmerge_{self.level}_{name}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A library, or None and the reason for that; off is what a user asks for."""

    library: Library | None
    reason: str = ""
    is_off: bool = False


_lock = threading.Lock()
_outcomes: dict[str, Outcome] = {}
_told: set[str] = set()


def load() -> Library | None:
    """The library at the level that MAGMERGE_KERNELS says; None for off, and where none is to be
    had, of which a process warns once. MagmergeError for a level that is asked for and not there.
    """
    state = outcome()
    if state.library is None and not state.is_off:
        with _lock:
            first = state.reason not in _told
            _told.add(state.reason)
        if first:
            text = f"merging by torch alone, which takes longer: {state.reason}"
            warnings.warn(text, MagmergeWarning, stacklevel=2)
    return state.library


def outcome() -> Outcome:
    """The same with the reason for None, and no warning."""
    choice = os.environ.get(VARIABLE) or AUTO
    with _lock:
        if choice not in _outcomes:
            _outcomes[choice] = _choose(choice)
        return _outcomes[choice]


def _choose(choice: str) -> Outcome:
    if choice not in CHOICES:
        raise ParameterError(
            f"{VARIABLE} is {printable(choice)}", remedy=suggestion(choice, CHOICES)
        )
    if choice == OFF:
        return Outcome(None, f"{VARIABLE} is {OFF}", is_off=True)
    try:
        handle, path = _open()
    except NoLibraryError as error:
        reason = printable(str(error))
        if choice != AUTO:
            raise MagmergeError(
                f"{VARIABLE} is {choice}, but there is no library: {reason}",
                remedy=f"mend that, or unset {VARIABLE} to merge by torch",
            ) from error
        return Outcome(None, reason)
    return Outcome(Library(_level(choice, handle), _text(handle, "compiler"), path, handle))


def _level(choice: str, handle: ctypes.CDLL) -> str:
    """The level that is chosen, where the processor has it."""
    highest, levels = _text(handle, "level"), [*LEVELS[this_machine().processor]]
    usable = levels[: levels.index(highest) + 1]
    if choice == AUTO:
        return highest
    if choice not in usable:
        raise ParameterError(
            f"{VARIABLE} is {choice}, which this processor does not have",
            remedy=f"unset it, or say {' or '.join(usable)}",
        )
    return choice


def _open() -> tuple[ctypes.CDLL, Path]:
    """The library's handle and file: that of the package, else that of the cache, built if need be.

    NoLibraryError, with the reasons, where neither can be loaded.
    """
    target = this_machine()
    if target.processor not in LEVELS:
        raise NoLibraryError(f"there are no kernels for the processor {target.processor}")
    reasons = []
    for place in (_packaged, _cached):
        try:
            path = place(target)
            if path is not None:
                return _checked(path, target), path
        except NoLibraryError as error:
            reasons.append(str(error))
    raise NoLibraryError("; ".join(reasons))


def _packaged(target: Target) -> Path | None:
    """The library that was installed with these very sources."""
    path = HERE / target.name
    return path if path.is_file() else None


def _cached(target: Target) -> Path:
    """The library in the user's cache, built where it is missing: a whole file, at every moment."""
    if not hasattr(os, "geteuid"):
        # Who may write to a folder is told otherwise there.
        raise NoLibraryError("this installation has none, and on this system none is compiled")
    compiler, root = find_compiler(), user_cache()
    if root is None:
        raise NoLibraryError("there is no home folder to compile into")
    try:
        folder = root / "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve()
        path = folder / f"{compiler.key(target)}{Path(target.name).suffix}"
        _refuse_foreign(folder)
        if not path.exists():
            build_library(path, compiler, target)
        _refuse_foreign(path.resolve())
    except OSError as error:
        raise NoLibraryError(f"{error.filename or root}: {error.strerror}") from error
    return path.resolve()


def _refuse_foreign(path: Path) -> None:
    fault = writers(path)
    if fault is not None:
        raise NoLibraryError(f"no library is loaded from {path}: {fault}")


def _checked(path: Path, target: Target) -> ctypes.CDLL:
    """The loaded library, whose functions take the arguments that they are called with here."""
    try:
        handle = ctypes.CDLL(str(path))
        levels = LEVELS[target.processor]
        versions = {getattr(handle, f"magmerge_{level}_version")() for level in levels}
        known = _text(handle, "level") in levels and _text(handle, "compiler")
    except (OSError, AttributeError) as error:
        raise NoLibraryError(f"{path} cannot be loaded: {error}") from error
    if not known or versions != {ABI}:
        raise NoLibraryError(f"{path} is of another version (remove it to have it made anew)")
    return handle


def _text(handle: ctypes.CDLL, name: str) -> str:
    function: Callable[[], bytes] = getattr(handle, f"magmerge_{name}")
    function.restype = ctypes.c_char_p  # type: ignore[attr-defined]
    return function().decode()
