"""Cut a model into the stages of split learning: the device's first part, the server's part, and the device's last one.

    parts = cut_model(model, 2, "U")                 # embedding + 2 blocks | the other blocks | final norm + head
    h_BTC = parts.device(ids_BT)
    logits_BTV = parts.top(parts.server(h_BTC))

Each stage is the model's own class with fewer blocks, so masks, rotary positions, packed rows and padding are those of
``transformers``. Stages share the parameters of the whole model. Nothing is copied.

Shape suffixes: B = batch, T = sequence, C = width between blocks, V = vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgewise.core.errors import ModelError
from edgewise.core.foreign import foreign
from edgewise.learn.models.architecture import embeddings, logits, text_config
from edgewise.learn.models.blocks import decoder_blocks
from edgewise.learn.models.modules import plain_parameter_name
from edgewise.plan.recipe.recipe import Recipe

Shape = Literal["U", "head"]
NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")  # names of the norm after the last block
POSITIONS = ("wpe",)  # names of learned positions that are added to the embeddings
DROPOUTS = ("drop", "emb_dropout", "embd_dropout")  # names of dropout between embeddings and blocks
PROBE = 16  # tokens of the forward pass that compares the stages with the model
CLOSE = 1e-3  # Largest difference of stages and whole model, as a share of the largest logit.
OTHER = "take a decoder of the kinds Llama, Mistral, Qwen, GPT-2 or GPT-NeoX, or name the modules of each part."


class ZeroPositions(nn.Module):
    """Learned positions that were added by an earlier stage. Returns 0 for all of them."""

    def forward(self, positions_BT: Tensor) -> Tensor:
        """Return zeros, [B, T, 1]."""
        return torch.zeros(*positions_BT.shape, 1, device=positions_BT.device)


class DecoderStage(nn.Module):
    """Some neighbouring blocks of a decoder, with the embeddings before them or the head behind them.

    Args:
        runs: the model's own class with these blocks only.
        first: True reads token ids, False the output of an earlier stage.
        last: True returns logits.
    """

    def __init__(self, runs: nn.Module, first: bool, last: bool) -> None:
        super().__init__()
        self.runs, self.first, self.last = runs, first, last

    def forward(self, x: Tensor, positions_BT: Tensor | None = None, mask_BT: Tensor | None = None) -> Tensor:
        """Compute [B, T, C], or logits [B, T, V] in the last stage.

        Args:
            x: token ids [B, T] in the first stage, else [B, T, C].
            positions_BT: positions of several documents in a row, each from 0. All stages need the same.
            mask_BT: 1 for tokens, 0 for padding. All stages need the same.
        """
        more = {} if positions_BT is None else {"position_ids": positions_BT}
        more |= {} if mask_BT is None else {"attention_mask": mask_BT}
        out = self.runs(**{"input_ids" if self.first else "inputs_embeds": x}, use_cache=False, **more)
        found: Tensor = out.logits if self.last else out.last_hidden_state
        return found


class ModuleChain(nn.Module):
    """A part of any other model: named modules, one after the other."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, x: Tensor, *unused: Any) -> Tensor:
        """Apply the modules in their order."""
        for part in self.parts:
            x = part(x)
        return x


@dataclass(frozen=True)
class CutModel:
    """The stages of a model.

    Attributes:
        shape: "U" keeps final norm and head on the device, "head" gives them to the server.
        device: the device's first stage.
        server: the server's stage.
        top: the device's last stage. None with "head".
    """

    shape: Shape
    device: nn.Module
    server: nn.Module
    top: nn.Module | None = None

    def whole(self, x: Tensor, *context: Tensor | None) -> Tensor:
        """Compute the model's output by one stage after the other. Arguments as of ``DecoderStage.forward``."""
        out: Tensor = self.server(self.device(x, *context), *context)
        return out if self.top is None else self.top(out, *context)

    def on_device(self) -> tuple[nn.Module, ...]:
        """Return the device's stages."""
        return (self.device,) if self.top is None else (self.device, self.top)

    def sides(self, model: nn.Module) -> tuple[list[str], list[str]]:
        """List the names of the device's and of the server's parameters, as layouts have them.

        Args:
            model: the whole model. Each of its parameters is on one side.
        """
        held = {id(p) for stage in self.on_device() for p in stage.parameters()}
        names = [(plain_parameter_name(name), id(p) in held) for name, p in model.named_parameters()]
        return [name for name, here in names if here], [name for name, here in names if not here]


def cut_model(model: nn.Module, block: int, shape: Shape, shared: bool = False) -> CutModel:
    """Cut a causal language model of ``transformers``, also one with adapters of ``peft``, behind ``block`` blocks.

    Args:
        block: number of blocks on the device, from 0 to all but one.
        shared: True lets both sides hold a head that is the embedding. Then neither side may train it while the other
            does. It counts as the device's (``Cut.sides``).
    Raises:
        ModelError: E-CUT for a cut that does not exist, for an architecture whose parts cannot be found, and for
            ``shape = "head"`` where embedding and head are one tensor (``untied_head`` makes two).
    """
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    decoder, blocks = _decoder(whole)
    count = len(getattr(decoder, blocks))
    if not 0 <= block < count:
        what = f"a cut behind {block} blocks: the model has {count} blocks, and the server needs at least one."
        raise ModelError("E-CUT", what, f"take a cut from 0 to {count - 1}.")
    if shape == "head" and is_head_tied(whole) and not shared:
        what = 'shape = "head" gives the head to the server, and in this model it is the embedding itself.'
        raise ModelError(
            "E-CUT", what, 'take shape = "U", which keeps both on the device, or make two of them (untied).'
        )
    norm = next((name for name in NORMS if name in decoder._modules), None)
    if norm is None:
        raise ModelError("E-CUT", f"{type(whole).__name__} has no final norm of a known name.", OTHER)
    first = _part(decoder, blocks, 0, block, **{norm: nn.Identity()})
    middle = _part(decoder, blocks, block, count, **_without_embeddings(decoder))
    end = next(name for name, child in whole.named_children() if child is decoder)
    if shape == "head":
        last = _like(whole, **{end: middle})
        return CutModel(shape, DecoderStage(first, True, False), DecoderStage(last, False, True))
    middle._modules[norm] = nn.Identity()
    top = _like(whole, **{end: _part(decoder, blocks, count, count, **_without_embeddings(decoder))})
    stages = DecoderStage(first, True, False), DecoderStage(middle, False, False), DecoderStage(top, False, True)
    return CutModel(shape, *stages)


def cut_modules(model: nn.Module, device: Sequence[str], server: Sequence[str], top: Sequence[str] = ()) -> CutModel:
    """Cut any other model, whose modules run one after the other, by naming the modules of each part.

        cut_modules(net, ["0", "1"], ["2", "3"], top=["4"])

    Args:
        device, server, top: names as of ``named_modules``, in the order in which they run. Without ``top`` the shape is
            "head".
    Raises:
        ModelError: E-CUT for a module that does not exist, an empty part, or a parameter that is in two parts on both
            sides, or in none.
    """
    found = dict(model.named_modules())
    for name in (*device, *server, *top):
        if not name or name not in found:
            listed = ", ".join(name for name, _ in model.named_children())
            raise ModelError("E-CUT", f"the model has no module {name!r}.", f"name modules such as {listed}.")
    if not device or not server:
        raise ModelError("E-CUT", "a part has no module.", "name at least one module for device and server.")
    chains = [ModuleChain([found[name] for name in part]) for part in (device, server, top)]
    made = CutModel("U" if top else "head", chains[0], chains[1], chains[2] if top else None)
    here = {id(p) for stage in made.on_device() for p in stage.parameters()}
    there = {id(p) for p in made.server.parameters()}
    if here & there:
        raise ModelError("E-CUT", "a parameter is in parts of both sides.", "name each module once.")
    lost = [name for name, p in model.named_parameters() if id(p) not in here | there]
    if lost:
        raise ModelError("E-CUT", f"{lost[0]} is in no part.", "name the modules of all parameters.")
    return made


def is_head_tied(model: nn.Module) -> bool:
    """Tell whether embedding and head of a language model are one tensor."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return head is not None and head.weight is embeddings(model).weight


def untied_head(model: nn.Module) -> None:
    """Give the head of a language model a tensor of its own, equal to the embedding. It trains apart from then on."""
    if is_head_tied(model):
        head: Any = model.get_output_embeddings()  # type: ignore[operator]
        head.weight = nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
        text_config(model.config).tie_word_embeddings = model.config.tie_word_embeddings = False


def check_cut(model: nn.Module, parts: CutModel, ids_BT: Tensor, packed: bool = False) -> None:
    """Refuse a cut whose stages together compute something else than the model, by a forward pass of both.

    Some decoders scale or mix the embeddings in ways that no cut sees.

    Args:
        ids_BT: token ids of a probe.
        packed: True also compares rows of two documents.
    Raises:
        ModelError: E-CUT.
    Guarantees: weights and the mode of the model stay as they are. The comparison is without dropout.
    """
    half = ids_BT.shape[1] // 2
    begins = torch.cat([torch.arange(half), torch.arange(ids_BT.shape[1] - half)]).expand_as(ids_BT)
    mode = model.training
    model.eval()
    try:
        with torch.no_grad(), foreign(ModelError, "E-CUT", "the model cannot be cut here", OTHER):
            for positions_BT in (None, begins) if packed else (None,):
                expected, found = logits(model, ids_BT, positions_BT), parts.whole(ids_BT, positions_BT)
                if not float((found - expected).abs().max()) <= CLOSE * float(expected.abs().max()):
                    what = f"the stages of {type(model).__name__} compute other logits than the whole model."
                    raise ModelError("E-CUT", what, OTHER)
    finally:
        model.train(mode)


def probed_cut(model: nn.Module, recipe: Recipe) -> CutModel:
    """Cut the model of a recipe, and compare its stages with it. Raises ModelError(E-CUT) as ``check_cut``."""
    parts = cut_model(model, recipe.split.cut, recipe.split.shape)
    ids = torch.arange(PROBE, device=embeddings(model).weight.device).view(1, PROBE)
    check_cut(model, parts, ids, recipe.data.packing == "isolated")
    return parts


def _decoder(whole: nn.Module) -> tuple[nn.Module, str]:
    """Find the module with the blocks, and the name of its list. Raises ModelError(E-CUT)."""
    owner, _, name = decoder_blocks(whole, "E-CUT")[0].rpartition(".")
    decoder = whole.get_submodule(owner)
    if not owner or "." in owner or not hasattr(decoder, "config"):
        raise ModelError("E-CUT", f"{type(whole).__name__} has no list of blocks right under its decoder.", OTHER)
    return decoder, name


def _part(decoder: nn.Module, blocks: str, start: int, stop: int, **children: nn.Module | None) -> nn.Module:
    """Make a decoder with the blocks from ``start`` to ``stop`` and other children."""
    made = _like(decoder, **{blocks: nn.ModuleList(getattr(decoder, blocks)[start:stop]), **children})
    made.config = copy.copy(decoder.config)
    kinds = getattr(decoder.config, "layer_types", None)
    if kinds:  # Blocks look their kind of attention up by their place.
        made.config.layer_types = list(kinds[start:stop])
    return made


def _without_embeddings(decoder: nn.Module) -> dict[str, nn.Module | None]:
    own: dict[str, nn.Module | None] = {n: None for n, m in decoder.named_children() if isinstance(m, nn.Embedding)}
    own |= {name: ZeroPositions() for name in POSITIONS if name in decoder._modules}
    return own | {name: nn.Identity() for name in DROPOUTS if name in decoder._modules}


def _like(module: nn.Module, **children: nn.Module | None) -> nn.Module:
    """Copy a module without its parameters: the same tensors, the same children except those given."""
    made = copy.copy(module)
    for table in ("_parameters", "_buffers", "_modules"):
        made.__dict__[table] = dict(getattr(module, table))
    made._modules.update(children)
    return made


def stage_parameters(stages: Sequence[nn.Module]) -> Iterator[nn.Parameter]:
    """Iterate over the parameters of some stages, each once."""
    seen: set[int] = set()
    for p in (p for stage in stages for p in stage.parameters()):
        if id(p) not in seen:
            seen.add(id(p))
            yield p
