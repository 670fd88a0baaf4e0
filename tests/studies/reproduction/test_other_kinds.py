"""The whole path in small for pipelines of text: encoders with heads, and language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from examples.tiny import write_tiny
from tests.studies.reproduction.test_reproduce import small

import magmerge
from magmerge.core.errors import ParameterError

# Small experts are less orthogonal than published ones, and magmerge says so.
pytestmark = pytest.mark.filterwarnings("ignore::magmerge.MagmergeWarning")


@pytest.mark.slow
def test_text_experts_keep_their_heads(tmp_path: Path) -> None:
    write_tiny("bert", tmp_path / "tiny")
    found = small(
        "bert", tmp_path / "tiny", out=tmp_path / "run", methods=["average"],
        spaces=["none", "fsc"], alpha=2,
    )  # fmt: skip
    assert found.tasks == ("ag_news", "rotten_tomatoes", "cola", "cola-accuracy", "sms_spam")
    scores = {row.model: row.mean.mean for row in found.rows if row.mean is not None}
    assert scores["experts"] > 0.8 > scores["zero-shot"]


@pytest.mark.slow
def test_encoders_without_a_pooler_are_measured(tmp_path: Path) -> None:
    tasks = ["cola", "rte", "stsb"]
    write_tiny("glue", tmp_path / "tiny", tasks)
    found = small(
        "glue", tmp_path / "tiny", out=tmp_path / "run", tasks=tasks, methods=["average"],
        spaces=["none"],
    )  # fmt: skip
    assert {"stsb", "stsb-spearman"} <= set(found.tasks)
    assert found.rows[1].mean is not None


@pytest.mark.slow
def test_language_models_are_measured_by_the_harness(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    tiny, run = tmp_path / "tiny", tmp_path / "run"
    options: dict[str, Any] = {"methods": ["average"], "spaces": ["none", "fsc"], "alpha": 0}
    write_tiny("llama", tiny)
    with pytest.raises(ParameterError, match="can run code"):
        small("llama", tiny, out=run, **options)
    found = small("llama", tiny, out=run, allow_code=True, **options)
    rows = {row.model: row for row in found.rows}
    assert rows["experts"].mean.mean > rows["zero-shot"].mean.mean
    assert set(rows) == {"zero-shot", "experts", "average", "average+fsc"}
    with pytest.raises(ParameterError, match="controls are tensors in memory"):
        magmerge.reproduce("llama", run, spaces=["global"])
