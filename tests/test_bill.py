"""The bill as a whole: its files, warnings and status, its summary, a check, an invoice."""

from __future__ import annotations

import hashlib
import re
from decimal import Decimal
from operator import itemgetter
from pathlib import Path

from conftest import Result, Run, table
from example import BETA, FILES, PRICES, RAW, SORTED, book, label, quantity, tenants, usage
from rafay_simulator import Json, organization, read_table

JUNE = "2026-06-01T00:00:00Z to 2026-07-01T00:00:00Z (end excluded)"
COLUMNS = (
    "profile,hourly_rate,organization,dimension,effective_from,effective_to,profile_type,"
    "monthly_rate,monthly_minimum"
)
USED = tenants(
    usage("o1", "i", "gpu", "10h", parameters=[label("GPU", "2"), quantity("disk", "1200h")]),
    usage("o1", "k", "gpu", "5h"),
    usage("o1", "off", "idle", "0h"),
    usage("o2", "j", "vm", "2h"),
)
BASIC = "gpu,1; vm,1; "  # what USED is billed with


# Files


def test_a_bill_is_two_files_and_a_summary_with_what_an_auditor_asks_for(
    run: Run, directory: Path, tmp_path: Path
) -> None:
    version = run("--version").stdout.strip()
    result = run()
    assert (result.status, result.stderr) == (0, "")
    assert result.files == FILES
    digest = hashlib.sha256(PRICES.encode()).hexdigest()
    zone = f"Time zone: UTC, version: {version}"
    prices = f"Price book: {tmp_path}/prices.csv, prices: 3, SHA-256: {digest}"
    files = f"File: {directory}/{RAW}\nFile: {directory}/{SORTED}\n"
    for text in (f"Period: {JUNE}", "Reconciled", zone, prices, files):
        assert text in result.stdout


# Each is less than the next in one column, but more in the columns to the right of that.
IN_ORDER = """
o3 | z | service | z | z | z
o1 | z | service | z | z | z
o2 | a | service | z | z | z
o2 | b | compute | z | z | z
o2 | b | service | a | z | z
o2 | b | service | b | a | z
o2 | b | service | b | b | a
o2 | b | service | b | b | b
"""


def test_the_sorted_file_has_the_lines_of_the_raw_file_in_a_stable_order(run: Run) -> None:
    records: dict[str, list[Json]] = {"compute": [], "service": []}
    for number, cells in enumerate(read_table(IN_ORDER)):
        whose, project, profile_type, profile, instance, instance_id = cells
        record = usage(whose, instance, profile, "1h", status=str(number))
        record["instance_project_name"] = project
        record["instance_id"] = instance_id
        record["parameters"] = [quantity("disk", "1h")]
        records[profile_type].insert(0, record)
    # Names are compared before ids, ignoring case.
    names = {"o2": "Beta", "o1": "BETA", "o3": "alpha"}
    listed = [organization(id_, name) for id_, name in names.items()]
    partner = tenants(*records["compute"], service=records["service"], listed=listed)
    result = run(partner=partner, prices=book(COLUMNS, "z,1,,disk; a,1,,disk; b,1,,disk"))
    assert result.sorted == sorted(result.rows, key=itemgetter("status"))
    assert len(result.sorted) == 16


# Warnings and status


@table(
    "lines, flags, status, warning",
    """
    no price at first | gpu,1,,disk,2026-06-11 |            | 3 | disk of gpu has no price: 1200
    unknown tenant    | x,1,Gamma              |            | 3 | 4: organization 'Gamma' is not
    no parameter      | gpu,1,,CPU             |            | 3 | 4: nothing to bill: no record of
    of 0 hours        | idle,1,,CPU            |            | 3 | no record of idle has CPU
    of a contract     | gpu,1,Acme,CPU         |            | 3 | no record of gpu has CPU
    of a partial bill | gpu,1,,CPU             | --org=Acme | 3 | no record of gpu has CPU
    no month          | x,,Acme,,,,,5          |            | 3 | 4: no fee x: the period is not a
    a contract        | x,2,Acme               |            | 0 | 4: nobody used instance of x, for
    for a parameter   | x,2,Acme,CPU           |            | 0 | nobody used CPU of x, for Acme
    in a partial bill | x,2,Acme               | --org=Acme | 0 | nobody used instance of x, for
    like a fee        | x,,Acme,,,,,5; x,1,Acme,month | --month=2026-05 | 0 | nobody used month of x
    too many hours    | | --from=2026-06-01 --to=2026-06-01T09:00 | 0 | more hours than the period
    """,
)
def test_what_may_not_be_billed_is_a_warning_and_status_3_and_what_is_odd_a_warning(
    run: Run, lines: str, flags: str, status: str, warning: str
) -> None:
    result = run(*flags.split(), partner=USED, prices=book(COLUMNS, BASIC + lines))
    [said] = result.warnings
    assert warning in said
    assert result.stdout.endswith(f"\nWarnings: 1, status: {status}\n")
    assert result.status == int(status)


@table(
    "lines, flags",
    """
    free or unused    | gpu,0,Acme; x,1; x,1,,CPU                   |
    used by some      | gpu,1,,GPU; gpu,1,,disk                     |
    used by others    | vm,2,Acme; idle,2,Beta                      |
    used by no other  | gpu,1,Beta,CPU                              |
    with a list price | x,1,Acme; x,1                               |
    of another type   | gpu,1,,CPU,,,service                        |
    not yet in force  | x,1,Acme,,2026-07-01; gpu,1,,CPU,2026-07-01 |
    no more in force  | x,1,Gamma,,,2026-06-01                      |
    of others         | x,1,Gamma; x,1,Beta; x,,Beta,,,,,5          | --org=Acme
    of a month        | x,,Acme,,,,,5                               | --month=2026-05
    """,
)
def test_what_happens_every_month_is_no_warning(run: Run, lines: str, flags: str) -> None:
    result = run(*flags.split(), partner=USED, prices=book(COLUMNS, BASIC + lines))
    assert (result.status, result.stderr) == (0, "")


@table(
    "flags, lines, about",
    """
    a bill       |           | gpu,1                        | 1, status: 3
    a check      | --check   | gpu,1; vm,1; x,1,Acme        | 1, status: 0
    a quiet bill | --quiet   | vm,1; gpu,1,,disk,2026-06-11 | 2, status: 3
    an invoice   | --invoice | gpu,1; x,1,Acme              | 2, status: 3
    """,
)
def test_the_last_line_of_stderr_is_understood_when_it_is_read_alone(
    run: Run, tmp_path: Path, flags: str, lines: str, about: str
) -> None:
    out = tmp_path.joinpath("two  spaces", "long" * 50, "longer" * 40)
    out.mkdir(parents=True)
    result = run(*flags.split(), partner=USED, prices=book(COLUMNS, lines), OUTPUT_DIR=str(out))
    last = result.stderr.splitlines()[-1]
    begin, files = last.split(", files: ")
    assert begin == f"ncp_metrics: warnings: {about}, period: {JUNE}"
    written = map(str, out.iterdir())
    assert sorted(files.split(", ")) == (sorted(written) or ["none"])


# Summary


def read_tables(result: Result) -> list[list[str]]:
    """Return the tables of organizations and of profiles, with single spaces, without headings."""
    tables = []
    for text in result.stdout.split("\n\n")[1:3]:
        rows = [" ".join(line.split()) for line in text.splitlines()]
        tables.append(rows[1:])
    return tables


def test_the_summary_adds_up_what_organizations_and_profiles_are_billed(run: Run) -> None:
    partner = tenants(
        usage("o1", "a", "gpu", "500h", parameters=[quantity("disk", "8h")]),
        usage("o1", "a", "gpu", "300h", profile_id="after a change"),
        usage("o1", "b", "new", "1h"),
        usage("o2", "c", "gpu", "400h"),
        usage("o2", "d", "new", "2h"),
    )
    result = run(partner=partner, prices=book(COLUMNS, "gpu,2.5; gpu,1,,disk"), CURRENCY="EUR")
    headings = re.findall("(.*?) +Instances +Hours +Amount .EUR.", result.stdout)
    assert headings == ["Organization", "Profile"]
    organizations, profiles = read_tables(result)
    assert organizations == [
        "Acme (o1) 2 801.00 2,008.00",
        "Beta (o2) 2 402.00 1,000.00",
        "Total 4 1,203.00 3,008.00",
    ]
    assert profiles == [
        "gpu 2 1,200.00 3,008.00",
        "new 2 3.00",
        "Total 4 1,203.00 3,008.00",
    ]


def test_what_looks_alike_in_the_summary_is_not_added_up(run: Run) -> None:
    names = {"c": "A (b)", "b) (c": "A", "d": "A"}
    partner = tenants(
        usage("c", "i", "Total", "1h"),
        usage("b) (c", "j", "gold (fee)", "2h"),
        usage("d", "k", "gold (fee)", "4h"),
        listed=[organization(id_, name) for id_, name in names.items()],
    )
    prices = "profile,organization,monthly_rate,hourly_rate\ngold,c,5,\ngold (fee),,,1\n"
    organizations, profiles = read_tables(run("--month=last", partner=partner, prices=prices))
    assert organizations == [
        "A (b) (c) 1 1.00 5.00",
        "A (b) (c) 1 2.00 2.00",
        "A (d) 1 4.00 4.00",
        "Total 3 7.00 11.00",
    ]
    assert profiles == [
        "Total 1 1.00",
        "gold (fee) 0 0.00 5.00",
        "gold (fee) 2 6.00 6.00",
        "Total 3 7.00 11.00",
    ]


# Check


def without(begin: str, result: Result) -> list[str]:
    """Return the lines of the summary, without those that begin like this."""
    lines = result.stdout.splitlines()
    return [line for line in lines if not line.startswith(begin)]


@table(
    "flags, lines",
    """
    not all is billed | --days=7               | gpu,1; x,,Acme,,,,,5; x,1
    with an invoice   | --month=last --invoice | gpu,1; vm,1; x,,Acme,,,,,,5
    a change of price | --org=Beta             | gpu,1; vm,1; vm,2,,,2026-06-28
    """,
)
def test_a_check_is_the_bill_without_its_files(run: Run, flags: str, lines: str) -> None:
    more = {"partner": USED, "prices": book(COLUMNS, lines)}
    bill = run(*flags.split(), **more)
    check = run("--check", *flags.split(), **more)
    assert check.files == {}
    assert (check.status, check.warnings) == (bill.status, bill.warnings)
    assert without("Nobody used: ", check) == without("File: ", bill)


@table(
    "flags, line, unused",
    """
    list price      |            | x,1                         | 4: instance of x, for everyone
    free            |            | x,0                         | 4: instance of x, for everyone
    in another case |            | GPU,1                       | 4: instance of GPU, for everyone
    parameter       |            | x,1,,disk                   | 4: disk of x, for everyone
    profile type    |            | gpu,1,,,,,service           | 4: instance of service gpu, for
    contract        |            | vm,1,ACME                   | 4: instance of vm, for Acme (o1)
    contract, by id | --org=Acme | x,1,o1                      | 4: instance of x, for Acme (o1)
    first second    |            | x,1,,,,2026-06-01T00:00:01Z | 4: instance of x, for everyone
    last second     |            | x,1,,,2026-06-30T23:59:59Z  | 4: instance of x, for everyone
    expired         |            | x,1,,,,2026-06-01           |
    future          |            | x,1,,,2026-07-01            |
    overruled       |            | gpu,2,Acme                  |
    used            |            | gpu,1,,disk                 |
    used type       |            | gpu,1,,,,,compute           |
    minimum         |            | x,,Acme,,,,,,5              |
    unknown tenant  |            | x,1,Gamma                   |
    others'         | --org=Acme | x,1,Beta                    |
    everyone's      | --org=Acme | x,1                         |
    """,
)
def test_a_check_lists_prices_in_force_that_nobody_used(
    run: Run, flags: str, line: str, unused: str
) -> None:
    result = run("--check", *flags.split(), partner=USED, prices=book(COLUMNS, BASIC + line))
    listed = re.findall("^Nobody used: .*/prices.csv: line (.*)", result.stdout, re.MULTILINE)
    assert len(listed) == bool(unused)
    assert unused in "".join(listed)


# Invoice


def test_an_invoice_adds_up_the_lines_of_a_tenant_with_one_rate_in_the_sorted_order(
    run: Run,
) -> None:
    partner = tenants(
        usage("o2", "one", "gpu", "10h"),
        usage("o1", "two", "gpu", "1.25h", parameters=[quantity("disk", "0.125h")]),
        usage("o1", "one", "gpu", "1h"),
        usage("o1", "one", "gpu", "2h", start_time="later"),
        usage("o1", "new", "=new", "3h"),
        usage("o1", "off", "=new", "0h"),
        service=[
            usage("o1", "lab", "notebook", "0.5h"),
            usage("o1", "s", "gpu", "4h", instance_name="two"),
        ],
        listed=[BETA, organization("o1", "Acme", external_id="C-1")],
    )
    prices = (
        "gpu,2.50; gpu,2.5,,,2026-06-16; gpu,2.00,Beta,,2026-06-16; gpu,2.5,,disk; notebook,1; "
        "gold,,Acme,,,,,500; gold,,Acme,,,,,,7; *,,Acme,,,,,,1000"
    )
    result = run("--invoice", "--month=last", partner=partner, prices=book(COLUMNS, prices))
    columns = """organization external_id charge profile dimension instances usage_hours
        billing_rate billing_amount currency"""
    cells = itemgetter(*columns.split())
    # Each of the two parts is metered alike; 2.50 and 2.5 are one rate. Half cents are rounded
    # line by line: 3.13, 2.50, 5.00 and 10.00, twice.
    assert [",".join(cells(row)) for row in result.invoice] == [
        "Acme,C-1,minimum,*,month,0,,,950.62,USD",
        "Acme,C-1,fee,gold,month,0,,,500.00,USD",
        "Acme,C-1,minimum,gold,month,0,,,7.00,USD",
        "Acme,C-1,usage,'=new,instance,2,3.00,,,USD",
        "Acme,C-1,usage,gpu,instance,3,16.50,2.50,41.26,USD",
        "Acme,C-1,usage,gpu,disk,1,0.25,2.5,0.62,USD",
        "Acme,C-1,usage,notebook,instance,1,0.50,1,0.50,USD",
        "Beta,,usage,gpu,instance,1,10.00,2.50,25.00,USD",
        "Beta,,usage,gpu,instance,1,10.00,2.00,20.00,USD",
    ]


def test_the_period_of_an_invoice_is_the_bills_in_its_time_zone(run: Run) -> None:
    prices = book(COLUMNS, "gpu,1,,,2026-06-16; gold,,Acme,,,,,5")
    flags = ("--invoice", "--month=2026-06", "--timezone=Europe/Berlin")
    result = run(*flags, partner=USED, prices=prices, now="2026-06-20T10:00:00Z")
    periods = {(row["period_start"], row["period_end"]) for row in result.invoice}
    assert periods == {("2026-06-01T00:00:00+02:00", "2026-06-20T12:00:00+02:00")}


def test_all_files_and_the_summary_have_the_same_totals(run: Run) -> None:
    result = run("--invoice", "--month=last", partner=None, prices=None)
    totals = set()
    for rows in (result.rows, result.sorted, result.invoice):
        hours = sum(Decimal(row["usage_hours"] or 0) for row in rows)
        amount = sum(Decimal(row["billing_amount"] or 0) for row in rows)
        totals.add((hours, amount))
    [(_, amount)] = totals
    assert f" {amount:,f}\n" in result.stdout
