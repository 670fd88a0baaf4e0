"""`magmerge verify`: what is written is what the library loads, and what the recipe gives."""

from __future__ import annotations

import json
import warnings
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.core.checksums import joined
from magmerge.core.errors import CheckpointError
from magmerge.pipeline.verify import Verification
from tests.conftest import CommandLine, random_state, tuned
from tests.engine.test_load_faults import CONFIG, LLAMA, TOKENS, write
from tests.quick import examples


@pytest.fixture
def out(tmp_path: Path) -> Path:
    texts = {"config.json": CONFIG, "tokenizer.json": TOKENS}
    folders = write(tmp_path, LLAMA, texts)
    path = magmerge.merge(
        base=folders[0], experts=folders[1:], method="ties", shard_size=700, out=tmp_path / "out"
    ).path
    assert path is not None
    return path


def faults(found: Verification) -> dict[str, str]:
    return {check.name: check.faults[0].text for check in found.checks if check.faults}


def made(found: Verification) -> set[str]:
    return {check.name for check in found.checks if check.done}


def change(out: Path, name: str, value: float) -> None:
    index = json.loads((out / "model.safetensors.index.json").read_text())
    file = out / index["weight_map"][name]
    state = load_file(file)
    state[name].view(-1)[3] = value
    save_file(state, file, metadata={"format": "pt"})


def test_a_result_is_sound_and_computed_again(out: Path) -> None:
    found = magmerge.verify(out)
    assert found.sound
    assert {"files", "layers", "finite", "checksums", "record", "inputs", "computed again"} <= made(
        found
    )


@pytest.mark.parametrize(("value", "told"), [(0.5, "checksums"), (float("nan"), "finite")])
def test_a_changed_tensor_is_told(out: Path, value: float, told: str) -> None:
    change(out, "model.layers.0.mlp.up_proj.weight", value)
    found = faults(magmerge.verify(out))
    assert {told, "checksums", "computed again"} <= set(found)
    assert "model.layers.0.mlp.up_proj.weight" in found[told]


def test_other_faults_are_told_by_name(out: Path, tmp_path: Path) -> None:
    (out / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 3}))
    (out / "tokenizer.json").unlink()
    base = tmp_path / "b" / "model.safetensors"
    save_file(tuned(random_state(0, LLAMA), 9), base)
    found = faults(magmerge.verify(out))
    assert "says num_hidden_layers 3" in found["layers"]
    assert "files are missing: tokenizer.json" in found["record"]
    assert str(base) in found["inputs"]
    shard = next(out.glob("model-00001*"))
    shard.unlink()
    assert "shards are missing" in faults(magmerge.verify(out))["files"]


def test_ties_that_differ_are_told(out: Path) -> None:
    (out / "config.json").write_text(json.dumps({**CONFIG, "tie_word_embeddings": True}))
    assert "they differ" in faults(magmerge.verify(out))["ties"]
    (out / "config.json").write_text(json.dumps(CONFIG))
    assert magmerge.verify(out).sound


def test_the_command_line(magmerge_cli: CommandLine, out: Path, tmp_path: Path) -> None:
    told = magmerge_cli("verify", out)
    assert told.code == 0
    assert "sound" in told.out
    told = magmerge_cli("verify", out, "--json")
    assert told.json["sound"] is True
    change(out, "lm_head.weight", 7.0)
    told = magmerge_cli("verify", out, "--json")
    assert told.code == 1
    told_faults = {c["name"]: c["faults"] for c in told.json["checks"] if c["faults"]}
    assert "lm_head.weight" in told_faults["checksums"][0]["text"]
    told = magmerge_cli("verify", out)
    assert told.code == 1
    assert "remedy: write it anew" in told.out
    assert magmerge_cli("verify", tmp_path / "nothing").code == 1
    # The remedy: the recipe beside it makes a sound one.
    recipe = out / "magmerge.yaml"
    assert magmerge_cli("merge", recipe, out, "--yes").code == 0
    assert magmerge_cli("verify", out, "--against", recipe, "--all").code == 0


def test_single_files_and_models_of_others(out: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "bcd"]
    file = tmp_path / "one.safetensors"
    magmerge.merge(base=folders[0], experts=folders[1:], method="average", out=file)
    assert {"checksums", "computed again"} <= made(magmerge.verify(file))
    other = magmerge.verify(folders[1])
    assert other.sound
    assert not {"checksums", "record", "computed again"} & made(other)
    with pytest.raises(CheckpointError, match="no such file"):
        magmerge.verify(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no checkpoint in this folder" in faults(magmerge.verify(tmp_path / "empty"))["files"]


def test_a_file_under_another_librarys_name_is_told(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    found = magmerge.verify(folder)
    assert "diffusers looks for diffusion_pytorch_model.safetensors" in faults(found)["file names"]
    (folder / "model.safetensors").rename(folder / "diffusion_pytorch_model.safetensors")
    assert magmerge.verify(folder).sound


def test_an_adapter_is_checked(out: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    with pytest.warns(magmerge.MagmergeWarning, match="not in the adapter"):
        magmerge.extract(base=tmp_path / "b", model=tmp_path / "c", rank=2, out=adapter)
    found = magmerge.verify(adapter)
    assert found.sound
    assert "checksums" in made(found)
    # One that is merged into a model is an input with two files.
    models: dict[str, Any] = {"base": tmp_path / "b", "experts": [adapter], "method": "average"}
    merged = magmerge.merge(**models, out=tmp_path / "merged").path
    assert merged is not None
    assert magmerge.verify(merged).sound
    state = load_file(adapter / "adapter_model.safetensors")
    state.pop(next(iter(state)))
    save_file(state, adapter / "adapter_model.safetensors")
    assert not magmerge.verify(adapter).sound


def test_a_resumed_result_has_the_checksums_of_a_whole_one(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from magmerge.checkpoints.output.writer import FileSink

    folders = [tmp_path / name for name in "bcd"]
    work: dict[str, Any] = {"base": folders[0], "experts": folders[1:], "method": "average"}
    whole = magmerge.merge(**work, out=tmp_path / "whole").path
    write_part, seen = FileSink.write, []

    def killed(self: FileSink, step: Any, start: int, part: torch.Tensor) -> None:
        seen.append(step)
        if len(seen) > 3:
            raise KeyboardInterrupt
        write_part(self, step, start, part)

    with monkeypatch.context() as patch:
        patch.setattr(FileSink, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            magmerge.merge(**work, out=tmp_path / "again", resume=True)
    again = magmerge.merge(**work, out=tmp_path / "again", resume=True).path
    assert whole is not None
    assert again is not None
    records = [json.loads((p / "magmerge.json").read_text()) for p in (whole, again)]
    assert records[0]["checksums"] == records[1]["checksums"]
    assert magmerge.verify(again).sound


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_joined_checksums_are_those_of_the_whole(parts: list[bytes]) -> None:
    assert joined((zlib.crc32(p), len(p)) for p in parts) == zlib.crc32(b"".join(parts))


anything = st.recursive(
    st.none() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@settings(max_examples=examples(60), deadline=None)
@given(st.dictionaries(st.sampled_from(["files", "inputs", "checksums", "recipe"]), anything))
def test_a_hostile_record_makes_no_error(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    save_file(random_state(0, LLAMA), folder / "model.safetensors")
    inputs = [{"source": str(folder), "files": content}, content, 3]
    record = {"magmerge": "0", "inputs": inputs, **content}
    (folder / "magmerge.json").write_text(json.dumps(record))
    (folder / "magmerge.yaml").write_text(json.dumps(content))
    magmerge.verify(folder)


def test_a_broken_record_or_recipe_is_told(out: Path) -> None:
    (out / "magmerge.json").write_text("{")
    (out / "magmerge.yaml").write_text("base: [")
    found = faults(magmerge.verify(out))
    assert {"record", "recipe"} <= set(found)


def test_load_builds_loads_and_runs(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    more = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 16}
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **more))
        model.save_pretrained(tmp_path / "m")
    found = {check.name: check for check in magmerge.verify(tmp_path / "m", load=True).checks}
    assert found["loads"].done
    assert "1x8x16 are finite" in found["runs"].seen
    file = tmp_path / "m" / "model.safetensors"
    state = load_file(file)
    state["extra.weight"] = state.pop("model.layers.1.mlp.up_proj.weight")
    save_file(state, file, metadata={"format": "pt"})
    (check,) = [c for c in magmerge.verify(tmp_path / "m", load=True).checks if c.name == "loads"]
    texts = " ".join(fault.text for fault in check.faults)
    assert "model.layers.1.mlp.up_proj.weight" in texts
    assert "extra.weight" in texts


def test_code_of_a_checkpoint_never_runs(out: Path) -> None:
    config = {"model_type": "mine", "auto_map": {"AutoModel": "modeling_mine.Mine"}}
    (out / "config.json").write_text(json.dumps({**config, "architectures": ["Mine"]}))
    (out / "modeling_mine.py").write_text("raise SystemExit('it ran')")
    pytest.importorskip("transformers")
    (check,) = [c for c in magmerge.verify(out, load=True).checks if c.name == "loads"]
    assert not check.done
    assert "never runs" in check.seen


def test_a_model_of_open_clip_keeps_the_names_that_it_is_loaded_by(
    folders: list[Path], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for folder in folders:
        (folder / "model.safetensors").rename(folder / "open_clip_model.safetensors")
        (folder / "config.json").unlink(missing_ok=True)
        (folder / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 8}}')
    out = magmerge.merge(base=folders[0], experts=folders[1:], out=tmp_path / "out").path
    assert (out / "open_clip_model.safetensors").is_file()
    assert (out / "open_clip_config.json").is_file()
    assert not [said for said in recwarn if "no config.json" in str(said.message)]
    again = magmerge.merge(base=folders[0], experts=folders[1:2], out=out, overwrite=True).path
    assert sorted(path.name for path in again.glob("*.safetensors")) == [
        "open_clip_model.safetensors"
    ]
