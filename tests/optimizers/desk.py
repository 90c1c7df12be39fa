"""A small program, its data, metric and teacher, for tests that compile for real (and for their subprocesses)."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, Literal

import dspy

import dspyc

COLOURS = ("red", "green", "blue", "black")
QUICK = {"method": "lora", "max_steps": 2, "batch_size": 4, "learning_rate": 1e-3}


class Desk(dspy.Module):  # type: ignore[misc]
    """Two predictors, one of them in a loop: `name` is called twice before `count` is called once."""

    def __init__(self) -> None:
        super().__init__()
        self.name = dspy.Predict(dspy.Signature("thing -> colour: Literal['red', 'green', 'blue', 'black']"))
        self.count = dspy.Predict("colours: list[str] -> total: int")

    def forward(self, first: str, second: str) -> dspy.Prediction:
        colours = [self.name(thing=thing).colour for thing in (first, second)]
        return dspy.Prediction(colours=colours, total=self.count(colours=colours).total)


def examples(number: int) -> list[dspy.Example]:
    made = []
    for i in range(number):
        pair = (COLOURS[i % 4], COLOURS[(i * 3 + 1) % 4])
        fields = {"first": f"a {pair[0]} thing {i}", "second": f"one {pair[1]} item {i}"}
        made.append(dspy.Example(**fields, colours=list(pair)).with_inputs("first", "second"))
    return made


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    return list(prediction.colours) == example.colours


def expert(inputs: dict[str, str]) -> dict[str, Any]:
    """What a teacher that is always right answers."""
    if "thing" in inputs:
        return {"colour": next(c for c in COLOURS if c in inputs["thing"])}
    return {"total": inputs["colours"].count('"') // 2}


class LoggedExpert:
    """An expert that writes a line for every answer it gives, and dies where told to: a witness outside the process."""

    def __init__(self, log: Path, die_at: int | None = None, seconds: float = 0.0) -> None:
        self.log, self.die_at, self.seconds = log, die_at, seconds
        self.lock = threading.Lock()

    def __call__(self, inputs: dict[str, str]) -> dict[str, Any]:
        time.sleep(self.seconds)
        with self.lock:
            answered = len(self.log.read_text().splitlines()) if self.log.exists() else 0
            if self.die_at is not None and answered >= self.die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            with self.log.open("a") as file:
                file.write(repr(sorted(inputs.items())) + "\n")
        return expert(inputs)


def student(**settings: Any) -> Desk:
    program = Desk()
    program.set_lm(dspyc.LocalLM("dspyc/tiny", max_tokens=24, cache=False, **settings))
    return program


Colour = Literal["red", "green", "blue", "black"]
