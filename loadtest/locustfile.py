"""What Locust loads: `locust -f loadtest/locustfile.py --scenario black-friday --headless`.

For Locust's own web page, leave out --headless; for several processes, add --processes, or --master and
--worker with the same scenario. Exit codes: 0 done, 2 misuse, 3 target out of reach,
4 inconclusive, 5 stopped early.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import gevent
from locust import LoadTestShape, User, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtest.executor import Conductor
from loadtest.grammar import ScenarioError
from loadtest.preflight import reach, ready
from loadtest.record import doubts

_SPARE = 15.0  # seconds beyond a run's longest time, for the start and for results on their way

_conductors: dict[Environment, Conductor] = {}


class Dispatcher(User):
    """Lets the shoppers in. One in each process, whatever number of users is asked for."""

    @task
    def arrive(self) -> None:
        """Run this process's share of the crowd."""
        _conductors[self.environment].share()


class Shape(LoadTestShape):
    """One dispatcher a process, until the run is over."""

    def tick(self) -> tuple[int, float] | None:
        """How many, and how many a second more; None ends the test."""
        assert self.runner is not None
        conductor = _conductors[self.runner.environment]
        if conductor.over:
            return None
        if self.get_run_time() > conductor.longest + _SPARE:
            conductor.do_without()
            return None
        return conductor.workers, float(conductor.workers)


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser) -> None:
    add = parser.add_argument_group("Rehearsals").add_argument
    add("--scenario", default="black-friday", help="A ready-made scenario, or a file.")
    add("--scale", type=float, default=None, help="Times the arrivals, instead of the scenario's.")
    add("--results", default="", help="File that the results go to, as JSON.")
    add("--live", action="store_true", help="Tell each second on standard output, as a line of JSON.")


@events.init.add_listener
def _prepare(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    assert options is not None
    try:
        scenario = ready(options.scenario, options.scale, options.host or None)
    except ScenarioError as error:
        sys.exit(_said(error, 2))
    if not isinstance(environment.runner, WorkerRunner) and (trouble := reach(scenario)):
        sys.exit(_said(trouble, 3))
    environment.host = scenario.target
    file = Path(options.results) if options.results else None
    _conductors[environment] = conductor = Conductor(environment, scenario, file, live=options.live)
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, _interrupted, conductor, number)


@events.quitting.add_listener
def _judge(environment: Environment, **_: Any) -> None:
    conductor = _conductors.get(environment)
    if conductor is None or isinstance(environment.runner, WorkerRunner):
        return
    results = conductor.results
    if results is None or results.stopped:
        environment.process_exit_code = 5
    else:
        found = doubts(results)
        for doubt in found:
            _said(f"Inconclusive: {doubt}", 4)
        environment.process_exit_code = 4 if found else 0


def _interrupted(conductor: Conductor, number: int) -> None:
    """End the run and keep what there is; without one, or when asked again, end at once."""
    running = conductor.running
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    if running:
        conductor.halt()
    else:
        os.kill(os.getpid(), number)


def _said(what: object, code: int) -> int:
    sys.stderr.write(f"{what}\n")
    gevent.sleep(0)
    return code
