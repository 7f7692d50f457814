"""One contribution upstream for a whole site or region: hierarchical federated averaging, ``edgewise.contribute``.

    upstream = edgewise.Device.open("site")                          # the site is one device of the federation above
    with edgewise.Server("site.toml", model=..., listen=...) as site:        # and the server of its own devices
        for outcome in edgewise.contribute(upstream, site, examples=20_000):
            print(outcome)

    x_s = w after the rounds of the site's recipe;     w <- w + step(sum_s n_s (x_s - w) / sum_s n_s)

Here w is the model of a round upstream, n_s the amount of data of site s, and the step that of the strategy upstream.
The server upstream sees one device per site. All that it promises holds for a site as a whole. Whatever the site's
recipe promises holds for each of its devices against the site, in each round upstream anew.
Source: Liu, Zhang, Song, Letaief 2020, arXiv:1905.06641, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edgewise.apps.device.script import Device
from edgewise.apps.device.task import Outcome, Task
from edgewise.apps.runs.rounds import Round
from edgewise.apps.server.script import Server
from edgewise.core.errors import ModelError, RoundError
from edgewise.core.metric import HELD_OUT, HELD_SHARE, LOSSES


def contribute(upstream: Device, site: Server, examples: float) -> Iterator[Outcome]:
    """Play the site's recipe in each round that the server upstream asks this site for, and send what came of it.

    Each round upstream is a run of its own in the site, which begins with the model of that round. A site that is
    stopped in between continues the run at the next start. If the devices had finished it and the site's update had not
    left, they train again.

    Args:
        upstream: the site as a device of the federation above.
        site: the server of the site's devices, with the same trained parameters.
        examples: the amount of data in the site, its natural weight upstream (``Task.submit``).
    Yields:
        The outcome of each round upstream in which the site's model moved. Without end.
    Raises:
        ModelError(E-LAYOUT): the site trains other parameters than the run upstream.
        TrainingError(E-TASK): the run upstream asks for metrics that the site's recipe does not sum, or corrects
            gradients.
        RecipeError, TransportError, StoreError: as ``Device.tasks`` and the loop over a ``Server``.
    """
    for task in upstream.tasks():
        if task.spec != site.spec:
            task.refuse("the site trains other parameters")
            what = f"the run {task.run:.12} trains other parameters than the site's recipe."
            raise ModelError("E-LAYOUT", what, "give the site the same model and [trainable].")
        site.start_from(task.params)
        try:
            rounds = [round for round in site if round.met]
        except RoundError as e:
            task.refuse(f"no round of the site moved the model ({e.code})")
            continue
        if rounds:
            yield task.submit_params(rounds[-1].params, examples, _metrics(task, rounds))
        else:
            task.refuse("no round of the site moved the model")


def _metrics(task: Task, rounds: list[Round]) -> Mapping[str, float]:
    """Collect the numbers that the run upstream sums from those that the site's rounds have.

    The first train loss is of the first round, all others are of the last one.
    """
    first, last = rounds[0].metrics, rounds[-1].metrics
    found = {name: last[name] for name in task.metrics if name in last and name != HELD_OUT}
    if LOSSES[0] in found:
        found[LOSSES[0]] = first[LOSSES[0]]
    if HELD_OUT in task.metrics and (share := first.get(HELD_SHARE, 0.0)) > 0.0:
        found[HELD_OUT] = first[HELD_OUT] / share  # of the model of the round upstream
    return found
