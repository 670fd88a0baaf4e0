"""The progress bars of lm-evaluation-harness, told to `progress` and not drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from magmerge.run import Progress


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
    building: Any = import_module("lm_eval.api.task")

    def bar(items: Iterable[Any] = (), *_: Any, **options: Any) -> Bar:
        return Bar(progress, items, options.get("total"))

    def silent(items: Iterable[Any] = (), *_: Any, **__: Any) -> Bar:
        return Bar(None, items)

    before = place.tqdm, building.tqdm
    place.tqdm, building.tqdm = bar, silent
    try:
        yield
    finally:
        place.tqdm, building.tqdm = before
