"""What a model is asked once: pairs, numbers, heads with a dense layer, two metrics of one task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import magmerge
from magmerge.core.errors import MagmergeError
from magmerge.evaluation import classification, open_suite
from magmerge.evaluation.classification import read_head
from magmerge.evaluation.task_scores import prepare_task
from tests.evaluation.models import (
    WIDTH,
    bert_suite,
    clip_suite,
    save_bert,
    save_rows,
    save_suite,
    texts,
)


def test_two_metrics_of_one_task_run_the_model_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = bert_suite(tmp_path)
    content = yaml.safe_load(suite.read_text())
    content["tasks"]["again"] = {**content["tasks"]["three"], "metric": "matthews"}
    suite.write_text(yaml.safe_dump(content))
    calls: list[int] = []
    forward = classification.forward
    monkeypatch.setattr(
        classification, "forward", lambda m, i: (calls.append(i.rows), forward(m, i))[1]
    )
    found = open_suite(suite).evaluate(tmp_path / "base", tasks=["three", "again"])
    # The expert of both, and the model.
    assert sum(calls) == 2 * 70
    alone = open_suite(suite).evaluate(tmp_path / "base", tasks=["again"])
    assert (found["again"].score, found["again"].low) == (alone["again"].score, alone["again"].low)
    assert found["three"].seconds == 0 < found["again"].seconds


def test_pairs_values_and_dense_heads(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertModel

    folder = save_bert(tmp_path / "base")
    first, second = texts(50, seed=1), texts(50, seed=2)
    torch.manual_seed(0)
    dense, weight = torch.randn(5, WIDTH), torch.randn(1, 5)
    head = {"dense.weight": dense, "dense.bias": torch.ones(5), "weight": weight}
    save_file(head, tmp_path / "head.safetensors")
    model = BertModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = []
    for one, two in zip(first, second, strict=True):
        with torch.no_grad():
            cls = model(**tokenizer(one, two, return_tensors="pt")).last_hidden_state[0, 0]
        expected.append(float(weight @ torch.tanh(dense @ cls + 1)))
    noise = torch.randn(50, generator=torch.Generator().manual_seed(1)).tolist()
    labels = [value + extra for value, extra in zip(expected, noise, strict=True)]
    rows = [
        {"sentence1": one, "sentence2": two, "score": label}
        for one, two, label in zip(first, second, labels, strict=True)
    ]
    save_rows(tmp_path / "sts.jsonl", rows)
    task = {
        "data": "sts.jsonl", "head": "head.safetensors", "text_field": "sentence1",
        "pair_field": "sentence2", "label_field": "score",
    }  # fmt: skip
    tasks = {"p": {**task, "metric": "pearson"}, "s": {**task, "metric": "spearman"}}
    path = save_suite(tmp_path, tasks, model={"features": "cls", "class": "BertModel"})
    found = magmerge.evaluate(folder, suite=path)
    from scipy.stats import pearsonr, spearmanr

    assert found["p"].score == pytest.approx(pearsonr(labels, expected)[0], abs=1e-5)
    assert found["s"].score == pytest.approx(spearmanr(labels, expected)[0], abs=1e-5)
    assert found["p"].low < found["p"].score < found["p"].high
    assert found["s"].low < found["s"].score < found["s"].high


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": (3, 4), "dense.weight": (5, 7)},
        {"weight": (3, 4), "dense.bias": (4,)},
        {"weight": (3, 4), "dense.weight": (4, 7), "dense.bias": (5,)},
        {"dense.weight": (4, 7)},
    ],
)
def test_heads_that_do_not_fit_together_are_told(tmp_path: Path, tensors: dict) -> None:
    file = tmp_path / "head.safetensors"
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, file)
    with pytest.raises(MagmergeError, match="it is no head"):
        read_head(str(file))


def test_a_regression_takes_one_output_and_numbers(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "base")
    save_file({"weight": torch.ones(2, WIDTH)}, tmp_path / "head.safetensors")
    save_rows(tmp_path / "x.jsonl", [{"text": "a b", "label": value} for value in (0.5, 1.5)])
    save_rows(tmp_path / "y.jsonl", [{"text": "a b", "label": value} for value in ("x", "y")])
    task = {"head": "head.safetensors", "metric": "pearson"}
    path = save_suite(tmp_path, {n: {**task, "data": f"{n}.jsonl"} for n in "xy"})
    with pytest.raises(MagmergeError, match="not one value a row"):
        magmerge.evaluate(folder, suite=path, tasks=["x"])
    with pytest.raises(MagmergeError, match="the label 'x' is no number"):
        magmerge.evaluate(folder, suite=path, tasks=["y"])


def test_images_of_a_data_set_are_decoded_when_they_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    suite = clip_suite(tmp_path, 12)
    files = sorted((tmp_path / "images" / "one").glob("*/*.jpg"))
    labels = [int(file.parent.name.removeprefix("class")) for file in files]
    content = {"image": [str(file) for file in files], "label": labels}
    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    saved = datasets.Dataset.from_dict(content, features=datasets.Features(features))
    saved.save_to_disk(tmp_path / "saved")
    about = yaml.safe_load(suite.read_text())
    about["tasks"]["two"] = {**about["tasks"]["one"], "data": "saved"}
    suite.write_text(yaml.safe_dump(about))
    opened = open_suite(suite)
    decode = datasets.Image.decode_example
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("decoded"))
    prepare_task("two", opened.entry, opened.path, "test", tmp_path / "base")
    monkeypatch.setattr(datasets.Image, "decode_example", decode)
    found = opened.evaluate(tmp_path / "base", workers=2)
    assert found["two"].count == 12
    assert found["two"].score == found["one"].score
