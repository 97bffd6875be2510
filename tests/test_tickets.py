"""Tickets and passes: what is signed comes back as it was, and nothing else proves anything."""

import base64
import json
import time
from dataclasses import replace
from typing import Any

import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from waitingroom.tickets import (
    InvalidTokenError,
    Keyring,
    KeyTooShortError,
    Token,
    Use,
    cookie_name,
    cookie_names,
    key_id,
)

OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 32
TOKEN = Token(
    use=Use.TICKET,
    room="sale",
    visitor="v1",
    number=1_800_046_379_008,
    epoch=3,
    end=1_800_046_979_000,
    issued=1_800_046_379,
    expires=1_800_046_979,
)
CLAIMS: dict[str, Any] = jwt.decode(Keyring([NEW]).sign(TOKEN), options={"verify_signature": False})


def signed(claims: dict[str, Any], key: bytes = NEW, **header: Any) -> str:
    """A token with arbitrary claims, signed by us."""
    return jwt.encode(claims, key, algorithm="HS256", headers={"kid": key_id(key), **header})


def reason(text: str | bytes, room: str = "sale") -> str:
    """Why a token is refused."""
    with pytest.raises(InvalidTokenError) as refused:
        Keyring([NEW]).verify(text, room)
    return refused.value.reason


@pytest.mark.parametrize("token", [TOKEN, replace(TOKEN, use=Use.PASS, lane="vip")])
def test_signed_token_comes_back_as_it_was(token: Token) -> None:
    """A ticket or a pass survives the way through a cookie, as text and as bytes, ended or not."""
    ring = Keyring([NEW])
    assert ring.verify(ring.sign(token), "sale") == token
    assert ring.verify(ring.sign(token).encode(), "sale") == token


def test_an_edge_verifies_with_a_library_of_its_own() -> None:
    """What we sign is a JWT to others: signature, issuer, audience and times check out in PyJWT."""
    now = int(time.time())
    text = Keyring([NEW]).sign(replace(TOKEN, issued=now, expires=now + 60))
    claims = jwt.decode(text, NEW, algorithms=["HS256"], audience="sale", issuer="waitingroom")
    assert (claims["sub"], claims["n"], claims["use"]) == ("v1", ["main", TOKEN.number], "ticket")


def test_rotating_keys_loses_nobody() -> None:
    """The first key signs and all verify; a token of a key that was taken away proves nothing."""
    before, both, after = Keyring([OLD]), Keyring([NEW, OLD]), Keyring({key_id(NEW): NEW})
    assert both.verify(before.sign(TOKEN), "sale") == TOKEN
    assert after.verify(both.sign(TOKEN), "sale") == TOKEN
    with pytest.raises(InvalidTokenError, match="key"):
        after.verify(before.sign(TOKEN), "sale")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (signed(CLAIMS | {"aud": "other"}), "room"),
        (signed(CLAIMS | {"iss": "somebody"}), "room"),
        (jwt.encode(CLAIMS, None, algorithm="none", headers={"kid": key_id(NEW)}), "signature"),
        (jwt.encode(CLAIMS, NEW * 2, algorithm="HS512", headers={"kid": key_id(NEW)}), "signature"),
        (jwt.encode(CLAIMS, OTHER, algorithm="HS256", headers={"kid": key_id(NEW)}), "signature"),
        (jwt.encode(CLAIMS, NEW, algorithm="HS256"), "key"),
        (signed(CLAIMS, OTHER), "key"),
        (signed(CLAIMS, typ="at+jwt"), "malformed"),
        (signed(CLAIMS, crit=["b64"], b64=True), "malformed"),
        (signed(CLAIMS)[:-4] + "AAAA", "signature"),
        (signed(CLAIMS | {"sub": "v" * 1024}), "long"),
        (signed(CLAIMS | {"end": float("inf")}), "malformed"),
        (signed(CLAIMS | {"n": 7}), "malformed"),
        (signed(CLAIMS | {"n": ["main", None]}), "malformed"),
        (signed(CLAIMS | {"use": "other"}), "malformed"),
        (signed(CLAIMS | {"sub": 7}), "malformed"),
        ("ключ.ключ.ключ", "malformed"),
        ("\udcff", "malformed"),
        (b"\xff\xfe", "malformed"),
        ("", "malformed"),
        ("a.b", "malformed"),
    ],
)
def test_forged_or_foreign_token_proves_nothing(text: str | bytes, why: str) -> None:
    """Wrong room, other key, other algorithm or none, tampered, huge or not a token: one word says which."""
    assert reason(text) == why


@pytest.mark.parametrize("claim", sorted(CLAIMS))
def test_token_without_a_claim_proves_nothing(claim: str) -> None:
    """Every claim is required, though we signed the token ourselves."""
    assert reason(signed({name: value for name, value in CLAIMS.items() if name != claim})) == "malformed"


def test_payload_of_one_token_does_not_fit_the_signature_of_another() -> None:
    """A number cannot be changed in a signed ticket."""
    head, _, signature = Keyring([NEW]).sign(TOKEN).split(".")
    forged = base64.urlsafe_b64encode(json.dumps(CLAIMS | {"n": ["main", 1]}).encode()).rstrip(b"=").decode()
    assert reason(f"{head}.{forged}.{signature}") == "signature"


@given(st.one_of(st.text(max_size=1100), st.binary(max_size=1100)))
@example(base64.urlsafe_b64encode(b"[" * 700).decode() + ".e30.AAAA")
def test_any_text_at_all_is_refused_politely(text: str | bytes) -> None:
    """Whatever a cookie holds, verifying it ends in a token or in the one error that callers expect."""
    with pytest.raises(InvalidTokenError):
        Keyring([NEW]).verify(text, "sale")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)


@given(
    claims=st.dictionaries(st.sampled_from(sorted(CLAIMS)), scalars | st.lists(scalars, max_size=3)),
    header=st.dictionaries(st.sampled_from(["typ", "cty", "b64", "crit"]), scalars),
)
def test_any_claims_under_our_own_key_are_read_or_refused(
    claims: dict[str, Any], header: dict[str, Any]
) -> None:
    """Even a signed token with nonsense in it raises nothing but the one error."""
    try:
        text = signed(CLAIMS | claims, **header)
    except (jwt.PyJWTError, TypeError):  # what cannot be written cannot come back
        return
    try:
        outcome: object = Keyring([NEW]).verify(text, "sale").number
    except InvalidTokenError as error:
        outcome = error.reason
    assert isinstance(outcome, int) or outcome in {"malformed", "room", "long", "signature", "key"}


def test_short_or_missing_key_is_named_but_not_shown() -> None:
    """Fewer than 32 bytes is an error at start that says how many there are, and never the key."""
    with pytest.raises(KeyTooShortError, match="has 31 bytes; it needs at least 32") as short:
        Keyring([NEW, b"s3cr3t!" + b"k" * 24])
    assert "s3cr3t" not in str(short.value)
    with pytest.raises(KeyTooShortError, match="no signing key"):
        Keyring([])


def test_nothing_secret_is_shown() -> None:
    """Neither a keyring's nor a token's repr holds a key or a visitor."""
    shown = repr(Keyring([NEW])) + repr(replace(TOKEN, visitor="somebody"))
    assert NEW.decode() not in shown
    assert "somebody" not in shown
    assert repr(TOKEN) == "<ticket main:1800046379008 of sale, epoch 3, ends 1800046979000>"
    assert TOKEN.seat == "main:1800046379008:v1"


def test_cookie_is_named_by_how_the_visitor_came() -> None:
    """Prefixes that browsers enforce over TLS, none over plain HTTP; every name may come back."""
    names = [cookie_name("sale", "http"), cookie_name("sale", "https", "d"), cookie_name("sale", "https")]
    assert names == ["wr-sale", "__Secure-wr-sale", "__Host-wr-sale"]
    assert [name.decode() for name in cookie_names("sale")] == names[::-1]


def test_derived_keys_are_their_own() -> None:
    """Each purpose has keys of its own, one of each of ours in order, and none of them signs a ticket."""
    ring = Keyring([NEW, OLD])
    first, second = ring.derived(b"challenge")
    assert len({first, second, *ring.derived(b"other"), NEW, OLD}) == 6
    assert Keyring([OLD]).derived(b"challenge") == (second,)
    with pytest.raises(InvalidTokenError):
        ring.verify(Keyring([first]).sign(TOKEN), "sale")
