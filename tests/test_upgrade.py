"""Two versions at work on one store: gateways are replaced one by one, in the middle of a sale.

`earlier/` holds the scripts of the version before, as they were.
"""

import asyncio
import json
from collections import Counter
from dataclasses import replace
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest

from tests.clockwork import SOURCE, Clock, Gateway, over_the_rate
from tests.test_simulation import SALE, STAYING, Sale, most_at_once
from waitingroom.room import Entry, Knock, Room
from waitingroom.store import Store
from waitingroom.tickets import Keyring, Use

EARLIER = Path(__file__).parent / "earlier"
SINCE = range(10, 15)
"""Where in the keys of a script those are that the earlier version does not know."""

UNTOLD = {
    "taken": 0,
    "born": 0,
    "stamp": 0,
    "fence": 0,
    "gateways": [],
    "entered": [],
    "blocks": [],
    "asked": 0,
    "failed": 0,
    "share": 1,
}
"""What a snapshot of the earlier version does not say."""


class EarlierStore(Store):
    """The scripts of the version before, and the keys as it had them."""

    def __init__(self, url: str, gateway: str) -> None:
        super().__init__(url, gateway, timeout=5, clock=SOURCE)
        for name in ("enter", "tick", "configure"):
            parts = (EARLIER / f"{part}.lua" for part in ("room", name))
            text = "\n".join([SOURCE, *(part.read_text() for part in parts)])
            self._scripts[name] = sha1(text.encode(), usedforsecurity=False).hexdigest(), text

    async def _evaluate(self, script: str, keys: list[str], args: list[Any]) -> list[Any]:
        known = [key for index, key in enumerate(keys) if index not in SINCE]
        reply = await super()._evaluate(script, known, args)
        if script == "tick" and reply[0] == b"ok":
            reply[1] = json.dumps(UNTOLD | json.loads(reply[1]))
        return reply


async def opened(clock: Clock, store: Store, room: Room = SALE) -> Gateway:
    """A gateway with a store of either version, which has said what it knows."""
    gateway = Gateway(clock, store, await store.seed(room))
    for _ in range(2):
        await gateway.tick()
    return gateway


@pytest.mark.slow
@pytest.mark.parametrize("first", ["earlier", "later"])
async def test_a_sale_goes_on_while_gateways_are_replaced(valkey_url: str, first: str) -> None:
    """With two versions at work the limits hold, nobody is overtaken or lost, and numbers never repeat."""
    with Clock(valkey_url) as clock:
        stores = {"earlier": EarlierStore(valkey_url, "a"), "later": clock.store("b")}
        order = ["earlier", "later"] if first == "earlier" else ["later", "earlier"]
        gateways = [await opened(clock, stores[name]) for name in order]
        sale = Sale(gateways, 6_000, seed=20261127)
        await sale.run(620)
        await asyncio.gather(*(store.close() for store in stores.values()))
    entered = sorted(moment for visitor in sale.visitors for moment in visitor.entered)
    assert over_the_rate(entered, SALE.new_users_per_minute) <= 0.001
    assert most_at_once(sale.visitors) <= sale.fullest <= SALE.total_active_users
    assert not [visitor for visitor in sale.visitors if visitor.habit in STAYING and not visitor.entered]
    assert max(Counter(visitor.number for visitor in sale.visitors).values()) == 1
    assert gateways[1].snapshot.totals.joined == len(sale.visitors)


async def test_the_later_version_takes_over_a_room_as_it_is(valkey_url: str) -> None:
    """Whoever waits, is called or is inside under the earlier scripts still is under the later ones."""
    with Clock(valkey_url) as clock:
        earlier, later = EarlierStore(valkey_url, "a"), clock.store("b")
        room = replace(SALE, name="small", total_active_users=1)
        old = await opened(clock, earlier, room)
        knocks = [Knock(f"v{index}") for index in range(3)]
        answers = await earlier.enter("small", knocks)
        assert [answer.entry for answer in answers] == [Entry.TRIAL, Entry.WAIT, Entry.WAIT]
        tickets = [replace(knock, number=a.number, epoch=1) for knock, a in zip(knocks, answers, strict=True)]
        await old.tick(tickets[1:], touched=tickets[:1])
        await earlier.close()
        new = await opened(clock, later, room)
        assert (await later.enter("small", [replace(tickets[0], join=False)]))[0].entry is Entry.INSIDE
        await new.tick(tickets[1:])
        assert list(new.snapshot.line.numbers()) == [ticket.number for ticket in tickets[1:]]
        await new.tick(tickets[1:], left=tickets[:1])
        assert list(new.snapshot.offers) == [tickets[1].number]
        await later.close()


GIVEN = (
    "eyJhbGciOiJIUzI1NiIsImtpZCI6IlIyR3poMDR5IiwidHlwIjoiSldUIn0.eyJpc3MiOiJ3YWl0aW5ncm9vbSIsImF1ZCI6"
    "InNhbGUiLCJzdWIiOiJib2IiLCJpYXQiOjE3OTU1NDM5ODYsImV4cCI6MTc5NTU0NDI4NiwiZXAiOjMsIm4iOlsibWFpbiIs"
    "MTgwMDA0NjM4MDAwMl0sInVzZSI6InBhc3MiLCJlbmQiOjE4MDAwNDY3MDAwMDB9.G5r8Fhl1bc7BVKjVaiAUmJwufzzJr1I"
    "UFwFART3V6Ck"
)


def test_tokens_of_both_versions_are_the_same() -> None:
    """A cookie given before the upgrade is worth the same after it, and one given after it before."""
    keyring = Keyring([b"k" * 40])
    token = keyring.verify(GIVEN, "sale")
    assert (token.use, token.visitor, token.number, token.epoch) == (Use.PASS, "bob", 1800046380002, 3)
    assert keyring.sign(token) == GIVEN
