"""Layers in several parts: fused projections, attention of torch's own, mixtures, tied weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXModel, MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from tests.live.test_exactness import loaded, merged_by, tuned

TOKENS = {"input_ids": torch.arange(10).reshape(2, 5)}


def family(base: nn.Module, count: int = 2, size: float = 0.1) -> dict[str, nn.Module]:
    torch.manual_seed(1)
    return {f"expert-{k}": tuned(base, size).eval() for k in range(count)}


def ratio(changed: Tensor, merged: Tensor) -> float:
    """Mean over tokens of the quotient of lengths, in float64."""
    a, b = changed.double().flatten(0, -2).norm(dim=-1), merged.double().flatten(0, -2).norm(dim=-1)
    return float((a / b).mean())


def inputs_of(model: nn.Module, path: str, **inputs: Any) -> list[Any]:
    """What the module at `path` is called with."""
    seen: list[Any] = []
    handle = model.get_submodule(path).register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return seen


def records_of(result: Any) -> dict[str, Any]:
    return {record.name: record for record in result.records if record.calibrated_by}


def test_query_key_and_value_of_a_fused_layer_have_factors_of_their_own() -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=20, n_positions=16)
    base = GPT2LMHeadModel(config).eval()
    experts = family(base)
    plain = loaded(base, merged_by(base, experts, calibrate=None, gate="on"))
    result = merged_by(base, experts, data={key: [TOKENS] for key in experts}, samples=2)
    folded, path = loaded(base, result), "transformer.h.0.attn.c_attn"
    ((x,), _) = inputs_of(plain, path, **TOKENS)[0]
    layers = [model.get_submodule(path) for model in (base, plain, folded, *experts.values())]
    y0, ym, yf, *ye = (layer(x).detach() for layer in layers)
    for part in (slice(0, 8), slice(8, 16), slice(16, 24)):
        xi = sum(ratio((y - y0)[..., part], (ym - y0)[..., part]) for y in ye) / len(ye)
        torch.testing.assert_close(
            yf[..., part], (y0 + xi * (ym - y0))[..., part], rtol=1e-4, atol=1e-5
        )
    record = records_of(result)[f"{path}.weight"]
    assert record.xi_min < record.xi_max


def test_a_model_in_memory_tells_its_heads() -> None:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16,
        vocab_size=20, max_position_embeddings=16,
    )  # fmt: skip
    base = GPTNeoXModel(config).eval()
    experts = family(base)
    result = merged_by(base, experts, data={key: [TOKENS] for key in experts}, samples=2)
    record = records_of(result)["layers.0.attention.query_key_value.weight"]
    assert record.xi_min < record.xi_max


@pytest.mark.parametrize("own_widths", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_of_torch_has_four_factors(batch_first: bool, own_widths: bool) -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = {"kdim": 6, "vdim": 6} if own_widths else {}
            self.attn = nn.MultiheadAttention(8, 2, batch_first=batch_first, **widths)

        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return self.attn(q, k, k, need_weights=False)[0]

    base = Net().eval()
    experts = family(base)
    call = (torch.randn(3, 4, 8), torch.randn(3, 4, 6 if own_widths else 8))
    plain = loaded(base, merged_by(base, experts, calibrate=None, gate="on"))
    result = merged_by(base, experts, data={key: [call] for key in experts}, samples=3)
    found = records_of(result)
    weights = ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    for part, x in enumerate((call[0], call[1], call[1])):

        def answer(model: nn.Module, part: int = part, x: Tensor = x) -> Tensor:
            own = dict(model.attn.named_parameters())
            weight = own[weights[part]] if own_widths else own["in_proj_weight"].chunk(3)[part]
            return (x @ weight.T + own["in_proj_bias"].chunk(3)[part]).detach()

        y0, ym = answer(base), answer(plain)
        xi = sum(ratio(answer(e) - y0, ym - y0) for e in experts.values()) / len(experts)
        rows = result.state_dict()["attn.in_proj_bias"].chunk(3)[part]
        b0, bm = (
            dict(m.attn.named_parameters())["in_proj_bias"].chunk(3)[part] for m in (base, plain)
        )
        torch.testing.assert_close(rows, b0 + xi * (bm - b0), rtol=1e-4, atol=1e-5)
    assert "attn.out_proj.weight" in found
    assert not result.uncovered


def test_the_projection_of_attention_is_measured_on_what_it_gets() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x, x, x)[0]

    base = Net().eval()
    experts = family(base)
    for expert in experts.values():
        expert.attn.in_proj_weight.data.copy_(base.attn.in_proj_weight.data)
        expert.attn.in_proj_bias.data.copy_(base.attn.in_proj_bias.data)
    x = torch.randn(3, 4, 8)
    plain = loaded(base, merged_by(base, experts, calibrate=None, gate="on"))
    result = merged_by(base, experts, data={key: [(x,)] for key in experts}, samples=3)
    y0, ym = base(x).detach(), plain(x).detach()
    xi = sum(ratio(e(x).detach() - y0, ym - y0) for e in experts.values()) / len(experts)
    assert records_of(result)["attn.out_proj.weight"].xi == pytest.approx(xi, rel=1e-4)


def test_torch_encoders_are_seen_although_they_have_a_fused_path() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    base = nn.TransformerEncoder(layer, 2).eval()
    experts = family(base)
    result = merged_by(
        base, experts, data={key: [(torch.randn(2, 5, 8),)] for key in experts}, samples=2
    )
    assert not result.uncovered
    assert len(records_of(result)) == len(result.records)
    assert torch.backends.mha.get_fastpath_enabled()


class Mixture(nn.Module):
    """A mixture of four experts, two of them for a token."""

    def __init__(self) -> None:
        super().__init__()
        config = MixtralConfig(
            hidden_size=8, intermediate_size=6, num_local_experts=4, num_experts_per_tok=2,
            router_jitter_noise=0.0,
        )  # fmt: skip
        config._experts_implementation = "eager"
        self.moe = MixtralSparseMoeBlock(config)

    def forward(self, x: Tensor) -> Tensor:
        out = self.moe(x)
        return out[0] if isinstance(out, tuple) else out


def test_each_fused_expert_has_its_own_factor() -> None:
    torch.manual_seed(0)
    base = Mixture().eval()
    for parameter in base.parameters():
        nn.init.normal_(parameter, std=0.5)
    experts = family(base, size=0.02)
    x = torch.randn(2, 30, 8)
    plain = loaded(base, merged_by(base, experts, calibrate=None, gate="on"))
    result = merged_by(base, experts, data={key: [(x,)] for key in experts}, samples=2)
    name = "moe.experts.gate_up_proj"
    assert name in records_of(result)
    ((tokens, chosen, *_), _) = inputs_of(plain, "moe.experts", x=x)[0]
    tokens = tokens.reshape(-1, 8)
    own = {key: dict(model.named_parameters())[name].detach() for key, model in
           {"base": base, "plain": plain, **experts}.items()}  # fmt: skip
    for e in range(4):
        hit = tokens[(chosen == e).any(-1)]
        y0, ym = hit @ own["base"][e].T, hit @ own["plain"][e].T
        xi = sum(ratio(hit @ own[k][e].T - y0, ym - y0) for k in experts) / len(experts)
        folded = own["base"][e] + xi * (own["plain"][e] - own["base"][e])
        torch.testing.assert_close(result.state_dict()[name][e], folded, rtol=1e-4, atol=1e-6)


def test_an_expert_that_no_token_reaches_keeps_its_merge() -> None:
    torch.manual_seed(0)
    base = Mixture().eval()
    for parameter in base.parameters():
        nn.init.normal_(parameter, std=0.5)
    experts = family(base, size=0.02)
    one = torch.randn(1, 1, 8)
    plain = merged_by(base, experts, calibrate=None, gate="on").state_dict()
    result = merged_by(base, experts, data={key: [(one,)] for key in experts}, samples=1)
    same = [
        torch.equal(a, b)
        for a, b in zip(
            plain["moe.experts.down_proj"],
            result.state_dict()["moe.experts.down_proj"],
            strict=True,
        )
    ]
    assert sum(same) == 2


def test_tied_weights_have_one_factor_from_both_their_uses() -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=20, n_positions=16)
    base = GPT2LMHeadModel(config).eval()
    experts = family(base)
    for expert in experts.values():
        expert.tie_weights()
    result = merged_by(base, experts, data={key: [TOKENS] for key in experts}, samples=2)
    state = result.state_dict()
    assert torch.equal(state["lm_head.weight"], state["transformer.wte.weight"])
    plain = loaded(base, merged_by(base, experts, calibrate=None, gate="on"))
    ((x,), _) = inputs_of(plain, "lm_head", **TOKENS)[0]
    w0, wm = base.lm_head.weight.detach(), plain.lm_head.weight.detach()
    ids = TOKENS["input_ids"]
    total = 0.0
    for expert in experts.values():
        we = expert.lm_head.weight.detach()
        embedded = ratio((we - w0)[ids], (wm - w0)[ids])
        projected = ratio(x @ (we - w0).T, x @ (wm - w0).T)
        total += (embedded + projected) / 2
    record = records_of(result)["transformer.wte.weight"]
    assert record.xi == pytest.approx(total / len(experts), rel=1e-3)


def test_a_layer_that_is_called_twice_is_measured_at_both() -> None:
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.idle = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.tanh(self.layer(x)))

    base = Twice().eval()
    experts, x = family(base), torch.randn(4, 6)
    plain = loaded(base, merged_by(base, experts, calibrate=None, gate="on"))
    result = merged_by(base, experts, data={key: [(x,)] for key in experts}, samples=4)
    both = torch.cat([x, torch.tanh(plain.layer(x)).detach()])
    y0, ym = base.layer(both).detach(), plain.layer(both).detach()
    xi = sum(ratio(e.layer(both).detach() - y0, ym - y0) for e in experts.values()) / len(experts)
    assert records_of(result)["layer.weight"].xi == pytest.approx(xi, rel=1e-4)
    assert [one.layer for one in result.uncovered] == ["idle"]
    assert "idle.weight" not in records_of(result)


def test_a_layer_that_is_not_linear_is_left_and_listed() -> None:
    class Curved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.power = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            return x.abs() ** self.power

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.curved, self.layer = Curved(), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.curved(x))

    torch.manual_seed(0)
    base = Net().eval()
    experts = family(base)
    result = merged_by(
        base, experts, data={key: [(torch.randn(4, 6),)] for key in experts}, samples=4
    )
    (one,) = result.uncovered
    assert one.layer == "curved"
    assert "in proportion" in one.reason
    assert copy.deepcopy(records_of(result)).keys() == {"layer.weight", "layer.bias"}
