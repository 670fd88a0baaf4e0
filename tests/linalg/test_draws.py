from __future__ import annotations

import torch

from magmerge.linalg.draws import CHUNK, derive_seed, drop, integers, uniforms


def keep_mask(seed: int, shape: tuple[int, ...], keep: float, start: int = 0) -> torch.Tensor:
    return drop(torch.ones(shape), seed, keep, start).bool()


def test_an_entry_depends_on_its_seed_and_place_only() -> None:
    long, short = keep_mask(5, (CHUNK + 500,), 0.3), keep_mask(5, (CHUNK + 20,), 0.3)
    assert torch.equal(long[: CHUNK + 20], short)
    assert torch.equal(long.reshape(-1, 4), keep_mask(5, ((CHUNK + 500) // 4, 4), 0.3))
    assert not torch.equal(long, keep_mask(6, (CHUNK + 500,), 0.3))


def test_chunks_have_draws_of_their_own() -> None:
    mask = keep_mask(1, (2 * CHUNK,), 0.5)
    assert not torch.equal(mask[:CHUNK], mask[CHUNK:])


def test_the_share_is_as_asked() -> None:
    assert abs(float(keep_mask(0, (300_000,), 0.1).float().mean()) - 0.1) < 0.003
    assert bool(keep_mask(0, (100,), 1.0).all())


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    keep_mask(1, (10,), 0.5)
    assert torch.equal(torch.rand(3), expected)


def test_seeds_are_stable_for_ever() -> None:
    assert derive_seed(0, "layer.weight", 1) == 2069037389823499500


def test_any_stretch_is_part_of_the_whole() -> None:
    whole = integers(3, 2 * CHUNK + 100)
    for start, stop in ((0, 7), (CHUNK - 3, CHUNK + 3), (CHUNK, 2 * CHUNK + 100)):
        assert torch.equal(integers(3, stop - start, start), whole[start:stop])
    assert torch.equal(uniforms(3, (50, 2), 5).reshape(-1), uniforms(3, (105,))[5:])


def test_draws_are_uniform() -> None:
    found = uniforms(9, (400_000,))
    assert found.dtype == torch.float32
    assert float(found.min()) >= 0
    assert float(found.max()) < 1
    counts = torch.histc(found, 20, 0, 1)
    # Each of 20 bins holds 20000 +- 138.
    assert float((counts - 20_000).abs().max()) < 700


def test_dropping_keeps_the_others_to_the_last_bit() -> None:
    for dtype in (torch.float32, torch.float64):
        values = torch.randn(1000, dtype=dtype)
        found = drop(values, 4, 0.3, start=11)
        mask = keep_mask(4, (1000,), 0.3, start=11)
        assert torch.equal(found, torch.where(mask, values, 0))
