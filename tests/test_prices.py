"""The price book: what it may say, which price applies, and what happens when it changes."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest
from conftest import Run, assert_failed, cases, path_has, table
from example import ACME, BETA, book, quantity, tenants, usage
from rafay_simulator import Instance, Json, Partner, metered, organization

PLAIN = "profile,hourly_rate"
SPECIFIC = "profile,organization,profile_type,effective_from,hourly_rate"
DIMENSIONS = "profile,dimension,organization,hourly_rate"
VALIDITY = "profile,organization,effective_from,effective_to,hourly_rate"
EVERY_COLUMN = (
    "profile,hourly_rate,organization,profile_type,dimension,effective_from,effective_to,currency"
)
USED = tenants(usage("o1", "one", "gpu", "1h"))


# What it may say


@cases(
    "text",
    {
        "plain": "profile,hourly_rate\ngpu,2\n",
        "no line break at the end": "profile,hourly_rate\ngpu,2",
        "CR LF": "profile,hourly_rate\r\ngpu,2\r\n",
        "CR": "profile,hourly_rate\rgpu,2\r",
        "byte order mark": "\ufeffprofile,hourly_rate\ngpu,2\n",
        "comments": '# a, b\nprofile,hourly_rate\n#gpu,1\n# 12" rack\ngpu,2\n',
        "blank lines": "\n \nprofile,hourly_rate\n\t\ngpu,2\n\n",
        "lines of empty cells": ",\nprofile,hourly_rate\n,,,\ngpu,2\n , \n",
        "blanks around cells": " profile , hourly_rate\n gpu ,\u00a02 \n",
        "another order of columns": "hourly_rate,profile\n2,gpu\n",
        "any text in quotes": 'profile,description,hourly_rate\ngpu,"#8, ""é""\u00a0漢",2\n',
    },
)
def test_a_valid_book_is_read(run: Run, text: str) -> None:
    result = run(partner=USED, prices=text)
    assert result.status == 0
    assert result.cells("profile", "billing_rate") == ["gpu 2"]


@cases(
    "text, error",
    {
        "unknown column": ("profile,discount,hourly_rate\ngpu,,-2\n", "line 1: column 'discount'"),
        "column twice": ("profile,hourly_rate,profile\ngpu,2,gpu\n", "line 1: column 'profile'"),
        "no header": ("gpu,2.50\ngpu,-1\n", "line 1: column 'gpu'"),
        "open quote": ('"profile,hourly_rate\ngpu,-2\n', "line 1: unexpected end"),
        "Latin-1": (b"profile,hourly_rate\n# \xff\nm\xe9t\xe9o,2\n", "line 3: .*CSV UTF-8"),
        "UTF-16": ("profile,hourly_rate\ngpu,2\n".encode("utf-16"), "line 1: .*CSV UTF-8"),
        "nothing": ("", "needs a header"),
        "comments only": ("# nothing\n,,\n", "needs a header"),
    },
)
def test_a_bad_header_or_encoding_is_the_only_error(
    run: Run, text: str | bytes, error: str
) -> None:
    assert_failed(run(prices=text), f"/prices.csv: {error}", status=2)


def test_an_unreadable_book_is_an_error(run: Run, tmp_path: Path) -> None:
    result = run(PRICING_FILE=str(tmp_path / "none.csv"))
    assert_failed(result, "/none.csv: No such file", status=2)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_all_bad_lines_are_reported_before_any_request(run: Run, end: str) -> None:
    text = '# a\nprofile,hourly_rate\n\ngpu,-2\n#\n"cpu,1\n,,\ngpu,x\ncpu,2\ncpu,2\n'
    result = run(prices=text.replace("\n", end))
    assert result.status == 2
    assert re.findall(r"/prices\.csv: line (\d+): ", result.stderr) == ["4", "6", "8", "10"]
    assert len(result.errors) == 4
    assert result.requests == []


@table(
    "line, error",
    """
    no profile             | ,1,,,,,,                           | profile is missing
    no rate                | cpu,,,,,,,                         | 0 rates: give one of hourly_rate
    too few cells          | cpu,1,,,,,                         | 7 cells
    too many cells         | cpu,1,50,,,,,,                     | 9 cells
    open quote             | "cpu,1,,,,,,                       | unexpected end
    text after a quote     | "c"pu,1,,,,,,                      | expected after
    profile type           | cpu,1,,Compute,,,,                 | profile_type 'Compute'
    no date                | cpu,1,,,,05/06/2026,,              | effective_from '05/06/2026'
    ends on no date        | cpu,1,,,,2026-06-05,30 June,       | effective_to '30 June'
    ends as it begins      | cpu,1,,,,2026-06-05,2026-06-05,    | effective_to is not later
    ends before            | cpu,1,,,,2026-06-05,2026-06-04,    | effective_to is not later
    two prices             | gpu,3,,,,,,                        | line 2 already
    in quotes, with blanks | " gpu ",3,,,,,,                    | line 2 already
    with another end       | gpu,2,,,,,2026-07-01,              | line 2 already
    in the same currency   | gpu,2,,,,,,USD                     | line 2 already
    of the same dimension  | gpu,2,,,instance,,,                | line 2 already
    of a parameter         | gpu,2,,,cpu,,,                     | line 3 already
    of an organization     | gpu,2,Straße,,,,,                  | line 4 already
    of a profile type      | gpu,2,,service,,,,                 | line 5 already
    from the same moment   | gpu,2,,,,2026-06-14T22:00Z,,       | line 6 already
    """,
)
def test_a_bad_line_is_an_error_with_file_and_line(run: Run, line: str, error: str) -> None:
    good = (
        "gpu,2,,,,,,; gpu,1,,,cpu,,,; gpu,1,Straße,,,,,; gpu,1,,service,,,,; gpu,1,,,,2026-06-15,,"
    )
    text = f"{book(EVERY_COLUMN, good)}\n{line}"
    result = run(prices=text, TIMEZONE="Europe/Berlin")
    assert_failed(result, f"/prices.csv: line 7: .*{error}", status=2)


@pytest.mark.parametrize("rate", "-1 +1 1,50 $1 1€ 1e3 .5 5. NaN １".split())
def test_a_rate_is_a_plain_decimal(run: Run, rate: str) -> None:
    result = run(prices=f'profile,hourly_rate\ngpu,"{rate}"\n')
    assert_failed(result, re.escape(f"line 2: hourly_rate {rate!r} is not"), status=2)


@pytest.mark.parametrize("char", "\0\t\x85\u200b\u2028", ids=ascii)
def test_a_character_that_does_not_print_is_an_error(run: Run, char: str) -> None:
    result = run(prices=f"profile,hourly_rate,organization\ngpu,1,Acme{char}\n")
    assert_failed(result, "line 2: .* does not print", status=2)


def test_prices_in_another_currency_are_errors(run: Run) -> None:
    lines = "gpu,EUR,1; cpu,,1; vm,USD,1; nic,eur,1"
    result = run(prices=book("profile,currency,hourly_rate", lines), CURRENCY="EUR")
    errors = re.findall(r"line \d: currency '\w+'", result.stderr)
    assert errors == ["line 4: currency 'USD'", "line 5: currency 'eur'"]


# Which price applies


@table(
    "lines, rate",
    """
    organization, then type   | gpu,Acme,,,2; gpu,,compute,2026-05-01,1             | 2
    profile type, then date   | gpu,,compute,,2; gpu,,,2026-05-01,1                 | 2
    latest date               | gpu,,,2026-05-01,1; gpu,,,2026-05-02,2; gpu,,,,3    | 2
    in force from the start   | gpu,,,,1; gpu,,,2026-06-01,2                        | 2
    in force from the end     | gpu,,,,1; gpu,,,2026-07-01,2                        | 1
    free                      | gpu,,,,1; gpu,Acme,,,0                              | 0
    of another organization   | gpu,,,,1; gpu,Beta,,,2                              | 1
    of another profile type   | gpu,,,,1; gpu,,service,,2                           | 1
    of a profile in capitals  | gpu,,,,1; GPU,,,,2                                  | 1
    by name, and by id        | gpu,Acme,,,1; gpu,o1,,2026-05-01,2                  | 2
    """,
)
def test_the_most_specific_price_applies(run: Run, lines: str, rate: str) -> None:
    result = run(partner=USED, prices=book(SPECIFIC, lines))
    assert result.cells("billing_rate") == [rate]


@table(
    "lines, rates",
    """
    in the order of the record | gpu,disk,,3; gpu,cpu,,2; gpu,,,1        | instance 1, cpu 2, disk 3
    without the instance       | gpu,cpu,,2                              | instance , cpu 2
    free                       | gpu,,,1; gpu,cpu,,0                     | instance 1, cpu 0
    of the organization        | gpu,,,1; gpu,cpu,,2; gpu,cpu,acme,3     | instance 1, cpu 3
    of another organization    | gpu,,,1; gpu,cpu,Beta,2                 | instance 1
    of another profile         | gpu,,,1; vm,cpu,,2                      | instance 1
    of a name in capitals      | gpu,,,1; gpu,CPU,,2                     | instance 1
    """,
)
def test_a_parameter_has_a_line_if_it_has_a_price(run: Run, lines: str, rates: str) -> None:
    parameters = [quantity("cpu", "96h"), quantity("disk", "0h")]
    partner = tenants(usage("o1", "one", "gpu", "1h", parameters=parameters))
    result = run(partner=partner, prices=book(DIMENSIONS, lines))
    assert ", ".join(result.cells("dimension", "billing_rate")) == rates


@table(
    "currency, hours, rate, amount",
    """
    up                      | USD | 20.59  | 2.50   | 51.48
    up, not to even         | USD | 0.01   | 2.50   | 0.03
    down                    | USD | 0.01   | 0.49   | 0.00
    once                    | USD | 0.10   | 0.0499999999999999999999999999999999999999 | 0.00
    no exponent             | USD | 100.00 | 0.00000001 | 0.00
    half a yen, up          | JPY | 0.50   | 1      | 1
    three digits            | KWD | 0.25   | 0.01   | 0.003
    free                    | KWD | 7.00   | 0.0000 | 0.000
    any size | USD | 1.00 | 1000000000000000000000000000000.005 | 1000000000000000000000000000000.01
    """,
)
def test_the_amount_is_rounded_once_half_up_to_the_minor_unit(
    run: Run, currency: str, hours: str, rate: str, amount: str
) -> None:
    partner = tenants(usage("o1", "one", "gpu", f"{hours}h"))
    result = run(partner=partner, prices=book(PLAIN, f"gpu,{rate}"), CURRENCY=currency)
    assert result.cells("usage_hours") == [hours]
    assert result.cells("billing_rate") == [rate]
    assert result.cells("billing_amount", "currency") == [f"{amount} {currency}"]


def test_usage_without_a_price_is_not_free(run: Run) -> None:
    result = run(partner=USED, prices=PLAIN)
    assert result.status == 3
    assert result.cells("usage_hours", "billing_rate", "billing_amount") == ["1.00  "]


@table(
    "ids, named",
    """
    three | abc  | A (a), B (b), C (c) are not billed
    four  | abcd | A (a), B (b), C (c), and 1 more are not billed
    """,
)
def test_usage_without_a_price_is_reported_with_up_to_three_organizations(
    run: Run, ids: str, named: str
) -> None:
    listed = [organization(each, each.upper()) for each in ids]
    records = [usage(each, "one", "gpu", "0.5h") for each in ids]
    more = usage("a", "two", "gpu", "0.25h")
    [warning] = run(partner=tenants(*records, more, listed=listed), prices=PLAIN).warnings
    assert warning.startswith("instance of gpu has no price: ")
    assert f"{len(ids) * 0.5 + 0.25} hours of {named}" in warning


# When it changes


@table(
    "lines, rates",
    """
    a new price         | gpu,,,,1; gpu,,2026-06-15,,2            | 2026-06-01 1, 2026-06-15 2
    a second later      | gpu,,,,1; gpu,,2026-06-01T00:00:01,,2 \
| 2026-06-01 1, 2026-06-01T00:00:01Z 2
    a contract ends     | gpu,,,,1; gpu,Acme,,2026-06-15,2        | 2026-06-01 2, 2026-06-15 1
    before the period   | gpu,,,,1; gpu,Acme,,2026-06-01,2        | 2026-06-01 1
    with the period     | gpu,,,,1; gpu,Acme,,2026-07-01,2        | 2026-06-01 2
    of somebody else    | gpu,,,,1; gpu,Beta,,2026-06-15,2        | 2026-06-01 1
    an older one holds  | gpu,,,,1; gpu,,2026-06-01,2026-06-15,2  | 2026-06-01 2, 2026-06-15 1
    nothing follows     | gpu,Acme,,2026-06-15,2                  | 2026-06-01 2, 2026-06-15
    nothing before      | gpu,,2026-06-15,,2                      | 2026-06-01 , 2026-06-15 2
    overruled           | gpu,,,2026-06-15,1; gpu,Acme,,,2        | 2026-06-01 2
    a contract follows  | gpu,,,2026-06-15,1; gpu,o1,2026-06-15,,2 | 2026-06-01 1, 2026-06-15 2
    """,
)
def test_a_price_that_begins_or_ends_inside_the_period_splits_a_line(
    run: Run, lines: str, rates: str
) -> None:
    result = run(partner=USED, prices=book(VALIDITY, lines))
    found = ", ".join(result.cells("period_start", "billing_rate"))
    assert found.replace("T00:00:00Z", "").strip() == rates


def always_on(organization_id: str, name: str, profile: str) -> Instance:
    """Return an instance that runs all the time."""
    return Instance(usage(organization_id, name, profile, ""), duty=Decimal(1))


INSTANCES = (
    always_on("o1", "one", "gpu"),
    always_on("o1", "two", "vm"),
    always_on("o2", "three", "gpu"),
)
RUNNING = Partner([ACME, BETA], metered(INSTANCES))


@table(
    "line, billed",
    """
    for everyone | vm,,2026-06-15,,2 | one 720.00 1, two 336.00 1, two 384.00 2, three 720.00 1
    a contract | gpu,Acme,2026-06-15,2026-06-18,2 \
| two 720.00 1, one 336.00 1, one 72.00 2, one 312.00 1, three 720.00 1
    """,
)
def test_only_lines_of_the_profile_and_organization_are_split(
    run: Run, line: str, billed: str
) -> None:
    prices = book(VALIDITY, f"gpu,,,,1; vm,,,,1; {line}")
    result = run(partner=RUNNING, prices=prices)
    # What is not split comes before what is.
    assert ", ".join(result.cells("instance", "usage_hours", "billing_rate")) == billed


def test_usage_is_read_again_only_for_those_whom_a_change_concerns(run: Run) -> None:
    prices = book(VALIDITY, "gpu,,,,1; vm,,,,1; vm,,2026-06-15,,2")
    asked = []
    for request in run(partner=RUNNING, prices=prices).requests:
        query = request.query
        if "instance_organization_id" in query:
            days = f"{query['range_from'][:10]} to {query['range_to'][:10]}"
            asked.append(f"{query['instance_organization_id']} {days}")
    assert sorted(asked) == [
        "o1 2026-06-01 to 2026-06-15",
        "o1 2026-06-01 to 2026-07-01",  # compute
        "o1 2026-06-01 to 2026-07-01",  # service
        "o1 2026-06-15 to 2026-07-01",
        "o2 2026-06-01 to 2026-07-01",
        "o2 2026-06-01 to 2026-07-01",
    ]


@cases(
    "days, missing",
    {
        "in the whole only": ({30}, ["id-two"]),
        "in parts only": ({10, 20}, ["id-two"]),
        "in the whole and a part": ({30, 20}, []),
    },
)
def test_an_instance_is_in_the_whole_period_and_in_a_part_of_it(
    run: Run, days: set[int], missing: list[str]
) -> None:
    two = usage("o1", "two", "free", "1h")
    without = USED.records
    within = tenants(usage("o1", "one", "gpu", "1h"), two).records

    def records(kind: str, start: datetime, end: datetime, only: str | None) -> list[Json]:
        if (end - start).days in days:
            return within(kind, start, end, only)
        return without(kind, start, end, only)

    prices = book(VALIDITY, "gpu,,,,1; gpu,,2026-06-11,,2; free,,,,0")
    result = run(partner=Partner([ACME, BETA], records), prices=prices)
    assert result.status == len(missing)
    assert re.findall(r"Acme \(o1\): (.*): listed in", result.stderr) == missing


# Whose it is

NAMESAKES = [
    ACME,
    organization("x1", "b2"),
    organization("b2", "Named by an id"),
    organization("spaces", " In Spaces "),
    organization("sharp", "Straße"),
    organization("t1", "Twin"),
    organization("t2", "TWIN"),
]
ALL_USED = tenants(*[usage(each["id"], "one", "gpu", "1h") for each in NAMESAKES], listed=NAMESAKES)


@table(
    "named, owner",
    """
    name in another case   | aCmE      | o1
    name in other letters  | STRASSE   | sharp
    name in spaces         | In Spaces | spaces
    id                     | o1        | o1
    id in another case     | O1        |
    id of one, name of one | b2        | b2
    id of one of two       | t2        | t2
    """,
)
def test_an_organization_is_named_by_name_or_id(run: Run, named: str, owner: str) -> None:
    result = run(partner=ALL_USED, prices=book(SPECIFIC, f"gpu,,,,1; gpu,{named},,,2"))
    owners = [row["organization_id"] for row in result.rows if row["billing_rate"] == "2"]
    assert owners == owner.split()


@table(
    "lines, error",
    """
    a name of two    | gpu,,,,1; gpu,twin,,,2     | 'twin' is ambiguous: give the id: t1, t2
    a name and an id | gpu,Acme,,,1; gpu,o1,,,2   | line 2 already has this price
    """,
)
def test_an_ambiguous_price_is_an_error_before_usage_is_read(
    run: Run, lines: str, error: str
) -> None:
    result = run(partner=ALL_USED, prices=book(VALIDITY, lines))
    assert_failed(result, f"/prices.csv: line 3: .*{error}", status=2)
    assert result.asked(path_has("usage")) == 0


def test_an_expired_price_may_be_ambiguous(run: Run) -> None:
    lines = "gpu,,,,1; gpu,twin,,2026-06-01,2"
    result = run(partner=ALL_USED, prices=book(VALIDITY, lines))
    assert result.status == 0


@pytest.mark.parametrize("named", ["GONE", "o9"])
def test_an_organization_that_is_only_metered_has_its_prices(run: Run, named: str) -> None:
    gone = usage("o9", "one", "gpu", "1h", instance_organization_name="Gone")
    prices = book(SPECIFIC, f"gpu,,,,1; gpu,{named},,,2")
    result = run(partner=tenants(gone), prices=prices)
    assert result.cells("organization_id", "billing_rate") == ["o9 2"]


@table(
    "line, warning",
    """
    close               | gpu,Bta,,,2                      | 'Bta' is not listed; did you mean Beta?
    not close           | gpu,Contoso,,,2                  | 'Contoso' is not listed
    in the first second | gpu,X,,2026-06-01T00:00:01,2     | 'X' is not listed
    in the last second  | gpu,X,2026-06-30T23:59:59,,2     | 'X' is not listed
    """,
)
def test_a_price_in_force_of_an_unknown_organization_is_a_warning(
    run: Run, line: str, warning: str
) -> None:
    result = run(partner=USED, prices=book(VALIDITY, f"gpu,,,,1; {line}"))
    assert result.status == 3
    [found] = result.warnings
    assert found.endswith(f"/prices.csv: line 3: organization {warning}")


@table(
    "line",
    """
    expired | gpu,Bta,,2026-06-01,2
    future  | gpu,Bta,2026-07-01,,2
    listed  | gpu,BETA,,,2
    """,
)
def test_no_other_price_of_an_organization_is_a_warning(run: Run, line: str) -> None:
    result = run(partner=USED, prices=book(VALIDITY, f"gpu,,,,1; {line}"))
    assert result.status == 0
    assert result.warnings == []


def test_the_nearest_name_is_looked_up_for_the_first_unknown_ones(run: Run) -> None:
    prices = book(VALIDITY, "gpu,,,,1; gpu,Acm,,,2; gpu,Bta,,,2")
    result = run(partner=USED, prices=prices, constants={"MAX_HINTS": 1})
    assert ["did you mean" in warning for warning in result.warnings] == [True, False]


# How many there may be


def test_thousands_of_prices_of_one_profile_may_change_at_once(run: Run) -> None:
    lines = ["gpu,,,1"]
    for number in range(8_000):
        lines.append(f"gpu,p{number},2026-06-15,2")
    prices = book("profile,dimension,effective_from,hourly_rate", "; ".join(lines))
    parameters = [quantity("p7", "1h")]
    partner = tenants(usage("o1", "one", "gpu", "1h", parameters=parameters))
    rates = run(partner=partner, prices=prices).cells("dimension", "billing_rate")
    assert rates == ["instance 1", "p7 ", "instance 1", "p7 2"]


def test_thousands_of_priced_parameters_of_one_instance_are_billed(run: Run) -> None:
    lines = ["gpu,,,1"]
    parameters = []
    for number in range(10_000):
        lines.append(f"gpu,p{number},,1")
        parameters.append(quantity(f"p{number}", "1h"))
    partner = tenants(usage("o1", "one", "gpu", "1h", parameters=parameters))
    # In the files, each line would repeat all parameters: 2 GB.
    result = run("--check", partner=partner, prices=book(DIMENSIONS, "; ".join(lines)))
    assert re.search(r"^gpu +1 +1\.00 +10,001\.00$", result.stdout, re.MULTILINE)
