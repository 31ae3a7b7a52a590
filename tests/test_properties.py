"""Random bills against an oracle: a second, simple computation that shares no code with the script.

Time is a number here: moment 0 is the first of the month before, 1 that of the month, 2 and 3 are
inside it, 4 is the first of the next month. A price without start or end holds from -1 or to 5.
"""

from __future__ import annotations

from datetime import datetime
from fractions import Fraction
from math import floor
from operator import attrgetter
from random import Random
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from conftest import Run
from example import fixed, label, quantity, usage
from rafay_simulator import Partner, organization

BEGINNING, MONTH, NEXT_MONTH, END = -1, 1, 4, 5
MONTHS = [  # the moments 0 to 4; clocks change in the second one
    "2026-01-01 2026-02-01 2026-02-11 2026-02-21 2026-03-01".split(),
    "2025-09-01 2025-10-01 2025-10-20 2025-10-28 2025-11-01".split(),
    "2025-11-01 2025-12-01 2025-12-02 2025-12-31 2026-01-01".split(),
]
DIGITS = {"USD": 2, "JPY": 0, "KWD": 3}
LISTED = {"o2": "beta", "o1": "Acme", "o3": "Ærø"}
NAMES = {**LISTED, "o9": "Gone"}  # the last one is not listed
OWNERS = {"": "", "o1": "o1", "BETA": "o2", "o2": "o2", "gone": "o9"}  # as a price book may say
PROFILES = ("p", "q")
TYPES = ("compute", "service")
COLUMNS = """organization organization_id external_id project profile_type profile instance
instance_id status created_at parameters period_start period_end charge dimension usage_hours
billing_rate billing_amount currency""".split()
ORDER = "organization_id project profile_type profile instance instance_id period_start".split()

Line = dict[str, str]


class Price(NamedTuple):
    """A line of the price book."""

    charge: str
    profile: str
    dimension: str
    named: str
    profile_type: str
    start: int
    end: int
    rate: str

    @property
    def owner(self) -> str:
        """The organization's id; blank for everyone."""
        return OWNERS[self.named]


class Metered(NamedTuple):
    """An instance, with a label gpu and a metered quantity disk."""

    owner: str
    profile_type: str
    profile: str
    hours: int  # hundredths
    gpus: int  # tenths
    disk: int  # hundredths of GB x hours

    def thousandths(self) -> dict[str, int]:
        """Return what each dimension has, in thousandths of hours."""
        return {"instance": self.hours * 10, "gpu": self.gpus * self.hours, "disk": self.disk * 10}


class World(NamedTuple):
    """What is billed."""

    dates: list[str]
    zone: str
    currency: str
    start: int
    end: int
    book: list[Price]
    metered: list[Metered]


def make_price(random: Random) -> Price:
    """Make an hourly price."""
    start = random.randint(BEGINNING, 3)
    return Price(
        charge="usage",
        profile=random.choice(PROFILES),
        dimension=random.choice(["instance", "gpu", "disk"]),
        named=random.choice(list(OWNERS)),
        profile_type=random.choice(["", *TYPES]),
        start=start,
        end=random.randint(start + 1, END),
        rate=f"{random.randint(0, 5000) / 1000}",
    )


def make_monthly(random: Random) -> Price:
    """Make a fee, a minimum of a profile, or one of all profiles."""
    charge, profile = random.choice([("fee", "p"), ("minimum", "p"), ("minimum", "*")])
    return Price(
        charge=charge,
        profile=profile,
        dimension="",
        named=random.choice(list(OWNERS)[1:]),
        profile_type="",
        start=random.choice([BEGINNING, 0, MONTH]),
        end=random.choice([NEXT_MONTH, END]),
        rate=f"{random.randint(0, 9000)}",
    )


def make_metered(random: Random) -> Metered:
    """Make an instance of one of a few profiles and organizations."""
    return Metered(
        owner=random.choice(list(NAMES)),
        profile_type=random.choice(TYPES),
        profile=random.choice(PROFILES),
        hours=random.choice([1, 10, 72_000, random.randint(0, 72_000)]),
        gpus=random.randint(0, 80),
        disk=random.randint(0, 100_000),
    )


def make_world(seed: int) -> World:
    """Make a world in which most prices are for something that is used."""
    random = Random(seed)
    book = [make_price(random) for _ in range(random.randint(4, 24))]
    book += [make_monthly(random) for _ in range(random.randint(0, 6))]
    return World(
        dates=random.choice(MONTHS),
        zone=random.choice(["UTC", "Europe/Berlin"]),
        currency=random.choice(list(DIGITS)),
        start=random.choice([MONTH, MONTH, MONTH, 2]),
        end=random.choice([NEXT_MONTH, NEXT_MONTH, NEXT_MONTH, 3]),
        book=leave_out_repeated(book),
        metered=[make_metered(random) for _ in range(random.randint(0, 8))],
    )


def leave_out_repeated(book: list[Price]) -> list[Price]:
    """Keep the first price of a thing and a moment: a second one would be a mistake."""
    kept: dict[Any, Price] = {}
    for price in book:
        thing = price._replace(named=price.owner, end=END, rate="")
        kept.setdefault(thing, price)
    return list(kept.values())


# The oracle


def price_at(book: list[Price], one: Metered, dimension: str, moment: int) -> Price | None:
    """Return the most specific price in force, found by looking at each line."""
    fitting = []
    for price in book:
        if (
            price.profile == one.profile
            and price.dimension == dimension
            and price.owner in ("", one.owner)
            and price.profile_type in ("", one.profile_type)
            and price.start <= moment < price.end
        ):
            fitting.append(price)
    # A blank organization or profile type sorts first.
    rank = attrgetter("owner", "profile_type", "start")
    return max(fitting, key=rank, default=None)


def prices_at(world: World, one: Metered, moment: int) -> dict[str, Price | None]:
    """Return the price in force of each dimension that has one at some time of the period."""
    prices = {}
    for dimension in one.thousandths():
        times = range(world.start, world.end)
        if any(price_at(world.book, one, dimension, time) for time in times):
            prices[dimension] = price_at(world.book, one, dimension, moment)
    return prices


def find_changes(world: World, one: Metered) -> set[int]:
    """Return when the price of a profile changes for an organization."""
    return {
        moment
        for moment in range(world.start + 1, world.end)
        if prices_at(world, one, moment) != prices_at(world, one, moment - 1)
    }


def write_units(units: int, digits: int) -> str:
    """Write a number of the smallest units, of which a whole has 10 ** digits."""
    text = f"{units:0{digits + 1}}"
    return f"{text[:-digits]}.{text[-digits:]}" if digits else text


def write_line(world: World, owner: str, start: int, end: int, **cells: str) -> Line:
    """Return a line of the bill, blank but for what it is given."""
    times = []
    for moment in (start, end):
        local = datetime.fromisoformat(world.dates[moment]).replace(tzinfo=ZoneInfo(world.zone))
        times.append(local.isoformat().replace("+00:00", "Z"))
    line = dict.fromkeys(COLUMNS, "")
    line.update(organization=NAMES[owner], organization_id=owner, currency=world.currency)
    line.update(period_start=times[0], period_end=times[1], **cells)
    if owner in LISTED:
        line["external_id"] = f"C-{owner}"
    return line


def write_usage(world: World, number: int, start: int, end: int) -> list[Line]:
    """Return the lines of an instance in a part of the period."""
    one = world.metered[number]
    prices = prices_at(world, one, start)
    digits = DIGITS[world.currency]
    lines = []
    for dimension, thousandths in one.thousandths().items():
        if dimension != "instance" and dimension not in prices:
            continue
        line = write_line(
            world,
            one.owner,
            start,
            end,
            project="research",
            profile_type=one.profile_type,
            profile=one.profile,
            instance=f"{number}",
            instance_id=f"id-{number}",
            created_at="2026-06-02T08:51:41Z",
            parameters=f"gpu={one.gpus / 10}; disk={write_units(one.disk, 2)}h",
            charge="usage",
            dimension=dimension,
            usage_hours=write_units(thousandths, 3).removesuffix("0"),
        )
        price = prices.get(dimension)
        if price:
            exact = Fraction(thousandths, 1000) * Fraction(price.rate)
            units = floor(exact * 10**digits + Fraction(1, 2))
            line.update(billing_rate=price.rate, billing_amount=write_units(units, digits))
        lines.append(line)
    return lines


def write_list(world: World, owner: str, profile_type: str) -> list[Line]:
    """Return the lines of an organization's usage of a type, changed profiles in parts, last."""
    numbers = [
        number
        for number, one in enumerate(world.metered)
        if (one.owner, one.profile_type) == (owner, profile_type)
    ]
    changes = {number: find_changes(world, world.metered[number]) for number in numbers}
    lines = []
    for number in numbers:
        if not changes[number]:
            lines += write_usage(world, number, world.start, world.end)
    moments = sorted(set().union(*changes.values()))
    for start, end in zip([world.start, *moments], [*moments, world.end]):
        for number in numbers:
            if changes[number]:
                lines += write_usage(world, number, start, end)
    return lines


def sum_units(lines: list[Line]) -> int:
    """Return the sum of amounts in the smallest units."""
    total = 0
    for line in lines:
        digits = line["billing_amount"].replace(".", "")
        total += int(digits or 0)
    return total


def rank(found: tuple[int, Price]) -> tuple[bool, bool, int]:
    """Return what fees and minimums are sorted by."""
    place, price = found
    return (price.charge == "minimum", price.profile == "*", place)


def write_monthly(world: World, owner: str, used: list[Line]) -> list[Line]:
    """Return the fees and minimums of an organization."""
    latest: dict[Any, tuple[int, Price]] = {}
    for place, price in enumerate(world.book):
        in_force = price.start < NEXT_MONTH and price.end > MONTH
        if price.charge != "usage" and price.owner == owner and in_force:
            thing = price.charge, price.profile
            if thing not in latest or latest[thing][1].start < price.start:
                latest[thing] = place, price
    lines: list[Line] = []
    digits = DIGITS[world.currency]
    for _, price in sorted(latest.values(), key=rank):
        units = int(price.rate) * 10**digits
        if price.charge == "minimum":
            counted = [line for line in used if line["profile"] == price.profile]
            if price.profile == "*":
                counted = used + [line for line in lines if line["charge"] == "minimum"]
            units -= sum_units(counted)
            if units <= 0:
                continue
        line = write_line(
            world,
            owner,
            MONTH,
            NEXT_MONTH,
            profile=price.profile,
            charge=price.charge,
            dimension="month",
            billing_amount=write_units(units, digits),
        )
        lines.append(line)
    return lines


def write_bill(world: World) -> list[Line]:
    """Return the lines of the raw file."""
    lines = []
    metered = {one.owner for one in world.metered}
    for owner in NAMES:
        if owner not in LISTED and owner not in metered:
            continue
        used = write_list(world, owner, "compute") + write_list(world, owner, "service")
        lines += used
        if (world.start, world.end) == (MONTH, NEXT_MONTH):
            lines += write_monthly(world, owner, used)
    return lines


# The test


def write_book(world: World) -> str:
    """Return the text of the price book."""
    dates = ["", *world.dates, ""]
    text = "profile,dimension,organization,profile_type,effective_from,effective_to,"
    text += "hourly_rate,monthly_rate,monthly_minimum\n"
    for price in world.book:
        text += f"{price.profile},{price.dimension},{price.named},{price.profile_type},"
        text += f"{dates[price.start + 1]},{dates[price.end + 1]},"
        commas = {"usage": "{},,", "fee": ",{},", "minimum": ",,{}"}[price.charge]
        text += commas.format(price.rate) + "\n"
    return text


def make_partner(world: World) -> Partner:
    """Return the partner of a world."""
    records: dict[str, list[Any]] = {profile_type: [] for profile_type in TYPES}
    for number, one in enumerate(world.metered):
        hours = f"{write_units(one.hours, 2)}h"
        gpu = label("gpu", f"{one.gpus / 10}", hours)
        disk = quantity("disk", f"{write_units(one.disk, 2)}h")
        record = usage(one.owner, f"{number}", one.profile, hours, parameters=[gpu, disk])
        record["instance_organization_name"] = NAMES[one.owner]
        records[one.profile_type].append(record)
    listed = [organization(id_, LISTED[id_], external_id=f"C-{id_}") for id_ in LISTED]
    return Partner(listed, fixed(**records))


def order(row: Line) -> list[str]:
    """Return what the sorted file is sorted by."""
    cells = [row[column] for column in ORDER]
    return [row["organization"].casefold(), *cells]


@pytest.mark.parametrize("seed", range(150))
def test_every_cell_is_what_a_second_computation_says(run: Run, seed: int) -> None:
    world = make_world(seed)
    result = run(
        f"--from={world.dates[world.start]}",
        f"--to={world.dates[world.end]}",
        now="2026-08-01T00:00:00Z",
        partner=make_partner(world),
        prices=write_book(world),
        TIMEZONE=world.zone,
        CURRENCY=world.currency,
    )
    assert result.errors == []
    found = [{column: row[column] for column in COLUMNS} for row in result.rows]
    assert found == write_bill(world)
    assert result.sorted == sorted(result.rows, key=order)
