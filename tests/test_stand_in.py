"""The stand-in answers the requests of Rafay's documents and public collections."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from rafay_simulator import DEFAULT_KEY, PARTNER_KEY, Behaviour, Simulator

USAGE = (
    "/apis/billing.envmgmt.io/v1/metrics/partner/instance/kind/{}/usage?range_from={}&range_to={}"
)
JUNE = ("2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z")
COMPUTE = USAGE.format("compute", *JUNE)
LIST = "/auth/v1/organizations"
KEYS = {"x-api-key": DEFAULT_KEY, "X-RAFAY-API-KEYID": PARTNER_KEY}


def get(stand_in: Simulator, target: str, behaviour: Behaviour | None = None) -> Any:
    """Return the JSON of an answer."""
    stand_in.reset(behaviour=behaviour)
    return requests.get(stand_in.url + target, headers=KEYS, timeout=10).json()


@pytest.mark.parametrize("kind", ["compute", "service"])
@pytest.mark.parametrize(
    ("more", "limit"),
    [("", 10), ("&limit=400&instance_organization_id=", 400), ("&limit=100&offset", 100)],
)
def test_usage_requests_are_answered(stand_in: Simulator, kind: str, more: str, limit: int) -> None:
    times = ("2026-06-01T00%3A00%3A00.000Z", "2026-06-30T10%3A20%3A46.123Z")
    answer = get(stand_in, USAGE.format(kind, *times) + more)
    assert len(answer.pop("instance_usage_data")) == min(limit, answer.pop("count"))
    range_ = {"range_from": "2026-06-01T00:00:00Z", "range_to": "2026-06-30T10:20:46Z"}
    ids = {"partner_id": "q1w2e3r", "organization_id": "zx9cv8b"}
    assert answer == {"kind": kind, "offset": 0, "limit": limit, **ids, **range_}


def test_one_tenant_has_numeric_labels_only(stand_in: Simulator) -> None:
    first, second = get(stand_in, f"{COMPUTE}&offset=30&limit=2")["instance_usage_data"]
    assert (first["usage"], second["usage"]) == ("468.00h", "720.00h")
    labels = [("CPU", "24"), ("Disk", "150"), ("GPU", "1"), ("Memory", "256")]
    hours = {"usage": "468.00h", "raw_usage": 468.0, "is_label": True}
    assert first["parameters"] == [{"name": n, **hours, "label_value": v} for n, v in labels]


def test_a_capped_count_hides_no_record(stand_in: Simulator) -> None:
    answer = get(stand_in, f"{COMPUTE}&offset=20&limit=400", Behaviour(max_count=20))
    assert (answer["count"], len(answer["instance_usage_data"])) == (20, 12)


def test_a_page_of_organizations_links_to_the_next(stand_in: Simulator) -> None:
    answer = get(stand_in, f"{LIST}?limit=3&offset=3")
    assert answer["next"] == f"{stand_in.url}{LIST}?limit=3&offset=6"
    assert get(stand_in, f"{LIST}?limit=3&offset=6")["next"] is None
    assert set(get(stand_in, LIST, Behaviour(next_link="absent"))) == {"count", "results"}


@pytest.mark.parametrize("target", [COMPUTE, LIST])
def test_a_missing_key_is_refused(stand_in: Simulator, target: str) -> None:
    assert requests.get(stand_in.url + target, timeout=10).status_code == 401
