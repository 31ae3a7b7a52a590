"""How the pages of a list are followed, whichever way the unknowns of the API turn out."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rafay_simulator import Behaviour, Partner, Simulator, fixed, organization

import ncp_metrics
from ncp_metrics import (
    KINDS,
    ApiError,
    Client,
    Listing,
    Organization,
    Page,
    PageRequest,
    Period,
    Pool,
    Reader,
    Record,
    Screen,
    Usage,
    probe,
    read_listing,
    read_organizations,
    read_settings,
    read_usage,
)

ACME = Organization("4kd82ma", "Acme")
PERIOD = Period(
    datetime(2026, 6, 1, tzinfo=timezone.utc), datetime(2026, 7, 1, tzinfo=timezone.utc)
)
LISTING = Listing("compute", PERIOD, ACME)


def record(number: int, hours: str = "1.00") -> Record:
    """Return the record of an instance with this number."""
    return Record(ACME.id, "", "", "gpu", "", str(number), "", "", "", Decimal(hours), ())


class FakeList:
    """A list of so many records, served as the API might."""

    def __init__(self, records: list[Record], *, most: int = 400, count: str = "total") -> None:
        self.records = records
        self.most = most
        self.count = count
        self.requests = 0
        self.growth: list[Record] = []  # comes after the first answer

    def page(self, request: PageRequest) -> Page:
        """Answer a request for a page."""
        self.requests += 1
        limit = min(request.limit, self.most)
        rows = self.records[request.offset : request.offset + limit]
        counted = {"total": len(self.records), "page": len(rows), "absent": None}[self.count]
        self.records, self.growth = self.records + self.growth, []
        return Page(rows, counted)


def read(reader: Reader, fake: FakeList) -> list[Record]:
    """Drive a reader to its end."""
    try:
        asked = next(reader)
        while True:
            asked = reader.send([fake.page(request) for request in asked])
    except StopIteration as end:
        records: list[Record] = end.value
        return records


@given(
    size=st.integers(0, 60),
    most=st.integers(1, 70),
    count=st.sampled_from(["total", "page", "absent"]),
    data=st.data(),
)
def test_every_record_is_read_once_and_in_order_under_any_page_size_and_count(
    size: int, most: int, count: str, data: st.DataObject
) -> None:
    known = data.draw(st.booleans()) if count == "total" else False
    records = [record(number) for number in range(size)]
    assert read(read_listing(LISTING, known), FakeList(records, most=most, count=count)) == records


@pytest.mark.parametrize(
    ("size", "known", "count", "requests"),
    [
        pytest.param(0, True, "total", 1, id="an empty list costs one request"),
        pytest.param(0, False, "page", 1, id="also where count says nothing"),
        pytest.param(5, True, "total", 1, id="a page that completes the total is the last"),
        pytest.param(25, True, "total", 3, id="one request for each page"),
        pytest.param(25, False, "total", 3, id="a count above the page's rows is the total"),
        pytest.param(20, True, "total", 2, id="no request beyond a full last page"),
        pytest.param(25, False, "page", 4, id="without a total, up to the empty page"),
    ],
)
def test_pages_cost_as_few_requests_as_they_can(
    size: int, known: bool, count: str, requests: int
) -> None:
    fake = FakeList([record(number) for number in range(size)], most=10, count=count)
    read(read_listing(LISTING, known), fake)
    assert fake.requests == requests


def test_once_the_total_is_known_the_other_pages_are_asked_for_together() -> None:
    fake = FakeList([record(number) for number in range(35)], most=10)
    reader = read_listing(LISTING, True)
    first = next(reader)
    others = reader.send([fake.page(first[0])])
    assert [(request.offset, request.limit) for request in others] == [(10, 10), (20, 10), (30, 10)]


@pytest.mark.parametrize("count", ["total", "page", "absent"])
def test_a_list_that_grows_while_it_is_read_is_read_to_its_end(count: str) -> None:
    fake = FakeList([record(number) for number in range(25)], most=10, count=count)
    fake.growth = [record(number) for number in range(25, 45)]
    assert read(read_listing(LISTING, False), fake) == [record(number) for number in range(45)]


@pytest.mark.parametrize("count", ["total", "page", "absent"])
def test_a_record_that_comes_twice_on_a_page_counts_once(count: str) -> None:
    fake = FakeList([record(1), record(2), record(1), record(3)], most=3, count=count)
    assert read(read_listing(LISTING, False), fake) == [record(1), record(2), record(3)]


@pytest.mark.parametrize("count", ["total", "page", "absent"])
def test_a_record_that_stays_on_two_pages_is_an_error_since_another_may_be_missing(
    count: str,
) -> None:
    fake = FakeList([record(1), record(2), record(2), record(3)], most=2, count=count)
    with pytest.raises(ApiError, match=r"instance  \(2\) is listed twice: the list changes while"):
        read(read_listing(LISTING, False), fake)


def test_pages_that_overlap_are_no_matter_where_all_that_are_counted_have_come() -> None:
    class Overlapping(FakeList):
        def page(self, request: PageRequest) -> Page:
            return super().page(request._replace(offset=max(0, request.offset - 1)))

    fake = Overlapping([record(number) for number in range(25)], most=10)
    assert read(read_listing(LISTING, False), fake) == fake.records


@pytest.mark.parametrize("count", ["total", "page", "absent"])
def test_a_list_that_shrinks_while_it_is_read_is_read_again(count: str) -> None:
    class Shrinking(FakeList):
        def page(self, request: PageRequest) -> Page:
            if self.requests == 1:
                self.records = self.records[1:]
            return super().page(request)

    fake = Shrinking([record(number) for number in range(25)], most=10, count=count)
    if count == "total":
        assert read(read_listing(LISTING, False), fake) == fake.records
    else:  # nothing tells; the comparison with the whole partner does
        assert len(read(read_listing(LISTING, False), fake)) == 24


def test_a_server_whose_pages_are_of_different_size_is_read_one_page_after_the_other() -> None:
    class Uneven(FakeList):
        def page(self, request: PageRequest) -> Page:
            self.most = 10 if request.offset % 2 == 0 else 3
            return super().page(request)

    for count in ("total", "page", "absent"):
        fake = Uneven([record(number) for number in range(34)], count=count)
        assert read(read_listing(LISTING, False), fake) == fake.records


@pytest.mark.parametrize("count", ["total", "page", "absent"])
def test_a_record_that_is_lost_because_others_came_in_front_is_found_by_reading_again(
    count: str,
) -> None:
    class Moving(FakeList):
        """A new record comes in front after the first answer: one is seen twice, one never."""

        def page(self, request: PageRequest) -> Page:
            if self.requests == 1:
                self.records = [record(99), *self.records]
            return super().page(request)

    fake = Moving([record(number) for number in range(25)], most=10, count=count)
    assert read(read_listing(LISTING, False), fake) == fake.records


@pytest.mark.parametrize("count", ["page", "absent"])
def test_an_empty_page_that_counts_more_than_was_read_is_not_the_end(count: str) -> None:
    class Short(FakeList):
        def page(self, request: PageRequest) -> Page:
            page = super().page(request)
            return page if page.rows else Page([], 25)

    with pytest.raises(ApiError, match="only 10 of the 25 counted"):
        read(read_listing(LISTING, False), Short([record(n) for n in range(10)], count=count))


def test_a_record_that_is_seen_twice_with_different_content_is_an_error() -> None:
    fake = FakeList([record(1), record(2), record(2, "9.00")], most=2, count="page")
    with pytest.raises(ApiError, match=r"instance  \(2\) is listed twice, with different content"):
        read(read_listing(LISTING, False), fake)


def test_a_page_that_repeats_earlier_ones_is_an_error_and_no_endless_loop() -> None:
    fake = FakeList([record(1), record(2)] * 2, most=2, count="page")
    with pytest.raises(ApiError, match="the API ignores offset"):
        read(read_listing(LISTING, False), fake)


def test_a_list_that_falls_short_of_its_count_is_an_error() -> None:
    class Short(FakeList):
        def page(self, request: PageRequest) -> Page:
            return super().page(request)._replace(counted=len(self.records) + 1)

    with pytest.raises(ApiError, match="only 3 of the 4 counted"):
        read(read_listing(LISTING, True), Short([record(n) for n in range(3)]))


def test_as_many_pages_as_a_list_may_have_are_read_however_small_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ncp_metrics, "MAX_PAGES", 5)
    for count in ("total", "page"):
        fake = FakeList([record(number) for number in range(31)], most=10, count=count)
        assert read(read_listing(LISTING, False), fake) == fake.records


def test_a_list_without_an_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ncp_metrics, "MAX_PAGES", 5)
    for count in ("total", "page"):
        fake = FakeList([record(number) for number in range(70)], most=10, count=count)
        with pytest.raises(ApiError, match="more than 5 pages"):
            read(read_listing(LISTING, False), fake)


def partner_of(size: int) -> Partner:
    """Return a partner with one tenant that has so many instances, and one without."""
    usage = [
        {
            "instance_organization_id": ACME.id,
            "profile_name": "gpu",
            "instance_id": f"{number:04}",
            "usage": "1.00h",
        }
        for number in range(size)
    ]
    organizations = [organization(ACME.id, ACME.name), organization("none", "No Usage")]
    return Partner(organizations, fixed(compute=usage))


def read_all(simulator: Simulator, workers: int) -> list[Usage]:
    """Read all usage as the program does."""
    told, problems = read_settings({"org": []}, simulator.environ, PERIOD.end)
    assert not problems
    with Pool(Client(told), workers, Screen().progress) as pool:
        probe(pool, [(kind, PERIOD) for kind in KINDS])
        organizations = read_organizations(pool)
        return read_usage(
            pool, [Usage(o, kind, PERIOD, []) for o in organizations for kind in KINDS]
        )


@settings(deadline=None, max_examples=25)
@given(
    size=st.integers(0, 30),
    behaviour=st.builds(
        Behaviour,
        count=st.sampled_from(["total", "page", "absent"]),
        max_limit=st.integers(1, 40),
        empty=st.sampled_from(["list", "null", "absent"]),
        organization_list=st.sampled_from(["results", "items"]),
        slash_redirect=st.booleans(),
        gzip=st.booleans(),
        chunked=st.booleans(),
    ),
    workers=st.integers(1, 8),
)
def test_over_http_every_record_is_read_once_whatever_the_api_is_like(
    size: int, behaviour: Behaviour, workers: int
) -> None:
    with Simulator(partner_of(size), behaviour) as simulator:
        usages = read_all(simulator, workers)
    assert [(usage.organization, usage.kind, len(usage.records)) for usage in usages] == [
        (ACME, "compute", size),
        (ACME, "service", 0),
        (Organization("none", "No Usage"), "compute", 0),
        (Organization("none", "No Usage"), "service", 0),
    ]
    assert [each.instance_id for each in usages[0].records] == [f"{n:04}" for n in range(size)]


def test_no_more_requests_are_in_flight_than_workers() -> None:
    with Simulator(partner_of(300), Behaviour(max_limit=10), latency=0.02) as simulator:
        read_all(simulator, workers=3)
    assert simulator.peak == 3
