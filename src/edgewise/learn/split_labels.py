"""Bytes of labels and of documents' first tokens, which cross the cut beside activations.

Shape suffixes: B = batch, T = block length, V = vocabulary.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from edgewise.core.errors import DecodeError
from edgewise.kernels.bits import pack_bits, packed_bytes, unpack_bits
from edgewise.learn.models.load import token_positions

T = TypeVar("T")


def given_split_part(value: T | None, lack: str) -> T:
    """Return a part of a message that its other side must send. Raises DecodeError(E-PAYLOAD) where it is left out."""
    if value is None:
        raise DecodeError("E-PAYLOAD", f"invalid payload: {lack}.")
    return value


def written_split_labels(y_BT: Tensor, vocabulary: int) -> bytes:
    """Pack next tokens, -1 among them, in ceil(log2(V + 1)) bits each."""
    return bytes(pack_bits((y_BT.cpu().numpy().reshape(-1) + 1).astype(np.uint32), vocabulary.bit_length()))


def read_split_labels(raw: bytes, size: tuple[int, int], vocabulary: int) -> Tensor:
    """Read int64[B, T] of ``written_split_labels``. Raises DecodeError(E-PAYLOAD)."""
    count, width = size[0] * size[1], vocabulary.bit_length()
    found = unpack_bits(memoryview(raw), width, count) if len(raw) == packed_bytes(count, width) else None
    if found is None or (found.size and int(found.max()) > vocabulary):
        raise DecodeError("E-PAYLOAD", "invalid payload: labels of the wrong length or out of range.")
    return torch.from_numpy(found.astype(np.int64) - 1).view(size)


def read_split_positions(raw: bytes, size: tuple[int, int]) -> Tensor:
    """Read int64[B, T] positions from the bit mask of documents' first tokens. Raises DecodeError(E-PAYLOAD)."""
    count = size[0] * size[1]
    if len(raw) != (count + 7) // 8:
        raise DecodeError("E-PAYLOAD", "invalid payload: a mask of the wrong length.")
    begins = np.unpackbits(np.frombuffer(raw, np.uint8), count=count).astype(bool)
    return token_positions(torch.from_numpy(begins).view(size))
