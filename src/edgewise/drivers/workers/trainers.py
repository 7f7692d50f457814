"""Choice of a recipe's trainer: the extension's where there is one, otherwise the text trainer."""

from __future__ import annotations

from pathlib import Path

from edgewise.core import keys
from edgewise.core.errors import RecipeError
from edgewise.core.training import DeviceId
from edgewise.drivers.storage.split_sessions import SessionFiles
from edgewise.drivers.workers.parted import parted
from edgewise.engine.split_rest import RemoteRest
from edgewise.engine.trainer import Registered, Trainer, registered
from edgewise.plan.catalogue import Catalogue
from edgewise.plan.own_part import own_part
from edgewise.plan.recipe import keywords, vibration
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.split_part import split_part
from edgewise.plan.strategy import strategy_of


def make_trainer(
    recipe: Recipe,
    recipe_dir: Path,
    run_dir: Path,
    catalogue: Catalogue,
    device: DeviceId | None = None,
    worker: int = 0,
    passing: bool = False,
    remote: RemoteRest | None = None,
) -> Registered:
    """Make the recipe's trainer and list its abilities. Imports torch, unless the trainer is an extension's.

    Where the recipe's strategy works along directions, a torch trainer is wrapped so that its vector holds their
    coefficients. Another trainer stays as it is, and ``compile`` refuses it. Where a part of the model stays on its
    device, the trainer is wrapped so that its vector holds the rest.

    Args:
        device: an enrolled device that owns all the text; None in a simulation.
        worker: number of this worker process, from 0. It decides the GPU where there are several.
        remote: the rest of a split model, for an enrolled device.
        passing: ``run_dir`` is removed afterwards. A quantized copy of the base is then kept in the user's cache.
    Raises:
        RecipeError: E-COMBO where the recipe counts passes and the trainer does not count records, or where it asks for
            samples of text or metrics that the trainer cannot give, or trains devices together that it has to train
            one by one. E-EXTENSION as ``engine.trainer.registered``.
        ModelError: E-TARGETS as ``plan.own_part``. E-CUT as ``plan.split_part`` and ``learn.split_trainer``.
    """
    if recipe.split.used:
        _check_splits(catalogue, device, recipe, remote)
    if recipe.statistics.active:
        trainer = _statistics_trainer(recipe, recipe_dir, run_dir / "cache", catalogue, device, worker)
    elif catalogue.trainer is not None:
        trainer = registered(catalogue.trainer(recipe))
    elif recipe.split.used and remote is not None and device is not None:
        from edgewise.learn.part_trainer import part_trainer

        trainer = part_trainer(recipe, recipe_dir, run_dir / "cache", device, worker, remote)
    elif recipe.data.source == vibration.SOURCE:
        from edgewise.learn.vibration.trainer import make as make_vibration

        trainer = registered(make_vibration(recipe, recipe_dir, run_dir / "cache", SessionFiles(run_dir, False)))
    elif recipe.data.source == keywords.SOURCE:
        trainer = registered(_keyword_trainer(recipe, recipe_dir, run_dir / "cache", device, worker))
    else:
        from edgewise.learn.models.quantized import user_cache
        from edgewise.learn.retrieve import trainer as retriever
        from edgewise.learn.text import trainer as text

        copies = user_cache() if passing else None
        make = retriever.make if recipe.retriever.active else text.make
        trainer = registered(make(_inner(recipe), recipe_dir, run_dir / "cache", device, worker, copies))
    if recipe.training.local_epochs and trainer.counts is None:
        what = "training.local_epochs needs a trainer that says how many records a device has."
        fix = "give training.local_steps, or build the trainer on learn.torch_task.TorchTrainer."
        raise RecipeError("E-COMBO", what, fix)
    if recipe.report.samples and trainer.continues is None:
        what = "report.samples needs a trainer that continues texts."
        raise RecipeError("E-COMBO", what, "leave it out, or use the text trainer.")
    if recipe.personal.chooses and trainer.holds_back is None:
        what = "personal.weight = 0: each device chooses by training data that its trainer holds back. This one cannot."
        raise RecipeError("E-COMBO", what, "give a weight, or build the trainer on learn.torch_task.TorchTrainer.")
    if lacks := [one.name for one in recipe.metric if one.name not in trainer.reported]:
        known = ", ".join(sorted(trainer.reported)) or "none"
        what = f"[[metric]] {lacks[0]}: the trainer does not measure it. Beside losses it measures: {known}."
        raise RecipeError("E-COMBO", what, "leave it out, or use a trainer that has it (`edgewise explain extend`).")
    if recipe.distill.active and catalogue.trainer is not None:
        what = "[distill] trains the model on the server, and here the trainer of an extension brings the model."
        raise RecipeError("E-COMBO", what, "use the text trainer, or leave out [distill].")
    if recipe.data.stream and catalogue.trainer is not None:
        what = "data.stream cuts text into windows of time, and here the trainer of an extension brings its own data."
        raise RecipeError("E-COMBO", what, "use the text trainer, or leave out data.stream.")
    if recipe.engine.limits:
        _check_limits(recipe, catalogue)
    if recipe.trainable.blocks_by == "memory" and trainer.fits_blocks is None:
        what = 'trainable.blocks_by = "memory", and this trainer does not say how many blocks fit a device.'
        raise RecipeError("E-COMBO", what, 'write blocks_by = "seed".')
    spec, population = trainer.trainer.spec, len(trainer.trainer.devices())
    strategy = strategy_of(recipe, catalogue, spec, population)
    directions = strategy.directions
    if directions is not None:
        from edgewise.learn import zeroth_order

        trainer = zeroth_order.wrapped(trainer, directions, keys.root(recipe.seed))
    if (parts := own_part(recipe, spec)) is not None:
        trainer = parted(trainer, parts, recipe)
    if remote is None and (parts := split_part(recipe, spec)) is not None:
        from edgewise.learn.cached_trainer import cached_between
        from edgewise.learn.split_trainer import split_between

        sessions = SessionFiles(run_dir, recipe.split.server_parts == "in_turn")
        sessions.use(0, parts.split(trainer.initial())[1])
        if recipe.split.cached:
            trainer = cached_between(trainer, parts, recipe, sessions)
        else:
            trainer = split_between(trainer, parts, recipe, sessions)
    if strategy.client.contrast is not None:
        _check_contrast(recipe, trainer)
    if recipe.engine.batch_devices > 1:
        _check_together(recipe, trainer)
    return trainer


def _statistics_trainer(
    recipe: Recipe, recipe_dir: Path, cache: Path, catalogue: Catalogue, device: DeviceId | None, worker: int
) -> Registered:
    """Make the trainer that counts or measures text in place of training."""
    if catalogue.trainer is not None:
        what = f'statistics.of = "{recipe.statistics.of}" reads text, and a package brings this trainer.'
        raise RecipeError("E-COMBO", what, "leave out the package.")
    if recipe.statistics.of == "text":
        from edgewise.learn.text.statistics import make_statistics_trainer

        return registered(make_statistics_trainer(recipe, recipe_dir, cache, device))
    from edgewise.learn.text.cross_site import make_cross_site_trainer

    return registered(make_cross_site_trainer(recipe, recipe_dir, cache, device, worker))


def _keyword_trainer(
    recipe: Recipe, recipe_dir: Path, cache_dir: Path, device: DeviceId | None, worker: int
) -> Trainer:
    """Make the trainer of keywords. Imports torch where it computes with it."""
    if recipe.keywords.computes == "numpy":
        from edgewise.learn.keywords import light_trainer

        return light_trainer.make(recipe, recipe_dir, cache_dir, device)
    from edgewise.learn.keywords import trainer

    return trainer.make(recipe, recipe_dir, cache_dir, worker, device)


def _inner(recipe: Recipe) -> Recipe:
    """Return the recipe of the whole model's trainer. Of a split model, devices' limits concern their parts alone."""
    if not recipe.split.used:
        return recipe
    return recipe.model_copy(
        update={"engine": recipe.engine.model_copy(update={"max_memory_mb": 0.0, "device_memory_mb": {}})}
    )


def _check_splits(catalogue: Catalogue, device: DeviceId | None, recipe: Recipe, remote: RemoteRest | None) -> None:
    """Refuse a split model where no session can take place."""
    why = "" if catalogue.trainer is None else "only the text trainer knows the blocks of its model"
    if device is not None and remote is None:
        why = "this device has no way to the rest of the model"
    elif device is not None and (recipe.split.trains_rest or recipe.split.cached):
        why = "over a network the rest of the model is with the server, and does not train"
    if why:
        raise RecipeError("E-COMBO", f"split.cut divides the model, but {why}.", "leave out [split].")


def _check_limits(recipe: Recipe, catalogue: Catalogue) -> None:
    """Refuse limits of memory that nothing keeps."""
    why = "" if catalogue.trainer is None else "only the text trainer forecasts the memory of a step"
    if recipe.strategy.get("kind") == "zeroth_order":
        why = 'strategy = "zeroth_order" takes no gradient, which is all that the limit makes smaller'
    if why:
        what = f"engine.max_memory_mb and device_memory_mb pick the settings of local training, but {why}."
        raise RecipeError("E-COMBO", what, "leave them out.")


def _check_contrast(recipe: Recipe, trainer: Registered) -> None:
    """Refuse a contrast of representations where nothing would compute it."""
    why = "this trainer gives no representations" if trainer.contrasts is None else trainer.contrasts.contrasts()
    if why is None and recipe.engine.batch_devices > 1:
        why = f"engine.batch_devices = {recipe.engine.batch_devices} trains devices in one pass, which has no such term"
    if why is not None:
        what = f'strategy "{recipe.strategy["kind"]}" contrasts representations of models, but {why}.'
        fix = "use the text trainer with a whole model and engine.batch_devices = 1, or strategy fedavg or fedprox."
        raise RecipeError("E-COMBO", what, fix)


def _check_together(recipe: Recipe, trainer: Registered) -> None:
    """Refuse to train several devices in one pass where that would be another training."""
    why = "the trainer takes one device at a time" if trainer.together is None else trainer.together.apart()
    if recipe.dp.example:
        why = 'dp.unit = "example" clips the gradient of each record by itself'
    if why is not None:
        what = f"engine.batch_devices = {recipe.engine.batch_devices} trains devices in one pass, but {why}."
        raise RecipeError("E-COMBO", what, "write engine.batch_devices = 1.")
