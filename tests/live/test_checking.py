"""FSC and DSC check themselves on samples kept aside, and keep what brings the model nearer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import magmerge
from magmerge.core.errors import ParameterError
from magmerge.core.recipe import Recipe
from magmerge.core.validation import check_calibrations
from magmerge.engine.findings import packed, unpacked
from magmerge.engine.job import Findings
from magmerge.live import checking
from magmerge.live.checking import HeldRows
from magmerge.live.label_free import MEASURES
from magmerge.live.share_search import GROUPS, VOID, groups_of, losses_of, search
from tests.live.test_compound import family, records_of
from tests.live.test_exactness import PLAIN, merged_by
from tests.live.test_running import IDS, bert, folders, llama, texts
from tests.quick import slow


def checked(base: Any, experts: Any, **settings: Any) -> magmerge.Result:
    return merged_by(base, experts, **{"calibrate": "fsc", "gate": "on", **settings})


def account(result: magmerge.Result) -> dict[str, Any]:
    found: dict[str, Any] = result.account.extra["check"]
    return found


def halfway(experts: Any, first: int) -> dict[str, Any]:
    """The rows of every expert that are estimated from, or those kept aside."""
    return {
        name: [{"input_ids": call["input_ids"][first::2]}]
        for name, (call,) in texts(experts).items()
    }


@pytest.mark.parametrize(
    ("count", "order"), [(1, "once"), (3, "once"), slow(1, "forward"), slow(3, "forward")]
)
def test_what_is_kept_is_a_power_of_what_half_of_the_samples_ask_for(
    count: int, order: str
) -> None:
    """One expert, merged too small, is brought back; what makes three strangers larger is not."""
    base = llama()
    experts = dict([*family(base).items()][:count])
    common = {"method": "task_arithmetic", "params": {"lambda": 0.3}, "order": order}
    result = checked(base, experts, data=texts(experts), **common)
    plain = checked(base, experts, data=halfway(experts, 0), calibrate=PLAIN, **common)
    shares = {}
    for group, names in zip(account(result)["groups"], groups_of(names_of(result)), strict=True):
        assert group["layers"] == len(names)
        shares |= dict.fromkeys(names, group["share"])
    for record in result.records:
        if record.calibrated_by:
            asked = records_of(plain)[record.name].xi
            assert record.xi == pytest.approx(asked ** shares[record.name], rel=1e-5)
    assert set(shares.values()) == ({1.0} if count == 1 else {0.0})
    if count > 1:
        merged = checked(base, experts, calibrate=None, **{**common, "order": "once"})
        for name, tensor in merged.state_dict().items():
            assert torch.equal(tensor, result.state_dict()[name])


def names_of(result: magmerge.Result) -> list[str]:
    return [record.name for record in result.records if record.calibrated_by]


def test_the_check_measures_the_models_that_it_tells_of() -> None:
    base = llama()
    experts = family(base)
    result = checked(base, experts, data=texts(experts))
    aside = halfway(experts, 1)
    models = {}
    for name, calibrate in (("before", None), ("full", PLAIN)):
        model = copy.deepcopy(base)
        model.load_state_dict(
            checked(
                base, experts, calibrate=calibrate,
                data=None if calibrate is None else halfway(experts, 0),
            ).state_dict()
        )  # fmt: skip
        models[name] = model.eval()
    for name, model in models.items():
        rows = []
        for expert, (call,) in aside.items():
            with torch.no_grad():
                own, other = (
                    m(**call).logits.double().log_softmax(-1) for m in (model, experts[expert])
                )
            rows.append((other.exp() * (other - own)).sum(-1).mean(1))
        assert account(result)[name] == pytest.approx(float(torch.cat(rows).mean()), rel=1e-4)
    assert account(result)["measure"] == "kl"
    assert account(result)["rows"] == dict.fromkeys(experts, 2)


def test_threads_do_not_change_what_is_found(tmp_path: Path) -> None:
    base, experts = folders(tmp_path, bert(), family(bert()))
    found = [
        checked(base, experts, data=texts(experts), calibrate="dsc", threads=count)
        for count in (1, 3)
    ]
    assert account(found[0]) == account(found[1])
    assert account(found[0])["measure"] == "cosine"
    for name, tensor in found[0].state_dict().items():
        assert torch.equal(tensor, found[1].state_dict()[name])


def test_what_is_left_out_of_dsc_is_wsc_too_and_that_is_said() -> None:
    base = llama()
    experts = family(base)
    common: dict[str, Any] = {"method": "average"}
    result = checked(base, experts, calibrate="dsc", data=texts(experts), **common)
    assert any("the calibration is left out" in text for text in result.warnings)
    merged = checked(base, experts, calibrate=None, **common)
    for name, tensor in merged.state_dict().items():
        assert torch.equal(tensor, result.state_dict()[name])


def test_block_by_block_comes_to_the_same(tmp_path: Path) -> None:
    base, experts = folders(tmp_path, llama(), family(llama()))
    common = {"data": texts(experts), "params": {"lambda": 0.2}, "method": "task_arithmetic"}
    whole, blocks = (checked(base, experts, offload=way, **common) for way in (False, True))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, blocks.state_dict()[name])
    for first in ("wsc", "svc"):
        with pytest.raises(ParameterError, match=rf"(?s)takes {first} back.*fsc\.check=off"):
            checked(base, experts, offload=True, calibrate=[first, "fsc"], **common)


def test_one_sample_is_in_both_halves_and_that_is_said() -> None:
    base = bert()
    experts = family(base)
    result = checked(base, experts, data={name: [{"input_ids": IDS[:1]}] for name in experts})
    assert account(result)["shared"] == list(experts)
    assert any("both tells the factors and checks them" in text for text in result.warnings)


@pytest.mark.parametrize("word", ["off", "on"])
def test_a_bare_word_in_yaml_is_no_boolean(word: str) -> None:
    text = (
        "base: b\nexperts: {a: a}\nmethod: average\n"
        f"calibrate:\n- {{method: fsc, params: {{check: {word}}}}}\nsamples: {{data: {{a: x}}}}\n"
    )
    recipe = Recipe.from_yaml(text)
    (calibration,) = check_calibrations(list(recipe.calibrate))
    assert calibration.params["check"] == word
    flag = check_calibrations({"method": "fsc", "params": {"check": word == "on"}})
    assert flag == (calibration,)


def test_a_run_that_goes_on_knows_what_was_found() -> None:
    findings = Findings({"a": torch.ones(2)}, shares={"a": 0.5}, check={"text": "half"})
    again = unpacked(packed(findings))
    assert again is not None
    assert (again.shares, again.check) == ({"a": 0.5}, {"text": "half"})


def test_groups_are_by_depth() -> None:
    names = [f"layers.{n}.weight" for n in range(8)] + ["embed.weight"]
    groups = groups_of(names)
    assert len(groups) == GROUPS
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert "embed.weight" in groups[0]
    assert groups_of(["one", "two"]) == [["one", "two"]]


def test_the_search_takes_one_share_and_leaves_it_only_beyond_the_standard_error() -> None:
    rows = torch.linspace(-1, 1, 16)

    def clear(shares: tuple[float, ...]) -> torch.Tensor:
        return torch.full((16,), abs(shares[0] - 1) + abs(shares[1])) + 0.01 * rows

    def noise(shares: tuple[float, ...]) -> torch.Tensor:
        return shares[1] * rows + 0.01 * (1 - shares[0]) - 0.001 * (shares[1] != shares[0])

    assert [*search(2, clear)][-1] == (1.0, 0.0)
    assert [*search(2, noise)][-1] == (1.0, 1.0)
    assert [*search(1, lambda shares: torch.zeros(4))][-1] == (1.0,)


def test_rows_that_tell_nothing_do_not_count_and_a_broken_model_is_never_nearer() -> None:
    nan, inf = torch.nan, torch.inf

    def choice(values: dict[float, list[float]]) -> tuple[float, ...]:
        def losses(shares: tuple[float, ...]) -> torch.Tensor:
            return torch.tensor(values[shares[0]], dtype=torch.float64)

        return [*search(1, losses)][-1]

    assert choice({1.0: [9, 9, nan], 0.5: [5, 5, nan], 0.0: [0.1, 0.1, nan]}) == (0.0,)
    assert choice({1.0: [1, 1, 1], 0.5: [2, 2, 2], 0.0: [3, 3, inf]}) == (1.0,)
    assert choice({1.0: [1, nan], 0.5: [2, 2], 0.0: [3, 3]}) == (0.5,)
    assert choice({1.0: [nan], 0.5: [nan], 0.0: [nan]}) == (1.0,)


def test_the_cosine_of_what_stays_as_the_base_is_zero_and_of_what_is_broken_none() -> None:
    rows = torch.full((3, len(MEASURES)), torch.nan)
    rows[0, 1], rows[0, 2] = 0.5, 1
    rows[1, 2] = 0
    found = losses_of(rows, "cosine")
    assert found[:2].tolist() == [0.5, 1]
    assert found[2].isnan()


class Odd(torch.nn.Module):
    """Two layers whose output has the form that a function gives it."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.a, self.b, self.form = torch.nn.Linear(6, 8), torch.nn.Linear(8, 4), form

    def forward(self, x: torch.Tensor) -> Any:
        return self.form(self.b(torch.relu(self.a(x))))


@pytest.mark.parametrize(
    ("form", "measure"),
    [
        (lambda y: (y, y), "cosine"),
        (lambda y: {"logits": y[:, :1]}, "kl"),
        (lambda y: y[:, 0], "kl"),
        (lambda y: {"logits": y.index_fill(1, torch.tensor([0]), -torch.inf)}, "kl"),
        (lambda y: y.mean(), None),
        (lambda y: y.argmax(-1), None),
        (lambda y: {"logits": y * torch.nan}, None),
    ],
)
def test_outputs_of_odd_forms_are_checked_or_that_is_said(form: Any, measure: str | None) -> None:
    torch.manual_seed(0)
    base = Odd(form)
    experts = {name: copy.deepcopy(base) for name in "xy"}
    for expert in experts.values():
        for parameter in expert.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    result = checked(base, experts, data={name: torch.randn(8, 6) for name in experts})
    found = account(result)
    if measure is None:
        assert VOID in result.warnings
        assert {group["share"] for group in found["groups"]} == {1.0}
    else:
        assert found["measure"] == measure
        assert found["before"] > 0
        assert VOID not in result.warnings


def test_answers_that_do_not_fit_into_memory_are_refused_and_the_bases_logits_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = llama()
    experts = family(base)
    rows, (vocabulary, width) = 2 * len(experts), base.get_input_embeddings().weight.shape
    (call,) = texts(experts)["expert-0"]
    tokens = call["input_ids"].shape[1]
    needed = 4 * rows * tokens * (vocabulary + 2 * width)
    rooms: list[int] = []

    class Small(HeldRows):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments[:-1], rooms[-1])

    monkeypatch.setattr(checking, "HeldRows", Small)
    rooms.append(needed)
    checked(base, experts, data=texts(experts))
    rooms.append(needed - 1)
    with pytest.raises(ParameterError, match=r"(?s)memory.*fsc\.check=off"):
        checked(base, experts, data=texts(experts))
