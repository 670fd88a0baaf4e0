from __future__ import annotations

import json

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from magmerge.checkpoints.output.layout import index_of, lay_out
from magmerge.core import dtypes
from magmerge.core.types import Step, TensorSpec


def step(name: str, shape: tuple[int, ...], dtype: str) -> Step:
    return Step(TensorSpec(name, shape, dtype), "matrix", "merge", "", False, False, None, 0, 0)


MODEL = "model.safetensors"
STEPS = [
    step("b", (3,), "BF16"),
    step("a", (2, 2), "F32"),
    step("flag", (5,), "U8"),
    step("n", (), "I64"),
    step("none", (0, 3), "F32"),
]


def test_golden_header() -> None:
    steps, shards = lay_out(STEPS, 10**9, MODEL, {})
    (shard,) = shards
    assert shard.file == "model.safetensors"
    expected = (
        '{"__metadata__":{"format":"pt"},'
        '"n":{"dtype":"I64","shape":[],"data_offsets":[0,8]},'
        '"a":{"dtype":"F32","shape":[2,2],"data_offsets":[8,24]},'
        '"none":{"dtype":"F32","shape":[0,3],"data_offsets":[24,24]},'
        '"b":{"dtype":"BF16","shape":[3],"data_offsets":[24,30]},'
        '"flag":{"dtype":"U8","shape":[5],"data_offsets":[30,35]}}'
    )
    assert shard.header[8:].decode().rstrip() == expected
    assert len(shard.header) % 8 == 0
    assert shard.size == len(shard.header) + 35
    assert {s.spec.name: s.offset - len(shard.header) for s in steps} == {
        "n": 0, "a": 8, "none": 24, "b": 24, "flag": 30,
    }  # fmt: skip


def test_safetensors_itself_writes_the_same_bytes() -> None:
    state = {"b": torch.ones(3).bfloat16(), "a": torch.ones(2, 2), "n": torch.tensor(3)}
    steps = [step("b", (3,), "BF16"), step("a", (2, 2), "F32"), step("n", (), "I64")]
    theirs = save(state, metadata={"format": "pt"})
    _, shards = lay_out(steps, 10**9, MODEL, {})
    assert theirs.startswith(shards[0].header)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12), limit=st.integers(1, 200))
def test_shards_hold_every_tensor_once_and_keep_the_limit(sizes: list[int], limit: int) -> None:
    given_steps = [step(f"t{i}", (size,), "F32") for i, size in enumerate(sizes)]
    steps, shards = lay_out(given_steps, limit, MODEL, {})
    for number, shard in enumerate(shards):
        inside = [s for s in steps if s.shard == number]
        data = sum(dtypes.nbytes(s.spec) for s in inside)
        assert data <= limit or sum(dtypes.nbytes(s.spec) > 0 for s in inside) == 1
        read = load(shard.header + bytes(data))
        assert set(read) == {s.spec.name for s in inside}
    assert [s.spec for s in steps] == [s.spec for s in given_steps]
    index = index_of(steps, shards)
    if len(shards) == 1:
        assert not index
    else:
        content = json.loads(index["model.safetensors.index.json"])
        assert content["metadata"]["total_size"] == 4 * sum(sizes)
        assert set(content["weight_map"].values()) == {shard.file for shard in shards}
