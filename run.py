#!/usr/bin/env python3
"""Set up edgewise and run it, with nothing but Python: ``python3 run.py demo``.

    demo       run the demonstration             (arguments go to `edgewise demo`)
    test       run the whole test suite          (arguments go to pytest, e.g. -k quantize)
    test-long  walk all of what `test` samples: a fault at every durable operation, many more random examples
    test-isa   run the fast tests under three instruction sets, the whole suite with `test-isa tests`
    check      format, lint, types, import layers, fast tests
    docs       build the pages as a site in build/docs/site; a link that leads nowhere fails
    setup      only make the environment in .venv

The first start makes ``.venv`` and installs edgewise with the exact versions of ``constraints/``; later starts reuse
it. An interrupted set-up is started afresh. Environment variables: ``EDGEWISE_TORCH_INDEX`` is the package index for
PyTorch (empty: whatever pip is configured for).

This file must parse on Python 3.8, so that an old interpreter can say what is missing instead of a syntax error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "edgewise-stamp.json"  # written last: the environment is complete and was made from these inputs
UNFINISHED = VENV / "edgewise-unfinished"  # written first: while it exists, the environment is never used
LOG = ROOT / "build" / "setup.log"
LOWEST = (3, 11)
TESTED = ("3.11", "3.12", "3.13", "3.14")  # tried in this order when the starting interpreter is too old
CPU_TORCH = "https://download.pytorch.org/whl/cpu"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "Agg"}
COMMANDS = ("demo", "test", "test-long", "test-isa", "check", "docs", "setup")
LONG = {"EDGEWISE_TEST_LONG": "1", "HYPOTHESIS_PROFILE": "thorough"}


class Stop(Exception):
    """The set-up cannot go on: a cause, the next step, and the exit status (see docs/errors.md)."""

    def __init__(self, cause: str, step: str, status: int = 1) -> None:
        super().__init__(cause)
        self.cause, self.step, self.status = cause, step, status


def say(text: str) -> None:
    """One line for people; standard output belongs to the command that is run."""
    print(text, file=sys.stderr, flush=True)


# --- interpreters -----------------------------------------------------------------------------------------------------


def probe(command: list[str]) -> tuple[tuple[int, int, int], str] | None:
    """Version and real path of a Python command, or None where it does not run (a shim without a target, say)."""
    code = "import sys; print(*sys.version_info[:3]); print(getattr(sys, '_base_executable', None) or sys.executable)"
    try:
        done = subprocess.run([*command, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20)
        version, path = done.stdout.decode().splitlines()[:2]
        major, minor, micro = map(int, version.split())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return (major, minor, micro), os.path.realpath(path)


def find_interpreter() -> tuple[tuple[int, int, int], str]:
    """The starting interpreter where it is new enough, else the first on PATH that is. Raises Stop."""
    own = (sys.version_info[0], sys.version_info[1], sys.version_info[2])
    base = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    if own >= LOWEST:
        return own, base
    found = {base: own}
    commands = [[f"python{v}"] for v in TESTED] + [["python3"], ["python"]]
    if os.name == "nt":
        commands = [["py", f"-{v}"] for v in TESTED] + commands
    for command in commands:
        path = shutil.which(command[0])
        seen = probe([path, *command[1:]]) if path else None
        if seen and seen[0] >= LOWEST:
            return seen
        if seen:
            found[seen[1]] = seen[0]
    listing = "\n".join(f"    {'.'.join(map(str, version))}  {path}" for path, version in sorted(found.items()))
    raise Stop(
        f"edgewise needs Python {LOWEST[0]}.{LOWEST[1]} or newer. Found only:\n{listing}",
        "install Python 3.11, then run this again:\n"
        "    Debian, Ubuntu   sudo apt install python3.11 python3.11-venv\n"
        "    Fedora           sudo dnf install python3.11\n"
        "    macOS            brew install python@3.11\n"
        "    Windows, others  https://www.python.org/downloads/",
    )


# --- the environment --------------------------------------------------------------------------------------------------


def constraints(version: tuple[int, int, int]) -> Path:
    """The pins for this Python: its own file where there is one, else those of 3.11 (also valid on 3.12 and 3.13)."""
    own = ROOT / "constraints" / f"py{version[0]}{version[1]}.txt"
    return own if own.exists() else ROOT / "constraints" / "py311.txt"


def stamp(version: tuple[int, int, int], base: str) -> dict[str, str]:
    """All that decides what is installed."""

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    return {
        "pyproject": digest(ROOT / "pyproject.toml"),
        "constraints": digest(constraints(version)),
        "interpreter": f"{base} {'.'.join(map(str, version))}",
        "folder": str(ROOT),  # an environment cannot be moved: its scripts hold absolute paths
    }


def ready(wanted: dict[str, str]) -> bool:
    """Whether ``.venv`` is complete and made from exactly these inputs."""
    try:
        return not UNFINISHED.exists() and PYTHON.exists() and json.loads(STAMP.read_text()) == wanted
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def alone():
    """One set-up at a time in this folder; the lock goes with the last process that holds it, however that ends."""
    LOG.parent.mkdir(exist_ok=True)
    with open(LOG.parent / "setup.lock", "w") as handle:
        os.set_inheritable(handle.fileno(), True)  # an orphaned pip must not write into the next set-up's .venv
        waiting = False
        while True:
            try:
                if os.name == "nt":
                    import msvcrt

                    msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
                else:
                    import fcntl

                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not waiting:
                    say("another set-up is running in this folder; waiting for it")
                waiting = True
                time.sleep(0.5)
        yield


def setup() -> None:
    """Make ``.venv`` complete, doing nothing when it is. Raises Stop."""
    version, base = find_interpreter()
    wanted = stamp(version, base)
    if ready(wanted):
        return
    with alone():
        if not ready(wanted):
            make(version, base, wanted)


def make(version: tuple[int, int, int], base: str, wanted: dict[str, str]) -> None:
    """Create or update the environment; whatever interrupts this, the next start begins afresh."""
    started = time.monotonic()
    try:
        old = probe([str(PYTHON)]) if PYTHON.exists() and not UNFINISHED.exists() else None
        reuse = old is not None and old == (version, base) and _folder_of_stamp() in (None, str(ROOT))
        if VENV.exists() and not reuse:
            if not (STAMP.exists() or UNFINISHED.exists()) and any(VENV.iterdir()):
                step = "move or delete it yourself, then run this again."
                raise Stop(".venv was not made by edgewise and does not fit its Python.", step, 2)
            inside = os.path.realpath(sys.prefix) == os.path.realpath(VENV)
            if inside and os.name == "nt":
                raise Stop(".venv has to be made anew, but it is in use.", "run `deactivate`, then this again.")
            say("removing .venv: it is unfinished, moved, or of another Python")
            shutil.rmtree(VENV)
        VENV.mkdir(exist_ok=True)
        UNFINISHED.touch()
    except OSError as e:
        raise Stop(f"cannot write {VENV}: {e}", "check the owner and the free space of this folder.", 6) from None
    LOG.write_text(f"edgewise set-up, Python {wanted['interpreter']}\n")
    if reuse:
        say("updating .venv: pyproject.toml or the constraints have changed")
    else:
        say(f"making .venv with Python {'.'.join(map(str, version))} ({base})")
        make_venv(base, version)
    pins = constraints(version).relative_to(ROOT).as_posix()
    install_torch(constraints(version))
    pip(
        "installing edgewise",
        ["-c", pins, "-e", ".[train,server,export,eval,quant,split,postgres,s3,attest,dev]"],
        pins,
    )
    if sys.dont_write_bytecode:
        # Python would not keep what it compiles (PYTHONDONTWRITEBYTECODE), so each process would compile torch again.
        # A file that does not compile, of another Python's tests say, is none that will be imported.
        logged("compiling packages", [str(PYTHON), "-m", "compileall", "-q", "-j", "0", str(VENV), str(ROOT / "src")])
    STAMP.write_text(json.dumps(wanted, indent=1))
    UNFINISHED.unlink()
    say(f"environment ready in {time.monotonic() - started:.0f} s")


def set_up_docs() -> None:
    """Install the generator of the site, where it is not there yet: 90 MB that nothing else needs. Raises Stop."""
    if subprocess.call(
        [str(PYTHON), "-c", "import importlib.util, sys; sys.exit(not importlib.util.find_spec('zensical'))"]
    ):
        pins = constraints(find_interpreter()[0]).relative_to(ROOT).as_posix()
        with alone():
            pip("installing the generator of the site", ["-c", pins, "-e", ".[docs]"], pins)


def _folder_of_stamp() -> str | None:
    """The folder for which ``.venv`` was made; None where it does not say."""
    try:
        return str(json.loads(STAMP.read_text())["folder"])
    except (OSError, ValueError, KeyError):
        return None


def make_venv(base: str, version: tuple[int, int, int]) -> None:
    """``python -m venv``. Raises Stop where the interpreter came without it, as on Debian and Ubuntu."""
    has = subprocess.run([base, "-c", "import venv, ensurepip"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if has.returncode == 0 and logged("creating .venv", [base, "-m", "venv", str(VENV)]) == 0:
        return
    raise Stop(
        f"{base} cannot make virtual environments: its modules venv and ensurepip are missing or broken.",
        f"on Debian and Ubuntu `sudo apt install python{version[0]}.{version[1]}-venv`; elsewhere install Python from\n"
        f"    https://www.python.org/downloads/ . Then run this again. Log: {LOG}",
    )


def install_torch(pins: Path) -> None:
    """Take PyTorch's CPU build where it surely is the right one; the ordinary Linux build brings gigabytes of CUDA.

    Only with pip's own defaults: whoever has configured an index or local wheels has decided already. Best effort:
    when this fails, the next step installs the ordinary build.
    """
    index = os.environ.get("EDGEWISE_TORCH_INDEX")
    if index is None:
        index = CPU_TORCH if wants_cpu_torch() and reachable(CPU_TORCH + "/torch/") else ""
    pin = re.search(r"^torch==\S+", pins.read_text(encoding="utf-8"), re.MULTILINE)
    if index and pin:
        command = [str(PYTHON), "-m", "pip", "install", "--no-deps", "--index-url", index, pin.group()]
        if logged("installing PyTorch", command) != 0:
            say(f"no {pin.group()} at {index}; taking the ordinary build")


def wants_cpu_torch() -> bool:
    """Linux, no NVIDIA driver, and pip's configuration names no place for packages."""
    if not sys.platform.startswith("linux") or shutil.which("nvidia-smi") or os.path.exists("/proc/driver/nvidia"):
        return False
    command = [str(PYTHON), "-m", "pip", "config", "list"]
    listing = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode()
    return not re.search(r"index-url|find-links|no-index", listing)


def reachable(url: str) -> bool:
    """Whether ``url`` answers within 5 s; a thread, because name resolution has no time-out of its own."""
    answered: list[int] = []

    def ask() -> None:
        import urllib.request

        with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=5) as reply:
            answered.append(reply.status)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(5)
    return answered == [200]


def pip(title: str, arguments: list[str], pins: str) -> None:
    """``pip install``; the pins also hold for the build back end. Raises Stop with the cause read from the log."""
    command = [str(PYTHON), "-m", "pip", "install", "--no-compile", "--disable-pip-version-check", *arguments]
    given = os.environ.get("PIP_CONSTRAINT")
    if (
        logged(title, command, {"PIP_CONSTRAINT": f"{given} {pins}" if given else pins, "PIP_BUILD_CONSTRAINT": pins})
        == 0
    ):
        return
    lines = LOG.read_text(encoding="utf-8", errors="replace").splitlines()
    cause, step, status = diagnose("\n".join(lines), pins)
    noise = re.compile(r"\s*($|[×│╰]|note: This error|error: subprocess-exited)")
    tail = "\n".join(f"    {line}" for line in [line for line in lines if not noise.match(line)][-12:])
    raise Stop(f"{cause}\n  the last lines of the log:\n{tail}", f"{step}\n  whole log: {LOG}", status)


def diagnose(log: str, pins: str) -> tuple[str, str, int]:
    """Cause, next step and exit status of a failed pip run."""
    again = "then run the same command again."
    if re.search(r"No space left on device|Errno 28", log):
        return "the disk is full.", f"free 3 GB in this folder or in TMPDIR, {again}", 6
    if re.search(
        r"NewConnectionError|NameResolution|name resolution|ConnectTimeout|ProxyError|SSLError|timed out", log
    ):
        step = f"check the network and the proxy (`{VENV.name}/{BIN.name}/pip config list` shows the settings), {again}"
        return "the package index cannot be reached.", step, 5
    if "ResolutionImpossible" in log:
        step = (
            "check the network and pip's index settings (`pip config list`); if they are right, undo the last change to"
        )
        step += f"\n    pyproject.toml or {pins}, or renew the pins with scripts/freeze_constraints.py; {again}"
        return f"no index offers versions that fit both pyproject.toml and {pins}.", step, 1
    missing = re.search(r"No matching distribution found for (\S+)", log)
    if missing:
        step = f"check that pin in {pins} and pip's index settings (`pip config list`); a package without a build for"
        return f"no index offers {missing.group(1)}.", f"{step}\n    this Python needs Python 3.11 to 3.13, {again}", 1
    if re.search(r"Failed building wheel|error: command .*(gcc|cc|cl\.exe)", log):
        return "a package has no ready build for this Python.", f"use Python 3.11 to 3.13 (delete .venv), {again}", 1
    return "pip failed.", f"read the lines above, {again}", 1


def logged(title: str, command: list[str], extra: dict[str, str] | None = None) -> int:
    """Run a command into the log with a line of progress; returns its exit status."""
    tty = sys.stderr.isatty()
    started, told = time.monotonic(), 0.0
    with open(LOG, "ab") as sink:
        sink.write(("\n$ " + " ".join(command) + "\n").encode())
        sink.flush()
        begin = sink.tell()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PIP_NO_INPUT": "1", **(extra or {})}
        child = subprocess.Popen(
            command, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT, env=environment, close_fds=False
        )
        try:
            while child.poll() is None:
                passed = time.monotonic() - started
                if tty:
                    print(f"\r\033[K{title}  {passed:.0f} s  {doing(begin)}", end="", file=sys.stderr, flush=True)
                elif passed - told >= 10:
                    told = passed
                    say(f"{title}  {passed:.0f} s  {doing(begin)}")
                time.sleep(0.1)
        except BaseException:
            child.terminate()
            child.wait()
            raise
        finally:
            if tty:
                print("\r\033[K", end="", file=sys.stderr, flush=True)
    return child.returncode


def doing(begin: int) -> str:
    """What pip is at, from the last telling line of the log."""
    text = LOG.read_bytes()[begin:].decode("utf-8", "replace")
    steps = re.findall(r"^\s*(Collecting \S+|Downloading \S+|Building .*|Installing \w+.*)", text, re.MULTILINE)
    what = os.path.basename(steps[-1].strip())[:60] if steps else ""
    return "unpacking, about a minute" if what.startswith("Installing collected") else what


# --- processors -------------------------------------------------------------------------------------------------------

# Variables that keep libraries from instructions that this processor has. Each library then adds and rounds in another
# order, so a test that passes under all of these depends on no kind of processor. numpy has no variable for a level: it
# gets the names of what it must leave out.
SETTINGS = {
    "baseline": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OPENBLAS_CORETYPE": "Prescott",
        "NUMBA_CPU_NAME": "generic",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "avx512": {"OPENBLAS_CORETYPE": "SkylakeX"},
}


def numpy_features() -> list[str]:
    """Instruction sets beyond its baseline that numpy uses on this processor."""
    names = "from numpy._core._multiarray_umath import __cpu_dispatch__ as names, __cpu_features__ as here; "
    code = names + "print(*[n for n in names if here[n]])"
    done = subprocess.run([str(PYTHON), "-c", code], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().split()


def test_isa(arguments: list[str]) -> int:
    """The tests in which arithmetic matters, once for each of SETTINGS that this processor can play."""
    features = numpy_features()
    newer = [n for n in features if n == "X86_V4" or n.startswith("AVX512")]
    left_out = {"baseline": features, "avx2": newer, "avx512": []}
    failed = []
    for name, settings in SETTINGS.items():
        if name == "avx512" and not newer:
            say("avx512: left out, this processor has none of it")
            continue
        chosen = {**settings, "NPY_DISABLE_CPU_FEATURES": " ".join(left_out[name])}
        say(f"{name}: " + " ".join(f'{k}="{v}"' for k, v in chosen.items()))
        os.environ.update(chosen)
        if pytest(
            arguments or ["-m", "not slow", "tests/unit", "tests/laws", "tests/drivers", "tests/attacks", "tests/e2e"]
        ):
            failed.append(name)
        for key in chosen:
            del os.environ[key]
    say(f"test-isa: {'failed under ' + ', '.join(failed) if failed else 'all good'}")
    return 1 if failed else 0


# --- commands ---------------------------------------------------------------------------------------------------------


def run(command: list[str]) -> int:
    """Run in the foreground; Ctrl-C reaches the command, which decides how to end."""
    child = subprocess.Popen(command, cwd=ROOT)
    while True:
        try:
            status = child.wait()
            return 128 - status if status < 0 else status
        except KeyboardInterrupt:
            continue


def processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pytest(arguments: list[str], split: str = "loadfile") -> int:
    """pytest on up to four processors, by default a file never split between them; ``-n 0`` turns that off."""
    os.environ.update(QUIET)
    workers = min(4, processors())
    chosen = any(re.match(r"-n\d*$|--numprocesses|--pdb|--trace|--collect-only|--co$", a) for a in arguments)
    spread = [] if chosen or workers == 1 else ["-n", str(workers), "--dist", split]
    return run([str(PYTHON), "-m", "pytest", *spread, *arguments])


def check(arguments: list[str]) -> int:
    """The fast gate: four static checks side by side, and beside them the tests that are not slow."""
    started = time.monotonic()
    static = {
        "ruff format": ["-m", "ruff", "format", "--check", "."],
        "ruff lint": ["-m", "ruff", "check", "."],
        "mypy": ["-m", "mypy"],
        "import layers": ["-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"],
    }
    failed: list[str] = []

    def watch(name: str, process: subprocess.Popen[bytes]) -> None:
        text = process.communicate()[0].decode("utf-8", "replace").rstrip()
        say(f"{name:14}{'failed' if process.returncode else 'ok'}")
        if process.returncode:
            failed.append(name)
            say(text)

    watches = []
    for name, command in static.items():
        child = [str(PYTHON), *command]
        process = subprocess.Popen(child, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        watches.append(threading.Thread(target=watch, args=(name, process)))
        watches[-1].start()
    tests = pytest(["-m", "not slow", *arguments])
    for thread in watches:
        thread.join()
    if tests != 0:
        failed.append("tests")
    say(f"check: {'failed: ' + ', '.join(failed) if failed else 'all good'}, {time.monotonic() - started:.0f} s")
    if "ruff format" in failed:
        say("next step: .venv/bin/ruff format . && .venv/bin/ruff check --fix .")
    return 1 if failed else 0


def main(arguments: list[str]) -> int:
    """Set up, then run one command; returns its exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        say(f"run.py: no command `{command}`; there are: {', '.join(COMMANDS)}")
        return 2
    # pip compiles nothing (it would take longer than all of the set-up); what a process compiles has to stay, or each
    # one would compile torch and transformers anew, which are ten seconds.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that pip is stopped too
    try:
        setup()
        if command == "docs":
            set_up_docs()
    except Stop as e:
        say(f"\nset-up failed: {e.cause}\nnext step: {e.step}")
        return e.status
    except KeyboardInterrupt:
        say("\nset-up interrupted; run the same command again to start it afresh")
        return 130
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if command == "demo":
        return run([str(BIN / "edgewise"), "demo", *rest])
    if command == "test":
        return pytest(rest)
    if command == "test-isa":
        return test_isa(rest)
    if command == "test-long":
        os.environ.update(LONG)
        return pytest(["-m", "long", "--maxschedchunk=1", *rest], split="load")  # some tests take minutes
    if command == "check":
        return check(rest)
    if command == "docs":
        return run([str(PYTHON), "scripts/build_docs.py"])
    say(f"environment: {VENV}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
