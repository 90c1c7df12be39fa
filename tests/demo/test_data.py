"""The demo's tickets: where they come from, and that no test family is ever trained on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from dspyc.demo.policy import QUEUE_OF, queue_for
from dspyc.demo.support_desk import Intent, Queue, load_examples

ROOT = Path(__file__).parents[2]
SPLITS = ("train", "val", "test")


def rows(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / "dspyc" / "demo" / f"{split}.jsonl").read_text("utf-8").splitlines()]


def test_the_committed_files_are_what_the_script_writes(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "make_support_desk.py"
    subprocess.run([sys.executable, str(script), "--out", str(tmp_path)], check=True, cwd=ROOT, capture_output=True)
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (ROOT / "dspyc" / "demo" / f"{split}.jsonl").read_bytes()


def test_no_family_and_no_ticket_is_in_two_splits() -> None:
    for name in ("family", "ticket"):
        train, val, test = ({row[name] for row in rows(split)} for split in SPLITS)
        assert not train & val
        assert not train & test
        assert not val & test


def test_every_intent_has_at_least_eight_families_in_training_and_unseen_ones_in_the_test() -> None:
    assert len(get_args(Intent)) >= 12
    for split, least in (("train", 8), ("test", 3)):
        families = {row["family"] for row in rows(split)}
        for intent in get_args(Intent):
            assert sum(family.startswith(f"{intent}/") for family in families) >= least, intent


def test_most_tickets_hold_the_order_number_that_their_label_says() -> None:
    found = [row for split in SPLITS for row in rows(split)]
    with_order = [row for row in found if row["order_number"] != "none"]
    assert 0.5 < len(with_order) / len(found) < 0.7
    assert all(row["order_number"] in row["ticket"] for row in with_order)


def test_urgency_can_be_read_from_the_text_by_the_stated_rule() -> None:
    low = ("no hurry", "no rush", "not urgent", "take your time", "whenever you have time", "can wait")
    high = ("urgent", "today", "immediately", "cannot wait")
    for row in (row for split in SPLITS for row in rows(split)):
        text = row["ticket"].lower()
        said = "low" if any(cue in text for cue in low) else "high" if any(cue in text for cue in high) else "normal"
        assert said == row["urgency"], row["ticket"]


@pytest.mark.parametrize(
    ("intent", "urgency", "queue"),
    [
        ("refund", "normal", "returns"),
        ("refund", "high", "duty"),
        ("delivery_status", "low", "delivery"),
        ("login_problem", "high", "accounts"),
        ("delete_account", "high", "accounts"),
    ],
)
def test_urgent_tickets_go_to_the_duty_desk_unless_they_are_about_an_account(
    intent: str, urgency: str, queue: str
) -> None:
    assert queue_for(intent, urgency) == queue


def test_the_policy_covers_the_programs_intents_and_queues() -> None:
    assert set(QUEUE_OF) == set(get_args(Intent))
    assert {*QUEUE_OF.values(), "duty"} == set(get_args(Queue))


def test_examples_take_the_ticket_and_nothing_else() -> None:
    for split in load_examples():
        assert all(list(example.inputs().keys()) == ["ticket"] for example in split)
