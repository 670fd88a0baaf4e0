"""The progress bars of lm-evaluation-harness, told to `progress` and not drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

from magmerge.machine import Progress


class Bar:
    """What stands in for the harness's bars: it is told to `progress`, and not drawn."""

    def __init__(
        self, progress: Progress | None, items: Iterable[Any] = (), total: int | None = None
    ) -> None:
        self._progress, self._items, self._done = progress, items, 0
        self._total = total or (len(items) if isinstance(items, Sized) else 0)

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            yield item
            self.update()

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        if self._progress is not None and self._total:
            self._progress("evaluating", min(self._done, self._total), self._total)

    def close(self) -> None:
        """It was never drawn."""


@contextmanager
def told(progress: Progress | None) -> Iterator[None]:
    """Within it the harness's bars go to `progress`."""
    place: Any = import_module("lm_eval.models.huggingface")
    others = [import_module("lm_eval.api.task"), import_module("lm_eval.api.model")]

    def bar(items: Iterable[Any] = (), *_: Any, **options: Any) -> Bar:
        return Bar(progress, items, options.get("total"))

    def silent(items: Iterable[Any] = (), *_: Any, **__: Any) -> Bar:
        return Bar(None, items)

    with ExitStack() as stack:
        stack.enter_context(_instead(place, "tqdm", bar))
        for other in others:
            stack.enter_context(_instead(other, "tqdm", silent))
        # It asks git for the folder's commit, which complains to stderr where there is none.
        evaluator = import_module("lm_eval.evaluator")
        stack.enter_context(_instead(evaluator, "get_git_commit_hash", lambda: None))
        stack.enter_context(_without_bars_of_datasets())
        yield


@contextmanager
def _instead(place: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


@contextmanager
def _without_bars_of_datasets() -> Iterator[None]:
    bars: Any = import_module("datasets.utils")
    shown = not bars.are_progress_bars_disabled()
    bars.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bars()
