"""Language models and programs of a user's own, importable by the processes that the tests start."""

from typing import Any

import dspy

import dspyc
from dspyc.models.scripted import written


class Shouting(dspy.BaseLM):
    """Answers `a` in capitals, of as many words as it was set to."""

    def __init__(self, model: str, words: int = 1, **kwargs: Any) -> None:
        super().__init__(model, words=words, **kwargs)

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        text = written({"a": " ".join(["HERE"] * self.kwargs["words"])})
        answer = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {"choices": [answer], "usage": {}, "model": self.model}


class Refusing(Shouting):
    """One that is never made from a state."""

    @classmethod
    def load_state(cls, state: dict[str, Any], *, allow_custom_lm_class: bool = False) -> dspy.BaseLM:
        raise RuntimeError("its licence has ended")


class Asking(dspy.Module):
    def __init__(self, lm: dspy.BaseLM | None = None) -> None:
        super().__init__()
        self.ask = dspy.Predict("q -> a")
        self.ask.lm = lm

    def forward(self, q: str) -> Any:
        return self.ask(q=q)


def whisper(inputs: dict[str, str]) -> dict[str, Any]:
    return {"a": "here"}


def whispering() -> dspy.LM:
    """An LM by an engine of one's own."""
    return dspyc.ScriptedLM(whisper, model="own/whisper")
