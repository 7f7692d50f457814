"""The memory forecast of a training device, from its model's configuration alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny_model
import torch

from edgewise.learn.models.memory import MemoryForecast, forecast
from edgewise.plan.recipe.sections import TrainingSection
from edgewise.plan.recipe.trainable import TrainableSection

LORA = TrainableSection(kind="lora", rank=2, rule="fedit")
FULL = TrainableSection()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder without weights."""
    saved, bare = tiny_model.save(tmp_path_factory.mktemp("saved")), tmp_path_factory.mktemp("bare")
    shutil.copy(saved / "config.json", bare)
    return bare


def of(
    folder: Path, section: TrainableSection = LORA, dtype: torch.dtype = torch.float32, **training: object
) -> MemoryForecast:
    return forecast(folder, section, TrainingSection(**{"batch": 32, **training}), 64, dtype)


@pytest.mark.slow
def test_a_forecast_needs_no_weights(folder: Path) -> None:
    whole, adapted = of(folder, FULL), of(folder)
    parameters = 300 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    assert whole.weights == 4 * parameters
    assert whole.vectors == 4 * parameters * 7
    assert adapted.weights > whole.weights
    assert adapted.vectors < whole.vectors
    assert whole.total > sum(whole)


@pytest.mark.slow
def test_activations_hold_at_least_the_logits(folder: Path) -> None:
    tokens, vocabulary = 32 * 64, 300
    found = of(folder, FULL)
    assert found.activations > 3 * 4 * tokens * vocabulary  # logits, their log-softmax, and its gradient
    assert of(folder, FULL, batch=64).activations > 1.9 * found.activations
    assert of(folder, FULL, accumulate=8).activations < 0.5 * found.activations


@pytest.mark.slow
def test_precision_and_checkpointing_save_memory(folder: Path) -> None:
    plain, short = of(folder), of(folder, dtype=torch.bfloat16)
    assert short.weights < 0.6 * plain.weights
    assert short.activations < plain.activations
    assert of(folder, checkpointing=True).activations < 0.8 * plain.activations


@pytest.mark.slow
def test_a_quantized_base_is_counted_in_its_bits(folder: Path) -> None:
    plain = forecast(folder, LORA, TrainingSection(), 64, torch.float32)
    coded = forecast(folder, LORA, TrainingSection(), 64, torch.float32, "int8")
    linear = 2 * (4 * 32 * 32 + 3 * 32 * 64)
    assert plain.weights - coded.weights == pytest.approx(3 * linear, rel=0.1)
