"""Settings: where each comes from, its default, which values are valid; and every other flag."""

from __future__ import annotations

import re
from pathlib import Path
from zoneinfo import available_timezones

import iso4217
import pytest
from conftest import ROOT, Result, Run
from example import usage
from rafay_simulator import Partner, Simulator, fixed, organization

KEYS = ["RAFAY_DEFAULT_API_KEY", "PARTNER_API_KEY"]
REQUIRED = ["RAFAY_CONSOLE_URL", *KEYS]
SETTINGS = [  # variable, flag, value, what the summary then shows, what it shows by default
    ("DAYS", "--days", "7", "2026-06-24T00:00:00Z to", "2026-06-01T00:00:00Z to"),
    ("BILLING_MONTH", "--month", "2026-05", "2026-05-01T00:00:00Z to", "2026-06-01T00:00:00Z to"),
    ("TIMEZONE", "--timezone", "Asia/Tokyo", "Asia/Tokyo", "UTC"),
    ("CURRENCY", "--currency", "EUR", "EUR", "USD"),
    ("PRICING_FILE", "--pricing", "../prices.csv", "/prices.csv", f"{ROOT}/pricing.csv"),
    ("OUTPUT_DIR", "--output-dir", "../other", "/other/ncp-metrics", "/out/ncp-metrics"),
]
OPTIONAL = [each[0] for each in SETTINGS] + ["WORKERS", "RECONCILE", "RAFAY_OPS_CONSOLE_URL"]
FLAGS = [each[1] for each in SETTINGS] + "--from --to --no-reconcile --org --check --quiet".split()
HELP = [*REQUIRED, *OPTIONAL, *FLAGS, "\n  129, 130, 143 "]
VALID = {
    "DAYS": ["1", "3650"],
    "WORKERS": ["1", "32"],
    "RECONCILE": ["0", "1"],
    "PARTNER_API_KEY": ["".join(map(chr, range(ord("!"), ord("~") + 1)))],
    "RAFAY_CONSOLE_URL": [
        *"acme.com acme.com/ acme.com:8443 rafay:8443 192.0.2.7 [2001:db8::7]:8443".split(),
        *"https://acme.com https://acme.com:65535/ HTTPS://acme.com http://localhost".split(),
        *"http://LOCALHOST:8080 http://127.9.9.9 http://127.0.0.1:8080/ http://[::1]:8080".split(),
    ],
}
INVALID = {  # the beginning of the error: values of the variable
    "DAYS: .*3650": [*"0 3651 -7 +7 7.0 7e0 1_0 0x7 seven ٧ ７".split(), "7 7", "9" * 99],
    "WORKERS: .*32": ["0", "33", "many"],
    "RECONCILE: .*1": ["2", "yes"],
    "CURRENCY: .*ISO 4217": "usd US$ $ US USDT EURO XAU XXX 840".split(),
    "TIMEZONE: .*IANA": [
        *"utc Europe/berlin Europe Europe/ Europe//Berlin Foo/Bar Z UTC+3 GMT+3 +02:00".split(),
        *"CEST CET-1CEST,M3.5.0,M10.5.0/3 localtime /etc/localtime ../UTC Europe/../UTC".split(),
    ],
    "OUTPUT_DIR: .*director": ["none", "../prices.csv", "a" * 300],
    "RAFAY_DEFAULT_API_KEY: ": ["hunter2 x", "x\nhunter2"],
    "PARTNER_API_KEY: ": ["hunter2\r\nx", "hunter2\tx", "hunter2é", "hunter2\u200bx", "a\x7f"],
    "RAFAY_OPS_CONSOLE_URL: .*https://": ["http://acme.com", "ftp://me:hunter2@acme.com"],
    "RAFAY_CONSOLE_URL: .*https://": [
        *"http://acme.com HTTP://acme.com http://192.0.2.7 http://0.0.0.0".split(),
        *"http://[2001:db8::7] http://localhost.acme.com http://127.0.0.1.acme.com".split(),
        *"ftp://me:hunter2@acme.com file:///etc ://acme.com me:hunter2://acme.com".split(),
    ],
    "RAFAY_CONSOLE_URL: .*host": [
        *"me@acme.com https://me:hunter2@acme.com a@[::1] a.com:0 a.com:65536 a.com:99999".split(),
        *"https:// https:/// https:acme.com https://https://acme.com https://[hunter2]".split(),
        *"acme.com/console acme.com// acme.com#a acme..com acme\\com acmé.com 2001:db8::7".split(),
        *"acme.com: acme.com:https acme.com:٨٤٤٣ acme.com:hunter2 acme.com/?key=hunter2".split(),
    ],
}
UNKNOWN = [  # flags, what the error shows of them
    *(("--mon=last", "--mon"), ("--days", "--days"), ("--api-key=hunter2", "--api-key")),
    *(("--quiet=it's-hunter2", "--quiet"), ("--key hunter2", "--key")),
    *(("hunter2", "hidden"), ("--hunter2hunter2==", "hidden")),
]
ORGANIZATIONS = {"4kd82ma": "Northwind", "p7w3xq9": "Fabrikam", "t2": "FABRIKAM", "x3": "p7w3xq9"}
TENANTS = Partner(
    [organization(*each) for each in ORGANIZATIONS.items()],
    fixed(usage(owner, owner, "gpu", "1h") for owner in ("p7w3xq9", "t2", "4kd82ma", "unlisted")),
)


def assert_errors(result: Result, *patterns: str) -> None:
    """Assert that the run ended with an error for each pattern, and no other."""
    assert (result.status, result.stdout, result.files) == (2, "", {})
    assert len(result.stderr.splitlines()) == len(result.errors) == len(patterns)
    for pattern in patterns:
        assert [error for error in result.errors if re.search(pattern, error)], pattern


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
    given, text = (value, "nonsense") if by_flag else ("", value)
    result = run(f"{flag}= {given} ", **{variable: f" {text}\n"})
    assert result.status == 0
    assert shown in result.stdout


@pytest.mark.parametrize("environ", [{}, dict.fromkeys(REQUIRED, ""), dict.fromkeys(REQUIRED, " ")])
def test_a_required_variable_that_is_unset_or_blank_is_an_error(
    run: Run, stand_in: Simulator, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    monkeypatch.setattr(stand_in, "environ", {})
    assert_errors(run(**environ), *REQUIRED)


@pytest.mark.parametrize(("variable", "value"), [(k, value) for k in VALID for value in VALID[k]])
def test_a_valid_value_is_accepted(run: Run, variable: str, value: str) -> None:
    assert_errors(run(prices="", **{variable: value}), "prices.csv")


@pytest.mark.parametrize(("error", "value"), [(k, value) for k in INVALID for value in INVALID[k]])
def test_an_invalid_value_is_an_error_without_secrets(run: Run, error: str, value: str) -> None:
    result = run(**{error.partition(":")[0]: value})
    assert_errors(result, f"^{error}")
    assert "hunter2" not in result.stderr


def test_every_iana_time_zone_is_accepted(run: Run) -> None:
    for name in available_timezones() - {"localtime"}:
        assert_errors(run(prices="", TIMEZONE=name), "prices.csv")


def test_every_iso_4217_currency_is_accepted_with_its_digits(run: Run, directory: Path) -> None:
    for currency in iso4217.Currency:
        if currency.exponent is not None:
            assert_errors(run(prices="", CURRENCY=currency.code), "prices.csv")
        if currency.exponent in (0, 3, 4):
            row = run("--no-reconcile", CURRENCY=currency.code).rows[0]
            assert len(row["billing_amount"].partition(".")[2]) == currency.exponent, currency
            for path in directory.iterdir():
                path.unlink()


@pytest.mark.parametrize(("url", "status"), [("HTTP://LOCALHOST:{}/", 0), ("127.0.0.1:{}", 1)])
def test_the_default_scheme_is_https(run: Run, stand_in: Simulator, url: str, status: int) -> None:
    result = run(RAFAY_CONSOLE_URL=url.format(stand_in.url.rpartition(":")[2]))
    assert (result.status, len(result.files)) == (status, 0 if status else 2)


def test_an_output_directory_must_be_writable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    assert_errors(run(), "^OUTPUT_DIR: .*writable directory")


def test_everything_wrong_is_reported_at_once_before_any_request(run: Run) -> None:
    flags = ["--days=0", "--dayz=1", "--currency=usd", "--timezone=Mars"]
    wrong = dict.fromkeys([*REQUIRED, "OUTPUT_DIR", "WORKERS", "RECONCILE"], "a b")
    result = run(*flags, prices="profile,hourly_rate\ngpu,-1\ngpu,x\n", **wrong)
    named = [flag.partition("=")[0] for flag in flags]
    assert_errors(result, *named, *wrong, "csv: line 2:", "csv: line 3:")
    assert result.requests == []


@pytest.mark.parametrize("flag", ["--currency=usd", "--timezone=Mars"])
def test_what_is_wrong_is_reported_once(run: Run, flag: str) -> None:
    prices = "profile,hourly_rate,currency,effective_from\ngpu,1,USD,2026-03-29T02:30\n"
    assert_errors(run(flag, prices=prices), f"^{flag.partition('=')[0]}")


@pytest.mark.parametrize("key", KEYS)
def test_no_error_shows_a_misplaced_key(run: Run, stand_in: Simulator, key: str) -> None:
    result = run(**dict.fromkeys(OPTIONAL, stand_in.environ[key]))
    assert len(result.errors) == len(OPTIONAL) - 1  # a key could be the name of a host
    assert stand_in.environ[key] not in result.stderr


@pytest.mark.parametrize(("flags", "shown"), UNKNOWN)
def test_an_unknown_flag_is_an_error_without_its_value(run: Run, flags: str, shown: str) -> None:
    result = run(*flags.split())
    assert_errors(result, f"{shown}.*--help")
    assert "hunter2" not in result.stderr


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
    ("flags", "errors"),
    [
        *(("--org=Northwnd", ["'Northwnd'.* Northwind"]), ("--org=", ["''.* not listed$"])),
        *(("--org=Nothwind", ["Northwind"]), ("--org=fabrikam", ["'fabrikam'.* p7w3xq9, t2"])),
        ("--check --org=Acme --org=Northwind --org=Zephyr", ["'Acme'", "'Zephyr'"]),
    ],
)
def test_an_unknown_or_ambiguous_org_is_an_error(run: Run, flags: str, errors: list[str]) -> None:
    result = run(*flags.split(), partner=TENANTS)
    assert (result.status, result.files, len(result.errors)) == (2, {}, len(errors))
    for error, pattern in zip(result.errors, errors):
        assert re.search(f"^--org: .*{pattern}", error)


def test_quiet_prints_warnings_only(run: Run) -> None:
    result = run("--quiet", prices="profile,hourly_rate\n")
    assert (result.status, result.stdout, len(result.files)) == (3, "", 2)
    assert result.warnings


@pytest.mark.parametrize(
    ("flag", "texts"),
    [("-h", HELP), ("--help", HELP), ("--version", [r"^ncp_metrics \d+\.\d+\.\d+$"])],
)
def test_help_and_version_need_no_settings(run: Run, flag: str, texts: list[str]) -> None:
    result = run(flag, prices=None, **dict.fromkeys(REQUIRED, ""))
    assert (result.status, result.stderr) == (0, "")
    assert [text for text in texts if not re.search(text, result.stdout)] == []
    assert max(map(len, result.stdout.splitlines())) <= 80
