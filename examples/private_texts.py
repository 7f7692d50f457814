"""Differential privacy in twenty lines: python examples/private_texts.py [OUT]"""

import sys

import edgewise as ew

texts = {f"phone-{i:02d}": [f"note {i}: call the harbour office about berth {i}. " * 20] for i in range(40)}
fed = ew.Federation(
    ew.Recipe(
        privacy="distributed_dp",  # devices add noise; the server sees masked sums only
        epsilon=8.0, rounds=2, sequence_len=32, name="private",  # delta, clip and cohorts follow from the 40 devices
        trainable={"rank": 2},
        compare={"local_only": False, "centralised": False},
    ),
    data=texts,
)  # fmt: skip
print(fed.check(fast=True))  # who learns what, the cost of a round, and the chosen values
run = fed.run(sys.argv[1] if len(sys.argv) > 1 else "private-texts", overwrite=True)
print("epsilon spent", run.rounds.column("epsilon"))
