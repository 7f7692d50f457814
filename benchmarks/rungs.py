"""What ``frontier.py`` compares: each rung is a way to send updates, as changes to a task's recipe.

``stage`` are the ``[[stage]]`` tables after ``weigh`` (none: float32). Any other key is a table of the recipe: one of
another ``kind`` replaces the task's, else its keys are put over the task's; a list (``downlink``, ``post``) replaces.
``weigh = False`` leaves out the task's ``weigh``.
The first word of a name is its family: one colour in the plot. ``REFERENCE`` is what the others are measured against.
"""

from __future__ import annotations

from typing import Any

Table = dict[str, Any]


def feedback(*stages: Table, **more: Any) -> list[Table]:
    """Error feedback around ``stages``."""
    return [{"kind": "feedback", **more}, *stages]


def quantize(bits: int, grid: str = "block", **more: Any) -> Table:
    """Few bits per coordinate."""
    return {"kind": "quantize", "bits": bits, "grid": grid, **more}


def eden(bits: int) -> list[Table]:
    """A shared random rotation, then the normal distribution's best levels."""
    return [{"kind": "rotate"}, quantize(bits, "eden")]


def share(percent: float, **more: Any) -> list[Table]:
    """A random share of the coordinates, stretched to stand for all, in one rotated bit."""
    return [{"kind": "random_k", "fraction": percent / 100, **more}, *eden(1)]


def top(percent: float, *values: Table) -> list[Table]:
    """Each device's largest coordinates, in feedback; two magnitudes and a sign where ``values`` says nothing else."""
    kept = {"kind": "top_k", "fraction": percent / 100}
    return feedback(kept, *(values or (quantize(2, "pair", block=256),)))


def lora(rank: int) -> Table:
    """Low-rank adapters of all linear layers instead of the layers' own weights."""
    return {"kind": "lora", "rank": rank, "alpha": 2.0 * rank, "layers": []}


REFERENCE = "float32"
FULL: Table = {"kind": "full", "layers": []}
RUNGS: dict[str, Table] = {
    REFERENCE: {"stage": [], "trainable": FULL},
    "float32 lr 3e-4": {"stage": [], "trainable": FULL, "training": {"lr": 3e-4}},
    "float32 lr 1e-4": {"stage": [], "trainable": FULL, "training": {"lr": 1e-4}},
    "layers": {"stage": []},
    "quantize 8": {"stage": [quantize(8)]},
    "quantize 4": {"stage": [quantize(4)]},
    "mixed 3": {"stage": feedback({"kind": "mixed", "bits": 3.0})},
    "eden 2": {"stage": eden(2)},
    "eden 1": {"stage": eden(1)},
    "sign": {"stage": feedback(quantize(1, "sign"))},
    "top 10 %": {"stage": top(10)},
    "top 5 %": {"stage": top(5)},
    "top 2 %": {"stage": top(2)},
    "top 1 %": {"stage": top(1)},
    "top 0.5 %": {"stage": top(0.5)},
    "top 0.25 %": {"stage": top(0.25)},
    "top 0.1 %": {"stage": top(0.1)},
    "top 0.05 %": {"stage": top(0.05)},
    "top 0.02 %": {"stage": top(0.02)},
    "random_k 10 %": {"stage": feedback({"kind": "random_k", "fraction": 0.1, "unbiased": False})},
    "random_k 10 % stretched": {"stage": [{"kind": "random_k", "fraction": 0.1}]},
    "shared_top_k 10 %": {"stage": feedback({"kind": "shared_top_k", "fraction": 0.1})},
    "sketch / 10": {"stage": [{"kind": "sketch", "ratio": 10.0, "keep": 0.05}]},
    "top 1 % chunked": {
        "stage": feedback({"kind": "top_k", "fraction": 0.01, "chunk": 4096}, quantize(2, "pair", block=256))
    },
    "top 1 % ef21": {
        "stage": feedback({"kind": "top_k", "fraction": 0.01}, quantize(2, "pair", block=256), form="ef21"),
        "weigh": False,  # the mirrors are averaged over all devices
    },
    "low_rank 4": {"stage": feedback({"kind": "low_rank", "rank": 4})},
    "cycle 2 eden 1": {"stage": [{"kind": "segments", "cycle": 2}, *eden(1)]},
    "random 30 % eden 1": {"stage": share(30)},
    "random 10 % eden 1": {"stage": share(10)},
    "random 5 % eden 1": {"stage": share(5)},
    "random 10 % each eden 1": {"stage": share(10, each=True)},
    "random 5 % each eden 1": {"stage": share(5, each=True)},
    "full 30 % each eden 1": {"stage": share(30, each=True), "trainable": FULL},
    "full eden 2": {"stage": eden(2), "trainable": FULL},
    "full eden 1": {"stage": eden(1), "trainable": FULL},
    "full 60 % eden 1": {"stage": share(60), "trainable": FULL},
    "full 30 % eden 1": {"stage": share(30), "trainable": FULL},
    "lora 8": {"stage": [], "trainable": lora(8), "training": {"lr": 1e-2}},
    "lora 8 eden 2": {"stage": eden(2), "trainable": lora(8), "training": {"lr": 1e-2}},
    "lora 8 eden 1": {"stage": eden(1), "trainable": lora(8), "training": {"lr": 1e-2}},
    "lora 8 30 % eden 1": {"stage": share(30), "trainable": lora(8), "training": {"lr": 1e-2}},
    "lora 2 eden 1": {"stage": eden(1), "trainable": lora(2), "training": {"lr": 1e-2}},
    "lora 8 top 5 %": {"stage": top(5), "trainable": lora(8), "training": {"lr": 1e-2}},
    "zeroth_order": {
        "stage": [],
        "strategy": {"kind": "zeroth_order"},
        "training": {"optimizer": "sgd", "lr": 1e-5, "local_steps": 20},
    },
}


def applied(base: Table, rung: Table) -> Table:
    """A task's recipe with a rung's changes. ``base`` has ``weigh`` as its only stage."""
    out = {**base}
    for key, value in rung.items():
        if key == "weigh":
            continue
        if key == "stage":
            out[key] = [*(base["stage"] if rung.get("weigh", True) else ()), *value]
        elif isinstance(value, dict) and value.get("kind") in (None, base.get(key, {}).get("kind")):
            out[key] = {**base.get(key, {}), **value}
        else:
            out[key] = value
    return out
