"""Make ``src/edgewise/assets/plays/plays.jsonl.gz``, the demo's text, from the text of Shakespeare's plays.

    curl -O https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
    python scripts/build_plays.py input.txt

The input holds speeches with an empty line between them; the first line of each names its speaker and ends with a
colon. Speakers are ranked by the characters of their lines. The ten largest are left out, so that those who stay hold
a like amount, and the next 24 are kept. Each line of the output is one speech, ``{"speaker": ..., "text": ...}``:
speakers by rank, and the speeches of each in the order of the input.

From the input with the SHA-256 in ``INPUT`` the output holds the same lines as the shipped file. Its compressed bytes
may differ with the version of zlib.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from pathlib import Path

INPUT = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
OUT = Path(__file__).resolve().parents[1] / "src/edgewise/assets/plays/plays.jsonl.gz"
LEFT_OUT, KEPT = 10, 24


def speeches(text: str) -> dict[str, list[str]]:
    """Speaker -> speeches, from the text of plays."""
    found: dict[str, list[str]] = {}
    for part in text.split("\n\n"):
        head, _, speech = part.partition("\n")
        if head.endswith(":") and speech.strip():
            found.setdefault(head[:-1], []).append(speech.strip("\n"))
    return found


def lines(text: str) -> list[str]:
    """The lines of the output."""
    found = speeches(text)
    ranked = sorted(found, key=lambda speaker: (-sum(map(len, found[speaker])), speaker))
    kept = ranked[LEFT_OUT : LEFT_OUT + KEPT]
    rows = ({"speaker": speaker, "text": speech} for speaker in kept for speech in found[speaker])
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def packed(text: str) -> bytes:
    """The output file; its header names no time and no file."""
    return gzip.compress(("\n".join(lines(text)) + "\n").encode(), 9, mtime=0)


def main() -> None:
    """Write the file and say what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, help="text of the plays")
    parser.add_argument("--out", type=Path, default=OUT, help="default: the shipped file")
    args = parser.parse_args()
    raw = args.input.read_bytes()
    if (digest := hashlib.sha256(raw).hexdigest()) != INPUT:
        print(f"note: the input is another one than the shipped file was made from ({digest[:12]})")
    whole = packed(raw.decode())
    args.out.write_bytes(whole)
    count = len(lines(raw.decode()))
    print(f"{count} speeches of {KEPT} speakers, {len(whole):,} bytes: {args.out}")


if __name__ == "__main__":
    main()
