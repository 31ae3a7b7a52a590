"""Settings: where each comes from, its default, which values are valid; and every other flag."""

from __future__ import annotations

import re
from pathlib import Path
from zoneinfo import available_timezones

import pytest
from conftest import ROOT, Run, assert_failed
from example import usage
from rafay_simulator import (
    DEFAULT_KEY,
    PARTNER_KEY,
    Partner,
    Simulator,
    fixed,
    organization,
)

import ncp_metrics

REQUIRED = ["RAFAY_CONSOLE_URL", "RAFAY_DEFAULT_API_KEY", "PARTNER_API_KEY"]
SETTINGS = [  # variable, flag, value, what the summary then shows, what it shows by default
    ("DAYS", "--days", "7", "2026-06-24T00:00:00Z to", "2026-06-01T00:00:00Z to"),
    ("BILLING_MONTH", "--month", "2026-05", "2026-05-01T00:00:00Z to", "2026-06-01T00:00:00Z to"),
    ("TIMEZONE", "--timezone", "Asia/Tokyo", "Asia/Tokyo", "UTC"),
    ("CURRENCY", "--currency", "EUR", "EUR", "USD"),
    ("PRICING_FILE", "--pricing", "../prices.csv", "/prices.csv", f"{ROOT}/pricing.csv"),
    ("OUTPUT_DIR", "--output-dir", "../other", "/other/ncp-metrics", "/out/ncp-metrics"),
]
OPTIONAL = [each[0] for each in SETTINGS] + ["WORKERS", "RECONCILE", "RAFAY_OPS_CONSOLE_URL"]
FLAGS = [each[1] for each in SETTINGS] + ["--from", "--to", "--org"]  # those with a value
SWITCHES = ["--no-reconcile", "--check", "--quiet", "--verbose", "--version"]
HELP = [*REQUIRED, *OPTIONAL, *FLAGS, *SWITCHES, "\n  129, 130, 143 "]
VALID = {
    "DAYS": ["1", "3650"],
    "WORKERS": ["1", "32"],
    "RECONCILE": ["0", "1"],
    "CURRENCY": ["USD", "XYZ"],
    "RAFAY_DEFAULT_API_KEY": ["12345678"],
    "PARTNER_API_KEY": ["".join(map(chr, range(ord("!"), ord("~") + 1)))],
    "RAFAY_CONSOLE_URL": [
        *"acme.com acme.com/ acme.com:8443 rafay:8443 192.0.2.7 [2001:db8::7]:8443".split(),
        *"https://acme.com https://acme.com:65535/ HTTPS://acme.com http://localhost".split(),
        *"http://LOCALHOST:8080 http://127.9.9.9 http://127.0.0.1:8080/ http://[::1]:8080".split(),
    ],
}
INVALID = {  # the beginning of the error: values of the variable
    ("DAYS", "DAYS: .*3650"): [
        *"0 3651 -7 +7 7.0 7e0 1_0 0x7 seven ٧ ７".split(),
        *("7 7", "9" * 99),
    ],
    ("WORKERS", "WORKERS: .*32"): ["0", "33", "many"],
    ("RECONCILE", "RECONCILE: .*1"): ["2", "yes"],
    ("CURRENCY", "argument --currency: .*ISO 4217"): [
        *"usd US$ $ US USDT EURO 840 ÚSD ＵＳＤ".split(),
    ],
    ("TIMEZONE", "argument --timezone: .*IANA"): [
        *"utc Europe/berlin Europe Europe/ Europe//Berlin Foo/Bar Z UTC+3 GMT+3 +02:00".split(),
        *"CEST CET-1CEST,M3.5.0,M10.5.0/3 /etc/localtime ../UTC Europe/../UTC".split(),
    ],
    ("OUTPUT_DIR", "argument --output-dir: .*directory"): ["none", "../prices.csv", "a" * 300],
    **{
        (name, f"{name}: .* 8 or more"): [
            *("hunter2", "hunter2 hunter2", "hunter2\r\nhunter2", "hunter2\thunter2"),
            *("hunter2hunter2é", "hunter2\u200bhunter2", "hunter2\x7fhunter2"),
        ]
        for name in ("RAFAY_DEFAULT_API_KEY", "PARTNER_API_KEY")
    },
    ("RAFAY_OPS_CONSOLE_URL", "RAFAY_OPS_CONSOLE_URL: .*https://"): [
        "http://acme.com",
        "ftp://me:hunter2@acme.com",
    ],
    ("RAFAY_CONSOLE_URL", "RAFAY_CONSOLE_URL: .*https://"): [
        *"http://acme.com HTTP://acme.com http://192.0.2.7 http://0.0.0.0".split(),
        *"http://[2001:db8::7] http://localhost.acme.com http://127.0.0.1.acme.com".split(),
        *"ftp://me:hunter2@acme.com file:///etc ://acme.com me:hunter2://acme.com".split(),
        *"me@acme.com https://me:hunter2@acme.com a@[::1] a.com:0 a.com:65536 a.com:99999".split(),
        *"https:// https:/// https:acme.com https://https://acme.com https://[hunter2]".split(),
        *"acme.com/console acme.com// acme.com#a acme..com acme\\com acmé.com 2001:db8::7".split(),
        *"acme.com: acme.com:https acme.com:٨٤٤٣ acme.com:hunter2 acme.com/?key=hunter2".split(),
    ],
}
KEYS_IN_FLAGS = ["--{}", "--api-key={}", "--key {}", "{}", "--quiet={}", "--month={}", "--org={}"]
ORGANIZATIONS = {"4kd82ma": "Northwind", "p7w3xq9": "Fabrikam", "t2": "FABRIKAM", "x3": "p7w3xq9"}
TENANTS = Partner(
    [organization(*each) for each in ORGANIZATIONS.items()],
    fixed(usage(owner, owner, "gpu", "1h") for owner in ("p7w3xq9", "t2", "4kd82ma", "unlisted")),
)


@pytest.mark.parametrize("environ", [{}, dict.fromkeys(OPTIONAL, ""), dict.fromkeys(OPTIONAL, " ")])
def test_an_unset_or_blank_variable_has_its_default(run: Run, environ: dict[str, str]) -> None:
    result = run(prices=None, **environ)
    assert [default for *_, default in SETTINGS if default not in result.stdout] == []


@pytest.mark.parametrize("by_flag", [True, False], ids=["flag", "variable"])
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: each[0])
def test_a_setting_is_its_flag_or_else_its_variable(
    run: Run, tmp_path: Path, setting: tuple[str, ...], by_flag: bool
) -> None:
    (tmp_path / "other").mkdir()
    variable, flag, value, shown, _ = setting
    flags = [f"{flag}={value}"] if by_flag else []
    text = "nonsense" if by_flag else value
    result = run(*flags, **{variable: f" {text}\n"})
    assert result.status == 0
    assert shown in result.stdout


@pytest.mark.parametrize("environ", [{}, dict.fromkeys(REQUIRED, ""), dict.fromkeys(REQUIRED, " ")])
def test_a_required_variable_that_is_unset_or_blank_is_an_error(
    run: Run, stand_in: Simulator, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    monkeypatch.setattr(stand_in, "environ", {})
    assert_failed(run(**environ), f"error: not set: {', '.join(REQUIRED)}", status=2)


def test_only_what_is_missing_is_named(run: Run) -> None:
    result = run(PARTNER_API_KEY=" ")
    assert_failed(result, "error: not set: PARTNER_API_KEY: see --help$", status=2)


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("blank", ["", " "])
def test_a_blank_flag_is_an_error(run: Run, flag: str, blank: str) -> None:
    result = run(f"{flag}={blank}")
    assert_failed(result, f"\nncp_metrics: error: argument {flag}: ", status=2)
    assert result.requests == []


@pytest.mark.parametrize(("variable", "value"), [(k, value) for k in VALID for value in VALID[k]])
def test_a_valid_value_is_accepted(run: Run, variable: str, value: str) -> None:
    result = run(prices="", **{variable: value})
    assert_failed(result, r"prices\.csv: needs a header", status=2)


@pytest.mark.parametrize(
    ("variable", "error", "value"),
    [(*named, value) for named, values in INVALID.items() for value in values],
)
def test_an_invalid_value_is_an_error_without_secrets(
    run: Run, variable: str, error: str, value: str
) -> None:
    result = run(**{variable: value})
    assert_failed(result, f"(?m)^ncp_metrics: error: {error}", status=2)
    assert "hunter2" not in result.stderr
    assert result.requests == []


def test_every_iana_time_zone_is_accepted(run: Run) -> None:
    for name in available_timezones() - {"localtime"}:
        result = run(prices="", TIMEZONE=name)
        assert_failed(result, r"prices\.csv: needs a header", status=2)


@pytest.mark.parametrize(
    ("currency", "amount"), [("USD", "51.48"), ("XYZ", "51.48"), ("JPY", "51"), ("KWD", "51.475")]
)
def test_amounts_have_the_decimals_of_the_currency(run: Run, currency: str, amount: str) -> None:
    row = run(CURRENCY=currency).rows[0]  # 20.59 h x 2.50
    assert (row["billing_amount"], row["currency"]) == (amount, currency)


@pytest.mark.parametrize(("url", "status"), [("HTTP://LOCALHOST:{}/", 0), ("127.0.0.1:{}", 1)])
def test_the_default_scheme_is_https(run: Run, stand_in: Simulator, url: str, status: int) -> None:
    result = run(RAFAY_CONSOLE_URL=url.format(stand_in.url.rpartition(":")[2]))
    assert (result.status, len(result.files)) == (status, 0 if status else 2)


def test_an_output_directory_must_be_writable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    assert_failed(run(), "argument --output-dir: .*writable directory", status=2)


@pytest.mark.parametrize("key", [DEFAULT_KEY, PARTNER_KEY.upper()])
@pytest.mark.parametrize("variable", ["RAFAY_CONSOLE_URL", *OPTIONAL])
def test_no_error_shows_a_key_in_another_variable(run: Run, variable: str, key: str) -> None:
    result = run(**{variable: key})
    assert_failed(result, status=2)
    assert key.casefold() not in result.stderr.casefold()
    assert result.requests == []


@pytest.mark.parametrize("key", [DEFAULT_KEY, PARTNER_KEY.upper()])
@pytest.mark.parametrize("variable", ["RAFAY_CONSOLE_URL", "RAFAY_OPS_CONSOLE_URL"])
@pytest.mark.parametrize("url", ["https://{}.acme.com:443/", "https://me:{}@acme.com", "a.com/{}"])
def test_no_error_shows_a_key_in_a_url(run: Run, url: str, variable: str, key: str) -> None:
    result = run(**{variable: url.format(key)})
    assert_failed(result, f"error: .*{variable}", status=2)
    assert key.casefold() not in result.stderr.casefold()
    assert result.requests == []


@pytest.mark.parametrize("key", [DEFAULT_KEY, PARTNER_KEY.upper()])
@pytest.mark.parametrize("flags", KEYS_IN_FLAGS)
def test_no_error_shows_a_key_in_a_flag(run: Run, flags: str, key: str) -> None:
    result = run(*flags.format(key).split())
    assert_failed(result, status=2)
    assert key.casefold() not in result.stderr.casefold()


@pytest.mark.parametrize("flag", ["--dayz=7", "--mon=last"])
def test_a_flag_that_is_unknown_or_shortened_is_an_error(run: Run, flag: str) -> None:
    error = f"\nncp_metrics: error: unrecognized arguments: {flag}"
    assert_failed(run(flag), "^usage: ncp_metrics ", error, status=2)


@pytest.mark.parametrize(
    ("flags", "billed"),
    [
        *(("--org=t2 --org=nORTHWIND", "4kd82ma t2"), ("--org=p7w3xq9", "p7w3xq9")),
        ("--org=Northwind --org=4kd82ma", "4kd82ma"),
    ],
)
def test_org_makes_a_partial_bill_of_names_and_ids(run: Run, flags: str, billed: str) -> None:
    result = run(*flags.split(), partner=TENANTS)
    assert (result.status, result.stderr) == (0, "")  # not reconciled: no word of "unlisted"
    assert [row["organization_id"] for row in result.rows] == billed.split()
    assert "Partial bill" in result.stdout


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("--org=Northwnd", "'Northwnd' is not listed; did you mean Northwind"),
        ("--org=fabrikam", "'fabrikam' is ambiguous: give the id: p7w3xq9, t2"),
        ("--check --org=Northwind --org=Acme", "'Acme' is not listed$"),
    ],
)
def test_an_unknown_or_ambiguous_org_is_an_error(run: Run, flags: str, error: str) -> None:
    result = run(*flags.split(), partner=TENANTS)
    assert_failed(result, f"error: --org: .*{error}", status=2)


@pytest.mark.parametrize("flag", ["-q", "--quiet"])
def test_quiet_prints_warnings_only(run: Run, flag: str) -> None:
    result = run(flag, prices="profile,hourly_rate\n")
    assert (result.status, result.stdout, len(result.files)) == (3, "", 2)
    assert result.warnings


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_verbose_prints_a_line_for_each_request(run: Run, flag: str) -> None:
    result = run(flag)
    lines = result.stderr.splitlines()
    assert len(lines) == len(result.requests) > 0
    assert [line for line in lines if "?limit=" not in line] == []


@pytest.mark.parametrize(
    ("flag", "texts"),
    [("-h", HELP), ("--help", HELP), ("--version", [r"^ncp_metrics 3\.0\.0\n$"])],
)
def test_help_and_version_need_no_settings(run: Run, flag: str, texts: list[str]) -> None:
    result = run(flag, prices=None, **dict.fromkeys(REQUIRED, ""))
    assert (result.status, result.stderr) == (0, "")
    assert [text for text in texts if not re.search(text, result.stdout)] == []


def test_help_shows_any_directory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ncp_metrics, "__file__", "/100%/ncp_metrics.py")
    assert "/100%/pricing.csv)" in run("--help").stdout
