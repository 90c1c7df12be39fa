"""Rows held against a model before anything is trained: which are refused, how long the others are, and what they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..errors import DataError
from ..models.chat import ChatTokenizer
from ..models.weights import device_of, load_tokenizer, resolve
from .batching import Steps
from .config import TrainingConfig
from .formats import chat_row
from .rows import Part, TokenReport, encode_rows, name_of, row_limit
from .sharing import Planner


@dataclass(frozen=True)
class Inspection:
    """What training would make of rows, by its defaults for batches on this machine.

    The report numbers rows by their lines. `tokens` are those of an epoch's rows; `computed` are run for them, padding
    included, where shared prompts run once.
    """

    report: TokenReport
    refused: tuple[tuple[int, str], ...]  # (line, why)
    tokens: int
    computed: int

    @property
    def ok(self) -> bool:
        """Whether training would begin."""
        return not self.refused and self.report.rows > 0

    def describe(self) -> str:
        computed = f" Of an epoch's {self.tokens:,} tokens {self.computed:,} are computed: shared prompts run once."
        return self.report.describe() + (computed if self.computed < self.tokens else "")


def inspect_rows(numbered: Sequence[tuple[int, Any]], model: str, max_length: int | None = None) -> Inspection:
    """(line, row) pairs, of any shape that `dspyc train` takes, held against the tokenizer and the limit of `model`.

    Raises:
        ConfigError: `max_length` is more than the model takes.
        ModelError: The model cannot be found or read.
    """
    config, folder = TrainingConfig(max_length=max_length), resolve(model)
    tokenizer = load_tokenizer(folder)
    refused: list[tuple[int, str]] = []
    good: dict[int, dict[str, Any]] = {}
    for line, row in numbered:
        try:
            good[line] = chat_row(row, "it")
        except DataError as error:
            refused.append((line, error.message))

    def refuse(line: int, error: DataError) -> None:
        refused.append((line, "it" + error.message.removeprefix(name_of(good[line], line))))

    limit = row_limit(folder, tokenizer, config.max_length)
    rows = Part(cast(Any, good), good)  # numbered by their lines
    encoded, report = encode_rows(rows, ChatTokenizer(tokenizer), limit, refuse=refuse)
    planner = Planner.of(device_of().type, None, share=True)
    steps = Steps([len(row) for row in encoded], rows=config.rows_a_step, seed=config.seed)
    computed = sum(tree.tokens for step in steps for tree in planner([encoded[i] for i in step]))
    return Inspection(report, tuple(sorted(refused)), sum(map(len, encoded)), computed)
