"""Folders that PEFT wrote, and folders that PEFT must load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification
from transformers.pytorch_utils import Conv1D

from magmerge.checkpoints.adapters.adapter_loader import open_adapter
from magmerge.checkpoints.adapters.nouns import Content, LowRank
from magmerge.checkpoints.adapters.translation import rename_content
from magmerge.core.errors import AdapterError
from tests.checkpoints.adapters import module_names as names
from tests.checkpoints.adapters.lora_files import (
    content_of,
    delta,
    deltas_of,
    random_content,
    read_deltas,
    same,
    whole_tensor,
    write,
)
from tests.conftest import State

REAL = Path(__file__).parents[5] / "shared" / "data" / "lora" / "peft-bert"


class Toy(nn.Module):
    """One layer of each kind that PEFT adapts, one inside another's name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.first = nn.Linear(6, 8)
        self.inner = nn.ModuleDict({"first": nn.Linear(6, 8)})
        self.turned = Conv1D(5, 8)
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.turned(self.first(self.embed(x))))


ALL = ["embed", "first", "inner.first", "turned", "conv"]


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


def trained(model: nn.Module, config: LoraConfig) -> Any:
    """The model with random factors and replaced tensors."""
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return adapted


def changes(merged: State, base: State) -> State:
    return {n: merged[n].double() - t.double() for n, t in base.items() if not merged[n].equal(t)}


def check_against_merged(folder: Path, merged: State, base: State) -> None:
    """PEFT's own merged weights less the base's are the adapter's task vectors."""
    adapter = open_adapter(folder)
    found = {f"{name}.weight": task for name, task in read_deltas(adapter).items()}
    for name, spec in adapter.modules.items():
        if spec.kind == "embedding" or name.endswith("turned"):
            found[f"{name}.weight"] = found[f"{name}.weight"].T
    whole = {name: whole_tensor(adapter, name).double() - base[name] for name in adapter.whole}
    wanted = changes(merged, base)
    assert set(found) | set(whole) == set(wanted)
    for name, task in {**found, **whole}.items():
        assert torch.allclose(task, wanted[name], atol=1e-5), name


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"r": 3, "lora_alpha": 5},
    "rank-stabilised": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "patterns": {"r": 2, "rank_pattern": {"^first": 5}, "alpha_pattern": {"first": 7, "conv": 3}},
    "modules to save": {"r": 2, "lora_alpha": 2, "modules_to_save": ["head"]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_reads_what_peft_writes_and_writes_what_peft_reads(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    adapted = trained(toy(), LoraConfig(target_modules=ALL, **options))
    adapted.save_pretrained(tmp_path / "a")
    merged, base = adapted.merge_and_unload().state_dict(), toy().state_dict()
    check_against_merged(tmp_path / "a", merged, base)
    write(content_of(open_adapter(tmp_path / "a")), tmp_path / "b")
    loaded = PeftModel.from_pretrained(toy(), tmp_path / "b").merge_and_unload().state_dict()
    assert all(torch.allclose(loaded[name], merged[name], atol=1e-6) for name in base)


def test_peft_loads_ranks_and_scales_of_any_kind(tmp_path: Path) -> None:
    model = toy()
    shapes = {n: tuple(m.weight.shape) for n, m in model.named_modules() if n in ALL}
    shapes["embed"], shapes["turned"] = (6, 9), (5, 8)
    content = random_content(shapes)
    kinds = {**content.kinds, "embed": "embedding"}
    content = Content("peft", content.modules, kinds)
    write(content, tmp_path / "a")
    base = toy().state_dict()
    merged = PeftModel.from_pretrained(toy(), tmp_path / "a").merge_and_unload().state_dict()
    check_against_merged(tmp_path / "a", merged, base)
    # Where the end of one name is another, patterns must not meet the wrong module.
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert all(key.startswith("^") for key in config["rank_pattern"])


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2}
    return BertForSequenceClassification(
        BertConfig(vocab_size=20, num_hidden_layers=2, num_labels=3, **sizes)
    )


def test_a_language_model_with_its_head_goes_through(tmp_path: Path) -> None:
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "dense"], lora_alpha=6, r=2)
    adapted = trained(bert(), config)
    adapted.save_pretrained(tmp_path / "a")
    content = content_of(open_adapter(tmp_path / "a"))
    write(content, tmp_path / "b")
    first, second = (json.loads((tmp_path / n / "adapter_config.json").read_text()) for n in "ab")
    for key in ("base_model_name_or_path", "task_type", "lora_dropout", "r", "lora_alpha"):
        assert second[key] == first[key], key
    assert "classifier" in second["modules_to_save"]
    assert second["rank_pattern"] == second["alpha_pattern"] == {}
    loaded = PeftModel.from_pretrained(bert(), tmp_path / "b").merge_and_unload().state_dict()
    merged = adapted.merge_and_unload().state_dict()
    assert all(torch.allclose(loaded[name], merged[name], atol=1e-6) for name in merged)


def test_biases_and_an_embeddings_own_weight_come_back_where_they_were(tmp_path: Path) -> None:
    adapted = trained(toy(), LoraConfig(target_modules=["embed", "first"], r=2, bias="all"))
    for name, parameter in adapted.named_parameters():
        if name.endswith(".bias"):
            parameter.data.fill_(3)
    adapted.save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    own = {"base_model.model.embed.base_layer.weight": torch.full((9, 6), 2.0)}
    save_file({**load_file(path), **own}, path)
    adapter = open_adapter(tmp_path / "a")
    assert {"embed.weight", "first.bias", "head.bias"} < set(adapter.whole)
    write(content_of(adapter), tmp_path / "b")
    again = load_file(tmp_path / "b" / "adapter_model.safetensors")
    assert set(again) == set(load_file(path))
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None


def test_writing_is_deterministic_and_sorted(tmp_path: Path) -> None:
    content = Content(
        "peft", random_content({"b": (4, 4), "a": (4, 4)}).modules, {"a": "linear", "b": "linear"}
    )
    for folder in ("one", "two"):
        write(content, tmp_path / folder)
    one, two = ((tmp_path / f / "adapter_config.json").read_text() for f in ("one", "two"))
    assert one == two
    assert list(json.loads(one)) == sorted(json.loads(one))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    trained(toy(), LoraConfig(target_modules=["first"], r=2)).save_pretrained(tmp_path / "a")
    return tmp_path / "a"


def edit(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_tensors(folder: Path, change: Callable[[State], State]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_dora": True}, "DoRA's magnitude is missing"),
        ({"peft_type": "IA3"}, "peft_type is IA3"),
        ({"peft_type": "LOHA"}, "peft_type is LOHA"),
        ({"peft_type": "VERA"}, "VERA"),
        ({"layer_replication": [[0, 1]]}, "copies layers"),
        ({"use_qalora": True}, "pooled"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": 0}, "alpha is 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": 1e300}, "makes the scale"),
        ({"lora_alpha": 10**400}, "too large"),
        ({"init_lora_weights": "pissa"}, "changes the base itself"),
    ],
)
def test_other_settings_are_refused_with_the_reason(
    folder: Path, values: dict[str, Any], message: str
) -> None:
    edit(folder, **values)
    with pytest.raises(AdapterError, match=message) as caught:
        open_adapter(folder)
    assert str(folder) in str(caught.value)


A, B = (f"base_model.model.first.lora_{half}.weight" for half in "AB")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {A: s[A]}, "half of a pair is missing for first"),
        (lambda s: {A: s[A][:0], B: s[B][:, :0].contiguous()}, "rank 0"),
        (
            lambda s: {A: s[A], B: s[B][:, :1].contiguous()},
            "rank is 1, and that of its other half 2",
        ),
        (lambda s: {A: s[A].flatten(), B: s[B]}, "has two dimensions"),
        (lambda s: {A: s[A].to(torch.int8), B: s[B]}, "I8 is none to compute with"),
        (lambda s: {**s, "first.weight": torch.ones(2)}, r"no adapter's: first\.weight"),
        (lambda s: {"base_model.model.first.weight": s[A]}, "no adapter's"),
        (lambda s: {**s, A.replace("weight", "default.weight"): s[A].clone()}, "another key"),
        (lambda s: {}, "no tensors"),
        (lambda s: {**s, f"{A[:-14]}.lora_magnitude_vector": s[A].clone()}, "use_dora is not set"),
    ],
)
def test_unsound_folders_are_refused_with_the_key(
    folder: Path, change: Callable[[State], State], message: str
) -> None:
    edit_tensors(folder, change)
    with pytest.raises(AdapterError, match=message) as caught:
        open_adapter(folder)
    assert str(folder) in str(caught.value)


def test_a_file_finds_the_config_beside_it_and_is_refused_without(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    assert open_adapter(file).modules == open_adapter(folder).modules
    assert open_adapter(file).files == (file, folder / "adapter_config.json")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match="how they are scaled"):
        open_adapter(file)


def test_the_older_torch_file_is_read_too(folder: Path) -> None:
    before = read_deltas(open_adapter(folder))
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    assert same(read_deltas(open_adapter(folder)), before, 0)


def test_a_pipelines_models_have_a_folder_each(tmp_path: Path) -> None:
    shapes = {
        **names.prefixed("unet", {"conv_in": (4, 2, 3, 3)}),
        **names.prefixed("text_encoder", names.clip(1)),
        **names.prefixed("text_encoder_2", names.clip(1)),
    }
    content = rename_content(random_content(shapes), "peft")
    config = {"unet": {"base_model_name_or_path": "sdxl"}}
    content = Content("peft", content.modules, content.kinds, config=config)
    path = write(content, tmp_path / "a")
    assert {one.name for one in path.iterdir()} == {"unet", "text_encoder", "text_encoder_2"}
    adapter = open_adapter(path)
    assert adapter.config["unet"]["base_model_name_or_path"] == "sdxl"
    assert len(adapter.files) == 6
    assert same(read_deltas(adapter), deltas_of(content))
    assert open_adapter(path / "unet").modules["conv_in"].kind == "convolution"


def test_an_adapter_of_replaced_tensors_alone_cannot_be_written() -> None:
    modules = {"unet.conv_in": LowRank(torch.ones(2, 1), torch.ones(1, 2), 1.0)}
    whole = {"text_encoder.text_model.final_layer_norm.weight": torch.ones(2)}
    content = Content("peft", modules, {"unet.conv_in": "linear"}, whole)
    from magmerge.checkpoints.adapters.formats.peft import encode

    with pytest.raises(AdapterError, match="adapts no module"):
        encode(content)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real adapter is not beside this checkout")
def test_reads_and_writes_a_real_folder(tmp_path: Path) -> None:
    adapter = open_adapter(REAL)
    assert adapter.naming == "peft"
    assert len(adapter.modules) == 24
    assert {spec.scale for spec in adapter.modules.values()} == {4.0}
    assert set(adapter.whole) == {"classifier.weight", "classifier.bias"}
    write(content_of(adapter), tmp_path / "a")
    own = load_file(REAL / "adapter_model.safetensors")
    again = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert set(own) == set(again)
    assert all(torch.equal(again[key], tensor) for key, tensor in own.items())
    assert delta(adapter.read("bert.encoder.layer.0.attention.self.query")).shape == (768, 768)
