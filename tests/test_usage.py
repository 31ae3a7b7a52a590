"""From usage record to line of the bill: hours, fields, parameters; and what is no answer."""

from __future__ import annotations

import json

import pytest
from conftest import Result, Run, always, assert_billed, assert_failed, path_has, table
from example import tenants, usage
from rafay_simulator import Fault, Json, organization

BOOK = "profile,dimension,hourly_rate\ngpu,,1\ngpu,GB,0.5\nother,RAM,1\n"


def bill(run: Run, fields: str, **settings: str) -> Result:
    """Bill instance vm-1 of profile gpu, with these fields of its record, in JSON as it is sent."""

    def edit(answer: Json) -> bytes:
        text = json.dumps(answer)
        return text.replace('"fields": 0', fields).encode()

    # Of two fields with one name, the last counts.
    record = usage("o1", "vm-1", "gpu", "1.00h", fields=0)
    fault = always(Fault(edit=edit), path_has("/usage"))
    return run(partner=tenants(record), prices=BOOK, fault=fault, **settings)


def bill_parameter(run: Run, values: str, hours: str = "1.00h") -> Result:
    """Bill instance vm-1 with a parameter, of which these are the values, in JSON."""
    names = ("name", "usage", "raw_usage", "is_label", "label_value")
    parameter = dict(zip(names, json.loads(f"[{values}]")))
    record = usage("o1", "vm-1", "gpu", hours, parameters=[parameter])
    return run(partner=tenants(record), prices=BOOK)


# From field to cell


@table(
    "fields, hours",
    """
    whole hours        | "usage": "20h"                                        | 20.00
    more decimals      | "usage": "20.594h"                                    | 20.594
    zeros at the end   | "usage": "0.1250h"                                    | 0.125
    the most           | "usage": "1000000.00h"                                | 1000000.00
    usage of nothing   | "usage": "0.00h", "raw_usage": 9.9                    | 0.00
    blank usage        | "usage": " ", "raw_usage": 1200                       | 1200.00
    raw usage of 0     | "usage": null, "raw_usage": 0                         | 0.00
    minus zero         | "usage": "", "raw_usage": -0.0                        | 0.00
    an exponent        | "usage": "", "raw_usage": 1E+3                        | 1000.00
    half up            | "usage": "", "raw_usage": 20.585                      | 20.59
    not more than sent | "usage": "", "raw_usage": 20.584999999999999999999999 | 20.58
    """,
)
def test_hours_are_usage_or_else_raw_usage_rounded_half_up(
    run: Run, fields: str, hours: str
) -> None:
    assert bill(run, fields).cells("usage_hours") == [hours]


@table(
    "fields, column, cell",
    """
    deleted          | "deleted_at": "2026-06-03T17:20:00Z"               | status     | deleted
    off              | "deleted_at": "2026-06-03T17:20Z", "status": "off" | status     | off
    unset in Go      | "deleted_at": "0001-01-01T00:00:00Z"               | status     |
    no time          | "created_at": null             | created_at |
    an offset        | "created_at": "2026-06-02T08:51:41+05:30" | created_at | 2026-06-02T03:21:41Z
    a fraction       | "created_at": "2026-06-02T08:51:41.9999Z" | created_at | 2026-06-02T08:51:41Z
    no value         | "parameters": [{"name": "a"}]              | parameters | a=
    a name twice     | "parameters": [{"name": "a"}, {"name": "a"}] | parameters | a=; a=
    equals sign      | "instance_name": "=1"          | instance   | '=1
    plus             | "instance_name": "+1"          | instance   | '+1
    minus            | "instance_name": "-1"          | instance   | '-1
    at               | "instance_name": "@1"          | instance   | '@1
    no formula       | "instance_name": "'1-2=Ø"      | instance   | '1-2=Ø
    """,
)
def test_a_field_becomes_a_cell(run: Run, fields: str, column: str, cell: str) -> None:
    assert bill(run, fields).cells(column) == [cell]


def test_a_time_without_an_offset_is_utc_wherever_the_program_runs(run_process: Run) -> None:
    result = bill(run_process, '"created_at": "2026-06-02T08:51:41"', TZ="XYZ-9:45")
    assert result.cells("created_at") == ["2026-06-02T08:51:41Z"]


def test_names_that_tenants_choose_break_neither_lines_nor_the_terminal(run: Run) -> None:
    evil = '=A\0\x1f\x7f\x9f\u2028\u2029\ud800\udfff\r\n~\xa0\u202e,"B'
    safe = f"'=A{' ' * 10}~\xa0\u202e,\"B"
    record = usage("o1", evil, evil, "1h", status=evil, instance_project_name=evil)
    result = run(partner=tenants(record, listed=[organization("o1", evil)]))
    for text in result.files.values():
        assert len(text.splitlines()) == 2
    [row] = result.rows
    for column in ("organization", "project", "profile", "instance", "status"):
        assert row[column] == safe
    shown = result.stdout + result.stderr
    assert shown.replace("\n", "").isprintable()


# The values are name, usage, raw_usage, is_label and label_value; some are left out.
@table(
    "values, cell, billed",
    """
    a quantity          | "GB", "1200h", null, false      | GB=1200.00h    | GB 1200.00 600.00
    usage before raw    | "GB", "1h", 2, false, "x"       | GB=1.00h       | GB 1.00 0.50
    raw usage, half up  | "GB", "", 2.345, false          | GB=2.35h       | GB 2.35 1.18
    by default          | "GB", "1h"                      | GB=1.00h       | GB 1.00 0.50
    the most            | "GB", "1000000000000000000000h" \
| GB=1000000000000000000000.00h | GB 1000000000000000000000.00 500000000000000000000.00
    a label             | "GB", "20.59h", 9, true, " 24 " | GB=24          | GB 494.16 247.08
    a label's fraction  | "GB", "0.01h", 9, true, "1.5"   | GB=1.5         | GB 0.015 0.01
    a label of nothing  | "GB", "1h", 9, true, "0"        | GB=0           | GB 0.00 0.00
    a label's raw usage | "GB", null, 0.5, true, "3"      | GB=3           | GB 1.50 0.75
    not priced          | "gb", "1h", null, null, "8"     | gb=1.00h       |
    a note              | "Note", null, null, null, "x"   | Note=x         |
    another profile's   | "RAM", "1h", null, true, "A4"   | RAM=A4         |
    like a dimension    | "instance", "9h", null, false   | instance=9.00h |
    """,
)
def test_a_parameter_is_described_and_has_a_line_if_it_is_priced(
    run: Run, values: str, cell: str, billed: str
) -> None:
    result = bill_parameter(run, values)
    assert result.cells("parameters")[0] == cell
    _, *lines = result.cells("dimension", "usage_hours", "billing_amount")
    assert " ".join(lines) == billed


@table(
    "hours, values, number",
    """
    within rounding        | 720.01h | "GB", "1h"                         | 0
    too many               | 720.02h | "GB", "1h"                         | 1
    too many of a label    | 1.00h   | "GB", "720.02h", null, true, "0"   | 1
    a label with a value   | 1.00h   | "GB", "720.00h", null, true, "9"   | 0
    a label without price  | 1.00h   | "RAM", "720.02h", null, true, "A4" | 0
    a quantity             | 1.00h   | "GB", "9000.00h", null, false      | 0
    """,
)
def test_more_hours_than_the_period_has_are_a_warning(
    run: Run, hours: str, values: str, number: str
) -> None:
    result = bill_parameter(run, values, hours)
    warning = "more hours than the period has: instance vm-1 (id-vm-1) of Acme (o1)"
    assert result.stderr.count(warning) == int(number)


# What is no field


@table(
    "fields, error",
    """
    no organization     | "instance_organization_id": null   | organization_id is missing
    no instance         | "instance_id": " "                 | instance_id is missing
    no profile          | "profile_name": ""                 | profile_name is missing
    a number for a text | "status": 0                        | status 0 is not text
    no time             | "created_at": "yesterday"          | 'yesterday' is not an ISO 8601 time
    before the calendar | "created_at": "0001-01-01T00:00:00+01:00" | not an ISO 8601 time
    no usage            | "usage": null                      | usage None is missing
    no unit             | "usage": "20.59"                   | usage '20.59' is missing or is not
    no digit            | "usage": ".5h"                     | usage '.5h'
    no decimal          | "usage": "5.h"                     | usage '5.h'
    a comma             | "usage": "1,5h"                    | usage '1,5h'
    a sign              | "usage": "-1h"                     | usage '-1h'
    minutes             | "usage": "1h30m"                   | usage '1h30m'
    wide digits         | "usage": "１h"                     | usage '１h'
    too many            | "usage": "1000000.01h"             | usage 1000000.01h is negative or imp
    negative            | "usage": "", "raw_usage": -0.001   | usage -0.001 is negative
    far too many        | "usage": "", "raw_usage": 1E999999 | implausibly large
    not a number        | "raw_usage": NaN                   | raw_usage nan is not a number
    a text for a number | "raw_usage": "1"                   | raw_usage '1' is not a number
    a truth value       | "raw_usage": true                  | raw_usage True is not a number
    no list             | "parameters": ""                   | parameters is not a list
    no object           | "parameters": [null]               | None is not a JSON object
    no name             | "parameters": [{}]                 | name is missing
    a priced name twice | "parameters": [{"name": "GB", "usage": "1h"}, {"name": "GB"}] | GB is li
    """,
)
def test_an_invalid_field_is_an_error_that_names_the_instance(
    run: Run, fields: str, error: str
) -> None:
    assert_failed(bill(run, fields), "instance vm-1", error)


@table(
    "values, error",
    """
    no usage              | "GB", null, null, false      | GB: usage None is missing
    negative              | "GB", "", -1, false          | GB: usage -1 is negative
    far too many          | "GB", "", 1e22, false        | GB: usage .* is negative or implausibly
    a number for is_label | "GB", "1h", null, 1          | is_label 1 of GB is not true or false
    a text for is_label   | "GB", "1h", null, "false"    | is_label 'false' of GB is not true or
    no is_label           | "GB", "1h", null, null, "8"  | GB has a label_value, but no is_label
    a number for a value  | "GB", "1h", null, true, 1    | label_value 1 is not text
    no usage of a label   | "GB", "", null, true, "1"    | GB: usage None is missing
    no value              | "GB", "1h", null, true, null | label '' of GB is not a plain decimal
    a sign                | "GB", "1h", null, true, "-1"   | label '-1' of GB is not
    an exponent           | "GB", "1h", null, true, "1e3"  | label '1e3' of GB is not
    a comma               | "GB", "1h", null, true, "1,5"  | label '1,5' of GB is not
    no decimal            | "GB", "1h", null, true, "1."   | label '1.' of GB is not
    wide digits           | "GB", "1h", null, true, "２"   | label '２' of GB is not
    far too large         | "GB", "1h", null, true, "9999999999999999999999" | label '9{22}' of GB
    """,
)
def test_a_parameter_that_cannot_be_billed_is_an_error_that_names_the_instance(
    run: Run, values: str, error: str
) -> None:
    assert_failed(bill_parameter(run, values), "instance vm-1", error)


# From answer to records

IDENTITY = "instance_project_name instance_project_id profile_name profile_id start_time end_time"


@pytest.mark.parametrize("field", IDENTITY.split())
def test_records_that_differ_in_identity_are_all_billed(run: Run, field: str) -> None:
    record = usage("o1", "vm-1", "gpu", "400h")
    other = {**record, field: "free"}
    result = run(partner=tenants(record, other))
    assert (result.status, result.stderr) == (0, "")
    assert result.cells("usage_hours") == ["400.00", "400.00"]


@table(
    "answer",
    """
    null                  | {"kind": "compute", "instance_usage_data": null, "count": 0}
    left out              | {"kind": "compute"}
    of the period only    | {"range_from": "2026-06-01T00:00:00Z"}
    a fraction, an offset | {"range_from": "2026-06-01T02:00:00.999+02:00"}
    """,
)
def test_an_answer_without_rows_is_believed_if_it_is_one_of_usage(run: Run, answer: str) -> None:
    empty = Fault(body=answer.encode())
    result = run(partner=tenants(), fault=always(empty, path_has("compute")))
    assert (result.status, result.stderr, result.rows) == (0, "", [])
    for text in result.files.values():
        assert len(text.splitlines()) == 1


def test_organizations_may_be_items(run: Run) -> None:
    def rename(answer: Json) -> Json:
        return {"items": answer["results"]}

    assert_billed(run(fault=always(Fault(edit=rename), path_has("organizations"))))


@table(
    "answer, error",
    """
    nothing             | {}                                   | no instance_usage_data, kind or
    an empty list only  | {"instance_usage_data": []}          | no instance_usage_data, kind or
    rows are missing    | {"kind": "compute", "count": 3}      | 0 of 3 counted rows
    no list             | {"instance_usage_data": ""}          | instance_usage_data is not a list
    no row              | {"instance_usage_data": ["x"]}       | 'x' is not a JSON object
    a negative number   | {"kind": "compute", "limit": -1}     | limit -1 is not a number of rows
    a truth value       | {"kind": "compute", "count": true}   | count True is not a number of rows
    another kind        | {"kind": "service"}                  | kind is service, not compute
    a later start       | {"range_from": "2026-06-02"}         | range_from is 2026-06-02, not 2026
    an earlier end      | {"kind": "compute", "range_to": "2026-06-30"} | range_to is 2026-06-30
    a number for a text | {"range_from": 7}                    | range_from 7 is not text
    no time             | {"range_from": "June"}               | 'June' is not an ISO 8601 time
    """,
)
def test_what_is_no_answer_of_usage_is_an_error(run: Run, answer: str, error: str) -> None:
    fault = always(Fault(body=answer.encode()), path_has("compute"))
    assert_failed(run(fault=fault), "compute usage of northwind", error)


@table(
    "answer, error",
    """
    another API         | {"message": "maintenance"}              | neither results nor items
    rows are missing    | {"results": null, "count": 4}           | 0 of 4 counted rows
    no list             | {"results": {}}                         | results is not a list
    no row              | {"items": [null]}                       | None is not a JSON object
    no id               | {"results": [{"id": " ", "name": "A"}]} | id is missing
    no name             | {"results": [{"id": "o1"}]}             | name is missing
    a number for a text | {"results": [{"id": 1, "name": "A"}]}   | id 1 is not text
    nobody              | {"results": []}                         | is PARTNER_API_KEY the right key
    """,
)
def test_what_is_no_answer_of_organizations_is_an_error(run: Run, answer: str, error: str) -> None:
    fault = always(Fault(body=answer.encode()), path_has("organizations"))
    assert_failed(run(fault=fault), "organizations", error)
