"""The pickle machine's opcodes, carried out on inert values: a global becomes a name, and a call
becomes a record of it. Nothing here can import, look up or call what a pickle names.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from magmerge.checkpoints.pickled.dangers import named
from magmerge.checkpoints.pickled.rebuilders import build, call
from magmerge.checkpoints.pickled.records import Global, Record, key_of
from magmerge.checkpoints.pickled.refusals import DamagedError, RefusedError, spoken

if TYPE_CHECKING:
    from magmerge.checkpoints.pickled.machine import Machine

LONGEST_INTEGER = 8192
"""Bits. Longer ones take time to hash, and no checkpoint holds any."""
LAST_MEMO = 2**32
MEMO_STEPS = 3
"""What an object's number costs beside its opcode: it takes more memory than that."""
Handler: TypeAlias = "Callable[[Machine, Any], None]"


def _push(machine: Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _integer(machine: Machine, argument: int) -> None:
    if argument.bit_length() > LONGEST_INTEGER:
        raise RefusedError(f"it holds an integer of {argument.bit_length():,} bits")
    machine.stack.append(argument)


def _constant(value: Any) -> Handler:
    return lambda machine, _: machine.stack.append(value)


def _fresh(kind: Callable[[], Any]) -> Handler:
    def handle(machine: Machine, _: Any) -> None:
        machine.budget.make()
        machine.stack.append(kind())

    return handle


def _gathered(kind: Callable[[Machine, list[Any]], Any]) -> Handler:
    """A container of all that is above the mark."""

    def handle(machine: Machine, _: Any) -> None:
        machine.budget.make()
        items = machine.marked()
        machine.stack.append(kind(machine, items))

    return handle


def _tuple(size: int) -> Handler:
    def handle(machine: Machine, _: Any) -> None:
        machine.budget.make()
        items = tuple(machine.stack[-size:])
        if len(items) != size:
            raise DamagedError("its stack runs empty")
        machine.stack[-size:] = [items]

    return handle


def _nothing(_: Machine, __: Any) -> None:
    return None


def _pop(machine: Machine, _: Any) -> None:
    # pickle's own machine lets a POP take the mark where nothing is above it.
    if machine.stack:
        machine.stack.pop()
    else:
        machine.marked()


def _pop_mark(machine: Machine, _: Any) -> None:
    machine.marked()


def _mark(machine: Machine, _: Any) -> None:
    machine.budget.make()
    machine.marks.append(machine.stack)
    machine.stack = []


def _duplicate(machine: Machine, _: Any) -> None:
    machine.stack.append(machine.stack[-1])


def _put(machine: Machine, index: int) -> None:
    if not 0 <= index < LAST_MEMO:
        raise DamagedError(f"it numbers an object {spoken(index)}")
    machine.budget.step(MEMO_STEPS)
    machine.memo[index] = machine.stack[-1]


def _memoize(machine: Machine, _: Any) -> None:
    machine.budget.step(MEMO_STEPS)
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _get(machine: Machine, index: int) -> None:
    if index not in machine.memo:
        raise DamagedError(f"it asks for object {spoken(index)}, which it does not have")
    machine.stack.append(machine.memo[index])


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise DamagedError("a key of a mapping has no value")
    return {key_of(items[i]): items[i + 1] for i in range(0, len(items), 2)}


def _set_items(machine: Machine, items: list[Any]) -> None:
    owner = machine.stack[-1]
    entries = owner.entries if isinstance(owner, Record) else owner
    if not isinstance(entries, dict):
        raise DamagedError(f"it puts entries into a {type(owner).__name__}")
    entries.update(_pairs(items))


def _append(machine: Machine, items: list[Any]) -> None:
    owner = machine.stack[-1]
    elements = owner.elements if isinstance(owner, Record) else owner
    if not isinstance(elements, list):
        raise DamagedError(f"it appends to a {type(owner).__name__}")
    elements.extend(items)


def _add_items(machine: Machine, _: Any) -> None:
    items = machine.marked()
    owner = machine.stack[-1]
    if not isinstance(owner, set):
        raise DamagedError(f"it adds to a {type(owner).__name__}")
    owner.update(map(key_of, items))


def _two(machine: Machine) -> list[Any]:
    value, key = machine.stack.pop(), machine.stack.pop()
    return [key, value]


def _global(machine: Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    _name(machine, module, name)


def _stack_global(machine: Machine, _: Any) -> None:
    module, name = _two(machine)
    if not isinstance(module, str) or not isinstance(name, str):
        raise DamagedError("it asks for something whose name is no text")
    machine.budget.convert(len(module) + len(name))
    _name(machine, module, name)


def _name(machine: Machine, module: str, name: str) -> None:
    machine.budget.make()
    whole = named(module, name)
    machine.budget.names[whole] += 1
    machine.stack.append(Global(whole))


def _reduce(machine: Machine, _: Any) -> None:
    function, arguments = _two(machine)
    if not isinstance(arguments, tuple):
        raise DamagedError("it calls something with no tuple of arguments")
    machine.budget.make()
    machine.stack.append(call(function, arguments, machine.budget))


def _new_with_keywords(machine: Machine, _: Any) -> None:
    keywords = machine.stack.pop()
    kind, arguments = _two(machine)
    if not isinstance(arguments, tuple) or not isinstance(keywords, dict):
        raise DamagedError("it makes something of no arguments")
    machine.budget.make(len(arguments))
    machine.stack.append(call(kind, (*arguments, keywords), machine.budget))


def _instance(machine: Machine, argument: str) -> None:
    items = machine.marked()
    _global(machine, argument)
    kind = machine.stack.pop()
    machine.stack.append(call(kind, tuple(items), machine.budget))


def _object(machine: Machine, _: Any) -> None:
    machine.budget.make()
    kind, *items = machine.marked()
    machine.stack.append(call(kind, tuple(items), machine.budget))


def _build(machine: Machine, _: Any) -> None:
    state = machine.stack.pop()
    machine.stack[-1] = build(machine.stack[-1], state, machine.budget)


def _persistent(machine: Machine, _: Any) -> None:
    machine.budget.make()
    machine.stack.append(machine.persistent(machine.stack.pop()))


def _refuse(reason: str) -> Handler:
    def handle(_: Machine, __: Any) -> None:
        raise RefusedError(reason)

    return handle


OUTSIDE = "it refers to what is outside the file"
HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2"), _integer),
    **dict.fromkeys(("LONG", "LONG1", "LONG4"), _integer),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _push),
    **dict.fromkeys(("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _push),
    **dict.fromkeys(("FLOAT", "BINFLOAT"), _push),
    **dict.fromkeys(("PROTO", "FRAME", "STOP", "READONLY_BUFFER"), _nothing),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "PERSID"), _refuse(OUTSIDE)),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _reduce),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_LIST": _fresh(list),
    "EMPTY_DICT": _fresh(dict),
    "EMPTY_SET": _fresh(set),
    "LIST": _gathered(lambda _, items: items),
    "TUPLE": _gathered(lambda _, items: tuple(items)),
    "DICT": _gathered(lambda _, items: _pairs(items)),
    "FROZENSET": _gathered(lambda _, items: frozenset(map(key_of, items))),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "DUP": _duplicate,
    "MEMOIZE": _memoize,
    "SETITEM": lambda machine, _: _set_items(machine, _two(machine)),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.marked()),
    "APPEND": lambda machine, _: _append(machine, [machine.stack.pop()]),
    "APPENDS": lambda machine, _: _append(machine, machine.marked()),
    "ADDITEMS": _add_items,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "INST": _instance,
    "OBJ": _object,
    "NEWOBJ_EX": _new_with_keywords,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
assert len(HANDLERS) == len(pickletools.opcodes)
