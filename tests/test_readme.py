"""README, .env.example, pricing.csv and --help say what the program does."""

from __future__ import annotations

import re
import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SCRIPT, Run, always
from example import HEADER, tenants, usage
from rafay_simulator import DEFAULT_KEY, Behaviour, Fault, Json, Simulator, organization

import ncp_metrics

README = (ROOT / "README.md").read_text(encoding="utf-8")
ENV_EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")


def between(begin: str, end: str) -> str:
    """Return what stands between two texts of the README."""
    after = README.partition(begin)[2]
    return after.partition(end)[0]


def section(heading: str) -> str:
    """Return the text below a heading."""
    return between(f"\n## {heading}\n", "\n## ")


def block(begin: str, language: str) -> str:
    """Return the first block of code after a text."""
    after = README.partition(begin)[2]
    code = after.partition(f"```{language}\n")[2]
    return code.partition("```")[0]


def first_column(heading: str) -> list[str]:
    """Return what is marked as code in the first column of a section's tables."""
    cells = re.findall("^[|] (`.*?) [|]", section(heading), re.MULTILINE)
    return re.findall("`(.*?)`", " ".join(cells))


def test_help_and_env_example_have_the_same_variables(run: Run) -> None:
    text = run("--help").stdout
    with_flag = re.findall(r"\(([A-Z_]+)(?:=0)?;", text)
    without_flag = re.findall("^  ([A-Z_]+)  ", text, re.MULTILINE)
    variables = re.findall("^#?([A-Z_]+)=", ENV_EXAMPLE, re.MULTILINE)
    assert sorted(variables) == sorted(with_flag + without_flag)


def test_env_example_changes_nothing(run: Run) -> None:
    shell = ["env", "-i", "sh", "-c", "set -a; . ./.env.example; env"]
    sourced = subprocess.check_output(shell, cwd=ROOT, text=True)
    variables = dict(line.split("=", 1) for line in sourced.splitlines())
    more = {"partner": None, "prices": None}
    without = run("--check", **more)
    result = run("--check", **more, **variables)
    assert result.stdout == without.stdout


def test_flags_that_the_readme_names_are_those_of_help(run: Run) -> None:
    in_help = set(re.findall("--[a-z-]+", run("--help").stdout))
    in_readme = set(re.findall("`(--[a-z-]+)", README))
    assert in_readme <= in_help


def test_exit_statuses_are_those_of_help(run: Run) -> None:
    text = run("--help").stdout
    in_help = re.findall("^  ([0-9, ]*[0-9]) +(.*)$", text, re.MULTILINE)
    in_readme = re.findall("^[|] ([0-9, ]+) [|] (.*) [|]$", section("From cron"), re.MULTILINE)
    assert in_readme == in_help


def test_the_example_is_billed_in_full_with_the_shipped_book(run: Run) -> None:
    more = {"partner": None, "prices": None, "now": "2026-07-01T06:00:00Z"}
    result = run("--month=2026-06", **more)
    assert (result.status, result.stderr) == (0, "")
    [total, _] = re.findall(r"^Total .* ([\d,.]+)$", result.stdout, re.MULTILINE)
    assert f"({total} USD)" in section("Try it")


def test_the_columns_are_those_of_the_files() -> None:
    assert ",".join(first_column("The files")) == HEADER.strip()


def test_the_shipped_book_explains_each_of_its_columns() -> None:
    text = (ROOT / "pricing.csv").read_text(encoding="utf-8")
    for column in ncp_metrics.PRICE_COLUMNS:
        assert f"\n# {column} " in text


def test_the_usual_prices_are_valid(run: Run) -> None:
    names = ("acme robotics", "Fabrikam, Inc.")
    partner = tenants(listed=[organization(name, name) for name in names])
    result = run("--month=last", prices=block("Usual cases", "csv"), partner=partner)
    assert result.cells("profile", "billing_amount") == [
        "gpu-h100-x8 21888.00",
        "support-gold 500.00",
    ]


def test_the_worked_example_of_prices_is_what_is_billed(run: Run) -> None:
    of_acme = usage("o1", "a", "gpu", "1h")
    of_beta = usage("o2", "b", "gpu", "1h")
    both = tenants(of_acme, of_beta)
    billed = []
    for month in ("2026-06", "2026-07"):
        prices = block("Which price counts?", "csv")
        result = run(f"--month={month}", prices=prices, partner=both, now="2026-09-01T00:00:00Z")
        for line in result.cells("organization", "period_start", "billing_rate"):
            billed.append(line.replace("T00:00:00Z", ""))
    assert billed == [
        "Acme 2026-06-01 15",
        "Beta 2026-06-01 20",
        "Beta 2026-06-16 18",
        "Acme 2026-07-01 18",
        "Beta 2026-07-01 18",
    ]


def test_the_command_that_sums_gives_the_total(run: Run, directory: Path) -> None:
    result = run("--month=2026-06", partner=None, prices=None)
    command = block("To sum the amounts", "sh")
    output = subprocess.check_output(["sh", "-c", command], cwd=directory, text=True)
    total = sum(Decimal(row["billing_amount"]) for row in result.rows)
    [name] = [name for name in result.files if "sorted" in name]
    assert output == f"{name}: {total}\n"


def test_what_developers_are_pointed_to_exists() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    for name in re.findall("`([A-Za-z_]+)`", section("For developers")):
        assert name == "FILES" or name in text


def without_rows(answer: Json) -> Json:
    """Return an answer with the rows left out."""
    return {**answer, "instance_usage_data": [], "count": 0}


MESSAGES: dict[str, Any] = {
    "HTTP 401": {"RAFAY_DEFAULT_API_KEY": "another-key"},
    "HTTP 403": {"fault": always(Fault(status=403))},
    "TLS failed": {},
    "the API ignored the filter": {"behaviour": Behaviour(honour_filter=False)},
    "the API ignores offset": {"behaviour": Behaviour(honour_offset=False, max_limit=2)},
    "is not hours": {"partner": tenants(usage("o1", "i", "gpu", "20.59"))},
    "differs from the partner-wide usage": {
        "fault": always(
            Fault(edit=without_rows), lambda request: "instance_organization_id" in request.query
        )
    },
    "is not listed but has usage": {"partner": tenants(usage("o9", "i", "gpu", "1h"))},
    "the answer holds an API key": {"partner": tenants(usage("o1", DEFAULT_KEY, "gpu", "1h"))},
}


def test_the_messages_that_are_explained_are_those_below() -> None:
    assert sorted(first_column("What can go wrong")) == sorted(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_that_is_explained_is_printed(
    run: Run, stand_in: Simulator, message: str
) -> None:
    more = dict(MESSAGES[message])
    if message == "TLS failed":
        more["RAFAY_CONSOLE_URL"] = stand_in.url.replace("http:", "https:")
    assert message in run(**more).stderr
