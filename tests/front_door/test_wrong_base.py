"""A base that is not the experts' base is told, with the likely cause."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import magmerge
from magmerge.core.errors import MagmergeWarning
from tests.checkpoints.adapters.files import write_adapter
from tests.conftest import CommandLine, State, random_state, tuned

SHAPES = {
    "embed_tokens.weight": (32, 24),
    **{f"layers.{i}.attn.weight": (24, 24) for i in range(3)},
    **{f"layers.{i}.mlp.weight": (48, 24) for i in range(3)},
    **{f"layers.{i}.norm.weight": (24,) for i in range(3)},
}
METHODS = ["ties", "task_arithmetic", "tsv_m", "average", "dare"]


def base() -> State:
    return random_state(0, SHAPES)


def files(folder: Path, **states: State) -> dict[str, Path]:
    for name, state in states.items():
        save_file(state, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in states}


@pytest.mark.parametrize("method", METHODS)
def test_experts_of_another_initialisation_are_told(
    magmerge_cli: CommandLine, tmp_path: Path, method: str
) -> None:
    other = random_state(9, SHAPES)
    found = files(tmp_path, base=base(), a=tuned(other, 1), b=tuned(other, 2))
    out = tmp_path / "out.safetensors"
    call = ["--base", found["base"], "--expert", found["a"], "--expert", found["b"]]
    said = magmerge_cli("merge", *call, "--method", method, out)
    assert said.code == 0
    for name in ("a", "b"):
        assert f"{found[name]} has nothing in common with the base {found['base']}" in said.message
    assert "another initialisation" in said.message
    record = json.loads((tmp_path / "out.magmerge.json").read_text())
    assert sum("nothing in common" in warning for warning in record["warnings"]) == 2


def test_one_stranger_among_experts_is_named(tmp_path: Path) -> None:
    state = base()
    found = files(tmp_path, a=tuned(state, 1), stranger=random_state(9, SHAPES))
    result = magmerge.merge(base=state, experts=list(found.values()))
    (note,) = result.warnings
    assert note.startswith(str(found["stranger"]))


def test_every_verb_looks_at_the_base(tmp_path: Path) -> None:
    from tests.evaluation.models import save_llama, save_rows

    state, other = base(), random_state(9, SHAPES)
    with pytest.warns(MagmergeWarning, match="nothing in common"):
        magmerge.calibrate(tuned(state, 3), base=state, experts=[tuned(other, 1)])
    layers = [name for name in SHAPES if name.startswith("layers") and "norm" not in name]
    model = {**state, **{name: other[name] for name in layers}}
    with pytest.warns(MagmergeWarning, match="nothing in common"):
        magmerge.extract(base=state, model=model)
    first, second = save_llama(tmp_path / "a"), save_llama(tmp_path / "b", seed=1)
    texts = save_rows(tmp_path / "t.jsonl", [{"text": "yes no good bad"}] * 2)
    with pytest.warns(MagmergeWarning, match="nothing in common"):
        magmerge.sensitivity(base=first, experts=[second], data=texts, samples=2)


def test_an_expert_that_is_far_is_told(magmerge_cli: CommandLine, tmp_path: Path) -> None:
    state = base()
    found = files(tmp_path, base=state, a=tuned(state, 1), far=tuned(state, 2, size=1.0))
    out = tmp_path / "out.safetensors"
    call = ["--base", found["base"], "--expert", found["a"], "--expert", found["far"]]
    said = magmerge_cli("merge", *call, out)
    assert said.code == 0
    assert "far.safetensors is far from the base" in said.message
    assert "a.safetensors is far" not in said.message
    record = json.loads((tmp_path / "out.magmerge.json").read_text())
    assert any("is far from the base" in warning for warning in record["warnings"])


def test_a_base_that_is_a_sibling_is_told() -> None:
    state = base()
    sibling, *experts = (tuned(state, seed) for seed in range(4))
    with pytest.warns(MagmergeWarning, match="as one more expert would be"):
        magmerge.merge(base=sibling, experts=experts)


def test_an_earlier_version_of_the_base_is_told() -> None:
    first = base()
    later = tuned(first, 9, size=0.3)
    experts = [tuned(later, seed) for seed in range(3)]
    with pytest.warns(MagmergeWarning, match="a later version of it"):
        magmerge.merge(base=first, experts=experts)


@pytest.mark.parametrize("size", [1e-4, 0.01, 0.1, 0.3])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_right_base_is_merged_without_a_word(size: float, count: int) -> None:
    state = base()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        magmerge.merge(base=state, experts=[tuned(state, k, size=size) for k in range(count)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_nothing_that_experts_share(dtype: torch.dtype) -> None:
    """Whole models that were saved in half precision, of which few layers were trained."""
    state = base()
    experts = []
    for seed in range(3):
        expert = dict(state)
        for i in range(3):
            expert[f"layers.{i}.attn.weight"] = tuned(state, seed)[f"layers.{i}.attn.weight"]
        experts.append({name: tensor.to(dtype) for name, tensor in expert.items()})
    with pytest.warns(MagmergeWarning, match="tensors where"):
        found = magmerge.merge(base=state, experts=experts)
    assert not [note for note in found.warnings if "mean cosine" in note or "far from" in note]


def test_a_new_last_layer_on_an_unchanged_base_is_no_stranger() -> None:
    state = base()
    experts = [
        {**state, "layers.2.mlp.weight": random_state(seed, SHAPES)["layers.2.mlp.weight"]}
        for seed in (5, 6)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        magmerge.merge(base=state, experts=experts)


def test_layers_that_only_one_expert_replaced_are_no_reason() -> None:
    state = base()
    expert = tuned(state, 1)
    expert["layers.2.mlp.weight"] = random_state(5, SHAPES)["layers.2.mlp.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        magmerge.merge(base=state, experts=[expert, tuned(state, 2)])


def test_a_base_of_zeros_has_no_direction() -> None:
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    magmerge.merge(base=zeros, experts=[random_state(1, SHAPES), random_state(2, SHAPES)])


def test_an_adapter_says_nothing_of_its_base(tmp_path: Path) -> None:
    state = base()
    adapters = [
        write_adapter(tmp_path / f"{k}.safetensors", {"unet.layers.0.attn": (24, 24)}, seed=k)
        for k in (0, 50)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        magmerge.merge(base=state, experts=[*adapters, tuned(state, 1)], params={"lambda": 1.0})
