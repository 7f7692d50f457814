"""A server of a hidden round in a process of its own, whose devices are on the other end of its pipes.

python fleet_server.py KIND FOLDER: requests of its cohort go to standard output, answers come from standard input.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from fleet import Fleet, Server, plan_of

from edgewise.core import vector
from edgewise.engine.ports import Absent, Arrived, Sent

CALLS = ("now_s", "publish", "send", "resume", "receive", "close_round")


def write(stream: BinaryIO, item: Any) -> None:
    raw = msgspec.msgpack.encode(item)
    stream.write(len(raw).to_bytes(4, "little") + raw)
    stream.flush()


def read(stream: BinaryIO) -> Any:
    header = stream.read(4)
    return msgspec.msgpack.decode(stream.read(int.from_bytes(header, "little"))) if len(header) == 4 else None


class RemoteCohort:
    """A Cohort whose devices are in another process."""

    def __init__(self, out: BinaryIO, back: BinaryIO) -> None:
        self._out, self._back = out, back

    def _call(self, name: str, *args: Any) -> Any:
        write(self._out, [name, *args])
        return read(self._back)

    def now_s(self) -> float:
        return float(self._call("now_s"))

    def publish(self, blobs: Sequence[vector.Buffer]) -> Sequence[str]:
        return tuple(self._call("publish", [bytes(blob) for blob in blobs]))

    def send(self, to: str, raw: bytes) -> None:
        self._call("send", to, raw)

    def resume(self, sent: Sequence[Sent], at_s: float) -> None:
        self._call("resume", [[s.device, s.frame, s.at_s, s.awaited] for s in sent], at_s)

    def receive(self, timeout_s: float) -> Arrived | Absent | None:
        item = self._call("receive", timeout_s)
        return None if item is None else Arrived(*item)

    def close_round(self, keep: Collection[str] = ()) -> None:
        self._call("close_round", sorted(keep))


def serve(fleet: Fleet, pipe_in: BinaryIO, pipe_out: BinaryIO, last: int) -> bool:
    """Answer a server's requests until it ends, or until it waits for the answer to number ``last``; whether it
    ended."""
    for number in count(1):
        if (request := read(pipe_in)) is None:
            return True
        if number == last:
            return False
        name, *args = request
        assert name in CALLS
        if name == "resume":
            args[0] = [Sent(*one) for one in args[0]]
        answer = getattr(fleet, name)(*args)
        if isinstance(answer, Arrived):
            answer = [answer.device, answer.frame, answer.at_s]
        write(pipe_out, answer)
    return False


if __name__ == "__main__":
    kind, out = sys.argv[1:]
    fleet = Fleet(plan_of(kind))
    with Server(fleet, Path(out), cohort=RemoteCohort(sys.stdout.buffer, sys.stdin.buffer)) as server:
        checkpoint = server.begin()
        if checkpoint.next_round == 0:
            server.play(checkpoint)
