"""How many neighbours hold shares of a device's secrets, and how many of them give a secret back.

Of n devices that sent keys A = floor(gamma n) may be corrupt, and D = floor(delta n) more may drop out: both at once.
A secret has m holders, t of whom open it. Two things pull at t.
    safe    No device may show both of its secrets, nor may two survivor lists be signed: 2 t > m + (corrupt holders).
    alive   The holders that are neither corrupt nor gone are enough: t <= good holders.

Complete graph: m = n holders, t = floor((n + A) / 2) + 1. Alive means t <= n - A - D, that is n > 3 A + 2 D.
Sparse graph: a random circle on which a device has k / 2 neighbours on either side, m = k. Of the n - 1 others A are
corrupt at most; limit = 2^-(sigma+2) / n.
    1. the honest survivors are connected:
       ln n + ln(n-k-1) - ln 2 + ln[(A+D)! (n-k)! / (n! (A+D-k)!)] < -(sigma+2) ln 2    (holds by itself for k > A + D)
    2. corrupt among all neighbours:    t1 = min{x: P[X > x] <= limit},      X  ~ Hypergeometric(n-1, A, k)
    3. corrupt on one side (malicious): s1 = min{x: P[X' > x] <= limit / 2}, X' ~ Hypergeometric(n-1, A, k/2)
    4. safe:   t = max(2, floor((k + t1) / 2) + 1, k/2 + s1 + 1) against a malicious server, max(2, t1 + 1) else
    5. alive:  t <= t2 = max{x <= k: P[Y < x] <= 2^-eta / n},                Y  ~ Hypergeometric(n-1, n-1-A-D, k)
Against a malicious server a device also asks for signatures on its survivor list of floor((n + A) / 2) + 1 devices of
the roster, so that only one list can open anything, and n > 3 A + 2 D in both graphs. With s1 they leave no gap in the
circle: the holders that open a device's mask stand on both sides of it (``docs/protocol.md``).
Both sides compute k and t from the policy. Neither is taken from the wire. What they compute is bounded, since the
policy may be a server's: no session has more than ``SESSION_MOST`` devices.

A plan's policy has gamma = A / n_min, where A devices of any one sum may be corrupt, so that a session of n >= n_min
devices allows for all of them: floor(gamma n) >= A. With a malicious server A = min(cohort, floor(malicious_fraction x
population)), since it picks the cohort. With a curious one A is the 1 - 2^-40 quantile of how many an honestly drawn
cohort holds (``plan.trust``). delta = dropout_fraction. ``secagg.merge.fewest`` sizes n_min.
Source: Bonawitz et al. 2017, ePrint 2017/281; Bell et al. 2020, ePrint 2020/704, theorems 3.10 and 4.9, for 1, 2, and
the first bound of 4. Condition 5 counts corrupt holders there only as those who reveal.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import lgamma, log
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgewise.core import require
from edgewise.core.errors import CompositionError
from edgewise.core.space import share_of
from edgewise.secagg.messages import digest

COMPLETE_TO = 64  # devices: everybody is everybody's neighbour
COMPLETE_MOST = 256  # devices: so too up to here, where no sparse graph keeps the promise
SESSION_MOST = 1 << 16  # devices: each of them is sent a roster of all (about 15 MB here), and looks for a graph
CORRUPT_MOST = 0.33  # of a session's devices: below a third
ETA = 20  # the protocol fails for want of shares with probability at most 2^-ETA
SIGMA = {"curious": 40, "malicious": 80}  # bits of statistical security; 80, because a server may draw graphs anew

Server = Literal["curious", "malicious"]


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """What everybody assumes of the others, the same on all devices of a run.

    Attributes:
        corrupt: share of a session's devices that may work with the server, below 1/3.
        dropout: share of them that may vanish after the keys are known, beside the corrupt ones, below 1/3.
        server: "malicious" (may lie about who dropped out) or "curious" (follows the protocol and reads all).
    """

    corrupt: float = 0.1
    dropout: float = 0.1
    server: Server = "malicious"

    def __post_init__(self) -> None:
        require.between("secure_sum: corrupt", self.corrupt, 0.0, CORRUPT_MOST)
        require.between("secure_sum: dropout", self.dropout, 0.0, 0.33)

    def shape(self, n: int) -> tuple[int, int]:
        """(k, t) for n devices that have sent keys: neighbours of each, shares that give a secret back.

        Raises CompositionError(E-NMIN): no graph of n devices is both safe and alive.
        """
        if found := _shape(n, share_of(self.corrupt, n), self.dropout, self.server):
            return found
        raise self._no_graph(n)

    def check(self, n: int) -> None:
        """Raises as ``shape``, and looks at one graph, the largest, for it."""
        if not _is_there(n, share_of(self.corrupt, n), self.dropout, self.server):
            raise self._no_graph(n)

    def _no_graph(self, n: int) -> CompositionError:
        if n > SESSION_MOST:
            return CompositionError(
                "E-NMIN",
                f"{n:,} devices are too many for one masked sum: each of them would get the keys of all. At most "
                f"{SESSION_MOST:,} can be in one.",
                'take smaller cohorts (round.cohort), or two servers ([merge] kind = "shared_sum").',
            )
        corrupt = share_of(self.corrupt, n)
        least = _least(n, corrupt, self.dropout, self.server)
        more = f"with {corrupt} corrupt devices take {least} or more in each sum (round.cohort, round.minimum), or "
        return CompositionError(
            "E-NMIN",
            f"{n} devices, of whom {corrupt} may be corrupt and {share_of(self.dropout, n)} more drop out, cannot be "
            "sure that a masked sum of theirs is hidden and can be opened.",
            f"{more if least else ''}assume fewer corrupt devices (trust.malicious_fraction) or drop-outs "
            "(trust.dropout_fraction).",
        )

    def quorum(self, n: int) -> int:
        """Signatures on one survivor list of n devices without which a device reveals nothing: floor((n + A) / 2) + 1,
        which two lists of a roster cannot both have. None are asked for where the server does not lie.
        """
        return complete_threshold(n, share_of(self.corrupt, n)) if self.server == "malicious" else 0

    def lying(self, n: int) -> int:
        """How many of a device's neighbours may be corrupt, with n devices: A where everybody is one, else t1."""
        (k, _), corrupt = self.shape(n), share_of(self.corrupt, n)
        limit = -(SIGMA[self.server] + 2) * log(2) - log(n)
        return corrupt if k == n - 1 else _above(n - 1, corrupt, k, limit)


@dataclass(frozen=True, slots=True)
class Params:
    """One session's fixed part.

    Attributes:
        policy: see there. n_min: devices below which a device reveals nothing, at least 2.
        bits: of the body's ring, 1 to 32. dim: residues of the body. heads: residues of the head, modulo 2^64.
        rung: number of the codec that all devices of the session use; None where there is no choice.
    """

    policy: TrustPolicy
    n_min: int
    bits: int
    dim: int
    heads: int
    rung: int | None = None

    def bound(self, roster: bytes) -> bytes:
        """What masks and masked updates are bound to: masks of devices that were told different rungs do not cancel."""
        return roster if self.rung is None else digest(b"rung", roster, self.rung.to_bytes(8, "little"))

    def needed(self, n: int) -> int:
        """Survivors without which a sum of n devices' updates is not opened: max(n_min, t, ``TrustPolicy.quorum``).

        Raises as ``TrustPolicy.shape``.
        """
        return max(self.n_min, self.policy.shape(n)[1], self.policy.quorum(n))


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


def complete_threshold(n: int, corrupt: int) -> int:
    """t = floor((n + A) / 2) + 1 of n holders: two survivor lists would take 2 t signatures, and honest devices give
    one each: 2 t > (n - A) + 2 A."""
    return (n + corrupt) // 2 + 1


def _kinds(n: int, corrupt: int, dropout: float, server: Server) -> tuple[bool, bool]:
    """Whether n devices may take a sparse graph, where there is one, and whether they may take the complete one."""
    quorum = n > 3 * corrupt + 2 * share_of(dropout, n)  # that is: complete_threshold(n, A) <= n - A - D
    sparse = COMPLETE_TO < n <= SESSION_MOST and (quorum or server == "curious")
    return sparse, quorum and n <= COMPLETE_MOST


def _shape(n: int, corrupt: int, dropout: float, server: Server) -> tuple[int, int] | None:
    sparse, complete = _kinds(n, corrupt, dropout, server)
    if sparse and (found := choose(n, corrupt, share_of(dropout, n), server)):
        return found
    return (max(0, n - 1), complete_threshold(n, corrupt)) if complete else None


def _is_there(n: int, corrupt: int, dropout: float, server: Server) -> bool:
    """Whether ``_shape`` finds a graph: the complete one, or a sparse one, which is there where the largest is."""
    sparse, complete = _kinds(n, corrupt, dropout, server)
    return complete or (sparse and fitting(n, _largest(n), corrupt, share_of(dropout, n), server) > 0)


def _largest(n: int) -> int:
    return (n - 2) // 2 * 2  # the largest even k below n - 1


def _least(n: int, corrupt: int, dropout: float, server: Server) -> int:
    """A number above n of devices for which there is a graph: the smallest, or 1 % more; 0 where none is found up to
    ``SESSION_MOST``."""
    low, high = n, max(2, 2 * n)
    while not _is_there(high, corrupt, dropout, server):
        if high >= SESSION_MOST:
            return 0
        low, high = high, min(2 * high, SESSION_MOST)
    while high - low > max(1, low // 100):
        half = (low + high) // 2
        low, high = (low, half) if _is_there(half, corrupt, dropout, server) else (half, high)
    return high


@lru_cache(maxsize=4096)  # a server and its devices ask for one session's again and again
def choose(n: int, corrupt: int, dropped: int, server: Server) -> tuple[int, int] | None:
    """The smallest even k below n - 1 that is safe and alive, and its t; None where the largest is not.

    Guarantees: found by halving, from 0 (which is not) and the largest k: log2(n) graphs are looked at, each of which
        takes O(n) operations on vectors. The conditions hold above some k and not below it, but for the rounding of t
        and t2 to whole devices. Where that rounding gives several such k, halving decides.
    """
    low, high = 0, _largest(n)
    if high < 2 or not (best := fitting(n, high, corrupt, dropped, server)):
        return None
    while high - low > 2:
        half = (low + high) // 4 * 2
        if t := fitting(n, half, corrupt, dropped, server):
            high, best = half, t
        else:
            low = half
    return high, best


def fitting(n: int, k: int, corrupt: int, dropped: int, server: Server) -> int:
    """t of a sparse graph with k neighbours each; 0 where no t is safe and alive (see the module)."""
    sigma = SIGMA[server]
    if not _connected(n, corrupt + dropped, k, sigma):
        return 0
    limit = -(sigma + 2) * log(2) - log(n)
    most = _above(n - 1, corrupt, k, limit)
    if server == "malicious":
        most = max((k + most) // 2, k // 2 + _above(n - 1, corrupt, k // 2, limit - log(2)))
    t = max(most + 1, 2)
    return t if t <= _below(n - 1, max(0, n - 1 - corrupt - dropped), k, -ETA * log(2) - log(n)) else 0


def _connected(n: int, bad: int, k: int, sigma: int) -> bool:
    if k > bad:
        return True
    likely = log(n) + log(n - k - 1) - log(2)
    likely += lgamma(bad + 1) + lgamma(n - k + 1) - lgamma(n + 1) - lgamma(bad - k + 1)
    return likely < -(sigma + 2) * log(2)


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def _log_masses(n: int, good: int, k: int) -> tuple[int, NDArray[np.float64]]:
    """ln P[X = x] for all x that are possible, from the smallest on, which comes first: x good ones among k drawn of n
    without replacement, ``good`` of the n are. By P[x + 1] / P[x] = (good-x)(k-x) / ((x+1)(n-good-k+x+1))."""
    least, most = max(0, k - (n - good)), min(k, good)
    x = np.arange(least, most, dtype=np.float64)
    steps = np.log((good - x) * (k - x)) - np.log((x + 1.0) * (n - good - k + x + 1.0))
    first = _log_choose(good, least) + _log_choose(n - good, k - least) - _log_choose(n, k)
    return least, first + np.concatenate(([0.0], np.cumsum(steps)))


def more_than(n: int, bad: int, drawn: int, limit: float) -> int:
    """min{a: ln P[X > a] <= limit}, X ~ Hypergeometric: the bad ones of ``drawn`` of n, ``bad`` of which are."""
    return _above(n, bad, drawn, limit)


def _above(n: int, good: int, k: int, limit: float) -> int:
    """min{t: ln P[X > t] <= limit}, summed from the far end, where the terms are smallest."""
    least, masses = _log_masses(n, good, k)
    tails = np.logaddexp.accumulate(masses[:0:-1])  # of X >= most, X >= most - 1, ..., X > least
    return least + masses.size - 1 - int(np.count_nonzero(tails <= limit))


def _below(n: int, good: int, k: int, limit: float) -> int:
    """max{t <= k: ln P[Y < t] <= limit}."""
    least, masses = _log_masses(n, good, k)
    return min(k, least + int(np.count_nonzero(np.logaddexp.accumulate(masses) <= limit)))
