"""How the merged model is run: order, masks, blocks, precision; and that nothing stays changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import magmerge
from magmerge.core.errors import MagmergeError, MagmergeWarning, ParameterError, StructureError
from tests.live.test_compound import family, records_of
from tests.live.test_exactness import loaded, merged_by
from tests.quick import slow

IDS = torch.arange(24).reshape(4, 6)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=40, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=40, max_position_embeddings=32,
    )  # fmt: skip
    return BertModel(config).eval()


def texts(experts: dict[str, Any], rows: int = 4) -> dict[str, Any]:
    return {name: [{"input_ids": (IDS[:rows] + 3 * k) % 40}] for k, name in enumerate(experts)}


def folders(tmp_path: Path, base: Any, experts: dict[str, Any]) -> tuple[Path, dict[str, Path]]:
    base.save_pretrained(tmp_path / "base")
    for name, expert in experts.items():
        expert.save_pretrained(tmp_path / name)
    return tmp_path / "base", {name: tmp_path / name for name in experts}


@pytest.mark.parametrize("make", [llama, bert])
def test_forward_order_gives_the_same_model_whatever_lambda_the_merge_had(make: Any) -> None:
    base = make()
    experts = family(base)
    settings = {"method": "task_arithmetic", "data": texts(experts), "order": "forward"}
    states = [
        merged_by(base, experts, params={"lambda": factor}, **settings).state_dict()
        for factor in (0.2, 1.0)
    ]
    once = [
        merged_by(base, experts, params={"lambda": f}, **{**settings, "order": "once"}).state_dict()
        for f in (0.2, 1.0)
    ]
    for name in states[0]:
        if "pooler" not in name:
            torch.testing.assert_close(states[0][name], states[1][name], rtol=2e-4, atol=2e-5)
    largest = max(
        float((once[0][n] - once[1][n]).abs().max()) for n in once[0] if "pooler" not in n
    )
    assert largest > 1e-3


def test_forward_order_feeds_each_layer_what_the_calibrated_ones_before_it_give() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4)).eval()
    experts = family(base)
    x = torch.randn(5, 6)
    settings = {"data": {key: [x] for key in experts}, "order": "forward"}
    result = merged_by(base, experts, **settings)
    plain = loaded(base, merged_by(base, experts, calibrate=None, gate="on"))
    calibrated = loaded(base, result)
    fed = calibrated[1](calibrated[0](x)).detach()
    y0, ym = base[2](fed).detach(), plain[2](fed).detach()
    wanted = 0.0
    for expert in experts.values():
        moved = (expert[2](fed).detach() - y0).double().norm(dim=-1)
        wanted += float((moved / (ym - y0).double().norm(dim=-1)).mean()) / len(experts)
    assert records_of(result)["2.weight"].xi == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("order", "calibrator"),
    [("once", "fsc"), ("forward", "dsc"), slow("once", "dsc"), slow("forward", "fsc")],
)
def test_block_by_block_gives_the_same_bits(tmp_path: Path, order: str, calibrator: str) -> None:
    base, experts = folders(tmp_path, llama(), family(llama()))
    common = {
        "method": "ties",
        "calibrate": {"method": calibrator, "params": {"check": "off"}},
        "data": texts(experts),
        "order": order,
    }
    whole = merged_by(base, experts, **common)
    blocks = merged_by(base, experts, offload=True, **common)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, blocks.state_dict()[name]), name
    assert [r.xi for r in whole.records] == [r.xi for r in blocks.records]


def test_block_by_block_has_one_block_in_memory(tmp_path: Path, monkeypatch: Any) -> None:
    from magmerge.live.live_merge import TransientWeights

    base, experts = folders(tmp_path, llama(), family(llama()))
    held: list[int] = []
    bring = TransientWeights.bring

    def counted(self: TransientWeights, names: Any) -> Any:
        found = bring(self, names)
        held.append(len({name.split(".layers.")[-1].split(".")[0] for name in self._here}))
        return found

    monkeypatch.setattr(TransientWeights, "bring", counted)
    merged_by(base, experts, data=texts(experts), offload=True, threads=1)
    assert max(held) == 1


@pytest.mark.parametrize(
    ("threads", "order"),
    [(1, "once"), (3, "forward"), slow(3, "once"), slow(1, "forward")],
)
def test_threads_change_no_bit(threads: int, order: str) -> None:
    base = llama()
    experts = family(base, 3)
    common = {"data": texts(experts), "order": order}
    one = merged_by(base, experts, threads=2, **common).state_dict()
    other = merged_by(base, experts, threads=threads, **common).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_padding_never_counts() -> None:
    base = bert()
    experts = family(base)
    short = {"input_ids": torch.tensor([[5, 6, 7]])}
    long = {"input_ids": torch.tensor([[8, 9, 10, 11, 12]])}
    padded = {
        "input_ids": torch.tensor([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
    }
    apart = merged_by(base, experts, data={key: [short, long] for key in experts})
    together = merged_by(base, experts, data={key: [padded] for key in experts})
    for a, b in zip(apart.records, together.records, strict=True):
        if "position" not in a.name and "pooler" not in a.name:
            assert b.xi == pytest.approx(a.xi, rel=1e-4), a.name


def test_inputs_may_be_tensors_tuples_or_mappings() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 4)).eval()
    experts = family(base)
    x = torch.randn(5, 6)
    found = [
        merged_by(base, experts, data=dict.fromkeys(experts, one)).records[0].xi
        for one in (x, [x], [(x,)], [{"input": x}], iter([x]) and [x[:2], x[2:]])
    ]
    assert found == pytest.approx([found[0]] * len(found), rel=1e-6)


def test_half_precision_runs_with_float32_sums() -> None:
    base = llama()
    experts = family(base)
    full = merged_by(base, experts, data=texts(experts))
    half = merged_by(base, experts, data=texts(experts), precision="bfloat16")
    for a, b in zip(full.records, half.records, strict=True):
        assert b.xi == pytest.approx(a.xi, rel=0.02)


def test_the_users_modules_are_left_as_they_were() -> None:
    base = llama()
    base.train()
    experts = family(base)
    before = copy.deepcopy(base.state_dict())
    plain = llama()
    plain.load_state_dict(merged_by(base, experts, calibrate=None, gate="on").state_dict())
    plain.train()
    kept = copy.deepcopy(plain.state_dict())
    with pytest.warns(MagmergeWarning, match="left out"):
        magmerge.calibrate(
            plain, base=base, experts=experts, method="fsc", data=texts(experts), order="forward"
        )
    for module in (base, plain):
        assert module.training
        assert not any(one._forward_pre_hooks or one._forward_hooks for one in module.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert all(torch.equal(kept[name], tensor) for name, tensor in plain.state_dict().items())
    assert plain.config.use_cache


def test_a_model_wrapped_by_peft_is_seen_through(tmp_path: Path) -> None:
    plain = llama()
    experts = family(plain)
    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = get_peft_model(copy.deepcopy(plain), settings).eval()
    ordinary = merged_by(plain, experts, data=texts(experts))
    through = merged_by(plain, experts, data=texts(experts), model=wrapped)
    assert not through.uncovered
    for a, b in zip(ordinary.records, through.records, strict=True):
        assert b.xi == pytest.approx(a.xi, rel=1e-5)


def test_lora_experts_are_measured_as_what_they_add(tmp_path: Path) -> None:
    base = llama()
    base.save_pretrained(tmp_path / "base")
    experts = {}
    for name in ("a", "b"):
        settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        adapted = get_peft_model(copy.deepcopy(base), settings)
        adapted.save_pretrained(tmp_path / name)
        experts[name] = tmp_path / name
    result = merged_by(tmp_path / "base", experts, data=texts(experts))
    measured = records_of(result)
    assert set(measured) == {f"model.layers.{n}.self_attn.q_proj.weight" for n in range(3)}
    assert all(record.xi != 1 for record in measured.values())


def test_a_live_peft_model_is_a_base_like_any_other(tmp_path: Path) -> None:
    base = llama()
    base.save_pretrained(tmp_path / "base")
    experts, live = {}, None
    for name in ("a", "b"):
        settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        adapted = get_peft_model(copy.deepcopy(base), settings)
        adapted.save_pretrained(tmp_path / name)
        experts[name] = tmp_path / name
        live = adapted if live is None else live
    assert live is not None
    kept = copy.deepcopy(live.state_dict())
    ordinary = merged_by(tmp_path / "base", experts, data=texts(experts))
    result = merged_by(live, experts, data=texts(experts))
    found = result.state_dict()
    for name, tensor in ordinary.state_dict().items():
        torch.testing.assert_close(found[name], tensor, msg=name)
    assert any(record.xi != 1 for record in result.records)
    assert all(torch.equal(kept[name], tensor) for name, tensor in live.state_dict().items())


class Normed(nn.Module):
    """A convolution and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


@pytest.mark.parametrize("order", ["once", "forward"])
def test_batch_norms_take_their_statistics_from_the_calibrated_model(order: str) -> None:
    torch.manual_seed(0)
    base = Normed().eval()
    experts = family(base)
    for expert in experts.values():
        expert.norm.running_var.abs_()
    images = {name: torch.randn(6, 3, 8, 8) for name in experts}
    result = merged_by(base, experts, data=images, batchnorm=True, order=order)
    calibrated = loaded(base, result)
    maps = [calibrated.conv(x).detach() for x in images.values()]
    mean = torch.stack([one.mean((0, 2, 3)) for one in maps]).mean(0)
    var = torch.stack([one.var((0, 2, 3)) for one in maps]).mean(0)
    torch.testing.assert_close(calibrated.norm.running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(calibrated.norm.running_var, var, rtol=1e-4, atol=1e-5)


def test_statistics_of_a_model_without_batch_norms_are_a_mistake() -> None:
    base = llama()
    experts = family(base)
    with pytest.raises(MagmergeError, match="no batch norms"):
        merged_by(base, experts, data=texts(experts), batchnorm=True)


def test_weights_without_a_model_say_what_to_give() -> None:
    base = llama()
    states = {name: expert.state_dict() for name, expert in family(base).items()}
    with pytest.raises(MagmergeError, match="nothing tells what these tensors are"):
        merged_by(base.state_dict(), states, data=texts(states))


def test_a_model_of_another_class_says_all_that_it_lacks() -> None:
    base = llama()
    experts = family(base)
    with pytest.raises(StructureError, match="is not in the merge"):
        merged_by(base, experts, data=texts(experts), model=bert())


def test_a_module_in_memory_is_not_run_block_by_block() -> None:
    base = llama()
    experts = family(base)
    with pytest.raises(ParameterError, match="cannot be run block by block"):
        merged_by(base, experts, data=texts(experts), offload=True)


def test_an_error_inside_the_model_names_the_layer() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 4)).eval()
    experts = family(base)
    with pytest.raises(MagmergeError, match="cannot be"):
        merged_by(base, experts, data={key: [torch.randn(5, 7)] for key in experts})
