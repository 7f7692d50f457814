"""Token ids and loss masks of chat data beside those of TRL's SFT trainer, on the same rows.

    python benchmarks/sft_masks.py --dialogues FILE.jsonl.gz --rows 1000
    python benchmarks/sft_masks.py --vectors tests/unit/learn/text/sft_masks.json     # of the chats below

It needs `trl` and `datasets`. A line of the file is ``{"text": "U: ...\\nA: ...\\nU: ..."}``, as the schema-guided
dialogues. Both sides tokenize every chat with the bundled tokenizer and two more special tokens. A row is equal if all
token ids, and the mask of the tokens that are learnt, are equal up to the last token that edgewise learns, and TRL
learns none after it.

One difference is known and wanted. Where a template has no marks and an answer begins with a space or a line break,
edgewise tokenizes the prompt by itself, as the model reads it in use. TRL tokenizes prompt and answer as one text. A
token may then reach across the border, and TRL warns of it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

MARKED = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
SYSTEM = {"role": "system", "content": "You help a caller with one service at a time."}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Find a place.", "parameters": {}}}


def chat(*said: str) -> list[dict[str, str]]:
    """A chat in which a user and the assistant take turns."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


CHATS = [
    chat("When does the ferry leave?", "At nine."),
    chat("Is the bakery open?", "Yes, until six.\nIt closes at noon on Sundays.", "Thank you!"),
    chat("How late is it?", "Es ist ½ vier.", "def f(x):\n    return x", "That returns `x` — unchanged.", "ok", "ok."),
    chat("<b>3 > 2</b>", "true", "", "Please write something."),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=Path, help="chats of a file. Without it the chats of this program")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--vectors", type=Path, help="write the rows of each case, with TRL's ids and masks")
    asked = parser.parse_args()
    chats = list(islice(dialogues(asked.dialogues), asked.rows)) if asked.dialogues else CHATS
    print(f"{len(chats)} chats, {sum(map(len, chats))} messages")
    print("| data | TRL's option | rows | equal | tokens | learnt |")
    print("| --- | --- | --- | --- | --- | --- |")
    vectors, failed = [], 0
    for name, option, template, rows in cases(chats):
        theirs = trl_masks(rows, template, option)
        ours = own_masks(rows, template)
        equal = [same(a, b) for a, b in zip(ours, theirs, strict=True)]
        failed += len(equal) - sum(equal)
        tokens, learnt = sum(len(row[0]) for row in ours), sum(sum(row[1]) for row in ours)
        print(f"| {name} | `{option}` | {len(rows)} | {sum(equal)} | {tokens:,} | {learnt:,} |")
        for row, (ids, mask) in zip(rows, theirs, strict=True):
            vectors.append({"case": name, "template": template, "row": row, "ids": ids, "learnt": mask})
    if asked.vectors:
        asked.vectors.write_text(json.dumps(vectors, separators=(",", ":")), encoding="utf-8")
    sys.exit(bool(failed))


def dialogues(path: Path) -> Iterator[list[dict[str, str]]]:
    role = {"U": "user", "A": "assistant"}
    with gzip.open(path, "rt", encoding="utf-8") as f:
        for line in f:
            turns = [turn.partition(": ") for turn in json.loads(line)["text"].split("\n")]
            chat = [{"role": role[who], "content": said} for who, _, said in turns if who in role]
            if any(m["role"] == "assistant" for m in chat):
                yield chat


def cases(chats: list[list[dict[str, str]]]) -> Iterator[tuple[str, str, str, list[dict[str, Any]]]]:
    yield "messages, template with marks", "assistant_only_loss", MARKED, [{"messages": c} for c in chats]
    system = [{"messages": [SYSTEM, *c]} for c in chats]
    yield "the same with a system message", "assistant_only_loss", MARKED, system
    tools = [{"messages": c, "tools": [TOOL]} for c in chats]
    yield "the same with tools", "assistant_only_loss", MARKED, tools
    last = [(c, max(i for i, m in enumerate(c) if m["role"] == "assistant")) for c in chats]
    pairs = [{"prompt": c[:i], "completion": c[i : i + 1]} for c, i in last]
    yield "prompt and completion as messages, template without marks", "completion_only_loss", PLAIN, pairs
    texts = [{"prompt": c[i - 1]["content"] + "\n", "completion": c[i]["content"]} for c, i in last if i]
    yield "prompt and completion as text", "completion_only_loss", PLAIN, texts


def tokenizer(template: str) -> Any:
    from importlib import resources

    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(Path(str(resources.files("edgewise"))) / "assets" / "student")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = template
    return made


def trl_masks(rows: list[dict[str, Any]], template: str, option: str) -> list[tuple[list[int], list[int]]]:
    """Token ids and masks as TRL's own trainer prepares them."""
    from datasets import Dataset, disable_progress_bars
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    made = tokenizer(template)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(made), **sizes))
    with tempfile.TemporaryDirectory() as out:
        args = SFTConfig(output_dir=out, max_length=None, use_cpu=True, report_to=[], bf16=False, **{option: True})
        trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=made)
        prepared = list(trainer.train_dataset)
    return [(list(r["input_ids"]), [int(label != -100) for label in r["labels"]]) for r in prepared]


def own_masks(rows: list[dict[str, Any]], template: str) -> list[tuple[list[int], list[int]]]:
    """Token ids and masks of edgewise, from the code that makes blocks of the rows."""
    from edgewise.learn.text.tokens import Tokens

    tokens = Tokens(tokenizer(template))
    return [own_mask(row, tokens) for row in rows]


def own_mask(row: dict[str, Any], tokens: Any) -> tuple[list[int], list[int]]:
    import numpy as np

    from edgewise.learn.text import messages
    from edgewise.learn.text.blocks import build
    from edgewise.learn.text.corpus import Document
    from edgewise.plan.recipe.data import DataSection

    keys: dict[str, Any] = {"source": "jsonl", "path": "rows.jsonl", "owner": "who", "sequence_len": 8192}
    if isinstance(row.get("prompt"), str):
        section = DataSection(**keys, prompt="prompt", text="completion")
        document = Document("row", row["prompt"], row["completion"])
    else:
        chat = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
        section = DataSection(**keys, messages="messages", answers="all" if "messages" in row else "last")
        document = Document("row", *messages.pack_chat(chat, row.get("tools"), section.answers == "last"))
    (ids,) = build([document], tokens, section, cut_each=False).train_NS
    ids = ids[: int(np.flatnonzero(ids >= 0)[-1]) + 1]  # Nothing after the last learnt token counts.
    return np.where(ids < 0, ~ids, ids).tolist(), (ids >= 0).astype(int).tolist()


def same(ours: tuple[list[int], list[int]], theirs: tuple[list[int], list[int]]) -> bool:
    """Compare ids and masks. A start token that we alone add is never learnt, and no part of the comparison."""
    (a, learnt), (b, mask) = ours, theirs
    if len(a) == len(b) + 1 and not learnt[0]:
        a, learnt = a[1:], learnt[1:]
    return a == b[: len(a)] and learnt == mask[: len(a)] and not any(mask[len(a) :])


if __name__ == "__main__":
    main()
