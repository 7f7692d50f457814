"""The policy of a device's owner: every key decides something, and what it decides."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from edgewise.apps.device import policy
from edgewise.apps.device.conditions import Conditions, quiet_hours_end
from edgewise.apps.device.policy import Policy
from edgewise.core.errors import EdgewiseError
from edgewise.core.vector import Spec
from edgewise.crypto import sign as ed25519
from edgewise.drivers.storage.device_ledgers import FileLedgers
from edgewise.plan.acceptance import accept_facts
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.facts import Instance, canonical, sign
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import from_plain

SPEC = Spec.of([("w", (40,), "float32")])
SERVER = ed25519.pair(bytes(range(32)))
INSTANCE = Instance(server=SERVER.public.hex(), nonce="ab" * 32, roster="0f" * 32)
NONE: dict[str, Any] = {"privacy": "none"}
HIDDEN: dict[str, Any] = {"privacy": "hidden"}
NOISED: dict[str, Any] = {"privacy": "distributed_dp", "dp": {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0}}
LOCAL: dict[str, Any] = {**NOISED, "privacy": "local_dp"}
CURIOUS: dict[str, Any] = {**HIDDEN, "trust": {"server": "curious"}}
NIGHT = time.mktime((2026, 12, 1, 23, 30, 0, 0, 0, -1))
NOON = time.mktime((2026, 12, 1, 12, 0, 0, 0, 0, -1))


def parsed(text: str = "") -> Policy:
    return policy.parse_owner_policy(text, "policy.toml")


def served(recipe: dict[str, Any]) -> Plan:
    return compile(from_plain(recipe), SPEC, 40, BUILT_IN, instance=INSTANCE)


def accepted(recipe: dict[str, Any], text: str) -> Plan:
    """Answer of a device with this policy to a run of its server."""
    raw = canonical(served(recipe).facts)
    return accept_facts(raw, sign(SERVER.secret, raw), SERVER.public, SPEC, parsed(text).floor(), BUILT_IN)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        inner = info.annotation
        inner = inner.__args__[0] if hasattr(inner, "__args__") and "list" in str(inner) else inner
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, f"{name}.")
        else:
            yield f"{prefix}{name}"


def test_the_policy_that_join_writes_is_the_default_and_explains_every_key(tmp_path: Path) -> None:
    text = policy.owner_policy_template()
    assert parsed(text) == Policy() == parsed()
    section, explained = "", set()
    for line in text.splitlines():
        if table := re.match(r"(?:# )?\[+(\w+)\]+", line):
            section = table[1]
        elif key := re.match(r"(?:# )?(\w+) = .*", line):
            explained.add(f"{section}.{key[1]}")
    assert explained == set(keys(Policy))
    home = tmp_path / "home"
    assert policy.first_policy(home)
    assert (home / policy.FILE).stat().st_mode & 0o077 == 0
    (home / policy.FILE).write_text("[limits]\nupload_mb = 1.0\n")
    assert not policy.first_policy(home), "it is never written over"
    assert policy.load(home).limits.upload_mb == 1.0


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("[privacy]\nwordz = 1", "E-KEY", r"policy.toml:2: unknown key `privacy.wordz`"),
        ("[privacy]\ncohort = true", "E-TYPE", r"policy.toml:2: `privacy.cohort`"),
        ("[privacy]\nwords = ['open']", "E-VALUE", r"policy.toml:2: `privacy.words.0`"),
        ("[privacy]\nwords = ['local_dp']\nhidden = true", "E-COMBO", "hides updates"),
        ("[budget]\ndelta = 1e-6", "E-COMBO", "budget.epsilon"),
        ("[when]\nquiet = ['8-9']", "E-VALUE", "range of local times"),
        ("[model]\nallow = ['bundled', 'x']", "E-VALUE", "names no model"),
        ("[[package]]\nname = 'p'", "E-MISSING", "sha256"),
        (2 * ("[[package]]\nname = 'p'\nsha256 = '" + "0" * 64 + "'\n"), "E-COMBO", "twice"),
        ("[[attested]]\nplatform = 'snp'\nregisters = {}", "E-VALUE", "measurement is missing"),
        ("[[attested]]\nplatform = 'tdx'\nregisters = { mr_td = 'x' }", "E-VALUE", "mr_td is missing"),
        ("[[attested]]\nplatform = 'simulated'\nregisters = { measurement = '00' }", "E-COMBO", "signer"),
        ("[[attested]]\nplatform = 'tpm'\nregisters = {}", "E-VALUE", "attested.0.platform"),
        ("[data]\npath = 'x'\nprompt = 'p'", "E-COMBO", "names a column"),
        ("[privacy", "E-RECIPE-SYNTAX", "policy.toml"),
        ("[a]\n" + "b." * 80 + "c = 1", "E-RECIPE-SYNTAX", "parts"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_by_file_and_line(text: str, code: str, said: str) -> None:
    with pytest.raises(EdgewiseError, match=said) as caught:
        parsed(text)
    assert caught.value.code == code
    assert code == "E-RECIPE-SYNTAX" or "schema" not in caught.value.fix


def test_a_home_without_a_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(EdgewiseError, match=r"policy\.toml") as caught:
        policy.load(tmp_path)
    assert caught.value.code == "E-RECIPE-READ"


@pytest.mark.parametrize(
    ("recipe", "text", "said"),
    [
        (NONE, "", 'privacy is one of hidden, distributed_dp, local_dp; here it is "none"'),
        (LOCAL, "[privacy]\nhidden = true", "hidden from the server"),
        (HIDDEN, "[privacy]\ndevice_unit = true", "about all text of the device"),
        (NOISED, "[privacy]\nepsilon = 7.0", "epsilon against the server is 7"),
        (NOISED, "[privacy]\nepsilon = 9.0\ndelta = 1e-6", "at delta = 1e-06"),
        (NOISED, "[privacy]\nnoise_multiplier = 50.0", "noise multiplier is 50 at least"),
        (HIDDEN, "[privacy]\nnoise_multiplier = 0.1", "here it is 0"),
        (NOISED, "[privacy]\nclip_l2 = 0.5", "L2 norm of 0.5 at most"),
        (NONE, "[privacy]\nwords = ['none']\nclip_l2 = 100.0", "here it has inf"),
        (HIDDEN, "[privacy]\ncohort = 21", "21 contributions or more; here it may be of 20"),
        (HIDDEN, "[privacy]\nmalicious_fraction = 0.3", "a share of 0.3"),
        (CURIOUS, "", "a server that is malicious"),
        (HIDDEN, "[limits]\nlocal_steps = 5", "5 local steps at most"),
        (HIDDEN, "[limits]\nupload_mb = 1e-5", "an upload has 10 bytes at most"),
        (HIDDEN, "[limits]\nupload_mb_per_day = 1e-5", "an upload has 10 bytes at most"),
        (HIDDEN, f"[model]\nallow = ['sha256:{'5f' * 32}']", "the model is one of sha256:5f5f.*; here it is bundled"),
    ],
)
def test_a_run_that_asks_for_more_or_promises_less_is_refused(recipe: dict[str, Any], text: str, said: str) -> None:
    with pytest.raises(EdgewiseError, match=said) as caught:
        accepted(recipe, text)
    assert caught.value.code == "E-FLOOR"


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (HIDDEN, "[model]\nallow = ['bundled']"),
        (NOISED, "[privacy]\nhidden = true\ndevice_unit = true\nepsilon = 8.1\nclip_l2 = 2.0\ncohort = 20"),
        (CURIOUS, "[privacy]\nserver = 'curious'\nmalicious_fraction = 0.1"),
        (NONE, "[privacy]\nwords = ['none']\n[limits]\nlocal_steps = 10"),
        (LOCAL, ""),
    ],
)
def test_a_run_within_the_policy_is_accepted(recipe: dict[str, Any], text: str) -> None:
    assert accepted(recipe, text).run == served(recipe).run


def test_the_budget_over_all_runs_is_the_owners(tmp_path: Path) -> None:
    plan = served(NOISED)
    assert parsed().owner_budget(None) is None  # type: ignore[arg-type]
    with FileLedgers(tmp_path) as ledgers:
        for text, said in (("epsilon = 100.0", None), ("epsilon = 0.01", "no more epsilon")):
            budget = parsed(f"[budget]\n{text}\ndelta = 1e-6").owner_budget(ledgers)
            assert budget is not None
            assert budget.cap.delta == 1e-6
            found = budget.refusal("d", plan, 0)
            assert found is None if said is None else said in (found or "")


def test_this_devices_text_takes_the_place_of_the_runs(tmp_path: Path) -> None:
    text = (
        "[data]\nsource = 'csv'\npath = 'notes.csv'\ntext = 'body'\nprompt = 'ask'\ntime = 'when'\n"
        "time_format = '%Y'\nseparator = ';'"
    )
    settings = from_plain({**HIDDEN, "data": {"partition": "iid", "devices": 1, "sequence_len": 64}}).resolved()
    found = from_plain({**settings, "data": {**settings["data"], **parsed(text).data_keys(tmp_path)}}).data
    assert (found.source, found.path, found.text, found.prompt) == ("csv", str(tmp_path / "notes.csv"), "body", "ask")
    assert (found.time, found.time_format, found.separator, found.sequence_len) == ("when", "%Y", ";", 64)
    chats = parsed("[data]\nsource = 'jsonl'\npath = ['a', '~/b']\nmessages = 'm'").data_keys(tmp_path)
    assert (chats["path"], chats["messages"]) == ([str(tmp_path / "a"), str(Path.home() / "b")], "m")
    assert parsed("[data]\nsource = 'plays'").data_keys(tmp_path)["path"] == ""
    with pytest.raises(EdgewiseError, match=r"data\.path is empty"):
        parsed().data_keys(tmp_path)


def test_packages_are_allowed_by_name_and_digest() -> None:
    found = parsed(f"[[package]]\nname = 'own-parts'\nsha256 = '{'ab' * 32}'\nevery_run = true")
    assert (found.packages(), found.always()) == ({"own-parts": "ab" * 32}, ("own-parts",))
    assert (parsed().packages(), parsed().always()) == ({}, ())


@pytest.mark.parametrize(
    ("text", "now_s", "said"),
    [
        ("", NIGHT, None),
        ("quiet = ['22:00-06:30']", NIGHT, "quiet hours until 06:30"),
        ("quiet = ['22:00-06:30']", NOON, None),
        ("quiet = ['12:00-12:01', '11:00-13:30']", NOON, "quiet hours until 13:30"),
        ("quiet = ['10:00-12:00']", NOON, None),
        ("command = ['false']", NOON, r"your command false says no \(exit status 1\)"),
        ("command = ['true']", NOON, None),
        ("command = ['/no/such/program']", NOON, "cannot be started"),
    ],
)
def test_a_device_works_when_its_owner_lets_it(text: str, now_s: float, said: str | None) -> None:
    found = Conditions(parsed(f"[data]\npath = 'x'\n[when]\n{text}")).refusal(now_s)
    assert found is None if said is None else re.search(said, found or "")


def test_quiet_hours_end_where_they_say_for_every_minute_of_the_day() -> None:
    ranges = parsed("[when]\nquiet = ['22:00-06:30', '06:00-07:00']").when.ranges
    for minute in range(24 * 60):
        now = NOON + 60.0 * (minute - 12 * 60)
        inside = minute >= 22 * 60 or minute < 7 * 60
        assert (quiet_hours_end(ranges, now) is not None) == inside, minute


def test_no_work_without_text_nor_beyond_the_bytes_of_the_day() -> None:
    assert "data.path is empty" in (Conditions(parsed()).refusal(NOON) or "")
    conditions = Conditions(parsed("[data]\npath = 'x'\n[limits]\nupload_mb_per_day = 10.0"))
    assert conditions.refusal(NOON, sent_today=6e6, next_bytes=4e6) is None
    assert "6.1 of 10 MB have left today, and a round may send 4" in (
        conditions.refusal(NOON, sent_today=6.1e6, next_bytes=4e6) or ""
    )


def test_the_owners_command_is_asked_again_after_a_while_and_not_for_every_question() -> None:
    calls: list[float] = []
    conditions = Conditions(parsed("[data]\npath = 'x'\n[when]\ncommand = ['c']"), lambda _: calls.append(1) or "no")
    assert [conditions.refusal(NOON + s) for s in (0.0, 1.0, 29.0, 31.0)] == ["no"] * 4
    assert len(calls) == 2


OTHER = {  # another value of each key than its default, as TOML
    "data.source": "'jsonl'", "data.path": "'there'", "data.text": "'body'", "data.prompt": "'ask'",
    "data.messages": "'chat'", "data.tools": "'calls'", "data.answers": "'last'", "data.as_chat": "true",
    "data.time": "'at'", "data.time_format": "'%Y'", "data.separator": "';'",
    "limits.upload_mb": "1.0", "limits.upload_mb_per_day": "1e-6", "limits.local_steps": "3",
    "limits.memory_mb": "600.0", "limits.compiled": "false",
    "limits.cache_mb": "1.0", "limits.cache_days": "1.0", "privacy.evaluation": "false",
    "when.quiet": "['00:00-12:00', '12:00-00:00']", "when.command": "['false']",
    "privacy.words": "['hidden']", "privacy.hidden": "true", "privacy.device_unit": "true", "privacy.epsilon": "1.0",
    "privacy.delta": "1e-9", "privacy.noise_multiplier": "1.0", "privacy.clip_l2": "1.0", "privacy.cohort": "9",
    "privacy.malicious_fraction": "0.2", "privacy.server": "'curious'", "budget.epsilon": "1.0",
    "privacy.split": "true", "budget.delta": "1e-9", "model.allow": "['bundled']",
}  # fmt: skip


def effects(text: str) -> tuple[object, ...]:
    """Everything that a policy decides."""
    found = parsed(text)
    why = Conditions(found).refusal(NOON, sent_today=10.0, next_bytes=1.0)
    kept = (found.limits.compiled, found.limits.cache_mb, found.limits.cache_days, found.privacy.evaluation)
    return found.floor(), found.budget, found.data_keys(Path("/home")), found.engine_keys(), why, kept


@pytest.mark.parametrize("key", OTHER)
def test_no_key_is_without_an_effect(key: str) -> None:
    section, name = key.split(".")
    tables = {"data": {"path": "'here'"}}
    if key in ("data.text", "data.prompt", "data.messages"):
        tables["data"]["source"] = "'jsonl'"
    if key in ("data.tools", "data.answers"):
        tables["data"] |= {"source": "'jsonl'", "messages": "'chat'"}
    if key == "data.as_chat":
        tables["data"] |= {"source": "'jsonl'", "prompt": "'ask'"}
    if key in ("data.time", "data.time_format", "data.separator"):
        tables["data"] |= {"source": "'csv'", "time": "'when'"}
    if key == "budget.delta":
        tables["budget"] = {"epsilon": "2.0"}
    before = "\n".join(f"[{s}]\n" + "\n".join(f"{k} = {v}" for k, v in t.items()) for s, t in tables.items())
    tables.setdefault(section, {})[name] = OTHER[key]
    after = "\n".join(f"[{s}]\n" + "\n".join(f"{k} = {v}" for k, v in t.items()) for s, t in tables.items())
    assert effects(before) != effects(after)


def test_every_key_is_among_those_with_an_effect() -> None:
    elsewhere = {"package.name", "package.sha256", "package.every_run", "privacy.gateway"}  # of the agent's tests
    elsewhere |= {f"attested.{key}" for key in ("platform", "registers", "versions", "statuses", "signer")}
    assert OTHER.keys() | elsewhere == set(keys(Policy))
