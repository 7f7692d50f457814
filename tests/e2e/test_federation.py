"""A federation of objects on a tiny model: rounds in a loop, resume, what a changed object does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tiny_model import LINES, tokenizer

import edgewise as ew
from edgewise.core import events

pytestmark = pytest.mark.slow
QUICK = ew.Recipe(
    privacy="none", rounds=2, local_steps=1, batch=2, sequence_len=16, eval={"every": 1, "max_tokens": 64},
    compare={"local_only": False, "centralised": False},
)  # fmt: skip


def tiny(seed: int = 0) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=1,
            )
        )  # fmt: skip


def data() -> dict[str, Any]:
    return {"alice": LINES[:8], "bob": ({"text": line} for line in LINES[4:]), "carol": lambda: LINES[2:12]}


def federation(**more: Any) -> ew.Federation:
    given = {"model": tiny(), "tokenizer": tokenizer(), "data": data(), **more}
    return ew.Federation(given.pop("recipe", QUICK), **given)


def test_a_loop_that_stops_is_gone_on_with_to_the_same_bytes(tmp_path: Path) -> None:
    before = tiny().state_dict()
    told: list[events.AnyEvent] = []
    whole = federation(sinks=[told.append]).run(tmp_path / "whole")
    for round in federation().rounds(tmp_path / "parts"):
        assert round.number == 0
        assert {"loss_last", "held_out_loss"} <= round.metrics.keys()
        break
    parts = ew.open_run(tmp_path / "parts")
    assert (len(parts.rounds), parts.summary["complete"]) == (1, False)
    assert [r.number for r in federation().rounds(tmp_path / "parts")] == [1]
    parts = ew.open_run(tmp_path / "parts")
    assert parts.vector().tobytes() == whole.vector().tobytes()
    assert parts.summary["complete"]
    assert [e.number if isinstance(e, ew.Round) else e.round for e in told if isinstance(e, events.RoundFinished)] == [
        0,
        1,
    ]
    assert whole.rounds.column("perplexity")[-1] == whole.summary["perplexity"]["federated"]["weighted_mean"]
    assert whole.devices.column("device") == ["alice", "bob", "carol"]
    model = whole.model()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (model.state_dict()[name].numpy() == whole.params()[name]).all()
    assert not (model.state_dict()[name] == before[name]).all()
    assert all((x == before[k]).all() for k, x in tiny().state_dict().items())
    assert len(repr(whole)) < 300
    assert "alice" not in whole._repr_html_()
    assert (tmp_path / "whole" / "objects" / "data.jsonl").stat().st_mode & 0o077 == 0 or os.name == "nt"


def test_a_changed_object_is_refused_by_name(tmp_path: Path) -> None:
    for _ in federation().rounds(tmp_path / "run"):
        break
    changed = {"alice": LINES[:8], "bob": LINES[4:], "carol": LINES}
    with pytest.raises(ew.EdgewiseError, match=r"E-RESUME: the data of 'carol' changed since"):
        federation(data=changed).run(tmp_path / "run", resume=True)
    with pytest.raises(ew.EdgewiseError, match=r"E-RESUME: the data of 'dan' is new"):
        federation(data={**data(), "dan": LINES}).run(tmp_path / "run", resume=True)
    with pytest.raises(ew.EdgewiseError, match="E-RESUME: the model changed"):
        federation(model=tiny(1)).run(tmp_path / "run", resume=True)
    copy = tmp_path / "run" / "objects" / "recipe.toml"
    copy.write_bytes((tmp_path / "run" / "recipe.toml").read_bytes())
    with pytest.raises(ew.EdgewiseError, match="E-RESUME: this run began from Python objects"):
        ew.simulate(copy, out=tmp_path / "run", resume=True)
    with pytest.raises(ew.EdgewiseError, match="E-RUN-EXISTS"):
        federation().run(tmp_path / "run")
    run = federation(data=changed).run(tmp_path / "run", overwrite=True)
    assert run.summary["complete"]


def test_a_callback_lets_the_run_rest(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    stops = [lambda round: ew.STOP if round.number == 0 else None, ew.CsvLogger(log)]
    rested = federation(callbacks=stops).run(tmp_path / "run")
    assert (len(rested.rounds), rested.summary["complete"]) == (1, False)
    assert (tmp_path / "run" / "report.html").is_file()
    on = federation(callbacks=stops).run(tmp_path / "run", resume=True)
    assert on.summary["complete"]
    rows = log.read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["round", "0", "1"]
    assert "held_out_loss" in rows[0]
    patient = federation(callbacks=[ew.EarlyStopping(2)])
    assert (patient.recipe.round.patience, patient.recipe.round.keep) == (2, "best")


def test_an_epsilon_alone_runs(tmp_path: Path) -> None:
    recipe = ew.Recipe(
        privacy="distributed_dp", rounds=2, epsilon=8.0, sequence_len=16, eval={"max_tokens": 64},
        compare={"local_only": False, "centralised": False},
    )  # fmt: skip
    fed = federation(recipe=recipe, data={f"d{i}": LINES[i : i + 6] for i in range(6)})
    assert "training.lr" in str(fed.check(fast=True))
    run = fed.run(tmp_path / "run")
    assert run.summary["rounds"]["met"] == 2
    assert max(run.rounds.column("epsilon")) == pytest.approx(8.0, rel=0.02)
