"""Periods: which one is billed, where it begins and ends, and where a price change divides it."""

from __future__ import annotations

import csv
import io
import re
from decimal import Decimal
from typing import Any

import pytest
from conftest import Result, Run, assert_failed
from rafay_simulator import Instance, Partner, metered, organization

NOW = "2026-07-15T12:00:00Z"
INSTANCE = Instance("o1", "Acme", "p", "gpu", "i", "i-1", "2005-01-01T00:00:00Z", Decimal(1))
TENANT = Partner([organization("o1", "Acme")], metered([INSTANCE]))
BERLIN, BEIRUT, HAVANA = "Europe/Berlin", "Asia/Beirut", "America/Havana"
APIA, ASUNCION, NEW_YORK = "Pacific/Apia", "America/Asuncion", "America/New_York"
MONTHS = [  # month, time zone, period
    ("2024-02", "UTC", "2024-02-01T00:00:00Z 2024-03-01T00:00:00Z"),
    ("2026-06", BERLIN, "2026-06-01T00:00:00+02:00 2026-07-01T00:00:00+02:00"),
    ("2026-03", BERLIN, "2026-03-01T00:00:00+01:00 2026-04-01T00:00:00+02:00"),
    ("2025-10", BERLIN, "2025-10-01T00:00:00+02:00 2025-11-01T00:00:00+01:00"),
    ("2025-12", "Asia/Kolkata", "2025-12-01T00:00:00+05:30 2026-01-01T00:00:00+05:30"),
    ("2026-05", "Etc/GMT+3", "2026-05-01T00:00:00-03:00 2026-06-01T00:00:00-03:00"),
    ("2011-12", APIA, "2011-12-01T00:00:00-10:00 2012-01-01T00:00:00+14:00"),  # had no 30th
    # The next two begin with no midnight, and with two.
    ("2017-10", ASUNCION, "2017-10-01T01:00:00-03:00 2017-11-01T00:00:00-03:00"),
    ("2020-11", HAVANA, "2020-11-01T00:00:00-04:00 2020-12-01T00:00:00-05:00"),
]
LAST = [  # now, time zone, period
    ("2026-01-01T00:00:00Z", "UTC", "2025-12-01T00:00:00Z 2026-01-01T00:00:00Z"),
    ("2025-12-31T23:59:59Z", "UTC", "2025-11-01T00:00:00Z 2025-12-01T00:00:00Z"),
    ("2026-03-31T12:00:00Z", "UTC", "2026-02-01T00:00:00Z 2026-03-01T00:00:00Z"),
    ("2026-06-30T22:00:00Z", "UTC", "2026-05-01T00:00:00Z 2026-06-01T00:00:00Z"),
    ("2026-06-30T22:00:00Z", BERLIN, "2026-06-01T00:00:00+02:00 2026-07-01T00:00:00+02:00"),
    ("2026-06-30T21:59:59Z", BERLIN, "2026-05-01T00:00:00+02:00 2026-06-01T00:00:00+02:00"),
    ("2026-07-01T03:59:59Z", NEW_YORK, "2026-05-01T00:00:00-04:00 2026-06-01T00:00:00-04:00"),
    ("2025-12-31T23:00:00Z", BERLIN, "2025-12-01T00:00:00+01:00 2026-01-01T00:00:00+01:00"),
    ("2017-10-01T04:00:00Z", ASUNCION, "2017-09-01T00:00:00-04:00 2017-10-01T01:00:00-03:00"),
]
NO_MONTH = [
    *"LAST Last this June 2026 2026-Q2 2026-W23 2026-13 2026-00 2026-6 26-06 202606".split(),
    *"06/2026 2026/06 06-2026 2026-06-01 2026-06Z -2026-06 2０２６-06 0000-01 0001-01".split(),
    "last month",
]
MOMENTS = [  # date or time, time zone, as the files say it
    (" 2026-06-01 ", BERLIN, "2026-06-01T00:00:00+02:00"),
    ("2026-06-01T10:00", BERLIN, "2026-06-01T10:00:00+02:00"),
    ("2026-01-01T10:00:30", BERLIN, "2026-01-01T10:00:30+01:00"),
    ("2026-06-01T10:00:00Z", BERLIN, "2026-06-01T12:00:00+02:00"),
    ("2026-06-01T10:00Z", BERLIN, "2026-06-01T12:00:00+02:00"),
    ("2026-06-01T10:00:00+05:30", BERLIN, "2026-06-01T06:30:00+02:00"),
    ("2025-10-26T02:30+02:00", BERLIN, "2025-10-26T02:30:00+02:00"),  # of two
    ("2025-10-26T02:30-04:00", BERLIN, "2025-10-26T07:30:00+01:00"),
    ("2025-10-26T03:00", BERLIN, "2025-10-26T03:00:00+01:00"),  # after the second
    ("2026-03-29T03:00", BERLIN, "2026-03-29T03:00:00+02:00"),  # after the gap
    ("2021-03-28", BEIRUT, "2021-03-28T01:00:00+03:00"),  # begins at 01:00
    ("2020-11-01", HAVANA, "2020-11-01T00:00:00-04:00"),  # has two midnights
    ("2018-02-18", "America/Sao_Paulo", "2018-02-18T00:00:00-03:00"),  # begins after two 23:00
    ("2011-12-30", APIA, "2011-12-31T00:00:00+14:00"),  # was left out
]
UNCLEAR = [  # local times that exist twice, and that do not exist
    *(("2025-10-26T02:30", BERLIN), ("2025-10-26T02:00", BERLIN), ("2020-11-01T00:30", HAVANA)),
    *(("2026-03-29T02:30", BERLIN), ("2026-03-29T02:00", BERLIN), ("2021-03-28T00:00", BEIRUT)),
]
NO_MOMENT = [
    *"now yesterday last 1780272000 05/06/2026 05.06.2026 05-06-2026 2026/06/05 5-6-26".split(),
    *"2026 2026-06 20260601 2026-6-1 260601 2026-W23 2026-W23-1 2026-152 2026-06-31".split(),
    *"2026-13-01 2026-00-01 2026-02-29 0000-01-01 ２０２６-06-01 2026-06-01Z".split(),
    *"2026-06-01T 2026-06-01T10 2026-06-01T1000 2026-06-01T10:00:00.5Z 2026-06-01t10:00".split(),
    *"2026-06-01T10:00:00,5Z 2026-06-01T25:00 2026-06-01T10:60 2026-06-01T10:00:60".split(),
    *"2026-06-01+02:00 2026-06-01T10:00z 2026-06-01T10:00+02 2026-06-01T10:00+0200".split(),
    *"2026-06-01T10:00+25:00 2026-06-01T10:00+02:60 0001-01-01 9999-12-31T23:59-02:00".split(),
    *("June 1 2026", "1 June 2026", "2026-06-01 10:00", "2026-06-01T10:00 UTC"),
]
JUNE = "2026-06-01T00:00:00Z 2026-07-01T00:00:00Z"
MAY = "2026-05-01T00:00:00Z 2026-06-01T00:00:00Z"
WEEK = f"2026-07-08T12:00:00Z {NOW}"
PRECEDENCE = [  # flags, BILLING_MONTH, period; DAYS is 7
    *(("", "", WEEK), ("", "2026-06", JUNE), ("", "last", JUNE)),
    ("--days=7", "2026-06", WEEK),
    ("--month=2026-05", "2026-06", MAY),
    ("--from=2026-05-01 --to=2026-06-01", "2026-06", MAY),
]
ERRORS = [  # flags, what the error says
    *(("--month=2026-08", "month.*2026-08"), ("--month=2999-12", "month.*2999-12")),
    *(("--from=2026-06-01", "--to"), ("--to=2026-06-01", "--from"), ("--month=", "--month")),
    *(("--days=", "--days"), ("--from= --to=", "--from.*blank")),
    ("--from=2026-06-01 --to=15/06/2026", "--to.*15/06/2026"),
    ("--from=2026-06-02 --to=2026-06-01", "--from.*--to"),
    ("--from=2026-06-01T02:00+02:00 --to=2026-06-01", "--from.*--to"),
    ("--from=2026-06-01 --to=2026-06-01", "--from.*--to.*is empty"),
    ("--from=2026-07-01 --to=2026-07-16", f"--to.*2026-07-16.*after now, {NOW}"),
    ("--from=2026-07-01 --to=2026-07-15T12:00:01Z", "--to.*12:00:01Z.*after now"),
    ("--month=2026-05 --days=7", "--days: not allowed with argument --month"),
    ("--month=2026-05 --from=2026-05-01 --to=2026-06-01", "--from: not allowed .* --month"),
    ("--month=2026-05 --to=2026-06-01", "--from and --to go together"),
    ("--from=2026-05-01 --to=2026-06-01 --days=7", "--days: not allowed with argument --from"),
]
EDGES = "2026-06-01T00:00:01Z 2026-06-30T23:59:59Z"
CHANGES = [  # effective_from of further prices, time zone, where this divides June
    ("2026-05-31T23:59:59Z 2026-07-01T00:00:01Z", "UTC", ""),
    ("2026-06-01 2026-07-01", "UTC", ""),
    (EDGES, "UTC", EDGES),
    ("2026-06-20 2026-06-10", "UTC", "2026-06-10T00:00:00Z 2026-06-20T00:00:00Z"),
    ("2026-06-15", "Asia/Tokyo", "2026-06-15T00:00:00+09:00"),
]


def periods(result: Result) -> list[str]:
    """Return the period of each line of a bill."""
    return [f"{row['period_start']} {row['period_end']}" for row in result.rows]


def billed(run: Run, *flags: str, **more: Any) -> list[str]:
    """Return the period of each line of a bill without warnings."""
    result = run(*flags, **{"partner": TENANT, "now": NOW, **more})
    assert (result.status, result.stderr) == (0, "")
    return periods(result)


def assert_refused(run: Run, error: str, *flags: str, **more: str) -> None:
    """Assert that a run ends before any request with an error that matches."""
    result = run(*flags, **{"now": NOW, **more})
    assert_failed(result, f"error: {error}", status=2)
    assert result.requests == []


@pytest.mark.parametrize(("month", "zone", "period"), MONTHS)
def test_a_month_begins_in_the_time_zone(run: Run, month: str, zone: str, period: str) -> None:
    assert billed(run, f"--month={month}", TIMEZONE=zone) == [period]


@pytest.mark.parametrize(("now", "zone", "period"), LAST)
def test_last_is_the_month_before_this_one(run: Run, now: str, zone: str, period: str) -> None:
    result = run("--month=last", partner=TENANT, now=now, TIMEZONE=zone)
    assert periods(result) == [period]


@pytest.mark.parametrize("now", ["2026-06-01T00:00:01+02:00", "2026-06-30T23:59:59+02:00"])
def test_a_month_that_is_not_over_is_billed_up_to_now_with_a_warning(run: Run, now: str) -> None:
    result = run("--month=2026-06", partner=TENANT, now=now, TIMEZONE=BERLIN)
    assert periods(result) == [f"2026-06-01T00:00:00+02:00 {now}"]
    assert ["provisional" in each for each in result.warnings] == [True]
    assert result.status == 0


@pytest.mark.parametrize(("now", "warnings"), [("00:59:59", 1), ("01:00:00", 0)])
@pytest.mark.parametrize("flags", ["--month=2026-06", "--from=2026-06-01 --to=2026-07-01"])
def test_a_month_that_ended_less_than_an_hour_ago_is_provisional(
    run: Run, flags: str, now: str, warnings: int
) -> None:
    moment = f"2026-07-01T{now}+02:00"
    result = run(*flags.split(), partner=TENANT, now=moment, TIMEZONE=BERLIN)
    assert ["provisional" in each for each in result.warnings] == [True] * warnings
    assert result.status == 0


@pytest.mark.parametrize("text", NO_MONTH)
def test_an_invalid_month_is_an_error(run: Run, text: str) -> None:
    assert_refused(run, "BILLING_MONTH.*2026-06 or last", BILLING_MONTH=text, TIMEZONE=BERLIN)


def test_a_month_that_begins_this_moment_is_an_error(run: Run) -> None:
    now = "2026-07-31T22:00:00Z"
    assert_refused(run, ".*2026-08", "--month=2026-08", now=now, TIMEZONE=BERLIN)


@pytest.mark.parametrize(("text", "zone", "start"), MOMENTS)
def test_a_date_or_time_is_in_the_time_zone(run: Run, text: str, zone: str, start: str) -> None:
    [period] = billed(run, f"--from={text}", f"--to={NOW}", TIMEZONE=zone)
    assert period.split()[0] == start


@pytest.mark.parametrize(("text", "zone"), UNCLEAR)
@pytest.mark.parametrize("flags", ["--from={} --to=2026-07-01", "--from=2011-01-01 --to={}"])
def test_an_unclear_time_needs_an_offset(run: Run, text: str, zone: str, flags: str) -> None:
    assert_refused(run, f".*{text}.*00:00.02:00", *flags.format(text).split(), TIMEZONE=zone)


@pytest.mark.parametrize("text", NO_MOMENT)
def test_an_invalid_date_or_time_is_an_error(run: Run, text: str) -> None:
    error = f".*--from.*'{re.escape(text)}'"
    assert_refused(run, error, f"--from={text}", "--to=2026-07-01", TIMEZONE=BERLIN)


@pytest.mark.parametrize(("flags", "month", "period"), PRECEDENCE)
def test_flag_beats_month_beats_days(run: Run, flags: str, month: str, period: str) -> None:
    assert billed(run, *flags.split(), BILLING_MONTH=month, DAYS="7") == [period]


@pytest.mark.parametrize(("flags", "error"), ERRORS)
def test_what_is_not_one_period_in_the_past_is_an_error(run: Run, flags: str, error: str) -> None:
    assert_refused(run, f".*{error}", *flags.split(), BILLING_MONTH="2026-06")


def test_now_is_cut_to_a_whole_second_in_utc(run: Run) -> None:
    assert billed(run, "--days=7", now="2026-07-15T14:00:00.987654+02:00") == [WEEK]


@pytest.mark.parametrize(("changes", "zone", "inside"), CHANGES)
def test_a_price_change_divides_a_period(run: Run, changes: str, zone: str, inside: str) -> None:
    lines = [f"gpu,{n},{change}\n" for n, change in enumerate(changes.split(), 2)]
    prices = "".join(["profile,hourly_rate,effective_from\n", "gpu,1,\n", *lines])
    june = ("--from=2026-06-01", "--to=2026-07-01")
    parts = [each.split() for each in billed(run, *june, prices=prices, TIMEZONE=zone)]
    assert [start for start, _ in parts[1:]] == inside.split()
    assert [end for _, end in parts[:-1]] == inside.split()


def test_lines_are_sorted_by_time_and_not_by_its_text(run: Run) -> None:
    prices = (
        "profile,hourly_rate,effective_from\n"
        "gpu,1,\ngpu,2,2025-10-26T02:30+02:00\ngpu,3,2025-10-26T02:00+01:00\n"
    )
    result = run("--month=2025-10", partner=TENANT, prices=prices, now=NOW, TIMEZONE=BERLIN)
    rows = csv.DictReader(io.StringIO(result.sorted))
    assert [row["period_start"] for row in rows] == [
        "2025-10-01T00:00:00+02:00",
        "2025-10-26T02:30:00+02:00",
        "2025-10-26T02:00:00+01:00",
    ]
