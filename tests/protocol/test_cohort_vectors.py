"""Vectors of verified cohorts, and the odds that their sums are sized by."""

from __future__ import annotations

import json
from math import comb, log2

import beacon_vectors
import pytest

from edgewise.core.errors import DecodeError
from edgewise.engine import beacon
from edgewise.plan.recipe.sections import TrustSection
from edgewise.plan.sampling import Sampling
from edgewise.plan.trust import corrupt_most, planned_contributors

FILE = json.loads(beacon_vectors.HERE.read_text())


def test_the_file_is_what_we_do() -> None:
    assert beacon_vectors.made() == FILE


@pytest.mark.parametrize("name", FILE["refused"])
def test_beacons_are_refused(name: str) -> None:
    with pytest.raises(DecodeError) as e:
        beacon.joint(FILE["run"], FILE["contributors"], beacon_vectors.TRUST, bytes.fromhex(FILE["refused"][name]))
    assert e.value.code == "E-BEACON"


def test_groups_that_take_turns_are_everybody_once() -> None:
    cohorts = FILE["drawn"]["cyclic"]["cohorts"]
    assert sorted(d for cohort in cohorts[:3] for d in cohort) == sorted(FILE["devices"])
    assert cohorts[3] == cohorts[0]


@pytest.mark.parametrize(("population", "fraction", "kind"), [(1000, 0.05, "fixed"), (300, 0.1, "cyclic")])
def test_corrupt_devices_of_a_verified_cohort_have_the_stated_odds(population: int, fraction: float, kind: str) -> None:
    """The exact tail times the number of draws that a server can choose from is at most 2^-40. For one device less it
    is above 2^-40."""
    rounds, groups, invite = 50, 10 if kind == "cyclic" else 1, population // 10
    sampling = Sampling(kind, population, invite, invite, invite, invite, 60.0, 0.1, groups)
    trust = TrustSection(malicious_fraction=fraction, cohorts="verified")
    exist, most = int(population * fraction), corrupt_most(trust, sampling, rounds)
    assert planned_contributors(trust, population) == exist + 1
    choices = (rounds if kind == "fixed" else groups) * (population - exist)

    def bits(least: int) -> float:
        """log2 P[X >= least]"""
        ways = sum(comb(exist, x) * comb(population - exist, invite - x) for x in range(least, min(exist, invite) + 1))
        return log2(ways) - log2(comb(population, invite))

    assert bits(most + 1) + log2(choices) <= -40 < bits(most) + log2(choices)
    assert most < corrupt_most(TrustSection(malicious_fraction=fraction), sampling, rounds) == exist
