"""The control total: nothing that the whole partner used is missing from the bill."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Result, Run
from example import FILES, PRICES, RAW, SMALL, SORTED, usage
from rafay_simulator import (
    Behaviour,
    Fault,
    FaultPlan,
    Partner,
    Request,
    Simulator,
    always,
    first,
    fixed,
    organization,
)

RECORDS = [usage("o1", f"a{number}", "gpu", "1.00h") for number in range(25)]
PAIR = [organization("o1", "Acme"), organization("o2", "Other")]
TWO = Partner(PAIR, fixed(compute=[*RECORDS, usage("o2", "b", "gpu", "2.00h")]))


def bill(
    run: Run,
    plan: FaultPlan | None = None,
    *flags: str,
    partner: Partner = TWO,
    behaviour: Behaviour | None = None,
) -> tuple[Result, list[Request]]:
    """Run the program; return what it left and what it asked for."""
    with Simulator(partner, behaviour, fault=plan) as simulator:
        result = run(*flags, simulator=simulator, prices=PRICES)
    return result, simulator.requests


def asks_for(organization_id: str | None) -> Any:
    """Match requests for the usage of one organization, or, for None, of the whole partner."""
    return lambda request: (
        "compute" in request.path
        and request.query.get("instance_organization_id") == organization_id
        and request.query["limit"] != "1"
    )


def keep(choose: Any, **changes: Any) -> Fault:
    """Return a fault that keeps the records of the one page that a function chooses."""

    def edit(plain: dict[str, Any]) -> dict[str, Any]:
        kept = [row for row in plain["instance_usage_data"] if choose(row)]
        return {**plain, "instance_usage_data": [] if plain["offset"] else kept, **changes}

    return Fault(edit=edit)


def change(**fields: Any) -> Fault:
    """Return a fault that changes fields of the first record of a page."""

    def edit(plain: dict[str, Any]) -> dict[str, Any]:
        for row in plain["instance_usage_data"][:1]:
            row.update(fields)
        return plain

    return Fault(edit=edit)


NOT_A7 = keep(lambda row: row["instance_id"] != "id-a7", count=24)


def test_where_the_records_add_up_to_the_total_no_further_request_is_made(run: Run) -> None:
    result, requests = bill(run)
    assert result.status == 0
    assert "Reconciled with the usage of the whole partner: 26 records of 2 org" in result.stdout
    assert len([request for request in requests if "compute" in request.path]) == 1 + 2


def test_where_count_says_nothing_the_whole_partner_is_read_and_compared(run: Run) -> None:
    result, requests = bill(run, behaviour=Behaviour(count="page"))
    assert (result.status, result.stderr) == (0, "")
    assert "Reconciled with the usage of the whole partner: 26 records of 2 org" in result.stdout
    assert [request for request in requests if asks_for(None)(request)]


def test_an_instance_that_its_organization_lacks_once_is_billed(run: Run) -> None:
    result, _ = bill(run, first(1, NOT_A7, asks_for("o1")))
    assert (result.status, result.stderr) == (0, "")
    assert len(result.raw.splitlines()) == 1 + 26


def test_an_instance_that_its_organization_lacks_twice_ends_the_run(run: Run) -> None:
    result, requests = bill(run, always(NOT_A7, asks_for("o1")))
    assert (result.status, result.stdout, result.files) == (1, "", {})
    assert "compute usage of Acme (o1)" in result.stderr
    assert "disagree about instances id-a7: " in result.stderr
    assert len([request for request in requests if asks_for("o1")(request)]) == 2
    assert len([request for request in requests if asks_for("o2")(request)]) == 1


def test_an_instance_that_the_whole_partner_lacks_ends_the_run(run: Run) -> None:
    lacking = keep(lambda row: row["instance_id"] != "id-a7")
    result, _ = bill(run, always(lacking, asks_for(None)), behaviour=Behaviour(count="absent"))
    assert (result.status, result.files) == (1, {})
    assert "disagree about instances id-a7: " in result.stderr
    assert "usage of Acme (o1)" in result.stderr


def test_other_hours_are_read_again_and_then_billed_with_a_warning(run: Run) -> None:
    plan = always(change(usage="9.00h"), asks_for("o1"))
    result, _ = bill(run, plan, behaviour=Behaviour(count="absent"))
    assert result.status == 0
    assert "has other usage or another profile for instances id-a0: " in result.stderr
    assert ",9.00,2.50,22.50,USD,instance\n" in result.raw


def test_other_hours_that_agree_when_read_again_are_no_matter(run: Run) -> None:
    plan = first(1, change(usage="0.50h"), asks_for("o1"))
    result, _ = bill(run, plan, behaviour=Behaviour(count="absent"))
    assert (result.status, result.stderr) == (0, "")
    assert "0.50" not in result.raw


@pytest.mark.parametrize("count", ["total", "page", "absent"])
def test_usage_of_an_organization_that_is_not_listed_is_billed_with_a_warning(
    run: Run, count: Any
) -> None:
    gone = usage("o9", "z", "gpu", "3.00h", instance_organization_name="Gone, Inc.")
    nameless = usage("o8", "y", "gpu", "1.00h", instance_organization_name=None)
    lab = usage("o9", "lab", "notebook", "1.00h", instance_organization_name="Otherwise")
    partner = Partner(PAIR, fixed(compute=[gone, *RECORDS, nameless], service=[lab]))
    result, _ = bill(run, partner=partner, behaviour=Behaviour(count=count))
    assert result.status == 0
    warning = "usage of an organization that is not listed: Gone, Inc. (o9), records: 2: billed"
    assert result.stderr.count(f"ncp_metrics: warning: {warning}") == 1
    assert [line.split(",2026")[0] for line in result.raw.splitlines()[-3:]] == [
        '"Gone, Inc.",o9,research,compute,gpu,z,id-z,',
        '"Gone, Inc.",o9,research,service,notebook,lab,id-lab,',
        "o8,o8,research,compute,gpu,y,id-y,",
    ]
    assert "28 records of 3 organizations, 30.00 hours" in result.stdout


@pytest.mark.parametrize("flags", [["--no-reconcile"], []])
def test_without_reconciliation_nothing_is_compared_and_the_summary_says_so(
    run: Run, flags: list[str]
) -> None:
    settings = {} if flags else {"RECONCILE": "0"}
    lacking = always(keep(lambda row: row["instance_id"] != "id-a7"), asks_for("o1"))
    with Simulator(TWO, Behaviour(count="absent"), fault=lacking) as simulator:
        result = run(*flags, simulator=simulator, prices=PRICES, **settings)
    assert (result.status, result.stderr) == (0, "")
    assert "Not reconciled with the usage of the whole partner: RECONCILE is 0" in result.stdout
    assert not [request for request in simulator.requests if asks_for(None)(request)]


@pytest.mark.parametrize("count", ["total", "page", "absent"])
@pytest.mark.parametrize(
    "partner",
    [
        TWO,
        Partner(PAIR, fixed(compute=[usage("o2", "b", "gpu", "2.00h"), *RECORDS])),
        Partner(PAIR[:1], fixed(compute=RECORDS)),
    ],
    ids=["last is another's", "last is its own", "only one organization"],
)
@pytest.mark.parametrize("flags", [[], ["--no-reconcile"]], ids=["reconciled", "not reconciled"])
def test_records_that_keep_moving_between_pages_end_the_run(
    run: Run, count: Any, partner: Partner, flags: list[str]
) -> None:
    behaviour = Behaviour(shift=True, max_limit=10, count=count)
    result, _ = bill(run, None, *flags, partner=partner, behaviour=behaviour)
    assert (result.status, result.stdout, result.files) == (1, "", {})


@pytest.mark.parametrize("count", ["total", "page", "absent"])
def test_a_record_that_comes_twice_with_the_same_content_counts_once(run: Run, count: Any) -> None:
    partner = Partner(PAIR, fixed(compute=[*RECORDS, RECORDS[3], usage("o2", "b", "gpu", "2.00h")]))
    result, _ = bill(run, partner=partner, behaviour=Behaviour(count=count))
    assert (result.status, result.stderr) == (0, "")
    assert len(result.raw.splitlines()) == 1 + 26


def test_another_profile_in_the_whole_partner_s_usage_is_told(run: Run) -> None:
    plan = always(change(profile_name="free"), asks_for("o1"))
    result, _ = bill(run, plan, behaviour=Behaviour(count="absent"))
    assert result.status == 0
    assert "another profile for instances id-a0: " in result.stderr


def test_every_organization_that_disagrees_is_named(run: Run) -> None:
    plan = always(keep(lambda row: False, count=0), lambda r: "instance_organization_id" in r.query)
    result, _ = bill(run, plan)
    assert (result.status, result.files) == (1, {})
    first_line, second_line = result.stderr.splitlines()
    assert "usage of Acme (o1) (/apis/billing.envmgmt.io/v1/" in first_line
    assert "usage of Other (o2) " in second_line
    assert "disagree about instances id-b: run it again later" in second_line


def test_the_whole_partner_s_usage_is_read_again_if_it_contradicts_itself(run: Run) -> None:
    def short(plain: dict[str, Any]) -> dict[str, Any]:
        return {**plain, "count": 99}

    gone = usage("o9", "z", "gpu", "3.00h", instance_organization_name="Gone, Inc.")
    partner = Partner(PAIR, fixed(compute=[gone, *RECORDS]))
    result, _ = bill(run, first(2, Fault(edit=short), asks_for(None)), partner=partner)
    assert result.status == 0
    assert "26 records of 2 organizations" in result.stdout


def test_a_record_that_comes_twice_with_different_content_is_read_again(run: Run) -> None:
    def twice(plain: dict[str, Any]) -> dict[str, Any]:
        rows = plain["instance_usage_data"]
        return {**plain, "instance_usage_data": [*rows, {**rows[0], "usage": "7.00h"}], "count": 26}

    once, _ = bill(run, first(1, Fault(edit=twice), asks_for("o1")))
    assert (once.status, once.stderr, len(once.raw.splitlines())) == (0, "", 1 + 26)
    for path in once.files:
        assert "7.00" not in once.files[path]


def test_a_record_that_comes_twice_with_different_content_again_ends_the_run(run: Run) -> None:
    def twice(plain: dict[str, Any]) -> dict[str, Any]:
        rows = plain["instance_usage_data"]
        return {**plain, "instance_usage_data": [*rows, {**rows[0], "usage": "7.00h"}], "count": 26}

    result, _ = bill(run, always(Fault(edit=twice), asks_for("o1")))
    assert (result.status, result.files) == (1, {})
    assert "instance a0 (id-a0) is listed twice, with different content" in result.stderr


def test_an_organization_that_falls_short_of_its_own_count_is_read_again(run: Run) -> None:
    def short(plain: dict[str, Any]) -> dict[str, Any]:
        return {**plain, "instance_usage_data": plain["instance_usage_data"][:-1]}

    once, _ = bill(run, first(1, Fault(edit=short), asks_for("o1")))
    assert (once.status, once.stderr, len(once.raw.splitlines())) == (0, "", 1 + 26)


def test_an_organization_that_falls_short_of_its_own_count_again_ends_the_run(run: Run) -> None:
    short = keep(lambda row: row["instance_id"] != "id-a7", count=25)
    result, _ = bill(run, always(short, asks_for("o1")))
    assert (result.status, result.files) == (1, {})
    assert "only 24 of the 25 counted could be read" in result.stderr


def test_a_partner_without_any_usage_is_reconciled_at_once(run: Run) -> None:
    result, requests = bill(run, partner=Partner(PAIR, fixed()))
    assert result.status == 0
    assert "0 records of 0 organizations, 0.00 hours" in result.stdout
    assert len([request for request in requests if "usage" in request.path]) == 2 + 2 * 2


def test_the_files_are_the_same_however_they_were_reconciled(run: Run) -> None:
    result, _ = bill(run, partner=SMALL, behaviour=Behaviour(count="absent", max_limit=2))
    assert {RAW: result.raw, SORTED: result.sorted} == FILES
