"""Files with any mixture of adapters' keys and shapes: read, or refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from magmerge.checkpoints.adapters import open_adapter
from magmerge.core.errors import MagmergeError

ENDINGS = (
    *("lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "dora_scale"),
    *("lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector", "ia3_l"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("diff", "diff_b", "w_norm", "b_norm", "token_adapter.trainable_tokens_delta"),
    *("base_layer.lora_A.weight", "base_layer.lora_B.weight"),
)
STEMS = (
    *("lora_unet_down_blocks_0_attentions_0_proj_in", "diffusion_model.blocks.0.q"),
    *("base_model.model.a.experts", "base_model.model.embed", "unet.conv_in"),
)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
KINDS = st.sampled_from(["LORA", "LOHA", "LOKR", "IA3", "TRAINABLE_TOKENS", None])


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(STEMS), st.sampled_from(ENDINGS)), SHAPES, min_size=1, max_size=6
    ),
    KINDS,
    st.booleans(),
    st.sampled_from([None, ["experts.w"], ["experts.gate_up_proj", "experts.down_proj"], 3]),
    st.sampled_from([None, [0], [0, 0], {"embed": [1, 2]}, {"embed": None}, "x"]),
)
def test_keys_are_read_or_refused(
    tmp_path: Path, keys: dict, kind: object, folder: bool, parameters: object, tokens: object
) -> None:
    state = {f"{stem}.{ending}": torch.ones(shape) for (stem, ending), shape in keys.items()}
    path = tmp_path / "adapter_model.safetensors"
    save_file(state, path)
    config = tmp_path / "adapter_config.json"
    config.unlink(missing_ok=True)
    if folder:
        told = {"peft_type": kind, "r": 1, "lora_alpha": 1, "alpha": 1}
        told |= {"target_parameters": parameters, "trainable_token_indices": tokens}
        config.write_text(json.dumps(told))
    try:
        adapter = open_adapter(tmp_path if folder else path)
    except MagmergeError as error:
        assert error.remedy
        return
    for module in adapter.modules.values():
        factors = adapter.read(module.name)
        assert factors.up.shape == (module.shape[0], module.rank)
        assert factors.down.shape == (module.rank, *module.shape[1:])


def test_a_layer_with_and_without_its_wrapper_is_no_bare_parameter() -> None:
    """Both have factors, and no parameter of either is named: once no number of wrappers fitted."""
    from magmerge.checkpoints.adapters.formats.bare_parameters import parameter_of

    modules: dict = {"a.proj_in": {}, "a.proj_in.base_layer": {}}
    assert parameter_of("a.proj_in.base_layer", modules, {"target_parameters": ["b.w"]}) is None
