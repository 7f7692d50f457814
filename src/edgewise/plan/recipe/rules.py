"""Rules of a recipe's section. Each rule finds one kind of settings that do not go together.

    class RoundSection(Section):
        rounds: int = 20

        @rule
        def _few(self) -> Iterator[SettingError]:
            if self.rounds > 1000:
                yield SettingError("E-VALUE", "round.rounds is large", "write fewer")

A section that is built runs all of its rules and refuses with everything that they find. A recipe with a wrong value
is judged too: ``UNKNOWN`` stands for that value, and a rule that reads it makes no statement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

Rule = Callable[[Any], "Iterator[SettingError]"]
F = TypeVar("F", bound=Callable[..., Any])


class SettingError(ValueError):
    """Settings that cannot be.

    Args:
        code: of the error registry. what: what was asked and why it cannot be. fix: what to do. Neither sentence has a
            full stop at its end. Keys stand in ``what`` as ``section.key``.
    """

    def __init__(self, code: str, what: str, fix: str) -> None:
        super().__init__(f"{code}: {what}")
        self.code, self.what, self.fix = code, what, fix


class BrokenRules(ValueError):
    """All faults that the rules of one section find."""

    def __init__(self, faults: Sequence[SettingError]) -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = tuple(faults)


class UnknownValue(Exception):
    """A rule has read a value that is wrong or missing, so it cannot judge."""


class UnknownPlace:
    """The place of a value that is wrong or missing. Whatever reads it raises ``UnknownValue``."""

    def _raise_unknown(self, *_: object) -> NoReturn:
        """Refuse any use of a value that is not known."""
        raise UnknownValue

    __bool__ = __len__ = __iter__ = __contains__ = __getattr__ = __getitem__ = _raise_unknown
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _raise_unknown
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __rmod__ = _raise_unknown
    __truediv__ = __rtruediv__ = __neg__ = __float__ = __int__ = __index__ = _raise_unknown
    __str__ = __format__ = _raise_unknown


UNKNOWN = UnknownPlace()


def rule(function: F) -> F:
    """Mark a method of a section as a rule: it yields a ``SettingError`` for each fault."""
    function.__dict__["is_rule"] = True
    return function


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, no silent conversions between kinds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def completed(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Fill in the values that others imply, before any is validated. Changes nothing in place."""
        return plain

    @model_validator(mode="before")
    @classmethod
    def _complete_tables(cls, plain: Any) -> Any:
        """Add the defaults that depend on other keys, before validation."""
        return cls.completed(plain) if isinstance(plain, dict) else plain

    def faults(self) -> list[SettingError]:
        """Return all faults that the rules of this section find in its known values."""
        return [fault for one in _rules_of(type(self)) for fault in judged_rules(one(self))]

    @model_validator(mode="after")
    def _hold_rules(self) -> Section:
        """Raise BrokenRules if a rule of the section is broken."""
        if faults := self.faults():
            raise BrokenRules(faults)
        return self


def judged_rules(faults: Iterator[SettingError]) -> Iterator[SettingError]:
    """Yield the faults up to the first value that is unknown."""
    try:
        yield from faults
    except UnknownValue:
        return


@cache
def _rules_of(section: type[Section]) -> tuple[Rule, ...]:
    """List the rules of a section, in the order of their definition."""
    own = {name: value for cls in reversed(section.__mro__) for name, value in vars(cls).items()}
    return tuple(value for value in own.values() if getattr(value, "is_rule", False) is True)
