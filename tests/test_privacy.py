"""Neither store nor log keeps an address, a browser, or what somebody asked for."""

import re
from pathlib import Path

import pytest
import redis

from tests.house import house
from tests.test_store_outages import frozen, settle

PERSON = ("X-Forwarded-For: 203.0.113.77", "User-Agent: Particular/1.0", "Cookie: name=Ada.Lovelace")
TRACES = (b"203.0.113", b"Particular", b"Lovelace", b"shoe-size-43", b"shop.example")


def contents(url: str) -> bytes:
    """Every key of the store, and all that is in it."""
    found: list[object] = []
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter():
            kind = client.type(key)
            found.append(key)
            if kind == b"string":
                found.append(client.get(key))
            elif kind == b"hash":
                found.append(client.hgetall(key))
            elif kind == b"zset":
                found.append(client.zrange(key, 0, -1))
            elif kind == b"list":
                found.append(client.lrange(key, 0, -1))
            elif kind == b"stream":
                found.append(client.xrange(key))
    return repr(found).encode()


async def test_nothing_about_a_person_is_kept(
    valkey_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Joining, waiting, arriving in an outage, entering and leaving leave numbers and random ids behind."""
    server = {"timeout": 0.1, "trusted_proxies": ("127.0.0.0/8",)}
    async with house(valkey_url, tmp_path, server=server, total_active_users=1) as shop:
        inside = shop.shopper(*PERSON)
        for _ in range(2):
            assert (await inside.visit("/goods?q=shoe-size-43")).inside
        await shop.tick()
        waiting = shop.shopper(*PERSON)
        assert (await waiting.visit("/goods?q=shoe-size-43")).state == "waiting"
        with frozen(valkey_url):
            late = shop.shopper(*PERSON)
            await late.visit("/goods?q=shoe-size-43")
        shop.clock.advance(8000)
        await settle(shop)
        await inside.leave("Sec-Fetch-Site: same-origin")
        for shopper in (waiting, late):
            await shopper.poll()
        await settle(shop)
        assert (await waiting.visit("/goods?q=shoe-size-43")).inside
        await settle(shop)
        kept = contents(valkey_url)
    assert re.search(rb"main:\d{13}:[\w-]{22}", kept), (
        "the random id of a visitor, which is no more than that"
    )
    said = "".join(capfd.readouterr()).encode()
    assert [trace for trace in TRACES if trace in kept] == []
    assert [trace for trace in TRACES[:4] if trace in said] == []
