"""Weights and their moving average in one file or folder: which are taken, and where it is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from magmerge.core.recipe import Recipe
from tests.conftest import CommandLine, Outcome, State

RAW: State = {"conv.weight": torch.full((2, 2), 1.0), "conv.bias": torch.zeros(2)}
AVERAGE: State = {"conv.weight": torch.full((2, 2), 5.0), "conv.bias": torch.ones(2)}
Write = Callable[[Path, State, State], Path]


def pickled(content: Callable[[State, State], Any]) -> Write:
    def write(place: Path, raw: State, average: State) -> Path:
        torch.save(content(raw, average), place.with_suffix(".pt"))
        return place.with_suffix(".pt")

    return write


def stable_diffusion(place: Path, raw: State, average: State) -> Path:
    unet = {f"model.diffusion_model.{name}": tensor for name, tensor in raw.items()}
    flat = {f"model_ema.diffusion_model{n.replace('.', '')}": t for n, t in average.items()}
    counters = {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}
    save_file({**unet, **flat, **counters}, place.with_suffix(".safetensors"))
    return place.with_suffix(".safetensors")


def diffusers_training(place: Path, raw: State, average: State) -> Path:
    for name, state in (("unet", raw), ("unet_ema", average)):
        (place / name).mkdir(parents=True)
        save_file(state, place / name / "diffusion_pytorch_model.safetensors")
        (place / name / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    return place


FORMS: dict[str, tuple[Write, str]] = {
    "timm": (pickled(lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema}), "ema"),
    "shadow": (
        pickled(
            lambda raw, ema: {"model": raw, "ema": {"shadow": ema, "decay": 0.9, "num_updates": 3}}
        ),
        "ema",
    ),
    "state": (pickled(lambda raw, ema: {"model": raw, "ema_state_dict": ema}), "ema"),
    "lightning": (
        pickled(
            lambda raw, ema: {
                "state_dict": ema,
                "current_model_state": raw,
                "averaging_state": {"n_averaged": torch.tensor(3)},
            }
        ),
        "ema",
    ),
    "callback": (
        pickled(lambda raw, ema: {"state_dict": raw, "callbacks": {"EMA": {"ema_state": ema}}}),
        "ema",
    ),
    "stable diffusion": (stable_diffusion, "model"),
    "diffusers": (diffusers_training, "ema"),
}
"""How programs save both, and which of them they load."""


def merge(cli: CommandLine, tmp_path: Path, models: list[Path], *options: str) -> Outcome:
    given = [text for model in models for text in ("--expert", str(model))]
    return cli("merge", *given, "--method", "average", *options, tmp_path / "o.safetensors")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("choice", ["ema", "model", None])
def test_both_are_told_apart_and_the_choice_is_said(
    magmerge_cli: CommandLine, tmp_path: Path, form: str, choice: str | None
) -> None:
    write, own = FORMS[form]
    other = [{n: t + 2 for n, t in state.items()} for state in (RAW, AVERAGE)]
    models = [write(tmp_path / "a", RAW, AVERAGE), write(tmp_path / "b", *other)]
    done = merge(magmerge_cli, tmp_path, models, *([] if choice is None else ["--weights", choice]))
    assert done.code == 0, done.message
    merged = load_file(tmp_path / "o.safetensors")
    source = AVERAGE if (choice or own) == "ema" else RAW
    assert len(merged) == len(source)
    for name, tensor in source.items():
        (key,) = [key for key in merged if key.endswith(name)]
        assert torch.equal(merged[key], tensor + 1)
    assert done.message.count("averaged weights") == 2
    assert "beside the raw ones" in done.message


def test_the_choice_may_be_one_models_own(magmerge_cli: CommandLine, tmp_path: Path) -> None:
    models = [stable_diffusion(tmp_path / name, RAW, AVERAGE) for name in ("a", "b")]
    save_file({f"model.diffusion_model.{n}": t for n, t in RAW.items()}, models[1])
    done = merge(magmerge_cli, tmp_path, models, "--weights", "a=ema")
    assert done.code == 0, done.message
    merged = load_file(tmp_path / "o.safetensors")
    assert torch.equal(merged["model.diffusion_model.conv.weight"], torch.full((2, 2), 3.0))
    done = merge(magmerge_cli, tmp_path, models, "--weights", "c=ema", "--yes")
    assert done.code == 1
    assert "reads no such model" in done.message
    done = merge(magmerge_cli, tmp_path, models, "--weights", "ema", "--weights", "a=ema")
    assert done.code == 1
    assert "two of them speak of one model" in done.message
    done = merge(magmerge_cli, tmp_path, models, "--weights", "best")
    assert done.code == 1
    assert "weights is ema or model" in done.message


def test_choosing_what_is_not_there_is_an_error_and_its_remedy_is_true(
    magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    torch.save({"model": None, "ema": AVERAGE}, tmp_path / "a.pt")
    torch.save({"model": RAW, "ema": AVERAGE}, tmp_path / "b.pt")
    save_file(RAW, tmp_path / "c.safetensors")
    ab, bc = [tmp_path / "a.pt", tmp_path / "b.pt"], [tmp_path / "b.pt", tmp_path / "c.safetensors"]
    done = merge(magmerge_cli, tmp_path, ab, "--weights", "model")
    assert done.code == 1
    assert "averaged weights (ema) alone" in done.message
    done = merge(magmerge_cli, tmp_path, ab, "--weights", "a.pt=ema", "--weights", "b.pt=model")
    assert done.code == 0, done.message
    merged = load_file(tmp_path / "o.safetensors")
    assert torch.equal(merged["conv.weight"], torch.full((2, 2), 3.0))
    done = merge(magmerge_cli, tmp_path, bc, "--weights", "ema", "--yes")
    assert done.code == 1
    assert "c.safetensors: it holds no averaged weights" in done.message
    done = merge(magmerge_cli, tmp_path, bc, "--weights", "b.pt=ema", "--yes")
    assert done.code == 0, done.message


def test_averages_of_another_model_are_refused(magmerge_cli: CommandLine, tmp_path: Path) -> None:
    other = {"other.weight": torch.ones(2)}
    models = [stable_diffusion(tmp_path / name, RAW, other) for name in ("a", "b")]
    done = merge(magmerge_cli, tmp_path, models, "--weights", "ema")
    assert done.code == 1
    assert "not those of the model beside them" in done.message


def test_a_whole_module_in_half_is_taken_as_yolo_saves_it(
    magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    for place, name in enumerate("ab"):
        torch.manual_seed(place)
        raw, average = torch.nn.Conv2d(1, 2, 1), torch.nn.Conv2d(1, 2, 1)
        torch.nn.init.constant_(average.weight, float(place))
        torch.save({"model": raw, "ema": average.half(), "updates": 4}, tmp_path / f"{name}.pt")
    models = [tmp_path / "a.pt", tmp_path / "b.pt"]
    done = merge(magmerge_cli, tmp_path, models)
    assert done.message.count("averaged weights (ema) beside the raw ones") == 2
    merged = load_file(tmp_path / "o.safetensors")
    assert torch.equal(merged["weight"].float(), torch.full((2, 1, 1, 1), 0.5))


def test_a_recipe_says_it_and_one_that_does_not_has_the_digest_that_it_had() -> None:
    recipe = Recipe.from_yaml("experts: {a: x, b: y}\nmethod: average\nweights: {a: ema}\n")
    assert recipe.weights == {"a": "ema"}
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    plain = recipe.model_copy(update={"weights": None})
    assert plain.digest != recipe.digest


@pytest.mark.parametrize("form", ["timm", "stable diffusion", "diffusers"])
@pytest.mark.parametrize("choice", ["ema", "model"])
def test_one_of_them_is_converted(
    magmerge_cli: CommandLine, tmp_path: Path, form: str, choice: str
) -> None:
    model = FORMS[form][0](tmp_path / "a", RAW, AVERAGE)
    done = magmerge_cli("convert", model, tmp_path / "o.safetensors", "--weights", choice)
    assert done.code == 0, done.message
    written = load_file(tmp_path / "o.safetensors")
    source = AVERAGE if choice == "ema" else RAW
    assert len(written) == len(source)
    for name, tensor in source.items():
        assert any(key.endswith(name) and torch.equal(written[key], tensor) for key in written)
    done = magmerge_cli("convert", model, tmp_path / "o.safetensors", "--weights", "best")
    assert done.code == 1
    assert "ema or model" in done.message
