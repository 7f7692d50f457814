"""Count the bytes of the frames that a device sends and receives in a round, with masks, signatures and addresses.

The counts are those of a round without lost devices. Models, deltas and positions are blobs, which ``plan.explain``
counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import ceil
from typing import NamedTuple

from edgewise.codecs.wire import pack
from edgewise.core.frame import Contribution, Draw, Invite, Step, dump
from edgewise.core.keys import KEY_BYTES
from edgewise.plan.plan import Plan
from edgewise.secagg import sizes, two_server

_HEX = "0" * 64  # It stands for any digest.
_NAME = "0" * 32  # It stands for the id of any enrolled device.


class PlannedTraffic(NamedTuple):
    """Bytes of one device in one round: ``up`` for all frames that it sends, ``down`` for all that it receives."""

    up: float
    down: float


def traffic(plan: Plan, names: Sequence[str] = ()) -> tuple[PlannedTraffic, ...]:
    """Count the bytes of a contribution, for each phase of the pipeline.

    ``up`` is exact where the packed size is (``pack.size_bytes``) and all names have one length.

    Args:
        names: names of the devices, which frames contain. Unknown ones are ``device-000`` and so on.
    """
    n = plan.sampling.goal if plan.sampling.kind != "poisson" else plan.sampling.expected
    known = list(names) or [f"device-{i:03d}" for i in range(plan.sampling.population)]
    cohort = [known[i * len(known) // n] for i in range(n)]
    return tuple(_phase_traffic(plan, phase, cohort) for phase in range(len(plan.pipelines)))


def largest_upload(plan: Plan) -> float:
    """Return the bytes of all frames that a device sends in one attempt at a round, by the largest cohort and rung.

    They are expected bytes where the size of a packed update varies.
    """
    firsts = [plan.turns.first(phase) for phase in range(len(plan.pipelines))]
    if plan.hides is None or plan.shared:
        payloads = [pack.size_bytes(plan.at(r).encoded) for r in firsts] + list(plan.sizes)
        reports = [two_server.share_report_bytes(plan.secagg(r)) for r in firsts] if plan.shared else []
        return max([*payloads, *reports]) + _contribution_overhead(_NAME)
    n = max(2, ceil(plan.sampling.largest / plan.hides.groups))
    names = [f"{i:032x}" for i in range(n)]
    rung = 0 if plan.rung_pipelines else None
    ups = [
        sizes.secagg_letter_bytes(plan.secagg(r, rung), names, partial(_secagg_frame_bytes, _NAME, rung))[0]
        for r in firsts
    ]
    named, _ = plan.secagg(firsts[0], rung).policy.shape(n)  # all neighbours' boxes failed
    return float(max(ups) + named * (len(_NAME) + 2))


def _secagg_frame_bytes(device: str, rung: int | None, body: bytes) -> int:
    """Count the bytes of a message of secure aggregation with its frame."""
    return len(dump(Step(run=_HEX, round=100, device=device, body=body, rung=rung)))


def _phase_traffic(plan: Plan, phase: int, cohort: Sequence[str]) -> PlannedTraffic:
    """Count the bytes of a device in one phase of the plan."""
    asked = _invitation_bytes(plan, phase)
    device = sorted(cohort, key=len)[len(cohort) // 2]
    encoded = plan.at(plan.turns.first(phase)).encoded
    if plan.hides is None:
        return PlannedTraffic(pack.size_bytes(encoded) + _contribution_overhead(device), asked)
    if plan.shared:
        return PlannedTraffic(
            two_server.share_report_bytes(plan.secagg(plan.turns.first(phase))) + _contribution_overhead(device), asked
        )
    rung = 0 if plan.rung_pipelines else None
    framed = partial(_secagg_frame_bytes, device, rung)
    group = cohort[: max(2, ceil(len(cohort) / plan.hides.groups))]
    up, down = sizes.secagg_letter_bytes(plan.secagg(plan.turns.first(phase), rung), group, framed)
    return PlannedTraffic(up, asked + down)


def _contribution_overhead(device: str) -> int:
    """Return the bytes of a contribution's frame without its payload, for payloads above 64 KiB."""
    return len(dump(Contribution(run=_HEX, round=100, device=device, payload=memoryview(b"")))) + 3


def _invitation_bytes(plan: Plan, phase: int) -> float:
    """Return the bytes of an invitation, the mean over the rounds. The first round's names no earlier model."""
    first, later = (len(dump(_typical_invitation(plan, phase, known))) for known in (False, True))
    return (first + (plan.rounds - 1) * later) / plan.rounds


def _typical_invitation(plan: Plan, phase: int, known: bool) -> Invite:
    """Make an invitation of typical size. ``known``: the device has had a model of this run."""
    smaller = plan.delta_bytes is not None and plan.delta_bytes < plan.snapshot_bytes
    deltas = known and smaller
    return Invite(
        run=_HEX,
        round=100,
        spec=_HEX,
        model=_HEX,
        public=bytes(KEY_BYTES),
        accepted=99 if known else None,
        deadline_s=plan.sampling.deadline_s,
        rule=plan.rule(plan.turns.first(phase)),
        base=_HEX if deltas else None,
        deltas=(_HEX,) if deltas else (),
        support=_HEX if known and plan.at(plan.turns.first(phase)).encoded.announced else None,
        nonce=bytes(KEY_BYTES) if plan.hides is not None else None,
        draw=Draw(beacon=_HEX, key=bytes(KEY_BYTES)) if plan.contributors else None,
        clip=None if (clips := plan.clips(0)) is None else max(clips),
    )
