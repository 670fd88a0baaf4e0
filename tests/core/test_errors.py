from __future__ import annotations

from magmerge.core import errors
from magmerge.core.errors import MagmergeError, StructureError, printable, suggestion


def test_every_error_is_of_one_tree() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert all(issubclass(c, MagmergeError | UserWarning) for c in classes)


def test_a_message_names_tensor_source_and_remedy() -> None:
    text = str(MagmergeError("broken", source="f.bin", tensor="w", remedy="mend it"))
    assert text == "tensor w in f.bin: broken\n  remedy: mend it"


def test_names_from_files_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b[31mb\x07") == "a\\x1b[31mb\\x07"
    assert "\x1b" not in str(StructureError(["\x1b]0;owned"]))
    assert "\x1b" not in str(MagmergeError("x", tensor="\x1b[2J"))


def test_suggestions_are_near_or_all() -> None:
    assert suggestion("densty", ["density", "lambda"]) == "did you mean density?"
    assert suggestion("zzz", ["b", "a"]) == "known: a, b"
