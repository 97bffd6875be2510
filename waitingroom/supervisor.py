"""One gateway of several processes: workers on one public port, each kept alive, told and seen off.

The supervisor holds the public sockets for as long as it lives, so that a connection that waits for a worker
that has died is served by its replacement. It serves no shopper itself.
"""

import asyncio
import contextlib
import secrets
import shutil
import socket
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import structlog

from waitingroom.access import Access
from waitingroom.child import LONGEST_PAUSE, LOOP, Child, Death, is_looping, pause_after
from waitingroom.config import ConfigError, Settings
from waitingroom.crew import Crew, application
from waitingroom.embedded import EmbeddedValkey
from waitingroom.keys import Certificate, Keys, reread, unusable
from waitingroom.logs import AS_JSON, adjust_logging, configure_logging
from waitingroom.orders import Orders, Source, waiting_for_restart
from waitingroom.private import open_private
from waitingroom.requestlog import RequestLog
from waitingroom.signals import allow_files, until_signalled, whenever
from waitingroom.sockets import bind_shared, parse_address, shown, unix_folder
from waitingroom.telemetry import Telemetry

LAST_WORDS = 5.0
"""Seconds beyond the drain time-out in which a worker hands in what it knows, and ends."""

_ELSEWHERE = "End what uses the address, or choose another one of this machine."

_log = structlog.get_logger()


@dataclass(slots=True)
class Slot:
    """A share of the public address, and who serves there.

    Attributes:
        child: the worker; None while there is none.
        deaths: the last ones of workers here.
        tried: set once a worker has got ready or has failed.
        exchanged: set when another worker has taken the place of a living one.
    """

    index: int
    sockets: list[socket.socket]
    child: Child | None = None
    deaths: list[Death] = field(default_factory=list)
    tried: asyncio.Event = field(default_factory=asyncio.Event)
    exchanged: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def looping(self) -> bool:
        """Whether workers die here again and again."""
        return is_looping(self.deaths, self.child.served if self.child else 0.0)


class Supervisor:
    """A gateway of several workers.

    Args:
        source: where the configuration is read anew.
        text: of the configuration.
        settings: that it gives.
        log: of requests; none are written here, but its level is changed with the configuration.
        as_json: the form of the workers' log; None: as the settings say.

    Attributes:
        failed: done, with an error, when the gateway cannot be.
    """

    def __init__(
        self, source: Source, text: str, settings: Settings, log: RequestLog, *, as_json: bool | None
    ) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._source = source
        self._started_with = self._settings = settings
        self._log = log
        self._orders = Orders(
            path=str(source.path),
            text=text,
            workers=settings.server.workers,
            store_url=settings.store.url,
            keys=(),
            visitor_key=secrets.token_hex(32),
            as_json=as_json,
        )
        self._slots: list[Slot] = []
        self._telemetry = Telemetry((), log)
        self._crew = Crew(settings.server.workers, self._telemetry, self._looping)
        self._keeping: list[asyncio.Task[None]] = []
        self._attending: set[asyncio.Task[None]] = set()
        self._has_served = False
        self._generation = count()
        self._stack = contextlib.AsyncExitStack()

    def _looping(self) -> list[int]:
        return [slot.index for slot in self._slots if slot.looping]

    async def start(self) -> None:
        """Begin to keep workers; what had come up is taken down again if something fails.

        Raises:
            ConfigError: a key, a certificate or an address cannot be used.
            EmbeddedError: the embedded store does not start.
        """
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def stop(self) -> None:
        """Have every worker finish what is under way, and end."""
        self._crew.draining = True
        await self._stack.aclose()

    async def _start(self) -> None:
        settings = self._settings
        # What is pushed first is undone last: probes and metrics answer until the end.
        answering = await self._stack.enter_async_context(contextlib.AsyncExitStack())
        keys = Keys.read(settings)
        self._access = Access.of(settings, keys.tokens)
        self._private_tls = Certificate(keys.private_tls)
        self._folder = unix_folder()
        self._stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
        store_url = await self._store()
        self._orders = replace(self._orders, store_url=store_url, keys=keys.signing)
        listen, workers = settings.server.listen, settings.server.workers
        try:
            shares = bind_shared(listen, workers)
        except OSError as error:
            raise unusable("[server] listen", listen, error, _ELSEWHERE) from None
        self._slots = [Slot(index, share) for index, share in enumerate(shares)]
        self._stack.push_async_callback(self._see_off)
        private = await self._listen_privately(answering)
        self._keeping = [asyncio.create_task(self._keep(slot)) for slot in self._slots]
        self._keeping.append(asyncio.create_task(self._announce(private)))

    async def _store(self) -> str:
        settings = self._settings.store
        if settings.url != "embedded":
            return settings.url
        embedded = EmbeddedValkey(Path(settings.data))
        url = await embedded.start()
        self._stack.push_async_callback(embedded.stop)
        return url

    async def _listen_privately(self, answering: contextlib.AsyncExitStack) -> str:
        listen = self._settings.server.private_listen
        app, context = application(self._crew, self._access), self._private_tls.context
        opened = open_private(app, *parse_address(listen), context, self._telemetry)
        try:
            return shown(await answering.enter_async_context(opened))
        except OSError as error:
            raise unusable("[server] private_listen", listen, error, _ELSEWHERE) from None

    async def _announce(self, private: str) -> None:
        """Say that the gateway is there, once each worker has got ready or failed."""
        for slot in self._slots:
            await slot.tried.wait()
        public = shown(self._slots[0].sockets[0].getsockname()[:2])
        ready = len(self._crew.ready)
        _log.info("gateway_started", public=public, private=private, workers=len(self._slots), ready=ready)

    async def _keep(self, slot: Slot) -> None:
        """Have a worker in this place for as long as the gateway runs."""
        while True:
            child = slot.child
            if child is None:
                child = slot.child = await self._spawn(slot)
                if await child.settled():
                    self._has_served = True
                    _log.info("worker_ready", worker=slot.index, pid=child.pid)
                slot.tried.set()
            await _first(child.ended(), slot.exchanged.wait())
            slot.exchanged.clear()
            if slot.child is child:
                assert child.ended_at is not None
                slot.child = None
                slot.deaths = [*slot.deaths[1 - LOOP :], Death(child.ended_at, child.served)]
                self._tell_of(slot, child)
                await asyncio.sleep(pause_after(slot.deaths))

    async def _spawn(self, slot: Slot) -> Child:
        private = self._folder / f"{slot.index}-{next(self._generation)}.sock"
        while True:
            try:
                child = await Child.spawn(slot.index, slot.sockets, private, self._orders)
                break
            except OSError as error:
                _log.error("worker_not_started", worker=slot.index, error=error.strerror)
                await asyncio.sleep(LONGEST_PAUSE)
        self._crew.join(child)
        task = asyncio.create_task(self._attend(child))
        self._attending.add(task)
        task.add_done_callback(self._attending.discard)
        return child

    async def _attend(self, child: Child) -> None:
        try:
            await child.attend()
        finally:
            self._crew.part(child)

    def _tell_of(self, slot: Slot, child: Child) -> None:
        """Say that a worker has ended that was to go on, and what that means."""
        failure = child.failure
        if failure is not None and not self._has_served:
            if not self.failed.done():
                self.failed.set_exception(failure)
            return
        self._telemetry.replaced(child.reason)
        _log.warning(
            "worker_ended",
            worker=slot.index,
            pid=child.pid,
            reason=child.reason,
            code=child.code,
            served_s=round(child.served, 1),
            again_in_s=pause_after(slot.deaths),
        )
        if failure is not None:
            _log.error("worker_refused", worker=slot.index, what=str(failure))
        if slot.looping:
            self._tell_of_loop(slot)

    def _tell_of_loop(self, slot: Slot) -> None:
        others = any(child.index != slot.index for child in self._crew.ready)
        if others:
            # Newcomers are spread among the others until a worker listens here again.
            for sock in slot.sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        _log.error(
            "worker_crash_looping",
            worker=slot.index,
            deaths=len(slot.deaths),
            within_s=round(slot.deaths[-1].at - slot.deaths[0].at, 1),
            look="at the lines before this one with the same worker, and at standard error",
            remedy="It is started again every few seconds. Mend what they say; undo the last change of "
            "configuration or version.",
            shoppers="go to the other workers" if others else "wait",
        )

    async def renew(self) -> None:
        """Replace the workers by fresh ones, one after another; nobody's connection is lost by it."""
        _log.info("restart_begins", workers=len(self._slots))
        for slot in self._slots:
            old = slot.child
            if old is None or not old.ready:
                continue  # a fresh one is about to come anyway
            fresh = await self._spawn(slot)
            if not await fresh.settled():
                what = str(fresh.failure or "it ended before it was ready; see the lines before this one")
                _log.error("restart_stopped", worker=slot.index, code=fresh.code, what=what)
                return
            if slot.child is not old:
                fresh.leave(alone=False)  # the old one has died meanwhile, and was replaced already
                continue
            slot.child = fresh
            slot.exchanged.set()
            old.leave(alone=False)
            self._telemetry.replaced("asked")
            _log.info("worker_renewed", worker=slot.index, pid=fresh.pid, instead_of=old.pid)
        _log.info("restart_done", workers=len(self._slots))

    async def reload(self) -> None:
        """Read the configuration anew, for all workers; what cannot stand changes nothing."""
        try:
            text = self._source.text()
            wanted = self._source.settings(text)
            settings, keys = reread(self._settings, wanted)
        except ConfigError as error:
            self._telemetry.reloaded("refused")
            _log.error("config_refused", where=error.where, what=error.what, remedy=error.remedy)
            return
        self._settings = settings
        self._access.adapt(settings, keys.tokens)
        self._private_tls.replace(keys.private_tls)
        self._orders = replace(self._orders, text=text, keys=keys.signing)
        children = [child for child in self._crew.living if not child.leaving]
        taken = await asyncio.gather(*(child.reload(self._orders) for child in children))
        behind = [child.index for child, done in zip(children, taken, strict=True) if not done]
        if behind:
            _log.error(
                "config_refused", workers=behind, remedy="Their lines before this one say why; try again."
            )
        else:
            _log.info("config_reloaded", workers=len(children))
        self._telemetry.reloaded("refused" if behind else "done")
        self._crew.keep_rooms(room.name for room in settings.rooms)
        adjust_logging(self._log, settings.log.level, settings.log.poll_sample)
        if waiting := waiting_for_restart(self._started_with, wanted):
            _log.warning("restart_needed", settings=waiting)

    async def _see_off(self) -> None:
        """Have everybody finish and go; who does not is ended."""
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        for slot in self._slots:
            for sock in slot.sockets:
                sock.close()
        for child in self._crew.living:
            child.leave(alone=True)
        _log.info("draining", workers=len(self._crew.living))
        try:
            await self._all_gone(self._settings.server.drain_timeout + LAST_WORDS)
        except asyncio.CancelledError:
            for child in self._crew.living:
                child.hurry()
            await self._all_gone(1.0)
            raise
        finally:
            for child in self._crew.living:
                child.kill()
            await self._all_gone(None)

    async def _all_gone(self, seconds: float | None) -> None:
        if self._attending:
            await asyncio.wait(self._attending, timeout=seconds)


async def _first(*awaited: Coroutine[Any, Any, Any] | asyncio.Future[None]) -> None:
    """Wait until one of them is done; the others are not waited for any more."""
    tasks = [asyncio.ensure_future(each) for each in awaited]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task, given in zip(tasks, awaited, strict=True):
            if task is not given:
                task.cancel()


async def run(source: Source, output: TextIO, *, as_json: bool | None) -> bool:
    """Serve with several workers until SIGTERM or SIGINT, then finish what is under way.

    A further signal ends that, too; SIGHUP has the configuration read anew, SIGUSR2 the workers replaced one
    after another.

    Args:
        source: of the configuration.
        output: where the log goes.
        as_json: the form of the log; None: as the settings say.

    Returns:
        Whether it had to be forced.

    Raises:
        ConfigError: the configuration cannot stand, or something that it names cannot be used.
        EmbeddedError: the embedded store does not start.
    """
    text = source.text()
    settings = source.settings(text)
    allow_files()
    writer, log = configure_logging(
        output,
        as_json=AS_JSON[settings.log.format] if as_json is None else as_json,
        level=settings.log.level,
        poll_sample=settings.log.poll_sample,
        shared=True,
    )
    supervisor = Supervisor(source, text, settings, log, as_json=as_json)
    renew = asyncio.Event()

    async def serve(stopping: asyncio.Event, hung_up: asyncio.Event) -> None:
        await supervisor.start()
        tasks = [
            asyncio.create_task(whenever(hung_up, supervisor.reload)),
            asyncio.create_task(whenever(renew, supervisor.renew)),
        ]
        await _first(stopping.wait(), supervisor.failed)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await supervisor.stop()
        if supervisor.failed.done():
            supervisor.failed.result()

    try:
        return await until_signalled(serve, renew.set)
    finally:
        writer.close()
