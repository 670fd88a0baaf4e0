"""Many models in one pass: the scores of each alone, with less work."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import magmerge
from magmerge.core.errors import MagmergeError, ParameterError, StructureError
from magmerge.evaluation import Scores, classification, open_suite
from magmerge.evaluation.runner import Runner
from tests.conftest import tuned
from tests.evaluation.models import (
    bert_suite,
    clip_suite,
    save_clip,
)

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_suite(tmp_path_factory.mktemp("clip"))


def variants(folder: Path, count: int, *, above: str = "", size: float = 0.3) -> dict[str, State]:
    """Models that differ from the folder's in the tensors whose names hold `above`."""
    base = load_file(folder / "model.safetensors")
    found = {"base": base}
    for seed in range(1, count):
        changed = tuned(base, seed, size)
        found[f"v{seed}"] = {name: changed[name] if above in name else base[name] for name in base}
    return found


def values(scores: Scores) -> list[tuple]:
    return [(t.task, t.metric, t.score, t.low, t.high, t.count, t.expert) for t in scores.tasks]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were decoded, batch by batch."""
    seen: list[int] = []
    made = classification._decoded

    def counting(pictures: tuple, pixels: Callable) -> object:
        seen.append(len(pictures))
        return made(pictures, pixels)

    monkeypatch.setattr(classification, "_decoded", counting)
    return seen


@pytest.mark.parametrize("above", ["", "layers.2", "visual_projection", "class_embedding"])
@pytest.mark.parametrize(("threads", "workers"), [(1, 1), (3, 2)])
def test_the_scores_are_those_of_each_model_alone(
    clip: Path, above: str, threads: int, workers: int
) -> None:
    models = variants(clip.parent / "base", 4, above=above, size=3.0 if above else 0.3)
    found = open_suite(clip).evaluate_all(models, threads=threads, workers=workers)
    assert list(found) == list(models)
    alone = {name: open_suite(clip).evaluate(model) for name, model in models.items()}
    assert {n: values(s) for n, s in found.items()} == {n: values(s) for n, s in alone.items()}
    assert len({str(values(scores)) for scores in found.values()}) > 1


def test_answers_are_the_same_bits(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the classes: the logits behind them."""
    seen: dict[str, list[Tensor]] = {}
    reading = classification.READINGS["classes"]
    lock = threading.Lock()

    def kept(logits: Tensor, rows: int, model: str) -> Tensor:
        with lock:
            seen[key].append(logits.clone())
        return reading(logits, rows, model)

    monkeypatch.setattr(classification, "READINGS", {"classes": kept})
    models = variants(clip.parent / "base", 3, above="layers.2")
    key, seen["all"] = "all", []
    open_suite(clip).evaluate_all(models, threads=1, tasks=["one"])
    key, seen["alone"] = "alone", []
    for model in models.values():
        open_suite(clip).evaluate(model, threads=1, tasks=["one"])
    batches = len(seen["alone"]) // 3
    together = seen["all"]
    assert len(together) == 3 * batches
    for place, logits in enumerate(together):
        model, batch = place % 3, place // 3
        assert torch.equal(logits, seen["alone"][model * batches + batch])


def test_each_batch_is_decoded_once(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch)
    open_suite(clip).evaluate_all(variants(clip.parent / "base", 3))
    assert sum(seen) == 2 * 70


def test_no_memory_is_one_model_at_a_time(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = variants(clip.parent / "base", 3)
    expected = {name: values(s) for name, s in open_suite(clip).evaluate_all(models).items()}
    sizes: list[int] = []
    answers = Runner.answers

    def noted(self: Runner, modules: list, task: object) -> list[Tensor]:
        sizes.append(len(modules))
        return answers(self, modules, task)

    monkeypatch.setattr(Runner, "answers", noted)
    seen = counted(monkeypatch)
    suite = open_suite(clip)
    found = suite.evaluate_all(models, memory=1)
    assert {name: values(scores) for name, scores in found.items()} == expected
    assert sizes == [1, 1] * 3
    assert sum(seen) == 3 * 2 * 70
    sizes.clear()
    bytes_of_one = sum(t.numel() * 4 for t in models["base"].values())
    suite.evaluate_all(models, memory=2 * bytes_of_one)
    assert sizes == [2, 2, 1, 1]


def test_progress_counts_all_models(clip: Path) -> None:
    told: list[tuple[str, int, int]] = []
    open_suite(clip).evaluate_all(
        variants(clip.parent / "base", 2), progress=lambda *one: told.append(one)
    )
    steps = [one for one in told if one[0] == "evaluating"]
    assert steps[-1][1:] == (12, 12)
    assert [done for _, done, _ in steps] == [2, 4, 6, 8, 10, 12]


def test_experts_and_texts_in_one_pass(tmp_path: Path) -> None:
    suite = bert_suite(tmp_path)
    models = {"b": tmp_path / "base", "e": tmp_path / "expert"}
    found = open_suite(suite).evaluate_all(models, split="validation")
    for name, model in models.items():
        assert values(found[name]) == values(
            magmerge.evaluate(model, suite=suite, split="validation")
        )
    assert found["e"].relative == 1
    listed = magmerge.evaluate(list(models.values()), suite=suite, split="validation")
    assert [values(one) for one in listed] == [values(one) for one in found.values()]
    out = tmp_path / "scores.json"
    magmerge.evaluate(list(models.values()), suite=suite, tasks=["two"], out=out)
    assert [one["model"] for one in json.loads(out.read_text())] == [
        str(path) for path in models.values()
    ]


def test_without_a_base_each_folder_prepares_its_own_inputs(tmp_path: Path) -> None:
    suite = clip_suite(tmp_path, 40)
    content = yaml.safe_load(suite.read_text())
    del content["base"]
    suite.write_text(yaml.safe_dump(content))
    save_clip(tmp_path / "deeper", seed=2, layers=4)
    models = {name: tmp_path / name for name in ("base", "deeper")}
    found = open_suite(suite).evaluate_all(models, memory="1GB")
    for name, model in models.items():
        assert values(found[name]) == values(open_suite(suite).evaluate(model))


def test_modules_of_the_users_own_among_others(clip: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    module = CLIPVisionModelWithProjection.from_pretrained(clip.parent / "base")
    state = variants(clip.parent / "base", 2)["v1"]
    found = open_suite(clip).evaluate_all({"m": module, "s": state, "again": module})
    assert values(found["m"]) == values(found["again"])
    assert values(found["m"]) == values(open_suite(clip).evaluate(clip.parent / "base"))
    assert values(found["s"]) == values(open_suite(clip).evaluate(state))


def test_what_is_wrong_is_told_before_the_work(clip: Path) -> None:
    suite, state = open_suite(clip), variants(clip.parent / "base", 1)["base"]
    told: list[str] = []
    broken = {name: tensor for name, tensor in state.items() if "layers.2" not in name}
    with pytest.raises(StructureError, match=r"layers\.2"):
        suite.evaluate_all({"a": state, "b": broken}, progress=lambda *one: told.append(one[0]))
    assert "evaluating" not in told
    with pytest.raises(ParameterError, match="no model"):
        suite.evaluate_all({})
    for wrong in ({"workers": 0}, {"memory": "lots"}, {"memory": 0}):
        with pytest.raises(MagmergeError):
            suite.evaluate(state, **wrong)


def test_an_image_that_is_broken_is_told(tmp_path: Path) -> None:
    suite = clip_suite(tmp_path, 40)
    (tmp_path / "images" / "one" / "class1" / "0034.jpg").write_bytes(b"no image")
    with pytest.raises(MagmergeError, match=r"no image that Pillow reads") as caught:
        open_suite(suite).evaluate(tmp_path / "base", workers=2)
    assert "0034.jpg" in str(caught.value)


def test_a_clip_of_another_family_is_measured_under_its_names(clip: Path) -> None:
    from magmerge.checkpoints import open_checkpoint
    from magmerge.checkpoints.clip import in_family

    suite, folder = open_suite(clip), clip.parent / "base"
    expected = values(suite.evaluate(folder))
    for family in ("open_clip", "timm_clip"):
        other = in_family(open_checkpoint(folder), family)
        state = {name: other.read(name) for name in other.specs}
        assert not set(state) & set(load_file(folder / "model.safetensors"))
        assert values(suite.evaluate(state)) == expected
        file = clip.parent / f"{family}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
        both = suite.evaluate_all({"own": folder, "other": file})
        assert values(both["own"]) == values(both["other"]) == expected


def spoiling() -> torch.nn.Module:
    """Logits of a model that changes its own input."""
    return torch.nn.Sequential(
        torch.nn.ReLU(inplace=True), torch.nn.Flatten(), torch.nn.Linear(12, 3)
    )


def test_a_model_that_changes_its_input_spoils_no_other(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 3, 2, 2, generator=generator)
    labels = torch.randint(3, (60,), generator=generator)
    save_file({"inputs": inputs, "labels": labels}, tmp_path / "x.safetensors")
    tasks = {"x": {"data": "x.safetensors"}}
    content = {"suite": "own", "tasks": tasks}
    content["model"] = {"build": "tests.evaluation.test_many:spoiling"}
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(content))
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    models = {"spoils": spoiling().state_dict(), "plain": plain}
    found = open_suite(path, allow_code=True).evaluate_all(models)
    for name, model in models.items():
        assert values(found[name]) == values(open_suite(path, allow_code=True).evaluate(model))
