"""A student whose model is trained at a server, which keeps the rows that it was sent and the prompts that it was asked."""

import json
from typing import Any

import dspy

import dspyc
from dspyc.models.scripted import Answer, inputs_of, written
from tests.providers.openai_server import KEY, OpenAIServer


class Witness(OpenAIServer):
    """Trains at once; its models, tuned or not, answer `answer(inputs)`."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(polls=0)
        self.answer = answer
        self.asked: list[list[dict[str, Any]]] = []  # messages
        self.reply = self._reply

    @property
    def rows(self) -> list[list[dict[str, Any]]]:
        """The messages of every row of every file."""
        lines = [line for file in self.files.values() for line in file["content"].splitlines()]
        return [json.loads(line)["messages"] for line in lines]

    def lm(self) -> dspy.LM:
        return dspyc.LM("openai/dspyc-tiny", api_base=self.url, api_key=KEY, cache=False, num_retries=0)

    def _reply(self, request: dict[str, Any]) -> str:
        self.asked.append(request["messages"])
        made = self.answer(inputs_of(request["messages"]))
        return made if isinstance(made, str) else written(made)
