"""Means of products of LoRA's factors, exact although both factors train: FedEx-LoRA and FLoRA.

W_0 is the adapted matrix, s = ``trainable.scale``. ``codecs.project.products`` gives the server mean(dB_i dA_i).

    FedEx   W_0 += s (mean(dB_i dA_i) - mean(dB_i) mean(dA_i)),  A += mean(dA_i),  B += mean(dB_i)
    FLoRA   W_0 += s mean(B_i A_i) with B_i = dB_i,               A = fresh, seeded,  B = 0

In both the weights that devices compute with, W_0 + s B A, step by the mean of theirs. The stack of all factors that
FLoRA broadcasts is added to W_0 on the server, which is the same model and does not grow with the rounds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from edgewise.codecs.project.products import ProductMatrix, product_matrices
from edgewise.core.keys import Key, derive, generator
from edgewise.core.stage import Aggregate
from edgewise.core.vector import Spec, Vector
from edgewise.strategies.base import State, Strategy

SAYS = {
    "fedex": "the matrices take up what the mean of factors misses of the mean of products (FedEx-LoRA)",
    "flora": "the matrices take up the mean of products, and new adapters begin (FLoRA)",
}


def of_products(inner: Strategy, spec: Spec, rule: Literal["fedex", "flora"], scale: float, key: Key) -> Strategy:
    """Let the matrices of ``spec`` step so that the mean of products is exact.

    Args:
        inner: plain averaging with server rate 1, which adds the mean update to the factors.
        scale: s, ``trainable.scale``.
        key: public, for FLoRA's new A. The same key and round give the same bytes.
    Edge cases: a round without an aggregate changes nothing, as for every strategy.
    """
    each = product_matrices(spec)

    def apply(state: State, aggregate: Aggregate) -> State:
        mean = aggregate.mean.copy()
        for one in each:
            place = slice(one.base.start, one.base.stop)
            missed = -one.product(mean, mean) if rule == "fedex" else one.product(mean, state.params)
            mean[place] = np.float32(scale) * (mean[place] + missed)
        after = inner.apply(state, replace(aggregate, mean=mean))
        if rule == "fedex":
            return after
        params = after.params.copy()
        for one in each:
            params[one.b.start : one.b.stop] = 0.0
            params[one.a.start : one.a.stop] = _fresh_factor(one, derive(key, "flora", one.a.name, after.round))
        return replace(after, params=params)

    return inner._replace(name=f"{inner.name} of products", says=f"{inner.says}; {SAYS[rule]}", apply=apply)


def _fresh_factor(one: ProductMatrix, key: Key) -> Vector:
    """Draw a factor A: uniform in +-1 / sqrt(inputs), as peft begins one."""
    bound = one.a.shape[1] ** -0.5
    return generator(key).uniform(-bound, bound, one.a.size).astype(np.float32)
