"""The text of a new recipe: every key that a first run may want to change, with what it means beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgewise.plan.recipe.privacy import DP_WORDS

Facts = Mapping[str, Any]
MEANS = {"owner": "its values are the devices", "text": "what is trained on"}
WORD = {
    "none": "the server sees each update",
    "hidden": "masks hide each update, the server sees sums only; sums are not noised (no epsilon)",
    "central_dp": "the server, which is trusted, adds noise to the sum: readers of the models learn at most epsilon",
    "distributed_dp": "devices add noise under masks: server and readers learn at most epsilon",
    "local_dp": "each device adds all the noise itself: the server learns at most epsilon of what it sends",
}
SEQUENCE_LEN = 64  # tokens, where rows have no prompts that are to be in sight
AT = 34  # column of the comments
UNIT = {
    "device": "epsilon is about all text of a device",
    "example": "each step is noised (DP-SGD): epsilon is for single blocks of a device's text",
}


def text(facts: Facts, s: Facts) -> str:
    """The whole recipe. ``facts``: ``name``, ``privacy``, ``unit``, ``data``, ``devices``, ``hints``; ``s``: the
    numbers."""
    word, example = facts["privacy"], facts["unit"] == "example"
    noised = word in DP_WORDS and not example  # whole updates are
    parts = [
        _head(facts),
        _model(facts),
        _data(facts, s),
        *([_dp(word, example, s)] if word in DP_WORDS else []),
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


def _head(facts: Facts) -> str:
    name, word = facts["name"], facts["privacy"]
    return (
        f"# A federation of {facts['devices']:,} devices. Change what you like: `edgewise explain training.lr` says\n"
        "# what a key means, and `edgewise schema` lists all of them.\n"
        "#\n"
        "#   edgewise check FILE               what it will do, cost and reveal\n"
        "#   edgewise sim FILE --out DIR       play it; kill it anywhere, --resume goes on\n"
        "#   edgewise export DIR --dest MODEL  the model, for transformers\n\n"
        + _line("schema = 1", "version of the format")
        + _line(f"name = {_value(name)}", "names the run's folder")
        + _line("seed = 0", "the same seed gives the same model")
        + _line(f"privacy = {_value(word)}", WORD[word])
    )


def _model(facts: Facts) -> str:
    base = _table(
        "[model]",
        [(f"base = {_value(facts['base'])}", '"bundled", a folder with a transformers model, or "hub:owner/name"')],
    )
    if facts["privacy"] in DP_WORDS:
        kind = ('kind = "ffa_lora"', "adapters whose A is fixed: noise enters their product once")
    elif facts["base"] == "bundled":
        kind = ('kind = "full"', 'all parameters; "lora" (adapters) or "layers" for models above some 10 million')
    else:
        kind = ('kind = "lora"', 'adapters; "full" trains all parameters, "layers" those of some layers')
    return base + "\n" + _table("[trainable]", [kind])


def _data(facts: Facts, s: Facts) -> str:
    d, hints = facts["data"], facts["hints"]
    said = {
        "text": "each sub-folder is a device, and each file beside them",
        "python-stdlib": "source text of this machine's Python",
    }
    lines = [
        (f"source = {_value(d['source'])}", said.get(d["source"], "one row is one document")),
        (f"path = {_value(d['path'])}", "from this file's folder; also a list or a pattern"),
    ]
    if "header" in d:
        said_of = "the first line names the columns" if d["header"] else "the first line is data: columns have numbers"
        lines.append((f"header = {_value(d['header'])}", said_of))
    if d["source"] != "text":
        lines += _columns(d, hints)
    if "owner" in d:
        lines.append((f"owner = {_value(d['owner'])}", f"{MEANS['owner']}: {facts['devices']:,} here"))
    if "devices" in d:
        lines += [
            (f"partition = {_value(d['partition'])}", "deals the text out at random; nobody owns a part of it"),
            (f"devices = {d['devices']}", "to so many devices"),
        ]
    lines += [
        (f"sequence_len = {s['sequence_len']}", "tokens of a training block; more for long texts and large models"),
        ("holdout = 0.1", "share of each device's text, its latest part, that only measures"),
    ]
    return _table("[data]", lines)


def _columns(d: Facts, hints: Facts) -> list[tuple[str, str]]:
    """What is read of a row, and in which order."""
    names = {"prompt": "question", "time": "date"} if d.get("header", True) else {"prompt": "3", "time": "4"}
    if "messages" in d:
        lines = [(f"messages = {_value(d['messages'])}", "chats, by the model's chat template; answers are trained on")]
    elif "prompt" in d:
        lines = [
            (f"text = {_value(d['text'])}", MEANS["text"]),
            (f"prompt = {_value(d['prompt'])}", "context that is read and not trained on"),
        ]
    else:
        lines = [
            (f"text = {_value(d['text'])}", MEANS["text"]),
            (f"# prompt = {_value(hints.get('prompt', names['prompt']))}", "context that is read and not trained on"),
        ]
    order = "the latest rows are held out; else the last of the file"
    return [*lines, (f"# time = {_value(hints.get('time', names['time']))}", order)]


def _dp(word: str, example: bool, s: Facts) -> str:
    of = "one block's gradient" if example else "one device's update"
    lines = [
        *([('unit = "example"', UNIT["example"])] if example else []),
        ("epsilon = 8.0", "budget of all rounds together; the noise multiplier follows from it"),
        (f"delta = {s['delta']:g}", f"below 1 / (number of {'blocks' if example else 'devices'})^1.1"),
        ("clip_l2 = 1.0", f"largest L2 norm of {of}"),
    ]
    if example:
        lines.append(("sample_rate = 0.1", "probability with which a step takes each block"))
    return _table("[dp]", lines)


def _trust(facts: Facts, s: Facts) -> str:
    said = f"{s['corrupt']:,} of {facts['devices']:,} devices may work with a lying server"
    return _table("[trust]", [(f"malicious_fraction = {s['fraction']:g}", said)])


def _round(facts: Facts, s: Facts) -> str:
    lines = [(f"rounds = {s['rounds']}", "")]
    if s["sampling"] == "all":
        lines.append(('sampling = "all"', 'every device in every round; "fixed" draws a cohort'))
    else:
        drawn = "groups take turns" if s["sampling"] == "cyclic" else "a cohort is drawn anew for each round"
        lines += [
            (f"sampling = {_value(s['sampling'])}", drawn),
            (f"cohort = {s['cohort']}", f"devices of a round, of {facts['devices']:,}"),
        ]
    lines.append((f"minimum = {s['minimum']:g}", "share of them without which a round is abandoned"))
    return _table("[round]", lines)


def _training(noised: bool, s: Facts) -> str:
    if noised:
        lines = [
            ('optimizer = "sgd"', "one plain step: the update is the gradient, which the clip bounds"),
            ("lr = 1.0", "its length is the clip's business; [strategy] sets the pace"),
            ('schedule = "constant"', ""),
            ("local_steps = 1", "steps of a device in a round"),
            ("batch = 8", "blocks of a step"),
            ("clip_grad = 0.0", "off: the clip of the whole update does it"),
        ]
    else:
        lines = [
            ('optimizer = "adamw"', '"muon" and "sgd" are there too'),
            ("lr = 2e-3", "learning rate in round 0; 1e-2 suits adapters"),
            (f"local_steps = {s['steps']}", "steps of a device in a round"),
            ("batch = 4", "blocks of a step"),
        ]
    return _table("[training]", lines)


def _strategy() -> str:
    return _table(
        "[strategy]",
        [
            ('kind = "fedadam"', "the server's optimizer"),
            ("lr = 0.002", "how far the server moves in a round"),
            ("tau = 1e-4", ""),
        ],
    )


def _merge() -> str:
    return _table("[merge]", [('kind = "secure_sum"', 'masks that cancel in the sum; "shared_sum" with two servers')])


def _stages(word: str, noised: bool) -> list[str]:
    """How an update travels, in order. Noise, its grid and its ring are put behind by the privacy word itself."""
    if noised:
        return []
    weigh = _table(
        "[[stage]]", [('kind = "weigh"', "devices count by their tokens; leave it out to count all the same")]
    )
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
            [('kind = "clip"', "masks need one grid for all: a bound on the whole update,"), ("l2 = 4.0", "")],
        ),
        _table("[[stage]]", [('kind = "rotate"', "no coordinate stands out,")]),
        _table(
            "[[stage]]",
            [
                ('kind = "clamp"', "a bound on each coordinate:"),
                ("stds = 4.0", "standard deviations that the clip and the number of parameters leave it"),
            ],
        ),
        _table("[[stage]]", [('kind = "quantize"', ""), ("bits = 4", ""), ('grid = "shared"', "")]),
        _table("[[stage]]", [('kind = "wrap"', "integers into the ring of the masks")]),
    ]


def _measuring(s: Facts) -> str:
    evaluate = [
        ("every = 2", "rounds between measurements on held-out text"),
        (f"devices = {s['measured']}", "that are measured; 0 = all"),
        ("max_tokens = 1024", "held-out tokens of each"),
    ]
    compare = [
        ("local_only = true", "each device alone: what federating has to beat"),
        ("centralised = false", "all text in one place: what it costs to keep text apart; takes as long as the run"),
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
