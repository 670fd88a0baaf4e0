"""Several runs of one model side by side, which wait for each other at every layer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from magmerge.live.finding import Followed
from magmerge.live.layers import Call
from magmerge.live.observing import Listener

Arrivals = Sequence[tuple[int, Call]]
"""Which runs have come to a layer, and with what."""


class _Stopped(BaseException):
    """Ends a run whose neighbour failed."""


@dataclass(slots=True)
class _Run:
    """One run in its own thread. It computes only while `go` is given to it."""

    thread: threading.Thread | None = None
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    rests: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    layer: Followed | None = None
    call: Call | None = None
    error: BaseException | None = None
    stopped: bool = False


class Lockstep:
    """Runs that come to each layer together, so that it can be changed before any passes it.

    One run computes at a time; the others wait. `order` names the layers as a plain run comes to
    them: where runs wait at different layers, as in a mixture of experts, the earliest is settled
    first. `settle` is called with a layer and those runs that are at its first call.
    """

    def __init__(self, order: Sequence[str], settle: Callable[[Followed, Arrivals], None]) -> None:
        self._rank = {name: place for place, name in enumerate(order)}
        self._settle = settle
        self._settled: set[str] = set()
        self._runs: list[_Run] = []

    def carry_out(self, runs: Sequence[Callable[[Listener], object]]) -> None:
        """Run all; each is given the listener to observe with. The first error is raised."""
        self._runs = [_Run() for _ in runs]
        for state, run in zip(self._runs, runs, strict=True):
            state.thread = threading.Thread(target=self._thread, args=(state, run), daemon=True)
            state.thread.start()
        try:
            for state in self._runs:
                self._resume(state)
            while waiting := [state for state in self._runs if state.layer is not None]:
                self._pass_one_layer(waiting)
        finally:
            for state in self._runs:
                state.stopped = True
                state.go.release()
            for state in self._runs:
                assert state.thread is not None
                state.thread.join()

    def _pass_one_layer(self, waiting: Sequence[_Run]) -> None:
        """Settle the earliest layer that a run waits at, and let those runs go on from it."""
        layers = [state.layer for state in waiting if state.layer is not None]
        layer = min(layers, key=lambda one: self._rank.get(one.layer.name, len(self._rank)))
        here = [state for state in waiting if state.layer is layer]
        arrivals = [(self._runs.index(s), s.call) for s in here if s.call is not None]
        self._settle(layer, arrivals)
        self._settled.add(layer.layer.name)
        for state in here:
            self._resume(state)

    def _resume(self, state: _Run) -> None:
        """Let one run compute until it waits at a layer or ends."""
        state.layer = state.call = None
        state.go.release()
        state.rests.acquire()
        if state.error is not None:
            raise state.error

    def _thread(self, state: _Run, run: Callable[[Listener], object]) -> None:
        def listener(layer: Followed, call: Call) -> None:
            if layer.layer.name in self._settled:
                return
            state.layer, state.call = layer, call
            state.rests.release()
            self._wait(state)

        try:
            self._wait(state)
            run(listener)
        except _Stopped:
            pass
        except BaseException as error:
            state.error = error
        finally:
            state.layer = state.call = None
            state.rests.release()

    @staticmethod
    def _wait(state: _Run) -> None:
        state.go.acquire()
        if state.stopped:
            raise _Stopped
