"""A personal model is read as it was written, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgewise.core.errors import StoreError
from edgewise.drivers.storage.personal_models import PersonalModel, keep_personal, personal_model

MODEL = PersonalModel("HAMLET", "ab" * 32, "fine_tune", np.arange(50, dtype=np.float32))


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    keep_personal(tmp_path, MODEL)
    found = personal_model(tmp_path, "HAMLET")
    assert found is not None
    assert (found.device, found.made_from, found.method) == ("HAMLET", "ab" * 32, "fine_tune")
    np.testing.assert_array_equal(found.params, MODEL.params)


@pytest.mark.parametrize("old", [np.float32(7.0).tobytes(), b"HAMLET", b"abab", b"fine_tune", b"sha256"])
def test_one_changed_byte_is_an_error_with_a_name(tmp_path: Path, old: bytes) -> None:
    path = keep_personal(tmp_path, MODEL)
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, old[:-1] + bytes([old[-1] ^ 1]), 1))
    with pytest.raises(StoreError, match=r"the personal model .* cannot be read") as e:
        personal_model(tmp_path, "HAMLET")
    assert e.value.code == "E-CHECKPOINT"
