"""Events of a run as lines of text, for the operator of a server and for `edgewise run watch`."""

from __future__ import annotations

from math import exp

from edgewise.apps.report import numbers, redistillation
from edgewise.core import events
from edgewise.core.events import AnyEvent


def server_event_line(event: AnyEvent) -> str | None:
    """Write an event as a line. None: the event is not shown."""
    match event:
        case events.RunStarted(resumed_round=resumed):
            goes_on = f", goes on with round {resumed + 1}" if resumed is not None else ""
            return f"{event.name}: {event.rounds} rounds of {event.cohort} of {event.population} devices{goes_on}"
        case events.Lost(device=device, code=code, reason=reason):
            return f"  lost {device[:12]}  {code}: {reason or numbers.loss_reason(code)}"
        case events.Evaluated(model=model, nll=nll, tokens=tokens):
            nats = sum(nll.values()) / max(1, sum(tokens.values()))
            return f"  held out  {model} model after {event.round + 1} rounds: perplexity {exp(min(nats, 700.0)):.1f}"
        case events.Redistilled():
            return f"  {redistillation.redistillation_line(event)}"
        case events.RoundFinished():
            met = f"{event.accepted} contributions" if event.met else f"abandoned with {event.accepted} contributions"
            loss = "".join(f"  {name} {value:.3f}" for name, value in event.head.items() if "held" not in name)
            spent = f"  epsilon {event.epsilon:.3g}" if event.epsilon else ""
            size = f"  {event.bytes_up / 1e6:.2f} MB up"
            return f"round {event.round + 1}  {met}{size}{loss}{spent}  {event.seconds:.1f} s"
    return None
