"""How a compile is carried out: the passes that every optimizer is made of.

with Ledger(run_dir) as ledger:                            # what was asked, paid for and got
    subject = observe(teacher, "teacher", identity=...)    # a copy whose calls the ledger remembers
    traces = bootstrap(subject, examples, metric=metric, ledger=ledger)
    dataset = from_traces(traces, targets, threshold=None, scored=True)
    verdict = judge(before, after, taught)                 # is it really better?
save_traces(traces, "teacher.jsonl")                       # what was paid for once feeds other optimizers
save(compiled, "triage"); program = load("triage")         # the artifact
"""

from .artifact import load, save, verify
from .bootstrap import bootstrap, observe
from .budget import Budget
from .dataset import Dataset, Target, from_labels, from_traces
from .gate import Verdict, judge
from .ledger import Ledger
from .plan import Plan
from .recording import Subject
from .records import read_run
from .report import CompileReport
from .trace import Step, Trace
from .traces_file import load_traces, save_traces

__all__ = [
    "Budget",
    "CompileReport",
    "Dataset",
    "Ledger",
    "Plan",
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
    "load_traces",
    "observe",
    "read_run",
    "save",
    "save_traces",
    "verify",
]
