"""Zero-shot heads: the definition, the cache, and bases that are no CLIP."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magmerge.core.errors import CheckpointError, ParameterError
from magmerge.evaluation.suites import zero_shot
from magmerge.evaluation.suites.definitions import ImageTask
from magmerge.evaluation.suites.zero_shot import ZeroShot
from tests.evaluation.suites.clips import SHARED, WIDTH, save_clip

TASK = ImageTask(
    title="T",
    hub="a/b",
    splits={"train": "train", "test": "test"},
    templates=("a {} b", "very good {}", "{} text one two three"),
    classes=("one", "two bad", "c d e f", "no"),
)


def plain_head(clip: Path) -> torch.Tensor:
    """The definition, one prompt after the other, in float64."""
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(clip).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(clip)
    rows = []
    for name in TASK.classes:
        total = torch.zeros(SHARED, dtype=torch.float64)
        for template in TASK.templates:
            inputs = tokenizer([template.replace("{}", name)], return_tensors="pt")
            with torch.no_grad():
                pooled = model.text_model(input_ids=inputs["input_ids"]).pooler_output
                embedding = model.text_projection(pooled)[0]
            total += embedding / embedding.norm()
        mean = total / len(TASK.templates)
        rows.append(mean / mean.norm() * model.logit_scale.exp().detach())
    return torch.stack(rows)


def test_a_head_is_the_mean_of_normalised_embeddings(clip: Path, tmp_path: Path) -> None:
    head = ZeroShot(clip, cache=tmp_path).head(TASK)["weight"]
    wanted = plain_head(clip)
    assert head.dtype == torch.float32
    assert head.shape == (4, SHARED)
    assert torch.allclose(head.double(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    # No two classes are alike, so that a mixed-up order would be seen.
    assert torch.pdist(wanted).min() > 0.1 * wanted.norm(dim=1).mean()


def test_a_projected_head_takes_the_pooled_output(clip: Path, tmp_path: Path) -> None:
    from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

    plain = ZeroShot(clip, cache=tmp_path).head(TASK)["weight"]
    projected = ZeroShot(clip, projected=True, cache=tmp_path).head(TASK)["weight"]
    assert projected.shape == (4, WIDTH)
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = CLIPVisionModelWithProjection.from_pretrained(clip).eval()(pixel_values=pixels)
        bare = CLIPVisionModel.from_pretrained(clip).eval()(pixel_values=pixels)
    wanted = whole.image_embeds @ plain.T
    assert torch.allclose(bare.pooler_output @ projected.T, wanted, rtol=1e-4, atol=1e-3)


def test_a_known_head_needs_no_encoder(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ZeroShot(clip, cache=tmp_path / "heads")
    head = first.head(TASK)["weight"]
    assert first.built == 1

    def refuse(base: Path) -> None:
        raise AssertionError("the encoder was loaded")

    monkeypatch.setattr(zero_shot, "_TextEncoder", refuse)
    again = ZeroShot(clip, cache=tmp_path / "heads")
    assert torch.equal(again.head(TASK)["weight"], head)
    assert again.built == 0
    for change in ({"templates": ("a {}",)}, {"classes": ("one", "two")}):
        with pytest.raises(AssertionError, match="was loaded"):
            ZeroShot(clip, cache=tmp_path / "heads").head(TASK.model_copy(update=change))


def test_another_clip_or_tokenizer_makes_another_head(clip: Path, tmp_path: Path) -> None:
    ZeroShot(clip, cache=tmp_path / "heads").head(TASK)
    other = shutil.copytree(clip, tmp_path / "other")
    content = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**content, "x": 1}))
    for base in (other, save_clip(tmp_path / "third", seed=3)):
        made = ZeroShot(base, cache=tmp_path / "heads")
        made.head(TASK)
        assert made.built == 1


@pytest.mark.parametrize("spoilt", [b"", b"\xff" * 40, "short", "infinite"])
def test_a_spoilt_head_is_made_anew(clip: Path, tmp_path: Path, spoilt: bytes | str) -> None:
    head = ZeroShot(clip, cache=tmp_path).head(TASK)["weight"]
    (file,) = tmp_path.glob("*.safetensors")
    if isinstance(spoilt, bytes):
        file.write_bytes(spoilt)
    else:
        wrong = head[:2] if spoilt == "short" else head * float("inf")
        save_file({"weight": wrong.contiguous()}, file)
    assert torch.equal(ZeroShot(clip, cache=tmp_path).head(TASK)["weight"], head)
    assert torch.equal(load_file(file)["weight"], head)


def test_without_a_writable_cache_the_head_is_made_all_the_same(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert ZeroShot(clip, cache=tmp_path / "file" / "heads").head(TASK)["weight"].shape[0] == 4


def test_bases_that_are_no_whole_clip(clip: Path, tmp_path: Path) -> None:
    from tests.evaluation.suites.clips import save_classifier, save_vision

    with pytest.raises(CheckpointError, match="it lacks logit_scale"):
        ZeroShot(save_vision(tmp_path / "vision", clip))
    with pytest.raises(CheckpointError, match="it lacks logit_scale"):
        ZeroShot(save_classifier(tmp_path / "bert", "bert", 2))
    with pytest.raises(ParameterError, match=r"projection_dim is 8, and the visual .* has 12 rows"):
        ZeroShot(save_clip(tmp_path / "wide", shared=12))


def test_a_clip_without_text_weights_is_refused(clip: Path, tmp_path: Path) -> None:
    base = shutil.copytree(clip, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    kept = {name: one for name, one in tensors.items() if "text_model.final" not in name}
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"it lacks text_model\.final"):
        ZeroShot(base, cache=tmp_path / "heads").head(TASK)
