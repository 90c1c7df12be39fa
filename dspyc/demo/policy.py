"""The shop's rules: which team a ticket goes to.

A ticket goes to the team of its intent. An urgent one goes to the duty desk instead, unless it is about an account,
which only the accounts team may open.
"""

QUEUE_OF = {
    "refund": "returns",
    "delivery_status": "delivery",
    "damaged_item": "returns",
    "wrong_item": "returns",
    "cancel_order": "sales",
    "change_address": "delivery",
    "payment_failed": "billing",
    "double_charge": "billing",
    "login_problem": "accounts",
    "delete_account": "accounts",
    "voucher_code": "sales",
    "warranty_repair": "returns",
    "invoice_copy": "billing",
    "stock_question": "sales",
}


def queue_for(intent: str, urgency: str) -> str:
    """The team for an intent of `QUEUE_OF` and an urgency of low, normal or high."""
    queue = QUEUE_OF[intent]
    return "duty" if urgency == "high" and queue != "accounts" else queue
