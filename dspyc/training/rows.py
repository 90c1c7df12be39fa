"""Chat rows as token ids, and what a person should know about them before anything is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError, ModelError
from ..models.weights import context_length

if TYPE_CHECKING:
    from ..models.chat import ChatTokenizer

_SHOWN = 5  # rows named in an error


@dataclass(frozen=True)
class EncodedRow:
    """One row: `ids[prompt_length:]` is the reply, the tokens that are learned; `index` is its place among the rows given."""

    ids: list[int]
    prompt_length: int
    index: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class LongRow:
    """A row that does not fit: its place among the rows given, its predictor, its length in tokens."""

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
    rows: Sequence[Mapping[str, Any]], chat: "ChatTokenizer", limit: int | None = None, *, kind: str = "training"
) -> tuple[list[EncodedRow], TokenReport]:
    """The rows of at most `limit` tokens, encoded as inference will read them, and the report on all of them.

    Raises:
        DataError: A row that is not one, holds media, or has nothing to learn; or no row at all that fits.
    """
    encoded: list[EncodedRow] = []
    too_long: list[LongRow] = []
    for index, row in enumerate(rows):
        made = _encode(row, index, chat, kind)
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
    if not encoded and (rows or kind == "training"):
        raise _nothing(report, kind)
    return encoded, report


def row_limit(base: Path, tokenizer: Any, asked: int | None) -> int | None:
    """Tokens that a row may have: what is asked for, or what the model takes, where it says so.

    Raises:
        ConfigError: The model takes less than what is asked for.
    """
    declared = tokenizer.model_max_length
    most = context_length(base) or (declared if declared < 1 << 30 else None)
    if asked is not None and most is not None and asked > most:
        raise ConfigError(f"`max_length` is {asked}, and {base.name} takes {most} tokens.", hint=f"Use at most {most}.")
    return asked or most


def _encode(row: Mapping[str, Any], index: int, chat: "ChatTokenizer", kind: str) -> EncodedRow:
    messages = row.get("messages") if isinstance(row, Mapping) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(m, Mapping) for m in messages):
        raise DataError(
            f"{_name(row, index, kind)} is no chat row: it has no list of messages.",
            hint="A row is {'messages': [{'role': 'user', 'content': …}, {'role': 'assistant', 'content': …}]}.",
        )
    try:
        ids, prompt_length = chat.row_ids([dict(m) for m in messages], row.get("tools") or None)
    except ModelError as error:
        raise DataError(f"{_name(row, index, kind)} cannot be encoded: {error.message}", hint=error.hint) from error
    if prompt_length >= len(ids):
        raise DataError(f"{_name(row, index, kind)} has no supervised token: its last message is empty.")
    return EncodedRow(ids, prompt_length, index)


def _name(row: Any, index: int, kind: str) -> str:
    predictor = row.get("predictor") if isinstance(row, Mapping) else None
    return f"{kind.capitalize()} row {index}" + (f" (predictor `{predictor}`)" if predictor else "")


def _nothing(report: TokenReport, kind: str) -> DataError:
    if not report.too_long:
        return DataError(f"There are no {kind} rows.", hint="Pass rows of the form {'messages': [...]}.")
    named = ", ".join(f"row {r.index}: {r.length}" for r in report.too_long[:_SHOWN])
    return DataError(
        f"None of the {len(report.too_long)} {kind} rows fits into {report.limit} tokens ({named}).",
        hint="Raise max_length, use a model with a longer context, or shorten the prompts (fewer demos, TerseAdapter).",
    )
