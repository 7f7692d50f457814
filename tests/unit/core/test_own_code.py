"""Errors of extensions: an exception anywhere becomes an error that names its line, and nothing committed is lost."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgewise.core.errors import EdgewiseError, RecipeError
from edgewise.core.own_code import fault_of, line_of, type_and_line
from edgewise.drivers.storage.run_store import RunStore
from support.commands import call

TRAINER = """
import os
import toy
from edgewise.core.training import HeldOut, Update
from edgewise.plan.catalogue import Extension

class Mine(toy.ToyTrainer):
    def {method}:
        {body}

EDGEWISE = Extension(trainer=lambda recipe: Mine(recipe))
"""
STAGE = """
import toy
from edgewise.core.part import part
from edgewise.core.stage import Stage
from edgewise.plan.catalogue import Extension

@part
def mine() -> Stage:
    {part}
    def infer(space):
        {infer}
        return space
    def encode(payload, memory, space, turn):
        {encode}
        return payload, memory
    def decode(payload, space, turn):
        {decode}
        return payload
    def says(before, after):
        {says}
        return "passes it on"
    return Stage("mine", infer, encode, decode, says)

EDGEWISE = Extension(parts=(mine,), trainer=toy.EDGEWISE.trainer)
"""
RECIPE = """
privacy = "none"
[round]
rounds = 2
[compare]
centralised = false
local_only = false
"""
BUG = "return None + 1"
PLACES = ("part", "infer", "encode", "decode", "says")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2] / "support"), *sys.path])
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    (tmp_path / "r.toml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def sim(source: str, *more: str, recipe: str = RECIPE) -> tuple[int, dict[str, str]]:
    Path("own_parts.py").write_text(source, encoding="utf-8")
    Path("r.toml").write_text(recipe, encoding="utf-8")
    sys.modules.pop("own_parts", None)
    importlib.invalidate_caches()
    done = call("sim", "r.toml", "--out", "run", "--extension", "own_parts.py", "--quiet", "--json", *more)
    return done.exit_code, json.loads(done.stdout.splitlines()[-1]).get("error", {})


def staged(**bodies: str) -> str:
    return STAGE.format(**{**dict.fromkeys(PLACES, "pass"), **bodies})


@pytest.mark.quick(sample=2)
@pytest.mark.parametrize("place", PLACES)
def test_a_fault_of_a_codec_is_told_with_its_line(place: str) -> None:
    source = staged(**{place: BUG})
    status, error = sim(source, recipe=RECIPE + '[[stage]]\nkind = "mine"\n')
    line = source.splitlines().index(f"{'    ' if place == 'part' else '        '}{BUG}") + 1
    function = "mine" if place == "part" else place
    assert (status, error["code"]) == (2, "E-EXTENSION")
    assert error["what"].startswith(f"own_parts.py:{line}, in {function}: TypeError: unsupported operand")
    assert "--resume" in error["fix"]


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize(
    ("place", "body", "said"),
    [
        ("infer", "return 3", "mine: infer returned int, needs Space."),
        ("encode", "return payload", "mine: encode returned Payload, needs tuple."),
        ("encode", "return 1, memory", "mine: encode returned int, needs Payload."),
        ("decode", "return payload.body", "mine: decode returned ndarray, needs Payload."),
    ],
)
def test_what_a_codec_gives_is_looked_at(place: str, body: str, said: str) -> None:
    """A fault while a device encodes costs only that device's contribution. Other faults end the run."""
    _, error = sim(staged(**{place: body}), recipe=RECIPE + '[[stage]]\nkind = "mine"\n')
    assert error["code"] == ("E-ROUND" if place == "encode" else "E-EXTENSION")
    assert said.rstrip(".") in error["what"]


@pytest.mark.slow
def test_a_run_goes_on_once_the_fault_is_mended(tmp_path: Path) -> None:
    """The first round is kept. Its model equals that of a run without the fault."""
    recipe = RECIPE + '[[stage]]\nkind = "mine"\n'
    status, error = sim(staged(encode="assert turn.round == 0"), recipe=recipe)
    assert (status, error["what"].split(": ")[1]) == (2, "AssertionError.")
    with RunStore(Path("run")) as store:
        first = store.models()[1]
    assert sim(staged(), "--resume", recipe=recipe) == (0, {})
    with RunStore(Path("run")) as store:
        assert store.models()[1] == first
        models = store.models()
    Path("run").rename("mended")
    assert sim(staged(), recipe=recipe) == (0, {})
    with RunStore(Path("run")) as store:
        assert store.models() == models


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize(
    ("method", "body", "code", "said"),
    [
        ("__init__(self, recipe)", BUG, "E-EXTENSION", "own_parts.py:9, in __init__: TypeError: unsupported operand"),
        ("devices(self)", "raise SystemExit(3)", "E-EXTENSION", "own_parts.py:9, in devices: SystemExit: 3."),
        ("initial(self)", "return [0.0]", "E-EXTENSION", "Mine.initial returned list, needs float32[50]."),
        ("describe(self)", "return {'a': object()}", "E-EXTENSION", "Mine.describe gave no plain JSON"),
        ("fit(self, request)", BUG, "E-ROUND", "lost by E-TRAIN: TypeError (own_parts.py:9, in fit)."),
        ("fit(self, request)", "return 3", "E-ROUND", "E-TRAIN: Mine.fit returned int, needs a core.training.Update."),
        (
            "fit(self, request)", "u = super().fit(request); return Update(u.x[:3], u.head, u.count)",
            "E-ROUND", "an update whose x is float32[3], needs float32[50].",
        ),
        ("evaluate(self, device, params)", BUG, "E-TRAIN", "TypeError (own_parts.py:9, in evaluate)"),
        ("evaluate(self, device, params)", "return HeldOut('a', 1)", "E-TRAIN", "evaluate returned HeldOut(str, int)"),
    ],
)  # fmt: skip
def test_a_fault_of_a_trainer_is_told_with_its_line(method: str, body: str, code: str, said: str) -> None:
    status, error = sim(TRAINER.format(method=method, body=body))
    assert (status, error["code"]) == (2 if code == "E-EXTENSION" else 1, code)
    assert said in error["what"]


@pytest.mark.slow
def test_a_run_in_which_nobody_could_train_is_no_success_when_it_is_resumed(tmp_path: Path) -> None:
    source = TRAINER.format(method="fit(self, request)", body=BUG)
    for more in ((), ("--resume",)):
        status, error = sim(source, *more)
        assert (status, error["code"]) == (1, "E-ROUND")


@pytest.mark.parametrize("method", ["sizes(self)", "notes(self)", "fit(self, request)"])
def test_check_names_the_line_too(method: str) -> None:
    Path("own_parts.py").write_text(TRAINER.format(method=method, body=BUG), encoding="utf-8")
    done = call("check", "r.toml", "--extension", "own_parts.py")
    if method == "fit(self, request)":  # this trainer measures no step
        assert done.exit_code == 0
        return
    assert done.exit_code == 2
    assert f"E-EXTENSION: own_parts.py:9, in {method.split('(')[0]}: TypeError" in " ".join(done.stderr.split())


@pytest.mark.slow
@pytest.mark.parametrize("body", [BUG, "raise SystemExit(3)"])
def test_a_worker_process_names_the_line_too(body: str) -> None:
    status, error = sim(TRAINER.format(method="describe(self)", body=body), "--engine", "pool", "--workers", "2")
    assert (status, error["code"]) == (2, "E-EXTENSION")
    assert error["what"].startswith("own_parts.py:9, in describe: ")


@pytest.mark.slow
def test_numbers_of_numpy_are_numbers() -> None:
    body = "import numpy as np; h = super().evaluate(device, params); "
    body += "return HeldOut(np.float32(h.nll), np.int64(h.tokens))"
    assert sim(TRAINER.format(method="evaluate(self, device, params)", body=body)) == (0, {})


def raised(work: Callable[[], object]) -> BaseException:
    try:
        work()
    except BaseException as e:  # A trainer may raise anything.
        return e
    raise AssertionError("nothing was raised")


def test_what_is_no_fault_of_an_extension_stays_what_it_is(folder: Path) -> None:
    (folder / "own_parts.py").write_text(
        "import json\nfrom edgewise.core.errors import RecipeError\n"
        "def bad(): json.loads('{')\ndef named(): raise RecipeError('E-KEY', 'x')\n"
        "def stop(): raise KeyboardInterrupt\n",
        encoding="utf-8",
    )
    sys.path.insert(0, str(folder))
    own = importlib.import_module("own_parts")
    e = raised(own.bad)
    assert str(fault_of(e, ["own_parts"])).startswith("E-EXTENSION: own_parts.py:3, in bad: JSONDecodeError: Expecting")
    assert type_and_line(e) == "JSONDecodeError (own_parts.py:3, in bad)"
    assert [fault_of(raised(f), ["own_parts"]) for f in (own.named, own.stop)] == [None, None]
    assert fault_of(e, ["own_part", "parts"]) is None
    bug = raised(lambda: EdgewiseError("E-NONE", ""))
    assert fault_of(bug, ["own_parts"]) is None
    assert isinstance(fault_of(e, ["own_parts"]), RecipeError)
    assert line_of(raised(lambda: json.loads("{"))).startswith("test_own_code.py:")
