"""Downloads of a model through a server whose blobs are in its folder, and through one whose blobs are in a bucket.

    python benchmarks/object_store.py [--mb 64] [--devices 1,4] [--repeat 3]

The store is moto, a process of its own on loopback that imitates S3 in Python. It reads the whole blob for each range.
So the figures say what the relay costs beside that store, and not what a real store gives. The ceiling is the same blob
read from the store by obstore alone, in the server's pieces. Server and devices are threads of one process, over TLS.
Folder and bucket alternate.
"""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import bench

from edgewise.apps.server.start import HttpServer
from edgewise.drivers.fleet import mailboxes
from edgewise.drivers.fleet.mailboxes import EVERYBODY
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.http.limits import ServerLimits
from edgewise.drivers.http.link import Link
from edgewise.drivers.storage.object_store import ObjectStore
from edgewise.drivers.storage.store_place import StorePlace

LIMITS = ServerLimits(address_rate=1e6, address_burst=1e6, member_rate=1e6, member_burst=1e6)


@contextmanager
def store() -> Iterator[StorePlace]:
    """A bucket of a store in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    program = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            place, until = StorePlace("benchmark", "blobs", f"http://127.0.0.1:{port}"), time.monotonic() + 60.0
            while True:
                try:
                    request = urllib.request.Request(f"{place.endpoint}/{place.bucket}", method="PUT")
                    urllib.request.urlopen(request, timeout=10.0).close()
                    break
                except OSError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.1)
            yield place
        finally:
            process.terminate()


def downloads(server: HttpServer, links: list[Link], name: str, size: int, folder: Path) -> float:
    """Seconds until all devices have the blob."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(len(links)) as pool:
        list(pool.map(lambda pair: pair[1].download(name, folder / str(pair[0]), size), enumerate(links)))
    took_s = time.perf_counter() - begun
    for i in range(len(links)):
        (folder / str(i) / name).unlink()
    return took_s


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=64)
    parser.add_argument("--devices", default="1,4")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark")
    raw = secrets.token_bytes(options.mb * 10**6)
    print(bench.machine())
    with tempfile.TemporaryDirectory() as scratch, store() as place:
        out, rows = Path(scratch), list[tuple[str, int, list[float]]]()
        alone = ObjectStore(place, 0.0)
        puts, gets = [], []
        for _ in range(options.repeat):
            begun = time.perf_counter()
            name = alone.put(raw)
            puts.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            for at in range(0, len(raw), alone.piece_bytes):
                alone.read(name, at, min(at + alone.piece_bytes, len(raw)))
            gets.append(time.perf_counter() - begun)
        rows += [("put into the bucket", 1, puts), ("ceiling: read in pieces from the bucket", 1, gets)]
        kinds = {
            "folder": HttpServer(out / "folder", limits=LIMITS),
            "bucket": HttpServer(
                out / "bucket", limits=LIMITS, blobs=StorePlace(place.bucket, "served", place.endpoint)
            ),
        }
        links = dict[str, list[Link]]()
        most = max(map(int, options.devices.split(",")))
        for kind, server in kinds.items():
            server.service.blobs.put(raw)
            server.service.database.write(lambda c: mailboxes.publish(c, EVERYBODY, {name: len(raw)}))
            links[kind] = [
                Link.join(server.url, server.token(Grant("device", approved=True)), out / kind / f"device-{i}")
                for i in range(most)
            ]
        for count in map(int, options.devices.split(",")):
            took = {kind: list[float]() for kind in kinds}
            for _ in range(options.repeat):
                for kind, server in kinds.items():
                    took[kind].append(downloads(server, links[kind][:count], name, len(raw), out / "got"))
            rows += [(f"downloads through the server, {kind}", count, took[kind]) for kind in kinds]
        for kind, server in kinds.items():
            for link in links[kind]:
                link.close()
            server.close()
    print(f"\n| {options.mb} MB | devices | MB/s, all together: median (all {options.repeat}) |\n|---|---|---|")
    for what, count, seconds in rows:
        rates = [options.mb * count / s for s in seconds]
        print(f"| {what} | {count} | {statistics.median(rates):.0f} ({', '.join(f'{r:.0f}' for r in rates)}) |")


if __name__ == "__main__":
    main()
