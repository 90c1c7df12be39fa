"""What runs used of language models."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from .trace import Trace


@dataclass
class Usage:
    """What runs used: calls, those that an earlier sitting paid for, and USD where the providers say.

    A call that several runs share, as candidates share a teacher's, counts once.
    """

    calls: int = 0
    replayed: int = 0
    cost: float | None = None
    _seen: dict[tuple[str, str, str, int], bool] = field(default_factory=dict)  # whether each was only replayed

    @classmethod
    def of(cls, traces: Iterable[Trace]) -> "Usage":
        """What all of them used."""
        usage = cls()
        for trace in traces:
            usage.add(trace)
        return usage

    def add(self, trace: Trace) -> None:
        for call in trace.calls:
            key = (trace.role, trace.asked, call.request, call.nth)  # the ledger's
            known = self._seen.get(key)
            if known is None:
                self.calls += 1
                if call.cost is not None:
                    self.cost = (self.cost or 0.0) + call.cost
            self._seen[key] = call.replayed and known is not False
            self.replayed += self._seen[key] - bool(known)
