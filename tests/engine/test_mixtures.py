"""Mixtures of experts out of dense models: what they compute, what they hold, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import magmerge
from tests.conftest import CommandLine
from tests.mixtures import KINDS, PROMPTS, dense, logits, mixed, tensors
from tests.token_models import config_of

MIXTURES = {"Llama": "Mixtral", "Mistral": "Mixtral", "Qwen2": "Qwen2Moe", "Qwen3": "Qwen3Moe"}
PAIRS = [(kind, None) for kind in KINDS]
PAIRS += [(kind, "qwen2_moe") for kind in KINDS if not kind.startswith("qwen")]


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize(("kind", "shape"), PAIRS)
def test_experts_that_are_the_base_compute_what_it_does(
    tmp_path: Path, kind: str, shape: str | None
) -> None:
    base = dense(tmp_path / "base", kind)
    mixed(base, {"a": base, "b": base, "c": base}, tmp_path / "out", shape=shape, router="random")
    assert close(logits(tmp_path / "out"), logits(base))
    config = config_of(tmp_path / "out")
    expected = "Qwen2Moe" if shape else MIXTURES[KINDS[kind][0]]
    assert config["architectures"] == [f"{expected}ForCausalLM"]
    assert config["num_experts_per_tok"] == 2
    assert config.get("num_local_experts", config.get("num_experts")) == 3


def test_windows_and_angles_tell_in_these_models(tmp_path: Path) -> None:
    """Otherwise the law above would hold whatever the config says of them."""
    base = dense(tmp_path / "base", "mistral")
    assert not close(logits(base, sliding_window=None), logits(base))
    rope = {"rope_type": "default", "rope_theta": 1e6}
    assert not close(logits(base, rope_parameters=rope), logits(base))


SILENT = {
    "llama": ("rms_norm_eps", "rope_parameters", "hidden_act"),
    "mistral": ("rms_norm_eps", "rope_parameters", "tie_word_embeddings"),
    "qwen2": ("rms_norm_eps", "rope_parameters", "layer_types", "use_sliding_window"),
    "qwen3": ("rms_norm_eps", "rope_parameters", "layer_types", "attention_bias"),
}


@pytest.mark.parametrize("kind", SILENT)
def test_what_a_config_is_silent_of_is_written_out(tmp_path: Path, kind: str) -> None:
    """The mixture's library takes other values there: 1e-5, and a theta of a million."""
    more = {"rms_norm_eps": 1e-6}
    base = dense(tmp_path / "base", kind, **more)
    config = config_of(base)
    for key in SILENT[kind]:
        config.pop(key)
    (base / "config.json").write_text(json.dumps(config))
    mixed(base, {"a": base, "b": base}, tmp_path / "out", router="random")
    assert close(logits(tmp_path / "out"), logits(base))
    assert config_of(tmp_path / "out")["rms_norm_eps"] == 1e-6


def test_each_tensor_is_a_models_own(tmp_path: Path) -> None:
    folders = {name: dense(tmp_path / name, seed=seed) for seed, name in enumerate("xab")}
    base = folders.pop("x")
    mixed(base, folders, tmp_path / "out", router="random")
    made, own = tensors(tmp_path / "out"), {n: tensors(path) for n, path in folders.items()}
    for name, tensor in tensors(base).items():
        if ".mlp." not in name:
            assert torch.equal(made.pop(name), tensor)
    for block in range(3):
        start = f"model.layers.{block}.block_sparse_moe"
        assert made.pop(f"{start}.gate.weight").shape == (2, 32)
        for number, expert in enumerate("ab"):
            for new, old in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
                stored = own[expert][f"model.layers.{block}.mlp.{old}.weight"]
                assert torch.equal(made.pop(f"{start}.experts.{number}.{new}.weight"), stored)
    assert not made


def test_a_mixture_of_experts_weighs_their_outputs(tmp_path: Path) -> None:
    """With zeros for a router and all experts chosen, an MLP's output is the mean of theirs."""
    base = dense(tmp_path / "base", num_hidden_layers=1)
    experts = {name: dense(tmp_path / name, seed=seed, num_hidden_layers=1)
               for seed, name in enumerate("ab", start=1)}  # fmt: skip
    assert not mixed(base, experts, tmp_path / "out", router="uniform")
    transformers = pytest.importorskip("transformers")
    load = transformers.AutoModelForCausalLM.from_pretrained
    mixture = load(tmp_path / "out").model.layers[0].mlp
    own = [load(folder).model.layers[0].mlp for folder in experts.values()]
    states = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        made = mixture(states)
        assert close(made, sum(mlp(states) for mlp in own) / 2)


def test_a_shared_expert_and_half_of_the_others_are_the_base(tmp_path: Path) -> None:
    base = dense(tmp_path / "base", "qwen2")
    experts = {"a": base, "b": base, "all": base}
    told = mixed(base, experts, tmp_path / "out", router="random", shared="all")
    assert any("all is shared" in note for note in told)
    assert close(logits(tmp_path / "out"), logits(base))
    recipe = (tmp_path / "out" / "magmerge.yaml").read_text()
    assert "residual_scale:\n    a: 0.5\n    b: 0.5" in recipe


def test_noise_makes_experts_of_one_model_differ(tmp_path: Path) -> None:
    base = dense(tmp_path / "base", intermediate_size=256)
    mixed(base, {"a": base, "b": base}, tmp_path / "out", router="random",
          noise={"a": 0.01, "b": 0.01})  # fmt: skip
    made, own = tensors(tmp_path / "out"), tensors(base)["model.layers.0.mlp.gate_proj.weight"]
    noise = [made[f"model.layers.0.block_sparse_moe.experts.{n}.w1.weight"] - own for n in (0, 1)]
    for part in noise:
        assert abs(float(part.std()) - 0.01) < 2e-4
        assert abs(float(part.mean())) < 5e-4
    assert abs(float((noise[0] * noise[1]).mean())) < 1e-5
    assert logits(tmp_path / "out").isfinite().all()


def test_an_adapter_is_an_expert_with_its_mlps_on_the_base(tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = dense(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    modules = ["gate_proj", "down_proj", "q_proj"]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=modules))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    wrapped.save_pretrained(tmp_path / "lora")
    told = mixed(base, {"a": tmp_path / "lora", "b": base}, tmp_path / "out", router="random")
    assert any("3 tensors that are no MLP" in note for note in told)
    merged = wrapped.merge_and_unload().state_dict()
    made = tensors(tmp_path / "out")
    for new, old in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
        own = merged[f"model.layers.1.mlp.{old}.weight"]
        assert torch.allclose(
            made[f"model.layers.1.block_sparse_moe.experts.0.{new}.weight"], own, atol=1e-5
        )


def test_formats_that_differ_become_the_bases(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    base, other = dense(tmp_path / "base"), dense(tmp_path / "other", seed=1)
    for folder, dtype in ((base, torch.bfloat16), (other, torch.float16)):
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(
            folder
        )
    mixed(base, {"a": base, "b": other}, tmp_path / "out", router="random")
    assert {tensor.dtype for tensor in tensors(tmp_path / "out").values()} == {torch.bfloat16}
    assert config_of(tmp_path / "out")["dtype"] == "bfloat16"
    own = tensors(other)["model.layers.0.mlp.up_proj.weight"].bfloat16()
    made = tensors(tmp_path / "out")
    assert torch.equal(made["model.layers.0.block_sparse_moe.experts.1.w3.weight"], own)


YAML = """
base: {base}
experts: {{a: {base}, b: {other}}}
moe:
  router: hidden
  prompts: {{a: the cat sat, b: [the dog ran off, in the sun]}}
output: {{shard_size: 20kB}}
"""


def test_the_magmerge_cli_makes_verifies_and_repeats_one(
    tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    base, other = dense(tmp_path / "base"), dense(tmp_path / "other", seed=1)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(YAML.format(base=base, other=other))
    done = magmerge_cli("merge", recipe, tmp_path / "out")
    assert done.code == 0
    assert "a mixture of 2 experts" in done.out
    found = magmerge.verify(tmp_path / "out", load=True)
    assert found.sound
    assert {"loads", "runs", "computed again", "inputs"} <= {c.name for c in found.checks if c.done}
    record = json.loads((tmp_path / "out" / "magmerge.json").read_text())
    assert [entry["role"] for entry in record["inputs"]] == ["base", "expert", "expert"]
    assert record["recipe"]["moe"]["shape"] == "mixtral"
    again = magmerge_cli("merge", tmp_path / "out" / "magmerge.yaml", tmp_path / "again")
    assert again.code == 0
    one, two = ({f.name: f.read_bytes() for f in (tmp_path / n).glob("*.safetensors")}
                for n in ("out", "again"))  # fmt: skip
    assert one == two
    assert len(one) > 1


def test_a_recipe_without_a_mixture_is_what_it_was() -> None:
    recipe = magmerge.Recipe(base="x", experts={"a": "y"}, method="ties")
    assert "moe" not in recipe.to_yaml()
    mixture = magmerge.Recipe(base="x", experts={"a": "y"}, moe={"router": "random"})
    assert magmerge.Recipe.from_yaml(mixture.to_yaml()) == mixture
    assert mixture.digest != magmerge.Recipe(base="x", experts={"a": "y"}).digest


def test_the_example_is_a_recipe() -> None:
    file = Path(__file__).parents[2] / "examples" / "mixture.yml"
    recipe = magmerge.Recipe.from_yaml(file.read_text())
    assert recipe.moe is not None
    assert set(recipe.moe["prompts"]) == set(recipe.experts)


def test_a_merge_before_it_may_be_an_expert(tmp_path: Path) -> None:
    folders = {name: dense(tmp_path / name, seed=seed) for seed, name in enumerate("xabc")}
    x, a, b, c = folders.values()
    merge = magmerge.Recipe(
        name="ab", base=str(x), experts={"a": str(a), "b": str(b)}, method="average"
    )
    mixture = magmerge.Recipe(
        base=str(x), experts={"ab": "ab", "c": str(c)}, moe={"router": "random"}
    )
    magmerge.run([merge, mixture], tmp_path / "out")
    own = [tensors(folder)["model.layers.2.mlp.up_proj.weight"] for folder in (a, b)]
    made = tensors(tmp_path / "out")["model.layers.2.block_sparse_moe.experts.0.w3.weight"]
    assert torch.allclose(made, (own[0] + own[1]) / 2, atol=1e-6)
    record = json.loads((tmp_path / "out" / "magmerge.json").read_text())
    assert record["inputs"][1]["source"] == "ab"


def test_the_plan_tells_the_memory_of_the_run(tmp_path: Path) -> None:
    base, other = dense(tmp_path / "base"), dense(tmp_path / "other", seed=1)
    recipe = magmerge.Recipe(
        base=str(base), experts={"a": str(base), "b": str(other)}, moe={"prompts": PROMPTS}
    )
    result = magmerge.run(recipe, machine=magmerge.Machine(threads=1))
    sizes = {name: 4 * tensor.numel() for name, tensor in tensors(base).items()}
    block = sum(size for name, size in sizes.items() if ".layers.0." in name)
    outside = sum(size for name, size in sizes.items() if ".layers." not in name)
    assert result.plan.live == block + outside


def test_a_mixture_may_have_a_chat_template(tmp_path: Path) -> None:
    base = dense(tmp_path / "base")
    template = "{{ messages[0].content }}"
    recipe = magmerge.Recipe(
        base=str(base),
        experts={name: str(dense(tmp_path / name, seed=1)) for name in "ab"},
        moe={"router": "random"},
        chat_template=template,
    )
    out = magmerge.run(recipe, tmp_path / "out").path
    assert out is not None
    assert (out / "chat_template.jinja").read_text() == template
