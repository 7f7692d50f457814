"""Check that a recipe fits the client half of its strategy, before training starts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import isfinite

from edgewise.core.errors import RecipeError
from edgewise.core.pipeline import Pipeline
from edgewise.core.training import DeviceId
from edgewise.plan.promise import Noiser, Promise
from edgewise.plan.recipe.privacy import RECORD_SUMS
from edgewise.plan.recipe.recipe import Recipe
from edgewise.strategies.client import Client


def check_recipe(recipe: Recipe, promise: Promise, client: Client) -> None:
    """Check that the strategy's equations hold for the recipe's local training and noise.

    Raises:
        RecipeError: E-COMBO where they do not.
    """
    kind, training = recipe.strategy["kind"], recipe.training
    if promise.who_noises is not Noiser.NOBODY and (client.memory or client.sends or client.head):
        why = "noise would add up in what the server keeps" if client.memory else "no noise covers its exact scalars"
        if client.compared:
            kept = "models" if client.contrast is not None else "earlier updates"
            why = f"its devices keep {kept}, and no account here covers their use"
        what = f'strategy "{kind}" cannot be used with differential privacy: {why}.'
        raise RecipeError("E-COMBO", what, "use fedavg, fedprox or a server optimizer.")
    if client.plain_sgd is not None and (training.optimizer != "sgd" or training.momentum):
        momentum = " with momentum" if training.optimizer == "sgd" else ""
        what = (
            f'strategy "{kind}" cannot use training.optimizer = "{training.optimizer}"{momentum}: {client.plain_sgd}.'
        )
        fix = 'training.optimizer = "sgd", training.momentum = 0; or strategy "feddyn", which takes every optimizer.'
        raise RecipeError("E-COMBO", what, fix)
    if client.uneven is not None and not training.local_epochs:
        what = f'strategy "{kind}" with training.local_steps: {client.uneven}, and here all take equally many.'
        raise RecipeError("E-COMBO", what, 'give training.local_epochs, or use strategy "fedavg": it is the same here.')


def check_record_sums(recipe: Recipe, promise: Promise, client: Client) -> None:
    """Check that devices which sum clipped records are asked for nothing else.

    Raises:
        RecipeError: E-COMBO for other local training, for terms of a strategy in its gradients, and where devices train
            different parts of the model.
    """
    if not promise.sums_records:
        return
    training, trainable = recipe.training, recipe.trainable
    asked = 'privacy = "distributed_dp" with dp.unit = "example"'
    wanted = {key.split(".")[1]: value for key, value in RECORD_SUMS.items()} | {"weight_decay": 0.0, "momentum": 0.0}
    if other := [key for key, value in wanted.items() if getattr(training, key) != value]:
        what = (
            f"{asked}: a device sends the mean of its clipped gradients, and training.{other[0]} = "
            f"{getattr(training, other[0])!r} is about steps that it does not take."
        )
        fix = f"leave out training.{other[0]}. The server takes the steps: [strategy] lr is their length."
        raise RecipeError("E-COMBO", what, fix)
    if client.pull or client.shift is not None or client.finish is not None or client.contrast is not None:
        what = f'{asked}: strategy "{recipe.strategy["kind"]}" changes the gradients of devices after the clip.'
        raise RecipeError("E-COMBO", what, "use fedavg or a server optimizer.")
    if trainable.unequal or trainable.block_shares or trainable.turns or trainable.moves_base:
        what = f"{asked}: all devices sum gradients of the same parameters, and here they train different ones."
        raise RecipeError("E-COMBO", what, "leave out rank_shares, block_shares and rules that take turns.")


def check_pipelines(recipe: Recipe, client: Client, pipes: Sequence[Pipeline], rungs: bool) -> None:
    """Check that the server gets the mean that its equations need.

    Args:
        rungs: True where devices encode for the rung of their group, after the round's keys are known.
    Raises:
        RecipeError: E-COMBO where it does not, and where the server could not enforce a bound of the pipeline.
    """
    bounded = any(isfinite(pipe.encoded.l2) or isfinite(pipe.encoded.peak) for pipe in pipes)
    if recipe.trainable.moves_base and bounded:
        what = (
            f'trainable.rule = "{recipe.trainable.rule}" cannot be used with clip or clamp: a bound of the factors is '
        )
        raise RecipeError("E-COMBO", what + "none of their products.", "leave out clip and clamp.")
    if not (client.memory or client.sends or client.head):
        return
    kind = recipe.strategy["kind"]
    if pipes[0].merge.combine is not None and not client.compared:
        what = f'strategy "{kind}" cannot be used with [merge] {pipes[0].merge.name}: its equations need a mean.'
        other = "" if kind == "fedavg" else ", or strategy fedavg"  # fedavg itself counts the devices of each part
        raise RecipeError("E-COMBO", what, f"take the sum of all contributions{other}.")
    if client.memory and len(pipes) > 1 and not rungs:
        what = (
            f'strategy "{kind}" cannot be used where parts of the model take turns: what devices keep of a part that '
            "rests would be of another round."
        )
        raise RecipeError("E-COMBO", what, 'train all parts together: no cycle, and trainable.rule = "fedit" or "ffa".')
    if client.memory and rungs:
        what = (
            f'strategy "{kind}" cannot be used with codec = "adaptive" behind masks: a device encodes when the round '
            "has gone on, and what it keeps would have to wait with the update."
        )
        raise RecipeError("E-COMBO", what, 'fix the codec: codec = "stages".')
    fixed = (space for pipe in pipes for space in pipe.spaces if space.universe < pipe.spaces[0].dim)
    if client.sends and not all(space.moving for space in fixed):
        what = f'strategy "{kind}" cannot be used with a stage that leaves out the same coordinates in all rounds.'
        fix = 'leave out segments; trainable.kind = "layers" trains a part of the model.'
        raise RecipeError("E-COMBO", what, fix)


def check_root(recipe: Recipe, devices: Collection[DeviceId] | None = None) -> None:
    """Check that a merge that trusts the update of one device gets it in every round.

    Args: devices: those of the run. None where they are not known yet.
    Raises: RecipeError: E-COMBO for rounds to which it may not be invited, E-VALUE where no device has the name.
    """
    if (root := recipe.merge.get("root")) is None or recipe.merge.get("kind") != "fltrust":
        return
    if recipe.round.sampling != "all":
        what = f'[merge] fltrust with round.sampling = "{recipe.round.sampling}": rounds without the device {root} '
        raise RecipeError("E-COMBO", f"{what}would not move the model.", 'write sampling = "all".')
    if devices is not None and root not in devices:
        known = ", ".join(sorted(devices)[:3])
        raise RecipeError("E-VALUE", f"merge.root = {root!r:.40} is no device of this run.", f"one of: {known}, ...")
