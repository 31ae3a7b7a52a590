"""`--check`: the whole bill without its files, and the prices that nobody used."""

from __future__ import annotations

import re

from conftest import Result, Run, cases
from example import usage
from rafay_simulator import Fault, Partner, always, fixed, organization, path_has

BOOK = (
    "profile,dimension,organization,profile_type,effective_from,effective_to,"
    "hourly_rate,monthly_minimum\n"
)
DISK = {"name": "disk", "is_label": False, "usage": "9.00h"}
LISTED = [organization("a1", "Acme"), organization("b1", "Beta")]
USED = Partner(
    LISTED,
    fixed(compute=[usage("a1", "i", "gpu", "1h", parameters=[DISK]), usage("b1", "j", "vm", "2h")]),
)


def without_files(result: Result) -> list[str]:
    """Return the summary without what it says of files and of prices that nobody used."""
    ends = ("File: ", "Checked only: ", "Nobody used: ")
    return [line for line in result.stdout.splitlines() if not line.startswith(ends)]


def unused(run: Run, lines: str, *flags: str) -> list[str]:
    """Return what a check says that nobody used, of lines from 2 on."""
    result = run("--check", *flags, partner=USED, prices=BOOK + lines)
    return re.findall(r"^Nobody used: .*/prices\.csv: (.*)$", result.stdout, re.MULTILINE)


@cases(
    "flags, lines, status",
    {
        "everything priced": ("--month=last", "gpu,,,,,,1,\nvm,,,,,,1,\n", 0),
        "unpriced": ("--month=last", "gpu,,,,,,1,\n", 3),
        "minimum": ("--month=last", "gpu,,,,,,1,\nvm,,,,,,1,\nx,,Acme,,,,,5\n", 0),
        "no month": ("--days=7", "gpu,,,,,,1,\nvm,,,,,,1,\ngpu,,Acme,,,,,5\n", 3),
        "a change of price": ("--days=7", "gpu,,,,,,1,\nvm,,,,2026-06-28,,1,\n", 3),
        "one organization": ("--days=7 --org=Acme", "gpu,,,,,,1,\n", 0),
        "an unused price": ("--days=7", "gpu,,,,,,1,\nvm,,,,,,1,\nx,,,,,,1,\n", 0),
    },
)
def test_a_check_is_the_bill_without_its_files(
    run: Run, flags: str, lines: str, status: int
) -> None:
    check = run("--check", *flags.split(), partner=USED, prices=BOOK + lines)
    assert (check.status, check.files) == (status, {})
    bill = run(*flags.split(), partner=USED, prices=BOOK + lines)
    assert (bill.status, len(bill.files)) == (status, 2)
    assert check.warnings == bill.warnings
    assert without_files(check) == without_files(bill)


def test_a_check_fails_as_the_bill_does(run: Run) -> None:
    fault = always(Fault(status=403), path_has("/usage"))
    check = run("--check", fault=fault)
    bill = run(fault=fault)
    assert (check.status, check.stdout, check.stderr) == (1, "", bill.stderr)


@cases(
    "line, said",
    {
        "a list price": ("x,,,,,,1,", "instance of x, for everyone"),
        "a parameter": ("x,disk,,,,,1,", "disk of x, for everyone"),
        "a contract, by name": ("x,,ACME,,,,1,", "instance of x, for Acme (a1)"),
        "a contract, by id": ("vm,,a1,,,,1,", "instance of vm, for Acme (a1)"),
        "a profile in another case": ("GPU,,,,,,1,", "instance of GPU, for everyone"),
        "a profile type": ("gpu,,,service,,,1,", "instance of service gpu, for everyone"),
        "in force for a second": ("x,,,,,2026-06-24T00:00:01Z,1,", "instance of x, for everyone"),
        "free": ("x,,,,,,0,", "instance of x, for everyone"),
    },
)
def test_a_price_in_force_that_nobody_used_is_listed(run: Run, line: str, said: str) -> None:
    lines = f"gpu,,,,,,1,\nvm,,,,,,1,\n{line}\n"
    assert unused(run, lines, "--days=7") == [f"line 4: {said}"]


@cases(
    "line",
    {
        "used": "gpu,disk,,,,,1,",
        "a list price that a contract overrules": "gpu,,Acme,,,,1,",
        "a contract that was used": "vm,,Beta,,,,1,",
        "a profile type that was used": "gpu,,,compute,,,1,",
        "expired": "x,,,,,2026-06-24,1,",
        "future": "x,,,,2026-07-01,,1,",
        "of an organization that is not listed": "x,,Gamma,,,,1,",
        "a minimum": "x,,Acme,,,,,5",
    },
)
def test_no_other_price_is_listed(run: Run, line: str) -> None:
    assert unused(run, f"gpu,,,,,,1,\nvm,,,,,,1,\n{line}\n", "--days=7") == []


def test_a_partial_check_lists_no_prices_of_other_organizations(run: Run) -> None:
    lines = "gpu,,,,,,1,\nx,,Acme,,,,1,\nx,,Beta,,,,1,\n"
    assert unused(run, lines, "--org=Acme") == ["line 3: instance of x, for Acme (a1)"]


@cases("flags", {"a bill": [], "a quiet check": ["--check", "--quiet"]})
def test_only_a_check_with_a_summary_lists_unused_prices(run: Run, flags: list[str]) -> None:
    result = run(*flags, partner=USED, prices=f"{BOOK}gpu,,,,,,1,\nvm,,,,,,1,\nx,,,,,,1,\n")
    assert "Nobody used" not in result.stdout + result.stderr
