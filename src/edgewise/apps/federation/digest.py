"""Digests of Python objects. A resumed run compares them, so that it continues with the objects it began with.

    digest(my_function) == digest(my_function)

A digest covers what decides an object's behaviour.

- A function: its code, constants, defaults, the values it closes over, and the globals it names. Functions of your own
  among these are followed.
- A torch module: its class, settings and weights.
- A tensor or an array: its content.
- Code of an installed package: its name only. ``versions`` in the run's record holds the versions of packages.

Line numbers and comments do not count. Other objects have no digest. They get ``unknown:`` and a random token, which
equals no other, so a run with such an object cannot be resumed.
"""

from __future__ import annotations

import hashlib
import secrets
import sys
import types
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.core.own_code import is_library
from edgewise.core.part import Part

BUILTIN = (
    types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType, types.MethodDescriptorType,
    np.ufunc,
)  # fmt: skip
_STDLIB = {*sys.stdlib_module_names, "builtins"} - {"__main__"}
UNTOLD = {"__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__"}
PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))


class _Unknown(Exception):
    """Raised for an object that has no digest."""


def digest(thing: Any) -> str:
    """Compute the SHA-256 of what decides an object's behaviour.

    Returns: 64 hexadecimal digits, or ``unknown:...`` for an object that has no digest.
    """
    h = hashlib.sha256()
    try:
        _Digest(h.update).add(thing)
    except _Unknown as e:
        return f"unknown:{e}:{secrets.token_hex(8)}"
    return h.hexdigest()


class _Digest:
    """Feed the canonical bytes of objects to ``feed``. A repeated object is fed as its number, so cycles end."""

    def __init__(self, feed: Any) -> None:
        self._feed, self._met, self._kept = feed, dict[int, int](), list[Any]()

    def _tag(self, *words: object) -> None:
        for word in words:
            raw = word if isinstance(word, bytes) else str(word).encode("utf-8", "surrogatepass")
            self._feed(len(raw).to_bytes(8, "little") + raw)

    def add(self, x: Any) -> None:
        """Feed one object."""
        if isinstance(x, PLAIN):
            self._tag(type(x).__name__, repr(x))
            return
        if not isinstance(
            x, tuple | frozenset | types.CodeType
        ):  # Python may share equal objects of these types, or not.
            if id(x) in self._met:
                self._tag("again", self._met[id(x)])
                return
            self._met[id(x)] = len(self._met)
            self._kept.append(x)  # An id stays with its object only while the object lives.
        if isinstance(x, list | tuple):
            self._tag(type(x).__name__, len(x))
            for one in x:
                self.add(one)
        elif isinstance(x, Mapping):
            self._tag("mapping", len(x))
            for key, value in x.items():
                self.add(key)
                self.add(value)
        elif isinstance(x, set | frozenset):
            self._tag("set", *sorted(digest(one) for one in x))
        elif isinstance(x, np.ndarray):
            self._array(x)
        elif isinstance(x, np.generic):
            self._tag("scalar", x.dtype, x.tobytes())
        elif isinstance(x, types.ModuleType):
            self._tag("module", x.__name__)
        elif isinstance(x, Path):
            self._tag("path", x)
        elif isinstance(x, types.CodeType):
            self._code(x)
        elif isinstance(x, types.MethodType):
            self._tag("method")
            self.add(x.__func__)
            self.add(x.__self__)
        elif isinstance(x, types.FunctionType):
            self._function(x)
        elif isinstance(x, Part):
            self._tag("part", x.name)
            self.add(x.function)
            self.add(x.turns)
        elif isinstance(x, partial):
            self._tag("partial")
            for one in (x.func, x.args, x.keywords):
                self.add(one)
        elif isinstance(x, staticmethod | classmethod):
            self.add(x.__func__)
        elif isinstance(x, property):
            for one in (x.fget, x.fset):
                self.add(one)
        elif isinstance(x, type):
            self._class(x)
        elif isinstance(x, BUILTIN):
            self._tag("builtin", getattr(x, "__module__", None) or "", getattr(x, "__qualname__", x.__name__))
        elif not self._torch(x):
            self._instance(x)

    def _array(self, x: np.ndarray[Any, Any]) -> None:
        if x.dtype.hasobject:
            self._tag("objects", x.shape)
            for one in x.ravel().tolist():
                self.add(one)
            return
        self._tag("array", x.dtype.str, x.shape)
        self._feed(np.ascontiguousarray(x).view(np.uint8).data if x.size else b"")

    def _code(self, x: types.CodeType) -> None:
        self._tag("code", x.co_code, x.co_argcount, x.co_kwonlyargcount, x.co_flags, x.co_exceptiontable)
        self._tag("names", *x.co_names, *x.co_varnames, *x.co_freevars, *x.co_cellvars)
        for constant in x.co_consts:
            self.add(constant)

    def _function(self, x: types.FunctionType) -> None:
        if _installed(x.__code__.co_filename):
            self._tag("library", x.__module__, x.__qualname__)
        else:
            self._tag("function")
            self.add(x.__code__)
            for name in sorted(_names(x.__code__) & x.__globals__.keys()):
                self._tag("global", name)
                self.add(x.__globals__[name])
        for one in (x.__defaults__, x.__kwdefaults__, tuple(map(_content, x.__closure__ or ()))):
            self.add(one)

    def _class(self, x: type) -> None:
        file = getattr(sys.modules.get(x.__module__), "__file__", None) or ""
        if _installed(file) or (not file and x.__module__.partition(".")[0] in _STDLIB):
            self._tag("library class", x.__module__, x.__qualname__)
            return
        self._tag("class", x.__qualname__)
        for base in x.__bases__:
            self.add(base)
        for name, value in sorted(vars(x).items()):
            if name not in UNTOLD:
                self._tag(name)
                self.add(value)

    def _torch(self, x: Any) -> bool:
        """Feed a tensor or a torch module. Returns whether the object was one."""
        torch = sys.modules.get("torch")
        if torch is None:
            return False
        if isinstance(x, torch.Tensor):
            self._tag("tensor", x.dtype, tuple(x.shape), x.requires_grad)
            if x.numel():
                self._feed(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        elif isinstance(x, torch.nn.Module):
            self._tag("torch module", x)
            for module in x.modules():
                self.add(type(module))
                self.add({k: v for k, v in vars(module).items() if k not in vars(torch.nn.Module())})
            for name, tensor in (*x.named_parameters(), *x.named_buffers()):
                self._tag(name)
                self.add(tensor)
        elif isinstance(x, torch.dtype | torch.device | torch.Size):
            self._tag("torch", repr(x))
        else:
            return False
        return True

    def _instance(self, x: Any) -> None:
        """Feed an object as its class and attributes, if it has no other state."""
        own = getattr(x, "__dict__", None)
        slots = [s for kind in type(x).__mro__ for s in _slots(kind) if s not in ("__dict__", "__weakref__")]
        if own is None and not slots:
            raise _Unknown(type(x).__name__)
        self._tag("object")
        self.add(type(x))
        self.add({**(own or {}), **{s: getattr(x, s) for s in slots if hasattr(x, s)}})


def _installed(file: str) -> bool:
    """Tell whether code belongs to an installed package. Code that was compiled from text (``<string>``) does not."""
    return not file.startswith("<") and bool(file) and is_library(file)


def _slots(kind: type) -> tuple[str, ...]:
    found = vars(kind).get("__slots__", ())
    return (found,) if isinstance(found, str) else tuple(found)


def _names(code: types.CodeType) -> set[str]:
    """List the names that code and the code inside it look up."""
    inner = (_names(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*inner)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # The cell has no value yet.
        return "an empty cell"
