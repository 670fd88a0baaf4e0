"""What a notebook or a terminal shows by itself: bars of progress, and warnings in one line."""

from __future__ import annotations

import html
import sys
import time
import warnings
from typing import Any

from magmerge.core.errors import MagmergeWarning, printable
from magmerge.core.machine import Progress

WIDTH = 30
"""Characters of a bar."""
PAUSE = 0.1
"""Seconds between two looks at a bar, at least."""
_state = {"quiet": False, "warnings": False}


def stay_quiet() -> None:
    """Show nothing by default: the program shows progress and warnings in its own way."""
    _state["quiet"] = True


def default_progress() -> Progress | None:
    """Bars in a notebook, or on a terminal; None where nobody looks."""
    shell = _notebook()
    if _state["quiet"] or (shell is None and not (sys.stderr and sys.stderr.isatty())):
        return None
    _short_warnings()
    return NotebookBar(shell) if shell is not None else TerminalBar()


def _notebook() -> Any:
    """IPython's display functions where a kernel runs this, else None."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return sys.modules.get("IPython.display") if hasattr(shell, "kernel") else None


def _short_warnings() -> None:
    """From now on magmerge's warnings are told without file, line and source."""
    if _state["warnings"]:
        return
    _state["warnings"], before = True, warnings.formatwarning

    def told(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        line: str | None = None,
    ) -> str:  # fmt: skip
        if issubclass(category, MagmergeWarning):
            return f"magmerge: {printable(str(message))}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = told


class TerminalBar:
    """A line of a terminal for each thing that is done, drawn anew while it grows."""

    def __init__(self) -> None:
        self._label, self._drawn = "", 0.0

    def __call__(self, label: str, done: int, total: int) -> None:
        """Draw it, unless that was done just now and there is more to come."""
        now = time.monotonic()
        if done < total and label == self._label and now - self._drawn < PAUSE:
            return
        self._label, self._drawn = label, now
        filled = WIDTH * done // max(total, 1)
        bar = f"{'#' * filled}{'.' * (WIDTH - filled)}"
        end = "\n" if done >= total else ""
        sys.stderr.write(f"\r{printable(label)} [{bar}] {done}/{total}{end}")
        sys.stderr.flush()


class NotebookBar:
    """A bar below the cell for each thing that is done."""

    def __init__(self, display: Any) -> None:
        self._display, self._bars, self._drawn = display, dict[str, Any](), 0.0

    def __call__(self, label: str, done: int, total: int) -> None:
        """Draw it, unless that was done just now and there is more to come."""
        now = time.monotonic()
        if done < total and label in self._bars and now - self._drawn < PAUSE:
            return
        self._drawn = now
        name = html.escape(printable(label))
        text = (
            f'<label>{name} <progress value="{done}" max="{total}">{done}/{total}</progress> '
            f"{done}/{total}</label>"
        )
        shown = self._display.HTML(text)
        if label in self._bars:
            self._bars[label].update(shown)
        else:
            self._bars[label] = self._display.display(shown, display_id=True)
