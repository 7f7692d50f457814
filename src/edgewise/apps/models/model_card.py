"""The README.md of an exported model: how to load it, its origin, its privacy, its checks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgewise.apps.report import numbers, privacy
from edgewise.plan.recipe.recipe import Recipe
from edgewise.privacy.card import NOT_COVERED

if TYPE_CHECKING:
    from edgewise.learn.models.exported import LogitDifferences

HEAD = "| model | weighted mean | median | worst 10 % |\n| --- | ---: | ---: | ---: |\n"
# These keys are copied from the base's card. Its language is not among them, because devices may write in another.
PASSED_ON = ("license", "license_name", "license_link")
ADAPTERS, FILES = ("peft", "gguf-adapter"), ("gguf", "gguf-adapter")


class About(NamedTuple):
    """Facts that only the export knows.

    ``base`` is as ``model.base``. ``name`` is for people, without a path of this machine. ``commit`` is that of a base
    of the hub. ``beside``: the base lies beside the adapter. ``dtype`` is that of the weights. ``card`` is the text of
    the base's own card.
    """

    base: str
    name: str
    commit: str | None
    beside: bool
    dtype: str
    checked: LogitDifferences
    card: Mapping[str, Any]


class ModelCard(NamedTuple):
    """A model card in the making. ``run`` is the run's summary. Figures of other model versions are left out.

    ``device``: the owner of a personal model. None for the model of a run.
    """

    run: Mapping[str, Any]
    recipe: Recipe
    to: str
    played: int
    digest: str
    coefficients: bool = False
    device: str | None = None

    def text(self, about: About | None = None) -> str:
        """Write Markdown after the metadata of the hub. ``about`` is None for tensors without a model."""
        s, recipe, t = self.run, self.recipe, self.recipe.training
        trained = recipe.trainable.says
        own = s["facts"].get("extensions") or ("objects" in s["facts"] and "precision" not in s["facts"])
        of = f"`{about.name}`" if about else "a model of one's own" if own else "the base model"
        of += f", whose linear layers were stored as {recipe.model.quantize}" if recipe.model.quantized else ""
        work, noised = numbers.local_work(t.local_steps, t.local_epochs), bool(s["not_covered"])
        fingerprint = "" if noised else f" Fingerprint: `{s['facts'].get('fingerprint', 'not recorded')}`."
        seed = "" if noised else f"| seed | {s['seed']} |\n"
        commit = f"| base, commit on the hub | `{about.commit}` |\n" if about and about.commit is not None else ""
        vector = "coefficients of the directions" if self.coefficients else "trained parameters"
        claims = "\n".join(f"- {c}" for c in s["plan"]["claims"])
        return f"""{self._card_metadata(about)}
# {s["name"]}

{self._owner()}{trained[0].upper()}{trained[1:]} of {of}, trained with edgewise on {_devices_in_words(s)}
in {self.played} of {recipe.round.rounds} rounds of {work} ({t.optimizer}, learning rate {t.lr:g}).
{_weights_in_words(about, self.to)}

{_loading_code(about, self.to)}
Data: {self._data_in_words()}.{fingerprint}
{self._quality_section(noised)}
## Who learnt what in training

{claims or "Not recorded."}
{_parts_on_the_way(s["plan"]["trace"])}{privacy.privacy_markdown(s, self.played)}
## Identity

| | |
| --- | --- |
| {vector}, SHA-256 | `{self.digest}` |
{self._rows_before_training()}| run id | `{s["run"]}` |
| recipe, SHA-256 | `{s["recipe_sha256"]}` |
{commit}{seed}| versions | {", ".join(f"{k} {v}" for k, v in s["versions"].items() if k != "platform")} |
"""

    def _owner(self) -> str:
        """Return a warning about a personal model. Empty for the model of a run."""
        if self.device is None:
            return ""
        return (
            f"**The personal model of one device, `{self.device}`.** It has learnt its text without noise, and text "
            "can be extracted from it. No epsilon below is about it. Give it to nobody but its owner.\n\n"
        )

    def _rows_before_training(self) -> str:
        """Return the rows that identify the model before training, as far as the run recorded it.

        An adapter's start follows from the seed, so its digest is left out where the seed is.
        """
        found = {
            "the same before training, SHA-256": "" if self.run["not_covered"] else self.run["initial_sha256"],
            "frozen weights of the base, SHA-256": self.run["facts"].get("model_fingerprint"),
        }
        return "".join(f"| {name} | `{digest}` |\n" for name, digest in found.items() if digest)

    def keys(self, base: str) -> dict[str, str | int]:
        """Return the keys of a GGUF file that say where the model comes from. ``base`` is the base's name."""
        s = self.run
        return {
            "general.name": s["name"],
            "general.description": f"trained with edgewise on {s['population']} devices, from {base}",
            "edgewise.base": base,
            "edgewise.run": s["run"],
            "edgewise.rounds": self.played,
            "edgewise.model_sha256": self.digest,
        }

    def _card_metadata(self, about: About | None) -> str:
        """Write the head that model hubs read."""
        lines = {"library_name": {"peft": "peft", "merged": "transformers"}.get(self.to, "gguf")}
        if about is None:
            lines = {}
        else:
            lines |= {key: json.dumps(about.card[key]) for key in PASSED_ON if about.card.get(key)}
            if about.base.startswith("hub:"):
                kind = "adapter" if self.to in ADAPTERS else "finetune"
                lines |= {"base_model": about.name, "base_model_relation": kind}
            lines["pipeline_tag"] = "text-generation"
        rows = [f"{key}: {value}" for key, value in lines.items()]
        return "\n".join(["---", *rows, "tags:", "- edgewise", "- federated", "---", ""])

    def _data_in_words(self) -> str:
        """Describe the training text."""
        data = self.recipe.data
        stdlib = data.source == "python-stdlib"
        source = "source text of the Python standard library" if stdlib else f"{data.source} data"
        whole = stdlib and data.partition == "owner"
        return source + (", one package per device" if whole else f", partition `{data.partition}`")

    def _quality_section(self, noised: bool) -> str:
        """Write the table of perplexities."""
        s = self.run
        if self.played != s["rounds"]["kept"] or not s["complete"]:
            return ""
        rows = [
            f"| {numbers.MODELS[m]} | {numbers.figure(q, 'weighted_mean')} | {numbers.figure(q, 'median')} |"
            f" {numbers.figure(q, 'worst_decile')} |"
            for m, q in s["perplexity"].items()
            if q
        ]
        mark = f"{NOT_COVERED}\n\n" if noised else ""
        return f"\n## Held-out perplexity\n\n{mark}{HEAD}" + "\n".join(rows) + "\n" if rows else ""


def _devices_in_words(run: Mapping[str, Any]) -> str:
    """Return the number and kind of devices. The facts of a run on enrolled devices have an instance."""
    facts = json.loads(run["facts"].get("plan_facts") or "{}")
    return f"{numbers.count(run['population'])}{'' if facts.get('instance') else ' simulated'} devices"


def base_name(base: str) -> str:
    """Return the name of the base in exported files, without a path of this machine."""
    if base == "bundled":
        return "edgewise bundled student"
    return base[4:].partition("@")[0] if base.startswith("hub:") else Path(base).name


def said_of(folder: Path) -> Mapping[str, Any]:
    """Read the metadata of a model's own card. Empty if there is none that can be read."""
    from huggingface_hub import metadata_load

    try:
        found = metadata_load(folder / "README.md")
    except (OSError, ValueError):  # The card is missing or malformed.
        return {}
    return found or {}


def _parts_on_the_way(trace: Sequence[Mapping[str, Any]]) -> str:
    """List what each part did to an update on its way into the model, in the words of the parts."""
    rows = [
        f"- `{row['name'].split('(')[0]}`: {row['does']}."
        for row in trace
        if row["role"] in ("stage", "inner", "merge", "post", "strategy")
    ]
    return "\n## How an update travelled\n\n" + "\n".join(rows) + "\n" if rows else ""


def _weights_in_words(about: About | None, to: str) -> str:
    """Describe the weights in the folder."""
    if about is None:
        return "What was trained is written by name, in float32."
    if to in FILES:
        what = "numbers" if to == "gguf-adapter" else "logits"
        read = f"Read back by the reference reader of GGUF, its {what} differ by at most {about.checked.rounding:.2g}"
        return f"The matrices are {about.dtype}. {read}. Training moved the logits by up to {about.checked.moved:.2g}."
    c, of = about.checked, f"The weights are {about.dtype}."
    rounds = f" Rounding to {about.dtype} moves them by up to {c.rounding:.2g}." if about.dtype != "float32" else ""
    return (
        f"{of} Read back from this folder, the model's logits differ from the trained model's by at most {c.loaded:.2g}"
        f"{' after rounding' if rounds else ''}.{rounds} Training moved them by up to {c.moved:.2g}."
    )


def _loading_code(about: About | None, to: str) -> str:
    """Write the code that loads the model."""
    if about is None:
        return """```python
from safetensors.torch import load_file

trained = load_file("path/to/this/folder/trained.safetensors")  # name -> tensor
# net.load_state_dict(trained, strict=False)  where the names are those of a module `net`
```
"""
    if to in FILES:
        file = "adapter.gguf" if to == "gguf-adapter" else "model.gguf"
        options = f"-m base.gguf --lora {file}" if to == "gguf-adapter" else f"-m {file}"
        base = f"The base, `{about.name}`, is written as GGUF by `edgewise export RUN --to gguf --round 0`.\n\n"
        note = base if to == "gguf-adapter" else ""
        return f"""{note}```sh
llama-cli {options} -p "Once upon a time"
```
"""
    model = "AutoModelForCausalLM.from_pretrained(folder)"
    imports, note = "from transformers import AutoModelForCausalLM, AutoTokenizer", ""
    if to == "peft" and about.base.startswith("hub:") and not about.beside:
        imports = "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
        model = "AutoPeftModelForCausalLM.from_pretrained(folder)"
    elif to == "peft":
        imports = f"from peft import PeftModel\n{imports}"
        base = 'folder / "base"' if about.beside else f'"path/to/{about.name}"'
        model = f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), folder)"
        where = "lies beside the adapter" if about.beside else "is on no hub and not in this folder"
        note = f"The base, `{about.name}`, {where}, so it is loaded first.\n\n"
    return f"""{note}```python
from pathlib import Path

{imports}

folder = Path("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {model}
prompt = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=20)[0]))
```
"""
