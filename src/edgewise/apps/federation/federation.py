"""A federation of objects, simulated on this machine: ``edgewise.Federation``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from edgewise.apps.federation import own_work, settings, texts
from edgewise.apps.federation.callbacks import AnyCallback, EarlyStopping, Started, Stop, begin_callbacks, end_callbacks
from edgewise.apps.federation.checked import Checked
from edgewise.apps.federation.digest import digest
from edgewise.apps.federation.playing import Heard, Shown, has_run, remove, wants_progress
from edgewise.apps.federation.run import Run
from edgewise.apps.runs import parts
from edgewise.apps.runs.extensions import importable
from edgewise.apps.runs.rounds import Round
from edgewise.apps.runs.run_dirs import place
from edgewise.core import events
from edgewise.core.errors import DataError, RecipeError
from edgewise.drivers.storage import folder
from edgewise.plan.catalogue import AnyPart, Extension
from edgewise.plan.objects import Objects, catalogue
from edgewise.plan.recipe import loading
from edgewise.plan.recipe import recipe as recipes
from edgewise.plan.recipe.first_run import completion
from edgewise.plan.recipe.places import Origin

OBJECTS = "objects"  # the folder, in a run's folder, of files made from a script's objects
RecipeLike = str | Path | Mapping[str, Any] | settings.Recipe | recipes.Recipe


@dataclass(frozen=True)
class _Prepared:
    """The input of a run: the recipe, the folder that its paths start from, and the objects of this process."""

    recipe: recipes.Recipe
    recipe_dir: Path
    objects: Objects


class Federation:
    """A federation of devices that train one model on their own data, simulated on this machine.

        fed = Federation({"privacy": "none"}, data={"alice": ["a text", ...], "bob": rows})
        print(fed.check())
        run = fed.run("out")
        for round in fed: print(round.metrics)         # round by round; a loop that ends early leaves a resumable run

    The objects become a recipe and files that it names. `edgewise sim` would play the same run from them.

    Args:
        recipe: a recipe's file, tables, or ``edgewise.Recipe``. The arguments below replace its own settings.
        model: a folder, "bundled", "hub:owner/name@revision", a transformers model with its ``tokenizer``, or an
            ``edgewise.TorchTask``. The data of a task are torch datasets, tensors (x, y) or lists of records.
        data: device -> its records. These are texts, rows (mappings with the columns that the recipe names), a Hugging
            Face or torch dataset of these, or a function without arguments that returns one. The run's folder gets a
            copy.
        stages, posts, merge, strategy: parts (``edgewise.clip(1.0)``, your own by ``edgewise.part``), tables, or names.
        metrics: simulator metrics, name -> (model, held-out data of a device) -> number. The simulator measures each on
            every evaluation, exactly. They travel in no frame, and no epsilon covers them. Numbers that devices send
            within bounds are declared in the recipe as ``[[metric]]``. The data of a language model is a list of
            passages with ``prompt`` and ``text``.
        loop: your own training loop: (model, data of a device, ``LocalRound``) -> (model or update, n, metrics). The
            data of a language model is int64[n, sequence_len + 1], one row for each block of tokens.
        callbacks: called with each ``Round``. See ``edgewise.Callback``. The run rests after a round for which one
            returns ``edgewise.STOP``.
        extensions: modules with ``EDGEWISE = Extension(...)``, by name or file.
        sinks: functions that are called with each event.
        home: the folder that relative paths of the recipe start from. None: the folder of the recipe's file, or the
            current one.
    Attributes:
        recipe: the whole recipe.
        chosen: the settings that were chosen for a recipe with an epsilon and without ``dp.delta`` or ``dp.clip_l2``,
            by dotted key, as `edgewise new` chooses them for as many devices. Empty without ``data``.
    Raises:
        RecipeError, DataError, ModelError: as `edgewise check`, before a folder is made.
    """

    def __init__(
        self,
        recipe: RecipeLike,
        *,
        model: Any = None,
        tokenizer: Any = None,
        data: Mapping[str, Any] | None = None,
        stages: Sequence[Any] | None = None,
        posts: Sequence[Any] | None = None,
        merge: Any = None,
        strategy: Any = None,
        metrics: Mapping[str, Any] | None = None,
        loop: Any = None,
        callbacks: Sequence[AnyCallback] = (),
        extensions: Sequence[str] = (),
        sinks: Sequence[events.Sink] = (),
        home: str | Path | None = None,
    ) -> None:
        self._file = recipe if isinstance(recipe, str | Path) else None
        beside = Path(self._file).parent if self._file is not None else Path()
        self._home = Path(home) if home is not None else beside
        self._tables = settings.tables_of(recipe)
        self._model, self._tokenizer, self._data = model, tokenizer, data
        self._callbacks, self._sinks = tuple(callbacks), tuple(sinks)
        self._extensions = tuple(importable(extensions, self._home))
        self._parts: dict[str, AnyPart] = {}
        self._run_dir: Path | None = None
        if data is not None:
            texts.check_device_names(data)
            self._data = {
                d: list(x) if isinstance(x, Iterator) else x for d, x in data.items()
            }  # An iterator can be read only once.
        self._own = own_work.own_training_code(model, self._data, loop, metrics or {})
        self._fill_parts(stages, posts, merge, strategy)
        self.chosen = {} if data is None else completion(self._tables, len(data))
        self._tables = settings.put(self._tables, self.chosen)
        self.recipe = self._made_recipe(self._tables)
        own_work.check_names(self._own.metrics, self.recipe)

    # -- the recipe ---------------------------------------------------------------------------------------------

    def _fill_parts(self, stages: Any, posts: Any, merge: Any, strategy: Any) -> None:
        """Put the given objects into the tables."""
        found: dict[str, Any] = {}
        if stages is not None:
            found["stage"] = [self._part_table(one, "stages") for one in stages]
        if posts is not None:
            found["post"] = [self._part_table(one, "posts") for one in posts]
        if merge is not None:
            found["merge"] = self._part_table(merge, "merge")
        if strategy is not None:
            found["strategy"] = self._part_table(strategy, "strategy")
        for callback in self._callbacks:
            if isinstance(callback, EarlyStopping):
                found |= callback.settings
        if self._reads_texts:
            source = {"source": "jsonl", "path": texts.DATA, "owner": texts.OWNER, "partition": "owner"}
            found |= {f"data.{key}": value for key, value in source.items()}
        if isinstance(self._model, str | Path):
            base = str(self._model)
            named = base == "bundled" or base.startswith("hub:")
            found["model.base"] = base if named else str(Path(base).expanduser().resolve())
        elif self._given_model:
            found["model.base"] = texts.MODEL
        self._tables = settings.put(self._tables, found)

    def _part_table(self, given: Any, where: str) -> dict[str, Any]:
        """Return the table of a part, and note an object that is not shipped."""
        table, part = parts.part_table(given, where)
        if part is not None and not parts.is_shipped(part):
            known = self._parts.setdefault(part.name, part)
            if known is not part:
                raise RecipeError("E-EXTENSION", f"two parts are called {part.name}.", "give one another name.")
        return table

    def _made_recipe(self, tables: Mapping[str, Any]) -> recipes.Recipe:
        """Make the recipe of some tables, and check its parts."""
        where, text = ("", "") if self._file is None else (str(self._file), recipes.read(self._file))
        known = catalogue(self._extensions, Objects(Extension(tuple(self._parts.values()))))
        return loading.build_checked_recipe(settings.put(tables, {}), known, Origin(where, text))

    @property
    def _given_model(self) -> bool:
        """Tell whether a language model was given as an object."""
        return self._model is not None and self._own.task is None and not isinstance(self._model, str | Path)

    @property
    def _reads_texts(self) -> bool:
        return self._data is not None and self._own.task is None

    # -- files and objects --------------------------------------------------------------------------------------

    def _object_digests(self, at: Path, write: bool) -> _Prepared:
        """Compute the digests of the objects. With ``write``, write their files into ``at``."""
        if write and (self._reads_texts or self._given_model):
            at.mkdir(parents=True, exist_ok=True)
        digests = {f"the part {name}": digest(part) for name, part in self._parts.items()}
        if self._data is not None and self._reads_texts:
            found = texts.write_device_text(
                texts.device_text_lines(self._data, self.recipe.data), at / texts.DATA if write else None
            )
            for device in self._data:
                if f"the data of {device!r}" not in found:
                    raise DataError(
                        "E-DATA-EMPTY", f"device {device!r:.60} has no record.", "give it some, or leave it out."
                    )
            digests |= found
        if self._given_model:
            digests |= texts.model_digests(self._model, self._tokenizer)
            if write:
                texts.save_model(self._model, self._tokenizer, at / texts.MODEL)
        recipe, home = self._placed_recipe(at)
        own = self._own.objects(home, at)
        local = (*(f"the part {name}" for name in self._parts), *own.local)
        modules = tuple(dict.fromkeys([*(part.function.__module__ for part in self._parts.values()), *own.modules]))
        extension = Extension(tuple(self._parts.values()), own.extension.trainer)
        return _Prepared(recipe, home, Objects(extension, {**digests, **own.digests}, modules, local))

    def _placed_recipe(self, at: Path) -> tuple[recipes.Recipe, Path]:
        """Return the recipe, and the folder that its paths start from.

        Paths of the original recipe become absolute where they would start from another folder.
        """
        if not self._reads_texts and not self._given_model:
            return self.recipe, self._home
        tables, moved = self._tables, dict[str, Any]()
        base, paths = self.recipe.model.base, self.recipe.data.path
        if not self._given_model and base != "bundled" and not base.startswith("hub:"):
            moved["model.base"] = str((self._home / base).resolve())
        if not self._reads_texts and paths:
            listed = [paths] if isinstance(paths, str) else paths
            whole = [str((self._home / path).resolve()) for path in listed]
            moved["data.path"] = whole[0] if isinstance(paths, str) else whole
        if self.recipe.simulation.link_trace:
            moved["simulation.link_trace"] = str((self._home / self.recipe.simulation.link_trace).resolve())
        return (self._made_recipe(settings.put(tables, moved)) if moved else self.recipe), at

    # -- playing ------------------------------------------------------------------------------------------------

    def check(self, fast: bool = False) -> Checked:
        """Estimate what a run would do, cost and reveal. Print the result to see the page of `edgewise check`.

        Args:
            fast: skip the measurement of a training step's time.
        Raises:
            EdgewiseError: whatever would stop a run before its first round.
        """
        from edgewise.apps.simulate import check

        with tempfile.TemporaryDirectory(prefix="edgewise-objects-") as scratch:
            ready = self._object_digests(Path(scratch), write=True)
            found = check.examine(
                ready.recipe, ready.recipe_dir, fast=fast, catalogue=catalogue(self._extensions, ready.objects)
            )
        return Checked({**found, "chosen": {**self.chosen, **found["chosen"]}}, self.recipe.name)

    @property
    def run_dir(self) -> Path:
        """The folder of the run that was played last, or of the next run without ``out``."""
        return self._run_dir if self._run_dir is not None else place(self.recipe)

    def run(
        self,
        out: str | Path | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
        progress: bool | None = None,
    ) -> Run:
        """Play the whole run, its comparisons and its report.

        Args:
            out: the run's folder. The default is ``runs/NAME-HASH``.
            resume: continue the unfinished run in that folder.
            overwrite: remove the run in that folder first. A folder that edgewise did not make is refused.
            progress: show progress on standard error. None: only on a terminal and in a notebook.
        Returns:
            The run, with its figures, model and report.
        Raises:
            EdgewiseError: with a code. Committed rounds stay. Call again with ``resume`` and the same objects to
                continue.
        """
        at = Path(out) if out is not None else place(self.recipe)
        for _ in self._play_run(at, resume, overwrite, progress):
            pass
        return Run(at, None if self._own.task is None else self._own.task.module)

    def rounds(self, out: str | Path | None = None, *, overwrite: bool = False) -> Iterator[Round]:
        """Play round by round, and afterwards the comparisons and the report.

        A run that is already in ``out`` is continued. A loop that ends early leaves a run that the next loop, or
        ``run(out, resume=True)``, continues.
        """
        at = Path(out) if out is not None else place(self.recipe)
        return self._play_run(at, not overwrite and has_run(at), overwrite, False)

    def __iter__(self) -> Iterator[Round]:
        """Play round by round, as ``rounds()`` does."""
        return self.rounds()

    def _play_run(self, at: Path, resume: bool, overwrite: bool, progress: bool | None) -> Iterator[Round]:
        """Play the run in a folder."""
        from edgewise.apps.simulate import simulation
        from edgewise.apps.simulate.beginning import no_run

        if overwrite:
            remove(at)
        if resume and not has_run(at):
            raise no_run(at)
        self._run_dir = at
        folder.claim(at)
        ready = self._object_digests(at / OBJECTS, write=not has_run(at))
        stop, heard, begun = Stop(), Heard(at), False
        with Shown(ready.recipe) if wants_progress(progress) else nullcontext(()) as shown:
            playing = simulation.play(
                ready.recipe, out=at, recipe_dir=ready.recipe_dir, resume=resume, extensions=self._extensions,
                sinks=[*shown, heard, *self._sinks], objects=ready.objects, until=stop.asked,
            )  # fmt: skip
            try:
                for spec in playing:
                    round = heard.round(spec)
                    if not begun:
                        begin_callbacks(self._callbacks, Started(at, ready.recipe, heard.started))
                        begun = True
                    stop.ask(self._callbacks, round)
                    yield round
            finally:
                playing.close()
                if begun:
                    end_callbacks(self._callbacks)

    def __repr__(self) -> str:
        return f"Federation({', '.join(self._federation_facts().values())})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(fact)}</td></tr>"
            for name, fact in self._federation_facts().items()
        )
        return f"<table><caption>Federation</caption><tbody>{rows}</tbody></table>"

    def _federation_facts(self) -> dict[str, str]:
        """The facts that tell one federation from another, by name."""
        r = self.recipe
        return {
            "name": repr(r.name),
            "data": f"{len(self._data)} devices" if self._data is not None else f'data of "{r.data.source}"',
            "rounds": f"{r.round.rounds} rounds",
            "privacy": f"privacy={r.privacy!r}",
        }
