"""Together's chat rows: OpenAI's, with strings for texts, turns that alternate, and no other field than these.

{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4", "weight": 1}], "tools": [...]}
"""

from .chat import ChatRules, plain
from .formatter import Formatter

RULES = ChatRules(tools=True, weights=True)

TOGETHER = Formatter(
    "together", RULES.problems, plain, source="https://docs.together.ai/docs/fine-tuning/data-preparation"
)
