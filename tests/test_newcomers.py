"""Join storms: a flood gets no numbers, and nobody who comes with a browser is kept out."""

import asyncio
import html
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.house import KEY, House, Reply, Shopper, calls, house
from tests.test_challenge import solve
from tests.test_gateway_outages import silent
from tests.wire import dial
from waitingroom.challenge import BURST
from waitingroom.config import TokenSettings
from waitingroom.room import Room
from waitingroom.tickets import Use

TRUSTING = {"trusted_proxies": ("127.0.0.1/32",)}
ATTACKED, QUIET = "X-Forwarded-For: 198.51.100.7", "X-Forwarded-For: 203.0.113.9"
NAVIGATION = ("GET", "/", "text/html")


@asynccontextmanager
async def full(url: str, data: Path, **changes: Any) -> AsyncIterator[House]:
    """A room in which everybody queues, behind a proxy that is trusted; the work is easy."""
    settings = {"queue_all": True, "challenge_difficulty": 8} | changes
    async with house(url, data, server=TRUSTING, **settings) as shop:
        yield shop


def proof_of(reply: Reply) -> tuple[str, int]:
    """The challenge on a page, and the zero bits of each part."""
    found = re.search(r'action="/\.waitingroom/join\?room=[\w-]+&amp;proof=([^"]+)"', reply.body.decode())
    bits = re.search(r'data-bits="(\d+)"', reply.body.decode())
    assert found
    assert bits
    return html.unescape(found[1]), int(bits[1])


async def submit(shopper: Shopper, proof: str, back: str = "/goods", room: str = "sale") -> Reply:
    """Send the form of the page that stands at `back`."""
    referer = f"Referer: http://{shopper.host}{back}"
    return await shopper.ask("POST", f"/.waitingroom/join?room={room}&proof={proof}", referer)


async def meet(shopper: Shopper, reply: Reply, back: str = "/goods") -> Reply:
    """Do the work that a page asks for, and go where it leads."""
    answer = await submit(shopper, solve(*proof_of(reply)), back)
    assert (answer.status, answer.header("location")) == (303, back)
    return await shopper.visit(answer.header("location"))


async def flood(shop: House, times: int, *lines: str) -> None:
    """So many navigations without a cookie, over a few connections that stay open."""
    script = shop.shopper(*lines)
    request = script.request(*NAVIGATION[:2])

    async def hammer(share: int) -> None:
        async with dial(script.port) as wire:
            for _ in range(share):
                await wire.send(request)
                head, _ = await wire.answer()
                assert head.status == 200

    await asyncio.gather(*(hammer(times // 4) for _ in range(4)))


def issued(shop: House) -> int:
    """The highest number, as of the last tick."""
    return shop.desk().snapshot.issued


async def test_a_storm_from_one_network_gets_no_more_numbers_than_it_has_free(
    valkey_url: str, tmp_path: Path
) -> None:
    """Five thousand cookieless joins yield the threshold, then cost no store call, and nobody else a thing.

    Somebody behind the same address gets in the line by a moment's work.
    """
    async with full(valkey_url, tmp_path) as shop:
        before, began = issued(shop), time.monotonic()
        await flood(shop, BURST, ATTACKED)
        calls(valkey_url)
        await flood(shop, 5000 - BURST, ATTACKED)
        free = time.monotonic() - began
        assert calls(valkey_url) <= free + 1
        await shop.tick()
        assert issued(shop) - before <= BURST + free + 1
        assert shop.metric("challenges_total", room="sale", outcome="issued") >= 5000 - BURST - free - 1
        assert shop.metric("challenging", room="sale") == 0
        bystander, neighbour = shop.shopper(QUIET), shop.shopper(ATTACKED)
        assert (await bystander.visit()).state == "waiting"
        challenged = await neighbour.visit("/goods")
        assert challenged.state == "challenge"
        assert (await meet(neighbour, challenged)).state == "waiting"
        assert neighbour.token.number == bystander.token.number + 1


async def test_honest_phones_behind_one_address_all_get_in_line(valkey_url: str, tmp_path: Path) -> None:
    """Three thousand browsers of one carrier within ten minutes: each has a place, after a moment at most."""
    async with full(valkey_url, tmp_path) as shop:
        numbers, challenged = set(), 0
        for batch in range(100):
            phones = [shop.shopper(ATTACKED) for _ in range(30)]
            replies = await asyncio.gather(*(phone.visit("/goods") for phone in phones))
            for phone, reply in zip(phones, replies, strict=True):
                told = reply
                if reply.state == "challenge":
                    challenged += 1
                    told = await meet(phone, reply)
                assert told.state == "waiting", batch
                numbers.add(phone.token.number)
            await shop.pass_time(6)
        assert len(numbers) == 3000
        assert 0 < challenged == shop.metric("challenges_total", room="sale", outcome="solved")
        assert shop.metric("challenges_total", room="sale", outcome="refused") == 0


async def test_a_challenge_is_a_page_of_its_own_state(valkey_url: str, tmp_path: Path) -> None:
    """It stands where the visitor wanted to go, is kept by nobody, and its cookie is not the storefront's."""
    async with full(valkey_url, tmp_path, challenge="on", queue_all=False) as shop:
        visitor = shop.shopper()
        reply = await visitor.visit("/goods?size=42")
        assert (reply.status, reply.state) == (200, "challenge")
        assert reply.header("cache-control") == "no-store"
        assert reply.header("x-robots-tag") == "noindex"
        assert reply.header("retry-after") == "10"
        assert [line.split("; ")[2:] for line in reply.cookies] == [
            ["Max-Age=180", "HttpOnly", "SameSite=Lax"]
        ]
        assert shop.origin.heads == []
        assert (await meet(visitor, reply, "/goods?size=42")).inside
        assert (await visitor.visit()).inside
        assert {"wr-sale", "wr-sale.proof"} == visitor.jar.keys()
        assert shop.origin.paths == ["GET /goods?size=42", "GET /"]
        assert not [head for head in shop.origin.heads if b"wr-" in head]
        assert shop.metric("requests_total", room="sale", verdict="challenged") == 1


async def test_over_tls_the_proof_is_bound_to_the_host(valkey_url: str, tmp_path: Path) -> None:
    """Its cookie has the prefix that browsers enforce, and the storefront does not see it under that name."""
    async with full(valkey_url, tmp_path, challenge="on", queue_all=False) as shop:
        visitor = shop.shopper("X-Forwarded-Proto: https")
        assert (await meet(visitor, await visitor.visit("/goods"))).inside
        assert {"__Host-wr-sale", "__Host-wr-sale.proof"} == visitor.jar.keys()
        assert (await visitor.visit()).inside
        assert not [head for head in shop.origin.heads if b"wr-" in head]


async def test_a_challenge_is_good_for_one_join(valkey_url: str, tmp_path: Path) -> None:
    """Brought again, by cookie or by form, it is refused with a new one."""
    async with full(valkey_url, tmp_path, challenge="on") as shop:
        visitor, copier = shop.shopper(), shop.shopper()
        proof = solve(*proof_of(await visitor.visit()))
        await submit(visitor, proof)
        copier.jar = dict(visitor.jar)
        assert (await visitor.visit()).state == "waiting"
        again = await copier.visit()
        assert again.state == "challenge"
        assert proof_of(again)[0] not in proof
        assert (await submit(copier, proof)).cookies == []
        assert (await copier.visit()).state == "challenge"
        assert shop.metric("challenges_total", room="sale", outcome="refused") == 1
        assert (await meet(copier, await copier.visit())).state == "waiting"


async def test_a_challenge_is_known_at_every_gateway(valkey_url: str, tmp_path: Path) -> None:
    """Set by one, answered at another, used at a third time; each gateway takes it once, and no more."""
    async with house(
        valkey_url, tmp_path, gateways=2, queue_all=True, challenge="on", challenge_difficulty=8
    ) as shop:
        ports = [gateway.public_address[1] for gateway in shop.gateways]
        visitor = shop.shopper()
        reply = await visitor.visit("/goods")
        visitor.port = ports[1]
        await submit(visitor, solve(*proof_of(reply)))
        jar = dict(visitor.jar)
        states = []
        for port in (ports[0], ports[1], *ports):
            visitor.jar, visitor.port = dict(jar), port
            states.append((await visitor.visit()).state)
        assert states == ["waiting", "waiting", "challenge", "challenge"]


async def test_a_challenge_stands_for_as_long_as_its_key_is_listed(valkey_url: str, tmp_path: Path) -> None:
    """Set before the keys were rotated, it is met afterwards; once its key has gone, it proves nothing."""
    async with full(valkey_url, tmp_path, challenge="on") as shop:
        server = shop.gateways[0]
        first, second, third = shop.shopper(), shop.shopper(), shop.shopper()
        old = [await first.visit("/goods"), await second.visit("/goods")]
        fresh = "a fresh key of the tests, of more than 32 bytes"
        await server.reload(replace(server.settings, tokens=TokenSettings(keys=(fresh, KEY))))
        assert (await meet(first, old[0])).state == "waiting"
        new = await third.visit("/goods")
        await server.reload(replace(server.settings, tokens=TokenSettings(keys=(fresh,))))
        assert (await meet(second, old[1])).state == "challenge"
        assert shop.metric("challenges_total", room="sale", outcome="refused") == 1
        assert (await meet(third, new)).state == "waiting"


async def test_a_challenge_of_another_room_or_network_is_none(valkey_url: str, tmp_path: Path) -> None:
    """What was solved in one room, or for one network, joins no other."""
    easy = {"queue_all": True, "challenge": "on", "challenge_difficulty": 8}
    rooms = (Room(name="sale", **easy), Room(name="tickets", path="/tickets", **easy))  # type: ignore[arg-type]  # settings
    async with house(valkey_url, tmp_path, *rooms, server=TRUSTING) as shop:
        visitor = shop.shopper(ATTACKED)
        proof = solve(*proof_of(await visitor.visit()))
        assert (await submit(visitor, proof, room="tickets")).cookies == []
        assert (await submit(shop.shopper(QUIET), proof)).cookies == []
        assert shop.metric("challenges_total", room="tickets", outcome="refused") == 1
        assert shop.metric("challenges_total", room="sale", outcome="refused") == 1
        visitor.jar = {"wr-tickets.proof": proof}
        assert (await visitor.visit("/tickets")).state == "challenge"


@pytest.mark.parametrize(
    "proof",
    ["", "a", "a.b.c", "%ff%fe.%80", "x" * 20_000, "..", "%0d%0aX-Evil:1", "é", "AAAA" * 7 + "." + "A" * 43],
    ids=["empty", "short", "parts", "not UTF-8", "huge", "dots", "line break", "latin-1", "forged"],
)
async def test_garbage_leads_to_a_new_challenge(valkey_url: str, tmp_path: Path, proof: str) -> None:
    """Whatever is sent for a proof, the answer leads back to a page with a new challenge; never an error."""
    async with full(valkey_url, tmp_path, challenge="on") as shop:
        visitor = shop.shopper()
        answer = await submit(visitor, proof)
        assert (answer.status, answer.cookies, answer.header("x-evil")) == (303, [], "")
        visitor.jar = {"wr-sale.proof": proof}
        assert (await visitor.visit()).state == "challenge"
        assert shop.metric("challenges_total", room="sale", outcome="refused") == 1


async def test_only_a_form_joins(valkey_url: str, tmp_path: Path) -> None:
    """A link to our path is not followed: what is no POST is told so."""
    async with full(valkey_url, tmp_path, challenge="on") as shop:
        reply = await shop.shopper().visit("/.waitingroom/join?room=sale&proof=x")
        assert (reply.status, reply.header("allow")) == (405, "POST")


async def test_the_form_leads_nowhere_else(valkey_url: str, tmp_path: Path) -> None:
    """Without a word where somebody came from, or with another site's, it leads to the room's own path."""
    async with full(valkey_url, tmp_path, challenge="on", path="/drop") as shop:
        for lines in (
            (),
            ("Referer: https://evil.example/x",),
            ("Referer: http://shop.example//evil.example",),
        ):
            target = "/.waitingroom/join?room=sale&proof=x"
            reply = await shop.shopper().ask("POST", target, *lines)
            assert (reply.status, reply.header("location")) == (303, "/drop")


async def test_patience_joins_without_scripts(valkey_url: str, tmp_path: Path) -> None:
    """The button works once the time that the page names has passed; before, it says what is left of it."""
    async with full(valkey_url, tmp_path, challenge="on") as shop:
        visitor = shop.shopper()
        first = await visitor.visit("/goods")
        assert "Without JavaScript the check takes 10 seconds." in first.body.decode()
        await shop.pass_time(6)
        assert (await submit(visitor, proof_of(first)[0])).status == 303
        early = await visitor.visit("/goods")
        assert early.state == "challenge"
        assert proof_of(early) == proof_of(first)
        left = int(early.header("retry-after"))
        assert 4 <= left <= 5
        assert f'http-equiv="refresh" content="{left};url=/goods"' in early.body.decode()
        await shop.pass_time(left + 1)
        answer = await submit(visitor, proof_of(first)[0])
        assert (await visitor.visit(answer.header("location"))).state == "waiting"
        assert shop.metric("challenges_total", room="sale", outcome="waited") == 1
        assert shop.metric("challenges_total", room="sale", outcome="issued") == 1
        assert shop.metric("challenges_total", room="sale", outcome="refused") == 0


async def test_a_reload_is_patience_too(valkey_url: str, tmp_path: Path) -> None:
    """The page's own refresh joins, or an app's next request: all that it takes is to keep a cookie."""
    async with full(valkey_url, tmp_path, challenge="on") as shop:
        visitor, app = shop.shopper(), shop.shopper()
        assert (await visitor.visit()).state == "challenge"
        reply = await app.ask("GET", "/api/goods", accept="application/json")
        await shop.pass_time(int(reply.header("retry-after")) + 1)
        assert (await visitor.visit()).state == "waiting"
        reply = await app.ask("GET", "/api/goods", accept="application/json")
        assert (reply.state, app.token.use) == ("waiting", Use.TICKET)


async def test_patience_is_no_way_round_for_scripts(valkey_url: str, tmp_path: Path) -> None:
    """Scripts that wait get no more numbers for their network than it has free; work still gets one."""
    async with full(valkey_url, tmp_path, challenge="on") as shop:
        before, began = issued(shop), time.monotonic()
        scripts = [shop.shopper(ATTACKED) for _ in range(BURST + 40)]
        for script in scripts:
            assert (await script.visit()).state == "challenge"
        await shop.pass_time(21)
        for script in scripts:
            last = await script.visit("/goods")
        await shop.tick()
        assert BURST <= issued(shop) - before <= BURST + time.monotonic() - began + 1
        assert last.state == "challenge"
        assert (await meet(scripts[-1], last)).state == "waiting"


async def test_an_app_can_do_the_work(valkey_url: str, tmp_path: Path) -> None:
    """It gets the challenge in its document, and joins with what it has found."""
    async with full(valkey_url, tmp_path, challenge="on") as shop:
        app = shop.shopper()
        reply = await app.ask("GET", "/api/goods", accept="application/json")
        assert (reply.status, reply.state) == (429, "challenge")
        told = reply.document
        assert (told["state"], told["position"], told["cfWaitingRoom"]["inWaitingRoom"]) == (
            "waiting",
            None,
            True,
        )
        assert told["poll_after"] == told["challenge"]["delay"] == 10
        assert told["challenge"]["parts"] == 16
        target = told["challenge"]["submit"] + solve(told["challenge"]["proof"], told["challenge"]["bits"])
        assert (await app.ask("POST", target, accept="application/json")).status == 303
        joined = await app.ask("GET", "/api/goods", accept="application/json")
        assert (joined.state, joined.document.get("challenge")) == ("waiting", None)
        assert app.token.use is Use.TICKET


@pytest.mark.parametrize(
    ("method", "accept", "lines"),
    [
        ("GET", "*/*", ()),
        ("GET", "image/webp,*/*", ("Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image")),
        ("POST", "application/json", ()),
        ("POST", "text/html", ()),
    ],
)
async def test_what_is_no_page_sees_no_challenge_and_no_seat(
    valkey_url: str, tmp_path: Path, method: str, accept: str, lines: tuple[str, ...]
) -> None:
    """While newcomers are challenged, their other requests are refused as in a full room, by memory."""
    async with full(valkey_url, tmp_path, challenge="on", queue_all=False) as shop:
        calls(valkey_url)
        stranger = shop.shopper()
        reply = await stranger.ask(method, "/cart", *lines, accept=accept)
        assert (reply.status, stranger.jar) == (429, {})
        assert b"proof" not in reply.body
        assert (calls(valkey_url), shop.origin.heads) == (0, [])


async def test_who_has_a_place_or_seat_is_never_challenged(valkey_url: str, tmp_path: Path) -> None:
    """Holders of tickets and passes notice nothing; neither do payment returns, nor people who only ask."""
    async with full(
        valkey_url, tmp_path, total_active_users=1, queue_all=False, bypass_paths=("/pay",)
    ) as shop:
        inside, waiting = await shop.enter(), await shop.queue()
        await shop.change(challenge="on")
        await shop.tick()
        assert (await inside.visit()).inside
        assert (await waiting.visit()).state == "waiting"
        assert (await waiting.poll()).document["state"] == "waiting"
        stranger = shop.shopper()
        assert (await stranger.visit()).state == "challenge"
        assert (await stranger.visit("/pay/return")).inside
        assert (await stranger.poll()).document["state"] == "ended"
        await inside.leave()
        await shop.tick()
        assert (await waiting.visit()).inside


async def test_a_pass_past_its_end_is_good_for_one_number(valkey_url: str, tmp_path: Path) -> None:
    """A script cannot join again and again with one old pass; its holder joins again as ever."""
    easy: dict[str, Any] = {"total_active_users": 1, "session_duration": 20, "challenge_difficulty": 8}
    async with house(valkey_url, tmp_path, server={"timeout": 0.1}, **easy) as shop:
        holder = await shop.enter()
        await shop.pass_time(40)
        await shop.change(challenge="on", queue_all=True)
        await shop.tick()
        script = shop.shopper()
        script.jar = dict(holder.jar)
        assert (await holder.visit()).state == "waiting"
        assert holder.token.use is Use.TICKET
        assert (await script.visit()).state == "challenge"
        with silent(valkey_url):
            await meet(script, await script.visit("/goods"))
        assert script.token.arrival is not None


async def test_a_flood_from_everywhere_has_everybody_challenged(valkey_url: str, tmp_path: Path) -> None:
    """Numbers that nobody comes back for raise the alarm, the metrics show it, and it ends by itself.

    One network that goes on does not prolong it for the others.
    """
    async with full(valkey_url, tmp_path) as shop:
        for second in range(0, 150, 3):
            for host in range(36):
                script = shop.shopper(f"X-Forwarded-For: 2001:db8:{second:x}:{host:x}00::1")
                last = await script.visit()
            await shop.pass_time(3)
        assert last.state == "challenge"
        assert shop.metric("challenging", room="sale") == 1
        bystander = shop.shopper(QUIET)
        assert (await meet(bystander, await bystander.visit("/goods"))).state == "waiting"
        for _ in range(80):
            await flood(shop, 40, ATTACKED)
            await shop.pass_time(3)
        assert shop.metric("challenging", room="sale") == 0
        assert (await shop.shopper(QUIET).visit()).state == "waiting"


@pytest.mark.parametrize(("lines", "server"), [((), {}), ((ATTACKED,), {}), ((), TRUSTING)])
async def test_behind_an_unknown_proxy_of_this_machine_nobody_is_challenged_for_others(
    valkey_url: str, tmp_path: Path, lines: tuple[str, ...], server: dict[str, Any]
) -> None:
    """Where all come from one address because nobody named the proxy, its joins are not counted."""
    async with house(valkey_url, tmp_path, server=server, queue_all=True) as shop:
        await flood(shop, 2 * BURST, *lines)
        assert (await shop.shopper(*lines).visit()).state == "waiting"


async def test_challenges_can_be_switched_off(valkey_url: str, tmp_path: Path) -> None:
    """With `off` every join goes through, however many a network sends."""
    async with full(valkey_url, tmp_path, challenge="off") as shop:
        await flood(shop, 2 * BURST, ATTACKED)
        assert (await shop.shopper(ATTACKED).visit()).state == "waiting"
        assert shop.metric("challenges_total", room="sale", outcome="issued") == 0


async def test_pressure_asks_for_more_work(valkey_url: str, tmp_path: Path) -> None:
    """A network far over its threshold is set harder challenges, up to four times the work."""
    async with full(valkey_url, tmp_path) as shop:
        bits = []
        for share in (BURST + 40, BURST, 2 * BURST, 10 * BURST):
            await flood(shop, share, ATTACKED)
            bits.append(proof_of(await shop.shopper(ATTACKED).visit())[1])
        assert bits == [4, 5, 6, 6]


async def test_cookieless_floods_take_no_seats(valkey_url: str, tmp_path: Path) -> None:
    """However many come without cookies, they hold a tenth of the seats for half a minute, and no more."""
    async with house(valkey_url, tmp_path, challenge="off") as shop:
        for _ in range(300):
            await shop.shopper().visit()
        await shop.tick()
        assert shop.desk().snapshot.inside == 10
        await shop.pass_time(40)
        assert shop.desk().snapshot.inside == 0


async def test_challenges_need_no_store(valkey_url: str, tmp_path: Path) -> None:
    """While the store is silent, newcomers are challenged as ever, and join once it is back."""
    async with full(valkey_url, tmp_path, challenge="on") as shop:
        visitor = shop.shopper()
        with silent(valkey_url):
            reply = await visitor.visit("/goods")
            assert reply.state == "challenge"
            answer = await submit(visitor, solve(*proof_of(reply)))
        assert (await visitor.visit(answer.header("location"))).state == "waiting"
