"""Numbers of a device's frames, which its server remembers, so that a device notices when its folder is an older copy.

    counter = FrameCounter(home, me.name, server, claim)      # claim: posts a document and returns the answer
    counter.count(digest)                                     # before the frame leaves

A device that is put back to an older copy of its folder has forgotten which rounds it answered and what it has spent.
It would draw noise again for an update that has left. Nothing in the folder can show that, so the server remembers
number and digest of the last frame of each device. A device claims its next frame, by number and digest, before any
byte of it leaves. The claim is on its disk before. The server answers with the frame that it remembers then, signed by
its key. It is the claimed one, or the folder is older (``fleet.counters``).

A device takes the next number only once the server has confirmed the one before. It claims its last frame anew when it
starts, which shows an older folder at once. So the numbers of a folder and of its copies grow with what the server has
confirmed alone, and a copy that lacks a confirmed frame never has a higher number. A frame that was claimed and never
left does no harm.

The server is trusted to remember, and with nothing else. A server that forgets on purpose, or that answers that a
folder is older when it is not, can do as much without a counter: invite a device again, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgewise.core.errors import TransportError
from edgewise.crypto import sign
from edgewise.drivers.http.answers import entry, foreign
from edgewise.drivers.http.identity import Identity, key_fingerprint
from edgewise.drivers.storage import counter_file
from edgewise.drivers.storage.counter_file import SentFrames

COUNTER = "/v1/counter"
CONTEXT = b"edgewise frame counter 1\0"  # what a signature is for; no other signature of a server begins so


class FrameCounter:
    """The counter of an enrolment, in the file ``HOME/ledgers/NAME.counter``.

    One process counts at a time: the one that sends the device's frames.

    Args:
        home: folder of the enrolment. name: id of the device. server: fingerprint of the server's key.
        claim: posts a document to ``COUNTER`` and returns the answer's document, also of a refusal with status 409.
    Guarantees: a number is on the disk before it is claimed, so no server remembers one that the newest copy of the
        folder does not have.
    """

    def __init__(self, home: Path, name: str, server: str, claim: Callable[[Mapping[str, Any]], Any]) -> None:
        self._path, self._name, self._server, self._claim = counter_file.path(home, name), name, server, claim
        self._confirmed: SentFrames | None = None  # the last state that the server has confirmed to this process

    def recall(self) -> SentFrames:
        """Compare this folder with the server's memory, where this process has not done it. Return the folder's state.

        Raises:
            TransportError: E-OLDER where the folder is an older copy. E-COUNTER where the server is of a version that
                remembers no frames. E-CONNECT where its key did not sign the answer, or signed it earlier.
            StoreError: E-CHECKPOINT where the file is damaged, E-DISK.
        """
        state = counter_file.load(self._path)
        if (refused := counter_file.older(state)) is not None:
            raise refused
        if state != self._confirmed:
            try:
                answer = self._claim({"number": state.number, "digest": state.digest})
            except TransportError as e:
                raise _unknown_route() if e.code == "E-ROUTE" else e from None
            number, digest = checked(answer, self._server, self._name)
            if number < state.number:  # an earlier answer, which somebody on the way has recorded
                raise foreign("it is about an earlier frame of this device")
            if (number, digest) != (state.number, state.digest):
                counter_file.save(self._path, SentFrames(state.number, state.digest, number))
                return self.recall()
            self._confirmed = state
        return state

    def count(self, digest: str) -> None:
        """Count a frame before any byte of it leaves. The frame that was counted last is not counted again.

        Args: digest: its SHA-256, in hexadecimal.
        Raises as ``recall``.
        """
        state = self.recall()
        if digest != state.digest:
            counter_file.save(self._path, SentFrames(state.number + 1, digest))
            self.recall()


def _unknown_route() -> TransportError:
    what = "the server, or the gateway on the way to it, is of a version that remembers no frames of devices."
    return TransportError("E-COUNTER", what, "ask its operator to update edgewise. Nothing has left this device.")


def _statement(device: str, number: int, digest: str | None) -> bytes:
    return CONTEXT + f"{device} {number} {digest or '-'}".encode()


def stated(server: Identity, device: str, number: int, digest: bytes | None) -> dict[str, Any]:
    """State the last frame of a device, signed by the server's key."""
    text = None if digest is None else digest.hex()
    signature = server.sign(_statement(device, number, text))
    return {"number": number, "digest": text, "key": server.public.hex(), "signature": signature.hex()}


def checked(document: Any, server: str, device: str) -> tuple[int, str | None]:
    """Check a server's statement about a device's last frame. Return its number and its digest.

    Args:
        server: fingerprint of the server's key.
    Raises:
        TransportError: E-CONNECT where the server's key did not sign it.
    """
    number = entry(document, "number", int)
    digest = entry(document, "digest", str) if number else None
    try:
        key, signature = bytes.fromhex(entry(document, "key", str)), bytes.fromhex(entry(document, "signature", str))
    except ValueError:
        key, signature = b"", b""
    if key_fingerprint(key) != server or not sign.verify(key, signature, _statement(device, number, digest)):
        raise foreign("the server's key did not sign what it says of this device's frames")
    return number, digest
