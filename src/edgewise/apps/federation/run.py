"""A run's folder as a Python object: figures, rounds and devices as tables, model, report.

    run = edgewise.open_run("out")
    run.rounds.to_pandas()
    model = run.model()

The folder may be that of a simulation, of a served run, or of a run that has not ended.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, TypeVar

from edgewise.apps.models import export
from edgewise.apps.report import summary as summaries
from edgewise.apps.report.summary_types import Summary
from edgewise.apps.runs import run_dirs
from edgewise.apps.runs.chosen import chosen_model
from edgewise.apps.runs.joined import model_vector
from edgewise.core.errors import EdgewiseError, StoreError
from edgewise.core.vector import Array, Spec, Vector, unpack
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.recipe.recipe import from_plain

MOST_ROWS, MOST_COLUMNS = 60, 12  # A notebook shows at most so many of a table.
T = TypeVar("T")


class Table(Sequence[Mapping[str, Any]]):
    """A table of rows. ``to_pandas`` makes a DataFrame. Lists inside cells are those of ``summary.json``."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        self._rows, self._name = tuple(rows), name

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in order."""
        return list(dict.fromkeys(key for row in self._rows for key in row))

    def __getitem__(self, at: Any) -> Any:
        return self._rows[at]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<{len(self)} {self._name}: {', '.join(self.columns)}>"

    def column(self, name: str) -> list[Any]:
        """Return the values of one column, with None for rows without a value.

        Raises KeyError for an unknown column.
        """
        if name not in self.columns:
            raise KeyError(name)
        return [row.get(name) for row in self._rows]

    def to_pandas(self) -> Any:
        """Make a ``pandas.DataFrame``. Raises EdgewiseError(E-DEPENDENCY) without pandas."""
        try:
            import pandas
        except ImportError:
            raise EdgewiseError(
                "E-DEPENDENCY", "to_pandas needs pandas.", "pip install pandas, or use to_csv."
            ) from None
        return pandas.DataFrame(list(self._rows), columns=self.columns)

    def to_csv(self) -> str:
        """Write the rows as CSV with a header. Cells with lists or mappings are written as JSON."""
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, lineterminator="\n")
        writer.writeheader()
        for row in self._rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()})
        return out.getvalue()

    def _repr_html_(self) -> str:
        shown = self.columns[:MOST_COLUMNS]
        head = "".join(f"<th>{escape(c)}</th>" for c in shown)
        body = "".join(
            f"<tr>{''.join(f'<td>{_table_cell(r.get(c))}</td>' for c in shown)}</tr>" for r in self._rows[:MOST_ROWS]
        )
        more = f"<caption>{len(self)} {escape(self._name)}, {len(self.columns)} columns</caption>"
        return f"<table>{more}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _table_cell(value: Any) -> str:
    """Write a value for a cell of a table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else escape(str(value)[:60])


class Run:
    """A run's folder. It can be read while the run is unfinished.

    Attributes:
        run_dir: the folder.
    Raises:
        StoreError: E-RESUME for a folder without a run. E-RUN-EXISTS while another process works in it.
    """

    def __init__(self, run_dir: str | Path, module: Any = None) -> None:
        """Open a folder.

        Args:
            run_dir: the folder.
            module: the torch module that the run trained. ``model`` needs it for a ``TorchTask``.
        """
        self.run_dir, self._module = Path(run_dir), module
        if not (self.run_dir / "run.db").is_file():
            raise StoreError("E-RESUME", f"there is no run in {run_dir}.", "give the folder that holds run.db.")

    def _read_store(self, ask: Callable[[RunStore], T]) -> T:
        """Ask the run's store."""
        with run_dirs.opened(self.run_dir) as store:
            return ask(store)

    @cached_property
    def summary(self) -> Summary:
        """The content of ``summary.json``, as typed tables."""
        return self._read_store(summaries.build)  # type: ignore[return-value]

    @property
    def rounds(self) -> Table:
        """A row for each round: losses, metrics, contributions, bytes, seconds, epsilon, perplexity after it."""
        measured = {c["played"] - 1: c for c in self.summary["curve"]}
        own = _own_by_round(self.summary)
        rows = [
            {
                **{key: value for key, value in row.items() if key != "summed_metrics"},
                **row.get("summed_metrics", {}),
                "perplexity": measured.get(row["round"], {}).get("weighted_mean"),
                **own.get(row["round"], {}),
            }
            for row in self.summary["per_round"]
        ]
        return Table(rows, "rounds")

    @property
    def devices(self) -> Table:
        """A row for each device: its contributions, and its perplexity under each model.

        With differential privacy the rows come from ``devices.json``, which is for the run's owner only.
        """
        apart = self.run_dir / "devices.json"
        if self.summary["not_covered"] and apart.is_file():
            return Table(json.loads(apart.read_text(encoding="utf-8"))["per_device"], "devices")
        return Table(self.summary["per_device"], "devices")

    def vector(self, played: int | None = None) -> Vector:
        """Return the trained parameters as one vector.

        Args:
            played: the number of rounds after which the parameters are wanted. None: those of the model that counts.
        Returns:
            float32[d].
        Raises:
            StoreError(E-CHECKPOINT): for a model that is no longer stored. A folder holds the first and the last three.
        """

        def ask(store: RunStore) -> Vector:
            models = store.models()
            number = chosen_model(store).played if played is None else played
            if number not in models or not (self.run_dir / "blobs" / models[number]).is_file():
                stored = [str(n) for n, digest in models.items() if (self.run_dir / "blobs" / digest).is_file()]
                what = f"{self.run_dir} has no stored model after {number} rounds."
                raise StoreError("E-CHECKPOINT", what, f"it stores those after {', '.join(stored)} rounds.")
            run = store.run()
            assert run is not None
            return model_vector(store, from_plain(run["recipe"], str(self.run_dir)), run["facts"], number)

        return self._read_store(ask)

    @cached_property
    def spec(self) -> Spec:
        """The layout of the trained parameters. That of a split model has both parts."""
        run = self._read_store(lambda store: store.run())
        assert run is not None
        facts = run["facts"]
        layout = facts["whole_spec"] if "split" in facts else facts["spec"]
        return Spec.of([(name, tuple(shape), dtype) for name, shape, dtype in layout])

    def params(self, played: int | None = None) -> dict[str, Array]:
        """Return the trained tensors by name. ``played`` is as in ``vector``."""
        return unpack(self.vector(played), self.spec)

    def model(self, module: Any = None) -> Any:
        """Return the trained model: a transformers model, or ``module`` with the trained parameters.

        Args:
            module: for a ``TorchTask``, a module like the trained one. Its parameters are overwritten. A run of this
                process knows its module and returns a copy.
        Raises:
            EdgewiseError(E-EXPORT): without a module for a ``TorchTask``.
            ModelError(E-LAYOUT): for a module that does not fit.
        """
        facts = self._read_store(lambda store: store.run())["facts"]  # type: ignore[index]
        if "vocabulary" in facts and module is None:  # Only the text trainer has this fact.
            with tempfile.TemporaryDirectory(prefix="edgewise-model-") as place:
                reached = self._read_store(lambda store: chosen_model(store))
                wanted = export.ExportRequest(played=None if reached.over else reached.reached)
                export.write_export(self.run_dir, Path(place) / "model", wanted)
                from transformers import AutoModelForCausalLM

                return AutoModelForCausalLM.from_pretrained(Path(place) / "model", local_files_only=True)
        if module is None and self._module is not None:
            import copy

            module = copy.deepcopy(self._module)
        if module is None:
            what = f"{self.run_dir} holds the trained parameters of a module of your own, and not the module."
            raise EdgewiseError("E-EXPORT", what, "give it: run.model(Net()). Or take run.params().")
        from edgewise.learn.models import modules

        modules.load_module_vector(module, self.spec, self.vector())
        return module

    def export(self, dest: str | Path, to: str = "merged") -> Path:
        """Write the model as `edgewise export` does. ``to`` is ``merged``, ``peft`` or ``tensors``.

        Raises as ``apps.models.export``.
        """
        export.write_export(self.run_dir, Path(dest), export.ExportRequest(to=to))
        return Path(dest)

    def report(self) -> Path:
        """Write ``report.html``, ``summary.json`` and the plots again. Returns the path of the page."""
        from edgewise.apps.report.files import write_report

        self._read_store(lambda store: write_report(store, self.run_dir))
        return self.run_dir / "report.html"

    def __repr__(self) -> str:
        measured: Any = self.summary["perplexity"]
        found = {model: q["weighted_mean"] for model, q in measured.items() if q}
        return f"Run({str(self.run_dir)!r}, perplexity={found})"

    def _repr_html_(self) -> str:
        from edgewise.apps.report import alone_or_together

        s: Any = self.summary
        cells = "".join(
            f"<tr><td>{escape(model)}</td><td>{q['weighted_mean']:.4g}</td></tr>"
            for model, q in s["perplexity"].items()
            if q and q["weighted_mean"] is not None
        )
        own = "".join(
            f"<tr><td>{escape(m['name'])}, {escape(m['model'])}</td><td>{m['mean']:.4g}</td></tr>"
            for m in _latest_metrics(s)
        )
        link = f"<p>{escape(str(self.run_dir / 'report.html'))}</p>" if (self.run_dir / "report.html").is_file() else ""
        return (
            f"<p><b>{escape(s['name'])}</b>: {s['rounds']['played']} of {s['rounds']['planned']} rounds. "
            f"{escape(alone_or_together.sentence(s))}</p>"
            f"<table><thead><tr><th>held-out perplexity</th><th>mean</th></tr></thead>"
            f"<tbody>{cells}{own}</tbody></table>{link}"
        )


def _latest_metrics(s: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the latest figure of each simulator metric and model."""
    last = {(m["name"], m["model"]): m for m in s.get("simulator_metrics") or ()}
    yield from last.values()


def _own_by_round(s: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Map each round to the simulator metrics of the federated model and of local training, as means over devices."""
    out: dict[int, dict[str, float]] = {}
    for m in s.get("simulator_metrics") or ():
        if m["model"] in ("base", "federated", "training"):
            name = f"train_{m['name']}" if m["model"] == "training" else m["name"]
            out.setdefault(m["round"], {})[name] = m["mean"]
    return out


def open_run(run_dir: str | Path) -> Run:
    """Open the folder of any run. Raises StoreError(E-RESUME) for a folder without a run."""
    run = Run(run_dir)
    _ = run.spec
    return run
