"""The examples of the Python API, as people start them, and the notebook by its cells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUICK = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
SAID = {
    "own_model": "accuracy 0.",
    "own_loop": "round 5",
    "own_codec": "bytes up instead of",
    "private_texts": "epsilon spent [",
}
pytestmark = [pytest.mark.slow, pytest.mark.long(sample=2)]


@pytest.mark.parametrize("name", SAID)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), str(tmp_path / "out")]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **QUICK}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert SAID[name] in done.stdout
    assert (tmp_path / "out" / "run.db").is_file()


def test_the_notebook_runs(tmp_path: Path) -> None:
    """By nbclient where a kernel is installed, else its cells in order in one namespace."""
    path = EXAMPLES / "own_data.ipynb"
    try:
        import nbclient
        import nbformat
        from ipykernel import kernelspec  # noqa: F401 (nbclient starts one)
    except ImportError:
        cells = [c["source"] for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
        script = "\n".join("".join(lines) for lines in cells)
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, **QUICK}, capture_output=True, text=True,
            timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        notebook = nbformat.read(path, as_version=4)
        nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "notebook-run" / "report.html").is_file()
