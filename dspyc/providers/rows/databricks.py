"""Databricks' rows: our own trainer reads them on AI Runtime; the retired Foundation Model Fine-tuning took chats alone.

{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
{"prompt": "2+2?", "response": "4"}                                       the retired task INSTRUCTION_FINETUNE
"""

from functools import partial

from .chat import ChatRules, exchange, plain
from .formatter import Formatter

_RETIRED = "https://docs.databricks.com/aws/en/large-language-models/foundation-model-training/data-preparation"

RUNTIME_RULES = ChatRules(tools=True, alternate=False)
CHAT_RULES = ChatRules()
INSTRUCTION_RULES = ChatRules(exchanges=1)


RUNTIME = Formatter(
    "databricks", RUNTIME_RULES.problems, plain, source="docs/training.md: AI Runtime runs dspyc's own trainer"
)
CHAT = Formatter("databricks-chat", CHAT_RULES.problems, plain, source=_RETIRED)
INSTRUCTION = Formatter(
    "databricks-instruction", INSTRUCTION_RULES.problems, partial(exchange, reply="response"), source=_RETIRED
)
