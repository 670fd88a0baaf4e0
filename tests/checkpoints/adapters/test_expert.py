"""Adapters of diffusion models on bases in every layout, against plain products by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.experts import open_expert
from magmerge.core.errors import MagmergeError, StructureError
from tests.checkpoints.adapters.base_cases import (
    CASES,
    DIFFUSERS_FLUX,
    OF_SD1,
    Part,
    opened,
    shape_of,
)
from tests.checkpoints.adapters.files import factors, product, write_adapter
from tests.conftest import Shapes, random_state
from tests.diffusion import UNET, flux, sd1, sdxl
from tests.quick import examples


@pytest.mark.parametrize("linear", [False, True], ids=["convolutions", "linear factors"])
@pytest.mark.parametrize("name", CASES)
def test_every_module_changes_its_own_rows_and_no_others(
    tmp_path: Path, name: str, linear: bool
) -> None:
    shapes, parts = CASES[name]
    base, expert, expected = opened(tmp_path, shapes, parts, linear=linear)
    assert not expert.faults
    assert dict(expert.specs) == dict(base.specs)
    assert expert.untouched == set(shapes) - set(expected)
    for tensor, spec in base.specs.items():
        own = base.read(tensor)
        delta = expected.get(tensor, torch.zeros(spec.shape).double())
        assert torch.allclose(expert.delta(tensor, own).double(), delta, atol=1e-5), tensor
        assert torch.allclose(expert.weight(tensor, own).double(), own + delta, atol=1e-5)


def test_fused_modules_are_taken_apart_for_a_base_that_has_them_apart(tmp_path: Path) -> None:
    names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    tensors = [f"single_transformer_blocks.0.{name}.weight" for name in names]
    shapes: Shapes = dict(zip(tensors, [(8, 8), (8, 8), (8, 8), (32, 8)], strict=True))
    shapes["norm_out.linear.weight"] = (16, 8)
    fused, last = "lora_unet_single_blocks_0_linear1", "lora_unet_final_layer_adaLN_modulation_1"
    path = write_adapter(tmp_path / "a.safetensors", {fused: (56, 8), last: (16, 8)})
    base = open_checkpoint(random_state(0, shapes))
    expert = open_expert("a", path, base)
    deltas = [expert.delta(tensor, base.read(tensor)).double() for tensor in tensors]
    assert torch.allclose(torch.cat(deltas), product(fused, (56, 8), 0), atol=1e-5)
    # diffusers has scale and shift the other way round.
    turned = expert.delta("norm_out.linear.weight", torch.zeros(16, 8)).double()
    assert torch.allclose(turned.roll(8, 0), product(last, (16, 8), 1), atol=1e-5)


@settings(
    deadline=None,
    max_examples=examples(60),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_pieces_are_the_whole_to_the_last_bit(tmp_path: Path, data: st.DataObject) -> None:
    shapes = flux(width=48)
    parts = [
        Part("transformer.single_transformer_blocks.0.attn.to_k", "single_blocks.0.linear1.weight"),
        Part("transformer.single_transformer_blocks.0.proj_mlp", "single_blocks.0.linear1.weight"),
    ]
    modules = {parts[0].module: (48, 48), parts[1].module: (192, 48)}
    path = write_adapter(tmp_path / "a.safetensors", modules)
    base = open_checkpoint(random_state(0, shapes))
    expert = open_expert("a", path, base)
    own = base.read(parts[0].tensor)
    whole = expert.delta(parts[0].tensor, own).reshape(-1)
    start = data.draw(st.integers(0, whole.numel()))
    stop = data.draw(st.integers(start, whole.numel()))
    piece = own.reshape(-1)[start:stop]
    assert torch.equal(expert.delta(parts[0].tensor, piece, start), whole[start:stop])
    out = torch.full_like(piece, 7.0)
    assert torch.equal(expert.delta(parts[0].tensor, piece, start, out), whole[start:stop])


def test_two_adapters_are_merged_into_a_single_file(tmp_path: Path) -> None:
    shapes, parts = CASES["sdxl ldm"]
    modules = {part.module: shape_of(part, shapes) for part in parts}
    paths = [write_adapter(tmp_path / f"{i}.safetensors", modules, 10 * i) for i in range(2)]
    save_file(random_state(0, shapes, torch.float16), tmp_path / "base.safetensors")
    runs = []
    for threads in (1, 2):
        out = tmp_path / f"out{threads}.safetensors"
        magmerge.merge(
            base=tmp_path / "base.safetensors",
            experts=paths,
            method="task_arithmetic",
            params={"lambda": [{"filter": "text_encoder_2", "value": 0.5}, {"value": 1}]},
            calibrate="wsc",
            out=out,
            threads=threads,
        )
        runs.append(load_file(out))
    base = random_state(0, shapes, torch.float16)
    changed = {name for name, tensor in runs[0].items() if not torch.equal(tensor, base[name])}
    assert changed == {part.tensor for part in parts}
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in shapes)


def test_an_adapter_for_another_base_is_told_with_all_that_does_not_fit(tmp_path: Path) -> None:
    shapes = sd1(text=768)
    modules = {part.module: shape_of(part, shapes) for part in OF_SD1}
    path = write_adapter(tmp_path / "style.safetensors", modules)
    base = random_state(0, sdxl(width=16, text=768, second=1280))
    with pytest.raises(StructureError) as caught:
        magmerge.plan(base=base, experts=[path])
    message = str(caught.value)
    assert "768 inputs where the base's has 2048: an SD1 adapter on an SDXL base" in message
    assert "[8, 768] of style does not fit the base's [16, 2048]" in message
    assert "up_blocks_0_upsamplers_0_conv" in message
    assert "trained on" in caught.value.remedy


def test_an_adapter_of_another_kind_of_model_is_one_fault(tmp_path: Path) -> None:
    modules = {f"transformer.{part.module}": (8, 8) for part in DIFFUSERS_FLUX}
    path = write_adapter(tmp_path / "a.safetensors", modules)
    with pytest.raises(StructureError) as caught:
        magmerge.plan(base=random_state(0, sdxl()), experts=[path])
    assert "a Flux adapter on an SDXL base" in caught.value.faults[0]
    assert "none of the 6 modules of a is in the base" in caught.value.faults[1]
    assert len(caught.value.faults) == 2


def test_what_the_base_lacks_may_be_ignored(tmp_path: Path) -> None:
    unet = {n.removeprefix(UNET): s for n, s in sd1().items() if n.startswith(UNET)}
    renamed = {
        "conv_in.weight": unet["input_blocks.0.0.weight"],
        "mid_block.attentions.0.proj_in.weight": (8, 8),
    }
    modules = {
        "unet.mid_block.attentions.0.proj_in": (8, 8),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": (48, 12),
    }
    path = write_adapter(tmp_path / "a.safetensors", modules)
    given = {"base": random_state(0, renamed), "experts": [path], "params": {"lambda": 1.0}}
    with pytest.raises(StructureError, match=r"text_encoder\.text_model\S+ of .* is not in"):
        magmerge.plan(**given)
    result = magmerge.merge(**given, ignore="text_encoder.*").state_dict()
    assert not torch.equal(
        result["mid_block.attentions.0.proj_in.weight"],
        given["base"]["mid_block.attentions.0.proj_in.weight"],
    )


def test_a_module_that_is_there_twice_is_a_fault(tmp_path: Path) -> None:
    twice = {f"lora_{tag}_text_model_encoder_layers_0_mlp_fc1": (48, 12) for tag in ("te", "te1")}
    path = write_adapter(tmp_path / "a.safetensors", twice)
    with pytest.raises(StructureError, match=r"mlp.fc1.weight has the task vector of two modules"):
        magmerge.plan(base=random_state(0, sd1()), experts=[path])
    joined = {"lora_unet_double_blocks_0_img_attn_qkv": (24, 8)}
    joined["lora_unet_transformer_blocks_0_attn_to_k"] = (8, 8)
    path = write_adapter(tmp_path / "a.safetensors", joined)
    with pytest.raises(StructureError, match=r"qkv.weight has the task vector of two modules"):
        magmerge.plan(base=random_state(0, flux()), experts=[path])


def test_nothing_learnt_and_the_same_adapter_twice_are_told(tmp_path: Path) -> None:
    shapes, parts = CASES["sd1 kohya"]
    modules = {part.module: shape_of(part, shapes) for part in parts}
    path = write_adapter(tmp_path / "a.safetensors", modules)
    base = random_state(0, shapes)
    state = load_file(path)
    save_file(state, tmp_path / "b.safetensors")
    with pytest.raises(StructureError, match="are the same expert"):
        magmerge.merge(base=base, experts=[path, tmp_path / "b.safetensors"])
    state = {n: torch.zeros_like(t) if "lora_up" in n else t for n, t in state.items()}
    save_file(state, tmp_path / "b.safetensors")
    with pytest.raises(StructureError, match="has learnt nothing"):
        magmerge.merge(base=base, experts=[path, tmp_path / "b.safetensors"])


def test_an_adapter_is_no_base(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a.safetensors", {OF_SD1[0].module: (8, 12)})
    with pytest.raises(MagmergeError, match="LoRA adapter, and the base must be a whole model"):
        magmerge.plan(base=path, experts=[path])


NAMES = st.sampled_from(
    [part.module for _, parts in CASES.values() for part in parts]
    + [
        "lora_unet_",
        "lora_unet_x",
        "unet.x",
        "transformer.transformer_blocks.0.attn.to_q",
        "lora_te2_",
    ]
)


@settings(
    deadline=None,
    max_examples=examples(80),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    modules=st.dictionaries(
        NAMES,
        st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple),
        min_size=1,
        max_size=4,
    ),
    base=st.sampled_from([sd1(), sdxl(), flux(), {"conv_in.weight": ()}, {}]),
)
def test_fuzz_any_modules_are_placed_or_refused(
    tmp_path: Path, modules: dict[str, tuple[int, ...]], base: Shapes
) -> None:
    state = {}
    for place, (name, shape) in enumerate(modules.items()):
        up, down = factors((*shape, 1)[: max(2, len(shape))], place)
        state |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    save_file(state, tmp_path / "fuzz.safetensors")
    weights = random_state(0, base)
    try:
        magmerge.merge(base=weights, experts=[tmp_path / "fuzz.safetensors"], threads=1)
    except MagmergeError as error:
        assert str(error)
