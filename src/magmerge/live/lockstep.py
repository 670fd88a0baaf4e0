"""Several runs of one model side by side, which wait for each other at every layer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue

from magmerge.core.machine import Machine
from magmerge.engine.executors import local
from magmerge.live.calls import Listener
from magmerge.live.layers import Call, Layer

Arrivals = Sequence[tuple[int, Call]]
"""Which runs have come to a layer, and with what."""
Place = tuple[Layer, Call] | str
"""Where a run waits: at a layer's call, or at the door of the block that it comes to."""

_current = threading.local()
"""The run of this thread, where it is one of several in lockstep."""


class _StopError(BaseException):
    """Ends a run whose neighbour failed."""


class _WaitingRun:
    """One run in its own thread, which computes only from `go` to `rest`; `at` is where it waits.

    Runs that go at the same time share `lanes`: as many compute at once.
    """

    def __init__(self, run: Callable[[Listener], object], lanes: threading.Semaphore) -> None:
        self.at: Place | None = None
        self._run, self._lanes = run, lanes
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._rest: SimpleQueue[Place | BaseException | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def go(self) -> None:
        """Let it compute until it waits again or ends."""
        self.at = None
        self._go.put(True)

    def rest(self) -> None:
        """Wait until it does; its error is raised."""
        place = self._rest.get()
        if isinstance(place, BaseException):
            raise place
        self.at = place

    def close(self) -> None:
        """End the run where it waits."""
        self._go.put(False)
        self._thread.join()

    def pause(self, place: Place) -> None:
        """Wait at a place until all is done there; called by the run itself."""
        self._lanes.release()
        self._rest.put(place)
        self._wait()

    def _listen(self, layer: Layer, call: Call) -> None:
        self.pause((layer, call))

    def _wait(self) -> None:
        if not self._go.get():
            raise _StopError
        self._lanes.acquire()

    def _main(self) -> None:
        end: BaseException | None = None
        local.single_threaded()
        _current.run = self
        try:
            self._wait()
            self._run(self._listen)
        except _StopError:
            return
        except BaseException as error:
            end = error
        self._lanes.release()
        self._rest.put(end)


def wait_at_door(block: str) -> None:
    """Before a run enters a block: wait until all that run beside it have left the one before."""
    run = getattr(_current, "run", None)
    if run is not None:
        run.pause(block)


def in_lockstep(
    runs: Sequence[Callable[[Listener], object]],
    order: Sequence[str],
    settle: Callable[[Layer, Arrivals], None],
    machine: Machine,
) -> None:
    """Runs that come to each layer together, so that it is looked at once, or changed before any
    passes it.

    Each run is given the listener to observe with, and computes in one thread; as many compute at
    once as the machine has threads. `order` names the layers as a plain run comes to them: where
    runs wait at different layers, as in a mixture of experts, the earliest is settled first.
    `settle` is called with a layer and those runs that are at it, while all runs wait. The first
    error of a run is raised.
    """
    rank = {name: place for place, name in enumerate(order)}
    lanes = threading.Semaphore(machine.count)
    with local.one_thread_an_operation():
        states = [_WaitingRun(run, lanes) for run in runs]
        try:
            _step(states)
            while places := [(n, s.at) for n, s in enumerate(states) if s.at is not None]:
                calls = [(n, *at) for n, at in places if not isinstance(at, str)]
                if not calls:
                    door = places[0][1]
                    _step([states[n] for n, at in places if at == door])
                    continue
                layers = [layer for _, layer, _ in calls]
                first = min(layers, key=lambda layer: rank.get(layer.name, len(rank)))
                here = [(n, call) for n, layer, call in calls if layer is first]
                settle(first, here)
                _step([states[n] for n, _ in here])
        finally:
            for state in states:
                state.close()


def _step(states: Iterable[_WaitingRun]) -> None:
    """Let these runs compute until each waits or ends; of several errors the first is raised."""
    states = list(states)
    for state in states:
        state.go()
    for state in states:
        state.rest()
