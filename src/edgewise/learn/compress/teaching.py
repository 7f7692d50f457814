"""Train a student on a teacher's predictions, step by step, from a state that can be saved and loaded.

    progress = teach_student(student, teacher, blocks_NS, Lesson("logits", steps=500), key)

Shape suffixes: N = blocks, B = batch, S = block length + 1, P = tokens of a prompt, V = vocabulary, D = coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from edgewise.core.errors import ModelError, StoreError, TrainingError
from edgewise.core.foreign import foreign
from edgewise.core.keys import Key, derive, generator
from edgewise.core.safe_repr import outline
from edgewise.core.training import HeldOut
from edgewise.core.vector import Array
from edgewise.learn.compress import distill
from edgewise.learn.compress.distill import DistillTargets
from edgewise.learn.evaluate import evaluate
from edgewise.learn.flat import Flat
from edgewise.learn.models.architecture import logits, sizes
from edgewise.learn.models.load import TextLoss
from edgewise.learn.models.memory import evaluated_at_once
from edgewise.learn.seeded import seeded
from edgewise.learn.text.blocks import predictions
from edgewise.learn.text.cache import write_atomically
from edgewise.learn.train import LOWER, LocalOptimizer
from edgewise.plan.recipe.sections import TrainingSection

LOSSES = ("logits", "jsd", "gkd", "sequence", "top_k")
DATA = "data"  # The loss of a student without a teacher.
AT_ONCE = 1 << 25  # Logits of one pass: 128 MiB in float32.
WARM = 20  # The rate rises over the first twentieth of the steps,
LAST = 0.1  # and falls along a cosine to this share.


class Lesson(NamedTuple):
    """The rule by which a student learns.

    Attributes:
        loss: one of ``LOSSES``, or ``DATA``.

            logits      ``distill.distillation_divergence`` at tau
            jsd         ``distill.jensen_shannon_loss`` at beta and tau
            gkd         the same, in a share ``generated`` of the steps on text that the student wrote
            sequence    ``distill.next_token_loss``, in a share ``generated`` of the steps on text that the teacher
            wrote top_k       ``distill.top_logits_divergence`` of the ``top_k`` likeliest tokens at tau
        steps: optimizer steps, >= 1.
        lr: largest learning rate.
        batch: blocks per step.
        tau: temperature, > 0.
        beta: of the Jensen-Shannon divergence, 0 to 1.
        data: weight of the loss on real next tokens, 0 to 1, in a step on real text. The teacher's loss has the rest.
        generated: share of the steps on generated text, 0 to 1.
        optimizer: "muon" or "adamw" (``train.LocalOptimizer``).
    """

    loss: str = "logits"
    steps: int = 500
    lr: float = 2e-3
    batch: int = 8
    tau: float = 2.0
    beta: float = 0.5
    data: float = 0.5
    generated: float = 0.5
    top_k: int = 32
    optimizer: str = "muon"


class LessonState(NamedTuple):
    """The state after some steps. It decides all later ones, with the arguments of ``teach_student``.

    Attributes:
        done: number of steps.
        w_D: the student's parameters, float32.
        moments: the optimizer's state, float32[D] each.
        losses: mean loss of each step so far, float64[done].
    """

    done: int
    w_D: Tensor
    moments: tuple[Tensor, ...]
    losses: tuple[float, ...]

    __repr__ = outline


def teach_student(
    student: nn.Module,
    teacher: nn.Module | None,
    blocks_NS: Array,
    lesson: Lesson,
    key: Key,
    arithmetic: torch.dtype = torch.float32,
    begin: LessonState | None = None,
    after: Callable[[int, Callable[[], LessonState]], object] = lambda done, read: None,
    flat: Flat | None = None,
) -> LessonState:
    """Take the steps of a lesson. The student's parameters change in place.

    Each step clips the gradient's norm at 1. The rate rises linearly over the first twentieth of the steps, then falls
    along a cosine to a tenth. Batches run through the blocks in an order that is drawn anew for each pass.

    Args:
        student: float32, with trainable parameters.
        teacher: a model of the same vocabulary, which is only read. None with the loss ``DATA``.
        blocks_NS: training blocks (``learn.text.blocks``), int32, at least one.
        key: decides the order of blocks, and the generated text.
        arithmetic: dtype of the forward passes.
        begin: a state to go on from. None begins with the student as it is.
        after: called after each step with the number of steps so far, and a function that copies the state.
        flat: the parameters that the student learns. None: all, and they are separate tensors again at the end.
    Returns:
        The last state. The student is in evaluation mode.
    Raises:
        TrainingError: E-NAN where a loss is not finite. E-TRAIN without a block.
        ModelError: E-DISTILL where text must be generated and the model cannot.
    Guarantees:
        Equal arguments and an equal number of torch threads give equal bits, whether or not the steps were interrupted.
    """
    if not len(blocks_NS):
        raise TrainingError("E-TRAIN", "there is no block of text to learn from.", "give more text.")
    writer = {"gkd": student, "sequence": teacher}.get(lesson.loss)
    if writer is not None and lesson.generated and not hasattr(writer, "generate"):
        raise ModelError("E-DISTILL", f"{type(writer).__name__} cannot generate text.", "take the loss logits.")
    whole = flat is None
    if flat is None:
        student.requires_grad_(True)
        flat = Flat(list(student.named_parameters()))
    section = TrainingSection(optimizer=lesson.optimizer, clip_grad=1.0)
    optimizer, losses = LocalOptimizer(section, flat, arithmetic), []
    optimizer.reset()
    if begin is not None:
        _restore(flat, optimizer, begin)
        losses = list(begin.losses)
    for step in range(len(losses), lesson.steps):
        here = derive(key, "step", step)
        s_BS = torch.from_numpy(lesson_rows(blocks_NS, lesson.batch, step, key)).to(flat.w_D.device)
        drawn = writer is not None and generator(derive(here, "kind")).random() < lesson.generated
        real = distill.distill_inputs(s_BS)
        targets = student_written_text(writer, real, s_BS.shape[1], arithmetic, lesson, here) if drawn else real
        student.train()
        with seeded(derive(here, "dropout")):
            losses.append(_gradient(student, teacher, targets, lesson, drawn, arithmetic, flat))
        if not math.isfinite(losses[-1]):
            raise TrainingError("E-NAN", f"the loss is {losses[-1]} at step {step + 1} of the distillation.", LOWER)
        flat.g_D.mul_((1.0 / (torch.linalg.vector_norm(flat.g_D) + 1e-6)).clamp_(max=1.0))
        optimizer.step(lesson_rate(lesson, step))
        after(step + 1, lambda: _state(flat, optimizer, losses))
    student.eval()
    last = _state(flat, optimizer, losses)
    for p in student.parameters() if whole else ():  # A safetensors file cannot hold the shared storage.
        p.data, p.grad = p.data.clone(), None
    return last


def lesson_rate(lesson: Lesson, step: int) -> float:
    """Return the learning rate of a step, from 0."""
    rise = min(1.0, (step + 1) / max(1, lesson.steps // WARM))
    return lesson.lr * rise * (LAST + (1 - LAST) * (1 + math.cos(math.pi * step / lesson.steps)) / 2)


def lesson_rows(blocks_NS: Array, batch: int, step: int, key: Key) -> Array:
    """Return the blocks of a step: int64[batch, S]. Each pass over all blocks has an order of its own."""
    n, at = len(blocks_NS), []
    for i in range(step * batch, (step + 1) * batch):
        if not at or i % n == 0:
            order = generator(derive(key, "order", i // n)).permutation(n)
        at.append(int(order[i % n]))
    return np.asarray(blocks_NS[np.array(at)], np.int64)


def student_written_text(
    writer: Any, real: DistillTargets, length: int, arithmetic: torch.dtype, lesson: Lesson, key: Key
) -> DistillTargets:
    """Let a model continue the first quarter of each block, and predict what it wrote.

    Each token is drawn from all, at temperature 1. No gradient goes through the draws.

    Args:
        length: number of tokens S of each text, with its beginning.
    Source: Agarwal et al. 2024 (GKD), arXiv:2306.13649, algorithm 1.
    """
    from transformers import GenerationConfig

    prompt_BP = real.x_BT[:, : max(1, length // 4)]
    new = length - prompt_BP.shape[1]
    config = GenerationConfig(
        max_new_tokens=new, min_new_tokens=new, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_beams=1,
        use_cache=True, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    writer.eval()
    with torch.no_grad(), _arithmetic(prompt_BP, arithmetic), seeded(derive(key, "text")):
        ids_BS = writer.generate(
            input_ids=prompt_BP, attention_mask=torch.ones_like(prompt_BP), generation_config=config
        )
    counted_BT = torch.zeros_like(ids_BS[:, 1:], dtype=torch.bool)
    counted_BT[:, prompt_BP.shape[1] - 1 :] = True
    return DistillTargets(ids_BS[:, :-1], ids_BS[:, 1:], counted_BT)


def _gradient(
    student: nn.Module,
    teacher: nn.Module | None,
    targets: DistillTargets,
    lesson: Lesson,
    generated: bool,
    arithmetic: torch.dtype,
    flat: Flat,
) -> float:
    """Compute the gradient of a step's mean loss into ``flat.g_D``, in passes of bounded memory. Returns the loss."""
    flat.zero_grad()
    total, n = 0.0, max(1, int(targets.counted_BT.sum()))
    at_once = max(1, AT_ONCE // (targets.x_BT.shape[1] * sizes(student).vocabulary))
    for at in range(0, len(targets.x_BT), at_once):
        part = DistillTargets(*(x[at : at + at_once] for x in targets))
        share = int(part.counted_BT.sum()) / n
        if share:
            loss = share * lesson_loss(student, teacher, part, lesson, generated, arithmetic)
            loss.backward()
            total += loss.item()
    return total


def lesson_loss(
    student: nn.Module,
    teacher: nn.Module | None,
    targets: DistillTargets,
    lesson: Lesson,
    generated: bool = False,
    arithmetic: torch.dtype = torch.float32,
) -> Tensor:
    """Compute a lesson's mean loss on some predictions.

        L = (1 - data) L_teacher + data L_next_token            on real text
        L = L_teacher                                           on generated text

    Sequence distillation has the loss of next tokens on both.
    """
    with _arithmetic(targets.x_BT, arithmetic):
        z_s_BTV = logits(student, targets.x_BT)
    counted_BT, kind = targets.counted_BT, lesson.loss
    if kind in (DATA, "sequence") or teacher is None:
        return distill.next_token_loss(z_s_BTV, targets.y_BT, counted_BT)
    with torch.no_grad(), _arithmetic(targets.x_BT, arithmetic):
        z_t_BTV = logits(teacher.eval(), targets.x_BT)
    if kind == "logits":
        loss = distill.distillation_divergence(z_s_BTV, z_t_BTV, counted_BT, lesson.tau)
    elif kind == "top_k":
        loss = distill.top_logits_divergence(z_s_BTV, distill.top_logits(z_t_BTV, lesson.top_k, lesson.tau), counted_BT)
    else:
        loss = distill.jensen_shannon_loss(z_s_BTV, z_t_BTV, counted_BT, lesson.beta, lesson.tau)
    if generated or not lesson.data:
        return loss
    return (1 - lesson.data) * loss + lesson.data * distill.next_token_loss(z_s_BTV, targets.y_BT, counted_BT)


def _arithmetic(x: Tensor, arithmetic: torch.dtype) -> AbstractContextManager[Any]:
    return torch.autocast(x.device.type, torch.bfloat16, enabled=arithmetic is torch.bfloat16)


def measure_student(model: nn.Module, blocks_NS: Array, arithmetic: torch.dtype = torch.float32) -> HeldOut:
    """Sum a model's negative log-likelihood of held-out blocks. Raises TrainingError(E-NAN)."""
    processor, size = next(model.parameters()).device, blocks_NS.shape[1] - 1
    at_once = max(1, evaluated_at_once(sizes(model).vocabulary) // size)

    def batches() -> Iterator[tuple[Tensor, int]]:
        for at in range(0, len(blocks_NS), at_once):
            part_NS = np.asarray(blocks_NS[at : at + at_once], np.int64)
            yield torch.from_numpy(part_NS).to(processor), predictions(part_NS)

    return evaluate(model, TextLoss(arithmetic), batches())


def _state(flat: Flat, optimizer: LocalOptimizer, losses: list[float]) -> LessonState:
    moments = tuple(x_D.detach().cpu().clone() for x_D in optimizer.state)
    return LessonState(len(losses), flat.w_D.detach().cpu().clone(), moments, tuple(losses))


def _restore(flat: Flat, optimizer: LocalOptimizer, progress: LessonState) -> None:
    if progress.w_D.shape != flat.w_D.shape or len(progress.moments) != len(optimizer.state):
        raise StoreError("E-RESUME", "the saved state is of another student.", "begin again in another folder.")
    flat.w_D.copy_(progress.w_D)
    for x_D, saved_D in zip(optimizer.state, progress.moments, strict=True):
        x_D.copy_(saved_D)
    optimizer.steps.fill_(float(progress.done))


def save_lesson(path: Path, progress: LessonState) -> None:
    """Write a state. The file is whole or absent. Raises StoreError(E-DISK)."""
    tensors = {"w": progress.w_D, "losses": torch.tensor(progress.losses, dtype=torch.float64)}
    tensors |= {f"moment{i}": x_D for i, x_D in enumerate(progress.moments)}
    write_atomically(path, lambda f: f.write(save(tensors)))


def load_lesson(path: Path) -> LessonState:
    """Read a state. Raises StoreError(E-RESUME) for a damaged file."""
    again = "begin again in another folder."
    with foreign(StoreError, "E-RESUME", f"{path} is no state of a distillation", again), safe_open(path, "pt") as f:
        names = sorted(f.keys())
        moments = tuple(f.get_tensor(name) for name in names if name.startswith("moment"))
        losses = tuple(f.get_tensor("losses").tolist())
        return LessonState(len(losses), f.get_tensor("w"), moments, losses)
