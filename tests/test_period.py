"""Periods: which one is billed, and where it begins and ends."""

from __future__ import annotations

from conftest import Run, assert_failed, table
from example import RAW, tenants, usage

TENANT = tenants(usage("o1", "i", "gpu", "0h"))  # no hours are too many for any period


@table(
    "month, zone, period",
    """
    leap year    | 2024-02 | UTC | 2024-02-01T00:00:00Z 2024-03-01T00:00:00Z
    one offset   | 2026-05 | Europe/Berlin | 2026-05-01T00:00:00+02:00 2026-06-01T00:00:00+02:00
    two offsets  | 2026-03 | Europe/Berlin | 2026-03-01T00:00:00+01:00 2026-04-01T00:00:00+02:00
    year's end   | 2025-12 | Asia/Kolkata | 2025-12-01T00:00:00+05:30 2026-01-01T00:00:00+05:30
    no midnight  | 2017-10 | America/Asuncion | 2017-10-01T01:00:00-03:00 2017-11-01T00:00:00-03:00
    two of them  | 2020-11 | America/Havana | 2020-11-01T00:00:00-04:00 2020-12-01T00:00:00-05:00
    """,
)
def test_a_month_begins_in_the_time_zone(run: Run, month: str, zone: str, period: str) -> None:
    result = run(f"--month={month}", partner=TENANT, TIMEZONE=zone)
    assert result.cells("period_start", "period_end") == [period]


@table(
    "now, zone, month",
    """
    first second        | 2025-12-31T23:00:00Z | Europe/Berlin    | 2025-12
    last second         | 2025-12-31T22:59:59Z | Europe/Berlin    | 2025-11
    after a short month | 2026-03-31T12:00:00Z | UTC              | 2026-02
    begun without 00:00 | 2017-10-01T04:00:00Z | America/Asuncion | 2017-09
    """,
)
def test_last_is_the_month_before_this_one(run: Run, now: str, zone: str, month: str) -> None:
    result = run("--month=last", partner=TENANT, now=now, TIMEZONE=zone)
    [start] = result.cells("period_start")
    assert start.startswith(month)


@table(
    "now, end",
    """
    begun     | 2026-06-01T00:00:01+02:00 | 2026-06-01T00:00:01+02:00
    last hour | 2026-06-30T23:59:59+02:00 | 2026-06-30T23:59:59+02:00
    over      | 2026-07-01T00:00:01+02:00 | 2026-07-01T00:00:00+02:00
    """,
)
def test_a_month_is_billed_up_to_now_at_most(run: Run, now: str, end: str) -> None:
    result = run("--month=2026-06", partner=TENANT, now=now, TIMEZONE="Europe/Berlin")
    assert result.cells("period_start", "period_end") == [f"2026-06-01T00:00:00+02:00 {end}"]


@table(
    "flags, now, warnings",
    """
    begun            | --month=2026-06 | 2026-06-01T00:00:01+02:00 | 1
    not an hour ago  | --month=2026-06 | 2026-07-01T00:59:59+02:00 | 1
    an hour ago      | --month=2026-06 | 2026-07-01T01:00:00+02:00 | 0
    a month by dates | --from=2026-06-01 --to=2026-07-01 | 2026-07-01T00:00:00+02:00 | 1
    part of a month  | --from=2026-06-02 --to=2026-07-01 | 2026-07-01T00:00:00+02:00 | 0
    two months       | --from=2026-05-01 --to=2026-07-01 | 2026-07-01T00:00:00+02:00 | 0
    """,
)
def test_a_month_is_provisional_until_an_hour_after_its_end(
    run: Run, flags: str, now: str, warnings: str
) -> None:
    result = run(*flags.split(), partner=TENANT, now=now, TIMEZONE="Europe/Berlin")
    assert result.status == 0
    assert result.stderr.count("warning: the bill is provisional") == int(warnings)


@table(
    "text",
    """
    upper case      | LAST
    a second word   | last month
    no month        | 2026
    month 0         | 2026-00
    month 13        | 2026-13
    one digit       | 2026-6
    a day           | 2026-06-01
    a slash         | 2026/06
    not ASCII       | 2０２６-06
    long ago        | 1999-06
    """,
)
def test_an_invalid_month_is_an_error(run: Run, text: str) -> None:
    result = run(BILLING_MONTH=text)
    assert_failed(result, f"BILLING_MONTH: '{text}' is not .* 2026-06 or last", status=2)
    assert result.requests == []


@table(
    "text, zone, start",
    """
    a date               | 2026-06-01                | Europe/Berlin  | 2026-06-01T00:00:00+02:00
    minutes              | 2026-06-01T10:00          | Europe/Berlin  | 2026-06-01T10:00:00+02:00
    seconds, in winter   | 2026-01-01T10:00:30       | Europe/Berlin  | 2026-01-01T10:00:30+01:00
    UTC                  | 2026-06-01T10:00Z         | Europe/Berlin  | 2026-06-01T12:00:00+02:00
    an offset            | 2026-06-01T10:00:00+05:30 | Europe/Berlin  | 2026-06-01T06:30:00+02:00
    a negative offset    | 2026-06-01T10:00-04:00    | Europe/Berlin  | 2026-06-01T16:00:00+02:00
    the second of two    | 2025-10-26T02:30+01:00    | Europe/Berlin  | 2025-10-26T02:30:00+01:00
    right after the gap  | 2026-03-29T03:00          | Europe/Berlin  | 2026-03-29T03:00:00+02:00
    begins at 01:00      | 2021-03-28                | Asia/Beirut    | 2021-03-28T01:00:00+03:00
    has two midnights    | 2020-11-01                | America/Havana | 2020-11-01T00:00:00-04:00
    was left out         | 2011-12-30                | Pacific/Apia   | 2011-12-31T00:00:00+14:00
    """,
)
def test_a_date_or_time_is_in_the_time_zone(run: Run, text: str, zone: str, start: str) -> None:
    result = run(f"--from={text}", "--to=2026-06-30", partner=TENANT, TIMEZONE=zone)
    assert result.cells("period_start") == [start]


@table(
    "text",
    """
    a word              | yesterday
    a month             | 2026-06
    a week              | 2026-W23-1
    no hyphens          | 20260601
    slashes             | 2026/06/01
    a short year        | 26-06-01
    a short month       | 2026-6-01
    a short day         | 2026-06-1
    no such day         | 2026-02-29
    an offset of a date | 2026-06-01+02:00
    a blank             | 2026-06-01 10:00
    hours only          | 2026-06-01T10
    no colon            | 2026-06-01T1000
    fractions           | 2026-06-01T10:00:00.5Z
    lower case          | 2026-06-01T10:00z
    a short offset      | 2026-06-01T10:00+02
    a long offset       | 2026-06-01T10:00+25:00
    the first year      | 0001-01-01
    a time twice        | 2025-10-26T02:30
    a time left out     | 2026-03-29T02:30
    """,
)
def test_an_invalid_or_unclear_date_or_time_is_an_error(run: Run, text: str) -> None:
    result = run(f"--from={text}", "--to=2026-06-30", TIMEZONE="Europe/Berlin")
    assert_failed(result, status=2)
    assert f"'{text}' is not a date or time, such as 2026-06-01" in result.stderr
    assert result.requests == []


@table(
    "flags, month, period",
    """
    DAYS     |              |         | 2026-06-21T00:00:00Z 2026-07-01T00:00:00Z
    a month  |              | 2026-05 | 2026-05-01T00:00:00Z 2026-06-01T00:00:00Z
    --days   | --days=7     | 2026-05 | 2026-06-24T00:00:00Z 2026-07-01T00:00:00Z
    --month  | --month=last | 2026-05 | 2026-06-01T00:00:00Z 2026-07-01T00:00:00Z
    --from   | --from=2026-06-02 --to=2026-06-04 | last | 2026-06-02T00:00:00Z 2026-06-04T00:00:00Z
    """,
)
def test_a_flag_beats_the_month_which_beats_the_days(
    run: Run, flags: str, month: str, period: str
) -> None:
    result = run(*flags.split(), partner=TENANT, BILLING_MONTH=month, DAYS="10")
    assert result.cells("period_start", "period_end") == [period]


@table(
    "flags, error",
    """
    begins now     | --month=2026-07 | from 2026-07-01T00:00:00Z on, the period is empty
    ends early     | --from=2026-06-02 --to=2026-06-01 | from 2026-06-02.* is empty
    is empty       | --from=2026-06-01 --to=2026-06-01 | from 2026-06-01.* is empty
    ends late      | --from=2026-06-01 --to=2026-07-01T00:00:01Z | 01Z is after now, 2026-07-01T00
    no end         | --from=2026-06-01 | --from and --to go together
    no start       | --to=2026-06-01 | --from and --to go together
    month and end  | --month=2026-05 --to=2026-06-01 | --from and --to go together
    month and days | --month=2026-05 --days=7 | --days: not allowed with argument --month
    start and days | --from=2026-06-01 --days=7 | --days: not allowed with argument --from
    invalid month  | --month=2026-13 | argument --month: '2026-13' is not a month
    first year     | --from=0001-01-01T00:00Z --to=2026-06-01 --timezone=Etc/GMT+1 | --from, --to:
    invalid end    | --from=2026-06-01 --to=2026-06 | '2026-06' is not a date or time
    """,
)
def test_what_is_not_one_period_in_the_past_is_an_error(run: Run, flags: str, error: str) -> None:
    result = run(*flags.split(), BILLING_MONTH="2026-06")
    assert_failed(result, error, status=2)
    assert result.requests == []


def test_now_is_cut_to_a_whole_second(run: Run) -> None:
    result = run("--month=2026-07", now="2026-07-01T00:00:00.987654Z")
    assert_failed(result, "the period is empty", status=2)


def test_now_is_in_utc_whatever_the_clock_says(run: Run) -> None:
    result = run("--days=7", partner=TENANT, now="2026-07-01T02:00:00+02:00")
    assert RAW in result.files


def test_a_price_begins_in_the_time_zone(run: Run) -> None:
    prices = "profile,hourly_rate,effective_from\ngpu,1,\ngpu,2,2026-06-15\n"
    result = run("--month=2026-06", partner=TENANT, prices=prices, TIMEZONE="Asia/Tokyo")
    starts = ["2026-06-01T00:00:00+09:00", "2026-06-15T00:00:00+09:00"]
    assert result.cells("period_start") == starts


def test_lines_are_sorted_by_time_and_not_by_its_text(run: Run) -> None:
    prices = """profile,hourly_rate,effective_from
gpu,1,
gpu,2,2025-10-26T02:30+02:00
gpu,3,2025-10-26T02:00+01:00
"""
    result = run("--month=2025-10", partner=TENANT, prices=prices, TIMEZONE="Europe/Berlin")
    assert [row["billing_rate"] for row in result.sorted] == ["1", "2", "3"]
