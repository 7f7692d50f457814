"""A run can be verified from its folder alone: released totals give the released models, and every change is named."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_recipe import PLAIN, make_recipe

from edgewise.apps.models import verified
from edgewise.apps.models.verification import verify_run
from edgewise.apps.simulate import simulation
from edgewise.core import events
from edgewise.core.errors import StoreError
from edgewise.drivers.storage import round_record, run_record
from edgewise.engine import released
from edgewise.plan.recipe import recipe as recipes
from edgewise.plan.retention import largest_window, oldest_retained_round

ALONE = {"compare.local_only": False, "compare.centralised": False, "eval.every": 0}
NOISY = {
    "privacy": "central_dp", "dp.epsilon": 8.0, "dp.delta": 1e-2, "dp.clip_l2": 1.0, "strategy.kind": "fedadam",
    "strategy.lr": 0.1, "round.rounds": 4,
}  # fmt: skip


def played(out: Path, overrides: dict[str, Any], sinks: tuple[Callable[[events.AnyEvent], None], ...] = ()) -> Path:
    recipe = recipes.parse(PLAIN, overrides={**ALONE, **overrides})
    return simulation.run(recipe, out=out, recipe_dir=out, extensions=["toy"], sinks=sinks, report=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return played(tmp_path_factory.mktemp("run") / "run", NOISY)


def test_each_model_follows_from_its_total(run: Path) -> None:
    found = verify_run(run)
    assert (found.released, found.replayed, found.first, found.charges, found.lines) == (4, 4, 0, 4, 5)
    assert found.ok
    assert found.epsilon == pytest.approx(8.0, rel=0.05)
    assert verify_run(run, found.chain).chain == found.chain
    said = "\n".join(verified.verified_lines(found))
    assert "4 of 4 released totals" in said
    assert "whether the noise in a total" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        {"strategy.kind": "scaffold", "training.optimizer": "sgd"},
        {"strategy.kind": "feddyn", "strategy.alpha": 0.1},
        {"privacy": "hidden"},
    ],
    ids=lambda given: "-".join(map(str, given.values())),
)
def test_replays_every_kind_of_step(tmp_path: Path, overrides: dict[str, Any]) -> None:
    assert verify_run(played(tmp_path, overrides)).replayed == 3


@pytest.mark.slow
def test_replays_sparse_totals_and_optimizer_state(tmp_path: Path) -> None:
    """The recipe with feedback, top-k and FedAdam."""
    simulation.run(make_recipe(ALONE), out=tmp_path, recipe_dir=tmp_path, extensions=["toy"], report=False)
    assert verify_run(tmp_path).replayed == 4


def _sql(statement: str) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        with closing(sqlite3.connect(out / "run.db")) as c:
            assert c.execute(statement).rowcount == 1, statement
            c.commit()

    return change


def _blob(column: str, table: str, where: str) -> Callable[[Path], None]:
    """Change one byte of a stored vector."""

    def change(out: Path) -> None:
        with closing(sqlite3.connect(out / "run.db")) as c:
            ((name,),) = c.execute(f"SELECT {column} FROM {table} WHERE {where}").fetchall()
        raw = bytearray((out / "blobs" / name).read_bytes())
        raw[5] ^= 1
        (out / "blobs" / name).write_bytes(raw)

    return change


def _other_total(out: Path) -> None:
    """Another total under its own digest, with the line rewritten to name it."""
    from edgewise.drivers.storage.blobs import Blobs

    name = Blobs(out / "blobs").put(round_record.dump_total(np.ones(50, np.float32)))
    _sql(f"UPDATE rounds SET total = '{name}' WHERE round = 2")(out)


def _rewritten(out: Path) -> None:
    """Another total under its own digest, and all lines from there on chained anew."""
    _other_total(out)
    record = run_record.read_run_record(out)
    link = released.start(record.run["id"], record.run["instance"])
    with closing(sqlite3.connect(out / "run.db")) as c:
        for row in record.rounds:
            link = released.link(link, round_record.read_round_line(row))
            c.execute("UPDATE rounds SET digest = ? WHERE round = ?", (link, row.round))
        c.commit()


def _older_database(out: Path) -> None:
    """A consistent history that ends one round earlier."""
    for statement in (
        "DELETE FROM rounds WHERE round = 3", "DELETE FROM models WHERE next_round = 4",
        "DELETE FROM charges WHERE round = 3", "UPDATE runs SET next_round = 3",
        "DELETE FROM events WHERE kind = 'round_finished' AND round = 3",
    ):  # fmt: skip
        _sql(statement)(out)


@pytest.mark.quick(sample=6)
@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (_blob("total", "rounds", "round = 1"), "round 1", "its released total is not what was written"),
        (_blob("params", "models", "next_round = 4"), "round 3", "its model is not what was written"),
        (_blob("params", "models", "next_round = 0"), "the model before the first round", "its model is not"),
        (_rewritten, "round 2", "its released total gives another model"),
        (_other_total, "round 2", "its line in the record of rounds is not the one"),
        (_sql("DELETE FROM rounds WHERE round = 1"), "round 1", "its line is missing"),
        (_sql("DELETE FROM rounds WHERE round = 3"), "round 3", "does not end where the run"),
        (_sql("DELETE FROM rounds WHERE round = -1"), "the model before the first round", "its line is missing"),
        (_sql("UPDATE rounds SET n = 9 WHERE round = 2"), "round 2", "its line in the record"),
        (_sql("UPDATE rounds SET head = '[' WHERE round = 2"), "round 2", "cannot be read"),
        (_sql("UPDATE charges SET cohort = 1 WHERE round = 2"), "round 2", "the privacy ledger up to it"),
        (_sql("UPDATE charges SET event = '{}' WHERE round = 2"), "round 2", "the privacy ledger up to it"),
        (_sql("DELETE FROM charges WHERE round = 1"), "round 1", "the privacy ledger up to it"),
        (_sql("DELETE FROM charges WHERE round = 3"), "round 3", "the privacy ledger up to it"),
        (_sql("UPDATE models SET params = '00' WHERE next_round = 2"), "round 1", "the table of models"),
        (
            _sql("UPDATE events SET body = replace(body, '\"model\":\"', '\"model\":\"0') "
                 "WHERE kind = 'round_finished' AND round = 2"),
            "round 2", "its event names another model",
        ),
        (_older_database, "round 3", "not what witness.json has seen"),
    ],
)  # fmt: skip
def test_names_the_first_round_that_does_not_follow(
    run: Path, tmp_path: Path, change: Callable[[Path], None], where: str, what: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    change(copy)
    with pytest.raises(StoreError) as e:
        verify_run(copy)
    assert e.value.code == "E-VERIFY"
    assert e.value.what.startswith(where)
    assert what in e.value.what


def test_a_rewritten_history_does_not_pass_through_a_digest_from_before(run: Path) -> None:
    with pytest.raises(StoreError, match="does not pass through"):
        verify_run(run, "0" * 64)


@pytest.mark.slow
def test_only_the_newest_totals_are_kept_where_room_is_short(tmp_path: Path) -> None:
    """200 bytes a total, room for five: after 12 rounds the last four are kept, and the models before each stretch."""
    out = played(tmp_path, {"round.rounds": 12, "store.totals_mb": 0.001})
    found = verify_run(out)
    assert (found.released, found.first, found.replayed) == (12, 9, 3)
    assert any("before round 9" in said for said in found.open)
    with closing(sqlite3.connect(out / "run.db")) as c:
        totals = [name for (name,) in c.execute("SELECT total FROM rounds WHERE total != ''")]
    kept = [name for name in totals if (out / "blobs" / name).exists()]
    assert sum((out / "blobs" / name).stat().st_size for name in kept) <= 1000
    (out / "blobs" / kept[0]).unlink()
    with pytest.raises(StoreError, match=r"round 9 .*is missing"):
        verify_run(out)


def test_says_that_nothing_was_replayed_where_no_total_is_kept(tmp_path: Path) -> None:
    found = verify_run(played(tmp_path, {"store.totals_mb": 0}))
    assert not found.ok
    assert found.lines == 4
    assert "the folder keeps no totals" in "\n".join(verified.verified_lines(found))


@pytest.mark.slow
def test_a_run_can_be_verified_while_it_is_played(tmp_path: Path) -> None:
    seen = []

    def look(event: events.AnyEvent) -> None:
        if isinstance(event, events.RoundFinished):
            seen.append(verify_run(tmp_path).replayed)

    played(tmp_path, {}, (look,))
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("limit", [0, 4, 8, 12, 20, 36, 40, 1000])
def test_the_window_is_never_above_its_limit_and_at_least_half_of_it(limit: int) -> None:
    found = largest_window(rounds=10, dim=1, vectors=1, limit_bytes=limit)
    if found.rounds is None:
        assert limit >= 40
    before = 0
    for next_round in range(11):
        first = oldest_retained_round(next_round, found.rounds)
        kept = next_round - first
        assert 4 * kept <= found.most_bytes <= max(limit, 0)
        assert first >= before, "what was dropped stays dropped"
        assert kept >= min(next_round, found.rounds // 2 if found.rounds is not None else next_round)
        assert first in (0, next_round) or first % found.stride == 0
        before = first


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("dim", [1, 7, 8, 1000])
def test_totals_are_stored_to_the_bit(dim: int, density: float) -> None:
    draw = np.random.default_rng(dim)
    x = np.where(draw.random(dim) < density, draw.normal(size=dim), 0.0).astype(np.float32)
    x[: dim // 8] *= np.float32(-0.0)
    raw = bytes(round_record.dump_total(x))
    assert len(raw) <= 4 * dim
    assert round_record.load_total(raw, dim).tobytes() == x.tobytes()
    with pytest.raises(ValueError):
        round_record.load_total(raw + b"\0", dim)


def test_links_of_stored_records_hold() -> None:
    """A record without a total is linked as it was when its absence was empty text."""
    without = released.RoundRecord(3, "m", {"v": "s"}, 2, 1, "l")
    with_one = released.RoundRecord(3, "m", {"v": "s"}, 2, 1, "l", 4, 2.5, {"loss": 1.0}, "t", {"c": "x"})
    assert without.total is None
    assert released.link("b", without) == "8c83ea1429f87806c8eba6ae04a6a663305009d5b2cdf3286a3e4db7fd606fff"
    assert released.link("b", with_one) == "19c1bd84599f16fb875c24496fea0932462b223683b7ad76b6157706fffdfeb4"
