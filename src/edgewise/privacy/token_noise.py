"""Clip and noise for each vector that a device of split learning sends up.

    noise = TokenNoise(clip_l2=4.0, z=0.5, hidden=128)
    noised_NC = noise.hide(x_NC, entropy)
    token_epsilon(0.5, passes=3)

Formula, for the vector x of one token:

    x' = x min(1, C / ||x||),    sent = round(x' / step) + N_Z(0, S^2) in steps,    standard deviation z C

Neighbours: any two vectors of one token. Two vectors of length at most C are at most 2 C apart, so the noise is z / 2
times the sensitivity. An observer could not tell which of them was sent, given all other vectors that are sent.

Limits. This is a promise about single vectors and not about text. Attention mixes tokens, so a change of one token
changes the vectors of all later tokens of its block. Those tell of it too. Through the training of the device's part a
change of a token also reaches the vectors of later steps. The epsilon covers neither.
Source: Dwork and Roth 2014, appendix A, for the Gaussian mechanism; ``privacy.grid`` for the grid.

Shape suffixes: N = tokens, C = width between blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import RecipeError
from edgewise.core.keys import Key
from edgewise.privacy import accountant, card, grid, spend
from edgewise.privacy.clip import HAIR, LARGEST, SMALLEST

DELTA = 1e-5  # at which the promise on a token's vectors is stated
VECTORS = 2  # noised vectors of a token in one pass: activation and output gradient


@dataclass(frozen=True)
class TokenNoise:
    """Clip and noise of one kind of vector.

    Attributes:
        clip_l2: C, the longest vector.
        z: standard deviation of the noise over C.
        hidden: C of the shapes, the numbers of a vector.
    Raises:
        RecipeError: E-VALUE for a clip outside 1e-30 to 1e30, or a z that is not above 0. CompositionError: E-PRECISION
            as ``grid.fit_noise_grid``.
    """

    clip_l2: float
    z: float
    hidden: int

    def __post_init__(self) -> None:
        if not SMALLEST <= self.clip_l2 <= LARGEST:
            what = f"a clip of {self.clip_l2:g} for the vector of a token."
            raise RecipeError("E-VALUE", what, f"write a number from {SMALLEST:g} to {LARGEST:g}.")
        if not (isfinite(self.z) and self.z > 0):
            what = f"a noise multiplier of {self.z:g} for the vector of a token."
            raise RecipeError("E-VALUE", what, "write a number above 0.")
        _ = self.grid

    @property
    def grid(self) -> grid.NoiseGrid:
        """The grid of the noise."""
        return grid.fit_noise_grid(f"token_noise({self.z:g})", self.z, self.clip_l2, self.hidden, self.clip_l2)

    def hide(self, x_NC: NDArray[np.float32], entropy: Key) -> NDArray[np.float32]:
        """Clip each vector and add noise to it: float32[N, C].

        Args:
            entropy: 32 fresh secret bytes. Never use them for other vectors.
        Guarantees: a zero vector stays zero before the noise. The sum of vector and noise is exact in integers, and is
            rounded to float32 once.
        Raises:
            ValueError: for another shape, or a value that is not finite.
        """
        if x_NC.ndim != 2 or x_NC.shape[1] != self.hidden:
            raise ValueError(f"shape {x_NC.shape}, expected (tokens, {self.hidden})")
        if not np.isfinite(x_NC).all():
            raise ValueError("a value is not finite")
        clipped = self.clipped(x_NC)
        return grid.noised_on_grid(clipped.reshape(-1), self.grid, entropy).astype(np.float32).reshape(x_NC.shape)

    def clipped(self, x_NC: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scale each vector down to a length of at most C: float64[N, C]."""
        x = x_NC.astype(np.float64)
        norms_N = np.sqrt(np.square(x).sum(1))
        over = norms_N > self.clip_l2
        x[over] *= (self.clip_l2 * HAIR / norms_N[over])[:, None]
        return x


def token_epsilon(z: float, passes: int, delta: float = DELTA) -> float:
    """Compute the epsilon of all vectors that one token sends, activation and output gradient in each pass.

    Args:
        z: noise multiplier of both kinds.
        passes: number of times that the token's block is trained on.
        delta: in (0, 1).
    """
    return accountant.epsilon({spend.local(z): VECTORS * passes}, delta)


def token_promise(z: float, passes: int) -> str:
    """Describe what the noise of a run promises and what it does not, for its privacy card.

    Args:
        z: noise multiplier.
        passes: the most times that a run trains on one token.
    """
    one = card.promise_words(token_epsilon(z, 1), DELTA)
    most = f"after {passes:,}, the most that a token takes in this run, where its device has little text"
    all_ = f", and {card.promise_words(token_epsilon(z, passes), DELTA)} {most}" if passes > 1 else ""
    return (
        f"each of these vectors is clipped and noised with multiplier {z:g}: {one} after one pass over a device's "
        f"text{all_}, for the two vectors of one token given those of all others; this is no promise about the text, "
        "because attention mixes tokens, so that vectors of later tokens tell of it too, and so do the update of the "
        "device's part and the vectors of later steps"
    )
