"""Intel TDX and SGX quotes, verified by the library ``dcap-qvl`` with the maker's collateral at hand.

Collateral (revocation lists, versions, identities) travels with the evidence, is signed by Intel, and must be valid at
the time of verification. Nothing is fetched.
Source: Intel TDX DCAP Quoting Library API, appendix A; Intel SGX DCAP, appendix A.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from edgewise.core.errors import DecodeError
from edgewise.crypto.attest.evidence import Evidence, Facts, refused

_REGISTERS = {
    "tdx": ("mr_td", "rt_mr0", "rt_mr1", "rt_mr2", "rt_mr3", "mr_seam", "mr_config_id", "mr_owner"),
    "sgx": ("mr_enclave", "mr_signer"),
}


def verify(evidence: Evidence, now: datetime) -> Facts:
    """Verify a quote with the collateral beside it. Raises DecodeError(E-ATTEST), or E-MISSING without the library."""
    try:
        import dcap_qvl
    except ImportError:
        what = "quotes of TDX and SGX need the package dcap-qvl."
        raise DecodeError("E-MISSING", what, "install it: pip install 'edgewise[attest]'.") from None
    if evidence.collateral is None:
        raise refused("its quote comes without collateral")
    try:
        collateral = dcap_qvl.QuoteCollateralV3.from_json(evidence.collateral)
        found = json.loads(dcap_qvl.verify(evidence.document, collateral, int(now.timestamp())).to_json())
    except Exception as e:  # boundary: a foreign parser may raise anything about foreign bytes
        raise refused(f"its quote does not verify ({e!s:.200})") from None
    return _facts(evidence, found)


def _facts(evidence: Evidence, found: Mapping[str, Any]) -> Facts:
    """Read the registers of a verified quote, and refuse a quote of the other platform."""
    ((kind, body),) = found["report"].items()
    sgx = kind == "SgxEnclave"
    if sgx != (evidence.platform == "sgx"):
        raise refused(f"its quote is of another platform than {evidence.platform}")
    body = {**body.get("base", {}), **body} if isinstance(body, dict) else {}
    flags = int.from_bytes(bytes.fromhex(body["attributes" if sgx else "td_attributes"]), "little")
    registers = {name: body[name] for name in _REGISTERS[evidence.platform]}
    debug = bool(flags & (2 if sgx else 1))
    bound = bytes.fromhex(body["report_data"])
    return Facts(evidence.platform, bound, registers, debug, status=str(found["status"]))
