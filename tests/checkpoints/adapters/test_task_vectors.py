"""Which tensors an adapter holds, and the factors of those that it does."""

from __future__ import annotations

import pytest

from magmerge.core.types import Kind, Naming, Step, TensorSpec
from magmerge.engine.adapters.extraction import bytes_of_truncation, module_kind
from magmerge.engine.adapters.targets import _Reading, _reason_against
from magmerge.engine.stages import Stages, Truncation


def step(name: str, shape: tuple[int, ...], kind: Kind) -> Step:
    return Step(TensorSpec(name, shape, "F32"), kind, "merge", "")


def reason_against(
    one: Step, twin: str | None, targets: tuple[str, ...], naming: Naming
) -> str | None:
    return _reason_against(one, twin, _Reading(targets, naming, scanned=False))


@pytest.mark.parametrize(
    ("shape", "kind", "module"),
    [
        ((4, 3), "matrix", "linear"),
        ((3, 4), "transposed", "linear"),
        ((4, 3, 2, 2), "convolution", "convolution"),
        ((4, 3, 2), "convolution", "convolution"),
    ],
)
def test_layers_are_adapted_unless_others_are_named(
    shape: tuple[int, ...], kind: Kind, module: str
) -> None:
    one = step("a.b.weight", shape, kind)
    assert module_kind(one) == module
    assert reason_against(one, None, (), "peft") is None
    assert reason_against(one, None, ("a.b",), "peft") is None
    assert "no --target" in reason_against(one, None, ("a.*.c", "b"), "peft")


@pytest.mark.parametrize(
    ("name", "shape", "kind", "words"),
    [
        ("a.bias", (4,), "vector", "a bias"),
        ("a.running_var", (4,), "statistics", "another vector"),
        ("scale", (), "scalar", "another vector"),
        ("a.experts.weight", (2, 3, 4), "experts", "fused experts"),
        ("cls_token", (1, 1, 4), "other", "no layer of its own"),
        ("in_proj_weight", (4, 4), "matrix", "no module's weight"),
        ("weight", (4, 4), "matrix", "no module's weight"),
        ("up.weight", (4, 4, 2, 2), "transposed", "transposed convolution"),
    ],
)
def test_what_no_adapter_holds_is_not_held_when_it_is_targeted(
    name: str, shape: tuple[int, ...], kind: Kind, words: str
) -> None:
    for targets in ((), ("*",)):
        assert words in reason_against(step(name, shape, kind), None, targets, "peft")


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((9, 4), "embedding"), ((9, 4), "head"), ((8, 1, 3, 3), "convolution")],
)
def test_embeddings_heads_and_depthwise_convolutions_are_held_if_targeted(
    shape: tuple[int, ...], kind: Kind
) -> None:
    one = step("a.weight", shape, kind)
    assert reason_against(one, None, (), "peft") is not None
    assert reason_against(one, None, ("a",), "peft") is None


def test_other_namings_than_peft_s() -> None:
    fused = step("attn.in_proj_weight", (12, 4), "matrix")
    assert reason_against(fused, None, (), "kohya") is None
    embedding = step("a.weight", (9, 4), "embedding")
    assert "only PEFT" in reason_against(embedding, None, ("a",), "kohya")


def test_a_tensor_tied_in_the_base_alone_is_not_held() -> None:
    assert "with embed" in reason_against(step("a.weight", (4, 3), "matrix"), "embed", (), "peft")


def test_memory_grows_with_the_layer_and_with_auto() -> None:
    small, large = (step("a.weight", (n, n), "matrix") for n in (1000, 4000))
    few, every = Truncation(16, 0.99), Truncation("auto", 0.99)

    def bytes_of(step: Step, rank: Truncation) -> int:
        return bytes_of_truncation(step, Stages(truncation=rank), 1, [])

    assert bytes_of(small, few) < bytes_of(large, few) < bytes_of(large, every)
    assert bytes_of(large, few) > 3 * 4 * 4000 * 4000
    assert every.most((10, 3, 2)) == 6
    assert few.most((10, 3, 2)) == 6
    assert few.most((100, 30, 2)) == 16
