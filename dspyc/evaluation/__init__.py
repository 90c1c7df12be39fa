"""Scores and what they prove.

score = as_score(metric(example, prediction))          # any DSPy metric's answer as one float, or a clear error
low, high = paired_interval(before, after, seed=0)     # of mean(after) - mean(before), at 95 %
"""

from .intervals import mean, paired_interval
from .metrics import as_score, call_metric, check_metric, metric_fingerprint

__all__ = ["as_score", "call_metric", "check_metric", "mean", "metric_fingerprint", "paired_interval"]
