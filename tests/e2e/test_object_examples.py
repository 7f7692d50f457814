"""The examples of the Python API, as people start them, and the notebook by its cells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
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


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel executes it. Tables are shown, progress is written, and the run's folder can be replaced."""
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(EXAMPLES / "own_data.ipynb", as_version=4)
    again = 'fed.run("notebook-run", overwrite=True, progress=False).summary["rounds"]["played"]'
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in ("run.rounds.to_pandas()", again)]
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = {cell.source.splitlines()[-1]: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}

    def shown(source: str, kind: str = "text/html") -> str:
        (result,) = [found for found in cells[source] if found.output_type == "execute_result"]
        return str(result.data[kind])

    (page,) = [found for found in cells["fed.check(fast=True)"] if found.output_type != "stream"]  # In one piece.
    assert "the update pipeline" in page.data["text/html"]
    progress = "".join(found.text for found in cells["run"] if found.get("name") == "stderr")
    assert "round 2/2  3/3 answered" in progress
    assert "2 of 2 rounds" in shown("run")
    assert shown("run", "text/plain").startswith("Run('notebook-run', ")
    assert "<caption>2 rounds" in shown("run.rounds")
    assert "<table" in shown("run.rounds.to_pandas()")
    assert (shown(again, "text/plain"), [o.output_type for o in cells[again]]) == ("2", ["execute_result"])
    assert (tmp_path / "notebook-run" / "report.html").is_file()
