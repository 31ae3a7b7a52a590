"""How usage becomes lines with amounts, and lines become the cells of a file."""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ncp_metrics import (
    COLUMNS,
    MINOR_UNITS,
    ApiError,
    Line,
    Organization,
    Period,
    Price,
    PriceBook,
    Record,
    Usage,
    bill,
    billing_amount,
    file_names,
    format_line,
    metered_hours,
    parse_instant,
    parse_record,
    plain,
    printable,
    sort_lines,
    text_cell,
    write_csv,
)

CENTURY = Decimal(10**6)
ACME = Organization("4kd82ma", "Acme")
OTHER = Organization("p7w3xq9", "Other")
PERIOD = Period(
    datetime(2026, 6, 1, tzinfo=timezone.utc), datetime(2026, 7, 1, tzinfo=timezone.utc)
)
ROW = {
    "instance_organization_id": "4kd82ma",
    "instance_organization_name": "Acme",
    "instance_project_id": "9sk2mm1",
    "instance_project_name": "research",
    "profile_id": "019c2891-0000-7aec-a429-000000000001",
    "profile_name": "gpu-h100-x1",
    "instance_id": "019c510c",
    "instance_name": "train-07",
    "created_at": "2026-06-02T08:51:41Z",
    "parameters": [
        {
            "name": "GPU",
            "usage": "20.59h",
            "is_label": True,
            "raw_usage": Decimal("20.594723"),
            "label_value": "1",
        },
        {
            "name": "storage_size",
            "usage": "1200.00h",
            "is_label": False,
            "raw_usage": Decimal("1200.0"),
        },
    ],
    "usage": "20.59h",
    "raw_usage": Decimal("20.594723"),
    "start_time": "2026-06-01T00:00:00Z",
    "end_time": "2026-07-01T00:00:00Z",
}
RECORD = Record(
    organization_id="4kd82ma",
    organization_name="Acme",
    project="research",
    profile="gpu-h100-x1",
    instance="train-07",
    instance_id="019c510c",
    status="",
    created_at="2026-06-02T08:51:41Z",
    parameters="GPU=1; storage_size=1200.00h",
    hours=Decimal("20.59"),
    quantities=(),
)
TEXT_COLUMNS = (*COLUMNS[:3], *COLUMNS[4:8], "parameters")

PATIENT = settings(deadline=None)
DECIMALS = st.decimals(min_value=0, max_value=CENTURY, allow_nan=False, allow_infinity=False)
HOURS = st.decimals(min_value=0, max_value=CENTURY, places=2)
RATES = st.from_regex(r"[0-9]{1,40}(\.[0-9]{1,60})?", fullmatch=True).map(Decimal)
CURRENCIES = st.sampled_from(["USD", "JPY", "KWD", "CLF"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def book_of(rates: dict[str, Decimal]) -> PriceBook:
    """Return a price book that has a rate for each profile."""
    prices = [
        Price(line, profile, "instance", "", "", None, rate)
        for line, (profile, rate) in enumerate(rates.items(), start=2)
    ]
    return PriceBook(Path("prices.csv"), "", prices)


def line_with(**cells: Any) -> Line:
    """Return the line of RECORD, but for some columns."""
    organization = Organization(
        cells.pop("organization_id", ACME.id), cells.pop("organization", ACME.name)
    )
    starts = cells.pop("period_start", "2026-06-01T00:00:00Z")
    period = Period(parse_instant(starts), parse_instant("2026-07-01T00:00:00Z"))
    kind = cells.pop("profile_type", "compute")
    hours = cells.pop("usage_hours", Decimal("20.59"))
    rate = cells.pop("billing_rate", Decimal("2.50"))
    amount = cells.pop("billing_amount", Decimal("51.48"))
    record = RECORD._replace(**cells)
    return Line(Usage(organization, kind, period, []), record, "instance", hours, rate, amount)


def row_of(line: Line) -> dict[str, str]:
    """Return the cells of a line by column."""
    return dict(zip(COLUMNS, format_line(line, "USD")))


def without(name: str) -> dict[str, Any]:
    """Return the row of the API without a field."""
    return {key: value for key, value in ROW.items() if key != name}


@pytest.fixture
def far_from_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the local time be far from UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XYZ-9:45")
        time.tzset()
        yield
    time.tzset()


# Hours


@pytest.mark.parametrize(
    ("row", "hours"),
    [
        pytest.param({"usage": "20.59h", "raw_usage": Decimal("99.9")}, "20.59", id="usage wins"),
        pytest.param({"usage": "20.59h"}, "20.59", id="usage only"),
        pytest.param({"usage": "0.00h", "raw_usage": Decimal("9.9")}, "0.00", id="zero wins, too"),
        pytest.param({"usage": "20h"}, "20.00", id="two decimals at least"),
        pytest.param({"usage": "20.5h"}, "20.50", id="the second decimal"),
        pytest.param({"usage": "20.594h"}, "20.594", id="as metered, not rounded"),
        pytest.param({"usage": "", "raw_usage": Decimal("1.5")}, "1.50", id="usage empty"),
        pytest.param({"usage": " ", "raw_usage": Decimal("1.5")}, "1.50", id="usage blank"),
        pytest.param({"usage": None, "raw_usage": Decimal("1.5")}, "1.50", id="usage null"),
        pytest.param({"usage": "1.25h", "raw_usage": None}, "1.25", id="raw_usage null"),
        pytest.param({"raw_usage": 1200}, "1200.00", id="raw_usage whole"),
        pytest.param({"raw_usage": 0}, "0.00", id="raw_usage zero"),
        pytest.param({"raw_usage": Decimal("20.594723")}, "20.59", id="rounded down"),
        pytest.param({"raw_usage": Decimal("20.595")}, "20.60", id="half up"),
        pytest.param({"raw_usage": Decimal("20.585")}, "20.59", id="half up from an even digit"),
        pytest.param({"raw_usage": Decimal("20.5849999999999999999999999999")}, "20.58", id="once"),
        pytest.param({"raw_usage": Decimal("1E+3")}, "1000.00", id="large exponent"),
        pytest.param({"raw_usage": Decimal("1E-300")}, "0.00", id="small exponent"),
        pytest.param({"raw_usage": Decimal("0.005")}, "0.01", id="the least that counts"),
    ],
)
def test_the_hours_are_usage_or_else_raw_usage_half_up(row: dict[str, Any], hours: str) -> None:
    assert plain(metered_hours(row, CENTURY)) == hours


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        pytest.param({}, "usage and raw_usage are both missing", id="neither"),
        pytest.param({"usage": None, "raw_usage": None}, "both missing", id="both null"),
        pytest.param({"usage": ""}, "both missing", id="blank"),
        pytest.param({"usage": "-0.01h"}, "negative hours", id="negative usage"),
        pytest.param({"raw_usage": Decimal("-0.001")}, "negative hours", id="negative raw_usage"),
        pytest.param({"raw_usage": -1}, "negative hours", id="negative whole"),
        pytest.param({"usage": "1000000.01h"}, "absurd hours", id="longer than a century"),
        pytest.param({"raw_usage": Decimal("1E+999999")}, "absurd hours", id="absurd exponent"),
        pytest.param({"usage": 20.59}, "usage is not text", id="number for text"),
        pytest.param({"raw_usage": "20.59"}, "raw_usage is not a number", id="text for number"),
        pytest.param({"raw_usage": True}, "raw_usage is not a number", id="true for number"),
        pytest.param({"usage": "1h", "raw_usage": "1"}, "raw_usage is not a number", id="unused"),
        *(
            pytest.param({"usage": usage, "raw_usage": 1}, "usage is not hours", id=ascii(usage))
            for usage in [
                *("20.59", "h", ".5h", "5.h", "1,5h", "1_0h", "+1h", "1e3h", "20.59H", "20.59 h"),
                *("NaNh", "infh", "20m", "1h30m", "１h", "1h2h", "0x1h"),
            ]
        ),
    ],
)
def test_hours_that_are_none_are_refused(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(ApiError, match=problem):
        metered_hours(row, CENTURY)


@PATIENT
@given(DECIMALS)
def test_raw_usage_is_rounded_half_up_to_a_hundredth(raw_usage: Decimal) -> None:
    hours = metered_hours({"raw_usage": raw_usage}, CENTURY)
    assert Fraction(hours) == half_up(Fraction(raw_usage), 2)


# Records


def test_a_record_holds_what_is_billed_and_who_used_it() -> None:
    assert parse_record(ROW) == RECORD


@pytest.mark.parametrize("name", ["instance_organization_id", "instance_id", "profile_name"])
@pytest.mark.parametrize("value", ["", " \t", None], ids=repr)
def test_a_record_without_a_required_field_is_refused(name: str, value: str | None) -> None:
    with pytest.raises(ApiError, match=f"{name} is missing"):
        parse_record({**ROW, name: value})


@pytest.mark.parametrize("name", ["instance_organization_id", "instance_id", "profile_name"])
def test_a_record_that_leaves_a_required_field_out_is_refused(name: str) -> None:
    with pytest.raises(ApiError, match=f"{name} is missing"):
        parse_record(without(name))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("instance_project_name", "project"),
        ("instance_name", "instance"),
        ("created_at", "created_at"),
        ("parameters", "parameters"),
    ],
)
def test_a_record_without_an_optional_field_is_blank_there(name: str, field: str) -> None:
    blank: dict[str, Any] = {field: ""}
    assert parse_record(without(name)) == RECORD._replace(**blank)


@pytest.mark.parametrize("value", [7, Decimal("7.5"), True, [], {}], ids=repr)
@pytest.mark.parametrize(
    "name",
    [
        "instance_organization_id",
        "instance_project_name",
        "profile_name",
        "instance_id",
        "instance_name",
        "created_at",
        "status",
        "deleted_at",
        "usage",
    ],
)
def test_a_field_that_is_not_text_is_refused(name: str, value: object) -> None:
    with pytest.raises(ApiError, match=f"{name} is not text"):
        parse_record({**ROW, name: value})


@pytest.mark.parametrize("row", [None, [], "text", 7], ids=repr)
def test_a_record_that_is_no_object_is_refused(row: object) -> None:
    with pytest.raises(ApiError, match="not a JSON object"):
        parse_record(row)


@pytest.mark.parametrize(
    "wrong",
    [
        {"usage": "-1.00h"},
        {"usage": None, "raw_usage": None},
        {"profile_name": ""},
        {"created_at": "yesterday"},
        {"parameters": "GPU"},
        {"parameters": [{"name": "GPU"}]},
    ],
    ids=str,
)
def test_an_error_names_the_instance(wrong: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match=r"^instance train-07 019c510c: "):
        parse_record({**ROW, **wrong})


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        pytest.param({}, "", id="neither"),
        pytest.param({"status": "running"}, "running", id="status"),
        pytest.param({"status": "", "deleted_at": None}, "", id="both empty"),
        pytest.param({"deleted_at": "2026-06-03T17:20:00Z"}, "deleted", id="deleted_at"),
        pytest.param({"deleted_at": ""}, "", id="deleted_at empty"),
        pytest.param({"deleted_at": "0001-01-01T00:00:00Z"}, "", id="Go's time that was not set"),
        pytest.param(
            {"status": "stopped", "deleted_at": "2026-06-03T17:20:00Z"}, "stopped", id="both"
        ),
        pytest.param(
            {"status": "", "deleted_at": "2026-06-03T17:20:00Z"}, "deleted", id="status empty"
        ),
    ],
)
def test_the_status_is_what_the_api_gives(fields: dict[str, Any], status: str) -> None:
    assert parse_record({**ROW, **fields}).status == status


@pytest.mark.parametrize(
    ("text", "created_at"),
    [
        ("2026-06-02T08:51:41Z", "2026-06-02T08:51:41Z"),
        ("2026-06-02T08:51:41", "2026-06-02T08:51:41Z"),
        ("2026-06-02T08:51:41+00:00", "2026-06-02T08:51:41Z"),
        ("2026-06-02T08:51:41+05:30", "2026-06-02T03:21:41Z"),
        ("2026-06-02T08:51:41-0700", "2026-06-02T15:51:41Z"),
        ("2026-01-01T00:30:00+01:00", "2025-12-31T23:30:00Z"),
        ("2026-06-02T08:51:41.5Z", "2026-06-02T08:51:41Z"),
        ("2026-06-02T08:51:41.999999Z", "2026-06-02T08:51:41Z"),
        ("2026-06-02T08:51:41.123456789Z", "2026-06-02T08:51:41Z"),
        ("2026-06-02T08:51:41.123456789+05:30", "2026-06-02T03:21:41Z"),
        (" 2026-06-02T08:51:41Z ", "2026-06-02T08:51:41Z"),
        ("", ""),
        (" ", ""),
        (None, ""),
    ],
)
def test_created_at_is_in_utc_to_the_second(text: str | None, created_at: str) -> None:
    assert parse_record({**ROW, "created_at": text}).created_at == created_at


def test_created_at_without_an_offset_is_in_utc_wherever_the_program_runs(
    far_from_utc: None,
) -> None:
    assert parse_record({**ROW, "created_at": "2026-06-02T08:51:41"}) == RECORD


@pytest.mark.parametrize(
    "text",
    [
        "yesterday",
        "1780000000",
        "2026-06-31T00:00:00Z",
        "2026-06-02T25:00:00Z",
        "2026-06-02T08:51:41+99:00",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "２０２６-06-02T08:51:41Z",
    ],
    ids=ascii,
)
def test_created_at_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ApiError, match="not an ISO 8601 time"):
        parse_record({**ROW, "created_at": text})


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        pytest.param(None, "", id="null"),
        pytest.param([], "", id="empty"),
        pytest.param([{"name": "GPU", "is_label": True, "label_value": "1"}], "GPU=1", id="label"),
        pytest.param(
            [{"name": "GPU", "is_label": True, "label_value": "1", "usage": "20.59h"}],
            "GPU=1",
            id="label with usage",
        ),
        pytest.param(
            [{"name": "GPU", "is_label": True, "label_value": ""}], "GPU=", id="label empty"
        ),
        pytest.param(
            [{"name": "disk", "is_label": False, "usage": "1200.00h"}],
            "disk=1200.00h",
            id="quantity",
        ),
        pytest.param(
            [{"name": "disk", "is_label": False, "usage": "1200h", "label_value": "x"}],
            "disk=1200.00h",
            id="quantity with label",
        ),
        pytest.param(
            [{"name": "disk", "usage": "1200.00h"}], "disk=1200.00h", id="is_label left out"
        ),
        pytest.param(
            [{"name": "disk", "is_label": None, "usage": "1.00h"}], "disk=1.00h", id="is_label null"
        ),
        pytest.param(
            [{"name": "disk", "is_label": False, "raw_usage": Decimal("2.345")}],
            "disk=2.35h",
            id="quantity by raw_usage",
        ),
        pytest.param(
            [{"name": "bytes", "is_label": False, "usage": "644245094400.00h"}],
            "bytes=644245094400.00h",
            id="more than an instance's hours",
        ),
        pytest.param(
            [
                {"name": "z", "is_label": False, "usage": "1.00h"},
                {"name": "a", "is_label": True, "label_value": "b"},
                {"name": "m", "is_label": False, "usage": "2.00h"},
            ],
            "z=1.00h; a=b; m=2.00h",
            id="the API's order",
        ),
    ],
)
def test_parameters_are_labels_as_value_and_quantities_as_metered(
    parameters: object, text: str
) -> None:
    assert parse_record({**ROW, "parameters": parameters}).parameters == text


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        pytest.param("GPU=1", "parameters is not a list", id="text"),
        pytest.param({}, "parameters is not a list", id="object"),
        pytest.param([None], "a parameter is not a JSON object", id="null in the list"),
        pytest.param([{"usage": "1h"}], "name is missing", id="no name"),
        pytest.param([{"name": 7, "usage": "1h"}], "name is not text", id="name not text"),
        pytest.param([{"name": "GPU"}], "GPU: usage and raw_usage are both missing", id="no usage"),
        pytest.param([{"name": "GPU", "usage": "-1h"}], "GPU: negative hours", id="negative"),
        pytest.param(
            [{"name": "GPU", "is_label": 1, "usage": "1h"}], "is_label is not", id="is_label 1"
        ),
        pytest.param(
            [{"name": "GPU", "is_label": "false", "usage": "1h"}],
            "is_label is not",
            id="is_label text",
        ),
        pytest.param(
            [{"name": "GPU", "is_label": True, "label_value": 1}],
            "label_value is not text",
            id="label not text",
        ),
    ],
)
def test_parameters_of_an_unexpected_type_are_refused(parameters: object, problem: str) -> None:
    with pytest.raises(ApiError, match=problem):
        parse_record({**ROW, "parameters": parameters})


# Amounts


def half_up(number: Fraction, digits: int) -> Fraction:
    """Round a number that is not negative half up, without Decimal."""
    return Fraction((2 * number * 10**digits + 1) // 2, 10**digits)


@pytest.mark.parametrize(
    ("hours", "rate", "currency", "amount"),
    [
        pytest.param("20.59", "2.50", "USD", "51.48", id="USD, 51.475 half up"),
        pytest.param("0.01", "0.50", "USD", "0.01", id="USD, 0.005 half up"),
        pytest.param("0.01", "2.50", "USD", "0.03", id="USD, 0.025 half up, not to even"),
        pytest.param("0.01", "0.49", "USD", "0.00", id="USD, 0.0049 down"),
        pytest.param("0.10", "9.99", "USD", "1.00", id="USD, 0.999 carries"),
        pytest.param("1.00", "2", "USD", "2.00", id="USD, both decimals"),
        pytest.param("0.50", "1", "JPY", "1", id="JPY, 0.5 half up"),
        pytest.param("2.50", "1", "JPY", "3", id="JPY, 2.5 half up, not to even"),
        pytest.param("0.49", "1", "JPY", "0", id="JPY, 0.49 down"),
        pytest.param("100.00", "100", "JPY", "10000", id="JPY, no exponent"),
        pytest.param("0.05", "0.01", "KWD", "0.001", id="KWD, 0.0005 half up"),
        pytest.param("0.25", "0.01", "KWD", "0.003", id="KWD, 0.0025 half up, not to even"),
        pytest.param("0.04", "0.01", "KWD", "0.000", id="KWD, 0.0004 down"),
        pytest.param("744.00", "0", "USD", "0.00", id="free, USD"),
        pytest.param("744.00", "0.0000", "JPY", "0", id="free, JPY"),
        pytest.param("0.00", "2.50", "KWD", "0.000", id="no hours"),
        pytest.param("1.00", "0.00" + "4" + "9" * 60, "USD", "0.00", id="long rate, down"),
        pytest.param("1.00", "0.00" + "5" + "0" * 60, "USD", "0.01", id="long rate, half up"),
        pytest.param("1.00", "1" + "0" * 60 + ".005", "USD", "1" + "0" * 60 + ".01", id="large"),
        pytest.param("0.10", "0.0" + "4" + "9" * 5000, "USD", "0.00", id="very long rate"),
    ],
)
def test_the_amount_is_hours_x_rate_rounded_once_half_up(
    hours: str, rate: str, currency: str, amount: str
) -> None:
    assert plain(billing_amount(Decimal(hours), Decimal(rate), currency)) == amount


@PATIENT
@given(HOURS, RATES, CURRENCIES)
def test_the_amount_can_be_worked_out_again_from_the_cells(
    hours: Decimal, rate: Decimal, currency: str
) -> None:
    usage = [Usage(ACME, "compute", PERIOD, [RECORD._replace(hours=hours)])]
    [line] = bill(usage, book_of({RECORD.profile: rate}), currency)
    row = row_of(line)
    digits = -int(MINOR_UNITS[currency].as_tuple().exponent)
    product = Fraction(row["usage_hours"]) * Fraction(row["billing_rate"])
    assert Fraction(row["billing_amount"]) == half_up(product, digits)


@PATIENT
@given(HOURS, RATES, CURRENCIES)
def test_the_amount_has_the_decimals_of_the_currency(
    hours: Decimal, rate: Decimal, currency: str
) -> None:
    _, _, decimals = plain(billing_amount(hours, rate, currency)).partition(".")
    assert len(decimals) == -int(MINOR_UNITS[currency].as_tuple().exponent)


@PATIENT
@given(HOURS, RATES)
@example(Decimal("1E+3"), Decimal("1E-20"))
def test_the_cells_of_hours_and_rate_are_the_same_numbers(hours: Decimal, rate: Decimal) -> None:
    row = row_of(line_with(usage_hours=hours, billing_rate=rate))
    assert Fraction(row["usage_hours"]) == Fraction(hours)
    assert Fraction(row["billing_rate"]) == Fraction(rate)


# Lines


def test_a_line_has_the_cells_that_the_columns_name() -> None:
    usage = [Usage(ACME, "compute", PERIOD, [RECORD])]
    [line] = bill(usage, book_of({"gpu-h100-x1": Decimal("2.50")}), "USD")
    assert line[1:] == line_with()[1:]


def test_there_is_a_line_for_each_record_in_the_order_given() -> None:
    def record(instance_id: str) -> Record:
        return RECORD._replace(instance_id=instance_id)

    usage = [
        Usage(OTHER, "compute", PERIOD, [record("9"), record("1")]),
        Usage(OTHER, "service", PERIOD, [record("5")]),
        Usage(ACME, "compute", PERIOD, []),
        Usage(ACME, "service", PERIOD, [record("3"), record("2")]),
    ]
    lines = bill(usage, book_of({}), "USD")
    assert [
        (line.usage.organization.name, line.usage.kind, line.record.instance_id) for line in lines
    ] == [
        ("Other", "compute", "9"),
        ("Other", "compute", "1"),
        ("Other", "service", "5"),
        ("Acme", "service", "3"),
        ("Acme", "service", "2"),
    ]


@pytest.mark.parametrize(
    ("book", "rate", "amount"),
    [
        pytest.param({"gpu": Decimal("2.50")}, "2.50", "51.48", id="priced"),
        pytest.param({"gpu": Decimal("0")}, "0", "0.00", id="free"),
        pytest.param({}, "", "", id="no price is not free"),
        pytest.param({"GPU": Decimal(1), "gp": Decimal(1)}, "", "", id="matched exactly"),
    ],
)
def test_the_rate_is_the_price_of_the_profile(
    book: dict[str, Decimal], rate: str, amount: str
) -> None:
    [line] = bill(
        [Usage(ACME, "compute", PERIOD, [RECORD._replace(profile="gpu")])], book_of(book), "USD"
    )
    row = row_of(line)
    assert (row["billing_rate"], row["billing_amount"]) == (rate, amount)


def test_the_profile_is_matched_after_trimming() -> None:
    usage = [Usage(ACME, "compute", PERIOD, [RECORD._replace(profile=" gpu ")])]
    [line] = bill(usage, book_of({"gpu": Decimal("2.50")}), "USD")
    assert line.rate == Decimal("2.50")


def test_the_sorted_order_is_by_name_ignoring_case_then_by_what_tells_lines_apart() -> None:
    lines = [
        line_with(organization="acme", organization_id="8", project="b"),
        line_with(organization="ACME", organization_id="9", project="a", profile_type="b"),
        line_with(organization="acme", organization_id="9", project="b", profile_type="a"),
        line_with(organization="acme", organization_id="9", project="b", profile_type="b"),
        line_with(organization="Älgö", project="a", profile_type="compute", profile="b"),
        line_with(organization="älgö", project="a", profile_type="service", profile="a"),
        line_with(organization="Älgö", project="b", profile="a", instance="b"),
        line_with(organization="Älgö", project="b", profile="b", instance="a"),
        line_with(organization="ÄLGÖ", project="b", profile="b", instance="b", instance_id="2"),
        line_with(organization="älgö", project="b", profile="b", instance="c", instance_id="1"),
        line_with(organization="Älgö", project="b", profile="b", instance="c", instance_id="2"),
        line_with(organization="Älgö", project="c", period_start="2026-05-01T00:00:00Z"),
        line_with(organization="älgö", project="c", period_start="2026-06-01T00:00:00Z"),
    ]
    backwards = lines[::-1]
    assert list(sort_lines(backwards)) == lines


# Cells


def test_the_columns_are_those_of_the_contract_in_its_order() -> None:
    assert " ".join(COLUMNS) == (
        "organization organization_id project profile_type profile instance instance_id status "
        "created_at parameters period_start period_end usage_hours billing_rate billing_amount "
        "currency dimension"
    )


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("\n=1", "'\n=1"),
        ("=", "'="),
        ("", ""),
        ("gpu", "gpu"),
        ("a=1", "a=1"),
        ("1-2", "1-2"),
        ("'=1", "'=1"),
        ('say "=1"', 'say "=1"'),
        ("a\0b", "a\ufffdb"),
        ("=\0", "'=\ufffd"),
    ],
    ids=ascii,
)
def test_a_text_that_a_spreadsheet_would_run_gets_a_leading_quote(text: str, cell: str) -> None:
    assert text_cell(text) == cell


@pytest.mark.parametrize("column", TEXT_COLUMNS)
def test_every_text_column_is_guarded(column: str) -> None:
    row = row_of(line_with(**{column: "=1+1"}))
    assert row[column] == "'=1+1"


def test_a_time_cell_is_never_touched() -> None:
    assert row_of(line_with(created_at="-0001"))["created_at"] == "-0001"


def test_the_cells_are_in_the_order_of_the_columns() -> None:
    assert format_line(line_with(), "USD") == (
        *("Acme", "4kd82ma", "research", "compute", "gpu-h100-x1", "train-07", "019c510c", ""),
        *("2026-06-02T08:51:41Z", "GPU=1; storage_size=1200.00h"),
        *("2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z", "20.59", "2.50", "51.48", "USD"),
        "instance",
    )


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, ""),
        (Decimal("0"), "0"),
        (Decimal("0.00"), "0.00"),
        (Decimal("2.50"), "2.50"),
        (Decimal("1E+3"), "1000"),
        (Decimal("1E-9"), "0.000000001"),
        (
            Decimal("12345678901234567890123456789012345.60"),
            "12345678901234567890123456789012345.60",
        ),
    ],
    ids=str,
)
def test_a_number_is_a_plain_decimal(number: Decimal | None, text: str) -> None:
    assert plain(number) == text


# Files


@PATIENT
@given(st.lists(st.lists(TEXTS, min_size=8, max_size=8), max_size=4))
@example([['a"b', "a,b", "a\rb", "a\nb", "\r", "\n", "\0", '" a ']])
@example([["\r\n", "a\r\nb", "\ufeff", "\u2028", "\x85", "\x1a", "'", "=1#"]])
def test_a_file_reads_back_as_a_row_for_each_line(texts: list[list[str]]) -> None:
    lines = [line_with(**dict(zip(TEXT_COLUMNS, row))) for row in texts]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file.csv"
        write_csv(path, lines, "USD")
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file, strict=True)
    assert tuple(header) == COLUMNS
    picked = [[dict(zip(COLUMNS, row))[column] for column in TEXT_COLUMNS] for row in rows]
    assert picked == [[text_cell(text) for text in row] for row in texts]


def test_a_file_is_utf_8_with_line_feeds_and_quotes_where_needed(tmp_path: Path) -> None:
    lines = [line_with(organization='Électricité "Øst", Inc.', instance="a\rb")]
    write_csv(tmp_path / "file.csv", lines, "USD")
    assert (tmp_path / "file.csv").read_bytes().decode() == (
        ",".join(COLUMNS) + "\n"
        '"Électricité ""Øst"", Inc.",4kd82ma,research,compute,gpu-h100-x1,"a\rb",019c510c,,'
        "2026-06-02T08:51:41Z,GPU=1; storage_size=1200.00h,"
        "2026-06-01T00:00:00Z,2026-07-01T00:00:00Z,20.59,2.50,51.48,USD,instance\n"
    )


def test_a_file_that_stands_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file.csv").write_text("kept")
    with pytest.raises(FileExistsError):
        write_csv(tmp_path / "file.csv", [line_with()], "USD")
    assert (tmp_path / "file.csv").read_text() == "kept"


@pytest.mark.parametrize(
    ("now", "timestamp"),
    [
        pytest.param(
            datetime(2025, 12, 9, 15, 41, 46, tzinfo=timezone.utc), "12092025-154146", id="UTC"
        ),
        pytest.param(
            datetime(2025, 12, 31, 23, 59, 59, 999_999, tzinfo=timezone.utc),
            "12312025-235959",
            id="the last second of a year",
        ),
        pytest.param(
            datetime(2026, 1, 1, tzinfo=timezone.utc), "01012026-000000", id="the first second"
        ),
        pytest.param(
            datetime(2026, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=5, minutes=30))),
            "12312025-190000",
            id="east of UTC",
        ),
        pytest.param(
            datetime(2025, 12, 31, 20, 0, tzinfo=timezone(timedelta(hours=-8))),
            "01012026-040000",
            id="west of UTC",
        ),
    ],
)
def test_files_are_named_by_the_time_in_utc(now: datetime, timestamp: str) -> None:
    raw, sorted_ = file_names(now)
    assert raw == f"ncp-metrics-{timestamp}.csv"
    assert sorted_ == f"ncp-metrics-sorted-{timestamp}.csv"


# Screen


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("Électricité Øst 漢字", "Électricité Øst 漢字"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x07\x7f\x9b", "\\x07\\x7f\\x9b"),
        ("abc\u202edef", "abc\\u202edef"),
        ("a\u2028b", "a\\u2028b"),
        ("a\ud800b", "a\\ud800b"),
    ],
    ids=ascii,
)
def test_what_could_steer_a_terminal_is_printed_as_escapes(text: str, printed: str) -> None:
    assert printable(text) == printed


@pytest.mark.parametrize("raw_usage", [Decimal("-0.0"), Decimal("-0"), 0])
def test_no_hours_have_no_sign(raw_usage: Decimal | int) -> None:
    assert plain(metered_hours({"raw_usage": raw_usage}, Decimal(10))) == "0.00"
