"""Results to the hub: what is sent, what is refused, and whether others load it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.core.errors import CheckpointError, OutputError, ParameterError
from tests.conftest import CommandLine, random_state, tuned
from tests.front_door.models import llama, trained
from tests.hub_server import Hub

BASE = random_state(0)


@pytest.fixture
def out(hub: Hub, tmp_path: Path) -> Path:
    """A result, with a stranger's file in its folder."""
    (tmp_path / "base").mkdir()
    save_file(BASE, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "own"}')
    made = tmp_path / "out"
    magmerge.merge(base=tmp_path / "base", experts={"e": tuned(BASE, 1)}, out=made)
    (made / "README.md").write_text("---\nlicense: mit\n---\nA merge.\n")
    (made / "secrets.txt").write_text("mine")
    return made


def test_a_result_is_sent_and_read_from_there(
    hub: Hub,
    out: Path,
    magmerge_cli: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = magmerge_cli("push", out, "me/merge", "--private", "--dry-run")
    assert done.code == 0, done.message
    assert "would be sent to the private repository" in done.out
    assert f"{hub.endpoint}/me/merge" in done.out
    assert "model.safetensors  13.5 kB" in done.out
    assert not hub.asked
    monkeypatch.setenv("HF_TOKEN", hub.token)
    done = magmerge_cli("push", out, "me/merge", "--private", "--json")
    assert done.code == 0, done.message
    assert done.json["commit"].startswith(f"{hub.endpoint}/me/merge/commit/")
    assert hub.token not in done.out + done.err
    repo = hub.repos["me/merge"]
    assert repo.private
    files = repo.commits[repo.refs["main"]]
    assert set(files) == {
        ".gitattributes", "README.md", "config.json", "magmerge.json", "magmerge.yaml",
        "model.safetensors",
    }  # fmt: skip
    read = magmerge.open_checkpoint("me/merge")
    state = load_file(out / "model.safetensors")
    assert all(read.read(name).equal(tensor) for name, tensor in state.items())
    # What is there already gets a commit more.
    done = magmerge_cli("push", out, "me/merge")
    assert done.code == 0, done.message
    assert len(repo.commits) == 3


def test_merge_pushes(
    hub: Hub, out: Path, magmerge_cli: CommandLine, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    save_file(tuned(BASE, 1), "e.safetensors")
    call = ["merge", "--base", "base", "--expert", "e.safetensors", "new"]
    done = magmerge_cli(*call, "--push", "me/new")
    assert done.code == 1
    assert "hf auth login" in done.message
    assert not Path("new").exists()
    assert "add --push" in magmerge_cli(*call, "--private").message
    monkeypatch.setenv("HF_TOKEN", hub.token)
    done = magmerge_cli(*call, "--push", "me/new")
    assert done.code == 0, done.message
    assert f"sent to the repository {hub.endpoint}/me/new" in done.out
    done = magmerge_cli("merge", "new/magmerge.yaml", "again", "--push", "me/again", "--json")
    assert done.code == 0, done.message
    assert done.json["path"] == "again"
    assert "me/again" in hub.repos


def test_what_is_not_sound_or_not_its_own_is_refused(
    hub: Hub, out: Path, magmerge_cli: CommandLine, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with pytest.raises(OutputError, match=r"it has no magmerge\.json") as caught:
        magmerge.push("base", "me/base")
    assert "--force" in (caught.value.remedy or "")
    assert magmerge_cli("push", "base", "me/base", "--force").code == 0
    assert "model.safetensors" in hub.repos["me/base"].commits[hub.repos["me/base"].refs["main"]]
    state = load_file(out / "model.safetensors")
    state["lm_head.weight"][0] = torch.nan
    save_file(state, out / "model.safetensors")
    with pytest.raises(OutputError, match="it is not sound, and is not sent") as caught:
        magmerge.push(out, "me/merge")
    assert f"magmerge verify {out}" in (caught.value.remedy or "")
    assert magmerge_cli("verify", out).code == 1
    assert "me/merge" not in hub.repos


def test_what_a_record_names_elsewhere_is_not_sent(hub: Hub, out: Path) -> None:
    record = json.loads((out / "magmerge.json").read_text())
    (out.parent / "key").write_text("mine")
    (out / "link.txt").symlink_to(out.parent / "key")
    record["files"] += ["../key", str(out.parent / "key"), "link.txt"]
    (out / "magmerge.json").write_text(json.dumps(record))
    sent = magmerge.push(out, "me/merge", dry_run=True)
    assert not any("key" in name or "link" in name for name in sent.files)


def test_mistakes_are_one_message(
    hub: Hub, out: Path, magmerge_cli: CommandLine, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("merge", "a/b/c", "me/merge@main", "../x"):
        with pytest.raises(ParameterError, match="no name of a repository"):
            magmerge.push(out, name)
    with pytest.raises(CheckpointError, match="no such file"):
        magmerge.push("lost", "me/merge")
    with pytest.raises(OutputError, match="without a token") as caught:
        magmerge.push(out, "me/merge")
    assert "hf auth login" in (caught.value.remedy or "")
    monkeypatch.setenv("HF_TOKEN", "hf_WRONG")
    done = magmerge_cli("push", out, "me/merge")
    assert done.code == 1
    assert "hf auth login" in done.message
    assert "hf_WRONG" not in done.message
    monkeypatch.setenv("HF_TOKEN", hub.token)
    done = magmerge_cli("push", out, "others/merge")
    assert done.code == 1
    assert "the hub refuses (403)" in done.message
    card = (out / "README.md").read_text()
    (out / "README.md").write_text(card.replace("mit", "BAD"))
    done = magmerge_cli("push", out, "me/public")
    assert done.code == 1
    assert "mend the YAML" in done.message
    (out / "README.md").write_text(card)
    magmerge.push(out, "me/public")
    with pytest.raises(OutputError, match="for all to see"):
        magmerge.push(out, "me/public", private=True)


@pytest.mark.slow
def test_from_the_hub_and_to_it_by_its_environment_alone(hub: Hub, tmp_path: Path) -> None:
    """In processes of their own, as users have it: HF_ENDPOINT, HF_HOME and HF_TOKEN."""
    pytest.importorskip("transformers")
    base = llama()
    base.save_pretrained(tmp_path / "base")
    trained(base, 1).save_pretrained(tmp_path / "expert")
    for name in ("base", "expert"):
        hub.put(f"org/{name}", tmp_path / name)
    own = {
        "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": hub.token,
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    environment = {**os.environ, **own}

    def program(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert hub.token not in done.stdout + done.stderr
        return done.stdout

    call = ("-m", "magmerge", "merge", "--base", "org/base", "--expert", "org/expert")
    program(*call, "out", "--push", "me/merge", "--private")
    program(*call, "streamed", "--stream")
    state = load_file(tmp_path / "out" / "model.safetensors")
    streamed = load_file(tmp_path / "streamed" / "model.safetensors")
    assert all(streamed[name].equal(tensor) for name, tensor in state.items())
    told = program(
        "-c",
        "from transformers import AutoModelForCausalLM as M\n"
        "model, told = M.from_pretrained('me/merge', output_loading_info=True)\n"
        "assert not any(told.values()), told\n"
        "print(sum(p.double().sum().item() for p in model.parameters()))\n",
    )
    shared = {tensor.data_ptr(): tensor for tensor in state.values()}.values()
    assert float(told) == pytest.approx(sum(float(t.double().sum()) for t in shared), abs=1e-3)
