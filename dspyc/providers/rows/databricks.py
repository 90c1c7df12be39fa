"""Databricks' rows: AI Runtime runs our own trainer, which reads them.

{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
"""

from .chat import ChatRules, plain
from .formatter import Formatter

RULES = ChatRules(tools=True, alternate=False)

RUNTIME = Formatter("databricks", RULES.problems, plain, source="docs/training.md: AI Runtime runs dspyc's own trainer")
