"""A server with made-up runs, members and promotions, for tests and pictures of its dashboard.

As a program it serves them, and prints the URL and a login token: python shown_runs.py FOLDER
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from toy import ToyTrainer
from toy_recipe import make_recipe

from edgewise.apps.server import submission
from edgewise.apps.server.start import HttpServer
from edgewise.core import events
from edgewise.drivers.fleet import members, served, sessions
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.fleet.promotions import Promotion, add_promotion
from edgewise.drivers.fleet.served import ServedRun
from edgewise.drivers.http import identity, tokens
from edgewise.drivers.storage import charges, schema
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.facts import Instance, PlanFacts, canonical
from edgewise.privacy import ledger
from edgewise.privacy.ledger import LedgerEntry
from edgewise.privacy.spend import gaussian

CENTRAL = {
    "privacy": "central_dp", "merge": {"kind": "sum"}, "stage": [], "dp.epsilon": 8.0, "dp.delta": 1e-5,
    "dp.clip_l2": 4.0, "round.sampling": "fixed", "round.cohort": 4,
}  # fmt: skip


@cache
def _facts(private: bool) -> PlanFacts:
    recipe = make_recipe(CENTRAL if private else {})
    trainer = ToyTrainer(recipe, None)
    made = compile(
        recipe, trainer.spec, 8, BUILT_IN, instance=Instance(server="00" * 32, nonce="0" * 64, roster="0" * 64)
    )
    return made.facts


def shown_run(
    server: HttpServer, name: str, state: str, played: int, rounds: int, private: bool = True, seed: int = 0
) -> str:
    """Put a made-up run on a server; returns its id."""
    base = _facts(private)
    assert base.instance is not None
    instance = msgspec.structs.replace(base.instance, nonce=f"{seed:064x}")
    facts = msgspec.structs.replace(base, instance=instance)
    run, folder = facts.digest(), submission.folder(server.service, facts.digest())
    folder.mkdir(parents=True)
    write_run(folder, run, name, played, seed)
    why = "E-QUORUM: too few devices. Enrol more." if state == served.FAILED else None
    made_s = server.service.now_s() - 3600.0 * (seed + 1)
    row = ServedRun(run, name, state, why, rounds, canonical(facts), b"", {}, "ab" * 16, made_s)
    server.service.database.write(lambda c: served.add(c, row))
    return run


def write_run(folder: Path, run: str, name: str, played: int, seed: int = 0) -> None:
    """Write the database of a made-up run with ``played`` rounds."""
    draw, engine = random.Random(seed), sa.create_engine(f"sqlite:///{folder / 'run.db'}")
    schema.META.create_all(engine)
    rows, measures = [], []
    for r in range(played):
        loss = 2.0 + 1.8 * math.exp(-6.0 * r / max(1, played)) + draw.gauss(0.0, 0.03)
        lost = draw.randrange(3)
        rows.append(events.RoundStarted(round=r, invited=8, goal=6, minimum=3))
        if r < 2000 and lost:
            rows.append(events.Lost(round=r, device=f"{r:032x}", code=draw.choice(["dropped", "E-DISK", "late"])))
        rows.append(_finished(r, played, loss, lost, draw))
        if r % max(1, played // 20) == 0:
            row = {"model": "federated", "round": r, "device": "d", "nll": loss * 90.0, "tokens": 100}
            measures.append(row)
    with engine.begin() as c:
        c.execute(schema.RUNS.insert().values(
            id=run, schema_version=schema.SCHEMA_VERSION, instance="i", name=name, recipe="{}", facts="{}",
            next_round=played, ledger="", epsilon=6.0 * math.sqrt(played / 200), journal_key=b"", window=0,
        ))  # fmt: skip
        for r in range(min(played, 40)):
            charges.add_stored_charge(
                c, ledger.first_ledger_link(run, "i"), LedgerEntry(r, f"{r:032x}", 0, gaussian(1.1))
            )
        if rows:
            table = [_row(event) for event in rows]
            c.execute(schema.EVENTS.insert(), table)
            c.execute(schema.MEASURES.insert(), measures)
    engine.dispose()


def _finished(r: int, played: int, loss: float, lost: int, draw: random.Random) -> events.RoundFinished:
    return events.RoundFinished(
        round=r, met=r % 17 != 11, accepted=8 - lost, lost=lost, late=draw.randrange(2),
        bytes_up=draw.randrange(900_000, 1_200_000), bytes_down=draw.randrange(2_000_000, 2_400_000), update_l2=1.0,
        head={"loss_first": loss + 0.2, "loss_last": loss}, train_s=40.0, encode_s=1.0,
        aggregate_s=0.4 + draw.random() / 5, seconds=6.0 + 2 * draw.random(), model="m" * 64,
        epsilon=6.0 * math.sqrt((r + 1) / 200),
    )  # fmt: skip


def _row(event: Any) -> dict[str, Any]:
    return {"kind": event.__struct_config__.tag, "round": event.round, "body": events.to_json(event)}


def member(
    server: HttpServer, label: str, role: str = "device", approved: bool = True, tags: Sequence[str] = ()
) -> str:
    """Enrol a made-up key; returns its id."""
    public = identity.key_fingerprint(label.encode()).encode()
    token, now_s = tokens.make_token_for_server(server.service.identity.name), server.service.now_s()

    def change(c: sa.Connection) -> str:
        members.make_token(c, token, Grant(role, tuple(tags), approved=approved), "server", now_s)
        return members.join_fleet(c, token, public, label, now_s).id

    return str(server.service.database.write(change))


def login(server: HttpServer, name: str) -> str:
    """The secret of a new session of a member."""
    now_s = server.service.now_s()
    return str(
        server.service.database.write(
            lambda c: sessions.enter_session(c, sessions.invite_to_session(c, name, now_s), now_s)[0]
        )
    )


def filled(server: HttpServer) -> dict[str, str]:
    """Fill a server; returns the ids of some of it by name."""
    found = {"operator": member(server, "operator", "admin")}
    for i, label in enumerate(["kitchen hub", "garage", "pump 7", "ward 3 gateway", "", "press line B"]):
        found[label] = member(server, label or f"x{i}", approved=i % 3 != 2, tags=["site=north"] if i % 2 else [])
        if i < 3:
            server.service.advanced(found[label])
    names = [
        ("smart-home", served.RUNNING, 62, 200),
        ("code-helper", served.FINISHED, 120, 120),
        ("plays", served.PAUSED, 12, 40),
        ("pumps", served.FAILED, 3, 50),
        ("ward-notes", served.FINISHED, 80, 80),
    ]
    for seed, (name, state, played, rounds) in enumerate(names):
        found[name] = shown_run(server, name, state, played, rounds, private=name != "plays", seed=seed)
    for name in ("ward-notes", "code-helper"):
        one = Promotion(
            run=found[name], name=name, played=80, model="c0" * 32, total="d1" * 32, chain="e2" * 32, layout="f3" * 32,
            base="bundled", blobs={}, by=found["operator"], at_s=server.service.now_s(),
        )  # fmt: skip
        server.service.database.write(lambda c, one=one: add_promotion(c, one))
    return found


if __name__ == "__main__":
    from edgewise.drivers.http.limits import ServerLimits

    free = ServerLimits(address_rate=1e5, address_burst=1e5, member_rate=1e5, member_burst=1e5)
    with HttpServer(Path(sys.argv[1]), limits=free) as made:
        known = filled(made)
        text = made.service.database.write(lambda c: sessions.invite_to_session(c, known["operator"], time.time()))
        print(json.dumps({"url": made.url, "token": text, **known}), flush=True)
        sys.stdin.read()
