"""`--invoice`: a line for each organization, charge, profile, dimension and rate."""

from __future__ import annotations

import csv
import io
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, Run
from example import usage
from rafay_simulator import Fault, Partner, always, fixed, organization, path_has

BOOK = (
    "profile,dimension,organization,profile_type,effective_from,hourly_rate,monthly_rate,"
    "monthly_minimum\n"
)
PRICES = f"""{BOOK}gpu,,,,,2.50,,
gpu,,,,2026-06-16,2.5,,
gpu,,Beta,,2026-06-16,2.00,,
gpu,disk,,,,0.001,,
notebook,,,,,1,,
gold,,Acme,,,,500,
*,,Acme,,,,,1000
"""
DISK = {"name": "disk", "is_label": False, "usage": "0.125h"}
LISTED = [
    organization("b1", "Beta"),
    organization("a1", "acme, Inc.", external_id="C-1"),
    organization("idle", "Idle"),
]
USED = Partner(
    [LISTED[0], {**LISTED[1], "name": "Acme"}, LISTED[2]],
    fixed(
        compute=[
            usage("b1", "one", "gpu", "10h"),
            usage("a1", "two", "gpu", "1.25h", parameters=[DISK]),
            usage("a1", "one", "gpu", "1h"),
            usage("a1", "one", "gpu", "2h", start_time="later"),
            usage("a1", "new", "no price", "3h"),
            usage("a1", "off", "no price", "0h"),
        ],
        service=[usage("a1", "lab", "notebook", "0.5h"), usage("a1", "s", "gpu", "4h")],
    ),
)
HEADER = (
    "organization,organization_id,external_id,period_start,period_end,charge,profile,dimension,"
    "instances,usage_hours,billing_rate,billing_amount,currency"
)
JUNE = "2026-06-01T00:00:00Z,2026-07-01T00:00:00Z"


def bill(run: Run, *flags: str, **more: Any) -> Result:
    """Bill June with an invoice."""
    settings = {"partner": USED, "prices": PRICES, "now": "2026-07-01T06:00:00Z", **more}
    return run("--invoice", "--month=2026-06", *flags, **settings)


def invoice(result: Result) -> str:
    """Return the text of the invoice file."""
    [text] = [text for name, text in result.files.items() if "-invoice-" in name]
    return text


def test_the_invoice_adds_up_the_lines_of_the_bill_in_the_order_of_the_sorted_file(
    run: Run,
) -> None:
    acme, beta = f"Acme,a1,C-1,{JUNE}", f"Beta,b1,,{JUNE}"
    result = bill(run)
    assert list(result.files) == [
        "ncp-metrics-07012026-060000.csv",
        "ncp-metrics-invoice-07012026-060000.csv",
        "ncp-metrics-sorted-07012026-060000.csv",
    ]
    # Each of the two parts is metered alike; 2.50 and 2.5 are one rate. Half cents are rounded
    # line by line: 3.13, 2.50, 5.00 and 10.00, twice.
    assert invoice(result).splitlines() == [
        HEADER,
        f"{acme},minimum,*,month,0,,,958.24,USD",
        f"{acme},fee,gold,month,0,,,500.00,USD",
        f"{acme},usage,gpu,instance,3,16.50,2.50,41.26,USD",
        f"{acme},usage,gpu,disk,1,0.25,0.001,0.00,USD",
        f"{acme},usage,no price,instance,2,3.00,,,USD",
        f"{acme},usage,notebook,instance,1,0.50,1,0.50,USD",
        f"{beta},usage,gpu,instance,1,10.00,2.50,25.00,USD",
        f"{beta},usage,gpu,instance,1,10.00,2.00,20.00,USD",
    ]


@pytest.mark.parametrize(("currency", "amount"), [("JPY", "5"), ("KWD", "4.166")])
def test_amounts_of_the_invoice_have_the_digits_of_the_currency(
    run: Run, currency: str, amount: str
) -> None:
    records = [usage("a1", str(n), "gpu", "1.00h") for n in range(5)]
    partner = Partner(LISTED, fixed(compute=[*records[:4], {**records[4], "usage": "1.001h"}]))
    prices = "profile,hourly_rate\ngpu,0.8333\n"
    lines = invoice(bill(run, partner=partner, prices=prices, CURRENCY=currency)).splitlines()
    assert [line.split(",")[-5:] for line in lines[1:]] == [
        ["5", "5.001", "0.8333", amount, currency]
    ]


def test_the_period_of_the_invoice_is_the_bills_and_in_its_time_zone(run: Run) -> None:
    text = invoice(bill(run, "--timezone=Europe/Berlin", now="2026-06-20T10:00:00Z"))
    [*_, last] = text.splitlines()
    assert ",2026-06-01T00:00:00+02:00,2026-06-20T12:00:00+02:00," in last
    assert text.count("2026-06-01T00:00:00+02:00,2026-06-20T12:00:00+02:00") == 8


def test_texts_of_the_invoice_are_safe_for_spreadsheets(run: Run) -> None:
    partner = Partner([organization("=o1", "=Acme")], fixed([usage("=o1", "i", "=gpu", "1h")]))
    [_, line] = invoice(bill(run, partner=partner)).splitlines()
    assert line.startswith(f"'=Acme,'=o1,,{JUNE},usage,'=gpu,instance,1,1.00,,,USD")


def test_without_the_flag_there_is_no_invoice(run: Run) -> None:
    assert len(run("--month=2026-06", partner=USED, prices=PRICES).files) == 2


def test_a_check_writes_no_invoice(run: Run) -> None:
    assert bill(run, "--check").files == {}


def test_a_failed_run_leaves_no_invoice(run: Run) -> None:
    assert bill(run, fault=always(Fault(status=403), path_has("service"))).files == {}


def test_hours_and_amounts_of_all_files_agree_wherever_they_are_loaded(
    run: Run, directory: Path
) -> None:
    result = bill(run, partner=None, prices=None)
    totals = set()
    for name, text in result.files.items():
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        hours = sum(Decimal(row["usage_hours"] or 0) for row in rows)
        amounts = sum(Decimal(row["billing_amount"] or 0) for row in rows)
        totals.add((hours, amounts))
        with closing(sqlite3.connect(":memory:")) as table:
            table.execute(f"create table lines ({','.join(rows[0])})")
            marks = ",".join("?" * len(rows[0]))
            cells = [[*row.values()] for row in rows]
            table.executemany(f"insert into lines values ({marks})", cells)
            [loaded] = table.execute("select sum(usage_hours), sum(billing_amount) from lines")
        assert loaded == pytest.approx((float(hours), float(amounts))), name
    assert totals == {(Decimal("2917326.96"), Decimal("30688.29"))}
