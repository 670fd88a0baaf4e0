"""Routers of mixtures: by prompts, drawn, and what they do not depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import magmerge
from magmerge.checkpoints.output import writer
from tests.mixtures import PROMPTS, dense, mixed, tensors


def router(folder: Path, block: int) -> torch.Tensor:
    return tensors(folder)[f"model.layers.{block}.block_sparse_moe.gate.weight"]


def test_random_routers_are_of_the_seed(tmp_path: Path) -> None:
    base = dense(tmp_path / "base")
    for out, seed in (("one", 0), ("same", 0), ("other", 1)):
        mixed(base, {"a": base, "b": base}, tmp_path / out, seed=seed, router="random")
    assert torch.equal(router(tmp_path / "one", 0), router(tmp_path / "same", 0))
    assert not torch.equal(router(tmp_path / "one", 0), router(tmp_path / "other", 0))
    assert not torch.equal(router(tmp_path / "one", 0), router(tmp_path / "one", 1))
    bound = 32**-0.5
    assert 0.8 * bound < float(router(tmp_path / "one", 0).abs().max()) <= bound


def unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.norm()


def test_embedding_routers_are_the_direction_of_the_prompts_tokens(tmp_path: Path) -> None:
    base, transformers = dense(tmp_path / "base"), pytest.importorskip("transformers")
    negative = {"b": ["the cat"]}
    mixed(base, {"a": base, "b": base}, tmp_path / "out", router="embedding", prompts=PROMPTS,
          negative_prompts=negative)  # fmt: skip
    cut = transformers.AutoTokenizer.from_pretrained(base)
    table = tensors(base)["model.embed_tokens.weight"].double()

    def direction(texts: list[str]) -> torch.Tensor:
        return unit(table[[number for text in texts for number in cut(text)["input_ids"]]].sum(0))

    expected = torch.stack(
        [direction(PROMPTS["a"]), unit(direction(PROMPTS["b"]) - direction(negative["b"]))]
    )
    for block in range(3):
        assert torch.allclose(router(tmp_path / "out", block).double(), expected, atol=1e-6)


def mlp_inputs(folder: Path, texts: list[str]) -> torch.Tensor:
    """[blocks, features]: the mean over texts of the mean over tokens, one text at a time."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    cut = transformers.AutoTokenizer.from_pretrained(folder)
    seen: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    for layer, heard in zip(model.model.layers, seen, strict=True):
        layer.mlp.register_forward_pre_hook(lambda _, args, heard=heard: heard.append(args[0]))
    with torch.no_grad():
        for text in texts:
            model(torch.tensor([cut(text)["input_ids"]]))
    return torch.stack([torch.stack([states[0].mean(0) for states in own]).mean(0) for own in seen])


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_hidden_routers_are_the_direction_of_what_enters_the_mlps(
    tmp_path: Path, kind: str
) -> None:
    base, negative = dense(tmp_path / "base", kind), {"a": ["on the mat"]}
    mixed(base, {"a": base, "b": base}, tmp_path / "out", prompts=PROMPTS,
          negative_prompts=negative)  # fmt: skip
    a = mlp_inputs(base, PROMPTS["a"]) - mlp_inputs(base, negative["a"])
    b = mlp_inputs(base, PROMPTS["b"])
    inner = "block_sparse_moe" if kind == "llama" else "mlp"
    for block in range(3):
        made = tensors(tmp_path / "out")[f"model.layers.{block}.{inner}.gate.weight"].double()
        # Of two directions half their difference, and its opposite, are of length one.
        apart = unit(unit(a[block]) - unit(b[block]))
        assert torch.allclose(made, torch.stack([apart, -apart]), atol=1e-5)


def test_three_experts_are_chosen_as_by_their_directions(tmp_path: Path) -> None:
    base, prompts = dense(tmp_path / "base"), {**PROMPTS, "c": ["on the mat and"]}
    mixed(base, dict.fromkeys("abc", base), tmp_path / "out", prompts=prompts)
    directions = torch.stack([unit(mlp_inputs(base, prompts[name])[1]) for name in "abc"])
    made = router(tmp_path / "out", 1).double()
    assert abs(float(made.square().sum(-1).mean()) - 1) < 1e-6
    states = torch.randn(32, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own, plain = made @ states, directions @ states
    spread = [scores - scores.mean(0) for scores in (own, plain)]
    factor = spread[0].norm() / spread[1].norm()
    assert factor > 1
    assert torch.allclose(spread[0], spread[1] * factor, atol=1e-4)


def test_prompts_that_the_base_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    base = dense(tmp_path / "base")
    with pytest.raises(magmerge.MagmergeError, match="sees no difference") as raised:
        mixed(base, {"a": base, "b": base}, tmp_path / "out",
              prompts={"a": "the cat", "b": "the  cat"})  # fmt: skip
    assert "router: random" in str(raised.value.remedy)


def test_bits_do_not_depend_on_threads(tmp_path: Path) -> None:
    base, other = dense(tmp_path / "base"), dense(tmp_path / "other", seed=1)
    prompts = {"a": [f"the cat sat on {n}" for n in range(20)], "b": ["a dog", "the red hat in"]}
    recipe = magmerge.Recipe(
        base=str(base), experts={"a": str(base), "b": str(other)}, moe={"prompts": prompts}
    )
    for threads in (1, 3):
        magmerge.run(recipe, tmp_path / str(threads), machine=magmerge.Machine(threads=threads))
    one, three = ((tmp_path / n / "model.safetensors").read_bytes() for n in "13")
    assert one == three
    kept = magmerge.run(recipe).state_dict()
    assert torch.equal(kept["model.layers.1.block_sparse_moe.gate.weight"],
                       router(tmp_path / "1", 1))  # fmt: skip


def test_a_shared_expert_with_prompts_has_a_gate_of_them(tmp_path: Path) -> None:
    base = dense(tmp_path / "base", "qwen2")
    mixed(base, {"a": base, "b": base, "s": base}, tmp_path / "out", shared=["s"],
          prompts={**PROMPTS, "s": ["the sun"]}, residual_scale={"s": 2.0})  # fmt: skip
    made, own = tensors(tmp_path / "out"), tensors(base)
    gate = made["model.layers.1.mlp.shared_expert_gate.weight"].double()
    assert torch.allclose(gate[0], unit(mlp_inputs(base, ["the sun"])[1]), atol=1e-5)
    stored = own["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(made["model.layers.1.mlp.shared_expert.down_proj.weight"], 2 * stored)
    assert torch.equal(made["model.layers.1.mlp.experts.1.down_proj.weight"], stored)


def test_a_run_that_is_gone_on_with_reads_no_prompt_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, other = dense(tmp_path / "base"), dense(tmp_path / "other", seed=1)
    recipe = magmerge.Recipe(
        base=str(base), experts={"a": str(base), "b": str(other)}, moe={"prompts": PROMPTS}
    )
    magmerge.run(recipe, tmp_path / "whole")
    finish = writer.Ledger.finish

    def stopping(self: Any, step: Any, outcome: Any) -> None:
        finish(self, step, outcome)
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(writer.Ledger, "finish", stopping)
        with pytest.raises(KeyboardInterrupt):
            magmerge.run(recipe, tmp_path / "out", resume=True)
    monkeypatch.setattr("magmerge.live.prompts._tokens", None)
    magmerge.run(recipe, tmp_path / "out", resume=True)
    assert torch.equal(router(tmp_path / "out", 2), router(tmp_path / "whole", 2))
