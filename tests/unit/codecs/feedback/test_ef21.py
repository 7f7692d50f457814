"""EF21 and its momentum form against a plain simulation in numpy, over rounds and devices that come and go."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.codecs.feedback.ef14 import feedback
from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.select.top_k import top_k
from edgewise.core.keys import Turn, derive, root
from edgewise.core.memory import Memory
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Vector
from edgewise.merges.plain import plain_sum

DIM, N = 400, 5
START = Space(DIM, Quorum(1, N), population=N)


def _turn(round: int, device: int = 0) -> Turn:
    return Turn(round, derive(root(1), round), derive(root(2), round, device))


def _top(x: Vector, k: int) -> Vector:
    out = np.zeros_like(x)
    at = np.argsort(-np.abs(x), kind="stable")[:k]
    out[at] = x[at]
    return out


class Federation:
    """Devices and a server that run a pipeline; some answers arrive too late to be used."""

    def __init__(self, stages: list[Stage]) -> None:
        self.pipe: Pipeline = pipeline(START, stages, plain_sum())
        self.devices: list[Memory] = [self.pipe.init() for _ in range(N)]
        self.server = self.pipe.start_memory()

    def play(self, round: int, xs: dict[int, Vector], counts: dict[int, float] | None = None, late: int = -1) -> Vector:
        total = self.pipe.start_sum()
        for i, x in xs.items():
            count = counts[i] if counts else 1.0
            payload, after = self.pipe.encode(x, {}, count, self.devices[i], _turn(round, i))
            if i != late:
                total = self.pipe.add(total, payload, _turn(round))
                self.devices[i] = after
        out, self.server = self.pipe.release(total, _turn(round), root(9), self.server)
        return out.mean


def _rounds(seed: int) -> list[dict[int, Vector]]:
    g = np.random.default_rng(seed)
    centre = g.standard_normal((N, DIM))
    rounds = []
    for r in range(12):
        here = [i for i in range(N) if r in (0, 11) or g.random() < 0.6] or [0]
        rounds.append({i: (centre[i] + 0.1 * g.standard_normal(DIM)).astype(np.float32) for i in here})
    return rounds


@pytest.mark.parametrize("eta", [None, 0.3, 1.0])
def test_against_numpy(eta: float | None) -> None:
    form = "ef21" if eta is None else "ef21_sgdm"
    fed = Federation([feedback([top_k(0.05)], form=form, eta=eta)])
    mirrors, v = np.zeros((N, DIM), np.float32), np.zeros((N, DIM), np.float32)
    begun: set[int] = set()
    g = np.zeros(DIM, np.float64)
    for r, xs in enumerate(_rounds(1)):
        late = 2 if r == 5 and len(xs) > 1 else -1
        released = fed.play(r, xs, late=late)
        sent = []
        for i, x in xs.items():
            if i == late:
                continue
            mix = eta if eta is not None and i in begun else 1.0
            v[i] = np.float32(1.0 - mix) * v[i] + np.float32(mix) * x
            begun.add(i)
            c = _top(v[i] - mirrors[i], round(0.05 * DIM))
            mirrors[i] += c
            sent.append(c)
        g += len(sent) / N * np.mean(sent, axis=0, dtype=np.float64)
        np.testing.assert_allclose(released, g, atol=1e-6)
        for i in range(N):
            assert fed.devices[i].child("stage", 0)["residual"].tobytes() == mirrors[i].tobytes()
        np.testing.assert_allclose(released, mirrors.mean(0), atol=1e-6)


def test_the_servers_mirror_is_the_mean_of_the_devices_mirrors() -> None:
    for inner in ([top_k(0.02), quantize(4)], [quantize(3)]):
        fed = Federation([feedback(inner, form="ef21")])
        for r, xs in enumerate(_rounds(2)):
            released = fed.play(r, xs)
            mirrors = np.mean([d.child("stage", 0)["residual"] for d in fed.devices], axis=0, dtype=np.float64)
            np.testing.assert_allclose(released, mirrors, atol=1e-6)
            assert released.tobytes() == fed.server.child("stage", 0)["g"].tobytes()


def test_it_arrives_where_compression_alone_never_does() -> None:
    """With constant updates the mirror becomes their mean, the right release of every later round."""
    xs = {i: np.random.default_rng(i).standard_normal(DIM).astype(np.float32) for i in range(N)}
    fed = Federation([feedback([top_k(0.1)], form="ef21")])
    for r in range(11):
        released = fed.play(r, xs)
    np.testing.assert_allclose(released, np.mean(list(xs.values()), axis=0), atol=1e-6)
