"""What to say of runs that failed."""

from collections import Counter
from collections.abc import Sequence

from ..errors import BootstrapError, ConfigError, DspycError
from .trace import Trace

_SHOWN = 300  # characters of a reason


def reasons(traces: Sequence[Trace]) -> list[str]:
    """Why runs failed: the three most frequent reasons, each with its number."""
    kinds = Counter(f"{trace.blame} raised {trace.error}" for trace in traces if trace.error is not None)
    return [f"{count:,} × {text[:_SHOWN]}" for text, count in kinds.most_common(3)]


def too_many(errors: Sequence[Trace], finished: int, max_errors: int, role: str) -> BootstrapError:
    """What to raise once `errors` of `finished` runs stop a bootstrap."""
    return BootstrapError(
        f"{len(errors)} of the first {finished} runs of the {role} failed, and `max_errors` is {max_errors}: "
        f"{'; '.join(reasons(errors))}.",
        hint="Mend the cause or raise `max_errors`, and run the same command again: finished calls are not repeated.",
    )


def metric_failed(traces: Sequence[Trace], runs: str) -> ConfigError | None:
    """The error, where the metric failed on every one of the runs; `runs` is what it calls them."""
    if not traces or any(trace.blame != "metric" for trace in traces):
        return None
    return ConfigError(
        f"The metric failed on every one of {len(traces)} {runs}; the first: {traces[0].error}",
        hint="Call the metric on one example and one prediction by hand.",
    )


def all_failed(traces: Sequence[Trace], runs: str) -> DspycError | None:
    """The error, where every one of the runs failed, the metric on it or the program: a score of 0 would not say why."""
    if not traces or any(trace.error is None for trace in traces):
        return None
    return metric_failed(traces, runs) or BootstrapError(
        f"{len(traces)} of {len(traces)} {runs} failed, so there is nothing to compare by: {'; '.join(reasons(traces))}.",
        hint="Run the program on one example by hand. Once it is mended, finished calls are not repeated.",
    )
