"""What a cookie proves, and for how long: passes, tickets, and things that look like them."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.house import KEY, ROOM, House, Shopper, house
from waitingroom.tickets import Keyring, Token, Use, key_id

HOUR = 3_600_000


def forged(shop: House, *, room: str = "sale", key: str = KEY, **changes: Any) -> str:
    """A pass as one of our gateways would sign it, but for the changes."""
    now = shop.desk().snapshot.clock
    claims: dict[str, Any] = {
        "use": Use.PASS,
        "visitor": "v",
        "number": 7,
        "epoch": 1,
        "end": now + HOUR,
    } | changes
    token = Token(room=room, issued=now // 1000, expires=now // 1000 + 3600, **claims)
    return Keyring([key.encode()]).sign(token)


def unsigned(shop: House) -> str:
    """A pass with `alg: none`."""
    claims = jwt.decode(forged(shop), options={"verify_signature": False})
    header = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": key_id(KEY.encode())}).encode())
    body = base64.urlsafe_b64encode(json.dumps(claims).encode())
    return b".".join((header.rstrip(b"="), body.rstrip(b"="), b"")).decode()


def tampered(shop: House) -> str:
    """A pass with another end than the one that was signed."""
    head, body, signature = forged(shop).split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    claims["end"] += HOUR
    changed = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"{head}.{changed}.{signature}"


COOKIES: dict[str, tuple[Callable[[House], str], str]] = {
    "forged": (lambda shop: forged(shop, key="another key, long enough to sign with it"), "key"),
    "tampered": (tampered, "signature"),
    "unsigned": (unsigned, "signature"),
    "of another room": (lambda shop: forged(shop, room="other"), "room"),
    "of an epoch before": (lambda shop: forged(shop, epoch=0), "epoch"),
    "an expired ticket": (lambda shop: forged(shop, use=Use.TICKET, end=1), "expired"),
    "huge": (lambda _: "x" * 20_000, "long"),
    "empty": (lambda _: "", "malformed"),
    "no token": (lambda _: "a.b.c", "malformed"),
    "not ASCII": (lambda _: "\xe9\xff.\x80.\xfe", "malformed"),
    "odd header": (
        lambda _: base64.urlsafe_b64encode(b'{"alg":"HS256","kid":["a"]}').decode() + ".e30.x",
        "malformed",
    ),
}


@pytest.mark.parametrize("kind", COOKIES)
async def test_a_cookie_that_proves_nothing_is_none(valkey_url: str, tmp_path: Path, kind: str) -> None:
    """Its bearer is a newcomer like any other, it is counted by its reason, and it breaks nothing."""
    make, reason = COOKIES[kind]
    async with house(valkey_url, tmp_path, total_active_users=1) as shop:
        await shop.enter()
        shopper = shop.shopper()
        shopper.jar["wr-sale"] = make(shop)
        assert (await shopper.poll()).document["state"] == "ended"
        assert (await shopper.ask("GET", "/pixel.png", accept="image/*")).status == 429
        assert (await shopper.leave()).status == 200
        shopper.jar["wr-sale"] = make(shop)
        assert (await shopper.visit()).state == "waiting"
        assert shopper.token.use is Use.TICKET
        assert shop.metric("tickets_rejected_total", reason=reason) == 4


async def test_of_several_cookies_the_first_that_proves_something_counts(
    valkey_url: str, tmp_path: Path
) -> None:
    """Rubbish beside a pass takes nothing away from it."""
    async with house(valkey_url, tmp_path, total_active_users=1) as shop:
        inside = await shop.enter()
        good = inside.jar.pop("wr-sale")
        doubled = f"Cookie: wr-sale=rubbish; __Host-wr-sale={forged(shop, epoch=0)}; wr-sale={good}"
        assert (await inside.visit("/", doubled)).inside


async def test_the_origin_gets_every_cookie_but_ours(valkey_url: str, tmp_path: Path) -> None:
    """The shop's cookies arrive as they were sent, the gateway's and its internal headers do not."""
    async with house(valkey_url, tmp_path) as shop:
        shopper = await shop.enter()
        ours = shopper.jar["wr-sale"]
        shopper.jar.clear()
        await shopper.visit(
            "/",
            f'Cookie: a=1;  b="x y"; wr-sale={ours}; __Host-wr-sale={ours};c=wr-sale',
            "Waiting-Room: inside",
        )
        head = shop.origin.heads[-1]
        assert b'\r\nCookie: a=1;  b="x y";c=wr-sale\r\n' in head
        assert ours.encode() not in head
        assert b"Waiting-Room" not in head


async def test_no_token_is_logged_or_put_into_an_address(
    valkey_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """From a first visit to an ended seat nothing that could be stolen is written anywhere."""
    async with house(valkey_url, tmp_path, total_active_users=1) as shop:
        inside, waiting = await shop.enter(), await shop.queue()
        page = await waiting.visit()
        here = await waiting.visit("/.waitingroom/here?room=sale", "Referer: http://shop.example/")
        await inside.visit("/thanks")
        await shop.tick()
        secrets = [shopper.encode() for shopper in waiting.jar.values()]
    written = "".join(capfd.readouterr())
    assert "eyJ" not in written
    assert not any(secret in page.body or secret in here.head.raw for secret in secrets)


async def test_a_pass_is_renewed_while_its_shopper_is_active(valkey_url: str, tmp_path: Path) -> None:
    """Once a quarter of the session has passed, the next answer carries a pass up to the lease's new end."""
    async with house(valkey_url, tmp_path) as shop:
        shopper = await shop.enter()
        await shopper.visit()
        first = shopper.token.end
        assert (await shopper.visit()).cookies == []
        await shop.pass_time(90)
        await shopper.visit()
        await shop.tick()
        reply = await shopper.visit()
        assert len(reply.cookies) == 1
        assert 80_000 < shopper.token.end - first <= 95_000
        await shop.pass_time(900, inside=[shopper])


async def test_requests_at_one_time_are_given_one_renewed_pass(valkey_url: str, tmp_path: Path) -> None:
    """A page and its pictures, all sent with the old pass, do not bring a new one each."""
    async with house(valkey_url, tmp_path) as shop:
        shopper = await shop.enter()
        await shopper.visit()
        await shop.pass_time(90)
        await shopper.visit()
        await shop.tick()
        old = dict(shopper.jar)
        given = set()
        for _ in range(5):
            shopper.jar = dict(old)
            given |= set((await shopper.visit()).cookies)
        assert len(given) == 1


async def test_no_pass_stays_in_a_cache_that_serves_everybody(valkey_url: str, tmp_path: Path) -> None:
    """A public answer never carries a renewed pass; one that must carry a first pass is made private."""
    async with house(valkey_url, tmp_path) as shop:
        newcomer = shop.shopper()
        first = await newcomer.visit("/public")
        assert first.inside
        assert first.head.get_all(b"cache-control") == [b"public, max-age=60", b"private"]
        await newcomer.visit()
        await shop.tick()
        public = await newcomer.visit("/public")
        assert (public.inside, public.cookies) == (True, [])
        assert public.head.get_all(b"cache-control") == [b"public, max-age=60"]
        assert len((await newcomer.visit()).cookies) == 1


async def test_a_pass_past_its_end_asks_the_store_whether_the_seat_lives(
    valkey_url: str, tmp_path: Path
) -> None:
    """A lease that other requests have prolonged is renewed; a dead one means the rules of a newcomer."""
    async with house(valkey_url, tmp_path, gateways=2, total_active_users=1) as shop:
        shopper = await shop.enter()
        await shopper.visit()
        old = Shopper(shopper.port)
        old.jar = dict(shopper.jar)
        await shop.pass_time(330, inside=[shopper])
        assert old.token.end < shop.clock.now
        assert (await old.visit()).inside
        assert old.token.seat == shopper.token.seat
        assert old.token.end > shop.clock.now
        await shop.pass_time(330)
        other = await shop.enter()
        assert (await old.visit()).state == "waiting"
        assert (await other.visit()).inside


async def test_a_session_without_renewal_ends_on_time(valkey_url: str, tmp_path: Path) -> None:
    """However busy its shopper is, the seat ends one session after it was taken, and not before."""
    limits: dict[str, Any] = {
        "total_active_users": 1,
        "session_duration": 60.0,
        "disable_session_renewal": True,
    }
    async with house(valkey_url, tmp_path, replace(ROOM, **limits)) as shop:
        shopper = await shop.enter()
        waiting = await shop.queue()
        for _ in range(6):
            assert (await shopper.visit()).inside
            await waiting.poll()
            await shop.pass_time(9)
        await shop.pass_time(12, waiting=[waiting])
        assert (await shopper.visit()).state == "waiting"
        assert (await waiting.visit()).inside


async def test_a_first_visit_without_a_cookie_coming_back_holds_no_seat(
    valkey_url: str, tmp_path: Path
) -> None:
    """Without cookies a seat is held for moments only; whoever comes back late finds their number waiting."""
    async with house(valkey_url, tmp_path, total_active_users=1) as shop:
        vanished = shop.shopper()
        assert (await vanished.visit()).inside
        waiting = await shop.queue()
        await shop.pass_time(36, waiting=[waiting])
        await waiting.poll()
        await shop.tick()
        assert (await waiting.visit()).inside
        back = await vanished.visit()
        assert (back.state, vanished.token.use) == ("waiting", Use.TICKET)
        assert (await vanished.poll()).document["position"] == 1


@pytest.mark.parametrize("path", ["/thanks", "/merci"])
async def test_the_origin_ends_a_seat(valkey_url: str, tmp_path: Path, path: str) -> None:
    """Its command stays here; the cookie goes, the pass is refused at once here, elsewhere after a tick."""
    async with house(valkey_url, tmp_path, gateways=2, total_active_users=1) as shop:
        shopper = await shop.enter()
        old, elsewhere = shop.shopper(), shop.shopper(gateway=1)
        old.jar, elsewhere.jar = dict(shopper.jar), dict(shopper.jar)
        reply = await shopper.visit(path)
        assert reply.inside
        assert b"waiting-room" not in reply.head.raw.lower()
        assert shopper.jar == {}
        assert (await old.visit()).state == "waiting"
        # The other gateway has touched the seat meanwhile; that cannot bring it back.
        assert (await elsewhere.visit()).inside
        await shop.tick()
        await shop.tick()
        assert shop.desk().snapshot.inside == 0
        assert (await elsewhere.poll()).document["state"] == "ended"


async def test_a_seat_may_be_ended_on_a_path_that_goes_round_the_queue(
    valkey_url: str, tmp_path: Path
) -> None:
    """A payment's return is where shops give seats back."""
    async with house(valkey_url, tmp_path, bypass_paths=("/thanks",)) as shop:
        shopper = await shop.enter()
        assert (await shopper.visit("/thanks")).inside
        await shop.tick()
        assert (shopper.jar, shop.desk().snapshot.inside) == ({}, 0)
