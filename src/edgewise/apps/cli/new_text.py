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


def text(facts: Facts, s: Facts) -> str:
    """Write the text of a whole recipe.

    Args:
        facts: ``name``, ``privacy``, ``unit``, ``data``, ``devices``, ``hints``.
        s: the numbers of a first run (``new_recipe._settings``).
    """
    word, example = facts["privacy"], facts["unit"] == "example"
    noised = word in DP_WORDS and not example  # Noise is added to whole updates.
    parts = [
        _head(facts),
        _model(facts),
        _data(facts, s),
        *([_dp(example, s)] if word in DP_WORDS else []),
        *([_trust(facts, s)] if "corrupt" in s else []),
        _round(facts, s),
        _training(noised, s),
        *([_strategy()] if noised else []),
        *([_merge()] if "corrupt" in s else []),
        *_stages(word, noised),
        _measuring(s),
        _simulation(s),
    ]
    return "\n".join(parts)


def _line(assignment: str, comment: str = "") -> str:
    return f"{assignment:<{AT - 2}}  # {comment}\n" if comment else f"{assignment}\n"


def _value(x: Any) -> str:
    return json.dumps(x, ensure_ascii=False)


def _table(head: str, lines: Sequence[tuple[str, str]]) -> str:
    return f"{head}\n" + "".join(_line(assignment, comment) for assignment, comment in lines)


def _assigned(values: Mapping[str, Any], comments: Mapping[str, str]) -> list[tuple[str, str]]:
    """Write a table's keys as assignments, each with its comment."""
    return [(f"{key} = {_value(value)}", comments.get(key, "")) for key, value in values.items()]


def _head(facts: Facts) -> str:
    name, word = facts["name"], facts["privacy"]
    return (
        f"# A federation of {facts['devices']:,} devices. Change any key. `edgewise explain training.lr` explains a\n"
        "# key, and `edgewise schema` lists all keys.\n"
        "#\n"
        "#   edgewise check FILE               estimate its cost and privacy\n"
        "#   edgewise sim FILE --out DIR       run it; after an interruption, --resume continues it\n"
        "#   edgewise export DIR --dest MODEL  write the model for transformers\n\n"
        + _line("schema = 1", "version of the format")
        + _line(f"name = {_value(name)}", "name of the run's folder")
        + _line("seed = 0", "the same seed gives the same model")
        + _line(f"privacy = {_value(word)}", WORD[word])
    )


def _model(facts: Facts) -> str:
    base = _table(
        "[model]",
        [(f"base = {_value(facts['base'])}", '"bundled", a folder with a transformers model, or "hub:owner/name"')],
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
    return base + "\n" + _table("[trainable]", [kind])


def _data(facts: Facts, s: Facts) -> str:
    d, hints = facts["data"], facts["hints"]
    sources = {
        "text": "each sub-folder is a device, and each file beside them",
        "python-stdlib": "source text of this machine's Python",
    }
    lines = [
        (f"source = {_value(d['source'])}", sources.get(d["source"], "one row is one document")),
        (f"path = {_value(d['path'])}", "relative to this file's folder; a list or a pattern works too"),
    ]
    if "header" in d:
        first = "the first line names the columns" if d["header"] else "the first line is data: columns have numbers"
        lines.append((f"header = {_value(d['header'])}", first))
    if d["source"] != "text":
        lines += _columns(d, hints)
    if "owner" in d:
        lines.append((f"owner = {_value(d['owner'])}", f"{MEANS['owner']}: {facts['devices']:,} here"))
    if "devices" in d:
        lines += [
            (f"partition = {_value(d['partition'])}", "deals the text out at random, without owners"),
            (f"devices = {d['devices']}", "to so many devices"),
        ]
    lines += [
        (f"sequence_len = {s['sequence_len']}", "tokens of a training block; more for long texts and large models"),
        ("holdout = 0.1", "share of each device's text, its latest part, that is held out for measuring"),
    ]
    return _table("[data]", lines)


def _columns(d: Facts, hints: Facts) -> list[tuple[str, str]]:
    """List the keys that name the columns of a row, and their order."""
    names = {"prompt": "question", "time": "date"} if d.get("header", True) else {"prompt": "3", "time": "4"}
    if "messages" in d:
        lines = [
            (f"messages = {_value(d['messages'])}", "chats in the model's chat template; training is on the answers")
        ]
    elif "prompt" in d:
        lines = [
            (f"text = {_value(d['text'])}", MEANS["text"]),
            (f"prompt = {_value(d['prompt'])}", "context that the model reads but does not train on"),
        ]
    else:
        lines = [
            (f"text = {_value(d['text'])}", MEANS["text"]),
            (
                f"# prompt = {_value(hints.get('prompt', names['prompt']))}",
                "context that the model reads but does not train on",
            ),
        ]
    order = "the latest rows are held out; without it the last rows of the file"
    return [*lines, (f"# time = {_value(hints.get('time', names['time']))}", order)]


def _dp(example: bool, s: Facts) -> str:
    of = "one block's gradient" if example else "one device's update"
    lines = [
        *([('unit = "example"', UNIT["example"])] if example else []),
        ("epsilon = 8.0", "budget for all rounds together; it decides the noise multiplier"),
        (f"delta = {s['delta']:g}", f"below 1 / (number of {'blocks' if example else 'devices'})^1.1"),
        (f"clip_l2 = {first_run.CLIP_L2}", f"largest L2 norm of {of}"),
    ]
    if example:
        lines.append(("sample_rate = 0.1", "probability that a step uses a block"))
    return _table("[dp]", lines)


def _trust(facts: Facts, s: Facts) -> str:
    bound = f"{s['corrupt']:,} of {facts['devices']:,} devices may work with a lying server"
    return _table("[trust]", [(f"malicious_fraction = {s['fraction']:g}", bound)])


def _round(facts: Facts, s: Facts) -> str:
    lines = [(f"rounds = {s['rounds']}", "")]
    if s["sampling"] == "all":
        lines.append(('sampling = "all"', 'every device in every round; "fixed" draws a cohort'))
    else:
        drawn = "groups take turns" if s["sampling"] == "cyclic" else "each round draws a new cohort"
        lines += [
            (f"sampling = {_value(s['sampling'])}", drawn),
            (f"cohort = {s['cohort']}", f"devices of a round, of {facts['devices']:,}"),
        ]
    lines.append((f"minimum = {s['minimum']:g}", "a round with a smaller share of answers is abandoned"))
    return _table("[round]", lines)


def _training(noised: bool, s: Facts) -> str:
    if noised:
        comments = {
            "optimizer": "one plain step: the update is the gradient, which the clip bounds",
            "lr": "the clip bounds the update's length; [strategy] sets the step size",
            "local_steps": "steps of a device in a round",
            "batch": "blocks of a step",
            "clip_grad": "off: the whole update is clipped instead",
        }
        lines = _assigned(first_run.TRAINING, comments)
    else:
        lines = [
            ('optimizer = "adamw"', 'or "muon" or "sgd"'),
            ("lr = 2e-3", "learning rate in round 0; 1e-2 suits adapters"),
            (f"local_steps = {s['steps']}", "steps of a device in a round"),
            ("batch = 4", "blocks of a step"),
        ]
    return _table("[training]", lines)


def _strategy() -> str:
    comments = {"kind": "the server's optimizer", "lr": "how far the server moves in a round"}
    return _table("[strategy]", _assigned(first_run.STRATEGY, comments))


def _merge() -> str:
    return _table("[merge]", [('kind = "secure_sum"', 'masks that cancel in the sum; "shared_sum" with two servers')])


def _stages(word: str, noised: bool) -> list[str]:
    """List the stages of an update, in order. The privacy word itself appends the noise, its grid and its ring."""
    if noised:
        return []
    weigh = _table("[[stage]]", [('kind = "weigh"', "weight devices by their tokens; leave it out for equal weights")])
    if word in DP_WORDS:
        weigh = ""
    if word != "hidden":
        return [*([weigh] if weigh else []), _table("[[stage]]", [
            ('kind = "quantize"', "few bits for each coordinate"), ("bits = 4", "7.5 times fewer bytes than float32"),
        ])]  # fmt: skip
    return [
        weigh,
        _table(
            "[[stage]]",
            [('kind = "clip"', "masks need one grid for all, so the whole update is bounded"), ("l2 = 4.0", "")],
        ),
        _table("[[stage]]", [('kind = "rotate"', "spreads large coordinates evenly")]),
        _table(
            "[[stage]]",
            [
                ('kind = "clamp"', "bounds each coordinate"),
                ("stds = 4.0", "in standard deviations of a coordinate of a clipped update"),
            ],
        ),
        _table("[[stage]]", [('kind = "quantize"', ""), ("bits = 4", ""), ('grid = "shared"', "")]),
        _table("[[stage]]", [('kind = "wrap"', "integers into the ring of the masks")]),
    ]


def _measuring(s: Facts) -> str:
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
    return _table("[eval]", evaluate) + "\n" + _table("[compare]", compare)


def _simulation(s: Facts) -> str:
    if s["workers"] < 2:
        return _table("[simulation]", [('engine = "inproc"', '"pool" uses several processors')])
    workers = min(8, s["workers"])
    return _table(
        "[simulation]",
        [('engine = "pool"', '"inproc": one process'), (f"workers = {workers}", "processes, each about 0.7 GB")],
    )
