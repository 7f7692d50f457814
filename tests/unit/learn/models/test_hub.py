"""Models of the hub, from a server on this machine that answers as the hub does: files, revisions, commits."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from edgewise.learn.models import hub

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
WEIGHTS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = json.dumps({"weight_map": {"x": WEIGHTS[0], "y": WEIGHTS[1]}})
FILES = {
    **dict.fromkeys(["config.json", "tokenizer.json", "chat_template.jinja", "README.md", "LICENSE", *WEIGHTS], "x"),
    "additional_chat_templates/tool.jinja": "x",
    "model.safetensors.index.json": INDEX,
}
NEVER_READ = dict.fromkeys(
    ["consolidated.safetensors", "model.fp16.safetensors", "original/model.safetensors", "original/params.json",
     "onnx/model.onnx", "onnx/config.json", "pytorch_model.bin", ".gitattributes", "adapter_model.safetensors"], "x",
)  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    """One repository, ``owner/name``."""

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def log_message(self, *arguments: object) -> None:
        return

    def _answer(self, body: bool) -> None:
        status, raw, more = 404, b"{}", {}
        everything = {**FILES, **NEVER_READ}
        if "/tree/" in self.path:
            tree = [{"type": "file", "path": n, "size": len(x), "oid": "0" * 40} for n, x in everything.items()]
            status, raw = 200, json.dumps(tree).encode()
        elif self.path.startswith("/api/models/owner/name"):
            revision = self.path.split("?")[0].rsplit("/revision/", 1)[-1]
            sha = COMMITS.get(revision, revision)
            if sha in COMMITS.values():
                siblings = [{"rfilename": name} for name in everything]
                status, raw = 200, json.dumps({"id": "owner/name", "sha": sha, "siblings": siblings}).encode()
        elif "/resolve/" in self.path:
            commit, name = self.path.split("/resolve/", 1)[1].split("/", 1)
            if name in everything and commit in COMMITS.values():
                status, raw = 200, everything[name].encode()
                more = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(name.encode()).hexdigest()}"'}
        self.send_response(status)
        for key, value in {"Content-Length": str(len(raw)), "Content-Type": "application/json", **more}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(raw)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def fetched(asked: str, cache: Path, endpoint: str, offline: str = "0") -> subprocess.CompletedProcess[str]:
    """Fetch in a process of its own: the hub's client reads its settings once."""
    code = (
        f"from edgewise.learn.models import hub; f = hub.fetch_hub_model({asked!r}); print(f); print(hub.hub_commit(f))"
    )
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": offline}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_what_is_read_is_fetched_at_one_commit(endpoint: str, tmp_path: Path) -> None:
    for asked, commit in (("owner/name", COMMITS["main"]), ("owner/name@v1", COMMITS["v1"])):
        done = fetched(asked, tmp_path, endpoint)
        assert done.returncode == 0, done.stderr
        folder, found = done.stdout.split()
        assert found == commit == Path(folder).name
        there = {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()}
        assert there == set(FILES)
    done = fetched(f"owner/name@{COMMITS['v1']}", tmp_path, "http://127.0.0.1:9", offline="1")
    assert done.stdout.split()[1:] == [COMMITS["v1"]], done.stderr
    assert "E-MODEL-REMOTE" in fetched("owner/name@v2", tmp_path, endpoint).stderr


def test_revisions_and_commits(tmp_path: Path) -> None:
    assert hub.split_hub_name("owner/name") == ("owner/name", "")
    assert hub.split_hub_name("owner/name@refs/pr/1") == ("owner/name", "refs/pr/1")
    assert hub.hub_commit(tmp_path / "snapshots" / ("0f" * 20)) == "0f" * 20
    assert hub.hub_commit(tmp_path / ("0f" * 20)) is None
