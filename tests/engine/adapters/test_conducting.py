"""Adapters merged from their files to a file: what is written, told and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import magmerge
from magmerge.checkpoints.adapters.adapter_loader import open_adapter
from magmerge.core.errors import MagmergeError, MagmergeWarning
from magmerge.engine.adapters.adapter_result import AdapterResult
from tests.checkpoints.adapters.lora_files import whole_tensor
from tests.checkpoints.adapters.standins import full

MODULES = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (16, 12),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k": (16, 12),
    "unet.mid_block.attentions.0.proj_in": (12, 16),
}


def diffusers_file(path: Path, seed: int, rank: int = 2, **changed: tuple[int, int]) -> Path:
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for name, (out, features) in {**MODULES, **changed}.items():
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, features, generator=draw)
        tensors[f"{name}.lora_B.weight"] = torch.randn(out, rank, generator=draw)
    save_file(tensors, path, metadata={"format": "pt", "subject": "cats", "seed": str(seed)})
    return path


def peft_folder(path: Path, seed: int, *, alpha: int = 8, head: int | None = 3) -> Path:
    path.mkdir()
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for layer in range(2):
        key = f"base_model.model.bert.layer.{layer}.query"
        tensors[f"{key}.lora_A.weight"] = torch.randn(4, 10, generator=draw)
        tensors[f"{key}.lora_B.weight"] = torch.randn(10, 4, generator=draw)
    if head is not None:
        shape = (head, 10)
        tensors["base_model.model.classifier.weight"] = torch.randn(shape, generator=draw)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": alpha,
        "target_modules": ["query"],
        "modules_to_save": ["classifier"] if head is not None else None,
        "base_model_name_or_path": "bert",
        "task_type": "SEQ_CLS",
    }
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def deltas_in(path: Path) -> dict[str, Tensor]:
    adapter = open_adapter(path)
    return {name: full(adapter.read(name)) for name in adapter.modules}


def both(tmp_path: Path) -> list[Path]:
    return [diffusers_file(tmp_path / f"{n}.safetensors", n, 2 + n) for n in range(2)]


def test_a_file_is_written_that_holds_the_merge(tmp_path: Path) -> None:
    files = both(tmp_path)
    out = tmp_path / "out.safetensors"
    result = magmerge.merge(experts=files, method="average", rank="exact", out=out)
    assert isinstance(result, AdapterResult)
    assert result.path == out
    first, second = (deltas_in(file) for file in files)
    for name, delta in deltas_in(out).items():
        assert torch.allclose(delta, (first[name] + second[name]) / 2, atol=1e-5)
    assert set(first) == set(deltas_in(out))
    assert result.recipe.base is None


def test_the_header_keeps_the_first_input_s_entries_and_tells_the_recipe(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    result = magmerge.merge(experts=both(tmp_path), method="average", out=out)
    assert isinstance(result, AdapterResult)
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["subject"] == "cats"
    assert metadata["seed"] == "0"
    assert json.loads(metadata["magmerge_recipe"])["method"] == "average"
    record = json.loads((tmp_path / "out.magmerge.json").read_text())
    assert record["recipe_digest"] == magmerge.Recipe(**record["recipe"]).digest
    assert list(record["dropped_entries"].values()) == [["seed"]]
    assert [one["role"] for one in record["inputs"]] == ["expert", "expert"]
    assert [one["name"] for one in record["modules"]] == [one.name for one in result.modules]


def test_a_calibration_writes_its_report(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    magmerge.merge(experts=both(tmp_path), method="average", calibrate="wsc", out=out)
    page = (tmp_path / "out.report.html").read_text()
    assert "The adapter's modules" in page
    assert "unet.mid_block.attentions.0.proj_in" in page


def test_in_memory_and_on_disk_are_the_same_bits(tmp_path: Path) -> None:
    files, out = both(tmp_path), tmp_path / "out.safetensors"
    kept = magmerge.merge(experts=files, method="ties", calibrate="wsc", threads=2)
    magmerge.merge(experts=files, method="ties", calibrate="wsc", threads=1, out=out)
    later = kept.save(tmp_path / "later.safetensors")
    assert later.read_bytes() == out.read_bytes()
    with safe_open(out, "pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert stored.keys() == kept.state_dict().keys()
    assert all(torch.equal(stored[key], one) for key, one in kept.state_dict().items())


def test_dtype_and_energy(tmp_path: Path) -> None:
    result = magmerge.merge(
        experts=both(tmp_path), method="average", rank="auto", energy=0.5, dtype="float16"
    )
    assert isinstance(result, AdapterResult)
    assert result.dtype == "F16"
    assert {tensor.dtype for tensor in result.state_dict().values()} == {torch.float16}
    assert all(1 - one.error**2 >= 0.5 for one in result.modules)
    assert any(one.rank < 5 for one in result.modules)


def test_peft_folders_keep_what_they_replace(tmp_path: Path) -> None:
    folders = [peft_folder(tmp_path / "a", 0), peft_folder(tmp_path / "b", 1, alpha=2)]
    out = tmp_path / "out"
    with pytest.warns(MagmergeWarning, match=r"classifier\.weight is replaced as a whole by 2"):
        magmerge.merge(experts=folders, method="average", rank="exact", out=out)
    merged, first, second = open_adapter(out), open_adapter(folders[0]), open_adapter(folders[1])
    name = "classifier.weight"
    mean = (whole_tensor(first, name) + whole_tensor(second, name)) / 2
    assert torch.allclose(whole_tensor(merged, name), mean)
    for module, delta in deltas_in(out).items():
        wanted = (full(first.read(module)) + full(second.read(module))) / 2
        assert torch.allclose(delta, wanted, atol=1e-5)
    assert merged.config["task_type"] == "SEQ_CLS"


def test_replaced_tensors_can_be_dropped(tmp_path: Path) -> None:
    folders = [peft_folder(tmp_path / "a", 0, head=3), peft_folder(tmp_path / "b", 1, head=5)]
    with pytest.raises(MagmergeError, match=r"classifier\.weight") as raised:
        magmerge.merge(experts=folders, method="average")
    assert "--ignore" in str(raised.value.remedy)
    result = magmerge.merge(experts=folders, method="average", ignore="classifier.*")
    assert not any("classifier" in key for key in result.state_dict())


def test_adapters_without_a_common_module_are_kept_with_a_warning(tmp_path: Path) -> None:
    first = peft_folder(tmp_path / "a", 0, head=None)
    second = tmp_path / "b"
    second.mkdir()
    tensors = {
        "base_model.model.bert.pooler.lora_A.weight": torch.randn(2, 6),
        "base_model.model.bert.pooler.lora_B.weight": torch.randn(6, 2),
    }
    save_file(tensors, second / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["pooler"]}
    (second / "adapter_config.json").write_text(json.dumps(config))
    with pytest.warns(MagmergeWarning, match="no module in common"):
        result = magmerge.merge(experts=[first, second], params={"lambda": 1.0})
    assert isinstance(result, AdapterResult)
    assert len(result.modules) == 3
    assert all(one.merged > 0 for one in result.modules)
