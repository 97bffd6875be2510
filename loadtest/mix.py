"""From what a shop knows of its busiest hour to the weights of a journey and the rate of arrivals.

A test in which everybody buys proves nothing; one whose weights were guessed proves little. Here the weights
are solved for, so that orders a visit and pages a visit come out exactly as they were counted.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from loadtest.inputs import InputError

Chain = Mapping[str, Mapping[str, float]]

EXIT, PAY = "exit", "pay"
_HOUR = 3600.0
_CHECKOUT, _PAY = 0.55, 0.8  # of those with a basket, and of those at the checkout, in a usual shop
_BROWSE = 0.75  # of those on the first page
_SEARCH_FIRST, _SEARCH_AGAIN, _SEARCH_NEXT = 0.27, 0.12, 0.2  # of moves from home, search and product
_STEPS = 50
_SHORTEST = 4  # pages that an order takes after the first: product, basket, checkout, pay
_RARE = 1e-4
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Mix:
    """A journey's weights and what follows from them.

    Attributes:
        chain: by page, the probability of what comes next; "exit" ends the visit, "pay" is its last page.
        rate: arrivals a second.
        conversion: orders a visit.
        pages: pages a visit.
        pages_most: a bound on the pages of a visit that only one in ten thousand visits meets.
    """

    chain: Chain
    rate: float
    conversion: float
    pages: float
    pages_most: int


def solve(visits: float, page_views: float, orders: float) -> Mix:
    """The weights with which as many visits make as many page views and orders.

    Usual weights are kept as far as the numbers allow; where buyers are many or pages few, people are sent
    ever more directly from the first page to the order.

    Args:
        visits: in the busiest hour, above 0.
        page_views: in the same hour; the first page and each further one.
        orders: in the same hour; one a visit at most.

    Raises:
        InputError: no journey has such numbers; the reason is said.
    """
    _possible(visits, page_views, orders)
    pages, conversion = page_views / visits, orders / visits
    direct, detours = 1.0, 0.0
    if _chain(pages, conversion, 0.0) is not None:
        direct = 0.0
    for _ in range(_STEPS if direct else 0):
        middle = (direct + detours) / 2
        if _chain(pages, conversion, middle) is None:
            detours = middle
        else:
            direct = middle
    chain = _chain(pages, conversion, direct)
    if chain is None:
        raise InputError(
            "--page-views", "so few leave no room for an order", "check that they are of one hour"
        )
    stay = 1.0 - max(chain["search"][EXIT], 1e-3)
    most = math.ceil(math.log(_RARE) / math.log(stay)) + _SHORTEST if stay > _RARE else _SHORTEST + 1
    found = implied(chain)
    return Mix(chain, visits / _HOUR, found[0], found[1], max(40, most))


def _possible(visits: float, page_views: float, orders: float) -> None:
    given = {"--visits": visits, "--page-views": page_views, "--orders": orders}
    for name, value in given.items():
        if not math.isfinite(value) or value < 0 or (name == "--visits" and value == 0):
            raise InputError(name, f"{value:g} is no count of an hour", "give a number above 0")
    if orders > visits:
        raise InputError(
            "--orders",
            f"{orders:g} orders in {visits:g} visits would be more than one a visit",
            "give numbers of the same hour; a visit orders at most once here",
        )
    if page_views < visits:
        raise InputError(
            "--page-views",
            f"{page_views:g} page views in {visits:g} visits would be less than one a visit",
            "count each page that a visit opens, the first one too",
        )
    least = visits + _SHORTEST * orders
    if page_views < least * (1 - 1e-12):
        raise InputError(
            "--page-views",
            f"{orders:g} orders take at least {least:g} page views: one a visit, and product, basket, "
            f"checkout and pay for each order; {page_views:g} were given",
            "count every page of the checkout, or check that all numbers are of one hour",
        )


def _chain(pages: float, conversion: float, direct: float) -> Chain | None:
    """The weights for these means, or None; `direct` is 0 for the usual detours and 1 for none.

    Whoever browses opens another page with one probability, whatever the page: so the mean number of pages
    fixes it. Only products lead into the basket, so the mean number of products fixes with which probability
    they do.
    """
    checkout, pay = _CHECKOUT ** (1 - direct), _PAY ** (1 - direct)
    baskets = conversion / (checkout * pay)
    browsed = pages - 1.0 - baskets * (1 + checkout + checkout * pay)
    detour = 1.0 - direct
    onward = min(1.0, max(_BROWSE, baskets), browsed)
    if onward < baskets or baskets > 1 or browsed < 0:
        # Rounding alone may make the shortest journey miss itself.
        if direct < 1 or baskets > 1 or browsed < baskets * (1 - _ROUNDING) - _ROUNDING:
            return None
        onward = browsed = baskets
    if onward <= 0:
        return _table(0.0, (_SEARCH_FIRST, _SEARCH_AGAIN, _SEARCH_NEXT), 0.0, 0.0, (checkout, pay))
    again = 1.0 - onward / browsed
    first, search, product = _SEARCH_FIRST * detour, _SEARCH_AGAIN * detour, _SEARCH_NEXT * detour
    searches = (onward * first + again * product * browsed) / (1 - again * search + again * product)
    products = browsed - searches
    basket = baskets / products if products > 0 else math.inf
    if basket > (1 - again) * (1 + 1e-12):
        return None
    return _table(onward, (first, search, product), again, min(basket, 1 - again), (checkout, pay))


def _table(
    onward: float,
    searching: tuple[float, float, float],
    again: float,
    basket: float,
    funnel: tuple[float, float],
) -> Chain:
    first, search, product = searching
    checkout, pay = funnel
    return {
        "home": {"product": onward * (1 - first), "search": onward * first, EXIT: 1 - onward},
        "search": {"product": again * (1 - search), "search": again * search, EXIT: 1 - again},
        "product": {
            "product": again * (1 - product),
            "search": again * product,
            "basket": basket,
            EXIT: max(0.0, 1 - again - basket),
        },
        "basket": {"checkout": checkout, EXIT: 1 - checkout},
        "checkout": {PAY: pay, EXIT: 1 - pay},
    }


def implied(chain: Chain) -> tuple[float, float]:
    """Orders a visit and pages a visit of a chain that begins at "home", whoever wrote it.

    The mean number of openings of each page solves a linear system: one for the first page, plus what leads
    to it.

    Raises:
        InputError: there are pages from which nobody ever leaves.
    """
    names = sorted({*chain, *(page for weights in chain.values() for page in weights), PAY, "home"} - {EXIT})
    rows = [[float(a == b) for b in names] + [float(a == "home")] for a in names]
    for page, weights in chain.items():
        total = sum(weights.values())
        for following, weight in weights.items():
            if following != EXIT and total:
                rows[names.index(following)][names.index(page)] -= weight / total
    openings = _solved(rows)
    if openings is None or min(openings) < -_ROUNDING:
        raise InputError(
            "chain", "some pages are never left", "give each page a way that ends in exit or pay"
        )
    return openings[names.index(PAY)], sum(openings)


def _solved(rows: list[list[float]]) -> list[float] | None:
    """The solution of a linear system by elimination with pivoting, or None where there is none."""
    for column in range(len(rows)):
        pivot = max(range(column, len(rows)), key=lambda row: abs(rows[row][column]))
        if abs(rows[pivot][column]) < _ROUNDING / 1000:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [cell / rows[column][column] for cell in rows[column]]
        for row, cells in enumerate(rows):
            if row != column and cells[column]:
                factor = cells[column]
                rows[row] = [a - factor * b for a, b in zip(cells, rows[column], strict=True)]
    return [row[-1] for row in rows]


def fragment(mix: Mix) -> str:
    """The part of a scenario that says all this."""
    lines = [
        "[[arrivals]]",
        'curve = "constant"',
        f"rate = {mix.rate:.6g}",
        'duration = "10m"',
        "",
        "[shoppers]",
        f"pages_most = {mix.pages_most}",
        "",
        "[chain]",
    ]
    for page, weights in mix.chain.items():
        given = ", ".join(f"{name} = {weight!r}" for name, weight in weights.items() if weight)
        lines.append(f"{page} = {{ {given} }}")
    return "\n".join(lines) + "\n"
