"""The parts of diffusion models in single files, and merges that treat them differently."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from magmerge.cli import main
from magmerge.core.components import COMPONENTS, component_of, components_of, layout_of
from tests.conftest import SHAPES, Shapes, random_state, tuned
from tests.diffusion import UNET, flux, sd1, sd2, sdxl

LAYOUTS = {
    "sd1": sd1(),
    "sd2": sd2(),
    "sdxl": sdxl(),
    "flux": flux(),
    "flux in one file": flux(prefix=UNET, encoders=True),
}
FIRST = {"cond_stage_model": "text_encoder", "first_stage_model": "vae", "vae": "vae"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_tensor_is_in_its_component(name: str) -> None:
    shapes = LAYOUTS[name]
    layout = layout_of(shapes)
    assert layout == name.partition(" ")[0]
    image = "transformer" if layout == "flux" else "unet"
    for tensor in shapes:
        first, second, third = [*tensor.split("."), "", ""][:3]
        expected = FIRST.get(first, image)
        if tensor == "alphas_cumprod":
            expected = None
        elif first in ("conditioner", "text_encoders"):
            expected = {"0": "text_encoder", "clip_l": "text_encoder"}.get(
                third if first == "conditioner" else second, "text_encoder_2"
            )
        assert component_of(tensor, layout) == expected, tensor
    assert sum(components_of(shapes).values()) == len(shapes) - ("alphas_cumprod" in shapes)


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (SHAPES, None),
        (["transformer.h.0.attn.c_attn.weight", "transformer.wte.weight"], None),
        (["down_blocks.0.resnets.0.conv1.weight"], None),
        ([f"{UNET}joint_blocks.0.x_block.attn.qkv.weight"], None),
        ([n for n in sd1() if n.startswith(UNET)], "sd1"),
        ([n for n in sdxl() if n.startswith(UNET)], "sdxl"),
        (["lora_unet_down_blocks_0_attentions_0_proj_in", "lora_te_x"], "kohya"),
        (["unet.conv_in", "text_encoder.text_model.encoder.layers.0.mlp.fc1"], "diffusers"),
        (["transformer.single_transformer_blocks.0.proj_out"], "diffusers"),
    ],
)
def test_other_models_have_no_components(names: list[str], layout: str | None) -> None:
    assert layout_of(names) == layout


@given(names=st.lists(st.text(max_size=20) | st.sampled_from(sorted(sd1())), max_size=6))
def test_fuzz_any_names_are_in_a_component_or_none(names: list[str]) -> None:
    assert set(components_of(names)) <= set(COMPONENTS)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    base = random_state(0, LAYOUTS["sd1"], torch.float16)
    states = [base, tuned(base, 0), tuned(base, 1)]
    # Some files lack the position ids, or have them in another format.
    states[0]["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(9)
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "a", "b")]
    for state, path in zip(states, paths, strict=True):
        save_file(state, path)
    return paths


def command(monkeypatch: pytest.MonkeyPatch, verb: str, files: list[Path], *more: object) -> None:
    models = ["--base", files[0], "--expert", files[1], "--expert", files[2]]
    monkeypatch.setattr(sys, "argv", ["magmerge", *map(str, [verb, *models, *more])])
    main()


SETTINGS = ["--set", "lambda=0.3", "--set", "lambda@vae=0", "--set", "lambda@text_encoder=0.5"]


@pytest.mark.parametrize("threads", [1, 2])
def test_components_are_merged_with_their_own_values(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    out = tmp_path / "out.safetensors"
    command(monkeypatch, "merge", files, out, *SETTINGS, "--threads", threads)
    merged, states = load_file(out), [load_file(path) for path in files]
    assert set(merged) == set(states[0])
    values: Counter[float] = Counter()
    for name, tensor in merged.items():
        if not tensor.is_floating_point():
            assert torch.equal(tensor, states[0][name])
            continue
        part = component_of(name, "sd1")
        value = {"vae": 0.0, "text_encoder": 0.5}.get(part or "", 0.3)
        values[value] += 1
        base = states[0][name].float()
        total = sum(state[name].float() - base for state in states[1:])
        assert torch.equal(tensor, (base + total * value).half()), name
    assert len(values) == 3


def test_the_plan_shows_who_takes_which_value(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, "plan", files, *SETTINGS)
    text = capsys.readouterr().out
    assert "lambda: 0 for vae (3 tensors), 0.5 for text_encoder (13 tensors), 0.3 for all" in text
    command(monkeypatch, "plan", files, *SETTINGS, "--json")
    plan = json.loads(capsys.readouterr().out)
    assert plan["choices"][0] == {
        "parameter": "lambda", "filter": "vae", "value": 0.0, "tensors": 3
    }  # fmt: skip
    params = {step["spec"]["name"]: step["params"] for step in plan["steps"]}
    assert params["first_stage_model.quant_conv.bias"] == {"lambda": 0.0}
    assert sum(one["tensors"] for one in plan["choices"]) == sum(map(bool, params.values()))


def test_a_component_that_the_model_lacks_is_told(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["magmerge", "plan", "--base", files[0], "--expert", files[1]]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments), "--set", "lambda@transformer=0"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert "this model has the components unet, text_encoder, vae" in capsys.readouterr().err


def test_kinds_are_what_layers_of_these_models_are() -> None:
    from magmerge.checkpoints.kinds import kinds_of
    from magmerge.checkpoints.memory_checkpoint import MemoryCheckpoint

    def kinds(shapes: Shapes) -> dict[str, str]:
        return {**kinds_of(MemoryCheckpoint(random_state(0, shapes)), {})}

    found = kinds(sdxl()) | kinds(sd1())
    assert found[f"{UNET}time_embed.0.weight"] == "matrix"
    assert found[f"{UNET}label_emb.0.0.weight"] == "matrix"
    assert found[f"{UNET}input_blocks.0.0.weight"] == "convolution"
    assert found["conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"] == (
        "matrix"
    )
    clip = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    assert found[clip] == "embedding"
