"""Logs as JSON, one object a line, without secrets.

    with logs.opened(folder / "server.log"):
        logging.getLogger("edgewise.http").info("request", extra={"fields": {"route": "/v1/inbox", "status": 204}})

    {"at": "2026-01-31T12:00:00.123Z", "level": "info", "from": "edgewise.http", "event": "request", "route": ...}

Every text passes ``redacted``. An exception is logged by its type and the places in the code that it passed. Its
message is logged only for errors of edgewise, because any other message may quote secrets.
"""

from __future__ import annotations

import datetime
import io
import json
import logging
import logging.handlers
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgewise.core.errors import EdgewiseError, StoreError
from edgewise.core.redacted import redacted
from edgewise.drivers.storage.files import for_owner

ROTATE_BYTES, KEEP_FILES = 2**24, 4


class JsonLines(logging.Formatter):
    """Format a record as one line of JSON. Its ``fields`` (a mapping) become keys of the object."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "at": f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z",
            "level": record.levelname.lower(),
            "from": record.name,
            "event": redacted(record.getMessage()),
        }
        fields: dict[str, Any] = getattr(record, "fields", {})
        line |= {key: redacted(value) if isinstance(value, str) else value for key, value in fields.items()}
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = [_described(e) for e in _chain(record.exc_info[1])]
        return json.dumps(line)


def _described(e: BaseException) -> dict[str, Any]:
    places = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(e.__traceback__)]
    entry: dict[str, Any] = {"type": type(e).__name__, "at": places}
    return entry | {"says": redacted(str(e))} if isinstance(e, EdgewiseError) else entry


def _chain(e: BaseException) -> Iterator[BaseException]:
    following: BaseException | None = e
    while following is not None:
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


class _Rotating(logging.handlers.RotatingFileHandler):
    """A log file for its owner only. A full disk costs lines of the log and nothing else."""

    def _open(self) -> io.TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", opener=for_owner)

    def handleError(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""


@contextmanager
def opened_log(path: Path | None) -> Iterator[None]:
    """Log this program's messages, and errors that end its threads, to a file, or to standard error where ``path`` is
    None.

    Only the owner can read the file. It rotates at 16 MiB, and four older files stay.

    Raises:
        StoreError: E-DISK where the file cannot be written.
    """
    try:
        handler = (
            logging.StreamHandler(sys.stderr)
            if path is None
            else _Rotating(path, maxBytes=ROTATE_BYTES, backupCount=KEEP_FILES, encoding="utf-8")
        )
    except OSError as e:
        raise StoreError("E-DISK", f"the log {path} cannot be written: {e.strerror}.", "name another file.") from None
    handler.setFormatter(JsonLines())
    root, own = logging.getLogger(), logging.getLogger("edgewise")
    before, level, hook = root.level, own.level, threading.excepthook
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    own.setLevel(logging.INFO)
    threading.excepthook = _thread_ended
    try:
        yield
    finally:
        threading.excepthook = hook
        own.setLevel(level)
        root.setLevel(before)
        root.removeHandler(handler)
        handler.close()


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        error = (args.exc_type, args.exc_value, args.exc_traceback)
        logging.getLogger("edgewise").error("a thread ended", exc_info=error)
