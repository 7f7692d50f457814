"""Standard output and standard error that cannot fail. Text that nobody can read is dropped, and the work continues."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import BinaryIO, cast


class Screen(io.TextIOWrapper):
    """A text stream whose writing never raises OSError.

    A reader that ended, a full disk or a closed terminal must not stop the work whose progress is shown. After the
    first failure the file descriptor leads to the null device, for libraries and child processes too. Where a slow
    reader of a non-blocking pipe has no room, only the text without room is dropped.
    """

    def write(self, text: str) -> int:
        """Write the text or drop it. Return the number of characters in both cases."""
        try:
            return super().write(text)
        except OSError as e:
            self._drop(e)
            return len(text)

    def flush(self) -> None:
        """Flush the text or drop it."""
        try:
            super().flush()
        except OSError as e:
            self._drop(e)

    def close(self) -> None:
        """Flush the text or drop it, and close."""
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
            super().flush()  # the rest of the buffer goes to the null device too


def screen_on(fd: int, encoding: str | None = None) -> Screen:
    """Make a screen on a file descriptor, which it closes. Characters that the encoding lacks appear as escapes."""
    return Screen(cast(BinaryIO, os.fdopen(fd, "wb")), encoding=encoding, errors="backslashreplace")


def guard_streams() -> None:
    """Make the process's standard streams screens, and open those that the process was started without.

    Otherwise the next opened file would get the number of a closed descriptor, and printed text would be written into
    it.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is ``fd``
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            raw = open(fd, "wb", closefd=False)  # noqa: SIM115 (stays open as long as the process runs)
            guarded = Screen(raw, "utf-8", "backslashreplace")
        elif isinstance(stream, io.TextIOWrapper):
            encoding, by_line, at_once = stream.encoding, stream.line_buffering, stream.write_through
            guarded = Screen(stream.detach(), encoding, "backslashreplace", None, by_line, at_once)
        else:  # a stream that a program has set on purpose stays
            continue
        setattr(sys, name, guarded)
        setattr(sys, f"__{name}__", guarded)
