"""Vocabularies through the front door: rows are tokens, and are matched by their text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import magmerge
from magmerge.core.errors import ParameterError, StructureError, UnknownNameError
from tests.conftest import CommandLine
from tests.token_models import EMBEDDING, HEAD, LAYER, config_of, loaded, model, result, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")
START, END, TOOL = "<|im_start|>", "<|im_end|>", "<|tool|>"


def near(merged: Tensor, wish: Tensor) -> None:
    """Equal but for the rounding of float32."""
    torch.testing.assert_close(merged, wish.to(merged))


class Family:
    """A base and two experts: one learnt chat tokens, the other a token of its own."""

    def __init__(self, folder: Path, rows: dict[str, int] | None = None) -> None:
        rows = rows or {}
        self.folder = folder
        self.tokenizers = {
            "base": tokenizer(folder / "base"),
            "chat": tokenizer(folder / "chat", [START, END]),
            "tool": tokenizer(folder / "tool", [TOOL, END]),
        }
        self.states = {
            name: model(folder / name, rows.get(name, len(own)), seed)
            for seed, (name, own) in enumerate(self.tokenizers.items())
        }

    def arguments(self) -> dict[str, Any]:
        experts = {name: self.folder / name for name in ("chat", "tool")}
        return {"base": self.folder / "base", "experts": experts, "params": {"lambda": 0.5}}

    def row(self, name: str, tensor: str, text: str) -> Tensor | None:
        """A model's row of a token, if it has one."""
        ids = self.tokenizers[name].get_vocab()
        rows = self.states[name][tensor]
        return rows[ids[text]].double() if ids.get(text, len(rows)) < len(rows) else None

    def expected(self, tensor: str, text: str) -> Tensor:
        """base + 0.5 sum of the voters' task vectors; the mean of the voters without a base."""
        base = self.row("base", tensor, text)
        votes = [v for n in ("chat", "tool") if (v := self.row(n, tensor, text)) is not None]
        if base is None:
            return sum(votes, torch.zeros(())) / len(votes)
        return base + 0.5 * sum((vote - base for vote in votes), torch.zeros(()))


def check(family: Family, out: Path) -> None:
    """Every token of the result's tokenizer has the row that it should have."""
    merged, own = result(out), loaded(out)
    for name in (EMBEDDING, HEAD):
        for text, place in own.get_vocab().items():
            near(merged[name][place], family.expected(name, text))
    states = family.states
    layer = sum((states[n][LAYER] - states["base"][LAYER]) for n in ("chat", "tool"))
    torch.testing.assert_close(merged[LAYER], states["base"][LAYER] + 0.5 * layer)
    assert config_of(out)["vocab_size"] == len(merged[EMBEDDING]) == len(merged[HEAD])


def test_the_union_of_all_tokens_is_the_default(tmp_path: Path) -> None:
    family, out = Family(tmp_path), tmp_path / "out"
    done = magmerge.merge(**family.arguments(), out=out)
    check(family, out)
    own, base = loaded(out), family.tokenizers["base"]
    assert len(own) == len(base) + 3
    text = f"{START}the cat sat{END} {TOOL} on the mat"
    ids = own(text)["input_ids"]
    assert own.convert_ids_to_tokens(ids).count(START) == 1
    assert own.decode(ids, skip_special_tokens=True).split() == [
        "the",
        "cat",
        "sat",
        "on",
        "the",
        "mat",
    ]
    assert own("the red dog")["input_ids"] == base("the red dog")["input_ids"]
    told = json.loads((out / "magmerge.json").read_text())["tokens"]
    assert told["tokenizer"] == "union"
    assert told["rows"] == len(own)
    assert {tuple(g["models"]): g["tokens"] for g in told["groups"]} == {
        ("chat",): [START], ("chat", "tool"): [END], ("tool",): [TOOL],
    }  # fmt: skip
    assert any(START in note and "union" in note for note in done.warnings)


def test_the_bases_tokens_alone(tmp_path: Path) -> None:
    family, out = Family(tmp_path), tmp_path / "out"
    done = magmerge.merge(**family.arguments(), tokenizer="base", out=out)
    check(family, out)
    assert len(loaded(out)) == len(family.tokenizers["base"])
    assert any(START in note and "dropped" in note for note in done.warnings)
    assert (out / "tokenizer.json").read_bytes() == (
        tmp_path / "base" / "tokenizer.json"
    ).read_bytes()


def test_an_experts_tokens_and_ids(tmp_path: Path) -> None:
    family, out = Family(tmp_path), tmp_path / "out"
    for name, number in (("base", 2), ("tool", 7)):
        config = config_of(tmp_path / name) | {"eos_token_id": number}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        generation = {"eos_token_id": number, "temperature": number / 10}
        (tmp_path / name / "generation_config.json").write_text(json.dumps(generation))
    magmerge.merge(**family.arguments(), tokenizer="tool", out=out)
    check(family, out)
    assert loaded(out).get_vocab() == family.tokenizers["tool"].get_vocab()
    assert config_of(out)["eos_token_id"] == 7
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"eos_token_id": 7, "temperature": 0.2}


def test_rows_that_are_padded_take_new_tokens_and_are_merged_by_place(tmp_path: Path) -> None:
    size = 40
    family, out = Family(tmp_path, {"base": 48, "chat": 48, "tool": 44}), tmp_path / "out"
    magmerge.merge(**family.arguments(), out=out)
    check(family, out)
    merged = result(out)[EMBEDDING]
    assert merged.shape[0] == 48
    assert len(loaded(out)) == size + 3
    base, chat = family.states["base"][EMBEDDING], family.states["chat"][EMBEDDING]
    torch.testing.assert_close(merged[45:], base[45:] + 0.5 * (chat[45:] - base[45:]))


@pytest.mark.parametrize("tokens", ["base", "union", "chat"])
def test_rows_are_padded_to_a_multiple_with_zeros(tmp_path: Path, tokens: str) -> None:
    family, out = Family(tmp_path), tmp_path / "out"
    magmerge.merge(**family.arguments(), tokenizer=tokens, pad_to_multiple_of=64, out=out)
    check(family, out)
    assert result(out)[HEAD].shape[0] == 64
    assert not result(out)[HEAD][len(loaded(out)) :].any()


def reordered(family: Family, name: str) -> None:
    """The same model with its tokens in another order, rows and tokenizer alike."""
    file = family.folder / name / "tokenizer.json"
    content = json.loads(file.read_text())
    size = len(content["model"]["vocab"])
    order = torch.randperm(size, generator=torch.Generator().manual_seed(3)).tolist()
    content["model"]["vocab"] = {t: order[i] for t, i in content["model"]["vocab"].items()}
    for token in content["added_tokens"]:
        token["id"] = order[token["id"]] if token["id"] < size else token["id"]
    file.write_text(json.dumps(content))
    (family.folder / name / "tokenizer_config.json").unlink()
    state = family.states[name]
    for tensor in (EMBEDDING, HEAD):
        rows = state[tensor].clone()
        rows[order] = state[tensor][:size]
        rows[size:] = state[tensor][size:]
        state[tensor] = rows
    save_file(state, family.folder / name / "model.safetensors")
    family.tokenizers[name] = loaded(family.folder / name)


@pytest.mark.parametrize("tokens", ["base", "union", "tool"])
@pytest.mark.parametrize("which", [["base"], ["chat"], ["chat", "tool"]])
def test_tokens_in_another_order(tmp_path: Path, which: list[str], tokens: str) -> None:
    family, out = Family(tmp_path), tmp_path / "out"
    for name in which:
        reordered(family, name)
    magmerge.merge(**family.arguments(), tokenizer=tokens, out=out)
    check(family, out)


def test_a_token_from_a_stated_model(tmp_path: Path) -> None:
    family, out = Family(tmp_path), tmp_path / "out"
    sources: dict[str, Any] = {
        END: {"source": "tool", "force": True},
        START: {"source": {"kind": "model_token", "model": "base", "token": "<s>"}},
        "cat": {"source": {"kind": "zero"}, "force": True},
        "<pad>": {"source": {"kind": "model_token", "model": "chat", "token_id": 2}},
    }
    recipe = magmerge.Recipe(
        base=str(tmp_path / "base"),
        experts={name: str(tmp_path / name) for name in ("chat", "tool")},
        method="task_arithmetic",
        params={"lambda": 0.5},
        tokens=sources,
    )
    assert magmerge.Recipe.from_yaml(recipe.to_yaml()) == recipe
    told = magmerge.run(recipe, out)
    record = json.loads((out / "magmerge.json").read_text())["tokens"]
    assert record["sources"] == {END: True, START: False, "cat": True, "<pad>": False}
    # Whose a forced row is, is told there; no model is said to have it alone, or none.
    assert not any({END, "cat"} & {*group.get("tokens", ())} for group in record["groups"])
    assert any("of the recipe's choice: <|im_end|>" in note for note in told.plan.warnings)
    merged, ids = result(out)[HEAD], loaded(out).get_vocab()
    assert torch.equal(merged[ids[END]].double(), family.row("tool", HEAD, END))
    assert not merged[ids["cat"]].any()
    # The base and the other expert get the base's row of <s>, and chat votes with its own.
    given, own = family.row("base", HEAD, "<s>"), family.row("chat", HEAD, START)
    assert given is not None
    assert own is not None
    near(merged[ids[START]], given + 0.5 * (own - given))
    # A new token: nobody has it, all get that row.
    torch.testing.assert_close(merged[ids["<pad>"]], family.states["chat"][HEAD][2])


@pytest.mark.parametrize(
    ("source", "error", "told"),
    [
        ("caht", UnknownNameError, "did you mean chat"),
        ("base", UnknownNameError, "no row of this token"),
        ({"kind": "model_token", "model": "chat"}, ParameterError, "token_id: NUMBER"),
        ({"kind": "model_token", "model": "chat", "token_id": 9999}, UnknownNameError, "no row"),
        ({"kind": "one"}, ParameterError, "kind: zero"),
    ],
)
def test_a_source_that_is_none(
    tmp_path: Path, source: Any, error: type[Exception], told: str
) -> None:
    family = Family(tmp_path)
    with pytest.raises(error, match=START.replace("|", r"\|")) as caught:
        magmerge.merge(**family.arguments(), tokens={START: {"source": source}})
    assert told in str(caught.value)


def test_tokenizers_that_cannot_be_put_together(tmp_path: Path, magmerge_cli: CommandLine) -> None:
    """Pieces that other rules split texts into: refused, and each remedy leads to a result."""
    family = Family(tmp_path)
    family.tokenizers["chat"] = tokenizer(tmp_path / "chat", vocabulary=44)
    family.states["chat"] = model(tmp_path / "chat", 44, 1)
    # What the other one adds, this one has not: no tokenizer has all.
    call = ["merge", "--base", tmp_path / "base", "--expert", tmp_path / "chat"]
    call += ["--expert", tmp_path / "tool", "--set", "lambda=0.5"]
    refused = magmerge_cli(*call, tmp_path / "out")
    assert refused.code == 1
    assert "no tokenizer can be made" in refused.message
    for name in ("base", "chat", "tool"):
        assert f"--tokenizer {name}" in refused.message
        done = magmerge_cli(*call, "--tokenizer", name, tmp_path / f"{name}-out")
        assert done.code == 0, done.err
        check(family, tmp_path / f"{name}-out")


def test_the_union_is_a_models_own_tokenizer_where_that_has_all(tmp_path: Path) -> None:
    """An expert with more pieces than the base, as one that learnt another language."""
    family, out = Family(tmp_path), tmp_path / "out"
    for name in ("chat", "tool"):
        family.tokenizers[name] = tokenizer(
            tmp_path / name, vocabulary=46 if name == "chat" else 40
        )
        family.states[name] = model(tmp_path / name, len(family.tokenizers[name]), ord(name[0]))
    magmerge.merge(**family.arguments(), out=out)
    check(family, out)
    assert loaded(out).get_vocab() == family.tokenizers["chat"].get_vocab()


def test_models_without_a_tokenizer_are_matched_by_place(tmp_path: Path) -> None:
    states = {n: model(tmp_path / n, rows, k) for k, (n, rows) in enumerate(
        {"base": 64, "e1": 64, "e2": 60}.items())}  # fmt: skip
    experts = [tmp_path / "e1", tmp_path / "e2"]
    done = magmerge.merge(
        base=tmp_path / "base", experts=experts, params={"lambda": 0.5}, out=tmp_path / "out"
    )
    base, e1, e2 = (states[name][HEAD] for name in ("base", "e1", "e2"))
    merged = result(tmp_path / "out")[HEAD]
    torch.testing.assert_close(merged[:60], base[:60] + 0.5 * (e1[:60] + e2 - 2 * base[:60]))
    torch.testing.assert_close(merged[60:], base[60:] + 0.5 * (e1[60:] - base[60:]))
    assert any("by their places" in note for note in done.warnings)
    # In memory too.
    again = magmerge.merge(
        base=states["base"], experts=[states["e1"], states["e2"]], params={"lambda": 0.5}
    )
    assert torch.equal(again.state_dict()[HEAD], merged)


def test_a_base_without_a_tokenizer_beside_experts_that_differ(tmp_path: Path) -> None:
    family = Family(tmp_path)
    for file in (tmp_path / "base").glob("token*"):
        file.unlink()
    # Both have the base's tokens at the same ids, and others behind them.
    magmerge.merge(**family.arguments(), out=tmp_path / "out")
    check(family, tmp_path / "out")
    reordered(family, "tool")
    with pytest.raises(StructureError, match="nothing tells which tokens its rows are") as caught:
        magmerge.merge(**family.arguments())
    assert "put the tokenizer files of base into its folder" in str(caught.value)
    tokenizer(tmp_path / "base")
    magmerge.merge(**family.arguments(), out=tmp_path / "again")
    check(family, tmp_path / "again")


@pytest.mark.parametrize("donor", [False, True])
def test_a_chat_vector(tmp_path: Path, magmerge_cli: CommandLine, donor: bool) -> None:
    """T + 0.8 (I - B) with T's own embeddings and head, by what the refusal tells to do."""
    states = {n: model(tmp_path / n, rows, k) for k, (n, rows) in enumerate(
        {"B": 64, "T": 80, "I": 64}.items())}  # fmt: skip
    out = tmp_path / "out"
    call = ["merge", "--base", tmp_path / "B", "--expert", tmp_path / "T", "--expert"]
    call += [tmp_path / "I", "--set", "lambda=1", "--set", "weights=[1,0.8]"]
    call += ["--ignore", "*embed_tokens*", "--ignore", HEAD]
    call += ["--donor", tmp_path / "T"] if donor else []
    if donor:
        refused = magmerge_cli(*call, out)
        assert refused.code == 1
        assert "--tokenizer and the expert's name" in refused.message
    done = magmerge_cli(*call, "--tokenizer", "T", out)
    assert done.code == 0, done.err
    merged = result(out)
    assert torch.equal(merged[EMBEDDING], states["T"][EMBEDDING])
    assert torch.equal(merged[HEAD], states["T"][HEAD])
    wish = states["T"][LAYER] + 0.8 * (states["I"][LAYER] - states["B"][LAYER])
    torch.testing.assert_close(merged[LAYER], wish)
    assert config_of(out)["vocab_size"] == 80


def test_a_base_in_memory_beside_experts_whose_tokens_differ(tmp_path: Path) -> None:
    """As many rows in all: only the tokenizers tell that they are other tokens."""
    family = Family(tmp_path, dict.fromkeys(("base", "chat", "tool"), 48))
    reordered(family, "tool")
    models = {**family.arguments(), "base": family.states["base"]}
    with pytest.raises(StructureError, match="nothing tells which tokens its rows are"):
        magmerge.merge(**models)
    (tmp_path / "chat" / "tokenizer.json").rename(tmp_path / "kept")
    own = family.tokenizers["chat"].get_vocab()
    (tmp_path / "chat" / "vocab.json").write_text(json.dumps(own))
    magmerge.merge(**family.arguments(), tokenizer="base", out=tmp_path / "out")
    check(family, tmp_path / "out")


def test_the_same_rows_are_left_alone(tmp_path: Path) -> None:
    """Nothing is said of tokens, and no map of rows is made, where all tokens are the same."""
    family = Family(tmp_path)
    for name in ("chat", "tool"):
        tokenizer(tmp_path / name)
        model(tmp_path / name, 40, ord(name[0]))
    file = tmp_path / "tool" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text())))
    done = magmerge.merge(**family.arguments(), out=tmp_path / "out")
    assert not any("tokens" in note for note in done.warnings)
    assert "tokens" not in json.loads((tmp_path / "out" / "magmerge.json").read_text())
