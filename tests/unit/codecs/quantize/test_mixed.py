"""Mixed widths: never worse than one width for all segments in the same bytes, and near the optimum."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from edgewise.codecs.quantize.mixed import BLOCK, WIDTHS, allocate_widths, bytes_of_widths, mixed, width_errors
from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.quantize.scales import block_scales
from edgewise.codecs.wire import pack
from edgewise.core.errors import DecodeError
from edgewise.core.keys import Turn, root
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Spec, Vector

SIZES = (4096, 512, 128, 4096, 64, 2048)
SPEC = Spec.of([(f"s{i}", (n,), "float32") for i, n in enumerate(SIZES)])
START = Space(SPEC.dim, Quorum(1, 4))


def vector(scales: tuple[float, ...], seed: int = 0) -> Vector:
    g = np.random.default_rng(seed)
    return np.concatenate([s * g.standard_t(5, n) for s, n in zip(scales, SIZES, strict=True)]).astype(np.float32)


UNEVEN = vector((1.0, 0.1, 3.0, 0.01, 30.0, 0.3))
LIKE_REAL = vector((1.0, 0.8, 1.5, 1.1, 0.6, 0.9), 1)
EVEN = vector((1.0,) * 6, 2)


def error(stage: Stage, x: Vector, rounds: int = 12) -> tuple[float, float]:
    """Mean ||decode - x||^2 / ||x||^2 over the rounding, and the largest packed size."""
    space, errors, most = stage.infer(START), [], 0
    for r in range(rounds):
        turn = Turn(r, root(1), root(2))
        payload, _ = stage.encode(Payload(x, np.zeros(0)), Memory(), START, turn)
        raw = pack.pack(payload, space)
        most = max(most, len(raw))
        back = stage.decode(pack.unpack(raw, space), START, turn).body
        errors.append(float(np.square(back.astype(np.float64) - x).sum() / np.square(x, dtype=np.float64).sum()))
    return float(np.mean(errors)), most


@pytest.mark.quick(sample=4)
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize(("x", "gain"), [(UNEVEN, 3.0), (LIKE_REAL, 0.98), (EVEN, 0.98)])
def test_at_equal_bytes_never_worse_than_one_width(bits: int, x: Vector, gain: float) -> None:
    uniform, uniform_bytes = error(quantize(bits), x)
    mine, mine_bytes = error(mixed(SPEC, 8 * uniform_bytes / SPEC.dim), x)
    assert mine_bytes <= uniform_bytes + 3  # 3 bytes for the widths, 4 bits for each of 6 parts
    assert uniform >= gain * mine  # The two sides round by different random draws, which differ by up to 2 %.


def test_expected_errors_are_those_of_the_rounding() -> None:
    x = LIKE_REAL[:4096]
    predicted = width_errors(x, block_scales(x, BLOCK), BLOCK) / float(np.square(x, dtype=np.float64).sum())
    spec = Spec.of([("s", (4096,), "float32")])
    space = Space(4096, Quorum(1, 4))
    for bits in (2, 4, 8):
        stage = quantize(bits)
        drawn = []
        for r in range(30):
            payload, _ = stage.encode(Payload(x, np.zeros(0)), Memory(), space, Turn(r, root(1), root(2)))
            back = stage.decode(payload, space, Turn(r, root(1))).body
            drawn.append(np.square(back.astype(np.float64) - x).sum() / np.square(x, dtype=np.float64).sum())
        assert np.mean(drawn) == pytest.approx(predicted[bits], rel=0.03)
    assert predicted[0] == pytest.approx(1.0)
    assert spec.dim == 4096


@pytest.mark.parametrize("seed", range(8))
def test_near_the_best_of_all_assignments(seed: int) -> None:
    """The search comes close to the best of all assignments of four small parts. Its last step may be suboptimal."""
    g = np.random.default_rng(seed)
    sizes = [64, 128, 192, 64]
    xs = [(g.lognormal(0, 1.5) * g.standard_normal(n)).astype(np.float32) for n in sizes]
    errors = np.array([width_errors(x, block_scales(x, BLOCK), BLOCK) for x in xs])
    costs = bytes_of_widths(sizes)
    budget = int(g.uniform(40, 350))
    rows = np.arange(4)
    found = allocate_widths(errors, costs, budget)
    assert costs[rows, found].sum() <= budget
    best = min(errors[rows, list(w)].sum() for w in product(WIDTHS, repeat=4) if costs[rows, list(w)].sum() <= budget)
    uniform = [errors[:, b].sum() for b in WIDTHS if costs[:, b].sum() <= budget]
    assert best <= errors[rows, found].sum() <= min(uniform) + 1e-12
    assert errors[rows, found].sum() <= 1.6 * best


def test_zeros_cost_only_their_widths() -> None:
    stage = mixed(SPEC, 4.0)
    payload, _ = stage.encode(
        Payload(np.zeros(SPEC.dim, np.float32), np.zeros(0)), Memory(), START, Turn(0, root(1), root(2))
    )
    assert len(pack.pack(payload, stage.infer(START))) == 3
    assert not stage.decode(payload, START, Turn(0, root(1))).body.any()


def test_strict() -> None:
    stage = mixed(SPEC, 3.0)
    space = stage.infer(START)
    payload, _ = stage.encode(Payload(UNEVEN, np.zeros(0)), Memory(), START, Turn(0, root(1), root(2)))
    raw = pack.pack(payload, space)
    wide = bytes([0x88, 0x88, 0x88]) + bytes(2 * 171 + SPEC.dim)
    for bad in (raw[:-1], raw + b"\0", b"\x01" + raw[1:], b"\x09" + raw[1:], b"", raw[:2], wide):
        with pytest.raises(DecodeError):
            pack.unpack(bad, space)
    odd = Spec.of([("a", (64,), "float32")])
    with pytest.raises(DecodeError, match="widths"):  # the other half of the byte is padding
        pack.unpack(b"\x10", mixed(odd, 3.0).infer(Space(64, Quorum(1, 4))))
    for mistake in (
        payload.but(widths=None),
        payload.but(widths=np.full(6, 1, np.uint8)),
        payload.but(scales=payload.scales[:-1] if payload.scales is not None else None),
        payload.but(widths=np.full(6, 8, np.uint8), scales=np.ones(171, np.float32)),
        payload.but(body=np.full(SPEC.dim, 127, np.int8)),
    ):
        with pytest.raises(ValueError, match=r"widths|scales|budget|range"):
            pack.pack(mistake, space)
