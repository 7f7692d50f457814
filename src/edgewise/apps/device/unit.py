"""A systemd user unit that runs a device's agent, with access to little of the machine.

    print(agent_unit_text(agent_program(), home, policy))
    path = install_agent_unit(text, folder)                 # ~/.config/systemd/user/edgewise-device.service

The agent may write its home folder only. It may read the machine and its owner's text. A user's own systemd can enforce
this if the kernel allows user namespaces. ``NoNewPrivileges`` holds everywhere.
"""

from __future__ import annotations

import glob
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from edgewise.apps.device.policy import Policy
from edgewise.core.errors import RecipeError
from edgewise.drivers.storage import files

NAME = "edgewise-device.service"
NEXT = ("systemctl --user daemon-reload", f"systemctl --user enable --now {NAME}", "loginctl enable-linger")
CACHE = "cache"  # folder of compiled kernels in the home folder, since all else is read-only
NOT_AUTHORISED, USAGE = 4, 2  # After these exit statuses another start would end the same.

_UNIT = """\
# The agent of an edgewise device. Written by `edgewise device unit`.
#   put it at  {place}
#   then       {next}
[Unit]
Description=edgewise device: trains on text that stays here
StartLimitIntervalSec=600
StartLimitBurst=10

[Service]
Type=exec
ExecStart={start}
Environment={cache}
Restart=on-failure
RestartSec=30
RestartPreventExitStatus={final}
Nice=10
UMask=0077
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={home}
{read_only}ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
SystemCallArchitectures=native

[Install]
WantedBy=default.target
"""


def agent_program() -> tuple[str, ...]:
    """Return the command that starts this program."""
    found = shutil.which("edgewise")
    return (str(Path(found).absolute()),) if found else (sys.executable, "-m", "edgewise.apps.cli.main")


def agent_unit_text(command: Sequence[str], home: Path, policy: Policy) -> str:
    """Write the systemd unit of an agent for a home folder.

    Raises RecipeError(E-VALUE) for a path that no unit can hold (with a line break).
    """
    folder = home.absolute()
    data = policy.data_keys(folder)["path"] if policy.data.given else ""
    own = [_part_without_patterns(one) for one in ([data] if isinstance(data, str) else data) if one]
    start = " ".join(_quoted(word, dollars=True) for word in (*command, "device", "run", "--home", str(folder)))
    return _UNIT.format(
        place=agent_unit_place(), next=" && ".join(NEXT), start=start, final=f"{USAGE} {NOT_AUTHORISED}",
        cache=_quoted(f"XDG_CACHE_HOME={folder / CACHE}"),
        home=_quoted(str(folder)), read_only="".join(f"ReadOnlyPaths={_quoted(path, '-')}\n" for path in own),
    )  # fmt: skip


def agent_unit_place() -> Path:
    """Return the folder in which the user's systemd looks for units."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "systemd" / "user" / NAME


def install_agent_unit(unit: str, at: Path) -> Path:
    """Write the unit into the folder of the user's systemd. Raises StoreError: E-FILE-EXISTS, E-DISK."""
    at.parent.mkdir(parents=True, exist_ok=True)
    files.write_new(at, unit.encode())
    return at


def _part_without_patterns(path: str) -> str:
    """Return the folder above the first pattern such as ``*``, because systemd knows no patterns."""
    at = Path(path)
    while glob.has_magic(str(at)):
        at = at.parent
    return str(at)


def _quoted(word: str, before: str = "", dollars: bool = False) -> str:
    """Quote a word of a unit, so that systemd expands nothing in it."""
    if any(ord(c) < 32 for c in word):
        raise RecipeError("E-VALUE", f"{word!r:.80} has a line break, which no unit can hold.", "rename it.")
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{before}{word.replace("$", "$$") if dollars else word}"'
