"""Models side by side, and merges without each of their experts."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from examples.tiny.encoders import write_language_model
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)  # fmt: skip
from typer.testing import CliRunner

import magmerge
from magmerge.cli.typer_program import program_with
from magmerge.core.errors import CheckpointError, OutputError, ParameterError
from magmerge.evaluation.ablation import Ablation, Left
from magmerge.evaluation.side_by_side import SideBySide
from tests.conftest import call
from tests.live.test_compound import family
from tests.live.test_running import bert, folders, llama

PROMPTS = ["waaa waab", "waac waad waae"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a tokenizer, two experts, and a merged model that is the second of them."""
    folder = tmp_path_factory.mktemp("texts")
    write_language_model(folder / "base", "llama", seed=0)
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM.from_pretrained(folder / "base")
    for name, expert in family(base).items():
        expert.save_pretrained(folder / name)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return folder


def compared(folder: Path, **settings: Any) -> SideBySide:
    return magmerge.compare(
        folder / "base", [folder / "expert-0", folder / "expert-1"], folder / "expert-1",
        **{"prompts": folder / "prompts.txt", "tokens": 5, **settings},
    )  # fmt: skip


def test_language_models_go_on_greedily_each_with_its_own_weights(texts: Path) -> None:
    found = compared(texts)
    assert found.models == ("base", "expert-0", "expert-1", "merged")
    assert found.prompts == tuple(PROMPTS)
    from transformers import LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(texts / "base")
    model = LlamaForCausalLM.from_pretrained(texts / "expert-0").eval()
    for prompt, answers in zip(PROMPTS, found.answers, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        for _ in range(5):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        wanted = tokenizer.decode(ids[0, -5:], skip_special_tokens=True)
        assert answers[1] == wanted
        assert answers[2] == answers[3]
    assert all("expert-1" not in found.differs(n) for n in range(2))


def test_prompts_of_an_expert_are_compared_with_it_alone_and_written_as_a_page(
    texts: Path, tmp_path: Path
) -> None:
    found = compared(texts, prompts={"expert-1": PROMPTS, "expert-0": ["<b>waaa"]}, count=1)
    assert found.owners == ("expert-1", "expert-0")
    assert found.differs(0) == ()
    page = found.save(tmp_path / "page.html").read_text()
    assert "&lt;b&gt;waaa" in page
    assert "<script" not in page
    with pytest.raises(OutputError, match="exists already"):
        found.save(tmp_path / "page.html")
    with pytest.raises(ParameterError, match=r"(?s)no expert.*expert-0"):
        compared(texts, prompts={"law": PROMPTS})
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        magmerge.compare(tmp_path, [], texts / "base", prompts=PROMPTS)


def test_conversations_are_answered_by_the_chat_template(texts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(texts / "base", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "[CLS]{% for m in messages %} {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} waaf{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    row = {"prompt": "waaa waab", "completion": "wabb"}
    (tmp_path / "chat.jsonl").write_text(json.dumps(row) + "\n")
    models = ([texts / "expert-0"], texts / "expert-1")
    found = magmerge.compare(folder, *models, prompts=tmp_path / "chat.jsonl", tokens=3)
    plain = magmerge.compare(texts / "base", *models, prompts=["waaa waab waaf"], tokens=3)
    assert found.prompts == ("waaa waab",)
    assert found.answers == plain.answers


def test_classifiers_tell_their_label(texts: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    labels = {0: "ham", 1: "spam"}
    config = BertConfig(
        vocab_size=410, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, id2label=labels, label2id={v: k for k, v in labels.items()},
    )  # fmt: skip
    base = BertForSequenceClassification(config).eval()
    tokenizer = AutoTokenizer.from_pretrained(texts / "base")
    for name, sign in (("base", 1), ("expert", -1)):
        model = copy.deepcopy(base)
        with torch.no_grad():
            model.classifier.bias.copy_(torch.tensor([9.0, -9.0]) * sign)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    found = magmerge.compare(
        tmp_path / "base", {"e": tmp_path / "expert"}, tmp_path / "base", prompts=PROMPTS
    )
    assert found.answers[0] == ("ham", "spam", "ham")
    assert found.differs(0) == ("e",)
    assert found.text == "the merged model answers as the expert does: e 0 of 2"


def test_the_command_line_shows_the_same(texts: Path, tmp_path: Path) -> None:
    models = [str(texts / name) for name in ("base", "expert-0", "expert-1", "expert-1")]
    words = ["compare", *models, "--prompts", str(texts / "prompts.txt"), "--tokens", "3"]
    out = tmp_path / "page.html"
    done = CliRunner().invoke(program_with(["compare"]), [*words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "answers as the expert does" in done.output
    assert out.is_file()


def test_too_few_models_or_tokens_are_told(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ("--prompts", texts / "prompts.txt")
    base, expert = texts / "base", texts / "expert-0"
    few = call(capsys, "compare", base, expert, *prompts)
    assert few.code == 2
    assert "give BASE, one expert or more, and MERGED" in few.err
    typed = call(capsys, "compare", base, "--prompts=" + str(prompts[1]), expert, "--count=1")
    assert typed.code == 2
    for tokens in (0, -1):
        none = call(capsys, "compare", base, expert, base, *prompts, f"--tokens={tokens}")
        assert none.code == 1
        assert f"{tokens} tokens" in none.err


@pytest.mark.parametrize("family_name", ["llama", "gpt2"])
def test_answers_end_where_the_positions_do(
    texts: Path, tmp_path: Path, family_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(texts / "base", tmp_path / "base")
    if family_name == "gpt2":
        torch.manual_seed(0)
        words = len(AutoTokenizer.from_pretrained(texts / "base"))
        config = GPT2Config(vocab_size=words, n_positions=16, n_embd=16, n_layer=1, n_head=2)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    else:
        config = json.loads((tmp_path / "base" / "config.json").read_text())
        config["max_position_embeddings"] = 16
        (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    base = tmp_path / "base"
    with pytest.warns(magmerge.MagmergeWarning, match=r"positions for 16 tokens.*of 2 prompts 2"):
        found = magmerge.compare(base, [base], base, prompts=PROMPTS, tokens=5000)
    assert all(len(answer.split()) <= 16 for row in found.answers for answer in row)
    full = [" ".join(["waaa"] * 40)]
    with pytest.warns(magmerge.MagmergeWarning, match="of 1 prompt 1"):
        magmerge.compare(base, [base], base, prompts=full, tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", magmerge.MagmergeWarning)
        magmerge.compare(base, [base], base, prompts=full, tokens=1)
    (tmp_path / "p.txt").write_text("waaa\n")
    words = ("compare", base, base, base, "--prompts", tmp_path / "p.txt", "--tokens", 5000)
    assert call(capsys, *words).code == 0


def test_a_conversation_beyond_the_positions_is_told(texts: Path, tmp_path: Path) -> None:
    shutil.copytree(texts / "base", tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.chat_template = "{% for m in messages %} {{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "base")
    row = {"prompt": "waaa " * 300, "completion": "wabb"}
    (tmp_path / "chat.jsonl").write_text(json.dumps(row) + "\n")
    base = tmp_path / "base"
    with pytest.raises(ParameterError, match=r"prompt 1 has 300 tokens.*positions for 160"):
        magmerge.compare(base, [base], base, prompts=tmp_path / "chat.jsonl")


def test_a_page_that_is_there_is_told_before_any_model_runs(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    out.write_text("mine")
    models = (texts / "base", texts / "expert-0", texts / "base")
    words = ("compare", *models, "--prompts", texts / "prompts.txt", "--tokens", 1, "--out")
    for place in (out, tmp_path, tmp_path / "none" / "page.html"):
        found = call(capsys, *words, place)
        assert found.code == 1
        assert "comparing" not in found.err
    assert out.read_text() == "mine"
    assert call(capsys, *words, out, "--yes").code == 0


def test_leaving_out_a_stranger_brings_the_others_nearer(tmp_path: Path) -> None:
    base = llama()
    near = family(base, 2, size=0.05)
    torch.manual_seed(7)
    far = family(base, 1, size=1.0)["expert-0"]
    base_path, paths = folders(tmp_path, base, {**near, "stranger": far})
    torch.manual_seed(3)
    data = {}
    for name in paths:
        data[name] = tmp_path / f"{name}.safetensors"
        save_file({"input_ids": torch.randint(0, 40, (8, 6))}, data[name])
    settings: dict[str, Any] = {"method": "task_arithmetic", "params": {"lambda": 1.0}}
    with pytest.warns(magmerge.MagmergeWarning):
        found = magmerge.ablate(base=base_path, experts=paths, data=data, **settings)
    left = {one.expert: one for one in found.left}
    assert left["stranger"].state == "hurts the others"
    assert "stranger hurts the others most" in found.text
    assert found.table.rows[0][0] == "stranger"
    # By hand: the loss of the others without it is that of a merge of the two.
    assert left["stranger"].without < left["stranger"].others
    json.dumps(found.document(), allow_nan=False)
    with pytest.raises(ParameterError, match="one expert only"):
        magmerge.ablate(base=base_path, experts=[paths["stranger"]], data=data["stranger"])


def test_nothing_is_said_of_what_is_not_known(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    unknown = [Left("a", *pair, 0.1, 1.0, 1.0) for pair in ((nan, nan), (nan, 1.0), (inf, 1.0))]
    assert [one.state for one in unknown] == ["", "", ""]
    found = Ablation("ties", "kl", {"a": 1}, (*unknown, Left("b", 1.0, 0.5, 0.01, 1.0, 1.0)))
    assert "b hurts the others most" in found.text
    assert found.table.rows[0][0] == "b"
    json.dumps(found.document(), allow_nan=False)
    base_path, paths = folders(tmp_path, llama(), family(llama(), 2))
    save_file({"input_ids": torch.randint(0, 40, (1, 6))}, tmp_path / "d.safetensors")
    data = dict.fromkeys(paths, tmp_path / "d.safetensors")
    single = magmerge.ablate(base=base_path, experts=paths, data=data, samples=1)
    assert [one.state for one in single.left] == ["", ""]
    assert "not known" in single.text
    json.dumps(single.document(), allow_nan=False)


def test_what_is_within_chance_is_not_said() -> None:
    one = Left("a", 1.0, 0.9, 0.2, 1.0, 1.0)
    assert one.state == ""
    assert "no expert clearly" in Ablation("ties", "kl", {"a": 1}, (one,)).text


@pytest.mark.parametrize("role", ["base", "merged"])
def test_an_expert_may_be_called_as_a_role_is(texts: Path, tmp_path: Path, role: str) -> None:
    shutil.copytree(texts / "expert-0", tmp_path / role)
    for prompts in (PROMPTS, {role: PROMPTS}):
        plain = prompts if isinstance(prompts, list) else {"expert-0": PROMPTS}
        merged = (texts / "expert-1", texts / "base")
        found = magmerge.compare(
            texts / "base", [tmp_path / role, merged[0]], merged[1], prompts=prompts, tokens=5
        )
        wanted = magmerge.compare(
            texts / "base", [texts / "expert-0", merged[0]], merged[1], prompts=plain, tokens=5
        )
        assert found.models == ("base", f"experts.{role}", "expert-1", "merged")
        assert found.answers == wanted.answers
        assert [len(row["answers"]) for row in found.document()["prompts"]] == [4, 4]
        renamed = wanted.text.replace("expert-0", f"experts.{role}")
        assert found.text == renamed
    both = {role: texts / "expert-0", f"experts.{role}": texts / "expert-1"}
    found = magmerge.compare(texts / "base", both, texts / "base", prompts=PROMPTS, tokens=1)
    assert len({*found.models}) == 4


@pytest.mark.parametrize("role", ["base", "merged"])
def test_an_expert_called_as_a_role_is_left_out_like_another(tmp_path: Path, role: str) -> None:
    base = bert()
    base_path, paths = folders(tmp_path, base, family(base, 2))
    torch.manual_seed(3)
    save_file({"input_ids": torch.randint(1, 40, (8, 6))}, tmp_path / "d.safetensors")
    one, two = paths.values()
    losses = []
    for names in (("a", "b"), (role, "b")):
        data = dict.fromkeys(names, tmp_path / "d.safetensors")
        experts = dict(zip(names, (one, two), strict=True))
        found = magmerge.ablate(base=base_path, experts=experts, data=data)
        assert found.measure == "cosine"
        losses.append([number for left in found.left for number in left[1:]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
