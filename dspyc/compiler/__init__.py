"""How a compile is carried out: the passes that every optimizer is made of.

with Ledger(run_dir) as ledger:                            # what was asked, paid for and got
    subject = observe(teacher, "teacher", identity=...)    # a copy whose calls the ledger remembers
    traces = bootstrap(subject, examples, metric=metric, ledger=ledger)
    dataset = from_traces(traces, targets, threshold=None, scored=True)
    verdict = judge(before, after, taught)                 # is it really better?
save(compiled, "triage"); program = load("triage")         # the artifact
"""

from .artifact import load, save, verify
from .bootstrap import bootstrap, observe
from .dataset import Dataset, Target, from_labels, from_traces
from .gate import Verdict, judge
from .ledger import Ledger
from .report import CompileReport
from .trace import Step, Subject, Trace

__all__ = [
    "CompileReport",
    "Dataset",
    "Ledger",
    "Step",
    "Subject",
    "Target",
    "Trace",
    "Verdict",
    "bootstrap",
    "from_labels",
    "from_traces",
    "judge",
    "load",
    "observe",
    "save",
    "verify",
]
