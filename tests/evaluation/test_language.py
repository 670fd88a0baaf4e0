"""Perplexity and choices against plain slow loops on a tiny random Llama."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax

import magmerge
from magmerge.core.errors import MagmergeError
from magmerge.evaluation import language, open_suite
from tests.evaluation.models import save_llama, save_rows, save_suite, texts

CHOICES = {"one": [" yes", " no"], "several": [" yes", " no good", " very very bad"]}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder / "base")
    save_llama(folder / "expert", seed=1)
    save_rows(folder / "data" / "p.test.jsonl", [{"text": text} for text in [*texts(40), "a"]])
    tasks: dict = {"plain": {"metric": "perplexity", "data": {"test": "data/p.test.jsonl"}}}
    for number, (name, choices) in enumerate(CHOICES.items()):
        rows = [
            {"prompt": text, "label": choices[row % len(choices)].strip()}
            for row, text in enumerate(texts(40, seed=number + 1))
        ]
        save_rows(folder / "data" / f"{name}.test.jsonl", rows)
        tasks[name] = {
            "choices": choices,
            "text_field": "prompt",
            "data": {"test": f"data/{name}.test.jsonl"},
        }
    save_suite(folder, tasks)
    return folder


def slow(folder: Path) -> tuple:
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def log_probability(model: object, tokens: list[int], first: int) -> float:
    """Of the tokens from `first` on, one forward pass for each."""
    found = 0.0
    for place in range(first, len(tokens)):
        logits = model(torch.tensor([tokens[:place]])).logits[0, -1].double()
        found += float(log_softmax(logits, dim=-1)[tokens[place]])
    return found


def test_perplexity_is_that_of_a_slow_loop(llama: Path) -> None:
    model, tokenizer = slow(llama / "base")
    total, count = 0.0, 0
    for text in [*texts(40), "a"]:
        tokens = tokenizer(text)["input_ids"]
        assert tokens[0] == tokenizer.bos_token_id
        total += log_probability(model, tokens, 1)
        count += len(tokens) - 1
    found = magmerge.evaluate(llama / "base", suite=llama / "suite.yaml", tasks=["plain"])
    assert found["plain"].score == pytest.approx(math.exp(-total / count), rel=1e-5)
    assert found["plain"].low < found["plain"].score < found["plain"].high
    assert found["plain"].count == 41
    assert found.mean is None


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_those_of_a_slow_loop(llama: Path, name: str) -> None:
    model, tokenizer = slow(llama / "base")
    choices, right, rows = CHOICES[name], 0, texts(40, seed=list(CHOICES).index(name) + 1)
    for row, text in enumerate(rows):
        prompt = tokenizer(text)["input_ids"]
        scores = [
            log_probability(model, tokenizer(text + choice)["input_ids"], len(prompt))
            for choice in choices
        ]
        right += scores.index(max(scores)) == row % len(choices)
    found = magmerge.evaluate(llama / "base", suite=llama / "suite.yaml", tasks=[name])
    assert found[name].score == right / len(rows)
    assert 0 < right < len(rows)


def test_one_forward_pass_tells_choices_of_one_token(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        language, "forward", lambda m, i, f=language.forward: (seen.append(i.rows), f(m, i))[1]
    )
    magmerge.evaluate(llama / "base", suite=llama / "suite.yaml", tasks=["one"], threads=1)
    assert sum(seen) == 40
    seen.clear()
    magmerge.evaluate(llama / "base", suite=llama / "suite.yaml", tasks=["several"], threads=1)
    assert sum(seen) == 40 * 3


def test_batches_that_keep_to_less_memory_give_the_same(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_suite(llama / "suite.yaml").evaluate(llama / "base")
    monkeypatch.setattr(language, "LOGITS", 1)
    after = open_suite(llama / "suite.yaml").evaluate(llama / "base")
    for name in ("plain", "one", "several"):
        assert after[name].score == pytest.approx(before[name].score, rel=1e-5)


def test_prompts_lose_their_beginning_and_keep_its_mark() -> None:
    class Tokenizer:
        bos_token_id = 1

    fit = language._fitting
    assert fit([1, 5, 6, 7], 4, Tokenizer(), "x") == (1, 5, 6, 7)
    assert fit([1, 5, 6, 7], 3, Tokenizer(), "x") == (1, 6, 7)
    assert fit([4, 5, 6, 7], 2, Tokenizer(), "x") == (6, 7)
    with pytest.raises(MagmergeError, match="no room"):
        fit([1, 5], 0, Tokenizer(), "x")


def test_a_model_without_logits_is_told(llama: Path) -> None:
    suite = llama / "suite.yaml"
    text = suite.read_text().replace("base: base\n", "base: base\nmodel: {class: AutoModel}\n")
    other = llama / "other.yaml"
    other.write_text(text)
    with pytest.raises(MagmergeError, match="no logits for each token") as caught:
        magmerge.evaluate(llama / "base", suite=other, tasks=["plain"])
    assert "AutoModelForCausalLM" in caught.value.remedy


def test_a_label_that_is_no_choice_is_told(llama: Path, tmp_path: Path) -> None:
    data = {"test": str(llama / "data" / "one.test.jsonl")}
    tasks = {"one": {"choices": [" yes", " nope"], "text_field": "prompt", "data": data}}
    path = save_suite(tmp_path, tasks, base=str(llama / "base"))
    with pytest.raises(MagmergeError, match="label 'no'") as caught:
        magmerge.evaluate(llama / "base", suite=path)
    assert caught.value.remedy == "did you mean nope?"
