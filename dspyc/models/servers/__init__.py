"""Model servers (vLLM, SGLang, `transformers serve`, or any at an address) as engines of a `dspy.LM`.

server.py       one child process for one base model and all its adapters; `dspyc/child_process.py` ends it
commands.py     how each kind is started; options.py: what a user may set
served_model.py which model, which adapter, which server; remote.py: one that runs already
engine.py       DSPy's engine contract, over chat_completions.py (the protocol) and client.py (the SDK)
"""
