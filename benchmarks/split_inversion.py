"""Inversion of split learning: tokens that an attacker names from what crosses the cut, beside what a defence costs.

    python benchmarks/split_inversion.py [--steps 8] [--cases float32:0,int8:0,int4:0,int8:.2,int8:1]

The bundled model (1.4 M parameters), the plays, one thread. A case is a format and a noise multiplier. The clip of each
kind of vector is the median length of those of public text, and the noise has the multiplier times the clip.

    first guess   share of 2,560 tokens of a device that a head names at its first guess, after 150 steps on other plays
    guessing      the share of the most frequent token of the attacker's text
    loss          held-out loss after some steps of split training in the U shape with AdamW, over the first case
    epsilon       of the vectors of one token (activation and output gradient), after one pass, at delta 1e-5
"""

from __future__ import annotations

import argparse

import bench
import split as setting
import torch

from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core.keys import root
from edgewise.learn import split
from edgewise.learn.attacks import inversion
from edgewise.learn.models.cut import cut_model
from edgewise.learn.models.weights import read_weights
from edgewise.privacy.token_noise import TokenNoise, token_epsilon

ATTACKED, OTHERS = 20, 100
FOLDER = setting.ASSETS / "student"


def defences(case: str, clips: dict[str, float], hidden: int) -> tuple[TokenCodec, dict[str, TokenNoise | None]]:
    """Codec and noise of a case such as ``int8:.2``."""
    rounding, z = case.split(":")
    noise = {kind: TokenNoise(clip, float(z), hidden) if float(z) else None for kind, clip in clips.items()}
    return TokenCodec(rounding, hidden), noise


def trained(block: int, codec: TokenCodec, noise: dict[str, TokenNoise | None], data: torch.Tensor) -> float:
    """Held-out loss after training over these crossings."""
    model = read_weights(FOLDER, dtype=torch.float32).train()
    flat, parts = setting.flat_of(model), cut_model(model, block, "U")
    here, there = parts.sides(model)
    crossings = split.CutCrossings(codec, codec, noise["activations"], noise["output_gradients"])
    rest = (setting.TRAINING, setting.LR, crossings, bytes(32))
    steps = setting.steps_of(data[: -setting.HELD])
    device = split.DevicePart(parts, setting.LOSS, steps, setting.VOCABULARY, flat, here, *rest, secret=bytes(32))
    server = split.ServerPart(parts, setting.LOSS, setting.VOCABULARY, flat, there, *rest)
    split.train_split_session(device, server, True, (len(data) - setting.HELD) // setting.BATCH)
    return setting.held_out(model, data[-setting.HELD :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--cuts", default="1,2,3")
    parser.add_argument("--cases", default="float32:0,int8:0,int4:0,int8:.2,int8:1")
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows = setting.blocks(ATTACKED + OTHERS + a.steps * setting.BATCH + setting.HELD)
    attacked, others, data = rows[:ATTACKED], rows[ATTACKED : ATTACKED + OTHERS], rows[ATTACKED + OTHERS :]
    model = read_weights(FOLDER, dtype=torch.float32)
    table = model.get_input_embeddings().weight
    print("| cut | format | noise | activations: first guess | output gradients | guessing | loss | epsilon |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for block in map(int, a.cuts.split(",")):
        parts, base = cut_model(model, block, "U"), 0.0
        mine, theirs = inversion.attacked_crossing(parts, attacked), inversion.attacked_crossing(parts, others)
        clips = {kind: float(x.x_NTC.norm(dim=2).median()) for kind, x in theirs.items()}
        hidden = table.shape[1]
        for case in a.cases.split(","):
            bench.note(f"cut {block}, {case}")
            codec, noise = defences(case, clips, hidden)
            found = {
                kind: inversion.recover_tokens(
                    mine[kind], theirs[kind], table, root(1), inversion.noised_channel(codec, noise[kind]), steps=150
                )
                for kind in mine
            }
            loss = trained(block, codec, noise, data)
            base = base or loss
            z, any_noise = case.split(":")[1], noise["activations"]
            epsilon = f"{token_epsilon(any_noise.z, 1):.3g}" if any_noise else "none"
            shares = [f"{100 * found[kind].top1:.0f} %" for kind in ("activations", "output_gradients")]
            print(
                f"| {block} | {codec.rounding} | {z} | {shares[0]} | {shares[1]} "
                f"| {100 * found['activations'].unigram:.0f} % | {100 * (loss / base - 1):+.2f} % | {epsilon} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
