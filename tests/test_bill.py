"""What is unbilled, and what the summary and the files say of it."""

from __future__ import annotations

import os
import pty
import re
import struct
from fcntl import ioctl
from pathlib import Path
from subprocess import PIPE, Popen
from termios import TIOCSWINSZ
from typing import Any

import pytest
from conftest import Prepare, Run, cases, command, environment
from example import SMALL, usage
from rafay_simulator import Fault, Partner, always, first, fixed, organization, path_has

BOOK = "profile,dimension,organization,effective_from,effective_to,hourly_rate\n"
GPU = {"name": "GPU", "usage": "10.00h", "is_label": True, "label_value": "2"}
DISK = {"name": "disk", "usage": "1200.00h", "is_label": False}


def partner(*records: Any) -> Partner:
    """Meter these records for an organization A."""
    return Partner([organization("o1", "A")], fixed(compute=records))


def metered(*parameters: Any, hours: str = "10h", name: str = "i", **more: Any) -> Any:
    """Meter an instance of a profile gpu."""
    return usage("o1", name, "gpu", hours, parameters=list(parameters), **more)


@pytest.mark.parametrize(
    ("prices", "records", "warnings"),
    [
        ("gpu,,,,,1", [metered()], []),
        ("", [metered()], ["instance of gpu has no price: 10.00 hours"]),
        ("gpux1,,,,,1", [usage("o1", "i", "gpux", "1h")], ["gpux has no price"]),
        ("", [metered(hours="0h")], []),
        ("", [metered(hours="0h"), metered(name="j")], ["has no price: 10.00 hours"]),
        ("gpu,,,,,0", [metered()], []),
        ("gpu,,,,,1\nx,,Aa,,,1", [metered()], ["line 3: organization 'Aa' is not listed"]),
        ("gpu,,,,,1\nx,,B,2026-07-01,,1\nx,,B,,2026-06-01,1", [metered()], []),
        (
            "gpu,,,,,1\ngpu,CPU,,,,1",
            [metered(GPU)],
            ["line 3: nothing to bill: no record of gpu has CPU"],
        ),
        ("gpu,,,,,1\ngpu,CPU,,2026-07-01,,1\nother,CPU,,,,1", [metered(GPU)], []),
        ("gpu,,,,,1\ngpu,GPU,,,,1", [metered(GPU), metered(name="j")], []),
        (
            "gpu,,,,,1\ngpu,disk,,2026-06-11,,1",
            [metered(DISK)],
            ["disk of gpu has no price: 1200.00 hours of A (o1) are not billed"],
        ),
    ],
)
def test_what_is_unbilled_is_a_warning_and_status_3(
    run: Run, prices: str, records: list[Any], warnings: list[str]
) -> None:
    result = run(prices=f"{BOOK}{prices}\n", partner=partner(*records))
    assert f"prices: {len(prices.splitlines())}," in result.stdout
    assert len(result.warnings) == len(warnings)
    assert [text for text, line in zip(warnings, result.warnings) if text not in line] == []
    assert (result.status, len(result.files)) == (3 if warnings else 0, 2)


BETA = usage("b1", "j", "vm", "1h")


@pytest.mark.parametrize(
    ("flags", "prices", "lines"),
    [
        ("", "gpu,,,,,1\nvm,,,,,1\ngpuu,,A,,,2", [4]),
        ("", "gpu,,,,,1\nvm,,,,,1\ngpuu,disk,A,,,2", [4]),
        ("", "gpu,,,,,1\nvm,,,,,1\ngpuu,,A,,,2\ngpuu,,,,,3", []),
        ("", "gpu,,,,,1\nvm,,,,,1\ngpuu,,A,,2026-06-01,2\ngpuu,,A,2026-07-01,,2", []),
        ("", "gpu,,,,,1\nvm,,,,,1\nvm,,A,,,2", []),
        ("", "gpu,,A,,,1\nvm,,,,,1\ngpu,,B,,,2", []),
        ("", "gpu,,,,,1\nvm,,,,,1\ngpuu,,,,,2", []),
        ("--org=A", "gpu,,,,,1\ngpuu,,A,,,2\ngpuu,,B,,,2", [3]),
    ],
)
def test_a_contract_that_nobody_used_is_a_warning_that_leaves_the_status(
    run: Run, flags: str, prices: str, lines: list[int]
) -> None:
    two = Partner(
        [organization("o1", "A"), organization("b1", "B")], fixed(compute=[metered(), BETA])
    )
    result = run(*flags.split(), prices=f"{BOOK}{prices}\n", partner=two)
    said = r"line (\d): nobody used \w+ of gpuu, for A \(o1\)"
    assert [int(number) for number in re.findall(said, "\n".join(result.warnings))] == lines
    assert (result.status, len(result.warnings)) == (0, len(lines))


def test_a_partial_bill_cannot_know_which_prices_for_everyone_nobody_used(run: Run) -> None:
    two = Partner([organization("o1", "A"), organization("b1", "B")], fixed([metered(), BETA]))
    prices = f"{BOOK}gpu,,,,,1\nvm,,,,,1\n"
    result = run("--org=A", "--check", prices=prices, partner=two)
    assert (result.status, result.stderr, "Nobody used" in result.stdout) == (0, "", False)


def test_a_partial_bill_warns_of_a_parameter_that_it_does_not_bill(run: Run) -> None:
    result = run("--org=A", prices=f"{BOOK}gpu,,,,,1\ngpu,CPU,,,,1\n", partner=partner(metered()))
    assert (result.status, ["nothing to bill" in each for each in result.warnings]) == (3, [True])


def test_warnings_show_names_and_paths_whole_and_as_they_are(run: Run, tmp_path: Path) -> None:
    out = tmp_path.joinpath("a  b", "x" * 200, "y" * 200, "z" * 200)
    out.mkdir(parents=True)
    result = run("--invoice", f"--output-dir={out}", prices=BOOK, partner=partner(metered()))
    assert result.stderr.count(f"{out}/ncp-metrics-") == 3


ENDS = {
    "nothing to say": ("gpu,,,,,1", 0, 0),
    "unpriced": ("", 1, 3),
    "a doubt": ("gpu,,,,,1\ngpuu,,A,,,2", 1, 0),
    "both": ("gpuu,,A,,,2", 2, 3),
}


@cases("prices, number, status", ENDS)
@pytest.mark.parametrize("flags", ["", "--check", "--quiet", "--invoice"])
def test_a_mail_or_a_log_that_is_read_alone_is_understood(
    run: Run, flags: str, prices: str, number: int, status: int
) -> None:
    result = run(*flags.split(), prices=f"{BOOK}{prices}\n", partner=partner(metered()))
    assert result.status == status
    if flags != "--quiet":
        assert result.stdout.endswith(f"\nWarnings: {number}, status: {status}\n")
    if number:
        last = result.stderr.splitlines()[-1]
        period = "2026-06-01T00:00:00Z to 2026-07-01T00:00:00Z (end excluded)"
        begin = f"ncp_metrics: warnings: {number}, status: {status}, period: {period}, files: "
        assert last.startswith(begin)
        assert [name for name in result.files if name not in last] == []
        assert last.endswith("files: none") == (flags == "--check")
    else:
        assert result.stderr == ""


def test_the_summary_counts_instances_and_hours_once_and_adds_all_amounts(run: Run) -> None:
    both = partner(metered(GPU), metered(name="j"))
    result = run(prices=f"{BOOK}gpu,,,,,1\ngpu,GPU,,,,1\n", partner=both)
    header, first_line, *_ = (line.split() for line in result.stdout.split("\n")[2:])
    assert header == "Organization Instances Hours Amount (USD)".split()
    assert first_line == ["A", "(o1)", "2", "20.00", "40.00"]


LONG_LABEL = {**GPU, "usage": "720.02h"}
OVERLONG = {
    "rounding": ("", [metered(hours="720.01h")], 0),
    "more": ("", [metered(hours="720.02h")], 1),
    "two records": ("", [metered(hours="400h", profile_id=each) for each in "12"], 0),
    "a billed label": ("gpu,GPU,,,,1\n", [metered(LONG_LABEL)], 1),
    "a label that is not billed": ("", [metered(LONG_LABEL)], 0),
    "a quantity": ("gpu,disk,,,,1\n", [metered(DISK)], 0),
}


@cases("prices, records, number", OVERLONG)
def test_more_hours_in_a_record_than_its_period_has_are_a_warning(
    run: Run, prices: str, records: list[Any], number: int
) -> None:
    result = run(prices=f"{BOOK}gpu,,,,,1\n{prices}", partner=partner(*records))
    assert (result.status, len(result.warnings)) == (0, number)
    assert all("id-i" in each and "more hours" in each for each in result.warnings)


def test_cells_are_one_line_and_no_formulas_and_hours_are_exact(run: Run) -> None:
    names = ["=1", "+1", "-1", "@1", "a\tb\nc\r\u2028d\x00"]
    records = [metered(name=name, hours="0.1250h") for name in names]
    rows = run(prices=f"{BOOK}gpu,,,,,1\n", partner=partner(*records)).rows
    assert [row["instance"] for row in rows] == ["'=1", "'+1", "'-1", "'@1", "a b c  d "]
    assert {(row["usage_hours"], row["billing_amount"]) for row in rows} == {("0.125", "0.13")}


KEY = "ab/cdef-12\\3"


@pytest.mark.parametrize("said", [KEY, KEY.upper()])
def test_a_key_is_never_shown_in_part(run: Run, said: str) -> None:
    answer = Fault("answer", status=404, body=f"{said} ".encode() * 40)
    result = run(RAFAY_DEFAULT_API_KEY=KEY, fault=always(answer, path_has("usage")))
    assert (result.status, "***" in result.stderr) == (1, True)
    assert [part for part in ("cdef", "12") if part in result.stderr.lower()] == []


@pytest.mark.parametrize("password", ["s3cr/et9x", "s3cr#et9x", "s3cr@et9x", "s3cr?et9x"])
@pytest.mark.parametrize("begin", ["http://", ""])
def test_the_password_of_a_proxy_is_never_shown_in_part(
    run: Run, monkeypatch: pytest.MonkeyPatch, begin: str, password: str
) -> None:
    proxy = f"{begin}me:{password}@127.0.0.1:9"
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    more = {"HTTPS_PROXY": proxy, "constants": {"CONNECT_SECONDS": 0.5}}
    result = run(RAFAY_CONSOLE_URL="https://a.invalid", RECONCILE="0", **more)
    assert (result.status, bool(result.errors)) == (1, True)
    assert [part for part in ("s3cr", "et9x") if part in result.stderr] == []


def test_progress_stays_on_one_line_of_a_narrow_terminal(prepare: Prepare) -> None:
    leader, follower = pty.openpty()
    ioctl(follower, TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    busy = first(2, Fault("answer", status=503, body=b"overloaded " * 9), path_has("usage"))
    environ = environment(prepare(SMALL, fault=busy))
    slow = command("--check", constants={"BACKOFF_SECONDS": 1.5, "RETRY_AFTER_SECONDS": 1.5})
    with Popen(slow, env=environ, stderr=follower, stdout=PIPE) as process:
        os.close(follower)
        assert process.wait(50) == 0
    shown = os.read(leader, 10_000).decode()
    os.close(leader)
    lines = shown.replace("\x1b[K", "").split("\r")
    assert "retrying: HTTP 503" in shown
    assert max(map(len, lines)) <= 39
