"""Measurements of ``edgewise bench codecs``: size, error and speed of each rung of the ladder on a real update.

    encode_s    seconds to encode and pack one update (device); median
    decode_s    seconds to unpack, decode and add it to the total (server); median
    nmse        ||decoded - x||^2 / ||x||^2 of one contribution with empty codec memory. Error feedback sends the
                missing part in later rounds.

MB/s are of the float32 update: 4 d bytes in 1e6 bytes per second.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from edgewise.apps.report import numbers
from edgewise.codecs.feedback.inner import is_rescaled_sample
from edgewise.codecs.wire import pack
from edgewise.core import frame, keys
from edgewise.core.errors import DataError
from edgewise.core.memory import flat
from edgewise.core.metric import LOSSES
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.safe_repr import outline
from edgewise.core.space import HEAD_BOUND, Quorum, Space
from edgewise.core.stage import WEIGHT
from edgewise.core.training import FitRequest, Update
from edgewise.core.vector import Spec, Vector
from edgewise.drivers.workers.records import in_steps
from edgewise.drivers.workers.trainers import make_trainer
from edgewise.engine.trainer import Registered
from edgewise.plan.catalogue import BUILT_IN, Catalogue, make, with_extensions
from edgewise.plan.codec_choice.rungs import RUNGS, PlannedRung
from edgewise.plan.compile import compile as compile_plan
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.stages import build_stages

if TYPE_CHECKING:
    from rich.console import Console

Tables = Sequence[Mapping[str, Any]]
WEIGH = {"kind": "weigh", "cap": 1.0}
OWN = "this recipe"
LINK_BIT_S = 1e6


@dataclass(frozen=True)
class Measured:
    """Measurement of one chain on one update.

    It holds seconds (medians), the packed contribution, its error, and the size of the codec memory on the device.
    """

    encode_s: float
    decode_s: float
    payload: bytes
    nmse: float
    memory_bytes: int

    __repr__ = outline


def bench_chain(tables: Tables, spec: Spec, catalogue: Catalogue = BUILT_IN) -> Pipeline:
    """Build the pipeline of ``[[stage]]`` tables with a plain sum. Raises as ``pipeline`` and ``catalogue.make``."""
    start = Space(dim=spec.dim, quorum=Quorum(1, 64), head=LOSSES, head_l2=HEAD_BOUND * sqrt(len(LOSSES)))
    merge = make(catalogue.merges, "[merge]", {"kind": "sum"}, spec)
    return pipeline(start, build_stages(tables, spec, catalogue.stages), merge)


def rung_tables(rung: PlannedRung, spec: Spec, catalogue: Catalogue = BUILT_IN) -> list[Mapping[str, Any]]:
    """Build a rung's ``[[stage]]`` tables as in a recipe: after ``weigh``, and inside ``feedback`` if they are biased.

    A biased rung stays without feedback if its sample is rescaled to stand for all coordinates.
    """
    plain = [WEIGH, *rung.stages]
    encoded = bench_chain(plain, spec, catalogue).encoded
    alone = (
        encoded.unbiased or encoded.memory or is_rescaled_sample(bench_chain([WEIGH], spec, catalogue).encoded, encoded)
    )
    return plain if alone else [WEIGH, {"kind": "feedback"}, *rung.stages]


def bench_chain_once(pipe: Pipeline, update: Update, repeats: int) -> Measured:
    """Encode and decode ``update`` ``repeats`` times from empty memory, after one more time to compile the kernels.

    Raises TrainingError(E-NAN) for an update that is not finite, and the errors of the stages.
    """
    total, up, down = pipe.start_sum(), [], []
    raw, after, turn = b"", pipe.init(), keys.Turn(0, b"", b"")
    head = {name: update.head[name] for name in pipe.spaces[0].head}
    for i in range(repeats + 1):
        turn = keys.Turn(i, keys.derive(keys.root(1), "public", i), keys.derive(keys.root(1), "private", i))
        memory = pipe.init()
        began = time.perf_counter()
        payload, after = pipe.encode(update.x, head, update.count, memory, turn)
        raw = pack.pack(payload, pipe.encoded)
        packed = time.perf_counter()
        total = pipe.add(total, pack.unpack(raw, pipe.encoded), turn)
        up.append(packed - began)
        down.append(time.perf_counter() - packed)
    return Measured(
        encode_s=statistics.median(up[1:]),
        decode_s=statistics.median(down[1:]),
        payload=raw,
        nmse=_update_error(pipe, raw, update.x, turn),
        memory_bytes=sum(a.nbytes for a in flat(after).values()),
    )


def _update_error(pipe: Pipeline, raw: bytes, x: Vector, turn: keys.Turn) -> float:
    """Compute the error of the update itself. The weight that travels with it is divided out."""
    payload = pack.unpack(raw, pipe.encoded)
    names = pipe.encoded.head
    weight = float(payload.head[names.index(WEIGHT)]) if WEIGHT in names else 1.0
    wanted = weight * x.astype(np.float64)
    error = float(np.square(pipe.decode(payload, turn).body - wanted).sum())
    norm = float(np.square(wanted).sum())
    return error / norm if norm else inf if error else 0.0


def bench_codecs(
    recipe: Recipe,
    recipe_dir: Path,
    extensions: Sequence[str] = (),
    random: bool = False,
    repeats: int = 5,
    screen: TextIO | None = None,
) -> dict[str, Any]:
    """Load the recipe's model, train one device for one round, and measure all rungs on its update.

    Args:
        recipe_dir: folder of relative paths.
        random: use normal random numbers as the update instead of training.
        screen: stream that shows progress; None shows nothing.
    Returns:
        Plain JSON: ``recipe_sha256``, ``model``, ``dim``, ``device`` (null with ``random``), ``repeats``, ``rungs``
        (from the ladder, then the recipe's own stages): ``name``, ``stages``, ``bits_per_parameter``, ``bytes`` (the
        frame of one contribution), ``times_smaller`` (than float32, 4 d), ``nmse`` (null where infinite),
        ``encode_mb_s``, ``decode_mb_s``, ``memory_bytes``, ``seconds_at_1_mbit_s``.
    Raises:
        EdgewiseError: the errors that stop a run before its first round. DataError: no device can train.
    """
    catalogue = with_extensions(extensions)
    with tempfile.TemporaryDirectory(prefix="edgewise-bench-") as scratch:
        trainer = make_trainer(recipe, recipe_dir, Path(scratch), catalogue, passing=True)
        plan = compile_plan(recipe, trainer.trainer.spec, len(trainer.trainer.devices()), catalogue)
        device, update = ("", _random_update(plan)) if random else _trained_update(trainer, plan)
    rungs = [(r.name, rung_tables(r, plan.spec, catalogue)) for r in RUNGS] + [(OWN, recipe.stage)]
    return {
        "recipe_sha256": recipe.sha256(),
        "model": recipe.model.base,
        "dim": plan.spec.dim,
        "device": device or None,
        "repeats": repeats,
        "rungs": [
            {"name": name, **_codec_figures(plan, device, tables, update, repeats, catalogue)}
            for name, tables in _with_progress_bar(rungs, screen)
        ],
    }


def _random_update(plan: Plan) -> Update:
    """Draw an update of independent normal coordinates."""
    rng = keys.generator(keys.derive(plan.key, "bench"))
    head = dict.fromkeys(plan.at(0).spaces[0].head, 1.0)
    return Update(rng.standard_normal(plan.layout.sent.dim, np.float32), head, 1.0)


def _trained_update(trainer: Registered, plan: Plan) -> tuple[str, Update]:
    """Train the first device that can, and return its name and its update of the first round."""
    reason = DataError("E-DATA-EMPTY", "the trainer knows no device.", "check where its data comes from.")
    for device in trainer.trainer.devices():
        key, rule = plan.batch_key(device, 0), in_steps(trainer, plan, device, plan.rule(0))
        try:
            return device, trainer.fit(FitRequest(device, 0, trainer.initial(), rule, key, key))
        except DataError as e:  # The text of this device is too short or unreadable. The next one may do.
            reason = e
    raise reason


def _codec_figures(
    plan: Plan, device: str, tables: Tables, update: Update, repeats: int, catalogue: Catalogue
) -> dict[str, Any]:
    """Measure a codec on an update."""
    m = bench_chain_once(bench_chain(tables, plan.spec, catalogue), update, repeats)
    payload = memoryview(m.payload)
    sent = len(frame.dump(frame.Contribution(run=plan.run, round=0, device=device or "device", payload=payload)))
    float32 = 4 * plan.spec.dim
    return {
        "stages": [dict(table) for table in tables],
        "bits_per_parameter": 8 * sent / plan.spec.dim,
        "bytes": sent,
        "times_smaller": float32 / sent,
        "nmse": m.nmse if m.nmse < inf else None,
        "encode_mb_s": float32 / 1e6 / m.encode_s,
        "decode_mb_s": float32 / 1e6 / m.decode_s,
        "memory_bytes": m.memory_bytes,
        "seconds_at_1_mbit_s": 8 * sent / LINK_BIT_S,
    }


def _with_progress_bar(rungs: Sequence[tuple[str, Tables]], screen: TextIO | None) -> Iterator[tuple[str, Tables]]:
    """Yield the rungs with a progress bar, which disappears at the end, on a terminal."""
    if screen is None:
        yield from rungs
        return
    from rich.console import Console
    from rich.progress import track

    console = Console(file=screen)
    yield from track(rungs, "measuring", console=console, transient=True, disable=not console.is_terminal)


def show_codec_bench(console: Console, found: Mapping[str, Any]) -> None:
    """Print the benchmark of the codecs (``bench_codecs``)."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    what = f"a local update of device {found['device']}" if found["device"] else "normal random numbers"
    head = f"{numbers.count(found['dim'])} trained parameters of {found['model']}, {what}"
    console.print(Text(head, "dim"), soft_wrap=True)
    roomy = console.width >= 96  # The narrow form fits into 80 columns.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, int(roomy)), collapse_padding=True)
    table.add_column("rung", overflow="fold")
    for name in ("bits", "bytes", "smaller", "NMSE", "encode\nMB/s", "decode\nMB/s", "device\nkeeps", "at 1\nMbit/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in found["rungs"]:
        table.add_row(
            r["name"],
            numbers.figures(r["bits_per_parameter"], 2),
            numbers.size(r["bytes"]),
            numbers.ratio_in_words(r["times_smaller"]),
            numbers.figures(r["nmse"], 2),
            numbers.figures(r["encode_mb_s"]),
            numbers.figures(r["decode_mb_s"]),
            numbers.size(r["memory_bytes"]) if r["memory_bytes"] else numbers.NOTHING,
            _link_time(r["seconds_at_1_mbit_s"]),
        )
    console.print(table)
    console.print(Text("\nbits per trained parameter; NMSE of one contribution, from empty memory", "dim"))


def _link_time(seconds: float) -> str:
    """Format seconds: two digits below a minute, because the smallest rungs take milliseconds."""
    return f"{numbers.figures(seconds, 2)} s" if seconds < 60 else numbers.as_on_a_clock(seconds)
