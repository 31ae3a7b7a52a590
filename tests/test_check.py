"""First contact: what `--check` says of a controller and of the price book."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from conftest import Result, Run, cases
from example import usage
from rafay_simulator import Behaviour, Fault, Partner, always, fixed, organization, path_has

NOW = datetime(2026, 7, 1)
FITS = "not seen: everything fits on one page"
USAGE = f"""\
{{0}} usage, records: {{1}}
{{0}} usage, count: {FITS}
{{0}} usage, limit: {FITS}
{{0}} usage, offset: {FITS}
{{0}} usage, organization filter: honoured
{{0}} usage, further records of an instance: 0
{{0}} usage, status fields: none
"""
REPORT = f"""\
organizations: 7, inactive: 1, to bill: 7
organizations, list key: results; paging: count, next
{USAGE.format("compute", 32)}{USAGE.format("service", 5)}\
slowest answer: N s; a bill: 28 lists, N s or more

"""
GPU = {"name": "GPU", "usage": "1h", "is_label": True, "label_value": "1"}
MODEL = {"name": "Model", "usage": "1h", "is_label": True, "label_value": "24h; b=1"}
DISK = {"name": "disk", "usage": "9h", "is_label": False}


def check(run: Run, *flags: str, **more: Any) -> Result:
    """Check with June as the period; the seconds are unknown beforehand."""
    result = run("--check", "--month=2026-06", *flags, **more)
    assert result.files == {}
    return replace(result, stdout=re.sub(r"\d+(\.\d+)? s\b", "N s", result.stdout))


def metered(*changes: dict[str, Any], owners: str = "ab") -> Partner:
    """Meter instances of organizations in turn, one for each change to a record."""
    owned = [owners[n % len(owners)] for n in range(len(changes))]
    records = [
        {**usage(o, f"i{n}", "gpu", "1h"), **c} for n, (o, c) in enumerate(zip(owned, changes))
    ]
    return Partner([organization(each, f"Tenant {each}") for each in "ab"], fixed(records))


def test_the_report_has_a_line_for_each_unknown(run: Run) -> None:
    result = check(run, partner=None, prices=None)
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.startswith(REPORT)
    assert result.stdout.endswith("\nNothing seen would fail a bill; nothing was written.\n")


TEN = {"records": "32 or more", "count": "a total", "limit": "lowered to 10", "offset": "moves on"}
PAGE = {**TEN, "records": "20 or more", "count": "not a total"}
IGNORED = {**TEN, "records": "32", "offset": "ignored"}
FAILED = {"organization filter": "failed, see the error"}
# Settings of the stand-in, with its small partner; what the report says of compute usage that it
# does not say of a plain server; errors.
UNKNOWNS: dict[str, tuple[Behaviour, dict[str, str], list[str]]] = {
    "limit": (Behaviour(max_limit=10), TEN, []),
    "count of a page": (Behaviour(max_limit=10, count="page"), PAGE, []),
    "no count": (Behaviour(max_limit=10, count="absent"), {**PAGE, "count": "not given"}, []),
    "no count, one page": (Behaviour(count="absent"), {"count": "not given"}, []),
    "count capped": (Behaviour(max_count=20), {"count": "not a total"}, []),
    "count capped at a page": (Behaviour(max_limit=10, max_count=10), PAGE, []),
    "offset": (Behaviour(max_limit=10, honour_offset=False), IGNORED, ["offset"] * 2),
    "filter": (Behaviour(honour_filter=False), FAILED, ["filter"] * 2),
    "move": (Behaviour(max_limit=10, shift=True), {**TEN, "offset": "records move"}, ["twice"]),
    "null for an empty list": (Behaviour(empty="null"), {}, []),
    "no empty list": (Behaviour(empty="absent"), {}, []),
}


@cases("behaviour, differs, errors", UNKNOWNS)
def test_each_unknown_is_reported(
    run: Run, behaviour: Behaviour, differs: Any, errors: list[str]
) -> None:
    result = check(run, partner=None, prices=None, behaviour=behaviour)
    said = dict(re.findall(r"^compute usage, (.*?): (.*)$", result.stdout, re.MULTILINE))
    plain = dict(re.findall(r"usage, (.*?): (.*)$", USAGE.format("", 32), re.MULTILINE))
    assert said == {**plain, **differs}
    assert (result.status, len(result.errors)) == (bool(errors), len(errors))
    assert [each for each, line in zip(errors, result.errors) if each not in line] == []
    asked = [each for each in result.requests if each.path.endswith("/usage")]
    assert len(asked) <= 6


SAYS_400 = Fault(edit=lambda answer: {**answer, "limit": 400})


@pytest.mark.parametrize(
    ("fault", "offset", "fact"),
    [(SAYS_400, "0", "limit: lowered to 10"), (Fault(status=404), "10", "offset: failed, see the")],
)
def test_what_the_second_page_shows(run: Run, fault: Fault, offset: str, fact: str) -> None:
    there = always(fault, lambda request: request.query.get("offset") == offset)
    result = check(run, partner=None, behaviour=Behaviour(max_limit=10), fault=there)
    assert f"compute usage, {fact}" in result.stdout


@cases(
    "behaviour, line",
    {
        "items": (Behaviour(organization_list="items"), "items; paging: count, next"),
        "no links": (Behaviour(next_link="absent"), "results; paging: count"),
        "no paging": (Behaviour(next_link="absent", count="absent"), "results; paging: none"),
    },
)
def test_how_organizations_are_listed_is_reported(
    run: Run, behaviour: Behaviour, line: str
) -> None:
    assert f"\norganizations, list key: {line}\n" in check(run, behaviour=behaviour).stdout


@cases(
    "records, fact",
    {
        "status": ([{"status": "running"}, {}], "status fields: status"),
        "both": (
            [{"deleted_at": "2026-06-03"}, {"status": "up"}],
            "status fields: status, deleted_at",
        ),
        "shared": ([{"instance_id": "x"}] * 2, "further records of an instance: 1"),
        "two owners": ([{}, {}], "organization filter: honoured"),
        "one owner": ([{}], "organization filter: not seen: usage of one organization only"),
        "no usage": ([], "count: not seen: no usage"),
    },
)
def test_what_records_carry_is_reported(run: Run, records: list[Any], fact: str) -> None:
    result = check(run, partner=metered(*records), prices="profile,hourly_rate\ngpu,1\n")
    assert f"\ncompute usage, {fact}\n" in result.stdout


@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        ("organizations", 404, "service usage, records: 1"),
        ("kind/compute", 500, "compute usage: failed, see the error\nservice usage, records: 1"),
        ("kind/service", 401, "service usage: failed, see the error"),
    ],
)
def test_what_fails_leaves_the_rest(run: Run, where: str, status: int, said: str) -> None:
    result = check(run, fault=always(Fault(status=status), path_has(where)))
    assert (result.status, len(result.errors)) == (1, 1)
    assert f"\n{said}\n" in result.stdout
    assert "Nothing seen" not in result.stdout


def test_a_record_that_is_not_as_documented_is_an_error_and_the_rest_is_said(run: Run) -> None:
    result = check(run, partner=metered({"usage": "1"}), prices="profile,hourly_rate\ngpu,1\n")
    [error] = result.errors
    assert (result.status, "is not hours" in error) == (1, True)
    assert "organizations: 2" in result.stdout


def test_nothing_on_stdout_names_a_tenant_project_instance_or_key(run: Run, stand_in: Any) -> None:
    result = check(run, partner=None, prices="profile,hourly_rate\n")
    partner = stand_in.partner
    named = {o[field] for o in partner.organizations for field in ("id", "name", "external_id")}
    for kind in ("compute", "service"):
        for record in partner.records(kind, NOW, NOW, None):
            hidden = [n for n in record if n.endswith(("_name", "_id")) and "profile" not in n]
            named |= {record[name] for name in hidden}
    named |= {stand_in.environ["PARTNER_API_KEY"], stand_in.environ["RAFAY_DEFAULT_API_KEY"]}
    assert [each for each in named - {"", "default"} if each in result.stdout] == []
    assert result.status == 3


def test_profiles_and_parameters_are_listed_with_nature_and_price(run: Run) -> None:
    prices = "profile,dimension,effective_from,hourly_rate\ngpu,,,2.50\n"
    prices += "gpu,,2026-06-15,2.75\ngpu,disk,,0.1\n"
    records = metered({"parameters": [GPU, MODEL, DISK]}, {}, {"profile_name": "b"})
    result = check(run, partner=records, prices=prices)
    assert " ".join(result.stdout.split("\n\n")[1].split()) == (
        "Profile Kind Records List price (USD) b compute 1 no price gpu compute 2 2.75 "
        "GPU number label 1 Model text label 1 disk quantity 1 0.1"
    )


@cases(
    "header, expected",
    {
        "two columns": ("profile,hourly_rate", ["a,", '"b, c",']),
        "more columns": ("currency,hourly_rate,profile,dimension", [",,a,", ',,"b, c",']),
    },
)
def test_missing_prices_can_be_pasted_and_are_refused_until_filled_in(
    run: Run, header: str, expected: list[str]
) -> None:
    names = ({"profile_name": name} for name in ("b, c", "a", "a", "#1", "*"))
    partner = metered(*names)
    result = check(run, partner=partner, prices=f"{header}\n")
    lines = result.stdout.split("):\n")[1].split("\n\n")[0].splitlines()
    assert (result.status, lines) == (3, expected)
    pasted = header + "\n" + "\n".join(lines)
    refused = check(run, partner=partner, prices=pasted)
    assert (refused.status, len(refused.errors), refused.requests) == (2, 2, [])
    column = header.split(",").index("hourly_rate")
    filled = [
        ",".join("1" if n == column else c for n, c in enumerate(each.split(",")))
        for each in lines[:1]
    ]
    rest = check(run, partner=metered({"profile_name": "a"}), prices="\n".join([header, *filled]))
    assert (rest.status, rest.warnings) == (0, [])


@cases(
    "prices, warnings, lines",
    {
        "priced": ("gpu,,,,,1", [], []),
        "free": ("gpu,,,,,0", [], []),
        "gap at the end": (
            "gpu,,,,2026-06-15,1",
            ["instance of gpu has no price"],
            ["gpu,,,2026-06-15T00:00:00Z,,"],
        ),
        "gap inside": (
            "gpu,,,,2026-06-10,1\ngpu,,,2026-06-20,,1",
            ["instance of gpu has no price"],
            ["gpu,,,2026-06-10T00:00:00Z,,"],
        ),
        "parameter from the middle": (
            "gpu,,,,,1\ngpu,CPU,,2026-06-15,,1",
            ["nothing to bill: CPU of gpu"],
            [],
        ),
        "negotiated": ("gpu,,Tenant a,,,1\ngpu,,Tenant b,,,1", [], []),
        "gaps of two": (
            "gpu,,Tenant b,,2026-06-15,1\ngpu,,,,2026-05-01,9",
            ["instance of gpu has no price"],
            ["gpu,,,2026-06-01T00:00:00Z,,"],
        ),
        "negotiated by one": ("gpu,,Tenant a,,,1", ["has no price"], ["gpu,,,,,"]),
        "unknown organization": (
            "gpu,,,,,1\ngpu,,Tenant c,,,1",
            ["line 3: organization 'Tenant c' is not listed"],
            [],
        ),
        "unused parameter": ("gpu,,,,,1\ngpu,CPU,,,,1", ["nothing to bill: CPU of gpu"], []),
        "gap of a parameter": (
            "gpu,,,,,1\ngpu,disk,,2026-06-20,,1",
            ["disk of gpu has no price"],
            [],
        ),
    },
)
def test_warnings_are_those_of_a_bill(
    run: Run, prices: str, warnings: list[str], lines: list[str]
) -> None:
    columns = "profile,dimension,organization,effective_from,effective_to,hourly_rate"
    used = metered({"parameters": [DISK]}, {"parameters": [DISK]})
    result = check(run, partner=used, prices=f"{columns}\n{prices}\n")
    assert (result.status, len(result.warnings)) == (3 * bool(warnings), len(warnings))
    assert [text for text, line in zip(warnings, result.warnings) if text not in line] == []
    assert re.findall("^gpu,.*", result.stdout, re.MULTILINE) == lines
    bill = run("--month=2026-06", partner=used, prices=f"{columns}\n{prices}\n")
    assert (bill.status, len(bill.warnings)) == (result.status, len(result.warnings))


def test_a_line_to_paste_begins_where_another_price_ends(run: Run) -> None:
    prices = "profile,hourly_rate,effective_to\ngpu,1,2026-06-15\n"
    result = check(run, partner=metered({}), prices=prices)
    columns, line = re.findall(r"Add, with a rate \((.*)\):\n(.*)\n", result.stdout)[0]
    assert columns == "profile,hourly_rate,effective_to,effective_from"
    assert line == "gpu,,,2026-06-15T00:00:00Z"
    filled = line.replace("gpu,", "gpu,1")
    again = check(run, partner=metered({}), prices=f"{columns}\ngpu,1,2026-06-15,\n{filled}\n")
    assert (again.status, again.warnings) == (0, [])


LACKS = Fault(edit=lambda answer: {**answer, "instance_usage_data": [], "count": 0})


@pytest.mark.parametrize("behaviour", [Behaviour(), Behaviour(max_limit=1)])
def test_an_organization_that_lists_less_than_the_partner_is_an_error(
    run: Run, behaviour: Behaviour
) -> None:
    own = always(LACKS, lambda request: "instance_organization_id" in request.query)
    result = check(run, partner=metered({}, {}), behaviour=behaviour, fault=own)
    [error] = result.errors
    assert (result.status, "(b): lacks instances" in error) == (1, True)
    assert "organization filter: failed, see the error" in result.stdout


@pytest.mark.parametrize("body", [b"null", b"5", b"true", b'"results"', b"[]", b"{}"])
def test_an_answer_of_any_kind_is_an_error_and_the_rest_is_said(run: Run, body: bytes) -> None:
    broken = always(Fault(body=body), path_has("organizations"))
    result = check(run, partner=metered({}), prices="profile,hourly_rate\ngpu,1\n", fault=broken)
    assert (result.status, len(result.errors)) == (1, 1)
    assert "\ncompute usage, records: 1\n" in result.stdout


def test_a_filter_that_is_ignored_shows_even_if_one_tenant_fills_the_first_page(run: Run) -> None:
    ignored = Behaviour(max_limit=1, honour_filter=False)
    result = check(run, partner=metered({}, {}), behaviour=ignored)
    [error] = result.errors
    assert (result.status, "ignored the organization filter" in error) == (1, True)


@pytest.mark.parametrize(
    ("flags", "priced", "status"),
    [("", "gpu", 0), ("--org=b", "gpu", 3), ("--org=b", "other", 0)],
)
def test_usage_of_one_organization_is_looked_at_beyond_the_first_pages(
    run: Run, flags: str, priced: str, status: int
) -> None:
    prices, one = f"profile,hourly_rate\n{priced},1\n", Behaviour(max_limit=1)
    used = metered({}, {}, {}, {"profile_name": "other"}, owners="aaab")
    result = check(run, *flags.split(), partner=used, prices=prices, behaviour=one)
    assert result.status == status


def test_a_parameter_may_be_on_a_page_that_was_not_read(run: Run) -> None:
    prices = "profile,dimension,hourly_rate\ngpu,,1\ngpu,disk,1\n"
    used = metered({}, {}, {"parameters": [DISK]})
    result = check(run, partner=used, prices=prices, behaviour=Behaviour(max_limit=1))
    assert (result.status, result.warnings) == (0, [])


def test_a_provisional_month_and_too_many_hours_are_warnings(run: Run) -> None:
    prices = "profile,hourly_rate\ngpu,1\n"
    used = metered({"usage": "100.00h"})
    result = check(run, partner=used, prices=prices, now="2026-06-02T00:00:00Z")
    assert (result.status, len(result.warnings)) == (0, 2)
