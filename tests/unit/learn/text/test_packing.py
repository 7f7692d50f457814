"""Documents that share a block: none reads another, and loss and gradients are those of the documents alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
import tiny_models
import torch

from edgewise.core.errors import ModelError, RecipeError
from edgewise.learn.models.isolated import check_isolated
from edgewise.learn.models.load import TextLoss, load, token_positions
from edgewise.learn.text.blocks import Blocks, build
from edgewise.learn.text.corpus import Document
from edgewise.learn.text.marks import unmarked
from edgewise.learn.text.tokens import Tokens
from edgewise.plan.recipe.data import DataSection
from edgewise.plan.recipe.recipe import from_plain

ROWS = [
    Document("row", "the quick", f" {text}") for text in ("brown fox", "dog", "return a + b", "a device trains", "b")
]
TEXTS = [
    Document("row", "", text) for text in ("a device trains on its own text", "return a + b", "the lazy dog jumps")
]


def blocks(packing: str, documents: list[Document], length: int = 32, **keys: Any) -> Blocks:
    given = {"source": "jsonl", "path": "t.jsonl", "owner": "who", "holdout": 0.01, "sequence_len": length, **keys}
    section = DataSection(**given, packing=packing)
    return build(documents, Tokens(tiny_model.tokenizer()), section, cut_each=False)


def fitted(model: Any, isolated: bool, blocks_NS: np.ndarray) -> tuple[float, torch.Tensor]:
    """The summed loss of some blocks and its gradient."""
    model.zero_grad()
    n = int((blocks_NS[:, 1:] >= 0).sum())
    loss, _ = TextLoss(torch.float32, isolated)(model.eval(), (torch.from_numpy(blocks_NS.astype(np.int64)), n))
    (loss * n).backward()
    return float(loss.detach()) * n, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.quick(sample=2)
@pytest.mark.parametrize("documents", [ROWS, TEXTS], ids=["rows", "texts"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mixtral"])
def test_loss_and_gradient_are_those_of_the_documents_alone(
    name: str, documents: list[Document], tmp_path: Path
) -> None:
    where = tiny_models.save(name, tmp_path)
    model = load(str(where), where).model
    keys = {"prompt": "prompt"} if documents is ROWS else {}
    shared = blocks("isolated", documents, 48, **keys).train_NS
    alone = blocks("none", documents, 48, **keys).train_NS
    assert len(shared) < len(alone)
    assert (shared[:, 1:] >= 0).sum() == (alone[:, 1:] >= 0).sum()
    loss, gradient = fitted(model, True, shared)
    wanted, wanted_gradient = fitted(model, False, alone)
    assert loss == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-3, atol=1e-5)
    joined, _ = fitted(model, False, blocks("joined", documents, 48, **keys).train_NS)
    assert joined != pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "gpt-oss"])
def test_an_architecture_that_cannot_is_refused(name: str, tmp_path: Path) -> None:
    where = tiny_models.save(name, tmp_path)
    loaded = load(str(where), where)
    with pytest.raises(ModelError, match="cannot keep documents of one block apart") as e:
        check_isolated(loaded.model, loaded.tokens, 32, loaded.name)
    assert e.value.code == "E-MODEL"
    assert 'packing = "none"' in e.value.fix


def test_positions_begin_anew_and_marks_come_off() -> None:
    begins = torch.tensor([[False, False, True, False, True, True, False]])
    assert token_positions(begins).tolist() == [[0, 1, 0, 1, 0, 0, 1]]
    shared, joined = (blocks(packing, ROWS, prompt="prompt").train_NS for packing in ("isolated", "joined"))
    marked = np.where(shared < 0, ~shared, shared) >> 30
    assert marked.sum() == 4  # The last row is held out.
    assert unmarked(shared).max() < 300
    assert ((shared >= 0) == (unmarked(shared) >= 0)).all()
    assert (unmarked(joined) == joined).all()
    # A row that is longer than a block goes on in the next one, which begins with its middle.
    long = blocks("isolated", [Document("row", "a", "the lazy dog " * 9)] * 2, length=8, prompt="prompt").train_NS
    assert (np.where(long < 0, ~long, long) >> 30).sum(1).tolist() == [1, *[0] * (len(long) - 1)]


def test_records_of_example_privacy_hold_one_document() -> None:
    tables = {
        "schema": 1, "privacy": "local_dp", "data": {"packing": "isolated"},
        "dp": {"unit": "example", "epsilon": 4.0, "delta": 1e-5, "clip_l2": 1.0, "sample_rate": 0.1},
    }  # fmt: skip
    with pytest.raises(RecipeError, match=r"E-COMBO.*data\.packing"):
        from_plain(tables)
