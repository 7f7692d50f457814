"""The numbers that follow from facts, from ``plans.json`` and ``docs/plan.md`` alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np
import plan_vectors
import pytest

from edgewise.codecs.wire import pack
from edgewise.core import frame, vector
from edgewise.core.errors import DecodeError, EdgewiseError
from edgewise.core.vector import Spec
from edgewise.plan import acceptance, facts
from edgewise.plan.acceptance import OwnerFloor
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.plan import Plan
from edgewise.secagg.params import Floor

HERE = Path(__file__)
VECTORS: dict[str, Any] = json.loads((HERE.parent / "vectors" / "plans.json").read_text(encoding="utf-8"))
PLANS = VECTORS["plans"]
PAGE = (HERE.parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")


def plan(name: str) -> Plan:
    return plan_vectors.compiled(PLANS[name])


def alike(found: Any, stored: Any) -> bool:
    """Compare numbers up to the last digits, which differ between processors."""
    if isinstance(stored, float) and isinstance(found, int | float):
        return math.isclose(found, stored, rel_tol=1e-9)
    if isinstance(stored, dict):
        return (
            isinstance(found, dict) and list(found) == list(stored) and all(alike(found[k], stored[k]) for k in found)
        )
    if isinstance(stored, list):
        return len(found) == len(stored) and all(map(alike, found, stored))
    return bool(found == stored)


def test_the_inputs_are_the_shipped_recipes_and_each_codec() -> None:
    """Add a new codec or recipe to ``plan_vectors``. ``secagg_vectors.py`` writes the file."""
    made = json.loads(json.dumps(plan_vectors.inputs()))
    assert {name: {k: v for k, v in one.items() if k != "plan"} for name, one in PLANS.items()} == made
    kinds = {table["kind"] for one in PLANS.values() for table in one["recipe"].get("stage", [])}
    assert set(BUILT_IN.stages) - kinds == {
        "factors",
        "folds",
        "products",
        "cut_parts",
    }  # `trainable.rule` and `split.loss` put these in front.
    merges = {one["recipe"].get("merge", {"kind": "sum"})["kind"] for one in PLANS.values()}
    assert set(BUILT_IN.merges) - merges == {
        "robust_mean",
        "centred_clip",
        "fltrust",
        "screened",
    }  # Devices send what they send for a sum.


@pytest.mark.quick(sample=12)
@pytest.mark.parametrize("name", PLANS)
def test_a_plan_follows_from_its_facts(name: str) -> None:
    found = json.loads(json.dumps(plan_vectors.numbers(plan(name))))
    for key, stored in PLANS[name]["plan"].items():
        assert alike(found[key], stored), (key, found[key], stored)


@pytest.mark.quick(sample=12)
@pytest.mark.parametrize("name", PLANS)
def test_the_formulas_of_the_page_give_the_numbers(name: str) -> None:
    """The page's formulas for sums, rings, noise and bytes, computed without the program, give the same numbers."""
    numbers, recipe = PLANS[name]["plan"], PLANS[name]["recipe"]
    given = any("bits" in table for table in recipe.get("stage", []) if table["kind"] == "wrap")
    hidden = recipe.get("merge", {"kind": "sum"})["kind"] != "sum"
    assert numbers["corrupt"] == (expected_corrupt(recipe, PLANS[name]["population"], numbers) if hidden else 0)
    if hidden:
        rings = [int(way["bits"]) for way in numbers["ways"]]
        assert numbers["ring_bits"] == rings
        assert numbers["trust"]["corrupt"] == min(numbers["corrupt"] / numbers["n_min"], 0.33)
    for way, session in zip(numbers["ways"], numbers["sessions"] or [None] * len(numbers["ways"]), strict=True):
        top, bits, dim = way["level_max"], int(way["bits"]), way["dim"]
        if way["noise"] and way["kind"] == "ring":
            assert (bits, way["step"], way["noise"]["std"], way["l2"]) == pytest.approx(
                noised(recipe["dp"], PLANS[name]["noise"]["multiplier"], numbers, way), rel=1e-9
            )
            assert top == 2 ** (bits - 1) - 1
        elif way["kind"] == "ring" and not given:
            assert bits == (way["n_max"] * top).bit_length() + 1
        if session is not None:
            assert (session["n_min"], session["bits"], session["dim"]) == (max(2, numbers["n_min"]), bits, dim)
            assert session["heads"] == len(way["heads"])
        if way["payload_is_exact"]:
            scales = 2 * -(-dim // way["block"]) if way["block"] else 0
            body = 4 * dim if way["kind"] == "real" else -(-dim * bits // 8)
            twice = 2 if recipe.get("stage", [{}])[-1].get("grid") == "pair" else 1  # magnitudes
            assert way["payload_bytes"] - 8 * len(way["heads"]) - body in (twice * scales, scales)


def expected_corrupt(recipe: dict[str, Any], population: int, numbers: dict[str, Any]) -> int:
    """Compute A for a run that invites whole cohorts."""
    trust, invited = recipe.get("trust", {}), numbers["cohort"]["invite"]
    exist = math.floor(trust.get("malicious_fraction", 0.1) * population + 1e-9)
    if trust.get("server", "malicious") == "malicious":
        return min(exist, invited)
    return min(most(exist, invited / population), most(invited, exist / population))


def most(n: int, p: float) -> int:
    """Compute Chernoff's bound at 2^-40."""
    if p >= 1.0:
        return n
    for m in range(math.floor(n * p), n - 1):
        q = (m + 1) / n
        if n * (q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))) >= 40 * math.log(2):
            return m
    return n if n * math.log(1 / p) < 40 * math.log(2) else n - 1


def noised(dp: dict[str, Any], z: float, numbers: dict[str, Any], way: dict[str, Any]) -> tuple[float, ...]:
    """Compute ring bits, step, noise of a device and rounded norm, for distributed noise."""
    d, n, clip, honest = way["dim"], way["n_max"], dp["clip_l2"], numbers["n_min"] - numbers["corrupt"]
    block = max(64, min(2**15, 2 ** (d.bit_length() - 1)))
    lengths = [block] * (d // block) + ([d % block] if d % block else [])
    if len(lengths) > 1 and lengths[-1] < 64:
        lengths = [*lengths[:-2], lengths[-2] + lengths[-1]]
    even = min(lengths) if d % block == 0 else min(lengths) // 2
    k, local = NormalDist().inv_cdf(1 - 0.005 / d), z * clip / math.sqrt(honest)
    for bits in [dp["bits"]] if "bits" in dp else range(8, 33):
        room = 2 ** (2 * bits) - n * k * k
        if room <= 0:
            continue
        scale = math.sqrt(room) / (2 * k * math.sqrt(n * n * clip * clip / even + n * local * local))
        s, long = math.ceil(scale * local), scale * clip
        norm = min(long + math.sqrt(d), math.sqrt(long * long + d / 4 + long + math.sqrt(d) / 2))
        if "bits" in dp or (norm <= 1.01 * long and 1 <= s <= 2**24):
            return bits, 1 / scale, s / scale, norm / scale
    raise AssertionError("no ring")


def test_the_pages_table_is_what_follows() -> None:
    assert "\n".join(plan_vectors.table(PLANS)) in PAGE


@pytest.mark.quick(sample=6)
@pytest.mark.parametrize("case", VECTORS["forged"], ids=lambda case: f"{case['plan']}: {case['name']}")
def test_facts_that_state_other_numbers_are_refused(case: dict[str, Any]) -> None:
    honest = msgspec.to_builtins(plan(case["plan"]).facts)
    forged = msgspec.convert({**honest, **case["facts"]}, facts.PlanFacts)
    with pytest.raises(DecodeError) as caught:
        acceptance.planned(forged, Spec.of(VECTORS["layout"]), BUILT_IN)
    assert caught.value.code == case["code"]


@pytest.mark.parametrize("case", VECTORS["floors"], ids=lambda case: f"{case['plan']}: {case['floor']}")
def test_what_an_owner_asks_for(case: dict[str, Any]) -> None:
    asked = dict(case["floor"])
    of_sessions = Floor(**{k: asked.pop(k) for k in ("n_min", "corrupt", "server") if k in asked})
    floor = OwnerFloor(secagg=of_sessions, **{k: tuple(v) if k == "words" else v for k, v in asked.items()})
    code = ""
    try:
        acceptance.check_floor(plan(case["plan"]), floor)
    except EdgewiseError as e:
        code = e.code
    assert code == case["code"]


def test_blobs() -> None:
    model, delta = VECTORS["blobs"]["model"], VECTORS["blobs"]["delta"]
    assert vector.to_bytes(np.array(model["values"], np.float32)).hex() == model["hex"]
    read = frame.delta(bytes.fromhex(delta["hex"]))
    assert (read.round, read.public.hex(), bytes(read.payload).hex()) == (3, delta["public"], delta["payload"])
    for case in VECTORS["blobs"]["supports"]:
        raw, positions = bytes.fromhex(case["hex"]), case["positions"]
        assert pack.unpack_support(raw, 4096, case["universe"]).tolist() == positions
        assert raw == by_the_page(positions, case["universe"], case["golomb"])


def by_the_page(positions: list[int], universe: int, m: int) -> bytes:
    """Count the bytes of a support blob by the page's formula."""
    bits: list[int] = []
    if m == 1:
        bits = [int(i in set(positions)) for i in range(universe)]
    else:
        low = (m - 1).bit_length() - 1
        cut = 2 ** (low + 1) - m
        for last, position in zip([-1, *positions], positions, strict=False):
            quotient, rest = divmod(position - last - 1, m)
            bits += [1] * quotient + [0]
            if rest < cut:
                bits += [rest >> i & 1 for i in range(low)]
            else:
                high = rest + cut
                bits += [high >> 1 >> i & 1 for i in range(low)] + [high & 1]
    packed = bytes(sum(bit << i for i, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8))
    return len(positions).to_bytes(4, "little") + packed
