"""Suites end to end, on tiny models with random weights and on the demo's real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import magmerge
from magmerge.core.errors import MagmergeError, OutputError, ParameterError
from magmerge.data.rows import DataError
from magmerge.evaluation import live_model as weights
from magmerge.evaluation import open_suite
from tests.evaluation.models import WIDTH, bert_suite, save_bert, save_rows, texts


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_suite(tmp_path_factory.mktemp("bert"))


def slow_predictions(folder: Path, name: str, split: str) -> tuple[list[int], list[int]]:
    """One text after the other, without padding."""
    from transformers import AutoTokenizer, BertModel

    model = BertModel.from_pretrained(folder / "base").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    head = load_file(folder / "heads" / f"{name}.safetensors")
    labels, found = [], []
    for line in (folder / "data" / f"{name}.{split}.jsonl").read_text().splitlines():
        row = json.loads(line)
        ids = tokenizer(row["text"], return_tensors="pt")
        with torch.no_grad():
            features = model(**ids).last_hidden_state[0].mean(dim=0)
        found.append(int((head["weight"] @ features + head["bias"]).argmax()))
        labels.append(row["label"])
    return labels, found


def test_scores_are_those_of_a_slow_loop(suite: Path) -> None:
    from sklearn.metrics import f1_score

    for split in ("test", "validation"):
        scores = magmerge.evaluate(suite.parent / "base", suite=suite, split=split)
        labels, found = slow_predictions(suite.parent, "three", split)
        right = sum(a == b for a, b in zip(labels, found, strict=True))
        assert scores["three"].score == right / 70
        labels, found = slow_predictions(suite.parent, "two", split)
        assert scores["two"].score == pytest.approx(f1_score(labels, found))
        assert scores.split == split
        assert scores.mean == pytest.approx((scores["three"].score + scores["two"].score) / 2)
        assert scores["two"].low < scores["two"].score < scores["two"].high
        assert scores["three"].count == 70


def test_any_number_of_threads_gives_the_same(suite: Path) -> None:
    found = [magmerge.evaluate(suite.parent / "base", suite=suite, threads=n) for n in (1, 2, 4)]
    values = [[(t.score, t.low, t.high, t.expert) for t in scores.tasks] for scores in found]
    assert values[0] == values[1] == values[2]


def test_all_ways_to_name_a_model_give_the_same(suite: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    folder = suite.parent / "expert"
    expected = [t.score for t in magmerge.evaluate(folder, suite=suite).tasks]
    module = BertModel.from_pretrained(folder).train()
    state = load_file(folder / "model.safetensors")
    result = magmerge.merge(experts=[folder], method="average")
    save_file(state, tmp_path / "lone.safetensors")
    opened = open_suite(suite)
    base = [t.score for t in opened.evaluate(suite.parent / "base").tasks]
    assert base != expected
    for model in (folder, folder / "model.safetensors", tmp_path / "lone.safetensors", module,
                  state, result):  # fmt: skip
        scores = opened.evaluate(model)
        assert [t.score for t in scores.tasks] == expected
        assert scores.relative == pytest.approx(1)
    assert module.training
    written = magmerge.merge(experts=[folder], method="average", out=tmp_path / "out")
    assert [t.score for t in opened.evaluate(written).tasks] == expected


def test_one_opened_suite_reads_and_builds_once(
    suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_suite(suite)
    first = opened.evaluate(suite.parent / "base")
    monkeypatch.setattr(weights, "bare_model", lambda *_, **__: pytest.fail("built anew"))
    monkeypatch.setattr(
        "magmerge.evaluation.task_suite.prepare_task", lambda *_: pytest.fail("read")
    )
    opened.evaluate(suite.parent / "expert")
    again = opened.evaluate(suite.parent / "base")
    assert [t.score for t in again.tasks] == [t.score for t in first.tasks]


def test_experts_are_measured_once_and_remembered(
    suite: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = magmerge.evaluate(suite.parent / "base", suite=suite)
    assert first["three"].expert == magmerge.evaluate(
        suite.parent / "expert", suite=suite
    )["three"].score  # fmt: skip
    assert first["three"].relative == first["three"].score / first["three"].expert
    assert len(json.loads((cache / "magmerge" / "expert-scores.json").read_text())) == 2
    opened = open_suite(suite)
    monkeypatch.setattr(opened._memory, "put", lambda *_: pytest.fail("measured again"))
    assert opened.evaluate(suite.parent / "base").tasks[0].expert == first["three"].expert
    (cache / "magmerge" / "expert-scores.json").write_text("{broken")
    assert magmerge.evaluate(suite.parent / "base", suite=suite).relative == first.relative


def test_an_expert_that_changed_is_measured_anew(tmp_path: Path) -> None:
    suite = bert_suite(tmp_path)
    before = magmerge.evaluate(tmp_path / "base", suite=suite)
    save_bert(tmp_path / "expert", seed=5)
    after = magmerge.evaluate(tmp_path / "base", suite=suite)
    assert [t.score for t in before.tasks] == [t.score for t in after.tasks]
    assert [t.expert for t in before.tasks] != [t.expert for t in after.tasks]


def test_an_experts_score_may_be_known(tmp_path: Path) -> None:
    suite = bert_suite(tmp_path)
    content = yaml.safe_load(suite.read_text())
    del content["tasks"]["two"]["expert"]
    content["tasks"]["three"]["expert_score"] = 0.5
    suite.write_text(yaml.safe_dump(content))
    scores = magmerge.evaluate(tmp_path / "base", suite=suite)
    assert scores["three"].relative == scores["three"].score / 0.5
    assert scores["two"].relative is None
    assert scores.relative is None
    # It is the test split's; on another the expert is measured.
    other = magmerge.evaluate(tmp_path / "base", suite=suite, split="validation")
    assert other["three"].expert != 0.5


def test_an_adapter_is_put_on_the_base(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import BertModel

    suite = bert_suite(tmp_path)
    model = get_peft_model(
        BertModel.from_pretrained(tmp_path / "base"),
        LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    found = magmerge.evaluate(tmp_path / "adapter", suite=suite)
    whole = magmerge.evaluate(model.merge_and_unload(), suite=suite)
    assert [t.score for t in found.tasks] == [t.score for t in whole.tasks]


def test_bfloat16_is_near_float32(suite: Path) -> None:
    whole = magmerge.evaluate(suite.parent / "base", suite=suite)
    half = magmerge.evaluate(suite.parent / "base", suite=suite, dtype="bfloat16")
    assert half["three"].score == pytest.approx(whole["three"].score, abs=0.1)


def test_a_classifiers_own_logits_are_used_without_a_head(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertForSequenceClassification

    folder = save_bert(tmp_path / "model", classes=3)
    words = texts(40)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = ["red", "green", "blue"]
    with torch.no_grad():
        best = [int(model(**tokenizer(t, return_tensors="pt")).logits.argmax()) for t in words]
    rows = [{"text": text, "label": names[one]} for text, one in zip(words, best, strict=True)]
    rows[0]["label"] = names[(best[0] + 1) % 3]
    save_rows(tmp_path / "rows.jsonl", rows)
    entry = {"data": "rows.jsonl", "classes": names, "metric": "matthews"}
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({"suite": "own", "tasks": {"colours": entry}}))
    found = magmerge.evaluate(folder, suite=path)["colours"]
    assert 0.9 < found.score < 1
    del entry["classes"]
    path.write_text(yaml.safe_dump({"suite": "own", "tasks": {"colours": entry}}))
    with pytest.raises(DataError, match="no number of a class") as caught:
        magmerge.evaluate(folder, suite=path)
    assert "classes:" in caught.value.remedy


def tiny_net() -> nn.Module:
    """A network of the user's own, with a buffer."""
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, WIDTH), nn.ReLU())


def test_a_module_of_the_users_own_with_ready_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs, labels = torch.randn(50, 3, 2, 2), torch.randint(3, (50,))
    save_file({"inputs": inputs, "labels": labels}, tmp_path / "x.test.safetensors")
    save_file({"weight": torch.randn(3, WIDTH)}, tmp_path / "head.safetensors")
    entry = {"data": {"test": "x.test.safetensors"}, "head": "head.safetensors"}
    content = {
        "suite": "own",
        "model": {"build": "tests.evaluation.test_suite:tiny_net", "features": "output"},
        "tasks": {"x": entry},
    }
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(content))
    net = tiny_net()
    net[1].running_mean += 0.5
    with torch.no_grad():
        logits = net.eval()(inputs) @ load_file(tmp_path / "head.safetensors")["weight"].T
    expected = float((logits.argmax(dim=-1) == labels).float().mean())
    opened = open_suite(path, allow_code=True)
    state = dict(net.state_dict())
    assert opened.evaluate(state)["x"].score == pytest.approx(expected)
    assert opened.evaluate(net)["x"].score == pytest.approx(expected)
    # A model that stores no running mean gets a fresh one, not that of the model before.
    bare = {name: tensor for name, tensor in state.items() if "running" not in name}
    net[1].running_mean.zero_()
    assert opened.evaluate(bare)["x"].score == opened.evaluate(net)["x"].score


def brightness() -> nn.Module:
    """Logits of dark and light."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 3, 1, 1))
        net[1].bias.zero_()
    return net


def test_a_folder_of_images_numbers_its_classes_by_name(tmp_path: Path) -> None:
    from PIL import Image

    for split, label, grey in [
        ("test", "dark", 10), ("test", "light", 240), ("train", "dark", 255), ("train", "light", 0)
    ]:  # fmt: skip
        folder = tmp_path / "pictures" / split / label
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (9, 7), (grey, grey, grey + number)).save(folder / f"{number}.png")
    content = {
        "suite": "own",
        "model": {"build": "tests.evaluation.test_suite:brightness"},
        "image_size": 4,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "tasks": {"light": {"data": "pictures"}},
    }
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(content))
    opened, state = open_suite(path, allow_code=True), brightness().state_dict()
    assert opened.evaluate(state)["light"].score == 1
    assert opened.evaluate(state)["light"].count == 6
    assert opened.evaluate(state, split="train")["light"].score == 0
    with pytest.raises(DataError, match="no split 'dev'"):
        opened.evaluate(state, split="dev")


KEYS = st.sampled_from(["suite", "tasks", "model", "data", "base", "class", "choices", "head"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40) | VALUES.map(lambda value: yaml.safe_dump(value).encode()))
def test_any_suite_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "suite.yaml"
    path.write_bytes(content)
    try:
        open_suite(path, allow_code=True)
    except MagmergeError as error:
        assert str(error)


def test_scores_are_written_as_json(suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    found = magmerge.evaluate(suite.parent / "base", suite=suite, out=out)
    content = json.loads(out.read_text())
    assert content == found.document()
    heads = ("magmerge", "suite", "split", "model", "tasks", "mean", "nearness", "seconds")
    assert tuple(content) == heads
    assert list(content["tasks"][0]) == [
        "task", "title", "metric", "score", "low", "high", "count", "expert", "relative", "seconds"
    ]  # fmt: skip
    with pytest.raises(OutputError, match="it exists"):
        magmerge.evaluate(suite.parent / "base", suite=suite, out=out)
    magmerge.evaluate(suite.parent / "base", suite=suite, out=out, overwrite=True)
    for wrong in (tmp_path, tmp_path / "no" / "scores.json"):
        with pytest.raises(OutputError):
            magmerge.evaluate(suite.parent / "base", suite=suite, out=wrong)


def test_the_harness_takes_folders_alone(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="not a dict"):
        magmerge.evaluate({"w": torch.zeros(1)}, lm_eval=["x"])
    with pytest.raises(ParameterError, match="no folder with a config"):
        magmerge.evaluate(tmp_path, lm_eval=["x"])
