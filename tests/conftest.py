"""Small models for the tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]


class Outcome:
    """What a call of the command line gave."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def message(self) -> str:
        """Its messages as one line, however they were wrapped."""
        return " ".join(self.err.split())


CommandLine = Callable[..., Outcome]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """The command line in this process, as its users meet it."""
    from magmerge.cli import main

    before, sys.argv = sys.argv, ["magmerge", *map(str, arguments)]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    # No line's end is written out as two characters, but in JSON.
    assert "--json" in arguments or "\\n" not in captured.out + captured.err
    return Outcome(code, captured.out, captured.err)


@pytest.fixture
def magmerge_cli(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Calls the command line."""
    return lambda *arguments: call(capsys, *arguments)


def pytest_configure(config: pytest.Config) -> None:
    # Not in pyproject.toml, whose reading would import magmerge before jaxtyping can watch it.
    config.addinivalue_line("filterwarnings", "error::magmerge.core.errors.MagmergeWarning")
    # Random models stand for fine-tunes in most tests.
    told = (
        "nothing in common with the base",
        "far from the base",
        "task vectors on the base",
        "are named otherwise",
        "no vote on the rest",
        "no licence is told by",
        "a factor above 10 was found",
        "is the better one",
    )
    for words in told:
        line = f"ignore:.*{words}:magmerge.core.errors.MagmergeWarning"
        config.addinivalue_line("filterwarnings", line)


SHAPES: Shapes = {
    "embed_tokens.weight": (11, 24),
    "layers.0.attn.weight": (24, 24),
    "layers.0.mlp.weight": (48, 24),
    "layers.0.conv.weight": (32, 6, 5),
    "layers.0.norm.weight": (24,),
    "lm_head.weight": (11, 24),
}


def random_state(
    seed: int, shapes: Shapes | None = None, dtype: torch.dtype = torch.float32
) -> State:
    """Normal entries, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).to(dtype)
        for name, shape in (SHAPES if shapes is None else shapes).items()
    }


def tuned(base: State, seed: int, size: float = 0.1) -> State:
    """`base` with a random task vector on every floating-point tensor."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return {
        name: tensor + (size * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in base.items()
    }


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def base() -> State:
    return random_state(0)


@pytest.fixture
def experts(base: State) -> list[State]:
    return [tuned(base, seed) for seed in range(3)]


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str, State], Path]:
    """Writes a state as a model folder and gives its path."""

    def write(name: str, state: State) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text('{"model_type": "tiny", "dtype": "float32"}')
        (folder / "tokenizer.json").write_text("{}")
        return folder

    return write


@pytest.fixture
def folders(save: Callable[[str, State], Path], base: State, experts: list[State]) -> list[Path]:
    """A base folder and three expert folders."""
    return [save("base", base), *(save(f"expert{i}", state) for i, state in enumerate(experts))]
