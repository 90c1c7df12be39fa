"""Chat messages as token ids, the same ones for a training row and for the call that it trains.

The tokenizer's own chat template writes the turns, or the plain one (plain_template.py) where it has none. Text in a message
that spells one of the tokenizer's control tokens stays text: it is hidden from the tokenizer behind a private-use character
while the template runs, and encoded piece by piece afterwards, so nothing a user, a data set or a tool says can end a turn
or open another.
"""

import json
import re
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ..errors import ModelError
from .opening import Opening

if TYPE_CHECKING:
    from .messages import Message  # which loads DSPy, and training does without

_PRIVATE_USE = range(0xF0000, 0xFFFFE)  # Unicode plane 15: no text means anything by these
_DATE = {"d": "26", "m": "07", "b": "Jul", "B": "July", "Y": "2024", "y": "24", "a": "Fri", "A": "Friday", "j": "208"}
_TIME = {"H": "00", "I": "12", "M": "00", "S": "00", "p": "AM"}
# What templates ask for the date, in place of transformers' own, which reads the clock: Llama 3.2's date without one. The
# line's end is no part of what is written, and leaves the template's first line as it is.
_CLOCK = (
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f" | replace('%{letter}', '{text}')" for letter, text in (_DATE | _TIME).items())
    + " }}{% endmacro %}\n"
)
_PROBE = "\ue000"  # a text that no template writes itself


class ChatTokenizer:
    """Turns chats into token ids with one tokenizer. Safe to share between threads.

    Raises:
        ModelError: The tokenizer has no end-of-sequence token or no chat template, the template refuses the messages, or a
            message holds media.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"The tokenizer of {tokenizer.name_or_path or 'this model'} has no end-of-sequence token.",
                hint="Set `eos_token` in its tokenizer_config.json to the token that ends a turn.",
            )
        if not tokenizer.chat_template:
            raise ModelError(
                f"The tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template.",
                hint="Load it with dspyc.models.load_tokenizer, which gives it a plain one.",
            )
        self.tokenizer = tokenizer
        self._lock = threading.RLock()  # a fast tokenizer changes its own settings while it encodes
        self._control = self._control_pattern()

    def prompt_ids(self, messages: "list[Message]", tools: list[dict[str, Any]] | None = None) -> list[int]:
        """The ids that the model is given: the turns in `messages`, and the opening of the assistant's next one.

        Where the template opens a reply with special tokens (gpt-oss: `<|channel|>final<|message|>`), no text could spell
        them, so they are given too; with tools the model chooses them itself.
        """
        veil = _Veil(self._control, [messages, tools])
        prompt = self._render(veil, messages, tools, reply_next=True)
        return self._encode(prompt if tools else prompt + self._openings[0], veil)

    def row_ids(self, messages: "list[Message]", tools: list[dict[str, Any]] | None = None) -> tuple[list[int], int]:
        """The ids of a whole training row, whose last message is the assistant's, and the length of its prompt.

        `ids` begins with `prompt_ids(messages[:-1], tools)`, and `ids[:length]` is that without special tokens that open a
        reply: these are learned. The rest is the reply, whose last token ends the turn.
        """
        if not messages or messages[-1].get("role") != "assistant":
            raise ModelError("The last message of a training row must be the assistant's reply.")
        veil = _Veil(self._control, [messages, tools])
        prompt = self._render(veil, messages[:-1], tools, reply_next=True)
        prompt_ids = self._encode(prompt, veil)
        whole = self._render(veil, messages, tools, reply_next=False)
        # A template may rewrite earlier turns once they are answered; then the text alone is the reply.
        text = _text_of(messages[-1])
        reply = whole[len(prompt) :] if whole.startswith(prompt) else "".join(self._openings) + veil.hide(text)
        reply_ids = self._encode(reply, veil)
        end = self.end_of_turn_id
        reply_ids = reply_ids[: reply_ids.index(end)] if end in reply_ids else reply_ids
        if not reply_ids and text.strip():
            raise ModelError(
                f"The chat template leaves nothing of the reply {text[:40]!r}: its turn ends where it begins.",
                hint="Mend the template: an assistant's text stands behind the opening of its turn, and its end behind it.",
            )
        return [*prompt_ids, *reply_ids, end], len(prompt_ids)

    @property
    def opening(self) -> Opening:
        """What the template writes before an assistant's text beyond what the model is given, such as an empty thought."""
        return Opening(self._openings[1])

    def decode(self, ids: list[int]) -> str:
        """The text of a reply, without control tokens."""
        with self._lock:
            text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    @cached_property
    def end_of_turn_id(self) -> int:
        """The token that the template writes after an assistant's text, or else the end-of-sequence token."""
        _, whole = self._probe
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        behind = self.text_ids(whole.rpartition(_PROBE)[2])
        return next((i for i in behind if i in special), int(self.tokenizer.eos_token_id))

    @cached_property
    def _openings(self) -> tuple[str, str]:
        """What the template writes before an assistant's text beyond the opening of its turn: up to the last special token,
        and from there on.
        """
        prompt, whole = self._probe
        opening = whole[len(prompt) :].partition(_PROBE)[0] if whole.startswith(prompt) else ""
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        end = max((opening.rfind(text) + len(text) for text in special if text and text in opening), default=0)
        return opening[:end], opening[end:]

    @cached_property
    def _probe(self) -> tuple[str, str]:
        """What the template makes of a question, and of it with the answer `_PROBE`."""
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
        veil = _Veil(self._control, chat)
        return self._render(veil, chat[:1], None, reply_next=True), self._render(veil, chat, None, reply_next=False)

    @property
    def stop_ids(self) -> set[int]:
        """The tokens after which a reply is over."""
        return {self.end_of_turn_id, int(self.tokenizer.eos_token_id)}

    @property
    def takes_tools(self) -> bool:
        """Whether the template writes tool definitions into the prompt."""
        return "tools" in self._template

    @property
    def _template(self) -> str:
        template = self.tokenizer.chat_template
        return "\n".join(template.values()) if isinstance(template, dict) else str(template)

    def _control_pattern(self) -> re.Pattern[str]:
        """Special tokens, and those that the template itself writes (`<tool_call>`); the longest first."""
        found = [
            token.content
            for token in self.tokenizer.added_tokens_decoder.values()
            if token.content and (token.special or (token.content in self._template and not token.content.isspace()))
        ]
        return re.compile("|".join(re.escape(text) for text in sorted(found, key=len, reverse=True)) or r"(?!)")

    def _render(self, veil: "_Veil", messages: "list[Message]", tools: Any, *, reply_next: bool) -> str:
        prepared = veil.hide([_prepared(message) for message in messages])
        try:
            return self._apply(prepared, veil.hide(tools), reply_next)
        except TemplateError as error:
            folded = _without_system(prepared)
            if folded is None:
                raise _refusal(error) from error
        try:
            return self._apply(folded, veil.hide(tools), reply_next)
        except TemplateError as error:
            raise _refusal(error) from error

    def _apply(self, messages: "list[Message]", tools: Any, reply_next: bool) -> str:
        with self._lock:
            template = self.tokenizer.get_chat_template(None, tools or None)
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=tools or None,
                chat_template=_CLOCK + template if "strftime_now" in template else template,
                tokenize=False,
                add_generation_prompt=reply_next,
            )
        return str(text)

    def _encode(self, text: str, veil: "_Veil") -> list[int]:
        ids: list[int] = []
        for piece in veil.split(text):
            hidden = veil.hidden(piece)
            ids += self._plain_ids(hidden) if hidden is not None else self.text_ids(piece)
        return ids

    def text_ids(self, text: str) -> list[int]:
        """The ids of text that the assistant writes, the template's own tokens in it included."""
        with self._lock:
            return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _plain_ids(self, text: str) -> list[int]:
        """The ids of a control token's spelling, as ordinary text: no piece of it is long enough to be the token."""
        if len(text) == 1:
            with self._lock:
                return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)
        ids: list[int] = []
        for part in (text[:1], text[1:]):
            for piece in re.split(f"({self._control.pattern})", part):
                if piece:
                    ids += self._plain_ids(piece) if self._control.fullmatch(piece) else self.text_ids(piece)
        return ids


class _Veil:
    """Control tokens in the text of one chat, each behind a private-use character that the chat does not use."""

    def __init__(self, control: re.Pattern[str], chat: Any) -> None:
        self._control = control
        texts = "\n".join(_strings(chat))
        spellings = list(dict.fromkeys(control.findall(texts)))
        used = set(texts) if spellings else set()
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
        self._mark_of = dict(zip(spellings, free, strict=False))
        self._spelling_of = {mark: spelling for spelling, mark in self._mark_of.items()}
        self._marks = re.compile(f"([{''.join(self._spelling_of)}])") if spellings else None

    def hide(self, value: Any) -> Any:
        """`value` (text, or JSON-like data with text in it) with every control token behind its character."""
        if not self._mark_of:
            return value
        if isinstance(value, str):
            return self._control.sub(lambda match: self._mark_of[match[0]], value)
        if isinstance(value, list):
            return [self.hide(item) for item in value]
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return value

    def split(self, text: str) -> list[str]:
        return [piece for piece in (self._marks.split(text) if self._marks else [text]) if piece]

    def hidden(self, piece: str) -> str | None:
        """The control token that `piece` stands for, or None where it is text."""
        return self._spelling_of.get(piece)


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.items() for part in item for text in _strings(part)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return []


def _prepared(message: "Message") -> "Message":
    """The message as templates expect it: content as one text, the arguments of tool calls as objects."""
    found = {**message, "content": _text_of(message)}
    if message.get("tool_calls"):
        found["tool_calls"] = [_prepared_call(call) for call in message["tool_calls"]]
    return found


def _text_of(message: "Message") -> str:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.get("type") != "text":
            kind = "images" if "image" in str(part.get("type")) else f"parts of type {part.get('type')!r}"
            raise ModelError(
                f"A {message.get('role')} message holds {kind}, and a text model cannot take images or other media.",
                hint="Describe it in text, or use a program whose inputs are text.",
            )
    return "".join(part["text"] for part in content)


def _prepared_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise ModelError(
                f"The arguments of the call to tool {function.get('name')!r} are not JSON: {arguments[:80]!r}.",
                hint="Write them as a JSON object.",
            ) from error
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def _without_system(messages: "list[Message]") -> "list[Message] | None":
    """The chat with its system text at the head of the first user message, or None where there is nothing to move."""
    if not messages or messages[0].get("role") != "system":
        return None
    system, rest = messages[0]["content"], messages[1:]
    if rest and rest[0].get("role") == "user":
        return [{**rest[0], "content": f"{system}\n\n{rest[0]['content']}"}, *rest[1:]]
    return [{"role": "user", "content": system}, *rest]


def _refusal(error: TemplateError) -> ModelError:
    return ModelError(
        f"The model's chat template refuses these messages: {error}",
        hint="Its template decides which roles may follow each other; see chat_template.jinja beside the tokenizer.",
    )
