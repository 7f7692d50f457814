"""Distil a run's model again on the server: the port ``engine.ports.Distiller``. It loads torch only when it is asked.

    distiller = ServerDistiller(recipe, recipe_dir, recipe_dir, store)
    distiller.facts()                              # refuses a teacher that does not fit; digests of what decides
    params, event = distiller.distil(4, params)

Crash safety: nothing of a distillation counts before the round's commit. The teacher's weights after it are kept under
one of two names in turn, and those of the last committed distillation are the ones that the next one begins with.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.core.errors import DataError, EdgewiseError, ModelError, StoreError
from edgewise.core.events import Redistilled
from edgewise.core.keys import derive, root
from edgewise.core.vector import Vector
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.recipe.data import DataSection
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.recipe.whole_text import whole_text

if TYPE_CHECKING:
    from edgewise.learn.text.blocks import Blocks
    from edgewise.learn.text.corpus import Corpus

WEIGHTS = ("teacher-a", "teacher-b")
TEACHER, PUBLIC = "distill_teacher_sha256", "distill_public_sha256"
WHAT = {TEACHER: "the teacher of [distill]", PUBLIC: "the public text of [distill]"}
PIECE_BYTES = 1 << 22


class ServerDistiller:
    """Distils the models of one run.

    Args:
        recipe: the run's, with an active section [distill].
        recipe_dir: the folder where ``model.base`` starts.
        place: the folder where ``distill.teacher`` and ``distill.public`` start.
        store: keeps the teacher's weights, and the cache of tokenized text.
        stop: called between the steps of a distillation. It ends the distillation by raising; nothing of it counts.
    """

    def __init__(
        self, recipe: Recipe, recipe_dir: Path, place: Path, store: RunStore, stop: Callable[[], None] = lambda: None
    ) -> None:
        self._recipe, self._recipe_dir, self._place, self._store = recipe, recipe_dir, place, store
        self._stop = stop

    def facts(self) -> dict[str, str]:
        """Return the digests of teacher and public text, after checking that teacher and model have one vocabulary.

        Raises:
            ModelError: E-DISTILL for a teacher with another tokenizer or vocabulary. E-MODEL.
            DataError: E-DATA-*. EdgewiseError: E-DEPENDENCY without torch.
        """
        _need_torch()
        from edgewise.learn.models.load import locate_model
        from edgewise.learn.text import tokens

        section = self._recipe.distill
        teacher, name = locate_model(section.teacher, self._place)
        own, own_name = locate_model(self._recipe.model.base, self._recipe_dir)
        if tokens.load_tokenizer(teacher).digest != tokens.load_tokenizer(own).digest:
            what = f"distill.teacher = {section.teacher!r}: {name} has another tokenizer than the model {own_name}, so"
            what += " their predictions are of other tokens."
            fix = "take a teacher with the model's tokenizer, or make a student of the teacher: `edgewise distill`."
            raise ModelError("E-DISTILL", what, fix)
        theirs, ours = _vocabulary(teacher), _vocabulary(own)
        if theirs != ours:
            what = f"distill.teacher = {section.teacher!r}: {name} has a vocabulary of {theirs} tokens, the model of"
            raise ModelError("E-DISTILL", f"{what} {ours}.", "take a teacher with as many tokens.")
        return {TEACHER: _folder_digest(teacher), PUBLIC: self._corpus().fingerprint()}

    def check(self, known: dict[str, Any]) -> None:
        """Refuse to go on with another teacher or text than ``known`` has. Raises StoreError(E-RESUME)."""
        for fact, found in self.facts().items():
            if known.get(fact) != found:
                what = f"{WHAT[fact]} changed since this run began ({str(known.get(fact))[:12]} then, {found[:12]} now)"
                raise StoreError("E-RESUME", f"{what}.", "put it back as it was, or start another run.")

    def distil(self, round: int, params: Vector) -> tuple[Vector, Redistilled]:
        """Distil the model of a round again. See ``engine.ports.Distiller``."""
        from edgewise.learn.compress import rounds
        from edgewise.learn.computing import computing
        from edgewise.learn.flat import Flat
        from edgewise.learn.models.load import load
        from edgewise.learn.text.prepared import prepare

        started, section = time.perf_counter(), self._recipe.distill
        made = prepare(self._recipe, self._recipe_dir, self._store.out / "cache")
        teacher = load(section.teacher, self._place)
        model, flat = made.loaded.model, made.flat
        if made.processor.type != "cpu":
            model.to(made.processor)
            flat.move(made.processor)
            teacher.model.to(made.processor)
        flat.write(params)
        learnt = self._learnt(round)
        if learnt is not None:
            Flat(list(teacher.model.named_parameters())).write(learnt[0])
        key = derive(root(self._recipe.seed), "distill", round)
        with computing("server, while it distils"):
            blocks = self._blocks()
            self._stop()
            found = rounds.redistil_student(
                model, flat, teacher.model, blocks, section, key, made.arithmetic, self._stop
            )
        event = Redistilled(
            round=round, kept=found.kept, reason=found.reason, perplexity_before=found.before,
            perplexity=found.after, diversity_before=found.wrote_before, diversity=found.wrote,
            teacher_before=found.teacher_before, teacher=found.teacher, seconds=time.perf_counter() - started,
        )  # fmt: skip
        if not found.kept:
            return params, event
        if section.adapt:
            name = next(one for one in WEIGHTS if learnt is None or one != learnt[1])
            self._store.keep(name, Flat(list(teacher.model.named_parameters())).read(), round)
        return flat.read(), event

    def _learnt(self, round: int) -> tuple[Vector, str] | None:
        """Load the teacher's weights after the last committed distillation, and their name. None before the first."""
        committed = {e.round for e in self._store.events("redistilled") if isinstance(e, Redistilled) and e.kept}
        found = [(*kept, name) for name in WEIGHTS if (kept := self._store.kept(name))]
        before = [(note, weights, name) for weights, note, name in found if note in committed and note < round]
        newest = max(before, key=lambda one: one[0], default=None)
        return None if newest is None else newest[1:]

    def _text(self) -> DataSection:
        """Describe the public text."""
        section = self._recipe.distill
        columns = {} if section.column == "text" else {"text": section.column}
        text = whole_text(section.public, columns, self._recipe.data.sequence_len, self._place)
        return text.model_copy(update={"max_tokens": section.max_tokens})

    def _corpus(self) -> Corpus:
        """Find the documents of the public text."""
        from edgewise.learn.text import corpus

        key = derive(root(self._recipe.seed), "distill text")
        return corpus.load(self._text(), Path(), self._store.out / "cache", key)

    def _blocks(self) -> Blocks:
        """Tokenize the public text. Raises DataError(E-DATA-EMPTY) where it is too short."""
        from edgewise.learn.models.load import locate_model
        from edgewise.learn.text import tokens
        from edgewise.learn.text.blocks import BlockStore

        section, corpus = self._recipe.distill, self._corpus()
        own = tokens.load_tokenizer(locate_model(self._recipe.model.base, self._recipe_dir)[0])
        found = BlockStore(corpus, own, self._text(), self._store.out / "cache").open(corpus.devices[0])
        if not len(found.train_NS) or not len(found.held_NS):
            what = f"distill.public = {section.public!r} has too little text: {found.train_tokens} tokens to learn, "
            what += f"{found.held_tokens} held out."
            raise DataError("E-DATA-EMPTY", what, "give more text, or a smaller data.sequence_len.")
        return found


def _need_torch() -> None:
    """Check that torch is installed. Raises EdgewiseError(E-DEPENDENCY)."""
    if lacks := [name for name in ("torch", "transformers") if find_spec(name) is None]:
        what = f"[distill] trains on the server, and {' and '.join(lacks)} cannot be imported there."
        raise EdgewiseError("E-DEPENDENCY", what, 'pip install "edgewise[train]", or leave out [distill].')


def _vocabulary(folder: Path) -> int | None:
    """Read the number of tokens from a model's configuration. None where it does not say."""
    config = json.loads((folder / "config.json").read_bytes())
    found = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return int(found) if found is not None else None


def _folder_digest(folder: Path) -> str:
    """Hash the weights, the configuration and the tokenizer of a model's folder: SHA-256."""
    h = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json", folder / "tokenizer.json"]):
        h.update(f"{path.name} {path.stat().st_size}\n".encode())
        with open(path, "rb") as f:
            while piece := f.read(PIECE_BYTES):
                h.update(piece)
    return h.hexdigest()
