"""Full task vectors of adapters: multiplied out once, or piece by piece for lack of memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import magmerge
from magmerge.core.errors import ParameterError
from magmerge.engine.adapters import module_memory
from tests.checkpoints.adapters.files import write_adapter

MODULES = {"lora_unet_a": (700, 520), "lora_unet_b": (40, 8, 3, 3)}


def inputs(folder: Path, count: int = 3) -> list[Path]:
    return [write_adapter(folder / f"{k}.safetensors", MODULES, seed=k) for k in range(count)]


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("ties", {"scope": "tensor"}),
        ("ties", {"scope": "model"}),
        ("dare_ties", {"rescale": "l1"}),
        ("tsv_m", {}),
        ("slerp", {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("threads", [1, 2])
def test_pieces_give_the_same_bits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    params: dict[str, str],
    threads: int,
) -> None:
    experts = inputs(tmp_path, 2 if method == "slerp" else 3)
    at_once = magmerge.merge(experts=experts, method=method, params=params, threads=2)
    monkeypatch.setattr(module_memory, "has_room", lambda _job, _size: False)
    by_pieces = magmerge.merge(experts=experts, method=method, params=params, threads=threads)
    expected = at_once.state_dict()
    for name, tensor in by_pieces.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_little_memory_is_no_fault_where_pieces_fit(tmp_path: Path) -> None:
    modules = {"lora_unet_a": (1024, 1024)}
    experts = [write_adapter(tmp_path / f"{k}.safetensors", modules, seed=k) for k in range(6)]
    params = {"scope": "tensor"}
    plenty = magmerge.merge(experts=experts, method="ties", params=params, threads=1)
    little = magmerge.merge(
        experts=experts, method="ties", params=params, threads=1, memory="145MB"
    )
    for name, tensor in little.state_dict().items():
        assert torch.equal(tensor, plenty.state_dict()[name]), name
    with pytest.raises(ParameterError, match="of memory are too little"):
        magmerge.merge(experts=experts, method="ties", params=params, threads=1, memory="125MB")
