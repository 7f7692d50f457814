"""A server that lies to real agents over HTTPS: each refuses with a code, writes down why, and sends no update.

The server has its own key, so that it can sign whatever it says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from invited import invitation
from owned import ended, owned, seen, submitted, working
from served import joined, running
from toy import ToyTrainer
from toy_recipe import PLAIN

from edgewise.apps.device import record
from edgewise.apps.server import submission
from edgewise.apps.server.start import HttpServer
from edgewise.apps.server.submission import Submission
from edgewise.core import frame, vector
from edgewise.crypto import sign
from edgewise.drivers.fleet import mailboxes, roster, served
from edgewise.drivers.http.cohort import HttpCohort
from edgewise.plan import facts
from edgewise.plan.acceptance import planned
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.plan import Plan
from edgewise.plan.recipe import recipe
from edgewise.secagg import messages

pytestmark = pytest.mark.slow
DP: Mapping[str, Any] = {
    "privacy": "local_dp", "metrics": "none", "dp.noise_multiplier": 4.0, "dp.delta": 1e-5, "dp.clip_l2": 1.0,
    "round.rounds": 3, "round.minimum": 1.0, "eval.every": 0,
}  # fmt: skip
POLICY = "[privacy]\nwords = ['local_dp', 'distributed_dp']\nnoise_multiplier = 2.0\ncohort = 2\n"
Told = dict[str, Any]  # facts as a table


class Liar:
    """A server with two agents, and a run of theirs that it plays by hand."""

    def __init__(self, server: HttpServer, **overrides: Any) -> None:
        self.service, stated = server.service, recipe.parse(PLAIN, overrides={**DP, **overrides})
        trainer = ToyTrainer(stated)
        self.initial = trainer.initial()
        raw = bytes(vector.to_bytes(self.initial))
        self.service.staging.put(digest := vector.digest(raw), 0, len(raw), raw)
        wanted = Submission(recipe=stated.resolved(), spec=trainer.spec.to_list(), initial=digest)
        self.row = submission.begin(self.service, wanted, "test")
        self.kept = dict(self.row.kept)
        with self.service.database.read() as c:
            self.devices = [name for (name,) in c.exec_driver_sql("SELECT device FROM participants ORDER BY device")]
        self.plan: Plan = planned(facts.parse(self.row.facts), trainer.spec, BUILT_IN)

    def publish(self, lie: Callable[[Told], None], secret: bytes = b"", run: str = "") -> str:
        """Publish other facts, signed; returns the run that they are of. ``run``: under this id."""
        table = json.loads(self.row.facts)
        lie(table)
        raw = json.dumps(table, sort_keys=True, separators=(",", ":")).encode()
        row = self.row
        made = served.ServedRun(
            run or vector.digest(raw), row.name, row.state, None, row.rounds, raw,
            facts.sign(secret or self.service.identity.secret, raw), row.kept, row.made_by, row.made_s,
        )  # fmt: skip
        HttpCohort(self.service, made.run, 2**20, kept=self.kept).publish([vector.to_bytes(self.initial)])

        def change(c: Any) -> None:
            c.exec_driver_sql("DELETE FROM served WHERE run = ?", (made.run,))
            served.add(c, made)
            mailboxes.admit(c, made.run, self.devices)

        self.service.database.write(change)
        return made.run

    def invite(self, device: str, run: str, **lies: Any) -> None:
        """Invite a device; ``lies``: fields of the invitation."""
        letter = msgspec.structs.replace(invitation(self.plan, params=self.initial, **lies), run=run)
        raw, now_s = frame.dump(letter), self.service.now_s()
        self.service.database.write(lambda c: mailboxes.post(c, device, raw, letter, now_s))
        self.service.ring(device)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The frames that devices send, as the server gets them."""
    came, accept = list[Any](), mailboxes.accept

    def seeing(c: Any, message: Any, *more: Any) -> int:
        number = accept(c, message, *more)
        came.append(message)
        return number

    monkeypatch.setattr(mailboxes, "accept", seeing)
    return came


def nothing(table: Told) -> None:
    """No lie."""


def set_to(*path: str, value: Any) -> Callable[[Told], None]:
    def lie(table: Told) -> None:
        for name in path[:-1]:
            table = table[name]
        table[path[-1]] = value

    return lie


def strangers(liar: Liar) -> str:
    """Other devices than those of the run, in its roster."""
    keys = [sign.pair(bytes([i]) * 32).public for i in range(2)]
    listing = liar.service.blobs.put(roster.dump(keys))
    liar.kept = {**liar.row.kept, listing: 64}
    return liar.publish(set_to("instance", "roster", value=listing))


FASTER = set_to("recipe", "training", "lr", value=9.0)
STRANGER = sign.pair(bytes(range(32))).secret
HIDDEN = {"privacy": "distributed_dp", "trust.malicious_fraction": 0.0, "trust.dropout_fraction": 0.0}
Lie = tuple[str, str, Mapping[str, Any], Callable[[Liar], str]]
LIES: Mapping[str, Lie] = {  # what -> code, words of the reason, keys of the recipe, how
    "nothing": ("", "", {}, lambda s: s.publish(nothing)),
    "another plan": ("E-FACTS", "those of another run", {}, lambda s: s.publish(FASTER, run=s.row.run)),
    "another server's": ("E-FACTS", "not signed by the server", {}, lambda s: s.publish(nothing, STRANGER)),
    "a smaller cohort": ("E-FACTS", "they state n_min = 1", {}, lambda s: s.publish(set_to("n_min", value=1))),
    "more devices": ("E-FACTS", "they state", {}, lambda s: s.publish(set_to("population", value=1000))),
    "strangers": ("E-FACTS", "not among their devices", HIDDEN, strangers),
    "less noise than stated": ("E-FACTS", "noise", {}, lambda s: s.publish(set_to("noise", "multiplier", value=0.5))),
    "less noise": ("E-FLOOR", "noise multiplier is 2", {"dp.noise_multiplier": 1.0}, lambda s: s.publish(nothing)),
}


def whys(homes: list[Path]) -> list[str]:
    """Records of the agents on what they refused."""
    return [row.reason for home in homes for row in record.device_record_lines(home) if row.kind == record.RUN_REFUSED]


@pytest.mark.parametrize("what", LIES)
def test_an_agent_that_is_told_of_another_plan_refuses(tmp_path: Path, what: str, sent: list[Any]) -> None:
    code, words, overrides, lie = LIES[what]
    with running(tmp_path) as server:
        homes = [owned(server, tmp_path / f"home-{i}", POLICY) for i in range(2)]
        liar = Liar(server, **overrides)
        run = lie(liar)
        liar.invite(liar.devices[0], run)
        with working(*homes):
            assert seen(lambda: sent and (whys(homes) or not code))
    assert [(type(m), getattr(m, "code", "")) for m in sent] == [(frame.Refusal if code else frame.Contribution, code)]
    assert all(why.startswith(code) and words in why for why in whys(homes))


def test_an_agent_that_is_asked_for_a_round_again_refuses(tmp_path: Path, sent: list[Any]) -> None:
    """For another model, and by an agent that was started anew: noise would average out."""
    with running(tmp_path) as server:
        homes = [owned(server, tmp_path / f"home-{i}", POLICY) for i in range(2)]
        liar = Liar(server)
        liar.invite(liar.devices[0], run := liar.publish(nothing))
        with working(*homes):
            assert seen(lambda: len(sent) == 1)
        liar.initial = liar.initial + 1.0
        liar.publish(nothing)
        liar.invite(liar.devices[0], run)
        with working(*homes):
            assert seen(lambda: len(sent) == 2)
        reasons = [row.reason or "" for home in homes for row in record.device_record_lines(home)]
    assert [type(m) for m in sent] == [frame.Contribution, frame.Refusal]
    assert sent[1].code == "E-SECAGG-ORDER"
    assert any("update of round 0 has left" in why for why in reasons)


@pytest.mark.parametrize("forged", ["without it", "a stranger", "of one alone"])
def test_agents_that_hear_of_forged_survivors_reveal_nothing(
    tmp_path: Path, sent: list[Any], forged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of four agents hears another list than the one that it has reason to believe."""
    real = HttpCohort.send

    def send(self: HttpCohort, to: str, raw: bytes) -> None:
        message = frame.from_server(raw, 2**20)
        body = messages.load_secagg_message(message.body) if isinstance(message, frame.Step) else None
        if isinstance(body, messages.SurvivorsMessage):
            others = tuple(device for device in body.devices if device != to)
            lists = {"without it": others, "a stranger": (*body.devices, "g" * 32), "of one alone": (to,)}
            body = messages.SurvivorsMessage(devices=lists[forged])
            raw = frame.dump(msgspec.structs.replace(message, body=messages.dump(body)))
        real(self, to, raw)

    monkeypatch.setattr(HttpCohort, "send", send)
    with running(tmp_path) as server, joined(server, tmp_path / "admin", "admin") as admin:
        homes = [owned(server, tmp_path / f"home-{i}", POLICY) for i in range(4)]
        run = submitted(server, admin, **{**DP, **HIDDEN, "round.rounds": 1, "round.deadline_s": 20.0})
        with working(*homes):
            assert ended(admin, run) == "failed", "no round has moved the model"
        events = admin.call("GET", f"/v1/runs/{run}/events")["events"]
    answers = [messages.load_secagg_message(m.body) for m in sent if isinstance(m, frame.Step)]
    assert {type(a) for a in answers} == {
        messages.AdvertiseMessage,
        messages.SharesMessage,
        messages.MaskedMessage,
        messages.Abort,
    }
    codes = {a.code for a in answers if isinstance(a, messages.Abort)}
    assert codes == {"E-SECAGG-FEW" if forged == "of one alone" else "E-SECAGG-SURVIVORS"}
    assert not [event for event in events if event["event"] == "accepted"]
