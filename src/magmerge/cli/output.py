"""What the command line prints: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from io import StringIO
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.text import Text

from magmerge.core.errors import MagmergeError, MagmergeWarning
from magmerge.core.interactive import stay_quiet
from magmerge.report.terminal_tables import paragraph, plain

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

STOPPED = "stopped; nothing was left at the output"
LOG_WIDTH = 240
"""Columns of a table where there is no terminal."""
LOG_EVERY = 5.0
"""Seconds between two lines of progress where there is no terminal."""


@cache
def log() -> Console:
    """Where progress, warnings and errors go."""
    return Console(stderr=True, highlight=False)


def show(*parts: RenderableType) -> None:
    """Print to stdout. Without a terminal lines are as long as their content, and no longer."""
    out = Console(highlight=False)
    if out.is_terminal:
        out.print(*parts, sep="\n")
        return
    drawn = Console(highlight=False, width=LOG_WIDTH, file=StringIO())
    drawn.print(*parts, sep="\n")
    text = drawn.file.getvalue()  # type: ignore[attr-defined]
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in text.splitlines()))


def show_text(text: str) -> None:
    """Print a file's text to stdout, line for line."""
    sys.stdout.write(text)


def show_json(content: Any) -> None:
    """Print JSON to stdout; a number that is not finite becomes null."""
    print(json.dumps(_finite(content), indent=1))  # noqa: T201


def print_error(error: MagmergeError, *, as_json: bool) -> None:
    """One clear message."""
    if as_json:
        show_json({"error": error.as_dict()})
        return
    _say(plain("error: ", "bold red") + paragraph(str(error)))


def print_stopped(*, as_json: bool) -> None:
    """What the program says when it ends because the user stops it."""
    if as_json:
        print_error(MagmergeError(STOPPED), as_json=True)
    else:
        _say(plain(STOPPED))


def print_warning(message: Warning | str, category: type[Warning]) -> None:
    """One line for a warning of magmerge's own; those of other libraries are not for users."""
    if issubclass(category, MagmergeWarning):
        _say(plain("warning: ", "bold yellow") + paragraph(str(message)))


def _say(text: Text) -> None:
    """To the same screen as the progress bar, which then moves down; whole words on a terminal."""
    text.overflow = None
    log().print(text, soft_wrap=not log().is_terminal)


_open: list[tuple[Progress | None, bool]] = []
"""The bars on the terminal, and whether there is something to say of what is there already."""


def leave_screen() -> bool:
    """Take the bars from the terminal; False where more is to be done before the program ends."""
    if any(noted for _, noted in _open):
        return False
    for bars, _ in _open:
        if bars is not None:
            bars.stop()
    return True


@contextmanager
def _noted(bars: Progress | None, note: object) -> Iterator[None]:
    _open.append((bars, note is not None))
    try:
        yield
    finally:
        _open.pop()


@contextmanager
def progress_reporter(
    note: Callable[[], str] | None = None,
) -> Iterator[Callable[[str, int, int], None]]:
    """A function for `progress=`: a bar on a terminal, a plain line now and then in a log.

    Work that the same command goes on with has a `note` of what is there already, said when the
    user stops it; exit code 130.
    """
    stay_quiet()
    screen = log()
    try:
        if not screen.is_terminal:
            with _noted(None, note):
                yield _LineReporter(screen)
            return
        bars = _bars(screen)
        with bars, _noted(bars, note):
            yield _BarReporter(bars)
    except KeyboardInterrupt:
        if note is None:
            raise
        screen.print(f"stopped{note()}", markup=False)
        raise SystemExit(130) from None


def _bars(screen: Console) -> Progress:
    from rich import progress as p

    columns = (p.TextColumn("{task.description}"), p.BarColumn(), p.MofNCompleteColumn())
    spent = (p.TimeElapsedColumn(), p.TextColumn("elapsed"))
    left = (p.TimeRemainingColumn(), p.TextColumn("left"))
    return p.Progress(*columns, *spent, *left, console=screen)


class _BarReporter:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, label: str, done: int, total: int) -> None:
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label, total=total)
        self._bars.update(self._tasks[label], completed=done, total=total)


class _LineReporter:
    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._last = time.monotonic()
        self._begun: dict[str, float] = {}

    def __call__(self, label: str, done: int, total: int) -> None:
        now = time.monotonic()
        begun = self._begun.setdefault(label, now)
        if done == total or now - self._last >= LOG_EVERY:
            self._last = now
            left = (now - begun) * (total - done) / max(done, 1)
            more = f", about {_duration(left)} left" if left >= 1 else ""
            self._screen.print(plain(f"{label}: {done}/{total}{more}"))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )


def _finite(content: Any) -> Any:
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
