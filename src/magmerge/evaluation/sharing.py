"""Models with layers in common, run on one batch: what the common layers put out is reused."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from magmerge.live.units import Memory, Unit, units_of

Run = Callable[[nn.Module], Tensor]
"""Calls a module once and says what it makes of a batch."""


class OtherOrderError(Exception):
    """A model ran through its layers otherwise than the first one did."""


class ChangedInputError(Exception):
    """A layer changed what it was given in place, which a layer that is not run would not do."""


@dataclass(slots=True)
class _Recording:
    """The first model's run: what its units put out, as long as another model may take it."""

    memory: Memory = field(default_factory=Memory)
    cuts: dict[int, int] = field(default_factory=dict)
    size: int = 0


@dataclass(slots=True)
class _Replay:
    """Another model's run, which takes the outputs of the first `cut` calls from `memory`."""

    memory: Memory
    cut: int
    count: int = 0


class Relay:
    """Models that were built alike, of which each runs only from its first own layer on.

    A layer is an item of a list of blocks, or a module beside them (`live.units`). Another model
    takes the first one's outputs up to the first call of a layer whose parameters and buffers are
    not equal bit for bit, and no more than `room` bytes of them; where parameters outside all
    layers differ, it takes none. A trial on one batch compares whole outputs and sees whether
    layers change their inputs; models that fail it run alone.
    """

    def __init__(self, modules: Sequence[nn.Module], room: int) -> None:
        self._first, self._others, self._room = modules[0], modules[1:], room
        self._own = threading.local()
        self.changed = [changed_units(self._first, other) for other in self._others]

    @property
    def useful(self) -> bool:
        """Whether any model has a layer that it need not run."""
        return any(changed is not None for changed in self.changed)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within it the models can be run; afterwards no trace of that is left in them."""
        with ExitStack() as stack:
            for module in (self._first, *self._others):
                for unit in units_of(module):
                    stack.enter_context(self._wrapped(unit))
            yield

    def run(self, call: Run) -> list[Tensor]:
        """What each model makes of a batch, the first one's first."""
        recording = _Recording()
        found = [self._with(recording, call, self._first)]
        for number, other in enumerate(self._others):
            if self.changed[number] is None:
                found.append(call(other))
                continue
            cut = recording.cuts.get(number, len(recording.memory.calls))
            replay = _Replay(recording.memory, cut)
            try:
                found.append(self._with(replay, call, other))
            except OtherOrderError:
                found.append(call(other))
        return found

    def trial(self, call: Run) -> None:
        """Compare the models' whole outputs on one batch; those that fail run alone from now on.

        Not in inference mode, where changes in place cannot be seen.
        """
        self._own.looking = True
        try:
            self._compare(call)
        # Whatever sharing trips over; an error of the model's own comes again when it runs alone.
        except Exception:
            self.changed = [None for _ in self._others]
        finally:
            self._own.looking = False

    def _compare(self, call: Run) -> None:
        outputs: list[Any] = []
        with ExitStack() as stack:
            for module in (self._first, *self._others):
                hook = module.register_forward_hook(lambda _, __, output: outputs.append(output))
                stack.callback(hook.remove)
            self.run(call)
            shared, outputs = outputs, []
            for module in (self._first, *self._others):
                call(module)
        if len(shared) != len(outputs):
            self.changed = [None for _ in self._others]
            return
        for number, (one, other) in enumerate(zip(shared[1:], outputs[1:], strict=True)):
            if not alike(one, other):
                self.changed[number] = None

    def _with(self, state: _Recording | _Replay, call: Run, module: nn.Module) -> Tensor:
        self._own.state = state
        try:
            return call(module)
        finally:
            self._own.state = None

    @contextmanager
    def _wrapped(self, unit: Unit) -> Iterator[None]:
        forward, own = unit.module.forward, unit.module.__dict__.get("forward")

        def run(*args: Any, **kwargs: Any) -> Any:
            state = getattr(self._own, "state", None)
            if isinstance(state, _Replay) and state.count < state.cut:
                return _replayed(state, unit.path)
            looking = getattr(self._own, "looking", False)
            before = _versions((args, kwargs)) if looking else []
            output = forward(*args, **kwargs)
            if looking and before != _versions((args, kwargs)):
                raise ChangedInputError
            if isinstance(state, _Recording):
                self._keep(state, unit.path, output)
            return output

        unit.module.__dict__["forward"] = run
        try:
            yield
        finally:
            del unit.module.__dict__["forward"]
            if own is not None:
                unit.module.__dict__["forward"] = own

    def _keep(self, state: _Recording, path: str, output: Any) -> None:
        for number, changed in enumerate(self.changed):
            if changed is None or path in changed:
                state.cuts.setdefault(number, len(state.memory.calls))
        state.size += sum(one.numel() * one.element_size() for one in _tensors_in(output))
        if state.size > self._room:
            for number in range(len(self._others)):
                state.cuts.setdefault(number, len(state.memory.calls))
        if len(state.cuts) < len(self._others):
            state.memory.calls.append((path, copy.deepcopy(output)))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    parts = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, Mapping | list | tuple):
        for part in parts:
            yield from _tensors_in(part)


def _versions(value: Any) -> list[tuple[int, int]]:
    """How often each tensor was changed in place."""
    return [(id(one), one._version) for one in _tensors_in(value)]


def _replayed(state: _Replay, path: str) -> Any:
    known, output = state.memory.calls[state.count]
    if known != path:
        raise OtherOrderError
    state.count += 1
    # What comes after may change it in place.
    return copy.deepcopy(output)


def changed_units(first: nn.Module, other: nn.Module) -> frozenset[str] | None:
    """The paths of the units in which two models differ; None where nothing can be shared.

    Units without parameters and buffers are equal, but sharing them alone would not pay.
    """
    units, others = units_of(first), units_of(other)
    if [unit.path for unit in units] != [unit.path for unit in others]:
        return None
    inside: set[int] = set()
    changed = set()
    for one, two in zip(units, others, strict=True):
        inside |= {id(tensor) for tensor in _tensors(one.module).values()}
        if not _equal(_tensors(one.module), _tensors(two.module)):
            changed.add(one.path)
    whole, theirs = _tensors(first), _tensors(other)
    beside = [name for name, tensor in whole.items() if id(tensor) not in inside]
    if whole.keys() != theirs.keys():
        return None
    if any(not _same_bits(whole[name], theirs[name]) for name in beside):
        return None
    filled = {unit.path for unit in units if _tensors(unit.module)}
    return frozenset(changed) if filled - changed else None


def alike(one: Any, other: Any) -> bool:
    """Whether two outputs hold the same bits, in tensors, mappings, lists and attributes."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and _same_bits(one, other)
    if isinstance(one, Mapping):
        same = isinstance(other, Mapping) and list(one) == list(other)
        return same and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        same = isinstance(other, list | tuple) and len(one) == len(other)
        return same and all(map(alike, one, other))
    # Deeper down are caches for generating text, which nothing here reads.
    own = getattr(one, "__dict__", {})
    tensors = [name for name, value in own.items() if isinstance(value, Tensor)]
    return all(alike(own[name], getattr(other, name, None)) for name in tensors)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those too that are not saved; shared ones under each name."""
    found: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    return found | dict(module.named_buffers(remove_duplicate=False))


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(_same_bits(one[n], other[n]) for n in one)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal bit for bit, so that 0 is not -0, and NaN is itself."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    if one.data_ptr() == other.data_ptr():
        return one.stride() == other.stride() or one.numel() == 0
    flat = [part.detach().contiguous().reshape(-1).view(torch.uint8) for part in (one, other)]
    return torch.equal(*flat)
