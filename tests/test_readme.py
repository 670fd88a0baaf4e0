"""README says what is so, on one page."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_one_page() -> None:
    assert len(README.encode()) <= 9_000
    assert len(README.splitlines()) <= 170


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_the_demo_rows_are_quoted_as_they_are_printed(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for row in ("base", "experts", "task_arithmetic", "  + wsc", "ties", "  + fsc", "tsv_m"):
        assert re.search(rf"^{re.escape(row)} +\d\d\.\d", text, re.MULTILINE)


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draws = torch.Generator().manual_seed(0)
    for name in ("B", "E1", "E2"):
        Path(name).mkdir()
        layer = {"layer.weight": torch.randn(8, 8, generator=draws)}
        save_file(layer, f"{name}/model.safetensors", {"format": "pt"})
    (code,) = (part.partition("```")[0] for part in README.split("```python\n")[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random numbers are no experts of one base
        exec(code, {})
    assert Path("OUT/model.safetensors").is_file()
