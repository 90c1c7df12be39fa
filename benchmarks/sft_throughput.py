"""How fast, and in how much memory, does dspyc train on the rows of DSPy programs, beside trl's SFTTrainer at its best?

    pip install 'dspyc[bench]'
    python benchmarks/sft_throughput.py --json                          # three shapes of rows, on the CPU
    python benchmarks/sft_throughput.py --shapes cot --rows 64 --repeats 1
    python benchmarks/sft_throughput.py --trl-variants                  # which settings are trl's best on this machine
    python benchmarks/sft_throughput.py --device cuda --method lora     # Qwen3-0.6B's shape; looks for trl's best first

Rows are DSPy's own renderings (see dspy_rows.py): `classify` (a short text, one Literal), `cot` (chain of thought behind a
long system message) and `demos` (the same with four demos). The student is a Llama shape of 10.5 M random weights with the
bundled tokenizer; its vocabulary is 16,384, of which the tokenizer uses 4,096, so that the output projection has a usual
size. Both sides get the same rows, weights, 16 rows a step, AdamW, schedule, clipping and precision, and learn the same
tokens: their ids are compared, and the script stops where they differ.

Turns alternate (ours, trl, ours, trl, ...), each in a fresh process. What is timed is the training loop after its second
step: no imports, loading, tokenising or warm-up. Ratios are medians over the repeats of two turns beside each other. A CPU is
measured in every precision that it multiplies natively, a GPU in bf16; what counts is the one in which trl is faster.

In the JSON, `ratio` is rows/s, ours over trl's. `memory_ratio` is peak memory, ours over trl's, on the rows of `cot`: of the
whole process with all that its side needs on a CPU, of torch's allocations on a GPU. `growth_mib` is the peak less what the
process held when everything was imported and nothing loaded.
"""

import argparse
import hashlib
import importlib.util
import itertools
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness import TurnError, Turns, options, publish, run_turn, say, some_of
from machine import machine

RESULTS = Path(__file__).parent / "results" / "sft_throughput.json"
SHAPES = ("classify", "cot", "demos")  # of dspy_rows, which imports too much for the process that only starts others
BATCH, WARM_UP = 16, 2  # rows a step; steps that are not timed
RECIPE: dict[str, Any] = {"learning_rate": 1e-4, "weight_decay": 0.01, "max_grad_norm": 1.0, "seed": 0}
LORA_RANK = 16
VOCABULARY: dict[str, Any] = {"vocab_size": 4096, "bos_token_id": None, "eos_token_id": 3, "pad_token_id": 0}  # bundled
MIB = 1 << 20

# What SFTConfig's defaults are changed to. "plain" is every variant's beginning. Behind each: rows/s on `classify` in bf16 and
# fp32, then on `cot` in bf16 and fp32; trl 1.16, torch 2.13, a core of an EPYC (Zen 4) in CPU time, 48 rows. One row at a
# time needs no padding mask, so that attention takes its causal path; trl projects every position on a CPU, learned or not.
PLAIN = {"gradient_checkpointing": False, "attn_implementation": "sdpa", "per_device_train_batch_size": BATCH}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {"gradient_checkpointing": True},  # 1.90 1.55 · 0.61 0.48
    "plain": {},  # 1.96 1.79 · 0.68 0.56
    "eager attention": {"attn_implementation": "eager"},  # 2.13 1.57 · 0.59 0.48
    "grouped by length": {"train_sampling_strategy": "group_by_length"},  # 1.99 1.72 · 0.68 0.57
    "8 rows x 2": {"per_device_train_batch_size": 8},  # 1.96 1.73 · 0.67 0.58
    "4 rows x 4": {"per_device_train_batch_size": 4},  # 1.95 1.76 · 0.66 0.56
    "2 rows x 8": {"per_device_train_batch_size": 2},  # 1.88 1.69 · 0.67 0.59
    "1 row x 16": {"per_device_train_batch_size": 1},  # 2.20 2.35 · 0.69 0.61; of 96 rows: 3.03 2.03
    "1 row, eager": {"per_device_train_batch_size": 1, "attn_implementation": "eager"},  # of 96 rows: 2.87 2.01
    "1 row, compiled": {"per_device_train_batch_size": 1, "torch_compile": True},  # of 96 rows: 2.79 in bf16
    "compiled": {"torch_compile": True},  # 0.36 0.49 (compiles again where lengths change)
    "padding-free": {"padding_free": True},  # 0.98 0.81 · 0.17 (flash attention is what it is made for)
    "packing": {"packing": True, "max_length": 2048, "per_device_train_batch_size": 1},  # 1.48 1.29
    "loader process": {"dataloader_num_workers": 1},  # 1.97 1.75
}
ON_CUDA: dict[str, dict[str, Any]] = {
    "flash, padding-free": {"attn_implementation": "flash_attention_2", "padding_free": True},
    "flash, packing": {**VARIANTS["packing"], "attn_implementation": "flash_attention_2"},
    "flex, packing": {**VARIANTS["packing"], "attn_implementation": "flex_attention"},
}
BEST: dict[str, Any] = VARIANTS["1 row x 16"]

# ------------------------------------------------------------------------------------------- turns: a process each


def prepare(turn: dict[str, Any]) -> dict[str, Any]:
    """Write the student and the rows; say what they are, and which precisions are measured where none is asked for."""
    import torch
    from dspy_rows import render
    from transformers import AutoModelForCausalLM

    from dspyc.models import ChatTokenizer
    from dspyc.models.weights import load_tokenizer
    from dspyc.training import encode_rows

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(student(turn["device"]))
    model.save_pretrained(turn["model"])
    tokenizer = load_tokenizer("dspyc/tiny")
    # The newline between turns stands in front of the later one: trl learns what stands behind the last, and we do not.
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '' if loop.first else '\n' }}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer.save_pretrained(turn["model"])
    shapes = {}
    for shape in turn["shapes"]:
        rows = render(shape, turn["rows"])
        Path(turn["folder"], f"{shape}.json").write_text(json.dumps(rows))
        encoded, report = encode_rows(rows, ChatTokenizer(tokenizer))
        places = enumerate(zip(*(row.ids for row in encoded), strict=False))
        shapes[shape] = {
            "rows": len(rows),
            "tokens_per_row": round(report.mean_length, 1),
            "supervised_per_row": round(report.supervised_tokens / len(rows), 1),
            "prefix_of_all_rows": next(place for place, ids in places if len(set(ids)) > 1),
            "gflops_per_row": round(plain_flops(model, encoded, turn["method"]) / len(rows) / 1e9, 2),
            "learned": fingerprint((row.ids, row.prompt_length) for row in encoded),
        }
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    on_cpu = ["bf16", "fp32"] if native else ["fp32"]
    return {"shapes": shapes, "precisions": ["bf16"] if turn["device"] == "cuda" else on_cpu}


def student(device: str) -> Any:
    from transformers import LlamaConfig, Qwen3Config

    if device == "cuda":  # Qwen3-0.6B
        layers = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
        rest: Any = {"num_key_value_heads": 8, "head_dim": 128, **VOCABULARY, "vocab_size": 151_936}
        return Qwen3Config(**layers, **rest, tie_word_embeddings=True)
    layers = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8, "num_attention_heads": 4}
    rest = {"max_position_embeddings": 4096, **VOCABULARY, "vocab_size": 16_384}
    return LlamaConfig(**layers, **rest, tie_word_embeddings=True)


def plain_flops(model: Any, rows: Sequence[Any], method: str) -> float:
    """Floating-point operations of training on the rows one by one: every token of the body, supervised ones of the head."""
    config, embedding = model.config, model.get_input_embeddings().weight.numel()
    body = sum(p.numel() for p in model.parameters()) - embedding
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    passes = 3 if method == "full" else 2  # forward, gradients of activations, gradients of weights
    done = 0.0
    for row in rows:
        supervised, tokens = len(row) - row.prompt_length, len(row)
        done += 2 * passes * (body * tokens + embedding * supervised) + 3 * 2 * width * tokens**2
    return done


def fingerprint(rows: Iterable[tuple[Sequence[int], int]]) -> str:
    """Of all rows' ids and where the learned ones begin, in any order."""
    each = sorted(hashlib.sha256(f"{start} {list(ids)}".encode()).hexdigest() for ids, start in rows)
    return hashlib.sha256("".join(each).encode()).hexdigest()[:16]


def held(device: str) -> int:
    """Bytes that this process holds in main memory; on a GPU, where nothing is loaded yet, none."""
    return 0 if device == "cuda" else int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def figures(ends: Sequence[float], rows: int, device: str, before: int) -> dict[str, float]:
    """Of a finished turn: `ends` is when each step ended, in seconds, and `before` what was held when it began."""
    import torch

    steps, seconds = len(ends) - WARM_UP, ends[-1] - ends[WARM_UP - 1]
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else process
    memory = {"peak_mib": round(peak / MIB, 1), "growth_mib": round((peak - before) / MIB, 1)}
    return {"rows_per_s": rows / len(ends) * steps / seconds, **memory}


def ours(turn: dict[str, Any]) -> dict[str, Any]:
    # trl needs `datasets`, dspyc does not; transformers loads it, with pandas and pyarrow, wherever it is installed.
    sys.modules["datasets"] = None  # type: ignore[assignment]
    from dspyc.training import TrainingConfig, train

    rows = json.loads(Path(turn["rows_file"]).read_text())
    adapter = {"lora_rank": LORA_RANK, "lora_alpha": 2 * LORA_RANK, "lora_dropout": 0.0}
    config = TrainingConfig(
        method=turn["method"],
        epochs=1,
        batch_size=BATCH,
        precision=turn["precision"],
        warmup_ratio=0.0,
        logging_steps=1,
        save_steps=1_000_000,
        **(adapter if turn["method"] == "lora" else {}),
        **RECIPE,
    )
    before = held(turn["device"])
    with tempfile.TemporaryDirectory(dir=turn["folder"]) as out:
        train(turn["model"], rows, config=config, output_dir=out, device=turn["device"], show_progress=False)
        events = [json.loads(line) for line in Path(out, "events.jsonl").read_text().splitlines()]
    ends = [event["seconds"] for event in events if "loss" in event]
    return figures(ends, len(rows), turn["device"], before)


def trl(turn: dict[str, Any]) -> dict[str, Any]:
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTTrainer

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if turn["device"] == "cuda":
                torch.cuda.synchronize()
            ends.append(time.monotonic())

    datasets.disable_progress_bars()
    rows = json.loads(Path(turn["rows_file"]).read_text())
    before = held(turn["device"])
    adapter = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=turn["model"],
        args=trl_config(turn),
        train_dataset=datasets.Dataset.from_list(
            [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
        ),
        processing_class=AutoTokenizer.from_pretrained(turn["model"]),
        peft_config=adapter if turn["method"] == "lora" else None,
        callbacks=[Clock()],
    )
    learned = [(row["input_ids"], _start(row["labels"])) for row in trainer.train_dataset]
    trainer.train()
    # Packing puts several rows into one; then the ids cannot be compared.
    found = {} if turn["settings"].get("packing") else {"learned": fingerprint(learned)}
    return figures(ends, len(rows), turn["device"], before) | found


def _start(labels: Sequence[int]) -> int:
    """Where the learned tokens begin, where all that follow are learned."""
    start = next(i for i, label in enumerate(labels) if label != -100)
    return -1 if -100 in labels[start:] else start


def trl_config(turn: dict[str, Any]) -> Any:
    from trl import SFTConfig

    settings = {"max_length": None, **PLAIN, **turn["settings"]}
    # As we do it: weights that are trained are float32, and a frozen base takes the precision of the training on a GPU.
    halves = turn["device"] == "cuda" and turn["method"] == "lora" and turn["precision"] == "bf16"
    loading = {"attn_implementation": settings.pop("attn_implementation"), "dtype": "bfloat16" if halves else "float32"}
    at_once = settings["per_device_train_batch_size"]
    if settings.get("packing"):
        at_once *= max(1, round(settings["max_length"] / turn["tokens_per_row"]))
    return SFTConfig(
        output_dir=turn["folder"],
        model_init_kwargs=loading,
        num_train_epochs=1,
        gradient_accumulation_steps=max(1, BATCH // at_once),
        lr_scheduler_type="linear",
        bf16=turn["precision"] == "bf16",
        use_cpu=turn["device"] == "cpu",
        completion_only_loss=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=turn["device"] == "cuda",
        **RECIPE,
        **settings,
    )


def matmul(turn: dict[str, Any]) -> dict[str, Any]:
    """The rate of the largest useful matrix product in bf16, in TFLOP/s."""
    import torch

    size, times = 8192, 50
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for repeats in (5, times):  # the first are warm-up
        torch.cuda.synchronize()
        started = time.monotonic()
        for _ in range(repeats):
            left @ right
        torch.cuda.synchronize()
    return {"tflops": round(2 * size**3 * times / (time.monotonic() - started) / 1e12, 1)}


def gradients(turn: dict[str, Any]) -> dict[str, Any]:
    return {kind: gradient_difference(kind) for kind in ("llama", "qwen3", "gpt2", "gemma", "phi")}


def gradient_difference(kind: str) -> float:
    """The largest relative difference (in norm) of any parameter's gradient: ours, prompts shared, against transformers' own.

    In float32, of random weights, on rows of `classify` and `demos`; transformers takes one row at a time.
    """
    import torch
    from dspy_rows import render
    from transformers import AutoConfig, AutoModelForCausalLM

    from dspyc.models import ChatTokenizer
    from dspyc.models.weights import load_tokenizer
    from dspyc.training import encode_rows
    from dspyc.training.loss import Learner
    from dspyc.training.sharing import Planner

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 4096}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape, **heads, **VOCABULARY)).eval()
    rows, _ = encode_rows(render("classify", 4) + render("demos", 4), ChatTokenizer(load_tokenizer("dspyc/tiny")))
    for row in rows:
        labels = [-100] * row.prompt_length + row.ids[row.prompt_length :]
        loss = model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([labels])).loss
        (loss * (len(row) - row.prompt_length)).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    learner = Learner(model, rows[0].ids[:64]).eval()
    for tree in Planner(budget=1 << 20)(rows):
        learner(tree)[0].backward()
    return max(float((p.grad - expected[name]).norm() / p.grad.norm()) for name, p in model.named_parameters())


TURNS = {turn.__name__: turn for turn in (prepare, ours, trl, matmul, gradients)}


# ---------------------------------------------------------------------------------------------------- the comparison


class Bench:
    """Starts the turns of one benchmark and puts their figures together."""

    def __init__(self, args: argparse.Namespace, folder: str) -> None:
        self.args, self.folder = args, folder
        self.run = Turns(__file__, folder=folder, model=f"{folder}/model", device=args.device, method=args.method)
        self.choices = {**VARIANTS, **(ON_CUDA if args.device == "cuda" else {})}
        self.prepared = self.run("prepare", shapes=args.shapes, rows=args.rows)
        self.precisions = args.precisions or self.prepared["precisions"]

    def train(self, side: str, shape: str, precision: str, settings: dict[str, Any] | None = None) -> dict[str, Any]:
        facts = self.prepared["shapes"][shape]
        where = {"rows_file": f"{self.folder}/{shape}.json", "tokens_per_row": facts["tokens_per_row"]}
        found = self.run(side, **where, precision=precision, settings=settings or {})
        if found.pop("learned", None) not in (None, facts["learned"]):
            raise TurnError(f"trl and dspyc do not learn the same tokens of the rows of {shape}.")
        say(f"{shape:9}{precision:6}{side:5}{found['rows_per_s']:8.3f} rows/s{found['peak_mib']:9.1f} MiB")
        return found

    def variants(self, shape: str) -> dict[str, Any]:
        """rows/s of each of trl's settings, in every precision."""
        found: dict[str, Any] = {}
        for (name, settings), precision in itertools.product(self.choices.items(), self.precisions):
            say(f"trl: {name}")
            try:
                rate = self.train("trl", shape, precision, settings)["rows_per_s"]
            except TurnError as error:
                say(f"{shape} {precision}: cannot be had here: {str(error).splitlines()[-1]}")
            else:
                found.setdefault(name, {})[precision] = round(rate, 4)
        return found

    def compare(self, shape: str) -> dict[str, Any]:
        """Both sides in turns, in every precision; the figures of trl's faster one on top."""
        best = BEST
        if self.args.device == "cuda":
            rates = self.variants(shape)
            best = self.choices[max(rates, key=lambda name: max(rates[name].values()))]
        turns: dict[str, list[tuple[Any, Any]]] = {precision: [] for precision in self.precisions}
        for _, precision in itertools.product(range(self.args.repeats), self.precisions):
            turns[precision].append((self.train("ours", shape, precision), self.train("trl", shape, precision, best)))
        found = {precision: self.summary(pairs) for precision, pairs in turns.items()}
        first = max(found, key=lambda precision: found[precision]["trl_rows_per_s"])
        facts = {k: v for k, v in self.prepared["shapes"][shape].items() if k != "learned"}
        facts |= {"precision": first, "trl_settings": {**PLAIN, **best}}
        facts["other_precisions"] = {precision: found[precision] for precision in found if precision != first}
        return {**found[first], **facts}

    def summary(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        def ratio(name: str) -> float:
            return round(statistics.median(our[name] / their[name] for our, their in pairs), 3)

        found = {"ratio": ratio("rows_per_s"), "memory_ratio": ratio("peak_mib"), "growth_ratio": ratio("growth_mib")}
        for side, turns in zip(("ours", "trl"), zip(*pairs, strict=True), strict=True):
            for name in ("rows_per_s", "peak_mib", "growth_mib"):
                found[f"{side}_{name}"] = round(statistics.median(turn[name] for turn in turns), 3)
        return {**found, "ratios": [round(our["rows_per_s"] / their["rows_per_s"], 3) for our, their in pairs]}

    def result(self) -> dict[str, Any]:
        shapes = {shape: self.compare(shape) for shape in self.args.shapes}
        result: dict[str, Any] = {"shapes": shapes}
        if "cot" in shapes:
            result["memory_ratio"] = shapes["cot"]["memory_ratio"]
        result["grad_rel_diff"] = max(self.run("gradients").values())
        if self.args.device == "cuda":
            result["matmul_tflops"] = rate = self.run("matmul")["tflops"]
            for facts, side in itertools.product(shapes.values(), ("ours", "trl")):
                # Of the work that training row by row would be: sharing can bring it above the card's rate.
                facts[f"{side}_tflops"] = round(facts[f"{side}_rows_per_s"] * facts["gflops_per_row"] / 1e3, 2)
                facts[f"{side}_share_of_matmul"] = round(facts[f"{side}_tflops"] / rate, 3)
        settings = {"method": self.args.method, "device": self.args.device, "rows_a_step": BATCH, "recipe": RECIPE}
        return {**result, **settings, "repeats": self.args.repeats, "machine": machine("trl", "datasets")}


def arguments() -> argparse.Namespace:
    parser = options(__doc__, RESULTS)
    parser.add_argument("--shapes", **some_of(SHAPES))
    parser.add_argument("--rows", type=int, default=96, help=f"of each shape, a multiple of {BATCH}")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of turns")
    parser.add_argument("--precisions", **{**some_of(("bf16", "fp32")), "default": None})
    parser.add_argument("--method", choices=("full", "lora"), default="full")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--trl-variants", action="store_true", help="measure trl's settings instead")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rows < (WARM_UP + 1) * BATCH or args.rows % BATCH:
        parser.error(f"--rows is {args.rows}; it takes a multiple of {BATCH}, at least {(WARM_UP + 1) * BATCH}")
    return args


def main() -> None:
    args = arguments()
    if args.turn:
        run_turn(args.turn, TURNS)
        return
    if missing := [name for name in ("trl", "datasets", "torch") if importlib.util.find_spec(name) is None]:
        sys.exit(f"{' and '.join(missing)} cannot be imported: pip install 'dspyc[bench]'")
    with tempfile.TemporaryDirectory(prefix="sft-throughput-") as folder:
        try:
            bench = Bench(args, folder)
            result = {shape: bench.variants(shape) for shape in args.shapes} if args.trl_variants else bench.result()
        except TurnError as error:
            sys.exit(str(error))
    publish(result, args)


if __name__ == "__main__":
    main()
