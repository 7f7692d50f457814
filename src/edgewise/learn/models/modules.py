"""Map the named parameters of a torch module to and from a run's vector, strictly by its layout.

    spec = module_layout(model)                        # server: the layout of a run of this module
    load_module_vector(model, spec, x)                        # device: the round's model; E-LAYOUT for a module that
    does not fit x = read_module_vector(model, spec)                       # after training

Names are the module's own, without the prefixes of ``peft`` and ``torch.compile``. An adapter's weights have the names
of a saved adapter without ``base_model.model.``. A module and its wrapped form therefore have one layout. Buffers, such
as batch statistics, are not parameters and do not travel.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import nn

from edgewise.core.errors import ModelError
from edgewise.core.training import Correction
from edgewise.core.vector import Segment, Spec, Vector

PEFT_PREFIX = "base_model.model."  # peft puts it before each name in memory and in a saved adapter.
SHOWN = 3  # A message lists so many names.


def plain_parameter_name(name: str) -> str:
    """Return a parameter's name as layouts have it."""
    return (name.replace("_orig_mod.", "") + ".").replace(PEFT_PREFIX, "").replace(".default.", ".")[:-1]


def module_layout(model: nn.Module) -> Spec:
    """Return the layout of a module's parameters that take a gradient.

    Raises:
        ModelError: E-LAYOUT where none do, or one is not float32.
    """
    named = [(name, p) for name, p in _named(model).items() if p.requires_grad]
    if not named:
        raise ModelError("E-LAYOUT", "no parameter of the module takes a gradient.", "set requires_grad on some.")
    _check_kind(named)
    return Spec.of([(name, p.shape, "float32") for name, p in named])


def module_parameter_count(model: nn.Module) -> int:
    """Count all parameters of a module, with the frozen ones."""
    return sum(p.numel() for p in model.parameters())


def load_module_vector(model: nn.Module, spec: Spec, x: Vector, trained: Collection[str] = ()) -> None:
    """Write float32[d] into a module, and let the parameters that the round trains take a gradient.

    Args:
        trained: names of the round's trained segments. Empty means all of the layout.
    Raises:
        ModelError: E-LAYOUT where a parameter of the layout is missing or has another shape or dtype, or the module
            trains one that is not in the layout. Nothing is written then.
    """
    found = _checked(model, spec)
    with torch.no_grad():
        for s, p in zip(spec.segments, found, strict=True):
            p.copy_(torch.from_numpy(np.array(x[s.start : s.stop])).view(s.shape))
            p.requires_grad_(not trained or s.name in trained)


def read_module_vector(model: nn.Module, spec: Spec) -> Vector:
    """Return the module's parameters as float32[d]. Raises ModelError(E-LAYOUT) as ``load_module_vector``."""
    x = np.empty(spec.dim, np.float32)
    for s, p in zip(spec.segments, _checked(model, spec), strict=True):
        x[s.start : s.stop] = p.detach().cpu().reshape(-1).numpy()
    return x


def correct_gradients(model: nn.Module, spec: Spec, start: Vector, correction: Correction) -> None:
    """Add a strategy's correction to the gradients: g += pull (w - start) + shift.

    Raises:
        ModelError: E-LAYOUT as ``load_module_vector``.
    Edge cases: a parameter without a gradient stays as it is.
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
    """Return each parameter once, by its plain name. Raises ModelError(E-LAYOUT) for anything but a module."""
    if not isinstance(model, nn.Module):
        raise ModelError("E-LAYOUT", f"{type(model).__name__} is not a torch module.", "give a torch.nn.Module.")
    found: dict[str, nn.Parameter] = {}
    for name, p in model.named_parameters():
        if (plain := plain_parameter_name(name)) in found:
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
            what = f"{name} is {str(p.dtype).removeprefix('torch.')}. Its rounding would lose small steps."
            raise ModelError("E-LAYOUT", what, "train it in float32. Frozen parameters may have any dtype.")


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
