"""Properties of whole bills, whatever the hours, prices and names."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from decimal import Decimal
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, Run
from example import usage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rafay_simulator import Partner, fixed, organization

FEW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DIGITS = {"USD": 2, "JPY": 0, "KWD": 3}
HOURS = st.decimals(0, 10**4, places=2).map("{:f}".format)
RATES = st.decimals(0, 10**9, places=3).map("{:f}".format)
LONG_RATES = st.decimals(0, 10, places=20).map("{:f}".format)

START, END = "2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z"
MOMENTS = ["", "2026-05-31T23:59:59Z", START, "2026-06-01T00:00:01Z", "2026-06-15T12:00:00Z", END]
OWNERS = {"o1": "Acme", "o2": "Other"}
OWNED = {"": "", "o1": "o1", "aCME": "o1", "o2": "o2", "other": "o2"}  # by a cell of the book
KINDS = ("compute", "service")
DIMENSIONS = ("instance", "disk")
DISK = {"parameters": [{"name": "disk", "is_label": False, "usage": "7.00h"}]}
Price = tuple[str, str, str, str]  # organization, profile type, effective_from, dimension
PRICES = st.tuples(*map(st.sampled_from, [[*OWNED], ["", *KINDS], MOMENTS, DIMENSIONS]))
BOOKS = st.lists(PRICES, unique_by=lambda price: (OWNED[price[0]], price[1:]), max_size=6)

NAMES = ("a", "A", "b", "ä", "B-1")
ROWS = st.tuples(*map(st.sampled_from, ["123", NAMES, KINDS, NAMES, NAMES, "12"]))


@pytest.fixture
def bill(run: Run, directory: Path) -> Run:
    """Return `run` with a directory that is empty each time."""

    def bill(*flags: str, **more: Any) -> Result:
        for path in directory.iterdir():
            path.unlink()
        return run(*flags, **more)

    return bill


@FEW
@given(
    st.lists(st.tuples(HOURS, st.just("") | RATES | LONG_RATES), max_size=30),
    st.sampled_from([*DIGITS]),
)
def test_an_amount_is_hours_x_rate_half_up_and_the_total_is_the_sum(
    bill: Run, cases: list[tuple[str, str]], currency: str
) -> None:
    records = [usage("o1", f"{n}", f"p{n}", f"{hours}h") for n, (hours, _) in enumerate(cases)]
    prices = [f"p{n},{rate}\n" for n, (_, rate) in enumerate(cases) if rate]
    partner = Partner([organization("o1", "Acme")], fixed(compute=records))
    text = "profile,hourly_rate\n" + "".join(prices)
    result = bill(partner=partner, prices=text, CURRENCY=currency)
    columns = ("usage_hours", "billing_rate", "billing_amount")
    digits = DIGITS[currency]
    expected, total = [], 0
    for hours, rate in cases:
        amount = ""
        if rate:
            minor_units = (2 * Fraction(hours) * Fraction(rate) * 10**digits + 1) // 2
            whole, part = divmod(minor_units, 10**digits)
            amount = f"{whole}.{part:0{digits}}" if digits else f"{whole}"
            total += minor_units
        expected.append((hours, rate, amount))
    assert [tuple(row[column] for column in columns) for row in result.rows] == expected
    totals = [line.split() for line in result.stdout.splitlines() if line.startswith("Total ")]
    assert [len(words) for words in totals] == [4 if any(rate for _, rate in cases) else 3] * 2
    for words in totals:
        assert sum(Fraction(amount.replace(",", "")) for amount in words[3:]) * 10**digits == total


@FEW
@given(st.lists(st.tuples(HOURS, RATES, st.decimals(0, 10**6, places=2)), max_size=5))
def test_an_organization_pays_the_larger_of_usage_and_minimum(
    bill: Run, profiles: list[tuple[str, str, Decimal]]
) -> None:
    prices, records = ["profile,organization,hourly_rate,monthly_minimum\n"], []
    for n, (hours, rate, minimum) in enumerate(profiles):
        prices += [f"p{n},Acme,{rate},\n", f"p{n},Acme,,{minimum:f}\n"]
        records.append(usage("o1", f"{n}", f"p{n}", f"{hours}h"))
    partner = Partner([organization("o1", "Acme")], fixed(compute=records))
    rows = bill("--month=2026-06", prices="".join(prices), partner=partner).rows
    for n, (hours, _, minimum) in enumerate(profiles):
        paid = [Decimal(row["billing_amount"]) for row in rows if row["profile"] == f"p{n}"]
        used = [row for row in rows if row["profile"] == f"p{n}" and row["charge"] == "usage"]
        assert [row["usage_hours"] for row in used] == [hours]
        assert sum(paid) == max(Decimal(used[0]["billing_amount"]), minimum)


def rate_in(book: list[Price], owner: str, kind: str, dimension: str, moment: str) -> str:
    """Return the rate in force that a person would find: a price's place in the book."""
    fitting = [
        (OWNED[price[0]], price[1], price[2], f"{place}")
        for place, price in enumerate(book)
        if OWNED[price[0]] in ("", owner) and price[1] in ("", kind) and price[3] == dimension
        if price[2] <= moment
    ]
    return max(fitting)[-1] if fitting else ""


@FEW
@given(BOOKS)
def test_at_each_moment_the_most_specific_price_applies(bill: Run, book: list[Price]) -> None:
    records = {kind: [usage(each, kind, "vm", "1h", **DISK) for each in OWNERS] for kind in KINDS}
    partner = Partner([organization(*each) for each in OWNERS.items()], fixed(**records))
    prices = [f"vm,{place},{','.join(price)}\n" for place, price in enumerate(book)]
    header = "profile,hourly_rate,organization,profile_type,effective_from,dimension\n"
    rates: dict[tuple[str, ...], dict[tuple[str, str], str]] = defaultdict(dict)
    for row in bill(partner=partner, prices=header + "".join(prices)).rows:
        thing = row["organization_id"], row["profile_type"], row["dimension"]
        rates[thing][row["period_start"], row["period_end"]] = row["billing_rate"]
    moments = sorted({START, *(price[2] for price in book if START < price[2] < END)})
    for thing in product(OWNERS, KINDS, DIMENSIONS):
        found = [
            [rate for (start, end), rate in rates[thing].items() if start <= moment < end]
            for moment in moments
        ]
        assert [each or [""] for each in found] == [
            [rate_in(book, *thing, moment)] for moment in moments
        ]
        if "instance" in thing:  # the whole period, without gap or overlap
            starts, ends = zip(*rates[thing])
            assert [*starts, END] == [START, *ends]


@FEW
@given(st.lists(st.sampled_from(NAMES), min_size=3, max_size=3), st.lists(ROWS, max_size=12))
def test_the_sorted_file_has_the_lines_of_the_raw_file_in_order(
    bill: Run, names: list[str], rows: list[tuple[str, ...]]
) -> None:
    records: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    for n, (owner, project, kind, profile, instance, prefix) in enumerate(rows):
        more = {"instance_project_name": project, "instance_id": f"{prefix}-{n}", **DISK}
        records[kind].append(usage(owner, instance, profile, "1h", **more))
    listed = [organization(f"{n}", name) for n, name in enumerate(names, start=1)]
    prices = [f"{name},,,1\n{name},disk,,1\n{name},,2026-06-15,2\n" for name in NAMES]
    text = "profile,dimension,effective_from,hourly_rate\n" + "".join(prices)
    result = bill(partner=Partner(listed, fixed(**records)), prices=text)
    columns = "organization_id project profile_type profile instance instance_id period_start"

    def key(row: dict[str, str]) -> list[str]:
        return [row["organization"].casefold(), *(row[column] for column in columns.split())]

    in_order = sorted(result.rows, key=key)
    assert list(csv.DictReader(io.StringIO(result.sorted))) == in_order
