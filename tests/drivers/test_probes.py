"""Probing devices for held-out losses: what is possible counts, who is silent is named, and the deadline holds."""

from __future__ import annotations

import numpy as np
import pytest
from mailbox_of import Mailbox
from toy_recipe import make_recipe

from edgewise.core import frame
from edgewise.core.errors import DataError, RoundError
from edgewise.core.vector import Spec
from edgewise.drivers.simulation.probes import Probes
from edgewise.engine.ports import Absent, Arrived
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile as compile_plan

DEVICES = tuple(f"d{i}" for i in range(6))
SPEC = Spec.of([("w", (20,), "float32")])
PLAN = compile_plan(make_recipe({"stage": [{"kind": "weigh", "cap": 10}]}), SPEC, len(DEVICES), BUILT_IN)
DIRTY = "\x1b[31m\r\n\u202e" + "A" * 60_000


def evaluate(*script):
    mailbox = Mailbox(script)
    event = Probes(mailbox, PLAN, DEVICES, lambda: 0.0).evaluate("base", -1, np.zeros(20, np.float32))
    return event, mailbox


def measurement(device, at_s=1.0, nll=None, tokens=5, run=""):
    nll = 2.0 * tokens if nll is None else nll
    message = frame.Measurement(run=run or PLAN.run, round=-1, device=device, nll=nll, tokens=tokens)
    return Arrived(device, frame.dump(message), at_s)


def refusal(reason, device="d0", at_s=1.0):
    message = frame.Refusal(run=PLAN.run, round=-1, device=device, code="E-NAN", reason=reason)
    return Arrived(device, frame.dump(message), at_s)


@pytest.mark.parametrize(
    ("nll", "tokens", "run"),
    [
        (float("inf"), 5, ""),
        (float("nan"), 5, ""),
        (-1.0, 5, ""),
        (1.0, -5, ""),
        (1.0, 5, "x"),
        (1e300, 5, ""),
        (1.0, 0, ""),
        (1.0, 2**63, ""),
    ],
)
def test_impossible_measurements_are_left_out(nll, tokens, run):
    event, _ = evaluate(measurement("d0", nll=nll, tokens=tokens, run=run), measurement("d1", nll=10.0))
    assert event.nll == {"d1": 10.0}


def test_an_evaluation_that_nobody_can_do_says_why():
    with pytest.raises(DataError, match=r"E-NAN.*held-out loss is nan"):
        evaluate(refusal("the held-out loss is nan"))


def test_an_evaluation_closes_at_the_deadline_of_rounds_and_names_who_did_not_answer():
    late = PLAN.sampling.deadline_s + 1.0
    event, _ = evaluate(
        measurement("d0"), Absent("d1", "dropped", 2.0), refusal("no text", "d2", 3.0), measurement("d3", tokens=0),
        measurement("d4", late),
    )  # fmt: skip
    assert event.nll == {"d0": 10.0}
    assert event.missing == {"d1": "dropped", "d2": "E-NAN", "d4": "late", "d5": "late"}
    event, mailbox = evaluate(*(measurement(d) for d in DEVICES[1:]))
    assert event.missing == {"d0": "late"}
    assert mailbox.now_s() == PLAN.sampling.deadline_s


def test_an_evaluation_that_nobody_answers_ends_with_a_named_error():
    for script in ([], [Absent(d, "dropped", 1.0) for d in DEVICES]):
        with pytest.raises(RoundError, match=r"E-ROUND.*no device answered"):
            evaluate(*script)
    with pytest.raises(DataError, match=r"E-DATA-EMPTY.*no device holds text"):
        evaluate(*(measurement(d, tokens=0) for d in DEVICES))


def test_evaluations_read_no_more_and_show_no_more():
    with pytest.raises(RoundError, match="no device answered"):
        evaluate(refusal("A" * (PLAN.frame_limit_bytes + 1)))
    with pytest.raises(DataError, match="E-NAN") as caught:
        evaluate(refusal(DIRTY))
    assert len(str(caught.value)) < 700
    assert "\x1b" not in str(caught.value)


def test_probed_devices_are_spread_over_the_population():
    limited = compile_plan(make_recipe({"eval.devices": 4}), SPEC, 6, BUILT_IN)
    assert Probes(Mailbox([]), limited, DEVICES, lambda: 0.0).devices == ["d0", "d1", "d3", "d4"]
    assert Probes(Mailbox([]), PLAN, DEVICES, lambda: 0.0).devices == list(DEVICES)
