#!/usr/bin/env python3
"""Write ``constraints/pyXYZ.txt`` from the environment of the interpreter that runs this.

    .venv/bin/python scripts/freeze_constraints.py

One pin per line for everything that is installed, and for what pip needs to build edgewise itself. Local version
suffixes (``+cpu``) are cut off, because ``torch==2.13.0`` accepts every build of that version while a pin with a suffix
fails wherever that one build is missing. Editable installs, file addresses and pip itself are left out.
"""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {"edgewise", "pip", "setuptools", "wheel"}


def canonical(name: str) -> str:
    """The name by which package indexes compare: lower case, runs of ``-_.`` as one dash."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Name -> version of everything in this environment."""
    return {canonical(d.metadata["Name"]): d.version for d in distributions()}


def build_requirements() -> dict[str, str]:
    """Name -> version of the build back end and what it needs, as pip would install them now."""
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    report = json.loads(subprocess.run([*command, *requires], check=True, stdout=subprocess.PIPE).stdout)
    return {canonical(i["metadata"]["name"]): i["metadata"]["version"] for i in report["install"]}


def main() -> None:
    """Write the file and say what changed."""
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    path = ROOT / "constraints" / f"py{minor.replace('.', '')}.txt"
    pins = {**build_requirements(), **installed()}
    lines = [f"{name}=={version.split('+')[0]}" for name, version in sorted(pins.items()) if name not in TOOLS]
    header = f"# Exact versions for Python {minor}. Written by scripts/freeze_constraints.py; do not edit by hand.\n"
    before = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()
    path.parent.mkdir(exist_ok=True)
    path.write_text(header + "\n".join(lines) + "\n", encoding="utf-8")
    for line in sorted(set(lines) ^ {b for b in before if not b.startswith("#")}):
        print(("+ " if line in lines else "- ") + line)
    print(f"{path.relative_to(ROOT)}: {len(lines)} pins")


if __name__ == "__main__":
    main()
