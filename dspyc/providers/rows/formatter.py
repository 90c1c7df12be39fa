"""A provider's formatter, and the report on a file of rows before anything is sent."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...errors import DataError
from ...files import json_bytes
from ...training.formats import chat_row

_SHOWN = 20  # refused rows named in an error


@dataclass(frozen=True)
class Formatter:
    """How one provider takes rows.

    Attributes:
        name: As in `dspyc data check --for name`.
        problems: Why a row would be refused: one sentence a reason, none for a row that is taken.
        write: The provider's form of a row that has no problem.
        chat: Whether rows are chats, in any shape that `training.formats` reads; others are checked and written as they are.
        fewest: The fewest rows that the provider trains on.
        most: The most, or None where it publishes none.
        most_bytes: The most of one file, or None where it publishes none.
        source: Where the provider publishes these rules.
    """

    name: str
    problems: Callable[[Mapping[str, Any]], Iterator[str]]
    write: Callable[[Mapping[str, Any]], dict[str, Any]]
    chat: bool = True
    fewest: int = 1
    most: int | None = None
    most_bytes: int | None = None
    source: str = ""

    def format(self, rows: Iterable[Mapping[str, Any]]) -> "RowReport":
        """The rows in the provider's form, and those that it would refuse, numbered from 1.

        Chats without messages are read as `training.formats` has them: prompts with completions, instructions, texts.
        """
        return self.format_numbered(enumerate(rows, start=1))

    def format_numbered(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> "RowReport":
        """As `format`, with the caller's own numbers: the lines of a file."""
        taken: list[dict[str, Any]] = []
        refused: list[Refusal] = []
        for number, given in rows:
            row, unread = _chat(given) if self.chat else (given, "")
            reasons = (unread,) if unread else tuple(self.problems(row))
            if reasons:
                refused.append(Refusal(number, reasons))
            else:
                taken.append(self.write(row))
        return RowReport(self, tuple(taken), tuple(refused))


@dataclass(frozen=True)
class Refusal:
    """A row that the provider would refuse: its number, and every reason."""

    number: int
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"row {self.number}: {'; '.join(self.reasons)}"


@dataclass(frozen=True)
class RowReport:
    """What became of rows: `rows` as the provider takes them, and `refused`."""

    formatter: Formatter
    rows: tuple[dict[str, Any], ...]
    refused: tuple[Refusal, ...]

    @property
    def problem(self) -> str:
        """What is wrong with the rows as a whole, were the refused ones dropped; "" where nothing is."""
        return self._miscounted or self._too_large

    @property
    def _miscounted(self) -> str:
        count, fewest, most = len(self.rows), self.formatter.fewest, self.formatter.most
        if count < fewest:
            return f"{self.formatter.name} trains on {fewest:,} rows or more, and {count:,} can be used"
        if most is not None and count > most:
            return f"{self.formatter.name} trains on {most:,} rows or fewer, and there are {count:,}"
        return ""

    @cached_property
    def _too_large(self) -> str:
        most = self.formatter.most_bytes
        size = 0 if most is None else len(json_lines(self.rows))
        if most is None or size <= most:
            return ""
        return f"The rows are {size / 2**20:,.0f} MB; {self.formatter.name} takes files of {most >> 20:,} MB"

    @property
    def ok(self) -> bool:
        return not self.refused and not self.problem

    def accepted(self, *, counted: bool = True) -> tuple[dict[str, Any], ...]:
        """The rows, all of them; without `counted`, however few: validation rows.

        Raises:
            DataError: A row would be refused, or there are too few, too many, or too many bytes.
        """
        hint = (
            f"See {self.formatter.source}; `dspyc data check rows.jsonl --for {self.formatter.name}` lists every row."
        )
        if self.refused:
            named = ". ".join(f"{str(refusal)[0].upper()}{str(refusal)[1:]}" for refusal in self.refused[:_SHOWN])
            more = f" And {len(self.refused) - _SHOWN:,} more." if len(self.refused) > _SHOWN else ""
            raise DataError(
                f"{self.formatter.name} would refuse {len(self.refused):,} of "
                f"{len(self.refused) + len(self.rows):,} rows. {named}.{more}",
                hint=hint,
            )
        if problem := self.problem if counted else self._too_large:
            raise DataError(f"{problem}.", hint=hint)
        return self.rows


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A file of rows as every provider reads it: a JSON object a line."""
    return b"".join(json_bytes(row) + b"\n" for row in rows)


def _chat(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The chat row that `row` is, or why it is none."""
    if not isinstance(row, Mapping):
        return {}, f"it is a {type(row).__name__}, not an object with messages"
    if "messages" in row:
        return row, ""
    try:
        return chat_row(row, "it"), ""
    except DataError as error:
        return row, error.message
