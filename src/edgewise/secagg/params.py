"""Parameters of a masked sum: neighbours that hold shares of a secret, and the threshold that gives it back.

Of n devices that sent keys A = floor(gamma n) may be corrupt. D = floor(delta n) more may drop out at the same time.
A secret has m holders, t of whom open it. Two conditions bound t.
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
the roster, so that only one list can open anything. Then n > 3 A + 2 D in both graphs. With s1 the signatures leave no
gap in the circle: the holders that open a device's mask stand on both sides of it (``docs/protocol.md``).
Both sides compute k and t from the policy. Neither is taken from the wire. The work is bounded, because a server may
choose the policy: no session has more than ``SESSION_MOST`` devices.

A plan's policy has gamma = A / n_min, where A devices of any one sum may be corrupt. So a session of n >= n_min devices
allows for all of them: floor(gamma n) >= A. With a malicious server A = min(cohort, floor(malicious_fraction x
population)), because the server picks the cohort. With a curious one A is the 1 - 2^-40 quantile of the number of
corrupt devices in an honestly drawn cohort (``plan.trust``). delta = dropout_fraction.
``secagg.merge.smallest_masked_sum`` computes n_min.
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
from edgewise.secagg.messages import secagg_digest

COMPLETE_TO = 64  # Up to this number of devices the graph is complete.
COMPLETE_MOST = 256  # Up to this number it is complete where no sparse graph keeps the promise.
SESSION_MOST = 1 << 16  # Most devices of a session. Each gets a roster of all (about 15 MB here) and finds a graph.
CORRUPT_MOST = 0.33  # Largest share of a session's devices that may be corrupt, below a third.
ETA = 20  # The protocol fails for want of shares with probability at most 2^-ETA.
SIGMA = {"curious": 40, "malicious": 80}  # Bits of statistical security. 80, because a server may draw graphs anew.

Server = Literal["curious", "malicious"]


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """Trust assumptions of a run, the same on all of its devices.

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
        """Compute (k, t) for n devices that have sent keys: neighbours of each, and shares that give a secret back.

        Raises CompositionError(E-NMIN) where no graph of n devices is both safe and alive.
        """
        if found := _graph_shape(n, share_of(self.corrupt, n), self.dropout, self.server):
            return found
        raise self._no_graph(n)

    def check(self, n: int) -> None:
        """Refuse what ``shape`` refuses, by looking at one graph only, the largest."""
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
        least = _least_devices_above(n, corrupt, self.dropout, self.server)
        more = f"with {corrupt} corrupt devices take {least} or more in each sum (round.cohort, round.minimum), or "
        return CompositionError(
            "E-NMIN",
            f"{n} devices, of whom {corrupt} may be corrupt and {share_of(self.dropout, n)} more drop out, cannot be "
            "sure that a masked sum of theirs is hidden and can be opened.",
            f"{more if least else ''}assume fewer corrupt devices (trust.malicious_fraction) or drop-outs "
            "(trust.dropout_fraction).",
        )

    def quorum(self, n: int) -> int:
        """Number of signatures on a survivor list of n devices without which a device reveals nothing.

        It is floor((n + A) / 2) + 1, which two lists of one roster cannot both have. With a curious server it is 0.
        """
        return complete_threshold(n, share_of(self.corrupt, n)) if self.server == "malicious" else 0

    def lying(self, n: int) -> int:
        """Number of a device's neighbours that may be corrupt, with n devices: A in a complete graph, otherwise t1."""
        (k, _), corrupt = self.shape(n), share_of(self.corrupt, n)
        limit = -(SIGMA[self.server] + 2) * log(2) - log(n)
        return corrupt if k == n - 1 else _quantile_above(n - 1, corrupt, k, limit)


@dataclass(frozen=True, slots=True)
class Params:
    """Parameters of one session.

    Attributes:
        policy: trust assumptions. n_min: least number of devices in a sum, at least 2. A device reveals nothing for
        fewer. bits: of the body's ring, 1 to 32. dim: residues of the body. heads: residues of the head, modulo 2^64.
        rung: number of the codec that all devices of the session use. None where there is no choice.
    """

    policy: TrustPolicy
    n_min: int
    bits: int
    dim: int
    heads: int
    rung: int | None = None

    def bound(self, roster: bytes) -> bytes:
        """Context that binds masks and masked updates. Masks of devices that use different rungs do not cancel."""
        return roster if self.rung is None else secagg_digest(b"rung", roster, self.rung.to_bytes(8, "little"))

    def needed(self, n: int) -> int:
        """Least number of survivors that opens a sum of n devices' updates: max(n_min, t, ``TrustPolicy.quorum``).

        Raises as ``TrustPolicy.shape``.
        """
        return max(self.n_min, self.policy.shape(n)[1], self.policy.quorum(n))


@dataclass(frozen=True, slots=True)
class Floor:
    """Least assurances that a device's owner asks of every session, whatever the run's recipe says.

    Attributes:
        n_min: a sum over fewer devices is never opened. corrupt: the session must allow for at least this share.
        server: "malicious" asks for sessions that withstand a server which lies. "curious" accepts either.
    """

    n_min: int = 2
    corrupt: float = 0.0
    server: Server = "curious"

    def allows(self, params: Params) -> bool:
        """Tell whether a session gives at least these assurances."""
        policy = params.policy
        careful = self.server == "curious" or policy.server == "malicious"
        return params.n_min >= self.n_min and policy.corrupt >= self.corrupt and careful


def complete_threshold(n: int, corrupt: int) -> int:
    """Threshold of n holders in a complete graph: t = floor((n + A) / 2) + 1.

    Two survivor lists would need 2 t signatures. Honest devices sign one list each, so at most (n - A) + 2 A < 2 t
    signatures exist.
    """
    return (n + corrupt) // 2 + 1


def _graph_kinds(n: int, corrupt: int, dropout: float, server: Server) -> tuple[bool, bool]:
    """Tell whether n devices may use a sparse graph, if one exists, and whether they may use the complete one."""
    quorum = n > 3 * corrupt + 2 * share_of(dropout, n)  # equivalent to complete_threshold(n, A) <= n - A - D
    sparse = COMPLETE_TO < n <= SESSION_MOST and (quorum or server == "curious")
    return sparse, quorum and n <= COMPLETE_MOST


def _graph_shape(n: int, corrupt: int, dropout: float, server: Server) -> tuple[int, int] | None:
    """Choose (neighbours, threshold) for n devices. None where no graph is safe."""
    sparse, complete = _graph_kinds(n, corrupt, dropout, server)
    if sparse and (found := choose_graph_degree(n, corrupt, share_of(dropout, n), server)):
        return found
    return (max(0, n - 1), complete_threshold(n, corrupt)) if complete else None


def _is_there(n: int, corrupt: int, dropout: float, server: Server) -> bool:
    """Tell whether ``_graph_shape`` finds a graph. A sparse one exists exactly where the largest sparse one does."""
    sparse, complete = _graph_kinds(n, corrupt, dropout, server)
    return complete or (sparse and fitting_threshold(n, _most_neighbours(n), corrupt, share_of(dropout, n), server) > 0)


def _most_neighbours(n: int) -> int:
    """Largest even number of neighbours below a complete graph of n devices."""
    return (n - 2) // 2 * 2  # the largest even k below n - 1


def _least_devices_above(n: int, corrupt: int, dropout: float, server: Server) -> int:
    """Find a number of devices above n that has a graph: the smallest, or up to 1 % more. 0 where none is found up to
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


@lru_cache(maxsize=4096)  # A server and its devices ask for the same session many times.
def choose_graph_degree(n: int, corrupt: int, dropped: int, server: Server) -> tuple[int, int] | None:
    """Find the smallest even k below n - 1 that is safe and alive, and its t. None where the largest k is not.

    Guarantees: bisection between 0, which is not safe and alive, and the largest k. It looks at log2(n) graphs, each of
        which takes O(n) operations on vectors. But for the rounding of t and t2 to whole devices, the conditions hold
        above some k and not below it. Where that rounding gives several such k, bisection decides.
    """
    low, high = 0, _most_neighbours(n)
    if high < 2 or not (best := fitting_threshold(n, high, corrupt, dropped, server)):
        return None
    while high - low > 2:
        half = (low + high) // 4 * 2
        if t := fitting_threshold(n, half, corrupt, dropped, server):
            high, best = half, t
        else:
            low = half
    return high, best


def fitting_threshold(n: int, k: int, corrupt: int, dropped: int, server: Server) -> int:
    """Threshold t of a sparse graph with k neighbours each. 0 where no t is safe and alive (see the module)."""
    sigma = SIGMA[server]
    if not _is_surely_connected(n, corrupt + dropped, k, sigma):
        return 0
    limit = -(sigma + 2) * log(2) - log(n)
    most = _quantile_above(n - 1, corrupt, k, limit)
    if server == "malicious":
        most = max((k + most) // 2, k // 2 + _quantile_above(n - 1, corrupt, k // 2, limit - log(2)))
    t = max(most + 1, 2)
    return t if t <= _quantile_below(n - 1, max(0, n - 1 - corrupt - dropped), k, -ETA * log(2) - log(n)) else 0


def _is_surely_connected(n: int, bad: int, k: int, sigma: int) -> bool:
    """Tell whether honest devices stay connected, but for a chance of 2^-sigma."""
    if k > bad:
        return True
    likely = log(n) + log(n - k - 1) - log(2)
    likely += lgamma(bad + 1) + lgamma(n - k + 1) - lgamma(n + 1) - lgamma(bad - k + 1)
    return likely < -(sigma + 2) * log(2)


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def _log_masses(n: int, good: int, k: int) -> tuple[int, NDArray[np.float64]]:
    """Compute the smallest possible x, and ln P[X = x] for every possible x from there on.

    X counts the good ones among k drawn of n without replacement, where ``good`` of the n are good.
    P[x + 1] / P[x] = (good-x)(k-x) / ((x+1)(n-good-k+x+1)).
    """
    least, most = max(0, k - (n - good)), min(k, good)
    x = np.arange(least, most, dtype=np.float64)
    steps = np.log((good - x) * (k - x)) - np.log((x + 1.0) * (n - good - k + x + 1.0))
    first = _log_choose(good, least) + _log_choose(n - good, k - least) - _log_choose(n, k)
    return least, first + np.concatenate(([0.0], np.cumsum(steps)))


def hypergeometric_more_than(n: int, bad: int, drawn: int, limit: float) -> int:
    """Compute min{a: ln P[X > a] <= limit}. X ~ Hypergeometric(n, bad, drawn) counts the bad ones of ``drawn``."""
    return _quantile_above(n, bad, drawn, limit)


def _quantile_above(n: int, good: int, k: int, limit: float) -> int:
    """Compute min{t: ln P[X > t] <= limit}, summed from the far end, where the terms are smallest."""
    least, masses = _log_masses(n, good, k)
    tails = np.logaddexp.accumulate(masses[:0:-1])  # of X >= most, X >= most - 1, ..., X > least
    return least + masses.size - 1 - int(np.count_nonzero(tails <= limit))


def _quantile_below(n: int, good: int, k: int, limit: float) -> int:
    """Compute max{t <= k: ln P[Y < t] <= limit}."""
    least, masses = _log_masses(n, good, k)
    return min(k, least + int(np.count_nonzero(np.logaddexp.accumulate(masses) <= limit)))
