"""README, .env.example, --help, requirements.txt and the script say the same."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from conftest import ROOT, SCRIPT, Run, environment
from rafay_simulator import Simulator, small_partner

import ncp_metrics

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
NOW = datetime(2026, 7, 1, tzinfo=timezone.utc)
VARIABLES = [setting.variable for setting in ncp_metrics.SETTINGS]


def section(heading: str) -> str:
    """Return what stands below a heading of the README."""
    return README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def table(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading of the README, without its header."""
    rows = [line for line in section(heading).splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows[2:]]


def help_text() -> str:
    """Return what --help prints."""
    return subprocess.run(
        [sys.executable, SCRIPT, "--help"],
        env=environment({"COLUMNS": "300"}),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_readme_has_each_setting_with_its_flag_and_default() -> None:
    told = [row[:3] for row in table("Settings")]
    assert told == [
        [
            setting.variable,
            setting.flag,
            setting.default.replace("pricing.csv beside", "pricing.csv` beside"),
        ]
        for setting in ncp_metrics.SETTINGS
    ]


def test_the_example_of_the_environment_has_each_variable_in_the_same_order() -> None:
    assert re.findall(r"^([A-Z_]+)=", EXAMPLE, re.MULTILINE) == VARIABLES


def test_help_has_each_variable_each_flag_and_each_exit_status() -> None:
    text = help_text()
    environment_part = text.split("\nenvironment ", 1)[1]
    assert re.findall(r"^  ([A-Z_]+) ", environment_part, re.MULTILINE) == VARIABLES
    for setting in ncp_metrics.SETTINGS:
        assert f"\n  {setting.flag}" in text
    for status, meaning in ncp_metrics.EXIT_STATUSES:
        assert re.search(rf"^  {status} +{re.escape(meaning)}$", text, re.MULTILINE)


def test_the_sample_of_the_readme_is_what_the_stand_in_is_billed(run: Run, directory: Path) -> None:
    sample = README.split("```text\n", 1)[1].split("```", 1)[0]
    with Simulator() as simulator:
        result = run("--month=2026-06", simulator=simulator, now="2026-07-01T06:00:00Z")
    shown = result.stdout.replace(str(ROOT / "pricing.csv"), "/srv/billing/pricing.csv")
    assert shown.replace(str(directory), "/srv/billing") == sample


def test_each_flag_is_in_the_readme() -> None:
    for flag in re.findall(r"(?<!\w)--[a-z-]+", help_text()):
        assert re.search(rf"`{flag}[` ]", README), flag


def test_the_readme_has_the_exit_statuses_of_the_script() -> None:
    assert [tuple(row) for row in table("Exit status")] == list(ncp_metrics.EXIT_STATUSES)


def test_the_readme_has_the_columns_of_the_files() -> None:
    assert tuple(row[0] for row in table("The two files")) == ncp_metrics.COLUMNS


def test_the_readme_has_the_columns_of_the_price_book() -> None:
    told = [(row[0], row[1] == "required") for row in table("The price book")]
    assert [name for name, needed in told if needed] == list(ncp_metrics.REQUIRED_COLUMNS)
    assert [name for name, needed in told if not needed] == list(ncp_metrics.OPTIONAL_COLUMNS)


def test_inline_metadata_and_requirements_name_the_same_dependencies() -> None:
    script = SCRIPT.read_text(encoding="utf-8")
    block = re.search(r"^# /// script$(.*?)^# ///$", script, re.MULTILINE | re.DOTALL)
    assert block
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert re.findall(r'^#     "(.*)",$', block.group(1), re.MULTILINE) == requirements
    assert '# requires-python = ">=3.9"' in block.group(1)


def test_the_example_can_be_sourced_and_leaves_the_defaults() -> None:
    command = "set -a; . ./.env.example; set +a; env"
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=ROOT,
        env=environment({}),
        capture_output=True,
        text=True,
        check=True,
    )
    environ = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    told, problems = ncp_metrics.read_settings({}, environ, NOW)
    default, same_problems = ncp_metrics.read_settings({}, {}, NOW)
    assert (told, problems) == (default, same_problems)


def test_the_shipped_price_book_prices_every_profile_of_the_stand_in() -> None:
    book, problems = ncp_metrics.read_price_book(ROOT / "pricing.csv", "USD", timezone.utc)
    records = [
        record
        for kind in ncp_metrics.KINDS
        for record in small_partner().records(kind, NOW - timedelta(days=30), NOW)
    ]
    assert not problems
    profiles = {price.profile for price in book.prices if price.dimension == "instance"}
    assert {record["profile_name"] for record in records} == profiles


@pytest.mark.parametrize(
    ("words", "constant"),
    [
        ("is tried up to {} times", ncp_metrics.ATTEMPTS),
        ("waits {:.0f} s for the connection", ncp_metrics.CONNECT_SECONDS),
        ("{:.0f} s for each piece", ncp_metrics.READ_SECONDS),
        ("next one come {} s, then twice as long", ncp_metrics.BACKOFF_SECONDS),
        ("`Retry-After` says, {:.0f} s at most", ncp_metrics.RETRY_AFTER_SECONDS),
        ("An answer is {} MiB at most", ncp_metrics.MAX_ANSWER_BYTES / 2**20),
        ("has {:,} pages at most", ncp_metrics.MAX_PAGES),
        ("nothing at all is answered for {:.0f} s ends", ncp_metrics.SILENCE_SECONDS),
    ],
)
def test_the_readme_has_the_bounds_of_the_script(words: str, constant: float) -> None:
    number = int(constant) if constant == int(constant) else constant
    assert words.format(number) in " ".join(README.split())


NOT_OURS = ("HTTP 404", "HTTP 429", "HTTP 503", "Name or service not known", "Connection refused")
MESSAGES = [
    message
    for line in section("When something goes wrong").splitlines()
    if line.startswith("| `")
    for message in re.findall(r"`([^`]+)`", line.split("|")[1])
    if message not in NOT_OURS
]


@pytest.mark.parametrize("message", MESSAGES)
def test_each_message_of_the_readme_is_one_of_the_script(message: str) -> None:
    script = re.sub(r'"\n\s*f?"', "", SCRIPT.read_text(encoding="utf-8"))
    words = re.sub(r"^[A-Z_]{9,} ", "} ", message)  # the name of a variable is filled in
    assert words in script
