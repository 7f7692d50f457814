"""Low-rank factorization of linear layers: W becomes L R, two narrow matrices.

    factorize_model(model, 0.5)                           # plain SVD
    factorize_model(model, 0.5, calibration_NS)           # SVD of W S, whitened by the inputs (SVD-LLM)

A matrix of O x I at rank r has r (O + I) parameters. The rank of each layer follows from the share to keep.

Small models with random weights are not of low rank, because their singular values are of about one size. Factorize
trained models.

Shape suffixes: N = blocks, S = tokens per block, O = outputs, I = inputs, R = rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgewise.core.errors import ModelError
from edgewise.core.vector import Array
from edgewise.learn.compress.measure import calibration_layer_inputs
from edgewise.learn.models.blocks import decoder_block_layers
from edgewise.learn.models.smaller_layers import FactoredLinear, replace_layers

RIDGE = 1e-4  # As a share of the mean second moment. Inputs that calibration never saw keep a little weight.


def rank_for_weights(outputs: int, inputs: int, kept: float) -> int:
    """Return the largest rank whose factors have at most ``kept`` of the parameters of the matrix, and at least 1."""
    return max(1, int(kept * outputs * inputs / (outputs + inputs)))


def factorize_model(model: Any, kept: float, blocks_NS: Array | None = None) -> dict[str, int]:
    """Replace the linear layers of the decoder blocks by factors.

    Args:
        kept: share of each matrix's parameters to keep, in (0, 1).
        blocks_NS: calibration text. None factorizes the matrices alone.
    Returns:
        The rank of each layer by name. A layer whose factors would not be smaller stays whole and is left out.
    Raises:
        ModelError: E-SHRINK as ``block_layers``, and where no layer becomes smaller.
    """
    layers = decoder_block_layers(model)
    inputs = {} if blocks_NS is None else calibration_layer_inputs(model, blocks_NS, layers, gram=True)
    made: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        outputs, width = layer.weight.shape
        rank = rank_for_weights(outputs, width, kept)
        if rank * (outputs + width) >= outputs * width:
            continue
        gram = inputs[name].gram_II if name in inputs else None
        left, right = matrix_factors(layer.weight.detach(), rank, gram)
        made[name] = FactoredLinear.of(left, right, layer.bias).train(layer.training)
    if not made:
        what = f"no layer of {type(model).__name__} has smaller factors at {kept:g} of its parameters."
        raise ModelError("E-SHRINK", what, "give a smaller share with --to.")
    replace_layers(model, made)
    return {name: layer.right.out_features for name, layer in made.items() if isinstance(layer, FactoredLinear)}


def matrix_factors(
    weight_OI: Tensor, rank: int, gram_II: Tensor | None = None, ridge: float = RIDGE
) -> tuple[Tensor, Tensor]:
    """Split a matrix into L, [O, R], and R, [R, I], in the dtype of the matrix.

        W = U s V^T                         L = U_r sqrt(s_r)    R = sqrt(s_r) V_r^T
        W S = U s V^T, S S^T = X X^T        L = U_r sqrt(s_r)    R = sqrt(s_r) V_r^T S^-1

    S is the Cholesky factor of X X^T + ridge mean(diag) I. Of all L R of this rank, the second form has the smallest
    ||(W - L R) S||_F, which is the error of the outputs on the calibration text, but for the ridge.

    Args:
        gram_II: X X^T over the calibration tokens. None for the first form.
    Raises:
        ModelError: E-SHRINK where X X^T has no Cholesky factor (values that are not finite).
    Source: Wang et al. 2024, arXiv:2403.12378 (SVD-LLM), section 3.1.
    """
    wide = weight_OI.double()
    if gram_II is None:
        u, s, vt = torch.linalg.svd(wide, full_matrices=False)
    else:
        added = ridge * gram_II.diagonal().mean()
        whitening, failed = torch.linalg.cholesky_ex(gram_II + added * torch.eye(len(gram_II), dtype=gram_II.dtype))
        if failed or not bool(torch.isfinite(whitening).all()) or float(added) <= 0.0:
            what = "the second moments of a layer's inputs cannot be whitened."
            raise ModelError("E-SHRINK", what, "give more or other calibration text with --on, or write --how svd.")
        u, s, vt = torch.linalg.svd(wide @ whitening, full_matrices=False)
        vt = torch.linalg.solve_triangular(whitening, vt, upper=False, left=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(weight_OI.dtype), (root[:, None] * vt[:rank]).to(weight_OI.dtype)
