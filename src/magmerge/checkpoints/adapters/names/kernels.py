"""Convolutions of 3 x 3 in U-Nets, by their names, for files that hold their kernels flattened."""

from __future__ import annotations

import re

_THREE_BY_THREE = re.compile(
    r"(?:lora_)?unet_(?:.*_)?"
    r"(?:conv1|conv2|conv_in|conv_out|(?:down|up)samplers_0_conv|in_layers_2|out_layers_3|\d_op"
    r"|output_blocks_\d+_[12]_conv|input_blocks_0_0|out_2)"
)


def unfolded(name: str, columns: int) -> tuple[int, ...]:
    """[in, 3, 3] for such a convolution whose in times 9 is `columns`; else [columns]."""
    if columns % 9 == 0 and _THREE_BY_THREE.fullmatch(name.replace(".", "_")):
        return (columns // 9, 3, 3)
    return (columns,)
