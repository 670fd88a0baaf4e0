"""Shapes that differ on purpose, and what is told where they differ by mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import magmerge
from tests.conftest import CommandLine
from tests.front_door.models import trained

State = dict[str, torch.Tensor]


def unet(channels: int, seed: int) -> State:
    torch.manual_seed(seed)
    return {
        "conv_in.weight": torch.randn(8, channels, 3, 3),
        "conv_in.bias": torch.randn(8),
        "mid_block.resnets.0.conv1.weight": torch.randn(8, 8, 3, 3),
        "conv_out.weight": torch.randn(4, 8, 3, 3),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.filterwarnings("ignore:.*float16 tensors")
def test_channels_that_an_expert_lacks_stay_the_base_s(tmp_path: Path, dtype: torch.dtype) -> None:
    base, experts = unet(9, 0), [unet(4, 1), unet(4, 2)]
    for number, state in enumerate(experts):
        narrow = {name: tensor.to(dtype) for name, tensor in state.items()}
        save_file(narrow, tmp_path / f"{number}.safetensors")
    with pytest.warns(magmerge.MagmergeWarning, match="fewer input channels"):
        merged = magmerge.merge(
            base=base, experts=[tmp_path / "0.safetensors", tmp_path / "1.safetensors"],
            params={"lambda": 0.5},
        ).state_dict()  # fmt: skip
    for name, tensor in merged.items():
        own = base[name].double()
        expected = own.clone()
        for state in experts:
            kept = state[name].to(dtype).double()
            if name == "conv_in.weight":
                expected[:, :4] += 0.5 * (kept - own[:, :4])
            else:
                expected += 0.5 * (kept - own)
        assert torch.allclose(tensor.double(), expected, atol=1e-6), name
    assert torch.equal(merged["conv_in.weight"][:, 4:], base["conv_in.weight"][:, 4:])


def test_more_channels_than_the_base_has_are_a_fault() -> None:
    with pytest.raises(magmerge.MagmergeError, match="most input channels as the base") as told:
        magmerge.merge(base=unet(4, 0), experts=[unet(9, 1)])
    assert "conv_in.weight has shape [8, 9, 3, 3]" in str(told.value)
    with pytest.warns(magmerge.MagmergeWarning, match="fewer input channels"):
        magmerge.merge(base=unet(9, 1), experts=[unet(4, 0)])


def bert(labels: int, seed: int) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16, num_labels=labels,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def test_heads_for_other_classes_are_kept_apart_by_name(
    magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    from transformers import BertForSequenceClassification

    base = bert(2, 0)
    tasks = {"two": trained(base, 1), "three": trained(bert(3, 2), 1), "../four": bert(4, 3)}
    for name, model in tasks.items():
        encoder = {f"bert.{n}": t for n, t in base.bert.state_dict().items()}
        model.load_state_dict(encoder, strict=False)
        model.bert.encoder.layer[0].output.dense.weight.data += 0.01 * len(name)
        model.save_pretrained(tmp_path / name.strip("./"))
    base.save_pretrained(tmp_path / "base")
    experts = {name: tmp_path / name.strip("./") for name in tasks}
    with pytest.warns(magmerge.MagmergeWarning, match="heads for other numbers of classes"):
        magmerge.merge(base=tmp_path / "base", experts=experts, out=tmp_path / "out")
    merged = BertForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(merged.classifier.weight, base.classifier.weight)
    dense = "bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(merged.state_dict()[dense], base.state_dict()[dense])
    kept = {"two": "two", "three": "three", "../four": "_four"}
    for name, file in kept.items():
        head = load_file(tmp_path / "out" / "heads" / f"{file}.safetensors")
        own = tasks[name].classifier
        assert set(head) == {"classifier.weight", "classifier.bias"}
        assert torch.equal(head["classifier.weight"], own.weight.detach())
    record = json.loads((tmp_path / "out" / "magmerge.json").read_text())
    assert "heads/two.safetensors" in record["files"]
    # The folder is magmerge's own, with all that is in it.
    call = ["--base", tmp_path / "base", "--expert", tmp_path / "two"]
    again = magmerge_cli("merge", *call, "--expert", tmp_path / "three", tmp_path / "out", "--yes")
    assert again.code == 0, again.err
    assert not (tmp_path / "out" / "heads" / "_four.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("classifier.out_proj.weight", "classifier.*"),
        ("bert.pooler.dense.weight", "bert.pooler.*"),
        ("cls.predictions.transform.dense.weight", "cls.*"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", "*.inv_freq"),
    ],
)
@pytest.mark.parametrize("of", ["base", "expert"])
def test_ignoring_is_offered_for_what_is_no_loss_and_helps(
    magmerge_cli: CommandLine, tmp_path: Path, name: str, pattern: str, of: str
) -> None:
    torch.manual_seed(0)
    base: State = {"model.layers.0.weight": torch.randn(8, 8)}
    expert = {n: t + 0.1 * torch.randn_like(t) for n, t in base.items()}
    (base if of == "base" else expert)[name] = torch.randn(8)
    save_file(base, tmp_path / "base.safetensors")
    save_file(expert, tmp_path / "expert.safetensors")
    call = ["merge", "--base", tmp_path / "base.safetensors", "--expert"]
    call += [tmp_path / "expert.safetensors", tmp_path / "out.safetensors"]
    refused = magmerge_cli(*call)
    assert refused.code == 1
    assert f"--ignore '{pattern}'" in refused.message
    assert magmerge_cli(*call, "--ignore", pattern).code == 0
    merged = load_file(tmp_path / "out.safetensors")
    assert set(merged) == set(base)
    assert not torch.equal(merged["model.layers.0.weight"], base["model.layers.0.weight"])


def test_ignoring_is_not_offered_for_what_a_model_cannot_do_without() -> None:
    torch.manual_seed(0)
    base = {f"model.layers.{i}.mlp.weight": torch.randn(8, 8) for i in range(2)}
    expert = {"model.layers.0.mlp.weight": torch.randn(8, 8)}
    with pytest.raises(magmerge.MagmergeError, match="is missing") as told:
        magmerge.merge(base=base, experts=[expert])
    assert "ignore" not in str(told.value)


def test_tables_of_other_numbers_of_positions_may_be_resized_as_told(
    magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    name = "encoder.position_embeddings.weight"
    base = {name: torch.randn(16, 8), "encoder.weight": torch.randn(8, 8)}
    expert = {name: torch.randn(24, 8), "encoder.weight": torch.randn(8, 8)}
    save_file(base, tmp_path / "base.safetensors")
    save_file(expert, tmp_path / "expert.safetensors")
    call = ["merge", "--base", tmp_path / "base.safetensors", "--expert"]
    call += [tmp_path / "expert.safetensors", tmp_path / "out.safetensors"]
    refused = magmerge_cli(*call)
    told = "torch.nn.functional.interpolate(table.T[None], size=positions, mode='linear')[0].T"
    assert refused.code == 1
    assert told in refused.message
    resized = eval(told, {"torch": torch, "table": expert[name], "positions": 16})
    save_file({**expert, name: resized.contiguous()}, tmp_path / "expert.safetensors")
    assert magmerge_cli(*call).code == 0
