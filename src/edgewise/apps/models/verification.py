"""Verify a run: replay the stored released totals, and check the chained records.

    found = verify_run(Path("runs/demo-1a2b3c4d"))          # raises E-VERIFY at the first round that does not follow
    print("\n".join(verified.lines(found)))

Only the plan is trusted. It is compiled from the run's facts, whose digest is the run's id. Parts from outside edgewise
are those of installed packages that the facts name by digest, and those that are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgewise.apps.models.verified import Verified, counted
from edgewise.core.errors import EdgewiseError, StoreError
from edgewise.core.vector import Spec, Vector, digest, to_bytes
from edgewise.drivers import extension_packages
from edgewise.drivers.storage import charges as charge_rows
from edgewise.drivers.storage import round_record, run_record, witness
from edgewise.drivers.storage.run_record import RunRecord
from edgewise.engine import released
from edgewise.engine.released import BASE, DISTILLED, RoundRecord, replayed
from edgewise.plan.acceptance import planned
from edgewise.plan.catalogue import BUILT_IN, Catalogue
from edgewise.plan.facts import parse
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import from_plain
from edgewise.plan.retention import oldest_retained_round
from edgewise.privacy import ledger
from edgewise.strategies.base import State

ATTEMPTS = 5  # attempts to replay a run that drops old totals meanwhile
KIND = "replay it on the kind of machine that played it: bits are promised per kind of processor. Else {}"
FIX = "use a whole copy of the folder from a backup, or no model from this round on."


def verify_run(out: Path, chain: str = "", catalogue: Catalogue = BUILT_IN) -> Verified:
    """Verify the run in a folder, also while it is being played.

    Args:
        chain: a digest in which an earlier verification ended. The record has to pass through it.
        catalogue: your own parts, if the run has some.
    Raises:
        StoreError: E-VERIFY with the first round that does not follow. As ``run_record.read_run_record``.
        EdgewiseError: if the facts of the run give no plan.
    """
    for attempt in range(ATTEMPTS):
        record = run_record.read_run_record(out)
        try:
            return _verify_record(record, chain, catalogue)
        except EdgewiseError:
            if attempt == ATTEMPTS - 1 or run_record.read_run_record(out).run["next_round"] == record.run["next_round"]:
                raise
    raise AssertionError


def _verify_record(record: RunRecord, anchor: str, catalogue: Catalogue) -> Verified:
    """Replay a run from its record, line by line."""
    plan = _compiled_plan(record, catalogue)
    lines, links = _record_lines(record)
    charges, chain = _ledger_charges(record)
    next_round, played = record.run["next_round"], [line for line in lines if line.round != BASE]
    first = oldest_retained_round(next_round, record.run["window"])
    state: State | None = None
    files = 0
    for i, line in enumerate(lines):
        _check_line(record, plan, line, lines[i - 1] if i else None, charges, chain)
        files += _check_model_file(record, line)
        if line.round + 1 == first and record.run["window"] != 0:
            state = _state_after(record, plan, line)
        elif state is not None:
            state = _replay_round(record, plan, state, line)
    _check_completeness(record, charges, chain)
    if anchor and not any(link.startswith(anchor.lower()) for link in links):
        what = f"the record of {record.run['name']} does not pass through {anchor:.64}."
        raise StoreError("E-VERIFY", what, "the folder holds another history than the one that was verified then.")
    spend = plan.spend
    verdict = None if spend is None else ledger.verify_ledger(charges, spend.budget)
    if verdict is not None and not verdict.sound:
        raise _verification_error(
            record, _overdrawn_round(charges, plan), f"the privacy ledger does not hold: {verdict.problems[0]}."
        )
    replays = sum(line.released and line.round >= first for line in played) if state is not None else 0
    releases = sum(line.released for line in played)
    return Verified(
        run=record.run["id"],
        name=record.run["name"],
        rounds=max(0, next_round),
        released=releases,
        first=first,
        replayed=replays,
        server=plan.strategy.says,
        lines=len(lines),
        chain=links[-1],
        charges=len(charges),
        epsilon=None if verdict is None else verdict.epsilon,
        budget=None if spend is None else spend.budget.epsilon,
        files=files,
        model=lines[-1].model,
        open=_open_questions(plan, record, played, first, bool(anchor)),
        ok=bool(replays or not releases),
    )


def _compiled_plan(record: RunRecord, catalogue: Catalogue) -> Plan:
    """Compile the plan of the run's facts, and check that it is the run's."""
    facts, known = parse(record.run["facts"]["plan_facts"].encode()), record.run["id"]
    if facts.digest() != known:
        raise StoreError("E-VERIFY", f"{record.out} holds the facts of another run than {known:.12}.", FIX)
    parts = extension_packages.catalogue(facts.packages) if facts.packages else catalogue
    return planned(facts, Spec.of(record.run["facts"]["spec"]), parts)


def _record_lines(record: RunRecord) -> tuple[list[RoundRecord], list[str]]:
    """Read the lines of the record up to the newest checkpoint, and their digests."""
    link, lines, links = released.start(record.run["id"], record.run["instance"]), list[RoundRecord](), list[str]()
    for row, number in zip(record.rounds, range(BASE, record.run["next_round"]), strict=False):
        if row.round != number:
            raise _verification_error(record, number, "its line is missing from the record of rounds.")
        try:
            line = round_record.read_round_line(row)
        except (ValueError, TypeError, AttributeError):
            raise _verification_error(record, number, "its line in the record of rounds cannot be read.") from None
        link = released.link(link, line)
        if row.digest != link:
            raise _verification_error(
                record, number, "its line in the record of rounds is not the one that was written."
            )
        lines.append(line)
        links.append(link)
    if not record.rounds and record.run["next_round"] < 0:
        raise StoreError("E-RESUME", f"the run in {record.out} never began.", "start it again.")
    if len(lines) != record.run["next_round"] + 1 or len(lines) != len(record.rounds):
        raise _verification_error(record, len(lines) - 1, "the record of rounds does not end where the run has got to.")
    return lines, links


def _ledger_charges(record: RunRecord) -> tuple[list[ledger.LedgerEntry], list[str]]:
    """Read the charges of the privacy ledger, and the digests of its chain. Both end before the first wrong line."""
    link = ledger.first_ledger_link(record.run["id"], record.run["instance"])
    found, chain = list[ledger.LedgerEntry](), list[str]()
    for row in record.charges:
        try:
            entry = charge_rows.stored_charge(row)
        except (ValueError, TypeError, KeyError):
            break
        link = ledger.ledger_link(link, entry)
        if link != row.digest:
            break
        found.append(entry)
        chain.append(link)
    return found, [ledger.first_ledger_link(record.run["id"], record.run["instance"]), *chain]


def _check_line(
    record: RunRecord, plan: Plan, line: RoundRecord, before: RoundRecord | None,
    charges: Sequence[ledger.LedgerEntry], chain: Sequence[str],
) -> None:  # fmt: skip
    """Check that the tables agree with a round's line."""
    if not line.charges < len(chain) or chain[line.charges] != line.ledger:
        raise _verification_error(record, line.round, "the privacy ledger up to it is not the one that was written.")
    model = record.models.get(line.round + 1)
    if model is None or model.params != line.model:
        raise _verification_error(record, line.round, "the table of models names another model than its line.")
    if line.round == BASE:
        return
    if record.reported_models.get(line.round, line.model) != line.model:
        raise _verification_error(record, line.round, "its event names another model than its line.")
    if before is not None and not line.released and (line.model, line.step) != (before.model, before.step):
        raise _verification_error(record, line.round, "it released nothing, and the model changed.")
    if plan.spend is not None and line.released:
        event = plan.spend.events[plan.phase(line.round)]
        if not any(one.round == line.round and one.event == event for one in charges[: line.charges]):
            raise _verification_error(record, line.round, "its release is not charged in the privacy ledger.")


def _check_model_file(record: RunRecord, line: RoundRecord) -> int:
    """Check the file of a round's model if it is stored. Returns the number of files."""
    path = record.blobs.path(line.model)
    if not path.is_file():
        return 0
    _stored_bytes(record, line, line.model, "its model")
    return 1


def _state_after(record: RunRecord, plan: Plan, line: RoundRecord) -> State:
    """Return the state after a line, from which a replay starts."""
    params = _stored_vector(record, plan, line, line.model, "its model")
    if line.round == BASE:
        state = plan.strategy.init(params)
        if _state_digests(state) != (line.model, dict(line.slots)):
            raise _verification_error(record, line.round, "the optimizer does not start from the run's first model.")
        return state
    slots = {
        name: _stored_vector(record, plan, line, found, "its optimizer state") for name, found in line.slots.items()
    }
    return State(params, slots, line.step)


def _replay_round(record: RunRecord, plan: Plan, state: State, line: RoundRecord) -> State:
    """Replay a round."""
    if line.total is not None:
        mean = _stored_vector(record, plan, line, line.total, "its released total")
        beside = {name: _stored_vector(record, plan, line, found, f"its {name}") for name, found in line.beside.items()}
        state = replayed(plan, state, line, mean, beside)
    if (*_state_digests(state), state.round) != (line.model, dict(line.slots), line.step):
        what = "its released total gives another model than the one that was released."
        raise _verification_error(record, line.round, what, KIND.format(FIX))
    return state


def _state_digests(state: State) -> tuple[str, dict[str, str]]:
    """Compute the digests of a state's vectors."""
    return digest(to_bytes(state.params)), {name: digest(to_bytes(x)) for name, x in state.slots.items()}


def _stored_vector(record: RunRecord, plan: Plan, line: RoundRecord, name: str, what: str) -> Vector:
    """Read a stored vector. Raises StoreError(E-VERIFY) if it is none."""
    raw = _stored_bytes(record, line, name, what)
    try:
        return round_record.load_total(raw, plan.spec.dim)
    except ValueError:
        raise _verification_error(record, line.round, f"{what} is not of this run's layout.") from None


def _stored_bytes(record: RunRecord, line: RoundRecord, name: str, what: str) -> bytes:
    """Read stored bytes. Raises StoreError(E-VERIFY) if they are missing or damaged."""
    try:
        return record.blobs.get(name)
    except StoreError:
        gone = not record.blobs.path(name).exists()
        how = "is missing" if gone else "is not what was written"
        raise _verification_error(record, line.round, f"{what} {how} (blobs/{name}).") from None


def _check_completeness(record: RunRecord, charges: Sequence[object], chain: Sequence[str]) -> None:
    """Check that the database is as new as the witness, and its ledger complete to the last line."""
    if len(charges) < len(record.charges):
        number = record.charges[len(charges)].round
        raise _verification_error(
            record, number, f"line {len(charges)} of the privacy ledger is not the one that was written."
        )
    run = record.run
    now = witness.Witness(run["instance"], run["next_round"], record.checkpoint, len(charges), chain[-1])
    try:
        witness.check(record.out, record.witness, now, chain)
    except (StoreError, IndexError):
        what = f"run.db is not what {witness.NAME} has seen: rounds or charges after it were removed, or put back."
        raise _verification_error(record, min(record.witness.next_round, run["next_round"]), what) from None


def _overdrawn_round(charges: Sequence[ledger.LedgerEntry], plan: Plan) -> int:
    """Find the first round whose charge exceeds the budget."""
    assert plan.spend is not None
    for i, entry in enumerate(charges):
        if not ledger.verify_ledger(charges[: i + 1], plan.spend.budget).sound:
            return entry.round
    return charges[-1].round if charges else 0


def _verification_error(record: RunRecord, round: int, what: str, fix: str = FIX) -> StoreError:
    """Make the error that names the round and its fault."""
    where = "the model before the first round" if round == BASE else f"round {round}"
    return StoreError("E-VERIFY", f"{where} of {record.run['name']} does not follow: {what}", fix)


def _open_questions(
    plan: Plan, record: RunRecord, played: Sequence[RoundRecord], first: int, anchored: bool
) -> tuple[str, ...]:
    """List in sentences what a verification leaves open."""
    hidden = "nobody has single contributions of a hidden sum" if plan.promise.hidden else "contributions are not kept"
    sentences = [f"whether a total is the sum of what devices sent: {hidden}"]
    if plan.spend is not None:
        sentences.append(
            "whether the noise in a total has the size that the ledger counts: noise cannot be told from a sum"
        )
    if plan.downlink is not None:
        sentences.append("the compressed changes that devices downloaded: the models themselves are replayed")
    if from_plain(record.run["recipe"]).split.trains_rest:
        sentences.append("the rest of the model behind the cut, which sessions train: their activations are not kept")
    if n := sum(DISTILLED in line.beside for line in played):
        sentences.append(
            f"the training in {counted(n, 'distillation')} on the server: the models that came of it are recorded"
        )
    if dropped := sum(line.released and line.round < first for line in played):
        room = f"store.totals_mb = {record.run['recipe']['store']['totals_mb']:g}"
        sentences.append(f"the models of {counted(dropped, 'round')} before round {first}: {room} dropped their totals")
    if not anchored:
        sentences.append(
            "whether somebody rewrote the whole folder: keep the last digest elsewhere, and give it as --chain"
        )
    return tuple(sentences)
