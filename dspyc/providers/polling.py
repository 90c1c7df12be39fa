"""How often a remote job is looked at: soon at first, later at most once a minute, and when the provider says."""

import random
from dataclasses import dataclass

_LONGEST = 3600.0  # seconds that a provider may ask to wait: a clock that is wrong asks for years


@dataclass(frozen=True)
class Polling:
    """Exponential waits with jitter, in seconds. `patience`: how long faults that may pass are borne, one after another,
    from the first of them."""

    first: float = 0.5
    growth: float = 1.5
    most: float = 60.0
    jitter: float = 0.2  # share of a wait that is left to chance, so that many jobs do not ask at once
    patience: float = 900.0

    def wait(self, looks: int, retry_after: float | None = None) -> float:
        """Seconds before the next look after `looks` of them; never sooner than the provider asked, up to an hour."""
        steps = min(looks, 100)  # beyond, a float would overflow
        usual = min(self.most, self.first * self.growth**steps)
        return max(usual * random.uniform(1 - self.jitter, 1), min(retry_after or 0.0, _LONGEST))
