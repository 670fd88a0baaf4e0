"""A model handed over to llama.cpp: by a stand-in for its converter, which takes its arguments."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import magmerge
from magmerge.checkpoints.gguf.converter import TYPES
from magmerge.checkpoints.gguf.gguf_header import read_gguf_header
from magmerge.core.errors import (
    CheckpointError,
    MagmergeError,
    MissingExtraError,
    OutputError,
    ParameterError,
    StructureError,
)
from tests.checkpoints.adapters.files import write_adapter
from tests.conftest import CommandLine
from tests.golden.cases import MODULES
from tests.token_models import model, tokenizer

STAND_IN = """
import argparse, json, os, pathlib, sys
parser = argparse.ArgumentParser(description="stands in for llama.cpp's converter")
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("--outfile", type=pathlib.Path)
parser.add_argument("--outtype", choices=["f32", "f16", "bf16", "q8_0", "auto"], default="auto")
own = parser.parse_args()
import gguf, numpy
from safetensors.numpy import load_file
assert os.environ["HF_HUB_OFFLINE"] == "1"
BEFORE
writer = gguf.GGUFWriter(own.outfile, "llama")
half = own.outtype in ("f16", "auto")
writer.add_file_type(KIND if KIND is not None else {"f32": 0, "f16": 1, "auto": 1}[own.outtype])
tokens = json.loads((own.model / "tokenizer.json").read_text())["model"]["vocab"]
if TOKENS:
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(list(tokens))
template = own.model / "chat_template.jinja"
if template.is_file() and TEMPLATE:
    writer.add_chat_template(template.read_text() if TEMPLATE is True else TEMPLATE)
for name, tensor in load_file(own.model / "model.safetensors").items():
    if name not in LEFT_OUT:
        writer.add_tensor(name, tensor.astype(numpy.float16 if half else numpy.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
AFTER
"""
PLAIN: dict[str, Any] = {
    **{"BEFORE": "", "AFTER": "", "KIND": None, "TOKENS": True, "TEMPLATE": True, "LEFT_OUT": []}
}


def stand_in(folder: Path, **changes: Any) -> Path:
    """A converter in a folder, which does what `changes` say."""
    pytest.importorskip("gguf")
    folder.mkdir(exist_ok=True)
    text = STAND_IN
    for word, own in {**PLAIN, **changes}.items():
        text = text.replace(word, own if word in ("BEFORE", "AFTER") else repr(own))
    file = folder / "convert_hf_to_gguf.py"
    file.write_text(text)
    return file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with a tokenizer and a template of chats; no converter is anywhere."""
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    place = tmp_path / "model"
    model(place, len(tokenizer(place)), 0)
    (place / "chat_template.jinja").write_text("{{ 'chat' }}")
    return place


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_file_holds_tensors_tokens_and_the_chat_template(
    folder: Path, tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    out, converter = tmp_path / "out.gguf", stand_in(tmp_path / "llama.cpp")
    before = left(tmp_path)
    told = ("export", "gguf", folder, out, "--outtype", "f16", "--converter", converter.parent)
    done = magmerge_cli(*told)
    assert done.code == 0, done.err
    header = read_gguf_header(out)
    assert header.facts["tokenizer.chat_template"] == "{{ 'chat' }}"
    assert len(header.tensors) == 3
    assert f"FROM {out}" in done.out
    assert "ollama create out -f Modelfile" in done.out
    assert "its chat template is in it" in done.out
    assert left(tmp_path) == {*before, "out.gguf"}
    assert "exists already" in magmerge_cli(*told).message
    again = magmerge_cli(*told, "--yes", "--json")
    assert again.json["tensors"] == 3
    assert again.json["modelfile"] == f"FROM {out}\n"
    command = again.json["command"]
    assert command[1:3] == [str(converter), str(folder)]
    assert command[3] == "--outfile"
    assert command[5:] == ["--outtype", "f16"]


@pytest.mark.parametrize("way", ["file", "folder", "variable", "path"])
def test_the_converter_is_found_where_users_have_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    converter, given = stand_in(tmp_path / "llama.cpp"), None
    if way in ("file", "folder"):
        given = converter if way == "file" else converter.parent
    elif way == "variable":
        monkeypatch.setenv("LLAMA_CPP", str(converter.parent))
    else:
        converter.chmod(converter.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(converter.parent), prepend=os.pathsep)
    done = magmerge.export(folder, tmp_path / "out.gguf", converter=given)
    assert done.command[1] == str(converter)
    assert done.chat_template


def test_without_a_converter_the_commands_are_told_and_take_what_it_takes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, magmerge_cli: CommandLine
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "out.gguf"
    done = magmerge_cli("export", "gguf", folder, out, "--outtype", "f16")
    assert done.code == 1
    assert "nothing was written" in done.message
    assert not out.exists()
    lines = [line.strip() for line in done.err.splitlines()]
    assert "git clone --depth 1 https://github.com/ggml-org/llama.cpp" in lines
    stand_in(tmp_path / "llama.cpp")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    words = next(shlex.split(line) for line in lines if line.startswith("magmerge export"))
    assert magmerge_cli(*words[1:]).code == 0
    out.unlink()
    by_hand = next(shlex.split(line) for line in lines if line.startswith("python "))

    subprocess.run(
        [sys.executable, *by_hand[1:]], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert len(read_gguf_header(out).tensors) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"BEFORE": "sys.exit('Model TinyForCausalLM is not supported')"},
            "TinyForCausalLM is not",
        ),
        ({"BEFORE": "sys.exit(0)"}, "wrote nothing"),
        ({"AFTER": "own.outfile.write_bytes(own.outfile.read_bytes()[:400])"}, "not a sound GGUF"),
        ({"AFTER": "sys.exit('disk full')"}, "the converter failed: disk full"),
        ({"TEMPLATE": False}, "it holds no chat template"),
        ({"TEMPLATE": "other"}, "it holds another chat template"),
        ({"TOKENS": False}, "it holds no tokens"),
        ({"KIND": 7}, "its format is number 7, not 1"),
    ],
)
def test_what_is_half_written_or_another_model_never_gets_the_name(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    converter, before = stand_in(tmp_path / "llama.cpp", **changes), left(tmp_path)
    with pytest.raises(OutputError, match=message) as caught:
        magmerge.export(folder, tmp_path / "out.gguf", converter=converter, outtype="f16")
    assert caught.value.remedy
    assert left(tmp_path) == before


def test_values_that_are_left_out_are_told(folder: Path, tmp_path: Path) -> None:
    converter = stand_in(tmp_path / "llama.cpp", LEFT_OUT=["lm_head.weight"])
    with pytest.warns(magmerge.MagmergeWarning, match="holds 276 of the model's 516 values"):
        magmerge.export(folder, tmp_path / "out.gguf", converter=converter)


def test_what_does_not_take_the_options_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    for text, message in (
        ("print('usage: other [--out FILE]')", "takes no --outfile and no --outtype"),
        ("import no_such_module_at_all", "it does not run: .*no_such_module_at_all"),
        ("print('--outfile --outtype f32')", "takes no --outtype q8_0"),
    ):
        other.write_text(text)
        with pytest.raises(ParameterError, match=message) as caught:
            magmerge.export(folder, tmp_path / "out.gguf", converter=other, outtype="q8_0")
        assert caught.value.remedy
    with pytest.raises(ParameterError, match="converter is not there"):
        magmerge.export(folder, tmp_path / "out.gguf", converter=tmp_path / "nowhere")


def test_formats_that_are_made_of_others_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="writes no 'q4_k_m'") as caught:
        magmerge.export(folder, tmp_path / "out.gguf", outtype="q4_k_m")
    assert "llama-quantize F16.gguf OUT.gguf Q4_K_M" in str(caught.value.remedy)
    gguf = pytest.importorskip("gguf")
    numbers = {name: kind for name, kind in TYPES.items() if kind is not None}
    for name, kind in numbers.items():
        assert gguf.LlamaFileType(kind).name.lower().endswith(f"_{name}")


def test_what_is_no_whole_model_is_refused_with_what_helps(
    folder: Path, tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    converter, out = stand_in(tmp_path / "llama.cpp"), tmp_path / "out.gguf"

    def refused(place: Path, kind: type[MagmergeError]) -> MagmergeError:
        with pytest.raises(kind) as caught:
            magmerge.export(place, out, converter=converter)
        return caught.value

    adapter = write_adapter(tmp_path / "adapter.safetensors", MODULES, seed=0)
    assert "magmerge merge --base B" in str(refused(adapter, CheckpointError).remedy)
    single = tmp_path / "single.safetensors"
    state = model(tmp_path / "bare", 8, 1)
    save_file(state, single)
    assert "magmerge convert" in str(refused(single, CheckpointError).remedy)
    assert "no tokenizer" in str(refused(tmp_path / "bare", StructureError))
    assert refused(tmp_path / "nothing", CheckpointError)
    (folder / "modeling.py").write_text("raise SystemExit(3)")
    assert "holds code (modeling.py)" in str(refused(folder, StructureError))
    magmerge.export(folder, out, converter=converter, allow_code=True)
    (folder / "modeling.py").unlink()
    out.unlink()
    model(folder, 8, 0)
    assert refused(folder, StructureError).remedy
    unknown = magmerge_cli("export", "onnx", folder, out)
    assert "no export to 'onnx'" in unknown.message


def test_no_converter_is_a_missing_library(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingExtraError):
        magmerge.export(folder, tmp_path / "out.gguf")
