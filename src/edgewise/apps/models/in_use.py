"""Open a model to use it: of a run, of a server, of an exported folder, or one that ``edgewise models fetch`` brought.

    used = open_model(Path("runs/plays-1a2b3c4d"))
    used.turn_to("base")                # the same module has the base's parameters now
    used.model, used.tokens

All models of a run share one module, so global, personal and base together need the memory of one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from edgewise.apps.models import released
from edgewise.apps.runs.fetched_folder import FACTS, LINEAGE, TRAINED
from edgewise.core.errors import EdgewiseError, ModelError
from edgewise.core.foreign import foreign
from edgewise.core.vector import Vector
from edgewise.drivers.storage import folder as folders
from edgewise.drivers.storage.personal_models import personal_models, personal_params
from edgewise.learn.models import rebuilt
from edgewise.learn.models.exported import BASE as BASE_FOLDER
from edgewise.learn.models.load import Loaded, load
from edgewise.learn.text.tokens import Tokens
from edgewise.plan.facts import parse
from edgewise.plan.recipe.recipe import Recipe, from_plain
from edgewise.plan.recipe.retriever import Pool

GLOBAL, PERSONAL, BASE = "global", "personal", "base"
NAMES = (GLOBAL, PERSONAL, BASE)
ADAPTER = "adapter_config.json"
LENGTH = 128
SHOWN = 5  # A message names so many devices.


class UsedModel:
    """An open model, in float32.

    Attributes:
        loaded: the base as it was read, with its tokenizer.
        model: the module to run.
        title: its origin in words, for people.
        length: tokens of a block in training. 128 where that is not known.
        pool: how a run that trained a retriever made the vector of a text. None for another model.
        names: the models that it can be, of ``NAMES``.
    """

    def __init__(
        self,
        loaded: Loaded,
        model: Any,
        title: str,
        turns: Mapping[str, Callable[[], object]],
        length: int = LENGTH,
        turn_to_personal: Callable[[str], object] | None = None,
        pool: Pool | None = None,
    ) -> None:
        self.loaded, self.model, self.title, self.length, self.pool = loaded, model, title, length, pool
        self._turns, self._turn_to_personal, self._turned = dict(turns), turn_to_personal, ("", "")
        model.eval()

    @property
    def names(self) -> tuple[str, ...]:
        """The models that it can be."""
        return tuple(self._turns)

    @property
    def tokens(self) -> Tokens:
        """The tokenizer."""
        return self.loaded.tokens

    def turn_to(self, name: str, owner: str = "") -> None:
        """Give the module the parameters of a model.

        Args:
            owner: of a run that was opened without a device, the device whose personal model is meant.
        Raises:
            EdgewiseError: E-USE for a model that is not here.
        """
        whose = owner if name == PERSONAL and PERSONAL not in self._turns else ""
        if (name, whose) == self._turned:
            return
        self._turned = ("", "")
        if whose and self._turn_to_personal is not None:
            self._turn_to_personal(whose)
            self._turned = (name, whose)
            return
        if name not in self._turns:
            what = f"{self.title} has no {name} model." if name in NAMES else f"there is no model {name!r:.60}."
            fix = f"take --model {' or '.join(self._turns)}."
            if name == PERSONAL:
                fix += " A personal model needs its device: --device NAME."
            raise EdgewiseError("E-USE", what, fix)
        self._turns[name]()
        self._turned = (name, whose)


def open_model(
    place: Path, *, played: int | None = None, base: str = "", device: str = "", home: Path | None = None
) -> UsedModel:
    """Open a model. It has the global model's parameters.

    Args:
        place: the folder of a run, of a server (its promoted model), of a whole model or an adapter as
            ``edgewise export`` writes them, or of a fetched model.
        played: of a run, the number of rounds after which to take the model. None: the model that counts, or the newest
            of an unfinished run.
        base: the base model in place of the recipe's or the adapter's, as in ``ReleasedModel.base``.
        device: of a run, the device whose personal model is opened too.
        home: of a fetched model, the folder of the device that has a personal model of the same run.
    Raises:
        EdgewiseError: E-USE for a folder without a model, a run without a finished round, a base that is missing, or a
            device without a personal model. E-EXPORT for a base that is not the run's.
        ModelError: E-MODEL, E-MODEL-REMOTE.
    """
    run = (place / "server.db").is_file() or ((place / "run.db").is_file() and folders.made(place))
    if not run and played is not None:
        raise EdgewiseError("E-USE", f"--round is for the folder of a run, and {place} is none.", "leave it out.")
    if device and not run:
        raise EdgewiseError("E-USE", f"--device is for the folder of a run, and {place} is none.", "leave it out.")
    if home is not None and not (place / LINEAGE).is_file():
        raise EdgewiseError("E-USE", f"--home is for a fetched model, and {place} is none.", "leave it out.")
    if run:
        used = _of_run(place, played, base, device)
    elif (place / LINEAGE).is_file():
        used = _open_fetched(place, base, home)
    elif (place / ADAPTER).is_file():
        used = _open_adapter(place, base)
    elif (place / "config.json").is_file():
        if base:
            what = f"--base is for a run or an adapter, and {place} is a whole model."
            raise EdgewiseError("E-USE", what, "leave it out.")
        loaded = load(str(place.resolve()), Path())
        used = UsedModel(loaded, loaded.model, str(place), {GLOBAL: lambda: None})
    else:
        what = f"{place} holds no model: no run, no exported and no fetched one."
        raise EdgewiseError("E-USE", what, "give the folder of a run, or one that `edgewise export` wrote.")
    used.turn_to(GLOBAL)
    return used


def _of_run(place: Path, played: int | None, base: str, device: str) -> UsedModel:
    one = released.released_model(place, played, code="E-USE", unfinished=True)
    if not one.played and played is None:
        what = f"the run in {place} has finished no round, so it has no model of its own."
        raise EdgewiseError("E-USE", what, "finish a round with --resume, or use the base with --round 0.")
    one.refuse_own_models("load it with your own code: `edgewise export --to tensors` writes what was trained.")
    model = rebuilt.rebuild(one.recipe, *one.base(base or None), one.facts, one.params, one.directions, one.cache_dir)
    own = _personal_model(one.run_dir, device) if device else None
    used = partial(_of_vectors, model, f"{one.recipe.name} after {one.played} rounds", own, one.recipe)
    return used(lambda owner: model.flat.write(_personal_model(one.run_dir, owner)))


def _personal_model(run_dir: Path, device: str) -> Vector:
    """Read the personal model of a device. Raises EdgewiseError(E-USE) where it has none."""
    own = personal_params(run_dir, device)
    if own is None:
        having = ", ".join(model.device for model in islice(personal_models(run_dir), SHOWN))
        fix = f"take one of these: {having}." if having else "run a recipe with a section [personal]."
        raise EdgewiseError("E-USE", f"device {device!r:.60} has no personal model in {run_dir}.", fix)
    return own


def _of_vectors(
    one: rebuilt.RebuiltModel,
    title: str,
    personal: Vector | None,
    recipe: Recipe,
    turn_to_personal: Callable[[str], object] | None = None,
) -> UsedModel:
    initial = one.flat.read()  # With adapters it is the base too, because one factor begins at zero.
    vectors = {GLOBAL: one.params, PERSONAL: personal, BASE: initial}
    if personal is not None and personal.shape != one.params.shape:
        raise EdgewiseError("E-USE", "the personal model is of another layout than the run's.", "make it again.")
    turns = {name: partial(one.flat.write, x) for name, x in vectors.items() if x is not None}
    pool = recipe.retriever.pool if recipe.retriever.active else None
    return UsedModel(one.loaded, one.model, title, turns, recipe.data.sequence_len, turn_to_personal, pool)


def _open_fetched(place: Path, base: str, home: Path | None) -> UsedModel:
    """Open the folder of ``edgewise models fetch``. The run's facts say which parameters were trained."""
    from safetensors.numpy import load_file

    with foreign(ModelError, "E-MODEL", f"{place} is not a whole fetched model", "fetch it again."):
        lineage = json.loads((place / LINEAGE).read_bytes())
        tensors = load_file(place / TRAINED)
        facts = parse((place / FACTS).read_bytes())
        run, title = str(lineage["run"])[:32], f"{lineage['name']} after {lineage['played']} rounds"
    recipe = from_plain(facts.settings(), f"the recipe of {place}")
    inside = str((place / BASE_FOLDER).resolve()) if (place / BASE_FOLDER).is_dir() else ""
    named = base or inside or recipe.model.base
    if released.directions_of(recipe) is not None:
        what = "a fetched model of coefficients (zeroth-order training) cannot be rebuilt from what was fetched."
        raise EdgewiseError("E-USE", what, "export it where the run is: `edgewise export`.")
    one = rebuilt.rebuild(recipe, named, Path(), {}, tensors, None)
    own: Vector | None = None
    if home is not None:
        folder = home / "runs" / run
        own = next((model.params for model in personal_models(folder)), None)
        if own is None:
            what = f"the device of {home} has no personal model of this run."
            raise EdgewiseError("E-USE", what, "make it: `edgewise device personalise`.")
    return _of_vectors(one, title, own, recipe)


def _open_adapter(place: Path, base: str) -> UsedModel:
    """Open a PEFT adapter. Its base lies beside it, is on the hub, or is given."""
    from peft import PeftModel

    if not (place / "adapter_model.safetensors").is_file():
        what = f"{place} has no adapter_model.safetensors."
        raise ModelError("E-MODEL", what, "save the adapter as safetensors: pickled weights can run code.")
    with foreign(ModelError, "E-MODEL", f"{place / ADAPTER} cannot be read", "export the adapter again."):
        config = json.loads((place / ADAPTER).read_bytes())
        named, revision = str(config["base_model_name_or_path"]), config.get("revision")
    if not base and (place / named).is_dir():
        base = str((place / named).resolve())
    elif not base and named.count("/") == 1 and not named.startswith((".", "/")):
        base = f"hub:{named}" + (f"@{revision}" if revision else "")
    if not base:
        what = f"the base of this adapter, {named!r:.80}, is not in {place}."
        raise EdgewiseError("E-USE", what, "name its folder with --base FOLDER.")
    loaded = load(base, Path())
    with foreign(ModelError, "E-MODEL", f"{place} does not fit its base", "name the adapter's base with --base."):
        model = PeftModel.from_pretrained(loaded.model, place)
    turns = {GLOBAL: model.enable_adapter_layers, BASE: model.disable_adapter_layers}
    return UsedModel(loaded, model, str(place), turns)
