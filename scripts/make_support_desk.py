"""Write the demo's tickets: dspyc/demo/{train,val,test}.jsonl.

    python scripts/make_support_desk.py

Every intent has twelve families: hand-written sentences with alternatives `[a|b]` and slots `{product}`. Eight families
go to train, one to val and three to test, so no test ticket shares its main sentence with a training ticket. Around that
sentence stand a greeting, where the order number is, how urgent it is and a goodbye, with typos in the sentence itself.
The same seed writes the same bytes.
"""

import argparse
import json
import random
import re
from pathlib import Path

from dspyc.demo.policy import queue_for

SIZES = {"train": 1000, "val": 112, "test": 210}
SHARES = {"train": 8, "val": 1, "test": 3}  # families of each intent
TYPO_RATE = 0.02  # of the words of four letters or more in the main sentence
ORDER_SHARE, URGENT_SHARE, RELAXED_SHARE = 0.6, 0.28, 0.22

FAMILIES = {
    "refund": """
I [would like|want] a refund for the {product}[.| please.]
Please [give|send] me my money back for the {product}.
When will I get my money back? I returned the {product} {when}.
The {product} went back to you {when} and I still have no refund.
Can you refund the {product}? [It does not suit me|I do not like it].
I am [waiting|still waiting] for the refund of {price} euros.
How do I [get|ask for] a refund? I [do not need|no longer need] the {product}.
I sent the {product} back and you have not refunded [the money|me|the {price} euros].
You promised to give the money back for my {product} {when}.
My {product} is on its way back to you, so please refund me.
Is it possible to return the {product} and get the money back?
The refund for the {product} [has not come|never came|is missing].""",
    "delivery_status": """
Where is my {product}?
My parcel [has not arrived|did not arrive], [I ordered it|it was sent] {when}.
I have been waiting for the delivery of the {product} since {day}.
The tracking [page|link] has not changed since {day}, where is the parcel?
When will [my {product}|the parcel|my delivery] arrive?
Has my {product} been shipped [yet|already]? I have no tracking.
The {product} should have arrived {when} but there is no parcel.
Can you tell me where my delivery is? It was due on {day}.
According to the tracking my parcel is [in {city}|still in {city}], when will it be delivered?
I am still waiting for the parcel with the {product}.
The courier did not come on {day}. Where is my delivery?
Do you know when the {product} will be delivered? The tracking says nothing.""",
    "damaged_item": """
The {product} arrived [broken|damaged|cracked].
My {product} has a [crack|scratch|dent], it came out of the box [broken|damaged].
When I opened the box the {product} was [broken|cracked|in pieces].
The box was [crushed|torn] and the {product} inside is damaged.
I received a [broken|cracked|damaged] {product}.
There is a [crack|dent|scratch] in the {product} that came {when}.
You sent me a {product} that is [damaged|scratched|broken].
The {product} was damaged [in the post|on the way], it is [cracked|dented|scratched].
Unpacked the {product} on {day} and found it [in pieces|cracked|broken].
One side of the {product} is [dented|scratched|cracked], it must have been damaged by the courier.
What should I do with a {product} that came out of the box [cracked|broken]?
Somebody must have dropped the box: my {product} is [broken|in pieces|dented].""",
    "wrong_item": """
You sent me the wrong {product}.
I ordered a {product} but [got|received] a {product2} instead.
The {product} in the box is the wrong [colour|size|model].
This is not what I ordered: I wanted a {product}, not a {product2}.
I received a {product2} instead of the {product} that I ordered.
There was a different [colour|size|model] of {product} in the box than I ordered.
The wrong [colour|size|model] came, I ordered another {product}.
Instead of my {product} the box had a {product2} in it.
Got the wrong [thing|item] on {day}: a {product2}, and I ordered a {product}.
Why did I receive a {product2}? What I ordered was a {product}.
My {product} is not the [model|colour|size] that I ordered, you sent a different one.
I think you mixed up two orders, a {product2} came instead of a {product}.""",
    "cancel_order": """
Please cancel my order for the {product}.
I [want|would like|need] to cancel the order that I placed {when}.
Can I still cancel the {product}? I changed my mind.
I changed my mind about the {product}, cancel it please.
How do I cancel an order? I bought the {product} by mistake.
I ordered the {product} by mistake, please cancel it.
Stop my order, I do not want the {product} any more. Cancel everything.
Is it too late to cancel the {product} that I ordered {when}?
The {product} was ordered by mistake, can you cancel that order?
I [no longer want|do not want] the {product}: please cancel before it is sent.
My {name} has already bought a {product}, so I have to cancel mine.
Cancel it, please: I changed my mind and bought a {product} elsewhere.""",
    "change_address": """
I have moved, please send the {product} to my new address.
Can you change the delivery address to {street} in {city}?
The address [on|of] my order is wrong, it should be {street}, {city}.
I am moving to {city} {soon} and need to change my address.
Please change the address: I now live at {street}.
I typed the wrong [street|address], the {product} should go to {street}.
How do I change [my address|the address] for the {product}?
My new address is {street} in {city}, [please update it|can you change it].
We moved to {city} {when} and you still have the old address.
Could the {product} be sent to another address? I [will be|am] in {city}.
There is a mistake in my [street|address]: it is {street}, not what you have.
Update my address please, I moved to {street}.""",
    "payment_failed": """
My card [is|was] declined when I try to pay for the {product}.
The payment [fails|failed] [every time|again], [my card is fine|there is money on the card].
I cannot pay for the {product}, the checkout shows an error.
Checkout does not accept my [card|credit card].
I tried to pay {when} but the payment was [rejected|declined].
Why is my [card|credit card] rejected? I want to pay for a {product}.
The checkout page says payment error, what is wrong with my card?
Your site rejects my card at the checkout.
My payment did not go through, [the {product} is still in the basket|the page shows an error].
Paying for the {product} does not work: card declined.
It is not possible to pay, the payment page [stops|fails] with an error.
I get an error at checkout whenever I pay with my [card|credit card].""",
    "double_charge": """
You charged me twice for the {product}.
I was charged two times, [{price} euros each|once on {day} and again later].
There are two charges of {price} euros on my [card|account statement].
My [card|bank] shows a double charge for one {product}.
I [paid|bought] once but was charged twice.
Why have you taken {price} euros twice? I bought one {product}.
The {price} euros were taken twice from my [bank|card].
I see the same charge two times on my [statement|card].
One {product}, two charges on my [statement|card]: that is one too many.
Your shop took the money for the {product} twice {when}.
My statement of {day} says that {price} euros were charged twice.
Double charge on my [card|bank statement]: please look at the {price} euros.""",
    "login_problem": """
I cannot log in, [my password|the password] does not work.
I forgot my password [and the reset mail does not come|and cannot reset it].
Your site says wrong password when I log in.
How do I reset my password?
I am locked out, [too many wrong passwords|the login does not work].
The login page does not accept my password since {day}.
The password reset [link|mail] [does not work|never arrives].
Logging in fails, [I tried three passwords|the password is right].
I need a new password to log in.
Since {day} I am locked out and the password reset does nothing.
When I type my password the login page [loads again|says no].
It will not let me log in with the password that I set {when}.""",
    "delete_account": """
Please delete my account.
I want to close my account and [have my data removed|delete all data].
How can I delete my account and my data?
Remove my [account|profile] from your site please.
I no longer shop with you, please close the account.
Delete all data that you have about me.
Close my account [{soon}|now], I do not want to be a customer any more.
I [ask|asked] you to remove my data and my profile {when}.
Can you remove my profile? I do not use the account any more.
My account should be deleted, together with all my data.
I would like all my personal data to be removed and the account closed.
As I am no longer a customer, delete the profile and the data you keep.""",
    "voucher_code": """
My voucher [code|] does not work.
The discount code is not accepted for the {product}.
I have a voucher of {price} euros, where do I enter the code?
The site says that my discount code is not valid.
Can I use two [discount codes|vouchers] for one {product}?
I forgot to enter my voucher, can you still take off the discount?
My {name} gave me a voucher but the code [is not accepted|has expired].
Where can I find the discount code for new customers?
The code on my voucher [is not valid|has expired], [I got it {when}|it is from {day}].
Is the voucher valid for a {product} too?
I did not get the discount although I entered the code.
How long is a voucher valid? The code was sent {when}.""",
    "warranty_repair": """
My {product} stopped working, is it still under warranty?
The {product} needs a repair, I bought it [a year ago|last year].
Can you repair my {product}? It stopped working {when}.
How long is the warranty on the {product}?
After [one year|two years|six months] the {product} does not turn on, I need a repair.
I want to use the warranty, the {product} stopped working.
Where do I send the {product} for a warranty repair?
The {product} no longer works after [a year|six months], [please repair it|I have a warranty].
It is [a year|six months] old, under warranty, and the {product} does not turn on.
Do you repair a {product} that stopped after [a year|two years]?
Is the repair of my {product} covered by the warranty?
Who repairs it? My {product} is [a year|two years] old and no longer turns on.""",
    "invoice_copy": """
I need an invoice for the {product}.
Please send me [a copy of the invoice|the invoice again].
There was no invoice in the box with the {product}.
Can I have an invoice with [my company name|the tax number] on it?
I lost the receipt for the {product}, can you send a copy?
My company needs [an invoice|a receipt] for the tax office.
Where can I download the invoice for the {product}?
The invoice [has|shows] the wrong company name.
I did not get a receipt for the {product} that I bought {when}.
For the tax office I have to have the invoice of {day}.
Could you mail me a copy of my receipt? It was {price} euros.
Our company still has no invoice from you, we bought a {product}.""",
    "stock_question": """
When will the {product} be back in stock?
Is the {product} [available|still available] in [red|blue|green|black]?
The {product} is sold out, will you get more?
Do you have the {product} in stock?
How many of the {product} do you have in stock? I need [four|five|six].
Your site says that the {product} is not available.
Will the [red|blue|green|black] {product} be available again?
I want to buy a {product} but it is sold out.
Can you tell me when the sold out {product} comes back?
Have you got any more of the {product}, or is it out of stock?
Is there a {product} in [red|blue|green|black] in stock [in {city}|somewhere]?
I would buy the {product} if it were available. When do you get more in stock?""",
}
SLOTS = {
    "product": "kettle|lamp|backpack|desk chair|toaster|keyboard|blender|tent|camera|mirror|bike helmet|speaker|rug|coffee maker|phone case|watch|jacket|printer|vase|drill",
    "product2": "mug|pillow|scarf|clock|wallet|tripod|basket|shelf|charger|umbrella",
    "name": "sister|brother|mother|father|friend|neighbour",
    "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "when": "last week|two weeks ago|on Monday|on Friday|yesterday|3 days ago|10 days ago|a month ago",
    "soon": "next week|next month|on Monday|at the weekend",
    "city": "Lyon|Porto|Leeds|Turin|Graz|Ghent|Malmo|Cork",
    "street": "4 Mill Lane|17 Park Road|52 Station Street|8 Oak Avenue|31 Harbour Road|9 Church Street",
    "price": "15|19|24|30|45|60|85|120",
}
GREETINGS = [
    "",
    "",
    "Hi, ",
    "Hello, ",
    "Hello there! ",
    "Good morning, ",
    "Dear team, ",
    "Hey, ",
    "Hi all. ",
    "Good evening. ",
]
CLOSINGS = [
    "",
    "",
    " Thanks.",
    " Thank you!",
    " Best, {person}",
    " Regards, {person}",
    " {person}",
    " Many thanks, {person}",
]
PEOPLE = [
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Elif",
    "Farid",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
    "Karim",
    "Lena",
    "Mara",
    "Noah",
    "Olga",
    "Paul",
]
ORDERS_AFTER = [
    " Order {order}.",
    " My order number is {order}.",
    " The order is {order}.",
    " It is order {order}.",
    " (order {order})",
    " Order number: {order}.",
]
ORDERS_BEFORE = ["Order {order}: ", "About order {order}. ", "This is about order {order}. ", "My order is {order}. "]
URGENT = [
    " This is urgent.",
    " It is urgent!",
    " Please answer today.",
    " I need an answer today.",
    " Please help immediately.",
    " I need this solved immediately.",
    " I cannot wait any longer.",
    " Urgent, please!",
]
RELAXED = [
    " There is no hurry.",
    " No hurry.",
    " No rush.",
    " It is not urgent.",
    " Take your time.",
    " Whenever you have time.",
    " This can wait.",
]


def expand(template: str, rng: random.Random) -> str:
    """One sentence of a family: alternatives chosen first, since they may hold slots."""
    text = re.sub(r"\[([^\]]*)\]", lambda m: rng.choice(m[1].split("|")), template)
    text = re.sub(r"\{(\w+)\}", lambda m: rng.choice(SLOTS[m[1]].split("|")), text)
    return re.sub(r" +([.,?])", r"\1", text)


def mistype(sentence: str, rng: random.Random) -> str:
    """Two letters swapped, one dropped or one doubled, inside some of the longer words."""

    def spoil(match: re.Match[str]) -> str:
        word = match[0]
        if rng.random() >= TYPO_RATE:
            return word
        i = rng.randrange(1, len(word) - 2)
        kind = rng.choice(("swap", "drop", "double"))
        middle = {"swap": word[i + 1] + word[i], "drop": word[i + 1], "double": word[i] * 2 + word[i + 1]}[kind]
        return word[:i] + middle + word[i + 2 :]

    return re.sub(r"[A-Za-z]{4,}", spoil, sentence)


def order_number(rng: random.Random) -> str:
    digits = "".join(rng.choice("0123456789") for _ in range(4))
    return rng.choice(["#{}", "ORD-{}", "A-{}", "SD{}", "{}"]).format(digits)


def ticket(intent: str, number: int, template: str, rng: random.Random) -> dict[str, str]:
    body = mistype(expand(template, rng), rng)
    order = order_number(rng) if rng.random() < ORDER_SHARE else "none"
    before = after = ""
    if order != "none" and rng.random() < 0.3:
        before = rng.choice(ORDERS_BEFORE).format(order=order)
    elif order != "none":
        after = rng.choice(ORDERS_AFTER).format(order=order)
    mood = rng.random()
    urgency = "high" if mood < URGENT_SHARE else "low" if mood < URGENT_SHARE + RELAXED_SHARE else "normal"
    cue = rng.choice({"high": URGENT, "low": RELAXED, "normal": [""]}[urgency])
    details = after + cue if rng.random() < 0.5 else cue + after
    closing = rng.choice(CLOSINGS).format(person=rng.choice(PEOPLE))
    return {
        "ticket": f"{rng.choice(GREETINGS)}{before}{body}{details}{closing}",
        "intent": intent,
        "urgency": urgency,
        "queue": queue_for(intent, urgency),
        "order_number": order,
        "family": f"{intent}/{number}",
    }


def splits(seed: int) -> dict[str, list[dict[str, str]]]:
    """The tickets of each split, intents and families in equal shares, without repeats."""
    rng = random.Random(seed)
    families: dict[str, dict[str, list[tuple[int, str]]]] = {split: {} for split in SIZES}
    for intent, text in FAMILIES.items():
        numbered = list(enumerate(text.strip().split("\n")))
        rng.shuffle(numbered)
        for split, share in SHARES.items():
            families[split][intent], numbered = numbered[:share], numbered[share:]
    made, seen = {}, set()
    for split, size in SIZES.items():
        rows: list[dict[str, str]] = []
        while len(rows) < size:
            turn, place = divmod(len(rows), len(FAMILIES))
            intent = list(FAMILIES)[place]
            number, template = families[split][intent][turn % SHARES[split]]
            row = ticket(intent, number, template, rng)
            if row["ticket"] not in seen:
                seen.add(row["ticket"])
                rows.append(row)
        rng.shuffle(rows)
        made[split] = rows
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "dspyc" / "demo")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for split, rows in splits(args.seed).items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (args.out / f"{split}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
        print(f"{split}: {len(rows)} tickets of {len({row['family'] for row in rows})} families")


if __name__ == "__main__":
    main()
