r"""The command line: one verb a file.

    dspyc demo                                             # the whole path in two minutes, no network
    dspyc compile desk.py:program --trainset train.jsonl --metric desk.py:metric \
        --student Qwen/Qwen3-0.6B --teacher openai/gpt-5-mini --out triage
    dspyc eval triage --devset dev.jsonl --metric desk.py:metric
    dspyc run triage --input '{"ticket": "Where is my parcel?"}'
    dspyc train --data rows.jsonl --model dspyc/tiny --out tuned       # rows that you have already

Every command takes --json: then the last line of stdout is one JSON object, and everything else goes to stderr.
"""

from .app import app

__all__ = ["app"]
