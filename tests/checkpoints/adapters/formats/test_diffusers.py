from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magmerge.checkpoints.adapters.adapter_loader import open_adapter
from magmerge.checkpoints.adapters.formats.peft import encode
from magmerge.checkpoints.adapters.translation import rename_content, renamed
from magmerge.core.errors import AdapterError
from tests.checkpoints.adapters import module_names as names
from tests.checkpoints.adapters.lora_files import (
    content_of,
    delta,
    deltas_of,
    opened,
    random_content,
    read_deltas,
    same,
    write,
)

REAL = Path(__file__).parents[5] / "shared" / "data" / "lora"
BLOCK = "mid_block.attentions.0.transformer_blocks.0"
LAYER = "text_model.encoder.layers.1"


def factors(down: str, up: str, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        down: torch.randn(2, 4, generator=generator),
        up: torch.randn(4, 2, generator=generator),
    }


def pair(start: str, style: str = "new") -> dict[str, Tensor]:
    down, up = ("lora_A", "lora_B") if style == "new" else ("down", "up")
    return factors(f"{start}.{down}.weight", f"{start}.{up}.weight")


@pytest.mark.parametrize(
    ("start", "style", "module"),
    [
        (f"{BLOCK}.attn1.processor.to_q_lora", "old", f"unet.{BLOCK}.attn1.to_q"),
        (f"unet.{BLOCK}.attn2.processor.to_out_lora", "old", f"unet.{BLOCK}.attn2.to_out.0"),
        (f"unet.{BLOCK}.attn1.to_k.lora", "old", f"unet.{BLOCK}.attn1.to_k"),
        (f"unet.{BLOCK}.ff.net.0.proj.lora", "old", f"unet.{BLOCK}.ff.net.0.proj"),
        (
            f"text_encoder.{LAYER}.self_attn.to_out_lora",
            "old",
            f"text_encoder.{LAYER}.self_attn.out_proj",
        ),
        (
            f"text_encoder.{LAYER}.self_attn.q_proj.lora_linear_layer",
            "old",
            f"text_encoder.{LAYER}.self_attn.q_proj",
        ),
        (f"{LAYER}.self_attn.to_v_lora", "old", f"text_encoder.{LAYER}.self_attn.v_proj"),
        (f"unet.{BLOCK}.attn1.to_q", "new", f"unet.{BLOCK}.attn1.to_q"),
        (f"{BLOCK}.attn1.to_q", "new", f"unet.{BLOCK}.attn1.to_q"),
        ("transformer.blocks.0.attn1.to_q", "new", "transformer.blocks.0.attn1.to_q"),
        (
            "single_transformer_blocks.3.proj_mlp",
            "new",
            "transformer.single_transformer_blocks.3.proj_mlp",
        ),
        ("text_encoder_2.encoder.layers.1.mlp.fc1", "new", f"text_encoder_2.{LAYER}.mlp.fc1"),
    ],
)
def test_every_manner_of_naming_gives_the_new_name(
    tmp_path: Path, start: str, style: str, module: str
) -> None:
    adapter = opened(pair(start, style), tmp_path)
    assert list(adapter.modules) == [module]
    assert adapter.naming == ("diffusers" if style == "new" else "diffusers_old")
    assert adapter.modules[module].scale == 1.0


@pytest.mark.parametrize(
    ("start", "style", "alpha"),
    [
        (f"unet.{BLOCK}.attn1.to_q", "new", f"unet.{BLOCK}.attn1.to_q.alpha"),
        (f"{BLOCK}.attn1.processor.to_q_lora", "old", f"{BLOCK}.attn1.processor.to_q_lora.alpha"),
        (f"{BLOCK}.attn1.processor.to_q_lora", "old", f"unet.{BLOCK}.attn1.to_q.alpha"),
    ],
)
def test_network_alphas_are_read(tmp_path: Path, start: str, style: str, alpha: str) -> None:
    adapter = opened({**pair(start, style), alpha: torch.tensor(5.0)}, tmp_path)
    assert adapter.modules[f"unet.{BLOCK}.attn1.to_q"].scale == 2.5


TWO = {**pair(f"unet.{BLOCK}.attn1.to_q"), **pair(f"text_encoder.{LAYER}.mlp.fc1")}


def with_settings(folder: Path, state: dict[str, Tensor], **settings: Any) -> dict[str, float]:
    entries = {key.replace("__", "."): value for key, value in settings.items()}
    adapter = opened(state, folder, lora_adapter_metadata=json.dumps(entries))
    return {name.partition(".")[0]: spec.scale for name, spec in adapter.modules.items()}


def test_the_headers_settings_are_honoured_by_component(tmp_path: Path) -> None:
    found = with_settings(tmp_path, TWO, unet__r=2, unet__lora_alpha=6)
    assert found == {"unet": 3.0, "text_encoder": 1.0}
    patterns = {"attn1.to_q": 8, "nothing": 1}
    found = with_settings(tmp_path, TWO, unet__lora_alpha=6, unet__alpha_pattern=patterns)
    assert found["unet"] == 4.0
    found = with_settings(tmp_path, TWO, unet__lora_alpha=6, unet__use_rslora=True)
    assert found["unet"] == pytest.approx(6 / 2**0.5)
    bare = pair(f"{BLOCK}.attn1.to_q")
    assert with_settings(tmp_path, bare, lora_alpha=6) == {"unet": 3.0}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", "is no JSON object"),
        ('{"unet.r": 2}', "lora_alpha is None"),
        ('{"unet.lora_alpha": 0}', "alpha is 0"),
        ('{"unet.lora_alpha": 1e999}', "lora_alpha is inf"),
        (f'{{"unet.lora_alpha": 1{"0" * 400}}}', "too large"),
        ('{"unet.lora_alpha": 4, "unet.use_dora": true}', "DoRA"),
    ],
)
def test_settings_that_cannot_be_used_are_errors(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(AdapterError, match=problem) as caught:
        opened(TWO, tmp_path, lora_adapter_metadata=text)
    assert str(tmp_path) in str(caught.value)


def test_settings_and_alphas_that_differ_are_an_error(tmp_path: Path) -> None:
    text = json.dumps({"unet.lora_alpha": 4})
    alpha = {f"unet.{BLOCK}.attn1.to_q.alpha": torch.tensor(4.0)}
    opened({**TWO, **alpha}, tmp_path, lora_adapter_metadata=text)
    alpha = {f"unet.{BLOCK}.attn1.to_q.alpha": torch.tensor(3.0)}
    with pytest.raises(AdapterError, match=r"scale 1\.5, and the file's entries 2"):
        opened({**TWO, **alpha}, tmp_path, lora_adapter_metadata=text)


def shapes() -> names.Shapes:
    parts = {"unet": names.unet("sd"), "text_encoder": names.clip()}
    return {k: v for part, some in parts.items() for k, v in names.prefixed(part, some).items()}


def test_written_scales_are_in_the_up_factors_and_no_loader_has_to_know_them(
    tmp_path: Path,
) -> None:
    content = random_content(shapes())
    for naming in ("diffusers", "diffusers_old"):
        (encoded,) = encode(rename_content(content, naming)).values()
        assert not [key for key in encoded.tensors if "alpha" in key]
        adapter = opened(encoded.tensors, tmp_path)
        assert {spec.scale for spec in adapter.modules.values()} == {1.0}
        assert same(read_deltas(adapter), deltas_of(content))


def test_ranks_that_differ_are_told_in_the_header() -> None:
    content = random_content(shapes())
    (encoded,) = encode(content).values()
    settings = json.loads(encoded.metadata["lora_adapter_metadata"])
    for component in ("unet", "text_encoder"):
        own = {n: len(f.down) for n, f in content.modules.items() if n.startswith(f"{component}.")}
        assert settings[f"{component}.lora_alpha"] == settings[f"{component}.r"]
        assert settings[f"{component}.alpha_pattern"] == settings[f"{component}.rank_pattern"]
        for name, rank in own.items():
            inside = name.removeprefix(f"{component}.").removeprefix("text_model.")
            told = settings[f"{component}.rank_pattern"].get(inside, settings[f"{component}.r"])
            assert told == rank
            assert inside in settings[f"{component}.target_modules"]


def test_the_settings_are_carried_and_made_anew(tmp_path: Path) -> None:
    given = {"unet.r": 99, "unet.lora_alpha": 6, "unet.lora_dropout": 0.25}
    adapter = opened(TWO, tmp_path, lora_adapter_metadata=json.dumps(given), note="kept")
    (encoded,) = encode(content_of(adapter)).values()
    settings = json.loads(encoded.metadata["lora_adapter_metadata"])
    assert encoded.metadata["note"] == "kept"
    assert settings["unet.r"] == settings["unet.lora_alpha"] == 2
    assert settings["unet.lora_dropout"] == 0.25
    again = open_adapter(write(content_of(adapter), tmp_path / "b.safetensors"))
    assert same(read_deltas(again), read_deltas(adapter))
    other = encode(rename_content(content_of(adapter), "kohya"))[""]
    assert "lora_adapter_metadata" not in other.metadata
    plain = encode(content_of(opened(TWO, tmp_path)))[""].metadata
    assert plain == {"format": "pt"}


def test_a_convolutions_up_factor_has_a_kernel_of_ones() -> None:
    content = random_content({"unet.conv_in": (4, 2, 3, 3)})
    (encoded,) = encode(content).values()
    assert encoded.tensors["unet.conv_in.lora_B.weight"].shape == (4, 1, 1, 1)
    assert encoded.tensors["unet.conv_in.lora_A.weight"].shape == (1, 2, 3, 3)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("double_blocks.0.processor.qkv_lora1", "XLabs"),
        ("single_blocks.0.processor.proj_lora", "XLabs"),
        ("model.layers.0.q_lora", "no model of a diffusion pipeline"),
    ],
)
def test_modules_of_no_known_model_are_refused(tmp_path: Path, start: str, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        opened(pair(start, "old"), tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real adapters are not beside this checkout")
@pytest.mark.parametrize("file", ["sd15-object-weapons", "sd14-style-pokemon"])
def test_reads_and_converts_real_files(tmp_path: Path, file: str) -> None:
    adapter = open_adapter(REAL / f"{file}.safetensors")
    assert adapter.naming == "diffusers_old"
    assert len(adapter.modules) == 128
    assert {spec.rank for spec in adapter.modules.values()} == {4}
    some = {name: adapter.read(name) for name in list(adapter.modules)[::16]}
    for naming in ("kohya", "kohya_ldm", "diffusers", "peft"):
        there = renamed(adapter, naming)
        content = content_of(there)
        path = write(dataclasses.replace(content), tmp_path / f"{naming}.safetensors")
        back = renamed(open_adapter(path), "diffusers")
        assert set(back.modules) == set(adapter.modules)
        for name, own in some.items():
            assert torch.equal(delta(back.read(name)), delta(own))
