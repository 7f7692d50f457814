"""Secure aggregation and noise: masks, sessions, shares, samplers, schedules. Processor seconds of one core.

python benchmarks/secagg.py [--only masks,complete,sparse,shares,sampler,fuzz] [--schedules 10000]
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable

import bench
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

sys.path[:0] = [str(bench.HERE.parent / "tests" / "support"), str(bench.HERE.parent / "tests" / "protocol")]

from edgewise.core.keys import derive, root  # noqa: E402
from edgewise.crypto import agree, prg, seal, shamir, sign  # noqa: E402
from edgewise.privacy.samplers import discrete_gaussian  # noqa: E402
from edgewise.secagg import client, events, messages, secrets, server, two_server  # noqa: E402
from edgewise.secagg.params import Params, TrustPolicy  # noqa: E402

KEY = root(1)


def best(work: Callable[[], object], repeats: int = 9) -> float:
    """Smallest processor seconds of some repeats, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def masks() -> None:
    """Expansion and addition in one pass, beside the bare cipher; and the public-key operations."""
    d = 1 << 22
    acc, seed = np.zeros(d, np.uint32), derive(KEY, "mask")
    one = 4 * d / best(lambda: prg.add_masks(acc, [(prg.KeyStreamWords(seed), 1)], 24)) / 1e9
    masks = [(derive(KEY, "mask", i), 1 - i % 2 * 2) for i in range(8)]
    ours = 32 * d / best(lambda: prg.add_masks(acc, ((prg.KeyStreamWords(key), sign) for key, sign in masks), 24)) / 1e9
    zeros, out = bytes(1 << 18), bytearray((1 << 18) + 16)

    def bare() -> None:
        stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
        for _ in range(4 * d >> 18):
            stream.update_into(zeros, out)

    cipher = 4 * d / best(bare) / 1e9
    bench.note(
        f"mask expansion and addition {ours:.2f} GB/s (a single mask {one:.2f}), AES-256-CTR alone {cipher:.2f} GB/s, "
        f"ratio {ours / cipher:.2f}"
    )
    pair, signer = agree.agreement_pair(derive(KEY, "a")), sign.pair(derive(KEY, "b"))
    peer, signature = agree.agreement_pair(derive(KEY, "c")).public, sign.sign(signer.secret, b"m")
    many = range(200)
    for name, work in (
        ("X25519 and HKDF", lambda: [agree.agree(pair.secret, peer, b"s", b"i") for _ in many]),
        ("Ed25519 sign", lambda: [sign.sign(signer.secret, b"m") for _ in many]),
        ("Ed25519 verify", lambda: [sign.verify(signer.public, signature, b"m") for _ in many]),
        ("HPKE seal 96 B", lambda: [seal.hpke_seal(pair.public, bytes(96), b"i") for _ in many]),
    ):
        bench.note(f"{name}: {best(work, 3) / len(many) * 1e6:.0f} us")
    at = range(1, 101)
    shares = shamir.shamir_shares(bytes(32), at, 67, bytes(32))
    took = (
        best(lambda: shamir.shamir_shares(bytes(32), at, 67, bytes(32)), 3),
        best(lambda: shamir.combine_shares(shares, 67), 5),
    )
    bench.note(f"Shamir 67 of 100: share {1e3 * took[0]:.1f} ms, combine {1e6 * took[1]:.0f} us")


def session(n: int, d: int, dropped: float, policy: TrustPolicy, check: bool, bits: int = 24) -> None:
    """One session in this process: devices one after the other, so that only the server's memory counts."""
    params = Params(policy, 2, bits, d, 1)
    names = [f"d{i:05d}" for i in range(n)]
    identities = {name: sign.pair(derive(KEY, "id", name)) for name in names}

    def registry(name: str) -> bytes | None:
        return identities[name].public if name in identities else None

    sid = messages.secagg_session_id("bench", 0, "model", "config", bytes(32))
    state: server.State = server.start(server.SecAggSession(params, sid, registry))
    rng = np.random.default_rng(0)
    gone = set(rng.choice(names, int(dropped * n), replace=False).tolist())
    spent: dict[str, float] = Counter()
    took, expected, letters = 0.0, np.zeros(d, np.uint64), {}
    sessions: dict[str, bytes] = {}  # as bytes, without the update, which each device keeps for itself
    for i, name in enumerate(names):
        start = time.process_time()
        # The update is given as zeros and added to the masked one below: the same sum, and no n copies of it.
        first, raw = client.start(params, sid, name, identities[name].secret, np.zeros(d, np.uint32),
                                  np.full(1, i, np.uint64), derive(KEY, "entropy", name))  # fmt: skip
        spent[name] += time.process_time() - start
        sessions[name] = client.save(_light(first))
        start = time.process_time()
        state, _ = server.step_secagg_server(state, events.SecAggReceived(name, raw))
        took += time.process_time() - start
    state, effects = server.step_secagg_server(state, events.SecAggStepClosed())
    number, unmask = 0, 0.0
    zeros = bytes(4 * d)
    while not isinstance(state, server.Released | server.Aborted):
        number += 1
        letters = {e.device: e.raw for e in effects if isinstance(e, events.SecAggSend)}
        effects = ()
        for name, raw in letters.items():
            if number >= 2 and name in gone:
                continue
            start = time.process_time()
            mine = client.restore(sessions[name])
            if isinstance(mine, client.Sharing):
                mine = client.msgspec.structs.replace(mine, body=zeros)
            after, answer = client.step(params, mine, raw, registry)
            spent[name] += time.process_time() - start
            sessions[name] = client.save(_light(after))
            start = time.process_time()
            state, more = server.step_secagg_server(state, events.SecAggReceived(name, answer))
            last = time.process_time() - start
            took, unmask = took + last, last
            effects += more
        if not effects and not isinstance(state, server.Released | server.Aborted):
            start = time.process_time()
            state, effects = server.step_secagg_server(state, events.SecAggStepClosed())
            unmask = time.process_time() - start
            took += unmask
    assert isinstance(state, server.Released), state
    if check:
        np.testing.assert_array_equal(state.body, expected % (1 << bits))
        heads = sum(int(name[1:]) for name in state.survivors)
        assert int(state.head[0]) == heads
    k, t = policy.shape(n)
    live = [spent[name] for name in names if name not in gone]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    bench.note(
        f"n = {n}, d = 2^{d.bit_length() - 1}, {bits} bits, k = {k}, t = {t}, {len(gone)} dropped; peak {peak:.0f} MiB"
    )
    bench.note(
        f"  client {1e3 * np.median(live):.1f} ms, server unmask {1e3 * unmask:.0f} ms, server in all {took:.1f} s"
    )
    bench.note(f"  sum exact over {len(state.survivors)}")


def _light(state: client.State) -> client.State:
    """A device's state without its update."""
    if isinstance(state, client.Advertised | client.Sharing):
        return client.msgspec.structs.replace(state, body=b"")
    return state


def shares() -> None:
    """What a device does with two servers."""
    identity = sign.pair(derive(KEY, "id"))
    leader, helper = two_server.server_pair(derive(KEY, "l")), two_server.server_pair(derive(KEY, "h"))
    for bits in (16, 24):
        params = Params(TrustPolicy(), 2, bits, 1 << 22, 0)
        body = prg.expand_seed(derive(KEY, "x"), params.dim, bits)

        def split(params: Params = params, body: secrets.Body = body) -> bytearray:  # type: ignore[assignment]
            return two_server.split(params, bytes(32), "d", identity.secret, leader.public, helper.public, body,
                                    np.zeros(0, np.uint64), derive(KEY, "e"))  # fmt: skip

        took, size = 1e3 * best(split, 9), len(split())
        bench.note(f"two servers, d = 2^22, {bits} bits: client {took:.1f} ms, report {size / 1e6:.2f} MB")


def sampler() -> None:
    """The exact discrete Gaussian."""
    for s in (51, 3277, 23171):
        seconds = best(lambda s=s: discrete_gaussian(s, 1_000_000, derive(KEY, s)), 3)
        bench.note(f"discrete Gaussian, S = {s}: {1 / seconds:.2f} M samples/s")


def fuzz(schedules: int) -> None:
    """Random schedules, as in the protocol's own tests: lost, late, copied and damaged messages, and lying peers."""
    from schedules import drawn

    rng, ends, done = random.Random(1), Counter[str](), Counter[str]()
    for i in range(schedules):
        run = drawn(rng)
        end = run.play()
        ends[type(end).__name__ + (f" {end.code}" if isinstance(end, server.Aborted) else "")] += 1
        done += run.done
        if i % 2500 == 2499:
            bench.note(f"{i + 1} schedules: {dict(ends)}; faults {dict(done)}")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="masks,complete,sparse,shares,sampler,fuzz")
    parser.add_argument("--schedules", type=int, default=10_000)
    a = parser.parse_args()
    for name in a.only.split(","):
        match name:
            case "masks":
                masks()
            case "complete":
                for bits in (16, 24):
                    session(32, 1 << 12, 0.1, TrustPolicy(), True, bits)  # compiles
                    session(32, 1 << 20, 0.1, TrustPolicy(), True, bits)
            case "sparse":
                session(1000, 1 << 20, 0.05, TrustPolicy(0.05, 0.05, "malicious"), True)
            case "shares":
                shares()
            case "sampler":
                sampler()
            case "fuzz":
                fuzz(a.schedules)
            case _:
                parser.error(f"nothing is called {name!r}")


if __name__ == "__main__":
    main()
