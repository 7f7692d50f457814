"""The second server of runs with shared sums: ask a gateway for help, and tell devices its keys.

    gateway = sharing.address("3f2a...@https://gateway.example:9443")       # serve --gateway
    shares = sharing.arranged(service, gateway, plan, listing)              # when a run is made
    helper = sharing.helper(service, gateway, plan, listing, shares, stop)  # when it is played

A run stays with its gateway. The gateway may move to another address, but must keep its key and its folder.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgewise.core.errors import RecipeError, StoreError, TransportError
from edgewise.crypto.agree import public_half
from edgewise.drivers.http import home, share_keys
from edgewise.drivers.http.remote_helper import PATIENCE_S, RemoteHelper
from edgewise.drivers.http.service import Service
from edgewise.drivers.http.share_keys import ShareKey
from edgewise.drivers.storage.files import write_durably
from edgewise.plan.plan import Plan

LOG = logging.getLogger("edgewise")
FILE, SECRET = "shares.json", "leader.key"
SUBMIT_S = 20.0  # time that a person who submits waits for the gateway
LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a gateway. ``name`` is the fingerprint of its key. ``url`` is https://HOST:PORT."""

    name: str
    url: str


class ShareKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys to which devices of a run seal their shares, each signed by its server."""

    leader: ShareKey
    helper: ShareKey


@dataclass(frozen=True)
class Arranged:
    """The record of a run's second server. ``secret`` is the leader's HPKE key."""

    shares: ShareKeys
    secret: bytes = field(repr=False)

    def write(self, out: Path) -> None:
        """Write it into the run's folder. Raises StoreError(E-DISK)."""
        write_durably(out / SECRET, self.secret, owner_only=True)
        write_durably(out / FILE, msgspec.json.encode(self.shares))


def gateway_address(text: str) -> Address:
    """Read NAME@URL, as `edgewise gateway serve` prints it. Raises TransportError(E-REQUEST)."""
    name, _, url = text.partition("@")
    if len(name) != 32 or not set(name) <= set("0123456789abcdef"):
        what = f"{text:.200} does not begin with the fingerprint of a gateway."
        raise TransportError("E-REQUEST", what, "copy what `edgewise gateway serve` prints.")
    home.check_url(url, plain=False)
    return Address(name, url)


def load_arranged_helper(out: Path) -> Arranged | None:
    """Read the record from a run's folder. None: the run has one server. Raises StoreError(E-CHECKPOINT)."""
    if not (out / FILE).exists():
        return None
    try:
        shares = msgspec.json.decode((out / FILE).read_bytes(), type=ShareKeys)
        return Arranged(shares, (out / SECRET).read_bytes())
    except (OSError, msgspec.DecodeError) as e:
        raise StoreError("E-CHECKPOINT", f"the keys of {out} cannot be read: {e}.", "restore the folder.") from None


def arranged(service: Service, gateway: Address | None, plan: Plan, listing: bytes) -> Arranged | None:
    """Ask the gateway to help with a new run. None: the plan has one server.

    Raises RecipeError(E-COMBO) without a gateway, and TransportError and others as ``RemoteHelper.connect``.
    """
    if not plan.shared:
        return None
    if gateway is None:
        what = '[merge] kind = "shared_sum" needs a second server, and this server has none.'
        raise RecipeError("E-COMBO", what, 'start it with `--gateway NAME@URL`, or write kind = "secure_sum".')
    secret = secrets.token_bytes(32)
    with RemoteHelper.connect(gateway.name, gateway.url, service.identity, plan, listing, SUBMIT_S) as helper:
        helper_key = msgspec.convert(helper.statement, ShareKey)
    leader = share_keys.made_share_key(service.identity, share_keys.LEADER, plan.run, public_half(secret))
    return Arranged(ShareKeys(leader=leader, helper=helper_key), secret)


def connect_run_helper(
    service: Service,
    gateway: Address | None,
    plan: Plan,
    listing: bytes,
    known: Arranged,
    stop: Callable[[], None],
    patience_s: float = PATIENCE_S,
) -> RemoteHelper:
    """Connect to the gateway of a run that is played.

    Args:
        stop: called while the gateway is waited for. An error that it raises ends the waiting.
    Raises:
        TransportError: E-SERVER-KEY if the gateway is another one, or has lost the run's key. E-CONNECT.
    """
    if gateway is None:
        what = "this run has a second server, and this server was started without one."
        raise TransportError("E-CONNECT", what, "start it with `--gateway NAME@URL`, then resume the run.")

    def sleep(seconds: float) -> None:
        LOG.warning("run %.12s waits for the gateway %s", plan.run, gateway.name)
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0.0:
            stop()
            time.sleep(min(left_s, LOOK_S))

    made = RemoteHelper.connect(gateway.name, gateway.url, service.identity, plan, listing, patience_s, sleep)
    if msgspec.convert(made.statement, ShareKey) != known.shares.helper:
        made.close()
        what = f"the gateway {gateway.name} has another key for this run than devices seal to."
        raise TransportError("E-SERVER-KEY", what, "name the gateway's own folder again, or submit the recipe anew.")
    return made
