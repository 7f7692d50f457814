"""A session of split learning over TLS on loopback: the share of time in which the device waits for the server.

    python benchmarks/split_stream.py [--steps 4] [--width 320] [--layers 7] [--cut 2] [--micros 4] [--windows 1,2,4]

Device and server are two processes with one thread each, over ``drivers.http.split_streams``, with int8 in the U shape.
The model has random weights. The bubble is the share of the session's time in which the device waits for the server.
With a window of 1 it waits for each answer. The first step is not measured. Times are over that of the first window.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench
import split as setting
import torch

from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.drivers.http import certificates, identity
from edgewise.drivers.http.split_streams import DeviceStream, HostedSession, SplitAddress, SplitListener
from edgewise.engine import split_states as events
from edgewise.learn import split
from edgewise.learn.flat import Flat
from edgewise.learn.models.part import load_part

WORD, RUN = bytes(32), "benchmark"


def rest_of(a: argparse.Namespace, side: str) -> tuple[split.CutModel, tuple[object, ...]]:
    """Stages of one side, and what both sides share."""
    part = load_part(Path(a.folder) / "model", a.cut, "U", side)
    part.model.train()
    codec = TokenCodec("int8", a.width)
    names = [name for name, _ in part.named]
    rest = (Flat(part.named), names, setting.TRAINING, setting.LR, split.CutCrossings(codec, codec), WORD)
    return part.stages, rest


def serve(a: argparse.Namespace) -> None:
    """Serve one session until standard input closes."""
    folder = Path(a.folder)
    device, server = (identity.make(folder / f"{name}.key") for name in ("device", "server"))
    _, certificate, key = certificates.authority_and_certificate(folder, (), datetime.datetime.now(datetime.UTC))
    stages, rest = rest_of(a, "server")
    part = split.ServerPart(stages, setting.LOSS, setting.VOCABULARY, *rest)
    session = HostedSession(events.ServerSide(WORD, WORD, True), part.perform)
    known = {device.name: device.public}
    tls = certificates.server_context(certificate, key)
    with SplitListener("127.0.0.1", 0, tls, server.name, known.get, lambda proof: session) as listener:
        print(listener.port, flush=True)
        sys.stdin.read()


def play(a: argparse.Namespace, window: int) -> tuple[float, float]:
    """Seconds of all steps but the first, and the share in which the device waits."""
    command = [sys.executable, bench.script("split_stream.py"), "--serve", "--folder", a.folder]
    command += ["--cut", str(a.cut), "--width", str(a.width)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port, folder = int(server.stdout.readline()), Path(a.folder)
        tls = certificates.client_context((folder / "ca.pem").read_bytes())
        address = SplitAddress("127.0.0.1", port, tls, identity.load(folder / "server.key").name)
        stages, rest = rest_of(a, "device")
        rows = setting.blocks(a.steps * a.micros * setting.MICRO)
        steps = iter(
            [(micro, micro.numel() - len(micro)) for micro in step.split(setting.MICRO)]
            for step in rows.split(a.micros * setting.MICRO)
        )
        part = split.DevicePart(stages, setting.LOSS, steps, setting.VOCABULARY, *rest)
        state = events.DeviceSide(WORD, WORD, True, a.steps, window)
        began = 0.0

        def perform(effect: events.DeviceEffect) -> events.DeviceEvent | None:
            nonlocal began
            if effect == events.Prepare(1):  # The first step compiles and reads, in both processes.
                began, stream.waited_s = time.monotonic(), 0.0
            return part.perform(effect)

        who = identity.load(folder / "device.key")
        stream = DeviceStream(address, who, RUN, 0, state, perform, os.urandom)
        stream.play()
        seconds = time.monotonic() - began
        assert server.stdin is not None
        server.stdin.close()
    return seconds, stream.waited_s / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("steps", 4), ("width", 320), ("layers", 7), ("cut", 2), ("micros", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--windows", default="1,2,4")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.serve:
        serve(a)
        return
    with tempfile.TemporaryDirectory() as a.folder:
        for name in ("device", "server"):
            identity.make(Path(a.folder) / f"{name}.key")
        setting.save_model(Path(a.folder) / "model", a.width, a.layers)
        base = 0.0
        print("| micro-batches on their way | bubble | time / window of 1 |\n|---:|---:|---:|")
        for window in map(int, a.windows.split(",")):
            bench.note(f"window {window}")
            seconds, bubble = play(a, window)
            base = base or seconds
            print(f"| {window} | {100 * bubble:.0f} % | {seconds / base:.2f} |", flush=True)


if __name__ == "__main__":
    main()
