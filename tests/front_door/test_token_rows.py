"""Rows of tokens in models of other kinds: adapters, tied and nested ones, biases, no base; and
every method on rows that only some experts have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import magmerge
from magmerge.checkpoints.memory_checkpoint import MemoryCheckpoint
from magmerge.checkpoints.tokens.rows import ABSENT
from magmerge.core import registry
from magmerge.core.errors import ParameterError, StructureError
from tests.conftest import CommandLine, random_state, tuned
from tests.front_door.models import llama
from tests.token_models import (
    EMBEDDING,
    HEAD,
    LAYER,
    WIDTH,
    config_of,
    gather_rows,
    model,
    result,
    tokenizer,
)

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")
NEW = "<|im_start|>"
METHODS = [item.name for item in registry.methods]


def half(base: Tensor, *experts: Tensor) -> Tensor:
    """base + 0.5 sum of the task vectors."""
    return base + 0.5 * sum((expert - base for expert in experts), torch.zeros(()))


def adapter(folder: Path, rows: int, seed: int, *, order: list[int] | None = None) -> Any:
    """PEFT's folder of an adapter that was trained with embeddings of so many rows."""
    generator = torch.Generator().manual_seed(seed)
    order = order or list(range(rows))
    whole = {n: torch.randn(rows, WIDTH, generator=generator)[order] for n in (EMBEDDING, HEAD)}
    up, down = (
        torch.randn(WIDTH, 2, generator=generator),
        torch.randn(2, WIDTH, generator=generator),
    )
    stem = f"base_model.model.{LAYER.removesuffix('.weight')}"
    factors = {f"{stem}.lora_B.weight": up, f"{stem}.lora_A.weight": down}
    save_file(
        {**{f"base_model.model.{n}": tensor for n, tensor in whole.items()}, **factors},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["w"]}
    config |= {"modules_to_save": ["embed_tokens", "lm_head"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return whole, up @ down


@pytest.mark.parametrize("tokens", [None, "base", "lora"])
def test_an_adapter_with_more_rows_than_its_base(tmp_path: Path, tokens: str | None) -> None:
    count = len(tokenizer(tmp_path / "base"))
    tokenizer(tmp_path / "full")
    tokenizer(tmp_path / "lora", [NEW])
    base = model(tmp_path / "base", count, 0)
    full = model(tmp_path / "full", count, 1)
    whole, change = adapter(tmp_path / "lora", count + 1, 2)
    out = tmp_path / "out"
    magmerge.merge(
        base=tmp_path / "base",
        experts=[tmp_path / "full", tmp_path / "lora"],
        params={"lambda": 0.5},
        tokenizer=tokens,
        out=out,
    )
    merged = result(out)
    for name in (EMBEDDING, HEAD):
        assert len(merged[name]) == count + (tokens != "base")
        wish = half(base[name], full[name], whole[name][:count])
        torch.testing.assert_close(merged[name][:count], wish)
        assert torch.equal(merged[name][count:], whole[name][count : len(merged[name])])
    torch.testing.assert_close(merged[LAYER], half(base[LAYER], full[LAYER], base[LAYER] + change))


def test_an_adapter_whose_rows_are_in_another_order(
    tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    """Refused; its remedy, followed, leads to the right rows."""
    count = len(tokenizer(tmp_path / "base"))
    base = model(tmp_path / "base", count, 0)
    order = [*range(1, count), 0]
    for name in ("lora", "other"):
        tokenizer(tmp_path / name)
    whole, _ = adapter(tmp_path / "lora", count, 2)
    other = model(tmp_path / "other", count, 3)
    file = tmp_path / "other" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] = {t: order[i] for t, i in content["model"]["vocab"].items()}
    for token in content["added_tokens"]:
        token["id"] = order[token["id"]]
    file.write_text(json.dumps(content))
    call = ["merge", "--base", tmp_path / "base", "--expert"]
    end = ["--expert", tmp_path / "other", "--tokenizer", "other", "--set", "lambda=0.5"]
    refused = magmerge_cli(*call, tmp_path / "lora", *end, tmp_path / "out")
    assert refused.code == 1
    assert "merge the adapter into its base first" in refused.message
    first = magmerge_cli(*call, tmp_path / "lora", "--method", "average", tmp_path / "lora-whole")
    assert first.code == 0, first.err
    done = magmerge_cli(*call, tmp_path / "lora-whole", *end, tmp_path / "out")
    assert done.code == 0, done.err
    merged = result(tmp_path / "out")[HEAD]
    for old, new in enumerate(order):
        torch.testing.assert_close(
            merged[new], half(base[HEAD][old], whole[HEAD][old], other[HEAD][new])
        )


def test_a_config_in_parts_and_a_head_that_is_the_embedding(tmp_path: Path) -> None:
    """text_config.vocab_size follows, vision_config's own number of the same name does not."""
    parts = {"vocab_size": None, "text_config": {"vocab_size": 20, "bos_token_id": 1}}
    parts |= {"vision_config": {"vocab_size": 7}}
    states = {
        name: model(tmp_path / name, rows, k, config=parts, head=False)
        for k, (name, rows) in enumerate({"base": 20, "e": 22}.items())
    }
    out = tmp_path / "out"
    magmerge.merge(
        base=tmp_path / "base", experts=[tmp_path / "e"], params={"lambda": 0.5}, out=out
    )
    config = config_of(out)
    assert config["text_config"] == {"vocab_size": 22, "bos_token_id": 1}
    assert config["vision_config"] == {"vocab_size": 7}
    merged, own = result(out)[EMBEDDING], states["e"][EMBEDDING]
    torch.testing.assert_close(merged[:20], half(states["base"][EMBEDDING], own[:20]))
    assert torch.equal(merged[20:], own[20:])


def test_biases_of_heads_and_tensors_under_other_names(tmp_path: Path) -> None:
    """BERT's and T5's names, and a bias in one row."""

    def state(rows: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = {
            "shared.weight": (rows, 4), "encoder.embed_tokens.weight": (rows, 4),
            "bert.embeddings.word_embeddings.weight": (rows, 4), "final_logits_bias": (1, rows),
            "cls.predictions.bias": (rows,), "cls.predictions.decoder.weight": (rows, 4),
            "embeddings.position_embeddings.weight": (9, 4), "layer.weight": (4, 4),
        }  # fmt: skip
        return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    base, e1, e2 = state(9, 0), state(11, 1), state(8, 2)
    merged = magmerge.merge(base=base, experts=[e1, e2], params={"lambda": 0.5}).state_dict()
    for name, tensor in merged.items():
        rows = tensor.reshape(-1, *([4] if tensor.shape[-1] == 4 else []))
        b, one, two = (s[name].reshape(-1, *rows.shape[1:]) for s in (base, e1, e2))
        if name in ("layer.weight", "embeddings.position_embeddings.weight"):
            torch.testing.assert_close(rows, half(b, one, two))
            continue
        assert len(rows) == 11
        torch.testing.assert_close(rows[:8], half(b[:8], one[:8], two))
        torch.testing.assert_close(rows[8:9], half(b[8:], one[8:9]))
        assert torch.equal(rows[9:], one[9:])


def test_without_a_base_each_row_is_the_mean_of_those_who_have_it(tmp_path: Path) -> None:
    states = {n: model(tmp_path / n, rows, k) for k, (n, rows) in enumerate(
        {"a": 10, "b": 12, "c": 11}.items())}  # fmt: skip
    out = tmp_path / "out"
    experts = [tmp_path / name for name in states]
    magmerge.merge(experts=experts, method="average", out=out)
    merged = result(out)[HEAD]
    a, b, c = (state[HEAD] for state in states.values())
    torch.testing.assert_close(merged[:10], (a + b[:10] + c[:10]) / 3)
    torch.testing.assert_close(merged[10:11], (b[10:11] + c[10:]) / 2)
    assert torch.equal(merged[11:], b[11:])
    forced = magmerge.merge(
        experts=experts, method="average", tokenizer="b", pad_to_multiple_of=8
    ).state_dict()[HEAD]
    assert torch.equal(forced[:12], merged)
    assert forced.shape == (16, WIDTH)
    assert not forced[12:].any()


def test_a_merged_model_keeps_its_tokens_when_it_is_calibrated(tmp_path: Path) -> None:
    sizes = {"base": 10, "e1": 12, "e2": 10, "merged": 11}
    states = {n: model(tmp_path / n, rows, k) for k, (n, rows) in enumerate(sizes.items())}
    done = magmerge.calibrate(
        tmp_path / "merged",
        base=tmp_path / "base",
        experts=[tmp_path / "e1", tmp_path / "e2"],
        out=tmp_path / "out",
    )
    merged = result(tmp_path / "out")
    assert torch.equal(merged[HEAD], states["merged"][HEAD])
    assert not torch.equal(merged[LAYER], states["merged"][LAYER])
    assert done.records[0].name == LAYER


def test_a_calibration_from_samples_runs_a_model_with_other_tokens(tmp_path: Path) -> None:
    """Refused before there is such a model; both remedies lead to a result."""
    base, expert = llama(), llama(seed=3)
    count = base.config.vocab_size
    expert.resize_token_embeddings(count + 2, mean_resizing=False)
    for name, module in {"base": base, "e": expert}.items():
        module.save_pretrained(tmp_path / name)
    inputs = [{"input_ids": torch.arange(6)[None] + shift} for shift in range(3)]
    models: Any = {"base": tmp_path / "base", "experts": [tmp_path / "e"]}
    with pytest.raises(StructureError, match="its tokens are not those of base") as caught:
        magmerge.merge(**models, calibrate="fsc", data=inputs, out=tmp_path / "out")
    assert "calibrate MERGED" in str(caught.value)
    magmerge.merge(**models, out=tmp_path / "merged")
    done = magmerge.calibrate(
        tmp_path / "merged", **models, method="fsc", data=inputs, out=tmp_path / "out"
    )
    assert any(record.calibrated_by == ("fsc",) for record in done.records)
    own = result(tmp_path / "merged")
    assert torch.equal(result(tmp_path / "out")[HEAD], own[HEAD])
    assert len(own[HEAD]) == count + 2
    kept = magmerge.merge(**models, calibrate="fsc", data=inputs, tokenizer="base")
    assert len(kept.state_dict()[HEAD]) == count


def test_a_tied_model_in_memory_stays_tied() -> None:
    def state(rows: int, seed: int) -> dict[str, Tensor]:
        table = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
        return {EMBEDDING: table, HEAD: table, LAYER: torch.randn(4, 4)}

    base, expert = state(5, 0), state(7, 1)
    merged = magmerge.merge(base=base, experts=[expert], params={"lambda": 0.5}).state_dict()
    torch.testing.assert_close(merged[HEAD][:5], half(base[HEAD], expert[HEAD][:5]))
    assert torch.equal(merged[HEAD][5:], expert[HEAD][5:])
    assert merged[HEAD].data_ptr() == merged[EMBEDDING].data_ptr()


def test_tokens_are_added_to_tokenizers_without_a_json_file(tmp_path: Path) -> None:
    """BERT's list and GPT-2's pairs, loaded by their own classes."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "a"]
    for seed, (name, added) in enumerate({"base": [], "e1": ["<x>", "<y>"], "e2": ["<z>"]}.items()):
        model(tmp_path / name, len(words) + len(added), seed)
        (tmp_path / name / "vocab.txt").write_text("\n".join(words) + "\n")
        decoder = {len(words) + n: {"content": t, "special": True} for n, t in enumerate(added)}
        settings = {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": decoder}
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(settings))
    models: Any = {"base": tmp_path / "base", "experts": [tmp_path / "e1", tmp_path / "e2"]}
    magmerge.merge(**models, out=tmp_path / "out")
    own = transformers.BertTokenizer.from_pretrained(tmp_path / "out")
    assert own.convert_tokens_to_ids(["hello", "<x>", "<y>", "<z>"]) == [5, 7, 8, 9]
    ids = own("hello <x><z> a")["input_ids"]
    assert own.convert_ids_to_tokens(ids) == ["[CLS]", "hello", "<x>", "<z>", "a", "[SEP]"]
    assert own.decode(ids, skip_special_tokens=True) == "hello a"


def test_tokens_are_of_whole_models(tmp_path: Path) -> None:
    model(tmp_path / "base", 10, 0)
    model(tmp_path / "e", 10, 1)
    models: Any = {"base": tmp_path / "base", "experts": [tmp_path / "e"]}
    with pytest.raises(ParameterError, match="whole model"):
        magmerge.merge(**models, tokenizer="base", rank=2)
    state = {"layer.weight": torch.randn(4, 4)}
    with pytest.raises(ParameterError, match="no tensor of this model has such"):
        magmerge.merge(base=state, experts=[tuned(state, 1)], tokenizer="union")
    with pytest.raises(StructureError, match="has shape"):
        magmerge.merge(base=state, experts=[{"layer.weight": torch.randn(5, 4)}])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_rows_that_some_experts_lack(method: str) -> None:
    """Rows of the same voters are a layer of their own, but for the thresholds of each expert."""
    item, name = registry.methods.get(method), "embed_tokens.weight"
    most = item.experts[1] or 3
    shapes = {name: (12, 8), "layer.weight": (8, 8)}
    base = random_state(0, shapes)
    experts = [tuned(base, k, size=0.1) for k in range(min(3, most))]
    lacks = {0: [11], 1: [9, 10], 2: [8, 9]}
    views = [
        gather_rows(
            MemoryCheckpoint(state), {name: [ABSENT if r in lacks[k] else r for r in range(12)]}
        )
        for k, state in enumerate(experts)
    ]
    models: Any = {"base": base, "method": method}
    merged = magmerge.merge(**models, experts=views).state_dict()[name]
    assert bool(merged.isfinite().all())
    voters: dict[tuple[int, ...], list[int]] = {}
    for row in range(12):
        voters.setdefault(
            tuple(k for k in lacks if k < len(views) and row not in lacks[k]), []
        ).append(row)
    for places, rows in voters.items():
        if not places:
            assert torch.equal(merged[rows], base[name][rows])
        elif len(places) < item.experts[0]:
            torch.testing.assert_close(
                merged[rows], sum(experts[k][name][rows] for k in places) / len(places)
            )
        elif not item.random and not item.apart:
            alone = magmerge.merge(
                base={name: base[name][rows]},
                experts=[{name: experts[k][name][rows]} for k in places],
                method=method,
            ).state_dict()[name]
            torch.testing.assert_close(merged[rows], alone)


def test_rows_strewn_over_a_file_are_put_back(tmp_path: Path) -> None:
    """Voters that change from row to row, in a folder of several pieces, again after a stop."""
    generator = torch.Generator().manual_seed(0)
    words = [f"w{number}" for number in range(400)]
    states = {}
    for name, share in {"base": 1.0, "e1": 0.6, "e2": 0.5}.items():
        own = [w for w in words if torch.rand((), generator=generator) < share or share == 1]
        own = [own[i] for i in torch.randperm(len(own), generator=generator).tolist()]
        state = model(tmp_path / name, len(own), len(states))
        (tmp_path / name / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(own)}))
        states[name] = ({w: i for i, w in enumerate(own)}, state)
    out = tmp_path / "out"
    models: Any = {"base": tmp_path / "base", "experts": [tmp_path / "e1", tmp_path / "e2"]}
    done = magmerge.merge(**models, params={"lambda": 0.5}, out=out)
    assert len(done.plan.steps) <= 2 * 4 + 1
    ids, base = states["base"]
    merged = load_file(out / "model.safetensors")
    for word, place in ids.items():
        for name in (EMBEDDING, HEAD):
            votes = [s[name][own[word]] for own, s in list(states.values())[1:] if word in own]
            torch.testing.assert_close(merged[name][place], half(base[name][place], *votes))
    again = magmerge.merge(**models, params={"lambda": 0.5}, out=out, overwrite=True, resume=True)
    assert torch.equal(again.state_dict()[HEAD], merged[HEAD])
