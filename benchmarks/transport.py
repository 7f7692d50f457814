"""The transport between devices and a server: round trips, large uploads, memory, and recovery after SIGKILL.

    python benchmarks/transport.py [--devices 1,4,16] [--mib 61] [--round-trips 300]

The server is a process of its own; devices are threads of this one. TLS, signatures, durable acknowledgements, as in
use. Rates and quotas of the server are off.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import bench
import numpy as np
import psutil

from edgewise.apps.server.start import HttpServer
from edgewise.core import frame
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.fleet.spool import Chunks
from edgewise.drivers.fleet.uploads import CHUNK_BYTES, Upload, assembled
from edgewise.drivers.http.cohort import HttpCohort
from edgewise.drivers.http.limits import ServerLimits
from edgewise.drivers.http.link import Link

FREE = ServerLimits(1e9, 1e9, 1e9, 1e9, 1e12, 1e12)
BAR_MS, BAR_RECOVERY_S, BAR_MB_S = 5.0, 3.0, 400.0


def invitation(round: int) -> bytes:
    """An invitation that is as small as one can be."""
    rule = frame.LocalRule(steps=1, lr=0.1)
    return frame.dump(
        frame.Invite(
            run="r", round=round, spec="s", model="m", public=bytes(32), accepted=None, deadline_s=60.0, rule=rule
        )
    )


def contribution(device: str, round: int, payload: bytes) -> bytes:
    """A contribution of these bytes."""
    return frame.dump(frame.Contribution(run="r", round=round, device=device, payload=memoryview(payload)))


def serve(folder: Path, port: int, devices: int) -> None:
    """Be the server: print where it is, then take a round at every line of standard input: round, names of devices."""
    with HttpServer(folder, port=port, limits=FREE) as server:
        tokens = [server.token(Grant(approved=True)) for _ in range(devices)]
        print(json.dumps({"url": server.url, "port": server.port, "tokens": tokens}), flush=True)
        cohort, process = HttpCohort(server.service, "r", 2**20), psutil.Process()
        for line in sys.stdin:
            round, names = json.loads(line)
            for name in names:
                cohort.send(name, invitation(round))
            peak, before = 0, process.cpu_times()
            done = 0
            while done < len(names):
                done += cohort.receive(0.05) is not None
                peak = max(peak, process.memory_info().rss)
            after = process.cpu_times()
            cohort.close_round()
            used = after.user + after.system - before.user - before.system
            print(json.dumps({"peak_mib": peak / 2**20, "cpu_s": used}), flush=True)


class Process:
    """The server process."""

    def __init__(self, folder: Path, devices: int, port: int = 0) -> None:
        command = [sys.executable, bench.script("transport.py"), "--serve", str(folder), str(port), str(devices)]
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **bench.QUIET}
        )
        self.told = self.read()

    def read(self) -> dict[str, Any]:
        """The next line."""
        assert self.child.stdout is not None
        found: dict[str, Any] = json.loads(self.child.stdout.readline())
        return found

    def begin(self, round: int, names: list[str]) -> None:
        """Let it invite these devices."""
        assert self.child.stdin is not None
        print(json.dumps([round, names]), file=self.child.stdin, flush=True)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.child.send_signal(signal.SIGKILL)
        self.child.communicate()


def round_trips(server: Process, link: Link, n: int) -> dict[str, list[float]]:
    """Milliseconds of an empty signed request, of a whole exchange, and of the part of it that counts the frame.

    A device is invited, polls, counts its frame and sends it, and the server acknowledges it.
    """
    took: dict[str, list[float]] = {"empty": [], "exchange": [], "count": []}
    for _ in range(n):
        began = time.perf_counter()
        link.standing()
        took["empty"].append(1e3 * (time.perf_counter() - began))
    after = 0
    for number in range(n // 4):
        began = time.perf_counter()
        server.begin(number, [link.name])
        mail = link.poll(after, 10.0)
        assert mail is not None
        raw = contribution(link.name, number, b"x")
        polled = time.perf_counter()
        link.frames.count(hashlib.sha256(raw).hexdigest())
        took["count"].append(1e3 * (time.perf_counter() - polled))
        link.send("r", number, raw)
        took["exchange"].append(1e3 * (time.perf_counter() - began))
        after = mail.number
        server.read()
    return took


def uploads(server: Process, links: list[Link], round: int, size: int) -> dict[str, float]:
    """All devices send a frame of ``size`` bytes at the same time."""
    payload = os.urandom(size)
    server.begin(round, [link.name for link in links])
    for link in links:
        while link.poll(0, 10.0) is None:
            pass
    began = time.perf_counter()
    threads = [
        threading.Thread(target=lambda link=link: link.send("r", round, contribution(link.name, round, payload)))
        for link in links
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = server.read()
    seconds, total = time.perf_counter() - began, 1e-6 * size * len(links)
    return {"mb_s": total / seconds, "mb_s_per_server_core": total / found["cpu_s"], "peak_mib": found["peak_mib"]}


def blob_to_sum(folder: Path, size: int, n: int) -> dict[str, float]:
    """MB a second of one core, by processor time, from sealed chunks on the disk to a running sum, and of two parts.

    Chunks are opened, put together, hashed and decoded as a frame; its float32 are added in float64. ``hash``:
    SHA-256 alone. ``add``: the addition alone, which is the reference.
    """
    payload = np.random.default_rng(0).normal(0, 1e-3, size // 4).astype(np.float32).tobytes()
    raw, key, chunks = contribution("d", 0, payload), os.urandom(32), Chunks(folder)
    pieces = [raw[at : at + CHUNK_BYTES] for at in range(0, len(raw), CHUNK_BYTES)]
    for number, piece in enumerate(pieces):
        chunks.put(key, "u", number, piece)
    upload = Upload("u", "d", "r", 0, hashlib.sha256(raw).digest(), len(raw), CHUNK_BYTES, len(raw))
    total, took = np.zeros(size // 4), dict.fromkeys(("whole", "hash", "add"), 0.0)
    for _ in range(n):
        began = time.process_time()
        message = frame.from_device(assembled(upload, key, chunks), 2 * size)
        assert isinstance(message, frame.Contribution)
        total += np.frombuffer(message.payload, np.float32)
        took["whole"] += time.process_time() - began
        began = time.process_time()
        hashlib.sha256(raw).digest()
        took["hash"] += time.process_time() - began
        began = time.process_time()
        total += np.frombuffer(payload, np.float32)
        took["add"] += time.process_time() - began
    return {name: 1e-6 * size * n / spent for name, spent in took.items()}


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", default="1,4,16")
    parser.add_argument("--mib", type=int, default=61)
    parser.add_argument("--round-trips", type=int, default=300)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.serve:
        serve(Path(a.serve[0]), int(a.serve[1]), int(a.serve[2]))
        return
    print(bench.machine())
    folder, fleets = Path(tempfile.mkdtemp()), [int(n) for n in a.devices.split(",")]
    try:
        server = Process(folder / "server", max(fleets))
        links = [
            Link.join(server.told["url"], token, folder / f"device-{i}")
            for i, token in enumerate(server.told["tokens"])
        ]
        took = round_trips(server, links[0], a.round_trips)
        print(f"empty signed round trip {bench.spread(took['empty'])} ms")
        print(f"bar {BAR_MS} ms: {bench.verdict(sorted(took['empty'])[a.round_trips // 2], BAR_MS)}")
        print(f"exchange, four durable writes {bench.spread(took['exchange'])} ms")
        print(f"of it counting the frame, two of them {bench.spread(took['count'])} ms")
        rates = blob_to_sum(folder / "blobs", a.mib * 2**20, 5)
        print("blob to sum, MB/s of one core: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))
        print(f"bar {BAR_MB_S:g} MB/s: {'met' if rates['whole'] >= BAR_MB_S else 'MISSED'}")
        for i, n in enumerate(fleets):
            found = uploads(server, links[:n], 10**6 + i, a.mib * 2**20)
            figures = ", ".join(f"{name} {value:.0f}" for name, value in found.items())
            print(f"{n} devices x {a.mib} MiB: {figures}")
            bench.say(devices=n, **{name: round(value, 1) for name, value in found.items()})
        server.kill()
        began = time.perf_counter()
        again = Process(folder / "server", 0, server.told["port"])
        links[0].standing()
        recovery_s = time.perf_counter() - began
        again.kill()
        print(f"serving after SIGKILL {recovery_s:.2f} s, of which the start of Python and the old lease")
        print(f"bar {BAR_RECOVERY_S} s: {bench.verdict(recovery_s, BAR_RECOVERY_S)}")
        bench.say(recovery_s=round(recovery_s, 2))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
