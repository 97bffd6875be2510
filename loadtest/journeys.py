"""What people do in the shop. `shop` fits the demo storefront; one's own is a function of a shopper.

A journey sees pages with `person.page(name, path)`, thinks with `person.think()`, and says "bought" or "left"
at its end. That people are told to wait, give up, or fail, is none of its business. For any shop:

    def mine(person: Shopper) -> str:
        person.page("home", "/")
        person.think()
        person.page("basket", "/cart/add", {"sku": "4711"})
        return "left"

and in the scenario `journey = "my_shop:mine"`, with my_shop.py where Python finds it.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from loadtest.grammar import ScenarioError, nearest
from loadtest.scenario import Scenario
from loadtest.shopper import Journey, Shopper

LAMPS = ("vesper", "morel", "gable", "harbour", "ember", "crescent")
EXIT, BOUGHT = "exit", "pay"

# Where people go from a page, by weight. Of a hundred who come, about eighteen buy: a sale, not a Tuesday.
CHAIN: Mapping[str, Mapping[str, float]] = {
    "home": {"product": 0.55, "search": 0.2, EXIT: 0.25},
    "search": {"product": 0.7, "search": 0.1, EXIT: 0.2},
    "product": {"product": 0.3, "basket": 0.25, "home": 0.15, EXIT: 0.3},
    "basket": {"checkout": 0.55, "product": 0.2, EXIT: 0.25},
    "checkout": {"pay": 0.8, EXIT: 0.2},
}


def shop(person: Shopper) -> str:
    """Wander through the demo storefront, from page to page by the scenario's weights, or by `CHAIN`."""
    chain = {**CHAIN, **person.scenario.chain}
    page = "home"
    while page != EXIT:
        _visit(person, page)
        if page == BOUGHT:
            return "bought"
        page = person.pick(chain[page])
        if page != EXIT:
            person.think()
    return "left"


def _visit(person: Shopper, page: str) -> None:
    lamp = person.chance.choice(LAMPS)
    if page == "home":
        person.page(page, "/")
    elif page == "search":
        person.page(page, f"/?q={lamp}")
    elif page == "product":
        person.page(page, f"/product/{lamp}")
    elif page == "basket":
        person.page(page, "/basket", {"product": lamp})
    elif page == "checkout":
        person.page(page, "/basket")
    else:
        person.page(page, "/checkout", {"delivery": "parcel"})


def find(scenario: Scenario) -> Journey:
    """The journey that a scenario names, its chain checked.

    Raises:
        ScenarioError: there is no such journey, or the chain leads to a page that is not in it.
    """
    name, where = scenario.shoppers.journey, f"scenario {scenario.name}:"
    if name != "shop":
        return _own(name, where)
    for page, weights in scenario.chain.items():
        for found in (page, *weights):
            known = [*CHAIN] if found is page else [*CHAIN, BOUGHT, EXIT]
            if found not in known:
                remedy = nearest(found, known) or f"Known are {', '.join(known)}."
                raise ScenarioError(where, f"chain has the page {found!r}.", remedy)
    return shop


def _own(name: str, where: str) -> Journey:
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        journey: Journey = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        remedy = 'Write "shop", or module:function of one that can be imported from here.'
        raise ScenarioError(where, f"has no journey {name!r}: {error}.", remedy) from error
    return journey
