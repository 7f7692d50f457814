"""The connection of a run to a Ray cluster: a local one that it starts, or one at an address.

A local Ray listens on the loopback interface alone, has no dashboard and sends no usage statistics. It ends with the
run. Ray carries bytes only: what crosses it are the tasks of ``drivers.workers.jobs``.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from edgewise.core.errors import EdgewiseError
from edgewise.plan.recipe.sections import SimulationSection

ANSWER_S = 5.0  # longest wait for a connection to the cluster's address
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0" keeps a local Ray on 127.0.0.1, on every system
LOG = logging.getLogger("edgewise")


def ray_module() -> Any:
    """Import ray, with its usage statistics off.

    Raises EdgewiseError(E-DEPENDENCY) where it is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        what = 'simulation.engine = "ray" needs the package ray.'
        raise EdgewiseError("E-DEPENDENCY", what, 'pip install "edgewise[ray]".') from None
    return ray


def connect(section: SimulationSection) -> Callable[[], None]:
    """Start a local Ray, or connect to the one at ``section.ray_address``. Returns what ends the connection.

    A process that is connected already (``ray.init`` in a notebook) stays connected, and its cluster is used.

    Raises:
        EdgewiseError: E-DEPENDENCY without ray. E-CLUSTER where the address does not answer, or where the cluster is
            too small for the workers.
    """
    end = _connected(section)
    try:
        _check_room(ray_module().nodes(), section)
    except BaseException:
        end()
        raise
    return end


def _connected(section: SimulationSection) -> Callable[[], None]:
    """Connect, and return what undoes it."""
    if not section.ray_address:
        os.environ.setdefault(LOOPBACK, "0")  # Ray reads it when it is imported.
    ray = ray_module()
    if ray.is_initialized():
        return lambda: None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if section.ray_address:
        _check_answer(section.ray_address)
        options |= {"address": section.ray_address}
    else:
        cpus = max(os.cpu_count() or 1, math.ceil(section.workers * section.worker_cpus))
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as e:
        where = f"no Ray cluster answers at {section.ray_address}" if section.ray_address else "Ray does not start here"
        raise EdgewiseError("E-CLUSTER", f"{where}: {_first_line(e)}", _how(section)) from None
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own, which would not save the run.
    return lambda: ray.shutdown()


def _check_answer(address: str) -> None:
    """Refuse an address that nothing listens on. Ray itself would try for minutes. "auto" is Ray's to find."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except OSError as e:
        what = f"no Ray cluster answers at {address}: {e.strerror or 'no answer'}."
        fix = "start one (`ray start --head`) and give its address, or leave out --ray-address for a local one."
        raise EdgewiseError("E-CLUSTER", what, fix) from None


def _how(section: SimulationSection) -> str:
    """Say how to mend a failed start."""
    if not section.ray_address:
        return "see the log of the run; `--engine pool` needs no Ray."
    return "run this on a machine of the cluster, with the same versions of ray and Python, or leave out --ray-address."


def _first_line(e: Exception) -> str:
    """Return the first line of an error's message, or its type."""
    return f"{(str(e).splitlines() or [type(e).__name__])[0]:.200}"


def _check_room(nodes: list[Mapping[str, Any]], section: SimulationSection) -> None:
    """Refuse workers that the cluster's machines, all idle, could not hold. Raises EdgewiseError(E-CLUSTER)."""
    wanted = {"CPU": section.worker_cpus, "GPU": section.worker_gpus}
    has = [node["Resources"] for node in nodes if node["Alive"]]
    room = sum(_holds(machine, wanted) for machine in has)
    if room >= section.workers:
        return
    total = ", ".join(f"{sum(machine.get(kind, 0.0) for machine in has):g} {kind}s" for kind in wanted)
    each = " and ".join(f"{n:g} {kind}{'s' * (n != 1)}" for kind, n in wanted.items() if n)
    what = (
        f"{section.workers} workers need {each} each. The cluster has {total} on {len(has)} machines, room for {room}."
    )
    fix = "lower simulation.workers, worker_cpus or worker_gpus, or add machines."
    raise EdgewiseError("E-CLUSTER", what, fix)


def _holds(machine: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    """Count the workers that fit one machine."""
    return min(int((machine.get(kind, 0.0) + 1e-6) / n) for kind, n in wanted.items() if n)
