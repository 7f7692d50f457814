"""Train a device locally: some optimizer steps from the round's model, on one flat tensor.

Shape suffixes: D = all trainable coordinates; n = matrices of one shape, r = rows, c = columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgewise.core.errors import TrainingError
from edgewise.core.factors import columns
from edgewise.core.frame import LocalRule
from edgewise.core.keys import Key, derive
from edgewise.core.safe_repr import outline
from edgewise.core.training import Correction, StepNoise
from edgewise.core.vector import Vector
from edgewise.learn import dp_sgd
from edgewise.learn.flat import Flat, FlatStorage, segment_view
from edgewise.learn.seeded import seeded
from edgewise.plan.recipe.sections import TrainingSection

Batch = Any
Loss = Callable[[nn.Module, Batch], tuple[Tensor, float]]  # (mean loss over the batch, number of its terms)


class Penalty(NamedTuple):
    """A penalty for moving weights: sum_j ``importance``_j (w_j - ``anchor``_j)^2 / 2 is added to the loss.

    Both are float32[d].
    """

    importance: Vector
    anchor: Vector

    __repr__ = outline


class FittedModel(NamedTuple):
    """The result of local training.

    Attributes:
        x: w_after - w_before, float32[d].
        loss_first, loss_last: mean loss per term of the first and of the last quarter of the steps.
    """

    x: Vector
    loss_first: float
    loss_last: float

    def __repr__(self) -> str:
        return outline(self)


def fit(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Sequence[Batch]],
    flat: Flat,
    params: Vector,
    rule: LocalRule,
    training: TrainingSection,
    key: Key,
    optimizer: LocalOptimizer | None = None,
    dp: StepNoise | None = None,
    expected: float = 0.0,
    secret: Key | None = None,
    correction: Correction = Correction(),  # noqa: B008 (immutable)
    rank: int = 0,
    penalty: Penalty | None = None,
) -> FittedModel:
    """Take ``rule.steps`` steps of AdamW, Muon or SGD from ``params``, with fresh optimizer state.

    Each step computes, over its micro-batches m,

        g = sum_m n_m grad(loss_m) / sum_m n_m
        g += pull (w - params) + shift                (``correction``)
        g += importance (w - anchor)                  (``penalty``)
        g = 0 beyond column ``rank`` of each adapter  (where a rank is given)
        g *= min(1, clip / ||g||)

    and takes one optimizer step. ``rule.segments`` names the segments that are trained; empty = all.

    Args:
        loss: mean loss of a micro-batch, and the number n_m of its terms (tokens).
        batches: for each step its micro-batches, at least one.
        flat: the trainable parameters of ``model``, all of which require a gradient.
        params: float32[d], the round's model. It is not changed.
        key: decides dropout without ``dp``. torch's global generator is left as it was.
        optimizer: buffers to reuse between calls, zeroed first. None makes new ones.
        dp: adds noise to every step's gradient (``dp_sgd``). Each micro-batch is then a row number and one record, and
            a step may have none.
        expected: mean number of records in a step, with ``dp``.
        secret: decides the noise, and dropout record by record. ``dp`` needs it.
        correction: the strategy's terms in the gradient. The default adds nothing.
        rank: number of columns of each adapter that train. The update is zero in the others. 0: all train.
        penalty: holds weights where they were. None holds none.
    Returns:
        The difference and the losses.
    Raises:
        TrainingError: E-NAN, with the step, where a loss (without ``dp``) or the update is not finite. E-TRAIN where
            the batches end too early.
        ValueError: for ``dp`` without ``secret``.
    Guarantees:
        Equal arguments and an equal number of torch threads give equal bits. Other segments keep their bits, do not
        count in ||g||, and cost no gradient.
    """
    if dp is not None and secret is None:
        raise ValueError("noise on every step needs a secret of the device's own")
    optimizer = optimizer or LocalOptimizer(training, flat)
    flat.write(params)
    local = LocalSteps(flat, optimizer, rule, training, correction, rank, penalty)
    if not model.training:
        model.train()
    seen: list[tuple[float, float]] = []  # per step: summed loss, terms
    with seeded(key), flat.only(rule.segments):
        for micro in dealt_batches(batches, rule.steps):
            flat.zero_grad()
            if dp is not None and secret is not None:
                step_key = derive(secret, "dp", len(seen))
                seen.append(dp_sgd.noised_gradient(model, loss, micro, flat, dp, expected, step_key))
            else:
                seen.append(_backward(model, loss, micro, flat.g_D))
            if dp is None and not math.isfinite(seen[-1][0]):
                raise TrainingError("E-NAN", f"the loss is {seen[-1][0]} at local step {len(seen)}.", LOWER)
            local.step()
    x = local.update(flat.minus(params))
    return FittedModel(x, *quarter_losses(seen))


class LocalSteps:
    """The steps of one device in a round: the strategy's terms in each gradient, its clip, and the optimizer.

    Args:
        storage: the device's weights, which are those of the round's model, and its gradient.
        optimizer: optimizer over ``storage``, whose state is zeroed here.
        rank, penalty: as in ``fit``.
    Attributes:
        names: the segments that move. Empty means all.
    """

    def __init__(
        self,
        storage: FlatStorage,
        optimizer: LocalOptimizer,
        rule: LocalRule,
        training: TrainingSection,
        correction: Correction,
        rank: int,
        penalty: Penalty | None = None,
    ) -> None:
        self._g_D, self._optimizer, self._rule, self._clip = storage.g_D, optimizer, rule, training.clip_grad
        self._beyond = torch.from_numpy(columns(storage.spec) >= rank).to(storage.w_D.device) if rank else None
        optimizer.reset(rule.segments)
        self.names = storage.moving(rule.segments)
        self._pull, shift = correction.pull, correction.shift
        vectors = (storage.w_D, storage.g_D, storage.w_D.clone()) if correction.pull else ()
        self._pulled = list(zip(*(storage.runs(x_D, rule.segments) for x_D in vectors), strict=True))
        vectors = (storage.g_D, torch.from_numpy(shift).to(storage.w_D.device)) if shift is not None else ()
        self._shifted = list(zip(*(storage.runs(x_D, rule.segments) for x_D in vectors), strict=True))
        kept = () if penalty is None else (torch.from_numpy(x).to(storage.w_D.device) for x in penalty)
        vectors = () if penalty is None else (storage.w_D, storage.g_D, *kept)
        self._penalised = list(zip(*(storage.runs(x_D, rule.segments) for x_D in vectors), strict=True))

    def step(self) -> None:
        """Take one step along the gradient. The gradient changes too."""
        for w, g, anchor in self._pulled:
            g.add_(w, alpha=self._pull).sub_(anchor, alpha=self._pull)
        for g, shift in self._shifted:
            g.add_(shift)
        for w, g, importance, anchor in self._penalised:
            g.addcmul_(importance, w - anchor)
        if self._beyond is not None:
            self._g_D[self._beyond] = 0.0
        if self._clip:
            norm = torch.linalg.vector_norm(self._g_D)
            self._g_D.mul_((self._clip / (norm + 1e-6)).clamp_(max=1.0))
        self._optimizer.step(self._rule.lr)

    def update(self, x: Vector) -> Vector:
        """Return the device's update from the difference ``x`` of its weights, which changes in place.

        Raises TrainingError(E-NAN) where it is not finite.
        """
        if self._beyond is not None:
            x[self._beyond.cpu().numpy()] = 0.0  # Weight decay moves weights without a gradient.
        if not all(map(math.isfinite, torch.aminmax(torch.from_numpy(x)))):
            raise TrainingError("E-NAN", f"the update is not finite after local step {self._rule.steps}.", LOWER)
        return x


LOWER = "lower training.lr, or set training.clip_grad."


def _backward(model: nn.Module, loss: Loss, micro: Sequence[Batch], g_D: Tensor) -> tuple[float, float]:
    """Compute the gradient of the mean over all micro-batches into ``g_D``. Returns the summed loss and the terms."""
    if len(micro) == 1:
        mean, n = mean_loss(loss, model, micro[0])
        mean.backward()
        return mean.item() * n, n
    total, terms = 0.0, 0.0
    for batch in micro:
        mean, n = mean_loss(loss, model, batch)
        (mean * n).backward()
        total, terms = total + mean.item() * n, terms + n
    g_D.div_(terms)
    return total, terms


def mean_loss(loss: Loss, model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
    """Return the mean loss and the terms of a batch, the terms as a number. A loss may return them as a tensor."""
    mean, n = loss(model, batch)
    return mean, float(n)


def dealt_batches(batches: Iterable[Sequence[Batch]], steps: int) -> Iterator[Sequence[Batch]]:
    """Iterate over the micro-batches of each step. Raises TrainingError(E-TRAIN) where they end before ``steps``."""
    stream = iter(batches)
    for step in range(steps):
        micro = next(stream, None)
        if micro is None:
            raise TrainingError("E-TRAIN", f"the data ends after {step} of {steps} steps.")
        yield micro


def quarter_losses(seen: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Compute the mean loss per term of the first and last quarter of steps, from (summed loss, terms) of each."""
    n = max(1, len(seen) // 4)
    first, last = ((sum(s for s, _ in part), sum(n for _, n in part)) for part in (seen[:n], seen[-n:]))
    return first[0] / max(first[1], 1e-30), last[0] / max(last[1], 1e-30)


class LocalOptimizer:
    """AdamW (Loshchilov and Hutter 2019; betas 0.9, 0.999, eps 1e-8), Muon or SGD on the flat tensor.

    AdamW calls the fused kernel of ``torch.optim.AdamW(fused=True)`` directly. Measured for 1.2 M parameters on one
    Zen 4 core, it takes 2 ms against 6.6 ms for the plain one. ``torch.optim`` itself costs each process 2.9 s for the
    import of ``torch._dynamo``. Tests hold all optimizers to the results of torch.optim.

    Muon (Jordan et al. 2024) trains the matrices of numbered layers (``model.layers.0.mlp.up_proj.weight``), LoRA's
    factors among them. AdamW trains the rest: embeddings, output head, gains and biases.

        m = 0.95 m + 0.05 g
        u = orthogonalised(0.05 g + 0.95 m)                     in the recipe's ``model.precision``
        w -= lr 0.2 sqrt(max(rows, columns)) u

    Such a step is as large as one of AdamW, so both share one lr (Liu et al. 2025, arXiv:2502.16982).
    """

    def __init__(self, training: TrainingSection, flat: FlatStorage, arithmetic: torch.dtype = torch.float32) -> None:
        self._arithmetic = arithmetic  # It is the dtype of Muon's orthogonalisation.
        self._training, self._flat, self.steps = training, flat, torch.zeros((), device=flat.w_D.device)
        pairs = {"sgd": bool(training.momentum), "adamw": 2, "muon": 2}[training.optimizer]
        # Untouched pages take no memory, so the state of segments that never move costs nothing.
        self.state = [torch.empty_like(flat.w_D) for _ in range(pairs)]
        self._ready = False

    def reset(self, names: Collection[str] = ()) -> None:
        """Zero the state, and let only the named segments move from now on. No name means all."""
        names, self._ready = self._flat.moving(names), True
        self.steps.zero_()
        for x_D in self.state:
            for run_D in self._flat.runs(x_D, names):
                run_D.zero_()
        columns = [self._flat.w_D, self._flat.g_D, *self.state]  # They are weights, gradients and moments.
        self._pieces = [self._flat.runs(x_D, names) for x_D in columns]
        self._muon: list[list[list[Tensor]]] = []  # Each shape has its weights, gradients and momenta.
        if self._training.optimizer == "muon":
            moving = [s for s in self._flat.spec.segments if not names or s.name in names]
            hidden = {s.name: s for s in moving if is_hidden_matrix(s.name, s.shape)}
            rest = [s for s in moving if s.name not in hidden]
            self._pieces = [[segment_view(x_D, s) for s in rest] for x_D in columns]
            for shape in sorted({s.shape for s in hidden.values()}):
                alike = [s for s in hidden.values() if s.shape == shape]
                self._muon.append([[segment_view(x_D, s) for s in alike] for x_D in columns[:3]])

    def step(self, lr: float) -> None:
        """Update w from g in place. ``g_D`` may change too."""
        if not self._ready:
            self.reset()
        decay = self._training.weight_decay
        if self._training.optimizer != "sgd":
            self.steps += 1
            if self._pieces[0]:
                torch._fused_adamw_(
                    *self._pieces, [], [self.steps] * len(self._pieces[0]),
                    lr=lr, beta1=0.9, beta2=0.999, weight_decay=decay, eps=1e-8, amsgrad=False, maximize=False,
                )  # fmt: skip
            for w, g, m in self._muon:
                torch._foreach_lerp_(m, g, 0.05)
                u = orthogonalised(torch.stack(torch._foreach_lerp(g, m, 0.95)).to(self._arithmetic)).float()
                if decay:
                    torch._foreach_mul_(w, 1 - lr * decay)
                torch._foreach_add_(w, u.unbind(), alpha=-lr * 0.2 * math.sqrt(max(u.shape[1:])))
            return
        for w, g, *momentum in zip(*self._pieces, strict=True):
            if decay:
                g.add_(w, alpha=decay)
            for m in momentum:  # From zero, the first momentum is the gradient itself, as in torch.optim.SGD.
                g = m.mul_(self._training.momentum).add_(g)
            w.add_(g, alpha=-lr)


def is_hidden_matrix(name: str, shape: Sequence[int]) -> bool:
    """Tell whether Muon trains this segment: a matrix in a numbered layer, so neither embeddings nor output head."""
    return len(shape) == 2 and any(part.isdecimal() for part in name.split("."))


def orthogonalised(x_nrc: Tensor) -> Tensor:
    """Move each matrix's singular values to about 1 (0.7 to 1.2), by five Newton-Schulz steps.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, with its coefficients.
    """
    if x_nrc.shape[1] > x_nrc.shape[2]:
        return orthogonalised(x_nrc.mT).mT
    x_nrc = x_nrc / torch.linalg.matrix_norm(x_nrc, keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        a_nrr = x_nrc @ x_nrc.mT
        x_nrc = torch.baddbmm(x_nrc, torch.baddbmm(a_nrr, a_nrr, a_nrr, beta=-4.7750, alpha=2.0315), x_nrc, beta=3.4445)
    return x_nrc
