"""Layers grouped by the blocks of their model."""

from __future__ import annotations

import math
from typing import Any

import pytest

from magmerge.report import render
from magmerge.report.account import modules_of, read_account
from magmerge.report.by_block import OUTSIDE, by_block, by_part, by_stage
from tests.report.documents import document, factor, layer


def blocks(
    names: list[str], factors: list[float], group: Any = by_block
) -> dict[str, tuple[int, float]]:
    wsc = [factor("wsc", xi, sensitive=False, experts=[]) for xi in factors]
    layers = [layer(name, [one]) for name, one in zip(names, wsc, strict=True)]
    account = read_account({**document(), "layers": layers})
    return {b.name: (b.layers, b.mean) for b in group(modules_of(account.calibrated))}


def test_a_language_model() -> None:
    names = [f"model.layers.{n}.{p}.weight" for n in (0, 1) for p in ("q_proj", "up_proj")]
    told = blocks([*names, "lm_head.weight"], [1.0, 2.0, 1.5, 2.5, 3.0])
    assert told == {"model.layers 0": (2, 1.5), "model.layers 1": (2, 2.0), OUTSIDE: (1, 3.0)}


def test_an_image_model_has_the_names_that_users_of_loras_know() -> None:
    part = "down_blocks.{}.attentions.{}.transformer_blocks.0.attn1.to_q.weight"
    names = [part.format(0, 0), part.format(1, 0), "mid_block.resnets.0.conv1.weight"]
    assert list(blocks(names, [1.0, 2.0, 3.0])) == ["IN01", "IN04", "MID"]


def test_parts_and_stages_are_over_all_blocks() -> None:
    names = [f"model.layers.{n}.{p}.weight" for n in (0, 1) for p in ("attn.q_proj", "mlp.up_proj")]
    told = blocks([*names, "lm_head.weight"], [1.0, 2.0, 1.5, 2.5, 3.0], by_part)
    assert told == {"attn.q_proj": (2, 1.25), "mlp.up_proj": (2, 2.25), OUTSIDE: (1, 3.0)}
    assert blocks(names, [1.0] * 4, by_stage) == {}
    part = "down_blocks.{}.attentions.{}.transformer_blocks.0.attn1.to_q.weight"
    unet = [part.format(0, 0), part.format(1, 0), "mid_block.resnets.0.conv1.weight"]
    assert blocks(unet, [1.0, 2.0, 3.0], by_stage) == {"down": (2, 1.5), "mid": (1, 3.0)}
    assert blocks(["a.weight", "b.weight"], [1.0, 2.0], by_part) == {}


def test_one_group_is_none() -> None:
    assert blocks(["a.weight", "b.weight"], [1.0, 2.0]) == {}


@pytest.mark.parametrize("count", [4, 40])
def test_the_page_has_the_table(count: int) -> None:
    content = document(count)
    page = render(content)
    assert f"The {count} blocks" in page
    assert (f"<details open><summary>The {count} blocks" in page) == (count == 4)
    account = read_account(content)
    first = by_block(modules_of(account.calibrated))[0]
    own = [
        one
        for one in account.layers
        if one.name.startswith("encoder.layer.0.") and one.kind != "vector"
    ]
    assert first.before == pytest.approx(math.hypot(*(one.norm_before or 0 for one in own)))
    assert first.greatest == max(one.xi_max or 0 for one in own)
