"""Ground of all tests: a quiet environment, no network beyond this machine, repeatable examples."""

from __future__ import annotations

import gc
import ipaddress
import os
import socket
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

# Before anything imports numpy, torch or transformers; worker and child processes inherit it.
os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    EDGEWISE_CACHE=os.path.join(tempfile.gettempdir(), "edgewise-tests"),
)

import pytest
from cpu_times import (  # noqa: F401
    pytest_addoption,
    pytest_runtest_logreport,
    pytest_runtest_makereport,
    pytest_runtest_setup,
    pytest_terminal_summary,
)
from hypothesis import HealthCheck, settings
from long import LONG
from spread import longest_first, pytest_xdist_make_scheduler  # noqa: F401

# The default threshold, 700 new objects, walks the syntax trees and the modules of all packages again and again.
gc.set_threshold(50_000, 20, 50)

_CALM: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fast", max_examples=25, **_CALM)
settings.register_profile("ci", max_examples=50, derandomize=True, **_CALM)
settings.register_profile("thorough", max_examples=1000, **_CALM)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "fast"))


@pytest.fixture(autouse=True)
def _own_user_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give each test an empty cache of the user, made where a test writes into it."""
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path_factory.getbasetemp() / "user-cache" / uuid.uuid4().hex))


@pytest.hookimpl(tryfirst=True)  # before ``-m`` chooses by markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep a sample of the cases of a test: ``long(sample=n)`` in ``make test``, ``quick(sample=n)`` in ``make check``.

    The n cases are evenly spread. ``make test-long`` walks all cases of the long tests and gives each hours, because a
    busy machine takes long over a thousand examples.
    """
    if LONG:
        for item in items:
            if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(4 * 3600))
        return
    left_out = set(_beyond(items, "long"))
    if left_out and not any("::" in argument for argument in config.args):  # a test that is asked for by name is played
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]
    for item in _beyond(items, "quick"):
        item.add_marker(pytest.mark.slow)
    if hasattr(config, "workerinput"):
        longest_first(items)


def _beyond(items: list[pytest.Item], marker: str) -> list[pytest.Item]:
    """List the cases beyond the sample that ``marker(sample=n)`` of their test names."""
    cases: dict[tuple[str, int], list[pytest.Item]] = {}
    for item in items:
        mark = item.get_closest_marker(marker)
        if mark is not None and "sample" in mark.kwargs:
            cases.setdefault((item.nodeid.split("[")[0], mark.kwargs["sample"]), []).append(item)
    beyond: list[pytest.Item] = []
    for (_, sample), group in cases.items():
        chosen = {i * len(group) // sample for i in range(sample)}
        beyond += [item for i, item in enumerate(group) if i not in chosen]
    return beyond


def pytest_collection_finish() -> None:
    """Freeze imported objects, which stay until the end. Garbage is then looked for among what tests make."""
    gc.freeze()


def _is_local(host: object) -> bool:
    if host in (None, "", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else str(host)).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Refuse every connection and name look-up that leaves this machine.

    ``pytest.fail`` raises a BaseException, so that code which catches OSError and carries on cannot hide the attempt.
    """

    def refuse(where: object) -> None:
        pytest.fail(f"a test tried to reach {where!r}; tests use loopback only", pytrace=True)

    def guarded(name: str, position: int) -> Any:
        original = getattr(socket.socket, name)

        def method(self: socket.socket, *args: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(args[position][0]):
                refuse(args[position])
            return original(self, *args)

        return method

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_local(host):
            refuse(host)
        return original_getaddrinfo(host, *args, **kwargs)

    original_getaddrinfo = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        for name, position in (("connect", 0), ("connect_ex", 0), ("sendto", -1)):
            patch.setattr(socket.socket, name, guarded(name, position))
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield
