"""The three families of CLIP's names, held against the real classes."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import magmerge
from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.clip import aligned, family_of, in_family
from magmerge.core.errors import CheckpointError, StructureError, UnknownNameError
from tests.checkpoints.clip.states import OUT, State, by_rule, open_clip_state
from tests.clip_files import clips, run

__all__ = ["clips"]

FAMILIES = ("hf_clip", "open_clip", "timm_clip")


def contents(checkpoint: object) -> State:
    return {name: checkpoint.read(name) for name in checkpoint.specs}  # type: ignore[attr-defined]


def check_equal(found: State, wanted: State) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].equal(tensor), name


@pytest.mark.parametrize("files", [("hf{0}", "clip{0}.pt"), ("timm{0}.safetensors", "clip{0}.pt"),
                                   ("hf{0}", "clip{0}.state.pt")])  # fmt: skip
def test_the_tensors_of_real_models_are_each_others(clips: Path, files: tuple[str, str]) -> None:
    first, second = (clips / name.format(1) for name in files)
    one, other = open_checkpoint(first), open_checkpoint(second)
    family = family_of(one.specs)
    assert family in FAMILIES
    assert family_of(other.specs) == "open_clip"
    check_equal(contents(in_family(other, family)), contents(one))
    if family == "hf_clip":
        check_equal(contents(in_family(one, "open_clip")), contents(other))


@pytest.mark.slow
def test_outputs_of_the_real_classes_are_equal(clips: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel

    wanted = load_file(clips / "clip1.outputs.safetensors")
    sources = {"hf": clips / "hf1", "clip": clips / "clip1.pt", "timm": clips / "timm1.safetensors"}
    for name, source in sources.items():
        for family in FAMILIES:
            if name == "timm" and family != "timm_clip":
                continue
            magmerge.convert(source, tmp_path / f"{family}-{name}.safetensors", naming=family)
    run("run", tmp_path)
    found = load_file(tmp_path / "outputs")
    assert len(found) == 7
    for name, output in found.items():
        torch.testing.assert_close(output, wanted[name.rpartition(".")[2]], rtol=0, atol=1e-5)
    for name in ("hf", "clip"):
        model = CLIPModel.from_pretrained(clips / "hf0").eval()
        model.load_state_dict(load_file(tmp_path / f"hf_clip-{name}.safetensors"))
        check_hf(model, wanted)


def check_hf(model: torch.nn.Module, wanted: State) -> None:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(3, 3, 8, 8, generator=generator)
    texts = torch.randint(3, 49, (3, 7), generator=generator)
    texts[:, -1] = 49
    with torch.no_grad():
        image = model.visual_projection(model.vision_model(images).pooler_output)
        text = model.text_projection(model.text_model(texts).pooler_output)
    torch.testing.assert_close(image, wanted["image"], rtol=0, atol=1e-5)
    torch.testing.assert_close(text, wanted["text"], rtol=0, atol=1e-5)


def test_base_and_experts_of_several_families_merge(clips: Path) -> None:
    def ties(base: str, *experts: str) -> State:
        files = [clips / name for name in experts]
        return magmerge.merge(base=clips / base, experts=files, method="ties").state_dict()

    check_equal(ties("clip0.pt", "hf1", "clip2.state.pt"), ties("clip0.pt", "clip1.pt", "clip2.pt"))
    check_equal(ties("hf0", "clip1.pt", "hf2"), ties("hf0", "hf1", "hf2"))


def test_a_published_encoder_merges_onto_hugging_faces_model(clips: Path) -> None:
    base = clips / "hf0"
    with pytest.raises(StructureError, match="text_model") as caught:
        magmerge.plan(base=base, experts=[clips / "encoder1.pt", clips / "encoder2.pt"])
    # Only what task-vectors' encoders lack, the text transformer, is at fault.
    assert all("text_model.encoder" in fault for fault in caught.value.faults)
    merged = magmerge.merge(
        base=base, experts=[clips / "encoder1.pt", clips / "encoder2.pt"], method="average",
        ignore="text_model.encoder.*",
    ).state_dict()  # fmt: skip
    wanted = magmerge.merge(
        base=base, experts=[clips / "hf1", clips / "hf2"], method="average",
        ignore="text_model.encoder.*",
    ).state_dict()  # fmt: skip
    check_equal(merged, wanted)


def test_a_text_half_that_the_base_lacks_is_a_fault_in_the_bases_names(clips: Path) -> None:
    vision = clips / "timm0.safetensors"
    with pytest.raises(StructureError, match="is not in") as caught:
        magmerge.plan(base=vision, experts=[clips / "hf1", clips / "clip2.pt"])
    assert any(fault.startswith("text_model.encoder") for fault in caught.value.faults)
    merged = magmerge.merge(
        base=vision, experts=[clips / "hf1", clips / "clip2.pt"], method="average",
        ignore=["*text*", "transformer.*", "token*", "position*", "ln_final*", "logit*"],
    ).state_dict()  # fmt: skip
    one = load_file(clips / "timm1.safetensors")
    two = load_file(clips / "timm2.safetensors")
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)


@pytest.mark.parametrize("family", ["hf_clip", "timm_clip"])
@pytest.mark.parametrize("prefix", ["", "model.", "image_encoder.model."])
def test_the_vision_half_equals_its_rule(family: str, prefix: str) -> None:
    state = open_clip_state(text=False, prefix=prefix)
    found = contents(in_family(open_checkpoint(state), family))
    found.pop("logit_scale", None)
    check_equal(found, by_rule(open_clip_state(text=False), family))


@pytest.mark.parametrize(("first", "second"), list(permutations(FAMILIES, 2)))
def test_there_and_back_is_the_same(first: str, second: str) -> None:
    vision = "timm_clip" in (first, second)
    state = open_clip_state(text=not vision)
    if vision:
        del state["logit_scale"]
    start = in_family(open_checkpoint(state), first)
    back = in_family(in_family(start, second), first)
    check_equal(contents(back), contents(start))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_part_is_a_part_of_the_whole(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(FAMILIES))
    checkpoint = in_family(open_checkpoint(STATE), family)
    name = data.draw(st.sampled_from(sorted(checkpoint.specs)))
    whole = checkpoint.read(name)
    assert tuple(whole.shape) == checkpoint.specs[name].shape
    start = data.draw(st.integers(0, whole.numel()))
    stop = data.draw(st.integers(start, whole.numel()))
    assert checkpoint.read_part(name, start, stop).equal(whole.reshape(-1)[start:stop])
    out = torch.full((stop - start,), 7.0)
    checkpoint.read_part(name, start, stop, out)
    assert out.equal(whole.reshape(-1)[start:stop])


STATE = open_clip_state()


def test_only_what_is_asked_for_is_read() -> None:
    checkpoint = open_checkpoint(open_clip_state())
    asked: list[str] = []

    class Watching:
        specs, ties, kinds = checkpoint.specs, checkpoint.ties, checkpoint.kinds
        source, folder, files, notes = "watched", None, (), ()

        def read(self, name: str) -> Tensor:
            asked.append(name)
            return checkpoint.read(name)

        def read_part(self, name: str, *given: object) -> Tensor:
            asked.append(name)
            return checkpoint.read_part(name, *given)  # type: ignore[arg-type]

    found = in_family(Watching(), "hf_clip")
    assert asked == []
    found.read("vision_model.encoder.layers.1.self_attn.k_proj.weight")
    assert asked == ["visual.transformer.resblocks.1.attn.in_proj_weight"]


def test_buffers_and_strangers() -> None:
    state = open_clip_state() | {"attn_mask": torch.zeros(7, 7)}
    state |= {"input_resolution": torch.tensor(8), "classifier.weight": torch.ones(2, 4)}
    found = in_family(open_checkpoint(state), "hf_clip")
    assert set(found.left_out) == {"attn_mask", "input_resolution"}
    assert found.read("classifier.weight").equal(torch.ones(2, 4))
    hf = {**contents(found), "vision_model.embeddings.position_ids": torch.arange(5)[None]}
    back = in_family(open_checkpoint(hf), "open_clip")
    assert "vision_model.embeddings.position_ids" in back.left_out
    assert set(contents(back)) == {*open_clip_state(), "classifier.weight"}


def test_a_lone_vision_model_of_transformers_5_has_no_prefix() -> None:
    hf = contents(in_family(open_checkpoint(open_clip_state(text=False)), "hf_clip"))
    bare = {name.removeprefix("vision_model."): one for name, one in hf.items()}
    assert family_of(bare) == "hf_clip"
    check_equal(contents(in_family(open_checkpoint(bare), "hf_clip")), hf)
    found = aligned(open_checkpoint(open_clip_state(text=False)), open_checkpoint(bare))
    assert found is not None
    check_equal(contents(found), bare)


def test_what_would_be_lost_is_a_mistake() -> None:
    timm = contents(in_family(open_checkpoint(open_clip_state(text=False)), "timm_clip"))
    timm["head.bias"] = torch.ones(OUT)
    with pytest.raises(CheckpointError, match=r"head\.bias: hf_clip has no bias there"):
        in_family(open_checkpoint(timm), "hf_clip")
    hf = contents(in_family(open_checkpoint(open_clip_state()), "hf_clip"))
    del hf["vision_model.encoder.layers.0.self_attn.k_proj.weight"]
    with pytest.raises(CheckpointError, match="not all there"):
        in_family(open_checkpoint(hf), "open_clip")
    whole = in_family(open_checkpoint(open_clip_state()), "timm_clip")
    assert "token_embedding.weight" in whole.left_out
    with pytest.raises(UnknownNameError, match="openclip") as caught:
        in_family(open_checkpoint(open_clip_state()), "openclip")
    assert "did you mean open_clip" in str(caught.value.remedy)
    with pytest.raises(CheckpointError, match="not those of a CLIP model"):
        in_family(open_checkpoint({"a": torch.ones(1)}), "open_clip")


@pytest.mark.parametrize(
    "names",
    [[], ["visual.proj"], ["embeddings.word_embeddings.weight", "encoder.layer.0.output.weight"],
     ["cls_token", "blocks.0.attn.qkv.weight"], ["vision_model.embeddings.class_embedding"],
     ["vision_model.embeddings.class_embedding", "vision_model.encoder.layers.0.mlp.fc1.weight"]],
)  # fmt: skip
def test_other_models_are_none(names: list[str]) -> None:
    assert family_of(names) is None


def test_a_file_in_another_family_saves_and_opens(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "m.safetensors")
    done = magmerge.convert(tmp_path / "m.safetensors", tmp_path / "out", naming="hf_clip")
    assert (done.before, done.after) == ("open_clip", "hf_clip")
    found = open_checkpoint(tmp_path / "out")
    assert family_of(found.specs) == "hf_clip"
