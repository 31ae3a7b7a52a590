"""Measure ncp_metrics.py beside a serial yardstick: python tests/benchmark.py [RUNS].

Both read the same rendered answers of the stand-in controller, which runs in a process of its own.
The yardstick is what one would write in an hour: one session, one page after the other, floats, no
checks, the same two files. Figures are medians; times depend on the machine, ratios hardly.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import requests
from rafay_simulator import Behaviour, Partner, Simulator, fixed, organization

HERE = Path(__file__).parent
START, END = "2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z"
OURS = [sys.executable, str(HERE / "driver.py"), END, "--"]
YARDSTICK = [sys.executable, __file__, "--yardstick"]
LATENCY = 0.1
WORKERS = 8
PAGE = 400
PRICES = {"h100-x1": 2.5, "h100-x8": 19.2, "a100-x1": 1.45, "l40s-x1": 0.85, "cpu-8": 0.192}
PROFILES = tuple(PRICES)


def yardstick(environ: dict[str, str]) -> None:
    """Bill the usage in the simplest way."""
    session = requests.Session()
    console = environ["RAFAY_CONSOLE_URL"]

    def pages(path: str, name: str, header: dict[str, str], **query: str) -> Iterator[Any]:
        offset = 0
        while True:
            answer = session.get(
                console + path,
                params={**query, "limit": str(PAGE), "offset": str(offset)},
                headers=header,
            ).json()
            yield from answer[name]
            offset += len(answer[name])
            if offset >= answer["count"]:
                return

    with open(environ["PRICING_FILE"], encoding="utf-8") as file:
        prices = {row["profile"]: float(row["hourly_rate"]) for row in csv.DictReader(file)}
    rows = []
    partner = {"X-RAFAY-API-KEYID": environ["PARTNER_API_KEY"]}
    default = {"x-api-key": environ["RAFAY_DEFAULT_API_KEY"]}
    for tenant in pages("/auth/v1/organizations", "results", partner):
        for kind in ("compute", "service"):
            for record in pages(
                f"/apis/billing.envmgmt.io/v1/metrics/partner/instance/kind/{kind}/usage",
                "instance_usage_data",
                default,
                range_from=START,
                range_to=END,
                instance_organization_id=tenant["id"],
            ):
                hours = float(record["usage"].rstrip("h"))
                rate = prices[record["profile_name"]]
                rows.append(
                    [
                        tenant["name"],
                        tenant["id"],
                        record["instance_project_name"],
                        kind,
                        record["profile_name"],
                        record["instance_name"],
                        record["instance_id"],
                        record.get("status", ""),
                        record["created_at"],
                        "; ".join(
                            f"{each['name']}={each.get('label_value', each['usage'])}"
                            for each in record["parameters"]
                        ),
                        START,
                        END,
                        hours,
                        rate,
                        round(hours * rate, 2),
                        "USD",
                    ]
                )
    for name in ("ncp-metrics", "ncp-metrics-sorted"):
        with open(f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        rows.sort(key=lambda row: (row[0].casefold(), *row[1:7]))


def record(tenant: dict[str, Any], number: int) -> dict[str, Any]:
    """Return a usage record like those of Rafay's documents."""
    hours = number % 72000 / 100
    return {
        "instance_organization_id": tenant["id"],
        "instance_organization_name": tenant["name"],
        "instance_project_id": f"9sk{number % 50:04}",
        "instance_project_name": f"project-{number % 50}",
        "profile_id": f"019c2891-0000-7aec-a429-{number % 5:012}",
        "profile_name": PROFILES[number % 5],
        "instance_id": f"019c510c-0000-707d-aef7-{number:012}",
        "instance_name": f"train-{number}",
        "created_at": f"2026-05-{1 + number % 28:02}T08:51:{number % 60:02}Z",
        "parameters": [
            {
                "name": "GPU",
                "usage": f"{hours:.2f}h",
                "is_label": True,
                "raw_usage": hours + 0.001234,
                "label_value": "1",
            },
            {
                "name": "storage_size",
                "usage": f"{hours * 100:.2f}h",
                "is_label": False,
                "raw_usage": hours * 100,
            },
        ],
        "usage": f"{hours:.2f}h",
        "raw_usage": hours + 0.001234,
        "start_time": START,
        "end_time": END,
    }


def partner(tenants: int, instances: int) -> Partner:
    """Return a partner with so many tenants, each with so many compute instances."""
    organizations = [organization(f"t{n:05}", f"Tenant {n}") for n in range(tenants)]
    numbers = iter(range(tenants * instances))
    return Partner(
        organizations,
        fixed([record(each, next(numbers)) for each in organizations for _ in range(instances)]),
    )


def serve(tenants: int, instances: int, latency: float, pipe: Connection) -> None:
    """Serve a partner, rendering each answer once, until told to stop."""
    with Simulator(partner(tenants, instances), Behaviour(rendered=True), latency=latency) as it:
        pipe.send(it.environ)
        pipe.recv()


@contextmanager
def simulator(tenants: int, instances: int, latency: float) -> Iterator[dict[str, str]]:
    """Run the simulator in a process of its own; give its settings."""
    ours, its = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(tenants, instances, latency, its))
    process.start()
    with tempfile.TemporaryDirectory() as directory:
        book = Path(directory) / "prices.csv"
        rates = "".join(f"{profile},{rate}\n" for profile, rate in PRICES.items())
        book.write_text(f"profile,hourly_rate\n{rates}")
        try:
            settings = {"WORKERS": str(WORKERS), "PRICING_FILE": str(book)}
            yield {**os.environ, **ours.recv(), **settings}
        finally:
            ours.send(None)
            process.join()


@dataclass
class Cost:
    """What one command took: wall and CPU seconds, peak memory in MiB."""

    wall: float
    cpu: float
    memory: float


def run(command: list[str], environ: dict[str, str]) -> Cost:
    """Run a command in a directory of its own."""
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=directory, env=environ, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with status {process.returncode}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def measure(
    ours: list[str], other: list[str], environ: dict[str, str], runs: int
) -> tuple[Cost, Cost]:
    """Return the medians of both commands, run in turn, after a run of each to warm up."""
    costs: tuple[list[Cost], list[Cost]] = ([], [])
    for _ in range(runs + 1):
        for command, taken in zip((ours, other), costs):
            taken.append(run(command, environ))
    names = ("wall", "cpu", "memory")
    median_ours, median_other = (
        Cost(*(statistics.median(getattr(cost, name) for cost in taken[1:]) for name in names))
        for taken in costs
    )
    return median_ours, median_other


def main() -> None:
    """Print the table."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(f"CPython {platform.python_version()}, {os.cpu_count()} cores, medians of {runs} runs\n")
    print("| what | ours | yardstick | ratio | limit | ratio to it |")
    print("| --- | --- | --- | --- | --- | --- |")
    for what, tenants, instances in (
        ("120 tenants of 5", 120, 5),
        ("1 tenant of 20,000", 1, 20000),
    ):
        pages = tenants * (-(-instances // PAGE) + 1)
        limit = pages * LATENCY / WORKERS
        with simulator(tenants, instances, LATENCY) as environ:
            ours, other = measure(OURS, YARDSTICK, environ, runs)
        print(
            f"| {what}, 100 ms: wall | {ours.wall:.2f} s | {other.wall:.2f} s "
            f"| {ours.wall / other.wall:.2f} | {limit:.2f} s | {ours.wall / limit:.2f} |"
        )
    with simulator(160, 500, 0) as environ:
        ours, other = measure(OURS, YARDSTICK, environ, runs)
    for what, unit, mine, theirs in (
        ("CPU", "s", ours.cpu, other.cpu),
        ("peak memory", "MiB", ours.memory, other.memory),
    ):
        print(
            f"| 80,000 records, no latency: {what} | {mine:.2f} {unit} | {theirs:.2f} {unit} "
            f"| {mine / theirs:.2f} | | |"
        )
    script = str(HERE.parent / "ncp_metrics.py")
    bare = [sys.executable, "-c", "import requests"]
    ours, other = measure([sys.executable, script, "--help"], bare, dict(os.environ), 4 * runs)
    print(
        f"| start: `--help`, `import requests` | {ours.wall:.3f} s | {other.wall:.3f} s "
        f"| {ours.wall / other.wall:.2f} | | |"
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["--yardstick"]:
        yardstick(dict(os.environ))
    else:
        main()
