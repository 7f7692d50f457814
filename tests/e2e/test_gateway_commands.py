"""The commands of a gateway's operator, as they are typed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from served import joined, running

from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.http.naming import named
from support.commands import command, done


@pytest.mark.slow
def test_a_gateway_joins_lists_devices_and_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path / "gateway")
    with running(tmp_path) as server:
        devices = [joined(server, tmp_path / f"home-{i}") for i in range(2)]
        monkeypatch.setenv("EDGEWISE_TOKEN", server.token(Grant("gateway", approved=True)))
        told = done("gateway", "join", server.url, folder)
        assert (told["role"], told["status"]) == ("gateway", "approved")
        names = sorted(link.name for link in devices)
        listed = done("gateway", "approve", folder)
        assert (listed["devices"], listed["enrolled"]) == ([], names)
        assert done("gateway", "approve", folder, names[0])["devices"] == names[:1]
        assert done("gateway", "approve", folder, "--all")["devices"] == names
        assert command("gateway", "approve", folder, "0" * 32)["code"] == "E-UNKNOWN-ID"
        for link in devices:
            link.close()
    code = "from edgewise.apps.cli.main import main; main()"
    words = [sys.executable, "-c", code, "gateway", "serve", folder, "--listen", "127.0.0.1:0", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            serving = json.loads(process.stdout.readline())
            assert (serving["gateway"], serving["devices"]) == (told["id"], 2)
            key, _ = named(serving["url"], told["id"], 10.0, "/v1/gateway")
            assert len(key) == 32
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()
    assert process.returncode == 0
