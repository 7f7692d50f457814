"""Your own codec and server algorithm, in a script: python examples/own_codec.py [OUT]"""

import sys
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

import edgewise as ew
from edgewise.core import require
from edgewise.core.space import Grid, Kind
from edgewise.core.stage import Stage
from edgewise.strategies.base import State, Strategy


@ew.part
def sign(block: Annotated[int, Ge(8)] = 64) -> Stage:
    """Send the sign of every coordinate and one mean magnitude per block."""
    name = f"sign({block})"

    def infer(space):
        require.real(space, name)
        return space.but(grid=Grid(Kind.INTEGER, 2.0, 0.0, 1, block=block), summable=False, unbiased=False)

    def encode(payload, memory, space, turn):
        x = payload.body
        starts = np.arange(0, x.size, block)
        scales = (np.add.reduceat(np.abs(x), starts) / np.diff(np.append(starts, x.size))).astype(np.float32)
        scales = (scales.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # Scales travel as bfloat16.
        return payload.but(body=np.sign(x).astype(np.int8), scales=scales), memory

    def decode(payload, space, turn):
        scale = np.repeat(payload.scales, block)[: payload.body.size]
        return payload.but(body=(payload.body * scale).astype(np.float32), scales=None)

    return Stage(name, infer, encode, decode, lambda before, after: "sends signs", pointwise=True)


@ew.part
def running_sum(lr: Annotated[float, Gt(0)] = 1.0, keep: float = 0.5) -> Strategy:
    """Step by a running sum of the mean updates: m = keep m + D; w += lr m."""

    def apply(state, aggregate):
        m = np.float32(keep) * state.slots["m"] + aggregate.mean
        return State(state.params + np.float32(lr) * m, {"m": m}, state.round + 1)

    says = f"steps by a running sum that keeps {keep:g} of itself"
    return Strategy(f"running_sum({lr:g})", says, lambda x: State(x, {"m": np.zeros_like(x)}), apply)


lines = {
    "kitchen": "the kettle boils and the soup is on the stove; salt, pepper, and a spoon of oil. ",
    "garden": "roses need water in the morning, and the hedge is cut when the birds have gone. ",
    "harbour": "the ferry leaves at nine; nets are mended on the quay and gulls wait for the crates. ",
}
fed = ew.Federation(
    ew.Recipe(
        privacy="none", name="signs", rounds=3, local_steps=2, batch=4, lr=2e-3, sequence_len=32, eval={"every": 1},
        compare={"local_only": False, "centralised": False},
    ),
    data={name: [line * 10] * 6 for name, line in lines.items()},
    stages=[ew.feedback(), sign(64)],
    strategy=running_sum(0.5),
)  # fmt: skip
run = fed.run(sys.argv[1] if len(sys.argv) > 1 else "own-codec", overwrite=True)
up = run.summary["bytes"]
print(f"{up['up_per_device_round']:,.0f} bytes up instead of {up['float32_model']:,.0f}")
print(run)
