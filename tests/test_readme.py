"""README, .env.example and --help say what the program does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Run
from example import HEADER, PRICES, SMALL, usage
from rafay_simulator import Behaviour, Fault, Partner, Where, always, fixed, path_has

README = (ROOT / "README.md").read_text(encoding="utf-8")
USAGE, ORGANIZATIONS = path_has("usage"), path_has("organizations")


def table(heading: str) -> list[tuple[str, ...]]:
    """Return the cells of the first table below a heading, without header and marks of code."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0].replace("`", "")
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows[2:]]


def test_settings_are_those_of_help(run: Run) -> None:
    text = run("--help").stdout
    rows = table("Settings")
    assert [row for row in rows if row[0] not in text or row[1] not in text] == []
    shown = "".join(text.split()).replace(f"{ROOT}/pricing.csv", "pricing.csvbesidethescript")
    defaults = dict(re.findall(r"\(([A-Z_]+)(?:=0)?;default:(.*?)\)", shown))
    assert defaults == {row[0]: row[2].replace(" ", "") for row in rows if row[1]}


def test_flags_of_help_are_in_the_readme(run: Run) -> None:
    flags = re.findall(r"(?<!\w)--[a-z-]+", run("--help").stdout)
    assert [flag for flag in flags if not re.search(rf"`{flag}[` ]", README)] == []


def test_exit_statuses_are_those_of_help_and_of_runs(run: Run) -> None:
    text = re.sub(r"\n {10,}", " ", run("--help").stdout)
    listed = re.findall(r"^ +([0-9, ]*[0-9]) +(.*)$", text, re.MULTILINE)
    assert table("From cron") == listed
    runs: list[Any] = [{}, answered(status=404), {"DAYS": "0"}, MESSAGES["has no price"]]
    assert [row[0] for row in listed[:4]] == [str(run(**more).status) for more in runs]


def test_env_example_has_each_setting_and_changes_nothing(run: Run, directory: Path) -> None:
    shell = ["env", "-i", "sh", "-c", "set -a; . ./.env.example; env"]
    sourced = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    values = dict(line.split("=", 1) for line in sourced.splitlines())
    names = re.findall("^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert names == [row[0] for row in table("Settings")]
    without = run(partner=None, prices=None)
    for path in directory.iterdir():
        path.unlink()
    assert not {row[0] for row in table("Settings") if row[2] == "required"} & values.keys()
    optional = {name: values[name] for name in names if name in values}
    result = run(partner=None, prices=None, **optional)
    assert (result.stdout, result.files) == (without.stdout, without.files)


def test_the_sample_is_what_the_stand_in_is_billed(run: Run, directory: Path) -> None:
    result = run("--month=2026-06", partner=None, prices=None, now="2026-07-01T06:00:00Z")
    home = "/home/ops/billing"
    shown = result.stdout.replace(f"{ROOT}/pricing.csv", f"{home}/pricing.csv")
    assert f"```text\n{shown.replace(str(directory), home)}```" in README
    assert "ncp_metrics.py --month 2026-06\n```" in README


def test_columns_are_those_of_the_files() -> None:
    assert [row[0] for row in table("The files")] == HEADER.split(",")


@pytest.mark.parametrize("row", table("The price book"), ids=lambda row: row[0])
def test_columns_of_the_price_book_are_known_and_no_others(run: Run, row: tuple[str, ...]) -> None:
    cells = {"profile": "gpu", "hourly_rate": "1", "currency": "USD"}
    rest = [name for name, *_ in table("The price book") if name != row[0]]
    for added, valid in (
        ([], row[0] not in ("profile", "hourly_rate")),
        ([row[0]], True),
        ([row[0], "x"], False),
    ):
        columns = rest + added
        line = ",".join(cells.get(name, "") for name in columns)
        prices = f"{','.join(columns)}\n{line}\n"
        nothing = Partner(SMALL.organizations, fixed())
        assert (run("--check", partner=nothing, prices=prices).status == 0) == valid


def answered(where: Where = USAGE, action: Any = "answer", **fault: Any) -> dict[str, Any]:
    """Give each request there this answer."""
    return {"fault": always(Fault(action, **fault), where)}


def metered(*changes: dict[str, Any]) -> dict[str, Any]:
    """Meter an instance, once for each change to its record."""
    records = [{**usage("o2", "i", "gpu", "1h"), **each} for each in changes]
    return {"partner": Partner(SMALL.organizations, fixed(records))}


NOT_OURS = {"TLS failed"}  # provoked in test_api
TWINS = Partner([{"id": "1", "name": "A"}, {"id": "2", "name": "A"}], fixed())
MESSAGES: dict[str, Any] = {
    "not set: RAFAY_CONSOLE_URL": {"RAFAY_CONSOLE_URL": ""},
    "and RAFAY_DEFAULT_API_KEY": {"RAFAY_DEFAULT_API_KEY": "another-key"},
    "and PARTNER_API_KEY": {"PARTNER_API_KEY": "another-key"},
    "Connection refused": {"RAFAY_CONSOLE_URL": "http://127.0.0.1:9"},
    **{f"HTTP {n}": answered(status=n) for n in (401, 403, 404, 429, 503)},
    "check the network": answered(action="reset"),
    "redirects to another host": answered(status=302, headers={"Location": "http://a.invalid/"}),
    "ReadTimeout": {**answered(action="stall"), "constants": {"READ_SECONDS": 0.02}},
    "the API ignored the filter": {"behaviour": Behaviour(honour_filter=False)},
    "the API ignores offset": {"behaviour": Behaviour(honour_offset=False, max_limit=2)},
    "the answer is not a JSON object": answered(body=b"<html>"),
    "is this another API": answered(body=b"{}"),
    "is not a number of rows": answered(edit=lambda answer: {**answer, "count": "9"}),
    "counted rows were listed": answered(ORGANIZATIONS, edit=lambda answer: {**answer, "count": 9}),
    "is listed twice": metered({"usage": "1h"}, {"usage": "2h"}),
    "differs from the partner-wide usage": answered(
        lambda request: "instance_organization_id" in request.query,
        edit=lambda answer: {**answer, "instance_usage_data": [], "count": 0},
    ),
    "is on none of its pages": answered(
        lambda request: request.query["limit"] == "1",
        edit=lambda answer: {**answer, "instance_usage_data": [usage("o2", "late", "gpu", "1h")]},
    ),
    "listed in the whole period only": {
        **answered(
            lambda request: "06-15" in str(request.query.values()),
            edit=lambda answer: {**answer, "instance_usage_data": [], "count": 0},
        ),
        "prices": "profile,effective_from,hourly_rate\ngpu,,1\ngpu,2026-06-15,2\n",
    },
    "is not listed but has usage": metered({"instance_organization_id": "o9"}),
    "is not hours": metered({"usage": "20.59"}),
    "is negative or implausibly large": metered({"usage": "99999999.00h"}),
    "is missing": metered({"instance_id": None}),
    "is not text": metered({"instance_name": 7}),
    "more hours than the period has": metered({"usage": "720.02h"}),
    "already has this price": {"prices": f"{PRICES}gpu,1\n"},
    "is not listed": {"prices": "profile,organization,hourly_rate\ngpu,nobody,1\n"},
    "nothing to bill": {"prices": "profile,dimension,hourly_rate\ngpu,CPU,1\n"},
    "not a calendar month": {
        "prices": "profile,organization,monthly_rate\na,northwind,1\n",
        "flags": "--days=7",
    },
    "has no price": {"prices": "profile,hourly_rate\n"},
    "the answer holds an API key": metered({"instance_name": "stand-in-default-key"}),
    "nobody used": {"prices": "profile,organization,hourly_rate\ngpux,Empty,1\n"},
    "billed in full, as nothing was used": {
        "prices": "profile,organization,monthly_minimum\ngpux,Empty,1\n",
        "flags": "--month=last",
    },
    "is after now": {"flags": "--from=2026-06-01 --to=2026-07-02"},
    "the period is empty": {"flags": "--from=2026-06-01 --to=2026-06-01"},
    "is blank": {"flags": "--org="},
    "not allowed with argument": {"flags": "--month=last --days=3"},
    "2026-06-01T00:00+02:00": {"flags": "--from=2026-03-29T02:30 --to=2026-06-01 --timezone=CET"},
    "the bill is provisional": {"flags": "--month=2026-07", "now": "2026-07-02T00:00:00Z"},
    "is not listed; did you mean": {"flags": "--org=nortwind"},
    "is ambiguous: give the id": {"flags": "--org=A", "partner": TWINS},
    "stopped by": {"fsync": lambda _: signal.raise_signal(signal.SIGTERM)},
    "cannot write to": {"fsync": lambda _: os.stat("/nonexistent")},
}


def test_messages_that_the_readme_explains_are_those_provoked_here() -> None:
    cells = re.findall("^[|] (`.*?) [|]", README.split("## What can go wrong")[1], re.MULTILINE)
    shown = set(re.findall("`([^`]+)`", " ".join(cells)))
    assert shown - {*MESSAGES, *NOT_OURS} == set()


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_printed(run: Run, monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    more = {"flags": "", "fsync": os.fsync, **MESSAGES[message]}
    monkeypatch.setattr(os, "fsync", more.pop("fsync"))
    result = run(*more.pop("flags").split(), **more)
    assert message in result.stdout + result.stderr
