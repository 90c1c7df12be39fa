"""Databricks' rows: our own trainer reads them on AI Runtime; the retired Foundation Model Fine-tuning took chats alone.

{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
{"prompt": "2+2?", "response": "4"}                                       the retired task INSTRUCTION_FINETUNE
"""

from collections.abc import Mapping
from typing import Any

from .chat import ChatRules, plain, text_of
from .formatter import Formatter

_RETIRED = "https://docs.databricks.com/aws/en/large-language-models/foundation-model-training/data-preparation"

RUNTIME_RULES = ChatRules(tools=True, alternate=False)
CHAT_RULES = ChatRules()
INSTRUCTION_RULES = ChatRules(exchanges=1)


def write_instruction(row: Mapping[str, Any]) -> dict[str, Any]:
    """One exchange: the system's text, an empty line and the user's are the prompt."""
    *prompt, reply = (text_of(turn) for turn in row["messages"])
    return {"prompt": "\n\n".join(str(text) for text in prompt), "response": reply}


RUNTIME = Formatter(
    "databricks", RUNTIME_RULES.problems, plain, source="docs/training.md: AI Runtime runs dspyc's own trainer"
)
CHAT = Formatter("databricks-chat", CHAT_RULES.problems, plain, source=_RETIRED)
INSTRUCTION = Formatter("databricks-instruction", INSTRUCTION_RULES.problems, write_instruction, source=_RETIRED)
