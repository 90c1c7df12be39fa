"""What a chat template writes before an assistant's text, such as a thought, and the text without it."""

from dataclasses import dataclass

THOUGHT_END = "</think>"


@dataclass(frozen=True)
class Opening:
    """A template's `text` before a reply's own; a thought in it may be longer in a reply than in the template."""

    text: str = ""

    def without(self, reply: str) -> str:
        """The reply's own text, an end of `reply`; all of it where it does not begin in this way."""
        return self._split(reply)[0]

    def certain(self, reply: str) -> str:
        """As `without`, of a reply that still grows: nothing until it is decided where its own text begins."""
        own, decided = self._split(reply)
        return own if decided else ""

    def _split(self, reply: str) -> tuple[str, bool]:
        """The own text, and whether that stays so whatever follows."""
        if not self.text:
            return reply, True
        if reply.startswith(self.text):
            return reply[len(self.text) :], True
        before, tag, after = self.text.partition(THOUGHT_END)
        begun = before.rstrip("\n")
        if not (tag and reply.startswith(begun)):
            return reply, not self.text.startswith(reply)
        _, ended, rest = reply.partition(THOUGHT_END)
        if not ended:
            return reply, False
        return rest.removeprefix(after), len(rest) >= len(after) or not after.startswith(rest)
