"""The line of checkpoints that saw DTD's test images."""

from __future__ import annotations

from pathlib import Path

import pytest

from magmerge.evaluation.suites.leaks import leaked

FILE = "ViT-B-32/DTDVal/nonlinear_finetuned.pt"


@pytest.mark.parametrize(
    "path",
    [
        f"checkpoints/{FILE}",
        "checkpoints/ViT-L-14/DTDVal/nonlinear_finetuned.safetensors",
        "15ParSng4d5xSdaWdBFsg1617zPXT8Dae/dtd.pt",
    ],
)
def test_files_of_the_first_release_are_recognised(path: str) -> None:
    assert "nik-dim/tall_masks" in (leaked("dtd", path) or "")
    assert leaked("mnist", path) is None


@pytest.mark.parametrize(
    "path",
    [
        f"hub/models--nik-dim--tall_masks/snapshots/1/single_task/{FILE}",
        f"nik-dim/tall_masks/single_task/{FILE}",
        "checkpoints/ViT-B-32/DTD/finetuned.pt",
        "tanganke/clip-vit-base-patch32_dtd",
        "DTDVal/head.pt",
    ],
)
def test_other_files_are_not(path: str) -> None:
    assert leaked("dtd", path) is None


def test_a_link_to_such_a_file_is_recognised(tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    (tmp_path / "expert.pt").symlink_to(file)
    assert leaked("dtd", tmp_path / "expert.pt")
