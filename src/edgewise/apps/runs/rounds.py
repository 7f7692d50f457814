"""A finished round as a script sees it: ``edgewise.Round``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from edgewise.core import events, vector
from edgewise.core.vector import Array, Spec, Vector
from edgewise.drivers.storage.blobs import Blobs


@dataclass
class Round:
    """A finished and stored round. The next round waits until the loop continues. Print it to see a line.

    Attributes:
        number: counted from 0.
        met: whether the model moved. An abandoned round leaves it as it was. ``code`` says why if secure aggregation
            ended the round.
        metrics: the weighted means that travelled with the updates (losses, ``[[metric]]``), and beside them the
            figures of ``metrics=``. In a simulation these are simulator metrics, measured on each device. In
            ``Server`` they are measured on the server's data. No two of them share a name.
        contributions: the number of updates in the model.
        lost: device -> code, for each device that gave nothing.
        bytes_up, bytes_down: of the whole cohort.
        seconds: duration of the round.
        epsilon: spent by the run so far. None without noise.
        digest: of the model.
        spec: the model's layout.
    """

    number: int
    met: bool
    metrics: dict[str, float]
    contributions: int
    lost: Mapping[str, str]
    bytes_up: int
    bytes_down: int
    seconds: float
    epsilon: float | None
    code: str | None
    digest: str
    spec: Spec = field(repr=False)
    _read: Callable[[], Vector] = field(repr=False)

    def __str__(self) -> str:
        met = f"{self.contributions} contributions" if self.met else f"abandoned {self.code or ''}".rstrip()
        figures = "".join(f"  {name} {value:.4g}" for name, value in self.metrics.items())
        epsilon = f"  epsilon {self.epsilon:.3g}" if self.epsilon is not None else ""
        return f"round {self.number}  {met}{figures}  {self.bytes_up:,} bytes up{epsilon}  {self.seconds:.1f} s"

    def _repr_html_(self) -> str:
        state = "met" if self.met else f"abandoned {self.code or ''}".rstrip()
        cells = {
            "round": str(self.number), "state": state, "contributions": str(self.contributions),
            **{name: f"{value:.4g}" for name, value in self.metrics.items()}, "bytes up": f"{self.bytes_up:,}",
            "epsilon": "" if self.epsilon is None else f"{self.epsilon:.3g}", "seconds": f"{self.seconds:.1f}",
        }  # fmt: skip
        head = "".join(f"<th>{escape(name)}</th>" for name in cells)
        body = "".join(f"<td>{escape(cell)}</td>" for cell in cells.values())
        return f"<table><thead><tr>{head}</tr></thead><tbody><tr>{body}</tr></tbody></table>"

    @property
    def params(self) -> Vector:
        """The model after the round, float32[d].

        Raises StoreError(E-CHECKPOINT) for a model that is no longer stored. A folder holds the last three.
        """
        return self._read()

    def tensors(self) -> dict[str, Array]:
        """Return the model's tensors by name."""
        return vector.unpack(self.params, self.spec)

    def load_into(self, model: Any) -> None:
        """Write the model into a torch module, strictly. Raises ModelError(E-LAYOUT)."""
        from edgewise.learn.models import modules

        modules.load_module_vector(model, self.spec, self.params)


def round_of_event(event: events.RoundFinished, lost: Mapping[str, str], spec: Spec, run_dir: Path) -> Round:
    """Make the round that an event reports.

    Args:
        lost: as in ``Round``.
        run_dir: the folder that holds the models.
    """
    return Round(
        number=event.round, met=event.met, metrics=dict(event.head), contributions=event.accepted, lost=dict(lost),
        bytes_up=event.bytes_up, bytes_down=event.bytes_down, seconds=event.seconds, epsilon=event.epsilon,
        code=event.code, digest=event.model, spec=spec,
        _read=lambda: vector.from_bytes(Blobs(run_dir / "blobs").get(event.model), spec.dim),
    )  # fmt: skip
