"""The price book: what it may say, which price applies, and usage without a price."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, Run, cases
from example import usage
from rafay_simulator import Instance, Partner, fixed, metered, organization

SHORT = "profile,hourly_rate\n"
FULL = "profile,organization,profile_type,effective_from,dimension,hourly_rate\n"
ENDS = "profile,organization,effective_from,effective_to,hourly_rate\n"
ACME = "4kd82ma"
LISTED = [organization(ACME, "Acme"), organization("other", "Other")]
NAMESAKES = [
    organization("x1", "4kd82mb"),
    organization("4kd82mb", "Named by an id"),
    organization("spaces", " In Spaces "),
    organization("sharp", "Straße"),
    organization("t1", "Twin"),
    organization("t2", "TWIN"),
]
AMOUNT = ("usage_hours", "billing_rate", "billing_amount")


def partner(*compute: Any, listed: Sequence[Any] = LISTED) -> Partner:
    """Return a partner with these records."""
    return Partner(listed, fixed(compute=compute))


def vm(*parameters: Any, hours: str = "24.00h", owner: str = ACME) -> Any:
    """Return the record of an instance of profile vm."""
    return usage(owner, "one", "vm", hours, parameters=parameters)


def quantity(name: str, hours: str) -> Any:
    """Return a parameter that is metered."""
    return {"name": name, "is_label": False, "usage": hours}


def book(*lines: str) -> str:
    """Return a price book with these lines, from line 2 on, below the FULL header."""
    return FULL + "".join(f"{line}\n" for line in lines)


def cells(result: Result, *columns: str) -> list[str]:
    """Return some columns of each line of the raw file, with a space in between."""
    return [" ".join(row[column] for column in columns) for row in result.rows]


def bad_lines(result: Result) -> list[tuple[int, str]]:
    """Return line and message of each error in a price book that no request was made with."""
    assert (result.status, result.stdout, result.files, result.requests) == (2, "", {}, [])
    found = re.findall(r"/prices\.csv: line (\d+): (.*)", "\n".join(result.errors))
    assert len(found) == len(result.errors)
    return [(int(line), message) for line, message in found]


# The file


@cases(
    "text, rates",
    {
        "plain": (f"{SHORT}gpu,2.50\nGPU,0.192\n", {"gpu": "2.50", "GPU": "0.192"}),
        "no line feed at the end": (f"{SHORT}gpu,2.50", {"gpu": "2.50"}),
        "byte order mark": (f"\ufeff# a\n{SHORT}gpu,1\n", {"gpu": "1"}),
        "CR LF": ("profile,hourly_rate\r\ngpu,2\r\n", {"gpu": "2"}),
        "CR": ("profile,hourly_rate\rgpu,2\r", {"gpu": "2"}),
        "comments": (f'# a, b\n{SHORT}#gpu,1\n# 12" rack\ngpu,2\n', {"gpu": "2"}),
        "blank lines": (f"\n \n{SHORT}\n\t\ngpu,2\n\n", {"gpu": "2"}),
        "lines of empty cells": (f",\n{SHORT},,\ngpu,2\n , \n", {"gpu": "2"}),
        "spaces": (" profile , hourly_rate\n gpu ,\u00a02 \n", {"gpu": "2"}),
        "another order of columns": ("hourly_rate,profile\n2,gpu\n", {"gpu": "2"}),
        "description": ("profile,description,hourly_rate\na,x y,2\nb,,1\n", {"a": "2", "b": "1"}),
        "currency": (
            "currency,profile,hourly_rate\nUSD,a,2\n USD ,b,1\n,c,3\n",
            {"a": "2", "b": "1", "c": "3"},
        ),
        "quotes": (f'{SHORT}"gpu, ""big""","2.50"\n', {'gpu, "big"': "2.50"}),
        "leading zeros": (f"{SHORT}gpu,007\n", {"gpu": "7"}),
        "any language": (f"{SHORT}gpu é 漢\u00a0b,2\n", {"gpu é 漢\u00a0b": "2"}),
    },
)
def test_a_valid_book_is_read(run: Run, text: str, rates: dict[str, str]) -> None:
    records = [usage(ACME, f"i-{profile}", profile, "1h") for profile in rates]
    result = run(partner=partner(*records), prices=text)
    assert (result.status, result.warnings) == (0, [])
    read = {row["profile"]: Decimal(row["billing_rate"]) for row in result.rows}
    assert read == {profile: Decimal(rate) for profile, rate in rates.items()}


UNPRINTABLE = "\0\t\x0b\x1b\x7f\x85\xad\u200b\u2028\ufeff"
BAD_RATES = [
    *("-1", "+1", "- 1", "-0", "1,50", "1.000,50", "1 000", "1'000", "1_000", "1\u00a0000"),
    *("$1", "1 USD", "1€", "1%", "1e3", "1E-3", "0x1", "1/2", "1.2.3", "free", "n/a", "-", "=1"),
    *("NaN", "sNaN", "Infinity", "-Infinity", "inf", "'1", "１", "１.５", "٣", "²", "½"),
]


@cases(
    "line, fragment",
    {
        "no profile": (" ,,,,,1", "profile"),
        "no rate": ("cpu,,,,,", "hourly_rate"),
        "too few cells": ("cpu,,,,1", "cell"),
        "too many cells": ("cpu,,,,,1,50", "cell"),
        "open quote": ('"cpu,,,,,1', "unexpected end"),
        "text after a quote": ('"c"pu,,,,,1', "expected after"),
        "tab at the end of a cell": ("cpu\t,,,,,1", "does not print"),
        "tab at the end of the line": ("cpu,,,,,1\t", "does not print"),
        "zero-width space at the end": ("cpu,Acme\u200b,,,,1", "does not print"),
        **{char: (f"c{char}pu,,,,,1", "does not print") for char in UNPRINTABLE},
        **{rate: (f'cpu,,,,,"{rate}"', f"hourly_rate {rate!r}") for rate in BAD_RATES},
        "profile type": ("cpu,,Compute,,,2", "profile_type 'Compute'"),
        "slashes": ("cpu,,,05/06/2026,,2", "effective_from '05/06/2026'"),
        "month": ("cpu,,,2026-06,,2", "effective_from '2026-06'"),
        "skipped by DST": ("cpu,,,2026-03-29T02:30,,2", "effective_from '2026-03-29T02:30'"),
        "two prices": ("gpu,,,,,3", "line 2"),
        "two prices, with quotes": ('"gpu",,,,,3', "line 2"),
        "two prices, with spaces": (" gpu ,,,,,3", "line 2"),
        "two prices, in the same place": ("gpu,,,,instance,2", "line 2"),
        "two prices of a dimension": ("gpu,,,,cpu,3", "line 3"),
        "two prices of an organization": ("gpu,Straße,,,,3", "line 4"),
        "two prices of a profile type": ("gpu,,service,,,3", "line 5"),
        "two prices from the same instant": ("gpu,,,2026-06-14T22:00Z,,3", "line 6"),
    },
)
def test_a_bad_line_is_an_error_with_file_and_line(run: Run, line: str, fragment: str) -> None:
    good = ["gpu,,,,,2", "gpu,,,,cpu,1", "gpu,Straße,,,,1", "gpu,,service,,,1"]
    text = book(*good, "gpu,,,2026-06-15,,1", line)
    [(number, message)] = bad_lines(run(prices=text, TIMEZONE="Europe/Berlin"))
    assert number == 7
    assert fragment in message


@pytest.mark.parametrize(("wrong", "right"), [("EUR", "USD"), ("usd", "USD"), ("USD", "EUR")])
def test_a_price_in_another_currency_is_an_error(run: Run, wrong: str, right: str) -> None:
    text = f"profile,currency,hourly_rate\ngpu,{right},2\ncpu,{wrong},1\n"
    [(number, message)] = bad_lines(run(prices=text, CURRENCY=right))
    assert number == 3
    assert f"currency {wrong!r}" in message


@cases(
    "text, line, fragment",
    {
        "no profile": ("hourly_rate\n2\n", 2, "profile is missing"),
        "no rate": ("# prices\nprofile\ngpu\n", 3, "hourly_rate"),
        "duplicated column": ("profile,hourly_rate,hourly_rate\ngpu,2,1\n", 1, "'hourly_rate'"),
        "unknown column": ("profile,hourly_rate,discount\ngpu,-2\n", 1, "'discount'"),
        "column without a name": ("profile,hourly_rate,\ngpu,2,\n", 1, "''"),
        "capitals": ("Profile,hourly_rate\ngpu,-2\n", 1, "'Profile'"),
        "semicolons": ("profile;hourly_rate\ngpu;2\n", 1, "'profile;hourly_rate'"),
        "no header": ("gpu,2.50\ncpu,-1\n", 1, "'gpu'"),
        "open quote": ('"profile,hourly_rate\ngpu,-2\n', 1, "unexpected end"),
        "Latin-1": (b"profile,hourly_rate\n# \xff\nm\xe9t\xe9o,2\ngpu,2\n", 3, "UTF-8"),
        "Latin-1, CR LF": (b"profile,hourly_rate\r\ngpu,2\r\ngpu,2 \x80\r\n", 3, "UTF-8"),
        "UTF-16": (SHORT.encode("utf-16"), 1, "UTF-8"),
        "surrogate": (b"profile,hourly_rate\ngpu,\xed\xa0\x80\n", 2, "UTF-8"),
    },
)
def test_a_bad_header_or_encoding_is_the_only_error(
    run: Run, text: Any, line: int, fragment: str
) -> None:
    [(number, message)] = bad_lines(run(prices=text))
    assert number == line
    assert fragment in message


@pytest.mark.parametrize("text", ["", "\ufeff", "\n\n", "# nothing\n", ",,\n"], ids=ascii)
def test_a_book_without_any_header_is_an_error(run: Run, text: str) -> None:
    result = run(prices=text)
    assert (result.status, result.files, result.requests) == (2, {}, [])
    assert re.fullmatch(r".*/prices\.csv: .*header.*", result.stderr.strip())


@pytest.mark.parametrize(("name", "reason"), [("none.csv", "No such file"), ("", "Is a directory")])
def test_an_unreadable_book_is_an_error(run: Run, tmp_path: Path, name: str, reason: str) -> None:
    result = run(PRICING_FILE=str(tmp_path / name))
    assert (result.status, result.files, result.requests) == (2, {}, [])
    [error] = result.errors
    assert error.startswith(f"{tmp_path / name}: {reason}")


@cases(
    "lines, numbers",
    {
        "blank lines and comments count": ("# a|p,r||gpu,-2|#|cpu,1|,,|gpu,x|cpu,2", [4, 8, 9]),
        "an open quote ends with its line": ('p,r|"gpu,2|cpu,1|"nic,3|cpu,2', [2, 4, 5]),
    },
)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=ascii)
def test_all_bad_lines_are_reported(run: Run, lines: str, numbers: list[int], end: str) -> None:
    text = lines.replace("p,r", SHORT.strip()).replace("|", end)
    assert [line for line, _ in bad_lines(run(prices=text))] == numbers


def test_the_shipped_book_prices_everything_of_the_small_partner(run: Run) -> None:
    result = run("--month=2026-06", partner=None, prices=None, now="2026-07-01T06:00:00Z")
    assert (result.status, result.warnings) == (0, [])
    assert all(row["billing_amount"] for row in result.rows)
    assert {"instance", "CPU", "storage_size", "month"} == {row["dimension"] for row in result.rows}


def test_the_shipped_book_is_in_dollars_throughout(run: Run) -> None:
    result = run("--currency=JPY", partner=None, prices=None)
    assert (result.status, len(result.errors)) == (2, 17)
    assert all("currency 'USD'" in error for error in result.errors)


# The price that applies


@cases(
    "lines, rates",
    {
        "organization before everyone": (["vm,,,,,1", "vm,Acme,,,,2"], "instance=2"),
        "profile type before both": (["vm,,,,,1", "vm,,compute,,,2"], "instance=2"),
        "organization first": (["vm,Acme,,,,1", "vm,,compute,2026-05-01,,2"], "instance=1"),
        "type before date": (["vm,,compute,,,1", "vm,,,2026-05-01,,2"], "instance=1"),
        "type, own": (["vm,Acme,compute,,,1", "vm,Acme,,2026-05-01,,2"], "instance=1"),
        "latest": (["vm,,,2026-05-01,,1", "vm,,,2026-05-02,,2", "vm,,,,,3"], "instance=2"),
        "by name and id": (["vm,Acme,,,,1", f"vm,{ACME},,2026-05-01,,2"], "instance=2"),
        "0 is a price": (["vm,,,,,1", "vm,Acme,,,,0"], "instance=0"),
        "another organization's": (["vm,,,,,1", "vm,Other,,,,2"], "instance=1"),
        "another profile type's": (["vm,,,,,1", "vm,,service,,,2"], "instance=1"),
        "from the start": (["vm,,,,,1", "vm,,,2026-06-01,,2"], "instance=2"),
        "from the end": (["vm,,,,,1", "vm,,,2026-07-01,,2"], "instance=1"),
        "1 s later": (["vm,,,,,1", "vm,,,2026-06-01T00:00:01,,2"], "instance=1 instance=2"),
        "own, later": (["vm,,,,,1", "vm,Acme,,2026-06-02,,2"], "instance=1 instance=2"),
        "type's, later": (["vm,,,,,1", "vm,,compute,2026-06-02,,2"], "instance=1 instance=2"),
        "dimension only": (["vm,,,,cpu,2"], "instance= cpu=2"),
        "free dimension": (["vm,,,,,1", "vm,,,,cpu,0"], "instance=1 cpu=0"),
        "own dimension": (["vm,,,,,1", "vm,,,,cpu,2", "vm,acme,,,cpu,3"], "instance=1 cpu=3"),
        "order of the API": (
            ["vm,,,,disk,3", "vm,,,,cpu,2", "vm,,,,,1"],
            "instance=1 cpu=2 disk=3",
        ),
        "dimension of another profile": (["vm,,,,,1", "gpu,,,,cpu,2"], "instance=1"),
        "dimension of another organization": (["vm,,,,,1", "vm,Other,,,cpu,2"], "instance=1"),
        "dimension after the period": (["vm,,,,,1", "vm,,,2026-07-01,cpu,2"], "instance=1"),
        "dimension in another case": (["vm,,,,,1", "vm,,,,CPU,2"], "instance=1"),
    },
)
def test_the_most_specific_price_in_force_applies(run: Run, lines: list[str], rates: str) -> None:
    record = vm(quantity(" cpu ", "96.00h"), quantity("disk", "0.00h"))
    result = run(partner=partner(record), prices=book(*lines))
    found = cells(result, "dimension", "billing_rate")
    assert [each.replace(" ", "=") for each in found] == rates.split()


@cases(
    "lines, rates",
    {
        "before the period": (["vm,,,,1", "vm,Acme,,2026-06-01,2"], ["1"]),
        "inside": (["vm,,,,1", "vm,Acme,,2026-06-15,2"], ["2", "06-15 1"]),
        "with the period": (["vm,,,,1", "vm,Acme,,2026-07-01,2"], ["2"]),
        "a week": (["vm,,,,1", "vm,,2026-06-08,2026-06-15,2"], ["1", "06-08 2", "06-15 1"]),
        "own resumes": (["vm,Acme,,,1", "vm,Acme,2026-06-01,2026-06-15,2"], ["2", "06-15 1"]),
        "nothing follows": (["vm,Acme,,2026-06-15,2"], ["2", "06-15 "]),
        "nothing before": (["vm,,2026-06-15,,2"], ["", "06-15 2"]),
        "the list's, but own wins": (["vm,,,2026-06-15,1", "vm,Acme,,,2"], ["2"]),
        "list, own": (["vm,,,2026-06-15,1", "vm,Acme,2026-06-15,,2"], ["1", "06-15 2"]),
        "another organization's": (["vm,,,,1", "vm,Other,,2026-06-15,2"], ["1"]),
    },
)
def test_a_price_ends_with_effective_to(run: Run, lines: list[str], rates: Any) -> None:
    result = run(partner=partner(vm()), prices=ENDS + "".join(f"{line}\n" for line in lines))
    found = [f"{row['period_start'][5:10]} {row['billing_rate']}" for row in result.rows]
    assert found == [f"06-01 {rates[0]}", *rates[1:]]
    unpriced = any(each.endswith(" ") for each in found)
    assert (result.status, len(result.warnings)) == (3 * unpriced, unpriced)


@pytest.mark.parametrize("ends", ["2026-06-02", "2026-06-01", "2026-06-02T00:00", "30 June"])
def test_a_validity_must_end_after_it_begins(run: Run, ends: str) -> None:
    [(number, message)] = bad_lines(run(prices=f"{ENDS}vm,,2026-06-02,{ends},1\n"))
    assert (number, "effective_to" in message) == (2, True)


def ran(profile: str, owner: str) -> Instance:
    """Return an instance that ran for a third of the time."""
    return Instance(owner, "", "p", profile, f"{profile} {owner}", "id", "", Decimal("0.333"))


@pytest.fixture
def lines(run: Run, directory: Path) -> Callable[..., list[str]]:
    """Return a function that bills instances with prices, and returns the lines of the raw file."""

    def lines(instances: list[Instance], prices: str) -> list[str]:
        for path in directory.iterdir():
            path.unlink()
        return run(partner=Partner(LISTED, metered(instances)), prices=prices).raw.splitlines()[1:]

    return lines


def test_a_contract_of_one_tenant_changes_nobody_elses_lines(
    lines: Callable[..., list[str]],
) -> None:
    instances = [ran("vm", ACME), ran("vm", "other")]
    prices = f"{ENDS}vm,,,,1\ngpu,,2026-06-20,,9\n"
    [_, before] = lines(instances, prices)
    *own, after = lines(instances, f"{prices}vm,Acme,2026-06-15,2026-06-18,2\n")
    assert after == before
    assert [line.split(",")[-4:-1] for line in own] == [
        *(["111.89", "1", "111.89"], ["23.98", "2", "47.96"], ["103.90", "1", "103.90"]),
    ]


def test_a_new_list_price_splits_the_lines_of_its_profile_only(
    lines: Callable[..., list[str]],
) -> None:
    instances = [ran("vm", ACME), ran("gpu", ACME), ran("gpu", "other")]
    prices = f"{ENDS}vm,,,,1\ngpu,,,,9\n"
    [_, *before] = lines(instances, prices)
    # What is not split comes before what is.
    [own, first, second, others] = lines(instances, f"{prices}vm,,2026-06-15,,2\n")
    assert [own, others] == before
    assert "vm 4kd82ma" in first
    assert "2026-06-01T00:00:00Z,2026-06-15T00:00:00Z,usage,instance,111.89,1,111.89" in first
    assert "2026-06-15T00:00:00Z,2026-07-01T00:00:00Z,usage,instance,127.87,2,255.74" in second


def test_usage_is_read_in_parts_only_of_tenants_whom_a_change_concerns(run: Run) -> None:
    used = partner(vm(), usage("other", "two", "gpu", "1h"))
    prices = f"{ENDS}vm,,,,1\ngpu,,,,9\nvm,,2026-06-15,,2\n"
    result = run(partner=used, prices=prices)
    parts = [
        request.query.get("instance_organization_id")
        for request in result.requests
        if "2026-06-15T00:00:00Z"
        in (request.query.get("range_from"), request.query.get("range_to"))
    ]
    assert parts == [ACME, ACME]


@cases(
    "days, status",
    {"whole only": ({30}, 1), "parts only": ({10, 20}, 1), "whole and one part": ({30, 20}, 0)},
)
def test_an_instance_of_the_whole_period_is_in_a_part_of_it_and_the_other_way_round(
    run: Run, days: set[int], status: int
) -> None:
    some = fixed(compute=[vm()])
    more = fixed(compute=[vm(), usage(ACME, "two", "free", "1h")])

    def records(kind: str, start: datetime, end: datetime, only: str | None) -> list[Any]:
        asked = more if (end - start).days in days else some
        return asked(kind, start, end, only)

    prices = f"{ENDS}vm,,,,1\nvm,,2026-06-11,,2\nfree,,,,0\n"
    result = run(partner=Partner(LISTED, records), prices=prices)
    assert (result.status, len(result.errors)) == (status, status)
    assert all("id-two" in error for error in result.errors)


def test_the_example_of_rafay_costs_144(run: Run) -> None:
    record = vm(quantity("CPU", "96.00h"), quantity("GPU", "48.00h"))
    prices = book("vm,,,,,0", "vm,,,,CPU,0.5", "vm,,,,GPU,2")
    result = run(partner=partner(record), prices=prices)
    amounts = ["instance 24.00 0 0.00", "CPU 96.00 0.5 48.00", "GPU 48.00 2 96.00"]
    assert cells(result, "dimension", *AMOUNT) == amounts
    assert " 144.00" in result.stdout


@cases(
    "named, owners",
    {
        "name in another case": ("aCmE", [ACME]),
        "id": (ACME, [ACME]),
        "id in another case": ("4KD82MA", []),
        "id that is also a name": ("4kd82mb", ["4kd82mb"]),
        "name in spaces": ("In Spaces", ["spaces"]),
        "ß": ("STRASSE", ["sharp"]),
        "one of two with one name": ("t2", ["t2"]),
    },
)
def test_an_organization_is_named_by_name_or_id(run: Run, named: str, owners: list[str]) -> None:
    listed = [*LISTED, *NAMESAKES]
    records = [vm(owner=each["id"]) for each in listed]
    prices = book("vm,,,,,1", f"vm,{named},,,,2")
    result = run(partner=partner(*records, listed=listed), prices=prices)
    assert [row["organization_id"] for row in result.rows if row["billing_rate"] == "2"] == owners


@pytest.mark.parametrize(("name", "rate"), [("GONE", "3"), ("g1", "3"), ("", "1")])
def test_an_unlisted_organization_has_its_prices(run: Run, name: str, rate: str) -> None:
    gone = {**vm(owner="g1"), "instance_organization_name": "Gone" if name else " "}
    result = run(partner=partner(gone, vm()), prices=book("vm,,,,,1", f"vm,{name or 'x'},,,,3"))
    assert cells(result, "organization_id", "billing_rate") == [f"{ACME} 1", f"g1 {rate}"]


@cases(
    "line, hint",
    {
        "close": ("Othr,,,2", "did you mean Other?"),
        "not close": ("Contoso,,,2", "is not listed"),
        "in force for a second": ("Othr,,2026-06-01T00:00:01,2", "Other?"),
        "expired": ("Othr,,2026-06-01,2", ""),
        "future": ("Othr,2026-07-01,,2", ""),
        "known": ("OTHER,,,1", ""),
    },
)
def test_a_price_in_force_of_an_unknown_organization_is_a_warning(
    run: Run, line: str, hint: str
) -> None:
    prices = f"{ENDS}vm,,,,1\nvm,{line}\n"
    result = run(partner=partner(vm()), prices=prices)
    expected = bool(hint)
    assert (result.status, len(result.warnings)) == (3 * expected, expected)
    name = line.partition(",")[0]
    pattern = rf".*/prices\.csv: line 3: .*'{name}'.*{re.escape(hint)}"
    assert all(re.fullmatch(pattern, warning) for warning in result.warnings)


def test_a_partial_bill_warns_of_no_prices_of_other_organizations(run: Run) -> None:
    prices = f"{ENDS}vm,,,,1\nvm,Othr,,,2\nvm,Other,,,2\n"
    result = run("--org=Acme", partner=partner(vm()), prices=prices)
    assert (result.status, result.warnings) == (0, [])


def test_the_nearest_name_is_looked_up_for_the_first_unknown_ones(run: Run) -> None:
    lines = [f"vm,Acme{n},,,2\n" for n in range(25)]
    result = run(partner=partner(vm()), prices=f"{ENDS}vm,,,,1\n{''.join(lines)}")
    assert ["mean Acme?" in each for each in result.warnings] == [True] * 5 + [False] * 20


@pytest.mark.parametrize("flags", [[], ["--check"]], ids=["bill", "check"])
@pytest.mark.parametrize(("named", "found"), [("twin", "t1, t2"), (ACME, "line 2")])
def test_an_ambiguous_price_is_an_error(run: Run, flags: Any, named: str, found: str) -> None:
    prices = book("vm,Acme,,,,1", "vm,t2,,,,2", f"vm,{named},,,,2")
    result = run(*flags, partner=partner(vm(), listed=[*LISTED, *NAMESAKES]), prices=prices)
    assert (result.status, result.files) == (2, {})
    assert re.fullmatch(f".*/prices.csv: line 4: .*{found}.*", result.stderr.strip())


def test_an_expired_price_may_be_ambiguous(run: Run) -> None:
    prices = f"{ENDS}vm,,,,1\nvm,twin,,2026-06-01,2\n"
    result = run(partner=partner(vm(), listed=[*LISTED, *NAMESAKES]), prices=prices)
    assert (result.status, result.stderr) == (0, "")


# Amounts


@cases(
    "currency, hours, rate, amount",
    {
        "51.475 up": ("USD", "20.59", "2.50", "51.48"),
        "0.025 up, not to even": ("USD", "0.01", "2.50", "0.03"),
        "0.0049 down": ("USD", "0.01", "0.49", "0.00"),
        "0.5 JPY up": ("JPY", "0.50", "1", "1"),
        "no exponent": ("JPY", "100.00", "100", "10000"),
        "0.0025 KWD up, not to even": ("KWD", "0.25", "0.01", "0.003"),
        "free in JPY": ("JPY", "744.00", "0.0000", "0"),
        "no hours in KWD": ("KWD", "0.00", "2.50", "0.000"),
        "rounded once": ("USD", "0.10", "0.0" + "4" + "9" * 5000, "0.00"),
        "large": ("USD", "1.00", "1" + "0" * 60 + ".005", "1" + "0" * 60 + ".01"),
    },
)
def test_the_amount_is_rounded_once_half_up_to_the_minor_unit(
    run: Run, currency: str, hours: str, rate: str, amount: str
) -> None:
    record = vm(quantity("cpu", f"{hours}h"), hours=f"{hours}h")
    prices = book(f"vm,,,,,{rate}", f"vm,,,,cpu,{rate}")
    result = run(partner=partner(record), prices=prices, CURRENCY=currency)
    assert cells(result, *AMOUNT, "currency") == [f"{hours} {rate} {amount} {currency}"] * 2


@cases(
    "lines, fragments",
    {
        "a similar name": (["vms,,,,,1", "gpu,,,,,1"], ["21.75"]),
        "empty book": ([], ["21.75"]),
        "another profile type's": (["vm,,service,,,1"], ["21.75"]),
        "another organization's": (["vm,Other,,,,1"], ["20.75"]),
        "after the period": (["vm,,,2026-07-01,,1"], ["21.75"]),
        "case": (["VM,,,,,1"], ["21.75"]),
    },
)
def test_unpriced_usage_stays_in_the_files_and_is_reported(
    run: Run, lines: list[str], fragments: list[str]
) -> None:
    records = [vm(hours="20.75h"), vm(hours="1h", owner="other")]
    result = run(partner=partner(*records), prices=book(*lines))
    assert result.status == 3
    assert cells(result, "organization_id", *AMOUNT)[0] == f"{ACME} 20.75  "
    [warning] = result.warnings
    assert [each for each in ["of vm has", *fragments] if each not in warning] == []


@cases("owners, named", {"three": (3, "Tenant 2 (2) are"), "four": (4, "Tenant 2 (2), and 1 more")})
def test_unpriced_usage_is_reported_with_up_to_three_organizations(
    run: Run, owners: int, named: str
) -> None:
    listed = [organization(str(n), f"Tenant {n}") for n in range(owners)]
    records = [vm(owner=each["id"]) for each in listed]
    records.append(usage("0", "two", "vm", "1h"))
    result = run(partner=partner(*records, listed=listed), prices=book())
    [warning] = result.warnings
    assert f"of Tenant 0 (0), Tenant 1 (1), {named}" in warning


def test_thousands_of_prices_of_one_profile_may_change_at_once(run: Run) -> None:
    lines = [f"vm,,,2026-06-15,p{n},1" for n in range(8_000)]
    result = run(partner=partner(vm(quantity("p7", "1h"))), prices=book("vm,,,,,1", *lines))
    assert cells(result, "dimension", "billing_rate") == ["instance 1", "p7 ", "instance 1", "p7 1"]


def test_thousands_of_priced_parameters_on_one_record_are_all_billed(run: Run) -> None:
    names = [f"p{n}" for n in range(10_000)]
    record = vm(*(quantity(name, "1h") for name in names))
    prices = book("vm,,,,,1", *(f"vm,,,,{name},1" for name in names))
    # In the files, each line would repeat all parameters: 2 GB.
    result = run("--check", partner=partner(record), prices=prices)
    assert re.search(r"^vm +1 +24\.00 +10,024\.00$", result.stdout, re.MULTILINE)
