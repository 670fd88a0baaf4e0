"""Whether a calibration helped: what is measured, what is said, and what is kept."""

from __future__ import annotations

import copy
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import magmerge
from magmerge.core.errors import MagmergeError, ParameterError
from magmerge.engine.job import Findings
from magmerge.engine.keep_best import best_of
from magmerge.engine.norm_verdict import norm_verdict
from magmerge.live.label_free import MEASURES
from magmerge.live.verdict import Seen, verdict_of
from magmerge.report.account import VerdictAccount
from magmerge.report.verdict_text import headline
from tests.live.test_checking import checked, halfway
from tests.live.test_compound import family
from tests.live.test_exactness import merged_by
from tests.live.test_running import IDS, bert, folders, llama, texts


def verdict(result: magmerge.Result) -> dict[str, Any]:
    found: dict[str, Any] = result.account.extra["verdict"]
    return found


def measured(kl: list[float], losses: list[float] | None = None) -> Seen:
    """Rows of these divergences, and of these losses over ten tokens each."""
    rows = torch.full((len(kl), len(MEASURES)), torch.nan, dtype=torch.float64)
    rows[:, MEASURES.index("kl")] = torch.tensor(kl)
    tokens = torch.zeros(len(kl), 2, dtype=torch.float64)
    if losses is not None:
        tokens = torch.tensor([[10 * loss, 10] for loss in losses], dtype=torch.float64)
    return Seen(rows, tokens)


def told(base: list[float], merge: list[float], calibrated: list[float]) -> dict[str, Any]:
    seen = {"base": measured(base), "merge": measured(merge), "calibrated": measured(calibrated)}
    return verdict_of({**seen, "expert": measured([0.0] * len(base))}, {"a": 2, "b": 2})


def test_perplexity_is_that_of_the_models_on_the_rows_kept_aside() -> None:
    base = llama()
    experts = family(base)
    result = checked(base, experts, data=texts(experts))
    merged = copy.deepcopy(base)
    merged.load_state_dict(checked(base, experts, calibrate=None, data=None).state_dict())
    models = {"base": base, "merge": merged.eval()}
    for name, model in models.items():
        total, count = 0.0, 0
        for (call,) in halfway(experts, 1).values():
            with torch.no_grad():
                logits = model(**call).logits.double()
            for row, ids in zip(logits, call["input_ids"], strict=True):
                told = row[:-1].log_softmax(-1).gather(-1, ids[1:, None])
                total, count = total - float(told.sum()), count + len(told)
        own = verdict(result)["models"][name]["perplexity"]
        assert own == pytest.approx(math.exp(total / count), rel=1e-5)
    assert verdict(result)["models"]["expert"]["perplexity"] > 0
    assert verdict(result)["rows"] == dict.fromkeys(experts, 2)
    before = result.account.extra["check"]["before"]
    assert verdict(result)["models"]["merge"]["kl"] == pytest.approx(before, rel=1e-5)


def test_a_model_without_logits_is_judged_by_the_cosine() -> None:
    base = bert()
    experts = family(base)
    found = verdict(checked(base, experts, data=texts(experts)))
    assert found["judge"] == "cosine"
    assert "perplexity" not in found["models"]["merge"]
    # Nothing of the base has changed.
    assert found["models"]["base"]["norm ratio"] == 0


@pytest.mark.parametrize(
    ("values", "best", "words"),
    [
        (([4, 4.1, 4, 4], [2, 2.1, 2, 2], [1, 1.1, 1, 1]), "calibrated", "better than the merge"),
        (([4, 4.1, 4, 4], [1, 1.1, 1, 1], [2, 2.1, 2, 2]), "merge", "worse than the merge"),
        (([1, 1.1, 1, 1], [4, 4.1, 4, 4], [2, 2.1, 2, 2]), "base", "worse than the base"),
        (([4, 4.1, 4, 4], [2, 2, 2, 2], [1, 3, 1.5, 2.5]), "calibrated", "about as good"),
        (([4, 4, 4, 4], [2, 2, 2, 2], [1.999] * 4), "calibrated", "about as good as the merge"),
        (([4, 4, 4, 4], [2, 2, 2, 2], [math.inf, 1, 1, 1]), "merge", "worse than the merge"),
    ],
)
def test_what_is_worse_is_said_and_the_better_one_offered(
    values: tuple[list[float], ...], best: str, words: str
) -> None:
    found = told(*values)
    assert found["best"] == best
    assert words in found["text"]
    assert bool(found["notes"]) == (best != "calibrated")
    json.dumps(found, allow_nan=False)


def test_perplexity_judges_where_the_experts_are_better_at_it() -> None:
    rows = {"a": 1, "b": 1}
    seen = {
        "base": measured([1, 1], [3, 3]), "merge": measured([1, 1], [2, 2.1]),
        "calibrated": measured([2, 2], [1.5, 1.6]), "expert": measured([0, 0], [1, 1]),
    }  # fmt: skip
    assert verdict_of(seen, rows)["judge"] == "perplexity"
    assert verdict_of(seen, rows)["best"] == "calibrated"
    seen["expert"] = measured([0, 0], [4, 4])
    assert verdict_of(seen, rows)["judge"] == "kl"
    assert verdict_of(seen, rows)["best"] == "merge"


def test_a_row_that_the_calibration_has_seen_is_told() -> None:
    base = bert()
    experts = family(base)
    data = {name: [{"input_ids": IDS[:1]}] for name in experts}
    assert "is in the calibration too" in verdict(checked(base, experts, data=data))["text"]


def lines(path: Path, count: int) -> Path:
    """A file of ready inputs, the first rows of which a draw takes in an order of its own."""
    torch.manual_seed(3)
    from safetensors.torch import save_file

    save_file({"input_ids": torch.randint(0, 40, (count, 6))}, path)
    return path


@pytest.mark.parametrize("calibrator", ["regmean", {"method": "fsc", "params": {"check": "off"}}])
def test_without_a_check_further_rows_are_looked_at_and_no_bit_changes(
    tmp_path: Path, calibrator: Any
) -> None:
    base, experts = folders(tmp_path, llama(), family(llama()))
    few = {name: lines(tmp_path / f"{name}.safetensors", 4) for name in experts}
    settings = {"calibrate": calibrator, "samples": 4}
    alone = merged_by(base, experts, data=few, **settings)
    assert "no source has further rows that can be read" in verdict(alone)["text"]
    assert "models" not in verdict(alone)
    # The same rows are drawn of in-memory copies, so that only the further rows differ.
    more = {name: lines(tmp_path / f"{name}-more.safetensors", 12) for name in experts}
    found = merged_by(base, experts, data=more, **settings)
    assert verdict(found)["rows"] == dict.fromkeys(experts, 8)
    order = magmerge.data.draw.drawing_order
    drawn = {
        name: [{"input_ids": load_file(path)["input_ids"][order(0, name, 12)[:4].copy()]}]
        for name, path in more.items()
    }
    same = merged_by(base, experts, data=drawn, **settings)
    for name, tensor in same.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name])


def test_what_is_left_out_takes_its_statistics_along() -> None:
    found = Findings(statistics={"bn.running_mean": torch.ones(2)}, verdict={"best": "merge"})
    kept = best_of(found)
    assert kept.left_out
    assert not kept.statistics


def test_keep_best_leaves_a_worse_calibration_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from magmerge.live import estimation

    base, experts = folders(tmp_path, llama(), family(llama()))
    common: dict[str, Any] = {"data": texts(experts), "calibrate": "fsc", "method": "average"}
    real = estimation.verdict_of
    monkeypatch.setattr(estimation, "verdict_of", lambda *a: {**real(*a), "best": "merge"})
    kept = checked(base, experts, keep_best=True, **common)
    plain = checked(base, experts, calibrate=None, method="average")
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, kept.state_dict()[name])
    assert not any(record.calibrated_by for record in kept.records)
    monkeypatch.setattr(estimation, "verdict_of", lambda *a: {**real(*a), "best": "base"})
    with pytest.raises(MagmergeError, match="nothing was written"):
        checked(base, experts, keep_best=True, out=tmp_path / "out", **common)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ParameterError, match=r"(?s)only a calibration from samples.*keep-best"):
        magmerge.merge(base=base, experts=experts, calibrate="wsc", keep_best=True)


def test_by_weights_alone_lengths_are_told_with_a_conclusion(tmp_path: Path) -> None:
    base, experts = folders(tmp_path, llama(), family(llama(), 3))
    out = tmp_path / "out"
    result = merged_by(base, experts, calibrate="wsc", gate="on", out=out)
    found = verdict(result)
    assert found["judge"] == "norms"
    records = [record for record in result.records if record.calibrated_by]
    for end, key in (("norm_before", "before"), ("norm_after", "after")):
        logs = [math.log(getattr(r, end) / r.norm_experts) for r in records]
        assert found[key] == pytest.approx(math.exp(sum(logs) / len(logs)), rel=1e-6)
    assert found["before"] < 0.7
    assert found["after"] > 0.9
    assert found["nearer"] == len(records)
    record = json.loads((out / "magmerge.json").read_text())
    assert record["verdict"] == json.loads(json.dumps(found))
    assert "Did it help?" in (out / "README.md").read_text()
    assert "came nearer to 1" in (out / "report.html").read_text()
    away = [
        type(r)(**{**{n: getattr(r, n) for n in r.__slots__}, "norm_after": 9 * r.norm_after})
        for r in records
    ]
    assert norm_verdict(away)["best"] == "merge"
    assert found["calibrated_to"] == {"merge": "better"}
    for factor in (0.999, 1.0, 1.001):
        same = [
            type(r)(
                **{
                    **{n: getattr(r, n) for n in r.__slots__},
                    "norm_after": factor * r.norm_before,
                }
            )
            for r in records
        ]
        told = headline(VerdictAccount.model_validate(norm_verdict(same)))
        assert told.startswith("Lengths are about as they were")
    assert norm_verdict([]) == {}


def test_the_verdict_is_one_line_of_the_terminal(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from magmerge.cli.typer_program import program_with

    base, experts = folders(tmp_path, llama(), family(llama()))
    words = ["merge", str(tmp_path / "out"), "--base", str(base), "--calibrate", "fsc"]
    for name, path in experts.items():
        data = lines(tmp_path / f"{name}.safetensors", 4)
        words += ["--expert", f"{name}={path}", "--data", f"{name}={data}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = CliRunner().invoke(program_with(words[:1]), [*words, "--samples", "4"])
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.output.splitlines() if line.strip().startswith("verdict:")]
    assert "n 4 held-out rows of 2 experts" in line
