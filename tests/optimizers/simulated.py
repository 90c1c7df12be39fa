"""A language model whose answers get better with the right demos, and are the same for the same prompt."""

import hashlib
import threading
from typing import Any

import dspy
from dspy import lm15

from dspyc.models.messages import messages_of
from dspyc.models.scripted import inputs_of, written


def share(*parts: Any) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) / 16**8


class SimulatedEngine:
    """Adds two numbers; how often rightly depends on how helpful the demos are, and on how hard the question is."""

    supports_function_calling = False

    def __init__(self, base: float = 0.25) -> None:
        self.base = base
        self.asked: list[str] = []
        self.lock = threading.Lock()

    def complete(self, request: lm15.Request) -> lm15.Response:
        messages, _ = messages_of(request)
        question = inputs_of(messages)["question"]
        with self.lock:
            self.asked.append(question)
        demos = [inputs_of([m])["question"] for m in messages[:-1] if m["role"] == "user"]
        skill = self.base + sum(0.25 * share("helps", demo) ** 2 - 0.02 for demo in demos[:4])
        hardness = 0.5 * (share("hard", question) + share("luck", question, demos))
        total = sum(int(part) for part in question.split("+"))
        right = hardness < min(0.95, max(0.05, skill))
        text = written({"answer": str(total if right else total + 1)})
        usage = lm15.Usage(input_tokens=100, output_tokens=10)
        message = lm15.Message.assistant(text)
        return lm15.Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)

    def close(self) -> None:
        """Nothing to free."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "SimulatedEngine":
        return self


def simulated_lm(base: float = 0.25) -> dspy.LM:
    return dspy.LM("simulated/adder", engine=SimulatedEngine(base), cache=False)


def questions(first: int, number: int) -> list[dspy.Example]:
    return [
        dspy.Example(question=f"{i} + {7 * i % 31}", answer=str(i + 7 * i % 31)).with_inputs("question")
        for i in range(first, first + number)
    ]


def right(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    return bool(example.answer == prediction.answer)
