"""Rows to the inputs of a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from magmerge.core.errors import MagmergeWarning, ParameterError
from magmerge.data.inputs import calibration_inputs, prepare
from magmerge.data.rows import DataError, Preparation, SampleDraw, SampleOptions
from magmerge.data.sources import read_samples
from tests.data.models import save_tokenizer

PLAIN = Preparation(image_size=4, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))


def test_texts_are_padded_within_their_batch_and_masked(tmp_path: Path) -> None:
    rows = read_samples(["a b c", "a", "a b c d e f", "zzz"], SampleDraw(name="x"))
    first, second = prepare(rows, save_tokenizer(tmp_path), batch=2)
    assert first.kwargs["input_ids"].tolist() == [[2, 4, 5, 6, 3], [2, 4, 3, 0, 0]]
    assert first.kwargs["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert second.kwargs["input_ids"].shape == (2, 8)
    assert (first.rows, first.args) == (2, ())
    cut = prepare(rows, tmp_path, Preparation(max_length=4))[0]
    assert cut.kwargs["input_ids"].shape == (4, 4)
    with pytest.raises(ParameterError, match="max_length"):
        prepare(rows, tmp_path, Preparation(max_length=0))


def test_a_tokenizer_without_padding_masks_it_all_the_same(tmp_path: Path) -> None:
    rows = read_samples(["a b c", "a"], SampleDraw(name="x"))
    found = prepare(rows, save_tokenizer(tmp_path, causal=True))[0].kwargs
    assert found["attention_mask"].sum(dim=1).tolist() == [4, 2]
    assert (found["input_ids"][found["attention_mask"] == 0] == 2).all()


def test_the_length_is_the_models_own_limit(tmp_path: Path) -> None:
    rows = read_samples(["a " * 1000], SampleDraw(name="x"))

    def length(folder: Path) -> int:
        return prepare(rows, folder)[0].kwargs["input_ids"].shape[1]

    assert length(save_tokenizer(tmp_path / "own", limit=20)) == 20
    other = save_tokenizer(tmp_path / "other")
    assert length(other) == 512
    (other / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    assert length(other) == 64


def test_no_tokenizer_is_an_error_with_both_remedies(tmp_path: Path) -> None:
    rows = read_samples(["a"], SampleDraw(name="x"))
    for folder in (None, tmp_path):
        with pytest.raises(DataError, match="no tokenizer") as caught:
            prepare(rows, folder)
        assert "input_ids" in caught.value.remedy
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be loaded"):
        prepare(rows, tmp_path)


def test_remote_code_of_a_tokenizer_is_never_run(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["auto_map"] = {"AutoTokenizer": ["code.Mine", None]}
    config["tokenizer_class"] = "Mine"
    file.write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('this was run')")
    try:
        prepare(read_samples(["a"], SampleDraw(name="x")), tmp_path)
    except DataError as error:
        assert "cannot be loaded" in str(error)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i, shape in enumerate([(8, 4), (4, 8), (5, 5)]):
        pixels = generator.integers(0, 255, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    Image.new("L", (6, 6), 255).save(folder / "grey.png")
    return folder


def test_images_by_size_mean_and_deviation(pictures: Path) -> None:
    rows = read_samples(pictures, SampleDraw(name="x", samples=None))
    found = prepare(rows, None, PLAIN)[0].args[0]
    assert found.shape == (4, 3, 4, 4)
    assert found.dtype == torch.float32
    # The first is 4 wide and 8 high: nothing is resized, its middle is cut out.
    middle = np.asarray(Image.open(pictures / "0.png"), dtype=np.float64)[2:6] / 255
    expected = (middle - PLAIN.mean) / PLAIN.std
    assert torch.allclose(found[0], torch.from_numpy(expected).permute(2, 0, 1).float(), atol=1e-5)
    white = (1 - torch.tensor(PLAIN.mean)) / torch.tensor(PLAIN.std)
    assert torch.allclose(found[3].mean(dim=(1, 2)), white)
    wide = Preparation(image_size=(2, 6), mean=PLAIN.mean, std=PLAIN.std)
    assert prepare(rows, None, wide)[0].args[0].shape == (4, 3, 2, 6)


@pytest.mark.parametrize(
    "options",
    [{"image_size": 4}, {"image_size": 0, "mean": (0,) * 3, "std": (1,) * 3},
     {"image_size": 4, "mean": (0,), "std": (1,) * 3},
     {"image_size": 4, "mean": (0,) * 3, "std": (0,) * 3}],
)  # fmt: skip
def test_wrong_image_options_are_told(pictures: Path, options: dict) -> None:
    rows = read_samples(pictures, SampleDraw(name="x", samples=1))
    with pytest.raises(ParameterError):
        prepare(rows, None, Preparation(**options))


def test_images_by_the_models_own_processor(pictures: Path, tmp_path: Path) -> None:
    rows = read_samples(pictures, SampleDraw(name="x", samples=None))
    with pytest.raises(DataError, match="preprocessor_config") as caught:
        prepare(rows, tmp_path)
    assert "--image-size" in caught.value.remedy
    content = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 4, "width": 4},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    found = prepare(rows, tmp_path, batch=3)
    assert [call.rows for call in found] == [3, 1]
    assert found[0].kwargs["pixel_values"].shape == (3, 3, 4, 4)
    assert torch.allclose(found[1].kwargs["pixel_values"], torch.ones(1, 3, 4, 4))


def test_ready_tensors_are_cut_into_batches() -> None:
    rows = read_samples({"x": torch.arange(5), "y": torch.ones(5, 2)}, SampleDraw(name="x"))
    found = prepare(rows, None, batch=2)
    assert [call.kwargs["x"].tolist() for call in found] == [[0, 1], [2, 3], [4]]
    assert [call.rows for call in found] == [2, 2, 1]
    calls = read_samples([torch.ones(7, 2)], SampleDraw(name="x"))
    assert [call.rows for call in prepare(calls, None, batch=2)] == [7]


def test_the_join_names_what_was_passed_over(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "model")
    (tmp_path / "a.txt").write_text("a\n" + 40 * "\n" + "b\n")
    (tmp_path / "b.txt").write_text("c\nd\n")
    data = {"one": tmp_path / "a.txt", "two": tmp_path / "b.txt"}
    with pytest.warns(MagmergeWarning, match="rows without text"):
        found = calibration_inputs(data, folder=folder, options=SampleOptions(samples=2, batch=1))
    assert {name: len(calls) for name, calls in found.items()} == {"one": 2, "two": 2}


def test_importing_samples_takes_no_heavy_library() -> None:
    code = (
        "import sys, magmerge.data; "
        "print([m for m in ('transformers', 'datasets', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
