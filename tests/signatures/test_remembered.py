"""Adapters with a memory write what the adapters themselves write."""

from typing import Any

import dspy
import pytest

import dspyc
from dspyc.signatures import remembering


class Task(dspy.Signature):  # type: ignore[misc]
    """Answer."""

    question: str = dspy.InputField()
    notes: list[str] = dspy.InputField()
    answer: bool = dspy.OutputField()


def demos() -> list[Any]:
    return [
        dspy.Example(question="one?", notes=["a", "b"], answer=True),
        dspy.Example(question="one?", notes=["a", "b"], answer=1),  # equal, and written otherwise
        dspy.Example(augmented=True, question="two?", answer=False),
    ]


ADAPTERS = [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter(), dspyc.TerseAdapter()]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_prompts_are_the_same_whatever_was_written_before(adapter: dspy.Adapter) -> None:
    with_memory = remembering(adapter)
    assert isinstance(with_memory, type(adapter))
    shown, asked = demos(), {"question": "three?", "notes": ["c"]}
    for _ in range(2):
        for some in (shown, shown[:1], shown[1:2], []):
            for signature in (Task, Task.with_instructions("Answer well.")):
                written = with_memory.format(signature, some, dict(asked))
                assert written == adapter.format(signature, some, dict(asked))
                written[0]["content"] = "changed by whoever got it"
                written[-1]["role"] = "changed"
    shown[0].notes.append("c")
    assert with_memory.format(Task, shown, dict(asked)) == adapter.format(Task, shown, dict(asked))


def test_values_that_may_change_unseen_are_written_each_time() -> None:
    class Count:
        number = 0

        def __str__(self) -> str:
            self.number += 1
            return f"count {self.number}"

    adapter = remembering(dspy.ChatAdapter())
    shown = [dspy.Example(question=Count(), notes=[], answer=True)]
    first, second = (adapter.format(Task, shown, {"question": "?", "notes": []}) for _ in range(2))
    assert first[1] != second[1]


def test_an_adapter_of_someones_own_has_no_memory() -> None:
    class Own(dspy.ChatAdapter):  # type: ignore[misc]
        pass

    own = Own()
    assert remembering(own) is own
