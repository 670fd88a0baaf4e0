from __future__ import annotations

import torch
from rich.console import Console

import magmerge
from magmerge.report import terminal_tables
from tests.conftest import State


def rendered(*parts: object) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for part in parts:
        console.print(part)
    return console.export_text()


def test_the_summary_says_what_the_gate_held_back(base: State, experts: list[State]) -> None:
    big = magmerge.merge(base=base, experts=experts, params={"lambda": 5.0}).state_dict()
    result = magmerge.calibrate(big, base=base, experts=experts)
    text = terminal_tables.records_summary(result.plan, result.records, merged=False)
    assert "3 calibrated, 3 carried over" in text
    assert "mean 1.000, rows from 1.000 to 1.000" in text
    assert "without the gate" in text


def test_the_summary_tells_lengths_where_a_calibrator_gives_no_factors(
    base: State, experts: list[State]
) -> None:
    result = magmerge.merge(base=base, experts=experts, method="average", calibrate="regression")
    text = terminal_tables.records_summary(result.plan, result.records, merged=True)
    ratios = [record.norm_after / record.norm_before for record in result.records]
    calibrated = [r for r, one in zip(ratios, result.records, strict=True) if one.calibrated_by]
    assert f"after by before: mean {sum(calibrated) / len(calibrated):.3f}" in text
    assert f"layers from {min(calibrated):.3f} to {max(calibrated):.3f}" in text
    assert "xi on" not in text


def test_the_plan_counts_actions_and_sizes(base: State, experts: list[State]) -> None:
    plan = magmerge.plan(base=base, experts=experts, calibrate="wsc")
    text = rendered(terminal_tables.plan_table(plan), terminal_tables.plan_summary(plan))
    assert "6 tensors: merged 6; calibrated 3" in text
    assert "layers.0.conv.weight" in text
    assert "32x6x5" in text


def test_long_names_are_folded_not_cut() -> None:
    info = magmerge.inspect({"x" * 300: torch.ones(1)})
    assert rendered(terminal_tables.checkpoint_table(info)).count("x") >= 300
