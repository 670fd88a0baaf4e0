"""The pickle machine, on inert values: a global becomes a name, and a call a record of it.

Nothing here can import, look up or call what a pickle names.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from io import BytesIO
from mmap import mmap
from typing import Any, TypeAlias

from magmerge.checkpoints.pickles.limits import (
    MEMBER,
    RUNS_MEMBER,
    Budget,
    DamagedError,
    RefusedError,
    named,
    spoken,
)
from magmerge.checkpoints.pickles.rebuilders import build, call
from magmerge.checkpoints.pickles.records import Global, Record, key_of

LONGEST_INTEGER = 8192
"""Bits. Longer ones take time to hash, and no checkpoint holds any."""
LAST_MEMO = 2**32
MEMO_STEPS = 3
"""What an object's number costs beside its opcode: it takes more memory than that."""


Stream: TypeAlias = BytesIO | mmap
"""Bytes that are read from the beginning on."""
Persistent = Callable[[Any], Any]
"""From the id of what is stored outside the pickle to what stands for it."""


class PickleMachine:
    """Reads one pickle from where the stream is, and leaves the stream behind it."""

    def __init__(self, stream: Stream, budget: Budget, persistent: Persistent) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.budget = budget
        self.persistent = persistent
        self._stream = stream

    def load(self) -> Any:
        """The object that the pickle describes; RefusedError where it is not sound."""
        try:
            for opcode, argument, _ in pickletools.genops(self._stream):  # type: ignore[arg-type]
                self.budget.step()
                HANDLERS[opcode.name](self, argument)
            if self.budget.names[MEMBER] and not self.budget.members:
                raise RefusedError(RUNS_MEMBER)
            return self.stack.pop()
        except RefusedError:
            raise
        except Exception as error:
            # A damaged pickle fails in as many ways as there are opcodes.
            raise DamagedError(
                f"it cannot be read: {type(error).__name__}: {spoken(error)}"
            ) from error

    def push(self, value: Any) -> None:
        """Put a value on the stack that was there before, or takes no memory."""
        self.stack.append(value)

    def make(self, value: Any) -> None:
        """Put something new on the stack."""
        self.budget.make()
        self.stack.append(value)

    def pop(self, count: int) -> tuple[Any, ...]:
        """The last values of the stack, taken off it."""
        if len(self.stack) < count:
            raise DamagedError("its stack runs empty")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    def marked(self) -> list[Any]:
        """What was put on the stack since the last mark, taken off it."""
        items = self.stack
        self.stack = self.marks.pop()
        return items


def _integer(machine: PickleMachine, argument: int) -> None:
    if argument.bit_length() > LONGEST_INTEGER:
        raise RefusedError(f"it holds an integer of {argument.bit_length():,} bits")
    machine.push(argument)


def _pop(machine: PickleMachine, _: Any) -> None:
    # pickle's own machine lets a POP take the mark where nothing is above it.
    if machine.stack:
        machine.pop(1)
    else:
        machine.marked()


def _mark(machine: PickleMachine, _: Any) -> None:
    machine.budget.make()
    machine.marks.append(machine.stack)
    machine.stack = []


def _put(machine: PickleMachine, index: int) -> None:
    if not 0 <= index < LAST_MEMO:
        raise DamagedError(f"it numbers an object {spoken(index)}")
    machine.budget.step(MEMO_STEPS)
    machine.memo[index] = machine.stack[-1]


def _get(machine: PickleMachine, index: int) -> None:
    if index not in machine.memo:
        raise DamagedError(f"it asks for object {spoken(index)}, which it does not have")
    machine.push(machine.memo[index])


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise DamagedError("a key of a mapping has no value")
    return {key_of(items[i]): items[i + 1] for i in range(0, len(items), 2)}


def _set_items(machine: PickleMachine, items: list[Any]) -> None:
    owner = machine.stack[-1]
    entries = owner.entries if isinstance(owner, Record) else owner
    if not isinstance(entries, dict):
        raise DamagedError(f"it puts entries into a {type(owner).__name__}")
    entries.update(_pairs(items))


def _append(machine: PickleMachine, items: list[Any]) -> None:
    owner = machine.stack[-1]
    elements = owner.elements if isinstance(owner, Record) else owner
    if not isinstance(elements, list):
        raise DamagedError(f"it appends to a {type(owner).__name__}")
    elements.extend(items)


def _add_items(machine: PickleMachine, _: Any) -> None:
    items = machine.marked()
    owner = machine.stack[-1]
    if not isinstance(owner, set):
        raise DamagedError(f"it adds to a {type(owner).__name__}")
    owner.update(map(key_of, items))


def _global(machine: PickleMachine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    _name(machine, module, name)


def _stack_global(machine: PickleMachine, _: Any) -> None:
    module, name = machine.pop(2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise DamagedError("it asks for something whose name is no text")
    machine.budget.convert(len(module) + len(name))
    _name(machine, module, name)


def _name(machine: PickleMachine, module: str, name: str) -> None:
    whole = named(module, name)
    machine.budget.names[whole] += 1
    machine.make(Global(whole))


def _call(machine: PickleMachine, function: Any, arguments: Any) -> None:
    if not isinstance(arguments, tuple):
        raise DamagedError("it calls something with no tuple of arguments")
    machine.make(call(function, arguments, machine.budget))


def _new_with_keywords(machine: PickleMachine, _: Any) -> None:
    kind, arguments, keywords = machine.pop(3)
    if not isinstance(arguments, tuple) or not isinstance(keywords, dict):
        raise DamagedError("it makes something of no arguments")
    machine.budget.step(len(arguments))
    _call(machine, kind, (*arguments, keywords))


def _instance(machine: PickleMachine, argument: str) -> None:
    items = machine.marked()
    _global(machine, argument)
    _call(machine, machine.stack.pop(), tuple(items))


def _object(machine: PickleMachine, _: Any) -> None:
    kind, *items = machine.marked()
    _call(machine, kind, tuple(items))


def _build(machine: PickleMachine, _: Any) -> None:
    (state,) = machine.pop(1)
    machine.stack[-1] = build(machine.stack[-1], state, machine.budget)


def _outside(_: PickleMachine, __: Any) -> None:
    raise RefusedError("it refers to what is outside the file")


HANDLERS: dict[str, Callable[[PickleMachine, Any], None]] = {
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2"), _integer),
    **dict.fromkeys(("LONG", "LONG1", "LONG4"), _integer),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), PickleMachine.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), PickleMachine.push),
    **dict.fromkeys(
        ("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), PickleMachine.push
    ),
    **dict.fromkeys(("FLOAT", "BINFLOAT"), PickleMachine.push),
    **dict.fromkeys(("PROTO", "FRAME", "STOP", "READONLY_BUFFER"), lambda _, __: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "PERSID"), _outside),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda machine, _: _call(machine, *machine.pop(2))),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.make([]),
    "EMPTY_DICT": lambda machine, _: machine.make({}),
    "EMPTY_SET": lambda machine, _: machine.make(set()),
    "LIST": lambda machine, _: machine.make(machine.marked()),
    "TUPLE": lambda machine, _: machine.make(tuple(machine.marked())),
    "DICT": lambda machine, _: machine.make(_pairs(machine.marked())),
    "FROZENSET": lambda machine, _: machine.make(frozenset(map(key_of, machine.marked()))),
    "TUPLE1": lambda machine, _: machine.make(machine.pop(1)),
    "TUPLE2": lambda machine, _: machine.make(machine.pop(2)),
    "TUPLE3": lambda machine, _: machine.make(machine.pop(3)),
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": lambda machine, _: machine.marked().clear(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "MEMOIZE": lambda machine, _: _put(machine, len(machine.memo)),
    "SETITEM": lambda machine, _: _set_items(machine, [*machine.pop(2)]),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.marked()),
    "APPEND": lambda machine, _: _append(machine, [*machine.pop(1)]),
    "APPENDS": lambda machine, _: _append(machine, machine.marked()),
    "ADDITEMS": _add_items,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "INST": _instance,
    "OBJ": _object,
    "NEWOBJ_EX": _new_with_keywords,
    "BUILD": _build,
    "BINPERSID": lambda machine, _: machine.make(machine.persistent(*machine.pop(1))),
}
assert len(HANDLERS) == len(pickletools.opcodes)
