"""Jobs on this machine, in one thread or several, within a bounded amount of memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from magmerge.core.lazy import at_first_use_of_torch, torch, torch_is_loaded
from magmerge.core.machine import Machine

T = TypeVar("T")


SMALL = 1 << 16
"""Bytes of a job that is done at once, in the thread that carries the run out."""


class Job(NamedTuple):
    """A call, and how many bytes it needs while it runs; 0 where that is not known."""

    size: int
    call: Callable[[], Any]


Task = Generator[Sequence[Job], list[Any], T]
"""Work in stages: yields the jobs of a stage, is sent their results in order, returns its own."""


def run(
    tasks: Iterable[Task[T]],
    machine: Machine,
    *,
    room: int | None = None,
    done: Callable[[T], None] | None = None,
) -> list[T]:
    """The results of all tasks in their order; `done` is called with each as it ends.

    At most as many jobs run at once as the machine has threads, and together they need at most
    `room` bytes, unless one alone needs more. One task more than that is begun and not ended. An
    error stops the tasks that come after its own; those before it end, and of all errors the one of
    the earliest task and job is raised, so that it does not depend on the threads. Each job
    computes in one thread, so that its result does not depend on how many there are.
    """
    with one_thread_an_operation(), ThreadPoolExecutor(machine.count) as pool:
        state = _Run(pool, machine.count, _Room(room), done)
        try:
            return state.carry_out(iter(tasks))
        except BaseException:
            state.room.close()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def single(jobs: Iterable[Callable[[], T]]) -> Iterator[Task[T]]:
    """Tasks of one small job each."""
    for call in jobs:
        yield _alone(call)


def in_place(task: Task[T]) -> T:
    """The result of a task whose jobs are done here, one after the other: as a part of another's
    job, which tells the room that they need.
    """
    try:
        jobs = next(task)
        while True:
            jobs = task.send([job.call() for job in jobs])
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def _alone(call: Callable[[], T]) -> Task[T]:
    results = yield [Job(0, call)]
    return results[0]  # type: ignore[no-any-return]


class _Stage(NamedTuple):
    number: int
    task: Task[Any]
    futures: list[Future[Any]]


class _Run:
    """One run's tasks at work; only the thread that made it touches them."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        lanes: int,
        room: _Room,
        done: Callable[[Any], None] | None,
    ) -> None:
        self.room = room
        self._pool = pool
        self._lanes = lanes
        self._done = done
        self._results: dict[int, Any] = {}
        self._stages: list[_Stage] = []
        """In the order of their tasks, one of each that is begun and not ended."""
        self._failure: BaseException | None = None

    def carry_out(self, tasks: Iterator[Task[Any]]) -> list[Any]:
        count = 0
        for count, task in enumerate(tasks, start=1):
            self._advance(count - 1, task, None)
            # What a task knows between its stages is memory too, so few are begun.
            while len(self._stages) > self._lanes:
                self._collect()
            if self._failure is not None:
                break
        while self._stages:
            self._collect()
        if self._failure is not None:
            raise self._failure
        return [self._results[index] for index in range(count)]

    def _collect(self) -> None:
        """Wait until a stage has ended, and bring its task to the next one."""
        for stage in self._stages:
            places = [place for place, f in enumerate(stage.futures) if _failed(f)]
            # What comes after an error need not be done; what comes before may fail too.
            for future in stage.futures[places[0] + 1 :] if places else ():
                future.cancel()
            if all(future.done() for future in stage.futures):
                self._stages.remove(stage)
                if places:
                    self._fail(stage.number, stage.futures[places[0]].exception())
                else:
                    self._advance(stage.number, stage.task, [f.result() for f in stage.futures])
                return
        running = [f for stage in self._stages for f in stage.futures if not f.done()]
        wait(running, return_when=FIRST_COMPLETED)

    def _advance(self, index: int, task: Task[Any], results: list[Any] | None) -> None:
        try:
            jobs = next(task) if results is None else task.send(results)
            # To hand a small job over takes longer than to do it.
            while jobs and all(0 < job.size <= SMALL for job in jobs):
                jobs = task.send([self.room.run(job) for job in jobs])
        except StopIteration as end:
            self._results[index] = end.value
            if self._done is not None:
                self._done(end.value)
            return
        except Exception as error:
            self._fail(index, error)
            return
        futures = [self._pool.submit(self.room.run, job) for job in jobs]
        self._stages.append(_Stage(index, task, futures))
        self._stages.sort(key=lambda stage: stage.number)

    def _fail(self, number: int, error: BaseException | None) -> None:
        """Remember the error, and drop the tasks after its own: none of them can fail earlier."""
        self._failure = error
        for stage in self._stages:
            if stage.number > number:
                for future in stage.futures:
                    future.cancel()
        self._stages = [stage for stage in self._stages if stage.number < number]


def _failed(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is not None


class _Room:
    """Memory that jobs share; they enter in the order in which they come."""

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._used = 0
        self._queue: deque[object] = deque()
        self._change = threading.Condition()
        self._closed = False

    def run(self, job: Job) -> Any:
        ticket = object()
        with self._change:
            self._queue.append(ticket)
            self._change.wait_for(lambda: self._closed or self._fits(ticket, job.size))
            if self._closed:
                raise RuntimeError("the run was stopped")
            self._queue.popleft()
            self._used += job.size
            self._change.notify_all()
        try:
            if torch_is_loaded():
                torch.set_num_threads(1)
            return job.call()
        finally:
            with self._change:
                self._used -= job.size
                self._change.notify_all()

    def close(self) -> None:
        """Let nothing more begin."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def _fits(self, ticket: object, size: int) -> bool:
        if self._queue[0] is not ticket:
            return False
        return self._size is None or self._used == 0 or self._used + size <= self._size


def single_threaded() -> None:
    """Let the calling thread compute alone."""
    torch.set_num_threads(1)


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """torch's setting is the process's: give it back as it was. A job may be the first to need
    torch, and each thread has to be told for itself.
    """
    before: list[int] = []

    def tell() -> None:
        before.append(torch.get_num_threads())
        single_threaded()

    with at_first_use_of_torch(tell):
        if torch_is_loaded():
            tell()
        try:
            yield
        finally:
            if before:
                torch.set_num_threads(before[0])
