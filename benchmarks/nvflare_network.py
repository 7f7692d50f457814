"""The side-by-side job in NVFlare's deployment engine: a server and a client process a device, on loopback.

    python -m venv nvflare && nvflare/bin/pip install "nvflare==2.9.0" torch
    nvflare/bin/python benchmarks/nvflare_network.py --peers DIR --arch gpt --params 1000000 --clients 10 \
        --local-steps 10 --rounds 6

Run it with the interpreter of NVFlare's environment. Nothing of edgewise is imported. The engine is that of NVFlare's
proof-of-concept mode, which starts the server and the clients of a real deployment on one machine. Arguments and the
RESULT line are those of ``network_task.py``, which is the other side. Round times are read from the server's log.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

T0 = time.time()
STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) ")


def main() -> None:
    """Start the engine, run the job, print a RESULT line."""
    at = sys.argv.index("--peers")
    peers = Path(sys.argv[at + 1]).resolve()
    argv = sys.argv[1:at] + sys.argv[at + 2 :]
    sys.path.insert(0, str(peers / "common"))
    os.environ["FEDBENCH_COMMON"] = str(peers / "common")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(peers / "common"), os.environ.get("PYTHONPATH", "")])
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["NVFLARE_POC_WORKSPACE"] = f"{scratch}/poc"
        import fedbench_common as fb
        import nvflare
        import torch
        from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
        from nvflare.client.config import ExchangeFormat
        from nvflare.recipe import PocEnv

        a = fb.parse(argv)
        model = fb.build_model(a.params, a.arch, a.seed)
        torch.save(model.state_dict(), f"{scratch}/initial.pt")
        recipe = FedAvgRecipe(
            name="sidebyside",
            model={"class_path": f"fedbench_common.{type(model).__name__}", "args": {"params": a.params}},
            initial_ckpt=f"{scratch}/initial.pt", min_clients=a.clients, num_rounds=a.rounds,
            train_script=str(peers / "nvflare" / "client.py"), train_args=" ".join(fb.to_argv(a)),
            server_expected_format=ExchangeFormat.NUMPY,
        )  # fmt: skip
        engine = PocEnv(num_clients=a.clients)
        kept: dict[str, bytes] = {}
        threading.Thread(target=keep, args=(Path(scratch, "poc"), kept), daemon=True).start()
        try:
            recipe.execute(engine).get_result()
        finally:
            engine.stop(clean_up=True)
        first, marks = rounds(kept["log"].decode(errors="replace"))
        state = torch.load(io.BytesIO(kept["model"]), weights_only=False, map_location="cpu")
        fb.report(a, "nvflare deployment", nvflare.__version__, T0, first, marks, state.get("model", state))


def keep(folder: Path, kept: dict[str, bytes]) -> None:
    """Keep the server's log and model as they grow, because the engine removes them when a job ends."""
    while True:
        for path in folder.rglob("*"):
            name = {"FL_global_model.pt": "model"}.get(path.name, "log" if path.match("log*.txt") else "")
            with contextlib.suppress(OSError):
                data = path.read_bytes() if name else b""
                if name == "model" or b"Round 0 started" in data:
                    kept[name] = max(kept.get(name, b""), data, key=len) if name == "log" else data
        time.sleep(0.3)


def rounds(log: str) -> tuple[float, list[float]]:
    """Read the begin of the first round and the end of each from the server's log, in seconds."""
    now, starts, end = 0.0, [], 0.0
    for line in log.splitlines():
        if found := STAMP.match(line):
            now = time.mktime(time.strptime(found[1], "%Y-%m-%d %H:%M:%S")) + int(found[2]) / 1000
        if re.search(r"Round \d+ started", line):
            starts.append(now)
        elif "Finished FedAvg" in line:
            end = now
    return starts[0], [*starts[1:], end]


if __name__ == "__main__":
    main()
