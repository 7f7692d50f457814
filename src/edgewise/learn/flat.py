"""All trainable parameters as one tensor, so that reading, writing, clipping and optimizer steps are single operations.

    flat = Flat([(name, p) for name, p in model.named_parameters()])
    x = flat.read()                # float32[d], a copy
    flat.write(x)                  # the model has these weights

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


class FlatStorage:
    """Weights (``w_D``) and gradients (``g_D``) of one device as flat tensors, float32[d] each.

    ``spec`` is their layout, and ``fixed`` names the segments that never move. Nothing says which module has these
    weights. ``apart`` names segments that never share a piece with the one before them (``runs``).
    """

    def __init__(
        self,
        spec: Spec,
        w_D: torch.Tensor,
        g_D: torch.Tensor,
        fixed: frozenset[str],
        apart: frozenset[str] = frozenset(),
    ) -> None:
        self.spec, self.w_D, self.g_D, self.fixed, self.apart = spec, w_D, g_D, fixed, apart

    def moving(self, names: Collection[str]) -> Collection[str]:
        """Return the names of the segments that move: those given, or all that are not fixed. Empty means all."""
        return names if names or not self.fixed else [s.name for s in self.spec.segments if s.name not in self.fixed]

    @property
    def moves(self) -> int:
        """The number of coordinates that are not fixed."""
        return sum(s.size for s in self.spec.segments if s.name not in self.fixed)

    def runs(self, x_D: torch.Tensor, names: Collection[str]) -> list[torch.Tensor]:
        """Return the parts of ``x_D`` that hold the named segments, with neighbours in one piece.

        No name means all that are not fixed.
        """
        names = self.moving(names)
        if not names and not self.apart:
            return [x_D]
        out: list[list[int]] = []
        for s in self.spec.segments:
            if names and s.name not in names:
                continue
            if out and out[-1][1] == s.start and s.name not in self.apart:
                out[-1][1] = s.stop
            else:
                out.append([s.start, s.stop])
        return [x_D[start:stop] for start, stop in out]


class Flat(FlatStorage):
    """The flat storage of a model's trained parameters (``w_D``) and their gradients (``g_D``), both float32.

    ``p.data`` and ``p.grad`` become views of it and keep their shapes. A forward pass reads the storage in place, and a
    backward pass accumulates into it in place.

    Args:
        named: (segment name, parameter), each parameter once. Tied weights are one parameter. The parameters are
            converted to float32, whatever dtype the frozen rest of the model has.
        fixed: segments that are part of the model and never train. They take no gradient.
        apart: segments that stand behind others in the layout of the whole model, of which this is a part. Sums over
            pieces then round as there.
    Raises:
        ValueError: for a parameter that comes twice.
    Guarantees:
        The spec depends on names and shapes only, so all devices agree on it.
        The storage comes from torch's allocator (64-byte aligned), never from a caller's array. Vectorised kernels may
        round differently on other alignments, and the same seed must give the same bits in every process.
    Edge cases:
        ``model.to(...)``, ``p.data = ...`` or ``zero_grad(set_to_none=True)`` elsewhere break the views.
        ``Flat.zero_grad`` repairs gradients that were set to None.
    """

    def __init__(
        self, named: Sequence[tuple[str, nn.Parameter]], fixed: Collection[str] = (), apart: Collection[str] = ()
    ) -> None:
        if len({id(p) for _, p in named}) != len(named):
            raise ValueError("a parameter is named twice")
        spec = Spec.of([(name, p.shape, "float32") for name, p in named])
        processor = named[0][1].device if named else None
        w_D, g_D = (make(spec.dim, dtype=torch.float32, device=processor) for make in (torch.empty, torch.zeros))
        super().__init__(spec, w_D, g_D, frozenset(fixed), frozenset(apart))
        self._views: list[tuple[nn.Parameter, torch.Tensor]] = []
        for segment, (_, p) in zip(self.spec.segments, named, strict=True):
            p.data = segment_view(self.w_D, segment).copy_(p.data)
            p.grad = segment_view(self.g_D, segment)
            self._views.append((p, p.grad))
        for s, (p, _) in zip(self.spec.segments, self._views, strict=True):
            p.requires_grad_(s.name not in self.fixed and p.requires_grad)
        self._shared()

    def _shared(self) -> None:
        # On the CPU numpy shares the memory, and copies it without torch's overhead.
        self._w = self.w_D.numpy() if self.w_D.device.type == "cpu" else None

    def move(self, processor: torch.device) -> None:
        """Move parameters and gradients to a processor. The rest of the model has to be moved by itself."""
        self.w_D, self.g_D = self.w_D.to(processor), self.g_D.to(processor)
        self._views = [(p, segment_view(self.g_D, s)) for s, p in self.pairs()]
        for s, (p, g) in zip(self.spec.segments, self._views, strict=True):
            p.data = segment_view(self.w_D, s)
            p.grad = g
        self._shared()

    def read(self) -> Vector:
        """Copy all parameters into a new float32[d]."""
        return self.w_D.cpu().numpy() if self._w is None else self._w.copy()

    def write(self, x: Vector) -> None:
        """Set all parameters from float32[d], by one copy of 4 d bytes. Raises ValueError on another length."""
        if x.shape != self.w_D.shape:
            raise ValueError(f"vector has shape {x.shape}, spec needs {tuple(self.w_D.shape)}")
        if self._w is not None:
            np.copyto(self._w, x)
        else:
            self.w_D.copy_(torch.from_numpy(np.ascontiguousarray(x)))

    def host(self) -> Vector:
        """Return the parameters for work in numpy. On the CPU this is their own memory, elsewhere a copy.

        ``take`` returns changes to the model.
        """
        return self._w if self._w is not None else self.read()

    def take(self, host: Vector) -> None:
        """Give the model the parameters of ``host``, which may have changed since. Free on the CPU."""
        if self._w is None:
            self.write(host)

    def minus(self, x: Vector) -> Vector:
        """Return the parameters minus ``x`` as a new float32[d]."""
        return np.subtract(self.host(), x)

    def pairs(self) -> Iterator[tuple[Segment, nn.Parameter]]:
        """Iterate over each segment and its parameter."""
        yield from zip(self.spec.segments, (p for p, _ in self._views), strict=True)

    def gathered(self, named: Mapping[str, nn.Parameter]) -> Vector:
        """Collect all trained parameters of a module that foreign code returned, as float32[d].

        The module may be this one or another with the same names. Parameters that left the flat storage return to it.

        Args:
            named: the module's parameters by name.
        Raises:
            TrainingError: E-TRAIN for a parameter that is missing or has another shape.
        """
        own = {id(p) for p in named.values()}
        for s, p in self.pairs():
            found = p if id(p) in own else named.get(s.name)
            if found is None or tuple(found.shape) != s.shape:
                what = f"the module that the training loop returned has no parameter {s.name} of the shape {s.shape}."
                raise TrainingError("E-TRAIN", what, "return the module that the loop received, or one like it.")
            place = segment_view(self.w_D, s)
            if found.data.data_ptr() != place.data_ptr():
                place.copy_(found.data)
                p.data = place
        return self.read()

    def zero_grad(self) -> None:
        """Set all gradients to zero, as views of ``g_D``."""
        self.g_D.zero_()
        for p, g in self._views:
            p.grad = g

    @contextmanager
    def only(self, names: Collection[str]) -> Iterator[None]:
        """Let only the named segments take gradients inside. No name means all that are not fixed.

        ``g_D`` stays zero elsewhere. A backward pass does no work for the other segments, and ends at the first layer
        with a trained one.
        """
        still = self.fixed | ({s.name for s in self.spec.segments} - set(names) if names else set())
        frozen = [p for s, (p, _) in zip(self.spec.segments, self._views, strict=True) if s.name in still - self.fixed]
        for p in frozen:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in frozen:
                p.requires_grad_(True)


def segment_view(x_D: torch.Tensor, s: Segment) -> torch.Tensor:
    """Return one segment of ``x_D`` in its shape, as a view."""
    return x_D[s.start : s.stop].view(s.shape)
