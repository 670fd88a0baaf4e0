"""A merge of adapters spells its keys as the first input does, and keeps its header's entries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import magmerge
from magmerge.core.errors import MagmergeWarning

State = dict[str, Tensor]
FLUX = "single_transformer_blocks.{}.attn.to_q"
UNET = "down_blocks.0.attentions.{}.proj_in"
FACTORS = ("lora_A.weight", "lora_B.weight")
KOHYA = ("lora_down.weight", "lora_up.weight")


def lora(stems: list[str], ends: tuple[str, str], seed: int, *, alpha: bool = False) -> State:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for stem in stems:
        state[f"{stem}.{ends[0]}"] = torch.randn(2, 6, generator=generator)
        state[f"{stem}.{ends[1]}"] = torch.randn(8, 2, generator=generator)
        if alpha:
            state[f"{stem}.alpha"] = torch.tensor(3.0)
    return state


def task_vectors(state: State, ends: tuple[str, str]) -> State:
    """B A, scaled, by what precedes the endings."""
    stems = [key.removesuffix(f".{ends[0]}") for key in state if key.endswith(ends[0])]
    return {
        stem: (state[f"{stem}.{ends[1]}"] @ state[f"{stem}.{ends[0]}"])
        * (float(state[f"{stem}.alpha"]) / 2 if f"{stem}.alpha" in state else 1.0)
        for stem in stems
    }


MANNERS = {
    "without a component": (["{}"], FACTORS, False, UNET),
    "unet": (["unet.{}"], FACTORS, False, UNET),
    "kohya's endings under diffusers' names": (["unet.{}"], KOHYA, True, UNET),
    "transformer": (["transformer.{}"], FACTORS, False, FLUX),
    "transformer with alphas": (["transformer.{}"], FACTORS, True, FLUX),
    "ComfyUI's": (["diffusion_model.{}"], FACTORS, False, "blocks.{}.self_attn.q"),
    "ComfyUI's with alphas": (["diffusion_model.{}"], KOHYA, True, "blocks.{}.self_attn.q"),
}


@pytest.mark.parametrize(("stem", "ends", "alpha", "name"), MANNERS.values(), ids=MANNERS)
def test_keys_are_spelt_as_the_first_input_spells_them(
    tmp_path: Path, stem: list[str], ends: tuple[str, str], alpha: bool, name: str
) -> None:
    stems = [stem[0].format(name.format(number)) for number in (0, 1, 2)]
    first, second = lora(stems[:2], ends, 1, alpha=alpha), lora(stems[1:], ends, 2, alpha=alpha)
    save_file(first, tmp_path / "a.safetensors")
    save_file(second, tmp_path / "b.safetensors")
    out = tmp_path / "out.safetensors"
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    magmerge.merge(experts=files, params={"lambda": 1.0}, rank="exact", out=out)
    found = load_file(out)
    assert found.keys() == first.keys() | second.keys()
    both = task_vectors(first, ends), task_vectors(second, ends)
    for key, product in merged_products(found, ends).items():
        wanted = sum(vectors[key] for vectors in both if key in vectors)
        assert torch.allclose(product, torch.as_tensor(wanted), atol=1e-4)


def merged_products(state: State, ends: tuple[str, str]) -> State:
    """B A of any rank, with alpha over it."""
    products = {}
    for key in state:
        if key.endswith(ends[0]):
            stem = key.removesuffix(f".{ends[0]}")
            rank = len(state[key])
            scale = float(state[f"{stem}.alpha"]) / rank if f"{stem}.alpha" in state else 1.0
            products[stem] = scale * (state[f"{stem}.{ends[1]}"] @ state[key])
    return products


def test_a_second_input_of_another_manner_is_spelt_as_the_first(tmp_path: Path) -> None:
    name = UNET.format(0)
    save_file(lora([name], FACTORS, 1), tmp_path / "a.safetensors")
    kohya = f"lora_unet_{UNET.format(1).replace('.', '_')}"
    save_file(lora([kohya], KOHYA, 2, alpha=True), tmp_path / "b.safetensors")
    out = tmp_path / "out.safetensors"
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    with pytest.warns(MagmergeWarning, match="no module in common"):
        magmerge.merge(experts=files, params={"lambda": 1.0}, out=out)
    names = (name, UNET.format(1))
    assert set(load_file(out)) == {f"{name}.{end}" for name in names for end in FACTORS}


def test_what_comfyui_s_manner_has_no_name_for_is_told(tmp_path: Path) -> None:
    save_file(lora(["diffusion_model.blocks.0.q"], FACTORS, 1), tmp_path / "a.safetensors")
    other = ["lora_unet_blocks_0_q", "lora_unet_blocks_1_q"]
    save_file(lora(other, KOHYA, 2, alpha=True), tmp_path / "b.safetensors")
    out = tmp_path / "out.safetensors"
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    with pytest.warns(MagmergeWarning, match="the result has kohya's names"):
        magmerge.merge(experts=files, params={"lambda": 1.0}, out=out)
    assert {key.partition(".")[0] for key in load_file(out)} == set(other)


def test_trigger_words_are_the_first_input_s_and_others_are_told(tmp_path: Path) -> None:
    stem = [f"lora_unet_{UNET.format(0).replace('.', '_')}"]
    entries = {"ss_tag_frequency": "{cat}", "sshs_model_hash": "1", "modelspec.thumbnail": "data:"}
    save_file(lora(stem, KOHYA, 1, alpha=True), tmp_path / "a.safetensors", entries)
    other = {"ss_tag_frequency": "{dog}", "modelspec.title": "Dog", "note": "x"}
    save_file(lora(stem, KOHYA, 2, alpha=True), tmp_path / "b.safetensors", other)
    out = tmp_path / "out.safetensors"
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    with pytest.warns(
        MagmergeWarning, match=r"not these of .*: modelspec\.title, ss_tag_frequency"
    ):
        magmerge.merge(experts=files, params={"lambda": 1.0}, out=out)
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_tag_frequency"] == "{cat}"
    assert metadata["modelspec.thumbnail"] == "data:"
    assert "sshs_model_hash" not in metadata
    record = json.loads((tmp_path / "out.magmerge.json").read_text())
    dropped = {f"./{files[1].name}": ["modelspec.title", "note", "ss_tag_frequency"]}
    assert record["dropped_entries"] == dropped
