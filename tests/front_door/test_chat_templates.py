"""Whose template of chats a merged model has: asked for by name, as a text, or by a vote."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.core.errors import MagmergeError, ParameterError, StructureError, UnknownNameError
from magmerge.core.recipe import Recipe
from tests.conftest import CommandLine
from tests.front_door.test_token_rows import adapter
from tests.token_models import EMBEDDING, loaded, model, tokenizer

CHAT = [{"role": "user", "content": "a b"}]
ONE, TWO = "{{ 'one' }}", "{{ 'two' }}"


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    """A base and three experts with one tokenizer, none with a template of chats."""
    folders = {name: tmp_path / name for name in ("base", "a", "b", "c")}
    for seed, folder in enumerate(folders.values()):
        rows = len(tokenizer(folder, ["<|im_start|>", "<|im_end|>"]))
        model(folder, rows, seed)
    return folders


def give(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)


def merged(models: dict[str, Path], out: Path, template: str | None, **more: Any) -> Any:
    experts = {name: path for name, path in models.items() if name != "base"}
    given = {"base": models["base"], "experts": experts, "params": {"lambda": 0.3}, **more}
    return magmerge.merge(**given, chat_template=template, out=out)


def said(out: Path) -> str:
    text: str = loaded(out).apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    return text


def test_a_template_by_name_is_what_transformers_uses(
    models: dict[str, Path], tmp_path: Path
) -> None:
    give(models["base"], ONE)
    settings = models["base"] / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": TWO}))
    result = merged(models, tmp_path / "out", "chatml")
    assert said(tmp_path / "out") == "<|im_start|>user\na b<|im_end|>\n<|im_start|>assistant\n"
    assert "chat_template" not in json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert "chat_template.jinja" in result.plan.copied
    assert Recipe.from_yaml(result.recipe.to_yaml()).chat_template == "chatml"
    plain = merged(models, tmp_path / "plain", None)
    assert said(tmp_path / "plain") == "one"
    states = [load_file(tmp_path / name / "model.safetensors") for name in ("out", "plain")]
    assert all(bool((states[0][name] == states[1][name]).all()) for name in states[0])
    assert plain.recipe.digest != result.recipe.digest


def test_a_text_and_an_experts_name(models: dict[str, Path], tmp_path: Path) -> None:
    give(models["b"], TWO)
    text = "{% for m in messages %}{{ m.content }}!{% endfor %}"
    merged(models, tmp_path / "text", text)
    assert said(tmp_path / "text") == "a b!"
    merged(models, tmp_path / "b-s", "b")
    assert said(tmp_path / "b-s") == "two"
    with pytest.raises(ParameterError, match="a has no chat template") as caught:
        merged(models, tmp_path / "none", "a")
    assert "b, alpaca, chatml" in caught.value.remedy


@pytest.mark.parametrize(
    ("own", "expected", "message"),
    [
        ({"a": ONE, "b": TWO, "c": TWO}, "two", r"that of b, c \(2 of 4\)"),
        ({"a": ONE}, "one", r"that of a \(1 of 4\)"),
        ({"base": ONE, "a": TWO}, "one", "base, a have different ones.*the base's is taken"),
    ],
)
def test_auto_is_that_of_most_models_or_the_bases(
    models: dict[str, Path], tmp_path: Path, own: dict[str, str], expected: str, message: str
) -> None:
    for name, template in own.items():
        give(models[name], template)
    with pytest.warns(magmerge.MagmergeWarning, match=message):
        merged(models, tmp_path / "out", "auto")
    assert said(tmp_path / "out") == expected


def test_auto_without_a_choice_says_so(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.warns(magmerge.MagmergeWarning, match="none of 4 models has one"):
        merged(models, tmp_path / "none", "auto")
    assert loaded(tmp_path / "none").chat_template is None
    give(models["a"], ONE)
    give(models["b"], TWO)
    with pytest.warns(magmerge.MagmergeWarning, match="name one with --chat-template") as caught:
        merged(models, tmp_path / "tie", "auto")
    assert "a, b" in str(caught[0].message)
    merged(models, tmp_path / "named", "b")
    assert said(tmp_path / "named") == "two"


def test_tokens_that_the_result_has_not_are_named(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.warns(magmerge.MagmergeWarning, match=r"llama3 writes <\|start_header_id\|>"):
        merged(models, tmp_path / "out", "llama3")


def test_templates_with_names_are_kept(models: dict[str, Path], tmp_path: Path) -> None:
    more = models["base"] / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("{{ 'tools' }}")
    with pytest.warns(magmerge.MagmergeWarning, match="are kept as they are"):
        merged(models, tmp_path / "out", "chatml")
    read = loaded(tmp_path / "out")
    assert read.chat_template["tool_use"] == "{{ 'tools' }}"
    assert read.apply_chat_template(CHAT, tokenize=False).startswith("<|im_start|>user")
    assert magmerge.verify(tmp_path / "out").sound


def test_it_goes_with_anothers_tokenizer(models: dict[str, Path], tmp_path: Path) -> None:
    rows = len(tokenizer(models["a"], ["<|im_start|>", "<|im_end|>", "<|new|>"]))
    model(models["a"], rows, 1)
    give(models["a"], ONE)
    with pytest.warns(magmerge.MagmergeWarning):
        merged(models, tmp_path / "out", "chatml", tokenizer="a")
    assert said(tmp_path / "out").startswith("<|im_start|>user")
    assert loaded(tmp_path / "out").convert_tokens_to_ids("<|new|>") == rows - 1


def test_templates_with_names_go_with_their_tokenizer(
    models: dict[str, Path], tmp_path: Path
) -> None:
    for name, word in (("base", "search"), ("a", "tool_use")):
        (models[name] / "additional_chat_templates").mkdir()
        (models[name] / "additional_chat_templates" / f"{word}.jinja").write_text(word)
    rows = len(tokenizer(models["a"], ["<|im_start|>", "<|im_end|>", "<|new|>"]))
    model(models["a"], rows, 1)
    with pytest.warns(magmerge.MagmergeWarning):
        merged(models, tmp_path / "out", "chatml", tokenizer="a")
    folder = tmp_path / "out" / "additional_chat_templates"
    assert [path.name for path in folder.iterdir()] == ["tool_use.jinja"]
    with pytest.warns(magmerge.MagmergeWarning):
        merged(models, tmp_path / "out", None, tokenizer="base", overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["search.jinja"]


def test_an_adapters_template_counts_too(models: dict[str, Path], tmp_path: Path) -> None:
    low = tmp_path / "low"
    low.mkdir()
    adapter(low, len(load_file(models["base"] / "model.safetensors")[EMBEDDING]), 5)
    give(low, TWO)
    given = {"base": models["base"], "experts": {"low": low}, "params": {"lambda": 1}}
    for place, template in enumerate(("low", "auto")):
        out = tmp_path / f"out-{place}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            magmerge.merge(**given, chat_template=template, out=out)
        assert said(out) == "two"


def test_what_has_no_place_for_a_template_is_refused(
    models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(StructureError, match="a single file holds none") as single:
        merged(models, tmp_path / "out.safetensors", "chatml")
    assert "drop .safetensors" in single.value.remedy
    with pytest.raises(UnknownNameError, match="no chat template 'chatlm'") as misspelt:
        merged(models, tmp_path / "out", "chatlm")
    assert "chatml" in misspelt.value.remedy
    with pytest.raises(ParameterError, match="is no jinja"):
        merged(models, tmp_path / "out", "{% for %}")
    with pytest.raises(ParameterError, match="an adapter has no tokenizer"):
        merged(models, tmp_path / "out", "chatml", rank=2)
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(models["base"] / "model.safetensors"), bare)
    with pytest.raises(MagmergeError, match="has no tokenizer") as none:
        merged({**models, "base": bare}, tmp_path / "out", "chatml")
    assert "--donor" in str(none.value)
    merged({**models, "base": bare}, tmp_path / "out", "chatml", donor=models["base"])
    assert said(tmp_path / "out").startswith("<|im_start|>user")


def test_the_command_line_takes_names_and_files(
    models: dict[str, Path], tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    words = [f for name in "abc" for f in ("--expert", models[name])]
    told = ("merge", "--base", models["base"], *words)
    assert magmerge_cli(*told, "--chat-template", "chatml", tmp_path / "out").code == 0
    assert said(tmp_path / "out").startswith("<|im_start|>user")
    file = tmp_path / "own.jinja"
    file.write_text(TWO)
    assert magmerge_cli(*told, "--chat-template", file, tmp_path / "file").code == 0
    assert said(tmp_path / "file") == "two"
    again = magmerge_cli("merge", tmp_path / "file" / "magmerge.yaml", tmp_path / "again")
    assert again.code == 0, again.err
    assert said(tmp_path / "again") == "two"
