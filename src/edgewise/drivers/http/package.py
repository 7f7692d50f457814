"""Packages of a model's files for devices. A manifest names the files and their digests, and is a blob like each of
them.

    {"config.json": "5f2a…", "model.safetensors": "c01b…", "tokenizer.json": "9e77…"}

The run's facts name the model by the digest of its manifest (``model.base = "sha256:…"``), so the signature on the
facts covers every byte of it. The files are settings, tokenizers and safetensors. Nothing in them is executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from edgewise.core.digests import is_digest
from edgewise.core.errors import DecodeError

PREFIX = "sha256:"
OWN = "module:"  # prefix of a layout's digest, for a model whose code devices have and whose files do not travel
MANIFEST_BYTES = 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.(json|model|txt|jinja|safetensors)")


def dump_package(files: Mapping[str, str]) -> bytes:
    """Encode the manifest of files: name -> digest."""
    return json.dumps(dict(files), sort_keys=True, separators=(",", ":")).encode("ascii")


def parse(raw: bytes) -> Mapping[str, str]:
    """Decode the manifest of a package of model files.

    Raises:
        DecodeError: E-FACTS for bytes that ``dump_package`` does not write.
    """
    try:
        files = json.loads(raw.decode("ascii")) if len(raw) <= MANIFEST_BYTES else None
    except (ValueError, RecursionError):
        files = None
    if not isinstance(files, dict) or not files or not all(map(_sound, files.items())) or dump_package(files) != raw:
        raise DecodeError("E-FACTS", "the list of the model's files is malformed.", "ask the operator of the server.")
    return files


def package_digest_in(base: str) -> str | None:
    """Return the manifest's digest in ``model.base``. None where it names no package."""
    digest = base.removeprefix(PREFIX)
    return digest if base.startswith(PREFIX) and is_digest(digest) else None


def is_packed_file(name: str) -> bool:
    """Return whether a file of this name belongs in a package."""
    return _NAME.fullmatch(name) is not None


def _sound(item: tuple[object, object]) -> bool:
    name, digest = item
    return isinstance(name, str) and is_packed_file(name) and isinstance(digest, str) and is_digest(digest)
