"""Layers that a state-space model computes within its scan: PEFT refuses to adapt them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import magmerge
from tests.architectures import ARCHITECTURES, MORE


@pytest.mark.filterwarnings("ignore:.*changed tensors not in the adapter")
def test_an_adapter_of_mamba_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    options = dict((*ARCHITECTURES, *MORE))["MambaForCausalLM"]
    kind = transformers.MambaForCausalLM
    torch.manual_seed(0)
    model = kind(kind.config_class(**options))
    for name in ("base", "tuned"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / name)
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    for targets in ((), ("*.out_proj", "*.in_proj")):
        out = tmp_path / f"adapter{len(targets)}"
        found = magmerge.extract(base=base, model=tuned, rank=2, targets=targets, out=out)
        lost = {tensor.name: tensor.reason for tensor in found.lost}
        inside = [reason for name, reason in lost.items() if name.endswith(".out_proj.weight")]
        assert inside
        assert all("within its scan" in reason for reason in inside)
        assert not any(name.endswith(".in_proj.weight") for name in lost)
        assert magmerge.verify(out, load=True).sound
