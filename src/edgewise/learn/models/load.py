"""Load the causal language model of a recipe's ``model.base`` and its tokenizer. Safetensors only, no remote code.

    loaded = load("hub:owner/name", recipe_dir)
    loaded.model, loaded.tokens

Shape suffixes: B = batch, S = block length + 1, T = block length, V = vocabulary.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.core.errors import ModelError
from edgewise.core.foreign import foreign
from edgewise.learn.models import compact, hub, quantized
from edgewise.learn.models.architecture import logits
from edgewise.learn.models.weights import read_weights
from edgewise.learn.text import tokens
from edgewise.learn.text.marks import BEGINS

CONFIG_BYTES = 1 << 22
MOST_PARTS = 1 << 16  # Layers times experts. The largest open models have some 25,000.
COUNTS = re.compile(r"^(num|n)_.*(layer|expert|block|head|label)")
MADE = re.compile(r"^(num|n)_(hidden_)?layers?$|^(num|n)_(local_|routed_)?experts$")  # These counts multiply.
FP32_ATTENTION = "edgewise_fp32_sdpa"


class Loaded(NamedTuple):
    """A loaded model.

    Attributes:
        model: the model, in the requested dtype.
        tokens: its tokenizer.
        name: its name for reports.
        folder: the folder that it came from.
        commit: the commit of a model of the hub, 40 hexadecimal digits. None for other models.
    """

    model: nn.Module
    tokens: tokens.Tokens
    name: str
    folder: Path
    commit: str | None = None


def load(
    base: str,
    recipe_dir: Path,
    dtype: torch.dtype = torch.float32,
    quantize: str = "none",
    cache_dir: Path | None = None,
) -> Loaded:
    """Load a language model and its tokenizer.

    Args:
        base: ``"bundled"``, ``"hub:owner/name"``, ``"hub:owner/name@revision"``, or a folder.
        recipe_dir: the folder where a relative ``base`` starts.
        dtype: dtype of the weights, of those that are not quantized.
        quantize: ``model.quantize`` of a recipe (``learn.models.quantized``).
        cache_dir: folder for quantized copies. None keeps none.
    Raises:
        ModelError: E-MODEL for a model that is missing, damaged, pickled or incomplete, has an adapter beside it, or
            needs remote code. E-MODEL-REMOTE where the hub cannot give it. E-QUANTIZE where it cannot be quantized, or
            is quantized in another way.
        EdgewiseError: E-DEPENDENCY where quantizing needs a package.
    """
    folder, name = locate_model(base, recipe_dir)
    quantized.check_quantized_kind(folder, quantize)
    if compact.is_compact(folder):
        if quantize != "none":
            what = f'{folder} has masked or factored layers, which model.quantize = "{quantize}" cannot round.'
            raise ModelError("E-QUANTIZE", what, "write it as a dense model first: `edgewise shrink --by unpack`.")
        model = compact.read_compact(folder, dtype)
    elif quantize == "none":
        model = compact.attach_masks(read_weights(folder, dtype=dtype), folder)
    else:
        model = quantized.load_quantized(folder, quantize, dtype, cache_dir)
    return Loaded(model, tokens.load_tokenizer(folder), name, folder, hub.hub_commit(folder))


def locate_model(base: str, recipe_dir: Path) -> tuple[Path, str]:
    """Find the folder of a model, with its name for reports. A model of the hub is downloaded. Raises as ``load``."""
    if base == "bundled":
        folder, name = Path(str(resources.files("edgewise"))) / "assets" / "student", "bundled student"
        if not folder.is_dir():
            raise ModelError("E-MODEL", f"the bundled model is missing from {folder}.", "reinstall edgewise.")
    elif base.startswith("hub:"):
        folder, name = hub.fetch_hub_model(base[4:]), hub.split_hub_name(base[4:])[0]
    else:
        with foreign(ModelError, "E-MODEL", f"model.base = {base!r}", "check the path."):
            folder = (recipe_dir / Path(base).expanduser()).resolve()
        name = folder.name
    _check(folder)
    bounded_config(folder / "config.json")
    return folder, name


def stored_parameters(folder: Path) -> int:
    """Count the parameters in a folder's weights, from the headers of its files. Raises ModelError(E-MODEL).

    Those of masked and factored layers count as if the layers were dense.
    """
    if compact.is_compact(folder):
        return compact.compact_layers(folder).parameters
    count = 0
    with foreign(ModelError, "E-MODEL", f"{folder} cannot be loaded", "check that it is complete."):
        for path in hub.hub_weights(folder):
            with safe_open(path, "pt") as f:
                count += sum(math.prod(f.get_slice(name).get_shape()) for name in f.keys())  # noqa: SIM118
    return count


def _check(folder: Path) -> None:
    if not folder.is_dir():
        fix = f'check model.base; a model of the Hugging Face hub is "hub:{folder.name}"; "bundled" always works.'
        raise ModelError("E-MODEL", f"no model folder at {folder}.", fix)
    if (folder / "adapter_config.json").is_file():
        # transformers would apply the adapter on loading, which the recipe does not ask for.
        rest = "weights and an adapter" if (folder / "config.json").is_file() else "an adapter, not a whole model"
        fix = "merge the adapter into the model, or move adapter_config.json and its weights to another folder."
        raise ModelError("E-MODEL", f"{folder} has {rest}.", fix)
    if not (folder / "config.json").is_file():
        raise ModelError("E-MODEL", f"{folder} has no config.json.", "point model.base at a saved transformers model.")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
        what = f"only has pickled weights ({pickled[0]}), which can run code" if pickled else "has no *.safetensors"
        raise ModelError("E-MODEL", f"{folder} {what}.", "save it with save_pretrained(...) as safetensors.")


def bounded_config(path: Path) -> None:
    """Refuse a configuration with more parts than any model has, before transformers makes them one by one.

    Raises:
        ModelError: E-MODEL, also where the file cannot be read as JSON.
    """
    with foreign(ModelError, "E-MODEL", f"{path} cannot be read", "save the model again."):
        if path.stat().st_size > CONFIG_BYTES:
            raise ModelError("E-MODEL", f"{path} has more than {CONFIG_BYTES} bytes.", "save the model again.")
        level = [json.loads(path.read_bytes())]
    parts = 1
    while level:
        inner: list[Any] = []
        for one in level:
            inner += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
            for key, n in one.items() if isinstance(one, dict) else ():
                if isinstance(n, int) and COUNTS.search(key):
                    parts *= max(1, n) if MADE.search(key) else 1
                    if n > MOST_PARTS or parts > MOST_PARTS:
                        what = f"{path}: {key} = {n:.3g} makes more than {MOST_PARTS} parts."
                        raise ModelError("E-MODEL", what, "save the model again.")
        level = inner


def float32_attention(model: nn.Module) -> None:
    """Let a model under autocast compute attention in float32. The projections around it stay in bfloat16.

    The backward pass of torch's fused CPU attention is slow in bfloat16: 14.8 ms against 3 ms in float32 for 8 x 4
    heads of 128 tokens, which is a third of the whole step.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **more: Any) -> Any:
        if mask is not None and mask.is_floating_point():
            mask = mask.float()
        with torch.autocast("cpu", enabled=False):
            out, weights = sdpa_attention_forward(module, q.float(), k.float(), v.float(), mask, **more)
        return out.to(q.dtype), weights

    if getattr(model.config, "_attn_implementation", "") == "sdpa":
        AttentionInterface.register(FP32_ATTENTION, attention)
        AttentionMaskInterface.register(FP32_ATTENTION, sdpa_mask)
        model.set_attn_implementation(FP32_ATTENTION)


def checkpoint_layers(model: nn.Module, name: str) -> None:
    """Let a model keep the inputs of its layers only, and compute activations again for the gradient.

    Raises:
        ModelError: E-MODEL where ``transformers`` cannot do it for this architecture.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        what = f"training.checkpointing: {name} cannot compute its activations again."
        raise ModelError("E-MODEL", what, "leave it out, and raise training.accumulate to save memory.")
    enable: Any = model.gradient_checkpointing_enable
    enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@contextmanager
def checkpointing(model: Any, turned_on: bool) -> Iterator[None]:
    """Let a model compute its activations again inside, where it is ``turned_on``. Raises as ``checkpoint_layers``."""
    if not turned_on:
        yield
        return
    checkpoint_layers(model, type(model).__name__)
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


class TextLoss:
    """The next-token loss of a causal model on blocks. ``~id`` marks a token that is read but never predicted.

    Args:
        isolated: True keeps the documents of a block apart, by the marks of ``learn.text.marks.BEGINS``.
    """

    def __init__(self, autocast: torch.dtype, isolated: bool = False) -> None:
        self.autocast, self.isolated = autocast, isolated

    def __call__(self, model: nn.Module, batch: tuple[Tensor, int]) -> tuple[Tensor, float]:
        """Return the mean negative log-likelihood in nats over a batch's n predictions, and n.

        Args:
            batch: (s_BS, n), with int64 token ids and n >= 1.
        """
        s_BS, n = batch
        return F.nll_loss(*self._predicted(model, s_BS), ignore_index=-1), n

    def sums(self, model: nn.Module, s_NS: Tensor, devices: int) -> Tensor:
        """Return the summed negative log-likelihood of each device: float32[devices].

        Args:
            s_NS: blocks of all devices, device after device, equally many of each.
        """
        found = F.nll_loss(*self._predicted(model, s_NS), ignore_index=-1, reduction="none")
        return found.view(devices, -1).sum(1)

    def _predicted(self, model: nn.Module, s_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of all next tokens, and the true ones. -1 marks one that does not count."""
        x_BT, y_BT, positions_BT = self.inputs(s_BS)
        with self.arithmetic(s_BS.device.type):
            logits_BTV = logits(model, x_BT, positions_BT)
        return F.log_softmax(logits_BTV.flatten(0, 1), -1, dtype=torch.float32), y_BT.flatten()

    def arithmetic(self, processor: str) -> AbstractContextManager[Any]:
        """Return the context in which a model computes, on a processor of this type."""
        return torch.autocast(processor, torch.bfloat16, enabled=self.autocast is torch.bfloat16)

    def inputs(self, s_BS: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return tokens to read, next tokens (-1: one that does not count), and positions, [B, T] each.

        Positions are None where rows are not packed with documents that stay apart.
        """
        y_BT = s_BS[:, 1:]
        x_BT = torch.where(s_BS < 0, ~s_BS, s_BS)[:, :-1]
        positions_BT = None
        if self.isolated:
            positions_BT = token_positions((x_BT & BEGINS) != 0)
            x_BT, y_BT = x_BT & ~BEGINS, torch.where(y_BT < 0, y_BT, y_BT & ~BEGINS)
        return x_BT, y_BT.clamp(min=-1), positions_BT


def token_positions(begins_BT: Tensor) -> Tensor:
    """Count the position of each token in its document, from 0.

    Args:
        begins_BT: bool, True at the first token of a document. A row may begin within one.
    """
    at_T = torch.arange(begins_BT.shape[1], device=begins_BT.device)
    return at_T - (at_T * begins_BT).cummax(1).values


def summed_loss(loss: TextLoss, stage: nn.Module, x_BTC: Tensor, y_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
    """Compute the summed negative log-likelihood of a stage that ends in logits, in nats."""
    with loss.arithmetic(x_BTC.device.type):
        logits_BTV = stage(x_BTC, positions_BT)
    logp_NV = F.log_softmax(logits_BTV.flatten(0, 1), -1, dtype=torch.float32)
    return F.nll_loss(logp_NV, y_BT.flatten(), ignore_index=-1, reduction="sum")
