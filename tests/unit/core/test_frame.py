"""Frames: golden vectors that must be read, vectors that must be refused, and damaged bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cost import allocated, traced
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.core import frame
from edgewise.core.errors import DecodeError

CASES: dict[str, list[dict[str, Any]]] = json.loads((Path(__file__).parents[1] / "vectors" / "frames.json").read_text())
VALID = [bytes.fromhex(c["frame"]) for c in CASES["accept"]]


def _plain(message: Any) -> dict[str, Any]:
    fields = {n: _value(getattr(message, n)) for n in message.__struct_fields__}
    return {"type": message.__struct_config__.tag, **fields}


def _value(value: Any) -> Any:
    if isinstance(value, bytes | memoryview):
        return value.hex()
    if isinstance(value, tuple):
        return [_value(one) for one in value]
    if isinstance(value, msgspec.Struct):
        return {n: _value(getattr(value, n)) for n in value.__struct_fields__}
    return value


@pytest.mark.parametrize("case", CASES["accept"], ids=lambda c: c["name"])
def test_accepts(case: dict[str, Any]) -> None:
    raw = bytes.fromhex(case["frame"])
    message = frame.load(raw)
    assert _plain(message) == case["message"]
    assert frame.dump(message) == raw
    assert frame.load(memoryview(raw)) == message


@pytest.mark.parametrize("case", CASES["reject"], ids=lambda c: c["name"])
def test_rejects(case: dict[str, Any]) -> None:
    with pytest.raises(DecodeError) as caught:
        frame.load(bytes.fromhex(case["frame"]))
    assert caught.value.code == "E-FRAME"


def test_every_message_type_has_a_vector() -> None:
    assert {type(frame.load(raw)) for raw in VALID} == set(frame.Message.__args__)


@pytest.mark.parametrize("raw", VALID, ids=lambda raw: type(frame.load(raw)).__name__)
def test_each_side_reads_what_the_other_sends(raw: bytes) -> None:
    message = frame.load(raw)
    readers = {
        lambda: frame.from_server(raw, len(raw)): frame.FromServer.__args__,
        lambda: frame.from_device(raw, len(raw)): frame.FromDevice.__args__,
        lambda: frame.delta(raw): (frame.Delta,),
        lambda: frame.beacon(raw): (frame.Beacon,),
    }
    for read, kinds in readers.items():
        if isinstance(message, kinds):
            assert read() == message
        else:
            with pytest.raises(DecodeError) as caught:
                read()
            assert caught.value.code == "E-FRAME"
    with pytest.raises(DecodeError, match="E-FRAME-SIZE"):
        frame.from_server(raw, len(raw) - 1)
    with pytest.raises(DecodeError, match="E-FRAME-SIZE"):
        frame.from_device(raw, len(raw) - 1)


def test_size_is_checked_before_parsing() -> None:
    with pytest.raises(DecodeError) as caught:
        frame.load(b"EWF\x02" + b"\xff" * 100, limit_bytes=103)
    assert caught.value.code == "E-FRAME-SIZE"
    assert "104" in caught.value.what
    assert frame.load(VALID[0], limit_bytes=len(VALID[0])) == frame.load(VALID[0])


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65535, 65536, 70000])
def test_a_payload_of_any_length_has_the_one_encoding(size: int) -> None:
    payload = bytes(i % 251 for i in range(size))
    message = frame.Contribution(run="run", round=3, device="d1", payload=memoryview(payload))
    raw = frame.dump(message)
    assert raw == b"EWF\x02" + msgspec.msgpack.encode(message)
    assert frame.load(raw) == message
    for bad in (raw + b"\x00", raw[:-1]):
        with pytest.raises(DecodeError):
            frame.load(bad)


@pytest.mark.slow
def test_a_payload_is_copied_once_on_its_way_out_and_not_at_all_on_its_way_in() -> None:
    size, out = 1_000_000, []
    message = frame.Contribution(run="run", round=3, device="d1", payload=memoryview(bytes(size)))
    with traced():
        assert allocated(lambda: out.append(frame.dump(message))) < 1.1 * size
        assert allocated(lambda: out.append(frame.load(out[0]))) < 0.1 * size


def test_messages_are_immutable() -> None:
    with pytest.raises(AttributeError):
        frame.load(VALID[0]).run = "other"  # type: ignore[misc]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(VALID), st.data())
def test_damaged_frames_are_refused_or_canonical(raw: bytes, data: st.DataObject) -> None:
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))] + data.draw(st.binary(max_size=3))
    try:
        message = frame.load(bytes(damaged))
    except DecodeError:
        return
    assert frame.dump(message) == bytes(damaged)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(body: bytes) -> None:
    with pytest.raises(DecodeError):
        frame.load(b"EWF\x02" + body)
