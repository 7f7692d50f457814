"""The surroundings of a device's training: one torch thread, and errors of torch by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from edgewise.core.errors import TrainingError
from edgewise.core.own_code import type_and_line
from edgewise.core.training import DeviceId

LESS_MEMORY = "raise training.accumulate, or lower training.batch or engine.batch_devices."


@contextmanager
def computing(device: DeviceId, smaller: Callable[[], str] = lambda: LESS_MEMORY) -> Iterator[None]:
    """Compute with one torch thread inside, and turn errors of torch into TrainingError.

    Args:
        smaller: describes what would need less memory.
    Raises:
        TrainingError: E-MEMORY where memory is short, E-TRAIN for other errors of torch.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if isinstance(e, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(e):
            what = f"device {device!r:.60}: a training step does not fit into the memory of this machine."
            raise TrainingError("E-MEMORY", what, smaller()) from e
        fix = "torch's own words are in the run's log.txt; `edgewise check --debug` shows them too."
        raise TrainingError("E-TRAIN", f"device {device!r:.60}: {type_and_line(e)}.", fix) from e
    finally:
        torch.set_num_threads(threads)
