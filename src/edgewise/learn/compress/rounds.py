"""Distil the model of a federated run again, on public text, and decide whether the result counts.

    found = redistil_student(model, flat, teacher, blocks, section, key)
    found.kept                                   # False: the student has its old weights

    1. The teacher learns the public text, and the student's probabilities on it.
    2. The student learns the teacher's probabilities, and the text.
    3. The student is kept where its perplexity on held-out public text fell, and its writing is about as diverse.

Shape suffixes: N = blocks, S = block length + 1, P = tokens of a prompt.
Source of the loop: Fan et al. 2024 (FedMKT), arXiv:2406.02224, mutual distillation between a server's model and its
    clients'. The rule that rejects is this project's own guard against self-training collapse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from edgewise.core.errors import ModelError
from edgewise.core.keys import Key, derive
from edgewise.core.vector import Array
from edgewise.learn.compress.distill import distill_inputs
from edgewise.learn.compress.teaching import (
    DATA,
    Lesson,
    LessonState,
    measure_student,
    student_written_text,
    teach_student,
)
from edgewise.learn.flat import Flat
from edgewise.learn.text.blocks import Blocks
from edgewise.plan.recipe.distill import DistillSection

PROMPTS = 32  # Held-out blocks whose beginnings the student continues, to measure how diverse it writes.


class Redistillation(NamedTuple):
    """The result of one distillation. Perplexities are on held-out public text.

    Attributes:
        reason: "perplexity" or "diversity", the figure that rejected the student. None: it is kept.
        before, after: the student's perplexity. wrote_before, wrote: its ``diversity``.
        teacher_before, teacher: the teacher's perplexity.
    """

    reason: str | None
    before: float
    after: float
    wrote_before: float
    wrote: float
    teacher_before: float
    teacher: float

    @property
    def kept(self) -> bool:
        """True if the student keeps what it learnt."""
        return self.reason is None


def redistillation_lesson(section: DistillSection) -> Lesson:
    """Make the student's lesson of a recipe's section."""
    return Lesson(
        loss=section.loss, steps=section.steps, lr=section.lr, batch=section.batch, tau=section.tau,
        beta=section.beta, data=section.data, generated=section.generated, top_k=section.top_k,
    )  # fmt: skip


def redistil_student(
    model: nn.Module, flat: Flat, teacher: nn.Module, blocks: Blocks, section: DistillSection, key: Key,
    arithmetic: torch.dtype = torch.float32, stop: Callable[[], None] = lambda: None,
) -> Redistillation:  # fmt: skip
    """Let teacher and student learn from each other, and judge the student.

    Args:
        model: the student, with the weights of the round. They stay where the student is rejected.
        flat: its parameters that learn, which are those that the run trains.
        teacher: all of its parameters learn, for ``section.adapt`` steps.
        blocks: public text. Its held-out part decides.
        key: decides the order of text, and generated text.
        stop: called after each step and each measurement. It ends the distillation by raising.
    Returns:
        The figures, and the verdict.
    Raises:
        TrainingError: as ``teach``. ModelError: E-DISTILL where the model cannot write text.
    Guarantees:
        Equal arguments and an equal number of torch threads give equal bits.
    """
    held_NS = scored_blocks(blocks.held_NS, section.held_tokens)
    weights, lesson = flat.read(), redistillation_lesson(section)

    def after_step(done: int, read: Callable[[], LessonState]) -> None:
        stop()

    before, wrote_before = (
        student_perplexity(model, held_NS, arithmetic),
        written_text_diversity(model, held_NS, key, arithmetic),
    )
    stop()
    teacher_before = adapted = student_perplexity(teacher, held_NS, arithmetic)
    if section.adapt:
        taught = lesson._replace(loss="logits", steps=section.adapt, lr=section.adapt_lr)
        teach_student(
            teacher, model.eval(), blocks.train_NS, taught, derive(key, "teacher"), arithmetic, after=after_step
        )
        adapted = student_perplexity(teacher, held_NS, arithmetic)
    teacher.requires_grad_(False)
    teach_student(
        model, teacher if lesson.loss != DATA else None, blocks.train_NS, lesson, derive(key, "student"), arithmetic,
        after=after_step, flat=flat,
    )  # fmt: skip
    after, wrote = (
        student_perplexity(model, held_NS, arithmetic),
        written_text_diversity(model, held_NS, key, arithmetic),
    )
    reason = student_verdict(before, after, wrote_before, wrote, section.diversity)
    if reason is not None:
        flat.write(weights)
    return Redistillation(reason, before, after, wrote_before, wrote, teacher_before, adapted)


def student_verdict(before: float, after: float, wrote_before: float, wrote: float, share: float) -> str | None:
    """Return the figure that rejects a student. None: it is kept.

    Args:
        before, after: perplexity on held-out public text. It has to fall.
        wrote_before, wrote: diversity. At least ``share`` of it has to remain.
    """
    if not after < before:
        return "perplexity"
    return None if wrote >= share * wrote_before else "diversity"


def scored_blocks(held_NS: Array, most: int) -> Array:
    """Choose evenly spaced held-out blocks of at most so many tokens together, at least one block."""
    wanted = max(1, most // max(1, held_NS.shape[1] - 1))
    return held_NS[:: -(-len(held_NS) // wanted)]


def student_perplexity(model: nn.Module, held_NS: Array, arithmetic: torch.dtype = torch.float32) -> float:
    """Measure exp(mean negative log-likelihood), at most exp(700)."""
    held = measure_student(model, held_NS, arithmetic)
    return math.exp(min(held.nll / max(1, held.tokens), 700.0))


def written_text_diversity(
    model: nn.Module, held_NS: Array, key: Key, arithmetic: torch.dtype = torch.float32
) -> float:
    """Measure the share of distinct pairs of tokens in text that a model writes, from 0 to 1.

        distinct pairs / all pairs, over continuations of ``PROMPTS`` held-out blocks after their first quarter

    A model that collapses writes the same again and again. The same key draws for each model that is compared.
    Raises:
        ModelError: E-DISTILL for a model that cannot generate.
    Source: Li et al. 2016, arXiv:1510.03055, distinct-2.
    """
    if not hasattr(model, "generate"):
        what = f"{type(model).__name__} cannot write text, so nobody can see whether a distillation narrows it."
        raise ModelError("E-DISTILL", what, "federate a model of transformers, or leave out [distill].")
    some_NS = held_NS[:: -(-len(held_NS) // PROMPTS)]
    processor = next(model.parameters()).device
    real = distill_inputs(torch.from_numpy(np.asarray(some_NS, np.int64)).to(processor))
    new = student_written_text(model, real, some_NS.shape[1], arithmetic, Lesson(), derive(key, "diversity"))
    pairs = torch.stack([new.x_BT, new.y_BT], -1)[new.counted_BT]
    return len(torch.unique(pairs, dim=0)) / len(pairs)
