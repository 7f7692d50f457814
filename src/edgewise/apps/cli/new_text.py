"""Text of a new recipe: the keys that a first run may change, each with a comment on its meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgewise.plan.recipe import first_run
from edgewise.plan.recipe.privacy import DP_WORDS

Facts = Mapping[str, Any]
MEANS = {"owner": "its values are the devices", "text": "the text to train on"}
WORD = {
    "none": "the server sees each update",
    "hidden": "masks hide each update, the server sees sums only; sums are not noised (no epsilon)",
    "central_dp": "the trusted server adds noise to the sum: readers of the models learn at most epsilon",
    "distributed_dp": "devices add noise under masks: server and readers learn at most epsilon",
    "local_dp": "each device adds all the noise itself: the server learns at most epsilon from its messages",
}
SEQUENCE_LEN = 64  # Tokens of a block, unless blocks must also hold prompts.
AT = 34  # Column of the comments.
UNIT = {
    "device": "epsilon covers all text of a device",
    "example": "each step is noised (DP-SGD): epsilon covers single blocks of a device's text",
}


def new_recipe_text(facts: Facts, s: Facts) -> str:
    """Write the text of a whole recipe for `edgewise new`.

    Args:
        facts: ``name``, ``privacy``, ``unit``, ``data``, ``devices``, ``hints``.
        s: the numbers of a first run (``new_recipe._first_settings``).
    """
    word, example = facts["privacy"], facts["unit"] == "example"
    noised = word in DP_WORDS and not example  # Noise is added to whole updates.
    parts = [
        _recipe_head(facts),
        _model_table(facts),
        _data_table(facts, s),
        *([_dp_table(example, s)] if word in DP_WORDS else []),
        *([_trust_table(facts, s)] if "corrupt" in s else []),
        _round_table(facts, s),
        _training_table(noised, s),
        *([_strategy_table()] if noised else []),
        *([_merge_table()] if "corrupt" in s else []),
        *_stage_tables(word, noised),
        _measuring_tables(s),
        _simulation_table(s),
    ]
    return "\n".join(parts)


def _assignment_line(assignment: str, comment: str = "") -> str:
    """Write an assignment with its comment in a column."""
    return f"{assignment:<{AT - 2}}  # {comment}\n" if comment else f"{assignment}\n"


def _toml_value(x: Any) -> str:
    """Write a value as TOML."""
    return json.dumps(x, ensure_ascii=False)


def _toml_table(head: str, lines: Sequence[tuple[str, str]]) -> str:
    """Write a table with its comments."""
    return f"{head}\n" + "".join(_assignment_line(assignment, comment) for assignment, comment in lines)


def _assignments(values: Mapping[str, Any], comments: Mapping[str, str]) -> list[tuple[str, str]]:
    """Write a table's keys as assignments, each with its comment."""
    return [(f"{key} = {_toml_value(value)}", comments.get(key, "")) for key, value in values.items()]


def _recipe_head(facts: Facts) -> str:
    """Write the top of the recipe."""
    name, word = facts["name"], facts["privacy"]
    return (
        f"# A federation of {facts['devices']:,} devices. Change any key. `edgewise explain training.lr` explains a\n"
        "# key, and `edgewise schema` lists all keys.\n"
        "#\n"
        "#   edgewise check FILE               estimate its cost and privacy\n"
        "#   edgewise sim FILE --out DIR       run it; after an interruption, --resume continues it\n"
        "#   edgewise export DIR --dest MODEL  write the model for transformers\n\n"
        + _assignment_line("schema = 1", "version of the format")
        + _assignment_line(f"name = {_toml_value(name)}", "name of the run's folder")
        + _assignment_line("seed = 0", "the same seed gives the same model")
        + _assignment_line(f"privacy = {_toml_value(word)}", WORD[word])
    )


def _model_table(facts: Facts) -> str:
    """Write [model] and [trainable]."""
    base = _toml_table(
        "[model]",
        [
            (
                f"base = {_toml_value(facts['base'])}",
                '"bundled", a folder with a transformers model, or "hub:owner/name"',
            )
        ],
    )
    if facts["privacy"] in DP_WORDS:
        kind = (
            'kind = "lora"',
            "adapters; with noise, factor A is fixed, so that noise enters their product only once",
        )
    elif facts["base"] == "bundled":
        kind = ('kind = "full"', 'all parameters; "lora" (adapters) or "layers" for models above some 10 million')
    else:
        kind = ('kind = "lora"', 'adapters; "full" trains all parameters, "layers" those of some layers')
    return base + "\n" + _toml_table("[trainable]", [kind])


def _data_table(facts: Facts, s: Facts) -> str:
    """Write [data]."""
    d, hints = facts["data"], facts["hints"]
    sources = {
        "text": "each sub-folder is a device, and each file beside them",
        "python-stdlib": "source text of this machine's Python",
    }
    lines = [
        (f"source = {_toml_value(d['source'])}", sources.get(d["source"], "one row is one document")),
        (f"path = {_toml_value(d['path'])}", "relative to this file's folder; a list or a pattern works too"),
    ]
    if "header" in d:
        first = "the first line names the columns" if d["header"] else "the first line is data: columns have numbers"
        lines.append((f"header = {_toml_value(d['header'])}", first))
    if d["source"] != "text":
        lines += _column_keys(d, hints)
    if "owner" in d:
        lines.append((f"owner = {_toml_value(d['owner'])}", f"{MEANS['owner']}: {facts['devices']:,} here"))
    if "devices" in d:
        lines += [
            (f"partition = {_toml_value(d['partition'])}", "deals the text out at random, without owners"),
            (f"devices = {d['devices']}", "to so many devices"),
        ]
    lines += [
        (f"sequence_len = {s['sequence_len']}", "tokens of a training block; more for long texts and large models"),
        ("holdout = 0.1", "share of each device's text, its latest part, that is held out for measuring"),
    ]
    return _toml_table("[data]", lines)


def _column_keys(d: Facts, hints: Facts) -> list[tuple[str, str]]:
    """List the keys that name the columns of a row, and their order."""
    names = {"prompt": "question", "time": "date"} if d.get("header", True) else {"prompt": "3", "time": "4"}
    if "messages" in d:
        lines = [
            (
                f"messages = {_toml_value(d['messages'])}",
                "chats in the model's chat template; training is on the answers",
            )
        ]
    elif "prompt" in d:
        lines = [
            (f"text = {_toml_value(d['text'])}", MEANS["text"]),
            (f"prompt = {_toml_value(d['prompt'])}", "context that the model reads but does not train on"),
        ]
    else:
        lines = [
            (f"text = {_toml_value(d['text'])}", MEANS["text"]),
            (
                f"# prompt = {_toml_value(hints.get('prompt', names['prompt']))}",
                "context that the model reads but does not train on",
            ),
        ]
    order = "the latest rows are held out; without it the last rows of the file"
    return [*lines, (f"# time = {_toml_value(hints.get('time', names['time']))}", order)]


def _dp_table(example: bool, s: Facts) -> str:
    """Write [dp]."""
    of = "one block's gradient" if example else "one device's update"
    lines = [
        *([('unit = "example"', UNIT["example"])] if example else []),
        ("epsilon = 8.0", "budget for all rounds together; it decides the noise multiplier"),
        (f"delta = {s['delta']:g}", f"below 1 / (number of {'blocks' if example else 'devices'})^1.1"),
        (f"clip_l2 = {first_run.CLIP_L2}", f"largest L2 norm of {of}"),
    ]
    if example:
        lines.append(("sample_rate = 0.1", "probability that a step uses a block"))
    return _toml_table("[dp]", lines)


def _trust_table(facts: Facts, s: Facts) -> str:
    """Write [trust]."""
    bound = f"{s['corrupt']:,} of {facts['devices']:,} devices may work with a lying server"
    return _toml_table("[trust]", [(f"malicious_fraction = {s['fraction']:g}", bound)])


def _round_table(facts: Facts, s: Facts) -> str:
    """Write [round]."""
    lines = [(f"rounds = {s['rounds']}", "")]
    if s["sampling"] == "all":
        lines.append(('sampling = "all"', 'every device in every round; "fixed" draws a cohort'))
    else:
        drawn = "groups take turns" if s["sampling"] == "cyclic" else "each round draws a new cohort"
        lines += [
            (f"sampling = {_toml_value(s['sampling'])}", drawn),
            (f"cohort = {s['cohort']}", f"devices of a round, of {facts['devices']:,}"),
        ]
    lines.append((f"minimum = {s['minimum']:g}", "a round with a smaller share of answers is abandoned"))
    return _toml_table("[round]", lines)


def _training_table(noised: bool, s: Facts) -> str:
    """Write [training]."""
    if noised:
        comments = {
            "optimizer": "one plain step: the update is the gradient, which the clip bounds",
            "lr": "the clip bounds the update's length; [strategy] sets the step size",
            "local_steps": "steps of a device in a round",
            "batch": "blocks of a step",
            "clip_grad": "off: the whole update is clipped instead",
        }
        lines = _assignments(first_run.TRAINING, comments)
    else:
        lines = [
            ('optimizer = "adamw"', 'or "muon" or "sgd"'),
            ("lr = 2e-3", "learning rate in round 0; 1e-2 suits adapters"),
            (f"local_steps = {s['steps']}", "steps of a device in a round"),
            ("batch = 4", "blocks of a step"),
        ]
    return _toml_table("[training]", lines)


def _strategy_table() -> str:
    """Write [strategy]."""
    comments = {"kind": "the server's optimizer", "lr": "how far the server moves in a round"}
    return _toml_table("[strategy]", _assignments(first_run.STRATEGY, comments))


def _merge_table() -> str:
    """Write [merge]."""
    return _toml_table(
        "[merge]", [('kind = "secure_sum"', 'masks that cancel in the sum; "shared_sum" with two servers')]
    )


def _stage_tables(word: str, noised: bool) -> list[str]:
    """List the stages of an update, in order. The privacy word itself appends the noise, its grid and its ring."""
    if noised:
        return []
    weigh = _toml_table(
        "[[stage]]", [('kind = "weigh"', "weight devices by their tokens; leave it out for equal weights")]
    )
    if word in DP_WORDS:
        weigh = ""
    if word != "hidden":
        return [*([weigh] if weigh else []), _toml_table("[[stage]]", [
            ('kind = "quantize"', "few bits for each coordinate"), ("bits = 4", "7.5 times fewer bytes than float32"),
        ])]  # fmt: skip
    return [
        weigh,
        _toml_table(
            "[[stage]]",
            [('kind = "clip"', "masks need one grid for all, so the whole update is bounded"), ("l2 = 4.0", "")],
        ),
        _toml_table("[[stage]]", [('kind = "rotate"', "spreads large coordinates evenly")]),
        _toml_table(
            "[[stage]]",
            [
                ('kind = "clamp"', "bounds each coordinate"),
                ("stds = 4.0", "in standard deviations of a coordinate of a clipped update"),
            ],
        ),
        _toml_table("[[stage]]", [('kind = "quantize"', ""), ("bits = 4", ""), ('grid = "shared"', "")]),
        _toml_table("[[stage]]", [('kind = "wrap"', "integers into the ring of the masks")]),
    ]


def _measuring_tables(s: Facts) -> str:
    """Write [eval] and [compare]."""
    evaluate = [
        ("every = 2", "rounds between measurements on held-out text"),
        (f"devices = {s['measured']}", "number of measured devices; 0 = all"),
        ("max_tokens = 1024", "held-out tokens of each device"),
    ]
    compare = [
        ("local_only = true", "each device alone: the baseline that federating has to beat"),
        (
            "centralised = false",
            "all text in one place: shows the cost of keeping text apart; takes as long as the run",
        ),
    ]
    return _toml_table("[eval]", evaluate) + "\n" + _toml_table("[compare]", compare)


def _simulation_table(s: Facts) -> str:
    """Write [simulation]."""
    if s["workers"] < 2:
        return _toml_table("[simulation]", [('engine = "inproc"', '"pool" uses several processors')])
    workers = min(8, s["workers"])
    return _toml_table(
        "[simulation]",
        [('engine = "pool"', '"inproc": one process'), (f"workers = {workers}", "processes, each about 0.7 GB")],
    )
