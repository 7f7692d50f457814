"""The two scripts in examples/, as people start them in two terminals; one device is killed before it sends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import save

ROOT = Path(__file__).resolve().parents[2]
TEXT = "a device trains on its own text and sends an update"
QUICK = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def start(script: str, *arguments: object, **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", str(ROOT / "examples" / script), *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, **QUICK, **more}, stdout=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str], begin: str) -> str:
    """The next line that begins so."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(begin):
            return line.strip()
    raise AssertionError(f"{process.args!r} ended without a line {begin!r}")


@pytest.mark.slow
def test_two_terminals_train_an_adapter_behind_a_hidden_sum(tmp_path: Path) -> None:
    save(tmp_path / "model")
    homes = [tmp_path / f"device-{i}" for i in range(2)]
    for home in homes:
        Path(f"{home}.txt").write_text(f"{TEXT} of {home.name}\n{TEXT}\n")
    server = start(
        "server_orchestrator.py", tmp_path / "model", "--folder", tmp_path / "server", "--listen", "127.0.0.1:0"
    )
    processes = [server]
    try:
        url = line_of(server, "serving").split()[1]
        token = line_of(server, "token").split()[1]

        def device(home: Path) -> subprocess.Popen[str]:
            made = start("device_client.py", url, f"{home}.txt", "--home", home, EDGEWISE_TOKEN=token)
            processes.append(made)
            return made

        first, second = map(device, homes)
        line_of(second, "run ")  # it has its task, and trains
        second.send_signal(signal.SIGKILL)
        second.wait()
        second = device(homes[1])
        rounds = [line_of(server, "round") for _ in range(3)]
        assert all("2 contributions" in line and "loss_last" in line for line in rounds)
        folder = Path(line_of(server, "finished:").split()[1])
        assert server.wait(timeout=60) == 0
        assert "hidden" in line_of(first, "  privacy"), "the card"
        for process in (first, second):
            line_of(process, "round 2: released, ")
        assert (folder / "report.html").is_file()
        raw = b"".join(path.read_bytes() for path in (tmp_path / "server").rglob("*") if path.is_file())
        assert TEXT.encode() not in raw
    finally:
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
