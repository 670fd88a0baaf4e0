from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import pytest
import torch

from magmerge.executors import local


def test_results_come_in_the_order_of_the_jobs() -> None:
    def job(i: int) -> int:
        time.sleep(0.002 * (5 - i % 5))
        return i

    seen: list[int] = []
    found = local.run((partial(job, i) for i in range(20)), threads=4, done=seen.append)
    assert found == seen == list(range(20))


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

    local.run(jobs(), threads=3)
    assert max(ahead) <= 3 + 2


def test_the_first_error_is_raised_and_stops_the_rest() -> None:
    done: list[int] = []

    def job(i: int) -> None:
        if i == 2:
            raise ValueError("job 2")
        time.sleep(0.01)
        done.append(i)

    with pytest.raises(ValueError, match="job 2"):
        local.run((partial(job, i) for i in range(100)), threads=2)
    assert len(done) < 10


def test_operations_use_one_thread_and_the_setting_comes_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert set(local.run([torch.get_num_threads] * 4, threads=2)) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
