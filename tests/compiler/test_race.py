"""The race: who leaves, who wins, and that neither depends on threads."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

import dspyc
from dspyc.compiler import Ledger, observe
from dspyc.compiler.budget import Budget
from dspyc.compiler.examples import example_keys
from dspyc.compiler.pool import Pool
from dspyc.compiler.race import Race, Rule, Withdrawn, percent, schedule
from dspyc.compiler.recording import Subject
from dspyc.errors import BootstrapError, BudgetError, ConfigError
from dspyc.evaluation.intervals import mean_interval, student_quantile

EXAMPLES = [dspy.Example(text=f"text {i}").with_inputs("text") for i in range(100)]


def answer(inputs: dict[str, str]) -> dict[str, Any]:
    return {"label": "x"}


def metric(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return bool(prediction.label == "x")


def entrant(
    share: float, *, noise: int = 0, asked: set[str] | None = None, wait: Callable[[str], Any] | None = None
) -> Subject:
    """A candidate that is right on this share of the examples; what its language model is asked about goes to `asked`."""

    def noted(inputs: dict[str, str]) -> dict[str, Any]:
        if asked is not None:
            asked.add(inputs["text"])
        return answer(inputs)

    class Candidate(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.label = dspy.Predict("text -> label")

        def forward(self, text: str) -> dspy.Prediction:
            if share < 0:
                raise RuntimeError("it broke")
            if wait is not None:
                wait(text)
            said = self.label(text=text)
            right = random.Random(f"{noise} {text}").random() < share
            return said if right else dspy.Prediction(label="y")

    program = Candidate()
    program.set_lm(dspyc.ScriptedLM(noted, model=f"scripted/{share} {noise}"))
    return observe(program, "candidate", identity=f"{share} {noise}", traced=False)


def made(subject: Subject) -> "Future[Subject]":
    future: Future[Subject] = Future()
    future.set_result(subject)
    return future


def run(folder: Path, shares: list[float], threads: int = 4, **options: Any) -> tuple[Race, int]:
    budget = options.pop("budget", None)
    options = {"rule": Rule(), "max_errors": 10, **options}
    with Ledger(folder, budget=budget) as ledger, Pool(ledger, metric=metric, num_threads=threads) as pool:
        race = Race(EXAMPLES, example_keys(EXAMPLES), pool, **options)
        winner = race.run({i: made(entrant(share, noise=i)) for i, share in enumerate(shares)})
    return race, winner.number


def test_the_worse_leave_and_the_best_meets_every_example(tmp_path: Path) -> None:
    race, winner = run(tmp_path, [0.2, 0.9, 0.5, 0.3])
    assert winner == 1
    seen = [len(lane.judged) for lane in race.lanes]
    assert seen[1] == len(EXAMPLES)
    assert max(seen[0], seen[2], seen[3]) < 50
    for lane in race.lanes:
        assert lane.left is None if lane.number == 1 else lane.left.startswith("behind candidate 1 by ")


def test_all_meet_the_same_examples(tmp_path: Path) -> None:
    shares = (0.2, 0.9, 0.5)
    asked: list[set[str]] = [set() for _ in shares]
    entrants = {i: made(entrant(share, noise=i, asked=asked[i])) for i, share in enumerate(shares)}
    with Ledger(tmp_path) as ledger, Pool(ledger, metric=metric, num_threads=4) as pool:
        race = Race(EXAMPLES, example_keys(EXAMPLES), pool, rule=Rule(), max_errors=10, ahead=False)
        race.run(entrants)
    first, second, third = sorted(asked, key=len)
    assert 0 < len(first) < len(third) == len(EXAMPLES)
    assert first <= second <= third
    for lane, texts in zip(race.lanes, asked, strict=True):
        scores = race.by_example(lane)
        assert {e.text for e, score in zip(EXAMPLES, scores, strict=True) if score is not None} == texts


def test_equals_stay_and_the_first_of_them_wins(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger, Pool(ledger, metric=metric, num_threads=4) as pool:
        race = Race(EXAMPLES, example_keys(EXAMPLES), pool, rule=Rule(), max_errors=10)
        winner = race.run({i: made(entrant(0.7)) for i in range(3)})
    assert winner.number == 0
    assert [len(lane.judged) for lane in race.lanes] == [100, 100, 100]


def test_who_leaves_and_when_does_not_depend_on_threads(tmp_path: Path) -> None:
    found = []
    for threads in (1, 2, 13):
        race, winner = run(tmp_path / str(threads), [0.6, 0.7, 0.65, 0.2, 0.5], threads, seed=3)
        found.append((winner, [(lane.left, lane.judged.tolist()) for lane in race.lanes]))
    assert found[0] == found[1] == found[2]


def test_without_a_rule_all_meet_all(tmp_path: Path) -> None:
    race, winner = run(tmp_path, [0.2, 0.9, 0.5], rule=None)
    assert winner == 1
    assert [len(lane.judged) for lane in race.lanes] == [100, 100, 100]


@pytest.mark.parametrize(("rule", "best"), [(None, 0), (Rule(), 1)])
def test_without_a_rule_what_percents_do_not_tell_apart_is_equal_as_in_dspy(
    tmp_path: Path, rule: Rule | None, best: int
) -> None:
    def score(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return 0.5 if prediction.label == "y" else 0.50001

    with Ledger(tmp_path) as ledger, Pool(ledger, metric=score, num_threads=4) as pool:
        race = Race(EXAMPLES, example_keys(EXAMPLES), pool, rule=rule, max_errors=10, ahead=False)
        assert race.run({0: made(entrant(0.0)), 1: made(entrant(1.0, noise=1))}).number == best


@pytest.mark.parametrize(
    ("rule", "shares", "calls", "judged", "best"),
    [
        (None, [0.1, 0.6, 0.5, 1.0], 302, [100, 100, 100, 2], 1),
        (None, [0.1, 0.6, 0.5, 1.0], 37, [37, 0, 0, 0], 0),
        (Rule(), [0.1, 0.6, 0.5, 1.0], 50, [16, 16, 16, 2], 1),
        (Rule(), [0.1, 0.6, 0.5, 1.0], 7, [7, 0, 0, 0], 0),
        (Rule(), [0.6, 0.7], 38, [16, 20], 1),
    ],
)
def test_a_spent_budget_leaves_those_to_compare_who_came_far_enough(
    tmp_path: Path, rule: Rule | None, shares: list[float], calls: int, judged: list[int], best: int
) -> None:
    race, winner = run(tmp_path, shares, 1, rule=rule, budget=Budget(calls=calls))
    assert (winner, [len(lane.judged) for lane in race.lanes]) == (best, judged)


def kept(race: Race) -> list[tuple[str | None, list[float]]]:
    return [(lane.left, lane.judged.tolist()) for lane in race.lanes]


def test_what_is_refused_ahead_of_a_look_stops_no_run_that_the_ledger_has(tmp_path: Path) -> None:
    shares, budget = [0.5, 0.55], Budget(calls=2 * 25 + 4)  # the first leads at the first look, the second later
    first, winner = run(tmp_path, shares, 1, ahead=False, budget=budget)
    assert (winner, [len(lane.judged) for lane in first.lanes]) == (1, [25, 29])
    refused = threading.Event()

    def watch(race: Race) -> None:
        if race.spent or not race.ahead:
            refused.set()

    with Ledger(tmp_path, budget=budget) as ledger, Pool(ledger, metric=metric, num_threads=4) as pool:
        race = Race(EXAMPLES, example_keys(EXAMPLES), pool, rule=Rule(), max_errors=10, watch=watch)
        held = EXAMPLES[race.order[15]].text  # the last that the first look needs
        late = entrant(shares[1], noise=1, wait=lambda text: text != held or refused.wait(30))
        assert race.run({0: made(entrant(shares[0])), 1: made(late)}).number == 1
    assert kept(race) == kept(first)


def test_who_joins_first_does_not_matter_to_a_race_that_goes_on_without_a_budget(tmp_path: Path) -> None:
    late: Future[Subject] = Future()

    def join(race: Race) -> None:
        if race.spent and not late.done():
            late.set_result(entrant(0.9))

    with Ledger(tmp_path, budget=Budget(calls=10)) as ledger, Pool(ledger, metric=metric, num_threads=1) as pool:
        first = Race(EXAMPLES, example_keys(EXAMPLES), pool, rule=Rule(), max_errors=10, watch=join)
        assert first.run({0: late, 1: made(entrant(0.4, noise=1))}).number == 1
    assert [len(lane.judged) for lane in first.lanes] == [0, 10]
    again, winner = run(tmp_path, [0.9, 0.4], 1, budget=Budget(calls=10))
    assert winner == 1
    assert kept(again) == kept(first)


def test_a_candidate_that_fails_too_often_is_out_and_the_race_goes_on(tmp_path: Path) -> None:
    race, winner = run(tmp_path, [0.5, -1.0], max_errors=5)
    assert winner == 0
    assert race.lanes[1].left is not None
    assert "it broke" in race.lanes[1].left


def test_a_race_in_which_all_fail_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BootstrapError, match="it broke"):
        run(tmp_path, [-1.0, -1.0], max_errors=5)


@pytest.mark.parametrize("reason", [Withdrawn("not made"), BudgetError("The budget is spent.")])
def test_a_race_in_which_the_last_is_not_made_once_the_others_failed_is_an_error(
    tmp_path: Path, reason: Exception
) -> None:
    never: Future[Subject] = Future()

    def give_up(race: Race) -> None:
        if race.lanes[0].left is not None and not never.done():
            never.set_exception(reason)

    with Ledger(tmp_path) as ledger, Pool(ledger, metric=metric, num_threads=4) as pool:
        race = Race(EXAMPLES, example_keys(EXAMPLES), pool, rule=Rule(), max_errors=5, watch=give_up)
        with pytest.raises(BootstrapError, match=r"runs of the candidate failed, and `max_errors` is 5: .*it broke"):
            race.run({0: made(entrant(-1.0)), 1: never})


def test_candidates_that_are_never_made_for_want_of_budget_stop_no_run(tmp_path: Path) -> None:
    refused: Future[Subject] = Future()
    refused.set_exception(BudgetError("The budget is spent."))
    with Ledger(tmp_path) as ledger, Pool(ledger, metric=metric, num_threads=4) as pool:
        race = Race(EXAMPLES, example_keys(EXAMPLES), pool, rule=Rule(), max_errors=5)
        assert race.run({0: made(entrant(0.5)), 1: refused}).number == 0
        assert race.refused is not None
        assert [len(lane.judged) for lane in race.lanes] == [100, 0]
        race = Race(EXAMPLES, example_keys(EXAMPLES), pool, rule=Rule(), max_errors=5)
        with pytest.raises(BudgetError, match="The budget is spent"):
            race.run({0: refused, 1: refused})


def test_candidates_may_join_late_or_not_at_all(tmp_path: Path) -> None:
    late: Future[Subject] = Future()
    never: Future[Subject] = Future()
    begun = threading.Event()
    with Ledger(tmp_path) as ledger, Pool(ledger, metric=metric, num_threads=4) as pool:
        race = Race(EXAMPLES, example_keys(EXAMPLES), pool, rule=Rule(), max_errors=10, watch=lambda race: begun.set())

        def join() -> None:
            begun.wait()  # the others are running
            late.set_result(entrant(0.95))
            never.set_exception(Withdrawn("not made"))

        threading.Thread(target=join).start()
        winner = race.run({0: made(entrant(0.4)), 1: late, 2: never})
    assert winner.number == 1
    assert race.lanes[2].left == "not made"
    assert len(race.lanes[2].judged) == 0


def test_a_rule_seldom_loses_who_would_have_won() -> None:
    """Over simulated pairs, of which the better on all 200 examples is known."""
    rng, rule, looks, lost = np.random.default_rng(0), Rule(risk=0.1), schedule(200), 0
    for _ in range(400):
        hard = rng.random(200)
        scores = [(rng.random(200) * 0.5 + hard * 0.5 < ability).astype(float) for ability in rng.uniform(0.5, 0.6, 2)]
        first, second = sorted(scores, key=lambda s: -s.sum())
        if first.sum() == second.sum():
            continue
        lost += any(rule.lead(second[:n], first[:n], 200, len(looks) - 1)[1] > 0 for n in looks[:-1])
    assert lost / 400 <= 0.1


@pytest.mark.parametrize("risk", [0, 1, True, "much"])
def test_a_risk_is_a_probability(risk: Any) -> None:
    with pytest.raises(ConfigError, match="risk"):
        Rule(risk)


def test_looks_are_few_and_the_last_is_at_all() -> None:
    assert schedule(10) == [10]
    assert schedule(40) == [16, 20, 25, 31, 39, 40]
    assert schedule(10_000)[-1] == 10_000
    assert len(schedule(10_000)) < 32


def test_percent_is_that_of_dspy() -> None:
    examples = EXAMPLES[:7]
    scores = dict(zip((e.text for e in examples), (1.0, 0.5, 0.0, 1.0, 0.3, 0.1, 1.0), strict=True))
    program = dspy.Predict("text -> label")
    with dspy.context(lm=dspyc.ScriptedLM(answer)):
        theirs = dspy.Evaluate(devset=examples, metric=lambda e, p: scores[e.text], num_threads=1)(program)
    assert percent(list(scores.values())) == theirs.score


# ------------------------------------------------------------------------------------------------------------ how sure it is


def test_quantiles_of_student() -> None:
    """Against printed tables."""
    for probability, freedom, value in (
        (0.975, 9, 2.2622),
        (0.95, 20, 1.7247),
        (0.995, 30, 2.7500),
        (0.999, 15, 3.7328),
    ):
        assert student_quantile(probability, freedom) == pytest.approx(value, rel=0.005)
        assert student_quantile(1 - probability, freedom) == pytest.approx(-value, rel=0.005)


def test_an_interval_of_a_mean() -> None:
    low, high = mean_interval([1.0] * 10)
    assert (low, high) == (pytest.approx(0.7225, abs=1e-3), 1.0)  # Wilson's, by Brown, Cai & DasGupta
    low, high = mean_interval([0.2, 0.4, 0.6, 0.8] * 5)
    assert (low + high) / 2 == pytest.approx(0.5)
    assert high - low == pytest.approx(2 * 2.0930 * np.std([0.2, 0.4, 0.6, 0.8] * 5, ddof=1) / 20**0.5, rel=1e-3)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_intervals_hold_what_they_say() -> None:
    rng = np.random.default_rng(1)
    held = [low <= 0.7 <= high for low, high in (mean_interval(rng.random(40) < 0.7) for _ in range(1000))]
    assert 0.93 <= np.mean(held) <= 0.98
