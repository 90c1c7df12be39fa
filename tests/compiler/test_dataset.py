"""From labels and runs to rows: which of them stay, and which are learned from."""

from collections import Counter
from typing import Any

import dspy
import pytest

import dspyc
from dspyc.compiler.dataset import Dataset, Target, from_labels, from_traces
from dspyc.compiler.examples import example_keys
from dspyc.compiler.trace import Step, Trace


def labelled(**settings: Any) -> Dataset:
    """Rows of 12 examples for two predictors: 8 of topic a, 3 of b, 1 of c; every mood but one is 'glad'."""
    lm, adapter = dspyc.ScriptedLM(lambda inputs: {}), dspyc.TerseAdapter()
    targets = {name: Target(dspy.Predict(f"text -> {name}"), adapter, lm) for name in ("topic", "mood")}
    labels = zip("aabaabaacaba", ["sad", *["glad"] * 11], strict=True)
    made = [
        dspy.Example(text=f"text {i}", topic=topic, mood=mood).with_inputs("text")
        for i, (topic, mood) in enumerate(labels)
    ]
    return from_labels(made, example_keys(made), targets, validation_fraction=0, **settings)


def replies(data: Dataset, name: str) -> Counter[str]:
    return Counter(row["messages"][-1]["content"] for row in data.train[name])


def test_a_balanced_predictor_has_as_many_rows_of_every_reply_and_the_others_keep_theirs() -> None:
    plain, balanced = labelled(), labelled(balance="topic")
    assert sorted(replies(plain, "topic").values()) == [1, 3, 8]
    assert replies(balanced, "topic") == dict.fromkeys(replies(plain, "topic"), 1)
    assert balanced.train["mood"] == plain.train["mood"]
    assert balanced.report.balanced_away == 9
    assert balanced.report.rows == {"topic": 3, "mood": 12}
    assert "9 rows dropped for balance" in balanced.report.explain()


def test_what_balance_leaves_out_depends_on_the_seed_alone() -> None:
    chosen = [[row["example"] for row in labelled(balance="topic", seed=seed).train["topic"]] for seed in range(5)]
    assert chosen[3] == [row["example"] for row in labelled(balance="topic", seed=3).train["topic"]]
    assert len(set(map(tuple, chosen))) > 1


@pytest.mark.parametrize("seed", range(8))
def test_a_predictor_that_is_seldom_called_has_rows_to_learn_from(seed: int) -> None:
    """`often` is called for ten examples; `once` for one of them, `never` for none."""
    lm, adapter = dspyc.ScriptedLM(lambda inputs: {}), dspyc.TerseAdapter()
    names = ("often", "once", "never")
    targets = {name: Target(dspy.Predict(f"text -> {name}"), adapter, lm) for name in names}
    traces = [
        Trace(
            str(i),
            "teacher",
            i,
            str(i),
            steps=[Step(name, {"text": f"text {i}"}, {name: "x"}) for name in names[: 2 if i == 3 else 1]],
        )
        for i in range(10)
    ]
    made = from_traces(traces, targets, threshold=None, scored=False, validation_fraction=0.9, seed=seed)
    assert len(made.train["once"]) == 1
    assert "3" in {row["example"] for row in made.train["often"]}  # all rows of an example are on one side
    assert len(made.train["often"]) in (1, 2)
    assert "once" not in made.validation
    assert made.report.rows == {"often": 10, "once": 1}


@pytest.mark.parametrize("threshold", [None, 1.0])
def test_full_marks_of_weights_that_no_float_holds_are_full_marks(threshold: float | None) -> None:
    lm, adapter = dspyc.ScriptedLM(lambda inputs: {}), dspyc.TerseAdapter()
    targets = {"topic": Target(dspy.Predict("text -> topic"), adapter, lm)}
    weights = [0.1] * 10  # their sum is 0.9999999999999999
    scores = [sum(weights), sum(weights[1:]), 1 - 1e-6]
    traces = [
        Trace(str(i), "teacher", i, str(i), steps=[Step("topic", {"text": f"text {i}"}, {"topic": "x"})], score=score)
        for i, score in enumerate(scores)
    ]
    made = from_traces(traces, targets, threshold=threshold, scored=True, validation_fraction=0)
    assert [row["example"] for row in made.train["topic"]] == ["0"]
    assert made.report.below == 2
