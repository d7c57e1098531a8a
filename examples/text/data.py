"""Makes the letters that a shop gets: what about, in which tone, with slips of the keyboard."""

from __future__ import annotations

import random

CLASSES = ("billing", "delivery", "fault", "praise")
_ABOUT = {
    "billing": ("i was charged twice for {thing}", "the invoice for {thing} is wrong",
                "please refund {thing}", "your bill shows {thing} but i returned it",
                "why is {thing} dearer on the invoice than in the shop"),
    "delivery": ("{thing} has not arrived", "the parcel with {thing} went to my neighbour",
                 "when will {thing} come", "the courier left {thing} in the rain",
                 "tracking says {thing} is still in the depot"),
    "fault": ("{thing} does not switch on", "{thing} broke after two days",
              "there is smoke coming out of {thing}", "{thing} makes a grinding noise",
              "the screen of {thing} stays black"),
    "praise": ("{thing} is wonderful", "i love {thing}", "thanks for {thing} it works like a charm",
               "{thing} came early and is perfect", "best shop ever and {thing} is great"),
}  # fmt: skip
_NEW = {  # what nobody wrote a year ago
    "billing": ("the app took the money for {thing} two times",
                "my voucher was ignored for {thing}"),
    "delivery": ("the drone dropped {thing} on my roof", "the locker with {thing} does not open"),
    "fault": ("{thing} loses its connection to the app", "the update killed {thing}"),
    "praise": ("{thing} and the new app are a joy",
               "the locker is so handy i got {thing} at night"),
}  # fmt: skip
_THINGS = ("my kettle", "the lamp", "the blue headphones", "order {number}", "the printer",
           "my watch", "the heater", "that radio", "item {number}", "the toaster")  # fmt: skip
_KIND = ("dear team {0} kind regards", "hello i hope you are well {0} thank you so much",
         "good day {0} with best wishes", "sorry to bother you but {0} please help")  # fmt: skip
_CURT = ("{0}", "{0} answer now", "again {0}", "{0} not the first time")


def letters(seed: int, count: int, *, new: bool) -> list[dict[str, str]]:
    """Returns letters with `text`, `label` and `style`; `new`: with what came up this year."""
    draw = random.Random(seed)
    return [_letter(draw, new=new) for _ in range(count)]


def _letter(draw: random.Random, *, new: bool) -> dict[str, str]:
    label = draw.choice(CLASSES)
    fresh = new and draw.random() < 0.5
    line = draw.choice((_NEW if fresh else _ABOUT)[label])
    text = line.format(thing=draw.choice(_THINGS).format(number=draw.randrange(1000)))
    if draw.random() < 0.25:  # something else is said by the way
        other = draw.choice(_ABOUT[draw.choice(CLASSES)])
        text += " by the way " + other.format(thing="the other one") + " but that is settled"
    style = draw.choice(("kind", "curt"))
    text = draw.choice(_KIND if style == "kind" else _CURT).format(text)
    return {"text": _slips(text, draw), "label": label, "style": style}


def _slips(text: str, draw: random.Random) -> str:
    found = list(text)
    for place in range(len(found) - 1):
        if draw.random() < 0.02:
            found[place], found[place + 1] = found[place + 1], found[place]
    return "".join(found)
