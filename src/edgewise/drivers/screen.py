"""Standard output and standard error that cannot fail: what nobody can read is dropped, and the work goes on."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import BinaryIO, cast


class Screen(io.TextIOWrapper):
    """A text stream whose writing never raises OSError.

    A reader that went away, a full disk and a closed terminal decide nothing about the work whose progress they show:
    from the first failure on the file descriptor leads to the null device, for libraries and child processes too. What
    a slow reader of a non-blocking pipe has no room for is dropped alone.
    """

    def write(self, text: str) -> int:
        """Write, or drop; returns the number of characters either way."""
        try:
            return super().write(text)
        except OSError as e:
            self._drop(e)
            return len(text)

    def flush(self) -> None:
        """Flush, or drop."""
        try:
            super().flush()
        except OSError as e:
            self._drop(e)

    def close(self) -> None:
        """Flush or drop, and close."""
        if not self.closed:
            self.flush()
        with suppress(OSError):
            super().close()

    def _drop(self, why: OSError) -> None:
        if isinstance(why, BlockingIOError):
            return
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            super().flush()  # what is still buffered goes the same way


def screen(fd: int, encoding: str | None = None) -> Screen:
    """A screen on a file descriptor, which it closes; characters that the encoding lacks show as escapes."""
    return Screen(cast(BinaryIO, os.fdopen(fd, "wb")), encoding=encoding, errors="backslashreplace")


def guard() -> None:
    """Make the process's own standard streams screens, and open those that it was started without.

    A closed descriptor would be given to the next file that is opened, and what is printed would end up in it.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            raw = open(fd, "wb", closefd=False)  # noqa: SIM115 (open as long as the process)
            guarded = Screen(raw, "utf-8", "backslashreplace")
        elif isinstance(stream, io.TextIOWrapper):
            encoding, by_line, at_once = stream.encoding, stream.line_buffering, stream.write_through
            guarded = Screen(stream.detach(), encoding, "backslashreplace", None, by_line, at_once)
        else:  # whoever put it there knows what it does
            continue
        setattr(sys, name, guarded)
        setattr(sys, f"__{name}__", guarded)
