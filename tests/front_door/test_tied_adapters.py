"""Adapters on models whose embedding is their head, of several architectures, against PEFT."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import magmerge
from tests.front_door.models import llama, trained

IDS = torch.arange(6)[None]
pytestmark = pytest.mark.filterwarnings("ignore")


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=48, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    return GPT2LMHeadModel(config).eval()


def bert() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=48, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16,
    )  # fmt: skip
    return BertForMaskedLM(config).eval()


def bart() -> Any:
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=48, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=24,
        decoder_ffn_dim=24, encoder_attention_heads=2, decoder_attention_heads=2,
        max_position_embeddings=16,
    )  # fmt: skip
    return BartForConditionalGeneration(config).eval()


MODELS = {
    "gpt2": (gpt2, "c_attn", "wte", "lm_head"),
    "llama": (lambda: llama(tie=True).eval(), "q_proj", "embed_tokens", "lm_head"),
    "bert": (bert, "query", "word_embeddings", "cls.predictions.decoder"),
}
KINDS: dict[str, Any] = {
    "embedding": lambda layer, table, _: {"target_modules": [layer, table]},
    "head": lambda layer, _, head: {"target_modules": [layer, head]},
    "saved": lambda layer, table, _: {"target_modules": [layer], "modules_to_save": [table]},
    "saved and said to be tied": lambda layer, table, _: {
        "target_modules": [layer],
        "modules_to_save": [table],
        "ensure_weight_tying": True,
    },
    "tokens": lambda layer, table, _: {
        "target_modules": [layer],
        "trainable_token_indices": {table: [2, 5]},
    },
    "ia3": None,
    "biases": lambda layer, *_: {"target_modules": [layer], "lora_bias": True},
}


def adapted(base: Any, config: Any, folder: Path) -> Any:
    """What PEFT runs after it has read the adapter that it wrote: this is what users run."""
    from peft import PeftModel, get_peft_model

    wrapped = trained(get_peft_model(copy.deepcopy(base), config), 1, 0.1)
    wrapped.save_pretrained(folder)
    return PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_a_merge_computes_what_peft_runs(name: str, kind: str, tmp_path: Path) -> None:
    from peft import IA3Config, LoraConfig

    build, *modules = MODELS[name]
    base = build()
    base.save_pretrained(tmp_path / "base")
    if (name, kind) in (("llama", "biases"),):
        pytest.skip("its layers have no biases")
    config = IA3Config(target_modules=[modules[0]], feedforward_modules=[])
    if kind != "ia3":
        config = LoraConfig(r=2, lora_alpha=4, **KINDS[kind](*modules))
    run = adapted(base, config, tmp_path / "adapter")
    magmerge.merge(
        base=tmp_path / "base", experts=[tmp_path / "adapter"], params={"lambda": 1.0},
        out=tmp_path / "out",
    )  # fmt: skip
    merged, info = type(base).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        told = [model(input_ids=IDS).logits for model in (merged.eval(), run)]
    assert torch.allclose(*told, atol=1e-5)
    verified = magmerge.verify(tmp_path / "out")
    assert verified.sound
    assert all(check.done for check in verified.checks)


@pytest.mark.parametrize("name", MODELS)
def test_tokens_that_are_trained_alone_are_merged(name: str, tmp_path: Path) -> None:
    from peft import TrainableTokensConfig

    build, _, table, _ = MODELS[name]
    base = build()
    base.save_pretrained(tmp_path / "base")
    config = TrainableTokensConfig(token_indices=[2, 5], target_modules=[table])
    run = adapted(base, config, tmp_path / "adapter")
    result = magmerge.merge(
        base=tmp_path / "base", experts=[tmp_path / "adapter"], params={"lambda": 1.0},
        out=tmp_path / "out",
    )  # fmt: skip
    assert result.path is not None
    merged = type(base).from_pretrained(result.path).eval()
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=IDS).logits, run(input_ids=IDS).logits, atol=1e-5)


@pytest.mark.parametrize("target", ["shared", "lm_head"])
def test_an_embedding_in_several_places_is_not_parted(target: str, tmp_path: Path) -> None:
    from peft import LoraConfig

    base = bart()
    base.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj", target])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted(base, config, tmp_path / "adapter")
    with pytest.raises(magmerge.MagmergeError, match="train the adapter without the embedding"):
        magmerge.merge(base=tmp_path / "base", experts=[tmp_path / "adapter"])


def test_an_encoder_and_decoder_with_a_head_apart_do_not_fit_tied_ones(tmp_path: Path) -> None:
    base, apart = bart(), bart()
    base.save_pretrained(tmp_path / "base")
    apart.config.tie_word_embeddings = False
    apart.lm_head.weight = torch.nn.Parameter(torch.randn_like(apart.lm_head.weight))
    apart.save_pretrained(tmp_path / "apart")
    with pytest.raises(magmerge.MagmergeError, match="tied, or all untied"):
        magmerge.merge(base=tmp_path / "base", experts=[tmp_path / "apart"])


def test_a_classifier_of_as_many_classes_as_token_types_is_sound(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=48, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16, num_labels=2, tie_word_embeddings=True,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    assert magmerge.verify(tmp_path / "model").sound


def test_what_lies_beside_the_weights_is_verified(tmp_path: Path) -> None:
    base = llama()
    base.save_pretrained(tmp_path / "base", max_shard_size="10KB")
    trained(base, 1).save_pretrained(tmp_path / "expert")
    out = tmp_path / "out"
    magmerge.merge(
        base=tmp_path / "base", experts=[tmp_path / "expert"], out=out, shard_size=10_000
    )
    assert magmerge.verify(out).sound
    generation = out / "generation_config.json"
    text = generation.read_text()
    generation.write_text(text.replace("}", ', "eos_token_id": 9999}'))
    assert not magmerge.verify(out).sound
    generation.write_text(text[:10])
    assert not magmerge.verify(out).sound
    generation.write_text(text)
    assert magmerge.verify(out).sound
    index = out / "model.safetensors.index.json"
    index.unlink()
    assert not magmerge.verify(out).sound
