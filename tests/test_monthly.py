"""Fees and minimums: what the price book may say, and what an organization pays for a month."""

from __future__ import annotations

import re
from functools import partial

import pytest
from conftest import Result, Run, assert_failed, table
from example import book, quantity, tenants, usage

COLUMNS = (
    "profile,organization,monthly_rate,monthly_minimum,hourly_rate,"
    "effective_from,effective_to,dimension,profile_type"
)
NOBODY = tenants()
USED = tenants(usage("o1", "one", "gpu", "10h"))


@pytest.fixture
def run(run: Run) -> Run:
    """Bill June, unless flags say otherwise."""
    return partial(run, BILLING_MONTH="2026-06", now="2026-07-01T06:00:00Z")


def monthly(result: Result) -> str:
    """Return profile, charge and amount of the lines that bill no usage."""
    lines = []
    for row in result.rows:
        if row["charge"] != "usage":
            lines.append(f"{row['profile']} {row['charge']} {row['billing_amount']}")
    return ", ".join(lines)


# What it may say


@table(
    "line, error",
    """
    no rate             | gpu,Acme                          | 0 rates: give one of
    two rates           | gpu,Acme,1,,1                     | 2 rates: give one of
    two charges         | gpu,Acme,1,1                      | 2 rates: give one of
    everyone's fee      | gold,,1                           | organization is missing: a monthly_r
    everyone's minimum  | gpu,,,1                           | organization is missing: a monthly_m
    a dimension         | gpu,Acme,1,,,,,GPU                | dimension 'GPU' is not allowed
    a profile type      | gpu,Acme,,1,,,,,compute           | profile_type 'compute' is not allowed
    an hourly rate of * | *,Acme,,,1                        | '*' is for a monthly_minimum only
    a fee of *          | *,Acme,1                          | '*' is for a monthly_minimum only
    a sign              | gold,Acme,-1                      | monthly_rate '-1' is not a plain
    no number           | gpu,Acme,,x                       | monthly_minimum 'x' is not a plain
    tenths of a cent    | gold,Acme,1.005                   | monthly_rate '1.005' has more decimals
    zeros               | gpu,Acme,,1.000                   | monthly_minimum '1.000' has more
    inside a month      | gold,Acme,1,,,2026-06-02          | effective_from '2026-06-02' is not the
    on the last day     | gpu,Acme,,1,,,2026-06-30          | effective_to '2026-06-30' is not the
    a month elsewhere   | gold,Acme,1,,,2026-06-01T00:00Z   | first moment of a month in Europe/B
    the end of time     | gold,Acme,1,,,,9999-12-31T23:59Z  | out of range
    two fees            | gold,Acme,2                       | line 2 already
    two minimums        | gold,Acme,,2                      | line 3 already
    """,
)
def test_a_bad_line_is_an_error(run: Run, line: str, error: str) -> None:
    good = "gold,Acme,1; gold,Acme,,1; gold,Acme,,,1; gold,Acme,1,,,2026-06-01"
    result = run(prices=book(COLUMNS, f"{good}; {line}"), TIMEZONE="Europe/Berlin")
    assert_failed(result, re.escape("/prices.csv: line 6: "), re.escape(error), status=2)


@table(
    "currency, good, bad",
    """
    no decimals    | JPY | 1     | 1.0
    three decimals | KWD | 1.005 | 1.0005
    """,
)
def test_a_fee_has_the_decimals_of_the_currency(
    run: Run, currency: str, good: str, bad: str
) -> None:
    prices = book(COLUMNS, f"gold,Acme,{good}; gold,Beta,{bad}")
    assert_failed(run(prices=prices, CURRENCY=currency), f"line 3: .*'{bad}'", status=2)


# What a month costs


@table(
    "lines, paid",
    """
    a fee              | gold,Acme,500                     | gold fee 500.00
    a fee of nothing   | gold,Acme,0                       | gold fee 0.00
    half of a minimum  | gpu,,,,2; gpu,Acme,,40            | gpu minimum 20.00
    missed by a cent   | gpu,,,,2; gpu,Acme,,20.01         | gpu minimum 0.01
    just reached       | gpu,,,,2; gpu,Acme,,20            |
    exceeded           | gpu,,,,2; gpu,Acme,,19.99         |
    usage has no price | gpu,Acme,,7                       | gpu minimum 7.00
    of another profile | gpu,,,,2; x,Acme,,20              | x minimum 20.00
    of another tenant  | gpu,,,,2; gpu,Beta,,20            | gpu minimum 20.00
    a fee is no usage  | gpu,,,,2; gpu,Acme,9; gpu,Acme,,30 | gpu fee 9.00, gpu minimum 10.00
    nor counts for *   | gpu,,,,2; a,Acme,9; *,Acme,,30    | a fee 9.00, * minimum 10.00
    minimums count     | gpu,,,,2; *,Acme,,50; a,Acme,,3   | a minimum 3.00, * minimum 27.00
    fees come first    | a,Acme,,1; b,Acme,2; a,Acme,3     | b fee 2.00, a fee 3.00, a minimum 1.00
    by name and by id  | b,Acme,1; a,o1,2                  | b fee 1.00, a fee 2.00
    the latest counts  | a,o1,2,,,2026-06-01; a,Acme,1; b,Acme,3 | a fee 2.00, b fee 3.00
    where its line is  | a,Acme,1; b,Acme,3; a,o1,2,,,2026-06-01 | b fee 3.00, a fee 2.00
    ended or future    | a,Acme,1,,,,2026-06-01; a,Acme,,2,,2026-07-01 |
    """,
)
def test_a_month_costs_fees_and_what_is_missing_to_minimums(
    run: Run, lines: str, paid: str
) -> None:
    assert monthly(run(prices=book(COLUMNS, lines), partner=USED)) == paid


def test_all_dimensions_types_and_parts_count_for_a_minimum(run: Run) -> None:
    compute = usage("o1", "one", "gpu", "1h", parameters=[quantity("disk", "10h")])
    service = [usage("o1", "two", "gpu", "2h")]
    lines = "gpu,,,,1; gpu,,,,2,,,disk; gpu,,,,3,2026-06-15; gpu,Acme,,100"
    result = run(prices=book(COLUMNS, lines), partner=tenants(compute, service=service))
    # Each of the two parts is metered alike: (1 + 2) x 1 + 10 x 2, and (1 + 2) x 3 + 10 x 2.
    assert monthly(result) == "gpu minimum 48.00"


def test_fees_and_then_minimums_follow_the_usage_of_an_organization(run: Run) -> None:
    unlisted = usage("o9", "two", "gpu", "1h")
    partner = tenants(usage("o1", "one", "gpu", "1h"), unlisted)
    lines = "gpu,,,,1; gpu,Acme,,50; gold,Acme,5; gold,Beta,5; gold,o9,5"
    charges = run(prices=book(COLUMNS, lines), partner=partner).cells("organization_id", "charge")
    assert charges == ["o1 usage", "o1 fee", "o1 minimum", "o2 fee", "o9 usage", "o9 fee"]


@pytest.mark.parametrize("line", ["gold,Acme,5", "gold,Acme,,5"])
def test_fees_and_minimums_have_an_amount_only(run: Run, line: str) -> None:
    [row] = run(prices=book(COLUMNS, line), partner=NOBODY).rows
    assert row["dimension"] == "month"
    assert row["billing_amount"] == "5.00"
    for column in ("usage_hours", "billing_rate", "instance_id", "profile_type"):
        assert row[column] == ""


def test_the_summary_tells_fees_and_minimums_from_usage(run: Run) -> None:
    lines = "gpu,,,,1; gpu,Beta,500; gpu,Acme,250; gpu,Acme,,1000"
    summary = run(prices=book(COLUMNS, lines), partner=USED).stdout
    assert re.search(r"^Acme \(o1\) +1 +10\.00 +1,250\.00$", summary, re.MULTILINE)
    assert re.search(r"^gpu \(fee\) +0 +0\.00 +750\.00$", summary, re.MULTILINE)
    assert re.search(r"^gpu \(minimum\) +0 +0\.00 +990\.00$", summary, re.MULTILINE)


@table(
    "lines, warned",
    """
    its profile was not used    | x,Acme,,9                | x
    but only by somebody else   | gpu,Beta,,9              | gpu
    nothing was used            | *,Beta,,9                | *
    but another minimum counts  | x,Beta,,9; *,Beta,,20    | x
    its profile was free        | free,Acme,,9             |
    or another one was          | *,Acme,,99               |
    a fee without usage         | x,Acme,9                 |
    a minimum of nothing        | x,Acme,,0                |
    """,
)
def test_a_minimum_billed_in_full_without_any_usage_is_a_warning(
    run: Run, lines: str, warned: str
) -> None:
    used = tenants(usage("o1", "one", "free", "0h"), usage("o1", "two", "gpu", "1h"))
    result = run(prices=book(COLUMNS, f"gpu,,,,1; free,,,,0; {lines}"), partner=used)
    assert re.findall(r"line 4: the minimum (\S+) ", result.stderr) == warned.split()
    assert len(result.warnings) == len(warned.split())
    assert result.status == 0


# Which period is a month


@table(
    "flags, now, month",
    """
    a month       | --month=2026-05 | 07-15 | 2026-05-01T00:00:00Z 2026-06-01T00:00:00Z
    the last year | --month=last    | 01-31 | 2025-12-01T00:00:00Z 2026-01-01T00:00:00Z
    not yet over  | --month=2026-07 | 07-15 | 2026-07-01T00:00:00Z 2026-08-01T00:00:00Z
    from and to   | --timezone=Asia/Tokyo --from=2026-04-30T15:00Z --to=2026-06-01 | 07-15 \
| 2026-05-01T00:00:00+09:00 2026-06-01T00:00:00+09:00
    clocks change | --timezone=Europe/Berlin --month=2026-10 | 11-30 \
| 2026-10-01T00:00:00+02:00 2026-11-01T00:00:00+01:00
    """,
)
def test_a_fee_is_billed_for_a_calendar_month(run: Run, flags: str, now: str, month: str) -> None:
    moment = f"2026-{now}T00:00:00Z"
    result = run(*flags.split(), now=moment, prices=book(COLUMNS, "gold,Acme,1"), partner=NOBODY)
    assert result.status == 0
    assert result.cells("period_start", "period_end") == [month]


@table(
    "flags",
    """
    two months      | --from=2026-04-01 --to=2026-06-01
    a second less   | --from=2026-05-01 --to=2026-05-31T23:59:59
    a second later  | --from=2026-05-01T00:00:01 --to=2026-06-01
    31 days         | --from=2026-05-02 --to=2026-06-02
    elsewhere       | --from=2026-05-01T00:00Z --to=2026-06-01T00:00Z --timezone=Asia/Tokyo
    30 days of June | --days=30
    """,
)
def test_for_any_other_period_what_is_left_out_is_a_warning(run: Run, flags: str) -> None:
    lines = "gold,Acme,1; old,Acme,2,,,,2025-04-01; *,Beta,,3"
    now = "2026-07-01T00:00:00Z"
    result = run(*flags.split(), now=now, prices=book(COLUMNS, lines), partner=NOBODY)
    assert result.status == 3
    assert result.rows == []
    left_out = re.findall(r"line (\d: no .*): the period is not a cal", result.stderr)
    assert left_out == ["2: no fee gold", "4: no minimum *"]


def test_a_partial_bill_does_not_warn_of_other_organizations_fees(run: Run) -> None:
    prices = book(COLUMNS, "gold,Acme,1; gold,Beta,1")
    result = run("--org=Acme", "--days=7", prices=prices, partner=NOBODY)
    assert re.findall(r"line (\d)", result.stderr) == ["2"]


def test_fees_never_split_a_period(run: Run) -> None:
    prices = book(COLUMNS, "gpu,,,,1; gpu,Acme,1,,,2026-06-01")
    result = run("--from=2026-05-15", "--to=2026-06-15", prices=prices, partner=USED)
    assert result.cells("period_start") == ["2026-05-15T00:00:00Z"]
