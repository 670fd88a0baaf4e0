"""Models as people write them: paths, names of the hub, and adapters on models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magmerge.core.errors import CheckpointError, MagmergeError
from magmerge.core.model_strings import Part, parse, short_name

NONE = lambda _: False  # noqa: E731 - no path exists


@pytest.mark.parametrize(
    ("text", "model", "adapter"),
    [
        ("org/name", Part("org/name", None, True), None),
        ("org/name@v1.0", Part("org/name", "v1.0", True), None),
        ("org/name@refs/pr/1", Part("org/name", "refs/pr/1", True), None),
        ("org/a+org/b", Part("org/a", None, True), Part("org/b", None, True)),
        ("org/a@x+org/b@y", Part("org/a", "x", True), Part("org/b", "y", True)),
    ],
)
def test_names_of_the_hub(text: str, model: Part, adapter: Part | None) -> None:
    assert parse(text, NONE) == (model, adapter)
    assert str(parse(text, NONE)) == text


@pytest.mark.parametrize("name", ["a+b", "a@b", "org/x@main", "x+y@1+z", "m=0.5", "a b", "+", "@"])
def test_a_path_that_exists_is_that_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    assert parse(name) == (Part(name), None)
    assert parse(str(tmp_path / name)) == (Part(str(tmp_path / name)), None)


def test_paths_with_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("base", "lo+ra", "c++"):
        (tmp_path / name).mkdir()
    assert parse("base+lo+ra") == (Part("base"), Part("lo+ra"))
    assert parse("c+++lo+ra") == (Part("c++"), Part("lo+ra"))
    assert parse("base+org/lora@2") == (Part("base"), Part("org/lora", "2", True))
    assert parse("org/base+lo+ra") == (Part("org/base", None, True), Part("lo+ra"))
    assert short_name("base+org/lora@2") == "base+lora"
    assert short_name("org/base@2") == "base"
    assert short_name("lost/thing.safetensors") == "thing.safetensors"


def test_what_may_be_two_things_is_refused_and_the_remedy_tells_them_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b+c", "a+b", "c"):
        (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match="a with b\\+c or a\\+b with c") as caught:
        parse("a+b+c")
    first, second = (caught.value.remedy or "").partition(": ")[2].split(" or ")
    assert parse(first) == (Part(f"{tmp_path}/a"), Part(f"{tmp_path}/b+c"))
    assert parse(second) == (Part(f"{tmp_path}/a+b"), Part(f"{tmp_path}/c"))


def test_a_lost_path_is_not_sought_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llama").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no such file") as caught:
        parse("models/lama")
    assert "did you mean llama" in (caught.value.remedy or "")
    assert "write models/lama@main" in (caught.value.remedy or "")
    assert parse("models/lama@main").model == Part("models/lama", "main", True)
    for text in ("./org/name", "/org/name", "a/b/c", "lost/x.safetensors", "name", "org/na--me"):
        with pytest.raises(CheckpointError, match="no such file"):
            parse(text)
    with pytest.raises(CheckpointError, match="no revisions") as caught:
        parse("models/llama@v1")
    assert "write models/llama" in (caught.value.remedy or "")
    with pytest.raises(CheckpointError, match="no revisions"):
        parse("models@v1")


def test_the_side_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(CheckpointError, match="the adapter '/lost' in it"):
        parse(f"{tmp_path}/base+/lost")
    with pytest.raises(CheckpointError, match="the model '/lost' in it"):
        parse("/lost+org/lora")
    with pytest.raises(CheckpointError, match="no such model and no such adapter"):
        parse("/lost+/gone")
    with pytest.raises(CheckpointError, match="the adapter '' in it"):
        parse(f"{tmp_path}/base+")


PIECES = st.sampled_from(
    ["org/name", "a", "@", "+", "main", "/", "..", "--", ".bin", "\0", "é", " "]
)
TEXTS = st.text() | st.lists(PIECES, max_size=8).map("".join)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS, st.sets(st.sampled_from(["a", "org/name", "org", "a+a", "main", "a@main"])))
def test_any_text_is_read_or_refused(text: str, here: set[str]) -> None:
    try:
        parsed = parse(text, here.__contains__)
    except MagmergeError as error:
        assert error.remedy
        return
    assert str(parsed) == text
    assert parse(str(parsed), here.__contains__) == parsed
    for part in parsed.parts:
        assert part.on_hub != (part.place in here)
        assert part.on_hub or part.revision is None


def test_it_needs_no_torch() -> None:
    code = "import sys, magmerge.core.model_strings; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
