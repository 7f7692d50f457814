"""Losses of distillation, beside their formulas in float64 by hand, and beside TRL's function where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgewise.learn.compress import distill  # noqa: E402
from edgewise.learn.text.marks import marked_document  # noqa: E402

B, T, V = 2, 5, 7


@pytest.fixture
def drawn() -> tuple[Any, Any, Any, Any]:
    """Logits of the student and the teacher, the next tokens, and the predictions that count."""
    rng = np.random.default_rng(0)
    z_s, z_t = (torch.from_numpy(3 * rng.standard_normal((B, T, V))) for _ in range(2))
    counted = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 0, 1, 1]], dtype=torch.bool)
    return z_s.requires_grad_(), z_t, torch.from_numpy(rng.integers(0, V, (B, T))), counted


def rows(z: Any, counted: Any, tau: float = 1.0) -> np.ndarray:
    """softmax(z / tau) of the counted predictions, by numpy."""
    e = np.exp(z.detach().numpy()[counted.numpy()] / tau)
    return np.asarray(e / e.sum(-1, keepdims=True))


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum(-1).mean())


@pytest.mark.parametrize("tau", [1.0, 2.5])
def test_classic_distillation_is_tau_squared_times_kl(drawn: Any, tau: float) -> None:
    z_s, z_t, _, counted = drawn
    wanted = tau**2 * kl(rows(z_t, counted, tau), rows(z_s, counted, tau))
    assert distill.distillation_divergence(z_s, z_t, counted, tau).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_jensen_shannon_is_the_formula_and_kl_at_both_ends(drawn: Any, beta: float) -> None:
    z_s, z_t, _, counted = drawn
    s, t = rows(z_s, counted, 1.5), rows(z_t, counted, 1.5)
    m = (1 - beta) * s + beta * t
    wanted = {0.0: kl(t, s), 1.0: kl(s, t)}.get(beta, beta * kl(t, m) + (1 - beta) * kl(s, m))
    assert distill.jensen_shannon_loss(z_s, z_t, counted, beta, 1.5).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_jensen_shannon_equals_trl(drawn: Any, beta: float) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd")
    z_s, z_t, y, counted = drawn
    wanted = gkd.GKDTrainer.generalized_jsd_loss(z_s, z_t, y.masked_fill(~counted, -100), beta, 1.5)
    torch.testing.assert_close(distill.jensen_shannon_loss(z_s, z_t, counted, beta, 1.5), wanted)


@pytest.mark.slow
def test_next_token_is_torch_s_cross_entropy_of_what_counts(drawn: Any) -> None:
    z_s, _, y, counted = drawn
    wanted = torch.nn.functional.cross_entropy(z_s[counted], y[counted])
    torch.testing.assert_close(distill.next_token_loss(z_s, y, counted), wanted)


def test_top_logits_leave_out_the_divergence_inside_the_rest(drawn: Any) -> None:
    z_s, z_t, _, counted = drawn
    s, t, tau = rows(z_s, counted, 2.0), rows(z_t, counted, 2.0), 2.0
    bias = 0.0
    for p, q in zip(t, s, strict=True):
        out = np.argsort(-p)[3:]
        r = p[out].sum()
        bias += tau**2 * r * (p[out] / r * np.log((p[out] / r) / (q[out] / q[out].sum()))).sum() / len(t)
    whole = distill.distillation_divergence(z_s, z_t, counted, tau).item()
    found = distill.top_logits_divergence(z_s, distill.top_logits(z_t, 3, tau), counted).item()
    assert bias > 0
    assert found == pytest.approx(whole - bias, rel=1e-9)


def test_all_logits_as_top_logits_are_the_whole_divergence_with_its_gradient(drawn: Any) -> None:
    z_s, z_t, _, counted = drawn
    losses = [
        distill.distillation_divergence(z_s, z_t, counted, 2.0),
        distill.top_logits_divergence(z_s, distill.top_logits(z_t, V, 2.0), counted),
    ]
    gradients = [torch.autograd.grad(loss, z_s)[0] for loss in losses]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_what_does_not_count_moves_nothing_even_where_it_is_not_a_number(drawn: Any) -> None:
    z_s, z_t, y, counted = drawn
    broken = z_s.detach().masked_fill(~counted[..., None], torch.nan).requires_grad_()
    top = distill.top_logits(z_t, 3)
    for loss in (
        lambda z: distill.distillation_divergence(z, z_t, counted),
        lambda z: distill.jensen_shannon_loss(z, z_t, counted, 0.5),
        lambda z: distill.top_logits_divergence(z, top, counted),
        lambda z: distill.next_token_loss(z, y, counted),
    ):
        (wanted,), (found,) = (torch.autograd.grad(loss(z), z) for z in (z_s, broken))
        torch.testing.assert_close(found, wanted)
        assert not found[~counted].any()
        assert loss(z_s).item() == loss(broken).item()
    nothing = torch.zeros_like(counted)
    assert distill.distillation_divergence(z_s, z_t, nothing).item() == 0.0


def test_the_teacher_takes_no_gradient_and_equal_models_have_no_loss(drawn: Any) -> None:
    z_s, z_t, _, counted = drawn
    teacher = z_t.clone().requires_grad_()
    distill.distillation_divergence(z_s, teacher, counted).backward()
    assert teacher.grad is None
    assert distill.distillation_divergence(z_t, z_t, counted).item() == pytest.approx(0.0, abs=1e-12)
    assert distill.jensen_shannon_loss(z_t, z_t, counted, 0.4).item() == pytest.approx(0.0, abs=1e-12)


def test_logits_of_16_bits_are_compared_in_32() -> None:
    z = torch.tensor([[[10.0, 9.0, -20.0]]], dtype=torch.bfloat16)
    loss = distill.distillation_divergence(z, z.flip(-1), torch.ones(1, 1, dtype=torch.bool))
    assert loss.dtype is torch.float32


def test_blocks_become_inputs_next_tokens_and_a_mask() -> None:
    s_BS = torch.from_numpy(
        np.stack([[~9, ~4, 5, 6, ~0], marked_document(np.array([~9, 3, 4, 5, 6], np.int32))])
    ).long()
    found = distill.distill_inputs(s_BS)
    assert found.x_BT.tolist() == [[9, 4, 5, 6], [9, 3, 4, 5]]
    assert found.y_BT.tolist() == [[4, 5, 6, 0], [3, 4, 5, 6]]
    assert found.counted_BT.tolist() == [[False, True, True, False], [True] * 4]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda z: distill.distillation_divergence(z, z[..., :-1], torch.ones(B, T, dtype=torch.bool)),
        lambda z: distill.distillation_divergence(z, z, torch.ones(B, T, dtype=torch.bool), 0.0),
        lambda z: distill.jensen_shannon_loss(z, z, torch.ones(B, T, dtype=torch.bool), 1.5),
        lambda z: distill.top_logits(z, 0),
    ],
)
def test_other_shapes_and_parameters_out_of_range_are_refused(drawn: Any, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"shape|tau|beta"):
        wrong(drawn[1])
