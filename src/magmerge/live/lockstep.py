"""Several runs of one model side by side, which wait for each other at every layer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from magmerge.live.calls import Listener
from magmerge.live.layers import Call, Layer

Arrivals = Sequence[tuple[int, Call]]
"""Which runs have come to a layer, and with what."""


class _StopError(BaseException):
    """Ends a run whose neighbour failed."""


class _WaitingRun:
    """One run in its own thread, which computes only within `step`; `at` is where it waits."""

    def __init__(self, run: Callable[[Listener], object], settled: set[str]) -> None:
        self.at: tuple[Layer, Call] | None = None
        self._run, self._settled = run, settled
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._rest: SimpleQueue[tuple[Layer, Call] | BaseException | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def step(self) -> None:
        """Compute until the run waits at a layer or ends."""
        self.at = None
        self._go.put(True)
        place = self._rest.get()
        if isinstance(place, BaseException):
            raise place
        self.at = place

    def close(self) -> None:
        """End the run where it waits."""
        self._go.put(False)
        self._thread.join()

    def _listen(self, layer: Layer, call: Call) -> None:
        if layer.name not in self._settled:
            self._rest.put((layer, call))
            self._wait()

    def _wait(self) -> None:
        if not self._go.get():
            raise _StopError

    def _main(self) -> None:
        end: BaseException | None = None
        try:
            self._wait()
            self._run(self._listen)
        except _StopError:
            pass
        except BaseException as error:
            end = error
        self._rest.put(end)


def in_lockstep(
    runs: Sequence[Callable[[Listener], object]],
    order: Sequence[str],
    settle: Callable[[Layer, Arrivals], None],
) -> None:
    """Runs that come to each layer together, so that it can be changed before any passes it.

    Each run is given the listener to observe with. One computes at a time; the others wait. `order`
    names the layers as a plain run comes to them: where runs wait at different layers, as in a
    mixture of experts, the earliest is settled first. `settle` is called with a layer and those
    runs that are at its first call. The first error of a run is raised.
    """
    rank = {name: place for place, name in enumerate(order)}
    settled: set[str] = set()
    states = [_WaitingRun(run, settled) for run in runs]
    try:
        for state in states:
            state.step()
        while places := [(n, *state.at) for n, state in enumerate(states) if state.at is not None]:
            layers = [layer for _, layer, _ in places]
            first = min(layers, key=lambda layer: rank.get(layer.name, len(rank)))
            here = [(n, call) for n, layer, call in places if layer is first]
            settle(first, here)
            settled.add(first.name)
            for n, _ in here:
                states[n].step()
    finally:
        for state in states:
            state.close()
