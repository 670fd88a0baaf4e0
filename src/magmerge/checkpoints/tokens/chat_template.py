"""The template of chats of a model's folder: where it is read from, and how another one is put.

A template is data here: it is parsed, and never run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from magmerge.checkpoints.donor import VOCABULARIES
from magmerge.checkpoints.open_files import read_errors
from magmerge.checkpoints.tokens.vocabulary import ADDED, SETTINGS
from magmerge.core.errors import CheckpointError, ParameterError

JINJA, PROCESSOR = "chat_template.jinja", "chat_template.json"
"""The file that transformers reads before any other, and that of older processors."""
KEY, DEFAULT = "chat_template", "default"
OPENINGS = ("{{", "{%", "{#")
"""What is in a template's text, and in no name."""

Texts = dict[str, bytes | None]


class Template(NamedTuple):
    """A template with the special tokens that it writes, as far as they are known."""

    text: str
    tokens: tuple[str, ...] = ()


@cache
def named_templates() -> dict[str, Template]:
    """The templates of the table beside this file, by their names."""
    table = yaml.safe_load(Path(__file__).with_name("chat_templates.yaml").read_text("utf-8"))
    return {name: Template(own["text"], tuple(own["tokens"])) for name, own in table.items()}


def contents_of(folder: Path, texts: Mapping[str, bytes | None]) -> dict[str, bytes]:
    """The files of a folder that tell tokens and templates, with `texts` in their place."""
    contents = {}
    for name in (JINJA, PROCESSOR, SETTINGS, ADDED, *VOCABULARIES):
        if name in texts:
            text = texts[name]
        else:
            path = folder / name
            with read_errors(path):
                text = path.read_bytes() if path.is_file() else None
        if text is not None:
            contents[name] = text
    return contents


def template_of(contents: Mapping[str, bytes], source: Path) -> str | None:
    """The template that transformers would use of these files; None where there is none."""
    if JINJA in contents:
        return contents[JINJA].decode(errors="replace")
    for name in (SETTINGS, PROCESSOR):
        told = _json(contents.get(name, b"{}"), source / name).get(KEY)
        if isinstance(told, str):
            return told
        if isinstance(told, list):
            return next((own["template"] for own in told if _is_default(own)), None)
    return None


def with_template(contents: Mapping[str, bytes], template: str, source: Path) -> Texts:
    """What becomes of these files with another template, where transformers looks first; nothing
    is left that says another. Further ones that have names of their own stay.
    """
    texts: Texts = {JINJA: template.encode()}
    settings = _json(contents.get(SETTINGS, b"{}"), source / SETTINGS)
    told = settings.get(KEY)
    if isinstance(told, list):
        # Beside a file of its own transformers would not look at those with names.
        others = [own for own in told if not _is_default(own)]
        settings[KEY] = [{"name": DEFAULT, "template": template}, *others]
        texts = {JINJA: None}
    else:
        settings.pop(KEY, None)
    if told is not None:
        texts[SETTINGS] = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    if PROCESSOR in contents:
        texts[PROCESSOR] = None
    return texts


def check_syntax(template: str) -> bool:
    """Whether it could be checked, for which jinja2 is needed; ParameterError where it is wrong."""
    try:
        from jinja2 import TemplateSyntaxError
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        return False

    class Generation(Extension):
        """transformers' own tag, around what the model says."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        ImmutableSandboxedEnvironment(extensions=[Generation, loopcontrols]).parse(template)
    except (TemplateSyntaxError, RecursionError, OverflowError, MemoryError) as error:
        place = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
        raise ParameterError(
            f"the chat template is no jinja: {place}{error}",
            remedy="mend it, or name one: "
            f"{', '.join(named_templates())}, auto, or an expert's name",
        ) from error
    return True


def lacks(contents: Mapping[str, bytes], tokens: tuple[str, ...]) -> list[str]:
    """Those of the tokens that no file of a tokenizer names."""
    said = [text for name, text in contents.items() if name not in (JINJA, PROCESSOR)]
    return [token for token in tokens if not any(token.encode() in text for text in said)]


def _is_default(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and entry.get("name") == DEFAULT
        and isinstance(entry.get("template"), str)
    )


def _json(text: bytes, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"cannot be read: {error}", source=path, remedy="restore or remove this file"
        ) from error
    return content if isinstance(content, dict) else {}
