"""MODEL+ADAPTER: a whole model with an adapter folded in, against PEFT's own merge."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file
from torch import Tensor

import magmerge
from magmerge.core.errors import CheckpointError, StructureError
from tests.checkpoints.adapters.test_on_base import EVERY, trained
from tests.conftest import CommandLine
from tests.front_door.models import llama
from tests.reference_digest import reference_digest

State = dict[str, Tensor]
LORA: dict[str, Any] = {"r": 2, "lora_alpha": 3, "init_lora_weights": False}


def saved(state: State, path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.fixture
def case(tmp_path: Path) -> tuple[State, State]:
    """A base and PEFT's merge of the adapter in tmp_path/lora."""
    peft = pytest.importorskip("peft")
    base, expected = trained(peft.LoraConfig(target_modules=EVERY, **LORA), tmp_path / "lora")
    saved(base, tmp_path / "base.safetensors")
    return base, expected


@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "IA3"])
def test_it_is_what_peft_merges(tmp_path: Path, kind: str) -> None:
    peft = pytest.importorskip("peft")
    config = {
        "LoRA": lambda: peft.LoraConfig(target_modules=EVERY, use_rslora=True, **LORA),
        "DoRA": lambda: peft.LoraConfig(target_modules=EVERY, use_dora=True, **LORA),
        "IA3": lambda: peft.IA3Config(
            target_modules=["first", "second"], feedforward_modules=["second"]
        ),
    }[kind]()
    base, expected = trained(config, tmp_path / "lora")
    saved(base, tmp_path / "base.safetensors")
    model = magmerge.open_checkpoint(f"{tmp_path}/base.safetensors+{tmp_path}/lora")
    assert set(model.specs) == set(base)
    changed = 0
    for name, tensor in expected.items():
        read = model.read(name)
        assert torch.allclose(read, tensor, rtol=1e-5, atol=1e-6), name
        changed += not read.equal(base[name])
        flat = read.reshape(-1)
        part = model.read_part(name, 3, flat.numel() - 2)
        assert part.equal(flat[3:-2])
        out = torch.empty_like(part)
        assert model.read_part(name, 3, flat.numel() - 2, out) is out
        assert out.equal(part)
    assert changed >= 2


def test_one_cast_to_the_format_of_the_model(tmp_path: Path, case: tuple[State, State]) -> None:
    base, _ = case
    half = {name: tensor.bfloat16() for name, tensor in base.items()}
    saved(half, tmp_path / "half.safetensors")
    model = magmerge.open_checkpoint(f"{tmp_path}/half.safetensors+{tmp_path}/lora")
    factors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    up, down = (factors[f"base_model.model.first.lora_{side}.weight"] for side in "BA")
    exact = half["first.weight"].double() + 1.5 * up.double() @ down.double()
    assert model.read("first.weight").dtype == torch.bfloat16
    assert model.read("first.weight").equal(exact.float().bfloat16())


def test_as_base_merged_and_expert(tmp_path: Path, case: tuple[State, State]) -> None:
    base, expected = case
    text, other = (
        f"{tmp_path}/base.safetensors+{tmp_path}/lora",
        saved(base, tmp_path / "o.safetensors"),
    )
    right = saved(expected, tmp_path / "right.safetensors")
    more = saved({n: t + 0.1 for n, t in base.items()}, tmp_path / "more.safetensors")

    def both(run: Any) -> None:
        first, second = run(text).state_dict(), run(str(right)).state_dict()
        assert all(torch.allclose(first[n], second[n], atol=1e-5) for n in second)

    both(lambda m: magmerge.merge(base=m, experts=[more], method="ties"))
    both(lambda m: magmerge.merge(experts=[m, more], method="average"))
    # A base that is another file with the same numbers: the whole model is an expert on it.
    both(lambda m: magmerge.merge(base=other, experts=[m, more], params={"lambda": 0.7}))
    less = saved({n: t * 1.1 for n, t in base.items()}, tmp_path / "less.safetensors")
    both(lambda m: magmerge.calibrate(m, base=other, experts=[less, more]))


def test_on_its_own_base_it_is_the_adapter_byte_for_byte(
    tmp_path: Path, case: tuple[State, State], magmerge_cli: CommandLine
) -> None:
    base, lora = tmp_path / "base.safetensors", tmp_path / "lora"
    for out, expert in (("one", lora), ("two", f"{base}+{lora}")):
        done = magmerge_cli("merge", "--base", base, "--expert", expert, tmp_path / out)
        assert done.code == 0, done.message
    assert filecmp.cmp(
        tmp_path / "one/model.safetensors", tmp_path / "two/model.safetensors", shallow=False
    )
    record = json.loads((tmp_path / "two" / "magmerge.json").read_text())
    assert record["recipe"]["experts"] == {"base.safetensors+lora": "../base.safetensors+../lora"}
    done = magmerge_cli("merge", tmp_path / "two" / "magmerge.yaml", tmp_path / "again")
    assert done.code == 0, done.message
    assert filecmp.cmp(
        tmp_path / "one/model.safetensors", tmp_path / "again/model.safetensors", shallow=False
    )


def test_files_of_both_are_digested(
    tmp_path: Path, case: tuple[State, State], magmerge_cli: CommandLine
) -> None:
    text = f"{tmp_path}/base.safetensors+{tmp_path}/lora"
    more = saved({n: t + 0.1 for n, t in case[0].items()}, tmp_path / "more.safetensors")
    done = magmerge_cli(
        "merge", "--expert", text, "--expert", more, "--method", "average", tmp_path / "out"
    )
    assert done.code == 0, done.message
    first, _ = json.loads((tmp_path / "out" / "magmerge.json").read_text())["inputs"]
    assert first["source"] == "../base.safetensors+../lora"
    config = blake3((tmp_path / "lora" / "adapter_config.json").read_bytes()).hexdigest()
    assert first["files"] == {
        "base.safetensors": reference_digest(tmp_path / "base.safetensors"),
        "adapter_model.safetensors": reference_digest(tmp_path / "lora/adapter_model.safetensors"),
        "adapter_config.json": f"blake3:{config}",
    }


def test_an_adapter_that_does_not_fit_is_told(tmp_path: Path, case: tuple[State, State]) -> None:
    base, expected = case
    small = saved({n: t for n, t in base.items() if "conv" not in n}, tmp_path / "s.safetensors")
    text = f"{small}+{tmp_path}/lora"
    with pytest.raises(StructureError, match=r"conv\.weight of .*lora is not in") as caught:
        magmerge.open_checkpoint(text)
    assert "before the +" in (caught.value.remedy or "")
    cut = {n: t[:, :3] if n == "first.weight" else t for n, t in base.items()}
    with pytest.raises(StructureError, match="does not fit"):
        magmerge.open_checkpoint(f"{saved(cut, tmp_path / 'c.safetensors')}+{tmp_path}/lora")
    # The remedy.
    read = magmerge.open_checkpoint(f"{tmp_path}/base.safetensors+{tmp_path}/lora")
    assert torch.allclose(read.read("conv.weight"), expected["conv.weight"], atol=1e-5)


def test_sides_that_are_exchanged_or_nested_are_told(
    tmp_path: Path, case: tuple[State, State]
) -> None:
    base, lora = f"{tmp_path}/base.safetensors", f"{tmp_path}/lora"
    with pytest.raises(CheckpointError):
        magmerge.open_checkpoint(f"{lora}+{base}")
    with pytest.raises(CheckpointError):
        magmerge.open_checkpoint(f"{base}+{base}")
    with pytest.raises(CheckpointError, match=r"is not|no such"):
        magmerge.open_checkpoint(f"{base}+{lora}+{lora}")


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_the_embedding_alone_sets_the_head_apart(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = llama(tie=True)
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(target_modules=["q_proj", "embed_tokens"], **LORA)
    trained(config, tmp_path / "lora", model)
    text = f"{tmp_path}/base+{tmp_path}/lora"
    tokens = torch.arange(6)[None]
    wrapped = peft.PeftModel.from_pretrained(model, tmp_path / "lora").eval()
    expected = wrapped(tokens).logits
    magmerge.run(magmerge.Recipe(experts={"m": text}), tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(loaded(tokens).logits, expected, atol=1e-5)
    magmerge.merge(base=tmp_path / "base", experts=[text], params={"lambda": 1.0},
                   out=tmp_path / "on")  # fmt: skip
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "on").eval()
    assert torch.allclose(loaded(tokens).logits, expected, atol=1e-5)
