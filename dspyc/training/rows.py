"""Chat rows as token ids, and what a person should know about them before anything is trained."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from ..models.chat import ChatTokenizer

_SHOWN = 5  # rows named in an error
_TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"  # transformers' warning
_ALLOWED = (
    "A message's role is text; its content is text, null or a list of {'type': 'text', 'text': …}; tool_calls, and the row's "
    "tools, are lists of objects."
)


class Part(list[Any]):
    """Some of the rows of a data set; `numbers` are their places in it, by which errors and reports call them."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], numbers: Iterable[int]) -> None:
        self.numbers = list(numbers)
        super().__init__(rows[number] for number in self.numbers)


def number_of(rows: Sequence[Any], place: int) -> int:
    """The place of `rows[place]` in the data as they were given, which a Part knows."""
    return rows.numbers[place] if isinstance(rows, Part) else place


@dataclass(frozen=True)
class EncodedRow:
    """One row: `ids[prompt_length:]` is the reply, the tokens that are learned; `index` is its place in the data as given."""

    ids: list[int]
    prompt_length: int
    index: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class LongRow:
    """A row that does not fit: its place in the data as given, its predictor, its length in tokens."""

    index: int
    predictor: str
    length: int


@dataclass(frozen=True)
class TokenReport:
    """Tokens of the rows that fit; `too_long` lists the others, which are left out whole and never cut."""

    rows: int
    mean_length: float
    max_length: int
    supervised_tokens: int
    limit: int | None
    too_long: tuple[LongRow, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: `too_long` as a list."""
        return {**asdict(self), "too_long": [asdict(row) for row in self.too_long]}

    def describe(self) -> str:
        left_out = f" {len(self.too_long):,} rows are too long and left out." if self.too_long else ""
        return (
            f"{self.rows:,} rows of {self.mean_length:.0f} tokens ({self.max_length:,} at most); "
            f"{self.supervised_tokens:,} tokens are learned.{left_out}"
        )


def encode_rows(
    rows: Sequence[Mapping[str, Any]],
    chat: "ChatTokenizer",
    limit: int | None = None,
    *,
    kind: str = "training",
    refuse: Callable[[int, DataError], None] | None = None,
) -> tuple[list[EncodedRow], TokenReport]:
    """The rows of at most `limit` tokens, encoded as inference will read them, and the report on all of them.

    Args:
        refuse: Called with each row that cannot be used, and why; without it such a row is an error.

    Raises:
        DataError: A row is malformed, holds media, or has nothing to learn; or no row fits.
    """
    encoded: list[EncodedRow] = []
    too_long: list[LongRow] = []
    chat.tokenizer.deprecation_warnings[_TOO_LONG] = True  # the report says which rows are, and none is run
    for place, row in enumerate(rows):
        index = number_of(rows, place)
        try:
            made = _encode(row, index, chat, kind)
        except DataError as error:
            if refuse is None:
                raise
            refuse(index, error)
            continue
        if limit is not None and len(made) > limit:
            too_long.append(LongRow(index, str(row.get("predictor") or ""), len(made)))
        else:
            encoded.append(made)
    lengths = [len(row) for row in encoded]
    report = TokenReport(
        rows=len(encoded),
        mean_length=sum(lengths) / max(1, len(lengths)),
        max_length=max(lengths, default=0),
        supervised_tokens=sum(len(row) - row.prompt_length for row in encoded),
        limit=limit,
        too_long=tuple(too_long),
    )
    if not encoded and refuse is None and (rows or kind == "training"):
        raise _nothing(report, kind)
    return encoded, report


def row_limit(base: Path, tokenizer: Any, asked: int | None) -> int | None:
    """Tokens that a row may have: what is asked for, or what the model takes, where it says so.

    Raises:
        ConfigError: The model takes less than what is asked for.
    """
    from ..models.weights import context_length  # transformers, which those who hold rows need not wait for

    declared = tokenizer.model_max_length
    most = context_length(base) or (declared if declared < 1 << 30 else None)
    if asked is not None and most is not None and asked > most:
        raise ConfigError(f"`max_length` is {asked}, and {base.name} takes {most} tokens.", hint=f"Use at most {most}.")
    return asked or most


def _encode(row: Mapping[str, Any], index: int, chat: "ChatTokenizer", kind: str) -> EncodedRow:
    name = name_of(row, index, kind)
    messages = row.get("messages") if isinstance(row, Mapping) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(m, Mapping) for m in messages):
        raise DataError(
            f"{name} is no chat row: it has no list of messages.",
            hint="A row is {'messages': [{'role': 'user', 'content': …}, {'role': 'assistant', 'content': …}]}.",
        )
    if len(messages) == 1 and messages[0].get("role") == "assistant":
        raise DataError(
            f"{name} has nothing in front of the assistant's reply.",
            hint="Put a user's message there; its content may be empty.",
        )
    try:
        ids, prompt_length = chat.row_ids([dict(m) for m in messages], row.get("tools") or None)
    except ModelError as error:
        raise DataError(f"{name} cannot be encoded: {error.message}", hint=error.hint) from error
    except Exception as error:  # templates and tokenizers raise whatever they come upon
        raise DataError(f"{name} cannot be encoded: {_reason(row, error)}.", hint=_ALLOWED) from error
    if not _says_something(messages[-1]):
        raise DataError(
            f"{name} has no supervised token: its last message has neither text nor tool calls.",
            hint="Mend the row, or drop it: all that it would teach is to end the turn.",
        )
    return EncodedRow(ids, prompt_length, index)


def _says_something(message: Mapping[str, Any]) -> bool:
    content = message.get("content") or ""
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return bool(message.get("tool_calls") or text.strip())


def _reason(row: Mapping[str, Any], error: Exception) -> str:
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as found:
        return f"its text holds half of a surrogate pair, {found.object[found.start]!r}"
    except (TypeError, ValueError, RecursionError):
        pass
    return f"{type(error).__name__}: {error}".rstrip(".")


def name_of(row: Any, index: int, kind: str = "training") -> str:
    """What errors call a row."""
    predictor = row.get("predictor") if isinstance(row, Mapping) else None
    return (
        f"{kind.capitalize()} row {index}" + (f" (predictor `{predictor}`)" if predictor else "") + ", counted from 0,"
    )


def _nothing(report: TokenReport, kind: str) -> DataError:
    if not report.too_long:
        return DataError(f"There are no {kind} rows.", hint="Pass rows of the form {'messages': [...]}.")
    named = ", ".join(f"row {r.index}: {r.length}" for r in report.too_long[:_SHOWN])
    return DataError(
        f"None of the {len(report.too_long)} {kind} rows fits into {report.limit} tokens ({named}).",
        hint="Raise max_length, use a model with a longer context, or shorten the prompts (fewer demos, TerseAdapter).",
    )
