"""Each record is billed once, however the API pages and counts, and whatever moves meanwhile."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from conftest import (
    FaultPlan,
    Result,
    Run,
    Where,
    always,
    assert_billed,
    assert_failed,
    cases,
    first,
    path_has,
)
from example import fixed, tenants, usage
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from rafay_simulator import Behaviour, Fault, Json, Partner, Request, organization

Rows = list[Json]

ORGANIZATIONS = path_has("organizations")
COMPUTE = path_has("compute")
COUNTS = ["total", "page", "absent"]
TEN = Behaviour(max_limit=10)
OFFSET_IGNORED = Behaviour(honour_offset=False, max_limit=10_000)

each_count = pytest.mark.parametrize("count", COUNTS)


def usage_of(organization_id: str | None) -> Where:
    """Match the pages of one list of compute usage; None: the whole partner's."""

    def where(request: Request) -> bool:
        query = request.query
        is_page = query["limit"] != "1"
        whose = query.get("instance_organization_id")
        return COMPUTE(request) and is_page and whose == organization_id

    return where


def instances(number: int, organization_id: str = "o1") -> Rows:
    """Return the records of so many instances, called 0, 1 and so on."""
    names = map(str, range(number))
    return [usage(organization_id, name, "gpu", "1h") for name in names]


def assert_instances(result: Result, number: int) -> None:
    """Assert that so many instances were billed, each once, without a warning."""
    assert result.stderr == ""
    assert result.status == 0
    names = map(str, range(number))
    assert result.cells("instance") == list(names)


def edited(**changes: Any) -> Fault:
    """Return a fault that changes fields of an answer."""
    return Fault(edit=lambda answer: {**answer, **changes})


OF_ACME = usage_of("o1")
OF_THE_WHOLE = usage_of(None)
ACME_25 = tenants(*instances(25))

# Requests

# Each list in pages of 400; then, of each kind, the record beyond the 4 and the 1 that were read.
ASKED = """\
all 0 400
all 1 1
all 4 1
o1 0 400
o1 0 400
o2 0 400
o2 0 400
o3 0 400
o3 0 400
o4 0 400
o4 0 400
"""


def test_each_list_is_asked_for_once_and_a_record_beyond_of_each_kind(run: Run) -> None:
    asked = []
    for request in run().requests:
        query = request.query
        whose = query.get("instance_organization_id", "all")
        asked.append(f"{whose} {query['offset']} {query['limit']}")
    assert sorted(asked) == ASKED.splitlines()


@each_count
@pytest.mark.parametrize("number", [0, 20, 25])
def test_a_page_that_is_not_full_is_the_last(run: Run, number: int, count: Any) -> None:
    behaviour = replace(TEN, count=count)
    partner = tenants(*instances(number))
    result = run(partner=partner, behaviour=behaviour)
    assert_instances(result, number)
    assert result.asked(OF_ACME) == number // 10 + 1


@cases("offsets", {"first pages": ["0"], "further pages": ["10", "20"]})
def test_pages_of_all_lists_are_asked_for_together(run: Run, offsets: list[str]) -> None:
    four = threading.Barrier(4, timeout=5)

    def hold(request: Request) -> None:
        is_tenants = "instance_organization_id" in request.query
        if is_tenants and request.query["offset"] in offsets:
            four.wait()

    # That a page follows the last row that is counted, as it is full, is known beforehand.
    partner = tenants(*instances(20), *instances(20, "o2"))
    result = run(partner=partner, behaviour=TEN, fault=hold)
    assert len(result.rows) == 40


def test_at_most_100_pages_of_a_list_are_asked_for_together(run: Run) -> None:
    absurd = always(edited(count=10**30), OF_ACME)
    result = run(partner=ACME_25, fault=absurd)
    assert_failed(result, "compute usage of Acme.*: 25 of 10+ counted")
    assert result.asked(OF_ACME) == 2 * (1 + 100)


def test_a_list_has_a_limited_number_of_rows(run: Run) -> None:
    constants = {"MAX_ROWS": 25}
    result = run(partner=ACME_25, constants=constants)
    assert_instances(result, 25)
    result = run(partner=tenants(*instances(26)), constants=constants)
    assert_failed(result, "compute usage of Acme.*25 rows")


def test_an_id_that_cannot_be_asked_for_is_an_error(run: Run) -> None:
    partner = tenants(listed=[organization("\ud800", "Acme")])
    assert_failed(run(partner=partner), "compute")


# Pages


UNLIKE = {
    "next is blank": always(edited(next=""), ORGANIZATIONS),
    "the limit is higher than asked for": always(edited(limit=9, count=None), COMPUTE),
}


@cases("fault", UNLIKE)
def test_a_list_is_read_whatever_its_answers_say_besides(run: Run, fault: FaultPlan) -> None:
    assert_billed(run("--no-reconcile", fault=fault, constants={"PAGE_SIZE": 1}))


@each_count
def test_organizations_are_read_until_next_is_null(run: Run, count: Any) -> None:
    ids = [f"o{number}" for number in range(7)]
    listed = [organization(id_, id_) for id_ in ids]
    partner = tenants(*instances(1, "o6"), listed=listed)
    behaviour = Behaviour(max_limit=3, count=count)
    result = run("--no-reconcile", partner=partner, behaviour=behaviour)
    assert_instances(result, 1)


def test_organizations_do_not_end_before_next_is_null(run: Run) -> None:
    endless = always(edited(results=[], next="?offset=400"), ORGANIZATIONS)
    result = run(fault=endless, behaviour=Behaviour(count="absent"))
    assert_failed(result, "organizations: 0 of 0 counted")


def test_an_organization_that_is_listed_twice_is_an_error(run: Run) -> None:
    acme = organization("o1", "Acme")
    result = run(partner=tenants(listed=[acme, acme]))
    assert_failed(result, r"organizations: Acme \(o1\) is listed twice")


def test_a_page_before_the_last_that_is_not_full_is_an_error(run: Run) -> None:
    def lose_a_row(answer: Json) -> Json:
        rows = answer["instance_usage_data"]
        return {**answer, "instance_usage_data": rows[1:]}

    def is_second(request: Request) -> bool:
        return request.query["offset"] == "10"

    lacking = always(Fault(edit=lose_a_row), is_second)
    result = run(partner=ACME_25, behaviour=TEN, fault=lacking)
    assert_failed(result, "compute usage of Acme.*before row 20 is not full")


@pytest.mark.parametrize("number", [1, 400, 9_999])
def test_an_api_that_ignores_offset_is_billed_right(run: Run, number: int) -> None:
    partner = tenants(*instances(number))
    result = run(partner=partner, behaviour=OFFSET_IGNORED)
    assert_instances(result, number)


def test_a_list_is_read_twice_and_then_an_error(run: Run) -> None:
    partner = tenants(*instances(10_000))
    result = run(partner=partner, behaviour=OFFSET_IGNORED)
    assert_failed(result, r"compute usage of Acme.*instance 0 \(id-0\) .*, twice.*offset")
    limits = [request.query["limit"] for request in result.requests if OF_ACME(request)]
    assert list(dict.fromkeys(limits)) == ["400", "10000"]


# Lists that move while they are read

KINDS = ("compute", "service")
SMALL_PAGES = {"PAGE_SIZE": 3, "WHOLE_LIST_SIZE": 6}
MOSTLY = st.sampled_from([True, True, True, False])
BEHAVIOURS = st.builds(
    Behaviour,
    count=st.sampled_from(COUNTS),
    max_count=st.sampled_from([1000, 4, 2]),
    lag=st.sampled_from([0, 1, 2]),
    max_limit=st.sampled_from([6, 4, 2, 1]),
    echo_limit=MOSTLY,
    honour_offset=MOSTLY,
    honour_filter=MOSTLY,
)


class Move(NamedTuple):
    """A record arrives in the list of a kind, or an organization in place of another."""

    where: str
    whose: str
    place: int


OWNERS = st.sampled_from(["o1", "o2", "not listed"])
PLACES = st.integers(0, 2)
ARRIVALS = st.builds(Move, st.sampled_from(KINDS), OWNERS, PLACES)
CHANGES = st.builds(Move, st.just("organizations"), OWNERS, PLACES)
MOVES = st.dictionaries(st.integers(0, 16), ARRIVALS | CHANGES, max_size=3)


class Moving:
    """A partner whose lists move."""

    def __init__(self) -> None:
        self.organizations = [organization(id_, id_) for id_ in ("o1", "o2", "o3")]
        self.compute: Rows = []
        self.service: Rows = []
        self.names = map(str, itertools.count())

    def records(self, *asked: Any) -> Rows:
        """Serve the records that have arrived by now."""
        serve = fixed(self.compute, self.service)
        return serve(*asked)

    def make(self, move: Move) -> str:
        """Make a move; return the name of what arrives."""
        name = next(self.names)
        if move.where == "organizations":
            del self.organizations[-1 - move.place]
            arrived = organization(name, name)
        else:
            arrived = usage(move.whose, name, "gpu", "1h")
        rows = getattr(self, move.where)
        rows.insert(move.place, arrived)
        return name


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # shrinking takes minutes
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(ARRIVALS, max_size=6), MOVES, BEHAVIOURS)
def test_a_run_fails_or_bills_each_record_that_lasts_once(
    run: Run, arrivals: list[Move], moves: dict[int, Move], behaviour: Behaviour
) -> None:
    # Rows beyond a limit that is lowered in silence cannot be seen where offset is ignored.
    assume(behaviour.echo_limit or behaviour.honour_offset)
    moving = Moving()
    lasting = {moving.make(arrival) for arrival in arrivals}
    numbers = itertools.count()

    def move(request: Request) -> None:
        number = next(numbers)
        if number in moves:
            moving.make(moves[number])

    partner = Partner(moving.organizations, moving.records)
    one_by_one = {"WORKERS": "1", "constants": SMALL_PAGES}
    result = run(partner=partner, behaviour=behaviour, fault=move, **one_by_one)
    plain = replace(behaviour, echo_limit=True, honour_offset=True, honour_filter=True)
    if behaviour == plain and not moves:
        assert result.status == 0
    if result.status == 0:
        billed = Counter(result.cells("instance"))
        assert set(billed.values()) <= {1}
        assert lasting <= set(billed)
    else:
        assert (result.status, result.files) == (1, {})


def test_an_arrival_during_the_control_hides_no_record_beyond_a_limit_lowered_in_silence(
    run: Run,
) -> None:
    moving = Moving()
    for _ in range(3):
        moving.make(Move("compute", "o1", 0))
    controls = itertools.count()

    def arrive(request: Request) -> None:
        is_control = COMPUTE(request) and request.query["limit"] == "1"
        if is_control and next(controls) == 1:
            moving.make(Move("compute", "o1", 0))

    partner = Partner(moving.organizations, moving.records)
    behaviour = Behaviour(max_limit=2, echo_limit=False, count="absent")
    result = run(partner=partner, behaviour=behaviour, fault=arrive, WORKERS="1")
    assert_failed(result, "compute usage of the whole partner.*: more records than it listed")


def test_an_arrival_between_pages_that_are_asked_for_together_hides_no_record(run: Run) -> None:
    moving = Moving()
    for _ in range(25):
        moving.make(Move("compute", "o1", 0))
    later_page_answered = threading.Event()

    def release(answer: Json) -> Json:
        later_page_answered.set()
        return answer

    def plan(request: Request) -> Fault | None:
        if request.query["offset"] == "20":
            return Fault(edit=release)
        if request.query["offset"] == "10" and len(moving.compute) == 25:
            assert later_page_answered.wait(5)
            moving.make(Move("compute", "o1", 12))
        return None

    partner = Partner(moving.organizations, moving.records)
    result = run(partner=partner, behaviour=Behaviour(max_limit=10, max_count=25), fault=plan)
    assert result.status == 0
    assert len(set(result.cells("instance"))) == len(result.rows) == 26


# Reconciliation


def with_rows(change: Callable[[Rows], Rows]) -> Fault:
    """Return a fault that changes the rows of an answer, and does not count them."""

    def edit(answer: Json) -> Json:
        rows = answer["instance_usage_data"]
        return {**answer, "instance_usage_data": change(rows), "count": None}

    return Fault(edit=edit)


def repeat_first(rows: Rows) -> Rows:
    """Return the rows and, once more, the first one with another usage."""
    return [*rows, {**rows[0], "usage": "7h"}]


def split_first(rows: Rows) -> Rows:
    """Return the rows with a second record of the first instance."""
    return [*rows, {**rows[0], "start_time": "later"}]


def change_hours(rows: Rows) -> Rows:
    """Return the rows with other hours and times."""
    return [{**row, "usage": "9h", "start_time": "1", "end_time": "2"} for row in rows]


REPEATED = with_rows(repeat_first)
MISSING = with_rows(lambda rows: rows[1:])
PASSING = {
    "a record twice, at first": first(1, REPEATED, OF_ACME),
    "a record missing, at first": first(1, MISSING, OF_ACME),
    "other hours and times": always(with_rows(change_hours), OF_ACME),
}
LASTING = {
    "a record twice": (REPEATED, OF_ACME, "Acme.*id-0.*twice"),
    "a record missing": (MISSING, OF_ACME, "compute usage of Acme.*: id-0: differs"),
    "a record of the whole partner twice": (REPEATED, OF_THE_WHOLE, "whole partner.*id-0.*twice"),
    "a record that the whole partner lacks": (MISSING, OF_THE_WHOLE, "Acme.*: id-0: differs"),
    "two records in place of one": (with_rows(split_first), OF_THE_WHOLE, "Acme.*: id-0: differs"),
}


# Where offset is ignored, there is always a record beyond: the whole partner is read.
@cases("fault", PASSING)
def test_a_defect_that_passes_changes_nothing(run: Run, fault: FaultPlan) -> None:
    result = run(partner=ACME_25, behaviour=OFFSET_IGNORED, fault=fault)
    assert_instances(result, 25)


@cases("fault, where, words", LASTING)
def test_a_defect_that_lasts_is_an_error(run: Run, fault: Fault, where: Where, words: str) -> None:
    defect = always(fault, where)
    result = run(partner=ACME_25, behaviour=OFFSET_IGNORED, fault=defect)
    assert_failed(result, words)


def test_each_organization_that_differs_is_read_once_more_and_named(run: Run) -> None:
    ids = ("o1", "o2", "o3")
    listed = [organization(id_, f"Name of {id_}") for id_ in ids]
    records = [usage(id_, f"of-{id_}", "gpu", "1h") for id_ in ids]

    def is_lacking(request: Request) -> bool:
        return request.query.get("instance_organization_id") in ("o1", "o3")

    lacking = always(MISSING, is_lacking)
    result = run(partner=tenants(*records, listed=listed), fault=lacking)
    assert (result.status, result.files) == (1, {})
    one, three = result.errors
    assert "Name of o1 (o1): id-of-o1: differs" in one
    assert "Name of o3 (o3): id-of-o3: differs" in three
    assert [result.asked(usage_of(id_)) for id_ in ids] == [2, 1, 2]


UNLISTED = [
    usage("o9", "lab", "gpu", "1h", instance_organization_name="Gone, Inc."),
    usage("o8", "old", "gpu", "1h", instance_organization_name=None),
]
WITH_UNLISTED = tenants(*UNLISTED, *instances(1), service=UNLISTED[:1])


def test_usage_of_unlisted_organizations_is_billed_last_with_warnings(run: Run) -> None:
    result = run(partner=WITH_UNLISTED)
    assert result.status == 0
    assert result.asked(OF_THE_WHOLE) == 1
    billed = result.cells("organization", "instance")
    assert billed == ["Acme 0", "o8 old", "Gone, Inc. lab", "Gone, Inc. lab"]
    old, gone = result.warnings
    assert "o8 (o8) is not listed" in old
    assert "Gone, Inc. (o9) is not listed" in gone


@cases("flags, environ", {"flag": (["--no-reconcile"], {}), "variable": ([], {"RECONCILE": "0"})})
def test_reconciliation_can_be_skipped(run: Run, flags: list[str], environ: Any) -> None:
    result = run(*flags, partner=WITH_UNLISTED, **environ)
    assert_instances(result, 1)
    assert "Not reconciled" in result.stdout
