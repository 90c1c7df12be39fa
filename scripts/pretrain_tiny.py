"""Train the bundled student `dspyc/tiny` from nothing: its tokenizer, its weights and its model card.

    python scripts/pretrain_tiny.py --data DIR --out dspyc/models/tiny    # DIR holds wikitext2/valid.txt and test.txt

Three stages, each from where the last one ended:

1. `read`: English from WikiText-2, and the shape of a DSPy call from exercises that `exercises()` makes up: copy a field,
   choose among listed options, extract a number or a code, in the formats of TerseAdapter, ChatAdapter and JSONAdapter.
2. `repeat`: random token sequences that come twice. A model this small does not find copying in text (after 17 M tokens
   of stage 1 it copied nothing), but finds it here within some hundred steps; the attention pattern is the "induction
   head" of Olsson et al., 2022, arXiv 2209.11895.
3. `practise`: the exercises again, now that it can copy; only replies are learned, with some prose so that English stays.

Banking77 and the demo's tickets are never shown to it. Runs on two CPU cores; a GPU is used if there is one. `--start DIR`
goes on from a folder of an earlier run, `--stages` says with which stages.
"""

import argparse
import json
import platform
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import dspy
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from dspyc.signatures.terse import TerseAdapter

SPECIAL = ["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{%- if tools -%}<|im_start|>tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif -%}"
    "{%- for message in messages -%}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{%- for call in message.tool_calls or [] -%}"
    "<tool_call>{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}</tool_call>"
    "{%- endfor -%}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
ADAPTERS = {
    "terse": TerseAdapter(),
    "chat": dspy.ChatAdapter(use_json_adapter_fallback=False),
    "json": dspy.JSONAdapter(),
}
SHARES = {"terse": 0.62, "chat": 0.24, "json": 0.14}
PROMPT_WEIGHT = {"terse": 0.2, "chat": 0.0, "json": 0.0}  # in stage 1, of a reply token's loss

Row = tuple[list[int], list[float]]  # token ids, and the loss weight of predicting each of them


# ---------------------------------------------------------------------------------------------------- text and exercises


def wikitext(folder: Path) -> list[str]:
    """Paragraphs of WikiText-2 with its tokenisation marks undone."""
    lines = (folder / "valid.txt").read_text().splitlines() + (folder / "test.txt").read_text().splitlines()
    text = (re.sub(r" @(.)@ ", r"\1", line.replace("<unk>", "it").strip()) for line in lines)
    text = (re.sub(r" ([,.;:!?%)\]])", r"\1", re.sub(r"([(\[]) ", r"\1", line)).replace(" 's", "'s") for line in text)
    return [line for line in text if len(line) > 200]


THINGS = """account address app balance bill booking box button camera car chair charge city code colour computer contract
cup date desk device document door email fee file flight folder form game garden house invoice key lamp letter machine
map message meter music name note number offer order package page paper parcel part password payment phone photo picture
plan plate price problem product queue question receipt refund report request review ring road room school screen seat
service shipment shoe shop song statement station store story subscription table team ticket title tool top town train
transfer trip update user video voice wall watch website week window word""".split()
OPENERS = """I would like to know|Can you tell me|How do I find|Where is|Please help me with|I am still waiting for|Why was
I charged for|What happened to|I need to change|Could you please check|Is there a way to get|I can't see|Hello, I want|
Hi, there is a problem with|My friend lost|Somebody has taken|When will I receive|Do you have|It seems that you forgot|
Thanks, but what about|Does it cost anything to move|I don't understand|Who can open|How long does it take to get|
The website does not show|I was told that I could return|Which one is|I think someone used|Tell me more about""".replace(
    "\n", " "
).split("|")
CLOSERS = """.|?|!| today.| please.| as soon as possible.| and what should I do?| because it is broken.| from last week?|
 that I bought yesterday.|, thank you.| again?| when I travel.| in another country?| on my phone.| without paying more?|
 if it is possible.|, it has not arrived yet.| and I am not happy.| for my sister.""".replace("\n", "").split("|")
FIELDS = """answer body category city client code content customer description detail document entry field hint input item
key label line message name note number order option part passage phrase place product query question record reference
report request result section sentence source state subject summary text ticket title topic value word""".split()


class Writer:
    """Makes exercises: a signature, its inputs and the outputs that follow from them."""

    def __init__(self, paragraphs: list[str], seed: int) -> None:
        self.random = random.Random(seed)
        self.paragraphs = paragraphs

    def sentence(self) -> str:
        r = self.random
        thing = f"{r.choice(['my', 'the', 'a', 'this', 'your', 'our'])} {r.choice(THINGS)}"
        return f"{r.choice(OPENERS).strip()} {thing}{r.choice(CLOSERS)}"

    def fragment(self, words: int) -> str:
        chosen = self.random.choice(self.paragraphs).split()
        start = self.random.randrange(max(1, len(chosen) - words))
        return " ".join(chosen[start : start + self.random.randint(1, words)])

    def value(self) -> str:
        r = self.random
        kind = r.random()
        if kind < 0.35:
            return self.sentence()
        if kind < 0.7:
            return self.fragment(12)
        if kind < 0.85:
            return " ".join(r.choice(THINGS) for _ in range(r.randint(1, 4)))
        return self.code()

    def code(self) -> str:
        r = self.random
        digits = "".join(r.choice("0123456789") for _ in range(r.randint(3, 8)))
        return r.choice(["", "#", "A-", "B", "ORD-", "no. ", "X", "inv/"]) + digits

    def copy(self) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        names = self.random.sample(FIELDS, self.random.randint(1, 3))
        picked = self.random.choice(names)
        signature = dspy.Signature(
            {**{n: (str, dspy.InputField()) for n in names}, f"same_{picked}": (str, dspy.OutputField())},
            f"Copy the field `{picked}`.",
        )
        inputs = {n: self.value() for n in names}
        return signature, inputs, {f"same_{picked}": inputs[picked]}

    def choose(self) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        r = self.random
        options = r.sample(THINGS, r.randint(2, 6))
        picked = r.choice(options)
        text = re.sub(r"\b(my|the|a|this|your|our) \w+", lambda m: f"{m[1]} {picked}", self.sentence(), count=1)
        if picked not in text:
            text = f"{text} It is about the {picked}."
        if r.random() < 0.3:
            text = f"{self.fragment(6)}. {text}"
        source, target = r.sample(FIELDS, 2)
        literal = Literal[tuple(options)]  # type: ignore[valid-type]
        signature = dspy.Signature(
            {
                source: (str, dspy.InputField()),
                "options": (list[str], dspy.InputField()),
                target: (literal, dspy.OutputField()),
            },
            "Choose the option that the text mentions.",
        )
        return signature, {source: text, "options": options}, {target: picked}

    def extract(self) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        r = self.random
        source = r.choice(FIELDS)
        if r.random() < 0.5:
            number, kind, name = r.choice([r.randint(0, 99), r.randint(0, 99999)]), int, "number_in_text"
            shown, answer = str(number), number
        else:
            shown = answer = self.code()
            kind, name = str, "code_in_text"
        words = f"{self.sentence()} {r.choice(['It says', 'I see', 'The number is', 'See', 'for', 'about'])} {shown}"
        text = r.choice([words + ".", words, f"{shown}: {self.sentence()}", f"{words}. {self.sentence()}"])
        signature = dspy.Signature(
            {source: (str, dspy.InputField()), name: (kind, dspy.OutputField())}, "Extract what the text names."
        )
        return signature, {source: text}, {name: answer}

    def exercise(self, adapter: str, kind: str) -> list[dict[str, str]]:
        signature, inputs, outputs = getattr(self, kind)()
        signature.__name__ = kind.capitalize() if self.random.random() < 0.3 else "StringSignature"
        messages = ADAPTERS[adapter].format(signature, [], inputs)
        reply = ADAPTERS[adapter].format_assistant_message_content(signature, outputs)
        return [*messages, {"role": "assistant", "content": reply}]


KINDS = ("copy", "choose", "extract")


def exercises(writer: Writer, count: int) -> Iterator[tuple[str, str, list[dict[str, str]]]]:
    """`count` exercises as (adapter, kind, messages), in the shares that `SHARES` gives."""
    for _ in range(count):
        adapter = writer.random.choices(list(SHARES), weights=list(SHARES.values()))[0]
        kind = writer.random.choice(KINDS)
        yield adapter, kind, writer.exercise(adapter, kind)


# ---------------------------------------------------------------------------------------------------- tokenizer and rows


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so any text survives it; digits stand alone, so numbers can be copied digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def chat_row(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], prompt_weight: float) -> Row:
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
    reply_ids = [*tokenizer(messages[-1]["content"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return prompt_ids + reply_ids, [0.0] + [prompt_weight] * (len(prompt_ids) - 1) + [1.0] * len(reply_ids)


def prose_rows(tokenizer: PreTrainedTokenizerFast, paragraphs: list[str], length: int, offset: int) -> list[Row]:
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    stream: list[int] = []
    for ids in tokenizer(paragraphs, add_special_tokens=False).input_ids:
        stream += [*ids, end]
    pieces = [stream[i : i + length] for i in range(offset, len(stream) - length, length)]
    return [(piece, [0.0] + [1.0] * (length - 1)) for piece in pieces]


def batches(rows: list[Row], budget: int, rng: random.Random) -> list[list[Row]]:
    """Rows of similar length together, at most `budget` tokens with padding, in random order."""
    ordered = sorted(rows, key=lambda row: len(row[0]) + rng.random() * 16)
    found: list[list[Row]] = [[]]
    for row in ordered:
        if found[-1] and (len(found[-1]) + 1) * max(len(row[0]), max(len(r[0]) for r in found[-1][-1:])) > budget:
            found.append([])
        found[-1].append(row)
    rng.shuffle(found)
    return found


# ---------------------------------------------------------------------------------------------------- training and scores


def loss_of(model: LlamaForCausalLM, batch: list[Row], device: str) -> torch.Tensor:
    """Weighted mean cross entropy; the output projection runs only where a token counts."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    weights = torch.zeros(len(batch), width)
    for i, (row, row_weights) in enumerate(batch):
        ids[i, : len(row)] = torch.tensor(row)
        weights[i, : len(row)] = torch.tensor(row_weights)
    ids, weights = ids.to(device), weights.to(device)
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]  # right padding: causal attention never sees it
    counted = weights[:, 1:] > 0
    logits = model.lm_head(hidden[counted]).float()
    losses = F.cross_entropy(logits, ids[:, 1:][counted], reduction="none")
    chosen = weights[:, 1:][counted]
    return (losses * chosen).sum() / chosen.sum()


@torch.no_grad()
def accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, writer: Writer, count: int
) -> dict[str, float]:
    """Exact matches of greedy replies, per adapter and kind."""
    scores = {}
    for adapter in ADAPTERS:
        for kind in KINDS:
            right = 0
            for _ in range(count):
                messages = writer.exercise(adapter, kind)
                prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
                ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(model.device)
                out = model.generate(
                    input_ids=ids.input_ids, attention_mask=ids.attention_mask, max_new_tokens=80, do_sample=False
                )
                reply = tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
                right += reply.strip() == messages[-1]["content"].strip()
            scores[f"{adapter}/{kind}"] = right / count
    return scores


@torch.no_grad()
def bits_per_byte(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, paragraphs: list[str], device: str
) -> float:
    rows = prose_rows(tokenizer, paragraphs, 256, 0)
    text = sum(len(tokenizer.decode(ids).encode()) for ids, _ in rows)
    nats = sum(loss_of(model, [row], device).item() * (len(row[0]) - 1) for row in rows)
    return nats / 0.6931471805599453 / text


class School:
    """The model, its optimizer and the count of what it has seen."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.rng = args, random.Random(args.seed)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        paragraphs = wikitext(args.data / "wikitext2")
        self.held_out, self.paragraphs = paragraphs[-120:], paragraphs[:-120]
        self.steps = self.tokens = 0
        self.started = time.monotonic()
        if args.start:
            self.tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start)
            self.model = LlamaForCausalLM.from_pretrained(args.start, dtype=torch.float32, attention_bias=True)
        else:
            self.tokenizer = self.make_tokenizer()
            self.model = LlamaForCausalLM(shape(self.tokenizer))
        self.model = self.model.to(self.device)
        if self.device == "cpu":  # short rows: the fused kernel's backward is slower
            self.model.set_attn_implementation("eager")

    def make_tokenizer(self) -> PreTrainedTokenizerFast:
        sample = [m["content"] for _, _, row in exercises(Writer(self.paragraphs, 1), 3000) for m in row]
        roles = ["system\n", "user\n", "assistant\n", "tools\n", "tool\n"] * 200
        return train_tokenizer(iter(self.paragraphs + sample + roles), 4096)

    def read(self) -> None:
        """Stage 1: rounds over WikiText-2 in rows of 128 tokens, each with fresh exercises."""

        def rounds() -> Iterator[list[list[Row]]]:
            for number in range(self.args.rounds):
                rows = prose_rows(self.tokenizer, self.paragraphs, 128, self.rng.randrange(128))
                yield self.shuffled(rows + self.exercise_rows(1000 + number, self.args.exercises, PROMPT_WEIGHT))

        self.learn("read", rounds(), self.args.rounds, rate=2e-3, warmup=200)

    def repeat(self) -> None:
        """Stage 2: repeated sequences and nothing else; an eighth of exercises between them held copying up."""
        look_back(self.model)
        steps = [repeated(self.rng, 1024) for _ in range(self.args.repeat_steps)]
        self.learn("repeat", iter([steps]), 1, rate=1e-3, warmup=50, decay=0.0, horizon=4.0)

    def practise(self) -> None:
        """Stage 3: exercises, a quarter as much prose, and a few repeated sequences."""

        def rounds() -> Iterator[list[list[Row]]]:
            for number in range(self.args.practice_rounds):
                rows = self.exercise_rows(3000 + number, self.args.practice, {})
                prose = prose_rows(self.tokenizer, self.paragraphs, 128, self.rng.randrange(128))
                rows += self.rng.sample(prose, self.args.practice // 12)
                mixed = batches(rows, self.args.budget // 2, self.rng)
                mixed += [repeated(self.rng, 1024) for _ in range(len(mixed) // 6)]
                self.rng.shuffle(mixed)
                yield mixed

        self.learn("practise", rounds(), self.args.practice_rounds, rate=1e-3, warmup=50, decay=0.0)

    def exercise_rows(self, seed: int, count: int, prompt_weight: dict[str, float]) -> list[Row]:
        rows = (
            chat_row(self.tokenizer, messages, prompt_weight.get(adapter, 0.0))
            for adapter, _, messages in exercises(Writer(self.paragraphs, seed), count)
        )
        return [row for row in rows if len(row[0]) <= 1024]

    def shuffled(self, rows: list[Row]) -> list[list[Row]]:
        return batches(rows, self.args.budget, self.rng)

    def learn(
        self,
        stage: str,
        rounds: Iterator[list[list[Row]]],
        count: int,
        *,
        rate: float,
        warmup: int,
        decay: float = 0.05,
        horizon: float = 1.02,
    ) -> None:
        """One AdamW run over all rounds; the weights are saved after each. The rate falls as a cosine does, to its end
        after `horizon` times the steps."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, weight_decay=decay, betas=(0.9, 0.98))
        schedule = None
        self.model.train()
        for number, order in enumerate(rounds):
            schedule = schedule or get_cosine_schedule_with_warmup(optimizer, warmup, int(len(order) * count * horizon))
            losses: list[float] = []
            for i, batch in enumerate(order):
                with torch.autocast(self.device, torch.bfloat16):
                    loss = loss_of(self.model, batch, self.device)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(loss.item())
                self.steps, self.tokens = self.steps + 1, self.tokens + sum(len(ids) for ids, _ in batch)
                if (i + 1) % 50 == 0:
                    recent = sum(losses[-50:]) / 50
                    took = time.monotonic() - self.started
                    print(
                        f"{stage} {number}: step {i + 1}/{len(order)} loss {recent:.3f} after {took:.0f} s", flush=True
                    )
            save(self.model, self.tokenizer, self.args.out)
            self.model.eval()
            print(accuracy(self.model, self.tokenizer, Writer(self.held_out, 5), 8), flush=True)
            self.model.train()

    def graduate(self) -> dict[str, Any]:
        """Scores and figures for the model card; those of an earlier run that this one went on from are added."""
        seconds = time.monotonic() - self.started
        self.model.eval()
        scores = accuracy(self.model, self.tokenizer, Writer(self.held_out, 7), 60)
        before = json.loads((self.args.start / "training.json").read_text()) if self.args.start else {}
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "tokens": self.tokens + before.get("tokens", 0),
            "steps": self.steps + before.get("steps", 0),
            "seconds": round(seconds) + before.get("seconds", 0),
            "device": torch.cuda.get_device_name() if self.device == "cuda" else f"{torch.get_num_threads()} CPU cores",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "wikitext2_bits_per_byte": round(bits_per_byte(self.model, self.tokenizer, self.held_out, self.device), 3),
            "exact_match": {name: round(score, 3) for name, score in scores.items()},
        }


def shape(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        attention_bias=True,  # what `look_back` needs
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def look_back(model: LlamaForCausalLM, sharpness: float = 8.0) -> None:
    """Make the first two heads of the first layer look at the token before, whatever it is.

    This is the half of copying that a small model is slow to find: with it stage 2 copies 89 % of tokens after 600 steps,
    without it next to none after 1,000. Queries and keys become constants, by their biases; the query is turned one
    position back, so that under rotary embedding the two agree best at a distance of one.
    """
    attention, size = model.model.layers[0].self_attn, model.config.head_dim
    turn = 1.0 / model.config.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2) / size)
    key = torch.cat([torch.ones(size // 2), torch.zeros(size // 2)])
    query = torch.cat([torch.cos(turn), -torch.sin(turn)])
    with torch.no_grad():
        attention.k_proj.weight[:size] = 0  # key head 0 serves query heads 0 and 1
        attention.k_proj.bias[:size] = sharpness * key
        attention.q_proj.weight[: 2 * size] = 0
        attention.q_proj.bias[: 2 * size] = (sharpness * query).repeat(2)


def repeated(rng: random.Random, budget: int, longest: int = 24) -> list[Row]:
    """A batch of random sequences that come twice, a few random tokens between; the second time is learned."""
    length, gap = rng.randint(3, longest), rng.randint(0, 6)
    rows = []
    for _ in range(budget // (2 * length + gap)):
        sequence = [rng.randrange(len(SPECIAL), 4096) for _ in range(length)]
        between = [rng.randrange(len(SPECIAL), 4096) for _ in range(gap)]
        rows.append((sequence + between + sequence, [0.0] * (length + gap + 1) + [1.0] * (length - 1)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds wikitext2/")
    parser.add_argument("--out", type=Path, default=Path("dspyc/models/tiny"))
    parser.add_argument("--start", type=Path, help="a folder to go on from")
    parser.add_argument(
        "--stages", nargs="+", choices=("read", "repeat", "practise"), default=["read", "repeat", "practise"]
    )
    parser.add_argument("--rounds", type=int, default=5, help="of stage 1, each once over WikiText-2")
    parser.add_argument("--exercises", type=int, default=24_000, help="in a round of stage 1")
    parser.add_argument("--repeat-steps", type=int, default=1000)
    parser.add_argument("--practice-rounds", type=int, default=6)
    parser.add_argument("--practice", type=int, default=8_000, help="exercises in a round of stage 3")
    parser.add_argument("--budget", type=int, default=8192, help="tokens a step")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    school = School(args)
    for stage in args.stages:
        getattr(school, stage)()
    facts = school.graduate()
    (args.out / "README.md").write_text(model_card(facts))
    (args.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """bfloat16 halves the file; the trained weights are written, the live ones stay float32."""
    out.mkdir(parents=True, exist_ok=True)
    halved = LlamaForCausalLM(model.config).to(torch.bfloat16)
    halved.load_state_dict(model.state_dict())
    halved.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)


def model_card(facts: dict[str, Any]) -> str:
    scores = "\n".join(f"| {name} | {score:.0%} |" for name, score in facts["exact_match"].items())
    return f"""---
license: cc-by-sa-4.0
language: en
library_name: transformers
---
# dspyc/tiny

A {facts["parameters"] / 1e6:.1f} M-parameter Llama-shaped causal language model: 4 layers of 192, a byte-level vocabulary of 4,096, 2,048 positions.
It is the student that dspyc's demo, tests, tutorials and benchmarks train where no other weights can be had. It knows a little English
and the shape of a DSPy call; it is not an assistant.

- **Trained on** WikiText-2 (CC BY-SA), random sequences that come twice, and made-up chat exercises: copy a field, choose among
  listed options, extract a number or a code, written by TerseAdapter, ChatAdapter and JSONAdapter. It never saw Banking77 or the
  demo's tickets.
- **How long:** {facts["tokens"] / 1e6:.1f} M tokens in {facts["steps"]} steps, {facts["seconds"] / 60:.0f} minutes on {facts["device"]}
  (torch {facts["torch"]}, Python {facts["python"]}), by `scripts/pretrain_tiny.py`.
- **Scores:** {facts["wikitext2_bits_per_byte"]} bits per byte on held-out WikiText-2 paragraphs; exact matches of greedy replies on 60 fresh
  exercises each, whose text comes from the held-out paragraphs:

| exercise | exact |
| --- | --- |
{scores}
"""


if __name__ == "__main__":
    main()
