"""The few functions that files call to rebuild data, carried out; every other call becomes a
record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from magmerge.checkpoints.pickles.limits import (
    MEMBER,
    RUNS_MEMBER,
    Budget,
    DamagedError,
    RefusedError,
    member_of,
)
from magmerge.checkpoints.pickles.records import (
    ARRAY_REBUILDERS,
    ArrayDtype,
    ArrayRecord,
    Global,
    Record,
    Storage,
    TensorRecord,
    as_tensor,
    key_of,
    name_of_dtype,
    set_order,
    set_state,
    tensor_record,
)

Rebuild = Callable[[tuple[Any, ...], Budget], Any]
A_CALL = "(what a call gave)"
LONGEST_CODEC = 16
WRAPPER = "torch._utils._rebuild_wrapper_subclass"


def call(function: Any, arguments: tuple[Any, ...], budget: Budget) -> Any:
    """What `function` would give for `arguments`, if it is known to rebuild data; else a record."""
    # One tuple can be the arguments of many calls, and some copy it.
    budget.step(len(arguments))
    if not isinstance(function, Global):
        return Record(A_CALL, arguments)
    rebuild = REBUILDERS.get(function.name)
    value = None if rebuild is None else rebuild(arguments, budget)
    return Record(function.name, arguments) if value is None else value


def build(owner: Any, state: Any, budget: Budget) -> Any:
    """`owner` with its state."""
    if isinstance(owner, Record):
        if owner.state is not None:
            raise DamagedError("an object is given its state twice")
        owner.state = state
    elif isinstance(owner, ArrayRecord):
        set_state(owner, state, budget)
    elif isinstance(owner, ArrayDtype):
        set_order(owner, state)
    elif not isinstance(owner, TensorRecord | dict | set | Storage):
        # Attributes of a tensor, or of a mapping (a state dictionary's _metadata), are no data.
        raise DamagedError(f"it gives a state to a {type(owner).__name__}")
    return owner


def _dictionary(arguments: tuple[Any, ...], budget: Budget) -> Any:
    """OrderedDict() or OrderedDict(pairs); entries follow for the first."""
    if not arguments:
        return {}
    content = arguments[0]
    if len(arguments) > 1 or not isinstance(content, dict | list | tuple):
        return None
    budget.make(len(content))
    if isinstance(content, dict):
        return dict(content)
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in content):
        return None
    return {key_of(key): value for key, value in content}


def _set(arguments: tuple[Any, ...], budget: Budget) -> Any:
    content = _sequence(arguments or ((),), budget)
    return None if content is None else set(map(key_of, content))


def _size(arguments: tuple[Any, ...], budget: Budget) -> Any:
    """torch.Size"""
    content = _sequence(arguments if len(arguments) == 1 else ((),), budget)
    return None if content is None else tuple(content)


def _sequence(arguments: tuple[Any, ...], budget: Budget) -> list[Any] | tuple[Any, ...] | None:
    """The one argument, if it is a list or a tuple."""
    if len(arguments) != 1 or not isinstance(arguments[0], list | tuple):
        return None
    budget.make(len(arguments[0]))
    content: list[Any] | tuple[Any, ...] = arguments[0]
    return content


def _bytes(arguments: tuple[Any, ...], budget: Budget) -> Any:
    """bytes() and bytearray() of nothing, of bytes, and of text that spells bytes."""
    if not arguments:
        return b""
    content = arguments[0]
    if isinstance(content, bytes | bytearray) and len(arguments) == 1:
        budget.convert(len(content))
        return bytes(content)
    return _encode(arguments, budget) if len(arguments) == 2 else None


def _encode(arguments: tuple[Any, ...], budget: Budget) -> Any:
    """How protocols before 3 spell bytes: as text in latin-1."""
    if len(arguments) != 2 or not all(isinstance(text, str) for text in arguments):
        return None
    text, encoding = arguments
    if encoding[:LONGEST_CODEC].lower() not in ("latin1", "latin-1"):
        return None
    budget.convert(len(text))
    return text.encode("latin-1")


def _strided(arguments: tuple[Any, ...], _: Budget) -> Any:
    """_rebuild_tensor and _rebuild_tensor_v2: storage, offset, shape, strides, and no data."""
    return tensor_record(arguments[:4], None, arguments[6] if len(arguments) > 6 else None)


def _strided_with_dtype(arguments: tuple[Any, ...], _: Budget) -> Any:
    """_rebuild_tensor_v3, for dtypes that have no storage class of their own."""
    *first, dtype, metadata = (*arguments[:8], *[None] * 8)[:8]
    name = name_of_dtype(dtype)
    return None if name is None else tensor_record(tuple(first[:4]), name, metadata)


def _moved(arguments: tuple[Any, ...], _: Budget) -> Any:
    """A tensor that was on another device is its data, where that is of the tensor's own dtype."""
    if len(arguments) < 2:
        return None
    data, dtype = arguments[:2]
    value = as_tensor(data) if isinstance(data, ArrayRecord) else data
    same = isinstance(value, TensorRecord) and value.dtype == name_of_dtype(dtype)
    return value if same else None


def _typed(arguments: tuple[Any, ...], budget: Budget) -> Any:
    """_rebuild_from_type_v2: a function, a class, arguments, a state; the class adds no data.

    A distributed tensor (DTensor) has its own rank's part in its state, which may be all of it.
    """
    if len(arguments) < 3 or not isinstance(arguments[2], tuple):
        return None
    value = call(arguments[0], arguments[2], budget)
    # It keeps them in slots, which are the second part of a state.
    state = arguments[3] if len(arguments) > 3 else None
    state = state[1] if isinstance(state, tuple) and len(state) == 2 else state
    if isinstance(value, Record) and value.name == WRAPPER and isinstance(state, dict):
        own = state.get("_local_tensor")
        if isinstance(own, TensorRecord) and value.args[2:3] == (own.shape,):
            return own
    return value


def _reconstructed(arguments: tuple[Any, ...], _: Budget) -> Any:
    """copyreg._reconstructor: a class, its base class, and the base's value."""
    known = arguments and isinstance(arguments[0], Global)
    return Record(arguments[0].name, arguments[1:]) if known else None


def _member(arguments: tuple[Any, ...], budget: Budget) -> Any:
    """getattr of a class and a name: a member of an enumeration."""
    if len(arguments) != 2 or not isinstance(arguments[1], str):
        raise RefusedError(RUNS_MEMBER)
    owner, name = arguments
    if not isinstance(owner, Global | Record) or owner.name == MEMBER:
        raise RefusedError(RUNS_MEMBER)
    budget.members += 1
    budget.convert(len(owner.name) + len(name))
    return Record(member_of(owner.name, name), ())


REBUILDERS: dict[str, Rebuild] = {
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "collections.defaultdict": lambda arguments, budget: _dictionary(arguments[1:], budget),
    "builtins.dict": _dictionary,
    MEMBER: _member,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstructed,
    "copyreg.__newobj__": lambda a, budget: call(a[0], a[1:], budget) if a else None,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _strided,
    "torch._utils._rebuild_tensor_v2": _strided,
    "torch._utils._rebuild_tensor_v3": _strided_with_dtype,
    # A parameter is its data.
    "torch._utils._rebuild_parameter": lambda a, _: a[0] if a else None,
    "torch._utils._rebuild_parameter_with_state": lambda a, _: a[0] if a else None,
    "torch._utils._rebuild_device_tensor_from_numpy": _moved,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _moved,
    "torch._utils._rebuild_xla_tensor": _moved,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch._tensor._rebuild_from_type": _typed,
    **ARRAY_REBUILDERS,
}

CARRIERS = ("numpy", "builtins", "collections", "copyreg", "_codecs")
"""Modules of which a file of data names the classes too."""


def is_data(name: str) -> bool:
    """Whether a name is one that files of nothing but data hold: torch.FloatStorage, set, ..."""
    first, *others = name.split(".")
    of_torch = first == "torch" and (len(others) == 1 or others[0] == "storage")
    return name in REBUILDERS or of_torch or first in CARRIERS
