"""What does not fit: shapes, buffers, second models, names that are taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import magmerge
from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.clip import aligned, family_of, in_family
from magmerge.checkpoints.clip.families import ClipNames
from magmerge.core.errors import CheckpointError, MagmergeWarning
from tests.checkpoints.clip.states import open_clip_state
from tests.checkpoints.clip.test_clip_names import FAMILIES, contents
from tests.clip_files import clips

__all__ = ["clips"]


def test_buffers_of_the_base_count_as_given(clips: Path) -> None:
    state = open_checkpoint(clips / "clip0.state.pt")
    base = {name: state.read(name) for name in state.specs}
    mask = torch.full((7, 7), -1e4).triu(1)
    base["attn_mask"] = mask
    merged = magmerge.merge(
        base=base, experts=[clips / "hf1", clips / "clip2.state.pt"], method="average"
    ).state_dict()
    assert merged["attn_mask"].equal(mask)
    hf = contents(open_checkpoint(clips / "hf0"))
    hf["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    found = aligned(open_checkpoint(clips / "clip1.pt"), open_checkpoint(hf))
    assert found is not None
    assert set(found.specs) == set(hf)
    assert found.read("vision_model.embeddings.position_ids").equal(torch.arange(5)[None])


@pytest.mark.parametrize("family", ["hf_clip", "timm_clip"])
@pytest.mark.parametrize(
    ("name", "shape"),
    [("visual.conv1.weight", (8, 12)), ("visual.class_embedding", (1, 1, 8)),
     ("visual.transformer.resblocks.1.attn.in_proj_weight", (23, 8)),
     ("visual.transformer.resblocks.0.ln_1.bias", (8, 1)), ("visual.proj", (8,))],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_told(family: str, name: str, shape: tuple[int, ...]) -> None:
    state = open_clip_state(text=False) | {name: torch.ones(shape)}
    with pytest.raises(CheckpointError, match="open_clip has no") as caught:
        in_family(open_checkpoint(state), family)
    assert f"{name}: open_clip has no {list(shape)} there" in str(caught.value)
    base = in_family(open_checkpoint(open_clip_state(text=False)), family)
    found = aligned(open_checkpoint(state), base)
    assert found is not None
    assert found.read(name).equal(torch.ones(shape))


def test_files_with_two_models_are_refused() -> None:
    one, two = open_clip_state(prefix="a."), open_clip_state(1, prefix="b.")
    hf = contents(in_family(open_checkpoint(open_clip_state()), "hf_clip"))
    half = {name: one for name, one in hf.items() if ".layers.0.mlp." in name}
    for state in (one | two, open_clip_state() | hf, open_clip_state() | half):
        for family in FAMILIES:
            with pytest.raises(CheckpointError, match="weights of another CLIP model"):
                in_family(open_checkpoint(state), family)


def test_names_with_many_prefixes_are_looked_at_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    entry = ClipNames.entry

    def counting(self: ClipNames, name: str) -> object:
        nonlocal asked
        asked += 1
        return entry(self, name)

    monkeypatch.setattr(ClipNames, "entry", counting)
    names = [f"x{i}.class_embedding" for i in range(2000)]
    assert family_of(names) is None
    assert asked < 100 * len(names)


def test_a_name_that_is_taken_is_a_mistake() -> None:
    timm = contents(in_family(open_checkpoint(open_clip_state(text=False)), "timm_clip"))
    timm["class_embedding"] = torch.full((3,), 7.0)
    bare = {name.removeprefix("visual."): one for name, one in open_clip_state(text=False).items()}
    with pytest.raises(CheckpointError, match="another tensor has its name") as caught:
        aligned(open_checkpoint(timm), open_checkpoint(bare))
    assert caught.value.tensor == "class_embedding"


def test_an_infinite_mask_of_the_base_is_kept_where_it_is_ignored(clips: Path) -> None:
    state = open_checkpoint(clips / "clip0.state.pt")
    mask = torch.full((7, 7), float("-inf")).triu(1)
    base = {name: state.read(name) for name in state.specs} | {"attn_mask": mask}
    with pytest.warns(MagmergeWarning, match="21 infinite"):
        merged = magmerge.merge(
            base=base, experts=[clips / "hf1", clips / "hf2"], method="average", ignore="attn_mask"
        ).state_dict()
    assert merged["attn_mask"].equal(mask)
