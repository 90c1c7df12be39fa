"""The demo's teacher: right but for the stated share of tickets, whatever the order and the number of threads."""

import dspy
import pytest

from dspyc.demo.expert import ERROR_RATE, answer, expert_lm, mistaken
from dspyc.demo.support_desk import ANSWERS, SupportDesk, load_examples, metric


def test_the_expert_fails_the_metric_on_the_stated_share_of_tickets() -> None:
    train, _, test = load_examples()
    desk = SupportDesk()
    lm = expert_lm()
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        runs = dspy.Parallel(num_threads=8, disable_progress_bar=True)([(desk, e.inputs()) for e in train[:300]])
    wrong = [e.ticket for e, prediction in zip(train[:300], runs, strict=True) if not metric(e, prediction)]
    assert wrong == [e.ticket for e in train[:300] if mistaken(e.ticket)]
    assert lm.engine.calls == 600
    assert sum(mistaken(e.ticket) is not None for e in train) / len(train) == pytest.approx(ERROR_RATE, abs=0.03)
    assert sum(mistaken(e.ticket) is not None for e in test) / len(test) == pytest.approx(ERROR_RATE, abs=0.05)


def test_the_expert_gives_the_same_answer_each_time() -> None:
    train, _, _ = load_examples()
    tickets = [e.ticket for e in train[:50]]
    once = [answer({"ticket": ticket}) for ticket in tickets]
    again = [answer({"ticket": ticket}) for ticket in reversed(tickets)]
    assert once == again[::-1]


def test_a_ticket_that_is_not_in_the_data_is_answered_like_the_nearest_one() -> None:
    train, _, _ = load_examples()
    known = next(e for e in train if not mistaken(e.ticket) and not mistaken(e.ticket + " ok"))
    assert answer({"ticket": known.ticket + " ok"}) == {"intent": known.intent, "urgency": known.urgency}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_metric_wants_all_four_answers(name: str) -> None:
    example = load_examples()[0][0]
    right = {answer_name: example[answer_name] for answer_name in ANSWERS}
    assert metric(example, dspy.Prediction(**right)) is True
    assert metric(example, dspy.Prediction(**{**right, name: "something else"})) is False
    assert metric(example, dspy.Prediction(**{k: v for k, v in right.items() if k != name})) is False
