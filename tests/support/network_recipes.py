"""Changes of the toy's recipe for runs over the network, where single updates are hidden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ONCE: Mapping[str, Any] = {"privacy": "hidden", "round.rounds": 1, "round.deadline_s": 60.0}
_GRID = [{"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}]
MASKS: Mapping[str, Any] = {
    **_ONCE, "merge": {"kind": "secure_sum"},
    "stage": [{"kind": "weigh", "cap": 160}, {"kind": "clamp", "linf": 2.0}, *_GRID],
}  # fmt: skip
SHARES: Mapping[str, Any] = {**MASKS, "merge": {"kind": "shared_sum"}}
GATEWAY: Mapping[str, Any] = {  # two rounds of shares, for four devices
    **_ONCE, "merge": {"kind": "shared_sum"}, "stage": [{"kind": "clip", "l2": 8.0}, *_GRID],
    "trust.malicious_fraction": 0.0, "round.minimum": 0.6, "round.rounds": 2,
}  # fmt: skip
