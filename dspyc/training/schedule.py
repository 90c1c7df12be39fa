"""Learning-rate schedules as one pure function of the step."""

import math

_ONE_CYCLE_START, _ONE_CYCLE_END = 1 / 25, 1 / 250_000  # of the peak, as in torch's OneCycleLR


def rate_factor(kind: str, step: int, total: int, rising: int) -> float:
    """The share of the peak learning rate at `step` of `total`, after a rise over the first `rising` of them."""
    if kind == "one_cycle":
        return _one_cycle(step, total, rising)
    if step < rising:
        return (step + 1) / (rising + 1)  # no step at a rate of zero
    if kind == "constant":
        return 1.0
    left = max(0.0, (total - step) / max(1, total - rising))
    return left if kind == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def _one_cycle(step: int, total: int, rising: int) -> float:
    """From 1/25 of the peak up to it, then down to 1/250,000, both along a cosine."""
    if step < rising:
        return _cosine(_ONE_CYCLE_START, 1.0, step / rising)
    return _cosine(1.0, _ONE_CYCLE_END, min(1.0, (step - rising) / max(1, total - 1 - rising)))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
