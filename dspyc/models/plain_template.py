"""The chat template of tokenizers that have none, such as GPT-2's: roles as headings, turns ended by the tokenizer's own end.

No token is new, so no embedding is resized. Every turn ends with the end-of-sequence token, which no text of a message can
spell (chat.py), so none can open another's turn. Adapters hold what was learned with these very words: a change would make
them strangers to what they are asked, so there is none; whole models have the template saved beside their tokenizer.
"""

import logging
from functools import cache
from pathlib import Path
from typing import Any

from ..progress import is_main

log = logging.getLogger("dspyc.models")

PLAIN = (
    "{% for message in messages %}"
    "{% if message.tool_calls %}"
    "{{ raise_exception('it is the plain one of a model that has none, which has no words for calls of functions') }}"
    "{% endif %}"
    "{{ message['role'] | capitalize }}:\n{{ message['content'] or '' }}{{ eos_token }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)


def with_template(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer in `folder`, which gets the plain template where it has none; the log says so, once for each folder."""
    if not tokenizer.chat_template and tokenizer.eos_token_id is not None:
        # A model that was trained behind a first token answers badly without it.
        begun = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{ bos_token }}" if begun else "") + PLAIN
        if is_main():
            _say(folder, tokenizer.eos_token)
    return tokenizer


@cache
def _say(folder: Path, end: str) -> None:
    log.warning(
        "The tokenizer in %s has no chat template: turns are plain text under 'System:', 'User:' and 'Assistant:', each "
        "ended by %s.",
        folder,
        end,
    )
