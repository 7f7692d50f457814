"""Facts about an update before any data exists. The pipeline carries this abstract value through its stages.

All bounds are in model units. They hold for one contribution *as it enters the decoded sum*. A stage that rescales on
decode (``random_k``) has already enlarged them. ``inf`` means unknown, never "small".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from math import floor, hypot, inf
from typing import ClassVar, Literal, Protocol

from edgewise.core.payload import Payload

Adjacency = Literal["zero_out", "add_remove", "replace_one"]

SLACK = 1e-5  # Share of a bound that float32 rounding in an honest encoder and its decoder may add.


class Kind(Enum):
    """Content of the encoded body: reals, integers on a public grid, or residues modulo ``Grid.modulus``."""

    REAL = "real"
    INTEGER = "integer"
    RING = "ring"


def share_of(share: float, n: int) -> int:
    """Count the devices in a share of ``n``, rounded down: floor(share n).

    0.29 of 100 are 29. In binary fractions they would be 28.
    """
    return floor(share * n + 1e-9)


@dataclass(frozen=True, slots=True)
class ByMasks:
    """Secure aggregation by masks that cancel in the sum. They hide contributions from the one server that adds them.

    Attributes:
        groups: number of groups that a cohort is divided into. Each has a sum of its own.
        minimum: number of sums that a round needs for a result.
        servers: number of servers that hold contributions.
        interactive: True if devices agree on keys before an update leaves. They may drop out in between.
        says: a sentence on what is hidden from whom.
    """

    groups: int = 1
    minimum: int = 1
    servers: ClassVar[int] = 1
    interactive: ClassVar[bool] = True
    says: ClassVar[str] = "individual updates are hidden from the server by masks that cancel in the sum"


@dataclass(frozen=True, slots=True)
class ByShares:
    """Secure aggregation by additive shares. Each of two servers holds one share of every contribution.

    The attributes are those of ``ByMasks``.
    """

    groups: ClassVar[int] = 1
    minimum: ClassVar[int] = 1
    servers: ClassVar[int] = 2
    interactive: ClassVar[bool] = False
    says: ClassVar[str] = (
        "individual updates are hidden from both servers, each of which holds one share, unless they work together"
    )


Hiding = ByMasks | ByShares  # The way in which secure aggregation hides contributions from the servers that add them.


@dataclass(frozen=True, slots=True)
class Quorum:
    """Number of contributions in a sum: at least ``n_min`` (a promise to privacy), at most ``n_max`` (capacity).

    ``corrupt`` is the largest number of contributions to any one sum that may come from corrupt devices.

    Raises:
        ValueError: unless 1 <= n_min <= n_max and corrupt >= 0.
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
        """Contributions of the smallest sum that certainly come from honest devices: max(0, n_min - corrupt)."""
        return max(0, self.n_min - self.corrupt)

    @property
    def corrupt_share(self) -> float:
        """Largest share of the smallest sum that may come from corrupt devices."""
        return self.corrupt / self.n_min


class Layout(Protocol):
    """Byte layout of a stage's payloads, for stages that cannot use the usual one (``codecs.wire.pack``)."""

    @property
    def rungs(self) -> tuple[Space, ...]:
        """Spaces of which each payload is in one, by ``Payload.rung``. Empty if all payloads are in the same space."""

    def size_bytes(self, space: Space) -> float:
        """Bytes of one payload. The layout says if the number is exact, expected or an upper limit."""

    def pack(self, payload: Payload, space: Space) -> bytes:
        """Write the payload as bytes. Raises ValueError for a payload of another space (own misuse)."""

    def unpack(self, view: memoryview, space: Space) -> Payload:
        """Read a payload from bytes. Inverse of ``pack``.

        Raises DecodeError(E-PAYLOAD) for bytes that ``pack`` does not write.
        """


@dataclass(frozen=True, slots=True)
class Grid:
    """Content of the encoded body. A stage that changes the grid states all of it.

    Attributes:
        kind: REAL, INTEGER or RING.
        bits: bits per encoded coordinate on the wire.
        scale: model units per encoded unit (INTEGER, RING). 1.0 for REAL. 0.0 if scales travel per block.
        level_max: largest absolute encoded integer of one contribution (INTEGER, RING).
        stride: distance of neighbouring encoded integers (INTEGER). 1 if zero is one of them. 2 for grids of an even
            number of values, -level_max, -level_max + 2, ..., level_max.
        modulus: modulus of the ring. 0 otherwise.
        block: coordinates that share ``scales`` travelling scales. 0 if none travel.
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
        chunk: number of coordinates of the universe per which they are chosen: ``chunk_k`` of each whole chunk, and the
            others of the last, shorter one. 0 means that they are chosen freely.
        chunk_k: positions per whole chunk.
    """

    universe: int
    chunk: int = 0
    chunk_k: int = 0


@dataclass(frozen=True, slots=True)
class Rotation:
    """A random rotation that the update has passed.

    Attributes:
        block: length of its blocks.
        dim: length of the rotated vector. Equals ``Space.dim`` while its blocks are still whole.
        shortest: length of its shortest block.
    """

    block: int
    dim: int
    shortest: int


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise that each contribution already carries.

    Attributes:
        std: standard deviation, model units. 0 without noise.
        honest: number of contributions to a sum whose noise can be relied on. 0 if each contribution hides itself, or
            if there is no noise.
        rho, xi: one round's sum is xi-approximately rho-zCDP by that noise. 0 if ``honest`` is 0.
        ring_bits: bits of the ring that noisy integers (which have no largest value) are scaled for. 0 if none.
    """

    std: float = 0.0
    honest: int = 0
    rho: float = 0.0
    xi: float = 0.0
    ring_bits: int = 0


HEAD_BOUND = 20.0  # Largest head value, unless noise is sized by it too.


@dataclass(frozen=True, slots=True)
class Space:
    """The shape, bounds and algebra of one contribution at one point of the pipeline.

    Attributes:
        dim: length of the encoded body.
        quorum: guaranteed survivors and possible contributors.
        population: number of devices from which a round's cohort is drawn. None if unknown.
        adjacency: message of a device in the neighbouring data set: the encoding of an update of zeros ("zero_out"),
            nothing at all ("add_remove"), or the encoding of any other update ("replace_one").
        head: names of the exact scalars that travel beside the body (metrics, then the weight).
        head_l2: bound of the head's L2 norm.
        head_bound: upper bound of every metric. The device cuts metrics to [0, head_bound], so that one device cannot
            move the mean freely.

        Bounds of the body:
        l2, linf: model units. ``inf`` means unknown.
        spread: factor by which decoding may enlarge a single coordinate beyond ``linf`` (rotations).
        clipped: True if an earlier stage has bounded the L2 norm.

        Algebra:
        summable: decode(sum of encodings) = sum of decodings.
        unbiased: the mean of decode(encode(x)) over the stages' own randomness is x.
        keeps_zero: an update of zeros, with a head of zeros and a count of 0, is encoded to exactly zero, body and
            head. A stage that breaks this sets it to False, and ``sensitivity`` accounts for it.
        memory: True if a stage keeps state on the device between rounds.
        residual: True if an error feedback keeps the part that was not sent.
        quantized: expected ||Q(x) - x||^2 / ||x||^2 of the last quantizer on its own input, if that is normally
            distributed (after ``top_k``: the largest of normals). This is a design figure, no bound. Heavier tails have
            more. A value of 1 or more does not contract, so such a quantizer cannot stand inside error feedback. 0
            means no quantizer, or one whose error does not grow with its input (a shared grid, or ``mixed``, which
            leaves a part behind instead).
        gain: product of the factors by which stages stretched the coordinates they keep (unbiased sparsifiers). A value
            above 1 does not contract, so it cannot stand inside error feedback, unless nothing is remembered after it.

        Positions of the body's coordinates:
        moving: True if they are public but drawn anew every round. No later stage may then keep memory per position.
        period: rounds from one visit of these positions to the next. 1 means every round (``segments`` with a cycle).
        announced: number of positions of the last release that devices must be told (``shared_top_k``). 0 if none.
        rank: rank of the factors that matrices travel as. 0 if none do.
        support: positions that each device chooses and sends. None if positions are public, or all are sent.
        rotation: rotation that the body has passed. None if none.

        grid: content of the body.
        noise: noise that the body carries.
        layout: byte layout of payloads, if a stage has its own. None means that of ``codecs.wire.pack``.
    """

    dim: int
    quorum: Quorum
    population: int | None = None
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
        """True if positions are chosen per device and travel."""
        return self.support is not None

    @property
    def universe(self) -> int:
        """Length of the vector that positions point into. Equals ``dim`` if no positions travel."""
        return self.dim if self.support is None else self.support.universe

    @property
    def rungs(self) -> tuple[Space, ...]:
        """Spaces among which the device chooses the one that travels (``ladder``). Empty if there is no choice.

        The other fields are then those of the largest rung, with bounds and flags that hold for all.
        """
        return self.layout.rungs if self.layout else ()

    @property
    def rotated(self) -> int:
        """Length of the rotation's blocks. 0 if not rotated."""
        return self.rotation.block if self.rotation else 0

    @property
    def peak(self) -> float:
        """Bound of one coordinate of the decoded contribution: ``linf``, or min(l2, linf spread) if a stage spreads."""
        return self.linf if self.spread == 1.0 else min(self.l2, self.linf * self.spread)

    @property
    def sides(self) -> int:
        """Number of encodings in which neighbours differ.

        1 if one neighbour sends nothing or zero. 2 if both may send anything.
        """
        alone = self.adjacency == "add_remove" or (self.adjacency == "zero_out" and self.keeps_zero)
        return 1 if alone else 2

    @property
    def sensitivity(self) -> float:
        """L2 bound of the distance between a device's messages in neighbouring data sets.

        With r = sqrt(l2^2 + head_l2^2), body and head as one vector:

            add_remove     r      (nothing is sent instead)
            zero_out       r      if the encoding of zero is zero, else 2 r (it may be any encoding)
            replace_one    2 r
        """
        return self.sides * hypot(self.l2, self.head_l2)


@dataclass(frozen=True, slots=True)
class Total:
    """Facts about a merged total: its origin, the influence of one device on it, and its visibility.

    Attributes:
        space: the space of each contribution that was merged.
        sensitivity: L2 distance, model units, that the total can move between neighbouring data sets
            (``Space.sensitivity``). inf means unknown.
        noise_std: standard deviation per coordinate of noise in the total, model units.
        visible: True if the server sees single contributions.
        dim: coordinates of the decoded total, body and head together. Set by ``core.pipeline.pipeline``.
        step: each contribution is rounded to multiples of this before it is added, model units, an error of at most
            half of it per coordinate. inf if the merge does not say. Then no noise is known to be finer than the values
            it hides.
        rounding: L2 distance, model units, by which another rounding after the sum may separate two totals further.
        most: largest coordinate of a contribution, model units. A contribution with a larger one is refused.
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
