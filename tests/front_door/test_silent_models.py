"""Inputs that once gave a wrong or unloadable model in silence: right now, or refused with the
reason, and the remedy that is named does what it says.
"""

from __future__ import annotations

import copy
import json
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import magmerge
from magmerge.errors import CheckpointError, MagmergeWarning, OutputError, StructureError
from tests.conftest import CommandLine, State

IDS = torch.arange(8)[None]


def llama(seed: int = 0, *, vocab: int = 64, tie: bool = False) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tie,
        max_position_embeddings=32, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def trained(model: Any, seed: int, size: float = 0.02) -> Any:
    """A copy with noise on all that is trained."""
    torch.manual_seed(seed)
    found = copy.deepcopy(model)
    for parameter in found.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn_like(parameter)
    return found


def with_lora(model: Any, seed: int, **config: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    config = {"target_modules": ["q_proj"], "r": 2, "lora_alpha": 4, **config}
    wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", **config))
    return trained(wrapped, seed, 0.1)


def unet(seed: int) -> Any:
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip


@pytest.mark.parametrize("shard", ["5GB", "20kB"])
@pytest.mark.parametrize("way", ["merge", "save", "convert"])
def test_a_merged_unet_loads(
    magmerge_cli: CommandLine, tmp_path: Path, shard: str, way: str
) -> None:
    from diffusers import UNet2DModel

    for seed, name in enumerate(("base", "a", "b")):
        unet(seed).save_pretrained(tmp_path / name)
    models = {"base": tmp_path / "base", "experts": [tmp_path / "a", tmp_path / "b"]}
    out = tmp_path / "out"
    expected = magmerge.merge(**models).state_dict()
    if way == "merge":
        call = ["--base", tmp_path / "base", "--expert", tmp_path / "a", "--expert", tmp_path / "b"]
        assert magmerge_cli("merge", *call, out, "--shard-size", shard).code == 0
    elif way == "save":
        magmerge.merge(**models).save(out, shard_size=shard)
    else:
        expected = load_file(tmp_path / "a" / "diffusion_pytorch_model.safetensors")
        assert magmerge_cli("convert", tmp_path / "a", out).code == 0
    loaded, told = UNet2DModel.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name])


class Net(nn.Module):
    """A class that is not installed where its pickle is read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)


@pytest.fixture
def net() -> Callable[[int], nn.Module]:
    module = types.ModuleType("ultra")
    module.Net = Net
    before, sys.modules["ultra"], Net.__module__ = Net.__module__, module, "ultra"

    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Net()

    yield made
    Net.__module__ = before
    del sys.modules["ultra"]


AVERAGES = {
    "module": lambda average: {"ema": average, "updates": 3},
    "state": lambda average: {"ema_state_dict": average.state_dict()},
    "timm": lambda average: {"state_dict_ema": average.state_dict()},
    "basicsr": lambda average: {"params_ema": average.state_dict()},
    "wrapped": lambda average: {"ema": {"state_dict": average.state_dict(), "decay": 0.99}},
    "callback": lambda average: {"callbacks": {"EMA": {"ema_state_dict": average.state_dict()}}},
    "torch": lambda average: {
        "averaged_model": {
            "n_averaged": torch.tensor(3),
            **{f"module.{name}": tensor for name, tensor in average.state_dict().items()},
        }
    },
}
RAW = {
    "module": lambda raw: {"model": raw},
    "state": lambda raw: {"model_state_dict": raw.state_dict()},
    "timm": lambda raw: {"state_dict": raw.state_dict()},
    "basicsr": lambda raw: {"params": raw.state_dict()},
    "wrapped": lambda raw: {"model": raw.state_dict()},
    "callback": lambda raw: {"state_dict": raw.state_dict()},
    "torch": lambda raw: {"model": raw.state_dict()},
}


@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("raw", [True, False], ids=["beside raw", "alone"])
def test_averaged_weights_are_taken_and_that_is_said(
    magmerge_cli: CommandLine,
    net: Callable[[int], nn.Module],
    tmp_path: Path,
    kind: str,
    raw: bool,
) -> None:
    averages = [net(seed).half() for seed in (1, 2)]
    for number, average in enumerate(averages):
        content = {"epoch": 3, "optimizer": {"state": {}}, **AVERAGES[kind](average)}
        content |= RAW[kind](net(10 + number)) if raw else {"model": None}
        torch.save(content, tmp_path / f"{number}.pt")
    out = tmp_path / "out.safetensors"
    call = ["--expert", tmp_path / "0.pt", "--expert", tmp_path / "1.pt", "--method", "average"]
    found = magmerge_cli("merge", *call, out)
    assert found.code == 0, found.err
    first, second = (average.state_dict() for average in averages)
    expected = (first["conv.weight"].float() + second["conv.weight"].float()) / 2
    merged = load_file(out)
    assert set(merged) == set(first)
    assert torch.allclose(merged["conv.weight"].float(), expected, atol=1e-3)
    assert ("averaged are taken" in found.message) == raw
    record = json.loads((tmp_path / "out.magmerge.json").read_text())
    assert any("averaged" in warning for warning in record["warnings"]) == raw


def test_averaged_weights_that_cannot_be_read_are_no_reason_to_take_the_raw_ones(
    magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    state = {"w": torch.ones(2, 2)}
    shadow = {"decay": 0.99, "shadow_params": [torch.ones(2, 2)]}
    other = {"v": torch.ones(2, 2)}
    for content in (
        {"ema": shadow},
        {"ema": other},
        {"swa_state_dict": other},
        {"EMA": [other]},
        {"callbacks": {"Averaging": {"ema_weights": [torch.ones(2, 2)]}}},
    ):
        torch.save({"model": state, **content}, tmp_path / "a.pt")
        found = magmerge_cli("merge", "--expert", tmp_path / "a.pt", "--method", "average", "out")
        assert found.code == 1
        assert "averaged weights (" in found.message
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"model": parallel, "ema": parallel, "ema_loss": state["w"]}, tmp_path / "a.pt")
    assert set(magmerge.open_checkpoint(tmp_path / "a.pt").specs) == {"module.w"}
    torch.save({"model": state, "ema": {"decay": 0.99}}, tmp_path / "a.pt")
    assert set(magmerge.open_checkpoint(tmp_path / "a.pt").specs) == {"w"}


def chat_vector(folder: Path) -> None:
    """A base, its chat model, and one that was trained further with a larger vocabulary."""
    base = llama()
    base.save_pretrained(folder / "base")
    trained(base, 1).save_pretrained(folder / "chat")
    further = trained(base, 2)
    further.resize_token_embeddings(80, mean_resizing=False)
    further.save_pretrained(folder / "further")


def test_a_donor_of_another_vocabulary_is_refused(
    magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    chat_vector(tmp_path)
    call = [
        "merge", "--base", tmp_path / "base", "--expert", tmp_path / "further",
        "--expert", tmp_path / "chat", "--ignore", "*embed_tokens*", "--ignore", "lm_head.weight",
        "--donor", tmp_path / "further",
    ]  # fmt: skip
    for verb in (call, ["plan", *call[1:]]):
        found = magmerge_cli(*verb, tmp_path / "out")
        assert found.code == 1
        assert "vocab_size 80, but the model's says 64" in found.message
        assert not (tmp_path / "out").exists()


def test_a_donor_for_a_single_file_is_held_against_its_tensors(tmp_path: Path) -> None:
    chat_vector(tmp_path)
    base, chat = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "chat"))
    with pytest.raises(OutputError, match=r"vocab_size 80.* have 64 rows"):
        magmerge.merge(base=base, experts=[chat], out=tmp_path / "o", donor=tmp_path / "further")
    magmerge.merge(base=base, experts=[chat], out=tmp_path / "o", donor=tmp_path / "chat")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 3),
        ("tie_word_embeddings", True),
        ("hidden_size", 32),
        ("hidden_act", "relu"),
    ],
)
def test_a_donor_whose_config_asks_for_other_tensors_is_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    chat_vector(tmp_path)
    donor = tmp_path / "donor"
    donor.mkdir()
    config = json.loads((tmp_path / "chat" / "config.json").read_text())
    (donor / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(OutputError, match=f"says {key} {value}"):
        magmerge.merge(
            base=tmp_path / "base", experts=[tmp_path / "chat"], out=tmp_path / "o", donor=donor
        )


def tokenizer(tokens: list[str]) -> str:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return json.dumps({"model": {"type": "WordLevel", "vocab": vocabulary}, "added_tokens": []})


@pytest.mark.parametrize(
    ("tokens", "words"),
    [(list("abdc"), "other ids to 2 tokens"), ([f"t{i}" for i in range(70)], "ids up to 69")],
)
def test_a_donor_with_another_tokenizer_is_refused(
    tmp_path: Path, tokens: list[str], words: str
) -> None:
    chat_vector(tmp_path)
    donor = tmp_path / "donor"
    donor.mkdir()
    (donor / "config.json").write_bytes((tmp_path / "chat" / "config.json").read_bytes())
    (tmp_path / "base" / "tokenizer.json").write_text(tokenizer(list("abcd")))
    (donor / "tokenizer.json").write_text(tokenizer(tokens))
    models = {"base": tmp_path / "base", "experts": [tmp_path / "chat"], "out": tmp_path / "o"}
    with pytest.raises(OutputError, match=words):
        magmerge.merge(**models, donor=donor)
    (donor / "tokenizer.json").unlink()
    (donor / "vocab.json").write_text(
        json.dumps(dict(zip(tokens, range(len(tokens)), strict=True)))
    )
    with pytest.raises(OutputError, match=words):
        magmerge.merge(**models, donor=donor)
    (donor / "vocab.json").unlink()
    (donor / "vocab.txt").write_text("\n".join(tokens))
    with pytest.raises(OutputError, match=words):
        magmerge.merge(**models, donor=donor)
    (donor / "tokenizer.json").write_text(tokenizer(list("abcdefgh")))
    magmerge.merge(**models, donor=donor)


def test_a_quantised_donor_is_refused_and_one_that_says_nothing_is_not(tmp_path: Path) -> None:
    chat_vector(tmp_path)
    donor = tmp_path / "donor"
    donor.mkdir()
    config = json.loads((tmp_path / "chat" / "config.json").read_text())
    models = {"base": tmp_path / "base", "experts": [tmp_path / "chat"], "out": tmp_path / "o"}
    (donor / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
    with pytest.raises(OutputError, match="quantization_config"):
        magmerge.merge(**models, donor=donor)
    (donor / "config.json").write_text(json.dumps({**config, "architectures": None}))
    magmerge.merge(**models, donor=donor)


def test_what_was_trained_beside_an_adapter_is_merged_too(
    magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    base, run = llama(), tmp_path / "run"
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    state["model.mm_projector.0.weight"] = torch.randn(16, 12)
    state["model.mm_projector.0.bias"] = torch.randn(16)
    (tmp_path / "base").mkdir()
    save_file(state, tmp_path / "base" / "model.safetensors")
    base.config.save_pretrained(tmp_path / "base")
    wrapped = with_lora(base, 1)
    wrapped.save_pretrained(run)
    projector = {
        "model.mm_projector.0.weight": torch.randn(16, 12),
        "model.mm_projector.0.bias": torch.randn(16),
    }
    prefixed = {f"base_model.model.{name}": tensor for name, tensor in projector.items()}
    torch.save(prefixed, run / "non_lora_trainables.bin")
    torch.save({"step": 3}, run / "optimizer.pt")
    call = ["merge", "--base", tmp_path / "base", "--expert", run, "--set", "lambda=1"]
    found = magmerge_cli(*call, tmp_path / "out")
    assert found.code == 0, found.err
    assert "not read" not in found.message
    expected = {**wrapped.merge_and_unload().state_dict(), **projector}
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert set(merged) == set(state)
    for name, tensor in merged.items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name
    record = json.loads((tmp_path / "out" / "magmerge.json").read_text())
    (expert,) = [one for one in record["inputs"] if one["role"] == "expert"]
    assert "non_lora_trainables.bin" in expert["files"]
    other = {f"module.{name}": tensor for name, tensor in prefixed.items()}
    torch.save(other, run / "non_lora_trainables.bin")
    assert magmerge_cli(*call, tmp_path / "out", "--yes").code == 0
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(again[name], merged[name]) for name in merged)
    torch.save({}, run / "non_lora_trainables.bin")
    assert magmerge_cli(*call, tmp_path / "out", "--yes").code == 0
    (run / "mm_projector.bin").write_bytes(b"")
    found = magmerge_cli(*call, tmp_path / "out", "--yes")
    assert f"{run / 'mm_projector.bin'} lies beside the adapter and is not read" in found.message


def test_what_was_trained_beside_an_adapter_and_is_not_in_the_base_is_a_fault(
    tmp_path: Path,
) -> None:
    base, run = llama(), tmp_path / "run"
    base.save_pretrained(tmp_path / "base")
    with_lora(base, 1).save_pretrained(run)
    projector = {"base_model.model.model.mm_projector.0.weight": torch.randn(16, 12)}
    torch.save(projector, run / "non_lora_trainables.bin")
    with pytest.raises(StructureError, match=r"mm_projector\.0\.weight"):
        magmerge.merge(base=tmp_path / "base", experts=[run])


TIED = {
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "whole embedding": {"modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize("saved", [True, False], ids=["with its embeddings", "alone"])
def test_an_adapter_of_one_of_two_tied_matrices_is_refused_and_the_remedy_helps(
    magmerge_cli: CommandLine, tmp_path: Path, kind: str, saved: bool
) -> None:
    from transformers import AutoModelForCausalLM

    base = llama(tie=True)
    base.save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = with_lora(base, 3, **TIED[kind]).eval()
        wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=saved)
    call = ["--expert", tmp_path / "adapter", "--set", "lambda=1"]
    found = magmerge_cli("merge", "--base", tmp_path / "base", *call, tmp_path / "out")
    assert found.code == 1
    assert "is both" in found.message
    assert "1 fault" in found.message
    assert not (tmp_path / "out").exists()
    # As the remedy says.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path / "untied")
    found = magmerge_cli("merge", "--base", tmp_path / "untied", *call, tmp_path / "out")
    assert found.code == 0, found.err
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.allclose(merged(IDS).logits, wrapped(IDS).logits, atol=1e-5)


def test_embeddings_that_are_saved_with_their_factors_count_once(tmp_path: Path) -> None:
    """PEFT saves an adapted embedding's own weight too, which may have been changed besides."""
    base = llama()
    base.save_pretrained(tmp_path / "base")
    wrapped = with_lora(base, 3, target_modules=["q_proj", "embed_tokens"])
    wrapped.get_input_embeddings().base_layer.weight.data += 0.5
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    merged = magmerge.merge(
        base=tmp_path / "base", experts=[tmp_path / "adapter"], params={"lambda": 1.0}
    ).state_dict()
    expected = wrapped.merge_and_unload().state_dict()
    for name, tensor in merged.items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name


def test_a_table_of_positions_is_no_head(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    base = GPT2LMHeadModel(config)
    base.save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = with_lora(base, 1, target_modules=["wpe", "c_attn"], fan_in_fan_out=True)
        wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merged = magmerge.merge(
        base=tmp_path / "base", experts=[tmp_path / "adapter"], params={"lambda": 1.0}
    ).state_dict()
    expected = wrapped.merge_and_unload().state_dict()["transformer.wpe.weight"]
    assert torch.allclose(merged["transformer.wpe.weight"], expected, atol=1e-6)


def test_an_adapter_of_other_layers_on_a_tied_base_is_merged(tmp_path: Path) -> None:
    base = llama(tie=True)
    base.save_pretrained(tmp_path / "base")
    wrapped = with_lora(base, 3).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    result = magmerge.merge(
        base=tmp_path / "base", experts=[tmp_path / "adapter"], params={"lambda": 1.0}
    ).state_dict()
    expected = wrapped.merge_and_unload().state_dict()
    for name, tensor in result.items():
        assert torch.allclose(tensor, expected[name], atol=1e-6)


def test_a_live_model_with_an_adapter_is_an_expert_with_its_adapter() -> None:
    base, other = llama(), trained(llama(), 5)
    name = "model.layers.0.self_attn.q_proj.weight"
    for inner in (base, other):
        wrapped = with_lora(inner, 1)
        before = {key: tensor.clone() for key, tensor in wrapped.state_dict().items()}
        expected = copy.deepcopy(wrapped).merge_and_unload().state_dict()
        for method, params in (("task_arithmetic", {"lambda": 1.0}), ("average", {})):
            merged = magmerge.merge(
                base=base, experts={"e": wrapped}, method=method, params=params
            ).state_dict()
            assert set(merged) == set(expected)
            for key, tensor in merged.items():
                assert torch.allclose(tensor, expected[key], atol=1e-6), key
        assert not torch.equal(expected[name], inner.state_dict()[name])
        assert all(torch.equal(wrapped.state_dict()[key], one) for key, one in before.items())
    alone = magmerge.merge(experts=[wrapped], method="average").state_dict()
    assert torch.allclose(alone[name], expected[name], atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"modules_to_save": ["norm"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
    ],
    ids=["dora", "saved", "embedding"],
)
def test_live_adapters_of_other_kinds_keep_what_they_learnt(config: dict[str, Any]) -> None:
    base = llama()
    wrapped = with_lora(base, 1, **config)
    expected = copy.deepcopy(wrapped).merge_and_unload().state_dict()
    merged = magmerge.merge(base=base, experts=[wrapped], params={"lambda": 1.0}).state_dict()
    for key, tensor in merged.items():
        assert torch.allclose(tensor, expected[key], atol=1e-6), key


def test_a_live_adapter_without_peft_s_wrapper_or_in_a_merge_is_refused() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    base = llama()
    config = LoraConfig(target_modules=["q_proj"], r=2)
    injected = inject_adapter_in_model(config, copy.deepcopy(base))
    with pytest.raises(CheckpointError, match="PEFT has put an adapter into it"):
        magmerge.merge(base=base, experts=[injected])
    with pytest.raises(CheckpointError, match="PEFT has wrapped it"):
        magmerge.calibrate(with_lora(base, 1), base=base, experts=[trained(base, 2)])


@pytest.mark.parametrize("kind", TIED)
def test_a_live_adapter_of_one_of_two_tied_matrices_is_refused(kind: str) -> None:
    base = llama(tie=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = with_lora(base, 1, **TIED[kind])
    with pytest.raises(CheckpointError, match="share their weight"):
        magmerge.merge(base=base, experts=[wrapped])


def test_a_live_adapter_that_is_merged_or_put_aside() -> None:
    base = llama()
    wrapped = with_lora(base, 1)
    wrapped.merge_adapter()
    with pytest.raises(CheckpointError, match="unmerge_adapter"):
        magmerge.merge(base=wrapped, experts=[trained(base, 2)])
    expected = copy.deepcopy(wrapped).merge_and_unload().state_dict()
    merged = magmerge.merge(base=base, experts=[wrapped], params={"lambda": 1.0}).state_dict()
    assert all(torch.allclose(merged[name], expected[name], atol=1e-6) for name in merged)
    other = with_lora(trained(base, 3), 1)
    inner = other.get_base_model()
    other.base_model.disable_adapter_layers()
    merged = magmerge.merge(base=base, experts=[other], params={"lambda": 1.0}).state_dict()
    name = "model.layers.0.self_attn.q_proj"
    expected_weight = inner.get_submodule(name).base_layer.weight
    assert torch.allclose(merged[f"{name}.weight"], expected_weight, atol=1e-6)


def test_layers_of_one_s_own_that_are_called_alike_are_no_adapters() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = nn.Linear(4, 4)

    torch.manual_seed(0)
    base, expert = Own(), Own()
    merged = magmerge.merge(base=base, experts=[expert], params={"lambda": 1.0}).state_dict()
    assert torch.allclose(merged["base_layer.weight"], expert.base_layer.weight.detach())


def test_a_note_of_reading_is_said_once(tmp_path: Path) -> None:
    state: State = {"w.weight": torch.ones(2, 2)}
    for number in range(2):
        changed = {"w.weight": torch.ones(2, 2) * (number + 2)}
        torch.save({"model": state, "ema": changed}, tmp_path / f"{number}.pt")
    with pytest.warns(MagmergeWarning) as heard:
        magmerge.merge(experts=[tmp_path / "0.pt", tmp_path / "1.pt"], method="average")
    assert len([one for one in heard if "averaged" in str(one.message)]) == 2
