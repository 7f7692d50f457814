"""Choose the trained parameters: all, named layers, or low-rank adapters (LoRA, Hu et al. 2021)."""

from __future__ import annotations

import difflib
import warnings
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from edgewise.core.blocks import blocks_in, from_last
from edgewise.core.errors import ModelError
from edgewise.core.factors import factor
from edgewise.core.foreign import foreign
from edgewise.core.keys import Key, derive, generator
from edgewise.learn.flat import Flat
from edgewise.learn.models.architecture import called_modules, module_pattern
from edgewise.learn.models.between import put_between_factors
from edgewise.learn.models.gated import OWN, put_gates
from edgewise.learn.models.modules import PEFT_PREFIX, plain_parameter_name
from edgewise.learn.models.quantized import count, import_bitsandbytes
from edgewise.learn.models.smaller_layers import put_layer_masks
from edgewise.learn.seeded import seeded
from edgewise.plan.recipe.trainable import SHARED_A, TrainableSection

ALL_LINEAR = "all-linear"
ADAPTED = (".base_layer.", ".original_module.", ".modules_to_save.")  # peft's parts of a layer that changes in training
MAMBA = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}  # peft adapts no output projection in these.


def make_trainable(
    model: nn.Module, section: TrainableSection, key: Key, frozen: torch.dtype, own: str | None = None
) -> tuple[nn.Module, Flat]:
    """Choose the trained parameters of a model, freeze the others, and lay them out in one vector.

    Args:
        section: the recipe's [trainable].
        key: decides the start of LoRA's A (Kaiming uniform, as in peft). B starts at zero, so the adapted model equals
            the base. Equal keys give equal starts.
        frozen: dtype of all parameters that are not trained. The trained ones are float32.
        own: the gate of a second adapter, a device's own (``PersonalSection.own_adapter``). None: no second adapter.
    Returns:
        The model to run (wrapped for LoRA) and its flat parameters. Segments have the model's own parameter names. An
        adapter's are those of a saved PEFT file without ``base_model.model.``, such as
        ``model.layers.0.self_attn.q_proj.lora_A.weight``.
    Raises:
        ModelError: E-TARGETS where a target or pattern matches nothing, or only modules that text does not run through
            or that LoRA cannot adapt.
    """
    model, named, fixed = choose_trainable(model, section, key, frozen, own)
    return model, Flat([*named, *fixed], [name for name, _ in fixed])


Named = list[tuple[str, nn.Parameter]]


def choose_trainable(
    model: nn.Module,
    section: TrainableSection,
    key: Key,
    frozen: torch.dtype,
    own: str | None = None,
    shapes: Any = None,
) -> tuple[nn.Module, Named, Named]:
    """Choose as ``make_trainable``. Returns the model, and the trained and the fixed parameters with their names.

    Args:
        shapes: the same model without storage, where ``model`` has one part of its weights only. It is asked which
            modules text runs through.
    """
    fixed: Named = []
    _check_blocks(model, section.last_blocks)
    if section.adapts:
        if section.rule == "auto":
            raise ValueError('a recipe puts a rule in the place of "auto"')
        model = _with_lora(model, section, key, own is not None, model if shapes is None else shapes)
        if section.rule in SHARED_A:
            _fix_a(model, key)
        if own == "token":
            put_gates(model)
        if section.rule == "fed_sb":
            _fix_both(model, key)
            put_between_factors(model)
        named = [(plain_parameter_name(n), p) for n, p in _trainable_parameters(model)]
        fixed = _bases(model) if section.moves_base else []
    else:
        put_layer_masks(model)  # Nothing outside a mask trains or travels.
        if section.kind == "layers":
            _freeze_others(model, section.layers)
        if section.last_blocks:
            _freeze_before(model, section.last_blocks)
        named = _trainable_parameters(model)
    # Both halves of an adapter are float32.
    kept = {p for n, p in model.named_parameters() if factor(n)} | {p for _, p in fixed}
    for p in model.parameters():
        if not p.requires_grad and p.is_floating_point() and p not in kept:
            p.data = p.data.to(frozen)
    return model, named, fixed


def _bases(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """List the adapted matrices, which change with the rounds. Raises ModelError(E-TARGETS) for other layers."""
    found = []
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        if not isinstance(module.base_layer, nn.Linear) or not module.base_layer.weight.is_floating_point():
            what = f"the mean of products is added to matrices, and {plain_parameter_name(name)} is of the kind "
            what += f"{type(module.base_layer).__name__}, another layer or one in few bits."
            raise ModelError("E-TARGETS", what, 'choose linear layers of a float base, or trainable.rule = "reffa".')
        found.append((plain_parameter_name(f"{name}.base_layer.weight"), module.base_layer.weight))
    if len({id(p) for _, p in found}) < len(found) or _tied(model, [p for _, p in found]):
        what = "an adapted matrix is shared by two layers, and the mean of products would change both."
        raise ModelError("E-TARGETS", what, 'leave it out of trainable.targets, or take trainable.rule = "reffa".')
    return found


def _tied(model: nn.Module, chosen: list[nn.Parameter]) -> bool:
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    return any(uses[id(p)] > 1 for p in chosen)


def _trainable_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]  # Tied weights come once.


def _freeze_others(model: nn.Module, patterns: list[str]) -> None:
    names = [n for n, _ in model.named_parameters()]
    for wanted in patterns:
        if not any(fnmatchcase(n, wanted) for n in names):
            raise _no_match("trainable.layers", wanted, names)
    for name, p in model.named_parameters():
        p.requires_grad_(any(fnmatchcase(name, wanted) for wanted in patterns))


def _check_blocks(model: nn.Module, blocks: int) -> None:
    """Refuse more last blocks than the model has. Raises ModelError(E-TARGETS)."""
    names = [n for n, _ in model.named_parameters()]
    count = blocks_in(names)
    if blocks > count:
        what = f"trainable.last_blocks = {blocks}: the model has {count} numbered blocks."
        raise ModelError("E-TARGETS", what, f"write last_blocks = {count} or less." if count else "leave it out.")


def _freeze_before(model: nn.Module, blocks: int) -> None:
    """Freeze all that comes before the last blocks. A tied head is the embedding, which comes before them."""
    names = [n for n, _ in model.named_parameters()]
    for (_, p), number in zip(model.named_parameters(), from_last(names), strict=True):
        p.requires_grad_(p.requires_grad and number <= blocks)


def _with_lora(model: nn.Module, section: TrainableSection, key: Key, own: bool, shapes: nn.Module) -> nn.Module:
    with suppress(ImportError):  # peft imports it where it is installed.
        import_bitsandbytes()
    from peft import LoraConfig, get_peft_model  # The import takes seconds, and only LoRA needs it.

    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        use_dora=section.magnitudes,
        use_rslora=section.scaling == "root",
        lora_dropout=0.0,
        target_modules=_targets(shapes, section.targets, section.last_blocks),
        modules_to_save=_whole(shapes, section.modules_to_save) or None,
        fan_in_fan_out=any(_is_conv1d(m) for m in model.modules()),
        task_type="CAUSAL_LM",
    )
    refused = f"trainable.targets = {section.targets}: peft refuses"
    fix = f'take others of these, or targets = ["{ALL_LINEAR}"]: {_listed(_linear(model))}.'
    with seeded(derive(key, "lora")), warnings.catch_warnings(), foreign(ModelError, "E-TARGETS", refused, fix):
        warnings.simplefilter("ignore", FutureWarning)  # peft calls a deprecated name of transformers.
        adapted = get_peft_model(model, config)
        names = [f"fold{i}" for i in range(1, section.folds if section.rule == "reffa" else 1)] + [OWN] * own
        for name in names:
            adapted.add_adapter(name, config)
        if names:
            adapted.base_model.set_adapter([*adapted.active_adapters, *names])
    _check_rank(adapted, section.rank)
    return adapted


def _check_rank(adapted: nn.Module, rank: int) -> None:
    """Refuse a rank above that of every adapted matrix. Raises ModelError(E-TARGETS)."""
    layers = [m for m in adapted.modules() if hasattr(m, "lora_A") and hasattr(m, "in_features")]
    largest = max((min(m.in_features, m.out_features) for m in layers), default=rank)
    if rank > largest:
        what = f"trainable.rank = {rank} is above the rank of every matrix that gets an adapter, {largest} at most."
        raise ModelError("E-TARGETS", what, f"write rank = {largest} or less; a sixteenth of it is common.")


def _targets(model: nn.Module, asked: list[str], blocks: int) -> list[str] | str:
    """Choose the modules for LoRA among those that the recipe names: the ones that text runs through.

    ``blocks`` > 0 takes those in the last so many blocks and behind them.

    ``all-linear`` means every linear layer except the output head, as in peft, and except those that peft refuses in
    Mamba. A name is passed on as it is where all its modules count. Otherwise their full names replace it. (For a
    plain ``all-linear`` peft also adapts the fused experts of the architectures that it knows.)
    """
    able = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding) or _is_conv1d(m)]
    live, chosen = called_modules(model), []
    names = [n for n, _ in model.named_modules()]
    early = {n for n, number in zip(names, from_last(names), strict=False) if number > blocks > 0}
    for target in asked:
        found = [n for n in able if n == target or n.endswith(f".{target}")]
        if target == ALL_LINEAR:
            found = _linear(model)
        elif not found:
            raise _no_match("trainable.targets", target, {n.rsplit(".", 1)[-1] for n in able})
        read = [n for n in found if module_pattern(n) in live]
        if not set(read) - early and set(read) & early:
            what = f"trainable.targets: no `{target}` is in the last {blocks} blocks."
            raise ModelError("E-TARGETS", what, "raise trainable.last_blocks, or name other modules.")
        read = [n for n in read if n not in early]
        if not read:
            what = f"trainable.targets: no text runs through `{target}`. An adapter there would change nothing."
            known = [n for n in able if module_pattern(n) in live]
            raise ModelError("E-TARGETS", what, f"the model has: {_listed(known)}.")
        if asked == [ALL_LINEAR] and len(read) == len(found) and not _barred(model):
            return ALL_LINEAR
        chosen += read if target == ALL_LINEAR or len(read) < len(found) else [target]
    return chosen


def _whole(model: nn.Module, asked: list[str]) -> list[str]:
    """Find the modules that train whole beside adapters, by their full names.

    Raises:
        ModelError: E-TARGETS for a name that matches nothing, for a module made of others, for one that text does not
            run through, and for one that shares its weights with another.
    """
    live, chosen = called_modules(model), []
    own = {n: m for n, m in model.named_modules() if m._parameters}
    for wanted in asked:
        found = [n for n in own if n == wanted or n.endswith(f".{wanted}")]
        if not found:
            raise _no_match("trainable.modules_to_save", wanted, {n.rsplit(".", 1)[-1] for n in own})
        what = ""
        if unread := [n for n in found if module_pattern(n) not in live]:
            what = f"no text runs through `{unread[0]}`. Training it would change nothing."
        elif tied := [n for n in found if _tied(model, list(own[n].parameters()))]:
            what = f"`{tied[0]}` shares its weights with another module, and one of the two would keep the old ones."
        if what:
            raise ModelError("E-TARGETS", f"trainable.modules_to_save: {what}", "leave it out, or name other modules.")
        chosen += found
    return chosen


def _linear(model: nn.Module) -> list[str]:
    """Return the names of the linear layers that ``all-linear`` means."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        n for n, m in model.named_modules()
        if (isinstance(m, nn.Linear) or _is_conv1d(m)) and m is not head and n.rsplit(".", 1)[-1] not in _barred(model)
    ]  # fmt: skip


def _barred(model: nn.Module) -> set[str]:
    return {"out_proj"} if getattr(model.config, "model_type", None) in MAMBA else set()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted({n.rsplit(".", 1)[-1] for n in names})[:12])


def without_adapter(model: nn.Module) -> dict[str, int]:
    """Count the weights of an adapted model that no adapter changes, by the pattern of their name. Matrices only.

    A module that trains whole is not among them, and neither are the weights that it replaces. Experts that share one
    tensor often are, because LoRA adapts modules and that tensor is not one.
    """
    counts: Counter[str] = Counter()
    for name, p in model.named_parameters():
        if p.ndim > 1 and not factor(name) and not any(part in name for part in ADAPTED):
            counts[module_pattern(name.replace(PEFT_PREFIX, ""))] += count(p)
    return dict(counts)


def _fix_a(model: nn.Module, key: Key) -> None:
    """Fix each factor A for FFA-LoRA and ReFFA: random with orthonormal rows, the same on all devices.

    Only B is trained. Then mean(B_i A) = mean(B_i) A exactly, noise on B enters the product once instead of squared,
    and half as much travels. Rows are orthonormal (columns where the rank is larger than the layer's width), so B's
    noise reaches the product undistorted.
    Source: Sun et al. 2024, arXiv:2403.12313 (FFA-LoRA).
    """
    with torch.no_grad():
        for name, p in model.named_parameters():
            if factor(name) != "A":
                if factor(name):
                    p.zero_()  # peft starts B of an embedding at random, because A starts at zero there.
                continue
            p.copy_(_orthonormal(p.shape, derive(key, "ffa", name.replace(PEFT_PREFIX, ""))))
            p.requires_grad_(False)


def _fix_both(model: nn.Module, key: Key) -> None:
    """Fix both factors for Fed-SB: A with orthonormal rows and B with orthonormal columns, the same on all devices."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if factor(name):
                p.copy_(_orthonormal(p.shape, derive(key, "fed_sb", name.replace(PEFT_PREFIX, ""))))


def _orthonormal(shape: torch.Size, key: Key) -> torch.Tensor:
    """Draw a matrix whose shorter side is orthonormal."""
    draw = torch.from_numpy(generator(key).standard_normal((max(shape), min(shape))))
    q, r = torch.linalg.qr(draw)
    q = q * torch.sign(torch.diagonal(r))  # The result does not depend on the library's choice of signs.
    return q.T if shape[0] <= shape[1] else q


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"  # This is GPT-2's transposed linear layer.


def _no_match(where: str, asked: str, known: Iterable[str]) -> ModelError:
    known = sorted(set(known))
    near = difflib.get_close_matches(asked, known, n=1, cutoff=0.4)
    hint = f"did you mean `{near[0]}`?" if near else f"the model has: {', '.join(known[:12])}."
    return ModelError("E-TARGETS", f"{where}: `{asked}` matches nothing in the model.", hint)
