"""Read the messages of a chat as tables have them, and pack them into a document.

Accepted forms, beside ``{"role": ..., "content": text}``:

    {"from": "human", "value": text}                        ShareGPT; roles in ``ROLES``
    {"role": ..., "content": [{"type": "text", "text": t}]} content in parts, all of them text
    {"role": "assistant", "tool_calls": [...]}              a call of a tool, with or without text
    {"from": "function_call", "value": JSON}                the same in ShareGPT

Arguments of a call that are JSON text become the object that they spell, since templates write objects. Keys without a
value are left out: Parquet files have the keys of all messages in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from edgewise.core.errors import DataError

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "model": "assistant", "system": "system", "developer": "developer",
    "tool": "tool", "observation": "tool", "function_response": "tool", "function_call": "assistant",
}  # fmt: skip
FIX = 'write a list of {"role": ..., "content": ...}, both of them text.'
_Message = dict[str, Any]


def chat_messages(value: Any, name: str, where: str) -> list[_Message]:
    """Check the messages of a row, and return them as ``role``, ``content`` and what else they have.

    Raises:
        DataError: E-DATA-FORMAT for anything that is not a chat.
    """
    if not isinstance(value, list) or not value:
        kind = "an empty list" if value == [] else type(value).__name__
        raise DataError("E-DATA-FORMAT", f"{where}: `{name}` is {kind}, not a list of messages.", FIX)
    return [_checked_message(message, f"{where}: message {i + 1} of `{name}`") for i, message in enumerate(value)]


def chat_tools(value: Any, name: str, where: str) -> list[Any] | None:
    """Read the definitions of tools: a list of objects, or JSON text of one. None without any.

    Raises:
        DataError: E-DATA-FORMAT.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError:
            what = f"{where}: `{name}` is text that is no JSON."
            raise DataError("E-DATA-FORMAT", what, "write a list of tool definitions, or JSON text of one.") from None
    if not value or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        what = f"{where}: `{name}` is no list of tool definitions."
        raise DataError("E-DATA-FORMAT", what, "write a list of JSON schemas, or JSON text of one.")
    return [_without_nulls(tool) for tool in value]


def pack_chat(found: Sequence[_Message], tools: list[Any] | None = None, last: bool = False) -> tuple[str, str]:
    """Pack a chat into a document: its messages and tools as JSON, and the text of its answers.

    Args:
        last: True counts the last answer alone as its text.
    """
    answers = [_message_text(message) for message in found if message["role"] == "assistant"]
    packed = msgspec.json.encode({"messages": found, "tools": tools}).decode()
    return packed, "\n".join(answers[-1:] if last else answers)


def _message_text(message: _Message) -> str:
    """Join the text of a message and its calls of tools."""
    calls = msgspec.json.encode(message["tool_calls"]).decode() if message.get("tool_calls") else ""
    return "\n".join(filter(None, [message["content"], calls]))


def _checked_message(value: Any, at: str) -> _Message:
    """Read one message of a chat. Raises DataError with its place."""
    if not isinstance(value, dict):
        raise DataError("E-DATA-FORMAT", f"{at} has no role. It is {type(value).__name__}, not an object.", FIX)
    if "role" not in value and "from" in value:
        value = _sharegpt_message(value, at)
    message = _without_nulls(value)
    if not isinstance(message.get("role"), str):
        raise DataError("E-DATA-FORMAT", f"{at} has no role that is text.", FIX)
    if "tool_calls" in message:
        message["tool_calls"] = _tool_calls(message["tool_calls"], at)
    content = message.get("content", "" if message.get("tool_calls") else None)
    if isinstance(content, list):
        content = _joined_text_parts(content, at)
    if not isinstance(content, str):
        raise DataError("E-DATA-FORMAT", f"{at} has no content that is text.", FIX)
    return {**message, "content": content}


def _sharegpt_message(value: _Message, at: str) -> _Message:
    """Read a message with ``from`` and ``value``."""
    who = value["from"]
    if not isinstance(who, str) or who not in ROLES:
        known = ", ".join(ROLES)
        raise DataError("E-DATA-FORMAT", f"{at} is from {who!r:.40}, which is no role.", f"these are known: {known}.")
    rest = {key: inner for key, inner in value.items() if key not in ("from", "value")}
    if who != "function_call":
        return {"role": ROLES[who], "content": value.get("value"), **rest}
    try:
        call = msgspec.json.decode(value.get("value") or "")
    except (msgspec.DecodeError, TypeError):
        raise DataError(
            "E-DATA-FORMAT", f"{at} is a function call that is no JSON.", "write name and arguments."
        ) from None
    return {"role": "assistant", "tool_calls": call if isinstance(call, list) else [call], **rest}


def _tool_calls(value: Any, at: str) -> list[Any]:
    """Return calls of tools in the form of transformers: ``{"type": "function", "function": {name, arguments}}``."""
    fix = 'write a list of {"type": "function", "function": {"name": ..., "arguments": {...}}}.'
    if not isinstance(value, list):
        raise DataError("E-DATA-FORMAT", f"{at} has tool_calls that are no list.", fix)
    calls = []
    for call in value:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError("E-DATA-FORMAT", f"{at} has a tool call without a name.", fix)
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = msgspec.json.decode(arguments or "{}")
            except msgspec.DecodeError:
                raise DataError("E-DATA-FORMAT", f"{at} has a tool call whose arguments are no JSON.", fix) from None
        outer = (
            {key: inner for key, inner in call.items() if key not in ("name", "arguments")}
            if "function" in call
            else {}
        )
        calls.append({"type": "function", **outer, "function": {**function, "arguments": arguments}})
    return calls


def _joined_text_parts(parts: list[Any], at: str) -> str:
    """Join the parts of a message. Raises DataError for a part that is no text."""
    texts = [
        part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None for part in parts
    ]
    if not all(isinstance(text, str) for text in texts):
        what = f"{at} has a part that is not text, such as an image."
        raise DataError("E-DATA-FORMAT", what, "take the part out, or drop the row.")
    return "".join(texts)  # type: ignore[arg-type]


def _without_nulls(value: Any) -> Any:
    """Leave out keys without a value, at every depth."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
