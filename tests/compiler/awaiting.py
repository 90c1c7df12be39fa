"""A program for both kinds of calls."""

import asyncio

import dspy


class Awaiting(dspy.Module):  # type: ignore[misc]
    """Asks in an event loop of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return asyncio.run(self.answer.acall(question=question))
