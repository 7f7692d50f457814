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

    def _feed_words(self, *words: object) -> None:
        """Feed words, each with its length."""
        for word in words:
            raw = word if isinstance(word, bytes) else str(word).encode("utf-8", "surrogatepass")
            self._feed(len(raw).to_bytes(8, "little") + raw)

    def add(self, x: Any) -> None:
        """Feed one object."""
        if isinstance(x, PLAIN):
            self._feed_words(type(x).__name__, repr(x))
            return
        if not isinstance(
            x, tuple | frozenset | types.CodeType
        ):  # Python may share equal objects of these types, or not.
            if id(x) in self._met:
                self._feed_words("again", self._met[id(x)])
                return
            self._met[id(x)] = len(self._met)
            self._kept.append(x)  # An id stays with its object only while the object lives.
        if isinstance(x, list | tuple):
            self._feed_words(type(x).__name__, len(x))
            for one in x:
                self.add(one)
        elif isinstance(x, Mapping):
            self._feed_words("mapping", len(x))
            for key, value in x.items():
                self.add(key)
                self.add(value)
        elif isinstance(x, set | frozenset):
            self._feed_words("set", *sorted(digest(one) for one in x))
        elif isinstance(x, np.ndarray):
            self._feed_array(x)
        elif isinstance(x, np.generic):
            self._feed_words("scalar", x.dtype, x.tobytes())
        elif isinstance(x, types.ModuleType):
            self._feed_words("module", x.__name__)
        elif isinstance(x, Path):
            self._feed_words("path", x)
        elif isinstance(x, types.CodeType):
            self._feed_code(x)
        elif isinstance(x, types.MethodType):
            self._feed_words("method")
            self.add(x.__func__)
            self.add(x.__self__)
        elif isinstance(x, types.FunctionType):
            self._feed_function(x)
        elif isinstance(x, Part):
            self._feed_words("part", x.name)
            self.add(x.function)
            self.add(x.turns)
        elif isinstance(x, partial):
            self._feed_words("partial")
            for one in (x.func, x.args, x.keywords):
                self.add(one)
        elif isinstance(x, staticmethod | classmethod):
            self.add(x.__func__)
        elif isinstance(x, property):
            for one in (x.fget, x.fset):
                self.add(one)
        elif isinstance(x, type):
            self._feed_class(x)
        elif isinstance(x, BUILTIN):
            self._feed_words("builtin", getattr(x, "__module__", None) or "", getattr(x, "__qualname__", x.__name__))
        elif not self._feed_torch(x):
            self._feed_instance(x)

    def _feed_array(self, x: np.ndarray[Any, Any]) -> None:
        """Feed an array: type, shape and values."""
        if x.dtype.hasobject:
            self._feed_words("objects", x.shape)
            for one in x.ravel().tolist():
                self.add(one)
            return
        self._feed_words("array", x.dtype.str, x.shape)
        self._feed(np.ascontiguousarray(x).view(np.uint8).data if x.size else b"")

    def _feed_code(self, x: types.CodeType) -> None:
        """Feed compiled code, without its file and lines."""
        self._feed_words("code", x.co_code, x.co_argcount, x.co_kwonlyargcount, x.co_flags, x.co_exceptiontable)
        self._feed_words("names", *x.co_names, *x.co_varnames, *x.co_freevars, *x.co_cellvars)
        for constant in x.co_consts:
            self.add(constant)

    def _feed_function(self, x: types.FunctionType) -> None:
        """Feed a function with what it refers to. One of a library is known by its name."""
        if _is_installed(x.__code__.co_filename):
            self._feed_words("library", x.__module__, x.__qualname__)
        else:
            self._feed_words("function")
            self.add(x.__code__)
            for name in sorted(_looked_up_names(x.__code__) & x.__globals__.keys()):
                self._feed_words("global", name)
                self.add(x.__globals__[name])
        for one in (x.__defaults__, x.__kwdefaults__, tuple(map(_cell_content, x.__closure__ or ()))):
            self.add(one)

    def _feed_class(self, x: type) -> None:
        """Feed a class with its attributes. One of a library is known by its name."""
        file = getattr(sys.modules.get(x.__module__), "__file__", None) or ""
        if _is_installed(file) or (not file and x.__module__.partition(".")[0] in _STDLIB):
            self._feed_words("library class", x.__module__, x.__qualname__)
            return
        self._feed_words("class", x.__qualname__)
        for base in x.__bases__:
            self.add(base)
        for name, value in sorted(vars(x).items()):
            if name not in UNTOLD:
                self._feed_words(name)
                self.add(value)

    def _feed_torch(self, x: Any) -> bool:
        """Feed a tensor or a torch module. Returns whether the object was one."""
        torch = sys.modules.get("torch")
        if torch is None:
            return False
        if isinstance(x, torch.Tensor):
            self._feed_words("tensor", x.dtype, tuple(x.shape), x.requires_grad)
            if x.numel():
                self._feed(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        elif isinstance(x, torch.nn.Module):
            self._feed_words("torch module", x)
            for module in x.modules():
                self.add(type(module))
                self.add({k: v for k, v in vars(module).items() if k not in vars(torch.nn.Module())})
            for name, tensor in (*x.named_parameters(), *x.named_buffers()):
                self._feed_words(name)
                self.add(tensor)
        elif isinstance(x, torch.dtype | torch.device | torch.Size):
            self._feed_words("torch", repr(x))
        else:
            return False
        return True

    def _feed_instance(self, x: Any) -> None:
        """Feed an object as its class and attributes, if it has no other state."""
        own = getattr(x, "__dict__", None)
        slots = [s for kind in type(x).__mro__ for s in _slots_of(kind) if s not in ("__dict__", "__weakref__")]
        if own is None and not slots:
            raise _Unknown(type(x).__name__)
        self._feed_words("object")
        self.add(type(x))
        self.add({**(own or {}), **{s: getattr(x, s) for s in slots if hasattr(x, s)}})


def _is_installed(file: str) -> bool:
    """Tell whether code belongs to an installed package. Code that was compiled from text (``<string>``) does not."""
    return not file.startswith("<") and bool(file) and is_library(file)


def _slots_of(kind: type) -> tuple[str, ...]:
    """List the slots that a class names."""
    found = vars(kind).get("__slots__", ())
    return (found,) if isinstance(found, str) else tuple(found)


def _looked_up_names(code: types.CodeType) -> set[str]:
    """List the names that code and the code inside it look up."""
    inner = (_looked_up_names(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*inner)


def _cell_content(cell: types.CellType) -> Any:
    """Return what a closure's cell holds."""
    try:
        return cell.cell_contents
    except ValueError:  # The cell has no value yet.
        return "an empty cell"
