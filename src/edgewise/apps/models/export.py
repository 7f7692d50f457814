"""Export a run's model: a transformers folder, a PEFT adapter, a GGUF file, or tensors by name, with a model card.

The written files are read back and compared with the trained model. The folder appears whole or not at all.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgewise.apps.models import model_card, released
from edgewise.apps.models.released import ReleasedModel
from edgewise.apps.report import summary
from edgewise.apps.runs.run_dirs import opened
from edgewise.core.errors import EdgewiseError, StoreError
from edgewise.core.foreign import reason
from edgewise.core.vector import Spec, Vector, to_bytes, unpack
from edgewise.core.vector import digest as vector_digest
from edgewise.drivers.storage.personal_models import personal_model

if TYPE_CHECKING:
    from edgewise.learn.models.exported import LogitDifferences

FORMATS = ("peft", "merged", "gguf", "gguf-adapter", "tensors")
FLOATS = ("base", "float32", "bfloat16", "float16")
DTYPES = {"merged": FLOATS, "gguf": (*FLOATS, "q8_0"), "gguf-adapter": ("base", "float32", "float16")}
ADAPTERS = ("peft", "gguf-adapter")
TENSORS, MODEL, ADAPTER = "trained.safetensors", "model.gguf", "adapter.gguf"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ExportRequest(NamedTuple):
    """A request for an export.

    Attributes:
        to: one of ``FORMATS``.
        played: the number of rounds after which the model is wanted. None: the model that counts in a complete run.
        base: a folder, or ``hub:owner/name``, that replaces the recipe's ``model.base``. None: as in the recipe.
        dtype: of a merged model's or a GGUF file's weights, of ``DTYPES``. ``base``: as the base has them, and float32
            for an adapter.
        with_base: write a base folder beside the adapter.
        device: the device whose personal model is written, in place of the run's. None: the run's.
    """

    to: str = "merged"
    played: int | None = None
    base: str | None = None
    dtype: str = "base"
    with_base: bool = False
    device: str | None = None


def write_export(run_dir: Path, dest: Path, wanted: ExportRequest) -> dict[str, Any]:
    """Export the model of a run to a folder.

    Args:
        run_dir: the folder of a run, or of a server, whose promoted model is then taken.
        dest: a folder that does not exist or is empty.
    Returns:
        Plain JSON: ``dest``, ``to``, ``rounds``, ``model_sha256``, ``files``. For models and adapters also ``dtype``
            and ``logits``, the largest differences (``loaded``, ``rounding``, ``moved``). For GGUF also ``types``, the
            number of tensors by type, and for an adapter ``rounding`` of its numbers in place of ``logits``.
    Raises:
        EdgewiseError: E-EXPORT with the reason. E-RESUME without a run. E-MODEL if the base cannot be loaded. E-DISK.
    Guarantees:
        A model that transformers or peft loads from ``dest`` gives the logits of the trained model. Otherwise nothing
        is written.
    """
    _check_request(wanted)
    dest = dest.resolve()  # The path "." has no name.
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise _refused_export(f"{dest} is not empty", "give a new folder; nothing is ever overwritten.")
    one = released.released_model(run_dir, wanted.played)
    if wanted.to in ADAPTERS and not one.recipe.trainable.adapts:
        what = f'an adapter needs trainable.kind = "lora"; this run trained "{one.recipe.trainable.kind}"'
        raise _refused_export(what, "--to merged or --to gguf.")
    if wanted.to in ADAPTERS and one.recipe.trainable.moves_base:
        what = f'trainable.rule = "{one.recipe.trainable.rule}" changed the base itself, which no adapter holds'
        raise _refused_export(what, "--to merged or --to gguf.")
    if wanted.to == "gguf-adapter" and one.recipe.trainable.modules_to_save:
        what = f"a GGUF adapter holds no whole modules, and this run trained {one.recipe.trainable.modules_to_save}"
        raise _refused_export(what, "--to gguf, --to peft or --to merged.")
    if wanted.device is not None:
        one = _with_personal_model(one, wanted, wanted.device)
    with opened(one.run_dir) as store:
        found = summary.build(store)
    coefficients = one.directions is not None
    card = model_card.ModelCard(found, one.recipe, wanted.to, one.played, one.digest, coefficients, wanted.device)
    with whole_folder(dest, "--dest", "the run is whole") as part:
        more = (
            _write_tensors(one.facts, one.params, part, card)
            if wanted.to == "tensors"
            else _write_model(one, part, wanted, card)
        )
    files = sorted(str(p.relative_to(dest)) for p in dest.rglob("*") if p.is_file())
    return {
        "dest": str(dest),
        "to": wanted.to,
        "rounds": one.played,
        "model_sha256": one.digest,
        "files": files,
        **more,
    }


def _with_personal_model(one: ReleasedModel, wanted: ExportRequest, device: str) -> ReleasedModel:
    """Put a device's personal model in the place of the run's. Raises EdgewiseError(E-EXPORT) where it has none."""
    own = personal_model(one.run_dir, device)
    if own is None:
        what = f"device {device!r:.60} has no personal model in {one.run_dir}"
        raise _refused_export(what, "run a recipe with a section [personal], with room for it in personal.keep_mb.")
    if wanted.played is not None:
        raise _refused_export("a personal model is made after the last round", "leave out --round.")
    digest = vector_digest(to_bytes(own.params))
    return one._replace(params=own.params, digest=digest, directions=None)


def _refused_export(what: str, fix: str) -> EdgewiseError:
    """Make the error for an export that cannot be."""
    return EdgewiseError("E-EXPORT", f"{what}.", fix)


def _check_request(wanted: ExportRequest) -> None:
    """Raise EdgewiseError if a request names a format or a type that there is not, or names by empty text."""
    if wanted.to not in FORMATS:
        raise _refused_export(f"there is no format {wanted.to!r}", f"--to {' or '.join(FORMATS)}.")
    if "" in (wanted.base, wanted.device):
        raise _refused_export("an empty text names no base and no device", "leave the field out.")
    if wanted.dtype not in DTYPES.get(wanted.to, ("base",)):
        if wanted.to not in DTYPES:
            what = f"--dtype is for {' and '.join(DTYPES)}; --to {wanted.to} writes what was trained in float32"
            raise _refused_export(what, "leave out --dtype.")
        found = ", ".join(DTYPES[wanted.to])
        raise _refused_export(f"--to {wanted.to} has no dtype {wanted.dtype!r:.40}", f"take one of: {found}.")
    if wanted.with_base and wanted.to != "peft":
        raise _refused_export("--with-base is for --to peft; a merged model needs no base", "leave out --with-base.")
    if wanted.base is not None and wanted.to == "tensors":
        raise _refused_export("--to tensors writes what was trained, and reads no base", "leave out --base.")


@contextmanager
def whole_folder(dest: Path, option: str, rest: str) -> Iterator[Path]:
    """Make a folder beside ``dest`` that becomes ``dest`` on success, and is removed otherwise.

    Args:
        dest: a folder that does not exist or is empty.
        option: the option that names it, for errors.
        rest: what an error of the disk leaves, as a clause.
    Raises:
        StoreError: E-DISK for an error of the disk, whichever library met it.
    """
    from safetensors import SafetensorError

    made: list[str] = []
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        made.append(tempfile.mkdtemp(prefix=f".{dest.name}.", suffix=".part", dir=dest.parent))
        part = Path(made[0])
        yield part
        _open_to_others(part)
        if dest.exists():
            dest.rmdir()
        part.rename(dest)
    except (OSError, SafetensorError) as e:  # safetensors reports a full disk with its own exception.
        full = getattr(e, "errno", None) in FULL or "No space left" in str(e) or "too large" in str(e)
        where = "free some space" if full else f"give another {option}"
        raise StoreError("E-DISK", f"cannot write {dest}: {reason(e)}.", f"{where}; {rest}.") from e
    finally:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)


def _open_to_others(folder: Path) -> None:
    """Give a folder and its files the modes that the umask asks for. Some libraries write for the owner only."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _write_tensors(facts: Mapping[str, Any], params: Vector, part: Path, card: model_card.ModelCard) -> dict[str, Any]:
    """Write the trained tensors by name, for your own trainers and tools."""
    from safetensors.numpy import save_file

    if not facts.get("spec"):
        raise _refused_export("the run does not record the names of what it trained", "run it again with this version.")
    layouts = (facts[key] for key in ("spec", "whole_spec") if key in facts)
    specs = [Spec.of([(name, tuple(shape), dtype) for name, shape, dtype in layout]) for layout in layouts]
    spec = next((one for one in specs if params.shape == (one.dim,)), specs[0])
    if params.shape != (spec.dim,):
        raise _refused_export(
            f"the run's vector has {params.size} numbers, its layout {spec.dim}", "the run is damaged."
        )
    save_file(unpack(params, spec), part / TENSORS)
    (part / "README.md").write_text(card.text(), encoding="utf-8")
    return {}


def _write_model(one: ReleasedModel, part: Path, wanted: ExportRequest, card: model_card.ModelCard) -> dict[str, Any]:
    """Write the model in a format that other programs open."""
    one.refuse_own_models("--to tensors writes what was trained by name; load_state_dict takes " + TENSORS + ".")
    from edgewise.learn.models import exported

    base, place = one.base(wanted.base)
    t = exported.rebuilt_for_export(one.recipe, base, place, one.facts, one.params, one.directions, one.cache_dir)
    origin, bundled = t.loaded.folder, base == "bundled"
    beside = wanted.to == "peft" and (bundled or wanted.with_base)
    name = model_card.base_name(base)
    more: dict[str, Any] = {}
    if wanted.to == "peft":
        dtype, local = "float32", not base.startswith("hub:")
        named = f"./{exported.BASE}" if beside else name
        checked = exported.write_adapter(t, part, named, None if beside or local else t.loaded.commit, beside)
    elif wanted.to == "merged":
        dtype = exported.stored_dtype(origin) if wanted.dtype == "base" else wanted.dtype
        checked = exported.write_merged(t, part, dtype)
    else:
        adapter = wanted.to == "gguf-adapter"
        own = "float32" if adapter else exported.stored_dtype(origin)
        dtype = own if wanted.dtype == "base" else wanted.dtype
        checked, more["types"] = exported.write_gguf(
            t, part / (ADAPTER if adapter else MODEL), dtype, card.keys(name), adapter
        )
    about = model_card.About(base, name, t.loaded.commit, beside, dtype, checked, model_card.said_of(origin))
    (part / "README.md").write_text(card.text(about), encoding="utf-8")
    if wanted.to == "gguf-adapter":  # Its numbers are compared, and no logits.
        return {"dtype": dtype, "rounding": checked.rounding, **more}
    return {"dtype": dtype, "logits": _checked_facts(checked), **more}


def _checked_facts(checked: LogitDifferences) -> dict[str, float]:
    """List what the check of an export found."""
    return dict(checked._asdict())
