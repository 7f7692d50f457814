"""Distil a small model from a larger one, on text: the work of ``edgewise distill``.

found = distil_to_folder(DistillRequest("bundled", "1M", "plays", Path("student")))
found["student"]["perplexity"]

The work lies beside the new folder until that is whole. A killed distillation goes on from its last saved state.

    .NAME.distill/request.json    everything that decides the result
    .NAME.distill/student.state   the newest saved state of the student, and alone.state of the one without a teacher
    .NAME.distill/blocks/         the tokenized text
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from edgewise.apps.models.distilled_card import distilled_model_card
from edgewise.apps.models.export import whole_folder
from edgewise.core.errors import DataError, ModelError, StoreError
from edgewise.core.keys import Key, derive, root
from edgewise.core.training import HeldOut
from edgewise.core.vector import Array
from edgewise.drivers.storage import folder as folders
from edgewise.learn.compress import student as students
from edgewise.learn.compress import teaching
from edgewise.learn.compress.distill import distill_inputs
from edgewise.learn.compress.ensemble import TeacherEnsemble, teacher_shares
from edgewise.learn.compress.student import Student
from edgewise.learn.compress.teaching import DATA, Lesson, LessonState
from edgewise.learn.hardware import autocast_dtype, chosen
from edgewise.learn.models.architecture import check_causal, sizes
from edgewise.learn.models.exported import DTYPES, copy_tokenizer, stored_dtype
from edgewise.learn.models.fingerprint import frozen_digest
from edgewise.learn.models.load import Loaded, float32_attention, load, locate_model, stored_parameters
from edgewise.learn.models.streaming import Decoding, stream
from edgewise.learn.text import corpus as corpora
from edgewise.learn.text.blocks import Blocks, BlockStore, predictions
from edgewise.plan.recipe.whole_text import whole_text

REPORT = "distilled.json"
TITLES = {"teacher": "adapting the teacher", "student": "distilling", "alone": "training on the text alone"}
REAL = 0.2  # Least weight of real text where a teacher learns from its student.
SAVE_S = 20.0  # Time between two saved states, at least.
PROMPT, NEW = 16, 48  # Tokens that a model reads and writes to measure its speed.
Step = Callable[[str, int, int], object]


class DistillRequest(NamedTuple):
    """A request for a distillation.

    Attributes:
        teacher: "bundled", "hub:owner/name", or a model's folder.
        to: a number of parameters, a configuration or a folder, as in ``learn.compress.student.make_student``.
        on: "plays", "plays-public", "python-stdlib", or a file or folder of text or rows.
        dest: a folder that does not exist or is empty.
        lesson: the rule by which the student learns.
        columns: column names of a table by key, of ``whole_text.COLUMNS``.
        length: tokens of a block.
        held_tokens: number of held-out tokens that are scored, at most.
        seed: decides the student's drawn weights, the order of the text, and generated text.
        beside: train the same student on the text alone too, for as many steps.
        resume: go on with a distillation that was interrupted.
        also: further teachers, which may have other architectures. The student learns from all together.
        weigh: their weights, a rule of ``learn.compress.ensemble.WEIGHTS``.
        adapt: steps in which the teacher itself learns first, 0 for none. It learns the real next tokens, and from a
            student that is trained already also the student's probabilities, by the same loss and ``lesson.data``.
        adapt_lr: largest learning rate of these steps.
        teacher_dest: a folder for the adapted teacher, which does not exist or is empty.
    """

    teacher: str
    to: str
    on: str
    dest: Path
    lesson: Lesson = Lesson()
    columns: Mapping[str, str] = {}
    length: int = 128
    held_tokens: int = 20_000
    seed: int = 0
    beside: bool = False
    resume: bool = False
    also: tuple[str, ...] = ()
    weigh: str = "equal"
    adapt: int = 0
    adapt_lr: float = 5e-4
    teacher_dest: Path | None = None


def distil_to_folder(wanted: DistillRequest, step: Step = lambda what, done, of: None) -> dict[str, Any]:
    """Distil a student, write its folder, and measure what was kept.

    Args:
        step: receives the progress: a title, the steps so far and their number.
    Returns:
        The report, as ``distilled.json`` in the folder holds it.
    Raises:
        ModelError: E-DISTILL where teacher, student and request do not fit. E-MODEL.
        DataError: E-DATA-*.
        StoreError: E-FOLDER where ``dest`` holds files. E-RUN-EXISTS where the work was begun and ``resume`` is False.
            E-RESUME where nothing was begun, or something else. E-DISK.
        TrainingError: E-NAN.
    Guarantees:
        ``dest`` appears whole or not at all. The figures are those of the folder as it was written. An interrupted and
        resumed distillation gives the bytes of an uninterrupted one, on the same processor and number of threads.
    """
    dest = wanted.dest.resolve()
    _possible(wanted)
    work, key = dest.with_name(f".{dest.name}.distill"), root(wanted.seed)
    _begun(work, wanted.resume)
    teacher, arithmetic = _teacher(wanted, wanted.teacher)
    others = [_other(wanted, name, teacher) for name in wanted.also]
    made = students.make_student(teacher, wanted.to, Path(), key)
    check_causal(made.model, teacher.tokens, wanted.length, "the student")
    folders.claim(work)
    text, fingerprint = _text(wanted, teacher, work)
    facts = _facts(wanted, [teacher, *others], made, fingerprint)
    _same_request(work / "request.json", facts, wanted.resume)
    started = time.perf_counter()
    held_NS = _held(text, wanted)
    known = _figures(teacher, teacher.model, held_NS, arithmetic, _bytes(teacher.folder))
    taught_by = teacher.model
    report: dict[str, Any] = {
        "on": wanted.on, **wanted.lesson._asdict(), "batch_tokens": wanted.lesson.batch * wanted.length,
        "train_tokens": text.train_tokens, "held_out_tokens": predictions(held_NS), "text_fingerprint": fingerprint,
        "teacher": {"name": teacher.name, **known},
    }  # fmt: skip
    if wanted.adapt:
        last = _adapted(teacher, made, text, wanted, arithmetic, work, step)
        report["adapted"] = {
            "loss": _quarters(last), "steps": wanted.adapt,
            **_figures(teacher, teacher.model, held_NS, arithmetic, _bytes(teacher.folder)),
        }  # fmt: skip
        made = students.make_student(
            teacher, wanted.to, Path(), key
        )  # An untrained one takes layers of the adapted teacher.
    if others:
        models = [teacher.model, *(one.model for one in others)]
        weights = teacher_shares(wanted.weigh, models, text.train_NS)
        taught_by = TeacherEnsemble(models, weights)
        size_bytes = sum(_bytes(one.folder) for one in (teacher, *others))
        report["ensemble"] = {
            "names": [teacher.name, *(one.name for one in others)], "weigh": wanted.weigh, "weights": weights,
            **_figures(teacher, taught_by, held_NS, arithmetic, size_bytes),
        }  # fmt: skip
    names = ("student", "alone") if wanted.beside else ("student",)
    for name in names:
        one = made if name == "student" else students.make_student(teacher, wanted.to, Path(), key)
        before = _perplexity(teaching.measure_student(one.model.to(_processor()), held_NS, arithmetic))
        lesson = wanted.lesson if name == "student" else wanted.lesson._replace(loss=DATA)
        last = _taught(name, one, taught_by, text, lesson, key, arithmetic, work, step)
        shutil.rmtree(work / name, ignore_errors=True)
        with whole_folder(work / name, "--out", "the work so far is saved") as part:
            _write(one.model, teacher, part)
        loaded = load(str(work / name), Path())
        ready = loaded.model.to(_processor())
        figures = _figures(teacher, ready, held_NS, arithmetic, _bytes(work / name))
        report[name] = {"origin": one.origin, "perplexity_before": before, "loss": _quarters(last), **figures}
    report["seconds"] = round(time.perf_counter() - started, 1)
    with whole_folder(dest, "--out", "the work so far is saved") as part:
        shutil.copytree(work / "student", part, dirs_exist_ok=True)
        (part / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (part / "README.md").write_text(distilled_model_card(dest.name, report, teacher.folder), encoding="utf-8")
    if wanted.teacher_dest is not None:
        with whole_folder(wanted.teacher_dest.resolve(), "--teacher-out", f"the student is in {dest}") as part:
            _write(teacher.model, teacher, part)
    shutil.rmtree(work, ignore_errors=True)
    return {"dest": str(dest), **report}


def _possible(wanted: DistillRequest) -> None:
    """Refuse folders that hold files, and options that exclude each other."""
    for option, place in (("--out", wanted.dest), ("--teacher-out", wanted.teacher_dest)):
        if place is not None and place.exists() and (not place.is_dir() or any(place.iterdir())):
            fix = f"name a new folder with {option}; nothing is overwritten."
            raise StoreError("E-FOLDER", f"{place.resolve()} is not empty.", fix)
    if wanted.adapt and wanted.also:
        what = "--adapt is for one teacher, and --also names more."
        raise ModelError("E-DISTILL", what, "adapt each by a distillation of its own (--teacher-out).")
    if wanted.adapt and wanted.lesson.data < REAL:
        what = f"a teacher that adapts needs at least {REAL} of real text, and --data is {wanted.lesson.data:g}."
        fix = f"take --data {REAL} or more: teacher and student would drift to what both make up."
        raise ModelError("E-DISTILL", what, fix)
    if wanted.teacher_dest is not None and not wanted.adapt:
        raise ModelError("E-DISTILL", "--teacher-out is for a teacher that adapts.", "give --adapt STEPS too.")


def _adapted(
    teacher: Loaded, made: Student, text: Blocks, wanted: DistillRequest, arithmetic: torch.dtype, work: Path,
    step: Step,
) -> LessonState:  # fmt: skip
    """Let the teacher learn the text, and from a trained student also the student's probabilities."""
    lesson = wanted.lesson._replace(loss="logits" if made.trained else DATA, steps=wanted.adapt, lr=wanted.adapt_lr)
    pupil = Student(teacher.model, teacher.name)
    made.model.requires_grad_(False).to(_processor())
    last = _taught(
        "teacher", pupil, made.model, text, lesson, derive(root(wanted.seed), "adapt"), arithmetic, work, step
    )
    teacher.model.requires_grad_(False)
    return last


def _begun(work: Path, resume: bool) -> None:
    begun = (work / "request.json").is_file()
    if begun and not resume:
        what = f"a distillation into {work.with_name(work.name[1:-8])} was begun and not finished."
        raise StoreError("E-RUN-EXISTS", what, f"continue it with --resume, or delete {work}.")
    if resume and not begun:
        raise StoreError("E-RESUME", f"no distillation was begun in {work}.", "leave out --resume.")


def _same_request(path: Path, facts: Mapping[str, Any], resume: bool) -> None:
    """Write the request, or refuse to go on with another one."""
    text = json.dumps(facts, indent=1, sort_keys=True)
    if not resume:
        path.write_text(text, encoding="utf-8")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if other := sorted(name for name in facts if before.get(name) != json.loads(text)[name]):
        what = f"the distillation in {path.parent} was begun with another {', '.join(other)}."
        raise StoreError("E-RESUME", what, "give the same options, or name another folder with --out.")


def _facts(wanted: DistillRequest, teachers: Sequence[Loaded], made: Student, fingerprint: str) -> dict[str, Any]:
    """Collect everything that decides the result."""
    made.model.requires_grad_(False)
    lesson = {f"lesson.{name}": value for name, value in wanted.lesson._asdict().items()}
    return {
        "teacher": [frozen_digest(one.model) for one in teachers], "weigh": wanted.weigh,
        "adapt": [wanted.adapt, wanted.adapt_lr], "student": frozen_digest(made.model), "text": fingerprint,
        "length": wanted.length, "seed": wanted.seed, "beside": wanted.beside, **lesson,
    }  # fmt: skip


def _processor() -> torch.device:
    return chosen("auto")


def _other(wanted: DistillRequest, name: str, first: Loaded) -> Loaded:
    """Load a further teacher, and check that it has the first one's tokens."""
    one, _ = _teacher(wanted, name)
    students.same_tokenizer(first, one.tokens, one.name)
    students.same_vocabulary(first, sizes(one.model).vocabulary, one.name)
    return one


def _teacher(wanted: DistillRequest, name: str) -> tuple[Loaded, torch.dtype]:
    """Load a teacher, and check that it can read the text."""
    processor = _processor()
    arithmetic = autocast_dtype("auto", stored_parameters(locate_model(name, Path())[0]), processor)
    loaded = load(name, Path(), arithmetic)
    loaded.model.requires_grad_(False)
    found = sizes(loaded.model)
    if found.context is not None and wanted.length > found.context:
        what = f"the teacher {loaded.name} reads at most {found.context} tokens, and --length is {wanted.length}."
        raise ModelError("E-DISTILL", what, f"take --length {found.context} or less.")
    if loaded.tokens.size > found.vocabulary:
        what = f"{loaded.name}: the tokenizer has {loaded.tokens.size} tokens, the model {found.vocabulary}."
        raise ModelError("E-MODEL", what, "model and tokenizer do not belong together.")
    if "messages" in wanted.columns and loaded.tokens.template is None:
        what = f"the teacher {loaded.name} has no chat template, which --column messages=... needs."
        raise ModelError("E-DISTILL", what, "take a chat model, or name columns with prompt and text.")
    check_causal(loaded.model, loaded.tokens, wanted.length, loaded.name)
    if arithmetic is torch.bfloat16 and processor.type == "cpu":
        float32_attention(loaded.model)
    loaded.model.to(processor)
    return loaded, arithmetic


def _text(wanted: DistillRequest, teacher: Loaded, work: Path) -> tuple[Blocks, str]:
    """Read and tokenize the text. Returns its blocks and its fingerprint."""
    section = whole_text(wanted.on, wanted.columns, wanted.length)
    corpus = corpora.load(section, Path(), work, derive(root(wanted.seed), "data"))
    found = BlockStore(corpus, teacher.tokens, section, work).open(corpus.devices[0])
    if not len(found.train_NS) or not len(found.held_NS):
        what = f"{wanted.on} has too little text: {found.train_tokens} tokens to learn, {found.held_tokens} held out."
        raise DataError("E-DATA-EMPTY", what, "give more text, or a smaller --length.")
    return found, corpus.fingerprint()


def _held(text: Blocks, wanted: DistillRequest) -> Array:
    """Choose the held-out blocks that are scored, evenly spaced."""
    most = max(1, wanted.held_tokens // wanted.length)
    return text.held_NS[:: -(-len(text.held_NS) // most)]


def _taught(
    name: str, one: Student, teacher: torch.nn.Module, text: Blocks, lesson: Lesson, key: Key, arithmetic: torch.dtype,
    work: Path, step: Step,
) -> LessonState:  # fmt: skip
    """Take the steps that are left, and save the state now and then."""
    path, saved_at = work / f"{name}.state", time.perf_counter()
    title = TITLES[name]
    begin = teaching.load_lesson(path) if path.is_file() else None

    def after(done: int, read: Callable[[], LessonState]) -> None:
        nonlocal saved_at
        step(title, done, lesson.steps)
        if time.perf_counter() - saved_at > SAVE_S:
            teaching.save_lesson(path, read())
            saved_at = time.perf_counter()

    student = one.model.to(_processor())
    if arithmetic is torch.bfloat16 and _processor().type == "cpu":
        float32_attention(student)
    step(title, begin.done if begin else 0, lesson.steps)
    taught_by = None if lesson.loss == DATA else teacher
    last = teaching.teach_student(student, taught_by, text.train_NS, lesson, key, arithmetic, begin, after)
    teaching.save_lesson(path, last)
    return last


def _write(model: Any, teacher: Loaded, part: Path) -> None:
    """Write a model as transformers reads it, in the dtype of the teacher's weights, with the teacher's tokenizer."""
    dtype = DTYPES[stored_dtype(teacher.folder)]
    model.cpu().to(dtype).save_pretrained(part)
    copy_tokenizer(teacher.folder, part)


def _figures(
    teacher: Loaded, model: torch.nn.Module, held_NS: Array, arithmetic: torch.dtype, size_bytes: int
) -> dict[str, Any]:
    """Measure a model: its perplexity on held-out text, its size and its speed."""
    teaching.measure_student(model, held_NS[:1], arithmetic)  # The first pass is slower than all others.
    begun = time.perf_counter()
    held = teaching.measure_student(model, held_NS, arithmetic)
    seconds = time.perf_counter() - begun
    generated = None
    if hasattr(model, "generate"):
        prompt = distill_inputs(torch.from_numpy(np.asarray(held_NS[:1], np.int64))).x_BT[0, :PROMPT].tolist()
        greedy = stream(model.cpu(), teacher.tokens, prompt, Decoding(NEW, 0.0), lambda piece: None)
        generated = round(greedy.tokens_per_s, 1)
        model.to(_processor())
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": size_bytes,
        "perplexity": _perplexity(held),
        "read_tokens_per_s": round(held.tokens / seconds, 1),
        "generated_tokens_per_s": generated,
    }


def _perplexity(held: HeldOut) -> float:
    return math.exp(min(held.nll / max(1, held.tokens), 700.0))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _quarters(last: LessonState) -> list[float]:
    """Return the mean loss of the first and the last quarter of the steps."""
    n = max(1, len(last.losses) // 4)
    return [math.fsum(part) / len(part) for part in (last.losses[:n], last.losses[-n:])]
