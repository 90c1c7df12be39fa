"""The training of `dspyc.training.train` as one flat loop: full fine-tuning, linear schedule, float32, no checkpoints.

    python examples/train_loop.py --data rows.jsonl --model dspyc/tiny --out tuned

To be read beside the real one. What stands here in a line is there for good reasons in a file of its own:
batches in training/batching.py, the shared prompt in training/sharing.py, the loss in training/loss.py, the rate in
training/schedule.py, checkpoints and resuming in training/checkpoint.py, many processes and precision in training/trainer.py.
tests/training/test_examples.py holds that both reach the same losses.
"""

import argparse
import json
import math
import random
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from dspyc.files import numbered_lines
from dspyc.models import ChatTokenizer
from dspyc.models.weights import load_model, load_tokenizer

Row = tuple[list[int], int]  # token ids, and how many of them are prompt


def shuffled_steps(rows: list[Row], batch_size: int, seed: int, epoch: int) -> list[list[Row]]:
    """The rows of every step of an epoch: shuffled, then of like length within 50 steps, and the odd ones last."""
    rng = random.Random(f"rows {seed} {epoch}")
    order = list(range(len(rows)))
    rng.shuffle(order)
    whole, pool = len(rows) - len(rows) % batch_size, 50 * batch_size
    steps = []
    for start in range(0, whole, pool):
        alike = sorted(order[start : min(start + pool, whole)], key=lambda i: len(rows[i][0]))
        steps += [alike[i : i + batch_size] for i in range(0, len(alike), batch_size)]
    rng.shuffle(steps)
    steps += [order[whole:]] if order[whole:] else []
    return [[rows[i] for i in step] for step in steps]


def common_prompt(rows: list[Row]) -> int:
    """How many tokens all rows begin with. The last of a prompt is left out: it predicts the first learned token."""
    limit = min(prompt for _, prompt in rows) - 1
    first = rows[0][0]
    return next((i for i in range(limit) if any(ids[i] != first[i] for ids, _ in rows)), limit)


def step_loss(model, rows: list[Row]) -> torch.Tensor:
    """Mean cross entropy of the reply tokens, in nats. The prompt that all rows share runs once."""
    shared, cache = common_prompt(rows), DynamicCache()
    if shared:
        model.model(input_ids=torch.tensor([rows[0][0][:shared]]), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(rows))  # the keys and values stay in the graph: gradients are exact

    width = max(len(ids) for ids, _ in rows) - shared
    inputs = torch.zeros(len(rows), width, dtype=torch.long)
    targets = torch.full((len(rows), width), -100)
    for i, (ids, prompt) in enumerate(rows):
        inputs[i, : len(ids) - shared] = torch.tensor(ids[shared:])
        targets[i, prompt - shared - 1 : len(ids) - shared - 1] = torch.tensor(ids[prompt:])

    # Padding stands on the right, where causal attention keeps it from all that is learned.
    hidden = model.model(input_ids=inputs, past_key_values=cache, use_cache=True).last_hidden_state
    learned = targets != -100  # only these positions are projected onto the vocabulary
    return cross_entropy(model.lm_head(hidden[learned]), targets[learned])


def train(model, rows: list[Row], epochs: int, batch_size: int, learning_rate: float, seed: int) -> list[float]:
    """Change the model's weights; returns the loss of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    total = epochs * math.ceil(len(rows) / batch_size)
    rising = math.ceil(0.03 * total)
    losses: list[float] = []
    for epoch in range(epochs):
        for batch in shuffled_steps(rows, batch_size, seed, epoch):
            done = len(losses)
            rate = (done + 1) / (rising + 1) if done < rising else (total - done) / max(1, total - rising)
            optimizer.param_groups[0]["lr"] = learning_rate * rate
            loss = step_loss(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help='JSONL, {"messages": [...]} a line')
    parser.add_argument("--model", default="dspyc/tiny", help="a folder, a Hugging Face id or dspyc/tiny")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    tokenizer, model = load_tokenizer(args.model), load_model(args.model, device="cpu", dtype="float32").train()
    chat = ChatTokenizer(tokenizer)
    lines = numbered_lines(args.data.read_text(encoding="utf-8"))
    rows = [chat.row_ids(json.loads(line)["messages"]) for _, line in lines]
    losses = train(model, rows, args.epochs, args.batch_size, args.learning_rate, args.seed)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(json.dumps({"steps": len(losses), "first_loss": losses[0], "last_loss": losses[-1], "losses": losses}))


if __name__ == "__main__":
    main()
