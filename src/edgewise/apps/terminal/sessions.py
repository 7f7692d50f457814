"""Sessions of commands: error messages, exit statuses, crash files, Ctrl-C, and a quiet screen.

session = CommandSession("check", as_json=True)
raise typer.Exit(session.run(lambda: {"answer": 42}))
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from edgewise.core.errors import EdgewiseError, Interrupted, RecipeError
from edgewise.core.own_code import fault_of
from edgewise.core.redacted import redacted
from edgewise.drivers.captured_output import PrintedNoise
from edgewise.drivers.screen import screen_on
from edgewise.drivers.storage.files import for_owner
from edgewise.drivers.storage.folder import is_marked_folder

EXTRAS = {  # Extra of pip -> its packages.
    "train": {"torch", "transformers", "peft", "accelerate", "tokenizers", "matplotlib", "pyarrow"},
    "server": {"fastapi", "starlette", "uvicorn", "alembic", "prometheus_client"},
}
NOISE = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class CommandSession:
    """One execution of a command: its output format, and its way to report errors.

    Attributes:
        name: the command.
        as_json: print one JSON object on standard output instead of text.
        debug: show tracebacks.
        verdict: last line of a command that ends with an error.
        extensions: modules of the user's own parts. Their faults are not bugs of edgewise.
        folder: run directory for crash files.
        resumable: True once something was saved that ``--resume`` continues.
    """

    def __init__(
        self,
        name: str,
        *,
        as_json: bool = False,
        debug: bool = False,
        verdict: str = "",
        extensions: Sequence[str] | None = None,
    ) -> None:
        self.name, self.as_json, self.debug, self.verdict = name, as_json, debug, verdict
        self.extensions = [Path(given).stem if given.endswith(".py") else given for given in extensions or ()]
        self.folder: Path | None = None
        self.resumable = False

    def run(self, body: Callable[[], Mapping[str, Any] | None]) -> int:
        """Run the command's body and return the exit status.

        ``body`` returns the content of the JSON object. The status is 1 if the object's ``ok`` is False.
        """
        try:
            payload = dict(body() or {})
        except KeyboardInterrupt:
            return self._print_error(self._interruption())
        except EdgewiseError as e:
            return self._print_error(e)
        except ImportError as e:
            package = (e.name or "").split(".")[0]
            extra = next((extra for extra, packages in EXTRAS.items() if package in packages), "")
            if not extra:
                return self._write_crash_file(e)
            fix = f'pip install "edgewise[{extra}]", or in a clone `make setup`.'
            return self._print_error(EdgewiseError("E-DEPENDENCY", f"this command needs {e.name}.", fix))
        except (Exception, SystemExit) as e:  # boundary: a bug becomes a crash file and a message, never a traceback
            if (fault := fault_of(e, self.extensions)) is None:
                return self._write_crash_file(e)
            fault.__cause__ = e
            return self._print_error(fault)
        if self.as_json:
            print(json.dumps({"ok": True, "command": self.name, **payload}))
        return 0 if payload.get("ok", True) else 1

    def _interruption(self) -> Interrupted:
        """Make the error of a command that was stopped by a person."""
        if not self.resumable:
            return Interrupted("E-INTERRUPTED", "stopped before anything was saved.", "run the same command again.")
        what = "stopped. All complete rounds are saved, and the contributions that arrived in the current one."
        return Interrupted("E-INTERRUPTED", what, f"continue with: {again(sys.argv)}")

    def _print_error(self, e: EdgewiseError) -> int:
        """Print an error, for people or as JSON."""
        if self.debug:
            traceback.print_exception(e)
        if self.as_json:
            print(json.dumps({"ok": False, "command": self.name, "error": _as_json(e)}))
        else:
            print(error_for_terminal(e, _screen_width()), file=sys.stderr)
            if self.verdict and not isinstance(e, Interrupted):
                print(_in_bold(self.verdict), file=sys.stderr)
        return e.exit_status

    def _write_crash_file(self, e: BaseException) -> int:
        """Write the traceback (code lines only, no values of variables) into a file that a person can report."""
        traced = "".join(traceback.format_exception(e))
        text = redacted(f"edgewise {self.name}\n{' '.join(sys.argv)}\n\n{traced}")
        path = write_crash(text, self.folder)
        if self.debug:
            print(text, file=sys.stderr)
        what = f"unexpected {type(e).__name__}: {redacted((str(e).splitlines() or [''])[0])[:200]}"
        if self.as_json:
            error = {"code": "crash", "what": what, "fix": f"see {path}"}
            print(json.dumps({"ok": False, "command": self.name, "error": error}))
        else:
            go_on = f"\n  then  {again(sys.argv)}" if self.resumable else ""
            print(f"{_in_bold('this is a bug in edgewise')}: {what}\n  see   {path}{go_on}", file=sys.stderr)
        return 1


def _as_json(e: EdgewiseError) -> dict[str, Any]:
    """Convert an error for the JSON object. ``faults`` lists all faults of a recipe."""
    plain: dict[str, Any] = {"code": e.code, "what": e.what, "fix": e.fix}
    if isinstance(e, RecipeError) and e.faults:
        plain["faults"] = [{**fault._asdict(), "file": fault.file or ""} for fault in e.faults]
    return plain


def error_for_terminal(e: EdgewiseError, width: int = 0) -> str:
    """Format an error: code and cause, ``fix``, ``also`` for each further fault, ``more``.

    Lines are wrapped between words at ``width`` columns (0 = never). A command to copy stays on one line.
    """
    parts = [("", f"{e.code}: {e.what}")]
    for i, line in enumerate(filter(None, e.fix.split("\n"))):
        parts.append(("fix", line) if not i else ("also", line.removeprefix("also ")))
    parts.append(("more", f"edgewise explain {e.code}"))
    lines: list[str] = []
    for label, said in parts:
        text = f"  {label:<6}{said}" if label else said
        if not width or (label == "fix" and isinstance(e, Interrupted)):
            lines.append(text)
            continue
        indent = " " * (8 if label else 2)
        lines += textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    lines[0] = lines[0].replace(e.code, _in_bold(e.code), 1)
    return "\n".join(lines)


def _screen_width() -> int:
    """Return the columns of the screen that shows errors. 0 if standard error is not a screen."""
    return shutil.get_terminal_size().columns if sys.stderr.isatty() else 0


def write_crash(text: str, folder: Path | None) -> Path:
    """Write a crash file into the run directory if edgewise made it, else into the system's temporary folder."""
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for place in (folder if folder is not None and is_marked_folder(folder) else None, Path(tempfile.gettempdir())):
        with suppress(OSError):
            if place is not None and place.is_dir():
                with open(place / name, "w", encoding="utf-8", opener=for_owner) as f:
                    f.write(text)
                return place / name
    return Path("(no place could be written)")


def again(argv: list[str]) -> str:
    """Return the command line that continues this one."""
    program = "edgewise" if shutil.which("edgewise") else argv[0]
    words = [program, *argv[1:]]
    return shlex.join(words if "--resume" in words else [*words, "--resume"])


@contextmanager
def interrupts() -> Iterator[list[Callable[[], None]]]:
    """Raise KeyboardInterrupt at the first Ctrl-C (or SIGTERM), and end the process at the second.

    Yields a list of functions that the first one calls. Each must only set a flag.
    """
    pressed = False
    listeners: list[Callable[[], None]] = []

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            os._exit(130)
        pressed = True
        for listener in listeners:
            listener()
        raise KeyboardInterrupt

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield listeners
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def quiet_screen(log: Path | None, debug: bool = False) -> Iterator[TextIO]:
    """Divert the output of libraries and worker processes (file descriptors 1 and 2) to ``log``.

    Yields the real standard error. ``log`` is appended to if there is output and edgewise made its folder; None drops
    the output. Only its owner can read it, because a trainer's output may quote text. The middle of long output is left
    out (``drivers.captured_output``). With ``debug`` all output stays on the screen.
    """
    for key, value in NOISE.items():
        os.environ.setdefault(key, value)
    if debug:
        yield sys.stderr
        return
    sys.stdout.flush()
    sys.stderr.flush()
    with (
        PrintedNoise() as noise,
        screen_on(os.dup(2), sys.stderr.encoding) as shown,
    ):
        originals = {fd: os.dup(fd) for fd in (1, 2)}
        for fd in originals:
            os.dup2(noise.fileno(), fd)
        try:
            yield shown
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, copy in originals.items():
                os.dup2(copy, fd)
                os.close(copy)
            if (output := noise.read()) and log is not None and is_marked_folder(log.parent):
                with suppress(OSError), open(log, "ab", opener=for_owner) as f:
                    f.write(output)


def _in_bold(text: str) -> str:
    """Write a text in bold where the terminal shows it."""
    return f"\033[1m{text}\033[0m" if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else text
