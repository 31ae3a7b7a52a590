"""A small partner whose every cell is known, and the two files that it is billed with."""

from __future__ import annotations

from typing import Any

from rafay_simulator import Partner, fixed, organization

NOW = "2026-07-01T00:00:00Z"
RAW, SORTED = "ncp-metrics-07012026-000000.csv", "ncp-metrics-sorted-07012026-000000.csv"

HEADER = (
    "organization,organization_id,external_id,project,profile_type,profile,instance,instance_id,"
    "status,created_at,parameters,period_start,period_end,charge,dimension,usage_hours,"
    "billing_rate,billing_amount,currency"
)
PERIOD = "2026-06-01T00:00:00Z,2026-07-01T00:00:00Z"
PRICES = "profile,hourly_rate\ngpu,2.50\nfree,0\nnotebook,0.333\n"


def usage(organization_id: str, instance: str, profile: str, hours: str, **more: Any) -> Any:
    """Return a usage record as the API sends it."""
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


PARAMETERS = [
    {"name": "GPU", "usage": "20.59h", "is_label": True, "raw_usage": 20.59, "label_value": "1"},
    {"name": "storage_size", "usage": "1200.00h", "is_label": False, "raw_usage": 1200.0},
]
SMALL = Partner(
    [
        organization("o2", "northwind", external_id="C-2"),
        organization("o3", "Empty"),
        organization("o1", "Fabrikam, Inc."),
        organization("o4", 'Ørsted "Øst"'),
    ],
    fixed(
        compute=[
            usage("o2", "train-2", "gpu", "20.59h", parameters=PARAMETERS),
            usage("o2", "train-1", "gpu", "0.01h", status="running"),
            usage("o1", "=HYPERLINK()", "free", "5h", parameters=None),
            usage("o4", "a", "gpu", "", raw_usage=0.125, deleted_at="2026-06-03T00:00:00Z"),
        ],
        service=[usage("o1", "lab", "notebook", "10.50h")],
    ),
)
BILLED = f"{PERIOD},usage,instance"
RAW_LINES = [
    f"northwind,o2,C-2,research,compute,gpu,train-2,id-train-2,,2026-06-02T08:51:41Z,"
    f"GPU=1; storage_size=1200.00h,{BILLED},20.59,2.50,51.48,USD",
    f"northwind,o2,C-2,research,compute,gpu,train-1,id-train-1,running,2026-06-02T08:51:41Z,,"
    f"{BILLED},0.01,2.50,0.03,USD",
    f'"Fabrikam, Inc.",o1,,research,compute,free,\'=HYPERLINK(),id-=HYPERLINK(),,'
    f"2026-06-02T08:51:41Z,,{BILLED},5.00,0,0.00,USD",
    f'"Fabrikam, Inc.",o1,,research,service,notebook,lab,id-lab,,2026-06-02T08:51:41Z,,{BILLED},'
    f"10.50,0.333,3.50,USD",
    f'"Ørsted ""Øst""",o4,,research,compute,gpu,a,id-a,deleted,2026-06-02T08:51:41Z,,{BILLED},'
    f"0.13,2.50,0.33,USD",
]
SORTED_LINES = [RAW_LINES[2], RAW_LINES[3], RAW_LINES[1], RAW_LINES[0], RAW_LINES[4]]


def text(lines: list[str]) -> str:
    """Return the text of a file with these lines."""
    return "".join(f"{line}\n" for line in [HEADER, *lines])


FILES = {RAW: text(RAW_LINES), SORTED: text(SORTED_LINES)}
