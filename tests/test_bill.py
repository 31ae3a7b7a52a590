"""The program as a command: whole files, what it prints, exit statuses, what it asks for."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import pty
import re
import subprocess
import sys
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from conftest import ROOT, SCRIPT, Run, command, environment
from example import FILES, NOW, PERIOD, PRICES, RAW, SMALL, SORTED, usage
from rafay_simulator import (
    DEFAULT_KEY,
    PARTNER_KEY,
    Behaviour,
    Partner,
    Simulator,
    fixed,
    organization,
)

SUMMARY = """\
Organization         Instances  Records  Hours  Amount (USD)
northwind (o2)               2        2  20.60         51.51
Fabrikam, Inc. (o1)          2        2  15.50          3.50
Ørsted "Øst" (o4)            1        1   0.13          0.33
Total                        5        5  36.23         55.34

Organizations without usage: 1 of 4
Reconciled with the usage of the whole partner: 5 records of 3 organizations, 36.23 hours
Period: 2026-06-01T00:00:00Z to 2026-07-01T00:00:00Z, the end not included
Time zone: UTC
Price book: {book}, prices: 3
SHA-256 of the price book: {sha256}
Version: ncp_metrics 1.0.0
Raw file: {raw}
Sorted file: {sorted}
"""


def test_a_run_writes_the_raw_and_the_sorted_file_and_prints_the_summary(
    run: Run, directory: Path, tmp_path: Path
) -> None:
    with Simulator(SMALL) as simulator:
        result = run(simulator=simulator, prices=PRICES)
    assert (result.status, result.stderr) == (0, "")
    assert result.files == FILES
    assert result.stdout == SUMMARY.format(
        book=tmp_path / "prices.csv",
        sha256=hashlib.sha256(PRICES.encode()).hexdigest(),
        raw=directory / RAW,
        sorted=directory / SORTED,
    )


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(Behaviour(), id="plain"),
        pytest.param(Behaviour(count="page"), id="count is the page's"),
        pytest.param(Behaviour(count="absent"), id="no count"),
        pytest.param(Behaviour(count="page", max_limit=1), id="limit lowered, count the page's"),
        pytest.param(Behaviour(max_limit=1), id="limit lowered, count the total"),
        pytest.param(Behaviour(empty="null"), id="an empty list is null"),
        pytest.param(Behaviour(empty="absent"), id="an empty list is left out with its count"),
        pytest.param(Behaviour(organization_list="items"), id="organizations are items"),
        pytest.param(Behaviour(slash_redirect=True), id="a path without slash is redirected"),
        pytest.param(Behaviour(gzip=False, chunked=False), id="answers are plain"),
    ],
)
@pytest.mark.parametrize("workers", ["1", "8"])
def test_the_same_answers_give_the_same_bytes_whatever_the_api_is_like(
    run: Run, behaviour: Behaviour, workers: str
) -> None:
    with Simulator(SMALL, behaviour) as simulator:
        result = run(simulator=simulator, prices=PRICES, WORKERS=workers)
    assert (result.status, result.stderr) == (0, "")
    assert result.files == FILES


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        pytest.param(
            Behaviour(honour_offset=False, count="page"), "the API ignores offset", id="offset"
        ),
        pytest.param(
            Behaviour(honour_filter=False),
            "the filter by organization was ignored",
            id="organization filter",
        ),
    ],
)
def test_a_query_that_the_api_ignores_is_an_error(
    run: Run, behaviour: Behaviour, message: str
) -> None:
    with Simulator(SMALL, behaviour) as simulator:
        result = run(simulator=simulator, prices=PRICES)
    assert (result.status, result.stdout, result.files) == (1, "", {})
    assert message in result.stderr


def test_usage_without_a_price_stays_in_the_files_and_ends_with_status_3(run: Run) -> None:
    with Simulator(SMALL) as simulator:
        result = run(simulator=simulator, prices="profile,hourly_rate\ngpu-x1,1\nnotebook,0.333\n")
    sentence = (
        "profile gpu has no price: 20.73 hours (instances: 3) are not billed; "
        "in the price book, the nearest is gpu-x1"
    )
    assert result.status == 3
    assert f"ncp_metrics: warning: {sentence}\n" in result.stderr
    assert f"Not billed: {sentence}\n" in result.stdout
    assert f"{PERIOD},20.59,,,USD,instance\n" in result.raw
    assert len(result.raw.splitlines()) == len(FILES[RAW].splitlines())


def test_a_profile_without_a_price_that_ran_no_hours_is_told_but_is_no_failure(run: Run) -> None:
    partner = Partner([organization("o1", "A")], fixed(compute=[usage("o1", "i", "gpu", "0.00h")]))
    with Simulator(partner) as simulator:
        result = run(simulator=simulator, prices="profile,hourly_rate\n")
    assert result.status == 0
    assert "profile gpu has no price: 0.00 hours (instances: 1)" in result.stderr
    assert "in the price book, there is nothing at all" in result.stderr


def test_more_hours_than_the_period_has_are_billed_with_a_warning(run: Run) -> None:
    records = [usage("o1", "i", "gpu", "720.00h"), usage("o1", "j", "gpu", "720.01h")]
    partner = Partner([organization("o1", "A")], fixed(compute=records))
    with Simulator(partner) as simulator:
        result = run(simulator=simulator, prices=PRICES)
    assert result.status == 0
    said = "more hours than the period has: 1; the first is instance j (id-j) of A (o1), 720.01"
    assert said in result.stderr


def test_no_organizations_at_all_is_an_error_and_not_an_empty_bill(run: Run) -> None:
    with Simulator(Partner([], fixed())) as simulator:
        result = run(simulator=simulator)
    assert (result.status, result.files) == (1, {})
    assert "none is listed" in result.stderr


def test_quiet_leaves_stdout_empty(run: Run) -> None:
    with Simulator(SMALL) as simulator:
        result = run("--quiet", simulator=simulator, prices="profile,hourly_rate\n")
    assert (result.status, result.stdout, len(result.files)) == (3, "", 2)
    assert "has no price" in result.stderr


def price_of(row: dict[str, str], book: list[dict[str, str]]) -> str:
    """Find a line's rate as somebody with the price book in hand would."""
    fitting = [
        price
        for price in book
        if (price["profile"], price["dimension"] or "instance")
        == (row["profile"], row["dimension"])
        and price["organization"] in ("", row["organization"])
        and price["effective_from"] <= row["period_start"]
    ]
    return max(fitting, key=lambda price: (price["organization"], price["effective_from"]))[
        "hourly_rate"
    ]


def test_every_line_of_the_shipped_example_can_be_worked_out_again_from_the_price_book(
    run: Run,
) -> None:
    with open(ROOT / "pricing.csv", encoding="utf-8") as file:
        book = list(csv.DictReader(line for line in file if line.strip() and line[0] != "#"))
    with Simulator() as simulator:
        result = run(simulator=simulator)
    assert (result.status, result.stderr) == (0, "")
    rows = list(csv.DictReader(io.StringIO(result.raw, newline="")))
    assert len(rows) == 2 * (35 + 3)
    for row in rows:
        assert row["billing_rate"] == price_of(row, book)
        amount = Decimal(row["usage_hours"]) * Decimal(row["billing_rate"])
        assert row["billing_amount"] == str(amount.quantize(Decimal("0.01"), ROUND_HALF_UP))
    assert sorted(result.raw.splitlines()) == sorted(result.sorted.splitlines())


def test_both_keys_are_sent_to_where_they_belong_and_one_request_is_made_for_each_page(
    run: Run,
) -> None:
    with Simulator(SMALL) as ops, Simulator(SMALL) as console:
        run(simulator=console, prices=PRICES, RAFAY_OPS_CONSOLE_URL=ops.url)
    assert {request.path for request in ops.requests} == {"/auth/v1/organizations"}
    for request in ops.requests:
        assert request.headers["x-rafay-api-keyid"] == PARTNER_KEY
        assert "x-api-key" not in request.headers
    for request in console.requests:
        assert request.headers["x-api-key"] == DEFAULT_KEY
        assert "x-rafay-api-keyid" not in request.headers
        assert request.query["range_from"] == "2026-06-01T00:00:00Z"
        assert request.query["range_to"] == NOW
    assert len(console.requests) == 2 + 4 * 2
    assert [request.query["limit"] for request in console.requests[:2]] == ["1", "1"]


def test_the_command_itself_runs_with_the_clock_of_the_machine(directory: Path) -> None:
    with Simulator() as simulator:
        done = subprocess.run(
            [sys.executable, SCRIPT, "--days", "1"],
            cwd=directory,
            env=environment(simulator.environ),
            capture_output=True,
            text=True,
            check=True,
        )
    raw, sorted_ = sorted(directory.iterdir())
    assert str(raw) in done.stdout
    assert sorted_.name == raw.name.replace("ncp-metrics-", "ncp-metrics-sorted-")
    with open(raw, encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    end = row["period_end"]
    assert (
        raw.name == f"ncp-metrics-{end[5:7]}{end[8:10]}{end[:4]}-{end[11:19].replace(':', '')}.csv"
    )


def test_names_that_are_taken_are_left_alone(run: Run, directory: Path) -> None:
    (directory / RAW).write_text("mine")
    (directory / SORTED.replace("-000000", "-000001")).write_text("mine, too")
    with Simulator(SMALL) as simulator:
        result = run(simulator=simulator, prices=PRICES)
    assert result.files == {
        RAW: "mine",
        SORTED.replace("-000000", "-000001"): "mine, too",
        RAW.replace("-000000", "-000002"): FILES[RAW],
        SORTED.replace("-000000", "-000002"): FILES[SORTED],
    }


def test_progress_is_shown_on_a_terminal_and_removed_at_the_end(directory: Path) -> None:
    leader, follower = pty.openpty()
    with Simulator(latency=0.06) as simulator:
        process = subprocess.Popen(
            command(), cwd=directory, env=environment(simulator.environ), stderr=follower
        )
        os.close(follower)
        assert process.wait() == 0
    shown = os.read(leader, 10000).decode()
    os.close(leader)
    assert shown.startswith("\r\x1b[K")
    assert re.search(r"usage: \d of 6 organizations, \d+ records, \d+ s left", shown)
    assert shown.endswith("\r\x1b[K")


@pytest.mark.parametrize(
    ("arguments", "status", "output"),
    [
        (["--version"], 0, "ncp_metrics 1.0.0\n"),
        (["--help"], 0, "RAFAY_CONSOLE_URL"),
    ],
)
def test_help_and_version_need_no_settings(
    directory: Path, arguments: list[str], status: int, output: str
) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        cwd=directory,
        env=environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, "")
    assert output in done.stdout


def test_everything_that_is_wrong_is_told_at_once_before_anything_is_asked(
    run: Run, tmp_path: Path
) -> None:
    with Simulator() as simulator:
        result = run(
            "--days=0",
            "--dayz=1",
            simulator=simulator,
            prices="profile,hourly_rate\ngpu,-1\ngpu,x\n",
            PARTNER_API_KEY=" ",
            WORKERS="33",
        )
    assert not simulator.requests
    assert (result.status, result.stdout, result.files) == (2, "", {})
    book = tmp_path / "prices.csv"
    assert result.stderr.splitlines() == [
        "ncp_metrics: error: unknown argument --dayz: --help lists the flags",
        "ncp_metrics: error: --days: '0' is not a whole number from 1 to 3650",
        "ncp_metrics: error: PARTNER_API_KEY is not set: it is the API key that lists "
        "organizations",
        "ncp_metrics: error: WORKERS: '33' is not a whole number from 1 to 32",
        f"ncp_metrics: error: {book}: line 2: hourly_rate '-1' is not a plain decimal such as 2.50",
        f"ncp_metrics: error: {book}: line 3: hourly_rate 'x' is not a plain decimal such as 2.50",
    ]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--dayz=3", "unknown argument --dayz: --help lists the flags"),
        ("june", "unknown argument (no flag): --help lists the flags"),
        ("--days", "argument --days: expected one argument; --help lists the flags"),
    ],
)
def test_a_wrong_flag_is_a_line_that_points_to_help(run: Run, flag: str, message: str) -> None:
    with Simulator(SMALL) as simulator:
        result = run(flag, simulator=simulator)
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr == f"ncp_metrics: error: {message}\n"
