"""The demo's program: a support desk of two predictors, its metric and its data.

    desk = SupportDesk()
    desk(ticket="Hi, where is my parcel? Order A-48213.")
    # Prediction(intent='delivery_status', urgency='normal', queue='delivery', order_number='A-48213')

How urgent a ticket is stands in its words: "urgent", "today", "immediately" and "cannot wait" are high; "no hurry",
"not urgent", "can wait" and their like are low; everything else is normal. `policy` says which team a ticket goes to.
"""

import json
from pathlib import Path
from typing import Any, Literal

import dspy

Intent = Literal[
    "refund",
    "delivery_status",
    "damaged_item",
    "wrong_item",
    "cancel_order",
    "change_address",
    "payment_failed",
    "double_charge",
    "login_problem",
    "delete_account",
    "voucher_code",
    "warranty_repair",
    "invoice_copy",
    "stock_question",
]
Urgency = Literal["low", "normal", "high"]
Queue = Literal["delivery", "returns", "billing", "accounts", "sales", "duty"]
ANSWERS = ("intent", "urgency", "queue", "order_number")


class Triage(dspy.Signature):
    """Say what the customer wants and how urgent it is."""

    ticket: str = dspy.InputField()
    intent: Intent = dspy.OutputField()
    urgency: Urgency = dspy.OutputField()


class Route(dspy.Signature):
    """Choose the team for the ticket, and find the order number in its text."""

    ticket: str = dspy.InputField()
    intent: Intent = dspy.InputField()
    urgency: Urgency = dspy.InputField()
    queue: Queue = dspy.OutputField()
    order_number: str = dspy.OutputField(desc="as it is written in the ticket, or none")


class SupportDesk(dspy.Module):
    """ticket -> intent, urgency, queue, order_number."""

    def __init__(self) -> None:
        super().__init__()
        self.triage = dspy.Predict(Triage)
        self.route = dspy.Predict(Route)

    def forward(self, ticket: str) -> dspy.Prediction:
        triage = self.triage(ticket=ticket)
        route = self.route(ticket=ticket, intent=triage.intent, urgency=triage.urgency)
        return dspy.Prediction(
            intent=triage.intent, urgency=triage.urgency, queue=route.queue, order_number=route.order_number
        )


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    """Whether all four answers are right: a ticket that is only mostly right lands on the wrong desk."""
    return all(prediction.get(name) == example[name] for name in ANSWERS)


def load_examples() -> tuple[list[dspy.Example], list[dspy.Example], list[dspy.Example]]:
    """Train, validation and test tickets; no sentence family of one occurs in another (field `family`)."""
    train, val, test = (_read(Path(__file__).parent / f"{split}.jsonl") for split in ("train", "val", "test"))
    return train, val, test


def _read(file: Path) -> list[dspy.Example]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [dspy.Example(**json.loads(line)).with_inputs("ticket") for line in lines]
