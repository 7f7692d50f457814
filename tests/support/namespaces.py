"""A network namespace with a link of its own to this machine, where this process may make one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Namespace:
    """A namespace.

    Attributes:
        name: its name.
        here: this machine's address on the link.
        end: name of the link's end on this machine.
    """

    name: str
    here: str
    end: str

    def inside(self, *command: str) -> list[str]:
        """The command that runs another one inside the namespace."""
        return ["ip", "netns", "exec", self.name, *command]

    def cable(self, plugged: bool) -> None:
        """Pull the link's cable, or plug it in."""
        _ip("link", "set", self.end, "up" if plugged else "down")


@contextmanager
def namespace() -> Iterator[Namespace]:
    """Make a namespace with a link; the test is skipped where none can be made."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("only root on Linux, with iproute2, can make network namespaces")
    number = os.getpid() % 2**14  # a network of four addresses for each process
    third, fourth = divmod(4 * number, 256)
    made = Namespace(f"ew{os.getpid()}", f"10.213.{third}.{fourth + 1}", f"ewa{number}")
    try:
        _ip("netns", "add", made.name)
        _ip("link", "add", made.end, "type", "veth", "peer", "name", "eth0", "netns", made.name)
    except subprocess.CalledProcessError as e:
        subprocess.run(["ip", "netns", "del", made.name], capture_output=True, check=False)
        pytest.skip(f"no network namespace can be made: {e.stderr.strip()}")
    try:
        _ip("address", "add", f"{made.here}/30", "dev", made.end)
        _ip("link", "set", made.end, "up")
        _ip("-n", made.name, "address", "add", f"10.213.{third}.{fourth + 2}/30", "dev", "eth0")
        _ip("-n", made.name, "link", "set", "eth0", "up")
        yield made
    finally:
        _ip("netns", "del", made.name)  # the link goes with it


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
