"""Models of the hub, from a server on this machine: what is fetched, and what goes wrong."""

from __future__ import annotations

import filecmp
import json
import shutil
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import magmerge
from magmerge.checkpoints.hub.choice import needed_files
from magmerge.core.errors import CheckpointError
from magmerge.core.machine import Machine
from tests.checkpoints.hub.conftest import BASE, NEEDLESS, TEXTS, folder
from tests.conftest import CommandLine, tuned
from tests.hub_server import Hub, sha256


def test_a_merge_by_names_is_that_by_paths(
    hub: Hub, models: dict[str, str], tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    made = tmp_path / "made"
    calls = {
        "here": (made / "base", made / "expert"),
        "there": ("org/base", f"org/expert@{models['org/expert']}"),
    }
    for out, (base, expert) in calls.items():
        done = magmerge_cli("merge", "--base", base, "--expert", expert, out)
        assert done.code == 0, done.message
    assert filecmp.cmp("here/model.safetensors", "there/model.safetensors", shallow=False)
    assert (tmp_path / "there" / "tokenizer.json").is_file()
    record = json.loads((tmp_path / "there" / "magmerge.json").read_text())
    recipe = record["recipe"]
    assert recipe["base"] == f"org/base@{models['org/base']}"
    assert recipe["experts"] == {"expert": f"org/expert@{models['org/expert']}"}
    base, expert = record["inputs"]
    assert base["source"] == recipe["base"]
    data = (made / "base" / "model.safetensors").read_bytes()
    assert base["files"] == {"model.safetensors": sha256(data)}
    assert len(expert["files"]) == 2
    for name in NEEDLESS:
        assert not hub.fetched(f"/{name}")
    # What was main when it was merged is what the recipe names for ever.
    hub.put("org/base", folder(tmp_path / "made" / "later", tuned(BASE, 9)))
    done = magmerge_cli("merge", "there/magmerge.yaml", "again")
    assert done.code == 0, done.message
    assert filecmp.cmp("again/model.safetensors", "there/model.safetensors", shallow=False)
    again = json.loads((tmp_path / "again" / "magmerge.json").read_text())
    assert again["recipe"] == record["recipe"]


def test_a_result_is_verified_without_fetching(
    hub: Hub, models: dict[str, str], tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    done = magmerge_cli("merge", "--base", "org/base", "--expert", "org/expert", "out")
    assert done.code == 0, done.message
    hub.asked.clear()

    def told() -> dict[str, str]:
        checks = magmerge_cli("verify", "out", "--json").json["checks"]
        return {check["name"]: check["seen"] for check in checks}

    checks = told()
    assert "bit for bit" in checks["computed again"]
    assert checks["inputs"] == "3 files are as they were merged"
    shutil.rmtree(tmp_path / "hf")
    assert "not at hand: org/base@" in told()["computed again"]
    assert not hub.asked


def test_what_is_cached_is_fetched_no_more(hub: Hub, models: dict[str, str]) -> None:
    magmerge.open_checkpoint("org/expert")
    sent = dict(hub.sent)
    magmerge.open_checkpoint("org/expert")
    assert hub.sent == sent
    hub.asked.clear()
    magmerge.open_checkpoint(f"org/expert@{models['org/expert']}")
    assert not hub.asked


def test_other_verbs_take_names(
    hub: Hub, models: dict[str, str], magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    done = magmerge_cli("inspect", "org/base", "--json")
    assert done.code == 0, done.message
    assert done.json["source"] == f"org/base@{models['org/base']}"
    done = magmerge_cli("diff", "org/base", "org/expert", "--json")
    assert done.code == 0, done.message
    assert len(done.json) == len(BASE)
    done = magmerge_cli("verify", "org/expert", "--json")
    assert done.json["source"] == f"org/expert@{models['org/expert']}"
    done = magmerge_cli(
        "extract", "--base", "org/base", "--model", "org/expert", "lora", "--rank", "2"
    )
    assert done.code == 0, done.message
    hub.put("org/lora", tmp_path / "lora")
    done = magmerge_cli("merge", "--base", "org/base", "--expert", "org/lora", "one")
    assert done.code == 0, done.message
    done = magmerge_cli("merge", "--base", "org/base", "--expert", "org/base+org/lora", "two")
    assert done.code == 0, done.message
    assert filecmp.cmp("one/model.safetensors", "two/model.safetensors", shallow=False)
    done = magmerge_cli(
        "calibrate", "org/base+org/lora", "--base", "org/expert", "--expert", "one",
        "--expert", "org/base", "--donor", "org/expert", "three",
    )  # fmt: skip
    assert done.code == 0, done.message
    record = json.loads((tmp_path / "three" / "magmerge.json").read_text())
    assert record["recipe"]["output"]["donor"] == f"org/expert@{models['org/expert']}"


def chosen(*names: str) -> list[str]:
    choice = needed_files(names, "org/name")
    return [*choice.weights, *choice.indices]


def test_which_files_are_needed() -> None:
    assert chosen("model.safetensors", "pytorch_model.bin") == ["model.safetensors"]
    assert chosen("pytorch_model.bin", "flax_model.msgpack") == ["pytorch_model.bin"]
    index = "model.safetensors.index.json"
    assert chosen(index, "model-00001-of-00002.safetensors", "consolidated.safetensors") == [index]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert chosen(*shards, "pytorch_model-00001-of-00001.bin") == shards
    lora = ["adapter_model.safetensors", "non_lora_trainables.bin"]
    assert chosen(*lora, "adapter_config.json", "checkpoint-5/adapter_model.safetensors") == lora
    assert chosen("style.safetensors", "picture.png") == ["style.safetensors"]
    pipeline = ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
    more = ["model_index.json", "sdxl.safetensors", "unet/diffusion_pytorch_model.bin"]
    assert sorted(chosen(*pipeline, *more)) == sorted(pipeline)
    texts = needed_files(["unet/config.json", *pipeline, *more], "o/n").texts
    assert set(texts) == {"model_index.json", "unet/config.json"}


def test_the_machine_hears_of_it(hub: Hub, models: dict[str, str]) -> None:
    heard: list[str] = []
    machine = Machine(progress=lambda label, *_: heard.append(label))
    recipe = magmerge.Recipe(base="org/base", experts={"e": "org/expert"}, method="average")
    result = magmerge.run(recipe, "out.safetensors", machine=machine)
    assert "fetching org/expert (MB)" in heard
    state = load_file("out.safetensors")
    assert torch.allclose(state["lm_head.weight"], tuned(BASE, 1)["lm_head.weight"])
    assert result.recipe.base.startswith("org/base@")  # type: ignore[union-attr]


NAMES = st.sampled_from(
    [
        *TEXTS, *NEEDLESS, "model.safetensors", "model-00001-of-00002.safetensors",
        "x.safetensors", "model.safetensors.index.json", "adapter_config.json",
        "adapter_model.bin", "..", "a/", "model_index.json", "unet/model.safetensors",
        "unet/config.json", "modules.json", "",
    ]
)  # fmt: skip


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sets(NAMES | st.text(max_size=5)))
def test_any_files_have_a_choice_or_an_error(names: set[str]) -> None:
    try:
        choice = needed_files(names, "org/name")
    except CheckpointError as error:
        assert error.remedy
        return
    every = [*choice.texts, *choice.weights, *choice.indices]
    assert set(every) <= names
    assert choice.weights or choice.indices
    assert not set(choice.weights) & {"pytorch_model.bin", "model.gguf"} or (
        "model.safetensors" not in names and "model.safetensors.index.json" not in names
    )
