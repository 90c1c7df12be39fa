"""Every test session has its own caches, so that nothing it finds was left by another."""

import gc
import os
import signal
import tempfile

import pytest
from hypothesis import HealthCheck, settings

_home = tempfile.mkdtemp(prefix="dspyc-tests-")
os.environ["DSPY_CACHEDIR"] = f"{_home}/dspy"
os.environ["DSPYC_HOME"] = f"{_home}/dspyc"
os.environ["HF_HOME"] = f"{_home}/huggingface"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"  # DSPy's prices too; they would be fetched, and waited for
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Small matrices gain nothing from threads, and lose much where tests share the cores with anything else.
os.environ["OMP_NUM_THREADS"] = "1"
# A shell starts background jobs with Ctrl-C ignored, and what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes on a busy machine says nothing about what is tested, and the same examples are drawn every time.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("exploring", settings.get_profile("any machine"), derandomize=False, max_examples=1000)
settings.load_profile("any machine")


@pytest.fixture(autouse=True, scope="module")
def _libraries_are_no_garbage() -> None:
    """Every training collects garbage, which took a third of a second for what the libraries hold; more of them are loaded
    with each module.

    In workers alone, which come to import all of them.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        import dspy  # noqa: F401

        import dspyc.training.run  # noqa: F401

        gc.collect()
        gc.freeze()
