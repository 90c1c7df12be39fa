"""What a reply must look like, token by token: the seam between the engine that writes and the grammar that allows.

A scheduler drives a reply's `Constraint` so:

    ids = constraint.forced()            # appended in one step, before the model is asked; then, until `finished`,
    mask = constraint.allowed()          # the next token is taken from these, and
    constraint.accept(token)             # said; `closing(left)` may end the reply before its tokens run out
"""

from typing import Protocol

import torch


class Constraint(Protocol):
    """The state of one reply while it is written. It belongs to one reply and is used by one thread at a time."""

    def forced(self) -> list[int]:
        """The token ids that the format fixes next; [] if none. This call accepts them: `accept` is not called for them."""
        ...

    def allowed(self) -> torch.Tensor | None:
        """The tokens that may follow, a boolean mask `(vocabulary,)` on the CPU; None where any may."""
        ...

    def accept(self, token: int) -> None:
        """Take a token that `allowed` allowed."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the reply is whole: nothing more may follow, and no end-of-turn token is needed."""
        ...

    def closing(self, left: int) -> list[int] | None:
        """The token ids that end the reply validly, once it can be ended only just within `left` more tokens.

        None while there is room. The reply ends with them: they need not be accepted.

        Raises:
            dspy.lm15.ConfigurationError: The reply cannot be ended within `left` tokens; it names the field.
        """
        ...
