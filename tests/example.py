"""Records as the API sends them, and a small partner whose every cell is known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from rafay_simulator import Json, Partner, Records, organization

NOW = "2026-07-01T00:00:00Z"
RAW, SORTED = "ncp-metrics-07012026-000000.csv", "ncp-metrics-sorted-07012026-000000.csv"
PRICES = "profile,hourly_rate\ngpu,2.50\nfree,0\nnotebook,0.333\n"


def usage(organization_id: str, instance: str, profile: str, hours: str, **more: Any) -> Json:
    """Return the record of an instance, whose id is its name with `id-` in front."""
    return {
        "instance_organization_id": organization_id,
        "instance_organization_name": "as the record says",
        "instance_project_name": "research",
        "profile_name": profile,
        "instance_id": f"id-{instance}",
        "instance_name": instance,
        "created_at": "2026-06-02T08:51:41Z",
        "usage": hours,
        **more,
    }


def label(name: str, value: Any, hours: str = "1.00h") -> Json:
    """Return a parameter that describes an instance."""
    return {"name": name, "usage": hours, "is_label": True, "label_value": value}


def quantity(name: str, hours: str, **more: Any) -> Json:
    """Return a parameter that is metered: its hours are quantity x hours."""
    return {"name": name, "usage": hours, "is_label": False, **more}


def fixed(compute: Iterable[Json] = (), service: Iterable[Json] = ()) -> Records:
    """Return a function that serves records as they are, whatever the range asked for."""
    given: dict[tuple[str, str | None], list[Json]] = defaultdict(list)
    for kind, records_of_kind in (("compute", compute), ("service", service)):
        for record in records_of_kind:
            given[kind, None].append(record)
            given[kind, str(record.get("instance_organization_id"))].append(record)
    return lambda kind, start, end, only: given[kind, only]


def book(columns: str, lines: str) -> str:
    """Return a price book of `gpu,1; vm,2`; blank cells at the end of a line may be left out."""
    text = columns
    for line in lines.split("; "):
        missing = columns.count(",") - line.count(",")
        text += f"\n{line}{',' * missing}"
    return text


ACME = organization("o1", "Acme")
BETA = organization("o2", "Beta", active=False)  # what it used is billed all the same


def tenants(
    *compute: Json, service: Sequence[Json] = (), listed: Sequence[Json] = (ACME, BETA)
) -> Partner:
    """Return a partner with these records, of Acme (o1) and Beta (o2) unless others are listed."""
    return Partner(listed, fixed(compute, service))


SMALL = tenants(
    usage(
        "o2", "train-2", "gpu", "20.59h", parameters=[label("GPU", "1"), quantity("GB", "1200h")]
    ),
    usage("o2", "train-1", "gpu", "0.01h", status="running"),
    usage("o1", "=HYPERLINK()", "free", "5h", parameters=None),
    usage("o4", "a", "gpu", "", raw_usage=0.125, deleted_at="2026-06-03T00:00:00Z"),
    service=[usage("o1", "lab", "notebook", "10.50h")],
    listed=[
        organization("o2", "northwind", external_id="C-2"),
        organization("o3", "Empty"),
        organization("o1", "Fabrikam, Inc."),
        organization("o4", 'Ørsted "Øst"'),
    ],
)
# What it is billed with PRICES: instance, hours and amount of each line, in the API's order.
BILLED = [
    "train-2 20.59 51.48",
    "train-1 0.01 0.03",
    "'=HYPERLINK() 5.00 0.00",
    "lab 10.50 3.50",
    "a 0.13 0.33",
]
# And the files, cell by cell.
HEADER = """organization,organization_id,external_id,project,profile_type,profile,instance,\
instance_id,status,created_at,parameters,period_start,period_end,charge,dimension,usage_hours,\
billing_rate,billing_amount,currency
"""
NORTHWIND_2 = """northwind,o2,C-2,research,compute,gpu,train-2,id-train-2,,2026-06-02T08:51:41Z,\
GPU=1; GB=1200.00h,2026-06-01T00:00:00Z,2026-07-01T00:00:00Z,usage,instance,20.59,2.50,51.48,USD
"""
NORTHWIND_1 = """northwind,o2,C-2,research,compute,gpu,train-1,id-train-1,running,\
2026-06-02T08:51:41Z,,2026-06-01T00:00:00Z,2026-07-01T00:00:00Z,usage,instance,0.01,2.50,0.03,USD
"""
FABRIKAM = """"Fabrikam, Inc.",o1,,research,compute,free,'=HYPERLINK(),id-=HYPERLINK(),,\
2026-06-02T08:51:41Z,,2026-06-01T00:00:00Z,2026-07-01T00:00:00Z,usage,instance,5.00,0,0.00,USD
"Fabrikam, Inc.",o1,,research,service,notebook,lab,id-lab,,\
2026-06-02T08:51:41Z,,2026-06-01T00:00:00Z,2026-07-01T00:00:00Z,usage,instance,10.50,0.333,3.50,USD
"""
ORSTED = '''"Ørsted ""Øst""",o4,,research,compute,gpu,a,id-a,deleted,\
2026-06-02T08:51:41Z,,2026-06-01T00:00:00Z,2026-07-01T00:00:00Z,usage,instance,0.13,2.50,0.33,USD
'''
FILES = {
    RAW: HEADER + NORTHWIND_2 + NORTHWIND_1 + FABRIKAM + ORSTED,
    SORTED: HEADER + FABRIKAM + NORTHWIND_1 + NORTHWIND_2 + ORSTED,
}
