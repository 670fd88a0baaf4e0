"""Models under a name that no library loads, averages passed over, donors that do not fit."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import magmerge
from magmerge.core.errors import MagmergeWarning, OutputError
from tests.conftest import CommandLine, State
from tests.front_door.models import llama, trained


def unet(seed: int) -> Any:
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip


@pytest.mark.parametrize("shard", ["5GB", "20kB"])
@pytest.mark.parametrize("way", ["merge", "save", "convert"])
def test_a_merged_unet_loads(
    magmerge_cli: CommandLine, tmp_path: Path, shard: str, way: str
) -> None:
    from diffusers import UNet2DModel

    for seed, name in enumerate(("base", "a", "b")):
        unet(seed).save_pretrained(tmp_path / name)
    models = {"base": tmp_path / "base", "experts": [tmp_path / "a", tmp_path / "b"]}
    out = tmp_path / "out"
    expected = magmerge.merge(**models).state_dict()
    if way == "merge":
        call = ["--base", tmp_path / "base", "--expert", tmp_path / "a", "--expert", tmp_path / "b"]
        assert magmerge_cli("merge", *call, out, "--shard-size", shard).code == 0
    elif way == "save":
        magmerge.merge(**models).save(out, shard_size=shard)
    else:
        expected = load_file(tmp_path / "a" / "diffusion_pytorch_model.safetensors")
        assert magmerge_cli("convert", tmp_path / "a", out).code == 0
    loaded, told = UNet2DModel.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name])


class Net(nn.Module):
    """A class that is not installed where its pickle is read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)


@pytest.fixture
def net() -> Callable[[int], nn.Module]:
    module = types.ModuleType("ultra")
    module.Net = Net
    before, sys.modules["ultra"], Net.__module__ = Net.__module__, module, "ultra"

    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Net()

    yield made
    Net.__module__ = before
    del sys.modules["ultra"]


AVERAGES = {
    "module": lambda average: {"ema": average, "updates": 3},
    "state": lambda average: {"ema_state_dict": average.state_dict()},
    "timm": lambda average: {"state_dict_ema": average.state_dict()},
    "basicsr": lambda average: {"params_ema": average.state_dict()},
    "wrapped": lambda average: {"ema": {"state_dict": average.state_dict(), "decay": 0.99}},
    "callback": lambda average: {"callbacks": {"EMA": {"ema_state_dict": average.state_dict()}}},
    "torch": lambda average: {
        "averaged_model": {
            "n_averaged": torch.tensor(3),
            **{f"module.{name}": tensor for name, tensor in average.state_dict().items()},
        }
    },
}
RAW = {
    "module": lambda raw: {"model": raw},
    "state": lambda raw: {"model_state_dict": raw.state_dict()},
    "timm": lambda raw: {"state_dict": raw.state_dict()},
    "basicsr": lambda raw: {"params": raw.state_dict()},
    "wrapped": lambda raw: {"model": raw.state_dict()},
    "callback": lambda raw: {"state_dict": raw.state_dict()},
    "torch": lambda raw: {"model": raw.state_dict()},
}


@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("raw", [True, False], ids=["beside raw", "alone"])
def test_averaged_weights_are_taken_and_that_is_said(
    magmerge_cli: CommandLine,
    net: Callable[[int], nn.Module],
    tmp_path: Path,
    kind: str,
    raw: bool,
) -> None:
    averages = [net(seed).half() for seed in (1, 2)]
    for number, average in enumerate(averages):
        content = {"epoch": 3, "optimizer": {"state": {}}, **AVERAGES[kind](average)}
        content |= RAW[kind](net(10 + number)) if raw else {"model": None}
        torch.save(content, tmp_path / f"{number}.pt")
    out = tmp_path / "out.safetensors"
    call = ["--expert", tmp_path / "0.pt", "--expert", tmp_path / "1.pt", "--method", "average"]
    found = magmerge_cli("merge", *call, out)
    assert found.code == 0, found.err
    first, second = (average.state_dict() for average in averages)
    expected = (first["conv.weight"].float() + second["conv.weight"].float()) / 2
    merged = load_file(out)
    assert set(merged) == set(first)
    assert torch.allclose(merged["conv.weight"].float(), expected, atol=1e-3)
    assert ("averaged are taken" in found.message) == raw
    record = json.loads((tmp_path / "out.magmerge.json").read_text())
    assert any("averaged" in warning for warning in record["warnings"]) == raw


def test_averaged_weights_that_cannot_be_read_are_no_reason_to_take_the_raw_ones(
    magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    state = {"w": torch.ones(2, 2)}
    shadow = {"decay": 0.99, "shadow_params": [torch.ones(2, 2)]}
    other = {"v": torch.ones(2, 2)}
    for content in (
        {"ema": shadow},
        {"ema": other},
        {"swa_state_dict": other},
        {"EMA": [other]},
        {"callbacks": {"Averaging": {"ema_weights": [torch.ones(2, 2)]}}},
    ):
        torch.save({"model": state, **content}, tmp_path / "a.pt")
        found = magmerge_cli("merge", "--expert", tmp_path / "a.pt", "--method", "average", "out")
        assert found.code == 1
        assert "averaged weights (" in found.message
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"model": parallel, "ema": parallel, "ema_loss": state["w"]}, tmp_path / "a.pt")
    assert set(magmerge.open_checkpoint(tmp_path / "a.pt").specs) == {"module.w"}
    torch.save({"model": state, "ema": {"decay": 0.99}}, tmp_path / "a.pt")
    assert set(magmerge.open_checkpoint(tmp_path / "a.pt").specs) == {"w"}


def chat_vector(folder: Path) -> None:
    """A base, its chat model, and one that was trained further with a larger vocabulary."""
    base = llama()
    base.save_pretrained(folder / "base")
    trained(base, 1).save_pretrained(folder / "chat")
    further = trained(base, 2)
    further.resize_token_embeddings(80, mean_resizing=False)
    further.save_pretrained(folder / "further")


def test_a_donor_of_another_vocabulary_is_refused(
    magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    chat_vector(tmp_path)
    call = [
        "merge", "--base", tmp_path / "base", "--expert", tmp_path / "further",
        "--expert", tmp_path / "chat", "--ignore", "*embed_tokens*", "--ignore", "lm_head.weight",
        "--donor", tmp_path / "further",
    ]  # fmt: skip
    for verb in (call, ["plan", *call[1:]]):
        found = magmerge_cli(*verb, tmp_path / "out")
        assert found.code == 1
        assert "vocab_size 80, but the model's says 64" in found.message
        assert not (tmp_path / "out").exists()


def test_a_donor_for_a_single_file_is_held_against_its_tensors(tmp_path: Path) -> None:
    chat_vector(tmp_path)
    base, chat = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "chat"))
    with pytest.raises(OutputError, match=r"vocab_size 80.* have 64 rows"):
        magmerge.merge(base=base, experts=[chat], out=tmp_path / "o", donor=tmp_path / "further")
    magmerge.merge(base=base, experts=[chat], out=tmp_path / "o", donor=tmp_path / "chat")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 3),
        ("tie_word_embeddings", True),
        ("hidden_size", 32),
        ("hidden_act", "relu"),
    ],
)
def test_a_donor_whose_config_asks_for_other_tensors_is_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    chat_vector(tmp_path)
    donor = tmp_path / "donor"
    donor.mkdir()
    config = json.loads((tmp_path / "chat" / "config.json").read_text())
    (donor / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(OutputError, match=f"says {key} {value}"):
        magmerge.merge(
            base=tmp_path / "base", experts=[tmp_path / "chat"], out=tmp_path / "o", donor=donor
        )


def tokenizer(tokens: list[str]) -> str:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return json.dumps({"model": {"type": "WordLevel", "vocab": vocabulary}, "added_tokens": []})


@pytest.mark.parametrize(
    ("tokens", "words"),
    [(list("abdc"), "other ids to 2 tokens"), ([f"t{i}" for i in range(70)], "ids up to 69")],
)
def test_a_donor_with_another_tokenizer_is_refused(
    tmp_path: Path, tokens: list[str], words: str
) -> None:
    chat_vector(tmp_path)
    donor = tmp_path / "donor"
    donor.mkdir()
    (donor / "config.json").write_bytes((tmp_path / "chat" / "config.json").read_bytes())
    (tmp_path / "base" / "tokenizer.json").write_text(tokenizer(list("abcd")))
    (donor / "tokenizer.json").write_text(tokenizer(tokens))
    models = {"base": tmp_path / "base", "experts": [tmp_path / "chat"], "out": tmp_path / "o"}
    with pytest.raises(OutputError, match=words):
        magmerge.merge(**models, donor=donor)
    (donor / "tokenizer.json").unlink()
    (donor / "vocab.json").write_text(
        json.dumps(dict(zip(tokens, range(len(tokens)), strict=True)))
    )
    with pytest.raises(OutputError, match=words):
        magmerge.merge(**models, donor=donor)
    (donor / "vocab.json").unlink()
    (donor / "vocab.txt").write_text("\n".join(tokens))
    with pytest.raises(OutputError, match=words):
        magmerge.merge(**models, donor=donor)
    (donor / "tokenizer.json").write_text(tokenizer(list("abcdefgh")))
    magmerge.merge(**models, donor=donor)


def test_a_quantised_donor_is_refused_and_one_that_says_nothing_is_not(tmp_path: Path) -> None:
    chat_vector(tmp_path)
    donor = tmp_path / "donor"
    donor.mkdir()
    config = json.loads((tmp_path / "chat" / "config.json").read_text())
    models = {"base": tmp_path / "base", "experts": [tmp_path / "chat"], "out": tmp_path / "o"}
    (donor / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
    with pytest.raises(OutputError, match="quantization_config"):
        magmerge.merge(**models, donor=donor)
    (donor / "config.json").write_text(json.dumps({**config, "architectures": None}))
    magmerge.merge(**models, donor=donor)


def test_a_note_of_reading_is_said_once(tmp_path: Path) -> None:
    state: State = {"w.weight": torch.ones(2, 2)}
    for number in range(2):
        changed = {"w.weight": torch.ones(2, 2) * (number + 2)}
        torch.save({"model": state, "ema": changed}, tmp_path / f"{number}.pt")
    with pytest.warns(MagmergeWarning) as heard:
        magmerge.merge(experts=[tmp_path / "0.pt", tmp_path / "1.pt"], method="average")
    assert len([one for one in heard if "averaged" in str(one.message)]) == 2
