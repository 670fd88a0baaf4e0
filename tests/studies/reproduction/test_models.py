"""Models are found in a folder under the names that collections give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from magmerge.core.errors import CheckpointError
from magmerge.studies.reproduction import pipeline_models as models
from magmerge.studies.reproduction.pipeline_models import check_inputs, find_here, find_models
from magmerge.studies.reproduction.pipelines import find_pipeline

CLIP = find_pipeline("clip-b32")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_from_hub", lambda *_, **__: (None, "no network"))


@pytest.mark.parametrize(
    "place",
    [
        "sun397",
        "experts/sun397.safetensors",
        "SUN397/finetuned.pt",
        "ViT-B-32/SUN397/finetuned.pt",
        "clip-vit-base-patch32_sun397",
        "tanganke/clip-vit-base-patch32_sun397",
    ],
)
def test_an_expert_is_found_under_each_of_its_names(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        path.touch()
    else:
        path.mkdir()
    assert find_here(CLIP, "sun397", tmp_path) == path
    assert find_here(CLIP, "dtd", tmp_path) is None


def test_all_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "sun397").mkdir()
    with pytest.raises(CheckpointError, match="2 of 4 models are missing") as error:
        find_models(CLIP, ("sun397", "dtd", "mnist"), tmp_path)
    assert "dtd (tanganke/clip-vit-base-patch32_dtd: no network)" in str(error.value)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        check_inputs(tmp_path / "none")
