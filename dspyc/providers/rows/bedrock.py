"""Amazon Bedrock's rows: conversations for Nova, prompts with completions for other text models.

{"schemaVersion": "bedrock-conversation-2024", "system": [{"text": "Be brief."}],
 "messages": [{"role": "user", "content": [{"text": "2+2?"}]}, {"role": "assistant", "content": [{"text": "4"}]}]}
{"prompt": "Be brief.\\n\\n2+2?", "completion": "4"}
"""

from collections.abc import Mapping
from typing import Any

from .chat import ChatRules, text_of
from .formatter import Formatter

SCHEMA = "bedrock-conversation-2024"

# The first seven are in Nova's documentation; its dataset validator also refuses the last two, and all in any case.
RESERVED = ("System:", "User:", "Bot:", "Assistant:", "<image>", "<video>", "[EOS]", "Thought:", "<unk>")

NOVA_RULES = ChatRules(reserved=RESERVED)
TEXT_RULES = ChatRules(exchanges=1)


def write_nova(row: Mapping[str, Any]) -> dict[str, Any]:
    """One conversation: the system's turn apart, every text a content block."""
    turns = [(turn["role"], [{"text": text_of(turn)}]) for turn in row["messages"]]
    system = [block for role, blocks in turns if role == "system" for block in blocks]
    spoken = [{"role": role, "content": blocks} for role, blocks in turns if role != "system"]
    return {"schemaVersion": SCHEMA} | ({"system": system} if system else {}) | {"messages": spoken}


def write_text(row: Mapping[str, Any]) -> dict[str, Any]:
    """One exchange: the system's text, an empty line and the user's as the prompt."""
    *prompt, completion = (text_of(turn) for turn in row["messages"])
    return {"prompt": "\n\n".join(str(text) for text in prompt), "completion": completion}


NOVA = Formatter(
    "bedrock-nova",
    NOVA_RULES.problems,
    write_nova,
    fewest=8,
    most=20_000,
    source="https://docs.aws.amazon.com/nova/latest/userguide/fine-tune-prepare-data-understanding.html",
)
TEXT = Formatter(
    "bedrock",
    TEXT_RULES.problems,
    write_text,
    source="https://docs.aws.amazon.com/bedrock/latest/userguide/preparing-text-data.html",
)
