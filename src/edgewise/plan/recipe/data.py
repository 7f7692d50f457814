"""The [data] section of a recipe: the text that trains the model, its place and its format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from edgewise.plan.recipe import stream
from edgewise.plan.recipe.rules import Section, SettingError, rule

Header = bool | Literal["auto"]
Source = Literal[
    "python-stdlib", "plays", "plays-public", "text", "jsonl", "csv", "parquet", "keywords", "vibration", "own"
]
SHIPPED = ("python-stdlib", "plays", "plays-public")  # These sources need no path. Their text is on this machine.
OWN = "own"  # The text that the owner of each enrolled device names in its policy. No recipe says where it is.
WHOLE = ("owner", "whole")  # These partitions cut no text into pieces.
_BARE = (*SHIPPED, OWN)


class DataSection(Section):
    """The text that trains the model."""

    source: Source = Field(
        "python-stdlib",
        description="source text of this machine's standard library, the lines of 24 characters of Shakespeare, those "
        "of ten others (as text that is not private), a folder of text, or a table; keywords: spectrograms of "
        "spoken words, see [keywords]; vibration: recordings of machines, see [vibration]; own: what each enrolled "
        "device's owner names",
    )
    path: str | list[str] = Field(
        "",
        description="folder or file, relative to the recipe's folder; several as a list or as a pattern such as "
        '"2024-*.csv"; .gz, .bz2, .xz and .zst are unpacked',
    )
    text: str = Field("text", description="column with the text")
    prompt: str | list[str] = Field(
        "",
        description="column with the prompt, whose tokens are not trained on (instruction data); of several, what is "
        "not empty is joined by blank lines",
    )
    messages: str | list[str] = Field(
        "",
        description="column with chats, in place of text: lists of role and content (or from and value), read through "
        "the model's chat template; the assistant's messages are learnt; of several columns, one chat after the other",
    )
    tools: str = Field("", description="column with the tools that a chat may call: JSON schemas, or text of them")
    answers: Literal["all", "last"] = Field(
        "all", description="of a chat, which of the assistant's messages are learnt; last: the others are only read"
    )
    as_chat: bool = Field(
        False, description="prompt and text become a user's and the assistant's message, in the model's chat template"
    )
    owner: str = Field("", description="column that names the device which holds the row")
    time: str = Field(
        "",
        description="column to order rows by before the hold-out: numbers, or dates as ISO 8601 writes them, unless "
        "time_format says another form; file order where empty",
    )
    time_format: str = Field(
        "",
        description='how the times are written, as for Python\'s strptime: "%d.%m.%Y %H:%M"; numbers or ISO if empty',
    )
    separator: str = Field(
        "", description="between the fields of a CSV file, one character; empty: the one of , ; tab | that fits"
    )
    header: Header = Field(
        "auto",
        description="whether the first line of a CSV file names the columns; false: it is a row, and columns have "
        'numbers, as in owner = "1"; "auto": it does, and is refused where it looks like a row',
    )
    label: str = Field("", description='column whose values a "dirichlet" partition skews; equal chunks where empty')
    partition: Literal["owner", "dirichlet", "iid", "whole"] = Field(
        "owner", description="how text comes to devices; whole: all of it is of one device"
    )
    devices: int = Field(
        0, ge=0, le=10_000_000, description='number of devices for "dirichlet" and "iid"; 0 with "owner"'
    )
    alpha: float = Field(0.5, gt=0, description="Dirichlet concentration; small = strong skew")
    sequence_len: int = Field(128, ge=8, le=8192, description="tokens per training block")
    packing: Literal["joined", "isolated", "none"] = Field(
        "joined",
        description="documents that share a block; joined: one is read after the other; isolated: none reads another, "
        "and positions begin anew; none: no two share one",
    )
    holdout: float = Field(0.1, gt=0, lt=0.9, description="share of each device's text, its latest part, never trained")
    max_tokens: int = Field(
        0, ge=0, description="tokens used per device at most, with a stream of each of its windows; 0 = all"
    )
    stream: bool = Field(
        False, description="text arrives over time: in each round devices train on the current window of it alone"
    )
    window: float = Field(
        0.0, ge=0, le=1e12, description="length of a window: days, or units of a time column with numbers"
    )
    window_start: str = Field(
        "",
        max_length=40,
        description="time at which the first window begins: a date as ISO 8601 writes it, or a number; rows before it "
        "belong to the first window",
    )
    window_rounds: int = Field(1, ge=1, le=1_000_000, description="rounds until the next window is the current one")
    replay: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="blocks of earlier windows that a device draws anew in each round, to train on beside the window; "
        "0 = none",
    )
    replay_share: float = Field(0.5, gt=0, lt=1, description="share of replayed blocks in a batch")

    @property
    def prompts(self) -> tuple[str, ...]:
        """Columns that make the prompt, in order. Empty without a prompt."""
        return tuple(self.prompt if isinstance(self.prompt, list) else [self.prompt] if self.prompt else [])

    @property
    def chats(self) -> tuple[str, ...]:
        """Columns with messages, in order. Empty without chats."""
        return tuple(self.messages if isinstance(self.messages, list) else [self.messages] if self.messages else [])

    @property
    def rendered(self) -> bool:
        """True if the chat template of the model writes the text."""
        return bool(self.chats) or self.as_chat

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Pairs of a key and the column that it names, for the columns that are read."""
        texts = [("messages", name) for name in self.chats] or [("text", self.text)]
        prompts = [] if self.messages else [("prompt", name) for name in self.prompts]
        texts += [("tools", self.tools)] if self.tools else []
        rest = [(key, getattr(self, key)) for key in ("owner", "time", "label")]
        return [(key, name) for key, name in (*texts, *prompts, *rest) if name]

    def served(self) -> DataSection:
        """Keep the keys that enrolled devices need: how text is cut. Their owners decide where it lies."""
        return DataSection(
            source=OWN, sequence_len=self.sequence_len, packing=self.packing, holdout=self.holdout,
            max_tokens=self.max_tokens, stream=self.stream, **{key: getattr(self, key) for key in stream.KEYS},
        )  # fmt: skip

    @rule
    def _path_given(self) -> Iterator[SettingError]:
        if self.source not in _BARE and not (self.path and all(self.path)):
            what = f'data.path is required for data.source = "{self.source}"'
            yield SettingError("E-MISSING", what, "name the folder or file, relative to the recipe")
        if self.source in _BARE and self.path:
            what = f'data.path is not read with data.source = "{self.source}"'
            yield SettingError(
                "E-COMBO", what, 'leave it out, or say what is there: source = "text", "jsonl", "csv", "parquet"'
            )

    @rule
    def _columns_read(self) -> Iterator[SettingError]:
        if self.source in (*_BARE, "text"):
            for key in ("text", "prompt", "messages", "tools", "owner", "time", "label"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    what = f'data.{key} names a column of your own; data.source = "{self.source}" has none'
                    yield SettingError(
                        "E-COMBO", what, 'leave it out, or name a table: source = "jsonl", "csv" or "parquet"'
                    )

    @rule
    def _devices_given(self) -> Iterator[SettingError]:
        if self.partition not in WHOLE and not self.devices:
            what = f'data.devices is required for data.partition = "{self.partition}"'
            yield SettingError("E-MISSING", what, "write the number of devices, e.g. devices = 20")
        if self.partition in WHOLE and self.devices:
            what = 'data.devices is for "dirichlet" and "iid"; with "owner" the owners decide'
            yield SettingError("E-COMBO", what, 'leave it out, or write partition = "iid"')

    @rule
    def _owner_named(self) -> Iterator[SettingError]:
        if self.partition == "owner" and self.source in ("jsonl", "csv", "parquet") and not self.owner:
            what = "data.owner is required: it names the column whose values are the devices"
            yield SettingError("E-MISSING", what, 'name the column, or deal rows out: partition = "iid", devices = 20')

    @rule
    def _messages_alone(self) -> Iterator[SettingError]:
        if self.messages and (self.prompt or self.text != "text" or self.source == "csv"):
            what = "data.messages holds prompts and answers, as lists in a JSON-lines or Parquet table"
            yield SettingError("E-COMBO", what, "leave out data.text and data.prompt, or leave out data.messages")

    @rule
    def _chats_given(self) -> Iterator[SettingError]:
        if self.as_chat and not self.prompt:
            what = "data.as_chat makes a chat of a prompt and an answer, and data.prompt names no column"
            yield SettingError("E-COMBO", what, "name the columns in data.prompt, or leave out data.as_chat")
        for key, given in (("tools", self.tools), ("answers", self.answers != "all")):
            if given and not self.messages:
                what = f"data.{key} is about chats, and data.messages names no column with chats"
                yield SettingError("E-COMBO", what, f"name the column in data.messages, or leave out data.{key}")

    @rule
    def _prompts_named(self) -> Iterator[SettingError]:
        for key, names in (("prompt", self.prompt), ("messages", self.messages)):
            if isinstance(names, list) and not all(names):
                what = f"data.{key} lists a column without a name"
                yield SettingError("E-VALUE", what, "name each column, or leave it out")

    @rule
    def _stream_timed(self) -> Iterator[SettingError]:
        yield from stream.data_faults(self)

    @rule
    def _times_named(self) -> Iterator[SettingError]:
        if self.time_format and not self.time:
            what = "data.time_format says how data.time is written, and no column is named there"
            yield SettingError("E-COMBO", what, "name the column in data.time, or leave out data.time_format")

    @rule
    def _csv_read(self) -> Iterator[SettingError]:
        if self.separator and self.source != "csv":
            yield SettingError("E-COMBO", 'data.separator is for data.source = "csv"', "leave it out")
        if self.header != "auto" and self.source != "csv":
            yield SettingError("E-COMBO", 'data.header is for data.source = "csv"', "leave it out")

    @rule
    def _columns_numbered(self) -> Iterator[SettingError]:
        for key, name in self.columns if self.header is False else ():
            if not (name.isascii() and name.isdecimal() and name[0] != "0"):
                what = f'data.{key} = "{name}" names a column, and with data.header = false columns have numbers'
                yield SettingError(
                    "E-VALUE", what, f'write the number of the column, as in {key} = "2"; the first is "1"'
                )

    @rule
    def _separator_short(self) -> Iterator[SettingError]:
        if self.separator and (len(self.separator) != 1 or self.separator in '"\r\n'):
            what = "data.separator is one character, and neither a quote nor a line end"
            yield SettingError("E-VALUE", what, 'write ",", ";", "|" or a tab, or leave it out')
