"""Memory of the transport part alone: a server and agents that wait for mail, without a model and without torch.

    python benchmarks/transport_memory.py [--agents 10]

Each is a process of its own, over TLS on loopback. Memory is the proportional set size, in which pages that processes
share count once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench
import psutil

AGENT = """
import sys
from pathlib import Path
from edgewise.apps.device import agent
agent.work(Path(sys.argv[1]), began=lambda: print("ready", flush=True))
"""
SERVER = """
import sys
from pathlib import Path
from edgewise.apps.server.start import HttpServer
from edgewise.drivers.fleet.members import Grant
with HttpServer(Path(sys.argv[1])) as server:
    print(server.url, *(server.token(Grant(approved=True)) for _ in range(int(sys.argv[2]))), flush=True)
    sys.stdin.read()
"""


def begun(code: str, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Start a program. Returns it and its first line."""
    command = [sys.executable, "-c", code, *arguments]
    made = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    return made, made.stdout.readline()


def pss_mb(process: subprocess.Popen[str]) -> float:
    """Proportional set size in MB."""
    return float(psutil.Process(process.pid).memory_full_info().pss) / 1e6


def main() -> None:
    """Measure and print the figures."""
    from edgewise.apps.device import policy
    from edgewise.drivers.http.link import Link

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=10)
    a = parser.parse_args()
    print(bench.machine(), "load", *(f"{load:.1f}" for load in os.getloadavg()))
    folder, started = Path(tempfile.mkdtemp()), list[subprocess.Popen[str]]()
    try:
        server, line = begun(SERVER, str(folder / "server"), str(a.agents))
        started.append(server)
        url, *tokens = line.split()
        for i, token in enumerate(tokens):
            home = folder / f"device-{i}"
            Link.join(url, token, home).close()
            (home / "text.txt").write_text("text")
            (home / policy.FILE).write_text("[data]\npath = 'text.txt'\n")
            started.append(begun(AGENT, str(home))[0])
        time.sleep(2.0)
        agents = [pss_mb(process) for process in started[1:]]
        server_mb, total = pss_mb(server), sum(agents)
        print(f"server {server_mb:.0f} MB, agents {total / len(agents):.0f} MB each, {total:.0f} MB in all")
        bench.say(server_mb=round(server_mb, 1), agents_mb=round(total, 1), agents=a.agents)
    finally:
        for process in started:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
