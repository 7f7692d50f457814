"""MOON: plain averaging on the server, with devices whose representations stay close to those of the round's model."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt

from edgewise.core.part import Doc, part
from edgewise.core.training import Contrast
from edgewise.strategies.base import Strategy
from edgewise.strategies.client import PREVIOUS, Client
from edgewise.strategies.fedopt import ServerLr, fedavg


@part
def moon(
    mu: Annotated[float, Ge(0), Doc("weight of the contrast of representations; 0.1 to 10 in the paper")] = 1.0,
    tau: Annotated[float, Gt(0), Doc("temperature of the contrast; a small one sharpens it")] = 0.5,
    lr: ServerLr = 1.0,
) -> Strategy:
    """Average the updates of devices whose representations are kept close to those of the round's model (MOON).

    With z the trained model's representation of a sequence, z_glob that of the round's model, and z_prev that of the
    device's own model after its last contribution:

        loss += mu l_con,   l_con = -log(e(z_glob) / (e(z_glob) + e(z_prev))),   e(x) = exp(cos(z, x) / tau)

    z is the mean of the output head's input over the positions that count. The paper has a projection head of its own
    instead. A step reads its text three times. A device keeps its last model, 4 bytes a parameter. Nothing more
    travels.

    Args:
        mu: weight of the contrast. 0 is plain averaging.
        tau: temperature.
    Raises:
        RecipeError: E-VALUE. ``compile`` refuses noise. Trainers that cannot contrast representations are refused
            before the run starts.
    Edge cases:
        A device without a last model trains without the term: in its first round, and after it lost its memory.
    Source: Li et al. 2021, arXiv:2103.16257, algorithm 1.
    """
    average = fedavg(lr)
    says = (
        f"{average.says}; representations on devices are pulled towards those of the round's model and pushed from "
        f"those of the device's last model, with weight {mu:g} and temperature {tau:g}"
    )
    client = Client(contrast=Contrast(mu, tau), memory=(PREVIOUS,), compared=True) if mu else Client()
    return average._replace(name=f"moon({mu:g}, {tau:g}, {lr:g})", says=says, client=client)
