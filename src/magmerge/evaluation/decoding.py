"""Batches' inputs, made ahead of the model by several threads, and kept while memory allows."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from torch import Tensor

from magmerge.evaluation.batches import Batch, Prepared
from magmerge.samples import Inputs

AHEAD = 2
"""Batches for each worker that are decoded, or being decoded, before the model asks for them."""


class Kept:
    """Decoded inputs for the next model, in at most `room` bytes.

    What came first stays: passes go through all batches in one order, so that to drop the oldest
    would drop each batch just before it is needed. Only tasks that are not `at_work` make room.
    """

    def __init__(self) -> None:
        self.room = 0
        self._found: dict[tuple[int, int], Inputs] = {}
        self._tasks: dict[int, Prepared] = {}
        self._at_work: frozenset[int] = frozenset()
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes of all that is kept."""
        return sum(map(size_of, self._found.values()))

    def begin(self, tasks: Iterable[Prepared], room: int) -> None:
        """From now on keep inputs of these tasks, in so many bytes."""
        tasks = list(tasks)
        with self._lock:
            self._at_work = frozenset(map(id, tasks))
            # A task that is known here stays in memory, so that its id is not given to another.
            self._tasks |= {id(task): task for task in tasks}
            self.room = room
            self._make_room(0, [key for key in self._found if key[0] not in self._at_work])
            self._make_room(0, list(reversed(self._found)))

    def get(self, task: Prepared, number: int) -> Inputs | None:
        """The inputs of a task's batch, if they are kept."""
        return self._found.get((id(task), number))

    def put(self, task: Prepared, number: int, inputs: Inputs) -> None:
        """Keep them if there is room, and if they are worth it."""
        if not task.lazy:
            return
        size = size_of(inputs)
        with self._lock:
            stale = [key for key in self._found if key[0] not in self._at_work]
            if size <= self.room and self._make_room(size, stale):
                self._found[id(task), number] = inputs

    def _make_room(self, size: int, candidates: Sequence[tuple[int, int]]) -> bool:
        """Drop candidates until `size` more bytes fit; whether they do."""
        total = self.size
        for key in candidates:
            if total + size <= self.room:
                break
            total -= size_of(self._found.pop(key))
        return total + size <= self.room


class Ahead:
    """A task's inputs in order: those that take long are made ahead, in `workers` threads.

    At most AHEAD * workers batches are decoded and not yet taken. Each is made as a whole by one
    thread, so that it is the same for any number of them. To be used as a context.
    """

    def __init__(self, task: Prepared, kept: Kept, workers: int) -> None:
        self._task, self._kept, self._most = task, kept, AHEAD * workers
        self._pool = ThreadPoolExecutor(workers) if task.lazy else None
        self._begun: dict[int, Future[Inputs]] = {}
        self._next = 0

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, number: int) -> Future[Inputs]:
        """The inputs of batch `number`, which are made by now or soon; each is taken once."""
        if self._pool is None:
            return _done(self._task.batches[number].inputs())
        self._begin(number)
        while self._next < min(len(self._task.batches), number + 1 + self._most):
            self._begin(self._next)
        return self._begun.pop(number)

    def _begin(self, number: int) -> None:
        assert self._pool is not None
        if number < self._next:
            return
        self._next = number + 1
        known = self._kept.get(self._task, number)
        if known is not None:
            self._begun[number] = _done(known)
        else:
            batch = self._task.batches[number]
            self._begun[number] = self._pool.submit(self._make, batch, number)

    def _make(self, batch: Batch, number: int) -> Inputs:
        made = batch.inputs()
        self._kept.put(self._task, number, made)
        return made


def size_of(inputs: Inputs) -> int:
    """Bytes of its tensors."""
    parts = (*inputs.args, *inputs.kwargs.values())
    return sum(part.nbytes for part in parts if isinstance(part, Tensor))


def _done(inputs: Inputs) -> Future[Inputs]:
    future: Future[Inputs] = Future()
    future.set_result(inputs)
    return future
