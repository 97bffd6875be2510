"""The demonstration: a shop that bears little, a crowd that wants it, and the waiting room between them."""

import asyncio
import contextlib
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from random import Random

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from waitingroom import config
from waitingroom.crowd import Crowd, Tally
from waitingroom.ledger import percentile
from waitingroom.server import Server
from waitingroom.storefront import Storefront

ROOM = "demo"
_STAY = 20  # seconds without a request that end a seat
_JUDGED_STAY = 15.0  # seconds without a request after which the judge, who sees no seats, counts nobody
_RECENT = 10.0  # seconds of which the live line tells how fast pages are
_SLOW = 1.0  # seconds for a page; beyond, people leave shops
_REFRESH, _LINE_EVERY = 0.5, 5.0

_CONFIGURATION = """
[server]
listen = "127.0.0.1:{port}"
private_listen = "127.0.0.1:{private_port}"
[store]
url = "embedded"
data = '{data}'
[log]
level = "warning"
[[rooms]]
name = "{room}"
upstream = "http://{shop}"
total_active_users = {total_active_users}
new_users_per_minute = {new_users_per_minute}
session_duration = "{stay}s"
challenge = "off" # the crowd has no browsers that could meet one
shop_name = "Afterglow"
accent_color = "#5b2a6b"
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the demonstration's room allows."""

    total_active_users: int = 25
    new_users_per_minute: int = 120


@dataclass(frozen=True, slots=True)
class Summary:
    """How it went, seconds in seconds.

    Attributes:
        peak: most people inside at one instant, by the shop's own log.
        limit: most that were allowed; None without a room.
        pages: pages of the shop that the crowd asked for and were not told to wait for; `failed` of them
            were errors or did not come.
        p95: time within which 95 in 100 of them came.
        orders: how many the shop took.
        longest_line: most people waiting at one time.
    """

    peak: int
    limit: int | None
    pages: int
    failed: int
    p95: float
    orders: int
    longest_line: int

    @property
    def kept(self) -> bool:
        """Whether the room kept its promise."""
        return self.limit is None or self.peak <= self.limit


async def run(
    console: Console,
    limits: Limits | None,
    shoppers: int = 100,
    seconds: float | None = None,
    port: int = 8080,
) -> Summary:
    """Run the demonstration until it has lasted `seconds`, or SIGINT or SIGTERM ends it.

    Args:
        console: where to tell of it.
        limits: of the room; None lets the same crowd meet the bare shop.
        shoppers: people before the shop at any time.
        seconds: None goes on until interrupted.
        port: of the shop as shoppers see it; the bare shop and the private listener take the two that
            follow. 0 takes free ports throughout.

    Raises:
        OSError: a port is taken.
        waitingroom.embedded.EmbeddedError: the bundled Valkey did not start.
    """
    async with AsyncExitStack() as scene:
        shop = Storefront(port + 1 if port and limits else port)
        bare = _origin(await shop.start())
        scene.push_async_callback(shop.stop)
        front = bare
        if limits is not None:
            server = await scene.enter_async_context(_room_before(bare, limits, port))
            front = _origin(server.public_address)
            _announce(console, _addresses(server, front, bare))
        else:
            _announce(console, {"The bare shop, no waiting room": f"{bare}/"})
        crowd = Crowd(front, ROOM, shoppers, Random())  # noqa: S311 - characters, not secrets
        with _interruption() as interrupted:
            await _watch(console, shop, crowd, limits, interrupted, seconds)
        summary = _summary(shop, crowd.tally, limits)
        console.print(closing(summary))
    return summary


@asynccontextmanager
async def _room_before(shop: str, limits: Limits, port: int) -> AsyncIterator[Server]:
    """The gateway with its own Valkey, everything it keeps in a folder that goes with it."""
    with tempfile.TemporaryDirectory(prefix="waitingroom-demo-") as data:
        text = _CONFIGURATION.format(
            port=port,
            private_port=port + 2 if port else 0,
            data=data,
            room=ROOM,
            shop=shop.removeprefix("http://"),
            total_active_users=limits.total_active_users,
            new_users_per_minute=limits.new_users_per_minute,
            stay=_STAY,
        )
        server = Server(config.load_text(text, {}, "the demonstration's configuration"))
        await server.start()
        try:
            yield server
        finally:
            await server.stop()


@contextmanager
def _interruption() -> Iterator[asyncio.Event]:
    """An event that Ctrl-C or a polite kill sets, instead of tearing through the middle of things."""
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)
    try:
        yield interrupted
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _watch(
    console: Console,
    shop: Storefront,
    crowd: Crowd,
    limits: Limits | None,
    interrupted: asyncio.Event,
    seconds: float | None,
) -> None:
    """Let the crowd in and tell what happens, in one line that is redrawn, or a line now and then."""
    start = time.monotonic()
    end = start + (seconds if seconds is not None else float("inf"))
    people = asyncio.create_task(crowd.run())
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    told = start
    with live or contextlib.nullcontext():
        while not (interrupted.is_set() or people.done() or time.monotonic() >= end):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(interrupted.wait(), min(_REFRESH, max(0.0, end - time.monotonic())))
            now = time.monotonic()
            line = _line(shop, crowd.tally, limits, now)
            if live:
                live.update(line, refresh=True)
            elif now - told >= _LINE_EVERY:
                told = now
                console.print(line, soft_wrap=True)
    people.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await people


def _line(shop: Storefront, tally: Tally, limits: Limits | None, now: float) -> Text:
    """What happens right now."""
    inside = shop.inside(now, _JUDGED_STAY)
    p95 = shop.log.p95(now - _RECENT)
    of = f" of {limits.total_active_users}" if limits else ""
    return Text("  ·  ").join(
        [
            Text.assemble("inside ", (f"{inside}{of}", "bold")),
            Text.assemble("waiting ", (str(tally.waiting), "bold")),
            Text.assemble("admitted ", (str(tally.admitted), "bold")),
            Text.assemble("orders ", (str(shop.orders), "bold green")),
            Text.assemble("page ", (f"{p95:.2f} s", "bold red" if p95 > _SLOW else "bold green")),
            Text.assemble("failed ", (str(tally.failed), "bold red" if tally.failed else "bold green")),
        ]
    )


def _origin(address: tuple[str, int]) -> str:
    host, port = address
    return f"http://{host}:{port}"


def _addresses(server: Server, front: str, bare: str) -> dict[str, str]:
    return {
        "The shop, through the waiting room": f"{front}/",
        "The shop itself, for comparison": f"{bare}/",
        "Console, metrics, admin API": f"{_origin(server.private_address)}/",
        "Data folder, with the admin token": server.settings.store.data,
    }


def _announce(console: Console, addresses: dict[str, str]) -> None:
    places = Table.grid(padding=(0, 3))
    for name, address in addresses.items():
        places.add_row(name, Text(address, "bold cyan" if "://" in address else "bold"))
    console.print(places)
    console.print("A crowd is on its way. Open the shop and join it; Ctrl-C ends everything.\n")


def _summary(shop: Storefront, tally: Tally, limits: Limits | None) -> Summary:
    return Summary(
        peak=shop.log.peak(_JUDGED_STAY),
        limit=limits.total_active_users if limits else None,
        pages=len(tally.times),
        failed=tally.failed,
        p95=percentile(tally.times, 0.95),
        orders=shop.orders,
        longest_line=tally.longest_line,
    )


def closing(summary: Summary) -> Group:
    """The comparison that the demonstration is for."""
    limit = "no limit" if summary.limit is None else f"the limit is {summary.limit}"
    share = summary.failed / summary.pages if summary.pages else 0.0
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
    table.add_row("Most people inside at once", Text(f"{summary.peak}", "bold"), limit)
    table.add_row("Pages that failed", Text(f"{summary.failed}", "bold"), f"{share:.1%} of {summary.pages}")
    table.add_row("95 in 100 pages came within", Text(f"{summary.p95:.2f} s", "bold"))
    table.add_row("Orders", Text(f"{summary.orders}", "bold"))
    table.add_row("Longest line", Text(f"{summary.longest_line}", "bold"))
    if summary.limit is None:
        moral = Text("Without --without-room, the same crowd meets a shop that stays up.")
    elif summary.kept:
        moral = Text("The same crowd with --without-room shows what the room is for.")
    else:
        moral = Text("More people were inside than allowed: a defect of the waiting room.", "bold red")
    title = Text("How it went, by the shop's own log and the crowd's own clock", "bold")
    return Group("", title, table, "", moral)
