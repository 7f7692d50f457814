"""A torch module as a run sees it: named parameters, strictly those of a layout.

    spec = layout(model)                        # server: what a run of this module trains
    load(model, spec, x)                        # device: the round's model; a module that does not fit is E-LAYOUT
    x = read(model, spec)                       # after training

Names are the module's own, without what ``peft`` and ``torch.compile`` put around them: an adapter's weights have the
names of a saved adapter without ``base_model.model.``. So a module and its wrapped form have one layout. Buffers, as
batch statistics, are no parameters: they stay where they are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import nn

from edgewise.core.errors import ModelError
from edgewise.core.training import Correction
from edgewise.core.vector import Segment, Spec, Vector

PEFT_PREFIX = "base_model.model."  # what peft puts before each name in memory and in a saved adapter
SHOWN = 3  # names in a message


def plain_name(name: str) -> str:
    """A parameter's name as layouts have it."""
    return (name.replace("_orig_mod.", "") + ".").replace(PEFT_PREFIX, "").replace(".default.", ".")[:-1]


def layout(model: nn.Module) -> Spec:
    """The layout of a module's parameters that take a gradient.

    Raises ModelError(E-LAYOUT) where none do, or one is not float32.
    """
    named = [(name, p) for name, p in _named(model).items() if p.requires_grad]
    if not named:
        raise ModelError("E-LAYOUT", "no parameter of the module takes a gradient.", "set requires_grad on some.")
    _check_kind(named)
    return Spec.of([(name, p.shape, "float32") for name, p in named])


def size(model: nn.Module) -> int:
    """Number of all its parameters, frozen ones too."""
    return sum(p.numel() for p in model.parameters())


def load(model: nn.Module, spec: Spec, x: Vector, trained: Collection[str] = ()) -> None:
    """Write float32[d] into a module, and let those of its parameters take a gradient that the round trains.

    Args:
        trained: names of segments; empty: all of the layout.
    Raises:
        ModelError(E-LAYOUT): a parameter of the layout is missing, or has another shape or dtype; the module trains one
            that the layout does not have. Nothing is written then.
    """
    found = _checked(model, spec)
    with torch.no_grad():
        for s, p in zip(spec.segments, found, strict=True):
            p.copy_(torch.from_numpy(np.array(x[s.start : s.stop])).view(s.shape))
            p.requires_grad_(not trained or s.name in trained)


def read(model: nn.Module, spec: Spec) -> Vector:
    """The module's parameters as float32[d]. Raises ModelError(E-LAYOUT) as ``load``."""
    x = np.empty(spec.dim, np.float32)
    for s, p in zip(spec.segments, _checked(model, spec), strict=True):
        x[s.start : s.stop] = p.detach().cpu().reshape(-1).numpy()
    return x


def correct(model: nn.Module, spec: Spec, start: Vector, correction: Correction) -> None:
    """Add a strategy's correction to the gradients: g += pull (w - start) + shift.

    Raises ModelError(E-LAYOUT) as ``load``. A parameter without a gradient is left alone.
    """
    with torch.no_grad():
        for s, p in zip(spec.segments, _checked(model, spec), strict=True):
            if p.grad is None:
                continue
            if correction.pull:
                p.grad.add_(p - _view(start, s).to(p.device), alpha=correction.pull)
            if correction.shift is not None:
                p.grad.add_(_view(correction.shift, s).to(p.device))


def _view(x: Vector, s: Segment) -> torch.Tensor:
    return torch.from_numpy(np.array(x[s.start : s.stop])).view(s.shape)


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    """Each parameter once, by its plain name; raises ModelError(E-LAYOUT) for what is no module."""
    if not isinstance(model, nn.Module):
        raise ModelError("E-LAYOUT", f"{type(model).__name__} is no torch module.", "give a torch.nn.Module.")
    found: dict[str, nn.Parameter] = {}
    for name, p in model.named_parameters():
        if (plain := plain_name(name)) in found:
            raise ModelError("E-LAYOUT", f"two parameters are called {plain}.", "rename one of them.")
        found[plain] = p
    return found


def _checked(model: nn.Module, spec: Spec) -> list[nn.Parameter]:
    found, names = _named(model), {s.name for s in spec.segments}
    missing = [s.name for s in spec.segments if s.name not in found]
    extra = [name for name, p in found.items() if p.requires_grad and name not in names]
    shapes = [s for s in spec.segments if s.name in found and tuple(found[s.name].shape) != s.shape]
    fix = "build the model that the run names: same architecture, and the same parameters with requires_grad."
    if missing:
        raise ModelError("E-LAYOUT", f"the module lacks {_shown(missing)}, which the run trains.", fix)
    if extra:
        raise ModelError("E-LAYOUT", f"the module trains {_shown(extra)}, which the run does not.", fix)
    if shapes:
        s = shapes[0]
        what = f"{s.name} has the shape {tuple(found[s.name].shape)}, and in the run {s.shape}."
        raise ModelError("E-LAYOUT", what, fix)
    named = [(s.name, found[s.name]) for s in spec.segments]
    _check_kind(named)
    return [p for _, p in named]


def _check_kind(named: Sequence[tuple[str, nn.Parameter]]) -> None:
    for name, p in named:
        if p.dtype != torch.float32:
            what = f"{name} is {str(p.dtype).removeprefix('torch.')}: small steps would be lost in its rounding."
            raise ModelError("E-LAYOUT", what, "train it in float32; what is frozen may have any dtype.")


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
