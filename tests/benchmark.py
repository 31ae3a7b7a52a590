"""Measure ncp_metrics.py: python tests/benchmark.py [RUNS [OTHER_CHECKOUT]].

The yardstick is what one would write in an hour: one session, one page after the other, floats, no
checks, the same two files. The other checkout may hold an earlier version. All run in turn against
the stand-in, in this process. Figures are medians; times depend on the machine, ratios hardly.
"""

from __future__ import annotations

import csv
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any, NamedTuple

import requests
from example import fixed, usage
from rafay_simulator import Instance, Json, Partner, Simulator, organization

START, END = "2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z"
PROFILES = ["h100-x1", "h100-x8", "a100-x1", "l40s-x1"]
PAGE = 400


def get_pages(url: str, name: str, headers: Mapping[str, str], **query: str) -> Iterator[Json]:
    """Yield the rows of a list."""
    offset = 0
    with requests.Session() as session:
        while True:
            params: Any = {**query, "limit": PAGE, "offset": offset}
            answer = session.get(url, params=params, headers=headers).json()
            yield from answer[name]
            offset += PAGE
            if offset >= answer["count"]:
                return


def yardstick(environ: Mapping[str, str]) -> None:
    """Bill the usage in the simplest way."""
    console = environ["RAFAY_CONSOLE_URL"]
    with open(environ["PRICING_FILE"], encoding="utf-8") as file:
        prices = {row["profile"]: float(row["hourly_rate"]) for row in csv.DictReader(file)}
    partner_key = {"X-RAFAY-API-KEYID": environ["PARTNER_API_KEY"]}
    default_key = {"x-api-key": environ["RAFAY_DEFAULT_API_KEY"]}
    path = "/apis/billing.envmgmt.io/v1/metrics/partner/instance/kind/{}/usage"
    rows = []
    for tenant in get_pages(f"{console}/auth/v1/organizations", "results", partner_key):
        for kind in ("compute", "service"):
            query = {"range_from": START, "range_to": END, "instance_organization_id": tenant["id"]}
            url = console + path.format(kind)
            for record in get_pages(url, "instance_usage_data", default_key, **query):
                hours = float(record["usage"].rstrip("h"))
                rate = prices[record["profile_name"]]
                parameters = [f"{each['name']}={each['usage']}" for each in record["parameters"]]
                row = [
                    tenant["name"],
                    tenant["id"],
                    record["instance_project_name"],
                    kind,
                    record["profile_name"],
                    record["instance_name"],
                    record["instance_id"],
                    record["created_at"],
                    "; ".join(parameters),
                    START,
                    END,
                    hours,
                    rate,
                    round(hours * rate, 2),
                ]
                rows.append(row)
    for name in ("ncp-metrics.csv", "ncp-metrics-sorted.csv"):
        with open(name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        rows.sort(key=lambda row: (row[0].casefold(), *row[1:7]))


def make_partner(tenants: int, instances: int) -> Partner:
    """Return a partner with so many tenants, each with so many compute instances."""
    june = [datetime.fromisoformat(text.replace("Z", "+00:00")) for text in (START, END)]
    listed = [organization(f"t{number:05}", f"Tenant {number}") for number in range(tenants)]
    records = []
    for number in range(tenants * instances):
        fields = usage(
            f"t{number // instances:05}", f"{number:012}", PROFILES[number % len(PROFILES)], ""
        )
        duty = Decimal(number % 72_000) / 72_000
        instance = Instance(fields, duty, {"GPU": "1"}, {"storage_size": "100"})
        records.append(instance.record(*june))
    return Partner(listed, fixed(records))


def make_book(contracts: int) -> str:
    """Return a price book with list prices, and so many contracts, four a tenant."""
    lines = ["profile,hourly_rate,organization"]
    lines += [f"{profile},2.50," for profile in PROFILES]
    for number in range(contracts):
        lines.append(f"{PROFILES[number % 4]},1.50,t{number // 4:05}")
    return "\n".join(lines)


class Cost(NamedTuple):
    """What a command took: wall and CPU seconds, peak memory in MiB."""

    wall: float
    cpu: float
    memory: float


def run(command: list[str], environ: Mapping[str, str], prices: str) -> Cost:
    """Run a command in a directory of its own."""
    with tempfile.TemporaryDirectory() as directory:
        book = Path(directory, "prices")
        book.write_text(prices, encoding="utf-8")
        own = {**os.environ, **environ, "PRICING_FILE": str(book)}
        began = time.perf_counter()
        process = Popen(command, cwd=directory, env=own, stdout=DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{command} ended with status {process.returncode}")
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def main() -> None:
    """Print the figures."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    commands = {"yardstick": [sys.executable, __file__, "--yardstick"]}
    checkouts = {"ours": Path(__file__).parents[1]}
    if len(sys.argv) > 2:
        checkouts["before"] = Path(sys.argv[2]).absolute()
    for name, checkout in checkouts.items():
        commands[name] = [sys.executable, str(checkout / "tests/driver.py"), END, "--"]
    for tenants, instances, latency, contracts in (
        (120, 5, 0.1, 0),
        (1, 20_000, 0.1, 0),
        (160, 500, 0.0, 0),
        (5_000, 40, 0.0, 20_000),
    ):
        print(f"{tenants} tenants of {instances}, {latency} s a call, {contracts} contracts")
        costs: dict[str, list[Cost]] = {name: [] for name in commands}
        with Simulator() as simulator:
            simulator.reset(make_partner(tenants, instances), latency=latency)
            for _ in range(runs):
                for name, command in commands.items():
                    prices = make_book(0 if name == "yardstick" else contracts)
                    costs[name].append(run(command, simulator.environ, prices))
        for name, each in costs.items():
            wall, cpu, memory = map(statistics.median, zip(*each))
            print(
                f"  {name:10} wall {wall:6.2f} s   CPU {cpu:6.2f} s   {memory:4.0f} MiB", flush=True
            )


if __name__ == "__main__":
    if sys.argv[1:] == ["--yardstick"]:
        yardstick(os.environ)
    else:
        main()
