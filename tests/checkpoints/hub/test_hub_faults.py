"""What goes wrong with models of the hub: one message each, and nothing half fetched."""

from __future__ import annotations

import filecmp
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import magmerge
from magmerge.checkpoints.hub import fetch, ranges, remote_file
from magmerge.core.errors import CheckpointError, MagmergeWarning
from tests.checkpoints.hub.conftest import BASE, folder
from tests.conftest import CommandLine, tuned
from tests.hub_server import Hub, sha256

GATED = "request access at http://127.0.0.1:{port}/org/base, then log in: hf auth login"


@pytest.mark.parametrize(
    ("name", "problem", "remedy"),
    [
        ("org/none", "the hub has no such model, or it is private", "hf auth login"),
        ("org/base@v9", "the hub has no revision 'v9' of it", "known: main"),
        ("org/base@mian", "the hub has no revision", "did you mean main?"),
        ("org/private", "the hub has no such model, or it is private", "hf auth login"),
        ("org/gated", "it is gated", "org/gated, then log in: hf auth login"),
        ("org/empty", "no model that is found by its name", "name a repository with weights"),
        ("org/files", "a.safetensors, b.safetensors", "hf download org/files FILE --local-dir"),
    ],
)
def test_mistakes_are_one_message(
    hub: Hub, models: dict[str, str], tmp_path: Path, magmerge_cli: CommandLine, name: str,
    problem: str, remedy: str,
) -> None:  # fmt: skip
    hub.put("org/gated", tmp_path / "made" / "base", gated=True)
    hub.put("org/private", tmp_path / "made" / "base", private=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("")
    hub.put("org/empty", tmp_path / "empty")
    (tmp_path / "files").mkdir()
    for file in ("a", "b"):
        save_file(BASE, tmp_path / "files" / f"{file}.safetensors")
    hub.put("org/files", tmp_path / "files")
    done = magmerge_cli("inspect", name)
    assert done.code == 1
    assert problem in done.message
    assert remedy in done.message
    assert done.message.count("error:") == 1


def test_the_remedy_of_a_gated_model(
    hub: Hub, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("org/gated", tmp_path / "made" / "base", gated=True)
    with pytest.raises(CheckpointError, match="gated"):
        magmerge.open_checkpoint("org/gated")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert torch.equal(magmerge.open_checkpoint("org/gated").read("lm_head.weight"),
                       BASE["lm_head.weight"])  # fmt: skip


def test_a_token_is_neither_told_nor_recorded(
    hub: Hub, models: dict[str, str], tmp_path: Path, magmerge_cli: CommandLine,
    monkeypatch: pytest.MonkeyPatch, cache: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.repos["org/base"].private = True
    told = []
    for call in (
        ("merge", "--base", "org/base", "--expert", "org/expert", "out"),
        ("plan", "--base", "org/base", "--expert", "org/expert"),
        ("inspect", "org/none"),
        ("inspect", "org/base@none"),
    ):
        done = magmerge_cli(*call)
        told.append(done.out + done.err)
    monkeypatch.setenv("HF_TOKEN", "hf_WRONGtokenWRONG")
    done = magmerge_cli("inspect", "org/base@other")
    assert done.code == 1
    assert "hf auth login" in done.message
    told.append(done.out + done.err)
    sent = [
        headers
        for _, _, headers in hub.asked
        if "authorization" in {key.lower() for key in headers}
    ]
    assert sent
    written = [file.read_bytes() for place in (tmp_path, cache) for file in place.rglob("*")
               if file.is_file()]  # fmt: skip
    for text in (*map(str.encode, told), *written):
        assert b"SECRETtoken" not in text
        assert b"WRONGtoken" not in text


def test_offline(
    hub: Hub, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    magmerge.open_checkpoint("org/base")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    read = magmerge.open_checkpoint("org/base")
    assert read.source == f"org/base@{models['org/base']}"
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set") as caught:
        magmerge.open_checkpoint("org/expert")
    assert "HF_HUB_OFFLINE=0 hf download org/expert" in (caught.value.remedy or "")
    assert not hub.asked
    # The remedy's command, as the library's own call.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.snapshot_download("org/expert", endpoint=hub.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    expert = magmerge.open_checkpoint("org/expert")
    assert any("another program put it" in note for note in expert.notes)
    lost = next((tmp_path / "hf").rglob("model-00002-of-00002.safetensors"))
    lost.unlink()
    with pytest.raises(CheckpointError, match="1 of its files are not in the hub's cache"):
        magmerge.open_checkpoint("org/expert")


def test_no_network(hub: Hub, models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    magmerge.open_checkpoint("org/base")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    read = magmerge.open_checkpoint("org/base")
    assert any("the hub cannot be reached" in note for note in read.notes)
    with pytest.warns(MagmergeWarning, match="org/base@.* is taken from its cache"):
        result = magmerge.merge(base="org/base", experts=[tuned(BASE, 1)])
    assert any("the hub cannot be reached" in note for note in result.warnings)
    with pytest.raises(CheckpointError, match=r"cannot be reached at http://127\.0\.0\.1:9") as e:
        magmerge.open_checkpoint("org/expert")
    assert "hf download org/expert" in (e.value.remedy or "")


def test_a_dropped_connection_is_gone_on_with(
    hub: Hub, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "FIRST_WAIT", 0.01)
    name = "model.safetensors"
    size = len(next(iter(hub.repos["org/base"].commits.values()))[name])
    hub.drops[name] = [size // 3, size // 4]
    hub.busy = 2
    read = magmerge.open_checkpoint("org/base")
    assert torch.equal(read.read("lm_head.weight"), BASE["lm_head.weight"])
    hub.drops[name] = [0] * remote_file.TRIES
    hub.put("org/base", folder(Path("made/new"), tuned(BASE, 5)))
    with pytest.raises(CheckpointError) as caught:
        magmerge.open_checkpoint("org/base")
    assert "hf download org/base" in (caught.value.remedy or "")
    assert torch.equal(
        magmerge.open_checkpoint("org/base").read("lm_head.weight"),
        tuned(BASE, 5)["lm_head.weight"],
    )


def test_a_killed_download_is_gone_on_with(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "LENGTH", 1 << 20)
    large = {"w.weight": torch.arange(4_000_000, dtype=torch.float32)}
    hub.put("org/large", folder(tmp_path / "made" / "large", large))
    size = len(next(iter(hub.repos["org/large"].commits.values()))["model.safetensors"])

    def stop(label: str, done: int, total: int) -> None:
        if label.startswith("fetching") and total > 10 and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        magmerge.merge(base="org/large", experts=[large], progress=stop)
    assert size / 2 < hub.sent["model.safetensors"] < size
    hub.sent.clear()
    read = magmerge.open_checkpoint("org/large")
    assert torch.equal(read.read("w.weight"), large["w.weight"])
    assert 0 < hub.sent["model.safetensors"] < size / 2
    # It lies where the hub's own library looks for it.
    library = pytest.importorskip("huggingface_hub")
    hub.asked.clear()
    path = library.hf_hub_download("org/large", "model.safetensors", endpoint=hub.endpoint)
    assert Path(path).samefile(read.files[0])
    assert not [path for method, path, _ in hub.asked if method == "GET"]


def test_hostile_names_lead_nowhere(hub: Hub, models: dict[str, str], tmp_path: Path) -> None:
    repo = hub.repos["org/base"]
    files = dict(repo.commits[repo.refs["main"]])
    for name in ("../../../evil.json", "/tmp/evil.json", "a\nb.json", "unet/../../evil.json"):
        files[name] = b"{}"
    index = {"weight_map": {"w": "../../../evil.safetensors"}}
    files["modules.json"] = b"[]"
    hub.repos["org/base"].commit(files)
    before = {str(path) for path in tmp_path.parent.rglob("evil*")}
    assert magmerge.open_checkpoint("org/base").read("lm_head.weight").equal(BASE["lm_head.weight"])
    del files["model.safetensors"]
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    hub.repos["org/base"].commit(files)
    with pytest.raises(CheckpointError, match="names a shard outside its folder"):
        magmerge.open_checkpoint("org/base")
    assert {str(path) for path in tmp_path.parent.rglob("evil*")} == before


def test_strengths_and_recipes(
    hub: Hub, models: dict[str, str], magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    Path("recipe.yaml").write_text(
        "base: org/base\nexperts: [org/expert]\nmethod: task_arithmetic\n"
        "params: {weights: [0.5], lambda: 1.0}\n"
    )
    done = magmerge_cli("merge", "recipe.yaml", "one")
    assert done.code == 0, done.message
    done = magmerge_cli("merge", "--base", "org/base", "--expert", "org/expert=0.5", "two")
    assert done.code == 0, done.message
    assert filecmp.cmp("one/model.safetensors", "two/model.safetensors", shallow=False)


def test_what_comes_otherwise_than_the_hub_tells_is_refused(
    hub: Hub, models: dict[str, str], tmp_path: Path
) -> None:
    data = next(iter(hub.repos["org/base"].commits.values()))["model.safetensors"]
    hub.blobs[sha256(data)] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(CheckpointError, match="other bytes than the hub tells") as caught:
        magmerge.open_checkpoint("org/base")
    assert "run it again" in (caught.value.remedy or "")
    hub.blobs[sha256(data)] = data
    assert magmerge.open_checkpoint("org/base").read("lm_head.weight").equal(BASE["lm_head.weight"])


def test_progress_is_lines_in_a_log(
    hub: Hub, models: dict[str, str], magmerge_cli: CommandLine
) -> None:
    done = magmerge_cli("merge", "--base", "org/base", "--expert", "org/expert", "out")
    assert "fetching org/base (MB): 1/1" in done.err
    assert "\r" not in done.err


def test_a_full_disk_is_told_before_anything_is_fetched(
    hub: Hub, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=fetch.RESERVE + 100)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="are to be fetched") as caught:
        magmerge.open_checkpoint("org/base")
    assert "HF_HOME" in (caught.value.remedy or "")


def test_without_the_library_the_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "import magmerge\n"
        "try: magmerge.open_checkpoint('org/name')\n"
        "except magmerge.MagmergeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'magmerge[hub]'" in done.stdout


def test_a_merge_of_files_does_not_import_it(tmp_path: Path) -> None:
    save_file(BASE, tmp_path / "a.safetensors")
    save_file(tuned(BASE, 1), tmp_path / "b.safetensors")
    code = (
        "import sys, magmerge\n"
        f"magmerge.merge(base='{tmp_path}/a.safetensors', experts=['{tmp_path}/b.safetensors'])\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "assert not any('magmerge.checkpoints.hub' in name for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
