"""Templates of chats: those with names say what their authors publish, and files are hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magmerge.checkpoints.tokens.chat_template import (
    JINJA,
    PROCESSOR,
    check_syntax,
    lacks,
    named_templates,
    template_of,
    with_template,
)
from magmerge.checkpoints.tokens.vocabulary import SETTINGS
from magmerge.core.errors import CheckpointError, ParameterError

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
]
ALPACA = "### Instruction:\nOne?\n\n### Response:\nTwo.</s>\n\n### Instruction:\nThree?\n\n"
TASK = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request."
)
CURIOUS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
TURNS = (
    "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n"
    "<|im_start|>user\nThree?<|im_end|>\n<|im_start|>assistant\n"
)
LLAMA3 = (
    "<|start_header_id|>user<|end_header_id|>\n\nOne?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nTwo.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nThree?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
EXPECTED: dict[str, tuple[str, str]] = {
    "alpaca": (f"Be brief.\n\n{ALPACA}### Response:\n", f"{TASK}\n\n{ALPACA}### Response:\n"),
    "chatml": (f"<|im_start|>system\nBe brief.<|im_end|>\n{TURNS}", TURNS),
    "exaone": (
        "[|system|]Be brief.[|endofturn|]\n[|user|]One?\n[|assistant|]Two.[|endofturn|]\n"
        "[|user|]Three?\n[|assistant|]",
        "[|user|]One?\n[|assistant|]Two.[|endofturn|]\n[|user|]Three?\n[|assistant|]",
    ),
    "gemma": (
        "<s><start_of_turn>user\nBe brief.\n\nOne?<end_of_turn>\n<start_of_turn>model\nTwo."
        "<end_of_turn>\n<start_of_turn>user\nThree?<end_of_turn>\n<start_of_turn>model\n",
        "<s><start_of_turn>user\nOne?<end_of_turn>\n<start_of_turn>model\nTwo."
        "<end_of_turn>\n<start_of_turn>user\nThree?<end_of_turn>\n<start_of_turn>model\n",
    ),
    "llama2": (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nOne? [/INST] Two. </s><s>[INST] Three? [/INST]",
        "<s>[INST] One? [/INST] Two. </s><s>[INST] Three? [/INST]",
    ),
    "llama3": (
        f"<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>{LLAMA3}",
        f"<s>{LLAMA3}",
    ),
    "mistral": (
        "<s>[INST] Be brief.\n\nOne? [/INST] Two.</s>[INST] Three? [/INST]",
        "<s>[INST] One? [/INST] Two.</s>[INST] Three? [/INST]",
    ),
    "phi3": (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nOne?<|end|>\n<|assistant|>\nTwo.<|end|>\n"
        "<|user|>\nThree?<|end|>\n<|assistant|>\n",
        "<|user|>\nOne?<|end|>\n<|assistant|>\nTwo.<|end|>\n<|user|>\nThree?<|end|>\n"
        "<|assistant|>\n",
    ),
    "qwen": (
        f"<|im_start|>system\nBe brief.<|im_end|>\n{TURNS}",
        f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{TURNS}",
    ),
    "vicuna": (
        "Be brief. USER: One? ASSISTANT: Two.</s>USER: Three? ASSISTANT:",
        f"{CURIOUS} USER: One? ASSISTANT: Two.</s>USER: Three? ASSISTANT:",
    ),
    "zephyr": (
        "<|system|>\nBe brief.</s>\n<|user|>\nOne?</s>\n<|assistant|>\nTwo.</s>\n<|user|>\nThree?"
        "</s>\n<|assistant|>\n",
        "<|user|>\nOne?</s>\n<|assistant|>\nTwo.</s>\n<|user|>\nThree?</s>\n<|assistant|>\n",
    ),
}


def rendered(text: str, messages: list[dict[str, str]], *, trim: bool = True) -> str:
    """What transformers' environment makes of it, or with `trim` off one that takes no space."""
    sandbox = pytest.importorskip("jinja2.sandbox")
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=trim, lstrip_blocks=trim)
    told = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    whole: str = environment.from_string(text).render(messages=messages, **told)
    return whole


def test_every_template_has_its_conversation_here() -> None:
    assert set(EXPECTED) == set(named_templates())


@pytest.mark.parametrize("name", EXPECTED)
def test_a_conversation_is_written_as_the_models_authors_publish(name: str) -> None:
    text = named_templates()[name].text
    assert rendered(text, CHAT) == EXPECTED[name][0]
    assert rendered(text, CHAT[1:]) == EXPECTED[name][1]
    assert rendered(text, CHAT, trim=False) == EXPECTED[name][0]
    assert check_syntax(text)


@pytest.mark.parametrize("name", EXPECTED)
def test_its_tokens_are_those_that_it_writes(name: str) -> None:
    template = named_templates()[name]
    roles = [*CHAT, {"role": "assistant", "content": "Four."}]
    assert all(token in rendered(template.text, roles) for token in template.tokens)
    assert lacks({}, template.tokens) == list(template.tokens)
    assert lacks({SETTINGS: json.dumps(template.tokens).encode()}, template.tokens) == []


def test_transformers_own_tags_are_no_mistake() -> None:
    text = (
        "{% for m in messages %}{% generation %}{{ m }}{% endgeneration %}{% break %}{% endfor %}"
    )
    assert check_syntax(text)
    with pytest.raises(ParameterError, match="line 2") as caught:
        check_syntax("{{ a }}\n{% for %}")
    assert "chatml" in caught.value.remedy


def test_a_template_is_parsed_and_never_run() -> None:
    check_syntax("{{ ''.__class__.__mro__[1].__subclasses__() }}{{ range(10**12) | list }}")


NAMED = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]


@pytest.mark.parametrize(
    ("files", "own"),
    [
        ({}, None),
        ({JINJA: "j", SETTINGS: json.dumps({"chat_template": "s"})}, "j"),
        ({SETTINGS: json.dumps({"chat_template": "s", "a": 1})}, "s"),
        ({SETTINGS: json.dumps({"chat_template": NAMED})}, "d"),
        ({SETTINGS: json.dumps({"chat_template": NAMED[1:]})}, None),
        ({PROCESSOR: json.dumps({"chat_template": "p"})}, "p"),
        ({SETTINGS: json.dumps({"chat_template": 3})}, None),
    ],
)
def test_a_folders_template_is_read_and_replaced_where_transformers_looks(
    files: dict[str, str], own: str | None
) -> None:
    contents = {name: text.encode() for name, text in files.items()}
    assert template_of(contents, Path()) == own
    texts = with_template(contents, "new", Path())
    after = {name: text for name, text in {**contents, **texts}.items() if text is not None}
    assert template_of(after, Path()) == "new"
    assert PROCESSOR not in after
    kept = json.loads(after.get(SETTINGS, b"{}"))
    assert kept.get("a") == json.loads(files.get(SETTINGS, "{}")).get("a")
    if "tool_use" in files.get(SETTINGS, ""):
        # What is in a list is only looked at where no file of its own is there.
        assert JINJA not in after
        assert NAMED[1] in kept["chat_template"]
    else:
        assert "chat_template" not in kept


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["chat_template", "name", "template", "x"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(settings_=JSON, processor=JSON, raw=st.binary(max_size=6))
def test_fuzz_any_files_have_a_template_or_none(settings_: Any, processor: Any, raw: bytes) -> None:
    contents = {SETTINGS: json.dumps(settings_).encode(), PROCESSOR: json.dumps(processor).encode()}
    text = template_of(contents, Path())
    assert text is None or isinstance(text, str)
    after = {**contents, **with_template(contents, "new", Path())}
    assert template_of({n: t for n, t in after.items() if t is not None}, Path()) == "new"
    assert isinstance(template_of({JINJA: raw}, Path()), str)
    try:
        template_of({SETTINGS: raw}, Path())
    except CheckpointError as error:
        assert error.remedy


@settings(max_examples=200, deadline=None)
@given(text=st.text("{}%# abfori(n)|'.\n", max_size=30))
def test_fuzz_any_text_is_jinja_or_refused(text: str) -> None:
    try:
        check_syntax(text)
    except ParameterError as error:
        assert error.remedy
