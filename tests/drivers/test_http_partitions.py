"""A partition between two network namespaces, amid an upload: the device waits, and sends the rest when it is over."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from namespaces import namespace
from served import RUN, contribution, send_invitation

from edgewise.apps.server.start import HttpServer, Tls
from edgewise.drivers.fleet import mailboxes, uploads
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.http import home

CHUNK, CHUNKS = 2**16, 60
AGENT = """
import sys
from pathlib import Path
from edgewise.drivers.http import link
link.ANSWER_S = 2.0
if len(sys.argv) > 3:
    link.Link.join(sys.argv[2], sys.argv[3], Path(sys.argv[1])).close()
    sys.exit()
with link.Link(Path(sys.argv[1]), 60.0) as device:
    print(device.send("run-1", 0, Path(sys.argv[2]).read_bytes()), flush=True)
"""


def received(server: HttpServer) -> int:
    """The bytes of uploads that the server has."""
    with server.service.database.read() as c:
        return sum(row.received for row in c.execute(uploads.UPLOADS.select()))


@pytest.mark.slow
@pytest.mark.parametrize("for_s", [0.5, 4.0], ids=["packets are sent again", "the request is given up"])
def test_an_upload_goes_on_after_a_partition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, for_s: float) -> None:
    monkeypatch.setattr(uploads, "CHUNK_BYTES", CHUNK)
    with namespace() as net, HttpServer(tmp_path / "server", net.here, tls=Tls(names=(net.here,))) as server:
        url, token = f"https://{net.here}:{server.port}", server.token(Grant(approved=True))
        program = net.inside(sys.executable, "-c", AGENT, str(tmp_path / "home"))
        subprocess.run([*program, url, token], check=True, timeout=60.0)
        name = home.load(tmp_path / "home").name
        send_invitation(server, name)
        raw = contribution(name, bytes(CHUNK * CHUNKS))
        (tmp_path / "frame").write_bytes(raw)
        with subprocess.Popen([*program, str(tmp_path / "frame")], stdout=subprocess.PIPE, text=True) as agent:
            while received(server) < 3 * CHUNK:
                assert agent.poll() is None
                time.sleep(0.002)
            net.cable(plugged=False)
            time.sleep(for_s)
            parted = received(server)
            assert parted < len(raw)
            assert agent.poll() is None
            net.cable(plugged=True)
            out, _ = agent.communicate(timeout=60.0)
        with server.service.database.read() as c:
            key, (letter,) = mailboxes.round_key(c, RUN, 0), mailboxes.arrivals(c, RUN, 0, 10)
        assert letter.number == int(out)
        assert mailboxes.opened(letter, key, server.service.chunks, CHUNK) == raw
