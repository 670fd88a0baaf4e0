"""Jobs on this machine, in one thread or several, with bounded look-ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


def run(
    jobs: Iterable[Callable[[], T]], *, threads: int, done: Callable[[T], None] | None = None
) -> list[T]:
    """The results of all jobs in their order; `done` is called with each, in that order too.

    At most `threads` jobs run and one waits, so memory is bounded by the jobs in flight. The
    first error stops the rest and is raised. Each job computes in one thread, so that its result
    does not depend on how many there are.
    """
    results: list[T] = []
    pending: deque[Future[T]] = deque()

    def collect() -> None:
        results.append(pending.popleft().result())
        if done is not None:
            done(results[-1])

    with (
        _one_thread_an_operation(),
        ThreadPoolExecutor(threads, initializer=_single_threaded) as pool,
    ):
        try:
            for job in jobs:
                pending.append(pool.submit(job))
                if len(pending) > threads:
                    collect()
            while pending:
                collect()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return results


def _single_threaded() -> None:
    torch.set_num_threads(1)


@contextmanager
def _one_thread_an_operation() -> Iterator[None]:
    """torch's setting is the process's: give it back as it was."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
