from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from magmerge.core.machine import Machine
from magmerge.engine.executors import local


def test_results_come_in_the_order_of_the_jobs() -> None:
    def job(i: int) -> int:
        time.sleep(0.002 * (5 - i % 5))
        return i

    seen: list[int] = []
    found = local.run(
        local.single(partial(job, i) for i in range(20)), Machine(4), done=seen.append
    )
    assert found == sorted(seen) == list(range(20))


def test_few_jobs_are_taken_ahead() -> None:
    started, finished, ahead = 0, 0, []
    lock = threading.Lock()

    def jobs() -> Callable[[], None]:
        nonlocal started
        for _ in range(30):
            started += 1
            ahead.append(started - finished)
            yield job

    def job() -> None:
        nonlocal finished
        with lock:
            finished += 1

    local.run(local.single(jobs()), Machine(3))
    assert max(ahead) <= 3 + 3


def test_the_first_error_is_raised_and_stops_the_rest() -> None:
    done: list[int] = []

    def job(i: int) -> None:
        if i == 2:
            raise ValueError("job 2")
        time.sleep(0.01)
        done.append(i)

    with pytest.raises(ValueError, match="job 2"):
        local.run(local.single(partial(job, i) for i in range(100)), Machine(2))
    assert len(done) < 10


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_error_of_the_earliest_job_is_raised_whatever_the_threads(threads: int) -> None:
    def job(i: int, stage: int) -> None:
        time.sleep(0.02 if i == 1 else 0.001)
        if (i, stage) == (1, 2) or i in (2, 3):
            raise ValueError(f"job {i}")

    def task(i: int) -> local.Task[None]:
        for stage in range(3):
            yield [local.Job(0, partial(job, i, stage))]

    with pytest.raises(ValueError, match="job 1"):
        local.run((task(i) for i in range(20)), Machine(threads))


def test_an_error_stops_what_comes_after_it_in_its_own_stage() -> None:
    done: list[int] = []

    def job(i: int) -> None:
        if i == 3:
            raise ValueError("job 3")
        time.sleep(0.001)
        done.append(i)

    def task() -> local.Task[None]:
        yield [local.Job(0, partial(job, i)) for i in range(300)]

    with pytest.raises(ValueError, match="job 3"):
        local.run([task()], Machine(2))
    assert {0, 1, 2} <= set(done)
    assert len(done) < 30


def test_operations_use_one_thread_and_the_setting_comes_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert set(local.run(local.single([torch.get_num_threads] * 4), Machine(2))) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_job_that_is_the_first_to_need_torch_has_one_thread_too() -> None:
    """And so have those that began before torch was there; its own setting comes back."""
    code = (
        "import sys, threading\n"
        "from magmerge.core.lazy import torch\n"
        "from magmerge.core.machine import Machine\n"
        "from magmerge.engine.executors import local\n"
        "both = threading.Barrier(2)\n"
        "def job():\n"
        "    both.wait()\n"
        "    return torch.get_num_threads()\n"
        "assert 'torch' not in sys.modules\n"
        "seen = local.run(local.single([job, job]), Machine(2))\n"
        "print(set(seen), torch.get_num_threads())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "{1} 2\n"


def staged(log: list[str], name: str, widths: list[int]) -> local.Task[str]:
    """A task whose stages have so many jobs; each job logs where it is."""
    for stage, width in enumerate(widths):
        results = yield [
            local.Job(1, partial(lambda s, i: log.append(f"{name}{s}") or i, stage, i))
            for i in range(width)
        ]
        assert results == list(range(width))
    return name


@pytest.mark.parametrize("threads", [1, 4])
def test_a_stage_begins_when_the_one_before_it_has_ended(threads: int) -> None:
    log: list[str] = []
    tasks = (staged(log, name, [3, 0, 2, 1]) for name in "abcdefgh")
    assert local.run(tasks, Machine(threads)) == list("abcdefgh")
    for name in "abcdefgh":
        own = [entry for entry in log if entry[0] == name]
        assert own == [f"{name}{s}" for s in (0, 0, 0, 2, 2, 3)]


def test_jobs_stay_within_the_room_and_a_larger_one_runs_alone() -> None:
    lock, used, seen = threading.Lock(), 0, []

    def job(size: int) -> None:
        nonlocal used
        with lock:
            used += size
            seen.append((size, used))
        time.sleep(0.002)
        with lock:
            used -= size

    sizes = [3, 5, 2, 50, 4, 4, 4, 1, 9, 3] * 3

    def tasks() -> Iterator[local.Task[None]]:
        for size in sizes:
            yield one(size)

    def one(size: int) -> local.Task[None]:
        yield [local.Job(size, partial(job, size))]

    local.run(tasks(), Machine(4), room=10)
    assert len(seen) == len(sizes)
    assert all(total <= 10 or (size == 50 and total == 50) for size, total in seen)
    assert max(total for size, total in seen if size != 50) > 5


def test_an_error_lets_nothing_wait_for_ever() -> None:
    def fail() -> None:
        raise ValueError("no")

    def one(size: int, call: Callable[[], None]) -> local.Task[None]:
        yield [local.Job(size, call)]

    tasks = [one(9, fail), *(one(9, partial(time.sleep, 0.01)) for _ in range(20))]
    with pytest.raises(ValueError, match="no"):
        local.run(tasks, Machine(3), room=10)


def test_small_jobs_are_done_in_the_calling_thread() -> None:
    def task(size: int) -> local.Task[list[threading.Thread]]:
        job = local.Job(size, threading.current_thread)
        first = yield [job]
        second = yield [job, job]
        return [*first, *second]

    sizes = (1, local.SMALL, local.SMALL + 1, 0)
    found = local.run((task(size) for size in sizes), Machine(2))
    own = threading.current_thread()
    assert [{thread is own for thread in threads} for threads in found] == [
        {True}, {True}, {False}, {False},
    ]  # fmt: skip


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_a_small_job_lets_those_before_it_end(threads: int) -> None:
    ended: list[int] = []

    def task(number: int) -> local.Task[None]:
        def call() -> None:
            if number == 2:
                raise ValueError(f"job {number}")
            time.sleep(0.01)
            ended.append(number)

        yield [local.Job(1 if number > 1 else 0, call)]

    with pytest.raises(ValueError, match="job 2"):
        local.run((task(number) for number in range(5)), Machine(threads))
    assert sorted(ended) == [0, 1]
