"""`edgewise export`: a run's model as a plain transformers folder or a PEFT adapter, with a card that says how it came
to be. The folder appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewise.apps import privacy_part, summary, words
from edgewise.apps.chosen import chosen
from edgewise.apps.runs import opened
from edgewise.core.errors import EdgewiseError, StoreError
from edgewise.core.keys import derive, root
from edgewise.core.vector import Spec, Vector
from edgewise.drivers.store import RunStore
from edgewise.plan.catalogue import BUILT_IN, make
from edgewise.plan.recipe import Recipe
from edgewise.privacy.card import NOT_COVERED
from edgewise.strategies.base import Directions, Strategy

FORMATS = ("peft", "merged")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model", "chat_template*")


def write(run_dir: Path, dest: Path, to: str, played: int | None = None) -> dict[str, Any]:
    """Write the model of a run.

    Args:
        dest: a folder that does not exist or is empty. to: ``peft`` (adapter; runs with LoRA only) or ``merged`` (the
            whole model, float32). played: the model after so many rounds; where None, the one that counts in a complete
            run.
    Returns:
        Plain JSON: ``dest``, ``to``, ``rounds``, ``model_sha256``, ``files``.
    Raises:
        EdgewiseError: E-EXPORT with the reason; E-RESUME without a run; E-MODEL where the base cannot be loaded.
    """
    if to not in FORMATS:
        raise _refused(f"there is no format {to!r}", f"--to {' or '.join(FORMATS)}.")
    dest = dest.resolve()  # "." has no name of its own
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise _refused(f"{dest} is not empty", "give a new folder; nothing is ever overwritten.")
    with opened(run_dir) as store:
        run = store.run()
        assert run is not None
        recipe = Recipe.model_validate(run["recipe"])
        if to == "peft" and not recipe.trainable.adapts:
            what = f'a PEFT adapter needs trainable.kind = "lora"; this run trained "{recipe.trainable.kind}"'
            raise _refused(what, "--to merged.")
        number, digest, params = _params(store, recipe, played)
        card = _card(summary.build(store), recipe, to, number, digest)
    recipe_dir = Path(run["facts"].get("recipe_dir") or ".")
    files = _write(recipe, recipe_dir, run["facts"], params, dest, to, card)
    return {"dest": str(dest), "to": to, "rounds": number, "model_sha256": digest, "files": files}


def _refused(what: str, fix: str) -> EdgewiseError:
    return EdgewiseError("E-EXPORT", f"{what}.", fix)


def _params(store: RunStore, recipe: Recipe, played: int | None) -> tuple[int, str, Vector]:
    """(rounds played, digest, vector) of the wanted model version."""
    models, which = store.models(), chosen(store)
    if played is None:
        if not which.over:
            what = f"the run has played {which.reached} of {recipe.round.rounds} rounds"
            raise _refused(what, f"finish it with --resume, or take what is there with --round {which.reached}.")
        played = which.played
    kept = [n for n, digest in models.items() if (store.out / "blobs" / digest).exists()]
    if played not in kept:
        what = f"there is no model after {played} rounds any more" if played in models else f"no round {played} yet"
        raise _refused(what, f"kept: --round {', '.join(map(str, kept)) or 'none'}.")
    return played, models[played], store.blob(models[played])


def _write(
    recipe: Recipe, recipe_dir: Path, facts: Mapping[str, Any], params: Vector, dest: Path, to: str, card: str
) -> list[str]:
    import torch

    from edgewise.learn.adapters import trainable
    from edgewise.learn.model import load

    loaded = load(recipe.model.base, recipe_dir, torch.float32)
    model, flat = trainable(loaded.model, recipe.trainable, derive(root(recipe.seed), "model"), torch.float32)
    if (directions := _directions(recipe)) is not None:
        params = _rebuilt(recipe, recipe_dir, facts, params, directions)
    if params.shape != (flat.spec.dim,):
        what = f"the run trained {params.size} parameters, {loaded.name} has {flat.spec.dim}"
        raise _refused(what, "a run of an extension's trainer, or of another model, is exported by its own code.")
    known = facts.get("model_fingerprint")
    if known and known != _frozen_digest(model, getattr(torch, facts.get("precision") or "float32")):
        what = f"{loaded.name} has other weights than the run trained on"
        raise _refused(what, "put the base model back as it was when the run began.")
    flat.write(params)
    for p in model.parameters():  # off the shared storage, which a safetensors file cannot say
        p.data, p.grad = p.data.clone(), None
    if to == "merged" and recipe.trainable.adapts:
        model = model.merge_and_unload()
    part = dest.with_name(f".{dest.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        model.save_pretrained(part)
        if to == "peft":
            _name_base(part / "adapter_config.json", _base_name(recipe))
        for pattern in TOKENIZER_FILES:
            for file in loaded.folder.glob(pattern):
                shutil.copyfile(file, part / file.name)
        (part / "README.md").write_text(card, encoding="utf-8")
        if dest.exists():
            dest.rmdir()
        part.rename(dest)
    except OSError as e:
        raise StoreError("E-DISK", f"cannot write {dest}: {e.strerror or e}.", "free some space.") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sorted(p.name for p in dest.iterdir())


def _directions(recipe: Recipe) -> Directions | None:
    """The directions whose coefficients the run's vector holds; None where it holds parameters.

    An extension's strategy is not known here: its vector is taken for parameters, and refused where it is too short.
    """
    if recipe.strategy["kind"] not in BUILT_IN.strategies:
        return None
    strategy: Strategy = make(BUILT_IN.strategies, "[strategy]", recipe.strategy, Spec(()))
    return strategy.directions


def _rebuilt(
    recipe: Recipe, recipe_dir: Path, facts: Mapping[str, Any], params: Vector, directions: Directions
) -> Vector:
    """The parameters that the run's coefficients stand for."""
    import torch

    from edgewise.learn.adapters import trainable
    from edgewise.learn.model import load
    from edgewise.learn.zeroth_order import base_digest, rebuilt

    # Read as the run read it: in bfloat16, the start of LoRA's A is drawn in that.
    arithmetic = getattr(torch, facts.get("precision") or "float32")
    loaded = load(recipe.model.base, recipe_dir, arithmetic if recipe.trainable.adapts else torch.float32)
    _, flat = trainable(loaded.model, recipe.trainable, derive(root(recipe.seed), "model"), arithmetic)
    if facts.get("base_sha256") != base_digest(flat.spec, flat.read()):
        what = f"{loaded.name} has other parameters than the run's directions start from"
        raise _refused(what, "put the base model back as it was when the run began.")
    return rebuilt(flat.read(), params, directions, root(recipe.seed))


def _frozen_digest(model: Any, arithmetic: Any) -> str:
    """As ``learn.trainer`` tells it: SHA-256 over the weights that are not trained, in the run's arithmetic."""
    import torch

    from edgewise.learn.adapters import FACTOR_A

    h = hashlib.sha256()
    for name, p in model.named_parameters():
        if not p.requires_grad and FACTOR_A not in name:
            h.update(name.encode())
            h.update(p.detach().to(arithmetic).contiguous().view(torch.uint8).numpy().data)
    return h.hexdigest()


def _base_name(recipe: Recipe) -> str:
    """What the base is called in exported files: no path of this machine."""
    base = recipe.model.base
    if base == "bundled":
        return "edgewise bundled student"
    return base[4:] if base.startswith("hub:") else Path(base).name


def _name_base(config: Path, name: str) -> None:
    """Name the base in place of this machine's folder."""
    plain = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**plain, "base_model_name_or_path": name}, indent=2), encoding="utf-8")


def _loading(recipe: Recipe, base: str) -> str:
    """How to load an adapter whose base is on no hub."""
    where = f'"path/to/{base}"'
    if recipe.model.base == "bundled":
        where = 'importlib.resources.files("edgewise") / "assets" / "student"'
    return f"""
The base, `{base}`, is on no hub, so it is loaded first:

```python
base = AutoModelForCausalLM.from_pretrained({where})
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
"""


def _card(s: Mapping[str, Any], recipe: Recipe, to: str, played: int, digest: str) -> str:
    """README.md: data, training, figures, claims, privacy card, identity. Figures only where they belong to this model
    version."""
    local = not recipe.model.base.startswith("hub:")
    base = _base_name(recipe)
    hub = f"base_model: {base}\n" if not local else ""
    library = "peft" if to == "peft" else "transformers"
    rank = recipe.trainable.rank
    what = {
        "full": "all parameters",
        "layers": "some layers",
        "lora": f"LoRA adapters of rank {rank}",
        "ffa_lora": f"LoRA adapters of rank {rank}, B only (FFA-LoRA)",
        "rolora": f"LoRA adapters of rank {rank}, B and A in turn (RoLoRA)",
    }
    trained, t = what[recipe.trainable.kind], recipe.training
    work = words.local_work(t.local_steps, t.local_epochs)
    stdlib = recipe.data.source == "python-stdlib"
    data = "source text of the Python standard library" if stdlib else f"{recipe.data.source} data"
    whole = stdlib and recipe.data.partition == "owner"
    data += ", one package per device" if whole else f", partition `{recipe.data.partition}`"
    rows = [
        f"| {words.MODELS[m]} | {words.perplexity(q['weighted_mean'])} | {words.perplexity(q['median'])} |"
        f" {words.perplexity(q['worst_decile'])} |"
        for m, q in s["perplexity"].items()
        if q and played == s["rounds"]["kept"] and s["complete"]
    ]
    head = "| model | weighted mean | median | worst 10 % |\n| --- | ---: | ---: | ---: |\n"
    noised = bool(s["not_covered"])
    mark = f"{NOT_COVERED}\n\n" if noised else ""
    figures = f"\n## Held-out perplexity\n\n{mark}{head}" + "\n".join(rows) + "\n" if rows else ""
    fingerprint = "" if noised else f" Fingerprint: `{s['facts'].get('fingerprint', 'not recorded')}`."
    seed = "" if noised else f"| seed | {s['seed']} |\n"
    vector = "trained parameters" if _directions(recipe) is None else "coefficients of the directions"
    claims = "\n".join(f"- {c}" for c in s["plan"]["claims"])
    return f"""---
library_name: {library}
{hub}pipeline_tag: text-generation
tags:
- edgewise
- federated
---

# {s["name"]}

{trained[0].upper()}{trained[1:]} of `{base}`, trained with edgewise on {words.count(s["population"])} simulated devices
in {played} of {recipe.round.rounds} rounds of {work} ({t.optimizer}, learning rate {t.lr:g}).
The weights are float32.
{_loading(recipe, base) if to == "peft" and local else ""}
Data: {data}.{fingerprint}
{figures}
## Who learnt what in training

{claims or "Not recorded."}
{privacy_part.markdown(s, played)}
## Identity

| | |
| --- | --- |
| {vector}, SHA-256 | `{digest}` |
| run id | `{s["run"]}` |
| recipe, SHA-256 | `{s["recipe_sha256"]}` |
{seed}| versions | {", ".join(f"{k} {v}" for k, v in s["versions"].items() if k != "platform")} |
"""
