"""State in several places has one version: a run that goes on ends in the right model, or with an error that says why.

A run is cut off by copying its folder in the middle of a round, as a killed process leaves it. Then one part of the
copy is lost, damaged, or replaced by one of another time or run.
"""

from __future__ import annotations

import json
import shutil
import sqlite3

import numpy as np
import pytest
import toy
from safetensors.numpy import load_file, save_file
from toy_recipe import make_recipe

from edgewise.apps.simulate import simulation
from edgewise.core import events, frame, vector
from edgewise.core.errors import EdgewiseError, StoreError
from edgewise.drivers.storage import files
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.host import Host
from edgewise.plan.catalogue import with_extensions
from edgewise.plan.compile import compile
from edgewise.plan.facts import canonical
from edgewise.privacy import ledger
from edgewise.privacy.spend import PrivacyEvent

COMPARE = {"compare.local_only": False, "compare.centralised": False, "eval.every": 0}
MASKED = {
    "privacy": "hidden",
    "merge": {"kind": "secure_sum"},
    "stage": [
        {"kind": "feedback"},
        {"kind": "clip", "l2": 8.0},
        {"kind": "quantize", "bits": 4, "grid": "shared"},
        {"kind": "wrap"},
    ],
}
PRIVATE = {
    "privacy": "central_dp", "metrics": "none", "stage": [], "dp.epsilon": 20.0, "dp.delta": 1e-5, "dp.clip_l2": 4.0,
    "round.sampling": "cyclic", "round.cohort": 4, "round.rounds": 6,
}  # fmt: skip


def play(out, resume=False, sinks=(), **changes):
    recipe = make_recipe({**COMPARE, **changes})
    simulation.run(
        recipe, out=out, recipe_dir=out.parent, resume=resume, extensions=["toy"], report=False, sinks=sinks
    )  # fmt: skip
    with RunStore(out) as store:
        return store.models()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Configuration -> (models of the undisturbed run, round -> folder as a kill in that round leaves it)."""
    made = {}

    def of(name, **changes):
        if name not in made:
            folder, copies = tmp_path_factory.mktemp(name), {}

            def copy(event):
                number = getattr(event, "round", -1)
                begun = isinstance(event, events.RoundStarted) if changes else isinstance(event, events.Accepted)
                if begun and number not in copies:
                    copies[number] = shutil.copytree(folder / "run", folder / str(number))

            made[name] = play(folder / "run", sinks=[copy], **changes), copies
        return made[name]

    return of


def outcome(folder, resume=True, **changes):
    try:
        return play(folder, resume, **changes)
    except EdgewiseError as e:
        return e.code


def database(source, target):
    """Put the database of one folder, its log included, in place of that of another."""
    for path in target.glob("run.db*"):
        path.unlink()
    for path in source.glob("run.db*"):
        shutil.copy(path, target)


def memories(folder):
    return sorted(folder.glob("devices/*/*.safetensors"))


def cut(path, size):
    with path.open("r+b") as f:
        f.truncate(size)


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def lose_memory(folder, images):
    memories(folder)[0].unlink()


def flip_a_bit(folder, images):
    path = memories(folder)[1]
    flip(path, path.stat().st_size * 3 // 4)


def change_a_residual(folder, images):
    """Even in a file that is well formed."""
    path = memories(folder)[2]
    arrays = load_file(path)
    arrays["committed/phase.0/stage.1/residual"] = arrays["committed/phase.0/stage.1/residual"] ^ np.uint16(1)
    save_file(arrays, path)


def swap_memories(folder, images):
    a, b = memories(folder)[:2]
    shutil.copy(a, b)


def memory_of_before(folder, images):
    source = memories(images[1])
    for path in memories(folder):
        path.write_bytes(next(p for p in source if p.name == path.name).read_bytes())


def memory_of_after(folder, images):
    source = memories(images[3])
    for path in memories(folder):
        path.write_bytes(next(p for p in source if p.name == path.name).read_bytes())


def lose_all_memories(folder, images):
    shutil.rmtree(folder / "devices")


def go_back_two_rounds(folder, images):
    database(images[0], folder)


def go_back_and_keep_no_journal(folder, images):
    database(images[0], folder)
    for path in folder.glob("journal/*"):
        path.unlink()


def lose_the_witness(folder, images):
    (folder / "witness.json").unlink()


def damage_the_witness(folder, images):
    flip(folder / "witness.json", 20)


def journal_of_another_round(folder, images):
    (journal,) = folder.glob("journal/*")
    journal.write_bytes(next(images[1].glob("journal/*")).read_bytes())


DAMAGES = [
    lose_memory, flip_a_bit, change_a_residual, swap_memories, memory_of_before, memory_of_after,
    lose_all_memories, go_back_two_rounds, go_back_and_keep_no_journal, lose_the_witness, damage_the_witness,
    journal_of_another_round,
]  # fmt: skip


@pytest.mark.quick(sample=2)
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_out_of_step_is_refused_by_name(images, tmp_path, damage):
    models, copies = images("plain")
    folder = shutil.copytree(copies[2], tmp_path / "run")
    assert play(shutil.copytree(copies[2], tmp_path / "calm"), True) == models
    damage(folder, copies)
    assert outcome(folder) == "E-CHECKPOINT"


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lose_memory, flip_a_bit, memory_of_before, go_back_two_rounds])
def test_memory_behind_masks_is_refused_by_name(images, tmp_path, damage):
    models, copies = images("masked", **MASKED)
    folder = shutil.copytree(copies[2], tmp_path / "run")
    assert play(shutil.copytree(copies[2], tmp_path / "calm"), True, **MASKED) == models
    damage(folder, copies)
    assert outcome(folder, **MASKED) == "E-CHECKPOINT"


MIRRORS = {"stage": [{"kind": "feedback", "form": "ef21"}, {"kind": "top_k", "fraction": 0.2}]}


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lose_memory, swap_memories, memory_of_before, lose_all_memories])
def test_a_lost_mirror_is_refused_by_name(images, tmp_path, damage):
    """The server's mirror would keep what the device no longer knows of."""
    models, copies = images("mirrors", **MIRRORS)
    folder = shutil.copytree(copies[2], tmp_path / "run")
    assert play(shutil.copytree(copies[2], tmp_path / "calm"), True, **MIRRORS) == models
    damage(folder, copies)
    assert outcome(folder, **MIRRORS) == "E-CHECKPOINT"


@pytest.mark.slow
def test_a_log_that_is_damaged_anywhere_gives_the_right_model_or_an_error(images, tmp_path):
    """SQLite drops the end of a damaged log, by design, and so goes back by some transactions."""
    models, copies = images("plain")
    size, seen = (copies[2] / "run.db-wal").stat().st_size, set()
    for step in range(12):  # 1 cuts off all but a twelfth, 0 damages the head, so that nothing of the log is used
        folder = shutil.copytree(copies[2], tmp_path / str(step))
        at = size * step // 12
        if step % 2:
            cut(folder / "run.db-wal", at)
        else:
            flip(folder / "run.db-wal", at)
        ended = outcome(folder)
        seen.add(str(ended))
        assert ended in (models, "E-CHECKPOINT", "E-RESUME")
    assert "E-CHECKPOINT" in seen


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_that_begins_where_another_was_starts_with_nothing(images, tmp_path, seed):
    """The database is lost; device memory, journal and blobs of the old run are still there."""
    models, copies = images("plain")
    folder = shutil.copytree(copies[2], tmp_path / "run")
    for path in folder.glob("run.db*"):
        path.unlink()
    assert outcome(folder, True, seed=seed) == "E-RESUME"
    fresh = models if seed == 0 else play(tmp_path / "fresh", seed=seed)
    assert play(folder, seed=seed) == fresh


@pytest.mark.slow
def test_a_database_of_another_run_directory_is_refused(images, tmp_path):
    """The same recipe, begun twice: memory of one does not go with the database of the other."""
    _, copies = images("plain")
    other = tmp_path / "other"

    class Stop(Exception):
        pass

    def stop(event):
        if isinstance(event, events.Accepted) and event.round == 2:
            raise Stop

    with pytest.raises(Stop):
        play(other, sinks=[stop])
    for keep in ({"run.db*"}, {"run.db*", "witness.json"}):
        folder = shutil.copytree(copies[2], tmp_path / str(len(keep)))
        for pattern in keep:
            for path in folder.glob(pattern):
                path.unlink()
            for path in other.glob(pattern):
                shutil.copy(path, folder)
        assert outcome(folder) == "E-CHECKPOINT"


DEVICE = "d00001"


def host_of(store):
    """A host for the devices of an open store, and the invitation to a round."""
    recipe, host = make_recipe(COMPARE), Host()
    described = host.do(
        jobs.Setup(
            recipe=recipe.model_dump_json(by_alias=True), recipe_dir=".", run_dir=str(store.out),
            memory_dir=str(store.memory_dir), instance=store.instance, extensions=("toy",),
        )
    )  # fmt: skip
    plan = compile(recipe, toy.ToyTrainer(recipe).spec, 8, with_extensions(["toy"]))
    host.do(jobs.Compile(facts=canonical(plan.facts)))
    model = vector.digest(described.initial)
    host.do(jobs.Blob(digest=model, data=described.initial))

    def invite(number, accepted):
        letter = frame.Invite(
            run=plan.run, round=number, spec=plan.spec.digest(), model=model, public=plan.public(number),
            accepted=accepted, deadline_s=9.0, rule=plan.rule(number),
        )  # fmt: skip
        return host.do(jobs.Handle(id=1, device=DEVICE, frame=frame.dump(letter)))

    return invite


@pytest.mark.parametrize("moment", ["before the file", "before its name"])
def test_a_worker_that_outlives_its_run_cannot_replace_newer_memory(tmp_path, monkeypatch, moment):
    """It stalls in the middle of its write. Meanwhile the run goes on, and the device is asked again."""
    out = tmp_path / "run"
    with RunStore(out) as store:
        store.create("r", "toy", {}, {})
        orphan = host_of(store)
        assert isinstance(orphan(0, None), jobs.Handled)
    real, newer = files.os.fsync, []

    def stalled(*_):
        monkeypatch.undo()
        monkeypatch.setattr(files.os, "getpid", lambda: 1)  # the run goes on in another process
        with RunStore(out) as again:
            invite = host_of(again)
            for number in (1, 2, 3):
                assert isinstance(invite(number, number - 1), jobs.Handled)
            newer.extend(p.read_bytes() for p in again.memory_dir.glob("*.safetensors"))

    if moment == "before its name":
        monkeypatch.setattr(files.os, "fsync", lambda handle: stalled() or real(handle))
    else:
        monkeypatch.setattr(files, "open", lambda *a, **k: stalled() or open(*a, **k), raising=False)  # noqa: SIM115
    answer = orphan(1, 0)
    assert isinstance(answer, jobs.Broken)
    assert answer.stops
    with RunStore(out) as store:
        (memory,) = store.memory_dir.glob("*.safetensors")
        assert [memory.read_bytes()] == newer
        assert isinstance(host_of(store)(4, 3), jobs.Handled)


def sql(folder, *statements):
    with sqlite3.connect(folder / "run.db") as c:
        for statement in statements:
            c.execute(statement)
    c.close()


TAMPERED = {
    "the last row is gone": ["DELETE FROM charges WHERE number = (SELECT max(number) FROM charges)"],
    "a row is gone": ["DELETE FROM charges WHERE number = 2"],
    "all rows are gone": ["DELETE FROM charges"],
    "rows are swapped": [
        "UPDATE charges SET round = -9 WHERE number = 1", "UPDATE charges SET round = 0 WHERE number = 2",
        "UPDATE charges SET round = 1 WHERE number = 1",
    ],
    "a row says less": ["""UPDATE charges SET event = replace(event, '"z": ', '"z": 9') WHERE number = 2"""],
    "a row is no event": ["UPDATE charges SET event = '{' WHERE number = 2"],
    "a row is no text": ["UPDATE charges SET event = 7 WHERE number = 2"],
    "a row is copied": [
        "INSERT INTO charges (round, attempt, cohort, event, digest) "
        "SELECT 9, attempt, cohort, event, digest FROM charges WHERE number = 1"
    ],
}  # fmt: skip


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("how", TAMPERED)
def test_a_ledger_that_is_not_what_was_written_is_refused(images, tmp_path, how):
    models, copies = images("private", **PRIVATE)
    folder = shutil.copytree(copies[3], tmp_path / "run")
    assert play(shutil.copytree(copies[3], tmp_path / "calm"), True, **PRIVATE) == models
    sql(folder, *TAMPERED[how])
    assert outcome(folder, **PRIVATE) == "E-CHECKPOINT"


@pytest.mark.parametrize("how", ["a row is gone", "rows are swapped", "a row says less", "a row is copied"])
def test_a_report_is_not_written_from_such_a_ledger(images, tmp_path, how):
    _, copies = images("private", **PRIVATE)
    folder = shutil.copytree(copies[3], tmp_path / "run")
    sql(folder, *TAMPERED[how])
    with RunStore(folder) as store, pytest.raises(StoreError, match=r"E-CHECKPOINT.*ledger"):
        store.charges()


def rebuilt(folder, statement, *values):
    """Change the ledger, and give rows, database and witness the digests that belong to it."""
    with sqlite3.connect(folder / "run.db") as c:
        c.execute(statement, values)
        run, instance = c.execute("SELECT id, instance FROM runs").fetchone()
        before, count = ledger.first_ledger_link(run, instance), 0
        rows = c.execute("SELECT number, round, attempt, cohort, event FROM charges ORDER BY number").fetchall()
        for number, played, attempt, cohort, event in rows:
            charge = ledger.LedgerEntry(played, attempt, cohort, PrivacyEvent.from_plain(json.loads(event)))
            before, count = ledger.ledger_link(before, charge), count + 1
            c.execute("UPDATE charges SET digest = ? WHERE number = ?", (before, number))
        c.execute("UPDATE runs SET ledger = ?", (before,))
    c.close()
    path = folder / "witness.json"
    witness = json.loads(path.read_bytes())
    path.write_text(json.dumps({**witness, "charges": count, "ledger": before}))


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM charges WHERE number = 2", "3 rounds were released, 2 were charged"),
        ("DELETE FROM charges", "3 rounds were released, 0 were charged"),
        ("UPDATE charges SET cohort = 1 WHERE number = 1", "the charge of round 0 is not one that this run makes"),
        ("UPDATE charges SET event = replace(event, '\"z\": ', '\"z\": 9')", "charge of round 0 is not one"),
        ("UPDATE charges SET round = 17 WHERE number = 3", "charge of round 17 is not one"),
        ("UPDATE runs SET epsilon = 19.0", "epsilon fell from 19 to"),
    ],
)
def test_a_ledger_that_does_not_fit_the_run_is_refused(images, tmp_path, statement, said):
    """Also where its digests are right."""
    _, copies = images("private", **PRIVATE)
    folder = shutil.copytree(copies[3], tmp_path / "run")
    rebuilt(folder, statement)
    with pytest.raises(StoreError, match=f"E-CHECKPOINT.*{said}"):
        play(folder, True, **PRIVATE)


def test_a_database_from_a_backup_does_not_spend_the_budget_again(images, tmp_path):
    _, copies = images("private", **PRIVATE)
    folder = shutil.copytree(copies[4], tmp_path / "run")
    database(copies[2], folder)
    with pytest.raises(StoreError, match=r"E-CHECKPOINT.*not the newest"):
        play(folder, True, **PRIVATE)


ROWS = {
    "the recipe": "UPDATE runs SET recipe = '{'",
    "the facts": "UPDATE runs SET facts = '[[['",
    "the round": "UPDATE runs SET next_round = 'x'",
    "the newest model": "DELETE FROM models WHERE next_round = 2",
    "its slots": "UPDATE models SET slots = '7' WHERE next_round = 2",
    "its step": "UPDATE models SET params = 'ab' WHERE next_round = 2",
    "an older model's slots": "UPDATE models SET slots = '{' WHERE next_round = 1",
}


@pytest.mark.parametrize("what", ROWS)
def test_a_damaged_row_is_an_error_with_a_name(images, tmp_path, what):
    _, copies = images("plain")
    folder = shutil.copytree(copies[2], tmp_path / "run")
    sql(folder, ROWS[what])
    assert outcome(folder) == "E-CHECKPOINT"


def test_a_damaged_event_is_an_error_with_a_name(images, tmp_path):
    _, copies = images("plain")
    folder = shutil.copytree(copies[2], tmp_path / "run")
    sql(folder, "UPDATE events SET body = '{\"type\": 1}' WHERE kind = 'round_started'")
    with RunStore(folder) as store, pytest.raises(StoreError, match="E-CHECKPOINT"):
        store.events()


def test_a_run_of_another_version_is_refused(images, tmp_path):
    _, copies = images("plain")
    folder = shutil.copytree(copies[2], tmp_path / "run")
    sql(folder, "UPDATE runs SET schema_version = 3", "ALTER TABLE runs DROP COLUMN instance")
    with pytest.raises(StoreError, match=r"E-CHECKPOINT.*another version of edgewise"):
        play(folder, True)
