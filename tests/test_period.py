"""Which period is billed: where a month, a date and a part of a period begin and end."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ncp_metrics import (
    Period,
    Price,
    begin_of_day,
    between,
    calendar_month,
    check_timezone,
    choose_period,
    parse_moment,
    split_period,
)

UTC = timezone.utc
PATIENT = settings(deadline=None)


def at(text: str) -> datetime:
    """Return an instant such as `2026-06-01T00:00:00Z`."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def period(start: str, end: str) -> Period:
    """Return the period between two instants."""
    return Period(at(start), at(end))


NOW = at("2026-07-15T12:00:00Z")
LATER = at("2037-12-31T00:00:00Z")
ODD_ZONES = (  # half hours, changes at midnight, at 00:01, of half an hour, and of a whole day
    *("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu"),
    *("America/Sao_Paulo", "America/Asuncion", "America/Havana", "Asia/Beirut", "Asia/Tehran"),
    *("America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Pyongyang"),
    *("Africa/Casablanca", "Pacific/Kiritimati", "Etc/GMT+12"),
)


# Time zones


@pytest.mark.parametrize(
    ("name", "hours"),
    [
        ("UTC", 0),
        ("Etc/UTC", 0),
        ("Europe/Berlin", 2),
        ("America/Argentina/Buenos_Aires", -3),
        ("Asia/Kolkata", 5.5),
        ("America/Port-au-Prince", -4),
        pytest.param("Etc/GMT+3", -3, id="Etc/GMT+3, whose sign is that of POSIX"),
    ],
)
def test_a_zone_has_an_iana_name(name: str, hours: float) -> None:
    moment = datetime(2026, 7, 1, tzinfo=check_timezone(name))
    assert moment.utcoffset() == timedelta(hours=hours)


def test_every_iana_name_is_known() -> None:
    for name in available_timezones() - {"localtime"}:
        check_timezone(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "utc", "europe/berlin", "Europe/berlin", "Europe", "Europe/", "Foo/Bar"),
        *("UTC+3", "UTC-03:00", "GMT+3", "+02:00", "EST5EDT4", "CEST", "Z"),
        *(
            "/etc/localtime",
            "localtime",
            "../UTC",
            "Europe/../UTC",
            "Europe/Berlin\n",
            "Europe Berlin",
        ),
        "CET-1CEST,M3.5.0,M10.5.0/3",
        pytest.param("Europe//Berlin"),
    ],
    ids=ascii,
)
def test_what_is_no_iana_name_is_no_zone(name: str) -> None:
    with pytest.raises(ValueError, match="is not an IANA time zone, such as UTC or Europe/Berlin"):
        check_timezone(name)


# Days


@pytest.mark.parametrize(
    ("day", "zone", "begins"),
    [
        ("2026-06-01", "UTC", "2026-06-01T00:00:00Z"),
        ("2026-06-01", "Europe/Berlin", "2026-05-31T22:00:00Z"),
        ("2026-01-01", "Europe/Berlin", "2025-12-31T23:00:00Z"),
        ("2026-06-01", "Asia/Kolkata", "2026-05-31T18:30:00Z"),
        pytest.param("2021-03-28", "Asia/Beirut", "2021-03-27T22:00:00Z", id="Beirut at 01:00"),
        pytest.param("2018-11-04", "America/Sao_Paulo", "2018-11-04T03:00:00Z", id="Sao Paulo"),
        pytest.param("2020-11-01", "America/Havana", "2020-11-01T04:00:00Z", id="midnight twice"),
        pytest.param("2018-02-18", "America/Sao_Paulo", "2018-02-18T03:00:00Z", id="23:00 twice"),
        pytest.param("2011-12-30", "Pacific/Apia", "2011-12-30T10:00:00Z", id="day left out"),
    ],
)
def test_a_day_begins_at_its_first_moment(day: str, zone: str, begins: str) -> None:
    assert begin_of_day(datetime.fromisoformat(day), check_timezone(zone)) == at(begins)


@PATIENT
@given(
    moment=st.datetimes(datetime(2005, 1, 1), datetime(2036, 1, 1), timezones=st.just(UTC)),
    name=st.sampled_from(ODD_ZONES),
)
@example(moment=at("2021-03-27T22:00:00Z"), name="Asia/Beirut")
@example(moment=at("2020-11-01T04:00:00Z"), name="America/Havana")
def test_no_moment_of_a_day_is_before_it_begins(moment: datetime, name: str) -> None:
    zone = check_timezone(name)
    day = moment.astimezone(zone).replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
    begins = begin_of_day(day.replace(fold=0), zone)
    assert begins <= moment
    assert begins.astimezone(zone).date() == day.date()


# Months


@pytest.mark.parametrize(
    ("month", "zone", "expected"),
    [
        ("2026-06", "UTC", period("2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z")),
        ("2025-12", "UTC", period("2025-12-01T00:00:00Z", "2026-01-01T00:00:00Z")),
        ("2024-02", "UTC", period("2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z")),
        ("2026-06", "Europe/Berlin", period("2026-05-31T22:00:00Z", "2026-06-30T22:00:00Z")),
        ("2026-03", "Europe/Berlin", period("2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z")),
        ("2025-10", "Europe/Berlin", period("2025-09-30T22:00:00Z", "2025-10-31T23:00:00Z")),
        ("2025-12", "Asia/Kolkata", period("2025-11-30T18:30:00Z", "2025-12-31T18:30:00Z")),
        ("2021-03", "Asia/Beirut", period("2021-02-28T22:00:00Z", "2021-03-31T21:00:00Z")),
        pytest.param(
            "2017-10",
            "America/Asuncion",
            period("2017-10-01T04:00:00Z", "2017-11-01T03:00:00Z"),
            id="clocks go forward when the month begins",
        ),
        pytest.param(
            "2017-09",
            "America/Asuncion",
            period("2017-09-01T04:00:00Z", "2017-10-01T04:00:00Z"),
            id="clocks go forward when the month ends",
        ),
        pytest.param(
            "2020-11",
            "America/Havana",
            period("2020-11-01T04:00:00Z", "2020-12-01T05:00:00Z"),
            id="the month begins twice",
        ),
    ],
)
def test_a_month_begins_and_ends_in_its_zone(month: str, zone: str, expected: Period) -> None:
    assert calendar_month(month, check_timezone(zone), NOW) == (expected, False)


@pytest.mark.parametrize(
    ("month", "zone", "hours"),
    [
        ("2026-06", "UTC", 720),
        ("2026-03", "UTC", 744),
        ("2026-03", "Europe/Berlin", 743),
        ("2025-10", "Europe/Berlin", 745),
        ("2026-02", "Europe/Berlin", 672),
        pytest.param("2024-02", "Europe/Berlin", 696, id="leap year"),
        pytest.param("2000-02", "UTC", 696, id="leap century"),
        pytest.param("2011-12", "Pacific/Apia", 720, id="Apia without its 30th"),
    ],
)
def test_a_month_has_the_hours_that_its_clocks_showed(month: str, zone: str, hours: int) -> None:
    assert calendar_month(month, check_timezone(zone), NOW)[0].hours == hours


@pytest.mark.parametrize(
    ("now", "zone", "expected"),
    [
        ("2026-07-15T12:00:00Z", "UTC", "2026-06"),
        pytest.param("2026-01-01T00:00:00Z", "UTC", "2025-12", id="the year turns"),
        pytest.param("2025-12-31T23:59:59Z", "UTC", "2025-11", id="the year is about to turn"),
        pytest.param("2026-03-31T12:00:00Z", "UTC", "2026-02", id="there was no 31st"),
        pytest.param("2026-06-30T22:00:00Z", "UTC", "2026-05", id="still June in UTC"),
        pytest.param("2026-06-30T22:00:00Z", "Europe/Berlin", "2026-06", id="July in Berlin"),
        pytest.param("2026-06-30T21:59:59Z", "Europe/Berlin", "2026-05", id="not yet in Berlin"),
        pytest.param("2026-07-01T03:59:59Z", "America/New_York", "2026-05", id="nor in New York"),
        pytest.param("2025-12-31T23:00:00Z", "Europe/Berlin", "2025-12", id="the year turns there"),
        pytest.param("2017-10-01T04:00:00Z", "America/Asuncion", "2017-09", id="from 00 to 01:00"),
    ],
)
def test_last_is_the_month_before_this_one_in_the_zone(now: str, zone: str, expected: str) -> None:
    there = check_timezone(zone)
    assert calendar_month("last", there, at(now)) == calendar_month(expected, there, LATER)


@pytest.mark.parametrize(
    ("now", "end", "provisional"),
    [
        pytest.param("2026-06-30T21:59:59Z", "2026-06-30T21:59:59Z", True, id="a second to go"),
        pytest.param("2026-06-30T22:00:00Z", "2026-06-30T22:00:00Z", False, id="over now"),
        pytest.param("2026-07-15T12:00:00Z", "2026-06-30T22:00:00Z", False, id="long over"),
        pytest.param("2026-05-31T22:00:01Z", "2026-05-31T22:00:01Z", True, id="just begun"),
    ],
)
def test_a_month_that_is_not_over_is_provisional_and_runs_up_to_now(
    now: str, end: str, provisional: bool
) -> None:
    month = calendar_month("2026-06", check_timezone("Europe/Berlin"), at(now))
    assert month == (period("2026-05-31T22:00:00Z", end), provisional)


@pytest.mark.parametrize(
    ("month", "now"),
    [
        ("2026-08", "2026-07-15T12:00:00Z"),
        ("2999-12", "2026-07-15T12:00:00Z"),
        pytest.param("2026-08", "2026-07-31T22:00:00Z", id="begins this moment"),
    ],
)
def test_a_month_that_has_not_begun_is_an_error(month: str, now: str) -> None:
    with pytest.raises(ValueError, match=f"--month, BILLING_MONTH: {month} has not begun"):
        calendar_month(month, check_timezone("Europe/Berlin"), at(now))


@pytest.mark.parametrize(
    "text",
    [
        *("", "LAST", "Last", "last month", "this", "June", "2026", "2026-Q2", "2026-W23"),
        *("2026-13", "2026-00", "2026-6", "26-06", "202606", "06/2026", "2026/06", "06-2026"),
        *("2026-06-01", "2026-06Z", "-2026-06", "2026-06\n", "２０２６-06", "0000-01"),
    ],
    ids=ascii,
)
def test_what_is_no_month_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"is neither a month, such as 2026-06, nor last"):
        calendar_month(text, UTC, NOW)


def test_a_month_that_begins_before_time_does_is_an_error() -> None:
    with pytest.raises(ValueError, match="--month, BILLING_MONTH"):
        calendar_month("0001-01", check_timezone("Europe/Berlin"), NOW)


@PATIENT
@given(
    number=st.integers(2005 * 12, 2036 * 12),
    name=st.sampled_from(ODD_ZONES),
)
@example(number=2017 * 12 + 8, name="America/Asuncion")
@example(number=2020 * 12 + 9, name="America/Havana")
def test_one_month_ends_where_the_next_begins(number: int, name: str) -> None:
    zone = check_timezone(name)
    months = [f"{each // 12:04}-{each % 12 + 1:02}" for each in (number, number + 1)]
    (one, _), (other, _) = (calendar_month(month, zone, LATER) for month in months)
    assert one.start < one.end == other.start < other.end


# Dates and times


@pytest.mark.parametrize(
    ("text", "zone", "instant"),
    [
        ("2026-06-01", "UTC", "2026-06-01T00:00:00Z"),
        ("2026-06-01", "Europe/Berlin", "2026-05-31T22:00:00Z"),
        ("2024-02-29", "UTC", "2024-02-29T00:00:00Z"),
        ("2026-06-01T10:00", "Europe/Berlin", "2026-06-01T08:00:00Z"),
        ("2026-01-01T10:00:30", "Europe/Berlin", "2026-01-01T09:00:30Z"),
        ("2026-06-01T10:00:00Z", "Europe/Berlin", "2026-06-01T10:00:00Z"),
        ("2026-06-01T10:00Z", "Europe/Berlin", "2026-06-01T10:00:00Z"),
        ("2026-06-01T10:00:00+05:30", "Europe/Berlin", "2026-06-01T04:30:00Z"),
        ("2026-06-01T10:00:00-04:00", "Europe/Berlin", "2026-06-01T14:00:00Z"),
        ("  2026-06-01 ", "UTC", "2026-06-01T00:00:00Z"),
        pytest.param("2021-03-28", "Asia/Beirut", "2021-03-27T22:00:00Z", id="no midnight"),
        pytest.param("2025-10-26T02:30+02:00", "UTC", "2025-10-26T00:30:00Z", id="first 02:30"),
        pytest.param("2025-10-26T02:30+01:00", "UTC", "2025-10-26T01:30:00Z", id="second 02:30"),
        pytest.param("2025-10-26T03:00", "Europe/Berlin", "2025-10-26T02:00:00Z", id="after both"),
        pytest.param("2026-03-29T03:00", "Europe/Berlin", "2026-03-29T01:00:00Z", id="after none"),
    ],
)
def test_a_moment_is_iso_8601_in_the_zone_unless_it_has_an_offset(
    text: str, zone: str, instant: str
) -> None:
    assert parse_moment(text, check_timezone(zone)) == at(instant)


def test_a_moment_is_given_back_in_utc() -> None:
    moments = [parse_moment(f"2026-06-01{rest}", UTC) for rest in ("", "T10:00", "T10:00+02:00")]
    assert {moment.tzinfo for moment in moments} == {UTC}


@pytest.mark.parametrize(
    ("text", "zone"),
    [
        pytest.param("2025-10-26T02:30", "Europe/Berlin", id="twice"),
        pytest.param("2025-10-26T02:00:00", "Europe/Berlin", id="the first that comes twice"),
        pytest.param("2026-03-29T02:30", "Europe/Berlin", id="never"),
        pytest.param("2026-03-29T02:00", "Europe/Berlin", id="the first that never comes"),
        pytest.param("2021-03-28T00:00", "Asia/Beirut", id="midnight as a time"),
        pytest.param("2018-11-04T00:00", "America/Sao_Paulo", id="another"),
        pytest.param("2020-11-01T00:30", "America/Havana", id="twice after midnight"),
    ],
)
def test_a_time_that_clocks_show_twice_or_never_needs_an_offset(text: str, zone: str) -> None:
    with pytest.raises(ValueError, match=f"{text!r} comes twice or never, .*: add an offset"):
        parse_moment(text, check_timezone(zone))


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "yesterday", "last", "1780272000", "June 1 2026", "1 June 2026"),
        *("05/06/2026", "05.06.2026", "05-06-2026", "2026/06/05", "5-6-26"),
        *(
            "2026",
            "2026-06",
            "20260601",
            "2026-6-1",
            "260601",
            "2026-W23",
            "2026-W23-1",
            "2026-152",
        ),
        *("2026-06-31", "2026-13-01", "2026-00-01", "2026-02-29", "0000-01-01", "２０２６-06-01"),
        *("2026-06-01T", "2026-06-01T10", "2026-06-01T1000", "2026-06-01T10:00:00.5Z"),
        *("2026-06-01T10:00:00,5Z", "2026-06-01t10:00", "2026-06-01 10:00", "2026-06-01T25:00"),
        *("2026-06-01T10:60", "2026-06-01T10:00:60", "2026-06-01T10:00z", "2026-06-01T10:00 UTC"),
        *("2026-06-01Z", "2026-06-01+02:00", "2026-06-01T10:00+02", "2026-06-01T10:00+0200"),
        *("2026-06-01T10:00+25:00", "2026-06-01T10:00+02:60", "2026-06-01T10:00 CEST"),
        *("0001-01-01", "0001-01-01T00:00+02:00", "9999-12-31T23:59-02:00"),
    ],
    ids=ascii,
)
def test_what_is_no_iso_8601_date_or_time_or_is_ambiguous_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="is not a date or time such as 2026-06-01 or 2026-06-01T"):
        parse_moment(text, check_timezone("Europe/Berlin"))


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2026-06-01", "2026-06-15", period("2026-05-31T22:00:00Z", "2026-06-14T22:00:00Z")),
        ("2026-03-29", "2026-03-30", period("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z")),
        (
            "2026-06-01T08:00",
            "2026-06-01T08:00:01Z",
            period("2026-06-01T06:00:00Z", "2026-06-01T08:00:01Z"),
        ),
        pytest.param(
            "2026-07-15",
            "2026-07-15T12:00:00Z",
            period("2026-07-14T22:00:00Z", "2026-07-15T12:00:00Z"),
            id="up to now",
        ),
    ],
)
def test_from_and_to_are_where_the_period_begins_and_ends(
    start: str, end: str, expected: Period
) -> None:
    assert between(start, end, check_timezone("Europe/Berlin"), NOW) == expected


@pytest.mark.parametrize(
    ("start", "end", "problem"),
    [
        pytest.param("2026-06-01", "", "--from, --to: one goes with the other", id="from alone"),
        pytest.param("", "2026-06-01", "--from, --to: one goes with the other", id="to alone"),
        pytest.param("05/06/2026", "2026-06-15", "--from, --to: '05/06/2026' is not", id="from"),
        pytest.param("2026-06-01", "15/06/2026", "--from, --to: '15/06/2026' is not", id="to"),
        pytest.param("2026-06-02", "2026-06-01", "the wrong way round", id="reversed"),
        pytest.param("2026-06-01", "2026-06-01", "the period has no length", id="the same date"),
        pytest.param("2026-06-01T02:00+02:00", "2026-06-01", "has no length", id="same instant"),
        pytest.param("2026-07-01", "2026-07-16", "--to: 2026-07-16 is in the future", id="future"),
        pytest.param(
            "2026-07-01", "2026-07-15T12:00:01Z", "now is 2026-07-15T12:00:00Z", id="one second"
        ),
        pytest.param("2027-01-01", "2027-02-01", "is in the future", id="all of it"),
    ],
)
def test_from_and_to_without_a_period_in_the_past_are_an_error(
    start: str, end: str, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        between(start, end, UTC, NOW)


# Which period


JUNE = period("2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z")
MAY = period("2026-05-01T00:00:00Z", "2026-06-01T00:00:00Z")
WEEK = period("2026-07-08T12:00:00Z", "2026-07-15T12:00:00Z")


@pytest.mark.parametrize(
    ("flags", "month", "expected"),
    [
        pytest.param({}, "", WEEK, id="DAYS"),
        pytest.param({}, "2026-06", JUNE, id="BILLING_MONTH before DAYS"),
        pytest.param({}, "last", JUNE, id="last in the environment"),
        pytest.param({"DAYS": "7"}, "", WEEK, id="--days"),
        pytest.param({"DAYS": "7"}, "2026-06", WEEK, id="--days before BILLING_MONTH"),
        pytest.param({"DAYS": "7"}, "nonsense", WEEK, id="--days before any BILLING_MONTH"),
        pytest.param({"BILLING_MONTH": "2026-05"}, "2026-05", MAY, id="--month"),
        pytest.param(
            {"--from": "2026-05-01", "--to": "2026-06-01"}, "", MAY, id="--from before DAYS"
        ),
        pytest.param(
            {"--from": "2026-05-01", "--to": "2026-06-01"},
            "2026-06",
            MAY,
            id="--from before BILLING_MONTH",
        ),
        pytest.param(
            {"BILLING_MONTH": "", "--from": None, "--to": None, "DAYS": ""},
            "2026-06",
            JUNE,
            id="blank flags are unset",
        ),
        pytest.param(
            {"DAYS": " "},
            "2026-06",
            JUNE,
            id="a flag of spaces is blank",
        ),
    ],
)
def test_a_flag_beats_the_environment_and_a_month_beats_days(
    flags: Mapping[str, str], month: str, expected: Period
) -> None:
    assert choose_period(flags, month, 7, UTC, NOW) == (expected, False)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("BILLING_MONTH", "DAYS"), "--month, --days are 2 periods: give one"),
        (("BILLING_MONTH", "--from", "--to"), "--month, --from are 2 periods: give one"),
        (("--from", "--to", "DAYS"), "--from, --days are 2 periods: give one"),
        (("BILLING_MONTH", "--to", "DAYS"), "--month, --from, --days are 3 periods"),
        (("BILLING_MONTH", "--from"), "--month, --from are 2 periods: give one"),
    ],
    ids=repr,
)
def test_flags_for_more_than_one_kind_of_period_are_an_error(
    flags: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        choose_period(dict.fromkeys(flags, "2026-05-01"), "", 7, UTC, NOW)


@pytest.mark.parametrize("flag", ["--from", "--to"])
def test_one_end_of_a_period_does_not_fall_back_to_the_environment(flag: str) -> None:
    with pytest.raises(ValueError, match="--from, --to: one goes with the other"):
        choose_period({flag: "2026-05-01"}, "2026-06", 7, UTC, NOW)


def test_a_month_of_the_environment_that_is_not_over_is_provisional() -> None:
    july = period("2026-07-01T00:00:00Z", "2026-07-15T12:00:00Z")
    assert choose_period({}, "2026-07", 7, UTC, NOW) == (july, True)


@pytest.mark.parametrize("month", ["", "2026-07", "last"], ids=["days", "month", "last"])
def test_a_period_has_whole_seconds_in_utc(month: str) -> None:
    there = (NOW + timedelta(microseconds=987_654)).astimezone(timezone(timedelta(hours=2)))
    chosen, _ = choose_period({}, month, 7, check_timezone("Europe/Berlin"), there)
    assert [(each.microsecond, each.tzinfo) for each in chosen] == [(0, UTC), (0, UTC)]


# Parts of a period


def prices_from(*moments: datetime | None) -> list[Price]:
    """Return prices that hold from these moments on."""
    return [
        Price(
            line=line,
            profile="gpu",
            dimension="instance",
            organization="",
            profile_type="",
            effective_from=moment,
            rate=Decimal(1),
        )
        for line, moment in enumerate(moments, start=2)
    ]


@pytest.mark.parametrize(
    ("changes", "boundaries"),
    [
        pytest.param([], [], id="a price that always held"),
        pytest.param(["2026-05-31T23:59:59Z", "2026-07-01T00:00:01Z"], [], id="outside"),
        pytest.param(["2026-06-01T00:00:00Z"], [], id="when it begins"),
        pytest.param(["2026-07-01T00:00:00Z"], [], id="when it ends"),
        pytest.param(
            ["2026-06-01T00:00:01Z", "2026-06-30T23:59:59Z"],
            ["2026-06-01T00:00:01Z", "2026-06-30T23:59:59Z"],
            id="a second inside",
        ),
        pytest.param(
            ["2026-06-20T00:00:00Z", "2026-06-10T00:00:00Z"],
            ["2026-06-10T00:00:00Z", "2026-06-20T00:00:00Z"],
            id="in order of time",
        ),
        pytest.param(
            ["2026-06-10T00:00:00Z"] * 3, ["2026-06-10T00:00:00Z"], id="several prices at once"
        ),
    ],
)
def test_a_period_is_split_where_a_price_changes_inside_it(
    changes: list[str], boundaries: list[str]
) -> None:
    ends = [JUNE.start, *map(at, boundaries), JUNE.end]
    prices = prices_from(None, *map(at, changes))
    assert split_period(JUNE, prices) == [Period(*pair) for pair in zip(ends, ends[1:])]


SECONDS = st.integers(0, 60).map(lambda second: JUNE.start + timedelta(seconds=second))


@given(ends=st.lists(SECONDS, min_size=2, max_size=2, unique=True), changes=st.lists(SECONDS))
def test_the_parts_of_a_period_cover_it_exactly_in_order_without_gap_or_overlap(
    ends: list[datetime], changes: list[datetime]
) -> None:
    whole = Period(*sorted(ends))
    parts = split_period(whole, prices_from(None, *changes))
    assert parts[0].start == whole.start
    assert parts[-1].end == whole.end
    assert all(part.start < part.end for part in parts)
    assert all(part.end == following.start for part, following in zip(parts, parts[1:]))
    assert {part.start for part in parts[1:]} == {c for c in changes if whole.start < c < whole.end}


def test_a_zone_that_dateutil_misreads_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ncp_metrics.ZoneInfo", lambda name: ZoneInfo("Asia/Tokyo"))
    with pytest.raises(ValueError, match="misreads this machine's Europe/Berlin: upgrade it"):
        check_timezone("Europe/Berlin")


def test_a_zone_that_the_machine_has_no_file_of_is_read_by_dateutil_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find_none(name: str) -> ZoneInfo:
        raise ZoneInfoNotFoundError(name)

    monkeypatch.setattr("ncp_metrics.ZoneInfo", find_none)
    assert check_timezone("Europe/Berlin")
