"""Noise of a room, mixed into spectrograms in the power domain, and the form in which a model reads them."""

from __future__ import annotations

import copy

import numpy as np

from edgewise.core.keys import Key, generator
from edgewise.core.vector import Array

TILT, RIPPLE, WAVES = 2.0, 0.5, 4  # spread of a noise's slope over the bands, of its ripples, and their number
AT_ONCE = 32  # clips that are mixed at once, so that a device needs little memory
SHAPE = 8.0  # a frame's power of noise is Gamma(SHAPE) / SHAPE times its mean


def noisy(powers: Array, ratio_db: float, spread_db: float, key: Key) -> Array:
    """Mix stationary coloured noise into each clip.

        p' = p + g n,   g = mean(p) / (mean(n) 10^(r / 10)),   r uniform in ratio_db +- spread_db

    The noise n of a clip has one spectrum, a slope and ripples over the bands, and each frame's power scatters around
    it as that of a periodogram does.

    Args:
        powers: float32[n, frames, bands], log powers.
        ratio_db: signal to noise, dB.
        key: decides all draws.
    Returns:
        float32[n, frames, bands], log powers.
    """
    rng, (n, frames, bands) = generator(key), powers.shape
    where = np.linspace(-1.0, 1.0, bands)
    waves = np.cos(np.pi * np.arange(1, WAVES + 1)[:, None] * (where + 1.0) / 2.0)
    slope = rng.normal(0.0, TILT, (n, 1)) * where
    spectrum = np.exp(slope + rng.normal(0.0, RIPPLE, (n, WAVES)) @ waves)
    again, parts = copy.deepcopy(rng), [slice(at, min(n, at + AT_ONCE)) for at in range(0, n, AT_ONCE)]
    for part in parts:  # The ratios are drawn after all of these, which are drawn again where they are used.
        rng.gamma(SHAPE, 1.0 / SHAPE, (part.stop - part.start, frames, bands))
    ratio = 10.0 ** (rng.uniform(ratio_db - spread_db, ratio_db + spread_db, n) / 10.0)
    out = np.empty(powers.shape, np.float32)
    for part in parts:
        noise = spectrum[part, None, :] * again.gamma(SHAPE, 1.0 / SHAPE, (part.stop - part.start, frames, bands))
        signal = np.exp(powers[part].astype(np.float64))
        gain = signal.mean((1, 2)) / (noise.mean((1, 2)) * ratio[part])
        out[part] = np.log(signal + gain[:, None, None] * noise)
    return out


def readable(powers: Array) -> Array:
    """Average pairs of frames and standardise each clip, so that loudness says nothing.

    Args:
        powers: float32[n, frames, bands], log powers. A last frame without a pair is left out.
    Returns:
        float32[n, frames / 2, bands] of mean 0 and deviation 1 in each clip.
    """
    n, frames, bands = powers.shape
    pairs = powers[:, : frames // 2 * 2].reshape(n, frames // 2, 2, bands).mean(2)
    mean, deviation = pairs.mean((1, 2), keepdims=True), pairs.std((1, 2), keepdims=True)
    return ((pairs - mean) / np.maximum(deviation, 1e-6)).astype(np.float32)
