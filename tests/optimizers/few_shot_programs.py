"""Programs, data and a deterministic teacher on which our few-shot optimizers and DSPy's are compared."""

import hashlib
from collections.abc import Callable
from typing import Any

import dspy

import dspyc


def draw(*parts: Any) -> int:
    """A number from 0 to 99 that depends on nothing but the parts."""
    return hashlib.sha256(repr(parts).encode()).digest()[0] * 100 // 256


class Answer(dspy.Module):  # type: ignore[misc]
    """One predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> Any:
        return self.answer(question=question)


class Hop(dspy.Signature):  # type: ignore[misc]
    """Take a step."""

    context: list[str] = dspy.InputField()
    question: str = dspy.InputField()
    style: str = dspy.InputField(default="short")
    answer: str = dspy.OutputField()


class Hops(dspy.Module):  # type: ignore[misc]
    """`hop` runs one to four times on one context list, `close` not always, and `hop` has a default that nobody gives."""

    def __init__(self) -> None:
        super().__init__()
        self.hop = dspy.Predict(Hop)
        self.close = dspy.Predict("notes: list[str] -> answer")

    def forward(self, question: str) -> Any:
        context = [f"about {question}"]
        notes = [self.hop(context=context, question=f"{question} {i}").answer for i in range(1 + draw(question) % 4)]
        if draw("close", question) < 60:
            return self.close(notes=notes)
        return dspy.Prediction(answer=notes[-1])


class Shared(dspy.Module):  # type: ignore[misc]
    """A predictor under two names, one in a list, and one in a compiled sub-module that no optimizer may change."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.again = self.first
        self.several = [dspy.Predict("question, hint -> answer") for _ in range(2)]
        self.done = Answer()
        self.done._compiled = True

    def forward(self, question: str) -> Any:
        hint = self.first(question=question).answer
        hint = self.again(question=hint).answer
        for predictor in self.several:
            hint = predictor(question=question, hint=hint).answer
        return self.done(question=hint)


PROGRAMS: list[Callable[[], dspy.Module]] = [Answer, Hops, Shared, lambda: dspy.Predict("question -> answer")]


def trainset(number: int = 30) -> list[dspy.Example]:
    """Every tenth question stands in it twice, with two answers."""
    return [dspy.Example(question=f"q{i - i % 10 // 9}", answer=f"a{i}").with_inputs("question") for i in range(number)]


def reply(inputs: dict[str, str]) -> dict[str, Any]:
    """Depends on the question alone, so that it is the same for both libraries whatever demos they show."""
    return {"reasoning": "because", "answer": f"r{draw(sorted(inputs.items()))}"}


def lm(model: str = "scripted/teacher") -> dspy.LM:
    return dspyc.ScriptedLM(reply, model=model)


def half(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:
    return draw(prediction.answer) < 50


def graded(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    return draw(prediction.answer) / 100


def rare(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:
    """True of few answers, and it fails on others."""
    if draw("raise", example.question) < 15:
        raise ValueError("no judgement")
    return draw(prediction.answer) < 15


def demos(program: dspy.Module) -> dict[str, list[dict[str, Any]]]:
    return {name: [dict(demo.items()) for demo in p.demos] for name, p in program.named_predictors()}
