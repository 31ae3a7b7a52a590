"""The API as a client sees it: paging, reconciliation, retries, redirects, TLS, keys."""

from __future__ import annotations

import email.utils
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import urlencode

import pytest
import trustme
from conftest import KEYS, Result, Run, assert_failed, cases
from example import FILES, NOW, SMALL, usage
from rafay_simulator import (
    DEFAULT_KEY,
    PARTNER_KEY,
    Behaviour,
    Fault,
    FaultPlan,
    Partner,
    Request,
    Simulator,
    Where,
    always,
    first,
    fixed,
    organization,
    path_has,
)

ORGANIZATIONS, COMPUTE = path_has("organizations"), path_has("compute")
NO_COUNT, GONE = Behaviour(count="absent"), "Gone, Inc."
OFFSET_IGNORED = Behaviour(honour_offset=False, max_limit=10_000)
each_count = pytest.mark.parametrize("count", ["total", "page", "absent"])


def beyond(request: Request) -> bool:
    """Match the request for the compute record beyond the last one that was read."""
    return COMPUTE(request) and request.query["limit"] == "1"


def usage_of(organization_id: str | None, offset: str | None = None) -> Where:
    """Match the pages of one compute list, or its page at an offset; None: the whole partner's."""
    return lambda request: (
        COMPUTE(request)
        and not beyond(request)
        and request.query.get("instance_organization_id") == organization_id
        and offset in (None, request.query["offset"])
    )


def acme(*compute: Any, others: tuple[str, ...] = ()) -> Partner:
    """Return a partner with compute usage, the organization Acme (o1), and others by id."""
    listed = [organization("o1", "Acme"), *(organization(id_, f"Name of {id_}") for id_ in others)]
    return Partner(listed, fixed(compute=compute))


def instances(end: int, begin: int = 0) -> list[Any]:
    """Return Acme's records of the instances id-00, id-01 and so on, of an hour each."""
    return [usage("o1", f"{number:02}", "gpu", "1.00h") for number in range(begin, end)]


WHOLE, ACME, ACME_25 = usage_of(None), usage_of("o1"), acme(*instances(25))


def unlisted(instance: str, profile: str = "gpu") -> Any:
    """Return a record of an organization that is not listed."""
    return usage("o9", instance, profile, "1h", instance_organization_name=GONE)


def changing(records: list[Any]) -> Partner:
    """Return the partner Acme whose compute records are what the list holds at the moment."""

    def now(*asked: Any) -> list[Any]:
        return fixed(compute=records)(*asked)

    return replace(acme(), records=now)


def one_page(change: Callable[[list[Any]], list[Any]], uncounted: int = 0) -> Fault:
    """Return a fault that changes the rows of a list of one page, and counts so many more."""

    def edit(answer: dict[str, Any]) -> dict[str, Any]:
        rows = [] if answer["offset"] else change(answer["instance_usage_data"])
        return {**answer, "instance_usage_data": rows, "count": len(rows) + uncounted}

    return Fault(edit=edit)


def together(number: int, where: Where) -> FaultPlan:
    """Hold each matching request until so many are in flight; fail if they never are."""
    barrier = threading.Barrier(number, timeout=5)

    def plan(request: Request) -> None:
        if where(request):
            barrier.wait()

    return plan


def matching(result: Result, where: Where) -> int:
    return len([request for request in result.requests if where(request)])


def assert_billed(result: Result) -> None:
    assert (result.status, result.stderr, result.files) == (0, "", FILES)


def assert_instances(result: Result, records: list[Any]) -> None:
    assert (result.status, result.stderr) == (0, "")
    assert [row["instance"] for row in result.rows] == [one["instance_name"] for one in records]


BEHAVIOURS = {
    "limit lowered, count is the total": Behaviour(max_limit=1),
    "limit lowered, count is the page's": Behaviour(max_limit=1, count="page"),
    "an empty list is null": Behaviour(empty="null"),
    "an empty list is left out": Behaviour(empty="absent"),
    "organizations are items": Behaviour(organization_list="items"),
    "a path without slash is redirected": Behaviour(slash_redirect=True),
    "neither gzip nor chunks": Behaviour(gzip=False, chunked=False),
}


@cases("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("workers", ["1", "8"])
def test_the_api_may_behave_in_any_way(run: Run, behaviour: Behaviour, workers: str) -> None:
    assert_billed(run(behaviour=behaviour, WORKERS=workers))


def test_each_key_is_sent_to_its_own_host_only_and_never_shown(run: Run) -> None:
    with Simulator(SMALL) as ops:
        result = run(RAFAY_OPS_CONSOLE_URL=ops.url)
    assert_billed(result)
    names = ("x-api-key", "x-rafay-api-keyid")
    keys = [[r.headers.get(name) for name in names] for r in ops.requests + result.requests]
    partner, default = [[None, PARTNER_KEY]], [[DEFAULT_KEY, None]]
    assert keys == partner * len(ops.requests) + default * len(result.requests)
    assert not KEYS.search(result.stdout + result.raw + result.sorted)


def test_a_run_requests_one_record_of_each_kind_and_each_list_in_pages_of_400(run: Run) -> None:
    requests = run().requests
    assert {each.query["limit"] for each in requests if ORGANIZATIONS(each)} == {"400"}
    names = ("instance_organization_id", "limit", "range_from", "range_to")
    asked = [[r.query.get(name, "") for name in names] for r in requests if not ORGANIZATIONS(r)]
    lists = [("", "1"), ("o1", "400"), ("o2", "400"), ("o3", "400"), ("o4", "400")] * 2
    assert sorted(asked) == [[*each, "2026-06-01T00:00:00Z", NOW] for each in sorted(lists)]


def test_no_more_requests_are_in_flight_than_workers(run: Run, stand_in: Simulator) -> None:
    three = together(3, lambda request: "instance_organization_id" in request.query)
    run(partner=acme(others=("o2", "o3")), fault=three, latency=0.02, WORKERS="3")
    assert stand_in.peak == 3


NEW = instances(100, 99)
CHANGES = {
    "more records at the end": ("10", instances(45)),
    "a new record in front": ("10", NEW + instances(25)),
    "a new record in front, later": ("20", NEW + instances(25)),
    "a new record on the page before": ("20", instances(12) + NEW + instances(25, 12)),
    "a new record on the next page": ("10", instances(12) + NEW + instances(25, 12)),
}
SAME = [usage("o1", "01", "gpu", "1.00h", status="stopped")]
CONTRADICTIONS = {
    "same content on one page": ({}, Behaviour()),
    "same content on two pages": ({}, Behaviour(max_limit=1)),
    "other usage on one page": ({"usage": "9.00h"}, Behaviour()),
    "other usage on two pages": ({"usage": "9.00h"}, Behaviour(max_limit=1)),
    "other raw_usage": ({"raw_usage": 1.004}, Behaviour()),
    "other deleted_at": ({"deleted_at": "2026-06-09T00:00:00Z"}, Behaviour()),
}


@each_count
@pytest.mark.parametrize("size", [0, 5, 20, 25])
def test_each_record_is_billed_once(run: Run, count: Any, size: int) -> None:
    result = run(partner=acme(*instances(size)), behaviour=Behaviour(max_limit=10, count=count))
    assert_instances(result, instances(size))
    assert matching(result, ACME) == size // 10 + 1  # a page that is not full is the last


@each_count
@cases("moment, changed", CHANGES)
def test_a_changing_list_is_billed_as_it_ends(
    run: Run, moment: str, changed: list[Any], count: Any
) -> None:
    records = instances(25)

    def change(request: Request) -> None:
        if usage_of("o1", moment)(request):
            records[:] = changed

    behaviour = Behaviour(max_limit=10, count=count)
    result = run(partner=changing(records), behaviour=behaviour, fault=change, WORKERS="1")
    assert_instances(result, changed)


def test_a_record_that_departs_from_a_counted_list_costs_no_other_one(run: Run) -> None:
    records = instances(25)

    def depart(request: Request) -> None:
        if usage_of("o1", "10")(request):
            records[:] = instances(25, 1)

    behaviour = Behaviour(max_limit=10)
    result = run(partner=changing(records), behaviour=behaviour, fault=depart, WORKERS="1")
    assert_instances(result, instances(25, 1))


@pytest.mark.parametrize("max_count", [None, 25])
def test_a_record_that_arrives_between_pages_asked_together_costs_no_other_one(
    run: Run, max_count: int | None
) -> None:
    records, last_page_made = instances(25), threading.Event()

    def let_the_other_go(answer: Any) -> Any:
        last_page_made.set()
        return answer

    def plan(request: Request) -> Fault | None:
        if usage_of("o1", "20")(request):
            return Fault(edit=let_the_other_go)
        if usage_of("o1", "10")(request):
            last_page_made.wait(5)
            records[:] = instances(12) + NEW + instances(25, 12)
        return None

    behaviour = Behaviour(max_limit=10, max_count=max_count)
    result = run(partner=changing(records), behaviour=behaviour, fault=plan)
    assert_instances(result, instances(12) + NEW + instances(25, 12))


@each_count
@cases("other, behaviour", CONTRADICTIONS)
def test_a_row_that_is_listed_twice_is_an_error(
    run: Run, other: dict[str, Any], behaviour: Behaviour, count: Any
) -> None:
    partner = acme(*SAME, {**SAME[0], **other})
    result = run(partner=partner, behaviour=replace(behaviour, count=count))
    assert_failed(result, "compute.*Acme.*id-01")


@each_count
def test_a_list_that_keeps_moving_is_read_twice_and_then_an_error(run: Run, count: Any) -> None:
    behaviour = Behaviour(max_limit=10, shift=True, count=count)
    result = run(partner=ACME_25, behaviour=behaviour)
    assert_failed(result, "compute.*Acme.*id-")
    begun = [each.query["limit"] for each in result.requests if usage_of("o1", "0")(each)]
    assert begun == ["400", "10000"]


SMALL_PAGES = {"PAGE_SIZE": 4, "WHOLE_LIST_SIZE": 10}


@each_count
@pytest.mark.parametrize("size", [1, 3, 4, 5, 9])
def test_an_api_that_ignores_offset_is_billed_right(run: Run, size: int, count: Any) -> None:
    behaviour = replace(OFFSET_IGNORED, count=count)
    result = run(partner=acme(*instances(size)), behaviour=behaviour, constants=SMALL_PAGES)
    assert_instances(result, instances(size))


@each_count
@pytest.mark.parametrize("size", [10, 11, 25])
def test_an_api_that_ignores_offset_is_an_error_if_a_list_is_too_long(
    run: Run, size: int, count: Any
) -> None:
    behaviour = replace(OFFSET_IGNORED, count=count)
    result = run(partner=acme(*instances(size)), behaviour=behaviour, constants=SMALL_PAGES)
    assert_failed(result, "compute.*Acme.*offset")


def test_a_list_of_9999_records_is_billed_by_an_api_that_ignores_offset(run: Run) -> None:
    result = run(partner=acme(*instances(9999)), behaviour=OFFSET_IGNORED)
    assert (result.status, len(result.rows)) == (0, 9999)


def test_rafays_recorded_answer_for_every_offset_is_billed_once(run: Run) -> None:
    recorded = {"count": 1, "offset": 0, "limit": 10, "instance_usage_data": instances(1)}
    same = always(Fault(edit=lambda answer: {**answer, **recorded}), COMPUTE)
    assert_instances(run(partner=acme(), fault=same), instances(1))


@pytest.mark.parametrize("limit", [5, 10, 20, 400])
@pytest.mark.parametrize("size", [19, 20, 25, 30, 35])
def test_a_capped_count_loses_nothing(run: Run, size: int, limit: int) -> None:
    behaviour = Behaviour(max_limit=limit, max_count=20)
    assert_instances(run(partner=acme(*instances(size)), behaviour=behaviour), instances(size))


def test_an_unknown_count_of_a_kind_is_not_taken_for_none(run: Run) -> None:
    partner = replace(acme(), records=fixed(instances(2), [unlisted("lab", "notebook")]))
    without = always(Fault(edit=lambda answer: {**answer, "count": None}), path_has("service"))
    assert [row["instance"] for row in run(partner=partner, fault=without).rows][2:] == ["lab"]


def test_a_next_of_null_in_usage_proves_nothing(run: Run) -> None:
    null = always(Fault(edit=lambda answer: {**answer, "next": None}), COMPUTE)
    behaviour = Behaviour(count="page", max_limit=10)
    assert_instances(run(partner=ACME_25, behaviour=behaviour, fault=null), instances(25))


TOGETHER = {
    "first pages": (4, lambda r: "instance_org" in str(r.query) and r.query["offset"] == "0"),
    "all further pages": (4, lambda r: "instance_org" in str(r.query) and r.query["offset"] != "0"),
}


@cases("number, where", TOGETHER)
def test_requests_are_made_together(run: Run, number: int, where: Where) -> None:
    others = [usage("o2", f"b{n:02}", "gpu", "1.00h") for n in range(25)]
    partner = acme(*instances(25), *others, others=("o2",))
    result = run(partner=partner, behaviour=Behaviour(max_limit=10), fault=together(number, where))
    assert_instances(result, instances(25) + others)


def test_an_organization_on_two_pages_is_an_error(run: Run) -> None:
    result = run(partner=acme(others=("o2", "o2", "o3")), behaviour=Behaviour(max_limit=2))
    assert_failed(result, "organizations.*o2")


UNFINISHED = {"nothing": {}, "an empty page with a next": {"results": [], "next": "?offset=4"}}


@cases("answer", UNFINISHED)
def test_a_list_of_organizations_does_not_end_before_its_next_is_null(
    run: Run, answer: dict[str, Any]
) -> None:
    def plan(request: Request) -> Fault | None:
        is_second = ORGANIZATIONS(request) and request.query["offset"] == "2"
        return Fault(edit=lambda _: answer) if is_second else None

    behaviour = Behaviour(max_limit=2, count="absent")
    result = run(partner=acme(others=("o2", "o3")), behaviour=behaviour, fault=plan)
    assert_failed(result, "organizations")


@each_count
def test_a_next_page_of_organizations_is_read_after_one_that_is_not_full(
    run: Run, count: Any
) -> None:
    unsaid = always(Fault(edit=lambda answer: {**answer, "limit": 400}), ORGANIZATIONS)
    partner = acme(*instances(1), usage("o3", "b", "gpu", "1h"), others=("o2", "o3"))
    behaviour = Behaviour(max_limit=2, count=count)
    result = run("--no-reconcile", partner=partner, behaviour=behaviour, fault=unsaid)
    assert [row["instance"] for row in result.rows] == ["00", "b"]


def test_a_count_that_is_too_low_never_shortens_the_bill(run: Run) -> None:
    lower = always(Fault(edit=lambda answer: {**answer, "count": 15}), ACME)
    result = run(partner=ACME_25, behaviour=Behaviour(max_limit=10), fault=lower)
    assert result.status == 1 or len(result.rows) == 25


LOWERED_UNSAID = {
    "count capped at what was read": Behaviour(max_limit=100, max_count=100),
    "count is the page's": Behaviour(max_limit=100, count="page"),
    "no count": Behaviour(max_limit=100, count="absent"),
}
OFTEN = [usage("o1", "00", "gpu", "1.00h", start_time=str(number)) for number in range(150)]


@cases("behaviour", LOWERED_UNSAID)
@cases("records", {"150 instances": instances(150), "one instance, 150 times": OFTEN})
def test_a_limit_lowered_without_saying_so_loses_nothing_in_silence(
    run: Run, behaviour: Behaviour, records: list[Any]
) -> None:
    unsaid = always(Fault(edit=lambda answer: {**answer, "limit": 400}), path_has("usage"))
    result = run(partner=acme(*records), behaviour=behaviour, fault=unsaid)
    assert result.status == 1 or len(result.rows) == 150


def test_a_record_that_arrives_during_the_control_hides_none_beyond_a_lagging_count(
    run: Run,
) -> None:
    records = instances(4)

    def plan(request: Request) -> Fault | None:
        if beyond(request) and len(records) == 4:
            records.insert(0, instances(100, 99)[0])
        if not COMPUTE(request):
            return None
        lagging = len(records) - 2
        return Fault(edit=lambda answer: {**answer, "limit": 400, "count": lagging})

    partner = replace(ACME_25, records=lambda *of: [*fixed(compute=records)(*of)])
    result = run(partner=partner, behaviour=Behaviour(max_limit=2), fault=plan, WORKERS="1")
    assert result.status == 1 or len(result.rows) == 5


@pytest.mark.parametrize("end", [None, ""])
def test_a_list_of_organizations_ends_without_a_next(run: Run, end: str | None) -> None:
    last = always(Fault(edit=lambda answer: {**answer, "next": end}), ORGANIZATIONS)
    assert_billed(run(fault=last))


def test_an_id_that_cannot_be_asked_for_is_an_error(run: Run) -> None:
    assert_failed(run(partner=acme(others=("\ud800",))), "compute")


def test_a_page_that_is_not_full_is_an_error_if_another_follows(run: Run) -> None:
    def plan(request: Request) -> Fault | None:
        if not ACME(request):
            return None
        size = 9 if request.query["offset"] == "10" else 10
        return Fault(edit=lambda answer: {**cut(answer, size), "count": 24})

    def cut(answer: dict[str, Any], size: int) -> dict[str, Any]:
        return {**answer, "instance_usage_data": answer["instance_usage_data"][:size]}

    behaviour = Behaviour(max_limit=10)
    result = run("--no-reconcile", partner=ACME_25, behaviour=behaviour, fault=plan)
    assert_failed(result, "compute.*Acme")


def test_an_answer_with_a_higher_limit_than_asked_for_ends_no_list(run: Run) -> None:
    higher = always(Fault(edit=lambda answer: {**answer, "limit": 1000}), COMPUTE)
    result = run(
        "--no-reconcile",
        partner=acme(*instances(5)),
        behaviour=NO_COUNT,
        fault=higher,
        constants=SMALL_PAGES,
    )
    assert_instances(result, instances(5))


@cases("count", {"absurd": 10**30, "too large for a float": 10**400})
def test_at_most_100_pages_of_a_list_are_asked_for_together(run: Run, count: int) -> None:
    absurd = always(Fault(edit=lambda answer: {**answer, "count": count}), ACME)
    result = run(partner=ACME_25, fault=absurd)
    assert_failed(result, "Acme.*25 of 10")
    assert matching(result, ACME) == 2 * (1 + 100)


@pytest.mark.parametrize("count", ["total", "page"])
def test_a_list_with_too_many_rows_is_an_error(run: Run, count: Any) -> None:
    behaviour, constants = Behaviour(max_limit=10, count=count), {"MAX_ROWS": 50}
    result = run(partner=acme(*instances(51)), behaviour=behaviour, constants=constants)
    assert_failed(result, "Acme.*50 rows")
    result = run(partner=acme(*instances(50)), behaviour=behaviour, constants=constants)
    assert_instances(result, instances(50))


# Reconciliation

TWO_CONTENTS = one_page(lambda rows: [*rows, {**rows[0], "usage": "7.00h"}])
COUNT_TOO_HIGH = one_page(lambda rows: rows, 1)
WITHOUT_07 = one_page(lambda rows: rows[:7] + rows[8:])
DEFECTS = {
    "two contents of one record": (ACME, TWO_CONTENTS, "Acme.*id-00"),
    "count too high": (ACME, COUNT_TOO_HIGH, "Acme.*25.*26"),
    "instance missing": (ACME, WITHOUT_07, "compute.*Acme.*id-07"),
    "whole partner, two contents": (WHOLE, TWO_CONTENTS, "whole partner.*id-00"),
    "whole partner, count too high": (WHOLE, COUNT_TOO_HIGH, "whole partner.*25.*26"),
}


@cases("where, fault, words", DEFECTS)
def test_a_defect_is_an_error_if_it_lasts(run: Run, where: Where, fault: Fault, words: str) -> None:
    behaviour = replace(OFFSET_IGNORED, count="absent")  # the whole partner is always read
    assert_failed(run(partner=ACME_25, behaviour=behaviour, fault=always(fault, where)), words)
    result = run(partner=ACME_25, behaviour=behaviour, fault=first(1, fault, where))
    assert_instances(result, instances(25))
    assert {row["usage_hours"] for row in result.rows} == {"1.00"}


def test_an_instance_that_the_whole_partner_lacks_is_an_error(run: Run) -> None:
    lacking = always(WITHOUT_07, WHOLE)
    assert_failed(run(partner=ACME_25, behaviour=OFFSET_IGNORED, fault=lacking), "Acme.*id-07")


def test_the_number_of_records_is_compared_and_their_hours_are_not(run: Run) -> None:
    one_more = always(one_page(lambda rows: [*rows, {**rows[3], "start_time": "x"}]), WHOLE)
    assert_failed(run(partner=ACME_25, behaviour=OFFSET_IGNORED, fault=one_more), "Acme.*id-03")
    others = always(one_page(lambda rows: [{**row, "usage": "9h"} for row in rows]), WHOLE)
    result = run(partner=ACME_25, behaviour=OFFSET_IGNORED, fault=others)
    assert_instances(result, instances(25))


def test_each_organization_that_disagrees_is_read_once_more_and_named(run: Run) -> None:
    others = [usage("o2", "two", "gpu", "1h"), usage("o3", "three", "gpu", "1h")]
    lacking = always(one_page(lambda rows: rows[1:]), lambda r: ACME(r) or usage_of("o3")(r))
    result = run(partner=acme(*instances(25), *others, others=("o2", "o3")), fault=lacking)
    assert (result.status, result.files) == (1, {})
    assert re.search("(?s)Acme.*id-00.*Name of o3.*id-three", result.stderr)
    assert [matching(result, usage_of(id_)) for id_ in ("o1", "o2", "o3")] == [2, 1, 2]


@each_count
def test_the_whole_partner_is_read_only_if_it_has_a_record_beyond(run: Run, count: Any) -> None:
    split = "profile,hourly_rate,effective_from\ngpu,1,\ngpu,2,2026-06-15\nfree,0,\nnotebook,1,\n"
    more, behaviour = acme(*instances(2), unlisted("z")), Behaviour(count=count)
    assert matching(run(behaviour=behaviour), WHOLE) == 0
    assert matching(run(behaviour=behaviour, prices=split), WHOLE) == 0
    assert matching(run(behaviour=behaviour, partner=acme()), WHOLE) == 0
    assert matching(run(behaviour=behaviour, partner=more), WHOLE) == 1


@each_count
def test_usage_of_an_unlisted_organization_is_billed_with_a_warning(run: Run, count: Any) -> None:
    nameless = usage("o8", "y", "gpu", "1h", instance_organization_name=None)
    gone, lab = unlisted("z"), unlisted("lab", "notebook")
    records = fixed([gone, nameless, *instances(1)], [lab])
    result = run(partner=replace(acme(), records=records), behaviour=Behaviour(count=count))
    billed = [[row["organization"], row["organization_id"], row["instance"]] for row in result.rows]
    assert billed[1:] == [["o8", "o8", "y"], [GONE, "o9", "z"], [GONE, "o9", "lab"]]
    assert result.status == 0
    assert sorted(warning.split(" is ")[0] for warning in result.warnings) == [
        "Gone, Inc. (o9)",
        "o8 (o8)",
    ]
    assert [each for each in result.warnings if "not listed" not in each] == []


ARRIVALS = {"while its list is read": ACME, "before the control": beyond, "in the control": WHOLE}


@each_count
@cases("where", ARRIVALS)
def test_a_record_that_arrives_hides_no_unlisted_one(run: Run, where: Where, count: Any) -> None:
    records = [*instances(2), unlisted("z")]

    def arrive(request: Request) -> None:
        if where(request):
            records[:] = [*instances(3), unlisted("z")]

    result = run(partner=changing(records), behaviour=Behaviour(count=count), fault=arrive)
    assert [row["instance"] for row in result.rows] == ["00", "01", "02", "z"]


@cases("flags, environ", {"flag": (["--no-reconcile"], {}), "variable": ([], {"RECONCILE": "0"})})
def test_reconciliation_can_be_skipped(run: Run, flags: list[str], environ: Any) -> None:
    lacking = always(WITHOUT_07, ACME)
    result = run(*flags, partner=ACME_25, behaviour=NO_COUNT, fault=lacking, **environ)
    assert_instances(result, instances(7) + instances(25, 8))
    assert "not reconciled" in result.stdout.lower()
    assert matching(result, WHOLE) == 0


# Retries

STALL, CLOSED, HTML = 0.5, "reset|Connection|ChunkedEncoding|JSON", {"Content-Type": "text/html"}
PASSING = {
    "connection reset": (Fault("reset"), CLOSED),
    "reset in the body": (Fault("reset-body"), CLOSED),
    "body too short": (Fault("cut-length"), CLOSED),
    "last chunk missing": (Fault("cut-chunked"), CLOSED),
    "broken gzip": (Fault("bad-gzip"), "ContentDecodingError"),
    "no answer": (Fault("stall"), "Timeout"),
    "half an answer": (Fault("stall-body"), "Timeout|timed out|ConnectionError"),
    "a web page": (Fault(body=b"<html>Sign in", headers=HTML), "JSON.*<html>Sign in"),
    "an empty body": (Fault(), "JSON"),
    "deeply nested": (Fault(body=b"[" * 100_000), "JSON"),
    "500": (Fault(status=500, body=b'{"message": "unexpected error"}'), "500.*unexpected error"),
    **{
        str(status): (Fault(status=status), str(status))
        for status in (408, 425, 429, 502, 503, 504)
    },
}
LASTING = {
    **{str(code): (Fault(status=code), f"HTTP {code}") for code in (204, 206, 304, 400, 410)},
    **{str(code): (Fault(status=code), f"{code}.* RAFAY_DEFAULT_API_KEY") for code in (401, 403)},
    "404": (Fault(status=404), "404.* RAFAY_CONSOLE_URL"),
    "redirect in a circle": (Fault(status=302, headers={"Location": "?limit=1"}), "redirect"),
    "redirect to no URL": (Fault(status=302, headers={"Location": "http://[bad"}), "redirect"),
}
RETRY_AFTER = {
    "seconds": ("1", 30.0, 1.0),
    "a date": (email.utils.formatdate(time.time() + 3600, usegmt=True), 0.2, 0.2),
    "too late a date": ("Fri, 31 Dec 9999 23:59:59 GMT", 0.2, 0.2),
    "a date in the past": ("Mon, 01 Jan 2001 00:00:00 GMT", 30.0, 0.0),
}
MALFORMED = ["Oct 9 , 9:", "soon", "", " ", "-1", "1.5", "0x1", "Mon, 99 Foo 2026 99:99:99 GMT"]
PHASES = {
    "organizations": (ORGANIZATIONS, "organizations", Behaviour()),
    "an organization": (usage_of("o1"), "Fabrikam, Inc.", Behaviour()),
    "a further page": (usage_of("o2", "2"), "northwind", Behaviour(max_limit=2)),
    "the record beyond": (beyond, "compute usage of the whole partner", Behaviour()),
    "the whole partner": (WHOLE, "compute usage of the whole partner", OFFSET_IGNORED),
}


@cases("fault, reason", PASSING)
def test_a_failure_ends_the_run_only_if_it_lasts(run: Run, fault: Fault, reason: str) -> None:
    constants = {"READ_SECONDS": STALL, "ATTEMPTS": 1}
    assert_failed(run(fault=always(fault, beyond), constants=constants), "compute", reason)
    assert_billed(run(fault=first(3, fault), constants={**constants, "ATTEMPTS": 6}))


@cases("fault, reason", LASTING)
def test_what_will_not_change_is_not_tried_again(run: Run, fault: Fault, reason: str) -> None:
    result = run(partner=ACME_25, fault=always(fault, COMPUTE))
    assert_failed(result, "compute", reason)
    assert matching(result, ACME) == 1


@cases("where, word, behaviour", PHASES)
def test_a_request_is_tried_six_times_in_every_phase(
    run: Run, where: Where, word: str, behaviour: Behaviour
) -> None:
    result = run(behaviour=behaviour, fault=always(Fault(status=503), where))
    assert_failed(result, word, "503", "6 attempts")
    assert matching(result, where) == 6
    assert_billed(run(behaviour=behaviour, fault=first(5, Fault(status=503), where)))


def test_http_404_names_the_variables_of_the_organizations_host(run: Run) -> None:
    result = run(fault=always(Fault(status=404), ORGANIZATIONS))
    assert_failed(result, r"404.* RAFAY_OPS_CONSOLE_URL \(or else RAFAY_CONSOLE_URL\)")


def pauses(run: Run, retry_after: str, **constants: float) -> list[float]:
    """Let each attempt at one request fail; return the pause after each, the last included."""
    moments = []

    def fail(request: Request) -> Fault | None:
        if not beyond(request):
            return None
        moments.append(time.monotonic())
        return Fault(status=503, headers={"Retry-After": retry_after})

    assert run(fault=fail, constants=constants).status == 1
    moments.append(time.monotonic())
    return [later - earlier for earlier, later in zip(moments, moments[1:])]


def test_pauses_double_and_the_last_attempt_is_not_followed_by_one(run: Run) -> None:
    constants = {"ATTEMPTS": 4, "BACKOFF_SECONDS": 0.08, "RETRY_AFTER_SECONDS": 30.0}
    one, two, three, last = pauses(run, "0", **constants)
    assert (one >= 0.08, two >= 0.16, three >= 0.32, last < three) == (True,) * 4


@cases("header, most, least", RETRY_AFTER)
def test_retry_after_sets_the_pause(run: Run, header: str, most: float, least: float) -> None:
    pause, _ = pauses(run, header, ATTEMPTS=2, RETRY_AFTER_SECONDS=most)
    assert pause >= least


@pytest.mark.parametrize("header", MALFORMED)
def test_a_malformed_retry_after_is_no_header(run: Run, header: str) -> None:
    constants = {"ATTEMPTS": 2, "BACKOFF_SECONDS": 0.05, "RETRY_AFTER_SECONDS": 30.0}
    pause, _ = pauses(run, header, **constants)
    assert pause >= 0.05


# The network

KEY = DEFAULT_KEY.encode()
ECHOES = {
    "an error": Fault(status=400, body=b"x-api-key: " + KEY),
    "an escape before it": Fault(status=400, body=b"\\u003c%b\\u003e" % KEY),
    "a web page": Fault(body=b"<pre>x-api-key: %b</pre>" % KEY),
    # Wherever a text is cut before its keys are taken out, part of a key is left in one of these.
    **{f"cut {n}": Fault(body=b"x" * n + (KEY + b"x" * 10) * 99) for n in (0, 10, 20)},
    **{f"edge {n}": Fault(status=400, body=b"x" * n + KEY * 100) for n in (0, 7, 13)},
    # Blanks are shown as one: what is cut may still be at the end of a short text.
    **{
        f"blanks {n}": Fault(status=400, body=b" " * n + (KEY + b" " * 130) * 999)
        for n in range(0, 150, 15)
    },
    "some MiB": Fault(status=400, body=KEY * 200_000),
    "a field": Fault(edit=lambda answer: {**answer, "kind": DEFAULT_KEY}),
}
UNUSABLE = {
    "unknown": ("https://no-such-host.invalid", ""),
    "refused": ("http://127.0.0.1:1", "refused"),
    "no https": ("https://127.0.0.1:{port}", ""),
}
ELSEWHERE = [
    "http://127.0.0.2:{port}/\\@127.0.0.1:{port}/x",
    "http://127.0.0.1:{port}@127.0.0.2:{port}/x",
    "http://127.0.0.2:{port}/x",
    "http://localhost:{port}/x",
    "https://127.0.0.1:{port}/x",
    "http://127.0.0.1:65535/x",
    "//example.invalid/x",
]
CERTIFIED = {  # for which host, the bundle, and what the error says, if there is one
    "a private authority in the bundle": ("127.0.0.1", "ca.pem", ""),
    "no bundle": ("127.0.0.1", "", "certificate.*REQUESTS_CA_BUNDLE"),
    "a certificate for another host": ("rafay.example", "ca.pem", "127.0.0.1.*certificate"),
    "a bundle that does not exist": ("127.0.0.1", "missing.pem", "missing.pem"),
    "a bundle without a certificate": ("127.0.0.1", "junk.pem", "REQUESTS_CA_BUNDLE"),
}


@cases("url, reason", UNUSABLE)
def test_an_unusable_host_is_named(run: Run, stand_in: Simulator, url: str, reason: str) -> None:
    url = url.format(port=stand_in.url.rpartition(":")[2])
    result = run(RAFAY_CONSOLE_URL=url, constants={"ATTEMPTS": 1})
    assert_failed(result, f"{url}: .*RAFAY_CONSOLE_URL.*{reason}")


def test_a_host_that_accepts_no_connection_is_named(run: Run) -> None:
    server, *clients = [socket.socket() for _ in range(5)]
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    for client in clients:  # fill the queue of a server that accepts nobody
        client.setblocking(False)
        client.connect_ex(server.getsockname())
    url = f"http://127.0.0.1:{server.getsockname()[1]}"
    result = run(RAFAY_CONSOLE_URL=url, constants={"ATTEMPTS": 2, "CONNECT_SECONDS": 0.2})
    for each in (server, *clients):
        each.close()
    assert_failed(result, f"{url}: .*RAFAY_CONSOLE_URL.*ConnectTimeout")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_on_the_same_host_is_followed_with_the_key(run: Run, status: int) -> None:
    def redirect(request: Request) -> Fault | None:
        if request.path.endswith("/"):
            return None
        path = request.path + "/" * ("hop" in request.query)  # the second hop adds the slash
        location = f"{path}?{urlencode({**request.query, 'hop': 1})}"
        return Fault(status=status, headers={"Location": location, "Set-Cookie": "a=b; Path=/"})

    result = run(fault=redirect)
    assert_billed(result)
    assert not matching(result, lambda request: "cookie" in request.headers)


@pytest.mark.parametrize("location", ELSEWHERE)
def test_no_redirect_leaves_the_host(run: Run, stand_in: Simulator, location: str) -> None:
    headers = {"Location": location.format(port=stand_in.url.rpartition(":")[2])}
    result = run(fault=always(Fault(status=302, headers=headers), COMPUTE))
    assert_failed(result, "RAFAY_CONSOLE_URL.*redirect")
    assert not matching(result, lambda request: request.path == "/x")


@cases("case", CERTIFIED)
def test_a_server_is_trusted_only_if_the_bundle_certifies_its_host(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: tuple[str, str, str]
) -> None:
    host, bundle, reason = case
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "junk.pem").write_text("junk")
    if bundle:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / bundle))
    with Simulator(SMALL, tls=context) as secure:
        result = run(RAFAY_CONSOLE_URL=secure.url)
    assert (result.status, len(result.files)) == ((1, 0) if reason else (0, 2))
    assert re.search(reason, result.stderr)
    assert "attempts" not in result.stderr  # it fails at once


def test_proxy_and_netrc_unused(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Simulator(SMALL) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        result = run()
    assert_billed(result)
    assert not proxy.requests
    assert not matching(result, lambda request: "authorization" in request.headers)


@pytest.mark.parametrize("host", ["", "me:s3cret@", "[", ":1", "me:s3cret@127.0.0.1:99999"])
def test_an_invalid_proxy_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{host}")
    result = run(RAFAY_CONSOLE_URL="https://rafay.invalid", constants={"ATTEMPTS": 1})
    assert_failed(result, "HTTPS_PROXY")
    assert "s3cret" not in result.stderr


def test_threads_may_be_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError))
    assert_failed(run(), "WORKERS")


@cases("fault", ECHOES)
def test_a_key_that_the_server_repeats_is_not_shown(run: Run, fault: Fault) -> None:
    result = run(fault=always(fault, COMPUTE), constants={"ATTEMPTS": 1})
    assert_failed(result)
    assert DEFAULT_KEY[:5] not in result.stderr


@pytest.mark.parametrize("text", ["ab-cd-ef-gh-ij", "{ab-cd-ef}", "\\u003cab-cd-ef", "%20ab-cd-ef"])
def test_a_key_that_begins_with_the_other_key_is_not_shown(run: Run, text: str) -> None:
    keys = {"RAFAY_DEFAULT_API_KEY": "ab-cd-ef", "PARTNER_API_KEY": "ab-cd-ef-gh-ij"}
    result = run(fault=always(Fault(status=400, body=text.encode())), **keys)
    assert_failed(result, "400")
    assert not re.search("ab-|-gh|-ij", result.stderr)


def test_the_text_of_an_error_is_shown_cut_short_and_safe_for_a_terminal(run: Run) -> None:
    long = Fault(status=400, body=b"bad range\x1b[2J\n" + b"x" * 5000)
    result = run(fault=always(long, COMPUTE))
    assert_failed(result, r"400.*bad range[^\x1b]*\[2J.*xxx")
    assert len(result.stderr) < 2000


def test_a_key_that_fills_an_answer_of_some_mib_is_taken_out_of_a_short_error(run: Run) -> None:
    long = Fault(status=400, body=(KEY + b" ") * 200_000)
    result = run(fault=always(long, COMPUTE))
    assert_failed(result, r"400.*(\*\*\* ){20}")
    assert len(result.stderr) < 2000


@pytest.mark.parametrize("key", [DEFAULT_KEY, PARTNER_KEY])
def test_a_key_in_an_answer_is_an_error_and_in_no_file(run: Run, key: str) -> None:
    named = {**instances(1)[0], "instance_name": f"vm {key}"}
    assert_failed(run(partner=acme(named)), "the answer holds an API key")


KEYS_IN_URLS = {
    "a key": ("RAFAY_CONSOLE_URL", DEFAULT_KEY),
    "upper case": ("RAFAY_CONSOLE_URL", DEFAULT_KEY.upper()),
    "a host": ("RAFAY_CONSOLE_URL", f"https://{DEFAULT_KEY}.example:8443/"),
    "a path": ("RAFAY_CONSOLE_URL", f"https://rafay.example/{DEFAULT_KEY}"),
    "the other key": ("RAFAY_CONSOLE_URL", PARTNER_KEY),
    "the other variable": ("RAFAY_OPS_CONSOLE_URL", DEFAULT_KEY),
}


@cases("variable, url", KEYS_IN_URLS)
def test_a_key_in_a_url_setting_is_an_error_that_does_not_show_it(
    run: Run, variable: str, url: str
) -> None:
    result = run(**{variable: url})
    assert_failed(result, variable, status=2)
    assert not re.search(KEYS.pattern, result.stderr, re.IGNORECASE)
    assert result.requests == []


# --verbose

VERBOSE = re.compile(r"ncp_metrics: (?:request: )?(/\S+): (.*), \d+\.\d+ s")


def test_verbose_prints_a_line_for_each_request(run: Run) -> None:
    result = run("--verbose")
    targets = [f"{each.path}?{urlencode(each.query)}" for each in result.requests]
    lines = [VERBOSE.fullmatch(line) for line in result.stderr.splitlines()]
    assert sorted(line[1] for line in lines if line) == sorted(targets)
    assert [line[2] for line in lines if line and "compute" in line[1] and "=o2" in line[1]] == [
        "HTTP 200, 2 rows, count 2, limit 400"
    ]
    assert not KEYS.search(result.stderr)


FAILING = {
    "status": (Fault(status=503, body=KEY), "HTTP 503"),
    "no answer": (Fault("reset"), "no answer"),
    "no JSON": (Fault(body=KEY), "HTTP 200"),
    "count is a key": (Fault(edit=lambda each: {**each, "count": DEFAULT_KEY}), r"count \*\*\*"),
}


@cases("fault, words", FAILING)
def test_verbose_prints_a_line_for_each_request_that_fails(
    run: Run, fault: Fault, words: str
) -> None:
    result = run("--verbose", partner=ACME_25, fault=always(fault, ACME))
    lines = [line for line in result.stderr.splitlines() if "=o1" in line and "compute" in line]
    assert len(lines) == matching(result, ACME)
    assert [line for line in lines if not re.search(words, line)] == []
    assert not KEYS.search(result.stderr)
