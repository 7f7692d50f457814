"""Whole runs under secure aggregation and differential privacy: the same sums, drop-outs, faults, budgets."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest
from played import play, story
from toy import ToyTrainer
from toy_recipe import make_recipe

from edgewise.apps.report import summary
from edgewise.core import events, frame
from edgewise.core.errors import BudgetError, EdgewiseError, RoundError
from edgewise.core.memory import flat
from edgewise.crypto import sign
from edgewise.drivers.simulation.faults import Faulty, ScriptedFault
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine import device
from edgewise.engine.ports import Absent, Arrived
from edgewise.plan import acceptance
from edgewise.plan import noise as private
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.privacy import ledger
from edgewise.secagg import messages

GRID = [
    {"kind": "weigh", "cap": 160},
    {"kind": "clip", "l2": 8.0},
    {"kind": "clamp", "linf": 2.0},
    {"kind": "quantize", "bits": 8, "grid": "shared"},
]
MASKS = {"privacy": "hidden", "merge": {"kind": "secure_sum"}, "stage": [*GRID, {"kind": "wrap"}], "round.rounds": 3}
SHARES = {**MASKS, "merge": {"kind": "shared_sum"}}
PRIVATE = {
    "privacy": "distributed_dp",
    "metrics": "none",
    "stage": [],
    "merge": {"kind": "secure_sum"},
    "dp.epsilon": 20.0,
    "dp.delta": 1e-5,
    "dp.clip_l2": 4.0,
    "round.minimum": 0.75,
    "round.rounds": 3,
}
OPEN = {"merge": {"kind": "sum"}}
CENTRAL = {**PRIVATE, "privacy": "central_dp", "merge": {"kind": "sum"}}


GROUPED = {
    **MASKS, "merge": {"kind": "grouped", "groups": 5, "byzantine": 2}, "data.devices": 20, "round.minimum": 1.0,
    "trust.malicious_fraction": 0.0,  # groups of four: whoever poisons does not work with the server
}  # fmt: skip


LADDER = {  # devices plan for uploads of 0.07 s, and their links differ by four orders of magnitude
    "privacy": "hidden",
    "codec": "adaptive",
    "merge": {"kind": "secure_sum"},
    "stage": [{"kind": "weigh", "cap": 160}, {"kind": "clip", "l2": 8.0}],
    "data.devices": 20,
    "round.rounds": 4,
    "round.deadline_s": 60.0,
    "round.minimum": 0.6,
    "adaptive.deadline_s": 0.07,
    "simulation.step_s": 0.4,
    "simulation.link_mbit": 0.01,
    "simulation.link_low_mbit": 1e-4,
    "simulation.link_high_mbit": 1.0,
    "simulation.link_down": 100.0,
}


def rounds(told):
    return [e for e in told if isinstance(e, events.RoundFinished)]


@pytest.mark.slow
def test_masks_and_shares_give_the_visible_sums(tmp_path):
    """The first round's mean is the visible one up to float32; masks and shares agree to the byte in all."""
    masks, told, _ = play(tmp_path / "a", MASKS)
    shares, _, _ = play(tmp_path / "b", SHARES)
    _, seen, _ = play(tmp_path / "c", {"stage": GRID, "round.rounds": 3})
    assert masks == shares
    for hidden, visible in zip(rounds(told), rounds(seen), strict=True):
        assert hidden.update_l2 == pytest.approx(visible.update_l2, rel=1e-5)
        assert hidden.head == pytest.approx(visible.head, rel=1e-6)
        assert hidden.accepted == visible.accepted == 8
        assert hidden.bytes_up > visible.bytes_up


@pytest.mark.slow
def test_what_travels_beside_the_update_is_masked_and_summed_with_it(tmp_path):
    """SCAFFOLD's control variates through masks and shares, over rounds that build on them, as without either."""
    settings = {
        "strategy": {"kind": "scaffold"}, "training.optimizer": "sgd", "stage": GRID,
        "round.sampling": "fixed", "round.cohort": 6,
    }  # fmt: skip
    masks, told, _ = play(tmp_path / "a", {**MASKS, **settings, "stage": MASKS["stage"]})
    shares, _, _ = play(tmp_path / "b", {**SHARES, **settings, "stage": MASKS["stage"]})
    _, seen, _ = play(tmp_path / "c", {**settings, "round.rounds": 3})
    assert masks == shares
    for hidden, visible in zip(rounds(told), rounds(seen), strict=True):
        assert hidden.update_l2 == pytest.approx(visible.update_l2, rel=1e-5)


@pytest.mark.slow
def test_what_is_stored_of_a_hidden_round_names_nobodys_update(tmp_path):
    play(tmp_path, MASKS)
    assert not list((tmp_path / "journal").iterdir())
    with RunStore(tmp_path) as store:
        claims = store.run()["facts"]["plan"]["claims"]
    assert "hidden" in claims[0]
    assert not any("private" in claim for claim in claims[:3])


@pytest.mark.long(sample=2)
@pytest.mark.slow
@pytest.mark.parametrize("settings", [MASKS, SHARES, PRIVATE, GROUPED], ids=["masks", "shares", "private", "grouped"])
def test_pool_and_inproc_agree_to_the_byte(tmp_path, settings):
    one, told_one, _ = play(tmp_path / "a", {"simulation.engine": "inproc", **settings})
    two, told_two, _ = play(tmp_path / "b", {"simulation.engine": "pool", **settings})
    assert one == two
    assert story(told_one) == story(told_two)


@pytest.mark.slow
def test_devices_that_leave_on_the_way_are_not_in_the_sum_or_are(tmp_path):
    _, told, _ = play(tmp_path, {**MASKS, "data.devices": 20, "simulation.step_dropout": 0.06})
    for r in rounds(told):
        accepted = [e.device for e in told if isinstance(e, events.Accepted) and e.round == r.round]
        lost = [e.device for e in told if isinstance(e, events.Lost) and e.round == r.round]
        assert r.met
        assert len(accepted) == r.accepted >= 14
        assert len(lost) == r.lost
        assert not set(accepted) & set(lost)
    assert sum(r.lost for r in rounds(told)) > 0


def _poisoned(monkeypatch, liars):
    """Some devices send the largest residues there are, whatever their clip and grid say."""
    honest = device.client.start

    def start(secagg, sid, me, secret, body, head, entropy):
        if me in liars:
            body = np.full_like(body, 2 ** (secagg.bits - 2))
        return honest(secagg, sid, me, secret, body, head, entropy)

    monkeypatch.setattr(device.client, "start", start)


def _loss(told):
    """Held-out loss per token of the last federated model; the toy's own floor is 1."""
    last = [e for e in told if isinstance(e, events.Evaluated) and e.model == "federated"][-1]
    return sum(last.nll.values()) / sum(last.tokens.values())


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_two_poisoners_spoil_a_sum_and_not_the_rule_between_groups(tmp_path, monkeypatch, rule):
    single = {**GROUPED, "merge": {"kind": "secure_sum"}, "strategy": {"kind": "fedavg"}}
    groups = {**single, "merge": {**GROUPED["merge"], "rule": rule}}
    honest = [_loss(play(tmp_path / f"honest {i}", s)[1]) for i, s in enumerate((single, groups))]
    assert honest[1] == pytest.approx(honest[0], rel=0.05)
    _poisoned(monkeypatch, {"d00003", "d00011"})
    spoilt = [_loss(play(tmp_path / f"spoilt {i}", s)[1]) for i, s in enumerate((single, groups))]
    assert spoilt[0] > 1.5 * honest[0]
    assert spoilt[1] < 1.1 * honest[1]


@pytest.mark.slow
def test_a_group_without_a_sum_costs_its_devices_their_place_only(tmp_path):
    """As long as more groups than twice the poisoners have one, and all together are enough for a round."""
    leaving = {**GROUPED, "merge": {**GROUPED["merge"], "byzantine": 1}, "simulation.step_dropout": 0.08}
    _, told, _ = play(tmp_path / "a", {**leaving, "data.devices": 40, "round.minimum": 0.5})
    assert all(r.met for r in rounds(told))
    for r in rounds(told):
        accepted = [e.device for e in told if isinstance(e, events.Accepted) and e.round == r.round]
        lost = [e.device for e in told if isinstance(e, events.Lost) and e.round == r.round]
        assert sorted(accepted + lost) == [f"d{i:05d}" for i in range(40)]
        assert len(accepted) == r.accepted >= 20
    assert any(e.code == "E-SECAGG-FEW" for e in told if isinstance(e, events.Lost))
    with pytest.raises(RoundError):  # three groups of five would do for the rule, not for the round
        play(tmp_path / "b", {**leaving, "simulation.step_dropout": 0.1, "round.minimum": 0.9})


@pytest.mark.slow
def test_hidden_groups_send_by_rungs_of_their_own(tmp_path):
    """Fast devices are not held back by slow ones, and a sum of each group is all that the server has."""
    models, told, _ = play(tmp_path / "a", LADDER)
    assert all(r.met and r.accepted == 20 for r in rounds(told))
    accepted = [e for e in told if isinstance(e, events.Accepted)]
    for r in rounds(told):
        rungs = {e.rung for e in accepted if e.round == r.round}
        assert 2 <= len(rungs) <= 3
        for rung in rungs:
            assert sum(e.rung == rung for e in accepted if e.round == r.round) >= 4  # 12 in three groups
    _, alone, _ = play(tmp_path / "b", {**LADDER, "adaptive.groups": 1})
    slowest = {e.rung for e in alone if isinstance(e, events.Accepted)}
    assert slowest == {max(e.rung for e in accepted)}
    assert _loss(told) < _loss(alone)
    pool, other, _ = play(tmp_path / "c", {**LADDER, "simulation.engine": "pool"})
    assert pool == models
    assert story(other) == story(told)


@pytest.mark.slow
def test_a_hidden_ladder_of_one_rung_is_that_codec(tmp_path):
    """To the byte: sums of integers on one grid, whatever the groups."""
    ladder, _, _ = play(tmp_path / "a", {**LADDER, "adaptive.ladder": ["masked 8 bit"]})
    grid = [
        {"kind": "rotate"},
        {"kind": "clamp", "linf": 4.0 * 8.0 / 50**0.5},  # the toy has 50 parameters
        {"kind": "quantize", "bits": 8, "grid": "shared"},
        {"kind": "wrap"},
    ]
    plain = {k: v for k, v in LADDER.items() if k not in ("codec", "adaptive.deadline_s")}
    fixed, _, _ = play(tmp_path / "b", {**plain, "stage": [*LADDER["stage"], *grid]})
    assert ladder == fixed


@pytest.mark.slow
def test_a_group_of_a_hidden_ladder_may_be_lost(tmp_path):
    """Its devices lose their place in the round and keep their memory; the others count, if they are enough."""
    _, told, _ = play(tmp_path, {**LADDER, "simulation.step_dropout": 0.08, "round.minimum": 0.45, "round.rounds": 6})
    met = [r for r in rounds(told) if r.met]
    assert met
    assert any(r.accepted < 20 for r in met)
    assert all(r.accepted >= 9 for r in met)
    assert all(r.code == "E-SECAGG-FEW" for r in rounds(told) if not r.met)


@pytest.mark.slow
def test_too_many_leaving_abandon_the_round_by_name(tmp_path):
    with pytest.raises(RoundError):
        play(tmp_path, {**MASKS, "simulation.step_dropout": 0.5, "round.rounds": 4})
    with RunStore(tmp_path) as store:
        told = store.events("round_finished")
        assert {e.code for e in told} == {"E-SECAGG-FEW"}
        assert not any(e.met for e in told)
        assert len({e.model for e in told}) == 1  # the model did not move


@pytest.mark.slow
@pytest.mark.parametrize("settings", [MASKS, SHARES], ids=["masks", "shares"])
def test_copies_and_delays_change_nothing(tmp_path, settings):
    clean, _, _ = play(tmp_path / "a", settings)
    twice, _, _ = play(tmp_path / "b", settings, wrap=lambda c: Faulty(c, lambda device, n: ScriptedFault(copies=2)))
    script = lambda device, n: ScriptedFault(delay_s=float((7 * int(device[1:]) + n) % 11))  # noqa: E731
    mixed, _, _ = play(tmp_path / "c", settings, wrap=lambda c: Faulty(c, script))
    assert clean == twice == mixed


@pytest.mark.slow
def test_damage_costs_a_device_its_place_only(tmp_path):
    script = lambda device, n: ScriptedFault(corrupt=device == "d00001" and n % 5 == 2)  # noqa: E731
    _, told, _ = play(tmp_path, MASKS, wrap=lambda c: Faulty(c, script))
    assert all(r.met and r.accepted >= 7 for r in rounds(told))
    assert {e.device for e in told if isinstance(e, events.Lost)} == {"d00001"}


class _Lying(Faulty):
    """Devices whose messages of secure aggregation ``lie`` changes, and which sign that; None: it never arrives."""

    def __init__(self, inner, liars, lie, monkeypatch):
        super().__init__(inner, lambda device, n: ScriptedFault())
        self._liars, self._lie = liars, lie
        self._signers, honest = {}, device.client.step

        def step(secagg, state, raw, registry):
            after, answer = honest(secagg, state, raw, registry)
            roster = getattr(state, "roster", None) or getattr(after, "roster", b"")
            if roster:
                self._signers[state.device] = (state.own.identity, roster)
            return after, answer

        monkeypatch.setattr(device.client, "step", step)

    def receive(self, timeout_s):
        item = super().receive(timeout_s)
        if not isinstance(item, Arrived) or item.device not in self._liars:
            return item
        step = frame.load(item.frame)
        if not isinstance(step, frame.Step):
            return item
        said = self._lie(step.round, messages.load_secagg_message(step.body))
        if said is None:
            return Absent(item.device, "dropped", item.at_s)
        if isinstance(said, messages.SharesMessage | messages.RevealedMessage):
            said = _signed(item.device, said, *self._signers[item.device])
        body = frame.dump(msgspec.structs.replace(step, body=messages.dump(said)))
        return dataclasses.replace(item, frame=body)


def _signed(name, said, identity, roster):
    if isinstance(said, messages.SharesMessage):
        digest = messages.shares_digest(roster, name, messages.boxes_digest(said.boxes))
    else:
        digest = messages.revealed_digest(roster, name, said.seeds, said.keys)
    return msgspec.structs.replace(said, signature=sign.sign(identity, digest))


def _reveals_wrong_shares(number, said):
    if not isinstance(said, messages.RevealedMessage):
        return said
    return msgspec.structs.replace(said, seeds={d: bytes(33) for d in said.seeds})


def _deals_wrong_shares_and_vanishes(number, said):
    """In the second round."""
    if number == 1 and isinstance(said, messages.SharesMessage):
        return msgspec.structs.replace(said, boxes={d: box[:-64] + bytes(64) for d, box in said.boxes.items()})
    return None if number == 1 and isinstance(said, messages.RevealedMessage) else said


@pytest.mark.slow
def test_devices_that_reveal_wrong_shares_are_told_of_and_change_nothing(tmp_path, monkeypatch):
    """Two of eight, apart from each other in the order, in every round."""
    liars = {"d00001", "d00005"}
    honest, _, _ = play(tmp_path / "a", MASKS)
    sums, told, _ = play(tmp_path / "b", MASKS, wrap=lambda c: _Lying(c, liars, _reveals_wrong_shares, monkeypatch))
    assert sums == honest
    assert all(r.met and r.accepted == 8 for r in rounds(told))
    flagged = [e for e in told if isinstance(e, events.Flagged)]
    assert {(e.device, e.round) for e in flagged} == {(d, r) for d in liars for r in range(3)}
    assert {e.code for e in flagged} == {"E-SECAGG-REVEAL"}
    with RunStore(tmp_path / "b") as store:
        rows = {row["device"]: row["flagged"] for row in summary.build(store)["per_device"]}
    assert {d: set(rounds_) for d, rounds_ in rows.items() if rounds_} == {d: {"0", "1", "2"} for d in liars}


@pytest.mark.slow
def test_a_device_that_deals_wrong_shares_and_vanishes_costs_one_round_and_is_named(tmp_path, monkeypatch):
    liar = _deals_wrong_shares_and_vanishes
    _, told, _ = play(tmp_path, MASKS, wrap=lambda c: _Lying(c, {"d00003"}, liar, monkeypatch))
    assert [(r.met, r.code) for r in rounds(told)] == [(True, None), (False, "E-SECAGG-FEW"), (True, None)]
    named = [(e.device, e.round, e.code) for e in told if isinstance(e, events.Lost)]
    assert named == [("d00003", 1, "E-SHARE")]


@pytest.mark.parametrize(
    "settings", [PRIVATE, {**PRIVATE, "merge": {"kind": "shared_sum"}}, {**PRIVATE, "privacy": "local_dp", **OPEN}],
    ids=["masks", "shares", "local"],
)  # fmt: skip
@pytest.mark.slow
def test_losses_travel_under_the_noise_of_the_devices(tmp_path, settings):
    noised = {**settings, "metrics": "sum", "eval.on_devices": True, "dp.epsilon": 0.0, "dp.noise_multiplier": 0.02}
    _, told, _ = play(tmp_path, noised)
    found = [e for e in told if isinstance(e, events.RoundFinished)]
    assert all(e.met for e in found)
    bare = {**OPEN, "privacy": "none", "stage": [], "eval.on_devices": True, "round.rounds": 1}
    _, plain, _ = play(tmp_path / "plain", bare)
    (exact,) = [e for e in plain if isinstance(e, events.RoundFinished)]
    recipe = make_recipe(noised)
    plan = compile(recipe, ToyTrainer(recipe).spec, 8, BUILT_IN)
    for name in ("loss_first", "loss_last", "held_out", "held_share"):
        noise = plan.metric_noise(name)
        assert 0.0 < noise < 3.0
        assert 0.0 < abs(found[0].head[name] - exact.head[name]) < 6 * noise, name


@pytest.mark.slow
def test_epsilon_grows_to_the_budget_and_the_ledger_says_the_same(tmp_path):
    _, told, _ = play(tmp_path, PRIVATE)
    spent = [r.epsilon for r in rounds(told)]
    assert 0 < spent[0] < spent[1] < spent[2] <= 20.0
    assert spent[2] > 18.0  # the budget is used
    with RunStore(tmp_path) as store:
        charges = store.charges()
    assert [c.round for c in charges] == [0, 1, 2]
    assert ledger.spent_epsilon(charges, 1e-5) == pytest.approx(spent[2])


@pytest.mark.slow
def test_the_round_that_would_exceed_the_budget_is_not_played(tmp_path, monkeypatch):
    """Had a plan too little noise for all rounds, the run stops, its last model stays, and a restart stops at once."""
    monkeypatch.setattr(private, "_derived_multiplier", lambda dp, _: (0.5, ledger.Budget(dp.epsilon, dp.delta)))
    monkeypatch.setattr(acceptance, "TOLERANCE", 10.0)  # else devices refuse such a plan
    settings = {**PRIVATE, "round.rounds": 4}
    with pytest.raises(BudgetError) as caught:
        play(tmp_path, settings)
    assert caught.value.exit_status == 7
    with RunStore(tmp_path) as store:
        done = [e for e in store.events("round_finished") if isinstance(e, events.RoundFinished)]
        charges = store.charges()
    assert 0 < len(done) < 4
    assert len(charges) == len(done)
    assert done[-1].epsilon <= 20.0
    from toy_recipe import make_recipe

    from edgewise.apps.simulate import simulation

    with pytest.raises(BudgetError):
        simulation.run(
            make_recipe(settings), out=tmp_path, recipe_dir=tmp_path, extensions=["toy"], resume=True, report=False
        )


def test_a_round_is_told_after_its_commit(tmp_path, monkeypatch):
    """A round that is played again has other noise: whoever saw both figures would know more than was charged."""
    from toy_recipe import make_recipe

    from edgewise.apps.simulate import simulation

    told, commit = [], RunStore.commit

    def fails(store, checkpoint, *rest):
        if checkpoint.next_round:
            raise OSError("power cut")
        commit(store, checkpoint, *rest)

    monkeypatch.setattr(RunStore, "commit", fails)
    with pytest.raises(OSError, match="power cut"):
        simulation.run(
            make_recipe(CENTRAL), out=tmp_path, recipe_dir=tmp_path, extensions=["toy"], report=False,
            sinks=[told.append],
        )  # fmt: skip
    assert any(isinstance(event, events.RoundStarted) for event in told)
    assert not any(isinstance(event, events.RoundFinished) for event in told)


@pytest.mark.slow
def test_a_charge_outlives_a_crash_before_the_release(tmp_path, monkeypatch):
    """The round that goes on is the same session with the same noise: one charge, and the model of a quiet run. Also
    where the noise would be calibrated to other last digits now, as by another processor."""
    from toy_recipe import make_recipe

    from edgewise.apps.simulate import simulation
    from edgewise.core.pipeline import Pipeline

    def crash(*_: object) -> None:
        raise OSError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "release", crash)
        with pytest.raises(OSError, match="power cut"):
            play(tmp_path, PRIVATE)
    with RunStore(tmp_path) as store:
        assert [c.round for c in store.charges()] == [0]
        assert store.load().next_round == 0
    again = {"out": tmp_path, "recipe_dir": tmp_path, "extensions": ["toy"], "report": False}
    calibrated = private.accountant.calibrate
    with monkeypatch.context() as patched:
        patched.setattr(private.accountant, "calibrate", lambda *of: calibrated(*of) * (1.0 + 1e-9))
        simulation.run(make_recipe(PRIVATE), resume=True, **again)
    with RunStore(tmp_path) as store:
        assert [c.round for c in store.charges()] == [0, 1, 2]
        models = store.models()
    play(tmp_path / "quiet", PRIVATE)
    with RunStore(tmp_path / "quiet") as store:
        assert store.models() == models


@pytest.mark.slow
@pytest.mark.parametrize("settings", [PRIVATE, CENTRAL], ids=["distributed_dp", "central_dp"])
def test_who_cannot_train_sends_zeros_and_does_not_show(tmp_path, monkeypatch, settings):
    monkeypatch.setenv("TOY_NAN", "d00002")
    monkeypatch.setenv("TOY_FAIL", "d00003")
    models, told, _ = play(tmp_path / "a", {**settings, "compare.local_only": False})
    assert all((r.accepted, r.lost) == (8, 0) for r in rounds(told))
    assert not any(isinstance(e, events.Lost) for e in told)
    monkeypatch.delenv("TOY_NAN")
    monkeypatch.delenv("TOY_FAIL")
    assert play(tmp_path / "b", {**settings, "compare.local_only": False})[0] != models


@pytest.mark.slow
def test_central_noise_is_what_the_budget_asks_for(tmp_path):
    _, told, _ = play(tmp_path, CENTRAL)
    assert [r.met for r in rounds(told)] == [True] * 3
    assert rounds(told)[-1].epsilon == pytest.approx(20.0, rel=2e-3)


@pytest.mark.slow
def test_cyclic_groups_cost_less(tmp_path):
    cyclic = {**PRIVATE, "data.devices": 16, "round.sampling": "cyclic", "round.cohort": 8, "round.rounds": 4}
    _, told, _ = play(tmp_path, cyclic)
    spent = [r.epsilon for r in rounds(told)]
    assert spent[0] == spent[1] < spent[2] == spent[3]
    who = [{e.device for e in told if isinstance(e, events.Accepted) and e.round == n} for n in range(4)]
    assert who[0] == who[2]
    assert who[1] == who[3]
    assert not who[0] & who[1]


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("E-COMBO", {"privacy": "none"}),
        ("E-COMBO", {"merge": {"kind": "sum"}}),
        ("E-NMIN", {"round.minimum": 0.1}),
        ("E-NOT-INTEGER", {"stage": GRID[:2]}),
        ("E-NOT-INTEGER", {"stage": [{"kind": "top_k", "fraction": 0.1}, {"kind": "wrap"}]}),
    ],
)
def test_words_and_merges_must_agree(tmp_path, code, change):
    with pytest.raises(EdgewiseError) as caught:
        play(tmp_path, {**MASKS, **change})
    assert caught.value.code == code
    assert caught.value.fix


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("E-MISSING", {"dp.epsilon": 0.0}),
        ("E-MISSING", {"dp.delta": 0.0}),
        ("E-MISSING", {"dp.clip_l2": 0.0}),
        ("E-COMBO", {"privacy": "hidden"}),
        ("E-COMBO", {"merge": {"kind": "sum"}}),
        (
            "E-STATS",
            {
                "metrics": "sum",
                "privacy": "local_dp",
                "merge": {"kind": "sum"},
                "dp.unit": "example",
                "dp.sample_rate": 0.1,
            },
        ),
        ("E-WEIGHT", {"stage": [{"kind": "weigh"}]}),
        ("E-TOPK-SECAGG", {"stage": [{"kind": "top_k", "fraction": 0.1}]}),
        ("E-NMIN", {"trust.malicious_fraction": 0.5, "round.minimum": 0.25}),
    ],
)
def test_private_recipes_that_do_not_compose(tmp_path, code, change):
    with pytest.raises(EdgewiseError) as caught:
        play(tmp_path, {**PRIVATE, **change})
    assert caught.value.code == code


@pytest.mark.slow
def test_noise_is_fresh_in_every_round(tmp_path):
    """Two rounds of updates of zero: what the model moves by is noise, and another one each time."""
    _, told, _ = play(tmp_path, {**PRIVATE, "training.lr": 1e-12, "strategy": {"kind": "fedavg"}})
    moved = [r.update_l2 for r in rounds(told)]
    assert len(set(moved)) == 3
    assert np.mean(moved) > 0.1


@pytest.mark.parametrize(
    "change",
    [
        {"dp.amplification": "poisson"},
        {**CENTRAL, "dp.amplification": "poisson"},
        {"privacy": "local_dp", "merge": {"kind": "sum"}, "dp.amplification": "poisson"},
    ],
)
def test_amplification_that_others_can_see_is_refused(tmp_path, change):
    with pytest.raises(EdgewiseError) as caught:
        play(tmp_path, {**PRIVATE, **change})
    assert caught.value.code == "E-AMP-VISIBLE"


@pytest.mark.slow
def test_poisson_cohorts_amplify_for_readers_only(tmp_path):
    poisson = {**CENTRAL, "round.sampling": "poisson", "round.cohort": 4, "round.minimum": 0.0}
    play(tmp_path / "a", {**poisson, "dp.amplification": "poisson"})
    play(tmp_path / "b", CENTRAL)
    cards = []
    for name in "ab":
        with RunStore(tmp_path / name) as store:
            cards.append(store.run()["facts"]["plan"]["privacy"]["card"])
    assert [c["against_server"] for c in cards] == [None, None]
    noise = [float(c["noise"].split(",")[1].split()[0]) for c in cards]
    assert noise[0] < noise[1]  # the same budget needs less noise


@pytest.mark.slow
def test_correlated_noise_of_a_run_costs_what_is_promised_whatever_happens_to_its_rounds(tmp_path):
    """Cohorts in turns: the whole run is charged once, before its first model, and stays within the budget."""
    turns = {**CENTRAL, "round.sampling": "cyclic", "round.cohort": 4, "round.rounds": 6}
    _, told, _ = play(tmp_path / "a", {**turns, "dp.noise": "correlated"})
    spent = [r.epsilon for r in rounds(told)]
    assert len(set(spent)) == 1
    assert spent[0] == pytest.approx(20.0, rel=1e-3)
    with RunStore(tmp_path / "a") as store:
        card = store.run()["facts"]["plan"]["privacy"]["card"]
        assert card["of_release"] == pytest.approx(20.0, rel=1e-3)
        assert "take back" in card["noise"]
        assert card["sampling"] == "2 groups take turns, so a device is in one of 2 rounds, which amplifies nothing"
        assert card["rounds_each"] == 3
    _, independent, _ = play(tmp_path / "b", turns)
    assert rounds(independent)[0].epsilon < spent[0]


@pytest.mark.slow
def test_an_adaptive_clip_moves_and_costs_the_same(tmp_path):
    settings = {**CENTRAL, "data.devices": 60, "dp.clip_l2": 0.5, "dp.adaptive_clip": True, "round.rounds": 4}
    _, told, _ = play(tmp_path / "a", settings)
    _, fixed, _ = play(tmp_path / "b", {**settings, "dp.adaptive_clip": False})
    assert rounds(told)[-1].epsilon == pytest.approx(rounds(fixed)[-1].epsilon)
    with RunStore(tmp_path / "a") as store:
        (clip,) = (float(x[0]) for path, x in flat(store.load().memory).items() if path.endswith("/clip"))
    assert clip > 0.55  # all updates are longer than the first clip
    assert all("below" in r.head for r in rounds(told))


@pytest.mark.parametrize(
    ("code", "change"), [("E-COMBO", {"privacy": "distributed_dp"}), ("E-VALUE", {"dp.epsilon": 0.5})]
)
def test_adaptive_clips_that_cannot_be(tmp_path, code, change):
    with pytest.raises(EdgewiseError) as caught:
        play(tmp_path, {**CENTRAL, "dp.adaptive_clip": True, **change})
    assert caught.value.code == code


@pytest.mark.slow
@pytest.mark.parametrize("settings", [MASKS, SHARES], ids=["masks", "shares"])
def test_simulated_devices_draw_their_cohorts_and_runs_repeat(tmp_path, settings):
    """Sums over cohorts that devices verify: with one seed the same models, and the cohorts of the beacon's draw."""
    verified = {
        **settings, "data.devices": 12, "round.sampling": "cyclic", "round.cohort": 6, "round.minimum": 1.0,
        "trust.malicious_fraction": 0.1, "trust.cohorts": "verified",
    }  # fmt: skip
    models, told, _ = play(tmp_path / "a", verified)
    again, repeated, _ = play(tmp_path / "b", {**verified, "simulation.engine": "pool"})
    other, _, _ = play(tmp_path / "c", {**verified, "trust.cohorts": "server"})
    assert models == again
    assert models != other
    assert story(told) == story(repeated)
    cohorts = [{e.device for e in told if isinstance(e, events.Accepted) and e.round == r} for r in range(3)]
    assert [len(cohort) for cohort in cohorts] == [6, 6, 6]
    assert cohorts[0] | cohorts[1] == {f"d{i:05d}" for i in range(12)}
    assert cohorts[2] == cohorts[0]
