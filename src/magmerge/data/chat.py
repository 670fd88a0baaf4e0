"""Conversations in a row of data, and the text that a tokenizer's chat template makes of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from magmerge.data.rows import Chat, DataError
from magmerge.data.sample_table import SampleRow

MESSAGES = "messages"
PAIR = ("prompt", "completion")
ROLES = ("user", "assistant")
"""Who says the two parts of a pair."""
JOINED = "\n"
"""What stands between columns that are one text."""


def chat_fields(columns: Mapping[str, str]) -> tuple[str, ...] | None:
    """The columns that hold a conversation: `messages`, or `prompt` and `completion`."""
    if MESSAGES in columns:
        return (MESSAGES,)
    return PAIR if all(name in columns for name in PAIR) else None


def chat_of(row: SampleRow, fields: Sequence[str], source: str) -> Chat | None:
    """The conversation in these columns of a row; None where there is nothing in them.

    A part may be a text, or messages with `role` and `content`, as the chat template takes them.
    DataError where it is neither.
    """
    turns: list[Mapping[str, Any]] = []
    for place, field in enumerate(fields):
        value = row.values.get(field)
        if isinstance(value, str) and fields == PAIR:
            turns += [{"role": ROLES[place], "content": value}] if value.strip() else []
        elif _are_messages(value):
            turns += [dict(turn) for turn in value or ()]
        elif value is not None:
            raise DataError(
                f"{row.place}: column {field!r} holds no conversation",
                source=source,
                remedy='write [{"role": "user", "content": "..."}, ...], or name a column of texts '
                "with --text-field (text_field=)",
            )
    return Chat(tuple(turns)) if turns else None


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(
            isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and "content" in turn
            for turn in value
        )
    )


def asked(chat: Chat) -> Chat:
    """The conversation without the answers that it ends with: what a model is asked."""
    turns = list(chat.messages)
    while len(turns) > 1 and turns[-1]["role"] == ROLES[1]:
        turns.pop()
    return Chat(tuple(turns))


def chat_texts(chats: Sequence[Chat], tokenizer: Any, source: str, **template: Any) -> list[str]:
    """Each conversation as one text, by the tokenizer's own chat template, which takes further
    keywords (add_generation_prompt); DataError where there is none, or where it refuses one.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "these are conversations, and the model's tokenizer has no chat template",
            source=source,
            remedy="save the tokenizer with one in the base's folder, or join columns as plain "
            f"texts: --text-field {','.join(PAIR)}",
        )
    texts = []
    for place, chat in enumerate(chats, start=1):
        try:
            text = tokenizer.apply_chat_template(
                [*map(dict, chat.messages)], tokenize=False, **template
            )
        except Exception as error:
            # A template is a program of the tokenizer's author, which may raise anything.
            raise DataError(
                f"the tokenizer's chat template refuses conversation {place} of the draw: {error}",
                source=source,
                remedy="see which roles and what order the template takes",
            ) from error
        texts.append(str(text))
    return texts
