"""Download a model's files from the Hugging Face hub, at one commit."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from edgewise.core.errors import ModelError
from edgewise.core.foreign import foreign

# Training and export read settings, tokenizer and chat templates, and the model card for licence and language.
SMALL = ["*.json", "*.model", "*.txt", "*.jinja", "README.md", "LICENSE*"]
# These folders hold the same model for other programs.
APART = ["original/*", "onnx/*", "openvino/*", "metal/*", "coreml/*", "checkpoint-*"]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
COMMIT = re.compile(r"[0-9a-f]{40}")
FIX = "download it where there is a network and give the folder as model.base, or use the bundled model."


def hub_weights(folder: Path) -> list[Path]:
    """List the weights that ``transformers`` reads from a folder: one file, or the parts of an index."""
    whole = folder / WEIGHTS
    one = whole.is_file() and not (folder / INDEX).is_file()
    return [whole] if one else sorted(folder.glob("*.safetensors"))


def split_hub_name(asked: str) -> tuple[str, str]:
    """Split ``"owner/name@revision"`` into repository and revision. An empty revision means the main branch."""
    repo, _, revision = asked.partition("@")
    return repo, revision


def fetch_hub_model(asked: str) -> Path:
    """Download a model, or find it in the cache of the hub's client.

    Of the weights it takes only those that ``transformers`` reads: ``model.safetensors``, or the parts that its index
    lists. Repositories often hold the same weights a second time (``consolidated.safetensors``, ``original/``).

    Args:
        asked: ``owner/name`` or ``owner/name@revision``. A revision is a branch, a tag or a commit.
    Returns:
        The folder of one commit. Its name is the commit (``hub_commit``).
    Raises:
        ModelError: E-MODEL-REMOTE without a network, without access, or for a name that the hub does not know.
    """
    repo, revision = split_hub_name(asked)
    folder = _snapshot(asked, repo, revision, SMALL)
    names = [WEIGHTS]
    if (folder / INDEX).is_file():
        with foreign(ModelError, "E-MODEL", f"hub:{asked}: {INDEX} cannot be read", "take another revision."):
            names = sorted({str(name) for name in json.loads((folder / INDEX).read_bytes())["weight_map"].values()})
    return _snapshot(asked, repo, hub_commit(folder) or revision, [*SMALL, *names])


def hub_commit(folder: Path) -> str | None:
    """Return the commit of a folder in the hub's cache, 40 hexadecimal digits. None for another folder."""
    return folder.name if COMMIT.fullmatch(folder.name) and folder.parent.name == "snapshots" else None


def _snapshot(asked: str, repo: str, revision: str, wanted: list[str]) -> Path:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    with foreign(ModelError, "E-MODEL-REMOTE", f"hub:{asked}", FIX):
        try:
            return Path(
                snapshot_download(
                    repo, revision=revision or None, allow_patterns=wanted, ignore_patterns=APART,
                    local_files_only=offline, etag_timeout=10,
                )
            )  # fmt: skip
        except LocalEntryNotFoundError:
            if not offline:
                raise
    raise ModelError("E-MODEL-REMOTE", f"hub:{asked}: HF_HUB_OFFLINE is set and the model is not in the cache.", FIX)
