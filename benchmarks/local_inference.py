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

- `ours`: `dspyc.LocalLM`, here without its constraints
- `single`: `generate`, once for each request
- `static`: padded batches of `generate`: what the threads ask at the same time, up to 32 rows
- `continuous`: transformers' continuous batching
- `serve`: `transformers serve` as a child process

Turns alternate (ours, the others, ours, ...), each in a fresh process. Timed is the evaluation after a first request of another
text, which loads the weights. In the JSON, `ratios` are rows/s of ours over each side's, medians over the repeats of two
turns beside each other; `same_text` is the share of greedy replies that equal ours (a side that pads, or multiplies in
another order, may take the other of two tokens that score alike). `idle` is the time of one request to an idle engine over that
of a bare `generate`, and `candidates` the time of n = 8 over n = 1 for a prompt of 500 tokens and 60 new ones.

`programs` is the comparison as a user has it: the predictors of these prompts run whole, with students that were trained to
know the replies and end them by themselves, and `ours` as it is by default, constrained to the signature. The first request is
the predictor's too, so that its grammar is made before the time runs; `same_text` is of the predictors' outputs.

`constrained` compares ours with itself: seconds without constraints over seconds with them, in turns in one process, for the
students of `classify` and `cot`, which both ways write the same, asked by 32 threads and by one; and for `free_text` by random
weights, where nothing is fixed (TerseAdapter, one text output).

With `--device cuda` the model is Qwen3-0.6B's shape in bfloat16, and the load is `shared`: 512 requests at once, each a line of
its own behind a system message of 1,000 tokens, with replies of 128 tokens; ours, `static` (batches of 128), `continuous`. The
`tokens_per_s` of every side stand beside `limit_tokens_per_s`: what reading the weights and the cache once a step would allow,
the prompts for nothing, at the speed at which the device copies (`copy_gb_per_s`); `share_of_limit` is one over the other.
"""

import argparse
import contextlib
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness import TurnError, Turns, options, publish, run_turn, say, some_of
from inference_sides import END, NEW_TOKENS, SIDES, Generate, lm_of
from machine import machine

RESULTS = Path(__file__).parent / "results" / "local_inference.json"
SHAPES = ("classify", "cot", "demos")  # of dspy_rows, which imports too much for the process that only starts others
SHARED = "shared"  # the shape that is made here
MODES: dict[str, dict[str, Any]] = {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 1.0, "n": 8}}
PARTS = ("speed", "programs", "idle", "candidates", "constrained")
THREADS, STATIC_ROWS = 32, 32
SHARED_PREFIX, SHARED_REPLY = 1000, 128  # tokens
LONG_PROMPT, LONG_REPLY = 500, 60  # tokens, of what `candidates` times
IDLE_TURNS = 15
TAUGHT_STEPS, TAUGHT_REPLY = 300, 200  # tokens of the longest reply, at most
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

    ids = {"bos_token_id": None, "eos_token_id": END, "pad_token_id": 0, "tie_word_embeddings": True}
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


def teach(turn: dict[str, Any]) -> dict[str, Any]:
    """A model that knows the replies to a shape's prompts by heart: it ends them by itself, and they can be read."""
    from dspy_rows import render

    from dspyc.training import TrainingConfig, train

    config = TrainingConfig(
        method="full",
        max_steps=TAUGHT_STEPS,
        batch_size=8,
        learning_rate=2e-3,
        scheduler="one_cycle",
        save_steps=100_000,
    )
    out = f"{turn['folder']}/{turn['shape']}"
    rows = render(turn["shape"], turn["prompts"])
    return {
        "path": train(
            turn["model"], rows, config=config, output_dir=out, device=turn["device"], show_progress=False
        ).path
    }


def programs(turn: dict[str, Any]) -> dict[str, Any]:
    """Rows/s of one side as the language model of a predictor, and what the predictor made of its replies."""
    from dspy.utils.exceptions import AdapterParseError
    from dspy_rows import program

    asked, made = program(turn["shape"], turn["prompts"])
    lm = lm_of(turn["side"], turn, constrained=True, max_tokens=TAUGHT_REPLY)
    asked.set_lm(lm)
    with contextlib.suppress(AdapterParseError):  # it did not learn to answer this
        asked(message="Hello")
    seconds, said = _answers(asked, [inputs["message"] for inputs, _ in made], turn["threads"])
    lm.engine.close()
    return {"rows_per_s": len(made) / seconds, "texts": said}


def constrained(turn: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one `dspy.Evaluate` with and without constraints, and whether the replies were the same."""
    import dspy
    from dspy_rows import program

    import dspyc

    free_text = turn["shape"] == "free_text"
    asked, made = program("classify" if free_text else turn["shape"], turn["prompts"])
    messages = [inputs["message"] for inputs, _ in made]
    # On random weights every text is cut at the same length; a student's texts end by themselves.
    most, adapter = (NEW_TOKENS, dspyc.TerseAdapter()) if free_text else (TAUGHT_REPLY, dspy.ChatAdapter())
    if free_text:
        asked = dspy.Predict("message -> answer")
    lms = [lm_of("ours", turn, constrained=each, max_tokens=most) for each in (False, True)]
    found: dict[str, Any] = {}
    for threads in (turn["threads"], 1):
        some = messages if threads > 1 else messages[: max(1, len(messages) // 8)]
        ratios = []
        for _ in range(turn["repeats"] + 1):  # the first one compiles grammars and computes prefixes
            seconds, said = [], []
            for lm in lms:
                asked.set_lm(lm)
                with dspy.context(adapter=adapter):
                    took, texts = _answers(asked, some, threads)
                seconds.append(took)
                said.append(texts)
            ratios.append(seconds[0] / seconds[1])
        same = _same(*said)
        name = "many_threads" if threads > 1 else "one_thread"
        found[name] = {"ratio": round(statistics.median(ratios[1:]), 3), "same_text": same}
    return found


def _answers(program: Any, messages: list[str], threads: int) -> tuple[float, list[str | None]]:
    """Seconds of one `dspy.Evaluate`, and each message's outputs; None where the reply could not be read."""
    import logging

    import dspy

    logging.getLogger("dspy").setLevel(logging.ERROR)
    said: dict[str, str] = {}

    def keep(row: Any, answer: Any, trace: Any = None) -> float:
        said[row.message] = str(answer.toDict())
        return 1.0

    rows = [dspy.Example(message=message).with_inputs("message") for message in messages]
    how = {"num_threads": threads, "display_progress": False, "max_errors": len(rows) + 1}
    run = dspy.Evaluate(devset=rows, metric=keep, **how)
    start = time.monotonic()
    run(program)
    return time.monotonic() - start, [said.get(message) for message in messages]


TURNS = {turn.__name__: turn for turn in (prepare, copy, evaluate, idle, candidates, teach, programs, constrained)}

# ---------------------------------------------------------------------------------------------------- the comparison


def _same(texts: Sequence[Any], others: Sequence[Any]) -> float:
    """The share of the texts that are equal, and could be read at all."""
    same = [text is not None and text == other for text, other in zip(texts, others, strict=True)]
    return round(sum(same) / len(same), 4)


class Bench:
    """Starts the turns of one benchmark and puts their figures together."""

    def __init__(self, args: argparse.Namespace, folder: str) -> None:
        self.args, self.folder = args, folder
        self.students: dict[str, dict[str, Any]] = {}
        self.load = LOADS[args.load] | ({"dtype": args.dtype} if args.dtype else {})
        self.run = Turns(__file__, folder=folder, model=f"{folder}/model", **self.load)
        prepared = self.run("prepare", shapes=args.shapes, prompts=args.prompts)
        self.prepared, self.bytes = prepared["shapes"], prepared["bytes"]

    def compare(self, name: str, turn: str, **settings: Any) -> dict[str, Any]:
        """Rows/s of every side, in turns, and the share of its texts that equal ours."""
        turns: dict[str, list[dict[str, Any]]] = {side: [] for side in self.args.sides}
        failed: dict[str, str] = {}
        for _ in range(self.args.repeats):
            for side in self.args.sides:
                if side in failed:
                    continue
                try:
                    found = self.run(turn, side=side, threads=self.args.threads, **settings)
                except TurnError as error:
                    if side == "ours":
                        raise
                    failed[side] = str(error).splitlines()[-1]
                    say(f"{name:17}{side:11} cannot be had here: {failed[side]}")
                    continue
                turns[side].append(found)
                say(f"{name:17}{side:11}{found['rows_per_s']:8.2f} rows/s")
        ours = turns["ours"]
        rates = {side: round(statistics.median(t["rows_per_s"] for t in own), 3) for side, own in turns.items() if own}
        ratios, same = {}, {}
        for side, own in turns.items():
            if side == "ours" or not own:
                continue
            pairs = list(zip(ours, own, strict=False))
            ratios[side] = round(statistics.median(our["rows_per_s"] / their["rows_per_s"] for our, their in pairs), 2)
            same[side] = _same(ours[0]["texts"], own[0]["texts"])
        return {"rows_per_s": rates, "ratios": ratios, "same_text": same, "failed": failed}

    def speed(self, shape: str) -> dict[str, Any]:
        """The comparison in each mode, with random weights."""
        asked, found = f"{self.folder}/{shape}.json", {}
        for mode in self.args.modes:
            found[mode] = self.compare(f"{shape} {mode}", "evaluate", prompts_file=asked, mode=MODES[mode])
            if mode != "greedy":  # what is drawn differs
                del found[mode]["same_text"]
        if self.args.load != "cpu" and "greedy" in found:
            found |= self.within(shape, found["greedy"]["rows_per_s"])
        return {**self.prepared[shape], **found}

    def taught(self, shape: str) -> dict[str, Any]:
        """What turns about a student of a shape are told; it learns once."""
        if shape not in self.students:
            asked = {"shape": shape, "prompts": self.args.prompts}
            self.students[shape] = {**asked, "model": self.run("teach", **asked)["path"]}
        return self.students[shape]

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
            found["shapes"] = {shape: self.speed(shape) for shape in self.args.shapes}
        if "programs" in self.args.parts:
            found["programs"] = {
                shape: self.compare(f"{shape} programs", "programs", **self.taught(shape)) for shape in self.args.shapes
            }
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
                told = {"shape": shape, "prompts": self.args.prompts} if shape == "free_text" else self.taught(shape)
                again = {"threads": self.args.threads, "repeats": self.args.repeats}
                found["constrained"][shape] = self.run("constrained", **told, **again)
                say(f"constrained {shape}: {found['constrained'][shape]}")
        settings = {"prompts": self.args.prompts, "threads": self.args.threads, "new_tokens": NEW_TOKENS}
        settings |= self.load
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
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of all sides: float32, on a GPU bfloat16")
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
