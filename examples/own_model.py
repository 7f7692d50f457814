"""A torch classifier on data of four sites: python examples/own_model.py [OUT]"""

import sys

import torch
from torch.nn.functional import cross_entropy

import edgewise as ew


def site(number):
    """Points of two classes. Each site has another part of the plane."""
    g = torch.Generator().manual_seed(number)
    x = torch.randn(200, 2, generator=g) + torch.tensor([number - 1.5, 0.0])
    return x, (x.sum(1) > 0).long()


def loss(net, batch):
    x, y = batch
    return cross_entropy(net(x), y)


def accuracy(net, held_out):
    return sum(int(net(x[None]).argmax() == y) for x, y in held_out) / len(held_out)


torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
fed = ew.Federation(
    ew.Recipe(privacy="none", name="sites", rounds=5, local_steps=20, batch=16, optimizer="sgd", lr=0.1, holdout=0.2),
    model=ew.TorchTask(net, loss, {"accuracy": accuracy}),
    data={f"site-{i}": site(i) for i in range(4)},
)
run = fed.run(sys.argv[1] if len(sys.argv) > 1 else "own-model", overwrite=True)
trained = run.model()
print(f"accuracy {run.rounds.column('accuracy')[-1]:.2f} after {len(run.rounds)} rounds, report {run.report()}")
