"""Your own training loop, with the proximal term of FedProx: python examples/own_loop.py [OUT]"""

import sys

import torch
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader

import edgewise as ew


def readings(number):
    """Readings of a sensor: y = 2 x + the sensor's own offset."""
    g = torch.Generator().manual_seed(number)
    x = torch.randn(100, 1, generator=g)
    return x, 2 * x + 0.1 * number


def loss(net, batch):
    return mse_loss(net(batch[0]), batch[1])


def train(net, data, round):
    """Train on one device. Returns the model, its weight in the mean, and metrics. torch is seeded."""
    optimizer = torch.optim.Adam(net.parameters(), lr=round.lr)
    losses = []
    for _ in range(2):
        for batch in DataLoader(data, batch_size=round.batch, shuffle=True):
            optimizer.zero_grad()
            value = loss(net, batch)
            value.backward()
            round.correct()  # adds the strategy's term to the gradients
            optimizer.step()
            losses.append(float(value))
    return net, len(data), {"loss": sum(losses) / len(losses), "steps": len(losses)}


torch.manual_seed(0)
fed = ew.Federation(
    ew.Recipe(privacy="none", name="sensors", lr=0.05, batch=25, rounds=6, eval={"every": 1}),
    model=ew.TorchTask(torch.nn.Linear(1, 1), loss),
    data={f"sensor-{i}": readings(i) for i in range(5)},
    loop=train,
    strategy=ew.fedprox(mu=0.1),
)
out = sys.argv[1] if len(sys.argv) > 1 else "own-loop"
for round in fed.rounds(out, overwrite=True):
    print(round)
    if round.metrics["held_out_loss"] < 0.05:  # The run can be resumed.
        break
print(fed.run_dir, ew.open_run(out).params())
