from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.adapters.adapter_loader import open_adapter
from magmerge.checkpoints.adapters.formats.keys import is_adapter_file
from magmerge.checkpoints.adapters.formats.peft import encode
from magmerge.checkpoints.adapters.translation import rename_content, renamed
from magmerge.core.errors import AdapterError, MagmergeError, NonFiniteError
from tests.checkpoints.adapters import module_names as names
from tests.checkpoints.adapters.lora_files import (
    content_of,
    opened,
    random_content,
    read_deltas,
    same,
    save,
)
from tests.conftest import random_state
from tests.quick import examples

NAME = "lora_unet_down_blocks_0_attentions_0_proj_in"
UP, DOWN, ALPHA = f"{NAME}.lora_up.weight", f"{NAME}.lora_down.weight", f"{NAME}.alpha"


def kohya() -> dict[str, Tensor]:
    return {DOWN: torch.ones(2, 3), UP: torch.ones(5, 2), ALPHA: torch.tensor(2.0)}


def without(*keys: str, **_: object) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in kohya().items() if key not in keys}


BAD: dict[str, tuple[dict[str, Tensor], str, str]] = {
    "no up": (without(UP), "half of a pair is missing", NAME),
    "no down": (without(DOWN), "half of a pair is missing", NAME),
    "alpha alone": (without(UP, DOWN), "half of a pair is missing", ALPHA),
    "alpha 0": ({**kohya(), ALPHA: torch.tensor(0.0)}, "alpha is 0", ALPHA),
    "alpha NaN": ({**kohya(), ALPHA: torch.tensor(float("nan"))}, "alpha is nan", ALPHA),
    "alpha infinite": ({**kohya(), ALPHA: torch.tensor(float("inf"))}, "alpha is inf", ALPHA),
    "alpha of two": ({**kohya(), ALPHA: torch.ones(2)}, "an alpha is one number", ALPHA),
    "alpha of a byte": ({**kohya(), ALPHA: torch.tensor(True)}, "an alpha is one number", ALPHA),
    "alpha too large": (
        {**kohya(), ALPHA: torch.tensor(1e300, dtype=torch.float64)},
        "makes the scale",
        ALPHA,
    ),
    "rank 0": ({DOWN: torch.ones(0, 3), UP: torch.ones(5, 0)}, "rank 0", UP[:-9]),
    "ranks differ": (
        {**kohya(), UP: torch.ones(5, 3)},
        "rank is 3, and that of its other half 2",
        UP,
    ),
    "one dimension": ({**kohya(), UP: torch.ones(5)}, "two dimensions", UP),
    "six dimensions": ({**kohya(), DOWN: torch.ones(2, 3, 1, 1, 1, 1)}, "two dimensions", DOWN),
    "a kernel above": ({**kohya(), UP: torch.ones(5, 2, 3, 3)}, "has no kernel", UP),
    "integers": ({**kohya(), UP: torch.ones(5, 2, dtype=torch.int32)}, "none to compute with", UP),
    "a middle of another rank": (
        {**kohya(), f"{NAME}.lora_mid.weight": torch.ones(3, 3, 3, 3)},
        "factor in the middle",
        f"{NAME}.lora_mid.weight",
    ),
    "twice": (
        {**kohya(), f"{NAME}.lora_A.weight": torch.ones(2, 3)},
        "same factor of the same module",
        NAME,
    ),
    "DoRA": ({**kohya(), f"{NAME}.dora_scale": torch.ones(4)}, "magnitude", f"{NAME}.dora_scale"),
    "DoRA alone": ({f"{NAME}.dora_scale": torch.ones(5, 1)}, "half", f"{NAME}.dora_scale"),
    "difference": ({f"{NAME}.diff": torch.ones(5, 0)}, "no features", f"{NAME}.diff"),
    "bias": ({**kohya(), f"{NAME}.diff_b": torch.ones(5, 1)}, "one row", f"{NAME}.diff_b"),
    "IA3": ({f"{NAME}.on_input": torch.tensor(True)}, "IA3", f"{NAME}.on_input"),
    "norm": ({f"{NAME}.w_norm": torch.ones(0)}, "one row", f"{NAME}.w_norm"),
    "GLoRA": ({f"{NAME}.a1.weight": torch.ones(5, 2)}, "GLoRA", f"{NAME}.a1.weight"),
    "OFT": ({f"{NAME}.oft_blocks": torch.ones(5, 2, 2)}, "OFT", f"{NAME}.oft_blocks"),
}


@pytest.mark.parametrize(("state", "message", "key"), BAD.values(), ids=BAD)
def test_bad_input_is_named_with_its_key_and_source(
    tmp_path: Path, state: dict[str, Tensor], message: str, key: str
) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        opened(state, tmp_path)
    assert caught.value.tensor is not None
    assert caught.value.tensor.startswith(key)
    assert caught.value.source == str(tmp_path / "x.safetensors")
    assert caught.value.remedy
    assert is_adapter_file(open_checkpoint(tmp_path / "x.safetensors"))


def test_keys_of_two_formats_are_refused_with_one_of_each(tmp_path: Path) -> None:
    other = {"unet.conv_in.lora_A.weight": torch.ones(2, 3)}
    with pytest.raises(AdapterError) as caught:
        opened({**kohya(), **other}, tmp_path)
    for text in (f"kohya ({NAME}", "diffusers (unet.conv_in.lora_A.weight)"):
        assert text in str(caught.value)


def test_keys_that_are_no_adapters_are_listed_up_to_ten(tmp_path: Path) -> None:
    strange = {f"layer.{at}.weight": torch.ones(1) for at in range(11)}
    strange["layer.\x1b[31m.weight"] = torch.ones(1)
    with pytest.raises(AdapterError, match="12 of its keys are no adapter's") as caught:
        opened({**kohya(), **strange}, tmp_path)
    assert "and 2 more" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_whole_model_is_no_adapter(tmp_path: Path) -> None:
    state = {**random_state(0), "decoder.snake1.alpha": torch.ones(4), "x.diff": torch.ones(2)}
    path = save(state, tmp_path / "lora.safetensors")
    assert not is_adapter_file(open_checkpoint(path))
    with pytest.raises(AdapterError, match="it is no adapter"):
        open_adapter(path)
    with pytest.raises(AdapterError, match="holds no tensors"):
        open_adapter(save({}, tmp_path / "empty.safetensors"))


@pytest.mark.parametrize("naming", ["diffusers", "diffusers_old", "kohya", "kohya_ldm", "peft"])
def test_every_format_is_known_by_its_keys(tmp_path: Path, naming: str) -> None:
    shapes = names.prefixed(
        "unet", {"conv_in": (4, 2, 3, 3), "mid_block.attentions.0.proj_in": (4, 4)}
    )
    content = rename_content(random_content(shapes), naming)  # type: ignore[arg-type]
    (encoded,) = encode(content).values()
    path = save(encoded.tensors, tmp_path / "model.safetensors")
    assert is_adapter_file(open_checkpoint(path))
    for name, text in encoded.beside.items():
        (tmp_path / name).write_text(text)
    assert open_adapter(path).naming == naming


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_found_when_it_is_read(tmp_path: Path, bad: float) -> None:
    state = {**kohya(), DOWN: torch.tensor([[1.0, bad, 0], [0, 0, 0]])}
    adapter = opened(state, tmp_path)
    with pytest.raises(NonFiniteError, match=r"1 NaN|1 infinite") as caught:
        adapter.read(NAME)
    assert caught.value.tensor == DOWN
    assert caught.value.source == str(tmp_path / "x.safetensors")


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_are_read_without_running_code(tmp_path: Path, legacy: bool) -> None:
    shapes = names.prefixed("text_encoder", names.clip(1))
    tensors = encode(rename_content(random_content(shapes), "kohya"))[""].tensors
    torch.save(tensors, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    adapter = open_adapter(str(tmp_path / "a.pt"))
    assert same(read_deltas(adapter), read_deltas(opened(tensors, tmp_path)), 0)
    torch.save({"a": print}, tmp_path / "b.pt")
    with pytest.raises(MagmergeError, match="run code"):
        open_adapter(tmp_path / "b.pt")


def test_a_folder_with_one_file_is_that_file(tmp_path: Path) -> None:
    save(kohya(), tmp_path / "pytorch_lora_weights.safetensors")
    assert list(open_adapter(tmp_path).modules) == [NAME]


@pytest.mark.parametrize("path", ["", "nowhere.safetensors", "."])
def test_what_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MagmergeError):
        open_adapter(path)


def test_opening_reads_no_factors_and_needs_no_torch(tmp_path: Path) -> None:
    path = save({key: t for key, t in kohya().items() if key != ALPHA}, tmp_path / "a.safetensors")
    code = (
        "import sys; from magmerge.checkpoints.adapters.adapter_loader import open_adapter; "
        "from magmerge.checkpoints.adapters.translation import renamed; "
        f"print(len(renamed(open_adapter({str(path)!r}), 'diffusers').modules)); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


KOHYA = [
    "lora_unet_down_blocks_0_resnets_0_conv1",
    "lora_unet_input_blocks_1_0_in_layers_2",
    "lora_unet_double_blocks_0_img_attn_qkv",
    "lora_unet_single_blocks_1_linear1",
    "lora_unet_final_layer_adaLN_modulation_1",
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
    "lycoris_x",
]
DIFFUSERS = [
    "unet.conv_in",
    "unet.up_blocks.0.upsamplers.0.conv",
    "transformer.single_transformer_blocks.0.proj_mlp",
    "transformer.transformer_blocks.0.attn.to_k",
    "transformer.transformer_blocks.0.attn.to_q",
    "transformer.norm_out.linear",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
]
OLD = ["mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora", "x.to_q_lora"]
PEFT = ["base_model.model.model.layers.0.q", "base_model.model.unet.conv_in", "down_blocks.0.x"]
COMFY = ["diffusion_model.single_blocks.1.linear1", "text_encoders.clip_l.transformer.x"]
PAIRS: list[tuple[list[str], list[tuple[str, str]]]] = [
    (KOHYA, [(".lora_up.weight", ".lora_down.weight"), (".lora_B.weight", ".lora_A.weight")]),
    (DIFFUSERS, [(".lora_B.weight", ".lora_A.weight")]),
    (OLD, [(".up.weight", ".down.weight")]),
    (PEFT, [(".lora_B.weight", ".lora_A.weight"), (".lora_embedding_B", ".lora_embedding_A")]),
    (COMFY, [(".lora_up.weight", ".lora_down.weight")]),
]
STRAY = ["model.layers.0.q", "", "\n", *KOHYA, *DIFFUSERS, *OLD, *PEFT, *COMFY]
ENDINGS = [
    *(ending for _, pairs in PAIRS for pair in pairs for ending in pair),
    *(f".hada_w{which}_{half}" for which in "12" for half in "ab"),
    *(f".lokr_w{which}" for which in ("1", "2", "1_a", "2_a", "2_b")),
    *(".lora_mid.weight", ".alpha", ".lora.up.weight", ".weight", ".diff", ".dora_scale"),
]


@st.composite
def states(draw: st.DrawFn) -> dict[str, Tensor]:
    """Files that are nearly adapters: whole pairs, and now and then what belongs to nothing."""
    shapes: dict[str, list[int]] = {}
    modules, endings = draw(st.sampled_from(PAIRS))
    for name in draw(st.lists(st.sampled_from(modules), min_size=1, max_size=4, unique=True)):
        up, down = draw(st.sampled_from(endings))
        rank, kernel = draw(st.integers(1, 3)), draw(st.sampled_from([[], [], [3, 3]]))
        out, columns = draw(st.sampled_from([(18, 6), (42, 6), (6, 6), (24, 6), (5, 4)]))
        shapes[name + up], shapes[name + down] = [out, rank], [rank, columns, *kernel]
        if draw(st.integers(0, 3)) == 0:
            shapes[f"{name}.alpha"] = []
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        key = draw(st.sampled_from(STRAY)) + draw(st.sampled_from(ENDINGS))
        shapes[key] = draw(st.lists(st.integers(0, 7), max_size=5))
    if draw(st.integers(0, 4)) == 0:
        del shapes[draw(st.sampled_from(sorted(shapes)))]
    alpha = draw(st.sampled_from([2.0, 2.0, 0.5, 0.0, float("nan")]))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float16, torch.int64]))
    values = {key: alpha if key.endswith("alpha") else 1.0 for key in shapes}
    return {key: torch.full(shape, values[key]).to(dtype) for key, shape in shapes.items()}


@settings(
    deadline=None,
    max_examples=examples(400),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    state=states(),
    config=st.none()
    | st.fixed_dictionaries({"peft_type": st.just("LORA")}, optional={"lora_alpha": st.integers()}),
    text=st.none() | st.text(max_size=8) | st.sampled_from(['{"unet.lora_alpha": 3}', "[]", "{}"]),
)
def test_fuzz_anything_is_an_adapter_or_an_error(
    tmp_path: Path, state: dict[str, Tensor], config: dict[str, object] | None, text: str | None
) -> None:
    path = tmp_path / "x.safetensors"
    save_file(state, path, None if text is None else {"lora_adapter_metadata": text})
    beside = tmp_path / "adapter_config.json"
    beside.unlink(missing_ok=True)
    if config is not None:
        beside.write_text(json.dumps(config))
    try:
        is_adapter_file(open_checkpoint(path))
        adapter = open_adapter(path)
        content = content_of(adapter)
    except MagmergeError as error:
        assert str(error)
        return
    read_deltas(adapter)
    for naming in ("diffusers", "diffusers_old", "kohya", "kohya_ldm", "kohya_flux", "peft"):
        try:
            there = renamed(adapter, naming)  # type: ignore[arg-type]
            assert set(read_deltas(there)) == set(there.modules)
            encode(rename_content(content, naming))  # type: ignore[arg-type]
        except MagmergeError as error:
            assert str(error)
