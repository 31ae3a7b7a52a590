"""From usage record to row: what the API's answers become in the files and the summary."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, Run, assert_failed, cases
from example import FILES, PERIOD, PRICES, RAW, SORTED, text, usage
from rafay_simulator import Behaviour, Fault, Partner, always, fixed, organization, path_has

DISK_PRICES = "profile,dimension,hourly_rate\ngpu,instance,2.50\ngpu,disk,0.001\n"
DELETED = "2026-06-03T17:20:00Z"
REQUIRED = ("instance_organization_id", "instance_id", "profile_name")
OPTIONAL = {  # and the columns that they fill
    **{"instance_project_name": "project", "instance_name": "instance"},
    **{column: column for column in ("status", "created_at", "parameters")},
}
EMPTY: tuple[Any, ...] = (None, ..., [])


def bill(run: Run, *records: dict[str, Any], name: str = "Acme", **more: Any) -> Result:
    """Bill to organization o1 compute records of instance vm-1, but for the fields given.

    A field that is `...` is left out; a text such as "#1e3" is sent as the JSON number 1e3.
    """

    def edit(answer: Any) -> bytes:
        return re.sub('"#(.*?)"', r"\1", json.dumps(answer)).encode()

    complete = [{**usage("o1", "vm-1", "gpu", "1.00h"), **fields} for fields in records]
    rows = [{key: row[key] for key in row if row[key] is not ...} for row in complete]
    partner = Partner([organization("o1", name)], fixed(compute=rows))
    return run(partner=partner, fault=always(Fault(edit=edit)), WORKERS="1", **more)


def test_a_run_writes_both_files_and_prints_what_an_auditor_asks_for(
    run: Run, directory: Path, tmp_path: Path
) -> None:
    version = run("--version").stdout.strip()
    result = run()
    assert (result.status, result.stderr, result.files) == (0, "", FILES)
    digest = hashlib.sha256(PRICES.encode()).hexdigest()
    paths = [tmp_path / "prices.csv", directory / RAW, directory / SORTED]
    audit = [*PERIOD.split(","), "UTC", "Reconciled", version, digest, *map(str, paths)]
    assert [words for words in audit if words not in result.stdout] == []


# Hours


@pytest.mark.parametrize(
    ("usage", "raw_usage", "hours"),
    [
        ("0.00h", "#9.9", "0.00"),
        ("20h", ..., "20.00"),
        ("20.5h", None, "20.50"),
        ("20.594h", ..., "20.594"),
        ("", "#1.5", "1.50"),
        (" ", "#1.5", "1.50"),
        (None, 1200, "1200.00"),
        (..., 0, "0.00"),
        (..., "#-0.0", "0.00"),
        (..., "#20.594723", "20.59"),
        (..., "#20.595", "20.60"),
        (..., "#20.585", "20.59"),
        (..., "#20.5849999999999999999999999999", "20.58"),
        (..., "#1E+3", "1000.00"),
        (..., "#1E-300", "0.00"),
        ("1000000.00h", ..., "1000000.00"),
    ],
    ids=str,
)
def test_hours_are_usage_or_else_raw_usage_rounded_half_up(
    run: Run, usage: Any, raw_usage: Any, hours: str
) -> None:
    result = bill(run, {"usage": usage, "raw_usage": raw_usage})
    assert (result.status, [row["usage_hours"] for row in result.rows]) == (0, [hours])


# Fields


@pytest.mark.parametrize(
    ("fields", "column", "cell"),
    [
        *(({key: value}, OPTIONAL[key], "") for key in OPTIONAL for value in (None, ...)),
        ({"deleted_at": DELETED, "status": ""}, "status", "deleted"),
        ({"deleted_at": DELETED, "status": "stopped"}, "status", "stopped"),
        ({"deleted_at": ""}, "status", ""),
        ({"deleted_at": "0001-01-01T00:00:00Z"}, "status", ""),
        ({"created_at": "2026-06-02T08:51:41+05:30"}, "created_at", "2026-06-02T03:21:41Z"),
        ({"created_at": "2026-06-02T08:51:41-0700"}, "created_at", "2026-06-02T15:51:41Z"),
        ({"created_at": "2026-06-02T08:51:41.999999999Z"}, "created_at", "2026-06-02T08:51:41Z"),
        ({"created_at": " 2026-06-02T08:51:41Z "}, "created_at", "2026-06-02T08:51:41Z"),
        ({"created_at": " "}, "created_at", ""),
        ({"instance_name": "'=1"}, "instance", "'=1"),
        ({"instance_name": "1-2=Ø"}, "instance", "1-2=Ø"),
        ({"instance_project_name": "=1"}, "project", "'=1"),
        ({"profile_name": "=1", "usage": "0h"}, "profile", "'=1"),
        ({"instance_id": "=1"}, "instance_id", "'=1"),
        ({"status": "=1"}, "status", "'=1"),
    ],
    ids=str,
)
def test_a_field_becomes_a_cell(run: Run, fields: dict[str, Any], column: str, cell: str) -> None:
    result = bill(run, fields)
    assert (result.status, [row[column] for row in result.rows]) == (0, [cell])


def test_created_at_is_in_utc_wherever_the_program_runs(run_process: Run) -> None:
    [row] = bill(run_process, {"created_at": "2026-06-02T08:51:41"}, TZ="XYZ-9:45").rows
    assert row["created_at"] == "2026-06-02T08:51:41Z"


def label(name: str, value: Any, **more: Any) -> dict[str, Any]:
    """Return a parameter that describes an instance."""
    return {"name": name, "is_label": True, "label_value": value, **more}


def disk(**fields: Any) -> dict[str, Any]:
    """Return a parameter that is a quantity, 1 GB of disk for an hour, but for the fields given."""
    return {"name": "disk", "is_label": False, "usage": "1.00h", **fields}


@pytest.mark.parametrize(
    ("parameters", "cell", "hours"),
    [
        ([], "", []),
        ([label("Model", "")], "Model=", []),
        ([label("=1", "A")], "'=1=A", []),
        ([disk(name="z"), label("a", "b"), disk(name="m")], "z=1.00h; a=b; m=1.00h", []),
        ([disk(name="z"), disk(name="z")], "z=1.00h; z=1.00h", []),
        ([disk(usage="1200h")], "disk=1200.00h", ["1200.00"]),
        ([disk(usage="1.00h", raw_usage=2, label_value="x")], "disk=1.00h", ["1.00"]),
        ([disk(usage=None, raw_usage="#2.345")], "disk=2.35h", ["2.35"]),
        ([disk(is_label=None)], "disk=1.00h", ["1.00"]),
        ([disk(name="z", is_label=None, label_value="8")], "z=1.00h", []),
        ([disk(usage="7440000000000000h")], "disk=7440000000000000.00h", ["7440000000000000.00"]),
    ],
    ids=str,
)
def test_parameters_are_a_cell_and_each_priced_quantity_is_a_row_with_its_own_hours(
    run: Run, parameters: list[Any], cell: str, hours: list[str]
) -> None:
    instance, *disks = bill(run, {"parameters": parameters}, prices=DISK_PRICES).rows
    assert (instance["parameters"], instance["usage_hours"]) == (cell, "1.00")
    billed = [(row["dimension"], row["usage_hours"]) for row in disks]
    assert billed == [("disk", each) for each in hours]


CPU_PRICES = "profile,dimension,hourly_rate\ngpu,instance,0\ngpu,CPU,0.5\n"
SERVICE_ID = label("ServiceID", "019c510c-0000-707d-aef7-000000000001", usage="20.59h")


@pytest.mark.parametrize(
    ("value", "usage", "hours", "amount"),
    [
        ("24", "20.59h", "494.16", "247.08"),
        (" 1.5 ", "0.01h", "0.015", "0.01"),
        ("0", "20.59h", "0.00", "0.00"),
    ],
)
def test_a_priced_label_bills_its_value_times_its_usage(
    run: Run, value: str, usage: str, hours: str, amount: str
) -> None:
    parameters = [SERVICE_ID, label("CPU", value, usage=usage), label("cpu", "x")]
    result = bill(run, {"parameters": parameters}, prices=CPU_PRICES)
    columns = ("dimension", "usage_hours", "billing_amount")
    rows = [[row[column] for column in columns] for row in result.rows]
    assert (result.status, rows[1:]) == (0, [["CPU", hours, amount]])


def test_a_label_value_without_is_label_is_an_error_if_it_is_priced(run: Run) -> None:
    parameters = [{"name": "CPU", "usage": "20.00h", "label_value": "8"}]  # 80.00 or 10.00?
    result = bill(run, {"parameters": parameters}, prices=CPU_PRICES)
    assert_failed(result, "vm-1.*CPU.*is_label")


@cases(
    "priced, parameter, warnings",
    {
        "too many": ("gpu", label("CPU", "0", usage="720.02h"), 1),
        "within rounding": ("gpu", label("CPU", "0", usage="720.01h"), 0),
        "large value": ("gpu", label("CPU", "9", usage="720.00h"), 0),
        "not priced": ("another", label("CPU", "1", usage="900.00h"), 0),
        "quantity": ("gpu", {"name": "CPU", "usage": "900.00h", "is_label": False}, 0),
    },
)
def test_a_billed_label_with_more_hours_than_the_period_is_a_warning(
    run: Run, priced: str, parameter: dict[str, Any], warnings: int
) -> None:
    prices = f"profile,dimension,hourly_rate\ngpu,,0\n{priced},CPU,1\n"
    result = bill(run, {"parameters": [parameter]}, prices=prices)
    assert ["id-vm-1" in each for each in result.warnings] == [True] * warnings
    assert result.status == 0


@pytest.mark.parametrize("value", ["A100", "", "-1", "1e3", "1,5", "２", "9" * 22, None])
def test_a_priced_label_that_is_no_plain_decimal_is_an_error(run: Run, value: Any) -> None:
    parameters = [SERVICE_ID, label("CPU", value, usage="1h")]
    assert_failed(bill(run, {"parameters": parameters}, prices=CPU_PRICES), "vm-1.*label.*CPU")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        *(({key: value}, key) for key in REQUIRED for value in ("", " \t", None, ...)),
        *(({key: value}, key) for key in (*REQUIRED, *OPTIONAL) for value in (0, {"x": 1})),
        ({"instance_organization_name": True}, "instance_organization_name"),
        ({"deleted_at": False}, "deleted_at"),
        *(
            ({"created_at": time}, time)
            for time in [
                *("yesterday", "1780000000", "2026-06-31T00:00:00Z", "2026-06-02T25:00:00Z"),
                *("2026-06-02T08:51:41+99:00", "0001-01-01T00:00:00+01:00"),
                *("9999-12-31T23:59:59-01:00", "２０２６-06-02T08:51:41Z"),
            ]
        ),
        ({"usage": 20.59}, "20.59"),
        ({"usage": ...}, "missing"),
        ({"usage": "", "raw_usage": None}, "missing"),
        ({"usage": "-0.01h"}, "-0.01"),
        ({"usage": "1000000.01h"}, "1000000.01"),
        ({"usage": "9" * 5000 + "h"}, "9999"),
        ({"usage": ..., "raw_usage": "#-0.001"}, "-0.001"),
        ({"usage": ..., "raw_usage": "#1000000.01"}, "1000000.01"),
        ({"usage": ..., "raw_usage": "#1e999999"}, "999999"),
        ({"usage": ..., "raw_usage": "#9e99999999999999"}, "large"),
        *(({"usage": ..., "raw_usage": f"#{each}"}, "raw_usage") for each in ("NaN", "-Infinity")),
        ({"usage": ..., "raw_usage": "20.59"}, "raw_usage"),
        ({"usage": ..., "raw_usage": True}, "raw_usage"),
        ({"usage": "1h", "raw_usage": "1"}, "raw_usage"),
        *(
            ({"usage": hours, "raw_usage": 1}, hours)
            for hours in [
                *("20.59", "h", ".5h", "5.h", "1,200.00h", "1_0h", "+1h", "1e3h", "20.59H"),
                *("20.59 h", "NaNh", "infh", "20m", "1h30m", "１h", "0x1h"),
            ]
        ),
        ({"parameters": "GPU=1"}, "parameters"),
        ({"parameters": [None]}, "parameter"),
        ({"parameters": [{"usage": "1h"}]}, "name"),
        ({"parameters": [disk(name=" ")]}, "name"),
        ({"parameters": [disk(name=7)]}, "name"),
        ({"parameters": [disk(usage=None)]}, "disk"),
        ({"parameters": [disk(usage="-1h")]}, "disk"),
        ({"parameters": [disk(usage="", raw_usage=1e300)]}, "disk"),
        ({"parameters": [disk(is_label=1)]}, "is_label"),
        *(({"usage": value, "raw_usage": 7}, "usage") for value in list[Any]((0, False, [], {}))),
        ({"parameters": [disk(is_label="false")]}, "is_label"),
        ({"parameters": [disk(is_label=None, label_value="8")]}, "no is_label"),
        ({"parameters": [label("GPU", 1)]}, "label_value"),
        ({"parameters": [disk(), disk()]}, "disk"),
    ],
    ids=lambda value: ascii(value)[:80],
)
def test_an_invalid_field_is_an_error_that_names_the_instance(
    run: Run, fields: dict[str, Any], word: str
) -> None:
    assert_failed(bill(run, fields, prices=DISK_PRICES), "vm-1", re.escape(word))


# Rows

IDENTITY = "instance_project_name instance_project_id profile_name profile_id start_time end_time"


@pytest.mark.parametrize("key", IDENTITY.split())
def test_records_that_differ_in_identity_are_all_billed(run: Run, key: str) -> None:
    result = bill(run, {}, {key: "x"}, behaviour=Behaviour(count="absent"))
    assert (result.errors, len(result.rows)) == ([], 2)


def test_an_inactive_organization_is_billed_and_its_cells_are_protected(run: Run) -> None:
    records = fixed(compute=[usage("=o1", "vm-1", "gpu", "1.00h")])
    [row] = run(partner=Partner([organization("=o1", "=Acme", active=False)], records)).rows
    assert (row["organization"], row["organization_id"]) == ("'=Acme", "'=o1")


def test_names_that_tenants_choose_break_neither_rows_nor_the_terminal(run: Run) -> None:
    evil = 'A\r\nB\0"\u202ecod\x1b[2J,\u2028;\ud800\x9b31m\x7f\t'
    names = dict.fromkeys(("profile_name", "instance_name", "status"), evil)
    result = bill(run, *({**names, "instance_id": f"{n}{evil}"} for n in range(3)), name=evil)
    header, *rows = csv.reader(io.StringIO(result.raw, newline=""), strict=True)
    assert [len(row) for row in rows] == [len(header)] * 3
    assert "\0" not in result.raw
    assert (result.stdout + result.stderr).replace("\n", "").isprintable()


def test_a_partner_without_usage_has_files_with_only_a_header(run: Run) -> None:
    result = bill(run)
    assert (result.status, result.files) == (0, {RAW: text([]), SORTED: text([])})


Row = tuple[str, str, str, str]  # name, instances, hours, amount


def add_up(name: str, rows: list[dict[str, str]]) -> Row:
    """Return what the summary says of rows; no amount where nothing has a price."""
    instances = {row["instance_id"] for row in rows} - {""}
    hours = sum(Decimal(row["usage_hours"]) for row in rows if row["dimension"] == "instance")
    amounts = [Decimal(row["billing_amount"]) for row in rows if row["billing_amount"]]
    return name, str(len(instances)), f"{hours:,.2f}", f"{sum(amounts):,.2f}" if amounts else ""


def read_tables(result: Result) -> list[list[Row]]:
    """Return the rows of the two tables of a summary, by organization and by profile."""
    row = re.compile(r"^(\S.*?) +(\d+) +([\d,]+\.\d\d)(?: +([\d.,]+))?$", re.MULTILINE)
    _, organizations, profiles, _ = result.stdout.split("\n\n")
    return [row.findall(table) for table in (organizations, profiles)]


@pytest.mark.parametrize("prices", [None, "profile,hourly_rate\ngpu-h100-x1,2.5\n"])
def test_the_summary_adds_up_the_rows_of_each_organization_and_profile(
    run: Run, prices: str | None
) -> None:
    result = run("--month=2026-06", partner=None, prices=prices)
    organizations: dict[str, list[dict[str, str]]] = {}
    profiles: dict[str, list[dict[str, str]]] = {}
    for row in result.rows:
        name = f"{row['organization']} ({row['organization_id']})"
        organizations.setdefault(name, []).append(row)
        charge = "" if row["charge"] == "usage" else f" ({row['charge']})"
        profiles.setdefault(row["profile"] + charge, []).append(row)
    for table, groups in zip(read_tables(result), (organizations, profiles)):
        rows = [add_up(name, group) for name, group in groups.items()]
        assert table == [*rows, add_up("Total", result.rows)]


@cases(
    "identities",
    {"one name": [("t1", "Twin"), ("t2", "Twin")], "one text": [("c", "A (b)"), ("b) (c", "A")]},
)
def test_organizations_that_look_alike_have_a_row_each(
    run: Run, identities: list[tuple[str, str]]
) -> None:
    records = [usage(id_, id_, "gpu", f"{n}h") for n, (id_, _) in enumerate(identities, start=1)]
    listed = [organization(*each) for each in identities]
    [rows, _] = read_tables(run(partner=Partner(listed, fixed(compute=records))))
    assert [hours for _, _, hours, _ in rows] == ["1.00", "2.00", "3.00"]


def test_a_profile_called_total_has_a_row_of_its_own(run: Run) -> None:
    result = bill(run, {"profile_name": "Total"}, {"instance_id": "b", "usage": "2h"})
    [_, rows] = read_tables(result)
    assert rows == [
        ("Total", "1", "1.00", ""),
        ("gpu", "1", "2.00", "5.00"),
        ("Total", "2", "3.00", "5.00"),
    ]


# Answers

UNKNOWN = {"kind": ..., "range_from": ...}  # an answer without these may be of any API


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_empty_answer_with_kind_or_range_from_is_believed(run: Run, name: str) -> None:
    def edit(answer: dict[str, Any]) -> Any:
        del answer[name], answer["instance_usage_data"]
        return answer

    partner = Partner([organization("o1", "Acme")], fixed())
    result = run(partner=partner, fault=always(Fault(edit=edit), path_has("/usage")))
    assert (result.status, result.rows) == (0, [])


@pytest.mark.parametrize(
    ("path", "change", "word"),
    [
        *(("compute", body, "JSON") for body in (b"[]", b'"usage"', b'{"count": 1')),
        ("compute", b'{"count": -Infinity}', "kind"),
        *(("compute", body, "usage") for body in (b"{}", b'{"message": "maintenance"}')),
        ("compute", {"instance_usage_data": ..., **UNKNOWN, "count": 0}, "kind"),
        ("compute", {"instance_usage_data": [], **UNKNOWN, "count": 0}, "range_from"),
        *(("compute", {"instance_usage_data": empty}, "count") for empty in EMPTY),
        *(("compute", {"instance_usage_data": rows}, "_data") for rows in ({"0": 0}, "")),
        *(("compute", {"instance_usage_data": [row]}, "JSON") for row in ("x", None)),
        *(("compute", {"count": count}, "count") for count in (-1, "4", True)),
        ("compute", {"kind": "service"}, "service"),
        ("compute", {"range_from": "2026-06-02T00:00:00Z"}, "2026-06-02T00:00:00Z"),
        ("compute", {"range_to": "2026-06-30T00:00:00Z"}, "2026-06-30T00:00:00Z"),
        ("compute", {"range_to": 7}, "7"),
        ("compute", {"range_to": {"seconds": 7}}, "7"),
        ("organizations", b"[]", "JSON"),
        ("organizations", b"{}", "results"),
        ("organizations", {"results": None}, "0 of 4 counted"),
        ("organizations", {"results": {"0": 0}}, "results"),
        *(("organizations", {"results": [row]}, "JSON") for row in ("x", None)),
        *(("organizations", {"results": [{"id": "o1", "name": name}]}, "name") for name in ("", 7)),
        ("organizations", {"results": [{"id": "o1"}]}, "name"),
        ("organizations", {"results": [{"id": " ", "name": "A"}]}, "id"),
        ("organizations", {"results": [], "count": 0}, "the right key"),
    ],
    ids=str,
)
def test_an_invalid_answer_is_an_error(run: Run, path: str, change: Any, word: str) -> None:
    """A change is another body, or changed fields of the answer; a field `...` is left out."""

    def edit(answer: dict[str, Any]) -> Any:
        if isinstance(change, bytes):
            return change
        return {key: value for key, value in {**answer, **change}.items() if value is not ...}

    assert_failed(run(fault=always(Fault(edit=edit), path_has(path))), path, word)


def test_a_parameter_without_a_price_needs_no_usage(run: Run) -> None:
    parameters = [{"name": "Note"}, {"name": "region", "label_value": "eu"}]
    [row] = bill(run, {"parameters": parameters}).rows
    assert row["parameters"] == "Note=; region=eu"
