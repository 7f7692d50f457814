"""Split learning against training the whole model: processor time, bytes, losses by rounding, memory by cut.

    python benchmarks/split.py [--steps 16] [--width 320] [--layers 8] [--cut 2] [--parts time,memory,forecast]

A Llama of random weights (10.6 M by default, the bundled tokenizer) trains on Shakespeare's plays with AdamW, 8 x 128
tokens a step in micro-batches of 4 blocks, in one thread.

    time      processor seconds of both sides together, over those of whole-model training. Steps of all kinds take
              turns in one process. Messages are written and read as on a network, without the sockets. Bar: 1.35
    bytes     measured, and as computed from width, rounding and labels
    loss      held-out, after all steps. Bars: 8 bits within 1 % of the whole model, within .5 % of bf16; 4 bits 2 %
    forecast  weights, vectors and activations of a device's part, with all parameters or adapters trained
    memory    peak of a process that trains the device's side against random answers, over its resident set with torch
              and transformers loaded and used, beside one that trains the whole model. Bar: 35 % at a cut of 1 or 2
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import bench
import measure
import torch

from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core.frame import LocalRule
from edgewise.core.training import Correction
from edgewise.engine import split_states as events
from edgewise.learn import split
from edgewise.learn.flat import Flat
from edgewise.learn.models.cut import cut_model
from edgewise.learn.models.load import TextLoss
from edgewise.learn.models.memory import forecast
from edgewise.learn.models.modules import plain_parameter_name
from edgewise.learn.models.part import load_part
from edgewise.learn.models.part_memory import forecast_part_memory
from edgewise.learn.models.weights import read_weights
from edgewise.learn.text import tokens
from edgewise.learn.train import LocalOptimizer, LocalSteps, fit
from edgewise.plan.recipe.recipe import from_plain
from edgewise.plan.recipe.sections import TrainingSection

BATCH, MICRO, LENGTH, HELD, VOCABULARY, LR, KEY = 8, 4, 128, 32, 4096, 1e-3, bytes(32)
ASSETS = Path(str(resources.files("edgewise"))) / "assets"
TRAINING = TrainingSection(local_steps=1, lr=LR, batch=BATCH, accumulate=BATCH // MICRO)
LOSS = TextLoss(torch.float32)
ROUNDINGS = ("float32", "bf16", "int8", "int4")


def save_model(folder: Path, width: int, layers: int) -> None:
    """Save a Llama of random weights whose head is a tensor of its own, so that both shapes can train it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=width * 8 // 3 // 32 * 32,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            num_key_value_heads=width // 32,
            max_position_embeddings=512,
            tie_word_embeddings=False,
        )
    ).save_pretrained(folder)


def blocks(count: int) -> torch.Tensor:
    """Read so many blocks of the plays: int64[count, LENGTH + 1]."""
    with gzip.open(ASSETS / "plays" / "plays.jsonl.gz", "rt", encoding="utf-8") as f:
        texts = [" ".join(map(str, json.loads(line).values())) for line in f]
    ids, need = list[int](), count * (LENGTH + 1)
    encoder = tokens.load_tokenizer(ASSETS / "student")
    for text in texts:
        if len(ids) >= need:
            break
        ids += encoder.encode([text])[0].tolist()
    return torch.tensor(ids[:need]).view(count, LENGTH + 1)


def steps_of(data: torch.Tensor) -> Iterator[list[tuple[torch.Tensor, int]]]:
    """Iterate over the micro-batches of each step."""
    for at in range(0, len(data), BATCH):
        yield [(data[i : i + MICRO], MICRO * LENGTH) for i in range(at, at + BATCH, MICRO)]


class Whole:
    """Whole-model training, one step at a time, with the optimizer's state kept."""

    def __init__(self, folder: Path, data: torch.Tensor) -> None:
        self.model = read_weights(folder, dtype=torch.float32).train()
        self._flat, self._batches, self.seconds = flat_of(self.model), steps_of(data), 0.0
        rule = LocalRule(steps=1, lr=LR)
        self._steps = LocalSteps(self._flat, LocalOptimizer(TRAINING, self._flat), rule, TRAINING, Correction(), 0)

    def step(self) -> None:
        began = time.process_time()
        self._flat.zero_grad()
        terms = 0
        for s_BS, n in next(self._batches):
            (LOSS(self.model, (s_BS, n))[0] * n).backward()
            terms += n
        self._flat.g_D.div_(terms)
        self._steps.step()
        self.seconds += time.process_time() - began


class Parted:
    """Split training in this process, one step at a time."""

    def __init__(self, folder: Path, data: torch.Tensor, block: int, shape: str, rounding: str) -> None:
        self.model = read_weights(folder, dtype=torch.float32).train()
        flat, parts = flat_of(self.model), cut_model(self.model, block, shape)
        here, there = parts.sides(self.model)
        codec = TokenCodec(rounding, self.model.config.hidden_size)
        rest = (TRAINING, LR, split.CutCrossings(codec, codec), KEY)
        self._u, self._steps, self.seconds, self.up, self.down = shape == "U", len(data) // BATCH, 0.0, 0, 0
        self._device = split.DevicePart(parts, LOSS, steps_of(data), VOCABULARY, flat, here, *rest)
        self._server = split.ServerPart(parts, LOSS, VOCABULARY, flat, there, *rest)
        self._session = split.train_split_sessions(self._device, self._server, self._u, self._steps)

    def step(self) -> None:
        began = time.process_time()
        crossed = next(self._session)
        self.seconds += time.process_time() - began
        self.up, self.down = crossed.up_bytes, crossed.down_bytes


def flat_of(model: torch.nn.Module) -> Flat:
    return Flat([(plain_parameter_name(n), p) for n, p in model.named_parameters()])


def held_out(model: torch.nn.Module, held: torch.Tensor) -> float:
    """Mean loss in nats per token."""
    model.eval()
    with torch.no_grad():
        found = [float(LOSS(model, (held[i : i + MICRO], 1))[0]) for i in range(0, len(held), MICRO)]
    model.train()
    return sum(found) / len(found)


def computed_bytes(width: int, shape: str, rounding: str) -> tuple[float, float]:
    """Bytes of a token up and down, without headers."""
    one = TokenCodec(rounding, width).size_bytes(1)
    labels = VOCABULARY.bit_length() / 8
    return (2.0 * one, 2.0 * one) if shape == "U" else (one + labels, float(one))


def times(a: argparse.Namespace, folder: Path) -> None:
    """Print the table of time, bytes and losses."""
    data = blocks(a.steps * BATCH + HELD)
    data, held = data[:-HELD], data[-HELD:]
    kinds = [(shape, rounding) for shape in ("U", "head") for rounding in ROUNDINGS]
    whole, made = Whole(folder, data), {kind: Parted(folder, data, a.cut, *kind) for kind in kinds}
    first = held_out(whole.model, held)
    for i in range(a.steps):
        bench.note(f"step {i + 1}/{a.steps}")
        for trained in (whole, *made.values()):
            trained.step()
    base = held_out(whole.model, held)
    print(f"whole model: {whole.seconds / a.steps:.2f} s a step, held-out loss {first:.4f} -> {base:.4f}")
    print("| shape | rounding | time / whole | up, bytes/token | down | held-out loss | of whole | of bf16 |")
    print("|---|---|---|---|---|---|---|---|")
    losses = {kind: held_out(one.model, held) for kind, one in made.items()}
    count = a.steps * BATCH * LENGTH
    for (shape, rounding), one in made.items():
        loss, up, down = losses[shape, rounding], *computed_bytes(a.width, shape, rounding)
        print(
            f"| {shape} | {rounding} | {one.seconds / whole.seconds:.2f} | {one.up / count:.1f} ({up:.1f}) "
            f"| {one.down / count:.1f} ({down:.1f}) | {loss:.4f} | {100 * (loss / base - 1):+.2f} % "
            f"| {100 * (loss / losses[shape, 'bf16'] - 1):+.2f} % |"
        )


def child(a: argparse.Namespace) -> None:
    """Train two steps and print the peak over the idle process: ``whole``, or a shape and a cut."""
    with tempfile.TemporaryDirectory() as scratch:  # All libraries are loaded and used before the memory is read.
        save_model(Path(scratch), 32, 1)
        train(Path(scratch), a.child, 0, 32)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from the resident set.
    idle = measure.high_water_mb()
    train(Path(a.folder), a.child, a.cut, a.width)
    bench.say(peak=measure.high_water_mb() - idle, idle=idle)


def train(folder: Path, what: str, block: int, width: int) -> None:
    data = torch.randint(0, VOCABULARY, (2 * BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    if what == "whole":
        model = read_weights(folder, dtype=torch.float32)
        flat = flat_of(model)
        fit(model, LOSS, steps_of(data), flat, flat.read(), LocalRule(steps=2, lr=LR), TRAINING, KEY)
        return
    part = load_part(folder, block, what, "device")
    part.model.train()
    flat, codec = Flat(part.named), TokenCodec("int8", width)
    names = [name for name, _ in part.named]
    device = split.DevicePart(
        part.stages, LOSS, steps_of(data), VOCABULARY, flat, names, TRAINING, LR, split.CutCrossings(codec, codec), KEY
    )
    answer = codec.encode(torch.randn(MICRO * LENGTH, width).numpy())
    for number in range(2):  # Two micro-batches are on their way at once, as in a session.
        device.perform(events.Prepare(number))
        micros = range(BATCH // MICRO)
        for micro in micros:
            device.perform(events.Forward(micro))
        for micro in micros:
            if what == "U":
                device.perform(events.Head(micro, answer))
            device.perform(events.Backward(micro, answer, 1.0))
        norm2 = device.perform(events.Reduce()).norm2
        device.perform(events.Apply(number, norm2))


def memory(a: argparse.Namespace, folder: Path) -> None:
    """Print the table of memory over cuts."""

    def peak(what: str, block: int) -> float:
        command = [sys.executable, bench.script("split.py"), "--child", what, "--folder", str(folder)]
        return bench.start([*command, "--cut", str(block), "--width", str(a.width)])["peak"]

    whole = peak("whole", 0)
    print(f"whole model: {whole:.0f} MB over the idle process")
    print("| cut | U, MB | of whole | head, MB | of whole |\n|---|---|---|---|---|")
    for block in (1, 2, 4):
        u, head = peak("U", block), peak("head", block)
        print(f"| {block} | {u:.0f} | {100 * u / whole:.0f} % | {head:.0f} | {100 * head / whole:.0f} % |", flush=True)


def forecasts(a: argparse.Namespace, folder: Path) -> None:
    """Print what the memory of a device's part consists of, by the forecast of `edgewise check`."""
    print("| trained | part | weights, MB | gradient, optimizer, copies | activations | in all | of whole |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for trained in ({"kind": "full"}, {"kind": "lora", "rank": 8}):
        plain = {
            "privacy": "none", "trainable": trained, "data": {"source": "plays", "sequence_len": LENGTH},
            "training": {"batch": BATCH, "accumulate": BATCH // MICRO},
        }  # fmt: skip
        recipe = from_plain(plain)
        whole = forecast(folder, recipe.trainable, recipe.training, LENGTH, torch.float32)
        found = [("whole", whole)]
        for shape in ("U", "head"):
            for block in (1, 2):
                parted = from_plain({**plain, "split": {"cut": block, "shape": shape}})
                found.append((f"{shape}, cut {block}", forecast_part_memory(parted, folder, torch.float32)))
        for name, one in found:
            parts = " | ".join(f"{x / 1e6:.1f}" for x in (one.weights, one.vectors, one.activations))
            share = 100 * one.total / whole.total
            print(f"| {trained['kind']} | {name} | {parts} | {one.total / 1e6:.1f} | {share:.0f} % |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--cut", type=int, default=2)
    parser.add_argument("--parts", default="time,memory,forecast")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.child:
        child(a)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), a.width, a.layers)
        wanted: dict[str, Any] = {"time": times, "memory": memory, "forecast": forecasts}
        for name in a.parts.split(","):
            wanted[name](a, Path(folder))


if __name__ == "__main__":
    main()
