"""`auto` as a method and as a calibrator, through the front door and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

import magmerge
from magmerge.core.errors import MagmergeError
from tests.front_door.models import llama, trained, with_lora
from tests.live.test_running import bert, folders

NAMES = ("a", "b", "c")


def family(base: Any, size: float = 0.02) -> dict[str, Any]:
    return {name: trained(base, place, size) for place, name in enumerate(NAMES, start=1)}


def on_disk(tmp_path: Path, base: Any, rows: int = 8) -> dict[str, Any]:
    """Models in folders, and samples as ready inputs."""
    path, experts = folders(tmp_path, base, family(base))
    draw, data = torch.Generator().manual_seed(5), {}
    for name in experts:
        data[name] = tmp_path / f"{name}.safetensors"
        save_file({"input_ids": torch.randint(3, 40, (rows, 7), generator=draw)}, data[name])
    return {"base": path, "experts": experts, "data": data}


def texts_of(folder: Path) -> dict[str, Any]:
    return {
        "record": json.loads((folder / "magmerge.json").read_text()),
        "recipe": yaml.safe_load((folder / "magmerge.yaml").read_text()),
    }


@pytest.mark.parametrize("sampled", [False, True])
def test_the_recipe_beside_the_result_holds_the_choice_and_makes_the_same_bits(
    tmp_path: Path, sampled: bool
) -> None:
    models = on_disk(tmp_path, llama())
    if not sampled:
        del models["data"]
    first = magmerge.merge(**models, method="auto", out=tmp_path / "first", threads=1)
    told = texts_of(tmp_path / "first")
    choice = told["record"]["auto"]
    assert choice == dict(first.job.choice)
    assert choice["text"].startswith(f"auto chose {choice['chosen']}")
    assert "auto" not in str(told["recipe"])
    assert told["recipe"]["method"] == first.recipe.method
    assert set(choice["weights"]) == {"experts", "directions", "cosine", "distance", "layers"}
    if sampled:
        assert choice["measure"] == "KL"
        assert choice["rows"] == dict.fromkeys(NAMES, 4)
        assert {"base", "average"} <= {one["merge"] for one in choice["candidates"]}
    assert magmerge.verify(tmp_path / "first").sound
    again = magmerge.run(tmp_path / "first", tmp_path / "again")
    assert not again.job.choice
    assert "auto" not in texts_of(tmp_path / "again")["record"]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("first", "again")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("make", [llama, bert])
def test_threads_and_pieces_do_not_change_what_is_chosen(tmp_path: Path, make: Any) -> None:
    models = on_disk(tmp_path, make(), rows=16)
    models["samples"] = 16
    results = [
        magmerge.merge(**models, method="auto", threads=threads, memory=memory)
        for threads, memory in ((1, "2GB"), (3, "200MB"))
    ]
    choices = [dict(result.job.choice) for result in results]
    assert choices[0] == choices[1]
    assert choices[0]["measure"] == ("KL" if make is llama else "1 - CKA")
    assert all(one["loss"] is not None for one in choices[0]["candidates"])
    states = [result.state_dict() for result in results]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_candidates_are_measured_on_rows_that_no_calibration_saw(tmp_path: Path) -> None:
    """The losses of a candidate that looks at samples are those of the model that half of them
    gives, on the other half.
    """
    base = llama()
    experts = family(base)
    draw = torch.Generator().manual_seed(2)
    ids = {name: torch.randint(3, 60, (6, 5), generator=draw) for name in NAMES}
    data = {name: [{"input_ids": rows}] for name, rows in ids.items()}
    result = magmerge.merge(base=base, experts=experts, method="auto", data=data, threads=1)
    losses = {one["merge"]: one["loss"] for one in result.job.choice["candidates"]}
    label = next(label for label in losses if label.endswith("regression_samples"))
    method, *calibrate = label.split(" + ")
    params = {"filter": "tikhonov", "ridge": 0.1} if method == "wudi" else {}
    half = {name: [{"input_ids": rows[::2]}] for name, rows in ids.items()}
    own = llama()
    own.load_state_dict(
        magmerge.merge(
            base=base, experts=experts, method=method, params=params, calibrate=calibrate,
            data=half, threads=1,
        ).state_dict()
    )  # fmt: skip
    own.eval()
    rows = []
    for name in NAMES:
        with torch.no_grad():
            mine, other = (
                model(input_ids=ids[name][1::2]).logits.double().log_softmax(-1)
                for model in (own, experts[name].eval())
            )
        rows.append((other.exp() * (other - mine)).sum(-1).mean(1))
    assert losses[label] == pytest.approx(float(torch.cat(rows).mean()), rel=1e-4)


def test_the_brake_keeps_the_base_where_every_merge_is_worse_and_says_so() -> None:
    """One expert of three is right about everything that is asked: the others only disturb."""
    base = llama()
    experts = {name: trained(base, place, 1e-4) for place, name in enumerate("ab", start=1)}
    experts["c"] = trained(base, 3, 0.5)
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 60, (8, 5), generator=draw)
    few = {"a": [{"input_ids": ids}], "b": [{"input_ids": ids}], "c": [{"input_ids": ids[:2]}]}
    result = magmerge.merge(base=base, experts=experts, method="auto", data=few, threads=1)
    choice = result.job.choice
    losses = {one["merge"]: one["loss"] for one in choice["candidates"]}
    assert choice["chosen"] == min(("base", "average"), key=lambda name: losses[name])
    assert "nothing else came as near as what is kept" in choice["text"]
    if choice["chosen"] == "base":
        own = base.state_dict()
        assert all(torch.equal(own[name], t) for name, t in result.state_dict().items())


def test_a_merge_that_nothing_brings_nearer_is_taken_as_it_is(tmp_path: Path) -> None:
    base = llama()
    experts = family(base, 0.05)
    merged = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for expert in experts.values():
        for name, tensor in expert.state_dict().items():
            merged[name] += 0.2 * (tensor - base.state_dict()[name])
    save_file(merged, tmp_path / "merged.safetensors")
    result = magmerge.calibrate(
        tmp_path / "merged.safetensors", base=base, experts=experts, method="auto",
        out=tmp_path / "out.safetensors",
    )  # fmt: skip
    assert result.job.choice["chosen"] == "no calibration"
    found = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in merged.items())


def test_adapters_on_a_base_are_seen_to_be_of_low_rank() -> None:
    base = llama()
    experts = {name: with_lora(base, place, r=2) for place, name in enumerate(NAMES, start=1)}
    result = magmerge.merge(base=base, experts=experts, method="auto")
    assert result.job.choice["weights"]["directions"] < 0.25
    assert "of low rank" in result.job.choice["text"]


def test_a_candidate_that_cannot_be_measured_is_left_out_and_that_is_said() -> None:
    """Convolutions are not solved for from samples."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GELU(), nn.Conv2d(16, 16, 3), nn.Flatten())
    experts = family(base)
    data = {name: [torch.randn(16, 3, 6, 6)] for name in NAMES}
    result = magmerge.merge(base=base, experts=experts, method="auto", data=data, threads=1)
    choice = result.job.choice
    assert choice["measure"] == "1 - CKA"
    assert [*choice["left out"]] == ["tsv_m + regression + regression_samples"]
    assert "tsv_m + regression + regression_samples is left out" in choice["text"]


def test_too_few_rows_leave_it_to_the_weights_and_that_is_said() -> None:
    base = bert()
    data = {name: [{"input_ids": torch.arange(12).reshape(2, 6)}] for name in NAMES}
    result = magmerge.merge(base=base, experts=family(base), method="auto", data=data, threads=1)
    assert result.job.choice["chosen"] == result.job.choice["by weights"]
    assert "by weights alone" in result.job.choice["text"]
    assert "too few" in result.job.choice["text"]


def test_a_method_may_be_given_and_its_calibration_chosen() -> None:
    base = llama()
    settings: dict[str, Any] = {"base": base, "experts": family(base), "method": "average"}
    result = magmerge.merge(**settings, calibrate="auto")
    assert result.recipe.method == "average"
    fixed = magmerge.merge(**settings, calibrate=[c.method for c in result.recipe.calibrate])
    own = fixed.state_dict()
    assert all(torch.equal(own[name], t) for name, t in result.state_dict().items())


def test_a_result_is_verified_by_choosing_again(tmp_path: Path) -> None:
    models = on_disk(tmp_path, llama())
    del models["data"]
    magmerge.merge(**models, method="auto", out=tmp_path / "out", threads=1)
    magmerge.merge(**models, method="ties", out=tmp_path / "ties", threads=1)
    # No record lies beside it, so its paths are not called from its folder.
    recipe = tmp_path / "other" / "magmerge.yaml"
    recipe.parent.mkdir()
    text = (tmp_path / "out" / "magmerge.yaml").read_text()
    content = yaml.safe_load(text.replace("../", f"{tmp_path}/"))
    recipe.write_text(yaml.safe_dump({**content, "method": "auto", "params": {}, "calibrate": []}))
    assert magmerge.verify(tmp_path / "out", against=recipe).sound
    assert not magmerge.verify(tmp_path / "ties", against=recipe).sound


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("method", ["auto", "ties"])
def test_a_bound_goes_with_a_choice(tmp_path: Path, method: str, sampled: bool) -> None:
    models = on_disk(tmp_path, llama())
    if not sampled:
        del models["data"]
    choose: dict[str, Any] = {"method": method, "calibrate": None if method == "auto" else "auto"}
    for bound in (5.0, "off"):
        result = magmerge.merge(**models, **choose, bound=bound)
        assert "auto" not in str(result.recipe)
        magmerge.plan(**models, **choose, bound=bound)
    if sampled:
        assert "auto" not in str(magmerge.merge(**models, **choose, keep_best=True).recipe)


@pytest.mark.filterwarnings("ignore:.*(holds averaged weights|mean cosine is above)")
def test_a_merge_that_is_kept_is_read_as_it_was_asked_for(tmp_path: Path) -> None:
    base = {"a.weight": torch.randn(20, 30, generator=torch.Generator().manual_seed(0))}
    average = {"model_ema.aweight": base["a.weight"] + 1.0}
    files = [tmp_path / f"{name}.safetensors" for name in ("base", "x", "y", "merged")]
    for file, step in zip(files, (0.0, 0.1, 0.2, 0.1), strict=True):
        state = {"model." + name: tensor + step for name, tensor in base.items()}
        if file.stem == "merged":
            state |= {name: tensor + step for name, tensor in average.items()}
        save_file(state, file)
    common: dict[str, Any] = {"base": files[0], "experts": files[1:3], "weights": {"merged": "ema"}}
    plain = magmerge.calibrate(files[3], method="wsc", gate="off", **common)
    chosen = magmerge.calibrate(files[3], method="auto", **common)
    assert chosen.recipe.weights == {"model": "ema"}
    (tensor,) = chosen.state_dict().values()
    assert torch.allclose(tensor, base["a.weight"] + 1.1)
    assert plain.recipe.weights == {"merged": "ema"}


def test_one_expert_is_taken_in_full() -> None:
    base = llama()
    experts = {"a": trained(base, 1)}
    result = magmerge.merge(base=base, experts=experts, method="auto")
    for name, tensor in experts["a"].state_dict().items():
        torch.testing.assert_close(result.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_plan_tells_what_there_is_to_choose_and_what_that_costs(tmp_path: Path) -> None:
    models = on_disk(tmp_path, llama())
    plan = magmerge.plan(**models, method="auto")
    assert plan.warnings[0].startswith("auto chooses when it merges, among ")
    assert "nothing is written for that" in plan.warnings[0]
    del models["data"]
    assert "256 rows of each matrix" in magmerge.plan(**models, method="auto").warnings[0]


def test_on_the_command_line_and_in_a_recipe(magmerge_cli: Any, tmp_path: Path) -> None:
    models = on_disk(tmp_path, llama())
    experts = [f"--expert={name}={path}" for name, path in models["experts"].items()]
    data = [f"--data={name}={path}" for name, path in models["data"].items()]
    out = tmp_path / "out"
    told = magmerge_cli("merge", "--base", models["base"], *experts, *data, "--method", "auto", out)
    assert told.code == 0, told.err
    assert "auto chose" in " ".join(told.out.split())
    recipe = {
        "base": str(models["base"]),
        "experts": {name: str(path) for name, path in models["experts"].items()},
        "method": "auto",
        "samples": {"data": {name: str(path) for name, path in models["data"].items()}},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    told = magmerge_cli("merge", file, tmp_path / "by-recipe", "--json")
    assert json.loads(told.out)["auto"] == texts_of(out)["record"]["auto"]
    planned = magmerge_cli("plan", file)
    assert "auto chooses when it merges" in " ".join((planned.out + planned.err).split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"params": {"density": 0.2}}, "auto has no parameter 'density'"),
        ({"base": None}, "name the base with --base"),
        ({"method": "atuo"}, "did you mean auto"),
        ({"method": "average", "calibrate": "atuo"}, "did you mean auto"),
        ({"calibrate": ["auto", "wsc"]}, "leave it alone"),
    ],
)
def test_errors_say_what_to_do(arguments: dict[str, Any], words: str) -> None:
    base = llama()
    settings = {"base": base, "experts": family(base), "method": "auto", **arguments}
    with pytest.raises(MagmergeError) as caught:
        magmerge.merge(**settings)
    assert words in str(caught.value)
