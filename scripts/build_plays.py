"""Make the texts in ``src/edgewise/assets/plays`` from the text of Shakespeare's plays.

    curl -O https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
    python scripts/build_plays.py input.txt

The input holds speeches with an empty line between them; the first line of each names its speaker and ends with a
colon. Speakers are ranked by the characters of their lines. The ten largest are the public text, ``public.jsonl.gz``.
The next 24, who hold a like amount each, are the demo's devices, ``plays.jsonl.gz``. Each line of a file is one speech,
``{"speaker": ..., "text": ...}``: speakers by rank, and the speeches of each in the order of the input.

From the input with the SHA-256 in ``INPUT`` the files hold the same lines as the shipped ones. Their compressed bytes
may differ with the version of zlib.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from pathlib import Path

INPUT = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
OUT = Path(__file__).resolve().parents[1] / "src/edgewise/assets/plays"
PUBLIC, DEVICES = slice(0, 10), slice(10, 34)  # Ranks of the speakers of each file.
FILES = {"plays.jsonl.gz": DEVICES, "public.jsonl.gz": PUBLIC}


def speeches(text: str) -> dict[str, list[str]]:
    """Speaker -> speeches, from the text of plays."""
    found: dict[str, list[str]] = {}
    for part in text.split("\n\n"):
        head, _, speech = part.partition("\n")
        if head.endswith(":") and speech.strip():
            found.setdefault(head[:-1], []).append(speech.strip("\n"))
    return found


def lines(text: str, ranks: slice = DEVICES) -> list[str]:
    """The lines of a file."""
    found = speeches(text)
    ranked = sorted(found, key=lambda speaker: (-sum(map(len, found[speaker])), speaker))
    rows = ({"speaker": speaker, "text": speech} for speaker in ranked[ranks] for speech in found[speaker])
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def packed(text: str, ranks: slice = DEVICES) -> bytes:
    """A file; its header names no time and no file."""
    return gzip.compress(("\n".join(lines(text, ranks)) + "\n").encode(), 9, mtime=0)


def main() -> None:
    """Write the files and say what they hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, help="text of the plays")
    parser.add_argument("--out", type=Path, default=OUT, help="folder; default: that of the shipped files")
    args = parser.parse_args()
    raw = args.input.read_bytes()
    if (digest := hashlib.sha256(raw).hexdigest()) != INPUT:
        print(f"note: the input is another one than the shipped files were made from ({digest[:12]})")
    for name, ranks in FILES.items():
        whole = packed(raw.decode(), ranks)
        (args.out / name).write_bytes(whole)
        print(f"{len(lines(raw.decode(), ranks))} speeches, {len(whole):,} bytes: {args.out / name}")


if __name__ == "__main__":
    main()
