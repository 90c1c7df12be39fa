"""Where tests fork processes from: a server that has imported what they need.

A session has one, and what is named to it last is all that it imports, so everything is named here.
"""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["dspyc.training.run", "dspyc.optimizers", "dspyc.cli", "tests.training.test_resume", "tests.providers.compiling"]
)
