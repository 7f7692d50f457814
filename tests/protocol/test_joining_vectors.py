"""Documents that a device reads before it takes part, from ``joining.json`` alone, as another implementation would."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joining_vectors
import msgspec
import pytest
from secagg_frames import FACTS as FACTS_OF_A_RUN

from edgewise.core.errors import EdgewiseError
from edgewise.core.vector import Spec
from edgewise.drivers.fleet import roster
from edgewise.drivers.http import package, tokens
from edgewise.plan import facts
from edgewise.plan.acceptance import OwnerFloor, accept_facts
from edgewise.plan.catalogue import BUILT_IN

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "joining.json").read_text(encoding="utf-8"))
FACTS = VECTORS["facts"]


def code(read: Callable[[], object]) -> str:
    try:
        read()
    except EdgewiseError as e:
        return e.code
    return ""


def name(case: dict[str, Any]) -> str:
    text: str = case["name"]
    return text


def test_the_file_is_what_we_do() -> None:
    assert joining_vectors.joining() == VECTORS


def test_canonical_json() -> None:
    """Load a recipe by way of plan facts, whose recipe may hold anything."""
    found = VECTORS["canonical"]
    cases = [("".join(map(chr, case["code points"])), case["json"]) for case in found["texts"]]
    cases += [(struct.unpack(">d", bytes.fromhex(case["bytes"]))[0], case["json"]) for case in found["doubles"]]
    keys = dict.fromkeys(("".join(map(chr, points)) for points in found["keys"]["code points"]), 1)
    for value, text in [*cases, (keys, found["keys"]["json"])]:
        of_it = msgspec.structs.replace(FACTS_OF_A_RUN, recipe=json.dumps({"a": value}))
        assert f'"recipe":{{"a":{text}}}' in facts.canonical(of_it).decode("ascii")


def test_facts_that_a_device_reads() -> None:
    raw = FACTS["json"].encode("ascii")
    assert facts.signed(bytes.fromhex(FACTS["server"]), bytes.fromhex(FACTS["signature"]), raw)
    assert facts.canonical(facts.parse(raw)) == raw


@pytest.mark.parametrize("case", FACTS["refused"], ids=name)
def test_facts_that_a_device_refuses(case: dict[str, Any]) -> None:
    at, spec = case["at"], Spec.of(FACTS["layout"])
    text = FACTS["json"][:at] + case["put"] + FACTS["json"][at + case["cut"] :] + " " * case["spaces"]
    server, signature = bytes.fromhex(FACTS["server"]), bytes.fromhex(case["signature"])
    assert code(lambda: accept_facts(text.encode(), signature, server, spec, OwnerFloor(), BUILT_IN)) == case["code"]


@pytest.mark.parametrize("case", VECTORS["manifests"], ids=name)
def test_the_list_of_a_models_files(case: dict[str, Any]) -> None:
    assert code(lambda: package.parse(case["json"].encode())) == case["code"]


@pytest.mark.parametrize("case", VECTORS["rosters"], ids=name)
def test_the_devices_of_a_run(case: dict[str, Any]) -> None:
    raw, population = bytes.fromhex(case["hex"]), case["population"]
    assert code(lambda: roster.parse_roster(raw, population)) == case["code"]
    if not case["code"]:
        assert list(roster.parse_roster(raw, population)) == case["devices"]


@pytest.mark.parametrize("case", VECTORS["tokens"], ids=name)
def test_what_an_operator_hands_out(case: dict[str, Any]) -> None:
    assert code(lambda: tokens.parse(case["text"])) == case["code"]
