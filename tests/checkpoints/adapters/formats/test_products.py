"""LoHa, LoKr and convolutions in three factors, against the full matrices that define them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magmerge.checkpoints.adapters.formats import products
from magmerge.checkpoints.adapters.nouns import LowRank
from magmerge.core.errors import AdapterError
from tests.checkpoints.adapters.lora_files import delta, opened

NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONVOLUTION = "lora_unet_down_blocks_0_resnets_0_conv1"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def close(found: Tensor, wanted: Tensor) -> bool:
    return float((found.double() - wanted).norm()) <= 1e-6 * float(wanted.norm())


def read(state: dict[str, Tensor], folder: Path) -> tuple[Tensor, int, tuple[int, ...]]:
    adapter = opened(state, folder)
    (name,) = adapter.modules
    spec = adapter.modules[name]
    factors = adapter.read(name)
    assert factors.up.shape == (spec.shape[0], spec.rank)
    assert factors.down.shape == (spec.rank, *spec.shape[1:])
    return delta(factors), spec.rank, spec.shape


def loha(out: int, columns: int, rank: int, name: str = NAME) -> dict[str, Tensor]:
    return {
        f"{name}.hada_w1_a": random(out, rank),
        f"{name}.hada_w1_b": random(rank, columns),
        f"{name}.hada_w2_a": random(out, rank, seed=5),
        f"{name}.hada_w2_b": random(rank, columns, seed=5),
        f"{name}.alpha": torch.tensor(1.5),
    }


def full_loha(state: dict[str, Tensor], rank: int) -> Tensor:
    w1_a, w1_b, w2_a, w2_b = (tensor.double() for tensor in list(state.values())[:4])
    return (w1_a @ w1_b) * (w2_a @ w2_b) * (1.5 / rank)


@pytest.mark.parametrize(("rank", "total"), [(2, 4), (3, 9), (4, 11)])
def test_loha_is_the_product_of_two_matrices_entry_by_entry(
    tmp_path: Path, rank: int, total: int
) -> None:
    state = loha(11, 13, rank)
    found, read_rank, _ = read(state, tmp_path)
    assert read_rank == total
    assert close(found, full_loha(state, rank))


def test_a_flattened_convolution_gets_its_kernel_back(tmp_path: Path) -> None:
    state = loha(8, 36, 2, CONVOLUTION)
    found, _, shape = read(state, tmp_path)
    assert shape == (8, 4, 3, 3)
    assert close(found.flatten(1), full_loha(state, 2))
    _, _, flat = read(loha(8, 36, 2, f"{CONVOLUTION}_shortcut"), tmp_path)
    assert flat == (8, 36)


@pytest.mark.parametrize("first", [(2, 3), (3, 2)])
def test_lokr_is_the_kronecker_product(tmp_path: Path, first: tuple[int, int]) -> None:
    w1, w2_a, w2_b = random(*first), random(5, 2), random(2, 7)
    state = {
        f"{NAME}.lokr_w1": w1,
        f"{NAME}.lokr_w2_a": w2_a,
        f"{NAME}.lokr_w2_b": w2_b,
        f"{NAME}.alpha": torch.tensor([3.0]),
    }
    found, rank, _ = read(state, tmp_path)
    assert rank == 4
    assert close(found, torch.kron(w1.double(), w2_a.double() @ w2_b.double()) * 1.5)


def test_lokr_of_two_products(tmp_path: Path) -> None:
    factors = random(4, 2), random(2, 3), random(5, 2, seed=1), random(2, 7, seed=1)
    keys = ("w1_a", "w1_b", "w2_a", "w2_b")
    state = {f"{NAME}.lokr_{key}": one for key, one in zip(keys, factors, strict=True)}
    found, rank, _ = read(state, tmp_path)
    w1_a, w1_b, w2_a, w2_b = (one.double() for one in factors)
    assert rank == 4
    assert close(found, torch.kron(w1_a @ w1_b, w2_a @ w2_b))


def core(t: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """What a core between two factors makes, written out."""
    out = torch.zeros(left.shape[1], right.shape[1], *t.shape[2:], dtype=torch.float64)
    for p in range(len(left)):
        for q in range(len(right)):
            outer = torch.outer(left[p].double(), right[q].double())
            out += outer.reshape(*outer.shape, *[1] * (t.ndim - 2)) * t[p, q].double()
    return out


LOKR = {
    "both whole": ({"w1": (2, 3), "w2": (4, 5)}, 1.0),
    "the first a product": ({"w1_a": (2, 1), "w1_b": (1, 3), "w2": (4, 5)}, 3.0),
    "the rank above the second's": ({"w1": (3, 8), "w2_a": (8, 3), "w2_b": (3, 2)}, 1.0),
    "both products of a large rank": (
        {"w1_a": (3, 3), "w1_b": (3, 2), "w2_a": (2, 3), "w2_b": (3, 2)},
        1.0,
    ),
    "a convolution": ({"w1": (2, 3), "w2": (4, 5, 3, 3)}, 1.0),
    "a core": ({"w1": (2, 3), "t2": (2, 2, 3, 2), "w2_a": (2, 4), "w2_b": (2, 5)}, 1.5),
}


@pytest.mark.parametrize(("shapes", "scale"), LOKR.values(), ids=LOKR)
def test_a_lokr_of_full_rank_is_the_kronecker_product(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], scale: float
) -> None:
    own = {key: random(*shape, seed=len(key)) for key, shape in shapes.items()}
    w1 = own["w1"] if "w1" in own else own["w1_a"].double() @ own["w1_b"].double()
    if "w2" in own:
        w2 = own["w2"].double()
    elif "t2" in own:
        w2 = core(own["t2"], own["w2_a"], own["w2_b"])
    else:
        w2 = own["w2_a"].double() @ own["w2_b"].double()
    # kron of [a, b] and [c, d, *kernel], entry by entry.
    wanted = torch.einsum("ab,cd...->acbd...", w1.double(), w2)
    wanted = wanted.reshape(len(w1) * len(w2), w1.shape[1] * w2.shape[1], *w2.shape[2:]) * scale
    state = {f"{NAME}.lokr_{key}": one for key, one in own.items()}
    found, rank, shape = read({**state, f"{NAME}.alpha": torch.tensor(3.0)}, tmp_path)
    assert (rank, shape) == (min(wanted.flatten(1).shape), wanted.shape)
    assert close(found, wanted)
    adapter = opened(state, tmp_path)
    opened_entries = adapter.stored[NAME].entries
    if opened_entries is not None:
        flat, entries = wanted.flatten() / scale, opened_entries()
        assert close(entries(0, len(flat)), flat)
        assert torch.equal(entries(7, 23), entries(0, len(flat))[7:23])


def test_a_loha_with_cores(tmp_path: Path) -> None:
    shapes = {"w1_a": (2, 6), "w1_b": (2, 5), "w2_a": (2, 6), "w2_b": (2, 5)}
    own = {key: random(*shape, seed=ord(key[1])) for key, shape in shapes.items()}
    own |= {"t1": random(2, 2, 3, 3), "t2": random(2, 2, 3, 3, seed=9)}
    wanted = core(own["t1"], own["w1_a"], own["w1_b"]) * core(own["t2"], own["w2_a"], own["w2_b"])
    found, rank, shape = read({f"{NAME}.hada_{key}": one for key, one in own.items()}, tmp_path)
    assert (rank, shape) == (6, (6, 5, 3, 3))
    assert close(found, wanted)


def test_a_difference_is_the_task_vector(tmp_path: Path) -> None:
    found, rank, shape = read({f"{NAME}.diff": random(6, 5, 3, 3)}, tmp_path)
    assert (rank, shape) == (6, (6, 5, 3, 3))
    assert torch.equal(found, random(6, 5, 3, 3).double())


def test_a_factor_in_the_middle_is_folded_into_the_lower(tmp_path: Path) -> None:
    up, down, mid = random(6, 3, 1, 1), random(3, 5, 1, 1), random(3, 3, 3, 2)
    state = {
        f"{CONVOLUTION}.lora_up.weight": up,
        f"{CONVOLUTION}.lora_down.weight": down,
        f"{CONVOLUTION}.lora_mid.weight": mid,
        f"{CONVOLUTION}.alpha": torch.tensor(6),
    }
    found, rank, shape = read(state, tmp_path)
    # What a convolution by each in turn does, written out.
    wanted = torch.zeros(6, 5, 3, 2, dtype=torch.float64)
    for p in range(3):
        for q in range(3):
            outer = torch.outer(up[:, p, 0, 0].double(), down[q, :, 0, 0].double())
            wanted += 2.0 * outer[..., None, None] * mid[p, q].double()
    assert (rank, shape) == (3, (6, 5, 3, 2))
    assert close(found, wanted)


@settings(deadline=None, max_examples=50)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 4), dtype=st.sampled_from([torch.float16, torch.float64])
)
def test_hadamard_of_any_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    out, columns, r, s = shape
    factors = [random(out, r), random(r, columns), random(out, s), random(s, columns, seed=3)]
    w1_a, w1_b, w2_a, w2_b = (one.to(dtype) for one in factors)
    up, down = products.hadamard(w1_a, w1_b, w2_a, w2_b)
    wanted = (w1_a.double() @ w1_b.double()) * (w2_a.double() @ w2_b.double())
    assert torch.allclose(up.double() @ down.double(), wanted, rtol=1e-5, atol=1e-5)
    assert up.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_a_scale_is_multiplied_in_float32_and_cast_once() -> None:
    up = random(50, 4).half()
    found = products.scaled(LowRank(up, random(4, 5).half(), 0.7))
    assert found.scale == 1.0
    assert torch.equal(found.up, (up.float() * 0.7).half())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hada_t1": (2, 2, 3, 3)}, "half of a pair is missing.*hada_t2"),
        ({"hada_w2_a": None}, "half of a pair is missing.*hada_w2_a"),
        ({"hada_w2_a": (11, 3)}, "rank is 3, and that of its other half 2"),
        ({"hada_w2_a": (12, 2)}, "the two products of"),
        ({"hada_w1_a": (11, 2, 1)}, "is a matrix"),
        ({"lora_up.weight": (11, 2)}, "factors of several kinds"),
        ({"dora_scale": (7,)}, "its magnitude is"),
    ],
)
def test_other_lohas_are_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, tuple[int, ...] | None], message: str
) -> None:
    state = loha(11, 13, 2)
    for ending, shape in changes.items():
        if shape is None:
            del state[f"{NAME}.{ending}"]
        else:
            state[f"{NAME}.{ending}"] = random(*shape)
    with pytest.raises(AdapterError, match=message) as caught:
        opened(state, tmp_path)
    assert caught.value.tensor is not None
    assert caught.value.tensor.startswith(NAME)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"lokr_w1": (2, 3), "lokr_w2_a": (4, 2)}, "no lokr_w2_b"),
        ({"lokr_w2_a": (4, 2), "lokr_w2_b": (2, 5)}, "no lokr_w1_a"),
        (
            {"lokr_w1": (2, 3), "lokr_w2": (4, 5), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 5)},
            "one of its factors twice",
        ),
        (
            {
                "lokr_w1": (2, 3),
                "lokr_w1_a": (2, 1),
                "lokr_w1_b": (1, 3),
                "lokr_w2_a": (4, 2),
                "lokr_w2_b": (2, 5),
            },
            "one of its factors twice",
        ),
        (
            {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 3), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 5)},
            "rank is 1, and that of its other half 2",
        ),
    ],
)
def test_other_lokrs_are_refused_with_the_reason(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        opened({f"{NAME}.{key}": random(*shape) for key, shape in shapes.items()}, tmp_path)
