"""Documents that a device reads before it takes part in a run, for ``tests/protocol/vectors``: tokens, facts,
manifests, rosters, and canonical JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import msgspec
from secagg_frames import FACTS, OPERATOR, SPEC
from session import IDENTITIES, ROOT

from edgewise.core.errors import EdgewiseError
from edgewise.core.keys import derive
from edgewise.crypto import sign
from edgewise.drivers.fleet import roster
from edgewise.drivers.http import package, tokens
from edgewise.plan import facts

STRANGER = sign.pair(derive(ROOT, "another operator"))
TEXTS = (  # code points
    (0x7E, 0x7F, 0x80), (0x20AC,), (0x1F42C,), (0xFFFF, 0x10000, 0x10FFFF), (0x22, 0x5C, 0x2F), (8, 9, 10, 12, 13),
    (0, 0x1F), (0x2028,),
)  # fmt: skip
DOUBLES = (
    0.0,
    -0.0,
    1.0,
    0.1,
    1.5,
    1e-4,
    1e-5,
    1.25e-7,
    1e15,
    1e16,
    123456789012345680.0,
    5e-324,
    1.7976931348623157e308,
)
DIGEST = "0f" * 32
FILES = {"config.json": DIGEST, "model.safetensors": "ab" * 32}


def joining() -> dict[str, Any]:
    """The contents of ``joining.json``."""
    return {"canonical": _canonical(), "facts": _facts(), "manifests": _manifests(), "rosters": _rosters(),
            "tokens": _tokens()}  # fmt: skip


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _canonical() -> dict[str, Any]:
    """Texts by their code points, doubles by their 8 bytes in big-endian order, and an object by its keys."""
    keys = ("\N{DOLPHIN}", "\N{FULLWIDTH TILDE}", "a", "Z", "", "\x7f", "ab")
    return {
        "texts": [{"code points": list(points), "json": _json("".join(map(chr, points)))} for points in TEXTS],
        "doubles": [{"bytes": msgspec.msgpack.encode(x)[1:].hex(), "json": _json(x)} for x in DOUBLES],
        "keys": {"code points": [list(map(ord, key)) for key in keys], "json": _json(dict.fromkeys(keys, 1))},
    }


def _changed(old: str, new: str) -> dict[str, Any]:
    """The shortest change that makes the one text of the other."""
    at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    most = min(len(old), len(new)) - at
    end = next((i for i in range(most) if old[-1 - i] != new[-1 - i]), most)
    return {"at": at, "cut": len(old) - end - at, "put": new[at : len(new) - end]}


def _facts() -> dict[str, Any]:
    raw = facts.canonical(FACTS)
    text, tables = raw.decode(), json.loads(raw)
    rows = []
    for name, new in _forged(text, tables).items():
        rows.append({"name": name, **_changed(text, new), "spaces": 0, "code": "E-FACTS",
                     "signature": facts.sign(OPERATOR.secret, new.encode()).hex()})  # fmt: skip
    spaces = facts.LIMIT_BYTES + 1 - len(raw)
    rows.append({"name": "one byte above the limit", "at": 0, "cut": 0, "put": "", "spaces": spaces, "code": "E-FACTS",
                 "signature": facts.sign(OPERATOR.secret, raw + b" " * spaces).hex()})  # fmt: skip
    good = facts.sign(OPERATOR.secret, raw)
    for name, signature in (
        ("a signature of another server", facts.sign(STRANGER.secret, raw)),
        ("a signature without its context", sign.sign(OPERATOR.secret, raw)),
        ("a signature with a flipped bit", bytes([good[0] ^ 1]) + good[1:]),
        ("a signature of 63 bytes", good[:-1]),
        ("no signature", b""),
    ):
        rows.append({"name": name, "at": 0, "cut": 0, "put": "", "spaces": 0, "code": "E-FACTS",
                     "signature": signature.hex()})  # fmt: skip
    return {"json": text, "server": OPERATOR.public.hex(), "signature": good.hex(), "layout": SPEC.to_list(),
            "refused": rows}  # fmt: skip


def _forged(text: str, tables: dict[str, Any]) -> dict[str, str]:
    """Facts that this server has signed all the same."""

    def with_(**changes: Any) -> str:
        return _json({**tables, **changes})

    def of(**changes: Any) -> str:
        return with_(instance={**tables["instance"], **changes})

    name = '"name":"caf\\u00e9"'
    assert name in text
    return {
        "another order of fields": json.dumps(dict(reversed(tables.items())), separators=(",", ":")),
        "a space between tokens": text.replace('"population":100', '"population": 100'),
        "a double in place of an integer": text.replace('"population":100', '"population":100.0'),
        "text in place of an integer": text.replace('"population":100', '"population":"100"'),
        "a field twice": text.replace('"population":100', '"population":100,"population":100'),
        "an unknown field": with_(more=1),
        "an unknown field of the instance": of(more=1),
        "a missing field": _json({k: v for k, v in tables.items() if k != "wire"}),
        "text that is not escaped": text.replace(name, '"name":"caf\u00e9"'),
        "an escape in upper case": text.replace(name, '"name":"caf\\u00E9"'),
        "an escape that is not needed": text.replace(name, '"name":"\\u0063af\\u00e9"'),
        "a line feed as a long escape": text.replace(name, '"name":"\\u000a"'),
        "U+007F that is not escaped": text.replace(name, '"name":"\x7f"'),
        "a character above U+FFFF as one escape": text.replace(name, '"name":"\\U0001f42c"'),
        "a double with an exponent of one digit": text.replace("1e-05", "1e-5"),
        "a double with a digit too many": text.replace('"lr":0.001', '"lr":0.0010'),
        "a line feed at the end": text + "\n",
        "nothing": "",
        "an array": "[]",
        "no population": with_(population=0),
        "more devices than there may be": with_(population=10**9 + 1),
        "another format": with_(format=2),
        "another version of secure aggregation": with_(secagg="edgewise/secagg/v2"),
        "another version of frames": with_(wire=3),
        "another layout": with_(spec="0" * 64),
        "no instance": with_(instance=None),
        "the instance of another server": of(server=STRANGER.public.hex()),
        "a nonce of 31 bytes": of(nonce="ab" * 31),
        "a roster that is no digest": of(roster="ab" * 31),
    }


def _manifests() -> list[dict[str, Any]]:
    whole = package.dump_package(FILES).decode()
    made = {
        "two files": whole,
        "another order": _order(FILES),
        "a space": whole.replace(",", ", "),
        "a file twice": whole[:-1] + f',"model.safetensors":"{"ab" * 32}"}}',
        "no files": "{}",
        "an array": "[]",
        "a digest in upper case": whole.replace("ab" * 32, "AB" * 32),
        "a digest of 63 digits": whole.replace("ab" * 32, "ab" * 31 + "a"),
        "a name in another folder": _json({"../config.json": DIGEST}),
        "a name with a slash": _json({"a/config.json": DIGEST}),
        "a name that begins with a dot": _json({".json": DIGEST}),
        "a file that might be run": _json({"model.py": DIGEST}),
        "a file without an ending": _json({"model": DIGEST}),
        "a name that ends in another line": _json({"config.json\n": DIGEST}),
        "a name of the longest kind": _json({"a" * 121 + ".json": DIGEST}),
        "a name that is too long": _json({"a" * 122 + ".json": DIGEST}),
    }
    return [{"name": name, "json": text, "code": _code(lambda text=text: package.parse(text.encode()))}
            for name, text in made.items()]  # fmt: skip


def _order(files: dict[str, str]) -> str:
    return json.dumps(dict(reversed(files.items())), separators=(",", ":"))


def _rosters() -> list[dict[str, Any]]:
    keys = sorted(IDENTITIES[f"d{i:03d}"].public for i in range(3))
    whole = b"".join(keys)
    made = {
        "three devices": (whole, 3),
        "fewer than the population": (whole[:64], 3),
        "more than the population": (whole, 2),
        "not sorted": (whole[32:] + whole[:32], 3),
        "a key twice": (keys[0] + keys[0] + keys[2], 3),
        "a byte too few": (whole[:-1], 3),
        "a byte too many": (whole + b"\0", 3),
    }
    rows = []
    for name, (raw, population) in made.items():
        code = _code(lambda raw=raw, population=population: roster.parse_roster(raw, population))
        names = [] if code else list(roster.parse_roster(raw, population))
        rows.append({"name": name, "hex": raw.hex(), "population": population, "devices": names, "code": code})
    return rows


def _tokens() -> list[dict[str, Any]]:
    token = tokens.Token("0001020304050607", bytes(range(16, 32)), "0123456789abcdef" * 2)
    text, raw = token.text, base64.b32decode(token.text[8:].upper() + "=")
    assert text[-1] == "a"
    flipped = raw[:-1] + bytes([raw[-1] ^ 1])
    made = {
        "a token": text,
        "white space around it": f" {text}\n",
        "a wrong check": tokens.PREFIX + base64.b32encode(flipped).decode().rstrip("=").lower(),
        "another secret under the same check": tokens.PREFIX
        + base64.b32encode(raw[:9] + bytes([raw[9] ^ 1]) + raw[10:]).decode().rstrip("=").lower(),
        "a stray bit behind the last byte": text[:-1] + "b",
        "all stray bits": text[:-1] + "h",
        "upper case": tokens.PREFIX + text[8:].upper(),
        "padding": text + "=",
        "a character too few": text[:-1],
        "a character too many": text + "a",
        "a character that base32 has not": text[:-2] + "1a",
        "another prefix": "fedtok2_" + text[8:],
        "no prefix": text[8:],
        "white space within": text[:20] + " " + text[20:],
        "nothing": "",
    }
    return [{"name": name, "text": text, "code": _code(lambda text=text: tokens.parse(text))}
            for name, text in made.items()]  # fmt: skip


def _code(read: Callable[[], object]) -> str:
    try:
        read()
    except EdgewiseError as e:
        return e.code
    return ""
