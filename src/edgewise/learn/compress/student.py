"""Make the student of a teacher: choose its configuration by size, or read it, and copy the teacher's layers.

student = make_student(teacher, "4M", Path(), key)
student.model                      # float32, ready to train
student.origin                     # "layers 0, 3 of the teacher's 4"
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from edgewise.core.errors import ModelError
from edgewise.core.foreign import foreign
from edgewise.core.keys import Key, derive
from edgewise.learn.models.architecture import sizes, text_config
from edgewise.learn.models.load import Loaded, bounded_config, load
from edgewise.learn.seeded import seeded
from edgewise.learn.text import tokens

UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMB]?)", re.IGNORECASE)
NEAR, FAR = 0.1, 0.25  # Shares of the wanted size: the teacher's own layers are taken, and a size is refused.
SHAPE = 40  # Width of a new student per layer.
LAYER = re.compile(r"^(.*?\.)?(\d+)\.(.*)$")  # The first number in a name is that of the layer.
CONTEXT = 2048  # Tokens that a new student reads where its teacher has no limit.


class Student(NamedTuple):
    """A student before its first step.

    Attributes:
        model: float32.
        origin: its weights' origin, as a clause.
        copied: number of parameters that the teacher gave it.
        trained: True where it has weights of its own.
    """

    model: nn.Module
    origin: str
    copied: int = 0
    trained: bool = False


def make_student(teacher: Loaded, to: str, folder: Path, key: Key) -> Student:
    """Make a student model for distillation.

    Args:
        teacher: it decides the vocabulary, and gives layers where shapes allow.
        to: a number of parameters (``4M``), a ``config.json``, or a folder. A folder with weights is a trained student.
        folder: the folder where a relative ``to`` starts.
        key: decides the weights that are drawn.
    Raises:
        ModelError: E-DISTILL for a size that no student has, another tokenizer or another vocabulary. E-MODEL for a
            configuration or a folder that cannot be read.
    Rules:
        A size takes the teacher's own architecture with fewer layers where that is within a tenth of it. Otherwise it
        takes a Llama with tied embeddings, the teacher's vocabulary, a feed-forward part of 8/3 of the width, and, of
        all within 5 % of the size, the one whose width is nearest 40 times its number of layers.
        A student that is not trained yet takes the teacher's embeddings, head, norms and evenly spaced layers, each
        where its shapes are the teacher's. The rest is drawn at random.
    """
    place = folder / Path(to).expanduser()
    if place.is_dir() and any(place.glob("*.safetensors")):
        return _student_from_folder(teacher, place)
    found = SIZE.fullmatch(to.strip())
    if place.is_dir() or place.suffix == ".json":
        config = _read(place / "config.json" if place.is_dir() else place)
        if place.is_dir() and (place / "tokenizer.json").is_file():
            same_tokenizer(teacher, tokens.load_tokenizer(place), str(place))
    elif found:
        config = student_of_size(teacher, round(float(found[1]) * UNITS[found[2].upper()]))
    else:
        what = f"{to!r:.80} is neither a number of parameters nor a config.json nor the folder of a model."
        raise ModelError("E-DISTILL", what, "write a size such as 4M, or name a file or a folder.")
    return _started(teacher, config, key)


def _student_from_folder(teacher: Loaded, place: Path) -> Student:
    one = load(str(place.resolve()), Path())
    same_tokenizer(teacher, one.tokens, str(place))
    same_vocabulary(teacher, sizes(one.model).vocabulary, str(place))
    return Student(one.model, f"the weights in {place.name}", trained=True)


def same_tokenizer(teacher: Loaded, own: tokens.Tokens, name: str) -> None:
    """Refuse a model with another tokenizer than the teacher's. Raises ModelError(E-DISTILL)."""
    if own.digest != teacher.tokens.digest:
        what = (
            f"{name} has another tokenizer than the teacher {teacher.name}, so their predictions are of other tokens."
        )
        fix = "take a model with the teacher's tokenizer; `edgewise distill TEACHER --to SIZE` makes such a student."
        raise ModelError("E-DISTILL", what, fix)


def same_vocabulary(teacher: Loaded, own: int, name: str) -> None:
    """Refuse a model with another number of tokens than the teacher's. Raises ModelError(E-DISTILL)."""
    wanted = sizes(teacher.model).vocabulary
    if own != wanted:
        what = f"{name} has a vocabulary of {own} tokens, the teacher {teacher.name} one of {wanted}."
        raise ModelError("E-DISTILL", what, f"take a model with vocab_size = {wanted}.")


def _read(path: Path) -> Any:
    from transformers import AutoConfig

    bounded_config(path)
    with foreign(ModelError, "E-MODEL", f"{path} is no configuration of a model", "save it with save_pretrained."):
        return AutoConfig.for_model(**json.loads(path.read_bytes()))


def student_of_size(teacher: Loaded, wanted: int) -> Any:
    """Choose the configuration of about so many parameters, by the rules of ``make_student``. Raises
    ModelError(E-DISTILL)."""
    found, most = sizes(teacher.model), sum(p.numel() for p in teacher.model.parameters())
    if wanted >= most:
        what = f"the student should have {wanted:,} parameters, and its teacher {teacher.name} has {most:,}."
        raise ModelError("E-DISTILL", what, "take a smaller size.")
    if (fewer := _fewer_layers(teacher, wanted)) is not None:
        return fewer
    candidates = list(_llamas(found.vocabulary, most))
    near = [c for c in candidates if abs(c[0] - wanted) <= 0.05 * wanted]
    chosen = min(near, key=lambda c: abs(math.log(c[1] / c[2] / SHAPE)), default=None) or min(
        candidates, key=lambda c: abs(c[0] - wanted), default=None
    )
    if chosen is None or abs(chosen[0] - wanted) > FAR * wanted:
        least = min((c[0] for c in candidates), default=most)
        what = f"no student of {wanted:,} parameters has the teacher's vocabulary of {found.vocabulary:,} tokens."
        raise ModelError("E-DISTILL", what, f"take {least:,} or more, or name a config.json.")
    return _llama(teacher, *chosen[1:])


def _fewer_layers(teacher: Loaded, wanted: int) -> Any:
    """Return the teacher's configuration with fewer layers, where one is near enough. None otherwise."""
    config, layers = teacher.model.config, sizes(teacher.model).layers
    if text_config(config) is not config or layers < 2:
        return None
    whole, one = (_parameters(c) for c in (config, shortened_config(config, [0])))
    each = (whole - one) / (layers - 1)
    n = round(1 + (wanted - one) / each) if each else 0
    if not 1 <= n < layers or abs(one + (n - 1) * each - wanted) > NEAR * wanted:
        return None
    return shortened_config(config, spaced_layers(n, layers))


def spaced_layers(n: int, of: int) -> list[int]:
    """Choose n of some layers, evenly spaced, with the first and the last. One layer is the first."""
    return [round(i * (of - 1) / max(1, n - 1)) for i in range(n)]


def shortened_config(config: Any, layers: Sequence[int]) -> Any:
    """Return a model's configuration with only these layers. Lists with an entry for each layer are shortened too."""
    total, made = config.num_hidden_layers, copy.deepcopy(config)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == total and not name.startswith("_"):
            setattr(made, name, [value[i] for i in layers])
    made.num_hidden_layers = len(layers)
    return made


def _parameters(config: Any) -> int:
    """Count the parameters of a configuration without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in _from(config).parameters())


def _llamas(vocabulary: int, most: int) -> Iterator[tuple[int, int, int]]:
    """Yield parameters, width and layers of all Llamas that a size may choose."""
    for width in (*range(32, 512, 32), *range(512, 4096, 64), *range(4096, 8193, 128)):
        inner, fixed = _inner(width), vocabulary * width + width
        for layers in range(2, max(3, width // 16 + 1)):
            count = fixed + layers * (4 * width**2 + 3 * width * inner + 2 * width)
            if width / layers <= 128 and count < most:
                yield count, width, layers


def _inner(width: int) -> int:
    return 32 * math.ceil(width * 8 / 3 / 32)


def _llama(teacher: Loaded, width: int, layers: int) -> Any:
    from transformers import LlamaConfig

    config, found = text_config(teacher.model.config), sizes(teacher.model)
    head = 32 if width < 512 else 64 if width < 4096 else 128
    special = {key: getattr(config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return LlamaConfig(
        vocab_size=found.vocabulary, hidden_size=width, intermediate_size=_inner(width), num_hidden_layers=layers,
        num_attention_heads=width // head, head_dim=head, max_position_embeddings=found.context or CONTEXT,
        tie_word_embeddings=True, **special,
    )  # fmt: skip


def _from(config: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    with foreign(ModelError, "E-MODEL", "transformers makes no language model of this configuration", "correct it."):
        made: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return made


def _started(teacher: Loaded, config: Any, key: Key) -> Student:
    """Make an untrained student, and give it what fits of the teacher."""
    with seeded(derive(key, "student")):
        model = _from(config)
    same_vocabulary(teacher, sizes(model).vocabulary, "the student's configuration")
    made, total = sizes(model), sizes(teacher.model).layers
    shape = f"{type(model).__name__} of {made.layers} layers and width {made.hidden}"
    if type(model) is not type(teacher.model):
        return Student(model, f"a {shape}, drawn at random")
    taken, layers = _copied(model, teacher.model, spaced_layers(made.layers, total))
    if not taken:
        return Student(model, f"a {shape}, drawn at random")
    count = sum(p.numel() for p in model.parameters())
    said = f"layers {', '.join(map(str, layers))} of the teacher's {total}" if layers else "no layer of the teacher"
    share = "" if taken == count else f", {100 * taken / count:.0f} % of its parameters in all, the rest at random"
    return Student(model, f"a {shape}: {said}{share}", taken)


def _copied(model: nn.Module, teacher: nn.Module, layers: Sequence[int]) -> tuple[int, list[int]]:
    """Copy the teacher's tensors where all of a layer fit. Returns the number of parameters, and the layers."""
    given = dict(teacher.named_parameters())
    groups: dict[int | str, list[tuple[nn.Parameter, torch.Tensor | None]]] = {}
    for name, p in model.named_parameters():
        numbered = LAYER.match(name)
        i = int(numbered[2]) if numbered else -1
        numbered = numbered if 0 <= i < len(layers) else None
        source = f"{numbered[1] or ''}{layers[i]}.{numbered[3]}" if numbered else name
        groups.setdefault(i if numbered else name, []).append((p, given.get(source)))
    count, whole = 0, []
    with torch.no_grad():
        for group, pairs in groups.items():
            if any(source is None or source.shape != p.shape for p, source in pairs):
                continue
            for p, source in pairs:
                p.copy_(source)
            count += sum(p.numel() for p, _ in pairs)
            whole += [layers[group]] if isinstance(group, int) else []
    return count, whole
