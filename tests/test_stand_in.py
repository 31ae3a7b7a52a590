"""The stand-in answers the requests of Rafay's documents and public collections."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Any

import pytest
import requests
from rafay_simulator import DEFAULT_KEY, PARTNER_KEY, Behaviour, Simulator

USAGE = "/apis/billing.envmgmt.io/v1/metrics/partner/{}/kind/{}/usage?range_from={}&range_to={}"
JUNE = ("2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z")
COMPUTE, PROFILES = (USAGE.format(by, "compute", *JUNE) for by in ("instance", "profile"))
LIST = "/auth/v1/organizations"
KEYS = {"x-api-key": DEFAULT_KEY, "X-RAFAY-API-KEYID": PARTNER_KEY}


def get(stand_in: Simulator, target: str, behaviour: Behaviour | None = None) -> Any:
    """Return the JSON of an answer."""
    stand_in.reset(behaviour=behaviour)
    return requests.get(stand_in.url + target, headers=KEYS, timeout=10).json()


@pytest.mark.parametrize("kind", ["compute", "service"])
@pytest.mark.parametrize("by", ["instance", "profile"])
@pytest.mark.parametrize(
    ("more", "limit"),
    [("", 10), ("&limit=400&instance_organization_id=", 400), ("&limit=100&offset", 100)],
)
def test_usage_requests_are_answered(
    stand_in: Simulator, by: str, kind: str, more: str, limit: int
) -> None:
    times = ("2026-06-01T00%3A00%3A00.000Z", "2026-06-30T10%3A20%3A46.123Z")
    answer = get(stand_in, USAGE.format(by, kind, *times) + more)
    assert len(answer.pop(f"{by}_usage_data")) == min(limit, answer.pop("count"))
    range_ = {"range_from": "2026-06-01T00:00:00Z", "range_to": "2026-06-30T10:20:46Z"}
    ids = {"partner_id": "q1w2e3r", "organization_id": "zx9cv8b"}
    assert answer == {"kind": kind, "offset": 0, "limit": limit, **ids, **range_}


def test_usage_by_profile_is_the_total_of_its_instances(stand_in: Simulator) -> None:
    totals: dict[str, Decimal] = {}
    for each in get(stand_in, f"{COMPUTE}&limit=400")["instance_usage_data"]:
        total = totals.get(each["profile_name"], Decimal(0))
        totals[each["profile_name"]] = total + Decimal(each["usage"].rstrip("h"))
    profiles = get(stand_in, f"{PROFILES}&limit=400")["profile_usage_data"]
    assert {each["profile_name"]: Decimal(each["usage"][:-1]) for each in profiles} == totals


def test_one_tenant_has_the_five_labels_that_rafay_recorded(stand_in: Simulator) -> None:
    first, second = get(stand_in, f"{COMPUTE}&offset=30&limit=2")["instance_usage_data"]
    assert (first["usage"], second["usage"]) == ("468.00h", "720.00h")
    labels = first["parameters"]
    assert list(labels[0]) == ["name", "usage", "is_label", "raw_usage", "label_value"]
    values = {label.pop("name"): label.pop("label_value") for label in labels}
    assert uuid.UUID(values.pop("ServiceID"))
    assert values == {"CPU": "24", "Disk": "150", "GPU": "1", "Memory": "256"}
    assert labels == [{"usage": "468.00h", "is_label": True, "raw_usage": 468.0}] * 5


def test_a_quantity_has_the_fields_of_a_label_but_its_value(stand_in: Simulator) -> None:
    [first] = get(stand_in, f"{COMPUTE}&limit=1")["instance_usage_data"]
    quantity = first["parameters"][-1]
    assert list(quantity) == ["name", "usage", "is_label", "raw_usage"]
    assert list(quantity.values()) == ["storage_size", "2880000.00h", False, 2880000.0]


@pytest.mark.parametrize(("honoured", "first"), [(True, "train-22"), (False, "sim-cluster")])
def test_an_offset_can_be_ignored(stand_in: Simulator, honoured: bool, first: str) -> None:
    answer = get(stand_in, f"{COMPUTE}&offset=28", Behaviour(honour_offset=honoured))
    assert answer["instance_usage_data"][0]["instance_name"] == first


def test_a_capped_count_hides_no_record(stand_in: Simulator) -> None:
    answer = get(stand_in, f"{COMPUTE}&offset=20&limit=400", Behaviour(max_count=20))
    assert (answer["count"], len(answer["instance_usage_data"])) == (20, 12)


@pytest.mark.parametrize("target", [f"{LIST}/2mv8tzk", f"{LIST}/2mv8tzk/"])
def test_an_organization_is_read_by_its_id(stand_in: Simulator, target: str) -> None:
    flags = {"active": True, "approved": True, "is_default_org": False}
    more = {"external_id": "CRM-2077", "partner_id": "q1w2e3r", "settings": {"currency": "USD"}}
    assert get(stand_in, target) == {"id": "2mv8tzk", "name": "Fabrikam, Inc.", **flags, **more}


@pytest.mark.parametrize(
    ("query", "found"),
    [("name=ZEPH", "z9n4h6d"), ("external_id=0010042", "4kd82ma"), ("name&limit=1", "4kd82ma")],
)
def test_organizations_are_searched(stand_in: Simulator, query: str, found: str) -> None:
    assert [each["id"] for each in get(stand_in, f"{LIST}?{query}")["results"]] == [found]


def test_a_page_of_organizations_links_to_the_next(stand_in: Simulator) -> None:
    answer = get(stand_in, f"{LIST}?limit=3&offset=3")
    assert answer["next"] == f"{stand_in.url}{LIST}?limit=3&offset=6"
    assert get(stand_in, f"{LIST}?limit=3&offset=6")["next"] is None
    assert set(get(stand_in, LIST, Behaviour(next_link="absent"))) == {"count", "results"}


@pytest.mark.parametrize("target", [COMPUTE, PROFILES, LIST, f"{LIST}/2mv8tzk"])
def test_a_missing_key_is_refused(stand_in: Simulator, target: str) -> None:
    assert requests.get(stand_in.url + target, timeout=10).status_code == 401
