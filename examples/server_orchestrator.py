"""The server of a federation: enrols devices, plays a recipe's rounds with them, prints what each gave.

    python examples/server_orchestrator.py MODEL_FOLDER --devices 2
    python examples/server_orchestrator.py MODEL_FOLDER --devices 5 --listen 0.0.0.0:8443 --url https://federation.example:8443

It needs no text. What a device sends is hidden in the sum of all. Started again, it goes on with its run.
"""

import argparse
from pathlib import Path

import edgewise as ew


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a language model (config, tokenizer, safetensors)")
    parser.add_argument("--recipe", default=Path(__file__).with_name("recipe.toml"))
    parser.add_argument("--devices", type=int, default=2, help="wait for so many before the first round")
    parser.add_argument("--folder", default="edgewise-server", help="keys, database and runs of this server")
    parser.add_argument("--listen", default="127.0.0.1:8443")
    parser.add_argument("--url", default="", help="by which devices reach this server")
    given = parser.parse_args()

    with ew.Server(
        given.recipe,
        model=given.model,  # client and server load the same files
        strategy={"kind": "fedavgm", "momentum": 0.5},  # the server's optimizer; the recipe's, if left out
        folder=given.folder,
        listen=given.listen,
        public_url=given.url,
    ) as server:
        print(f"serving {server.url}")
        print(f"token   {server.token(uses=given.devices)}", flush=True)  # hand it over in private
        server.wait_for(devices=given.devices)
        for round in server:  # the next round is played when the loop asks for it
            print(round, flush=True)
            # round.metrics    the devices' losses, averaged inside the hidden sum
            # round.tensors()  the adapter so far;  break  leaves the run for the next start
        print(f"finished: {server.run_dir}", flush=True)


if __name__ == "__main__":
    main()
