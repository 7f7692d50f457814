"""Products of a device's two LoRA factors, computed by the server: for rules that average products instead of factors.

    dB_i dA_i       from the changes that device i sends, for each adapted matrix

With B_i = B_0 + dB_i and A_i = A_0 + dA_i, all that a mean of factors misses is the covariance of the changes:

    mean(B_i A_i) - mean(B_i) mean(A_i)  =  mean(dB_i dA_i) - mean(dB_i) mean(dA_i)

Both means on the right are plain sums, so the server's memory stays O(d) for any number of devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from edgewise.core import require
from edgewise.core.errors import CompositionError
from edgewise.core.factors import factor
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.part import part
from edgewise.core.payload import Payload
from edgewise.core.space import Space
from edgewise.core.stage import WEIGHT, Stage, keeps
from edgewise.core.vector import Segment, Spec, Vector

BASE = ".base_layer.weight"  # peft's name of the adapted matrix


class ProductMatrix(NamedTuple):
    """An adapted matrix of shape (outputs, inputs), with its factors."""

    base: Segment
    a: Segment
    b: Segment

    def product(self, of_b: Vector, of_a: Vector) -> Vector:
        """Multiply a B and an A that lie in vectors of the run's layout: float32[outputs * inputs]."""
        b = of_b[self.b.start : self.b.stop].reshape(self.b.shape)
        a = of_a[self.a.start : self.a.stop].reshape(self.a.shape)
        return np.ravel(b @ a)


def product_matrices(spec: Spec) -> tuple[ProductMatrix, ...]:
    """List the adapted matrices of a layout.

    Raises:
        CompositionError: E-SEGMENT where the layout is not made of matrices with both of their factors.
    """

    def found() -> Iterator[ProductMatrix]:
        by_name = {s.name: s for s in spec.segments}
        for s in spec.segments:
            if s.name.endswith(BASE):
                name = s.name.removesuffix(BASE)
                yield ProductMatrix(s, by_name[f"{name}.lora_A.weight"], by_name[f"{name}.lora_B.weight"])

    try:
        each = tuple(found())
    except KeyError:
        each = ()
    if not each or 3 * len(each) != len(spec.segments):
        raise CompositionError(
            "E-SEGMENT",
            "products: the layout is not made of matrices with the two factors of LoRA.",
            'train them: trainable.kind = "lora", and trainable.rule = "fedex" or "flora".',
        )
    return each


@part
def products(spec: Spec) -> Stage:
    """Send the factors' changes, and give the server their products in the place of the matrices.

    The decoded update has dA_i and dB_i, and dB_i dA_i where the layout has the matrix. A weight w before it multiplies
    all three once.

    Algebra: the product is no linear map of what travels, so updates cannot be summed unseen, and no bound of the
    update bounds it. dim is that of the factors.
    Raises:
        CompositionError: E-SEGMENT as ``product_matrices``. E-ORDER if the vector is no longer the whole update.
            E-NOT-REAL after a quantizer.
    Source: Singhal et al. 2024, arXiv:2410.09432 (FedEx-LoRA), equation 8, as a covariance.
    """
    each = product_matrices(spec)
    kept = [s for s in spec.segments if factor(s.name)]
    size = sum(s.size for s in kept)

    def infer(space: Space) -> Space:
        require.real(space, "products")
        if space.sparse or space.moving or space.dim != spec.dim:
            raise CompositionError(
                "E-ORDER",
                f"products: needs the whole update of {spec.dim} coordinates.",
                "put weigh first, or nothing.",
            )
        return space.but(dim=size, summable=False, unbiased=False)

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        return payload.but(body=np.concatenate([payload.body[s.start : s.stop] for s in kept])), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        x, start = np.zeros(spec.dim, np.float32), 0
        for s in kept:
            x[s.start : s.stop] = payload.body[start : start + s.size]
            start += s.size
        weight = float(payload.head[space.head.index(WEIGHT)]) if WEIGHT in space.head else 1.0
        for one in each if weight > 0.0 else ():
            x[one.base.start : one.base.stop] = one.product(x, x) / np.float32(weight)
        return payload.but(body=x)

    def says(before: Space, after: Space) -> str:
        return f"{keeps(before, after)}, the factors; the server multiplies those of each device"

    return Stage("products", infer, encode, decode, says)
