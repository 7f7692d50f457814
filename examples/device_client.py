"""A device of a federation: trains an adapter on texts of this machine, with a loop of its own.

    EDGEWISE_TOKEN=fedtok1_... python examples/device_client.py https://127.0.0.1:8443 my_notes.txt

The texts stay here. What leaves is the change of the adapter, clipped, quantized and masked as the server's recipe says
and the owner's policy (policy.toml in the home folder) allows. Killed and started again, it goes on.
"""

import argparse
import contextlib
import os
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import edgewise as ew


def build(files: Path) -> tuple[torch.nn.Module, AutoTokenizer]:
    """The small model that the server named, from the files that it signed, with the adapter of the recipe."""
    model = AutoModelForCausalLM.from_pretrained(files, dtype=torch.float32)
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(model, adapter), AutoTokenizer.from_pretrained(files)


def train(model: torch.nn.Module, batches: list[torch.Tensor], epochs: int, lr: float) -> float:
    """Own epochs with an own optimizer; returns the mean loss of the last epoch."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr)
    for _ in range(epochs):
        losses = []
        for tokens in batches:
            loss = model(input_ids=tokens, labels=tokens).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return sum(losses) / len(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server: https://HOST:PORT")
    parser.add_argument("texts", type=Path, help="a file with one text a line")
    parser.add_argument("--home", default="~/.edgewise", help="key, policy and record of this device")
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()
    texts = [line for line in given.texts.read_text(encoding="utf-8").splitlines() if line.strip()]

    device = ew.Device.join(given.url, os.environ["EDGEWISE_TOKEN"], home=given.home)  # ew.Device.open() afterwards
    model, batches = None, []
    for task in device.tasks():  # waits politely; a thread answers the server while this loop trains
        if model is None:
            print(task)  # what the server asks, the privacy card, the deadline
            model, tokenizer = build(task.files)
            batches = [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
        task.load_into(model)  # the global state; another model, or another adapter, is an error
        loss = train(model, batches, given.epochs, task.lr)
        outcome = task.submit(model, examples=len(texts), metrics={"loss": loss})
        print(outcome, flush=True)  # released, or dropped and why; bytes; epsilon spent


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
