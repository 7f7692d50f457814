"""Export a run's vector as a model folder, and check the folder against the trained model.

Shape suffixes: B = batch, T = sequence, V = vocabulary.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from edgewise.core.errors import EdgewiseError
from edgewise.core.foreign import foreign
from edgewise.core.vector import Vector
from edgewise.learn.models import compact, quantized
from edgewise.learn.models.architecture import logits, probe_token_ids, sizes, text_config
from edgewise.learn.models.between import take_out_between
from edgewise.learn.models.gated import without_own
from edgewise.learn.models.load import Loaded
from edgewise.learn.models.rebuilt import rebuild
from edgewise.learn.models.smaller_layers import densify_layers
from edgewise.learn.text import tokens
from edgewise.plan.recipe.recipe import Recipe
from edgewise.strategies.base import Directions

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")
TEMPLATES = ("chat_template*", "additional_chat_templates/*.jinja")
BESIDE = "joined"  # The name of one adapter in the place of several.
BASE = "base"  # The folder of the base beside an adapter.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # The keys are the names in safetensors.
ROWS, LENGTH = 4, 32  # Logits are compared on a text of this size.
FINEST, COARSEST = 1e-5, 1e-4  # Rounding of float32 in small and in deep models, as shares of the largest logit.


class LogitDifferences(NamedTuple):
    """The largest differences between logits on the same text.

    Attributes:
        loaded: between the model that was read back from the folder and the trained one, rounded to the folder's dtype.
        rounding: difference by that rounding alone.
        moved: difference by training.
    """

    loaded: float
    rounding: float
    moved: float


class TrainedModel(NamedTuple):
    """The trained model in float32, and its logits before and after training: float32[B, T, V] for ``ids_BT``.

    A quantized base has its decoded weights, which are those that the adapters were trained on. ``quantize`` says how
    it was quantized, and ``cache_dir`` is the folder with the quantized copy.
    """

    loaded: Loaded
    model: nn.Module
    ids_BT: Tensor
    base_BTV: Tensor
    wanted_BTV: Tensor
    quantize: str = "none"
    cache_dir: Path | None = None


def rebuilt_for_export(
    recipe: Recipe,
    base: str,
    folder: Path,
    facts: Mapping[str, Any],
    params: Vector,
    directions: Directions | None,
    cache_dir: Path | None = None,
) -> TrainedModel:
    """Rebuild the trained model as ``rebuild`` does, with the same errors and those of ``without_own``, and read its
    logits.
    """
    loaded, model, flat, params = rebuild(recipe, base, folder, facts, params, directions, cache_dir)
    found = sizes(model)
    ids_BT = probe_token_ids(loaded.tokens, ROWS, min(LENGTH, found.context or LENGTH), found.vocabulary)
    base_BTV = read_model_logits(model, ids_BT)
    flat.write(params)
    wanted_BTV = read_model_logits(model, ids_BT)
    without_own(model)
    for p in model.parameters():  # A safetensors file cannot hold the shared storage.
        p.data, p.grad = p.data.clone(), None
    return TrainedModel(loaded, model, ids_BT, base_BTV, wanted_BTV, recipe.model.quantize, cache_dir)


def read_model_logits(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Compute logits in evaluation mode: float32[B, T, V]."""
    with torch.no_grad():
        return logits(model.eval(), ids_BT).float()


def write_merged(t: TrainedModel, folder: Path, dtype: str) -> LogitDifferences:
    """Write the whole model with its configuration and tokenizer. A quantized base is merged in its decoded weights.

    Args:
        dtype: dtype of all weights, ``float32``, ``bfloat16`` or ``float16``.
    Returns:
        The differences between the folder and the trained model.
    Raises:
        EdgewiseError: E-EXPORT where the folder cannot be loaded or gives other logits. Errors of writing pass through.
    """
    model, merged_BTV = merged_model(t)
    for p in model.parameters():
        p.data = p.data.to(DTYPES[dtype]).float()
    rounded_BTV = read_model_logits(model, t.ids_BT)
    for p in model.parameters():
        p.data = p.data.to(DTYPES[dtype])
    model.save_pretrained(folder)
    write_tokenizer(t.loaded, folder)
    del model
    rounding = _largest(rounded_BTV, merged_BTV)
    t = t._replace(model=nn.Identity(), loaded=t.loaded._replace(model=nn.Identity()), wanted_BTV=rounded_BTV)
    gc.collect()  # A large model must not be in memory twice.
    return _verified(_plain(folder), t, folder, rounding)


def merged_model(t: TrainedModel) -> tuple[Any, Tensor]:
    """Merge the adapters into the weights, and factors into matrices. Returns the model and its logits.

    Raises:
        EdgewiseError: E-EXPORT where the merged model gives other logits.
    """
    model: Any = t.model
    if hasattr(model, "merge_and_unload"):
        _untie(model)
        model = model.merge_and_unload()
    densify_layers(model)
    merged_BTV = read_model_logits(model, t.ids_BT)
    _close(merged_BTV, t, 'export the adapter instead: "--to peft".')
    return model, merged_BTV


def write_gguf(
    t: TrainedModel, path: Path, dtype: str, facts: Mapping[str, str | int], adapter: bool
) -> tuple[LogitDifferences, dict[str, int]]:
    """Write a GGUF file of the whole model, or of its ``adapter``, and read it back with the reference reader.

    Args:
        dtype: as in ``gguf.files.write_model``.
        facts: further keys of the file.
    Returns:
        The differences between the model of the file and the trained model, and the number of tensors by type. Of an
        adapter the tensors are compared and not the logits, so ``rounding`` is of its numbers and ``loaded`` is 0.
    Raises:
        EdgewiseError: E-EXPORT as ``gguf.files``.
    """
    from edgewise.learn.models.gguf import files

    moved = _largest(t.wanted_BTV, t.base_BTV)
    if adapter:
        written = files.write_adapter(t.model, path, dtype, facts)
        return LogitDifferences(0.0, written.rounding, moved), written.types
    model, merged_BTV = merged_model(t)
    written = files.write_model(model, t.loaded.folder, path, dtype, facts)
    files.load_gguf_into(model, path)
    differs = _largest(read_model_logits(model, t.ids_BT), merged_BTV)
    if dtype == "float32" and differs:
        raise EdgewiseError("E-EXPORT", f"{path.name} has other logits than the model.", "please report it.")
    return LogitDifferences(_largest(merged_BTV, t.wanted_BTV), differs, moved), written.types


def write_adapter(t: TrainedModel, folder: Path, base: str, revision: str | None, beside: bool) -> LogitDifferences:
    """Write the adapter and its tokenizer. With ``beside`` also copy the base to ``folder / "base"``.

    Args:
        base, revision: the base that the adapter's configuration names. ``revision`` is None for a folder.
    Returns:
        The differences between the folder and the trained model.
    Raises:
        EdgewiseError: as ``write_merged``.
    """
    from peft import PeftModel

    model: Any = t.model
    take_out_between(model)
    if len(model.active_adapters) > 1:
        _save_joined(model, folder)
    else:
        model.save_pretrained(folder)
    config = folder / "adapter_config.json"
    plain = json.loads(config.read_text(encoding="utf-8"))
    plain |= {"base_model_name_or_path": base, "revision": revision}
    config.write_text(json.dumps(plain, indent=2), encoding="utf-8")
    write_tokenizer(t.loaded, folder)
    origin = t.loaded.folder
    if beside:
        copy_base(origin, folder / BASE)
        origin = folder / BASE
    del model
    t = t._replace(model=nn.Identity(), loaded=t.loaded._replace(model=nn.Identity()))
    gc.collect()
    plain_model = (
        _plain(origin) if t.quantize == "none" else quantized.load_decoded_model(origin, t.quantize, t.cache_dir)
    )
    with foreign(EdgewiseError, "E-EXPORT", "peft cannot load the adapter that it wrote", "take --to merged."):
        fresh = PeftModel.from_pretrained(plain_model, folder)
    return _verified(fresh, t, folder, 0.0)


def _save_joined(model: Any, folder: Path) -> None:
    """Write several adapters of one rank as one adapter of their summed rank: B A = sum_j B_j A_j."""
    names = model.active_adapters
    model.add_weighted_adapter(names, [1.0] * len(names), BESIDE, combination_type="cat")
    model.save_pretrained(folder, selected_adapters=[BESIDE])
    for file in (folder / BESIDE).iterdir():
        file.rename(folder / file.name)
    (folder / BESIDE).rmdir()


def _plain(folder: Path) -> nn.Module:
    """Load a folder in float32, as any user of ``transformers`` does."""
    from transformers import AutoModelForCausalLM

    with foreign(EdgewiseError, "E-EXPORT", "transformers cannot load the model that it wrote", "update transformers."):
        model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model


def _verified(fresh: nn.Module, t: TrainedModel, folder: Path, rounding: float) -> LogitDifferences:
    loaded = _close(read_model_logits(fresh, t.ids_BT), t, "please report it: the run itself is whole.")
    if tokens.load_tokenizer(folder).digest != t.loaded.tokens.digest:
        raise EdgewiseError("E-EXPORT", "the exported tokenizer is not the base's.", "please report it.")
    return LogitDifferences(loaded, rounding, _largest(t.wanted_BTV, t.base_BTV))


def _close(got_BTV: Tensor, t: TrainedModel, fix: str) -> float:
    """Return the largest difference from the wanted logits. Raises EdgewiseError(E-EXPORT) above the limit.

    The limit is a tenth of the change by training, but at least 1e-5 and at most 1e-4 of the largest logit.
    """
    found = _largest(got_BTV, t.wanted_BTV)
    scale, moved = float(t.wanted_BTV.abs().max()), _largest(t.wanted_BTV, t.base_BTV)
    if not found <= min(max(0.1 * moved, FINEST * scale), COARSEST * scale):
        what = f"the exported model is not the trained one: its logits differ by up to {found:.3g}"
        raise EdgewiseError("E-EXPORT", f"{what}, and training moved them by {moved:.3g}.", fix)
    return found


def _largest(a_BTV: Tensor, b_BTV: Tensor) -> float:
    return float((a_BTV - b_BTV).abs().max()) if a_BTV.shape == b_BTV.shape else float("inf")


def _untie(model: Any) -> None:
    """Give each adapted layer its own copy of weights that it shares with another layer (tied embeddings).

    The adapter changed one use of the shared weights. A merge into them would change the other use too.
    """
    plain = model.get_base_model()
    users = Counter(id(p) for m in plain.modules() for p in m._parameters.values() if p is not None)
    adapted = [m for m in plain.modules() if hasattr(m, "lora_A")]
    shared = [m for m in adapted if users[id(getattr(m.get_base_layer(), "weight", None))] > 1]
    for layer in shared:
        layer.get_base_layer().weight = nn.Parameter(layer.get_base_layer().weight.detach().clone())
    if shared:
        for config in (plain.config, text_config(plain.config)):
            config.tie_word_embeddings = False
        plain.all_tied_weights_keys = {}


def stored_dtype(folder: Path) -> str:
    """Return the dtype of most weights in a model's folder. ``float32`` for a dtype that is not in ``DTYPES``."""
    counts: Counter[str] = Counter()
    for path in model_weight_files(folder):
        with safe_open(path, "pt") as f:
            for name in f.keys():  # noqa: SIM118  (f is not a dict)
                piece = f.get_slice(name)
                counts[piece.get_dtype()] += int(torch.tensor(piece.get_shape()).prod())
    commonest = counts.most_common(1)
    return STORED.get(commonest[0][0], "float32") if commonest else "float32"


def model_weight_files(folder: Path) -> list[Path]:
    """List the files that hold a folder's weights: one, or the parts that an index lists."""
    if compact.is_compact(folder):
        return [folder / compact.WEIGHTS]
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return [folder / "model.safetensors"]
    return sorted({folder / name for name in json.loads(index.read_bytes())["weight_map"].values()})


def write_tokenizer(loaded: Loaded, folder: Path) -> None:
    """Write a tokenizer that splits text as the base's does. Its files are copied where that is enough.

    Beside an adapter there is no config.json. Where the tokenizer depends on the architecture in that file, it is
    written out in full by transformers.
    """
    copy_tokenizer(loaded.folder, folder)
    if tokens.load_tokenizer(folder).digest != loaded.tokens.digest:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(loaded.folder, local_files_only=True).save_pretrained(folder)


def copy_tokenizer(origin: Path, folder: Path) -> None:
    """Copy the tokenizer's files and chat templates. A folder of such a name is left out."""
    for pattern in (*TOKENIZER_FILES, *TEMPLATES):
        for file in origin.glob(pattern):
            if file.is_file():
                to = folder / file.relative_to(origin)
                to.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, to)


def copy_base(origin: Path, folder: Path) -> None:
    """Copy a model unchanged: weights, settings, tokenizer, card and licence."""
    folder.mkdir()
    copy_tokenizer(origin, folder)
    settings = [p for pattern in ("*.json", "README.md", "LICENSE*") for p in origin.glob(pattern) if p.is_file()]
    for file in {*settings, *model_weight_files(origin)}:
        shutil.copyfile(file, folder / file.name)
