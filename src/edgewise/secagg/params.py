"""How many neighbours share a device's secrets, and how many of them give them back.

Complete graph up to 64 devices, t = floor(2 n / 3) + 1 holders of n: with fewer than n / 3 corrupt devices a malicious
server that tells two survivor lists to different devices cannot unmask both (2 t > n + corrupt), and fewer than n / 3
may drop out. Above, each device has k neighbours of a random Harary graph, and ``choose`` finds
the smallest k with a threshold t that keeps (with A = floor(gamma n) corrupt, D = floor(delta n) dropping out)
    1. the graph of honest survivors connected:
       ln n + ln(n-k-1) - ln 2 + ln[(A+D)! (n-k)! / (n! (A+D-k)!)] < -(sigma+1) ln 2    (holds by itself for k > A + D)
    2. corrupt neighbours too few to unmask:  t1 = min{t: P[X > t] <= 2^-(sigma+1) / n},  X ~ Hypergeometric(n, A, k)
    3. honest survivors enough to unmask:     t2 = max{t: P[Y < t] <= 2^-eta / n},        Y ~ Hypergeometric(n, n-D, k)
    4. against a server that lies about drop-outs: t1 <- ceil((t1 + k - 1.25) / 2)
with t = max(t1 + 1, 2) and t2 > t1. Both sides compute k and t from the policy; neither is taken from the wire.

A plan's policy has gamma = A / n_min, where A devices of any one sum may be corrupt, so that a session of n >= n_min
devices allows for all of them: floor(gamma n) >= A. With a malicious server A = min(cohort, floor(malicious_fraction x
population)), since it picks the cohort. With a curious one A is the 1 - 2^-40 quantile of how many an honestly drawn
cohort holds (``plan.trust``). delta = dropout_fraction. Plans keep n_min > 3 A for masks, n_min >= A + 2 for shares.
Source: Bonawitz et al. 2017, ePrint 2017/281; Bell et al. 2020, ePrint 2020/704, theorems 3.10 and 4.9.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, exp, lgamma, log
from typing import Literal

from edgewise.core import demand
from edgewise.core.errors import CompositionError
from edgewise.core.space import share_of
from edgewise.secagg.messages import digest

COMPLETE_TO = 64  # devices
CORRUPT_MOST = 0.33  # of a session's devices: below a third
FEWEST = 50  # for ``choose``: below, shares of n round down to nobody
ETA = 20  # the protocol fails for want of shares with probability at most 2^-ETA
SIGMA = {"curious": 40, "malicious": 80}  # bits of statistical security; 80, because a server may draw graphs anew

Server = Literal["curious", "malicious"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What everybody assumes of the others, the same on all devices of a run.

    Attributes:
        corrupt: share of a session's devices that may work with the server, below 1/3.
        dropout: share of them that may vanish after the keys are known, below 1/3.
        server: "malicious" (may lie about who dropped out) or "curious" (follows the protocol and reads all).
    """

    corrupt: float = 0.1
    dropout: float = 0.1
    server: Server = "malicious"

    def __post_init__(self) -> None:
        demand.between("secure_sum: corrupt", self.corrupt, 0.0, CORRUPT_MOST)
        demand.between("secure_sum: dropout", self.dropout, 0.0, 0.33)

    def shape(self, n: int) -> tuple[int, int]:
        """(k, t) for n devices that have sent keys: neighbours of each, shares that give a secret back."""
        if n <= COMPLETE_TO:
            return max(0, n - 1), complete_threshold(n)
        return choose(n, self.corrupt, self.dropout, SIGMA[self.server], self.server)

    def lying(self, n: int) -> int:
        """How many of a device's neighbours may be corrupt, with n devices: in the sparse graph t1 of 2. above."""
        corrupt = share_of(self.corrupt, n)
        return corrupt if n <= COMPLETE_TO else corrupt_neighbours(n, corrupt, self.shape(n)[0], SIGMA[self.server])


@dataclass(frozen=True, slots=True)
class Params:
    """One session's fixed part.

    Attributes:
        policy: see there. n_min: devices below which a device reveals nothing, at least 2.
        bits: of the body's ring, 1 to 32. dim: residues of the body. heads: residues of the head, modulo 2^64.
        rung: number of the codec that all devices of the session use; -1 where there is no choice.
    """

    policy: Policy
    n_min: int
    bits: int
    dim: int
    heads: int
    rung: int = -1

    def bound(self, roster: bytes) -> bytes:
        """What masks and masked updates are bound to: masks of devices that were told different rungs do not cancel."""
        return roster if self.rung < 0 else digest(b"rung", roster, self.rung.to_bytes(8, "little"))

    def needed(self, n: int) -> int:
        """Survivors without which a sum of n devices' updates is not opened: max(n_min, t).

        Raises as ``Policy.shape``.
        """
        return max(self.n_min, self.policy.shape(n)[1])


@dataclass(frozen=True, slots=True)
class Floor:
    """What a device's owner asks of every session, whatever the run's recipe says.

    Attributes:
        n_min: a sum over fewer devices is never opened. corrupt: at least this share must be allowed for.
        server: "malicious" asks for sessions that stand a server which lies; "curious" takes either.
    """

    n_min: int = 2
    corrupt: float = 0.0
    server: Server = "curious"

    def allows(self, params: Params) -> bool:
        """Whether a session is at least as careful as this."""
        policy = params.policy
        careful = self.server == "curious" or policy.server == "malicious"
        return params.n_min >= self.n_min and policy.corrupt >= self.corrupt and careful


def complete_threshold(n: int) -> int:
    """t = floor(2 n / 3) + 1."""
    return 2 * n // 3 + 1


@lru_cache(maxsize=256)
def choose(n: int, gamma: float, delta: float, sigma: int, server: Server, eta: int = ETA) -> tuple[int, int]:
    """The smallest even k, and its t, for n devices of which gamma n are corrupt and delta n drop out.

    Raises CompositionError(E-NMIN): n below 50 (take the complete graph), or no k below n will do.
    """
    if n < FEWEST:
        raise CompositionError("E-NMIN", f"a sparse graph needs {FEWEST} devices, here are {n}.", "use all neighbours.")
    corrupt, dropped = share_of(gamma, n), share_of(delta, n)
    for k in range(2, n - 1, 2):
        if not _connected(n, corrupt + dropped, k, sigma):
            continue
        most = corrupt_neighbours(n, corrupt, k, sigma)
        if server == "malicious":
            most = ceil((most + k - 1.25) / 2)
        if _quantile_below(n, n - dropped, k, 2.0**-eta / n) > most:
            return k, max(most + 1, 2)
    raise CompositionError(
        "E-NMIN",
        f"no graph of {n} devices keeps its promise with {gamma:g} corrupt and {delta:g} dropping out.",
        "take a larger cohort, or assume fewer corrupt devices or drop-outs.",
    )


def corrupt_neighbours(n: int, corrupt: int, k: int, sigma: int) -> int:
    """t1 = min{t: P[X > t] <= 2^-(sigma+1) / n},  X ~ Hypergeometric(n, corrupt, k)."""
    return _quantile_above(n, corrupt, k, 2.0 ** -(sigma + 1) / n)


def _connected(n: int, bad: int, k: int, sigma: int) -> bool:
    if k > bad:
        return True
    likely = log(n) + log(n - k - 1) - log(2)
    likely += lgamma(bad + 1) + lgamma(n - k + 1) - lgamma(n + 1) - lgamma(bad - k + 1)
    return likely < -(sigma + 1) * log(2)


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def _mass(n: int, good: int, k: int, x: int) -> float:
    """P[X = x]: x good ones among k drawn of n without replacement, ``good`` of the n are."""
    if not max(0, k - (n - good)) <= x <= min(k, good):
        return 0.0
    return exp(_log_choose(good, x) + _log_choose(n - good, k - x) - _log_choose(n, k))


def _quantile_above(n: int, good: int, k: int, limit: float) -> int:
    """min{t: P[X > t] <= limit}, summed from the far end, where the terms are smallest."""
    tail, t = 0.0, k
    while t > 0 and tail + _mass(n, good, k, t) <= limit:
        tail += _mass(n, good, k, t)
        t -= 1
    return t


def _quantile_below(n: int, good: int, k: int, limit: float) -> int:
    """max{t: P[Y < t] <= limit}."""
    tail, t = 0.0, 0
    while t < k and tail + _mass(n, good, k, t) <= limit:
        tail += _mass(n, good, k, t)
        t += 1
    return t
