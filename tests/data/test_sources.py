"""Files as people have them, to rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from magmerge.core.errors import MagmergeError, ParameterError, UnknownNameError
from magmerge.data.draw import drawing_order
from magmerge.data.rows import DataError, Inputs, SampleDraw, Tensors, Texts
from magmerge.data.sources import has_splits, read_samples

TEXTS = [f"text {i}" for i in range(20)]


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    rows = [{"text": text, "title": "x", "label": i} for i, text in enumerate(TEXTS)]
    return jsonl(tmp_path / "rows.jsonl", rows)


def texts(source: object, **more: object) -> tuple[str, ...]:
    content = read_samples(source, SampleDraw(name="a", **more)).content
    assert isinstance(content, Texts)
    return content.values


def test_the_draw_is_written_out_and_stable() -> None:
    assert drawing_order(0, "maths", 10).tolist() == [5, 7, 1, 9, 6, 3, 4, 2, 8, 0]
    assert sorted(drawing_order(3, "x", 1000).tolist()) == list(range(1000))


def test_a_larger_draw_extends_a_smaller_one(lines: Path) -> None:
    assert texts(lines, samples=12)[:5] == texts(lines, samples=5)
    assert texts(lines, seed=1) != texts(lines, seed=0)
    assert len(set(texts(lines, samples=20))) == 20
    other = read_samples(lines, SampleDraw(name="b", samples=20)).content
    assert other.values != texts(lines, samples=20)


def test_every_kind_of_text_file_gives_the_same_rows(tmp_path: Path, lines: Path) -> None:
    odd = ['comma, "quote"', "two\nlines", "ünïcode", "plain"]
    csv = tmp_path / "a.csv"
    csv.write_text(
        'title,text\r\nx,"comma, ""quote"""\r\nx,"two\nlines"\r\n\r\nx,ünïcode\r\nx,plain\r\n',
        encoding="utf-8-sig",
    )
    semicolon = tmp_path / "b.csv"
    semicolon.write_text('title;text\n1;"comma, ""quote"""\n2;"two\nlines"\n3;ünïcode\n4;plain\n')
    tsv = tmp_path / "c.tsv"
    tsv.write_text('title\ttext\nx\t"comma, ""quote"""\nx\t"two\nlines"\nx\tünïcode\nx\tplain')
    other = jsonl(tmp_path / "d.jsonl", [{"text": text} for text in odd])
    for path in (csv, semicolon, tsv, other):
        assert texts(path, samples=None) == tuple(odd), path
        assert texts(path, samples=4) == texts(other, samples=4)
    plain = tmp_path / "e.txt"
    plain.write_text("one\r\n\r\ntwo\n   \nthree")
    assert texts(plain, samples=None) == ("one", "two", "three")


def test_rows_without_text_are_passed_over_with_a_note(tmp_path: Path) -> None:
    rows = [{"text": text} for text in ("a", "", " ", None, "b", "c")]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    found = read_samples(path, SampleDraw(name="a", samples=3))
    assert sorted(found.content.values) == ["a", "b", "c"]
    assert "rows without text" in found.notes[0]
    with pytest.raises(DataError, match="4 rows wanted, and there are 3 rows") as caught:
        read_samples(path, SampleDraw(name="a", samples=4))
    assert "--samples" in caught.value.remedy


@pytest.mark.parametrize("samples", [0, -1, 2.5, "8"])
def test_a_draw_of_nothing_is_a_mistake(lines: Path, samples: object) -> None:
    with pytest.raises(ParameterError, match="samples"):
        read_samples(lines, SampleDraw(name="a", samples=samples))


def test_columns(tmp_path: Path) -> None:
    one = jsonl(tmp_path / "one.jsonl", [{"sentence": "s", "n": 3}] * 8)
    assert texts(one) == ("s",) * 8
    two = jsonl(tmp_path / "two.jsonl", [{"question": "q", "answer": "a"}] * 8)
    with pytest.raises(DataError, match="question, answer") as caught:
        read_samples(two, SampleDraw(name="a"))
    assert "--text-field" in caught.value.remedy
    assert texts(two, field="answer") == ("a",) * 8
    with pytest.raises(UnknownNameError) as caught:
        read_samples(two, SampleDraw(name="a", field="anser"))
    assert caught.value.remedy == "did you mean answer?"
    with pytest.raises(DataError, match="holds no text but a int"):
        read_samples(one, SampleDraw(name="a", field="n"))
    assert texts(two, label_field="answer") == ("q",) * 8


def test_labels_are_read_only_when_asked_for(lines: Path, tmp_path: Path) -> None:
    assert read_samples(lines, SampleDraw(name="a")).labels is None
    found = read_samples(lines, SampleDraw(name="a", samples=20, label_field="label"))
    assert [TEXTS[label] for label in found.labels] == list(found.content.values)
    with pytest.raises(DataError, match="no label"):
        read_samples(lines, SampleDraw(name="a", label_field="class"))


@pytest.mark.parametrize(
    "name",
    ["x.test.jsonl", "test/rows.jsonl", "test.jsonl", "X_test.jsonl", "TEST/a/rows.jsonl",
     "test1.jsonl"],
)  # fmt: skip
def test_the_test_split_is_never_used_in_silence(lines: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lines.read_bytes())
    with pytest.raises(DataError, match="names the test split") as caught:
        read_samples(path, SampleDraw(name="a"))
    assert "--allow-test" in caught.value.remedy
    assert len(read_samples(path, SampleDraw(name="a", allow_test=True))) == 8


@pytest.mark.parametrize("name", ["latest.jsonl", "contest.jsonl", "tests/rows.jsonl"])
def test_other_words_are_no_test_split(lines: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lines.read_bytes())
    assert len(read_samples(path, SampleDraw(name="a"))) == 8


def test_a_column_named_split_is_honoured(tmp_path: Path) -> None:
    rows = [{"text": f"{s} {i}", "split": s} for i in range(9) for s in ("test", "validation")]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    assert has_splits(path)
    assert all("validation" in text for text in texts(path, samples=9))
    with pytest.raises(DataError, match="outside the test split"):
        read_samples(path, SampleDraw(name="a", samples=10))
    with pytest.raises(DataError, match="names the test split"):
        read_samples(path, SampleDraw(name="a", split="test"))
    assert len(texts(path, samples=None, split="test", allow_test=True)) == 9
    with pytest.raises(DataError, match="of the split 'train'"):
        read_samples(path, SampleDraw(name="a", split="train"))


def test_a_split_of_a_file_without_splits_is_a_mistake(lines: Path) -> None:
    assert not has_splits(lines)
    with pytest.raises(DataError, match="no split 'train'"):
        read_samples(lines, SampleDraw(name="a", split="train"))


def test_arrays_are_positional_and_only_the_drawn_rows_are_read(tmp_path: Path) -> None:
    array = np.arange(60.0).reshape(20, 3)
    np.save(tmp_path / "a.npy", array)
    content = read_samples(tmp_path / "a.npy", SampleDraw(name="a", samples=4)).content
    assert isinstance(content, Tensors)
    assert content.args[0].dtype == torch.float32
    expected = array[drawing_order(0, "a", 20)[:4]]
    assert content.args[0].tolist() == expected.tolist()
    np.save(tmp_path / "b.npy", array.astype(">i4"))
    content = read_samples(tmp_path / "b.npy", SampleDraw(name="a", samples=4)).content
    assert content.args[0].tolist() == expected.tolist()
    assert content.args[0].dtype == torch.int64


def test_tensors_are_keywords(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    ids, mask = torch.arange(40).reshape(20, 2), torch.ones(20, 2)
    save_file({"input_ids": ids, "attention_mask": mask, "labels": torch.arange(20)}, file)
    found = read_samples(file, SampleDraw(name="a", samples=4))
    assert set(found.content.kwargs) == {"input_ids", "attention_mask"}
    assert found.labels is None
    found = read_samples(file, SampleDraw(name="a", samples=4, label_field="label"))
    assert found.content.kwargs["input_ids"].tolist() == [ids[i].tolist() for i in found.labels]
    save_file({"inputs": mask}, file)
    assert read_samples(file, SampleDraw(name="a", samples=None)).content.args[0].shape == (20, 2)
    for faulty in ({"labels": mask}, {"a": mask, "b": torch.ones(3)}, {"a": torch.ones(())}):
        save_file(faulty, file)
        with pytest.raises(DataError, match="one number of rows"):
            read_samples(file, SampleDraw(name="a"))


def test_images_in_folders_of_classes(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (9, 5), (i, i, i)).save(tmp_path / "pets" / label / f"{i}.png")
    found = read_samples(tmp_path / "pets", SampleDraw(name="a"))
    assert len(found) == 8
    assert found.labels is None
    found = read_samples(tmp_path / "pets", SampleDraw(name="a", samples=None, label_field="label"))
    assert found.labels == ("cat",) * 4 + ("dog",) * 4
    assert found.classes == ("cat", "dog")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        read_samples(tmp_path / "empty", SampleDraw(name="a"))


def test_folders_that_are_splits_are_not_classes(tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / split / "0.png")
    content = read_samples(folder, SampleDraw(name="a", samples=1)).content
    assert content.values == (folder / "train" / "0.png",)
    with pytest.raises(DataError, match="test split"):
        read_samples(folder, SampleDraw(name="a", samples=1, split="test"))
    with pytest.raises(DataError, match="test split"):
        read_samples(folder / "test", SampleDraw(name="a", samples=1))
    with pytest.raises(DataError, match="no split 'dev'"):
        read_samples(folder, SampleDraw(name="a", samples=1, split="dev"))


def test_what_a_program_gives_is_used_whole() -> None:
    assert texts(["a", "b"]) == ("a", "b")
    assert read_samples(torch.ones(3, 2), SampleDraw(name="a")).content.args[0].shape == (3, 2)
    batch = {"input_ids": torch.ones(3, 2), "labels": torch.ones(3)}
    assert set(read_samples(batch, SampleDraw(name="a")).content.kwargs) == {"input_ids"}
    items = [torch.ones(3, 2), (torch.ones(1), torch.ones(1)), batch, np.ones((2, 2))]
    calls = read_samples(iter(items), SampleDraw(name="a")).content.calls
    assert [call.rows for call in calls] == [3, 1, 3, 2]
    assert len(calls[1].args) == 2
    assert set(calls[2].kwargs) == {"input_ids"}
    own = Inputs((1,), {}, 1)
    assert read_samples([own], SampleDraw(name="a")).content.calls == (own,)


@pytest.mark.parametrize(
    "source",
    [3, None, [], [3], ["a", 3], [["a"]], {}, {"x": 3}, torch.ones(()), torch.ones(0, 2),
     {"labels": torch.ones(2)}, np.array(["a"]), np.array([object()])],
    ids=lambda source: None if "object at" in str(source) else str(source),
)  # fmt: skip
def test_what_is_no_input_is_told(source: object) -> None:
    with pytest.raises(DataError):
        read_samples(source, SampleDraw(name="a"))


def test_data_sets_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"sentence": TEXTS, "label": [i % 2 for i in range(20)]}
    train = datasets.Dataset.from_dict(rows, features=features)
    both = datasets.DatasetDict({"train": train, "test": train})
    both.save_to_disk(tmp_path / "both")
    train.save_to_disk(tmp_path / "one")
    for source in (tmp_path / "both", tmp_path / "one", train, both):
        assert set(texts(source, samples=20)) == set(TEXTS)
    found = read_samples(tmp_path / "both", SampleDraw(name="a", samples=None, label_field="label"))
    assert found.labels[:3] == (0, 1, 0)
    assert found.classes == ("no", "yes")
    assert has_splits(tmp_path / "both")
    assert not has_splits(tmp_path / "one")
    for source in (tmp_path / "both", both):
        with pytest.raises(DataError, match="test split"):
            read_samples(source, SampleDraw(name="a", split="test"))
        with pytest.raises(DataError, match="no split 'dev'"):
            read_samples(source, SampleDraw(name="a", split="dev"))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: {"train": train}[split])
    assert len(texts("org/name")) == 8

    def fail(name: str, split: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match="cannot load it: no network") as caught:
        read_samples("org/name", SampleDraw(name="a"))
    assert "save_to_disk" in caught.value.remedy
    with pytest.raises(DataError, match="test split"):
        read_samples("org/name", SampleDraw(name="a", split="test[:8]"))


def test_images_of_a_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(3)]
    data = datasets.Dataset.from_dict({"picture": pictures, "label": [0, 1, 0]})
    found = read_samples(
        data.cast_column("picture", datasets.Image()), SampleDraw(name="a", samples=3)
    )
    assert len(found.content.values) == 3


def test_a_missing_file_is_never_looked_for_elsewhere(tmp_path: Path, lines: Path) -> None:
    with pytest.raises(DataError, match="no such file") as caught:
        read_samples(tmp_path / "row.jsonl", SampleDraw(name="a"))
    assert caught.value.remedy == "did you mean rows.jsonl?"
    for name in ("nosuch.jsonl", "./nosuch", "~/nosuch-folder", ""):
        with pytest.raises(MagmergeError):
            read_samples(name, SampleDraw(name="a"))
    with pytest.raises(DataError, match="no known kind of data"):
        read_samples(lines.rename(tmp_path / "rows.arrow"), SampleDraw(name="a"))


def test_the_split_of_a_data_set_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {
        split: datasets.Dataset.from_dict({"text": [f"{split} {i}" for i in range(3)]})
        for split in ("train", "test")
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    found = texts(tmp_path / "both", samples=3, split="test", allow_test=True)
    assert sorted(found) == ["test 0", "test 1", "test 2"]
    assert sorted(texts(tmp_path / "both", samples=3)) == ["train 0", "train 1", "train 2"]
