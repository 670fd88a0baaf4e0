"""Each level of the library gives the same, on whatever processor."""

from __future__ import annotations

import ctypes
from array import array

import pytest

from magmerge.core.errors import ParameterError
from magmerge.kernels import compile as compiling
from magmerge.kernels import library

LEVELS = [*compiling.LEVELS.get(compiling.this_machine().processor, ())]


@pytest.mark.parametrize("level", LEVELS)
def test_a_sum(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until there are kernels."""
    if library.outcome().library is None:
        pytest.skip("there is no library here")
    monkeypatch.setenv(library.VARIABLE, level)
    try:
        own = library.load()
    except ParameterError:
        pytest.skip("this processor does not have it")
    assert own is not None
    call = own.call("sum")
    call.restype, call.argtypes = ctypes.c_float, [ctypes.c_void_p, ctypes.c_size_t]
    values = array("f", range(100))
    assert call(values.buffer_info()[0], len(values)) == 4950
