"""What is known about an update before any data exists: the abstract value that a fold carries through the stages.

All bounds are in model units and hold for one contribution *as it enters the decoded sum*: a stage that rescales on
decode (``random_k``) has already paid for it here. ``inf`` means unknown, never "small".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from math import floor, hypot, inf
from typing import ClassVar, Literal, Protocol

from edgewise.core.payload import Payload

Adjacency = Literal["zero_out", "add_remove", "replace_one"]

SLACK = 1e-5  # of a bound: what float32 rounding in an honest encoder and its decoder may add


class Kind(Enum):
    """What the encoded body holds: reals, integers on a public grid, or residues modulo ``Grid.modulus``."""

    REAL = "real"
    INTEGER = "integer"
    RING = "ring"


def share_of(share: float, n: int) -> int:
    """How many of ``n`` devices a share of them is at most: floor(share n), where 0.29 of 100 are 29 and not 28, as
    they would be in binary fractions."""
    return floor(share * n + 1e-9)


@dataclass(frozen=True, slots=True)
class ByMasks:
    """Masks that cancel in the sum hide contributions from the one server that adds them.

    Attributes:
        groups: into how many a cohort is dealt, each with a sum of its own.
        minimum: sums without which a round has no result.
        servers: that hold contributions.
        interactive: whether devices agree on keys before an update leaves. They may drop out in between.
        says: what is hidden from whom, a sentence.
    """

    groups: int = 1
    minimum: int = 1
    servers: ClassVar[int] = 1
    interactive: ClassVar[bool] = True
    says: ClassVar[str] = "individual updates are hidden from the server by masks that cancel in the sum"


@dataclass(frozen=True, slots=True)
class ByShares:
    """Each of two servers holds one additive share of every contribution; attributes as of ``ByMasks``."""

    groups: ClassVar[int] = 1
    minimum: ClassVar[int] = 1
    servers: ClassVar[int] = 2
    interactive: ClassVar[bool] = False
    says: ClassVar[str] = (
        "individual updates are hidden from both servers, each of which holds one share, unless they work together"
    )


Hiding = ByMasks | ByShares  # how secure aggregation hides contributions from who adds them


@dataclass(frozen=True, slots=True)
class Quorum:
    """How many contributions a sum has: at least ``n_min`` (a promise to privacy), at most ``n_max`` (capacity).

    ``corrupt``: contributions of any one sum that may come from corrupt devices, at most.
    """

    n_min: int
    n_max: int
    corrupt: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.n_min <= self.n_max:
            raise ValueError(f"need 1 <= n_min <= n_max, got {self.n_min}, {self.n_max}")
        if self.corrupt < 0:
            raise ValueError(f"need corrupt >= 0, got {self.corrupt}")

    @property
    def honest(self) -> int:
        """Contributions of the smallest sum that surely come from honest devices: max(0, n_min - corrupt)."""
        return max(0, self.n_min - self.corrupt)

    @property
    def corrupt_share(self) -> float:
        """Share of the smallest sum that may come from corrupt devices, at most."""
        return self.corrupt / self.n_min


class Layout(Protocol):
    """How a stage writes its payloads as bytes, where the usual layout (``codecs.wire.pack``) does not do."""

    @property
    def rungs(self) -> tuple[Space, ...]:
        """The spaces of which a payload is in one, by ``Payload.rung``; empty where all are in the same."""

    def size_bytes(self, space: Space) -> float:
        """Bytes of one payload: exact, expected, or the most, as the layout says."""

    def pack(self, payload: Payload, space: Space) -> bytes:
        """The payload as bytes. Raises ValueError for one of another space (own misuse)."""

    def unpack(self, view: memoryview, space: Space) -> Payload:
        """Inverse of ``pack``. Raises DecodeError(E-PAYLOAD) on what it cannot have produced."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What the encoded body holds. A stage that changes it states the whole of it.

    Attributes:
        kind: REAL, INTEGER or RING.
        bits: per encoded coordinate on the wire.
        scale: model units per encoded unit (INTEGER, RING); 1.0 for REAL. 0.0: scales travel per block.
        level_max: largest absolute encoded integer of one contribution (INTEGER, RING).
        stride: distance of neighbouring encoded integers (INTEGER): 1 where zero is one of them; 2 for grids of an
            even number of values, -level_max, -level_max + 2, ..., level_max.
        modulus: of the ring; 0 otherwise.
        block: coordinates that share ``scales`` travelling scales; 0 = none.
        scales: travelling scales per block.
    """

    kind: Kind = Kind.REAL
    bits: float = 32.0
    scale: float = 1.0
    level_max: int = 0
    stride: int = 1
    modulus: int = 0
    block: int = 0
    scales: int = 1


@dataclass(frozen=True, slots=True)
class Support:
    """Positions that each device chooses and sends with the body.

    Attributes:
        universe: length of the vector that they point into.
        chunk: they are chosen per this many coordinates of the universe, ``chunk_k`` of each whole chunk and the others
            of the last, shorter one; 0 = freely.
    """

    universe: int
    chunk: int = 0
    chunk_k: int = 0


@dataclass(frozen=True, slots=True)
class Rotation:
    """A random rotation that the update has passed.

    Attributes:
        block: length of its blocks. dim: length of the vector that was rotated; ``Space.dim`` while its blocks still
            are whole. shortest: length of its shortest block.
    """

    block: int
    dim: int
    shortest: int


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise that each contribution already carries.

    Attributes:
        std: standard deviation, model units; 0 = no noise.
        honest: contributions to a sum whose noise can be counted on; 0 = each contribution hides itself, or there is
            no noise.
        rho, xi: one round's sum is xi-approximately rho-zCDP by that noise; 0 where ``honest`` is.
        ring_bits: of the ring that noisy integers (which have no largest value) are scaled for; 0 = none.
    """

    std: float = 0.0
    honest: int = 0
    rho: float = 0.0
    xi: float = 0.0
    ring_bits: int = 0


HEAD_BOUND = 20.0  # of a head value, unless noise is sized by it too


@dataclass(frozen=True, slots=True)
class Space:
    """The shape, bounds and algebra of one contribution at one point of the pipeline.

    Attributes:
        dim: length of the encoded body.
        quorum: survivors guaranteed, contributors possible.
        population: devices that exist, of which a round's cohort is drawn; 0 = not known.
        adjacency: what a device sends in the neighbouring data set: the encoding of an update of zeros ("zero_out"),
            nothing at all ("add_remove"), the encoding of any other update ("replace_one").
        head: names of the exact scalars that travel beside the body (metrics, then the weight).
        head_l2: bound of the head's L2 norm. head_bound: every metric is cut to [0, this] on the device, so that one
            device cannot move the mean freely.

        Bounds of the body:
        l2, linf: model units; ``inf`` = unknown.
        spread: decoding may enlarge a single coordinate beyond ``linf`` by this factor (rotations).
        clipped: some stage before has bounded the L2 norm.

        Algebra:
        summable: decode(sum of encodings) = sum of decodings.
        unbiased: the mean of decode(encode(x)) over the stages' own randomness is x.
        keeps_zero: an update of zeros, with a head of zeros and a count of 0, is encoded to exactly zero, body and
            head. A stage after which that does not hold says so, and ``sensitivity`` counts it.
        memory: some stage keeps state on the device between rounds.
        residual: an error feedback keeps what was not sent.
        quantized: expected ||Q(x) - x||^2 / ||x||^2 of the last quantizer on its own input, where that is normally
            distributed (after ``top_k``: the largest of normals). A design figure, no bound: heavier tails have more.
            1 or more does not contract, so it cannot stand inside error feedback. 0: no quantizer, or one whose error
            does not grow with what it encodes (a shared grid; ``mixed``, which rather leaves a part behind).
        gain: product of the factors by which stages stretched what is kept (unbiased sparsifiers); > 1 does not
            contract, so it cannot stand inside error feedback, unless nothing is remembered after it.

        Positions of the body's coordinates:
        moving: they are public but drawn anew every round, so nothing after may remember per position.
        period: rounds from one visit of these positions to the next; 1 = every round (``segments`` with a cycle).
        announced: positions of the last release that devices have to be told (``shared_top_k``); 0 = none.
        rank: matrices travel as factors of this rank; 0 = none do.
        support: they are chosen per device and travel; None = they are public, or all.
        rotation: the rotation that the body has passed, None = none.

        grid: what the body holds. noise: what it carries.
        layout: how payloads become bytes, where a stage has a layout of its own; None = as ``codecs.wire.pack`` does.
    """

    dim: int
    quorum: Quorum
    population: int = 0
    adjacency: Adjacency = "zero_out"
    head: tuple[str, ...] = ()
    head_l2: float = 0.0
    head_bound: float = HEAD_BOUND
    l2: float = inf
    linf: float = inf
    spread: float = 1.0
    clipped: bool = False
    summable: bool = True
    unbiased: bool = True
    keeps_zero: bool = True
    memory: bool = False
    residual: bool = False
    quantized: float = 0.0
    gain: float = 1.0
    moving: bool = False
    period: int = 1
    announced: int = 0
    rank: int = 0
    support: Support | None = None
    rotation: Rotation | None = None
    grid: Grid = Grid()
    noise: Noise = Noise()
    layout: Layout | None = None

    def but(self, **changes: object) -> Space:
        """A copy with some fields replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def sparse(self) -> bool:
        """Whether positions are chosen per device and travel."""
        return self.support is not None

    @property
    def universe(self) -> int:
        """Length of the vector that positions point into: ``dim`` where none travel."""
        return self.dim if self.support is None else self.support.universe

    @property
    def rungs(self) -> tuple[Space, ...]:
        """What travels is in one of these spaces, chosen by the device (``ladder``); the other fields then are those of
        the largest one, with bounds and flags that hold for all. Empty = no choice."""
        return self.layout.rungs if self.layout else ()

    @property
    def rotated(self) -> int:
        """Length of the rotation's blocks; 0 = not rotated."""
        return self.rotation.block if self.rotation else 0

    @property
    def peak(self) -> float:
        """Bound of one coordinate of the decoded contribution: min(l2, linf spread) where something spreads."""
        return self.linf if self.spread == 1.0 else min(self.l2, self.linf * self.spread)

    @property
    def sides(self) -> int:
        """Encodings between which the distance of neighbours is: one and nothing or zero, or two of any kind."""
        alone = self.adjacency == "add_remove" or (self.adjacency == "zero_out" and self.keeps_zero)
        return 1 if alone else 2

    @property
    def sensitivity(self) -> float:
        """L2 bound of the distance between what a device sends and what it sends in the neighbouring data set.

        With r = sqrt(l2^2 + head_l2^2), body and head as one vector:

            add_remove     r      (nothing is sent instead)
            zero_out       r      where the encoding of zero is zero, else 2 r (it may be any encoding)
            replace_one    2 r
        """
        return self.sides * hypot(self.l2, self.head_l2)


@dataclass(frozen=True, slots=True)
class Total:
    """What is known about a merged total: where it came from, how much one device can move it, who can see what.

    Attributes:
        space: the space of each contribution that was merged.
        sensitivity: L2, model units, of how far the total moves between neighbouring data sets (``Space.sensitivity``);
            inf = unknown.
        noise_std: standard deviation per coordinate, model units, of noise in the total.
        visible: the server sees single contributions.
        dim: coordinates of the decoded total, body and head together; set by ``core.pipeline.pipeline``.
        step: a contribution is rounded to multiples of this before it is added, model units, at most half of it per
            coordinate; inf: the merge does not say, so no noise is known to be finer than what it hides.
        rounding: how much farther apart two totals can be because they are rounded once more after they are summed: L2,
            model units.
        most: a contribution with a larger coordinate is refused, model units.
    """

    space: Space
    sensitivity: float
    noise_std: float
    visible: bool
    dim: int = 0
    step: float = inf
    rounding: float = 0.0
    most: float = inf

    def but(self, **changes: object) -> Total:
        """A copy with some fields replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]
