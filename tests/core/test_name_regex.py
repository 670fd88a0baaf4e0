"""Our search for regular expressions finds what Python's finds, and is never slow."""

from __future__ import annotations

import re
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magmerge.core.errors import ParameterError
from magmerge.core.name_regex import NameRegex

ATOMS = st.sampled_from(["a", "b", ".", r"\.", r"\d", r"\W", "[ab]", "[^a]", "[]x]", "[a-c1]", "1"])
TIMES = st.sampled_from(["", "*", "+", "?", "{2}", "{1,2}", "{,2}", "{1,}", "*?", "+?"])
PARTS = st.recursive(
    st.tuples(ATOMS, TIMES).map("".join),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map("".join)
        | st.tuples(inner, inner, TIMES).map(lambda own: f"({own[0]}|{own[1]}){own[2]}")
        | st.tuples(inner, TIMES).map(lambda own: f"(?:{own[0]}){own[1]}")
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(
    pattern=PARTS,
    ends=st.sampled_from([("", ""), ("^", ""), ("", "$"), ("^", "$"), ("(^|b)", "($|b)")]),
    name=st.text("abc1.x]", max_size=9),
)
def test_it_finds_what_pythons_own_finds(pattern: str, ends: tuple[str, str], name: str) -> None:
    whole = f"{ends[0]}(?:{pattern}){ends[1]}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = re.search(whole, name) is not None
    assert NameRegex(whole).search(name) == expected


@settings(max_examples=300, deadline=None)
@given(pattern=st.text("ab(|)[]{}*+?\\^$.-,12:=!<P", max_size=16), name=st.text(max_size=9))
def test_fuzz_any_pattern_is_searched_for_or_refused(pattern: str, name: str) -> None:
    try:
        NameRegex(pattern).search(name)
    except ParameterError as error:
        assert error.remedy


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|aa)*b", "(.*)*(.*)*x", ".*.*.*.*.*x", "a{1,60}b"]
)
def test_what_takes_pythons_own_for_ever_is_quick(pattern: str) -> None:
    start = time.process_time()
    assert not NameRegex(pattern).search("c" + "a" * 20_000 + "c")
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "pattern", ["((((a{9}){9}){9}){9})", "(){9999}", "((){100}){100}", "a{2000}"]
)
def test_what_would_grow_is_refused(pattern: str) -> None:
    with pytest.raises(ParameterError, match="repeats too much"):
        NameRegex(pattern)
