"""A server and two households' devices: keywords are learnt over HTTPS, from clips that stay on the devices."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from agents import devices

from e2e.test_served_runs import edgewise, serving
from unit.learn.keywords.made_clips import WORDS, spectrograms, write

RECIPE = """
name = "words"
seed = 7
privacy = "none"
[data]
source = "keywords"
path = "vendor.npz"
[keywords]
computes = "{computes}"
width = 8
layers = 1
heads = 2
test = 4
public = 4
clips = 3
base_steps = 5
base_batch = 8
[round]
rounds = 2
minimum = 1.0
deadline_s = 300
[training]
local_steps = 2
batch = 4
lr = 3e-3
[eval]
on_devices = {measured}
"""
POLICY = """
[data]
source = "keywords"
path = "own.npz"
[privacy]
words = ["none"]
"""


def household(folder: Path, number: int, tested: bool) -> np.ndarray:
    """Write a device's file: ten clips of one word that it owns, two of each that are public, and its test."""
    own, public = spectrograms(number, 10, 50 + number), [spectrograms(word, 2, 2) for word in range(3)]
    test = [spectrograms(word, 3, 60) for word in range(3 * tested)]
    spoken = [WORDS[number]] * 10 + [word for word in WORDS for _ in range(2)]
    spoken += [word for word in WORDS for _ in range(3 * tested)]
    owner = ["me"] * 10 + [""] * (len(spoken) - 10)
    marks = np.arange(len(spoken)) >= 16
    x = np.concatenate([own, *public, *test])
    np.savez(folder / "own.npz", x=x, keyword=np.array(spoken), owner=np.array(owner), test=marks)
    return own


@pytest.mark.slow
@pytest.mark.parametrize("computes", ["numpy", pytest.param("torch", marks=pytest.mark.long(sample=1))])
def test_two_households_teach_a_model_their_words(computes: str, tmp_path: Path) -> None:
    write(tmp_path / "vendor.npz")
    measured = computes == "numpy"
    (tmp_path / "recipe.toml").write_text(RECIPE.format(computes=computes, measured=str(measured).lower()))
    admin, folder, homes, spoken = tmp_path / "admin", tmp_path / "server", [], []
    with serving(folder) as told:
        edgewise("join", told["url"], home=admin, EDGEWISE_TOKEN=told["token"])
        token = edgewise("token", "create", "--uses", 2, "--approved", home=admin)["text"]
        for number in range(2):
            home = tmp_path / f"device-{number}"
            edgewise("join", told["url"], home=home, EDGEWISE_TOKEN=token)
            (home / "policy.toml").write_text(POLICY)
            spoken.append(household(home, number, tested=measured and number == 0))
            homes.append(home)
        begun = edgewise("run", "submit", tmp_path / "recipe.toml", home=admin)
        with devices(homes) as agents:
            deadline = time.monotonic() + 200
            while (found := edgewise("run", "show", begun["run"][:12], home=admin))["state"] == "running":
                assert time.monotonic() < deadline
                time.sleep(1)
            if sys.platform == "linux":
                loaded = [Path(f"/proc/{agent.pid}/maps").read_text() for agent in agents]
                assert all(("libtorch" in maps) == (computes == "torch") for maps in loaded)
        replayed = edgewise("run", "verify", begun["run"][:12], home=admin)
    assert (found["state"], found["why"]) == ("finished", None)
    assert replayed["released"] == 2
    (out,) = (folder / "runs").iterdir()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["participation"]["accepted"] == 4
    stored = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    for clips in spoken:
        for clip in clips:
            for frame in clip[:, :]:
                assert not any(frame.tobytes() in raw for raw in stored), "a frame of a clip has left its device"
