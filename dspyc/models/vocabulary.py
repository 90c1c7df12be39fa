"""A tokenizer's tokens as the bytes that they stand for, so that a grammar over bytes can choose between them."""

import json
from bisect import bisect_left
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..errors import ModelError

_BYTE_TOKEN_LENGTH = len("<0x0A>")


class Vocabulary:
    """The spelling of every token. Control tokens spell nothing, and so does an id that the tokenizer lacks.

    Args:
        tokenizer: A fast tokenizer, byte-level or with byte fallback.
        encode: Text to its token ids, as training rows are encoded.
        size: The number of ids that the model knows, if not the tokenizer's; it writes no others.

    Raises:
        ModelError: A tokenizer whose tokens cannot be told as bytes.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, encode: Callable[[str], list[int]], size: int | None = None
    ) -> None:
        self._encode = encode
        self.size = size or len(tokenizer)
        self.spellings = _spellings(tokenizer, self.size)

    @cached_property
    def leads(self) -> bool:
        """Whether the tokenizer puts a space before a text's first word; decoding takes it away again."""
        return self.spelled(self._encode("a")) == b" a"

    @cached_property
    def order(self) -> np.ndarray:
        """The ids that spell something, the longest spellings first `(count,)`."""
        known = [i for i, spelling in enumerate(self.spellings) if spelling]
        return np.array(sorted(known, key=lambda i: -len(self.spellings[i])), dtype=np.int64)

    @cached_property
    def lengths(self) -> np.ndarray:
        """The lengths of the spellings in `order`, in bytes `(count,)`."""
        return np.array([len(self.spellings[i]) for i in self.order], dtype=np.int64)

    @cached_property
    def columns(self) -> np.ndarray:
        """The spellings in `order`, all their first bytes, then all second bytes and so on `(longest, count)`, zeros after."""
        longest = int(self.lengths[0])
        rows = b"".join(self.spellings[i].ljust(longest, b"\0") for i in self.order)
        return np.ascontiguousarray(np.frombuffer(rows, dtype=np.uint8).reshape(len(self.order), longest).T)

    def going_on_from(self, start: bytes) -> list[int]:
        """The ids whose spellings begin with `start` and go on with more than white space."""
        first, last = bisect_left(self._sorted, start), bisect_left(self._sorted, start + b"\xff")
        found = (self._by_spelling[spelling] for spelling in self._sorted[first:last])
        return [token for token in found if self.spellings[token][len(start) :].strip()]

    def spelled(self, ids: list[int]) -> bytes:
        return b"".join(self.spellings[i] for i in ids)

    def ids(self, text: bytes, before: list[int] | None = None) -> list[int]:
        """The ids of `text`: as the tokenizer writes it after the reply `before`, if that is as it would have written it.

        `text` may begin inside a character; what no encoding spells is put together from the longest tokens.
        """
        if not text:
            return []
        return self._after(text, before or []) or self._alone(text) or self._pieces(text)

    def _after(self, text: bytes, before: list[int]) -> list[int]:
        try:
            whole = (self.spelled(before) + text).decode()
        except UnicodeDecodeError:
            return []
        for start in (1, 0) if self.leads and whole.startswith(" ") else (0,):
            found = self._encode(whole[start:])
            if found[: len(before)] == before and self.spelled(found[len(before) :]) == text:
                return found[len(before) :]
        return []

    def _alone(self, text: bytes) -> list[int]:
        lead = next((at for at, byte in enumerate(text) if byte & 0xC0 != 0x80), len(text))
        rest = self._encode(text[lead:].decode())
        return [*self._pieces(text[:lead]), *rest] if self.spelled(rest) == text[lead:] else []

    def _pieces(self, text: bytes) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(text):
            width = min(int(self.lengths[0]), len(text) - at)
            while width and text[at : at + width] not in self._by_spelling:
                width -= 1
            if not width:
                raise ModelError(
                    f"The tokenizer has no token for {text[at : at + 8]!r}, which the reply's format needs."
                )
            ids.append(self._by_spelling[text[at : at + width]])
            at += width
        return ids

    @cached_property
    def _sorted(self) -> list[bytes]:
        return sorted(self._by_spelling)

    @cached_property
    def _by_spelling(self) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        for token in self.order.tolist():
            found.setdefault(self.spellings[token], token)
        return found


def _spellings(tokenizer: PreTrainedTokenizerBase, size: int) -> list[bytes]:
    spelling = _spelling_of(tokenizer)
    added = tokenizer.added_tokens_decoder
    found = [b""] * size
    for token, id_ in tokenizer.get_vocab().items():
        if id_ < size:
            found[id_] = spelling(token) if id_ not in added else added[id_].content.encode()
    for id_ in {*(i for i, token in added.items() if token.special), *tokenizer.all_special_ids}:
        if id_ < size:
            found[id_] = b""
    return found


def _spelling_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes]:
    """How this tokenizer's own names for tokens spell bytes, by the steps of its decoder."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str()).get("decoder") if backend is not None else None
    steps = {step["type"] for step in _steps(decoder)}
    if "ByteLevel" in steps:
        return _from_byte_level
    if steps & {"Metaspace", "ByteFallback"}:
        return _from_pieces
    raise ModelError(
        f"The tokens of {tokenizer.name_or_path or 'this model'} cannot be told as bytes: {sorted(steps) or 'no decoder'}.",
        hint="Use a byte-level tokenizer, or dspyc.LocalLM(..., constrained=False).",
    )


def _steps(decoder: Any) -> list[Any]:
    if decoder is None:
        return []
    return [inner for step in decoder.get("decoders", []) for inner in _steps(step)] or [decoder]


def _from_byte_level(token: str) -> bytes:
    try:
        return bytes(_BYTES[c] for c in token)
    except KeyError:
        return token.encode()


def _from_pieces(token: str) -> bytes:
    if len(token) == _BYTE_TOKEN_LENGTH and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: readable ones stand for themselves, the others for characters from U+0100 on."""
    readable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in readable]
    return {chr(b): b for b in readable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_letters()
