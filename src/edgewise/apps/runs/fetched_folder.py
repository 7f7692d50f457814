"""Names of the files in the folder that ``edgewise models fetch`` writes, and that a model is opened from."""

TRAINED = "trained.safetensors"  # trained tensors by name
BASE = "base"  # folder with the files of the base model, where the server has them
LINEAGE = "lineage.json"  # the server's answer: run, round, digests, who promoted it
FACTS = "facts.json"  # signed facts of the run
