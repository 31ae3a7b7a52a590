"""Measure ncp_metrics.py: python tests/benchmark.py [RUNS [OTHER_CHECKOUT]].

What is compared runs in turn against the same rendered answers of the stand-in controller, which
runs in a process of its own. The yardstick is what one would write in an hour: one session, one
page after the other, floats, no checks, the same two files. The other checkout may hold an earlier
version. Figures are medians; times depend on the machine, ratios hardly.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from decimal import Decimal
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any, NamedTuple

import requests
from rafay_simulator import Behaviour, Fault, Instance, Partner, Request, Simulator, fixed, iso

JUNE = [datetime(2026, month, 1, tzinfo=timezone.utc) for month in (6, 7)]
START, END = map(iso, JUNE)
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
            params = {**query, "limit": str(PAGE), "offset": str(offset)}
            answer = session.get(console + path, params=params, headers=header).json()
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
            path = f"/apis/billing.envmgmt.io/v1/metrics/partner/instance/kind/{kind}/usage"
            query = {"range_from": START, "range_to": END, "instance_organization_id": tenant["id"]}
            for record in pages(path, "instance_usage_data", default, **query):
                hours = float(record["usage"].rstrip("h"))
                rate = prices[record["profile_name"]]
                texts = ("instance_project_name", "profile_name", "instance_name", "instance_id")
                labels = (
                    (p["name"], p.get("label_value", p["usage"])) for p in record["parameters"]
                )
                parameters = "; ".join(f"{name}={value}" for name, value in labels)
                row = [tenant["name"], tenant["id"], *(record[text] for text in texts), kind]
                row += [record.get("status", ""), record["created_at"], parameters, START, END]
                rows.append([*row, hours, rate, round(hours * rate, 2), "USD"])
    for name in ("ncp-metrics", "ncp-metrics-sorted"):
        with open(f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        rows.sort(key=lambda row: (row[0].casefold(), *row[1:7]))


def instance(number: int, tenant: int, profiles: Sequence[str]) -> Instance:
    """Return an instance like those of Rafay's documents."""
    return Instance(
        organization_id=f"t{tenant:05}",
        organization_name=f"Tenant {tenant}",
        project=f"project-{number % 50}",
        profile=profiles[number % len(profiles)],
        name=f"train-{number}",
        instance_id=f"019c510c-0000-707d-aef7-{number:012}",
        created_at=f"2026-05-{1 + number % 28:02}T08:51:{number % 60:02}Z",
        duty=Decimal(number % 72_000) / 72_000,
        labels={"GPU": "1"},
        quantities={"storage_size": Decimal(100)},
    )


def partner(tenants: int, instances: int, profiles: Sequence[str] = PROFILES) -> Partner:
    """Return a partner with so many tenants, each with so many compute instances."""
    organizations = [{"id": f"t{n:05}", "name": f"Tenant {n}"} for n in range(tenants)]
    every = [instance(n, n // instances, profiles) for n in range(tenants * instances)]
    return Partner(organizations, fixed([each.record(*JUNE) for each in every]))


def one_less(request: Request) -> Fault | None:
    """Take a record out of each tenant's compute list: the partner-wide list has one more."""
    if "compute" not in request.path or "instance_organization_id" not in request.query:
        return None

    def edit(answer: dict[str, Any]) -> dict[str, Any]:
        rows = answer["instance_usage_data"][:-1]
        return {**answer, "instance_usage_data": rows, "count": len(rows)}

    return Fault(edit=edit)


def serve(pipe: Connection, size: Sequence[Any], more: Mapping[str, Any]) -> None:
    """Serve a partner, rendering each answer once, until told to stop."""
    with Simulator(partner(*size), Behaviour(rendered=True), **more) as simulator:
        pipe.send(simulator.environ)
        pipe.recv()


LIST_PRICES = "".join(f"{profile},{rate},,\n" for profile, rate in PRICES.items())


def book(contracts: int = 0) -> str:
    """Return a price book with list prices and so many contracts, four a tenant."""
    lines = (f"{PROFILES[n % 4]},1.5,t{n // 4:05},2026-01-01\n" for n in range(contracts))
    return f"profile,hourly_rate,organization,effective_from\n{LIST_PRICES}{''.join(lines)}"


@contextmanager
def simulator(*size: Any, **more: Any) -> Iterator[dict[str, str]]:
    """Serve a partner of a size in a process of its own; give its settings."""
    ours, its = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(its, size, more))
    process.start()
    try:
        yield {**os.environ, **ours.recv(), "WORKERS": str(WORKERS)}
    finally:
        ours.send(None)
        process.join()


class Cost(NamedTuple):
    """What one command took: wall and CPU seconds, peak memory in MiB."""

    wall: float
    cpu: float
    memory: float


def run(command: list[str], environ: dict[str, str], prices: str, statuses: Container[int]) -> Cost:
    """Run a command in a directory of its own."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "prices"
        path.write_text(prices, encoding="utf-8")
        own = {**environ, "PRICING_FILE": str(path)}
        began = time.perf_counter()
        process = Popen(command, cwd=directory, env=own, stdout=DEVNULL, stderr=DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in statuses:
        raise SystemExit(f"{command} ended with status {process.returncode}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def measure(
    commands: Mapping[str, tuple[list[str], dict[str, str], str]],
    runs: int,
    statuses: Container[int] = (0,),
) -> dict[str, Cost]:
    """Return the medians of commands with settings and price books, run in turn, warmed up."""
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(runs + 1):
        for name, command in commands.items():
            costs[name].append(run(*command, statuses))
    return {name: Cost(*map(statistics.median, zip(*each[1:]))) for name, each in costs.items()}


def show(what: str, field: str, costs: Mapping[str, Cost], limit: float | None = None) -> None:
    """Print a figure of each command, and the first one's ratio to each other and to a limit."""
    figures = {name: getattr(cost, field) for name, cost in costs.items()}
    ours, *others = figures.values()
    ratios = [f"{ours / other:.2f} x {name}" for name, other in zip([*figures][1:], others)]
    if limit:
        ratios.append(f"{ours / limit:.2f} x the limit of {limit:.2f}")
    texts = [f"{name} {figure:.3f}" for name, figure in figures.items()]
    print(f"{what}, {field}: {', '.join(texts)}: {', '.join(ratios)}", flush=True)


def main() -> None:
    """Print the figures."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(f"CPython {platform.python_version()}, {os.cpu_count()} cores, medians of {runs} runs")
    checkouts = {"ours": Path(__file__).parents[1]}
    if len(sys.argv) > 2:
        checkouts["before"] = Path(sys.argv[2]).absolute()
    scripts = {
        name: [sys.executable, str(checkout / "tests/driver.py"), END, "--"]
        for name, checkout in checkouts.items()
    }
    ours, plain = scripts["ours"], book()
    for what, tenants, instances, latency, fields in (
        ("120 tenants of 5, 100 ms", 120, 5, LATENCY, ("wall",)),
        ("1 tenant of 20,000, 100 ms", 1, 20_000, LATENCY, ("wall",)),
        ("80,000 records", 160, 500, 0.0, ("cpu", "memory")),
    ):
        with simulator(tenants, instances, latency=latency) as environ:
            commands = {**scripts, "yardstick": YARDSTICK}
            costs = measure({n: (c, environ, plain) for n, c in commands.items()}, runs)
        pages = tenants * (-(-instances // PAGE) + 1)
        for field in fields:
            show(what, field, costs, pages * latency / WORKERS)
    starts = {
        name: [sys.executable, str(checkout / "ncp_metrics.py"), "--help"]
        for name, checkout in checkouts.items()
    }
    starts["import requests"] = [sys.executable, "-c", "import requests"]
    costs = measure({n: (c, dict(os.environ), plain) for n, c in starts.items()}, 4 * runs)
    show("--help", "wall", costs)
    with simulator(5_000, 40) as environ:
        both = {"contracts": (ours, environ, book(20_000)), "list": (ours, environ, plain)}
        costs = measure(both, runs)
    show("200,000 records of 5,000 tenants, 20,000 contracts", "cpu", costs)
    with simulator(1, 400, [f"gpu-model-{n}" for n in range(400)]) as environ:
        books = {
            name: "profile,hourly_rate\n" + "".join(f"{prefix}-{n},1\n" for n in range(4_000))
            for name, prefix in (("unknown", "gpu-modell"), ("known", "gpu-model"))
        }
        costs = measure({n: (ours, environ, text) for n, text in books.items()}, runs, (0, 3))
    show("400 profiles, 4,000 prices", "wall", costs)
    with simulator(2_000, 2) as agreeing, simulator(2_000, 3, fault=one_less) as differing:
        both = {"differing": (ours, differing, plain), "agreeing": (ours, agreeing, plain)}
        costs = measure(both, runs, (0, 1))
    show("2,000 tenants", "cpu", costs)


if __name__ == "__main__":
    if sys.argv[1:] == ["--yardstick"]:
        yardstick(dict(os.environ))
    else:
        main()
