"""Which price holds for whom and from when, and what is billed beside an instance's hours."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncp_metrics import (
    ApiError,
    Line,
    Organization,
    Period,
    Price,
    PriceBook,
    Record,
    SettingsError,
    Usage,
    bill,
    check_timezone,
    choose_organizations,
    describe_unpriced,
    describe_unused,
    differences,
    parse_record,
    read_price_book,
    resolve_contracts,
    unpriced_totals,
)

UTC = timezone.utc
PERIOD = Period(datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC))
ACME = Organization("4kd82ma", "Acme")
OTHER = Organization("p7w3xq9", "Other")
TWIN = Organization("t0000002", "OTHER")
HEADER = "profile,organization,profile_type,effective_from,dimension,hourly_rate\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the price book of a test is."""
    return tmp_path / "prices.csv"


def read(path: Path, text: str, zone: str = "UTC") -> tuple[PriceBook, list[str]]:
    """Write a price book and read it."""
    path.write_text(text, encoding="utf-8")
    return read_price_book(path, "USD", check_timezone(zone))


def read_book(path: Path, *rows: str) -> PriceBook:
    """Return a good price book with these rows, from line 2 on, below HEADER."""
    book, problems = read(path, HEADER + "".join(f"{row}\n" for row in rows))
    assert problems == []
    return book


def book_of(path: Path, *rows: str) -> PriceBook:
    """Return the price book of rows, with the organizations' ids."""
    return resolve_contracts(read_book(path, *rows), [ACME, OTHER])[0]


def usage_of(
    *records: Record,
    organization: Organization = ACME,
    kind: str = "compute",
    period: Period = PERIOD,
) -> Usage:
    """Return what an organization used."""
    return Usage(organization, kind, period, list(records))


def quantity(name: str, usage: str, **more: Any) -> dict[str, Any]:
    """Return a quantity parameter as the API sends it."""
    return {"name": name, "is_label": False, "usage": usage, **more}


def record(
    book: PriceBook, *parameters: dict[str, Any], profile: str = "vm", hours: str = "24.00h"
) -> Record:
    """Return the record of an instance, read with the dimensions of a price book."""
    row = {
        "instance_organization_id": ACME.id,
        "profile_name": profile,
        "instance_id": "i-1",
        "instance_name": "one",
        "usage": hours,
        "parameters": list(parameters),
    }
    return parse_record(row, book.dimensions)


def billed(lines: Sequence[Line]) -> list[tuple[str, str, str | None, str | None]]:
    """Return dimension, hours, rate and amount of each line, as text."""
    return [
        (
            line.dimension,
            str(line.hours),
            None if line.rate is None else str(line.rate),
            None if line.amount is None else str(line.amount),
        )
        for line in lines
    ]


# The columns of the book


@pytest.mark.parametrize(
    ("text", "price"),
    [
        pytest.param(
            "profile,hourly_rate\ngpu,2\n",
            Price(2, "gpu", "instance", "", "", None, Decimal(2)),
            id="without them, a price holds for the hours of everyone at all times",
        ),
        pytest.param(
            HEADER + "gpu,,,,,2\n",
            Price(2, "gpu", "instance", "", "", None, Decimal(2)),
            id="blank, they say the same",
        ),
        pytest.param(
            HEADER + "gpu, Acme ,compute,2026-06-15,storage_size,0.001\n",
            Price(
                2,
                "gpu",
                "storage_size",
                "Acme",
                "compute",
                datetime(2026, 6, 15, tzinfo=UTC),
                Decimal("0.001"),
            ),
            id="all of them",
        ),
        pytest.param(
            "hourly_rate,profile_type,profile\n2,service,gpu\n",
            Price(2, "gpu", "instance", "", "service", None, Decimal(2)),
            id="one of them, in another order",
        ),
    ],
)
def test_each_optional_column_may_be_there_or_not(path: Path, text: str, price: Price) -> None:
    book, problems = read(path, text)
    assert (book.prices, problems) == ([price], [])


@pytest.mark.parametrize(
    ("since", "zone", "instant"),
    [
        ("2026-06-15", "UTC", datetime(2026, 6, 15, tzinfo=UTC)),
        ("2026-06-15", "Europe/Berlin", datetime(2026, 6, 14, 22, tzinfo=UTC)),
        ("2026-06-15T08:00", "Asia/Kolkata", datetime(2026, 6, 15, 2, 30, tzinfo=UTC)),
        ("2026-06-15T08:00Z", "Asia/Kolkata", datetime(2026, 6, 15, 8, tzinfo=UTC)),
        ("2026-06-15T08:00+02:00", "Asia/Kolkata", datetime(2026, 6, 15, 6, tzinfo=UTC)),
    ],
)
def test_a_price_holds_from_a_date_or_time_in_the_zone(
    path: Path, since: str, zone: str, instant: datetime
) -> None:
    book, problems = read(path, f"{HEADER}gpu,,,{since},,2\n", zone)
    assert ([price.effective_from for price in book.prices], problems) == ([instant], [])


def test_instance_is_no_further_dimension(path: Path) -> None:
    book = book_of(path, "gpu,,,,instance,2", "gpu,,,,cpu,1", "vm,,,,,0")
    assert book.dimensions == {("gpu", "cpu")}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        pytest.param("gpu,,Compute,,,2", "profile_type 'Compute' is neither", id="type's case"),
        pytest.param("gpu,,both,,,2", "profile_type 'both' is neither compute nor service", id="b"),
        pytest.param("gpu,,,05/06/2026,,2", "'05/06/2026' is not a date or time", id="slashes"),
        pytest.param("gpu,,,2026-06,,2", "'2026-06' is not a date or time", id="a month"),
        pytest.param("gpu,,,2026-03-29T02:30,,2", "comes twice or never", id="never"),
        pytest.param("gpu,,,2025-10-26T02:30,,2", "comes twice or never", id="twice"),
        pytest.param("gpu,,,,2", "5 cells, but the header has 6", id="cell missing"),
    ],
)
def test_a_bad_cell_is_reported_by_line(path: Path, row: str, problem: str) -> None:
    _, [told] = read(path, f"{HEADER}cpu,,,,,1\n{row}\n", "Europe/Berlin")
    assert told.startswith(f"{path}: line 3: ")
    assert problem in told


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("gpu,,,,,1", "gpu,,,,,1", id="all blank"),
        pytest.param("gpu,,,,,1", "gpu,,,,instance,2", id="blank is instance"),
        pytest.param("gpu,,,,cpu,1", "gpu,,,,cpu,2", id="dimension"),
        pytest.param("gpu,Acme,,,,1", "gpu,ACME,,,,2", id="organization in another case"),
        pytest.param("gpu,Straße,,,,1", "gpu,STRASSE,,,,2", id="which is more than lower case"),
        pytest.param("gpu,,service,,,1", "gpu,,service,,,2", id="profile type"),
        pytest.param("gpu,,,2026-06-15,,1", "gpu,,,2026-06-14T22:00Z,,2", id="the same instant"),
    ],
)
def test_two_prices_for_the_same_thing_are_an_error_with_both_lines(
    path: Path, first: str, second: str
) -> None:
    _, problems = read(path, f"{HEADER}{first}\ncpu,,,,,1\n{second}\n", "Europe/Berlin")
    assert problems == [f"{path}: line 4: 'gpu' has a price in line 2 already"]


@pytest.mark.parametrize(
    "second",
    [
        pytest.param("GPU,Acme,compute,2026-06-15,cpu,2", id="profile"),
        pytest.param("gpu,,compute,2026-06-15,cpu,2", id="everyone"),
        pytest.param("gpu,Other,compute,2026-06-15,cpu,2", id="organization"),
        pytest.param("gpu,Acme,,2026-06-15,cpu,2", id="both"),
        pytest.param("gpu,Acme,service,2026-06-15,cpu,2", id="profile type"),
        pytest.param("gpu,Acme,compute,,cpu,2", id="always"),
        pytest.param("gpu,Acme,compute,2026-06-16,cpu,2", id="from another day"),
        pytest.param("gpu,Acme,compute,2026-06-15,,2", id="instance"),
        pytest.param("gpu,Acme,compute,2026-06-15,CPU,2", id="dimension"),
    ],
)
def test_prices_that_differ_in_one_column_are_for_different_things(path: Path, second: str) -> None:
    assert len(book_of(path, "gpu,Acme,compute,2026-06-15,cpu,1", second).prices) == 2


# The price that holds


@pytest.mark.parametrize(
    ("rows", "rate"),
    [
        pytest.param(["gpu,,,,,1"], 1, id="everyone's"),
        pytest.param(["gpu,,,,,1", "gpu,Acme,,,,2"], 2, id="organization before everyone"),
        pytest.param(["gpu,,,,,1", "gpu,Other,,,,2"], 1, id="but not another organization"),
        pytest.param(["gpu,,,,,1", "gpu,aCmE,,,,2"], 2, id="whose name ignores case"),
        pytest.param(["gpu,,,,,1", "gpu,4kd82ma,,,,2"], 2, id="or is the id"),
        pytest.param(["gpu,,,,,1", "gpu,4KD82MA,,,,2"], 1, id="in its own case"),
        pytest.param(["gpu,,,,,1", "gpu,,compute,,,2"], 2, id="profile type before both"),
        pytest.param(["gpu,,,,,1", "gpu,,service,,,2"], 1, id="but not the other type"),
        pytest.param(
            ["gpu,Acme,,,,1", "gpu,,compute,2026-05-01,,2"],
            1,
            id="organization before profile type and date",
        ),
        pytest.param(["gpu,,compute,,,1", "gpu,,,2026-05-01,,2"], 1, id="profile type before date"),
        pytest.param(
            ["gpu,Acme,compute,,,1", "gpu,Acme,,2026-05-01,,2"],
            1,
            id="profile type before date, of one organization",
        ),
        pytest.param(
            ["gpu,,,2026-05-01,,1", "gpu,,,2026-05-02,,2", "gpu,,,2026-04-01,,3", "gpu,,,,,4"],
            2,
            id="the latest, wherever it stands",
        ),
        pytest.param(
            ["gpu,Acme,,2026-04-01,,1", "gpu,4kd82ma,,2026-05-01,,2"],
            2,
            id="the latest, by name or by id",
        ),
        pytest.param(["gpu,,,,,1", "gpu,,,2026-06-01,,2"], 2, id="in force from the period on"),
        pytest.param(["gpu,,,,,1", "gpu,,,2026-06-01T00:00:01,,2"], 1, id="not a second later"),
        pytest.param(
            ["gpu,,,,,1", "gpu,Acme,,2026-06-02,,2"],
            1,
            id="an organization's price not yet in force leaves everyone's",
        ),
        pytest.param(
            ["gpu,Acme,,,,1", "gpu,Acme,compute,2026-06-02,,2"],
            1,
            id="a profile type's price not yet in force leaves that for both",
        ),
        pytest.param(["gpu,,,2026-06-02,,1"], None, id="none that is in force"),
        pytest.param(["gpu,Other,,,,1"], None, id="none but another organization's"),
        pytest.param(["gpu,,service,,,1"], None, id="none but the other type's"),
        pytest.param(["gpu,,,,cpu,1"], None, id="none but another dimension's"),
        pytest.param(["GPU,,,,,1"], None, id="none but another profile's"),
        pytest.param(["gpu,,,,,1", "gpu,Acme,,,,0"], 0, id="0 is a price"),
    ],
)
def test_the_most_specific_price_in_force_wins(
    path: Path, rows: list[str], rate: int | None
) -> None:
    for order in (rows, rows[::-1]):
        assert book_of(path, *order).find_rate(usage_of(), "gpu", "instance") == rate


def test_a_price_changes_from_one_part_of_a_period_to_the_next(path: Path) -> None:
    book = book_of(path, "gpu,,,,,1", "gpu,,,2026-06-15,,2")
    change = datetime(2026, 6, 15, tzinfo=UTC)
    parts = (Period(PERIOD.start, change), Period(change, PERIOD.end))
    rates = [book.find_rate(usage_of(period=part), "gpu", "instance") for part in parts]
    assert rates == [1, 2]


def test_names_are_trimmed_where_the_api_does_not(path: Path) -> None:
    padded = Organization("x", " Acme ")
    book, _ = resolve_contracts(read_book(path, "gpu,,,,,1", "gpu,Acme,,,,2"), [padded])
    usage = usage_of(organization=padded)
    assert book.find_rate(usage, " gpu ", "instance") == 2


NAMES = {ACME.id: ACME, "Acme": ACME, "aCME": ACME, OTHER.id: OTHER, "other": OTHER}
DAYS = [PERIOD.start + timedelta(days=days) for days in range(-2, 3)]
THINGS = st.tuples(
    st.sampled_from(["gpu", "vm"]),
    st.sampled_from(["instance", "cpu"]),
    st.sampled_from(["", *NAMES]),
    st.sampled_from(["", "compute", "service"]),
    st.sampled_from([None, *DAYS]),
)


def tenant(thing: tuple[str, str, str, str, datetime | None]) -> object:
    """Return what makes two prices the same: an organization by any of its names."""
    profile, dimension, name, *rest = thing
    return profile, dimension, NAMES.get(name), *rest


@given(
    things=st.lists(THINGS, unique_by=tenant, max_size=30),
    profile=st.sampled_from(["gpu", "vm"]),
    dimension=st.sampled_from(["instance", "cpu"]),
    usage=st.builds(
        usage_of,
        organization=st.sampled_from([ACME, OTHER, Organization("new", "New")]),
        kind=st.sampled_from(["compute", "service"]),
        period=st.sampled_from(DAYS).map(lambda start: Period(start, PERIOD.end)),
    ),
)
def test_the_rate_found_is_the_first_by_organization_then_type_then_date(
    things: list[tuple[str, str, str, str, datetime | None]],
    profile: str,
    dimension: str,
    usage: Usage,
) -> None:
    prices = [Price(line, *thing, Decimal(line)) for line, thing in enumerate(things)]
    by_thing = {tenant(thing): price.rate for thing, price in zip(things, prices)}
    candidates = (
        by_thing.get((profile, dimension, owner, kind, since))
        for owner in (usage.organization, None)
        for kind in (usage.kind, "")
        for since in (*(day for day in reversed(DAYS) if day <= usage.period.start), None)
    )
    expected = next((rate for rate in candidates if rate is not None), None)
    book, _ = resolve_contracts(PriceBook(Path(), "", prices), [ACME, OTHER, usage.organization])
    assert book.find_rate(usage, profile, dimension) == expected


# Contracts and the organizations that are listed


@pytest.mark.parametrize("name", ["Acme", "ACME", "4kd82ma", ""])
def test_a_price_of_a_listed_organization_is_in_order(path: Path, name: str) -> None:
    _, told = resolve_contracts(read_book(path, f"gpu,{name},,,,1"), [ACME, OTHER])
    assert told == []


@pytest.mark.parametrize("name", ["Acne", "4KD82MA", "Acme Inc."])
def test_a_price_of_an_organization_that_is_not_listed_is_told(path: Path, name: str) -> None:
    book = read_book(path, "gpu,,,,,1", f"gpu,{name},,,,1")
    _, told = resolve_contracts(book, [ACME, OTHER])
    assert told == [f"{path}: line 3: organization {name!r} is not listed"]


def test_prices_of_organizations_that_are_not_listed_are_told_in_order(path: Path) -> None:
    book = read_book(path, "gpu,B,,,,1", "gpu,,,,,1", "gpu,A,,2026-06-01,,1", "gpu,A,,,,1")
    lines = [text.split(": ")[1] for text in resolve_contracts(book, [ACME])[1]]
    assert lines == ["line 2", "line 4", "line 5"]


def test_a_price_by_a_name_of_several_organizations_is_an_error(path: Path) -> None:
    book = read_book(path, "gpu,Acme,,,,1", "gpu,other,,,,1")
    with pytest.raises(SettingsError) as caught:
        resolve_contracts(book, [ACME, OTHER, TWIN])
    assert caught.value.problems == (
        f"{path}: line 3: organization 'other' is the name of several: give the id, "
        "one of p7w3xq9, t0000002",
    )


def test_an_id_tells_organizations_of_one_name_apart(path: Path) -> None:
    assert resolve_contracts(read_book(path, "gpu,p7w3xq9,,,,1"), [OTHER, TWIN])[1] == []


def test_an_id_is_that_organization_also_if_another_is_called_so(path: Path) -> None:
    impostor = Organization("zz", ACME.id)
    book = read_book(path, "gpu,,,,,1", "gpu,4kd82ma,,,,2")
    resolved, told = resolve_contracts(book, [ACME, impostor])
    assert told == []
    assert resolved.find_rate(usage_of(organization=impostor), "gpu", "instance") == 1
    assert resolved.find_rate(usage_of(organization=ACME), "gpu", "instance") == 2


def test_two_prices_by_name_and_by_id_are_an_error_with_both_lines(path: Path) -> None:
    book = read_book(path, "gpu,Acme,,,,1", "cpu,,,,,1", "gpu,4kd82ma,,,,2")
    with pytest.raises(SettingsError) as caught:
        resolve_contracts(book, [ACME, OTHER])
    assert caught.value.problems == (
        f"{path}: line 4: organization '4kd82ma' has a price in line 2 already",
    )


def test_prices_by_name_and_by_id_for_different_things_are_in_order(path: Path) -> None:
    book = read_book(path, "gpu,Acme,,,,1", "gpu,4kd82ma,,2026-06-01,,2", "cpu,4kd82ma,,,,2")
    assert resolve_contracts(book, [ACME, OTHER])[1] == []


# Organizations that are asked for


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        pytest.param([], [OTHER, ACME], id="all, if none is named"),
        pytest.param(["4kd82ma"], [ACME], id="by id"),
        pytest.param(["aCME"], [ACME], id="by name, ignoring case"),
        pytest.param(["Acme", "other"], [OTHER, ACME], id="several, as listed"),
        pytest.param(["Acme", "4kd82ma", "ACME"], [ACME], id="one, named thrice"),
    ],
)
def test_organizations_are_chosen_by_id_or_name(
    wanted: list[str], chosen: list[Organization]
) -> None:
    assert choose_organizations(wanted, [OTHER, ACME]) == chosen


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Acne", "Acme"),
        ("Ohter", "Other"),
        ("4kd82mb", "4kd82ma"),
        ("P7W3XQ9 ", "p7w3xq9"),
        pytest.param("ACNE", "Acme"),
    ],
)
def test_an_organization_that_is_not_listed_is_an_error_with_the_nearest_name(
    text: str, name: str
) -> None:
    listed = [ACME, OTHER, Organization("x0001", "ACQUISITIONS")]
    with pytest.raises(SettingsError) as caught:
        choose_organizations([text], listed)
    problem = f"--org: {text!r} is not listed; the nearest is {name}"
    assert caught.value.problems == (problem,)


def test_a_name_of_several_organizations_is_an_error_with_their_ids() -> None:
    with pytest.raises(SettingsError) as caught:
        choose_organizations(["Other"], [ACME, OTHER, TWIN])
    assert caught.value.problems == (
        "--org: 'Other' is the name of several: give the id, one of p7w3xq9, t0000002",
    )


def test_the_id_chooses_one_of_several_organizations_of_a_name() -> None:
    assert choose_organizations(["t0000002"], [ACME, OTHER, TWIN]) == [TWIN]


def test_all_organizations_that_are_not_listed_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        choose_organizations(["Acne", "Acme", "Ohter"], [ACME, OTHER])
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "--org: 'Acne' is not listed",
        "--org: 'Ohter' is not listed",
    ]


# Dimensions


def test_rafays_own_example_makes_144(path: Path) -> None:
    book = book_of(path, "vm,,,,,0", "vm,,,,cpu,0.5", "vm,,,,gpu,2")
    instance = record(book, quantity("cpu", "96.00h"), quantity("gpu", "48.00h"))
    lines = bill([usage_of(instance)], book, "USD")
    assert billed(lines) == [
        ("instance", "24.00", "0", "0.00"),
        ("cpu", "96.00", "0.5", "48.00"),
        ("gpu", "48.00", "2", "96.00"),
    ]
    assert sum(line.amount or 0 for line in lines) == Decimal("144.00")


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        pytest.param(
            ["vm,,,,,2"], [("instance", "24.00", "2", "48.00")], id="the instance's price alone"
        ),
        pytest.param(
            ["gpu,,,,cpu,2"], [("instance", "24.00", None, None)], id="another profile's dimension"
        ),
        pytest.param(
            ["vm,,,,cpu,0.1"],
            [("instance", "24.00", None, None), ("cpu", "96.00", "0.1", "9.60")],
            id="a dimension alone, and the instance unpriced",
        ),
        pytest.param(
            ["vm,,,,,1", "vm,Other,,,cpu,1"],
            [("instance", "24.00", "1", "24.00")],
            id="a dimension of another organization",
        ),
        pytest.param(
            ["vm,,,,,1", "vm,,,2026-06-02,cpu,1"],
            [("instance", "24.00", "1", "24.00")],
            id="a dimension not yet in force",
        ),
        pytest.param(
            ["vm,,,,,1", "vm,,,,cpu,0.1", "vm,acme,,,cpu,0.05"],
            [("instance", "24.00", "1", "24.00"), ("cpu", "96.00", "0.05", "4.80")],
            id="a negotiated dimension",
        ),
        pytest.param(
            ["vm,,,,,1", "vm,,,,cpu,0"],
            [("instance", "24.00", "1", "24.00"), ("cpu", "96.00", "0", "0.00")],
            id="a free dimension",
        ),
        pytest.param(
            ["vm,,,,,1", "vm,,,,GPU,2"],
            [("instance", "24.00", "1", "24.00")],
            id="a label is no dimension",
        ),
        pytest.param(
            ["vm,,,,,1", "vm,,,,storage_size,0.001", "vm,,,,cpu,0.5"],
            [
                ("instance", "24.00", "1", "24.00"),
                ("cpu", "96.00", "0.5", "48.00"),
                ("storage_size", "0.00", "0.001", "0.00"),
            ],
            id="in the order of the API, also with no usage",
        ),
    ],
)
def test_every_instance_has_its_line_and_dimensions_have_theirs_where_priced(
    path: Path, rows: list[str], lines: list[tuple[str, str, str | None, str | None]]
) -> None:
    book = book_of(path, *rows)
    label = {"name": "GPU", "is_label": True, "label_value": "A100", "usage": "24.00h"}
    parameters = (label, quantity("cpu", "96.00h"), quantity("storage_size", "0.00h"))
    usage = [usage_of(record(book, *parameters))]
    assert billed(bill(usage, book, "USD")) == lines


def test_a_dimension_is_rounded_once_to_the_currency(path: Path) -> None:
    book = book_of(path, "vm,,,,,0", "vm,,,,disk,0.0005")
    usage = [usage_of(record(book, quantity("disk", "1001.00h")))]
    amounts = [bill(usage, book, currency)[1].amount for currency in ("USD", "JPY", "KWD")]
    assert [str(amount) for amount in amounts] == ["0.50", "1", "0.501"]


def test_each_organization_part_and_kind_has_its_own_rate(path: Path) -> None:
    book = book_of(path, "vm,,,,,1", "vm,Acme,,,,2", "vm,,service,,,3", "vm,,,2026-07-01,,4")
    instance = record(book)
    july = Period(PERIOD.end, PERIOD.end + timedelta(days=1))
    usage = [
        usage_of(instance),
        usage_of(instance, organization=OTHER),
        usage_of(instance, organization=OTHER, kind="service"),
        usage_of(instance, organization=OTHER, period=july),
    ]
    assert [line.rate for line in bill(usage, book, "USD")] == [2, 1, 3, 4]


@pytest.mark.parametrize(
    ("parameter", "hours"),
    [
        (quantity("disk", "1200.00h"), "1200.00"),
        (quantity("disk", "1200h"), "1200.00"),
        (quantity("disk", "", raw_usage=Decimal("0.125")), "0.13"),
        (quantity("disk", "1.00h", raw_usage=Decimal(2)), "1.00"),
        pytest.param({"name": "disk", "usage": "3h"}, "3.00", id="is_label left out"),
        pytest.param({"name": "disk", "usage": "3h", "is_label": None}, "3.00", id="is_label null"),
        pytest.param(quantity("disk", "744000000.00h"), "744000000.00", id="more than a century"),
        pytest.param(
            quantity("disk", "7440000000000000.00h"),
            "7440000000000000.00",
            id="10 TB for a month, in bytes",
        ),
        pytest.param(
            quantity(" disk", "3h"),
            "3.00",
            id="trimmed",
        ),
    ],
)
def test_a_dimension_has_the_metered_quantity_hours(
    path: Path, parameter: dict[str, Any], hours: str
) -> None:
    book = book_of(path, "vm,,,,disk,1")
    assert [(name, str(each)) for name, each in record(book, parameter).quantities] == [
        ("disk", hours)
    ]


def test_a_priced_dimension_that_comes_twice_is_an_error_that_names_the_instance(
    path: Path,
) -> None:
    book = book_of(path, "vm,,,,disk,1")
    with pytest.raises(ApiError, match="instance one i-1: parameter disk comes twice, and it has"):
        record(book, quantity("disk", "1.00h"), quantity("disk", "1.00h"))


def test_a_dimension_without_a_price_may_come_twice(path: Path) -> None:
    book = book_of(path, "vm,,,,cpu,1")
    instance = record(book, quantity("disk", "1.00h"), quantity("disk", "2.00h"))
    assert (instance.parameters, instance.quantities) == ("disk=1.00h; disk=2.00h", ())


def test_a_dimension_that_another_profile_is_billed_by_may_come_twice(path: Path) -> None:
    book = book_of(path, "vm,,,,,1", "gpu,,,,disk,1")
    instance = record(book, quantity("disk", "1.00h"), quantity("disk", "2.00h"))
    assert len(bill([usage_of(instance)], book, "USD")) == 1


def test_a_label_of_the_name_of_a_priced_dimension_may_stand_beside_it(path: Path) -> None:
    book = book_of(path, "vm,,,,disk,1")
    label = {"name": "disk", "is_label": True, "label_value": "ssd"}
    assert record(book, label, quantity("disk", "1.00h")).quantities == (("disk", Decimal(1)),)


# What the summary says of the book


def unpriced(book: PriceBook, *usage: Usage) -> list[str]:
    """Return what is said of the profiles without a price."""
    return describe_unpriced(unpriced_totals(bill(usage, book, "USD"), "USD"), book)


@pytest.mark.parametrize(
    ("rows", "hint"),
    [
        pytest.param(
            ["vms,,,,,1", "gpu,,,,,1"],
            "in the price book, the nearest is vms",
            id="not in the book",
        ),
        pytest.param([], "in the price book, there is nothing at all", id="an empty book"),
        pytest.param(
            ["vm,,,,cpu,1", "vms,,,,,1"],
            "if its other dimensions are all that is billed, give it an instance price of 0",
            id="its dimensions alone",
        ),
        pytest.param(
            ["vm,,service,,,1", "vms,,,,,1", "vm,Other,,,,1"],
            "what the price book has for it, in line 2, 4, does not hold here",
            id="not for this type or organization",
        ),
        pytest.param(
            ["vm,,,2026-06-02,,1"],
            "what the price book has for it, in line 2, does not hold here",
            id="not yet",
        ),
        pytest.param(
            ["vm,,,,cpu,1", "vm,Other,,,,1"],
            "what the price book has for it, in line 2, 3, does not hold here",
            id="its dimensions, and another organization's instances",
        ),
    ],
)
def test_a_profile_without_a_price_is_told_with_what_the_book_has(
    path: Path, rows: list[str], hint: str
) -> None:
    book = book_of(path, *rows)
    usage = usage_of(record(book, quantity("cpu", "96.00h")))
    assert unpriced(book, usage) == [
        f"profile vm has no price: 24.00 hours (instances: 1) are not billed; {hint}"
    ]


def test_only_the_usage_that_has_no_price_counts_as_not_billed(path: Path) -> None:
    book = book_of(path, "vm,Acme,,,,1", "gpu,,,,,1")
    usage = [usage_of(record(book)), usage_of(record(book, hours="2.50h"), organization=OTHER)]
    [sentence] = unpriced(book, *usage)
    assert sentence.startswith("profile vm has no price: 2.50 hours (instances: 1) are not billed")


def test_nothing_is_told_where_all_is_priced(path: Path) -> None:
    book = book_of(path, "vm,,,,,0")
    assert unpriced(book, usage_of(record(book))) == []


@pytest.mark.parametrize(
    ("rows", "unused"),
    [
        pytest.param(["vm,,,,,1"], [], id="used"),
        pytest.param(["vm,,,,,1", "vm,,,,cpu,1"], [], id="a dimension that is used"),
        pytest.param(
            ["vms,,,,,1", "vm,,,,,1"], ["line 2: nothing used instance of vms"], id="a profile"
        ),
        pytest.param(["vm,,,,,1", "vm,,,,cpus,1"], ["line 3: nothing used cpus of vm"], id="typed"),
        pytest.param(
            ["vm,,,,,1", "gpu,,,,cpu,1"],
            ["line 3: nothing used cpu of gpu"],
            id="another profile's",
        ),
        pytest.param(["vm,,,,,1", "vm,,,,GPU,1"], ["line 3: nothing used GPU of vm"], id="a label"),
        pytest.param(
            ["b,,,,,1", "a,Acme,,,,1", "b,Acme,,,,1"],
            [
                "line 2: nothing used instance of b",
                "line 3: nothing used instance of a",
                "line 4: nothing used instance of b",
            ],
            id="by line",
        ),
        pytest.param(["vm,Other,,,,1"], [], id="the price of another, of a profile that is used"),
        pytest.param(
            ["vm,,,,,1", "vm,Other,,,cpu,1"],
            [],
            id="the price of another, of a dimension that is used",
        ),
    ],
)
def test_a_price_whose_profile_or_dimension_nothing_used_is_told(
    path: Path, rows: list[str], unused: list[str]
) -> None:
    book = book_of(path, *rows)
    label = {"name": "GPU", "is_label": True, "label_value": "A100"}
    usage = [usage_of(record(book, label, quantity("cpu", "96.00h")))]
    assert describe_unused(book, usage) == [f"{path}: {each}" for each in unused]


def test_usage_of_a_profile_with_spaces_uses_its_price(path: Path) -> None:
    book = book_of(path, "vm,,,,,1")
    usage = [usage_of(record(book, profile=" vm "))]
    assert [line.rate for line in bill(usage, book, "USD")] == [1]
    assert describe_unused(book, usage) == []


# Reconciliation


def test_another_quantity_that_is_billed_is_a_difference(path: Path) -> None:
    book = book_of(path, "vm,,,,,1", "vm,,,,cpu,1")
    own, other = (record(book, quantity("cpu", text)) for text in ("96.00h", "95.00h"))
    assert differences([usage_of(own)], [other]) == {own.key: (own, other)}
    assert differences([usage_of(own)], [own]) == {}
