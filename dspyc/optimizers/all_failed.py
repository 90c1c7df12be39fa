"""What to say when programs are to be compared and not one run could be scored: why, instead of a score of 0."""

from collections import Counter
from collections.abc import Sequence

from ..compiler.trace import Trace
from ..errors import BootstrapError, ConfigError, DspycError


def metric_failed(traces: Sequence[Trace], runs: str) -> ConfigError | None:
    """The error, where the metric failed on every one of the runs; `runs` is what it calls them."""
    if not traces or any(trace.blame != "metric" for trace in traces):
        return None
    return ConfigError(
        f"The metric failed on every one of {len(traces)} {runs}; the first: {traces[0].error}",
        hint="Call the metric on one example and one prediction by hand.",
    )


def all_failed(traces: Sequence[Trace], runs: str) -> DspycError | None:
    """The error, where every one of the runs failed, the metric on it or the program."""
    if not traces or any(trace.error is None for trace in traces):
        return None
    kinds = Counter(f"{trace.blame} raised {trace.error}" for trace in traces)
    shown = "; ".join(f"{count} × {text[:300]}" for text, count in kinds.most_common(3))
    return metric_failed(traces, runs) or BootstrapError(
        f"{len(traces)} of {len(traces)} {runs} failed, so there is nothing to compare by: {shown}.",
        hint="Run the program on one example by hand. Once it is mended, finished calls are not repeated.",
    )
