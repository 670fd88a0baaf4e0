from __future__ import annotations

import pytest

from magmerge.checkpoints.names import ldm
from tests.checkpoints.adapters import module_names

PAIRS = {
    "input_blocks.0.0": "conv_in",
    "input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
    "input_blocks.2.0.out_layers.3": "down_blocks.0.resnets.1.conv2",
    "input_blocks.3.0.op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks.4.0.skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks.5.1.transformer_blocks.0.attn2.to_out.0": (
        "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0"
    ),
    "input_blocks.8.1.proj_in": "down_blocks.2.attentions.1.proj_in",
    "middle_block.0.emb_layers.1": "mid_block.resnets.0.time_emb_proj",
    "middle_block.1.transformer_blocks.0.ff.net.0.proj": (
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
    ),
    "middle_block.2.in_layers.2": "mid_block.resnets.1.conv1",
    "output_blocks.3.1.proj_out": "up_blocks.1.attentions.0.proj_out",
    "output_blocks.5.2.conv": "up_blocks.1.upsamplers.0.conv",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "out.2": "conv_out",
}


@pytest.mark.parametrize(("own", "theirs"), PAIRS.items())
def test_known_pairs(own: str, theirs: str) -> None:
    assert ldm.to_diffusers(own) == theirs
    assert ldm.from_diffusers(theirs, None) == own


@pytest.mark.parametrize(
    ("family", "own"), [("sd", "output_blocks.2.1.conv"), ("sdxl", "output_blocks.2.2.conv")]
)
def test_the_first_upsampler_stands_where_the_family_has_it(family: ldm.Family, own: str) -> None:
    theirs = "up_blocks.0.upsamplers.0.conv"
    assert ldm.from_diffusers(theirs, family) == own
    assert ldm.to_diffusers(own) == theirs
    assert ldm.from_diffusers(theirs, None) is None


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_every_module_goes_there_and_back(family: ldm.Family) -> None:
    names = module_names.unet(family)
    own = {name: ldm.from_diffusers(name, family) for name in names}
    assert None not in own.values()
    assert len(set(own.values())) == len(names)
    assert all(ldm.to_diffusers(str(there)) == name for name, there in own.items())


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_no_module_tells_the_wrong_family(family: ldm.Family) -> None:
    names = module_names.unet(family)
    assert ldm.family_of(names) == family
    assert all(ldm.family_of([name]) in (family, None) for name in names)
    assert ldm.family_of(["conv_in", "up_blocks.0.upsamplers.0.conv"]) is None


@pytest.mark.parametrize(
    "name",
    [
        "input_blocks.12.0.in_layers.2",
        "input_blocks.3.1.op",
        "input_blocks.1.2.conv",
        "output_blocks.5.1.conv",
        "output_blocks.11.2.conv",
        "middle_block.3.in_layers.2",
        "middle_block.0.transformer_blocks.0.attn1.to_q",
        "output_blocks.1.2.conv",
    ],
)
def test_what_no_such_u_net_has_is_not_known(name: str) -> None:
    assert ldm.to_diffusers(name) is None
