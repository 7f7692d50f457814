"""All trainable parameters as one tensor: read, write, clip, prox and the optimizer are then single operations.

Shape suffixes: D = all trainable coordinates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from edgewise.core.errors import TrainingError
from edgewise.core.vector import Segment, Spec, Vector


class Flat:
    """Makes the parameters of a model views of ``w_D`` and their gradients views of ``g_D`` (both float32).

    ``p.data`` and ``p.grad`` keep their shapes and share the flat storage, so a forward pass reads and a backward pass
    accumulates in place, and nothing is ever gathered or scattered.

    Args:
        named: (segment name, parameter), each parameter once (tied weights are one parameter). They are converted to
            float32: the vector, the optimizer and the sum over devices work in it, whatever the frozen rest has.
    Guarantees:
        The spec depends on names and shapes only, never on the machine's precision, so all devices agree on it.
        The storage comes from torch's allocator (64-byte aligned), never from a caller's array: vectorised kernels
        may round differently on other alignments, and the same seed must give the same bits in every process.
    Edge cases:
        ``model.to(...)``, ``p.data = ...`` or ``zero_grad(set_to_none=True)`` elsewhere break the views; ``zero_grad``
        here repairs gradients that were set to None.
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]]) -> None:
        if len({id(p) for _, p in named}) != len(named):
            raise ValueError("a parameter is named twice")
        self.spec = Spec.of([(name, p.shape, "float32") for name, p in named])
        self.w_D = torch.empty(self.spec.dim, dtype=torch.float32)
        self.g_D = torch.zeros(self.spec.dim, dtype=torch.float32)
        self._views: list[tuple[nn.Parameter, torch.Tensor]] = []
        for segment, (_, p) in zip(self.spec.segments, named, strict=True):
            p.data = view(self.w_D, segment).copy_(p.data)
            p.grad = view(self.g_D, segment)
            self._views.append((p, p.grad))
        self._w = self.w_D.numpy()  # the same memory, for copies without torch's overhead

    def read(self) -> Vector:
        """A copy of all parameters, float32[d]."""
        return self._w.copy()

    def write(self, x: Vector) -> None:
        """Set all parameters from float32[d]; one copy of 4 d bytes. Raises ValueError on another length."""
        if x.shape != self._w.shape:
            raise ValueError(f"vector has shape {x.shape}, spec needs {self._w.shape}")
        np.copyto(self._w, x)

    def minus(self, x: Vector) -> Vector:
        """Parameters minus ``x``: a new float32[d]."""
        return np.subtract(self._w, x)

    def pairs(self) -> Iterator[tuple[Segment, nn.Parameter]]:
        """Each segment and its parameter."""
        yield from zip(self.spec.segments, (p for p, _ in self._views), strict=True)

    def gathered(self, named: Mapping[str, nn.Parameter]) -> Vector:
        """All trained parameters, float32[d], wherever foreign code has put them: of the module itself, or by name of
        another one. What left the flat storage returns to it. Raises TrainingError(E-TRAIN) for a parameter that is
        missing or of another shape."""
        own = {id(p) for p in named.values()}
        for s, p in self.pairs():
            there = p if id(p) in own else named.get(s.name)
            if there is None or tuple(there.shape) != s.shape:
                what = f"the module that the training loop returned has no parameter {s.name} of the shape {s.shape}."
                raise TrainingError("E-TRAIN", what, "return the module that it was given, or one like it.")
            place = view(self.w_D, s)
            if there.data.data_ptr() != place.data_ptr():
                place.copy_(there.data)
                p.data = place
        return self.read()

    def zero_grad(self) -> None:
        """All gradients to zero, as views of ``g_D``."""
        self.g_D.zero_()
        for p, g in self._views:
            p.grad = g

    def runs(self, x_D: torch.Tensor, names: Collection[str]) -> list[torch.Tensor]:
        """The parts of ``x_D`` that hold the named segments, neighbours in one piece; all of it where none is named."""
        if not names:
            return [x_D]
        out: list[list[int]] = []
        for s in self.spec.segments:
            if s.name not in names:
                continue
            if out and out[-1][1] == s.start:
                out[-1][1] = s.stop
            else:
                out.append([s.start, s.stop])
        return [x_D[start:stop] for start, stop in out]

    @contextmanager
    def only(self, names: Collection[str]) -> Iterator[None]:
        """Inside, only the named segments take gradients (all where none is named): ``g_D`` stays zero elsewhere, and a
        backward pass does no work for the others and stops where nothing before them is trained."""
        held = [p for s, (p, _) in zip(self.spec.segments, self._views, strict=True) if names and s.name not in names]
        for p in held:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in held:
                p.requires_grad_(True)


def view(x_D: torch.Tensor, s: Segment) -> torch.Tensor:
    """The part of ``x_D`` that is one segment, in its shape; shares memory."""
    return x_D[s.start : s.stop].view(s.shape)
