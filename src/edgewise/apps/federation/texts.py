"""Write the texts and models of a script to files that a recipe names. Workers, resume, report and export read these.

    OUT/objects/data.jsonl    a row for each record: its device and the columns that the recipe names
    OUT/objects/model/        the model and its tokenizer, in the format of transformers

Only the owner of the folder may read the texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgewise.core.errors import DataError, ModelError
from edgewise.core.training import POOLED
from edgewise.drivers.storage.files import FOLDER, for_owner
from edgewise.plan.recipe.data import DataSection

DATA, MODEL, OWNER = "data.jsonl", "model", "edgewise_device"


def records(given: Any, device: str) -> Iterator[Any]:
    """Iterate over the records of one device.

    They are given as a list, a dataset with ``len`` and numbers, any iterable, or a function without arguments that
    returns one of these. Raises DataError(E-DATA-FORMAT) for anything else.
    """
    if callable(given) and not hasattr(given, "__iter__") and not hasattr(given, "__getitem__"):
        given = given()
    if isinstance(given, str | bytes | Mapping):
        what = f"the data of device {device!r:.60} is a single {type(given).__name__}, and records are needed."
        raise DataError("E-DATA-FORMAT", what, "give a list of texts, a list of rows, or a dataset.")
    if hasattr(given, "__iter__"):
        yield from given
    elif hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        yield from (given[i] for i in range(len(given)))
    else:
        what = f"the data of device {device!r:.60} is a {type(given).__name__}, which cannot be read record by record."
        raise DataError("E-DATA-FORMAT", what, "give a list, a dataset, or a function that gives one.")


def check_device_names(data: Mapping[str, Any]) -> None:
    """Check the names of devices.

    Raises DataError: E-DATA-EMPTY without a device, E-DATA-FORMAT for a name that no device can have.
    """
    if not data:
        raise DataError("E-DATA-EMPTY", "data names no device.", 'give data={"alice": [...], "bob": [...]}.')
    for name in data:
        if not isinstance(name, str) or not name or name == POOLED:
            raise DataError("E-DATA-FORMAT", f"{name!r:.60} is no name of a device.", "name devices by texts.")


def device_text_lines(data: Mapping[str, Any], section: DataSection) -> Iterator[tuple[str, str]]:
    """Yield each record as (device, line of JSON).

    A text becomes a row with the column ``data.text``. A row keeps the columns that the recipe names.

    Raises:
        DataError: E-DATA-FORMAT for a record that is neither, E-DATA-COLUMN for a row without a named column.
    """
    wanted = [name for key, name in section.columns if key != "owner"]
    for device in sorted(data):
        for number, record in enumerate(records(data[device], device)):
            if isinstance(record, str):
                row = {section.text: record}
            elif isinstance(record, Mapping):
                row = {name: record[name] for name in wanted if name in record}
            else:
                what = f"record {number} of device {device!r:.60} is a {type(record).__name__}."
                fix = "give texts or rows; other data goes with a module of your own: model=edgewise.TorchTask(...)."
                raise DataError("E-DATA-FORMAT", what, fix)
            if lacking := [name for name in wanted if name not in row]:
                known = ", ".join(map(str, record)) if isinstance(record, Mapping) else "a text alone"
                what = f"record {number} of device {device!r:.60} lacks the column {lacking[0]!r}; it has {known}."
                fix = 'name the columns: recipe=Recipe(data={"text": "answer", "prompt": "question"}, ...).'
                raise DataError("E-DATA-COLUMN", what, fix)
            try:
                yield device, json.dumps({OWNER: device, **row}, default=_plain_value)
            except (TypeError, ValueError) as e:
                what = f"record {number} of device {device!r:.60} cannot be written as JSON: {e}."
                raise DataError("E-DATA-FORMAT", what, "give texts and numbers.") from None


def _plain_value(value: Any) -> Any:
    """Convert numbers of numpy and torch to Python's, and dates to ISO 8601."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON")


def write_device_text(rows: Iterable[tuple[str, str]], path: Path | None) -> dict[str, str]:
    """Write the rows to ``path``, if it is given. Returns a digest for each device's data, by the name of the data."""
    digests: dict[str, Any] = {}
    file = None if path is None else open(path, "w", encoding="utf-8", opener=for_owner)  # noqa: SIM115
    try:
        for device, line in rows:
            digests.setdefault(device, hashlib.sha256()).update(line.encode() + b"\n")
            if file is not None:
                file.write(line + "\n")
    finally:
        if file is not None:
            file.close()
    return {f"the data of {device!r}": h.hexdigest() for device, h in digests.items()}


def model_digests(model: Any, tokenizer: Any) -> dict[str, str]:
    """Compute the digests of a model's architecture and weights, and of its tokenizer's file.

    Raises ModelError(E-MODEL) for an object that transformers cannot save, and for a model without a fast tokenizer.
    """
    if not (hasattr(model, "save_pretrained") and hasattr(model, "config")):
        what = f"model is a {type(model).__name__}. It is neither a language model of transformers nor a task."
        raise ModelError("E-MODEL", what, "give a folder, a transformers model, or edgewise.TorchTask(module, loss).")
    if not hasattr(tokenizer, "backend_tokenizer"):
        what = f"a model needs its fast tokenizer, and tokenizer is a {type(tokenizer).__name__}."
        raise ModelError("E-MODEL", what, "give tokenizer=AutoTokenizer.from_pretrained(...).")
    import torch

    h = hashlib.sha256(model.config.to_json_string().encode())
    for name, tensor in sorted(model.state_dict().items()):
        h.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        h.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    chat = str(getattr(tokenizer, "chat_template", None))
    words = f"{tokenizer.bos_token_id} {tokenizer.eos_token_id} {chat} {tokenizer.backend_tokenizer.to_str()}"
    return {"the model": h.hexdigest(), "the tokenizer": hashlib.sha256(words.encode()).hexdigest()}


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer as transformers reads them."""
    folder.mkdir(FOLDER, parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
