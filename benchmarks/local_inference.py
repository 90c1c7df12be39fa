"""How fast does a local model answer the calls of DSPy programs, beside transformers' own ways of generating?

    python benchmarks/local_inference.py --json                       # three shapes of prompts, greedy and n = 8, on the CPU
    python benchmarks/local_inference.py --shapes cot --prompts 32 --repeats 1 --sides ours,static
    python benchmarks/local_inference.py --save                       # also write results/local_inference.json
    python benchmarks/local_inference.py --device cuda --json         # 512 requests to Qwen3-0.6B's shape, on a GPU

`dspy.Evaluate` runs with 32 threads over 128 prompts of each shape (see dspy_rows.py): DSPy's own renderings for `classify` (a
short text, one Literal), `cot` (chain of thought behind a long system message) and `demos` (the same with four demos). The
model is a Llama shape of 10.5 M random weights with the bundled tokenizer, in float32. Random weights do not end a reply, so
each has as many tokens as the row's own reply. All sides are engines of the same `dspy.LM`, get the same prompts, and have to
give the same greedy texts:

- `ours`: `dspyc.LocalLM`, unconstrained
- `single`: `generate`, once for each request
- `static`: padded batches of `generate`: what the threads ask at the same time, up to 32 rows
- `continuous`: transformers' continuous batching
- `serve`: `transformers serve` as a child process

Turns alternate (ours, the others, ours, ...), each in a fresh process. Timed is the evaluation after a first request of another
text, which loads the weights. In the JSON, `ratios` are rows/s of ours over each side's, medians over the repeats of two
turns beside each other; `same_text` is the share of greedy replies that equal ours (a side that pads, or multiplies in
another order, may take the other of two tokens that score alike). `idle` is the time of one request to an idle engine over
that of a bare `generate`, and `candidates` the time of n = 8 over n = 1 for a prompt of 500 tokens and 60 new ones.

`constrained` compares ours with itself: seconds without constraints over seconds with them, in turns in one process. Students
that were trained to know the replies to `classify` and `cot`, so that both ways write the same, are asked by 32 threads and by
one; and `free_text` by random weights, where nothing is fixed (TerseAdapter, one text output).

With `--device cuda` the model is Qwen3-0.6B's shape in bfloat16, and the load is `shared`: 512 requests at once, each a line of
its own behind a system message of 1,000 tokens, with replies of 128 tokens; ours, `static` (batches of 128), `continuous`. The
`tokens_per_s` of every side stand beside `limit_tokens_per_s`: what reading the weights and the cache once a step would allow,
the prompts for nothing, at the speed at which the device copies (`copy_gb_per_s`); `share_of_limit` is one over the other.
"""

import argparse
import contextlib
import importlib.util
import json
import queue
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from harness import TurnError, Turns, options, publish, run_turn, say, some_of
from machine import machine

RESULTS = Path(__file__).parent / "results" / "local_inference.json"
SHAPES = ("classify", "cot", "demos")  # of dspy_rows, which imports too much for the process that only starts others
SHARED = "shared"  # the shape that is made here
SIDES = ("ours", "single", "static", "continuous", "serve")
MODES: dict[str, dict[str, Any]] = {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 1.0, "n": 8}}
PARTS = ("speed", "idle", "candidates", "constrained")
THREADS, STATIC_ROWS, NEW_TOKENS = 32, 32, 48  # NEW_TOKENS of `idle` and `free_text`
SHARED_PREFIX, SHARED_REPLY = 1000, 128  # tokens
GATHER = 0.01  # seconds without a new request after which a static batch starts
LONG_PROMPT, LONG_REPLY = 500, 60  # tokens, of what `candidates` times
IDLE_TURNS = 15
TAUGHT_STEPS = 150
COPIED = 2**30  # bytes; 2**24 where a run is only tried out

# What every turn is told of its load.
LOADS: dict[str, dict[str, Any]] = {
    "cpu": {"device": "cpu", "dtype": "float32", "student": "llama", "static_rows": STATIC_ROWS},
    "cuda": {"device": "cuda", "dtype": "bfloat16", "student": "qwen3", "static_rows": 128},
    "tiny": {"device": "cpu", "dtype": "float32", "student": "tiny", "static_rows": 8},  # the way of "cuda", on a CPU
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {
        "parts": PARTS,
        "shapes": SHAPES,
        "modes": tuple(MODES),
        "sides": SIDES,
        "prompts": 128,
        "threads": THREADS,
    },
    "cuda": {
        "parts": ("speed",),
        "shapes": (SHARED,),
        "modes": ("greedy",),
        "sides": ("ours", "static", "continuous"),
        "prompts": 512,
        "threads": 512,
    },
}

# ------------------------------------------------------------------------------------------- turns: a process each


def prepare(turn: dict[str, Any]) -> dict[str, Any]:
    """Write the model and the prompts; say how long these are, and what a step has to read."""
    import torch
    from dspy_rows import render
    from transformers import AutoModelForCausalLM

    from dspyc.models import ChatTokenizer
    from dspyc.models.weights import load_tokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(student(turn["student"])).to(getattr(torch, turn["dtype"]))
    model.save_pretrained(turn["model"])
    tokenizer = load_tokenizer("dspyc/tiny")
    tokenizer.save_pretrained(turn["model"])
    chat, shapes = ChatTokenizer(tokenizer), {}
    for shape in turn["shapes"]:
        if shape == SHARED:
            asked = shared(turn["prompts"], chat)
        else:
            rows = [row["messages"] for row in render(shape, turn["prompts"])]
            most = [len(ids) - prompt for ids, prompt in map(chat.row_ids, rows)]
            asked = [{"messages": row[:-1], "max_tokens": each} for row, each in zip(rows, most, strict=True)]
        tokens = [row["max_tokens"] for row in asked]
        Path(turn["folder"], f"{shape}.json").write_text(json.dumps(asked))
        ids_of = [chat.prompt_ids(row["messages"]) for row in asked]
        same = next((at for at, column in enumerate(zip(*ids_of, strict=False)) if len(set(column)) > 1), None)
        mean = sum(map(len, ids_of)) / len(ids_of)
        reply = round(sum(tokens) / len(tokens), 1)
        shapes[shape] = {"prompt_tokens": round(mean, 1), "prefix_of_all_prompts": same, "reply_tokens": reply}
    config, width = model.config, getattr(torch, turn["dtype"]).itemsize
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    read = {
        "weights": sum(weight.numel() for weight in model.parameters()) * width,
        "token": 2 * config.num_hidden_layers * config.num_key_value_heads * head * width,
    }
    return {"shapes": shapes, "bytes": read}


def student(name: str) -> Any:
    """The configuration of a model; its vocabulary is larger than the tokenizer's, so that the projection has a usual size."""
    from transformers import LlamaConfig, Qwen3Config

    ids = {"bos_token_id": None, "eos_token_id": 3, "pad_token_id": 0, "tie_word_embeddings": True}
    if name == "llama":
        layers = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8, "num_attention_heads": 4}
        return LlamaConfig(**layers, **ids, vocab_size=16_384, max_position_embeddings=4096)  # type: ignore[arg-type]
    if name == "qwen3":  # Qwen3-0.6B
        layers = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
        rest: Any = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}
    else:
        layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        rest = {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 4096}
    return Qwen3Config(**layers, **rest, **ids, max_position_embeddings=4096)


def shared(number: int, chat: Any) -> list[dict[str, Any]]:
    """Requests that differ in the last line only."""
    system = "Answer the customer. "
    while len(chat.prompt_ids([{"role": "system", "content": system}])) < SHARED_PREFIX:
        system += "Be brief and kind, and name the parcel. "
    return [
        {
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": f"Where is my parcel {at}? I ordered it {at % 31} days ago."},
            ],
            "max_tokens": SHARED_REPLY,
        }
        for at in range(number)
    ]


def copy(turn: dict[str, Any]) -> dict[str, Any]:
    """Bytes that the device reads and writes in a second, by copying them."""
    import torch

    size = COPIED if turn["device"] == "cuda" else 2**24
    source = torch.ones(size, dtype=torch.uint8, device=turn["device"])
    target = torch.empty_like(source)
    seconds = []
    for _ in range(20):
        start = time.monotonic()
        target.copy_(source)
        if turn["device"] == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - start)
    return {"bytes_per_s": 2 * size / statistics.median(seconds[5:])}


def evaluate(turn: dict[str, Any]) -> dict[str, Any]:
    """Rows/s of one side, and the texts of its replies."""
    import dspy

    prompts = json.loads(Path(turn["prompts_file"]).read_text())
    lm = lm_of(turn["side"], turn)
    texts: dict[int, list[str]] = {}

    class Ask(dspy.Module):  # type: ignore[misc]
        def forward(self, number: int) -> Any:
            texts[number] = lm(**prompts[number], **turn["mode"])
            return dspy.Prediction(answer=texts[number])

    lm(messages=[{"role": "user", "content": "Hello"}], max_tokens=4)
    rows = [dspy.Example(number=number).with_inputs("number") for number in range(len(prompts))]
    run = dspy.Evaluate(devset=rows, metric=lambda *_: 1.0, num_threads=turn["threads"], display_progress=False)
    start = time.monotonic()
    score = run(Ask()).score
    seconds = time.monotonic() - start
    lm.engine.close()
    if score != 100.0:
        raise RuntimeError(f"{turn['side']} answered {score} % of the prompts")
    return {"rows_per_s": len(rows) / seconds, "texts": [texts[number] for number in range(len(rows))]}


def idle(turn: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one short request to an idle engine, or of a bare `generate` of the same prompt."""
    messages = [{"role": "user", "content": "Where is my parcel? " * 5}]
    if turn["side"] == "ours":
        ask = partial(lm_of("ours", turn), messages=messages, max_tokens=NEW_TOKENS)
    else:
        bare = Generate(turn)
        ask = partial(bare.generate, [bare.chat.prompt_ids(messages)], NEW_TOKENS, 0.0)
    seconds = []
    for _ in range(IDLE_TURNS + 2):
        time.sleep(0.02)
        start = time.monotonic()
        ask()
        seconds.append(time.monotonic() - start)
    return {"seconds": statistics.median(seconds[2:])}


def candidates(turn: dict[str, Any]) -> dict[str, Any]:
    """Seconds to the last token of one and of eight candidates of a long prompt that no request shared before."""
    lm = lm_of("ours", turn)
    words = Generate(turn).chat
    found: dict[int, list[float]] = {1: [], 8: []}
    for number in range(2 * 6):
        text = f"{number} " + "word " * LONG_PROMPT
        while len(words.prompt_ids([{"role": "user", "content": text}])) > LONG_PROMPT:
            text = text[:-5]
        n = (1, 8)[number % 2]
        start = time.monotonic()
        lm(messages=[{"role": "user", "content": text}], max_tokens=LONG_REPLY, n=n, temperature=1.0)
        found[n].append(time.monotonic() - start)
    return {f"n={n}": statistics.median(seconds[1:]) for n, seconds in found.items()}


def constrained(turn: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one `dspy.Evaluate` with and without constraints, and whether the replies were the same."""
    import logging

    import dspy
    from dspy_rows import calls, predictor

    import dspyc

    logging.getLogger("dspy").setLevel(logging.ERROR)
    free_text = turn["shape"] == "free_text"
    model = turn["model"] if free_text else _taught(turn)
    made = calls("classify" if free_text else turn["shape"], turn["prompts"])
    rows = [dspy.Example(**inputs).with_inputs("message") for inputs, _ in made]
    program = dspy.Predict("message -> answer") if free_text else predictor(turn["shape"])
    # On random weights every text is cut at the same length; a student's texts end by themselves.
    most, adapter = (NEW_TOKENS, dspyc.TerseAdapter()) if free_text else (200, dspy.ChatAdapter())
    local = {"device": turn["device"], "dtype": turn["dtype"], "cache": False, "max_tokens": most}
    lms = [dspyc.LocalLM(model, constrained=each, **local) for each in (False, True)]  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for threads in (turn["threads"], 1):
        asked = rows if threads > 1 else rows[: max(1, len(rows) // 8)]
        ratios = []
        for _ in range(turn["repeats"] + 1):  # the first one compiles grammars and computes prefixes
            seconds, said = [], []
            for lm in lms:
                texts: dict[str, str] = {}

                def keep(row: Any, answer: Any, trace: Any = None, texts: dict[str, str] = texts) -> float:
                    texts[row.message] = str(answer.toDict())
                    return 1.0

                program.set_lm(lm)
                run = dspy.Evaluate(
                    devset=asked, metric=keep, num_threads=threads, display_progress=False, max_errors=len(asked)
                )
                start = time.monotonic()
                with dspy.context(adapter=adapter):
                    run(program)
                seconds.append(time.monotonic() - start)
                said.append(texts)
            ratios.append(seconds[0] / seconds[1])
        same = sum(said[0].get(row.message) == said[1].get(row.message) for row in asked) / len(asked)
        name = "many_threads" if threads > 1 else "one_thread"
        found[name] = {"ratio": round(statistics.median(ratios[1:]), 3), "same_text": round(same, 4)}
    return found


def _taught(turn: dict[str, Any]) -> str:
    """A model that knows the replies to a shape's prompts by heart."""
    from dspy_rows import render

    from dspyc.training import TrainingConfig, train

    config = TrainingConfig(
        method="full",
        max_steps=TAUGHT_STEPS,
        batch_size=16,
        learning_rate=2e-3,
        scheduler="one_cycle",
        save_steps=100_000,
    )
    out = f"{turn['folder']}/{turn['shape']}"
    rows = render(turn["shape"], turn["prompts"])
    return train(turn["model"], rows, config=config, output_dir=out, device=turn["device"], show_progress=False).path


TURNS = {turn.__name__: turn for turn in (prepare, copy, evaluate, idle, candidates, constrained)}

# ------------------------------------------------------------------------------------------- sides, as engines of a dspy.LM


def lm_of(side: str, turn: dict[str, Any]) -> Any:
    import dspy

    import dspyc

    model, local = turn["model"], {"device": turn["device"], "dtype": turn["dtype"], "cache": False}
    if side == "ours":
        return dspyc.LocalLM(model, constrained=False, **local)
    if side == "serve":
        return dspyc.LocalLM(model, server="transformers", constrained=False, **local)
    engine = {"single": Single, "static": Static, "continuous": Continuous}[side](turn)
    return dspy.LM(f"{side}/model", engine=engine, cache=False)


class Generate:
    """A model and its tokenizer behind DSPy's engine contract; `answer` gives the new ids of one prompt."""

    supported_params = frozenset({"temperature", "max_tokens", "n"})

    def __init__(self, turn: dict[str, Any]) -> None:
        from transformers import AutoModelForCausalLM

        from dspyc.models import ChatTokenizer
        from dspyc.models.weights import load_tokenizer

        loaded: Any = AutoModelForCausalLM.from_pretrained(turn["model"], dtype=turn["dtype"])
        self.model = loaded.to(turn["device"]).eval()
        self.chat = ChatTokenizer(load_tokenizer(turn["model"]))

    def complete(self, request: Any) -> Any:
        from dspy import lm15

        from dspyc.models import messages_of

        messages, _ = messages_of(request)
        ids = self.chat.prompt_ids(messages)
        new = self.answer(ids, request.config.max_tokens or NEW_TOKENS, request.config.temperature or 0.0)
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(self.chat.decode(new)),
            finish_reason="length",
            usage=lm15.Usage(input_tokens=len(ids), output_tokens=len(new)),
        )

    def answer(self, ids: list[int], most: int, temperature: float) -> list[int]:
        raise NotImplementedError

    def generate(self, prompts: Sequence[list[int]], most: int, temperature: float) -> list[list[int]]:
        """New ids for each prompt, by one call of `generate` over the padded prompts."""
        import torch

        width = max(map(len, prompts))
        at = self.model.device
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=at)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=at)
        how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        with torch.inference_mode():
            found = self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=most, **how)
        return [row[width:].tolist() for row in found]

    def close(self) -> None:
        pass


class Single(Generate):
    """`generate` for each request, one after another."""

    def __init__(self, turn: dict[str, Any]) -> None:
        super().__init__(turn)
        self._lock = threading.Lock()

    def answer(self, ids: list[int], most: int, temperature: float) -> list[int]:
        with self._lock:
            return self.generate([ids], most, temperature)[0]


class Static(Generate):
    """Padded batches of `generate`, up to the longest reply: whoever asks while one runs is in the next."""

    def __init__(self, turn: dict[str, Any]) -> None:
        super().__init__(turn)
        self._rows = turn["static_rows"]
        self._asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def answer(self, ids: list[int], most: int, temperature: float) -> list[int]:
        found: Future[list[int]] = Future()
        self._asked.put((ids, most, temperature, found))
        return found.result()

    def _run(self) -> None:
        while True:
            batch = [self._asked.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < self._rows:
                    batch.append(self._asked.get(timeout=GATHER))
            most, temperature = max(row[1] for row in batch), batch[0][2]
            for row, new in zip(batch, self.generate([row[0] for row in batch], most, temperature), strict=True):
                row[3].set_result(new[: row[1]])


class Continuous(Generate):
    """transformers' continuous batching; a thread hands out its results."""

    def __init__(self, turn: dict[str, Any]) -> None:
        super().__init__(turn)
        self._managers: dict[float, Any] = {}
        self._waiting: dict[str, Future[list[int]]] = {}
        self._lock = threading.Lock()

    def answer(self, ids: list[int], most: int, temperature: float) -> list[int]:
        found: Future[list[int]] = Future()
        with self._lock:
            manager = self._manager(temperature)
            name = f"request {len(self._waiting)}"
            self._waiting[name] = found
            manager.add_request(ids, request_id=name, max_new_tokens=most)
        return found.result()

    def _manager(self, temperature: float) -> Any:
        if temperature not in self._managers:
            from transformers import GenerationConfig

            how = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
            config = GenerationConfig(max_new_tokens=NEW_TOKENS, eos_token_id=3, pad_token_id=0, **how)
            self._managers[temperature] = manager = self.model.init_continuous_batching(generation_config=config)
            manager.start()
            threading.Thread(target=self._hand_out, args=(manager,), daemon=True).start()
        return self._managers[temperature]

    def _hand_out(self, manager: Any) -> None:
        while True:
            result = manager.get_result(timeout=0.2)
            if result is not None and result.is_finished():
                self._waiting[result.request_id].set_result(list(result.generated_tokens))

    def close(self) -> None:
        for manager in self._managers.values():
            manager.stop(block=False)


# ---------------------------------------------------------------------------------------------------- the comparison


class Bench:
    """Starts the turns of one benchmark and puts their figures together."""

    def __init__(self, args: argparse.Namespace, folder: str) -> None:
        self.args, self.folder = args, folder
        self.run = Turns(__file__, folder=folder, model=f"{folder}/model", **LOADS[args.load])
        prepared = self.run("prepare", shapes=args.shapes, prompts=args.prompts)
        self.prepared, self.bytes = prepared["shapes"], prepared["bytes"]

    def compare(self, shape: str, mode: str) -> dict[str, Any]:
        """Rows/s of every side, in turns."""
        where = {"prompts_file": f"{self.folder}/{shape}.json", "threads": self.args.threads}
        turns: dict[str, list[dict[str, Any]]] = {side: [] for side in self.args.sides}
        failed: dict[str, str] = {}
        for _ in range(self.args.repeats):
            for side in self.args.sides:
                if side in failed:
                    continue
                try:
                    found = self.run("evaluate", side=side, mode=MODES[mode], **where)
                except TurnError as error:
                    if side == "ours":
                        raise
                    failed[side] = str(error).splitlines()[-1]
                    say(f"{shape:9}{mode:8}{side:11} cannot be had here: {failed[side]}")
                    continue
                turns[side].append(found)
                say(f"{shape:9}{mode:8}{side:11}{found['rows_per_s']:8.2f} rows/s")
        return {**self.summary(turns, mode), "failed": failed}

    @staticmethod
    def summary(turns: dict[str, list[dict[str, Any]]], mode: str) -> dict[str, Any]:
        ours = turns["ours"]
        rates = {side: round(statistics.median(t["rows_per_s"] for t in own), 3) for side, own in turns.items() if own}
        ratios, same = {}, {}
        for side, own in turns.items():
            if side == "ours" or not own:
                continue
            pairs = list(zip(ours, own, strict=False))
            ratios[side] = round(statistics.median(our["rows_per_s"] / their["rows_per_s"] for our, their in pairs), 2)
            texts = [our == their for our, their in zip(ours[0]["texts"], own[0]["texts"], strict=True)]
            same[side] = round(sum(texts) / len(texts), 4)
        return {"rows_per_s": rates, "ratios": ratios, **({"same_text": same} if mode == "greedy" else {})}

    def within(self, shape: str, rows_per_s: dict[str, float]) -> dict[str, Any]:
        """The sides' tokens/s beside what the device's memory allows."""
        facts, rows = self.prepared[shape], min(self.args.threads, self.args.prompts)
        prefix, reply = facts["prefix_of_all_prompts"], facts["reply_tokens"]
        own = facts["prompt_tokens"] - prefix + reply / 2  # on average over the reply
        step = self.bytes["weights"] + self.bytes["token"] * (prefix + rows * own)
        copied = self.run("copy")["bytes_per_s"]
        limit = rows * copied / step
        tokens = {side: rate * reply for side, rate in rows_per_s.items()}
        return {
            "tokens_per_s": {side: round(rate, 1) for side, rate in tokens.items()},
            "copy_gb_per_s": round(copied / 1e9, 1),
            "limit_tokens_per_s": round(limit, 1),
            "share_of_limit": {side: round(rate / limit, 4) for side, rate in tokens.items()},
        }

    def idle(self) -> dict[str, float]:
        """Medians over turns of both sides, and of their ratios."""
        turns = [
            {side: self.run("idle", side=side)["seconds"] for side in ("ours", "generate")}
            for _ in range(self.args.repeats)
        ]
        medians = {side: round(statistics.median(turn[side] for turn in turns), 4) for side in turns[0]}
        return {**medians, "ratio": round(statistics.median(t["ours"] / t["generate"] for t in turns), 3)}

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "speed" in self.args.parts:
            found["shapes"] = {}
            for shape in self.args.shapes:
                modes = {mode: self.compare(shape, mode) for mode in self.args.modes}
                found["shapes"][shape] = {**self.prepared[shape], **modes}
                if self.args.load != "cpu" and "greedy" in modes:
                    found["shapes"][shape] |= self.within(shape, modes["greedy"]["rows_per_s"])
        if "idle" in self.args.parts:
            found["idle"] = self.idle()
            say(f"idle             {found['idle']['ratio']:.2f}")
        if "candidates" in self.args.parts:
            seconds = self.run("candidates")
            found["candidates"] = {**seconds, "ratio": round(seconds["n=8"] / seconds["n=1"], 3)}
            say(f"candidates       {found['candidates']['ratio']:.2f}")
        if "constrained" in self.args.parts:
            found["constrained"] = {}
            for shape in ("classify", "cot", "free_text"):
                asked = {"prompts": self.args.prompts, "threads": self.args.threads, "repeats": self.args.repeats}
                found["constrained"][shape] = self.run("constrained", shape=shape, **asked)
                say(f"constrained {shape}: {found['constrained'][shape]}")
        settings = {"prompts": self.args.prompts, "threads": self.args.threads, "new_tokens": NEW_TOKENS}
        settings |= LOADS[self.args.load]
        return {**found, **settings, "repeats": self.args.repeats, "machine": machine()}


def arguments() -> argparse.Namespace:
    parser = options(__doc__, RESULTS)
    known = {"--parts": PARTS, "--shapes": (*SHAPES, SHARED), "--modes": MODES, "--sides": SIDES}
    for name, allowed in known.items():
        parser.add_argument(name, **{**some_of(allowed), "default": None})
    parser.add_argument("--prompts", type=int, help="of each shape: 128, on a GPU 512")
    parser.add_argument("--threads", type=int, help=f"{THREADS}, on a GPU 512")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # try the load of "cuda" out on a CPU
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name, value in DEFAULTS["cuda" if args.tiny else args.device].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.load = "tiny" if args.tiny else args.device
    if "ours" not in args.sides:
        parser.error("--sides leaves out `ours`, which the others are compared with")
    return args


def main() -> None:
    args = arguments()
    if args.turn:
        run_turn(args.turn, TURNS)
        return
    if missing := [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]:
        sys.exit(f"{' and '.join(missing)} cannot be imported: pip install 'dspyc[local]'")
    with tempfile.TemporaryDirectory(prefix="local-inference-") as folder:
        try:
            result = Bench(args, folder).result()
        except TurnError as error:
            sys.exit(str(error))
    publish(result, args)


if __name__ == "__main__":
    main()
