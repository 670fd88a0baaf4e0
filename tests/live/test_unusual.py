"""Layers, calls and data that are not as usual: measured rightly, or listed, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
)

from magmerge.core.errors import MagmergeError, StructureError
from tests.live.test_compound import TOKENS, family, inputs_of, ratio, records_of
from tests.live.test_exactness import loaded, merged_by
from tests.live.test_names import VIT


class Standardised(nn.Conv2d):
    """Its weight is centred before it is used."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Squashed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, torch.tanh(self.weight), self.bias)


class Activated(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(super().forward(x))


class Gated(nn.Module):
    """What one parameter does depends on another, which experts leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.g = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w.T) * self.g


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pos = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        x += self.pos
        return x


class Net(nn.Module):
    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


class Outside(nn.Module):
    """Its embedding is its output layer too, without being called as such."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.layer = nn.Embedding(9, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.emb(x)) @ self.emb.weight.T


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def wanted_at(
    base: nn.Module, experts: Any, plain: nn.Module, path: str, x: Any, axis: int
) -> float:
    """The definition at one layer, fed as the merge feeds it."""
    ((args, kwargs), *_) = inputs_of(plain, path, **x)
    outs = []
    for model in (base, plain, *experts.values()):
        again = [one.clone() if isinstance(one, Tensor) else one for one in args]
        outs.append(model.get_submodule(path)(*again, **kwargs).detach().movedim(axis, -1))
    y0, ym, *ye = outs
    return sum(ratio(y - y0, ym - y0) for y in ye) / len(ye)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=20, n_positions=16)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize(
    ("make", "x", "axis"),
    [
        (lambda: Standardised(3, 4, 3), torch.randn(2, 3, 6, 6), 1),
        (lambda: nn.Embedding(9, 6, max_norm=100.0), torch.randint(0, 9, (2, 5)), -1),
        (Gated, torch.randn(3, 5, 6), -1),
    ],
)
def test_layers_of_ones_own_are_measured_as_they_compute(make: Any, x: Tensor, axis: int) -> None:
    torch.manual_seed(0)
    base = Net(layer=make()).eval()
    experts = family(base)
    for expert in experts.values():
        if isinstance(expert.layer, Gated):
            expert.layer.g.data.copy_(base.layer.g.data)
    plain = loaded(base, merged_by(base, experts, calibrate=None, gate="on"))
    result = merged_by(base, experts, data={name: [x] for name in experts})
    wanted = wanted_at(base, experts, plain, "layer", {"x": x}, axis)
    record = next(iter(records_of(result).values()))
    assert record.xi == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: Squashed(6, 4), torch.randn(5, 6)),
        (lambda: Activated(3), torch.randn(2, 3, 6, 6)),
        (lambda: nn.utils.spectral_norm(nn.Linear(6, 4)), torch.randn(5, 6)),
        (lambda: parametrizations.weight_norm(nn.Linear(6, 4)), torch.randn(5, 6)),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_is_not_linear_is_listed_and_the_rest_is_calibrated(make: Any, x: Tensor) -> None:
    torch.manual_seed(0)
    features = 4 if x.ndim == 2 else x.shape[-1]
    model = Net(layer=make(), last=nn.Linear(features, 4)).eval()
    base = model.state_dict()
    experts = {
        f"e{k}": {
            name: tensor + 0.5 * torch.randn_like(tensor) if tensor.is_floating_point() else tensor
            for name, tensor in base.items()
        }
        for k in range(2)
    }
    result = merged_by(base, experts, data={name: [x] for name in experts}, model=model)
    assert set(records_of(result)) == {"last.weight", "last.bias"}
    assert result.uncovered


def test_channels_that_come_first_are_features() -> None:
    torch.manual_seed(0)
    config = ConvNextConfig(hidden_sizes=[4, 6], depths=[1, 1], num_stages=2)
    base = ConvNextModel(config).eval()
    for parameter in base.parameters():
        nn.init.normal_(parameter, std=0.3)
    experts = family(base, size=0.05)
    x = {"pixel_values": torch.randn(2, 3, 32, 32)}
    plain = loaded(base, merged_by(base, experts, calibrate=None, gate="on"))
    result = merged_by(base, experts, data={name: [x] for name in experts})
    path = next(n for n, m in base.named_modules() if n.endswith("downsampling_layer.0"))
    wanted = wanted_at(base, experts, plain, path, x, 1)
    assert records_of(result)[f"{path}.weight"].xi == pytest.approx(wanted, rel=2e-3)


def test_encoder_and_decoder_have_masks_of_their_own() -> None:
    torch.manual_seed(0)
    config = T5Config(
        d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, vocab_size=20, dropout_rate=0.0
    )
    base = T5Model(config).eval()
    experts = family(base, size=0.05)
    ids = torch.randint(1, 20, (2, 5))
    whole, short = torch.ones(2, 5).long(), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    x = {"input_ids": ids, "attention_mask": whole, "decoder_input_ids": ids,
         "decoder_attention_mask": short}  # fmt: skip
    plain = loaded(base, merged_by(base, experts, calibrate=None, gate="on"))
    result = merged_by(base, experts, data={name: [x] for name in experts})
    path = "decoder.block.0.layer.0.SelfAttention.q"
    (((hidden,), _), *_) = inputs_of(plain, path, **x)
    fed = hidden[short.bool()]
    y0, ym, *ye = (m.get_submodule(path)(fed).detach() for m in (base, plain, *experts.values()))
    wanted = sum(ratio(y - y0, ym - y0) for y in ye) / len(ye)
    assert records_of(result)[f"{path}.weight"].xi == pytest.approx(wanted, rel=1e-3)


def test_a_mask_counts_by_place_too() -> None:
    torch.manual_seed(0)

    class Masked(Net):
        def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
            return super().forward(ids)

    base = Masked(emb=nn.Embedding(20, 6), layer=nn.Linear(6, 4)).eval()
    experts = family(base)
    ids, mask = torch.randint(0, 20, (2, 5)), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    named = {"ids": ids, "attention_mask": mask}
    one = merged_by(base, experts, data={name: [(ids, mask)] for name in experts})
    other = merged_by(base, experts, data={name: [named] for name in experts})
    bare = merged_by(base, experts, data={name: [(ids, mask * 0 + 1)] for name in experts})
    assert one.records[1].xi == other.records[1].xi != bare.records[1].xi


def test_a_forward_that_changes_its_input_is_not_disturbed() -> None:
    torch.manual_seed(0)
    base = Net(first=nn.Linear(6, 6), table=InPlace(), last=nn.Linear(6, 4)).eval()
    experts = family(base)
    x = torch.randn(5, 6)
    plain = loaded(base, merged_by(base, experts, calibrate=None, gate="on"))
    result = merged_by(base, experts, data={name: [x] for name in experts})
    wanted = wanted_at(base, experts, plain, "last", {"x": x}, -1)
    assert records_of(result)["last.weight"].xi == pytest.approx(wanted, rel=1e-4)
    assert "table.pos" in records_of(result)


def test_shared_weights_with_biases_of_their_own_in_forward_order() -> None:
    torch.manual_seed(0)
    base = Net(a=nn.Linear(6, 6), b=nn.Linear(6, 6)).eval()
    base.b.weight = base.a.weight
    experts = family(base)
    x = torch.randn(5, 6)
    found = [
        merged_by(
            base, experts, data={name: [x] for name in experts}, order="forward",
            method="task_arithmetic", params={"lambda": factor},
        ).state_dict()
        for factor in (0.2, 4.0)
    ]  # fmt: skip
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-3, atol=1e-4)


def test_rows_that_only_the_module_knows_have_one_factor() -> None:
    model = gpt2()
    base = dict(model.state_dict())
    experts = {name: dict(one.state_dict()) for name, one in family(model).items()}
    result = merged_by(base, experts, data={name: [TOKENS] for name in experts}, model=model)
    record = records_of(result)["transformer.h.0.attn.c_attn.weight"]
    assert record.xi_min == record.xi_max


def saved(folder: Path, make: Any) -> tuple[Path, dict[str, Path]]:
    """A base and two experts as files."""
    torch.manual_seed(0)
    for name in ("base", "a", "b"):
        state = {
            key: tensor.abs() + torch.rand_like(tensor) if tensor.is_floating_point() else tensor
            for key, tensor in make().state_dict().items()
        }
        save_file(state, folder / f"{name}.safetensors")
    files = {name: folder / f"{name}.safetensors" for name in ("a", "b")}
    return folder / "base.safetensors", files


def test_a_weight_used_outside_its_block_is_refused_when_blocks_are_moved(tmp_path: Path) -> None:
    base, files = saved(tmp_path, Outside)
    common = {"data": torch.randint(0, 9, (2, 5)), "build": "tests.live.test_unusual:Outside"}
    assert merged_by(base, files, **common).records
    with pytest.raises(MagmergeError, match="cannot be run"):
        merged_by(base, files, offload=True, **common)


def test_statistics_are_those_of_the_calibrated_model_when_blocks_are_moved(tmp_path: Path) -> None:
    base, files = saved(tmp_path, Normed)
    common = {"data": torch.randn(4, 3, 8, 8), "build": "tests.live.test_unusual:Normed",
              "batchnorm": True}  # fmt: skip
    whole = merged_by(base, files, **common).state_dict()
    blocks = merged_by(base, files, offload=True, **common).state_dict()
    torch.testing.assert_close(whole["norm.running_mean"], blocks["norm.running_mean"])
    kept = merged_by(base, files, **common, ignore=["norm.running_*"]).state_dict()
    assert not torch.equal(kept["norm.running_mean"], whole["norm.running_mean"])


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (Normed, torch.randn(2, 3, 8, 8)),
        (lambda: ViTModel(ViTConfig(**VIT)), {"pixel_values": torch.randn(2, 3, 16, 16)}),
    ],
)
def test_half_precision_runs_norms_and_tables_too(make: Any, x: Any) -> None:
    torch.manual_seed(0)
    base = make().eval()
    experts = family(base)
    full, half = (
        merged_by(base, experts, data={name: [x] for name in experts}, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    assert half.uncovered == full.uncovered
    for a, b in zip(full.records, half.records, strict=True):
        assert b.xi == pytest.approx(a.xi, rel=0.05)


def test_attention_with_learnt_keys_is_measured_without_them() -> None:
    torch.manual_seed(0)

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x, x, x, None, False)[0]

    base = Attending().eval()
    experts = family(base)
    result = merged_by(base, experts, data={name: [torch.randn(2, 5, 8)] for name in experts})
    assert {one.layer for one in result.uncovered} == {"attn.bias_k", "attn.bias_v"}
    assert "attn.in_proj_weight" in records_of(result)


def test_tensors_that_the_model_ties_and_the_files_do_not_are_refused() -> None:
    model = gpt2()
    base, a, b = (
        {
            name: tensor + 0.1 * torch.randn_like(tensor)
            for name, tensor in model.state_dict().items()
        }
        for _ in range(3)
    )
    with pytest.raises(StructureError, match="are one parameter"):
        merged_by(base, {"a": a, "b": b}, data=[TOKENS], model=model)
