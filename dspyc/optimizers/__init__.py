"""What is searched for: one algorithm a file, each with DSPy's own name, arguments and `compile`.

optimizer = BootstrapFinetune(metric=exact, teacher_lm=dspy.LM("openai/gpt-5-mini"))
compiled = optimizer.compile(student, trainset=train, valset=val)
compiled.report.table()            # before, teacher, after, and how sure the difference is
"""

from ..compiler.report import CompileReport
from .better_together import BetterTogether
from .bootstrap_few_shot import BootstrapFewShot
from .bootstrap_finetune import BootstrapFinetune
from .knn_few_shot import KNNFewShot
from .labeled_few_shot import LabeledFewShot
from .random_search import BootstrapFewShotWithRandomSearch

__all__ = [
    "BetterTogether",
    "BootstrapFewShot",
    "BootstrapFewShotWithRandomSearch",
    "BootstrapFinetune",
    "CompileReport",
    "KNNFewShot",
    "LabeledFewShot",
]
