"""What does a search for demos cost, beside DSPy's own, and is what it finds as good?

    python benchmarks/random_search.py --json               # everything; some 15 minutes
    python benchmarks/random_search.py --repeats 3 --parts search

The language model is simulated: a dspy.LM engine that answers after 50 ms, by item response theory (Birnbaum's logistic
model): a prompt's ability is the sum of its demos' hidden helpfulness, a question has a difficulty, and whether an answer
is right is drawn by prompt and question, so that one prompt has one answer. Abilities differ between candidates by a
standard deviation of `--spread`; the simulator knows each candidate's true quality, its mean over all questions that could
be asked. Both sides search through the same 16 candidates and three more (DSPy's own), with 60 training and 200 validation
examples and 16 threads; turns alternate, and every repetition has other data.

In the JSON: `wall_ratio` and `call_ratio` are ours over DSPy's (median and mean over repetitions), `quality_difference` is
the true quality of our choice less that of DSPy's, with its 95 % `interval`. `spreads` has calls and quality for candidates
that differ less and more, simulated without the sleep. `no_race_bound_ratio`: wall time with race=False over
calls x latency / threads. `bootstrap_bound_ratio`: 150 teacher runs of 2 s on 32 threads over the least time that they can
take, 10 s. `overhead_ratio`: time of our evaluation over dspy.Evaluate's with an engine that answers at once, 200 examples
and 16 threads, a median of turns; `overhead_ms` is by call. `resume_seconds`: a finished search of some 10,000 calls, asked
for again; `resume_calls` is what that called. `ledger_mib` and `ledger_open_seconds` are of 100,000 calls.
"""

import contextlib
import functools
import hashlib
import io
import json
import logging
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15
from harness import options, publish, say, some_of
from machine import machine

import dspyc
from dspyc.compiler import Ledger, bootstrap, observe
from dspyc.compiler.ledger import Answer, CallKey
from dspyc.evaluation.intervals import mean_interval
from dspyc.models.messages import messages_of
from dspyc.models.scripted import inputs_of, written

RESULTS = Path(__file__).parent / "results" / "random_search.json"
CANDIDATES, TRAIN, VALIDATION, THREADS, LATENCY = 16, 60, 200, 16, 0.05
SHARPNESS = 2.0  # how much an answer depends on ability and difficulty, and how little on chance
PARTS = ("search", "spreads", "no_race", "bootstrap", "overhead", "resume", "ledger")

# -------------------------------------------------------------------------------------------------- the simulated model


def uniform(*parts: Any) -> float:
    """A number in (0, 1) that depends on the parts alone."""
    return (int(hashlib.sha256(repr(parts).encode()).hexdigest()[:12], 16) + 0.5) / 16**12


@functools.cache
def normal(*parts: Any) -> float:
    return statistics.NormalDist().inv_cdf(uniform(*parts))


@functools.cache  # a provider's work is done elsewhere: here it should take none of the interpreter's time
def question_of(content: str) -> str:
    return inputs_of([{"role": "user", "content": content}])["question"]


class Simulated:
    """One repetition's language model: `seed` makes its examples and what helps with them."""

    supports_function_calling = False

    def __init__(self, seed: int, spread: float, latency: float) -> None:
        self.seed, self.spread, self.latency = seed, spread, latency
        self.calls = 0
        self._lock = threading.Lock()
        self._tasks = [normal("task", i) for i in range(2000)]

    def complete(self, request: lm15.Request) -> lm15.Response:
        """An answer, `latency` seconds after it was asked for."""
        due = time.monotonic() + self.latency
        with self._lock:
            self.calls += 1
        response = self._answer(request)
        time.sleep(max(0.0, due - time.monotonic()))
        return response

    def _answer(self, request: lm15.Request) -> lm15.Response:
        messages, _ = messages_of(request)
        *demos, question = [question_of(message["content"]) for message in messages if message["role"] == "user"]
        right = uniform("answer", self.seed, demos, question) < self.chance(
            self.ability(demos), normal("task", self.seed, question)
        )
        text = written({"answer": label(question) if right else "no idea"})
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(text),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=1000, output_tokens=10),
        )

    def ability(self, demos: list[str]) -> float:
        """Of a prompt with these demos; -0.6 without any."""
        if not demos:
            return -0.6
        return 0.6 + self.spread * sum(normal("help", self.seed, demo) for demo in demos) / math.sqrt(len(demos))

    def chance(self, ability: float, difficulty: float) -> float:
        return 1 / (1 + math.exp(-SHARPNESS * (ability - difficulty)))

    def quality(self, program: dspy.Predict) -> float:
        """True quality: the mean chance of a right answer over questions of all difficulties."""
        ability = self.ability([demo.question for demo in program.demos])
        return statistics.fmean(self.chance(ability, task) for task in self._tasks)

    def lm(self) -> dspy.LM:
        return dspy.LM(f"simulated/{self.seed}", engine=self, cache=False)

    def examples(self, kind: str, number: int) -> list[dspy.Example]:
        questions = [f"{kind} question {i} of world {self.seed}" for i in range(number)]
        return [dspy.Example(question=q, answer=label(q)).with_inputs("question") for q in questions]

    def close(self) -> None:
        """Nothing to free."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Simulated":
        return self


def label(question: str) -> str:
    return f"the answer to {question}"


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    return bool(example.answer == prediction.answer)


def student(lm: dspy.LM | None = None) -> dspy.Predict:
    program = dspy.Predict("question -> answer")
    if lm is not None:
        program.set_lm(lm)
    return program


# ------------------------------------------------------------------------------------------------------------ the turns


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what DSPy prints: it costs time where somebody reads it."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def turn(side: str, world: Simulated, **options: Any) -> dict[str, Any]:
    """One search; seconds, calls and the true quality of what it chose."""
    settings: dict[str, Any] = {"metric": metric, "num_candidate_programs": CANDIDATES, "num_threads": THREADS}
    settings["max_errors"] = 10_000
    data = {"trainset": world.examples("training", TRAIN), "valset": world.examples("validation", VALIDATION)}
    lm, before = world.lm(), world.calls
    with tempfile.TemporaryDirectory() as folder, quietly(), dspy.context(lm=lm):
        started = time.monotonic()
        if side == "dspy":
            chosen = dspy.BootstrapFewShotWithRandomSearch(**settings).compile(student(), **data)
        else:
            search = dspyc.BootstrapFewShotWithRandomSearch(**settings, run_dir=folder, show_progress=False, **options)
            chosen = search.compile(student(lm), **data)
        seconds = time.monotonic() - started
    return {"seconds": seconds, "calls": world.calls - before, "quality": world.quality(chosen)}


def compare(repeats: int, spread: float, latency: float) -> dict[str, Any]:
    """Both sides on the same worlds, in turns."""
    pairs = []
    for seed in range(repeats):
        ours = turn("ours", Simulated(seed, spread, latency))
        theirs = turn("dspy", Simulated(seed, spread, latency))
        pairs.append((ours, theirs))
        say(f"{seed:3} spread {spread}: ours {shown(ours)} · DSPy {shown(theirs)}")
    gained = [our["quality"] - their["quality"] for our, their in pairs]
    low, high = mean_interval(gained)
    return {
        "wall_ratio": round(statistics.median(our["seconds"] / their["seconds"] for our, their in pairs), 4),
        "call_ratio": round(statistics.fmean(our["calls"] / their["calls"] for our, their in pairs), 4),
        "quality_difference": round(statistics.fmean(gained), 5),
        "interval": [round(low, 5), round(high, 5)],
        "same_choice": sum(gain == 0 for gain in gained),
        **{f"{side}_{name}": round(statistics.fmean(pair[at][name] for pair in pairs), 4)
           for at, side in enumerate(("ours", "dspy")) for name in ("seconds", "calls", "quality")},
    }  # fmt: skip


def shown(found: dict[str, Any]) -> str:
    return f"{found['seconds']:6.2f} s {found['calls']:5} calls, quality {found['quality']:.4f}"


def no_race(spread: float) -> float:
    ratios = []
    for seed in range(3):
        found = turn("ours", Simulated(seed, spread, LATENCY), race=False)
        ratios.append(found["seconds"] / (found["calls"] * LATENCY / THREADS))
        say(f"without the race: {shown(found)}, {ratios[-1]:.3f} of the bound")
    return round(statistics.median(ratios), 3)


def bootstrap_bound() -> float:
    world, number, latency, threads = Simulated(0, 0.0, 0.0), 150, 2.0, 32
    world.latency = latency
    settings = {"max_bootstrapped_demos": number, "max_labeled_demos": 0, "num_threads": threads, "max_errors": 1000}
    with tempfile.TemporaryDirectory() as folder:
        optimizer = dspyc.BootstrapFewShot(metric=metric, **settings, run_dir=folder, show_progress=False)
        started = time.monotonic()
        optimizer.compile(student(world.lm()), trainset=world.examples("training", number))
        seconds = time.monotonic() - started
    say(f"bootstrap: {world.calls} calls in {seconds:.2f} s")
    return round(seconds / (math.ceil(number / threads) * latency), 3)


def overhead() -> dict[str, Any]:
    """Time by call of an evaluation whose engine answers at once, ours and dspy.Evaluate's."""
    lm = dspyc.ScriptedLM(lambda inputs: {"answer": "yes"})
    examples = Simulated(0, 0.0, 0.0).examples("validation", VALIDATION)
    program = student(lm)

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder)) as ledger:
            started = time.perf_counter()
            subject = observe(program, "candidate", identity="one", traced=False)
            bootstrap(subject, examples, metric=metric, ledger=ledger, num_threads=THREADS, show_progress=False)
            return time.perf_counter() - started

    def theirs() -> float:
        evaluate = dspy.Evaluate(devset=examples, metric=metric, num_threads=THREADS, display_progress=False)
        started = time.perf_counter()
        evaluate(program)
        return time.perf_counter() - started

    engine = time.perf_counter()
    for example in examples:
        lm.engine.answer(dict(example.inputs()))
    engine = (time.perf_counter() - engine) / len(examples)
    ours(), theirs()
    turns = [(ours(), theirs()) for _ in range(15)]
    by_call = [statistics.median(side) / VALIDATION - engine for side in zip(*turns, strict=True)]
    say(f"overhead by call: ours {by_call[0] * 1e3:.2f} ms, dspy.Evaluate {by_call[1] * 1e3:.2f} ms")
    return {
        "overhead_ratio": round(statistics.median(our / their for our, their in turns), 3),
        "overhead_ms": {"ours": round(by_call[0] * 1e3, 3), "dspy": round(by_call[1] * 1e3, 3)},
    }


def resume() -> dict[str, Any]:
    """A finished search, asked for again."""
    world = Simulated(0, 0.3, 0.0)
    data = {"trainset": world.examples("training", TRAIN), "valset": world.examples("validation", 525)}
    settings: dict[str, Any] = {"metric": metric, "num_candidate_programs": CANDIDATES, "num_threads": THREADS}
    settings |= {"race": False, "show_progress": False, "max_errors": 10_000}
    took = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            before, started = world.calls, time.monotonic()
            dspyc.BootstrapFewShotWithRandomSearch(**settings, run_dir=folder).compile(student(world.lm()), **data)
            took.append((time.monotonic() - started, world.calls - before))
    say(f"a search of {took[0][1]} calls in {took[0][0]:.1f} s; again: {took[1][1]} calls in {took[1][0]:.2f} s")
    return {"resume_seconds": round(took[1][0], 3), "resume_calls": took[1][1], "resume_of_calls": took[0][1]}


def ledger_size(calls: int = 100_000) -> dict[str, Any]:
    """A ledger of so many calls, each with 16 demos before its question, of 500 characters each."""
    demos = [json.dumps({"role": "user", "content": f"{i} {'x' * 500}"}) for i in range(2000)]

    def record(number: int) -> None:
        key = CallKey("candidate", f"{number % 10_000:016x}", f"{number:016x}")
        asked = [
            *(demos[(number // 10_000 * 16 + i) % 2000] for i in range(16)),
            json.dumps({"role": "user", "n": number}),
        ]
        facts = {"usage": {"prompt_tokens": 2000, "completion_tokens": 10}, "cost": 0.001, "seconds": 0.5}
        ledger.record_call(
            key, "simulated/model", asked, Answer(json.dumps(["a reply of some fifty characters " * 2]), facts)
        )

    with tempfile.TemporaryDirectory() as folder:
        with Ledger(Path(folder)) as ledger, ThreadPoolExecutor(64) as threads:
            started = time.monotonic()
            list(threads.map(record, range(calls)))
            writing = time.monotonic() - started
        started = time.monotonic()
        with Ledger(Path(folder)) as ledger:
            opening = time.monotonic() - started
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
    say(f"ledger of {calls:,} calls: {size:.0f} MiB, written in {writing:.1f} s, opened in {opening:.3f} s")
    return {"ledger_mib": round(size, 1), "ledger_open_seconds": round(opening, 4)}


def main() -> None:
    parser = options(__doc__, RESULTS)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--spread", type=float, default=0.4, help="of abilities; qualities then differ by some 0.09")
    parser.add_argument("--parts", **some_of(PARTS))
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    parts: dict[str, Any] = {
        "search": lambda: compare(args.repeats, args.spread, LATENCY),
        "no_race": lambda: {"no_race_bound_ratio": no_race(args.spread)},
        "bootstrap": lambda: {"bootstrap_bound_ratio": bootstrap_bound()},
        "overhead": overhead,
        "resume": resume,
        "ledger": ledger_size,
        "spreads": lambda: {"spreads": {s: compare(args.repeats, s, 0.0) for s in (0.2, 0.4, 0.8)}},
    }
    result: dict[str, Any] = {}
    for name in args.parts:
        result |= parts[name]()
    publish(result | {"repeats": args.repeats, "spread": args.spread, "machine": machine()}, args)


if __name__ == "__main__":
    main()
