"""The systemd unit of a device's agent: systemd takes it, whatever the folders in it are called."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from edgewise.apps.device import policy, unit
from edgewise.core.errors import EdgewiseError


def settings(text: str) -> dict[str, list[str]]:
    """The [Service] section of a unit: key -> its values."""
    found: dict[str, list[str]] = {}
    for line in text.partition("[Service]")[2].partition("[Install]")[0].strip().splitlines():
        key, _, value = line.partition("=")
        found.setdefault(key, []).append(value)
    return found


def made(home: Path, data: str) -> str:
    return unit.agent_unit_text(
        (sys.executable, "-m", "edgewise.apps.cli.main"),
        home,
        policy.parse_owner_policy(f"[data]\n{data}", "policy.toml"),
    )


@pytest.mark.parametrize("name", ["home", "my home", 'ho"me', "50% $HOME", "h\\me", "für mich"])
def test_the_agent_gets_its_folder_to_write_and_the_text_to_read(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    found = settings(made(home, "path = 'notes'"))
    plain = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(found["ExecStart"][0])]
    assert plain[-4:] == ["device", "run", "--home", str(home)]
    assert [word.replace("%%", "%") for word in shlex.split(found["ReadWritePaths"][0])] == [str(home)]
    assert [word.replace("%%", "%") for word in shlex.split(found["ReadOnlyPaths"][0])] == [f"-{home / 'notes'}"]
    for key, value in (
        ("NoNewPrivileges", "yes"), ("ProtectSystem", "strict"), ("ProtectHome", "read-only"), ("PrivateTmp", "yes"),
        ("UMask", "0077"), ("Restart", "on-failure"),
    ):  # fmt: skip
        assert found[key] == [value]


def test_patterns_of_the_policy_become_the_folder_above_them(tmp_path: Path) -> None:
    found = settings(made(tmp_path, "source = 'csv'\npath = ['/logs/2024-*.csv', 'one.csv']"))
    assert found["ReadOnlyPaths"] == ['"-/logs"', f'"-{tmp_path / "one.csv"}"']
    assert "ReadOnlyPaths" not in settings(made(tmp_path, "source = 'plays'"))


def test_a_unit_is_never_written_over_another(tmp_path: Path) -> None:
    at = tmp_path / "systemd" / "user" / unit.NAME
    assert unit.install_agent_unit("a", at) == at
    with pytest.raises(EdgewiseError) as caught:
        unit.install_agent_unit("b", at)
    assert caught.value.code == "E-FILE-EXISTS"
    assert at.read_text() == "a"
    with pytest.raises(EdgewiseError, match="line break"):
        made(tmp_path / "a\nb", "path = 'x'")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("unshare"), reason="no root")
def test_the_compiled_kernels_find_a_place_where_all_else_is_read_only(tmp_path: Path) -> None:
    """In a namespace whose file system is read-only but for the home folder, as systemd makes it."""
    (environment,) = shlex.split(settings(made(tmp_path / "home", "path = 'notes'"))["Environment"][0])
    (tmp_path / "home").mkdir()
    program = "import numpy as np, edgewise.kernels.hashing as h; h.fill_hash_words(np.uint64(1), 0, np.zeros(2, 'u8'))"
    script = (
        'for at in "$1" "$2" "$3"; do mount --bind "$at" "$at" && mount -o remount,ro,bind "$at" || exit 9; done; '
        'exec env "$4" "$5" -c "$6"'
    )
    source, caches = Path(unit.__file__).parents[3], Path("~/.cache").expanduser()
    caches.mkdir(exist_ok=True)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(source), str(caches), str(Path(numba.__file__).parents[1]),
         environment, sys.executable, program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(source), *sys.path])},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if done.returncode == 9:
        pytest.skip("no mounts here")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "home" / "cache" / "numba").is_dir()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
@pytest.mark.parametrize("name", ["home", "50% my $HOME"])
def test_systemd_takes_the_unit(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("SYSTEMD_LOG_LEVEL", "warning")
    (tmp_path / unit.NAME).write_text(made(tmp_path / name, "path = 'notes'"))
    done = subprocess.run(
        ["systemd-analyze", "--user", "--man=no", "verify", str(tmp_path / unit.NAME)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
