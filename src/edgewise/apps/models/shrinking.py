"""Make a model smaller, heal it, and measure what was kept: the work of ``edgewise shrink``.

report = shrink(ShrinkRequest("bundled", "prune", 0.5, Path("smaller")))
report["smaller"]["perplexity"]
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from edgewise.apps.models.export import whole_folder
from edgewise.core.errors import DataError, ModelError, StoreError
from edgewise.core.keys import derive, root
from edgewise.learn.compress import factorize as factorizing
from edgewise.learn.compress import prune as pruning
from edgewise.learn.compress import structured
from edgewise.learn.compress.heal import HealingPlan, heal_model
from edgewise.learn.compress.measure import model_perplexity, model_tokens_per_s
from edgewise.learn.models import compact, quantized
from edgewise.learn.models.architecture import sizes
from edgewise.learn.models.exported import DTYPES, copy_tokenizer, model_weight_files, stored_dtype
from edgewise.learn.models.load import Loaded, load
from edgewise.learn.models.smaller_layers import FactoredLinear
from edgewise.learn.text import corpus as corpora
from edgewise.learn.text.blocks import Blocks, BlockStore, predictions
from edgewise.learn.training_costs import model_weights_bytes
from edgewise.plan.recipe.whole_text import whole_text

WAYS = {
    "prune": ("wanda", "magnitude", "width", "depth"),
    "factorize": ("svd-llm", "svd"),
    "quantize": ("int8", "nf4"),
    "unpack": ("unpack",),
}
REPORT = "shrunk.json"
Step = Callable[[str, int, int], object]


class ShrinkRequest(NamedTuple):
    """A request for a smaller model.

    Attributes:
        model: "bundled", "hub:owner/name", or a model's folder.
        by: a key of ``WAYS``. ``unpack`` writes a compact folder as ``transformers`` reads it.
        kept: share to keep, in (0, 1): of the weights of the decoder blocks, or of their 16-bit bytes (quantize).
        dest: a folder that does not exist or is empty.
        how: one of ``WAYS[by]``. None: the first, and for ``quantize`` the one that reaches ``kept``.
        on: "plays", "plays-public", "python-stdlib", or a file or folder of text. Its end is held out.
        healing: training after the cut. Of 0 steps: none.
        dense: write weights that ``transformers`` reads, where the default is a compact folder.
        length: tokens of a block.
        calibration: number of blocks whose activations are looked at.
        held_tokens: number of held-out tokens that are scored, at most.
    """

    model: str
    by: str
    kept: float
    dest: Path
    how: str | None = None
    on: str = "plays"
    healing: HealingPlan = HealingPlan(0)
    dense: bool = False
    length: int = 128
    calibration: int = 64
    held_tokens: int = 20_000


def shrink(wanted: ShrinkRequest, step: Step = lambda what, done, of: None) -> dict[str, Any]:
    """Make a smaller model, write its folder, and measure both models.

    Args:
        step: receives the progress: a title, the steps so far and their number.
    Returns:
        The report, as ``shrunk.json`` in the folder holds it: ``model`` and ``smaller`` with ``perplexity``, ``bytes``
        of the files, ``parameters`` that are not zero by a mask, ``memory_bytes`` of the weights in float32 (quantized
        ones as they are) and ``tokens_per_s`` of forward passes that both models took in turn. ``cut_perplexity`` is
        that before healing.
    Raises:
        ModelError: E-SHRINK where model and request do not fit. E-MODEL, E-QUANTIZE.
        DataError: E-DATA-*.
        StoreError: E-FOLDER where ``dest`` holds files. E-DISK.
        TrainingError: E-NAN.
    Guarantees: ``dest`` appears whole or not at all. The figures are those of the folder as it was read back.
    """
    how, dest = _possible(wanted), wanted.dest.resolve()
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise StoreError("E-FOLDER", f"{dest} is not empty.", "name a new folder with --out; nothing is overwritten.")
    loaded = load(wanted.model, Path())
    packed = compact.is_compact(loaded.folder)
    if packed != (wanted.by == "unpack") or quantized.quantized_kind(loaded.folder) != "none":
        what = f"{loaded.name} is {'no compact folder' if wanted.by == 'unpack' else 'made smaller already'}."
        raise ModelError(
            "E-SHRINK", what, "write it as a dense model first: --by unpack." if packed else "leave it as it is."
        )
    found = sizes(loaded.model)
    if found.context is not None and wanted.length > found.context:
        what = f"{loaded.name} reads at most {found.context} tokens, and --length is {wanted.length}."
        raise ModelError("E-SHRINK", what, f"take --length {found.context} or less.")
    text = training_text(wanted, loaded)
    held_NS = text.held_NS[:: -(-len(text.held_NS) // max(1, wanted.held_tokens // wanted.length))]
    dtype = DTYPES[stored_dtype(loaded.folder)]
    report: dict[str, Any] = {
        "by": wanted.by, "how": how, "kept": wanted.kept, "on": wanted.on, "held_out_tokens": predictions(held_NS),
    }  # fmt: skip
    report["model"] = {"name": loaded.name, **_figures(loaded.model, loaded.folder, held_NS)}
    with whole_folder(dest, "--out", "nothing was written") as part:
        smaller = _smaller_model(wanted, how, loaded, text)
        if smaller is not None:
            report["ranks"] = _ranks(smaller)
            if wanted.healing.steps:
                report["cut_perplexity"] = model_perplexity(smaller, held_NS)
                heal_model(smaller, loaded.model, text.train_NS, wanted.healing, step)
                report["healing"] = {**wanted.healing._asdict(), "loss": wanted.healing.says}
            plain = wanted.dense or how in ("width", "depth", "unpack")
            (compact.write_dense_model if plain else compact.write_compact)(smaller, part, dtype)
        else:
            quantized.write_quantized(loaded.folder, part, "nf4" if how == "nf4" else "int8")
        copy_tokenizer(loaded.folder, part)
        again = load(str(part), Path(), quantize=how if wanted.by == "quantize" else "none")
        report["smaller"] = _figures(again.model, part, held_NS)
        speed = model_tokens_per_s({"model": loaded.model, "smaller": again.model}, held_NS)
        for name, value in speed.items():
            report[name]["tokens_per_s"] = round(value, 1)
        (part / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (part / "README.md").write_text(_card(dest.name, report), encoding="utf-8")
    return {"dest": str(dest), **report}


def _possible(wanted: ShrinkRequest) -> str:
    """Return the way to make the model smaller. Raises ModelError(E-SHRINK) for a request without one."""
    if wanted.by not in WAYS:
        raise ModelError("E-SHRINK", f"there is no way {wanted.by!r:.40}.", f"take --by {' or '.join(WAYS)}.")
    if wanted.how is not None and wanted.how not in WAYS[wanted.by]:
        what = f"--by {wanted.by} has no way {wanted.how!r:.40}."
        raise ModelError("E-SHRINK", what, f"take --how {' or '.join(WAYS[wanted.by])}.")
    if wanted.by != "unpack" and not 0.0 < wanted.kept < 1.0:
        raise ModelError(
            "E-SHRINK", f"--to {wanted.kept:g} is no share of a model.", "give one between 0 and 1: --to 0.5."
        )
    if wanted.healing.steps and wanted.by in ("quantize", "unpack"):
        what = f"--heal trains weights, and --by {wanted.by} leaves none that could move by small steps."
        fix = "leave out --heal; adapters on a quantized model are trained by a recipe with model.quantize."
        raise ModelError("E-SHRINK", what, fix)
    if wanted.by != "quantize":
        return wanted.how or WAYS[wanted.by][0]
    how = wanted.how or ("int8" if wanted.kept >= 0.5 else "nf4")
    least = {"int8": 0.5, "nf4": 0.25}[how]
    if wanted.kept < least:
        what = f"--how {how} keeps {least:g} of the 16-bit bytes, and --to is {wanted.kept:g}."
        raise ModelError("E-SHRINK", what, f"write --to {least:g} or more, or another way.")
    return how


def training_text(wanted: ShrinkRequest, loaded: Loaded) -> Blocks:
    """Read and tokenize the text that shrinks and heals a model. Raises DataError."""
    section = whole_text(wanted.on, {}, wanted.length)
    with tempfile.TemporaryDirectory(prefix="edgewise-shrink-") as work:
        corpus = corpora.load(section, Path(), Path(work), derive(root(wanted.healing.seed), "data"))
        found = BlockStore(corpus, loaded.tokens, section, Path(work)).open(corpus.devices[0])
        found = Blocks(*(x.copy() for x in found))
    if not len(found.train_NS) or not len(found.held_NS):
        what = f"{wanted.on} has too little text: {found.train_tokens} tokens to learn, {found.held_tokens} held out."
        raise DataError("E-DATA-EMPTY", what, "give more text with --on, or a smaller --length.")
    return found


def _smaller_model(wanted: ShrinkRequest, how: str, loaded: Loaded, text: Blocks) -> Any:
    """Return the smaller model. None for one that is rounded as it is read from its folder."""
    every = max(1, len(text.train_NS) // wanted.calibration)
    seen_NS = text.train_NS[::every][: wanted.calibration]
    model: Any = loaded.model
    match how:
        case "width":
            return structured.narrow_model(model, seen_NS, wanted.kept)
        case "depth":
            return structured.shallow_model(model, seen_NS, wanted.kept)
        case "int8" | "nf4":
            return None
    smaller = copy.deepcopy(model)
    match how:
        case "magnitude":
            pruning.prune_layers(smaller, pruning.magnitude_scores(smaller), wanted.kept)
        case "wanda":
            pruning.prune_layers(smaller, pruning.wanda_scores(smaller, seen_NS), wanted.kept)
        case "svd" | "svd-llm":
            factorizing.factorize_model(smaller, wanted.kept, seen_NS if how == "svd-llm" else None)
    return smaller


def _ranks(model: nn.Module) -> dict[str, int]:
    return {name: m.right.out_features for name, m in model.named_modules() if isinstance(m, FactoredLinear)}


def _figures(model: nn.Module, folder: Path, held_NS: Any) -> dict[str, Any]:
    """Measure a model: its perplexity on held-out text and its size."""
    from edgewise.learn.models.smaller_layers import layer_masks

    zeros = sum(int((~mask).sum()) for mask in layer_masks(model).values())
    return {
        "perplexity": model_perplexity(model, held_NS),
        "parameters": sum(quantized.count(p) for p in model.parameters()) - zeros,
        "bytes": sum(path.stat().st_size for path in {*model_weight_files(folder), *folder.glob(compact.MASKS)}),
        "memory_bytes": model_weights_bytes(model),
    }


def _card(name: str, report: dict[str, Any]) -> str:
    """Write a model card with both models' figures."""
    before, after = report["model"], report["smaller"]
    rows = [
        ("perplexity", *(f"{one['perplexity']:.2f}" for one in (before, after))),
        ("parameters", *(f"{one['parameters']:,}" for one in (before, after))),
        ("bytes of the files", *(f"{one['bytes']:,}" for one in (before, after))),
        ("bytes of the weights in memory", *(f"{one['memory_bytes']:,}" for one in (before, after))),
        ("tokens read per second", *(f"{one['tokens_per_s']:,.0f}" for one in (before, after))),
    ]
    healing = (
        f" It was healed by {report['healing']['steps']} steps of {report['healing']['loss']}."
        if "healing" in report
        else ""
    )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"# {name}\n\n{before['name']}, made smaller by `edgewise shrink --by {report['by']} --how {report['how']} "
        f"--to {report['kept']:g}`.{healing} The figures are of {report['held_out_tokens']:,} held-out tokens of "
        f"{report['on']}, and of one machine.\n\n| | {before['name']} | {name} |\n|---|---|---|\n{table}\n"
    )
