"""A run goes on only where the processor and the libraries compute the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy_recipe

from edgewise.drivers.workers import arithmetic
from edgewise.learn.probe import arithmetic_probe
from edgewise.plan.recipe.sections import TrainingSection

SUPPORT = Path(__file__).parents[1] / "support"
OTHERS = {
    "OPENBLAS_CORETYPE": ["Prescott", "Haswell"],
    "NPY_DISABLE_CPU_FEATURES": ["X86_V4 AVX512_ICL", "X86_V3", "ASIMDHP"],
}
TORCH = {
    "ATEN_CPU_CAPABILITY": ["default", "avx2"],
    "MKL_ENABLE_INSTRUCTIONS": ["AVX2", "SSE4_2"],
    "ONEDNN_MAX_CPU_ISA": ["AVX2"],
}


def python(*arguments, **changed):
    path = os.pathsep.join([str(SUPPORT), *sys.path])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **changed}
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout.strip()


def other(script, settings):
    """Environment variables under which a script says something else than here; skips where there are none."""
    here = python("-c", script)
    assert here == python("-c", script)
    for name, values in settings.items():
        for value in values:
            if python("-c", script, **{name: value}) not in (here, (1, "")):
                return {name: value}
    pytest.skip("no setting of this processor changes the bits")
    return {}


@pytest.mark.slow
def test_the_probe_is_of_the_processor_and_the_optimizer_alone():
    assert len(arithmetic.digest(None)) == 64
    adamw = arithmetic_probe(TrainingSection())
    assert adamw == arithmetic_probe(TrainingSection(lr=1e-4, local_steps=3, batch=32, accumulate=4))
    assert adamw != arithmetic_probe(TrainingSection(optimizer="muon"))


@pytest.mark.slow
def test_other_instructions_show_in_the_probe():
    script = (
        "import hashlib, torch\nfrom edgewise.learn.probe import probe\n"
        "from edgewise.plan.recipe.sections import TrainingSection\n"
        "torch.set_num_threads(1)\nprint(hashlib.sha256(probe(TrainingSection())).hexdigest())"
    )
    assert other(script, TORCH)


@pytest.mark.slow
def test_a_run_is_not_resumed_where_bits_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed = other("from edgewise.drivers.workers import arithmetic\nprint(arithmetic.digest(None))", OTHERS)
    Path("toy.toml").write_text(toy_recipe.TEXT, encoding="utf-8")
    Path("stops.py").write_text(
        "import sys, toy\nfrom edgewise.plan.catalogue import Extension\n"
        "class Stops(toy.ToyTrainer):\n    def fit(self, request):\n"
        "        if request.round == 2 and not __import__('os').environ.get('GO_ON'):\n            sys.exit(9)\n"
        "        return super().fit(request)\n"
        "EDGEWISE = Extension(trainer=Stops)\n",
        encoding="utf-8",
    )
    sim = ["-m", "edgewise.apps.cli.main", "sim", "toy.toml", "--extension", "stops", "--json", "--out"]
    here = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(SUPPORT), *sys.path])}
    assert python(*sim, "run", **here)[0] == 2  # the code of an extension failed
    status, said = python(*sim, "run", "--resume", **here, **changed, GO_ON="1")
    error = json.loads(said)["error"]
    assert (status, error["code"]) == (2, "E-RESUME")
    assert "what this processor computes" in error["what"]
    assert "go on where it began" in error["fix"]
    status, said = python(*sim, "run", "--resume", **here, GO_ON="1")
    whole, whole_said = python(*sim, "whole", **here, GO_ON="1")
    assert (status, whole) == (0, 0)
    assert json.loads(said)["summary"]["model_sha256"] == json.loads(whole_said)["summary"]["model_sha256"]
