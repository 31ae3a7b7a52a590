"""The stand-in answers what is published of the API, and what it makes up."""

from __future__ import annotations

import subprocess
import sys

import pytest
import requests
from conftest import ROOT, environment, table
from rafay_simulator import DEFAULT_KEY, PARTNER_KEY, Simulator

KEYS = {"x-api-key": DEFAULT_KEY, "X-RAFAY-API-KEYID": PARTNER_KEY}
ORGANIZATIONS = "/auth/v1/organizations"
USAGE = """/apis/billing.envmgmt.io/v1/metrics/partner/instance/kind/compute/usage\
?range_from=2026-06-01T00%3A00%3A00Z&range_to=2026-06-30T10%3A20%3A46.123Z"""
# What is asked for, where the answer has a field, and what it is.
FIELDS = """
kind          | {usage}&offset=            | kind | compute
start         | {usage}&offset=            | range_from | 2026-06-01T00:00:00Z
end           | {usage}&offset=            | range_to | 2026-06-30T10:20:46Z
count         | {usage}&offset=            | count | 32
offset, bare  | {usage}&offset             | offset | 0
limit, absent | {usage}&offset             | limit | 10
limit         | {usage}&limit=400          | limit | 400
offset        | {usage}&offset=31          | offset | 31
instance      | {usage}&limit=1            | instance_usage_data 0 instance_name | sim-cluster
hours         | {usage}&offset=31          | instance_usage_data 0 usage | 706.35h
quantity      | {usage}&limit=1            | instance_usage_data 0 parameters 2 name | storage_size
metered hours | {usage}&limit=1            | instance_usage_data 0 parameters 2 usage | 2825384.44h
no label      | {usage}&limit=1            | instance_usage_data 0 parameters 2 is_label | False
label 1       | {usage}&offset=31          | instance_usage_data 0 parameters 0 name | CPU
label 2       | {usage}&offset=31          | instance_usage_data 0 parameters 1 name | Disk
label 3       | {usage}&offset=31          | instance_usage_data 0 parameters 2 name | ServiceID
label 4       | {usage}&offset=31          | instance_usage_data 0 parameters 3 name | GPU
label 5       | {usage}&offset=31          | instance_usage_data 0 parameters 4 name | Memory
label         | {usage}&offset=31          | instance_usage_data 0 parameters 0 is_label | True
label's value | {usage}&offset=31          | instance_usage_data 0 parameters 0 label_value | 24
label's hours | {usage}&offset=31          | instance_usage_data 0 parameters 0 usage | 706.35h
tenants       | {tenants}?limit=3          | count | 7
customer no.  | {tenants}?limit=3&offset=3 | results 0 external_id | CRM-2077
next page     | {tenants}?limit=3&offset=3 | next | /auth/v1/organizations?limit=3&offset=6
last page     | {tenants}?limit=3&offset=6 | next | None
"""


@table("target, where, value", FIELDS)
def test_a_request_is_answered(stand_in: Simulator, target: str, where: str, value: str) -> None:
    stand_in.reset()
    path = target.format(usage=USAGE, tenants=ORGANIZATIONS)
    found = requests.get(stand_in.url + path, headers=KEYS, timeout=10).json()
    for name in where.split():
        found = found[int(name) if name.isdecimal() else name]
    assert str(found) == value


@pytest.mark.parametrize("target", [USAGE, ORGANIZATIONS])
def test_a_missing_key_is_refused(stand_in: Simulator, target: str) -> None:
    assert requests.get(stand_in.url + target, timeout=10).status_code == 401


def run_stand_in(*command: str) -> subprocess.CompletedProcess[str]:
    """Run the stand-in as a command."""
    return subprocess.run(
        [sys.executable, f"{ROOT}/tests/rafay_simulator.py", *command],
        env=environment({}),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_command_gets_the_settings_and_its_status_is_passed_on() -> None:
    done = run_stand_in("sh", "-c", 'echo "$PARTNER_API_KEY"; exit 3')
    assert done.stdout == f"{PARTNER_KEY}\n"
    assert done.returncode == 3


def test_without_a_command_usage_is_printed() -> None:
    done = run_stand_in()
    assert done.stderr.startswith("usage: ")
    assert done.returncode == 2
