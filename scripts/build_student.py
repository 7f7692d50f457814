#!/usr/bin/env python3
"""Build the small base model that ships with edgewise: corpus -> tokenizer -> teacher -> distilled student -> card.

All text comes from the standard library of the running interpreter, so this needs no network and no data set.
Started again with the same ``--work`` folder, a killed build goes on from its last checkpoint.

    python scripts/build_student.py --work /tmp/student --teacher-minutes 20 --student-minutes 20

Shape letters: B batch, T time (tokens in a sequence), V vocabulary.
"""

import argparse
import hashlib
import json
import math
import platform
import pydoc_data.topics
import shutil
import sys
import sysconfig
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import Module
from torch.optim import AdamW, Muon, Optimizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EOS, PAD = "<|endoftext|>", "<|pad|>"  # ids 0 and 1
VOCAB, CONTEXT = 4096, 512
BATCH_TOKENS = 1024  # per step: four sequences of 256, or (every fourth step) two of 512, so that 512 is not foreign
Loss = Callable[[Module, Tensor, Tensor], Tensor]  # of a model on inputs and targets
TEACHER = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 704}
STUDENT = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384}

# The devices of `edgewise demo code` own these packages and the modules that are merely parts of them: the base model
# must not see them.
DEMO_PACKAGES = {"asyncio", "collections", "concurrent", "ctypes", "email", "html", "http", "importlib", "json", "re"}
DEMO_PACKAGES |= {"logging", "multiprocessing", "unittest", "urllib", "wsgiref", "xml", "xmlrpc"}
DEMO_PARTS = {"sre_compile", "sre_constants", "sre_parse", "_collections_abc", "_markupbase", "zipimport", "imp"}
TABLES = {"encodings", "lib2to3", "pydoc_data", "stringprep"}  # pydoc_data comes in as prose, through its topics
EXCLUDED = DEMO_PACKAGES | DEMO_PARTS | TABLES | {"test", "tests", "idle_test", "site-packages", "__pycache__"}


def load_corpus() -> tuple[list[str], list[str], str, int]:
    """Training texts, held-out texts, SHA-256 over names and contents, number of files skipped (not UTF-8)."""
    root = Path(sysconfig.get_path("stdlib"))
    files: list[tuple[str, bytes]] = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        # stdlib_module_names also drops what is not Python's own text, such as the build's _sysconfigdata_*.
        if parts[0] in sys.stdlib_module_names and not EXCLUDED.intersection(parts):
            files.append((path.relative_to(root).as_posix(), path.read_bytes()))
    topics = sorted(pydoc_data.topics.topics.items())

    train, held_out, skipped, digest = [], [], 0, hashlib.sha256()
    for name, content in sorted(files) + [(f"pydoc_data/topics/{name}.txt", text.encode()) for name, text in topics]:
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            skipped += 1
            continue
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
        cut = text.rfind("\n", 0, int(len(text) * 0.9)) + 1  # after the last line that ends in the first 90 %
        if cut:
            train.append(text[:cut])
            held_out.append(text[cut:])
    return train, held_out, digest.hexdigest(), skipped


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE without a normaliser: every text survives encode and decode unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[EOS, PAD], **options)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """All texts as one stream of ids, with the separator before, between and after them."""
    eos = tokenizer.token_to_id(EOS)
    return torch.tensor([i for text in tokenizer.encode_batch(texts) for i in (eos, *text.ids)] + [eos])


def new_model(shape: dict[str, int]) -> LlamaForCausalLM:
    """A freshly initialised Llama with tied embeddings."""
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    size = {"vocab_size": VOCAB, "max_position_embeddings": CONTEXT, **shape}
    # Eager attention is faster than SDPA here: short sequences on a CPU.
    return LlamaForCausalLM(LlamaConfig(**size, **special, tie_word_embeddings=True, attn_implementation="eager"))


def batch_at(step: int, stream: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and next-token targets, each (B, T), at random offsets that depend on seed and step only."""
    length = CONTEXT if step % 4 == 3 else CONTEXT // 2
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(stream) - length, (BATCH_TOKENS // length, 1), generator=generator)
    window = stream[starts + torch.arange(length + 1)]  # (B, T + 1)
    return window[:, :-1], window[:, 1:]


def logits_of(model: Module, inputs: Tensor) -> Tensor:
    """Next-token logits in fp32: (B, T) -> (B T, V)."""
    return model(inputs, use_cache=False).logits.flatten(0, 1).float()


def cross_entropy(model: Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The teacher's loss."""
    return F.cross_entropy(logits_of(model, inputs), targets.flatten())


def distillation(teacher: Module, alpha: float, tau: float) -> Loss:
    """The student's loss (Hinton et al., 2015): alpha tau^2 KL(teacher || student) + (1 - alpha) cross-entropy."""

    def loss(student: Module, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            soft_targets = F.softmax(logits_of(teacher, inputs) / tau, dim=-1)  # (B T, V)
        logits = logits_of(student, inputs)  # (B T, V)
        # Cross-entropy to the teacher is KL plus the teacher's entropy, a constant: same gradient, less work.
        soft_loss = F.cross_entropy(logits / tau, soft_targets)
        return alpha * tau**2 * soft_loss + (1 - alpha) * F.cross_entropy(logits, targets.flatten())

    return loss


@torch.no_grad()
def evaluate(model: Module, stream: Tensor, text_bytes: int) -> tuple[float, float]:
    """Perplexity per token and bits per byte over the whole stream, in windows of 256 that do not overlap."""
    nats = 0.0
    for start in range(0, len(stream) - 1, CONTEXT // 2):
        window = stream[start : start + CONTEXT // 2 + 1]  # (T + 1), shorter at the end
        nats += F.cross_entropy(logits_of(model, window[None, :-1]), window[1:], reduction="sum").item()
    return math.exp(nats / (len(stream) - 1)), nats / math.log(2) / text_bytes


def new_optimizers(model: LlamaForCausalLM) -> list[Optimizer]:
    """Muon for the layers' matrices, which learn far more per token with it in so short a run; AdamW for the rest."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    embedding = {"params": [model.get_input_embeddings().weight], "weight_decay": 0.1}
    gains = {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}
    muon = Muon(matrices, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")  # AdamW's scale of lr
    return [muon, AdamW([embedding, gains], betas=(0.9, 0.95), fused=True)]


def save_checkpoint(path: Path, model: Module, optimizers: list[Optimizer], progress: dict[str, float]) -> None:
    """Weights, optimizer state and (as metadata) the progress in one safetensors file, which is replaced as a whole."""
    tensors = {f"weight/{name}": p.detach() for name, p in model.named_parameters()}
    for optimizer in optimizers:
        for name, p in model.named_parameters():
            tensors.update({f"{key}/{name}": value for key, value in optimizer.state.get(p, {}).items()})
    save_file(tensors, path.with_suffix(".tmp"), metadata={"progress": json.dumps(progress)})
    path.with_suffix(".tmp").replace(path)


def load_checkpoint(path: Path, model: Module, optimizers: list[Optimizer]) -> dict[str, float]:
    """Restore what ``save_checkpoint`` wrote and return the progress."""
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    with safe_open(path, "pt") as file:
        for key, name in (entry.split("/", 1) for entry in file.keys()):  # noqa: SIM118 (not a dict)
            p, tensor = model.get_parameter(name), file.get_tensor(f"{key}/{name}")
            if key == "weight":
                p.data.copy_(tensor)
            else:
                owner[p].state[p][key] = tensor
        return json.loads(file.metadata()["progress"])


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 3 % of the steps (at least ten), then a cosine down to 2 % of the peak."""
    warm_up = max(10, steps * 3 // 100)
    cosine = (1 + math.cos(math.pi * max(0, step - warm_up) / max(1, steps - warm_up))) / 2
    return peak * min((step + 1) / warm_up, 0.02 + 0.98 * cosine)


def train_step(
    model: Module, optimizers: list[Optimizer], loss_of: Loss, batch: tuple[Tensor, Tensor], lr: float, bf16: bool
) -> float:
    """One update; returns the loss."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = loss_of(model, *batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def train(name: str, model: Module, loss_of: Loss, stream: Tensor, plan: Namespace, work: Path) -> float:
    """Train by the plan, with a checkpoint in the work folder every two minutes; returns the seconds it took."""
    steps, peak, path = getattr(plan, f"{name}_steps"), getattr(plan, f"{name}_lr"), work / f"{name}.safetensors"
    optimizers, saved = new_optimizers(model), time.monotonic()
    progress = load_checkpoint(path, model, optimizers) if path.exists() else {"step": 0, "seconds": 0.0}
    for step in range(int(progress["step"]), steps):
        begun, lr = time.monotonic(), learning_rate(step, steps, peak)
        loss = train_step(model, optimizers, loss_of, batch_at(step, stream, plan.seed), lr, plan.bf16)
        progress = {"step": step + 1, "seconds": progress["seconds"] + time.monotonic() - begun}
        if step % 50 == 0:
            speed = BATCH_TOKENS * progress["step"] / progress["seconds"]
            print(f"{name} {step}/{steps}: loss {loss:.3f}, lr {lr:.2e}, {speed:.0f} tok/s", flush=True)
        if time.monotonic() - saved > 120 or step + 1 == steps:
            save_checkpoint(path, model, optimizers, progress)
            saved = time.monotonic()
    return progress["seconds"]


def steps_per_minute(model: Module, loss_of: Loss, stream: Tensor, bf16: bool) -> float:
    """Speed of a throw-away model: eight timed steps after two that warm up."""
    optimizers, times = new_optimizers(model), []
    for step in range(10):
        train_step(model, optimizers, loss_of, batch_at(step, stream, seed=0), 1e-4, bf16)
        times.append(time.monotonic())
    return 8 * 60 / (times[9] - times[1])


def make_plan(args: Namespace, fingerprint: str, stream: Tensor) -> Namespace:
    """What a resumed build must not change, measured once and kept: the faster precision, minutes turned into steps."""
    path = args.work / "plan.json"
    if not path.exists():
        speed = {bf16: steps_per_minute(new_model(TEACHER), cross_entropy, stream, bf16) for bf16 in (False, True)}
        bf16 = speed[True] > speed[False]
        loss_of = distillation(new_model(TEACHER).to(torch.bfloat16 if bf16 else torch.float32), args.alpha, args.tau)
        student_speed = steps_per_minute(new_model(STUDENT), loss_of, stream, bf16)
        print(f"steps per minute: teacher {speed} (keys: bf16), student {student_speed}", flush=True)
        args.teacher_steps = args.teacher_steps or int(args.teacher_minutes * speed[bf16])
        args.student_steps = args.student_steps or int(args.student_minutes * student_speed)
        kept = {key: value for key, value in vars(args).items() if "minutes" not in key and key not in ("work", "out")}
        path.with_suffix(".tmp").write_text(json.dumps({"fingerprint": fingerprint, "bf16": bf16, **kept}, indent=2))
        path.with_suffix(".tmp").replace(path)
    plan = Namespace(**json.loads(path.read_text()))
    if plan.fingerprint != fingerprint:
        raise SystemExit(f"{args.work} belongs to a build from other text: choose another --work")
    return plan


CARD = """---
license: other
license_name: psf-2.0
license_link: https://docs.python.org/3/license.html
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [llama, distillation, code]
---

# edgewise student

A {student_parameters:,}-parameter Llama-style causal language model, the base model of the demos that ship with
`edgewise`: small enough to fine-tune on any CPU, and trained without the text that the demos' devices hold.

| | student (this folder) | teacher (not shipped) |
| --- | ---: | ---: |
| held-out perplexity per token | {student_ppl:.2f} | {teacher_ppl:.2f} |
| held-out bits per byte | {student_bpb:.3f} | {teacher_bpb:.3f} |
| parameters | {student_parameters:,} | {teacher_parameters:,} |
| training steps (tokens seen) | {student_steps:,} ({student_tokens:,}) | {teacher_steps:,} ({teacher_tokens:,}) |
| minutes (tok/s) | {student_minutes:.1f} ({student_speed:,.0f}) | {teacher_minutes:.1f} ({teacher_speed:,.0f}) |

Held out: the last 10 % of every file ({held_out_tokens:,} tokens, {held_out_bytes:,} bytes), scored in windows of 256
tokens that do not overlap, in fp32; the student from the weights as stored (bf16, {weight_bytes:,} bytes).
The default optimizer and learning rates were picked in short runs scored on a part of the held-out text.

**Text.** The source files of Python {python}'s standard library and the topics of `pydoc`: {files} files, of which
{train_bytes:,} bytes ({train_tokens:,} tokens) train; {skipped} more were skipped because they are not UTF-8. SHA-256
over names and contents: `{fingerprint}`. License of the text: [PSF](https://docs.python.org/3/license.html); some files
carry notices of their own. Left out: the packages that the devices of
`edgewise demo code` hold ({demo}), modules that are parts of them
({parts}), tests, and tables or generated data ({tables}).

**How it was built.** `python scripts/build_student.py --work WORK --seed {seed} --teacher-steps {teacher_steps} \
--student-steps {student_steps} --teacher-lr {teacher_lr} --student-lr {student_lr} --alpha {alpha} --tau {tau}`, on
one CPU thread in {precision}. The teacher minimises cross-entropy, the student {alpha:g} * {tau:g}^2 *
KL(teacher, student) + {rest:g} * cross-entropy. Muon for the layers' matrices, AdamW for the rest, weight decay 0.1,
gradients clipped at 1, warm-up and cosine; {batch_tokens} tokens a step in sequences of 256 and, every fourth step,
512. The tokenizer is byte-level BPE with {vocab} entries, trained on the same text.

**Use and limits.** Meant for trying federated fine-tuning without a download. It is tiny: it writes text that looks
like Python code and documentation, knows no facts, follows no instructions, and its code should not be relied on. The
context is {context} tokens.
"""


def export(student: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write bf16 weights, configuration and tokenizer so that plain ``transformers`` loads them."""
    shutil.rmtree(folder, ignore_errors=True)
    student.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=1)
    student.to(torch.bfloat16).save_pretrained(folder)
    options = {"bos_token": EOS, "eos_token": EOS, "pad_token": PAD, "clean_up_tokenization_spaces": False}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **options).save_pretrained(folder)
    config = folder / "tokenizer_config.json"  # to the class name that transformers 4 knows too
    (folder / "model.safetensors").chmod(0o644)
    config.write_text(config.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))


def build(args: Namespace) -> None:
    """The whole recipe."""
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    train_texts, held_out_texts, fingerprint, skipped = load_corpus()
    train_bytes, held_out_bytes = (sum(len(t.encode()) for t in texts) for texts in (train_texts, held_out_texts))
    tokenizer = train_tokenizer(train_texts)
    stream, held_out = token_stream(tokenizer, train_texts), token_stream(tokenizer, held_out_texts)
    print(f"{len(train_texts)} files, {train_bytes} bytes, {len(stream)} tokens to train on", flush=True)
    plan = make_plan(args, fingerprint, stream)
    print(plan, flush=True)

    torch.manual_seed(plan.seed)
    teacher, student = new_model(TEACHER), new_model(STUDENT)
    facts: dict[str, object] = {}

    def record(name: str, model: LlamaForCausalLM, tokens: int, seconds: float) -> None:
        """Add what the card says about one of the two models."""
        (ppl, bpb), count = evaluate(model.eval(), held_out, held_out_bytes), model.num_parameters()
        new = {"parameters": count, "tokens": tokens, "minutes": seconds / 60, "speed": tokens / seconds}
        facts.update({f"{name}_{key}": value for key, value in {**new, "ppl": ppl, "bpb": bpb}.items()})
        print(f"{name}: held-out perplexity {ppl:.2f}, {bpb:.3f} bits per byte", flush=True)

    seconds = train("teacher", teacher, cross_entropy, stream, plan, args.work)
    record("teacher", teacher, plan.teacher_steps * BATCH_TOKENS, seconds)

    loss_of = distillation(teacher.to(torch.bfloat16 if plan.bf16 else torch.float32), plan.alpha, plan.tau)
    seconds = train("student", student, loss_of, stream, plan, args.work)
    folder = args.out.with_name(args.out.name + ".new")
    export(student, tokenizer, folder)
    shipped = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    record("student", shipped, plan.student_steps * BATCH_TOKENS, seconds)

    for key, names in (("demo", DEMO_PACKAGES), ("parts", DEMO_PARTS), ("tables", TABLES)):
        facts[key] = ", ".join(sorted(names))
    card = CARD.format(
        **vars(plan), **facts, python=platform.python_version(), files=len(train_texts), skipped=skipped,
        train_bytes=train_bytes, train_tokens=len(stream), held_out_bytes=held_out_bytes,
        held_out_tokens=len(held_out) - 1, precision="bf16 autocast" if plan.bf16 else "fp32", rest=1 - plan.alpha,
        batch_tokens=BATCH_TOKENS, vocab=VOCAB, context=CONTEXT,
        weight_bytes=(folder / "model.safetensors").stat().st_size,
    )  # fmt: skip
    (folder / "README.md").write_text(card, encoding="utf-8")
    old = args.out.with_name(args.out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if args.out.exists():
        args.out.rename(old)
    folder.rename(args.out)
    shutil.rmtree(old, ignore_errors=True)
    print(f"wrote {args.out}", flush=True)


def main() -> None:
    """Parse the command line."""
    out = Path(__file__).resolve().parent.parent / "src/edgewise/assets/student"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints; start again with it to resume")
    parser.add_argument("--out", type=Path, default=out, help="the folder that ships")
    for phase in ("teacher", "student"):
        parser.add_argument(f"--{phase}-minutes", type=float, default=20.0, help="turned into steps at measured speed")
        parser.add_argument(f"--{phase}-steps", type=int, help="instead of minutes")
        parser.add_argument(f"--{phase}-lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of the teacher's part of the student's loss")
    parser.add_argument("--tau", type=float, default=2.0, help="temperature of the distillation")
    parser.add_argument("--seed", type=int, default=0)
    build(parser.parse_args())


if __name__ == "__main__":
    main()
