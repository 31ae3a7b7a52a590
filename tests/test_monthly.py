"""Monthly fees and minimums: what the price book may say, and what an organization then pays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from conftest import Result, Run, cases
from example import text, usage
from rafay_simulator import Partner, fixed, organization


@pytest.fixture
def run(run: Run) -> Run:
    """Bill June, unless flags say otherwise."""
    return partial(run, BILLING_MONTH="2026-06", now="2026-07-01T06:00:00Z")


BOOK = (
    "profile,organization,effective_from,effective_to,dimension,profile_type,"
    "hourly_rate,monthly_rate,monthly_minimum\n"
)
LISTED = [organization("b1", "Beta"), organization("a1", "Acme", external_id="C-1")]
H100 = "gpu-h100-x8,Acme,,,,,15.20,,\ngpu-h100-x8,Acme,,,,,,,21888\n"


def instance(hours: str, profile: str = "gpu", owner: str = "a1", **more: Any) -> Any:
    """Return the record of an instance."""
    return usage(owner, f"{owner}-{profile}", profile, f"{hours}h", **more)


def partner(compute: Sequence[Any] = (), service: Sequence[Any] = ()) -> Partner:
    """Return a partner with these records."""
    return Partner(LISTED, fixed(compute, service))


def monthly(result: Result) -> list[str]:
    """Return profile, charge and amount of the lines that bill no usage."""
    columns = ("profile", "charge", "billing_amount")
    return [" ".join(row[c] for c in columns) for row in result.rows if row["charge"] != "usage"]


@pytest.mark.parametrize(
    ("hours", "usage_line", "shortfall", "total"),
    [
        ("1000.00", "1000.00,15.20,15200.00", ",,6688.00", "21,888.00"),
        ("1440.00", "1440.00,15.20,21888.00", "", "21,888.00"),
        ("1600.00", "1600.00,15.20,24320.00", "", "24,320.00"),
    ],
)
def test_the_worked_example(
    run: Run, hours: str, usage_line: str, shortfall: str, total: str
) -> None:
    record = {**instance(hours, "gpu-h100-x8"), "instance_name": "i", "instance_id": "i"}
    result = run(prices=BOOK + H100, partner=partner([record]))
    begin, month = "Acme,a1,C-1,", "2026-06-01T00:00:00Z,2026-07-01T00:00:00Z,"
    lines = [
        f"{begin}research,compute,gpu-h100-x8,i,i,,2026-06-02T08:51:41Z,,{month}usage,instance,"
        f"{usage_line},USD",
        *([f"{begin},,gpu-h100-x8,,,,,,{month}minimum,month,{shortfall},USD"] * bool(shortfall)),
    ]
    assert (result.status, result.raw) == (0, text(lines))
    assert result.sorted == text(sorted(lines))  # a blank project comes first
    assert result.stdout.splitlines()[3].split()[-1] == total


@cases(
    "lines, records, paid",
    {
        "a fee": ("gold,Acme,,,,,,500,", [], ["gold fee 500.00"]),
        "a fee of nothing": ("gold,Acme,,,,,,0,", [], ["gold fee 0.00"]),
        "a minimum without usage": ("gpu,Acme,,,,,,,9.5", [], ["gpu minimum 9.50"]),
        "a minimum just reached": ("gpu,Acme,,,,,,,15.20", ["1"], []),
        "a minimum just missed": ("gpu,Acme,,,,,,,15.21", ["1"], ["gpu minimum 0.01"]),
        "a minimum of another profile": ("x,Acme,,,,,,,1", ["1"], ["x minimum 1.00"]),
        "another organization's": ("gpu,Beta,,,,,,,20", ["9"], ["gpu minimum 20.00"]),
        "a fee does not count": (
            "gpu,Acme,,,,,,99,\ngpu,Acme,,,,,,,20",
            ["1"],
            ["gpu fee 99.00", "gpu minimum 4.80"],
        ),
        "all profiles, last, with their minimums": (
            "*,Acme,,,,,,,50\ngpu,Acme,,,,,,,20\nx,Acme,,,,,,,3\ngold,Acme,,,,,,100,",
            ["1"],
            ["gold fee 100.00", "gpu minimum 4.80", "x minimum 3.00", "* minimum 27.00"],
        ),
        "the latest in force": (
            "s,Acme,,,,,,1,\ns,Acme,2026-06-01,,,,,2,\ns,Acme,2026-07-01,,,,,3,\n"
            "s,Acme,,,,,,,5\ns,a1,2026-05-01,,,,,,4",
            [],
            ["s fee 2.00", "s minimum 4.00"],
        ),
        "a new price comes where its line is": (
            "s,Acme,,,,,,1,\nt,Acme,,,,,,2,\ns,Acme,2026-06-01,,,,,3,",
            [],
            ["t fee 2.00", "s fee 3.00"],
        ),
        "ended": ("s,Acme,,2026-06-01,,,,1,\ns,Acme,,2026-05-01,,,,,2", [], []),
        "by name and by id, in the order of the book": (
            "b,Acme,,,,,,1,\na,a1,,,,,,2,",
            [],
            ["b fee 1.00", "a fee 2.00"],
        ),
        "as an hourly price says, too": (
            "gpu,Acme,,,,,1,,\ngpu,Acme,,,,,,2,",
            [],
            ["gpu fee 2.00"],
        ),
    },
)
def test_what_a_month_costs(run: Run, lines: str, records: list[str], paid: list[str]) -> None:
    used = [instance(hours) for hours in records]
    result = run(prices=f"{BOOK}gpu,,,,,,15.20,,\n{lines}\n", partner=partner(used))
    assert (result.status, monthly(result)) == (0, paid)


def test_all_dimensions_types_and_parts_count_for_a_minimum(run: Run) -> None:
    disk = [{"name": "disk", "is_label": False, "usage": "10.00h"}]
    used = partner([instance("1", parameters=disk)], service=[instance("2")])
    prices = f"{BOOK}gpu,,,,,,1,,\ngpu,,,,disk,,2,,\ngpu,,2026-06-15,,,,3,,\ngpu,Acme,,,,,,,100\n"
    # Each of the two parts is metered alike: (1 + 2) x 1 + 10 x 2, and (1 + 2) x 3 + 10 x 2.
    assert monthly(run(prices=prices, partner=used)) == ["gpu minimum 48.00"]


def test_a_parameter_may_be_called_month(run: Run) -> None:
    month = {"name": "month", "is_label": False, "usage": "10.00h"}
    used = partner([instance("1", parameters=[month])])
    rows = run(prices=f"{BOOK}gpu,,,,,,1,,\ngpu,,,,month,,2,,\n", partner=used).rows
    assert [row["usage_hours"] for row in rows] == ["1.00", "10.00"]


def test_unpriced_usage_counts_as_nothing_and_is_reported(run: Run) -> None:
    result = run(prices=f"{BOOK}gpu,Acme,,,,,,,7\n", partner=partner([instance("1")]))
    assert (result.status, monthly(result)) == (3, ["gpu minimum 7.00"])
    assert ["gpu has no price: 1.00 hours" in each for each in result.warnings] == [True]


def test_fees_and_then_minimums_follow_the_usage_of_an_organization(run: Run) -> None:
    lines = "gold,Beta,,,,,,500,\ngpu,Acme,,,,,,,1000\ngold,Acme,,,,,,250,\n"
    records = [instance("1", owner="a1"), instance("2", owner="gone")]
    result = run(prices=f"{BOOK}gpu,,,,,,1,,\n{lines}", partner=partner(records))
    assert [(row["organization_id"], row["charge"]) for row in result.rows] == [
        ("b1", "fee"),
        ("a1", "usage"),
        ("a1", "fee"),
        ("a1", "minimum"),
        ("gone", "usage"),
    ]


def test_the_summary_tells_fees_and_minimums_from_usage(run: Run) -> None:
    lines = "gpu,Beta,,,,,,500,\ngpu,Acme,,,,,,250,\ngpu,Acme,,,,,,,1000\n"
    result = run(prices=f"{BOOK}gpu,,,,,,1,,\n{lines}", partner=partner([instance("1")]))
    tables = [line.split() for line in result.stdout.splitlines()[3:12]]
    assert tables == [
        "Beta (b1) 0 0.00 500.00".split(),
        "Acme (a1) 1 1.00 1,250.00".split(),
        "Total 1 1.00 1,750.00".split(),
        [],
        "Profile Instances Hours Amount (USD)".split(),
        "gpu (fee) 0 0.00 750.00".split(),
        "gpu 1 1.00 1.00".split(),
        "gpu (minimum) 0 0.00 999.00".split(),
        "Total 1 1.00 1,750.00".split(),
    ]


@cases(
    "lines, records, warned",
    {
        "nobody used its profile": ("gpu,Acme,,,,,,,9", [], ["gpu"]),
        "somebody else did": ("gpu,Beta,,,,,,,9", [instance("1")], ["gpu"]),
        "nobody used anything": ("*,Acme,,,,,,,9", [], ["*"]),
        "another minimum counts for all": ("x,Acme,,,,,,,9\n*,Acme,,,,,,,20", [], ["x"]),
        "its profile was free": ("free,Acme,,,,,,,9", [instance("1", "free")], []),
        "anything was free": ("*,Acme,,,,,,,9", [instance("1", "free")], []),
        "0 hours are used": ("gpu,Acme,,,,,,,9", [instance("0")], []),
        "a fee of nobody": ("gpu,Acme,,,,,,9,", [], []),
        "a minimum of nothing": ("gpu,Acme,,,,,,,0", [], []),
    },
)
def test_a_minimum_billed_in_full_without_any_usage_is_a_warning(
    run: Run, lines: str, records: list[Any], warned: list[str]
) -> None:
    prices = f"{BOOK}gpu,,,,,,1,,\nfree,,,,,,0,,\n{lines}\n"
    result = run(prices=prices, partner=partner(records))
    assert re.findall(r"line 4: the minimum (\S+) ", "\n".join(result.warnings)) == warned
    assert (result.status, len(result.warnings)) == (0, len(warned))


def test_fees_and_minimums_have_an_amount_only(run: Run) -> None:
    lines = "gold,Acme,,,,,,5,\ngpu,Acme,,,,,,,9\n"
    result = run(prices=BOOK + lines, partner=partner())
    columns = ("dimension", "usage_hours", "billing_rate", "billing_amount")
    assert [[row[column] for column in columns] for row in result.rows] == [
        ["month", "", "", "5.00"],
        ["month", "", "", "9.00"],
    ]


def test_an_organization_that_is_metered_but_not_listed_pays(run: Run) -> None:
    result = run(
        prices=f"{BOOK}gpu,,,,,,1,,\ngold,as the record says,,,,,,500,\n",
        partner=partner([instance("2", owner="gone")]),
    )
    assert (result.status, monthly(result)) == (0, ["gold fee 500.00"])


def test_a_fee_of_nobody_is_a_warning(run: Run) -> None:
    lines = f"{BOOK}gold,Acme,,,,,,1,\ngold,Beta,,,,,,2,\ngold,Acmee,,,,,,3,\n"
    result = run(prices=lines, partner=partner())
    [warning] = result.warnings
    assert "line 4: organization 'Acmee' is not listed; did you mean Acme" in warning
    assert (result.status, monthly(result)) == (3, ["gold fee 2.00", "gold fee 1.00"])


TOKYO = "--timezone=Asia/Tokyo"


@cases(
    "flags, now, month",
    {
        "month": ("--month=2026-05", "07-15", "2026-05-01T00 2026-06-01T00"),
        "offset": (
            f"--from=2026-04-30T15:00Z --to=2026-06-01 {TOKYO}",
            "07-15",
            "2026-05-01T00 2026-06-01T00",
        ),
        "provisional": ("--month=2026-07", "07-15", "2026-07-01T00 2026-08-01T00"),
        "December": ("--month=last", "01-31", "2025-12-01T00 2026-01-01T00"),
        "clocks": (
            "--month=2026-10 --timezone=Europe/Berlin",
            "11-30",
            "2026-10-01T00 2026-11-01T00",
        ),
        "two months": ("--from=2026-05-01 --to=2026-07-01", "07-15", ""),
        "a second less": ("--from=2026-05-01 --to=2026-05-31T23:59:59", "07-15", ""),
        "31 days": ("--from=2026-05-02 --to=2026-06-02", "07-15", ""),
        "days": ("--days=30", "07-15", ""),
        "elsewhere": (f"--from=2026-05-01T00:00Z --to=2026-06-01T00:00Z {TOKYO}", "07-15", ""),
    },
)
def test_a_fee_is_billed_for_a_calendar_month_only(
    run: Run, flags: str, now: str, month: str
) -> None:
    lines = f"{BOOK}gold,Acme,,,,,,1,\nold,Acme,,2025-04-01,,,,2,\n*,Beta,,,,,,,3\n"
    moment = f"2026-{now}T00:00:00Z"
    result = run(*flags.split(), now=moment, prices=lines, partner=partner())
    found = {f"{row['period_start'][:13]} {row['period_end'][:13]}" for row in result.rows}
    assert found == ({month} if month else set())
    numbers = re.findall(r"line (\d): no .* not a calendar month", result.stderr)
    assert (result.status, numbers) == ((0, []) if month else (3, ["2", "4"]))


def test_each_fee_in_force_that_is_left_out_is_named(run: Run) -> None:
    lines = (
        "gold,Acme,2026-03-01,2026-04-01,,,,1,\ngold,Acme,2026-04-01,2026-05-01,,,,2,\n"
        "gold,Acme,2026-05-01,,,,,3,\ngold,Acme,2026-06-01,,,,,4,\ngold,Beta,,,,,,5,\n"
    )
    for flags, numbers in (("", "2346"), ("--org=Acme", "234"), ("--org=Acme --check", "234")):
        period = ("--from=2026-03-01", "--to=2026-06-01")
        result = run(*period, *flags.split(), prices=BOOK + lines, partner=partner())
        assert (result.status, re.findall(r"line (\d)", result.stderr)) == (3, [*numbers])


def test_days_are_no_month_even_if_they_are_as_long(run: Run) -> None:
    prices = f"{BOOK}gold,Acme,,,,,,1,\n"
    now = "2026-07-01T00:00:00Z"
    result = run(prices=prices, partner=partner(), BILLING_MONTH="", now=now)
    assert "2026-06-01T00:00:00Z to 2026-07-01T00:00:00Z" in result.stdout
    assert (result.status, result.rows) == (3, [])


def test_fees_never_split_a_period(run: Run) -> None:
    lines = f"{BOOK}gpu,,,,,,1,,\ngold,Acme,2026-06-01,,,,,1,\n"
    flags = ("--from=2026-05-15", "--to=2026-06-15")
    result = run(*flags, prices=lines, partner=partner([instance("1")]))
    assert [row["period_start"] for row in result.rows] == ["2026-05-15T00:00:00Z"]


@cases(
    "line, fragment",
    {
        "no rate": ("gpu,Acme,,,,,,,", "give one of"),
        "two rates": ("gpu,Acme,,,,,1,2,", "2 rates: give one of hourly_rate, monthly_rate"),
        "two monthly": ("gpu,Acme,,,,,,1,2", "give one of"),
        "everyone's fee": ("gold,,,,,,,1,", "organization is missing"),
        "everyone's minimum": ("gpu,,,,,,,,1", "a monthly_minimum needs one"),
        "a dimension": ("gpu,Acme,,,GPU,,,1,", "dimension 'GPU' is not allowed"),
        "a profile type": ("gpu,Acme,,,,compute,,,1", "profile_type 'compute' is not allowed"),
        "an hourly price of all": ("*,Acme,,,,,1,,", "profile '*' is for a monthly_minimum only"),
        "a fee of all": ("*,Acme,,,,,,1,", "profile '*' is for a monthly_minimum only"),
        "a sign": ("gold,Acme,,,,,,-1,", "monthly_rate '-1' is not a plain decimal"),
        "a separator": ('gpu,Acme,,,,,,,"1,000"', "monthly_minimum '1,000' is not a plain"),
        "decimals": ("gold,Acme,,,,,,1.005,", "decimals"),
        "zeros": ("gpu,Acme,,,,,,,1.000", "decimals"),
        "inside a month": ("s,Acme,2026-06-02,,,,,1,", "'2026-06-02' is not the first moment of a"),
        "the last day": ("gpu,Acme,,2026-06-30,,,,,1", "effective_to '2026-06-30' is not"),
        "a month elsewhere": ("gold,Acme,2026-06-01T00:00Z,,,,,1,", "in Europe/Berlin"),
        "the end of time": ("gold,Acme,,9999-12-31T23:59Z,,,,1,", "out of range"),
        "two fees": ("s,acme,,,,,,2,", "line 2 already"),
        "two minimums": ("s,Acme,,,,,,,2", "line 3 already"),
    },
)
def test_a_bad_line_is_an_error(run: Run, line: str, fragment: str) -> None:
    good = "s,acme,,,,,,1,\ns,Acme,,,,,,,1\ns,Acme,,,,,1,,\ns,Acme,2026-06-01,,,,,1,\n"
    result = run(prices=f"{BOOK}{good}{line}\n", TIMEZONE="Europe/Berlin")
    [error] = result.errors
    assert (result.status, result.requests) == (2, [])
    assert "line 6: " in error
    assert fragment in error


@pytest.mark.parametrize(
    ("currency", "good", "bad"), [("JPY", "1", "1.0"), ("KWD", "1.005", "1.0005")]
)
def test_the_currency_limits_the_decimals(run: Run, currency: str, good: str, bad: str) -> None:
    prices = f"profile,organization,monthly_rate\ns,Acme,{good}\nt,Acme,{bad}\n"
    [error] = run(prices=prices, CURRENCY=currency).errors
    assert "line 3: " in error


def test_one_fee_by_name_and_one_by_id_are_an_error(run: Run) -> None:
    prices = "profile,organization,monthly_minimum\n*,Acme,1\n*,a1,2\n"
    [error] = run(prices=prices, partner=partner()).errors
    assert "line 3: line 2 already" in error
