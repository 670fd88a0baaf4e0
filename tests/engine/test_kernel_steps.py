"""Merges by compiled kernels: the same files, records and errors as those of the functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import magmerge
from magmerge.core.errors import NonFiniteError
from magmerge.engine import steps
from magmerge.engine.memory import KEPT
from magmerge.engine.stored_pieces import Memory
from magmerge.kernels.arguments import is_here
from tests.conftest import random_state, tuned

pytestmark = [
    pytest.mark.skipif(not is_here(), reason="no kernels on this machine"),
    pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning"),
]

SHAPES = {
    "embed_tokens.weight": (96, 40),
    "layers.0.attn.weight": (260, 1100),
    "layers.0.conv.weight": (32, 6, 3, 3),
    "layers.0.norm.weight": (40,),
    "layers.0.scale": (),
    "layers.0.mlp.weight": (90, 40),
    "lm_head.weight": (96, 40),
}
FORMATS = (torch.bfloat16, torch.float32, torch.float16, torch.bfloat16)
MERGES: dict[str, dict[str, Any]] = {
    "average": {"params": {"weights": [0.5, 0.2, 0.3]}},
    "task_arithmetic": {"calibrate": "wsc", "gate": "off", "dtype": "float32"},
    "ties": {"calibrate": "wsc", "sensitive": ["layers.0.mlp.weight"]},
    "ties in a tensor": {"params": {"scope": "tensor"}, "dtype": "float16"},
    "dare": {"seed": 3},
    "dare_ties": {"params": {"rescale": "l1"}},
    "breadcrumbs": {"calibrate": {"method": "wsc", "params": {"target": "sphere"}}},
    "breadcrumbs_ties": {},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and three experts, each in another format."""
    folder, base = tmp_path_factory.mktemp("models"), random_state(0, SHAPES)
    states = [base, *(tuned(base, k, size=0.05) for k in range(3))]
    paths = {}
    for name, state, dtype in zip(("base", "a", "b", "c"), states, FORMATS, strict=True):
        paths[name] = folder / f"{name}.safetensors"
        save_file({key: tensor.to(dtype) for key, tensor in state.items()}, paths[name])
    return paths


def merged(models: dict[str, Path], method: str, out: Path, **arguments: Any) -> dict[str, Any]:
    """What the record tells, less what differs from run to run."""
    experts = {name: path for name, path in models.items() if name != "base"}
    magmerge.merge(
        base=models["base"],
        experts=experts,
        method=method,
        out=out / "model.safetensors",
        **arguments,
    )
    record = json.loads(next(out.glob("*magmerge.json")).read_text())
    return {key: record[key] for key in ("layers", "outputs", "recipe") if key in record}


@pytest.mark.parametrize("name", MERGES)
def test_files_and_records_are_those_of_the_functions(
    name: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, arguments = name.partition(" ")[0], MERGES[name]
    with monkeypatch.context() as patch:
        patch.setattr(steps, "treated", None)
        kernels = merged(models, method, tmp_path / "kernels", **arguments, threads=2)
    few = merged(models, method, tmp_path / "few", **arguments, memory="150MB", threads=1)
    monkeypatch.setenv("MAGMERGE_KERNELS", "off")
    functions = merged(models, method, tmp_path / "functions", **arguments)
    first = (tmp_path / "kernels" / "model.safetensors").read_bytes()
    assert first == (tmp_path / "functions" / "model.safetensors").read_bytes()
    assert first == (tmp_path / "few" / "model.safetensors").read_bytes()
    assert kernels == functions == few
    assert kernels["layers"]


@pytest.mark.parametrize("level", ["sse2", "avx2", "neon"])
def test_every_level_gives_the_same_bits(
    level: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = merged(models, "dare_ties", tmp_path / "auto", calibrate="wsc")
    monkeypatch.setenv("MAGMERGE_KERNELS", level)
    try:
        is_here()
    except magmerge.MagmergeError:
        pytest.skip(f"this processor has no {level}")
    assert merged(models, "dare_ties", tmp_path / level, calibrate="wsc") == first
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("auto", level)]
    assert files[0] == files[1]


def spoiled(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["base", "b"])
def test_what_is_not_finite_is_told_as_the_functions_tell_it(
    value: float, which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = random_state(0, SHAPES)
    states = {"base": base, "a": tuned(base, 1), "b": tuned(base, 2)}
    states[which]["layers.0.mlp.weight"] = spoiled(states[which]["layers.0.mlp.weight"], value)
    experts = {name: states[name] for name in ("a", "b")}

    def error() -> str:
        with pytest.raises(NonFiniteError) as caught:
            magmerge.merge(base=states["base"], experts=experts, method="average")
        return str(caught.value)

    told = error()
    monkeypatch.setenv("MAGMERGE_KERNELS", "off")
    assert told == error()
    assert "layers.0.mlp.weight" in told


def test_a_result_too_large_for_its_format_is_told_likewise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = {"layers.0.mlp.weight": torch.full((4, 4), 6e4)}
    experts = [{"layers.0.mlp.weight": torch.full((4, 4), 6e4 + size)} for size in (5e3, 6e3)]

    def error() -> str:
        with pytest.raises(NonFiniteError) as caught:
            magmerge.merge(
                base=base,
                experts=experts,
                method="task_arithmetic",
                params={"lambda": 1.0},
                dtype="float16",
            )
        return str(caught.value)

    told = error()
    monkeypatch.setenv("MAGMERGE_KERNELS", "off")
    assert told == error()
    assert "too large for float16" in told


@pytest.mark.parametrize("weights", [[1e-46, 1.0, 1.0], [-1e-46, 1.0, 1.0]])
def test_weights_that_vanish_in_float32_keep_their_signs(
    weights: list[float],
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = {"weights": weights, "normalize": False}
    first = merged(models, "ties", tmp_path / "auto", params=params, dtype="float32")
    monkeypatch.setenv("MAGMERGE_KERNELS", "off")
    assert merged(models, "ties", tmp_path / "off", params=params, dtype="float32") == first
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("auto", "off")]
    assert files[0] == files[1]


def test_a_thread_keeps_no_whole_layers() -> None:
    memory = Memory()
    small = memory.block("base", KEPT)
    assert memory.block("base", 16).base is small.base
    large = memory.block("base", KEPT + 1)
    assert len(large) == KEPT + 1
    assert memory.block("base", 16).base is small.base
