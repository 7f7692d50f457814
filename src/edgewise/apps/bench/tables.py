"""The tables that ``edgewise bench reproduce`` plays, and the ones that a program in ``benchmarks/`` measures.

All use the bundled model of 1.4 million parameters and the plays that ship: 24 characters are the devices, each with
its own lines. So figures are never those of the articles. What can agree is the order of methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgewise.apps.bench.table import Claim, Column, Method, PaperTable, Published
from edgewise.core.errors import EdgewiseError
from edgewise.plan.recipe.findings import nearest

PERPLEXITY = Column("perplexity", ("perplexity", "federated", "weighted_mean"))
WORST = Column("worst tenth", ("perplexity", "federated", "worst_decile"))
UP = Column("MB up", ("bytes", "up_total"), 1e6, 3)
DOWN = Column("MB down", ("bytes", "down_total"), 1e6, 3)


def _recipe(rounds: int, training: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """Build the settings that the rows of a table share."""
    return {
        "privacy": "none",
        "data": {"source": "plays", "partition": "owner", "sequence_len": 32, "max_tokens": 1200},
        "round": {"rounds": rounds, "sampling": "fixed", "cohort": 6, "overselect": 1.0},
        "training": {"batch": 4, **training},
        "eval": {"every": 0, "max_tokens": 256},
        "compare": {"local_only": False, "centralised": False},
        "simulation": {"engine": "inproc"},
        **sections,
    }


SERVER_RULES = PaperTable(
    name="T1",
    title="Server optimizers",
    minutes=5,
    recipe=_recipe(8, {"optimizer": "sgd", "lr": 0.5, "local_steps": 4, "schedule": "constant"}),
    rows=(
        Method("FedAvg", {"strategy": {"kind": "fedavg"}}),
        Method("FedAvgM", {"strategy": {"kind": "fedavgm", "lr": 0.316}}),
        Method("Nesterov .8", {"strategy": {"kind": "fedavgm", "lr": 0.4, "momentum": 0.8, "nesterov": True}}),
        Method("FedAdam", {"strategy": {"kind": "fedadam"}}),
        Method("FedYogi", {"strategy": {"kind": "fedyogi"}}),
        Method("FedAdagrad", {"strategy": {"kind": "fedadagrad", "lr": 0.316, "tau": 0.1}}),
    ),
    columns=(PERPLEXITY, WORST, UP),
    published=(
        Published(
            "Reddi et al. 2021",
            "https://arxiv.org/abs/2003.00295",
            "Shakespeare and six other tasks, models from scratch, 1,200 rounds of 10 of 715 clients for Shakespeare",
            "the abstract: adaptive server optimizers improve on FedAvg significantly. The server rates of this table "
            "are those that its code gives for Shakespeare",
        ),
    ),
    claims=(Claim("FedAdam", "FedAvg"), Claim("FedYogi", "FedAvg"), Claim("FedAdagrad", "FedAvg")),
    differs=(
        "A pretrained model, 8 rounds instead of 1,200, and rates that were chosen for another model. Clients take "
        "SGD steps, as in the article; its rate of 1 for clients is halved."
    ),
)

LORA_RULES = PaperTable(
    name="T3",
    title="Rules that average LoRA adapters",
    minutes=4,
    recipe=_recipe(6, {"lr": 5e-3, "local_steps": 4}, trainable={"kind": "lora", "rank": 8, "alpha": 16.0}),
    rows=tuple(Method(name, {"trainable.rule": rule}) for name, rule in (
        ("FedIT", "fedit"), ("FFA-LoRA", "ffa"), ("RoLoRA", "rolora"), ("FedEx-LoRA", "fedex"),
    )),
    columns=(PERPLEXITY, WORST, UP, DOWN),
    published=(
        Published(
            "RoLoRA, Chen et al. 2025",
            "https://arxiv.org/abs/2502.01755",
            "five GLUE tasks, RoBERTa-large, 50 clients, rank 4, accuracy",
            "FedIT 70.72, FFA-LoRA 76.48, RoLoRA 85.81",
        ),
        Published(
            "FedEx-LoRA, Singhal et al. 2025",
            "https://arxiv.org/abs/2410.09432",
            "GLUE, RoBERTa-base, 3 clients, rank 4, accuracy",
            "FedIT 82.31, FFA-LoRA 81.95, FedEx-LoRA 83.79",
        ),
    ),
    claims=(
        Claim("RoLoRA", "FFA-LoRA", 0), Claim("FFA-LoRA", "FedIT", 0), Claim("FedEx-LoRA", "FedIT", 1),
        Claim("FedIT", "FFA-LoRA", 1),
    ),
    differs=(
        "The articles contradict each other on FedIT and FFA-LoRA, so not all four claims can hold. Here a run has six "
        "rounds and one rate for all rules. A likely reason for their order: FFA-LoRA and RoLoRA train half of the "
        "parameters in a round, and send half of the bytes. Long runs were not played."
    ),
)  # fmt: skip

ZEROTH_ORDER = PaperTable(
    name="T9",
    title="Seeds and coefficients in place of updates",
    minutes=6,
    recipe=_recipe(6, {"local_steps": 10}),
    rows=(
        Method("whole model", {"training.lr": 1e-3}),
        Method("LoRA", {"training.lr": 5e-3, "trainable": {"kind": "lora", "rank": 8, "alpha": 16.0, "rule": "fedit"}}),
        Method(
            "FedKSeed",
            {
                "stage": [], "strategy": {"kind": "zeroth_order", "seeds": 4096},
                "training.optimizer": "sgd", "training.lr": 3e-3, "training.schedule": "constant",
            },
        ),
    ),
    columns=(PERPLEXITY, Column("kB up a device and round", ("bytes", "up_per_device_round"), 1e3), UP),
    published=(
        Published(
            "FedKSeed, Qin et al. 2024",
            "https://arxiv.org/abs/2312.06353",
            "instructions, models of 1.3 and 3 billion parameters, 200 steps a round, Rouge-L on Natural Instructions "
            "with 1.3 billion",
            "whole model 23.95, FedIT 22.30, FedKSeed 22.33; less than 18 kB a round",
        ),
    ),
    claims=(Claim("FedKSeed", "LoRA", 0, 0.02), Claim("whole model", "LoRA", 0)),
    differs=(
        "A step along a random direction gains less the more there is to learn. The article adapts a model that "
        "follows instructions already. Here the text is far from what the model knows, and a round has 10 steps. "
        "The rate of FedKSeed is the best of six over two rounds of another seed; the others were not searched."
    ),
)  # fmt: skip

TABLES = (SERVER_RULES, LORA_RULES, ZEROTH_ORDER)


@dataclass(frozen=True)
class Elsewhere:
    """A table that another program measures: its command, and what it needs that does not ship."""

    name: str
    title: str
    command: str
    needs: str


MEASURED_ELSEWHERE = (
    Elsewhere("T2", "Codecs by bytes", "python benchmarks/frontier.py --task demo --out demo.jsonl", "an hour"),
    Elsewhere("T4", "Personal models", "python benchmarks/personal.py --data DIR --tasks clinc,sgd", "CLINC150, SGD"),
    Elsewhere("T7", "Differential privacy", "python benchmarks/dp_utility.py --data DIR --out dp.jsonl", "all plays"),
    Elsewhere("T8", "Devices that lie", "python benchmarks/byzantine.py --shares 0.2", "an hour"),
    Elsewhere("T10", "Split learning", "python benchmarks/split_inversion.py --cuts 1,3", "half an hour"),
    Elsewhere("T11", "Wake words", "python benchmarks/smart_home.py WAKE_WORDS.npz", "recordings of wake words"),
    Elsewhere(
        "T12", "Text that drifts", "python benchmarks/continual.py --seeds 3 --orders 2 --ways fine-tuning replay",
        "half an hour",
    ),
)  # fmt: skip
NOT_MEASURED = {
    "T5": "Intents of CLINC150 and Banking77: no program trains intents yet.",
    "T6": "Summaries of MTS-Dialog: `edgewise eval` has ROUGE-L, and no table of these notes is recorded.",
}


def chosen_tables(names: tuple[str, ...]) -> tuple[PaperTable, ...]:
    """Return the tables with these names; ``all`` stands for all of them.

    Raises EdgewiseError: E-MISSING without a name, E-UNKNOWN for a name that is not there or is measured elsewhere.
    """
    known = {table.name: table for table in TABLES}
    fix = f"name some of {', '.join(known)}, or all. `edgewise bench reproduce --list` describes them."
    if not names:
        raise EdgewiseError("E-MISSING", "no table was named.", fix)
    if "all" in names:
        return TABLES
    wanted = dict.fromkeys(name.upper() for name in names)
    for name in wanted:
        if name in known:
            continue
        for other in MEASURED_ELSEWHERE:
            if other.name == name:
                what = f"another program measures {name}. It needs {other.needs}."
                raise EdgewiseError("E-UNKNOWN", what, f"run `{other.command}` in the project's folder.")
        if name in NOT_MEASURED:
            raise EdgewiseError("E-UNKNOWN", f"nothing measures {name}. {NOT_MEASURED[name]}", fix)
        near = nearest(name, known)
        what = f"no table is called {name!r:.40}."
        raise EdgewiseError("E-UNKNOWN", what, f"did you mean {near}? {fix}" if near else fix)
    return tuple(known[name] for name in wanted)
