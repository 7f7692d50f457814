"""The model of keywords in numpy: scores and gradients without torch, for devices that have no room for it.

    weights = views(params, spec)                    # by name, as ``network.KeywordNet`` names them
    scores, pullback = scored(weights, x, heads=4)
    gradients = pullback(d_scores)                   # by name

Scores and gradients equal those of ``network.KeywordNet`` to rounding. Shape suffixes are those of ``network``, and W =
KERNEL M, the values under one place of a convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgewise.core.keys import Key, generator
from edgewise.core.vector import Array, Spec, Vector
from edgewise.plan.recipe.keywords import KeywordsSection

KERNEL, STRIDE, EPSILON = 5, 2, 1e-5  # of the convolutions, and under the root of a normalisation
Weights = Mapping[str, Array]
Pullback = Callable[[Array], Array]


def layout(bands: int, frames: int, keywords: int, section: KeywordsSection) -> Spec:
    """Return the layout of the parameters of ``network.KeywordNet``."""
    width, tokens = section.width, halved(halved(frames))
    shapes: dict[str, tuple[int, ...]] = {"places": (tokens, width)}

    def add(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    add("first", width, bands, KERNEL)
    add("second", width, width, KERNEL)
    for number in range(section.layers):
        at = f"layers.{number}"
        add(f"{at}.before", width)
        add(f"{at}.between", width)
        add(f"{at}.joined", 3 * width, width)
        add(f"{at}.out", width, width)
        add(f"{at}.up", 2 * width, width)
        add(f"{at}.down", width, 2 * width)
    add("norm", width)
    add("scores", keywords, width)
    return Spec.of([(name, shape, "float32") for name, shape in shapes.items()])


def untrained(spec: Spec, key: Key) -> Vector:
    """Draw the parameters of an untrained model: float32[d].

    Places are 0 and gains 1. Other tensors are uniform within 1 / sqrt(n), n the inputs of an output of their layer.
    """
    rng, x_D = generator(key), np.zeros(spec.dim, np.float32)
    found = views(x_D, spec)
    for name, tensor in found.items():
        matrix = found.get(f"{name.rpartition('.')[0]}.weight", tensor)
        if name != "places" and matrix.ndim > 1:
            bound = float(np.prod(matrix.shape[1:])) ** -0.5
            tensor[...] = rng.uniform(-bound, bound, tensor.shape)
        elif name.endswith(".weight"):
            tensor[...] = 1.0
    return x_D


def halved(frames: int) -> int:
    """Compute the number of frames after a convolution of stride 2."""
    return (frames - 1) // STRIDE + 1


def views(x_D: Vector, spec: Spec) -> dict[str, Array]:
    """Return the tensors of a flat vector by name. They share its memory."""
    return {s.name: x_D[s.start : s.stop].reshape(s.shape) for s in spec.segments}


def scored(weights: Weights, x_BFM: Array, heads: int) -> tuple[Array, Callable[[Array], dict[str, Array]]]:
    """Score clips.

    Args:
        x_BFM: float32[B, frames, bands].
    Returns:
        The logits, float32[B, keywords], and the way from their gradient to those of all weights, by name.
    """
    found: dict[str, Array] = {}
    layers = len({name.split(".")[1] for name in weights if name.startswith("layers.")})
    way: list[Pullback] = []

    def through(step: tuple[Array, Pullback]) -> Array:
        way.append(step[1])
        return step[0]

    x = through(_convolved(weights, found, "first", x_BFM))
    x = through(_rectified(x))
    x = through(_convolved(weights, found, "second", x))
    x = through(_rectified(x))
    x = through(_placed(weights, found, x))
    for number in range(layers):
        x = through(_attended(weights, found, f"layers.{number}", x, heads))
        x = through(_widened(weights, found, f"layers.{number}", x))
    x = through(_normalised(weights, found, "norm", x))
    x = through(_averaged(x))
    x = through(_mapped(weights, found, "scores", x))

    def pullback(d_scores: Array) -> dict[str, Array]:
        d = d_scores
        for back in reversed(way):
            d = back(d)
        return dict(found)

    return x, pullback


def loss_gradient(scores_BK: Array, y_BK: Array, positive_weight: float) -> tuple[float, Array]:
    """Return the mean loss of ``network.KeywordLoss`` and its gradient by the scores.

    loss = mean(w y log(1 + e^-s) + (1 - y) log(1 + e^s)),   w the positive weight
    """
    s, y = scores_BK.astype(np.float64), y_BK.astype(np.float64)
    loss = positive_weight * y * np.logaddexp(0.0, -s) + (1.0 - y) * np.logaddexp(0.0, s)
    sigmoid = 0.5 * (1.0 + np.tanh(0.5 * s))
    gradient = (positive_weight * y * (sigmoid - 1.0) + (1.0 - y) * sigmoid) / s.size
    return float(loss.mean()), gradient.astype(np.float32)


def _mapped(weights: Weights, found: dict[str, Array], name: str, x: Array) -> tuple[Array, Pullback]:
    """x W^T + b along the last axis."""
    w, flat = weights[f"{name}.weight"], x.reshape(-1, x.shape[-1])

    def back(d: Array) -> Array:
        d_flat = d.reshape(-1, d.shape[-1])
        found[f"{name}.weight"], found[f"{name}.bias"] = d_flat.T @ flat, d_flat.sum(0)
        return (d_flat @ w).reshape(x.shape)

    return (flat @ w.T + weights[f"{name}.bias"]).reshape(*x.shape[:-1], len(w)), back


def _convolved(weights: Weights, found: dict[str, Array], name: str, x_BFM: Array) -> tuple[Array, Pullback]:
    """A convolution over frames with padding of half a kernel, channels last."""
    w_CMK, (b, frames, bands), half = weights[f"{name}.weight"], x_BFM.shape, KERNEL // 2
    tokens = halved(frames)
    padded = np.zeros((b, frames + 2 * half, bands), np.float32)
    padded[:, half : half + frames] = x_BFM
    under_BTW = np.concatenate([padded[:, k : k + STRIDE * (tokens - 1) + 1 : STRIDE] for k in range(KERNEL)], axis=2)
    w_WC = w_CMK.transpose(2, 1, 0).reshape(KERNEL * bands, -1)

    def back(d_BTC: Array) -> Array:
        d_flat = d_BTC.reshape(b * tokens, -1)
        d_WC = under_BTW.reshape(b * tokens, -1).T @ d_flat
        found[f"{name}.weight"] = d_WC.reshape(KERNEL, bands, -1).transpose(2, 1, 0)
        found[f"{name}.bias"] = d_flat.sum(0)
        d_BTW, d_padded = (d_flat @ w_WC.T).reshape(b, tokens, KERNEL, bands), np.zeros_like(padded)
        for k in range(KERNEL):
            d_padded[:, k : k + STRIDE * (tokens - 1) + 1 : STRIDE] += d_BTW[:, :, k]
        return d_padded[:, half : half + frames]

    return under_BTW @ w_WC + weights[f"{name}.bias"], back


def _rectified(x: Array) -> tuple[Array, Pullback]:
    """max(x, 0)."""
    on = x > 0
    return x * on, lambda d: d * on


def _placed(weights: Weights, found: dict[str, Array], x_BTC: Array) -> tuple[Array, Pullback]:
    """Add the learnt vector of each place."""

    def back(d_BTC: Array) -> Array:
        found["places"] = d_BTC.sum(0)
        return d_BTC

    return x_BTC + weights["places"], back


def _normalised(weights: Weights, found: dict[str, Array], name: str, x: Array) -> tuple[Array, Pullback]:
    """Layer normalisation of the last axis."""
    gain = weights[f"{name}.weight"]
    centred = x - x.mean(-1, keepdims=True)
    inverse = 1.0 / np.sqrt((centred * centred).mean(-1, keepdims=True) + np.float32(EPSILON))
    unit = centred * inverse

    def back(d: Array) -> Array:
        axes = tuple(range(d.ndim - 1))
        found[f"{name}.weight"], found[f"{name}.bias"] = (d * unit).sum(axes), d.sum(axes)
        d_unit = d * gain
        along = d_unit.mean(-1, keepdims=True) + unit * (d_unit * unit).mean(-1, keepdims=True)
        return (d_unit - along) * inverse

    return unit * gain + weights[f"{name}.bias"], back


def _attended(weights: Weights, found: dict[str, Array], name: str, x_BTC: Array, heads: int) -> tuple[Array, Pullback]:
    """x + attention of the normalised x to itself."""
    b, t, c = x_BTC.shape
    size = c // heads
    scale = np.float32(size**-0.5)
    normal, back_normal = _normalised(weights, found, f"{name}.before", x_BTC)
    joined, back_joined = _mapped(weights, found, f"{name}.joined", normal)
    parts = joined.reshape(b, t, 3, heads, size).transpose(2, 0, 3, 1, 4)
    queries, keys, values = parts[0], parts[1], parts[2]
    logits = queries @ keys.swapaxes(2, 3) * scale
    logits = np.exp(logits - logits.max(-1, keepdims=True))
    share = logits / logits.sum(-1, keepdims=True)
    mixed = (share @ values).transpose(0, 2, 1, 3).reshape(b, t, c)
    out, back_out = _mapped(weights, found, f"{name}.out", mixed)

    def back(d: Array) -> Array:
        d_mixed = back_out(d).reshape(b, t, heads, size).transpose(0, 2, 1, 3)
        d_share = d_mixed @ values.swapaxes(2, 3)
        d_logits = share * (d_share - (d_share * share).sum(-1, keepdims=True)) * scale
        d_parts = np.stack([d_logits @ keys, d_logits.swapaxes(2, 3) @ queries, share.swapaxes(2, 3) @ d_mixed])
        return d + back_normal(back_joined(d_parts.transpose(1, 3, 0, 2, 4).reshape(b, t, 3 * c)))

    return x_BTC + out, back


def _widened(weights: Weights, found: dict[str, Array], name: str, x_BTC: Array) -> tuple[Array, Pullback]:
    """x + MLP of the normalised x."""
    normal, back_normal = _normalised(weights, found, f"{name}.between", x_BTC)
    up, back_up = _mapped(weights, found, f"{name}.up", normal)
    on, back_on = _rectified(up)
    down, back_down = _mapped(weights, found, f"{name}.down", on)
    return x_BTC + down, lambda d: d + back_normal(back_up(back_on(back_down(d))))


def _averaged(x_BTC: Array) -> tuple[Array, Pullback]:
    """The mean over tokens."""
    b, t, c = x_BTC.shape
    return x_BTC.mean(1), lambda d: np.broadcast_to(d[:, None] / np.float32(t), (b, t, c))
