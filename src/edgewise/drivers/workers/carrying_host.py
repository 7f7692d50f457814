"""A host without a folder of the run. The files of a job's devices come with the job and go back with the answer.

So a job depends on nothing that an earlier one left behind, and another host may do it again after a failure. The bytes
of the answer are the same.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgewise.core.errors import StoreError
from edgewise.drivers.storage.device_store import CarriedFiles, SimulatedDevices
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.host import Host
from edgewise.drivers.workers.memory_use import peak_bytes
from edgewise.engine.device_state import remembers
from edgewise.engine.ports import DeviceStore
from edgewise.plan.plan import Plan


class CarryingHost:
    """A ``Host`` that does tasks (``jobs.CarriedJob``), bytes in and bytes out.

    Args:
        worker: number of this process, from 0.
    """

    def __init__(self, worker: int) -> None:
        self._host = Host(self._devices, worker=worker)
        self._files = CarriedFiles()

    def pid(self) -> int:
        """Return the number of this process."""
        return os.getpid()

    def do(self, raw: bytes) -> bytes:
        """Do one task and return its answer (``jobs.CarriedAnswer``). Raises DecodeError for other bytes."""
        task = jobs.read_task(raw)
        if isinstance(task.job, jobs.Setup) and not Path(task.job.recipe_dir).is_dir():
            refused = StoreError(
                "E-WORKER",
                f"a worker of the cluster does not have the recipe's folder {task.job.recipe_dir}.",
                "put recipe and data on a disk that all machines mount at the same place.",
            )
            broken = jobs.Broken(id=task.job.id, code=refused.code, what=refused.what, fix=refused.fix, stops=True)
            return jobs.encode(jobs.CarriedAnswer(broken))
        self._files.begin(task.files)
        result = self._host.do(task.job)
        notes: list[tuple[str, int | None, str, str, float]] = []
        if isinstance(task.job, jobs.Handle | jobs.HandleMany):
            noted = self._host.do(jobs.TakeMetrics())
            notes = noted.notes if isinstance(noted, jobs.MetricNotes) else []
        return jobs.encode(jobs.CarriedAnswer(result, self._files.changes, notes, peak_bytes(pooled=False)))

    def _devices(self, plan: Plan, job: jobs.Setup) -> DeviceStore:
        return SimulatedDevices(self._files, plan.run, job.instance, remembers(plan))
