"""Whole image and video models in one naming on a base in another, against diffusers' own code."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import magmerge
from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.names.alignment import aligned
from magmerge.core.errors import StructureError
from tests import diffusion
from tests.checkpoints.names import originals
from tests.conftest import Shapes, State, random_state

PREFIX = "model.diffusion_model."
VAE = {"down_block_types": [0, 0], "up_block_types": [0, 0]}


def converted(kind: str, state: State) -> State:
    """The model under diffusers' names, as diffusers converts it."""
    code = pytest.importorskip("diffusers.loaders.single_file_utils")
    own = {name: tensor.clone() for name, tensor in state.items()}
    if kind == "vae":
        return code.convert_ldm_vae_checkpoint(own, VAE)
    if kind == "sd3":
        return code.convert_sd3_transformer_checkpoint_to_diffusers(own)
    if kind == "wan":
        return code.convert_wan_transformer_to_diffusers(own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code, "torch", AnyWidth())
        return code.convert_flux_transformer_checkpoint_to_diffusers(own)


class AnyWidth:
    """torch, whose `split` takes sizes as shares: diffusers' code knows one width of Flux."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def split(self, tensor: torch.Tensor, sizes: list[int], dim: int) -> Any:
        return torch.split(tensor, [size * len(tensor) // sum(sizes) for size in sizes], dim)


KINDS: dict[str, Callable[[], Shapes]] = {
    "flux": originals.flux,
    "sd3": originals.sd3,
    "wan": originals.wan,
    "vae": originals.vae,
}


def merged(base: State, expert: State, **keywords: Any) -> State:
    result = magmerge.merge(base=base, experts=[expert], params={"lambda": 1.0}, **keywords)
    return result.state_dict()


def check(base: State, expert: State, truth: State) -> None:
    result = merged(base, expert)
    assert result.keys() == truth.keys() == base.keys()
    for name, tensor in truth.items():
        torch.testing.assert_close(result[name], tensor, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_an_expert_in_the_authors_names_on_diffusers_base(kind: str, prefix: str) -> None:
    first, second = random_state(0, KINDS[kind]()), random_state(1, KINDS[kind]())
    prefix = "first_stage_model." if kind == "vae" and prefix else prefix
    expert = {f"{prefix}{name}": tensor for name, tensor in second.items()}
    check(converted(kind, first), expert, converted(kind, second))


@pytest.mark.parametrize("kind", KINDS)
def test_an_expert_in_diffusers_names_on_the_authors_base(kind: str) -> None:
    first, second = random_state(0, KINDS[kind]()), random_state(1, KINDS[kind]())
    check(first, converted(kind, second), second)


def test_what_is_renamed_is_said() -> None:
    state = random_state(0, originals.wan())
    expert = converted("wan", random_state(1, originals.wan()))
    warnings = magmerge.plan(base=state, experts=[expert]).warnings
    assert [w for w in warnings if "Wan in its authors' names and in diffusers'" in w]


def test_a_part_that_is_missing_is_a_fault_and_nothing_is_taken_in_part() -> None:
    """One of three that are fused in the base."""
    base = random_state(0, originals.flux())
    expert = converted("flux", random_state(1, originals.flux()))
    del expert["transformer_blocks.0.attn.to_k.weight"]
    with pytest.raises(StructureError) as caught:
        merged(base, expert)
    faults = "\n".join(caught.value.faults)
    assert "double_blocks.0.img_attn.qkv.weight is missing" in faults
    assert "transformer_blocks.0.attn.to_q.weight of" in faults


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_lone_unet_of_diffusers_on_a_single_file_of_stable_diffusion(kind: str) -> None:
    code = pytest.importorskip("diffusers.loaders.single_file_utils")
    shapes = getattr(diffusion, kind)()
    shapes |= {
        name.replace(".weight", ".bias"): shape[:1]
        for name, shape in shapes.items()
        if name.startswith(PREFIX)
    }
    first, second = random_state(0, shapes), random_state(1, shapes)
    levels = 3 if kind == "sdxl" else 4
    labels = {"addition_embed_type": "text_time"} if kind == "sdxl" else {}
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    config |= {"down_block_types": [0] * levels, "up_block_types": [0] * levels, **labels}
    unet = {name: tensor for name, tensor in second.items() if name.startswith(PREFIX)}
    theirs = code.convert_ldm_unet_checkpoint(dict(unet), config)
    result = merged(first, theirs)
    for name, tensor in first.items():
        torch.testing.assert_close(result[name], unet.get(name, tensor))


def single_file(seed: int) -> State:
    """Stable Diffusion 1 with a whole VAE."""
    others = {n: s for n, s in diffusion.sd1().items() if not n.startswith("first_stage_model.")}
    inside = {f"first_stage_model.{name}": shape for name, shape in originals.vae().items()}
    return random_state(seed, {**others, **inside, "cond_stage_model.scale": ()})


@pytest.mark.parametrize("naming", ["authors", "diffusers"])
@pytest.mark.parametrize("method", ["task_arithmetic", "average", "ties"])
def test_a_vae_is_baked_into_a_single_file(naming: str, method: str) -> None:
    base, own = single_file(0), random_state(1, originals.vae())
    vae = converted("vae", own) if naming == "diffusers" else own
    params = {"task_arithmetic": {"lambda": 1.0}, "ties": {"density": 1.0}}.get(method)
    job = {"base": base, "experts": [vae], "method": method, "params": params}
    warnings = magmerge.plan(**job).warnings
    assert any("only the vae of a diffusion model" in warning for warning in warnings)
    result = magmerge.merge(**job).state_dict()
    for name, tensor in base.items():
        truth = own.get(name.removeprefix("first_stage_model."), tensor)
        torch.testing.assert_close(result[name], truth)


def test_a_part_has_no_vote_on_the_others() -> None:
    """The U-Net of one expert, the VAE of both."""
    base, whole, own = single_file(0), single_file(1), random_state(2, originals.vae())
    result = magmerge.merge(base=base, experts=[whole, own], method="average").state_dict()
    for name, tensor in whole.items():
        vae = own.get(name.removeprefix("first_stage_model."))
        torch.testing.assert_close(result[name], tensor if vae is None else (tensor + vae) / 2)


def test_a_part_in_pieces_is_a_fault() -> None:
    vae = random_state(1, originals.vae())
    del vae["decoder.conv_in.weight"]
    with pytest.raises(StructureError) as caught:
        merged(single_file(0), vae)
    assert any("decoder.conv_in.weight is missing" in fault for fault in caught.value.faults)


def test_names_in_files_may_be_anything() -> None:
    words = ["blocks", "0", "01", "99999", "self_attn", "q", "weight", "", "decoder", "up", "#"]
    words += ["~", "$", "block", "norm1", "experts", "mlp", "gate_up_proj", "w1", "double_blocks"]
    name = st.lists(st.sampled_from(words), min_size=1, max_size=7).map(".".join)
    shape = st.lists(st.integers(1, 7), max_size=4).map(tuple)

    @settings(max_examples=300, deadline=None)
    @given(st.dictionaries(name, shape, max_size=6), st.dictionaries(name, shape, max_size=6))
    def run(own: Shapes, theirs: Shapes) -> None:
        checkpoint, base = (open_checkpoint(zeros(names)) for names in (own, theirs))
        view = aligned(checkpoint, base)
        for n, spec in view.specs.items():
            assert view.read(n).shape == spec.shape

    run()


def zeros(shapes: Shapes) -> State:
    return {"one": torch.zeros(1), **{name: torch.zeros(shape) for name, shape in shapes.items()}}


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("authors", [False, True])
def test_a_vae_as_diffusers_named_it_before(authors: bool, back: bool) -> None:
    first, second = (random_state(seed, originals.vae()) for seed in (0, 1))
    words = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}

    def old(state: State) -> State:
        pattern = re.compile("|".join(map(re.escape, words)))
        return {
            pattern.sub(lambda match: words[match[0]], name): tensor
            for name, tensor in converted("vae", state).items()
        }

    def new(state: State) -> State:
        return state if authors else converted("vae", state)

    if back:
        check(old(first), new(second), old(second))
    else:
        check(new(first), old(second), new(second))


def test_the_first_text_encoder_alone_is_an_expert_on_sdxls_single_file() -> None:
    base = random_state(0, diffusion.sdxl())
    prefix = "conditioner.embedders.0.transformer."
    own = {n: torch.randn(t.shape) for n, t in base.items() if n.startswith(prefix)}
    expert = {name.removeprefix(prefix): tensor for name, tensor in own.items()}
    result = merged(base, expert)
    for name, tensor in base.items():
        torch.testing.assert_close(result[name], own.get(name, tensor))
