"""Models whose numbers are elsewhere: on the hub, on no device, on other GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.core.errors import CheckpointError
from tests.checkpoints.adapters.files import write_adapter
from tests.conftest import CommandLine, random_state, tuned

BASE = random_state(0)


def test_numpy_arrays_are_tensors() -> None:
    expert = tuned(BASE, 1)
    right = magmerge.merge(base=BASE, experts=[expert]).state_dict()
    arrays = [{n: t.numpy() for n, t in state.items()} for state in (BASE, expert)]
    for array in arrays[0].values():
        array.flags.writeable = False
    turned = {n: np.flip(np.flip(a, 0).copy(), 0) if a.ndim else a for n, a in arrays[1].items()}
    result = magmerge.merge(base=arrays[0], experts=[turned]).state_dict()
    assert all(torch.equal(result[name], tensor) for name, tensor in right.items())
    with pytest.raises(CheckpointError, match="numpy array of >f4") as caught:
        magmerge.merge(base={"w": np.ones(2, ">f4")}, experts=[BASE])
    assert caught.value.tensor == "w"
    assert np.ones(2, ">f4").astype("float32").dtype == np.float32


def test_a_model_on_no_device_says_so() -> None:
    with torch.device("meta"):
        module = torch.nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match="on the meta device") as caught:
        magmerge.merge(base=torch.nn.Linear(3, 3), experts=[module])
    assert caught.value.tensor == "weight"
    assert "folder" in (caught.value.remedy or "")


def test_what_zero_3_did_not_gather_is_told(magmerge_cli: CommandLine, tmp_path: Path) -> None:
    base = {"model.layers.0.q_proj.weight": torch.randn(8, 8), "model.norm.weight": torch.ones(8)}
    save_file(base, tmp_path / "base.safetensors")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    file = adapter / "adapter_model.safetensors"
    write_adapter(file, {"model.layers.0.q_proj": (8, 8)})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    whole = load_file(file)
    extra = {**whole, "base_model.model.model.norm.weight": torch.zeros(0)}
    for state in ({name: torch.zeros(0) for name in whole}, extra):
        save_file(state, file)
        call = ["--base", tmp_path / "base.safetensors", "--expert", adapter]
        done = magmerge_cli("merge", *call, tmp_path / "out.safetensors")
        assert done.code == 1
        assert "ZeRO-3" in done.message
        assert "stage3_gather_16bit_weights_on_model_save" in done.message
        assert "--ignore" not in done.message
    # The same of a whole model, also where it is the base.
    empty = {**base, "model.norm.weight": torch.zeros(0)}
    for models in ({"base": base, "experts": [empty]}, {"base": empty, "experts": [base]}):
        with pytest.raises(CheckpointError, match="1 of its weights have no entries"):
            magmerge.merge(**models)
    save_file(empty, tmp_path / "empty.safetensors")
    done = magmerge_cli("convert", tmp_path / "empty.safetensors", tmp_path / "c.safetensors")
    assert done.code == 1
    assert "ZeRO-3" in done.message
    # What no one trains may be empty.
    other = {**base, "strides": torch.zeros(0)}
    magmerge.merge(base=other, experts=[tuned(other, 1)])
    save_file(whole, file)
    done = magmerge_cli("merge", *call, tmp_path / "out.safetensors")
    assert done.code == 0, done.message
