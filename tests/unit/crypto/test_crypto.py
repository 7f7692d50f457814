"""Use of the primitives: published vectors, exact rings, and refusals."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.core.errors import DecodeError
from edgewise.core.keys import derive, root
from edgewise.crypto import agree, prg, seal, shamir, sign

SEED = bytes(range(32))


def test_the_key_stream_is_aes_256_ctr() -> None:
    """The first block is AES(key, 0).

    NIST SP 800-38A F.5.5 uses another initial counter, so AES itself checks the stream.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    block = Cipher(algorithms.AES(SEED), modes.ECB()).encryptor()
    counters = b"".join(i.to_bytes(16, "big") for i in range(4))
    stream = block.update(counters)
    assert prg.expand_seed(SEED, 16, 32).astype("<u4").tobytes() == stream
    assert prg.expand_seed(SEED, 8, 64).astype("<u8").tobytes() == stream
    assert prg.expand_seed(SEED, 32, 16).astype("<u2").tobytes() == stream  # half the stream up to 16 bits
    np.testing.assert_array_equal(prg.expand_seed(SEED, 16, 17), np.frombuffer(stream, "<u4") & 0x1FFFF)


@pytest.mark.parametrize("bits", [1, 7, 15, 16, 17, 20, 24, 31, 32, 33, 48, 63, 64])
def test_masks_cancel_and_stay_in_the_ring(bits: int) -> None:
    x = prg.expand_seed(derive(root(1), bits), 70_000, bits)
    acc = x.copy()
    seeds = [derive(root(2), i) for i in range(7)]
    prg.add_masks(acc, ((prg.KeyStreamWords(seed), 1) for seed in seeds), bits)
    assert not np.array_equal(acc, x)
    assert bits in (32, 64) or int(acc.max()) < 1 << bits
    for seed in reversed(seeds):  # The number of streams added in one pass makes no difference.
        prg.add_masks(acc, [(prg.KeyStreamWords(seed), -1)], bits)
    np.testing.assert_array_equal(acc, x)
    prg.add_masks(acc, [(prg.KeyStreamWords(seed), s) for seed in seeds[:5] for s in (1, -1)], bits)
    np.testing.assert_array_equal(acc, x)


def test_expansion_does_not_depend_on_how_much_is_asked() -> None:
    whole = prg.expand_seed(SEED, 200_000, 20)
    np.testing.assert_array_equal(prg.expand_seed(SEED, 70_001, 20), whole[:70_001])
    words, stream = np.empty(999, np.uint64), prg.KeyStreamWords(SEED)
    stream.fill(words[:13])
    stream.fill(words[13:])
    np.testing.assert_array_equal(words.view(np.uint32), prg.expand_seed(SEED, 1998, 32))


def test_coins_are_read_off_the_key_stream() -> None:
    """Amplification by sampling needs a secret draw. The cipher makes it, so nobody without the key can guess it."""
    fractions = (prg.expand_seed(SEED, 64, 64) >> np.uint64(11)).astype(np.float64) / 2.0**53
    assert prg.random_coins(SEED, 64, 0.3).tolist() == (fractions < 0.3).tolist()
    assert prg.random_coins(SEED, 1000, 1.0).all()
    assert not prg.random_coins(SEED, 1000, 0.0).any()
    assert prg.random_coins(SEED, 100_000, 0.1).mean() == pytest.approx(0.1, abs=0.004)


def test_masks_are_uniform() -> None:
    counts = np.bincount(prg.expand_seed(SEED, 1 << 18, 4), minlength=16)
    chi = float(((counts - (1 << 14)) ** 2 / (1 << 14)).sum())
    assert chi < 45  # 15 degrees of freedom, p = 1e-4


@pytest.mark.parametrize("acc", [np.zeros(4, np.uint64), np.zeros((2, 2), np.uint32), np.zeros(8, np.uint32)[::2]])
def test_wrong_accumulators_are_refused(acc: object) -> None:
    with pytest.raises(ValueError):
        prg.add_masks(acc, [(prg.KeyStreamWords(SEED), 1)], 24)  # type: ignore[arg-type]


def test_short_seeds_and_signs_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        prg.expand_seed(b"short", 4, 8)
    with pytest.raises(ValueError, match="sign"):
        prg.add_masks(np.zeros(4, np.uint32), [(prg.KeyStreamWords(SEED), 2)], 8)
    with pytest.raises(ValueError, match="bits"):
        prg.expand_seed(SEED, 4, 65)


@given(st.binary(min_size=32, max_size=32), st.integers(1, 9), st.integers(0, 4), st.randoms(use_true_random=False))
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, threshold: int, more: int, rng: object) -> None:
    at = list(range(1, threshold + more + 1))
    shares = shamir.shamir_shares(secret, at, threshold, SEED)
    chosen = rng.sample(at, threshold)  # type: ignore[attr-defined]
    assert shamir.combine_shares({x: shares[x] for x in chosen}, threshold) == secret


def test_fewer_shares_say_nothing() -> None:
    """With one share too few, every first byte of the secret is equally likely (chi-square over fresh polynomials)."""
    seen: Counter[int] = Counter()
    for i in range(4096):
        shares = shamir.shamir_shares(bytes(32), [1, 2, 3], 3, derive(root(3), i))
        seen[shares[2][5] ^ shares[1][5]] += 1
    chi = sum((seen[b] - 16) ** 2 / 16 for b in range(256))
    assert chi < 360  # 255 degrees of freedom, p = 1e-5


def test_bad_shares_are_refused() -> None:
    shares = shamir.shamir_shares(SEED, [1, 2, 3], 2, SEED)
    for wrong in ({1: shares[1]}, {1: shares[1], 2: b"short"}, {1: shares[1], 2: b"\xff" * 33}):
        with pytest.raises(DecodeError) as caught:
            shamir.combine_shares(wrong, 2)
        assert caught.value.code == "E-SHARE"
    tampered = {1: shares[1], 2: bytes([shares[2][0] ^ 1]) + shares[2][1:]}
    assert shamir.combine_shares(tampered, 2) != SEED
    for at, threshold in (([1, 1], 1), ([0, 1], 1), ([1, 2], 3), ([1], 0)):
        with pytest.raises(ValueError):
            shamir.shamir_shares(SEED, at, threshold, SEED)


def test_x25519_is_rfc_7748() -> None:
    a = SEED
    b = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert agree.public_half(b).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert agree.agree(a, agree.public_half(b), b"s", b"i") == agree.agree(b, agree.public_half(a), b"s", b"i")
    assert agree.agree(a, agree.public_half(b), b"s", b"i") != agree.agree(a, agree.public_half(b), b"s", b"j")


def test_hkdf_is_rfc_5869() -> None:
    okm = agree.hkdf_derive(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert okm.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"


@pytest.mark.parametrize("peer", [bytes(32), b"\x01" + bytes(31), b"short"])
def test_weak_keys_are_refused(peer: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        agree.agree(SEED, peer, b"", b"")
    assert caught.value.code == "E-KEY-AGREE"


def test_ed25519_is_rfc_8032() -> None:
    pair = sign.pair(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert pair.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    signature = sign.sign(pair.secret, b"")
    assert signature.hex().startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155")
    assert sign.verify(pair.public, signature, b"")
    assert not sign.verify(pair.public, signature, b"x")
    assert not sign.verify(pair.public, signature[:-1], b"")
    assert not sign.verify(b"short", signature, b"")


def test_boxes_open_for_what_they_were_sealed_for() -> None:
    box = seal.seal(SEED, b"secret", b"bound")
    assert seal.open_sealed(SEED, box, b"bound") == b"secret"
    pair = agree.agreement_pair(SEED)
    hpke = seal.hpke_seal(pair.public, b"secret", b"bound")
    assert len(hpke) == 6 + seal.HPKE_OVERHEAD_BYTES
    assert seal.hpke_open(pair.secret, hpke, b"bound") == b"secret"
    flipped = bytes([box[0] ^ 1]) + box[1:]
    for attempt in (
        lambda: seal.open_sealed(SEED, box, b"other"),
        lambda: seal.open_sealed(SEED, flipped, b"bound"),
        lambda: seal.open_sealed(bytes(32), box, b"bound"),
        lambda: seal.open_sealed(SEED, b"", b"bound"),
        lambda: seal.hpke_open(pair.secret, hpke, b"other"),
        lambda: seal.hpke_open(bytes([1] * 32), hpke, b"bound"),
        lambda: seal.hpke_open(pair.secret, hpke[:-1], b"bound"),
    ):
        with pytest.raises(DecodeError) as caught:
            attempt()
        assert caught.value.code == "E-SEAL"


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=4))
def test_large_boxes_are_written_in_pieces(plain: bytes, cuts: list[int]) -> None:
    pair, box = agree.agreement_pair(SEED), bytearray(len(plain) + seal.LARGE_OVERHEAD_BYTES)
    writing = seal.LargeSealedBox(pair.public, bytes([7] * 32), b"bound", memoryview(box))
    at = [0, *sorted(min(cut, len(plain)) for cut in cuts), len(plain)]
    for start, end in pairwise(at):
        writing.write(plain[start:end])
    with pytest.raises(ValueError, match="more"):
        writing.write(b"x")
    writing.close()
    assert len(plain) < 8 or plain not in box
    assert seal.open_large_box(pair.secret, box, b"bound") == plain
    short = seal.LargeSealedBox(pair.public, bytes([7] * 32), b"bound", memoryview(bytearray(len(box) + 1)))
    short.write(plain)
    with pytest.raises(ValueError, match="less"):
        short.close()
    hpke = seal.hpke_seal(pair.public, b"not a key", b"bound")
    for attempt in (
        lambda: seal.open_large_box(pair.secret, box, b"other"),
        lambda: seal.open_large_box(bytes([1] * 32), box, b"bound"),
        lambda: seal.open_large_box(pair.secret, box[:-1], b"bound"),
        lambda: seal.open_large_box(pair.secret, box[:20], b"bound"),
        lambda: seal.open_large_box(pair.secret, hpke, b"bound"),
    ):
        with pytest.raises(DecodeError) as caught:
            attempt()
        assert caught.value.code == "E-SEAL"


def test_secrets_are_not_printed() -> None:
    pair = agree.agreement_pair(SEED)
    assert SEED.hex() not in repr(pair)
    assert repr(SEED) not in repr(pair)
