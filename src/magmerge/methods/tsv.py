"""Task singular vectors: each expert's leading directions, made orthogonal to each other."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from magmerge.core.parameters import Lambda
from magmerge.core.registry import register_method
from magmerge.linalg.in_turn import InTurn
from magmerge.linalg.leading import leading
from magmerge.linalg.polar import orthogonalised
from magmerge.linalg.row_norms import as_rows
from magmerge.linalg.spectral import decomposition_bytes
from magmerge.methods.matrices import MATRICES, scaled_mean, sides


def scratch(shape: tuple[int, ...], _: int) -> int:
    """All singular vectors in float64; beside them a task vector and its decomposition, or the
    vectors of the longer side twice more while they are made orthogonal.
    """
    longer, shorter = sides(shape)
    triplets, entries = 8 * shorter * (longer + shorter), longer * shorter
    found = 4 * entries + decomposition_bytes((longer, shorter))
    return triplets + max(found, 16 * entries, 12 * entries + 32 * shorter**2)


@register_method(
    "tsv_m",
    source="TSV-M, arXiv:2412.00081, alg. 1",
    kinds=MATRICES,
    faithful=False,
    workspace=(0, 0),
    scratch=scratch,
    in_turn=True,
)
def tsv_m(
    deltas: Float[Tensor, "K *shape"] | InTurn, *, lambda_: Lambda = 1.0
) -> Float[Tensor, "*shape"]:
    """Each expert's leading singular triplets, their vectors made orthogonal among the experts.

    For matrices [M, N]: of each D_k the first max(1, floor(min(M, N) / K)) triplets; all their left
    vectors side by side are replaced by their polar factor U, all right ones by V, and the result
    is lambda U diag(s) V^T with s all their singular values. Triplets that count as zero (2^-20 of
    D_k's largest singular value) are left out, and so are in a polar factor the directions of
    singular values that do. Convolutions are [out, rest] matrices; a vector gets lambda times the
    mean of its task vectors.

    When: the first choice for experts of different tasks, without data and without tuning. Its
    size is about right already: `wsc` and `fsc` added nothing to it where that was measured.
    """
    if deltas.ndim < 3:
        return scaled_mean(deltas, lambda_)
    count = max(1, sides(deltas.shape[1:])[1] // len(deltas))
    left, values, right = orthogonalised(
        lambda dtype, tolerance: [
            leading(as_rows(delta), count, tolerance, dtype=dtype) for delta in deltas
        ],
        deltas.dtype,
    )
    return ((left * (values * lambda_)) @ right.T).reshape(deltas.shape[1:])
