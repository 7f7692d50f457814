"""The recipe of the whole workflow: its order is sound, the sketched order is refused, and it is small."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from edgewise.apps.cli.shipped import FOLDER
from edgewise.core.errors import EdgewiseError
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.loading import load

DEVICES, LIMIT_BYTES = 480, 5_000_000
ADAPTERS = [("a.lora_B", (128, 8), "float32"), ("b.lora_B", (384, 8), "float32")]
# FFA-LoRA of rank 8 on all linear layers of a Llama with 302,557,184 parameters: 21 layers of width 1024.
WIDTHS = {"q": 1024, "k": 1024, "v": 1024, "o": 1024, "gate": 2816, "up": 2816, "down": 1024}
LARGE = [(f"layers.{i}.{name}.lora_B", (out, 8), "float32") for i in range(21) for name, out in WIDTHS.items()]


def planned(shapes: list[tuple[str, tuple[int, int], str]] = ADAPTERS, **overrides: Any) -> Plan:
    read = load(FOLDER / "edge-llm.toml", overrides, BUILT_IN)
    return compile(read, Spec.of(shapes), DEVICES, BUILT_IN)


def test_the_clip_is_the_last_step_that_changes_the_length_and_noise_comes_before_the_shares() -> None:
    plan = planned()
    names = [stage.name.partition("(")[0] for stage in plan.at(0).stages]
    assert names == ["clip", "rotate", "discrete_gaussian", "wrap"]
    assert plan.spend is not None
    assert 0 < plan.spend.card.against_server < inf
    assert plan.spend.z == 0.8


@pytest.mark.parametrize(
    "stages", [[{"kind": "random_k", "fraction": 0.25}], [{"kind": "shared_top_k", "fraction": 0.25}]]
)
def test_public_coordinates_stand_before_the_clip(stages: list[dict[str, Any]]) -> None:
    names = [stage.name.partition("(")[0] for stage in planned(stage=stages).at(0).stages]
    assert names == [stages[0]["kind"], "clip", "rotate", "discrete_gaussian", "wrap"]


@pytest.mark.parametrize("privacy", ["distributed_dp", "hidden"])
def test_a_devices_own_top_k_is_refused_before_noise_and_before_shares(privacy: str) -> None:
    """The sketch sparsifies first: noise would hide values and not positions, and shares would not line up."""
    own: dict[str, Any] = {"stage": [{"kind": "top_k", "fraction": 0.005}]}
    if privacy == "hidden":
        own["stage"] += [{"kind": "quantize", "grid": "shared", "bits": 8}, {"kind": "wrap", "bits": 16}]
        own |= {"privacy": privacy, "dp": {}, "stage": [{"kind": "clip", "l2": 1.0}, *own["stage"]]}
    with pytest.raises(EdgewiseError, match="E-TOPK-SECAGG") as caught:
        planned(**own)
    assert "random_k" in caught.value.fix


def test_a_student_of_300_million_parameters_sends_less_than_5_mb() -> None:
    plan = planned(LARGE)
    assert plan.spec.dim == 1_806_336
    assert plan.upload_bytes(0) <= LIMIT_BYTES
    assert plan.spend is not None
    assert plan.spend.card.against_server == pytest.approx(planned().spend.card.against_server, rel=0.02)  # type: ignore[union-attr]
