"""A folder that its library would not load is not published without a word; sound ones are."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import magmerge
from magmerge.checkpoints.load_checks import Written, checks_of
from magmerge.core.errors import StructureError
from magmerge.core.types import TensorSpec
from tests.architectures import ARCHITECTURES, MORE
from tests.conftest import CommandLine, Shapes, random_state, tuned
from tests.quick import examples, slow

LLAMA: Shapes = {
    "model.embed_tokens.weight": (32, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.layers.1.mlp.up_proj.weight": (16, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (32, 8),
}
CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32,
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
TOKENS = {"model": {"vocab": {chr(65 + n): n for n in range(30)}}}


def write(root: Path, shapes: Shapes, texts: dict[str, Any]) -> list[Path]:
    base = random_state(0, shapes)
    folders = [root / name for name in "bcd"]
    for folder, state in zip(folders, [base, tuned(base, 1), tuned(base, 2)], strict=True):
        folder.mkdir(parents=True)
        save_file(state, folder / "model.safetensors")
    for name, content in texts.items():
        (folders[0] / name).parent.mkdir(exist_ok=True)
        (folders[0] / name).write_text(json.dumps(content))
    return folders


def merge(folders: list[Path], out: Path, **more: Any) -> Path:
    arguments = {"base": folders[0], "experts": folders[1:], "method": "average", **more}
    path = magmerge.merge(**arguments, out=out).path
    assert path is not None
    return path


def without(name: str) -> Shapes:
    return {key: shape for key, shape in LLAMA.items() if name not in key}


def with_token(number: int) -> dict[str, Any]:
    return {**TOKENS, "added_tokens": [{"content": "<pad>", "id": number}]}


CLASSIFIER: Shapes = {
    "bert.embeddings.word_embeddings.weight": (32, 8),
    "classifier.weight": (3, 8),
}
LABELS = {"id2label": {"0": "a", "1": "b", "2": "c"}}
BERT = {**CONFIG, "model_type": "bert", "architectures": ["BertForSequenceClassification"]}
PARTS = {"model_type": "llava", "text_config": CONFIG}
FAULTS = {
    "vocabulary": (LLAMA, {"config.json": {**CONFIG, "vocab_size": 31}}, "vocab_size 31"),
    "nested": (
        LLAMA,
        {"config.json": {**PARTS, "text_config": {**CONFIG, "vocab_size": 40}}},
        "vocab_size 40",
    ),
    "width": (LLAMA, {"config.json": {**CONFIG, "hidden_size": 9}}, "no size in config.json is 8"),
    "more layers": (LLAMA, {"config.json": {**CONFIG, "num_hidden_layers": 3}}, "there are 2 of"),
    "fewer layers": (LLAMA, {"config.json": {**CONFIG, "num_hidden_layers": 1}}, "there are 2 of"),
    "head": (without("lm_head"), {"config.json": CONFIG}, "there is no head"),
    "classes": (CLASSIFIER, {"config.json": BERT}, "tells 2 labels, but"),
    "quantised": (
        LLAMA,
        {"config.json": {**CONFIG, "quantization_config": {"quant_method": "gptq"}}},
        "quantised",
    ),
    "broken": (LLAMA, {"config.json": CONFIG, "tokenizer.json": [1]}, "cannot be read"),
}
MENDED: dict[str, tuple[str, Any]] = {
    "vocabulary": ("config.json", CONFIG),
    "nested": ("config.json", PARTS),
    "width": ("config.json", CONFIG),
    "more layers": ("config.json", CONFIG),
    "fewer layers": ("config.json", CONFIG),
    "head": ("config.json", {**CONFIG, "tie_word_embeddings": True}),
    "classes": ("config.json", {**BERT, **LABELS}),
    "quantised": ("config.json", CONFIG),
    "broken": ("tokenizer.json", TOKENS),
}
"""What each remedy says, done."""


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_told_before_the_work_and_its_remedies_hold(
    kind: str, tmp_path: Path
) -> None:
    shapes, texts, words = FAULTS[kind]
    folders = write(tmp_path, shapes, texts)
    out = tmp_path / "out"
    if kind == "quantised":
        # A quantised model cannot be merged at all, and is told so first.
        with pytest.raises(StructureError, match="quantised"):
            merge(folders, out)
    else:
        with pytest.raises(StructureError, match="would not load") as told:
            merge(folders, out)
        assert words in str(told.value)
        assert str(folders[0]) in str(told.value.remedy)
        with pytest.raises(StructureError, match="would not load"):
            magmerge.plan(base=folders[0], experts=folders[1:], out=out)
        result = magmerge.merge(base=folders[0], experts=folders[1:], method="average")
        with pytest.raises(StructureError, match="would not load"):
            result.save(out)
        assert not out.exists()
        merge(folders, tmp_path / "alone.safetensors")
        forced = merge(folders, out, force=True)
        assert "force: true" in (forced / "magmerge.yaml").read_text()
    name, content = MENDED[kind]
    (folders[0] / name).write_text(json.dumps(content))
    merge(folders, out, overwrite=True)


def test_a_token_beyond_the_rows_is_a_fault_but_where_the_base_came_with_it(tmp_path: Path) -> None:
    """Some published models have such a token for padding, and load."""
    folders = write(tmp_path, LLAMA, {"config.json": CONFIG, "tokenizer.json": with_token(32)})
    merge(folders, tmp_path / "own")
    donor = tmp_path / "donor"
    shutil.copytree(folders[0], donor)
    (folders[0] / "tokenizer.json").write_text(json.dumps(TOKENS))
    with pytest.raises(magmerge.MagmergeError, match="ids up to 32"):
        merge(folders, tmp_path / "out", donor=donor)
    (donor / "tokenizer.json").write_text(json.dumps(with_token(31)))
    merge(folders, tmp_path / "out", donor=donor)


def test_the_command_line_has_the_same_words(magmerge_cli: CommandLine, tmp_path: Path) -> None:
    shapes, texts, words = FAULTS["vocabulary"]
    folders = write(tmp_path, shapes, texts)
    flags = ["--base", folders[0], "--expert", folders[1], "--expert", folders[2]]
    told = magmerge_cli("merge", *flags, tmp_path / "out")
    assert told.code == 1
    assert words in told.message
    assert "--force" in told.message
    assert magmerge_cli("merge", *flags, "--force", tmp_path / "out").code == 0
    recipe = tmp_path / "out" / "magmerge.yaml"
    assert magmerge_cli("merge", recipe, tmp_path / "again").code == 0
    told = magmerge_cli("convert", folders[0], tmp_path / "other")
    assert (told.code, "would not load" in told.message) == (1, True)
    assert magmerge_cli("convert", folders[0], tmp_path / "other", "--force").code == 0


def test_modules_of_a_sentence_encoder_with_weights_are_told(tmp_path: Path) -> None:
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ]
    config = {**BERT, "architectures": ["BertModel"]}
    texts = {"config.json": config, "modules.json": modules, "1_Pooling/config.json": {}}
    folders = write(tmp_path, CLASSIFIER, {**texts, "2_Dense/config.json": {}})
    dense = Path("2_Dense") / "model.safetensors"
    save_file(random_state(3, {"linear.weight": (8, 8)}), folders[0] / dense)
    with pytest.raises(StructureError, match="names 2_Dense, and its weights"):
        merge(folders, tmp_path / "out")
    out = merge(folders, tmp_path / "out", force=True)
    shutil.copy(folders[0] / dense, out / dense)
    assert not [
        check for check in magmerge.verify(out).checks if check.name == "modules" and check.faults
    ]


@settings(max_examples=examples(200), deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["config.json", "tokenizer.json", "vocab.json", "vocab.txt",
                         "modules.json", "model_index.json"]),
        st.binary(max_size=40)
        | st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*CONFIG, "text_config", "id2label", "vocab", "model", "unet"]),
                inner, max_size=4,
            ),
        ).map(lambda content: json.dumps(content).encode()),
    )
)  # fmt: skip
def test_hostile_texts_make_faults_and_no_errors(texts: dict[str, bytes]) -> None:
    specs = {name: TensorSpec(name, shape, "F32") for name, shape in LLAMA.items()}
    for check in checks_of(Written(specs, texts, ("model.safetensors",), ("unet",))):
        for fault in check.faults:
            assert fault.text
            assert fault.remedy


@pytest.mark.parametrize(
    ("name", "options"),
    [*ARCHITECTURES[:4], *(slow(*each) for each in [*ARCHITECTURES[4:], *MORE])],
)
def test_no_sound_model_is_refused(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    kind: Callable[..., Any] = getattr(transformers, name)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind(kind.config_class(**options))
        folders = [tmp_path / "base", tmp_path / "a", tmp_path / "b"]
        model.save_pretrained(folders[0])
        for folder in folders[1:]:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.01 * torch.randn_like(parameter))
            model.save_pretrained(folder)
        out = merge(folders, tmp_path / "out")
    _, told = kind.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"] | told["unexpected_keys"]
