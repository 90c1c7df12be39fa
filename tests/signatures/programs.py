"""Programs of the shapes that people write, importable by the processes that the tests start."""

import enum
import os
import threading
from typing import Any, Literal

import dspy
import pydantic

from dspyc.models import ScriptedLM


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Item(pydantic.BaseModel):
    name: str = pydantic.Field(description="what it is")
    tags: set[str] = {"x", "y", "z"}


class Sort(dspy.Signature):
    """Sort the item."""

    item: Item = dspy.InputField(desc="to sort")
    mood: Mood = dspy.OutputField()
    labels: set[Literal["a", "b", "c"]] = dspy.OutputField(desc="one or more")


class Spicy(dspy.Predict):
    """A predictor of the user's own."""

    flavour = "hot"


class Nested(dspy.Module):
    """Predictors in attributes, lists, tuples, dicts and sub-modules, one of them shared, one sub-module frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict(Sort)
        self.steps = [dspy.ChainOfThought("q -> a"), dspy.Predict("q -> b")]
        self.table = {"k": dspy.Predict("q -> c"), "same": self.first}
        self.pair = (Spicy("q -> d"),)
        self.frozen = dspy.ChainOfThought("q -> e")
        self.frozen._compiled = True
        self.rounds = 3

    def forward(self, q: str) -> Any:
        return self.steps[1](q=q)


class Stubborn(dspy.Module):
    """Holds what cannot be copied, beside predictors in the same list."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.mixed = [dspy.Predict("q -> a"), threading.Lock()]
        self.again = self.mixed[0]
        self.judge = {"lm": lm}

    def forward(self, q: str) -> Any:
        return self.again(q=q)


def build() -> Nested:
    program = Nested()
    program.set_lm(dspy.LM("test/model", temperature=0.5, api_key=os.environ.get("CANARY", "none"), cache=False))
    program.frozen.predict.lm = program.first.lm  # set_lm leaves frozen parts alone
    program.first.demos = [dspy.Example(item=Item(name="n"), mood=Mood.GOOD, labels={"a", "b", "c"})]
    program.first.config = {"stop": ["x"], "extra_headers": {"Authorization": os.environ.get("CANARY", "none")}}
    return program


def answering(**outputs: Any) -> dspy.LM:
    return ScriptedLM(lambda inputs: outputs)
