"""Devices that are killed, lose files and are lied to: what may never leave them is looked for in all that leaves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
from invited import invitation
from mortal_disk import Disk, Killed
from toy import ToyTrainer
from toy_recipe import make_recipe

from edgewise.core import frame, keys, vector
from edgewise.core.errors import REGISTRY
from edgewise.core.keys import Secrets
from edgewise.drivers.simulation.keys import simulated_trust
from edgewise.drivers.workers.devices import Devices
from edgewise.drivers.workers.held_models import Downloads
from edgewise.engine import device_state as states
from edgewise.engine.owner_budget import OwnerBudget
from edgewise.engine.trainer import registered
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.privacy.ledger import Budget
from edgewise.secagg import messages
from edgewise.secagg.client import Sharing, Signed, Waiting, roster_neighbours

ROOT = keys.root(11)
DP = {"metrics": "none", "dp.noise_multiplier": 4.0, "dp.delta": 1e-5, "dp.clip_l2": 4.0, "round.rounds": 3,
      "stage": [], "data.devices": 5, "compare.local_only": False}  # fmt: skip
RUNS = {
    "masks": {**DP, "privacy": "distributed_dp", "merge": {"kind": "secure_sum"}, "round.minimum": 0.6},
    "two servers": {**DP, "privacy": "distributed_dp", "merge": {"kind": "shared_sum"}, "round.minimum": 0.6},
    "local": {**DP, "privacy": "local_dp", "merge": {"kind": "sum"}},
}
NAMES = [f"d{i:05d}" for i in range(5)]
MODELS = [np.full(50, value, np.float32) for value in (0.0, 1.0)]
Session = tuple[int, int, int]  # round, nonce, model


@cache
def made(name: str) -> tuple[Plan, ToyTrainer]:
    """The plan and the trainer of a run."""
    recipe = make_recipe(RUNS[name])
    trainer = ToyTrainer(recipe)
    return compile(recipe, trainer.spec, 5, BUILT_IN), trainer


class Move(NamedTuple):
    """One thing that a server, or a disk, does.

    Attributes:
        kind: name of a method. session: round, nonce, model. who: is sent something. named: in it.
        which: of several. dies: before which durable operation of the answer, or before its frame leaves; None: not.
        gone: drops out of a round after its shares; empty: nobody. steps: after which an honest round ends. split: two
        devices hear of a list of survivors with one fewer. weak: dies once in every step, and is told again.
    """

    kind: str
    session: Session
    who: list[str]
    named: list[str]
    which: int
    dies: int | None
    gone: str
    steps: int
    split: bool
    weak: str


class Lying:
    """The server has all frames that left devices, makes of them what it likes, and sends it in any order."""

    name: ClassVar[str]
    moves: ClassVar[tuple[str, ...]] = ("invites", "says_again", "loses_states", "puts_back", "puts_back")
    told: ClassVar[Counter[tuple[str, str]]] = Counter()  # what was reached, by machine

    def __init__(self, budget: bool) -> None:
        """``budget``: the owner set one. Without, nothing but its state says what a device has answered."""
        self.budget = budget
        (self.plan, self.trainer), self.trust = made(self.name), simulated_trust(ROOT)
        self.disks = {device: Disk() for device in NAMES}
        self.older: dict[str, list[Any]] = defaultdict(list)
        self.drawn = 0
        self.sent: list[tuple[str, bytes]] = []
        self.updates: dict[tuple[str, int], set[bytes]] = defaultdict(set)
        self.said: dict[tuple[str, str, str], dict[str, Any]] = defaultdict(dict)  # session, kind, context: by device
        self.shown: dict[tuple[bytes, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.rosters: dict[str, tuple[bytes, dict[str, tuple[str, ...]], int]] = {}
        self.devices = {device: self.made(device) for device in NAMES}

    def play(self, moves: Iterable[Move]) -> None:
        """Make these moves; what leaves a device is checked as it leaves."""
        for move in moves:
            getattr(self, move.kind)(move)

    def made(self, device: str) -> Devices:
        downloads = Downloads(50, self.plan.downlink)
        digests = [vector.digest(vector.to_bytes(model)) for model in MODELS]
        for digest, model in zip(digests, MODELS, strict=True):
            downloads.put(digest, vector.to_bytes(model), keep=digests)
        disk = self.disks[device]
        budget = OwnerBudget(Budget(1e6, 1e-6), disk) if self.budget else None
        return Devices(self.plan, registered(self.trainer), disk, downloads, self.trust, self.fresh, budget=budget)

    def fresh(self, device: str, round: int, nonce: bytes) -> Secrets:
        """As on a real device: never the same twice."""
        self.drawn += 1
        return Secrets.of(keys.derive(ROOT, device, self.drawn))

    # -- what the server hears -----------------------------------------------------------------------------------

    def give(self, device: str, raw: bytes, dies: int | None = None) -> frame.Message | None:
        """Send a frame; its answer, if it left before the device died."""
        disk = self.disks[device]
        if disk.state is not None and not isinstance(_client(disk, device), Waiting | Signed):
            self.older[device].append(disk.state)
        self.sent.append((device, raw))
        disk.dies = dies
        try:
            answer = self.devices[device].answer(device, raw).frame
            if answer is not None:
                disk.operation()
        except Killed:
            answer = None
        if dies is not None:
            self.devices[device] = self.made(device)
        disk.dies = None
        if answer is None:
            return None
        message = frame.load(answer)
        self.heard(device, raw, message)
        return message

    def heard(self, device: str, asked: bytes, message: frame.Message) -> None:
        if isinstance(message, frame.Refusal):
            assert message.code in REGISTRY
            assert message.reason
        if isinstance(message, frame.Contribution):
            self.left(device, message.round, bytes(message.payload))
        if isinstance(message, frame.Step):
            body = messages.load_secagg_message(message.body)
            if isinstance(body, messages.Abort):
                assert body.code in messages.CODES
            if isinstance(body, messages.MaskedMessage):
                self.left(device, message.round, message.body)
            self.keep(device, asked, body)

    def left(self, device: str, number: int, update: bytes) -> None:
        """One update of a round, and its charge was on the disk before."""
        self.updates[device, number].add(update)
        assert len(self.updates[device, number]) == 1, "another update of the same round"
        if self.budget:
            charged = [c.round for c in self.disks[device].charged]
            assert number in charged, "an update without a charge"
            assert len(set(charged)) == len(charged)
        self.told[type(self).__name__, "updates"] += 1

    def keep(self, device: str, asked: bytes, body: Any) -> None:
        raise NotImplementedError

    # -- what happens to devices ---------------------------------------------------------------------------------

    def invite(self, session: Session, who: Iterable[str], dies: int | None = None) -> None:
        for device in who:
            self.give(device, frame.dump(self.invitation(session)), dies)

    def invitation(self, session: Session) -> frame.Invite:
        number, nonce, model = session
        changes = {"nonce": bytes([nonce]) * 32} if self.plan.hides else {}
        return invitation(self.plan, number, MODELS[model], accepted=number - 1 if number else None, **changes)

    def invites(self, move: Move) -> None:
        self.invite(move.session, move.who, move.dies)

    def says_again(self, move: Move) -> None:
        if move.which < len(self.sent):
            self.give(*self.sent[-1 - move.which], move.dies)

    def loses_states(self, move: Move) -> None:
        for device in move.who if self.budget else ():
            self.disks[device].state = None
            self.told_otherwise(device, NAMES)

    def puts_back(self, move: Move) -> None:
        """To a state from before its masked update; one of after it in the same session nobody can tell."""
        if self.budget and (older := self.older[move.weak]):
            self.disks[move.weak].state = older[-1 - move.which % len(older)]
            self.told_otherwise(move.weak, move.named)

    def told_otherwise(self, device: str, named: list[str]) -> None:
        """Send the invitations of all rounds again, as a server does then."""
        for number in range(2):
            for nonce in range(2 if self.plan.hides else 1):
                self.give(device, frame.dump(self.invitation((number, nonce, 0))))


def _client(disk: Disk, device: str) -> Any:
    state = disk.load(device)
    return state.client if isinstance(state, states.InSecAgg) else None


class Reports(Lying):
    """Updates leave with the answer to an invitation."""

    def keep(self, device: str, asked: bytes, body: Any) -> None:
        raise AssertionError("no device steps")


class Local(Reports):
    name = "local"


class TwoServers(Reports):
    name = "two servers"


class Masks(Lying):
    """The four steps after the invitation, each of any devices, of any session."""

    name = "masks"
    moves = (
        *Lying.moves, "puts_back", *["is_nearly_honest"] * 6, "shows_a_roster", "passes_boxes", "names_survivors",
        "shows_proofs",
    )  # fmt: skip

    def keep(self, device: str, asked: bytes, body: Any) -> None:
        message = frame.load(asked)
        at = self.asked.get(asked, ("", ""))
        if isinstance(body, messages.AdvertiseMessage):
            assert isinstance(message, frame.Invite)
            self.said[_sid(self.plan, message), "keys", ""][device] = body.keys
        elif isinstance(body, messages.SharesMessage):
            self.said[at[0], "shares", at[1]][device] = body
        elif isinstance(body, messages.MaskedMessage):
            self.said[at[0], "masked", at[1]][device] = body
        elif isinstance(body, messages.ConsistentMessage):
            self.said[at[0], "signed", at[1]][device] = body.signature
        elif isinstance(body, messages.RevealedMessage):
            self.revealed(device, at, body)

    def __init__(self, budget: bool) -> None:
        super().__init__(budget)
        self.asked: dict[bytes, tuple[str, str]] = {}  # frame -> session, and what it was about
        self.dealt: list[tuple[Session, str]] = []  # sessions, by roster, that came to the shares
        self.opened: dict[bytes, set[str]] = defaultdict(set)  # roster -> lists of survivors

    def revealed(self, holder: str, at: tuple[str, str], body: messages.RevealedMessage) -> None:
        """No device ever shows both secrets of another one, nor do all of them together."""
        roster, _, threshold = self.rosters[at[1].split("/")[0]]
        self.told[type(self).__name__, "revealed"] += 1
        self.opened[roster].add(at[1])
        assert len(self.opened[roster]) == 1, "two lists of survivors were opened"
        for kind, shares in (("seed", body.seeds), ("key", body.keys)):
            for dealer in shares:
                if dealer != holder:
                    self.shown[roster, dealer][kind].add(holder)
        for (shown, dealer), both in self.shown.items():
            assert not both["seed"] & both["key"], f"{holder} showed both secrets of {dealer}"
            opened = [kind for kind, holders in both.items() if len(holders) >= threshold]
            assert len(opened) < 2, f"mask and seed of {dealer} in {shown.hex()[:8]}"
        assert holder in body.seeds
        assert len(self.shown[roster, holder]["key"]) < threshold, "its seed is out, and so are its masks"

    # -- the four steps ------------------------------------------------------------------------------------------

    def tell(self, session: Session, to: str, message: Any, about: str, dies: int | None) -> None:
        sid = _sid(self.plan, self.invitation(session))
        raw = frame.dump(frame.Step(run=self.plan.run, round=session[0], device=to, body=messages.dump(message)))
        self.asked[raw] = sid, about
        self.give(to, raw, dies)

    def shows_a_roster(self, move: Move) -> None:
        known = self.said[_sid(self.plan, self.invitation(move.session)), "keys", ""]
        if roster := {d: known[d] for d in sorted(move.named) if d in known}:
            self.roster(move.session, move.who, roster, move.dies)

    def roster(self, session: Session, who: Iterable[str], roster: Any, dies: int | None = None) -> str:
        sid = bytes.fromhex(_sid(self.plan, self.invitation(session)))
        found = roster_neighbours(self.plan.secagg(session[0]), sid, roster)
        self.rosters[found[0].hex()] = found
        self.show(session, who, roster, found[0].hex(), dies)
        return found[0].hex()

    def show(self, session: Session, who: Iterable[str], roster: Any, about: str, dies: int | None) -> None:
        for device in who:
            self.tell(session, device, messages.RosterMessage(keys=roster), about, dies)

    def passes_boxes(self, move: Move) -> None:
        if (roster := self.some("shares", move)) is not None:
            self.boxes(move.session, roster, move.who, move.named, move.dies)

    def boxes(
        self,
        session: Session,
        roster: str,
        who: Iterable[str],
        named: Iterable[str],
        dies: int | None = None,
    ) -> None:
        dealt = self.said[_sid(self.plan, self.invitation(session)), "shares", roster]
        for device in who:
            boxes = {
                d: messages.DealtBox(box=dealt[d].boxes[device], all=messages.boxes_digest(dealt[d].boxes),
                                  signature=dealt[d].signature)
                for d in sorted(named) if d in dealt and device in dealt[d].boxes
            }  # fmt: skip
            self.tell(session, device, messages.BoxesMessage(boxes=boxes), roster, dies)

    def names_survivors(self, move: Move) -> None:
        if (roster := self.some("masked", move)) is not None:
            self.survivors(move.session, roster, move.who, move.named, move.dies)

    def survivors(
        self,
        session: Session,
        roster: str,
        who: Iterable[str],
        named: Iterable[str],
        dies: int | None = None,
    ) -> None:
        listed = tuple(sorted(named))
        for device in who:
            self.tell(session, device, messages.SurvivorsMessage(devices=listed), f"{roster}/{','.join(listed)}", dies)

    def shows_proofs(self, move: Move) -> None:
        if (about := self.some("signed", move)) is not None:
            self.proofs(move.session, about, move.who, move.named, move.dies)

    def proofs(
        self,
        session: Session,
        about: str,
        who: Iterable[str],
        named: Iterable[str],
        dies: int | None = None,
    ) -> None:
        signed = self.said[_sid(self.plan, self.invitation(session)), "signed", about]
        proofs = messages.ProofsMessage(signatures={d: signed[d] for d in sorted(named) if d in signed})
        for device in who:
            self.tell(session, device, proofs, about, dies)

    def some(self, kind: str, move: Move) -> str | None:
        """List what devices have said of this kind in a session."""
        sid = _sid(self.plan, self.invitation(move.session))
        about = sorted(at for (s, k, at), by in self.said.items() if (s, k) == (sid, kind) and by)
        return about[move.which % len(about)] if about else None

    def told_otherwise(self, device: str, named: list[str]) -> None:
        """Other boxes, so that other masks are on the same update."""
        client = _client(self.disks[device], device)
        for session, about in self.dealt:
            if isinstance(client, Sharing) and client.roster.hex() == about:
                self.boxes(session, about, [device], named)
        super().told_otherwise(device, named)

    def is_nearly_honest(self, move: Move) -> None:
        """So that the lies of other moves come at every step."""
        session, weak, dies = move.session, move.weak, move.dies
        sid, left = _sid(self.plan, self.invitation(session)), [d for d in NAMES if d != move.gone]

        def each(send: Callable[[list[str], int | None], None], to: list[str]) -> None:
            if dies is not None and weak in to:
                send([weak], dies)
            send(to, None)

        each(lambda to, dies: self.invite(session, to, dies), NAMES)
        if move.steps < 2 or not (known := self.said[sid, "keys", ""]):
            return
        keys = {d: known[d] for d in sorted(known)}
        about = self.roster(session, [], keys)
        each(lambda to, dies: self.show(session, to, keys, about, dies), NAMES)
        if move.steps > 2:
            self.dealt.append((session, about))
            each(lambda to, dies: self.boxes(session, about, to, NAMES, dies), left)
        masked = sorted(self.said[sid, "masked", about])
        lists = [(masked[:2], masked[:-1]), (masked[2:], masked)] if move.split else [(masked, masked)]
        for some, named in lists if move.steps > 3 else ():
            each(lambda to, dies, named=named: self.survivors(session, about, to, named, dies), some)  # type: ignore[misc]
            listed = f"{about}/{','.join(named)}"
            if move.steps > 4:
                each(lambda to, dies, listed=listed: self.proofs(session, listed, to, NAMES, dies), some)  # type: ignore[misc]


def _sid(plan: Plan, invite: frame.Invite) -> str:
    return plan.session(invite).hex()
