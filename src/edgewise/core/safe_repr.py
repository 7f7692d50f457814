"""Printing of values without their contents.

For values that hold keys, shares, noise or updates. A printed value often ends up in a log.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sized
from typing import Any

import numpy as np


def outline(self: Any) -> str:
    """Return a ``repr`` of names, scalars and sizes, for dataclasses, msgspec structs and named tuples.

    With ``__repr__ = outline``, a class that has ``device: str`` and ``box: bytes`` prints as ``Letter(device='d1',
    box=<80 bytes>)``.

    Guarantees: bytes, arrays, elements of containers and text of more than 100 characters are not shown. A field that
    holds another record shows as its outline or its type. Fields with ``repr=False`` are left out.
    """
    shown = ", ".join(f"{name}={_repr_by_size(getattr(self, name))}" for name in _field_names(self))
    return f"{type(self).__name__}({shown})"


def _field_names(x: Any) -> tuple[str, ...]:
    """List the fields of a record that may be printed."""
    if dataclasses.is_dataclass(x):
        return tuple(f.name for f in dataclasses.fields(x) if f.repr)
    return tuple(getattr(x, "_fields", None) or x.__struct_fields__)


def _repr_by_size(x: Any) -> str:
    """Print a value, or only its kind and size where it is large or secret."""
    if x is None or isinstance(x, bool | int | float) or (isinstance(x, str) and len(x) <= 100):
        return repr(x)
    kind: Any = type(x)
    if kind.__repr__ is outline:
        return repr(x)
    if isinstance(x, np.ndarray):
        return f"<{x.dtype}[{', '.join(map(str, x.shape))}]>"
    if isinstance(x, bytes | bytearray | memoryview):
        return f"<{len(x)} bytes>"
    return f"<{len(x)} items>" if isinstance(x, Sized) else f"<{kind.__name__}>"
