"""Models read on the hub by ranges of bytes: the same bits, and what a plan looks at."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import magmerge
from magmerge.checkpoints.hub import blocks, remote_file, streamed
from magmerge.checkpoints.input_sums import FORM
from magmerge.core.errors import CheckpointError, ParameterError
from magmerge.core.machine import hub_read
from tests.checkpoints.hub.test_hub import BASE, folder
from tests.checkpoints.test_pipeline_folder import PARTS, file_of, write
from tests.conftest import CommandLine, random_state, tuned
from tests.hub_server import Hub, sha256

WIDE = random_state(3, {"a.weight": (300, 400), "b.weight": (64, 1000), "norm.weight": (400,)})


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that tensors have several, and few of them are kept."""
    monkeypatch.setattr(blocks, "BLOCK", 10_000)
    monkeypatch.setattr(blocks, "KEPT", 5)
    monkeypatch.setattr(streamed, "FIRST", 100)
    monkeypatch.setattr(remote_file, "FIRST_WAIT", 0.01)
    blocks.Blocks._kept.clear()
    streamed._remote_header.cache_clear()


@pytest.fixture
def wide(hub: Hub, tmp_path: Path) -> dict[str, str]:
    base = hub.put("org/wide", folder(tmp_path / "made" / "wide", WIDE))
    expert = hub.put("org/tuned", folder(tmp_path / "made" / "tuned", tuned(WIDE, 1), 3))
    return {"org/wide": base, "org/tuned": expert}


def whole_in_cache(tmp_path: Path) -> list[str]:
    return [str(file) for file in (tmp_path / "hf").rglob("*.safetensors")]


@pytest.mark.filterwarnings("ignore:.*are read on the hub")
@pytest.mark.parametrize("method", ["ties", "tsv_m"])
def test_the_same_bits_as_of_models_that_are_fetched(
    hub: Hub, wide: dict[str, str], tmp_path: Path, magmerge_cli: CommandLine, method: str
) -> None:
    made = tmp_path / "made"
    save_file(tuned(WIDE, 2), "more.safetensors")
    call = ["merge", "--method", method, "--calibrate", "wsc", "--expert", "more.safetensors"]
    done = magmerge_cli(
        *call, "--base", made / "wide", "--expert", made / "tuned", "here", "--threads", "2"
    )
    assert done.code == 0, done.message
    hub.busy = 3
    done = magmerge_cli(
        *call, "--base", "org/wide", "--expert", "org/tuned", "--stream", "there", "--threads", "3"
    )
    assert done.code == 0, done.message
    assert filecmp.cmp("here/model.safetensors", "there/model.safetensors", shallow=False)
    assert not whole_in_cache(tmp_path)
    assert (tmp_path / "there" / "tokenizer.json").is_file()
    record = json.loads((tmp_path / "there" / "magmerge.json").read_text())
    base = next(entry for entry in record["inputs"] if entry["role"] == "base")
    assert base["source"] == f"org/wide@{wide['org/wide']}"
    data = (made / "wide" / "model.safetensors").read_bytes()
    assert base["files"] == {"model.safetensors": sha256(data)}
    assert base["digests"].startswith("told by the hub")
    assert record["recipe"]["base"] == f"org/wide@{wide['org/wide']}"
    done = magmerge_cli("merge", "there/magmerge.yaml", "again", "--stream")
    assert done.code == 0, done.message
    assert filecmp.cmp("again/model.safetensors", "there/model.safetensors", shallow=False)


@pytest.mark.filterwarnings("ignore:.*are read on the hub")
def test_statistics_fit_a_model_that_is_read_on_the_hub(
    hub: Hub, wide: dict[str, str], tmp_path: Path
) -> None:
    made, told = tmp_path / "made", {}
    file = tmp_path / "statistics.safetensors"
    sums = {"a.weight": torch.eye(401), "b.weight": torch.eye(1001)}
    common = {"calibrate": "regmean", "statistics": {"tuned": str(file)}}
    for name in ("tuned", "wide"):
        files = (made / name).glob("*.safetensors")
        own = {str(place): sha256(one.read_bytes()) for place, one in enumerate(files)}
        header = {"magmerge": FORM, "models": json.dumps({"expert": own})}
        save_file(sums, file, header)
        for place, stream in ((str(made), False), ("org", True)):
            call = {"base": f"{place}/wide", "experts": {"tuned": f"{place}/tuned"}, **common}
            if name == "wide":
                with pytest.raises(ParameterError, match="another model than"):
                    magmerge.merge(**call, stream=stream)
            else:
                told[place] = magmerge.merge(**call, stream=stream).state_dict()
    first, second = told.values()
    assert all(first[name].equal(second[name]) for name in WIDE)
    assert not whole_in_cache(tmp_path)


def test_pieces_are_exact_and_blocks_are_asked_for_once(hub: Hub, wide: dict[str, str]) -> None:
    with hub_read("ranges"):
        model = magmerge.open_checkpoint("org/tuned")
    state = tuned(WIDE, 1)
    assert set(model.specs) == set(state)
    flat = state["a.weight"].reshape(-1)
    for start, stop in ((0, 1), (2499, 2501), (7, 60_001), (119_999, 120_000)):
        assert model.read_part("a.weight", start, stop).equal(flat[start:stop])
    out = torch.empty(50)
    assert model.read_part("a.weight", 5, 55, out).equal(flat[5:55])
    hub.asked.clear()
    before = len(hub.asked)
    for start in range(0, 1000, 100):
        model.read_part("a.weight", start, start + 100)
    assert len(hub.asked) - before <= 3


@pytest.mark.filterwarnings("ignore:.*are read on the hub")
def test_models_with_adapters_and_adapters_are_the_same_too(
    hub: Hub, wide: dict[str, str], tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    made = tmp_path / "made"
    done = magmerge_cli(
        "extract", "--base", made / "wide", "--model", made / "tuned", "lora", "--rank", "2"
    )
    assert done.code == 0, done.message
    hub.put("org/lora", tmp_path / "lora")
    calls = {
        "one": (made / "wide", "lora"),
        "two": ("org/wide", "org/lora"),
        "three": ("org/wide", "org/wide+org/lora"),
    }
    for out, (base, expert) in calls.items():
        done = magmerge_cli("merge", "--stream", "--base", base, "--expert", expert, out)
        assert done.code == 0, done.message
        assert filecmp.cmp("one/model.safetensors", f"{out}/model.safetensors", shallow=False)
    calls = {"four": made / "wide", "five": "org/wide"}
    for out, base in calls.items():
        done = magmerge_cli(
            "merge", "--stream", "--expert", f"{base}+lora", "--expert", made / "tuned", out,
            "--method", "average",
        )  # fmt: skip
        assert done.code == 0, done.message
    assert filecmp.cmp("four/model.safetensors", "five/model.safetensors", shallow=False)


def test_a_plan_reads_headers_alone_and_says_what_would_be_fetched(
    hub: Hub, wide: dict[str, str], tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    size = len(next(iter(hub.repos["org/wide"].commits.values()))["model.safetensors"])
    done = magmerge_cli("plan", "--base", "org/wide", "--expert", "org/tuned")
    assert done.code == 0, done.message
    assert f"org/wide@{wide['org/wide']}: {size / 1000:.0f} kB in 1 file would be" in done.message
    assert "in 3 files would be fetched from the hub" in done.message
    assert sum(n for name, n in hub.sent.items() if name.endswith(".safetensors")) < size / 10
    assert not whole_in_cache(tmp_path)
    done = magmerge_cli("inspect", "org/wide", "--json")
    assert done.code == 0, done.message
    assert {tensor["name"] for tensor in done.json["tensors"]} == set(WIDE)
    assert not whole_in_cache(tmp_path)
    # What does not fit is found without fetching either.
    hub.put("org/other", folder(tmp_path / "made" / "other", BASE))
    done = magmerge_cli("plan", "--base", "org/wide", "--expert", "org/other")
    assert done.code == 1
    assert "faults found" in done.message
    magmerge.open_checkpoint("org/wide")
    magmerge.open_checkpoint("org/tuned")
    done = magmerge_cli("plan", "--base", "org/wide", "--expert", "org/tuned")
    assert "would be fetched" not in done.message


def test_what_has_no_header_is_fetched_or_told(
    hub: Hub, tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    (tmp_path / "old").mkdir()
    torch.save(WIDE, tmp_path / "old" / "pytorch_model.bin")
    hub.put("org/old", tmp_path / "old")
    save_file(tuned(WIDE, 2), "more.safetensors")
    call = ["--base", "org/old", "--expert", "more.safetensors"]
    done = magmerge_cli("plan", *call)
    assert done.code == 1
    assert "pytorch_model.bin has no header" in done.message
    assert not hub.fetched("pytorch_model.bin")
    done = magmerge_cli("merge", *call, "--stream", "out.safetensors")
    assert done.code == 0, done.message
    assert "is fetched whole: pytorch_model.bin is not read by ranges" in done.message
    # The remedy of the plan.
    done = magmerge_cli("inspect", "org/old")
    assert done.code == 0
    assert magmerge_cli("plan", *call).code == 0


def test_a_file_that_is_no_safetensors_file(hub: Hub, tmp_path: Path) -> None:
    model = folder(tmp_path / "made" / "bad", WIDE)
    data = (model / "model.safetensors").read_bytes()
    for bad in (b"", b"\xff" * 200, data[:-4], data[:20] + b"!" + data[21:]):
        (model / "model.safetensors").write_bytes(bad)
        hub.put("org/bad", model)
        with hub_read("ranges"), pytest.raises(CheckpointError) as caught:
            magmerge.open_checkpoint("org/bad")
        assert "org/bad@" in str(caught.value)
        assert "/tmp" not in str(caught.value)


def test_a_connection_that_stays_broken_is_one_message(hub: Hub, wide: dict[str, str]) -> None:
    with hub_read("ranges"):
        model = magmerge.open_checkpoint("org/wide")
    hub.drops["model.safetensors"] = [10] * 100
    with pytest.raises(CheckpointError) as caught:
        model.read("a.weight")
    assert "org/wide" in str(caught.value)
    hub.drops.clear()
    assert model.read("a.weight").equal(WIDE["a.weight"])


def test_offline_nothing_is_streamed(
    hub: Hub, wide: dict[str, str], magmerge_cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    call = ["merge", "--base", "org/wide", "--expert", "org/tuned", "--stream"]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    done = magmerge_cli(*call, "none")
    assert done.code == 1
    assert "HF_HUB_OFFLINE is set" in done.message
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in wide:
        magmerge.open_checkpoint(name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    done = magmerge_cli(*call, "out")
    assert done.code == 0, done.message
    assert not hub.asked


@pytest.mark.filterwarnings("ignore:.*read on the hub")
def test_pipelines_too(hub: Hub, tmp_path: Path, magmerge_cli: CommandLine) -> None:
    states = {part: random_state(number, PARTS[part]) for number, part in enumerate(PARTS)}
    write(tmp_path / "B", states)
    write(tmp_path / "E", {part: tuned(state, 1) for part, state in states.items()})
    hub.put("org/B", tmp_path / "B")
    hub.put("org/E", tmp_path / "E")
    calls = {
        "here": ["B", "E"],
        "there": ["org/B", "org/E", "--stream"],
        "kept": ["org/B", "org/E"],
    }
    for out, (base, expert, *more) in calls.items():
        done = magmerge_cli("merge", "--base", base, "--expert", expert, out, *more)
        assert done.code == 0, done.message
        assert bool(whole_in_cache(tmp_path)) == (out == "kept")
        for part in PARTS:
            file = f"{part}/{file_of(part)}"
            assert filecmp.cmp(f"here/{file}", f"{out}/{file}", shallow=False)
        assert (tmp_path / out / "scheduler" / "scheduler_config.json").is_file()
