"""Open arrivals on Locust: each shopper begins when the curve says so, whatever became of those before.

In each process one Locust user lets shoppers in, as greenlets of their own. A master tells each worker when
the run begins and which share it takes; it hears how it goes, and at the end it has everything.
"""

import gc
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import gevent
from gevent.event import AsyncResult, Event
from gevent.pool import Group
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtest import journeys
from loadtest.browser import Site
from loadtest.record import Record
from loadtest.results import (
    Interval,
    Results,
    interval_from_json,
    interval_to_json,
    merge,
    merge_intervals,
    save,
)
from loadtest.scenario import Scenario
from loadtest.shopper import Shopper

_HEAD_START = 0.5  # seconds from the order to begin until the first arrival may be due
BEGIN, SECOND, PART, HALT = "crowd-begin", "crowd-second", "crowd-part", "crowd-halt"


class Crowd:
    """One worker's share of a run.

    Args:
        scenario: what comes.
        site: the target.
        tell: hears each second when it is over.
    """

    def __init__(self, scenario: Scenario, site: Site, tell: Callable[[Interval], None]) -> None:
        self.record = Record()
        self._scenario = scenario
        self._site = site
        self._tell = tell
        self._journey = journeys.find(scenario)
        self._people = Group()
        self._running: gevent.Greenlet | None = None

    def run(self, begins: float, worker: int = 0, workers: int = 1) -> Results:
        """Let the share of one worker of several come, and wait until they have left.

        Args:
            begins: Unix seconds.
            worker: which share, from 0.
            workers: of how many.

        Returns:
            What came of it; if this greenlet is killed, what had come of it by then, as `stopped`.
        """
        zero = time.monotonic() + begins - time.time()
        stopped = ""
        self._running = gevent.getcurrent()
        watch = gevent.spawn(self._watch, zero)
        gc.freeze()  # what was imported stays; without this, each full collection would look through it
        try:
            with gevent.Timeout(max(0.0, zero + self._scenario.longest - time.monotonic()), False):
                self._let_in(zero, worker, workers)
                self._people.join()
        except gevent.GreenletExit:
            stopped = "stopped from outside"
        self._running = None
        self._people.kill()
        watch.kill()
        seconds = time.monotonic() - zero
        return self.record.results(self._scenario.to_dict(), begins, seconds, stopped)

    def halt(self) -> None:
        """End it now; `run` returns what there is."""
        if self._running is not None:
            self._running.kill(block=False)

    def _let_in(self, zero: float, worker: int, workers: int) -> None:
        room = -(-self._scenario.safety.at_once // workers)
        for index, due in self._scenario.due(worker, workers):
            early = zero + due - time.monotonic()
            gevent.sleep(max(0.0, early))
            self.record.offered(due)
            if len(self._people) >= room:
                self.record.dropped(due)
                continue
            person = Shopper(index, due, self._scenario, self._site, self.record, zero)
            self._people.start(gevent.Greenlet(person.live, self._journey))

    def _watch(self, zero: float) -> None:
        """Close each second when it is over, with the share of a core that this process used in it."""
        used, before = time.process_time(), time.monotonic()
        for second in count():
            gevent.sleep(max(0.0, zero + second + 1 - time.monotonic()))
            cpu, now = time.process_time(), time.monotonic()
            self._tell(self.record.close(second, 100 * (cpu - used) / max(1e-9, now - before)))
            used, before = cpu, now


class Conductor:
    """What one Locust process does in a run: all of it, a worker's share, or the master's part.

    Args:
        environment: Locust's.
        scenario: what is to come.
        file: where the results go, if anywhere.
        live: whether each second is told on standard output, as a line of JSON.
    """

    def __init__(
        self, environment: Environment, scenario: Scenario, file: Path | None, *, live: bool = False
    ) -> None:
        self.results: Results | None = None
        self._environment = environment
        self._scenario = scenario
        self._file = file
        self._live = live
        self._workers = 1
        self._running = False
        self._crowd: Crowd | None = None
        self._order: AsyncResult[dict[str, Any]] = AsyncResult()
        self._over = Event()
        self._parts: list[Results] = []
        self._seconds: dict[int, list[Interval]] = {}
        runner = environment.runner
        assert runner is not None
        if isinstance(runner, MasterRunner):
            runner.register_message(SECOND, self._hear)
            runner.register_message(PART, self._take)
            environment.events.test_start.add_listener(self._command)
        elif isinstance(runner, WorkerRunner):
            runner.register_message(BEGIN, lambda msg, **_: self._order.set(msg.data))
            runner.register_message(HALT, lambda **_: self.halt())
        else:
            environment.events.test_start.add_listener(lambda **_: self._begin_alone())

    @property
    def over(self) -> bool:
        """Whether everything that there will be is there."""
        return bool(self._over.is_set())

    @property
    def longest(self) -> float:
        """Seconds after which every worker has ended its share."""
        return self._scenario.longest + _HEAD_START

    @property
    def workers(self) -> int:
        """Processes that make the crowd."""
        runner = self._environment.runner
        return max(1, runner.worker_count) if isinstance(runner, MasterRunner) else 1

    def share(self) -> None:
        """Run this process's share, in the greenlet of a Locust user; one that comes second has none."""
        order = self._order.get()
        self._order = AsyncResult()
        runner = self._environment.runner
        site = Site.find(self._scenario.target)
        self._crowd = crowd = Crowd(self._scenario, site, self._tell)
        crowd.record.heard = self._show
        part = crowd.run(order["begins"], order["worker"], order["workers"])
        self._crowd = None
        if isinstance(runner, WorkerRunner):
            runner.send_message(PART, {"json": json.dumps(part.to_json())})
        else:
            self._finish(part)

    def _begin_alone(self) -> None:
        self._running = True
        self._over.clear()
        self._order.set({"begins": time.time() + _HEAD_START, "worker": 0, "workers": 1})

    def _command(self, **_: Any) -> None:
        """Tell each worker its share."""
        runner = self._environment.runner
        assert isinstance(runner, MasterRunner)
        self._running = True
        self._over.clear()
        self._parts.clear()
        self._seconds.clear()
        workers = [client.id for client in runner.clients.ready]
        self._workers = len(workers)
        order = {"begins": time.time() + _HEAD_START, "workers": len(workers)}
        for worker, client in enumerate(workers):
            runner.send_message(BEGIN, {**order, "worker": worker}, client)

    def _tell(self, interval: Interval) -> None:
        runner = self._environment.runner
        if isinstance(runner, WorkerRunner):
            runner.send_message(SECOND, {"json": json.dumps(interval_to_json(interval))})
        else:
            self._print(interval)

    def _hear(self, msg: Any, **_: Any) -> None:
        interval = interval_from_json(json.loads(msg.data["json"]))
        heard = self._seconds.setdefault(interval.at, [])
        heard.append(interval)
        if len(heard) == self._workers:
            self._print(merge_intervals(self._seconds.pop(interval.at))[-1])

    def _take(self, msg: Any, **_: Any) -> None:
        self._parts.append(Results.from_json(json.loads(msg.data["json"])))
        if len(self._parts) >= self._workers:
            self._finish(merge(self._parts))

    @property
    def running(self) -> bool:
        """Whether a run is under way in this process, or for its workers."""
        return (self._running and not self.over) or self._crowd is not None

    def halt(self) -> None:
        """End a run that is under way; what there is of it is handed in, and then it is over."""
        runner = self._environment.runner
        if isinstance(runner, MasterRunner):
            runner.send_message(HALT)
        elif self._crowd is not None:
            self._crowd.halt()

    def do_without(self) -> None:
        """End a run whose last parts do not come: their workers are lost."""
        if not self.over and self._parts:
            whole, lost = merge(self._parts), self._workers - len(self._parts)
            self._finish(replace(whole, generator=replace(whole.generator, lost_workers=lost)))

    def _finish(self, results: Results) -> None:
        self.results = results
        if self._file is not None:
            save(results, self._file)
        self._over.set()

    def _print(self, interval: Interval) -> None:
        if self._live:
            os.write(1, json.dumps(interval_to_json(interval)).encode() + b"\n")

    def _show(self, name: str, seconds: float, wrong: str) -> None:
        """Locust's own statistics, for its web page."""
        self._environment.events.request.fire(
            request_type=name.partition(":")[0],
            name=name.partition(":")[2],
            response_time=seconds * 1000,
            response_length=0,
            exception=RuntimeError(wrong) if wrong else None,
            context={},
        )
