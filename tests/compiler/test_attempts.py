"""Which examples are tried for good runs, and what is left of them where a budget ends."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from dspyc.compiler import Ledger
from dspyc.compiler.attempts import Attempt, first_good
from dspyc.compiler.trace import Trace
from dspyc.errors import BudgetError


def search(folder: Path, answers: list[str], **settings: Any) -> list[Attempt]:
    """Of examples whose runs are, round by round, good (+), bad (-) or refused (x); all of them end at once."""

    def begin(index: int, at: int) -> "Future[Trace]":
        run: Future[Trace] = Future()
        if answers[index][at] == "x":
            run.set_exception(BudgetError("The budget is spent."))
        else:
            run.set_result(Trace(f"{index} {at}", "teacher", index, str(index), score=float(answers[index][at] == "+")))
        return run

    with Ledger(folder) as ledger:
        return first_good(
            begin,
            len(answers),
            **{"wanted": 3, "max_rounds": 2, "num_threads": 4, **settings},
            good=lambda run: run.counted > 0,
            ledger=ledger,
            max_errors=10,
            advance=lambda step=1, note="": None,
        )


def test_the_first_good_runs_are_those_of_a_search_that_makes_one_after_the_other(tmp_path: Path) -> None:
    attempts = search(tmp_path, ["-+", "--", "+", "--", "+", "+"])
    assert [(one.index, len(one.runs), one.good) for one in attempts] == [
        (0, 2, True),
        (1, 2, False),
        (2, 1, True),
        (3, 2, False),
        (4, 1, True),
    ]


def test_a_run_that_is_refused_ends_its_own_example_and_no_other_that_was_begun(tmp_path: Path) -> None:
    attempts = search(tmp_path, ["-+", "x", "-+", "+", "+"])
    assert [one.index for one in attempts if one.good] == [0, 2]
    assert [len(one.runs) for one in attempts] == [2, 0, 2]  # none is begun once the second was refused
    with pytest.raises(BudgetError):
        search(tmp_path, ["x", "--", "--", "+"])
