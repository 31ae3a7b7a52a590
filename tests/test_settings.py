"""Settings: where each comes from, its default, which values are valid; and the other flags."""

from __future__ import annotations

import re
import zoneinfo

import pytest
from conftest import ROOT, Run, assert_billed, assert_failed, cases, table
from example import tenants, usage
from rafay_simulator import DEFAULT_KEY, PARTNER_KEY, Simulator, organization

import ncp_metrics

OTHER_KEY = PARTNER_KEY.upper()

# Where they come from


def test_a_blank_variable_counts_as_unset(run: Run) -> None:
    optional = "DAYS BILLING_MONTH TIMEZONE CURRENCY OUTPUT_DIR WORKERS RECONCILE"
    blank = dict.fromkeys(optional.split(), " ")
    assert_billed(run(RAFAY_OPS_CONSOLE_URL="", **blank))


@table(
    "default",
    """
    30 days    | Period: 2026-06-01T00:00:00Z to 2026-07-01T00:00:00Z
    UTC        | Time zone: UTC
    USD        | Amount (USD)
    directory  | /out/ncp-metrics-07
    reconciled | Reconciled
    """,
)
def test_a_setting_has_a_default(run: Run, default: str) -> None:
    assert default in run().stdout


def test_the_default_price_book_is_beside_the_script(run: Run) -> None:
    assert f"Price book: {ROOT}/pricing.csv" in run(prices=None, PRICING_FILE=" ").stdout


@table(
    "flag, variable, value, shown",
    """
    days       | --days       | DAYS          | 7             | Period: 2026-06-24T00:00:00Z to
    month      | --month      | BILLING_MONTH | 2026-05       | Period: 2026-05-01T00:00:00Z to
    zone       | --timezone   | TIMEZONE      | Asia/Tokyo    | Time zone: Asia/Tokyo
    currency   | --currency   | CURRENCY      | EUR           | Amount .EUR.
    price book | --pricing    | PRICING_FILE  | ../prices.csv | Price book: /.*/prices.csv, prices:
    directory  | --output-dir | OUTPUT_DIR    | ..            | File: /.*/../ncp-metrics-07
    """,
)
def test_a_setting_is_its_flag_or_else_its_variable(
    run: Run, flag: str, variable: str, value: str, shown: str
) -> None:
    by_variable = run(**{variable: f" {value}\n"})
    by_flag = run(f"{flag}={value}", **{variable: "nonsense"})
    for result in (by_variable, by_flag):
        assert result.status == 0
        assert re.search(shown, result.stdout)


@table(
    "names",
    """
    all | RAFAY_CONSOLE_URL, RAFAY_DEFAULT_API_KEY, PARTNER_API_KEY
    one | PARTNER_API_KEY
    """,
)
def test_all_required_variables_that_are_missing_are_named(run: Run, names: str) -> None:
    result = run(**dict.fromkeys(names.split(", "), " "))
    assert_failed(result, f"error: not set: {names}: see --help$", status=2)


@pytest.mark.parametrize("blank", ["", " "], ids=["empty", "blank"])
@table(
    "flag",
    """
    month     | --month
    days      | --days
    start     | --from
    end       | --to
    zone      | --timezone
    currency  | --currency
    prices    | --pricing
    directory | --output-dir
    tenant    | --org
    """,
)
def test_a_blank_flag_is_an_error(run: Run, flag: str, blank: str) -> None:
    result = run(f"{flag}={blank}")
    assert_failed(result, f"error: argument {flag}[ /:]", status=2)
    assert result.requests == []


# Which values are valid


@table(
    "variable, value",
    """
    one day         | DAYS                  | 1
    ten years       | DAYS                  | 3650
    one worker      | WORKERS               | 1
    32 workers      | WORKERS               | 32
    a new currency  | CURRENCY              | XYZ
    a short key     | RAFAY_DEFAULT_API_KEY | 12345678
    a plain key     | PARTNER_API_KEY       | !AZaz09~
    a host          | RAFAY_CONSOLE_URL     | acme.com
    a slash         | RAFAY_CONSOLE_URL     | acme.com/
    a short host    | RAFAY_CONSOLE_URL     | rafay:8443
    an address      | RAFAY_CONSOLE_URL     | 192.0.2.7
    a v6 address    | RAFAY_CONSOLE_URL     | [2001:db8::7]:8443
    a URL           | RAFAY_CONSOLE_URL     | HTTPS://acme.com:65535/
    loopback        | RAFAY_CONSOLE_URL     | http://LOCALHOST:8080
    loopback's net  | RAFAY_CONSOLE_URL     | http://127.9.9.9
    v6 loopback     | RAFAY_CONSOLE_URL     | http://[::1]:8080/
    """,
)
def test_a_valid_value_is_accepted(run: Run, variable: str, value: str) -> None:
    # What is wrong is found next.
    result = run(prices="", **{variable: value})
    assert_failed(result, r"prices\.csv: needs a header", status=2)


@table(
    "variable, value, error",
    """
    no days          | DAYS                  | 0         | DAYS: .* from 1 to 3650
    many days        | DAYS                  | 3651      | DAYS: .* from 1 to 3650
    a sign           | DAYS                  | +7        | DAYS: .* from 1 to 3650
    not ASCII        | DAYS                  | ٧         | DAYS: .* from 1 to 3650
    many workers     | WORKERS               | 33        | WORKERS: .* from 1 to 32
    not a switch     | RECONCILE             | 2         | RECONCILE: .* 1 or 0
    lower case       | CURRENCY              | usd       | argument --currency: .* ISO 4217
    two letters      | CURRENCY              | US        | argument --currency: .* ISO 4217
    four letters     | CURRENCY              | USDT      | argument --currency: .* ISO 4217
    no zone          | TIMEZONE              | CEST      | argument --timezone: .* IANA
    a path           | TIMEZONE              | ../UTC    | argument --timezone: .* IANA
    a directory      | TIMEZONE              | Europe    | argument --timezone: .* IANA
    no directory     | OUTPUT_DIR            | missing   | argument --output-dir: .* directory
    a file           | OUTPUT_DIR            | /bin/sh   | argument --output-dir: .* directory
    a short key      | RAFAY_DEFAULT_API_KEY | hunter2   | RAFAY_DEFAULT_API_KEY: .* 8 or more
    a short key      | PARTNER_API_KEY       | hunter2   | PARTNER_API_KEY: .* 8 or more
    a blank in a key | PARTNER_API_KEY       | hunter2 hunter2    | PARTNER_API_KEY: .* printable
    a control        | PARTNER_API_KEY       | hunter2\x7fhunter2 | PARTNER_API_KEY: .* printable
    not ASCII        | PARTNER_API_KEY       | hunter2éhunter2    | PARTNER_API_KEY: .* printable
    """,
)
def test_an_invalid_value_is_an_error(run: Run, variable: str, value: str, error: str) -> None:
    result = run(**{variable: value})
    assert_failed(result, f"ncp_metrics: error: {error}", status=2)
    assert "hunter2" not in result.stderr
    assert result.requests == []


@table(
    "url",
    """
    key in clear     | http://acme.com
    v6 in clear      | http://[2001:db8::7]
    all addresses    | http://0.0.0.0
    like loopback    | http://localhost.acme.com
    like 127.0.0.1   | http://127.0.0.1.acme.com
    another scheme   | ftp://localhost
    no host          | :8443
    port 0           | acme.com:0
    no such port     | acme.com:65536
    a port's name    | acme.com:hunter2
    an empty label   | acme..com
    not ASCII        | acmé.com
    a password       | https://me:hunter2@acme.com
    a path           | acme.com/console
    two slashes      | acme.com//
    a query          | acme.com?key=hunter2
    """,
)
def test_an_invalid_url_is_an_error(run: Run, url: str) -> None:
    for variable in ("RAFAY_CONSOLE_URL", "RAFAY_OPS_CONSOLE_URL"):
        result = run(**{variable: url})
        assert_failed(result, f"error: {variable}: must be host, host:port or https://", status=2)
        assert "hunter2" not in result.stderr
        assert result.requests == []


@table(
    "url, status",
    """
    http  | HTTP://LOCALHOST:{}/ | 0
    https | 127.0.0.1:{}         | 1
    """,
)
def test_the_default_scheme_is_https(run: Run, stand_in: Simulator, url: str, status: str) -> None:
    port = stand_in.url.rpartition(":")[2]
    result = run(RAFAY_CONSOLE_URL=url.format(port))
    assert result.status == int(status)


def test_utc_needs_no_zone_files(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(zoneinfo, "ZoneInfo")
    assert_billed(run())


def test_an_output_directory_must_be_writable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    assert_failed(run(), "argument --output-dir: .*writable directory", status=2)


# What no error shows


@table(
    "variable, text",
    f"""
    a host        | RAFAY_CONSOLE_URL     | {DEFAULT_KEY}
    a subdomain   | RAFAY_OPS_CONSOLE_URL | https://{OTHER_KEY}.acme.com:443/
    a path        | RAFAY_CONSOLE_URL     | https://acme.com/{DEFAULT_KEY}
    of argparse   | CURRENCY              | {OTHER_KEY}
    of our own    | DAYS                  | {DEFAULT_KEY}
    a file's name | PRICING_FILE          | {OTHER_KEY}
    """,
)
def test_a_key_in_a_setting_is_an_error_that_does_not_show_it(
    run: Run, variable: str, text: str
) -> None:
    consoles = {"RAFAY_OPS_CONSOLE_URL": "127.0.0.1:9"}
    result = run(**{**consoles, variable: text})
    assert_failed(result, status=2)
    for key in (DEFAULT_KEY, PARTNER_KEY):
        assert key not in result.stderr.lower()
    assert result.requests == []


@cases("flag", {"unknown": f"--key={DEFAULT_KEY}", "known": f"--month={OTHER_KEY}"})
def test_a_key_in_a_flag_is_an_error_that_does_not_show_it(run: Run, flag: str) -> None:
    result = run(flag)
    assert_failed(result, status=2)
    for key in (DEFAULT_KEY, PARTNER_KEY):
        assert key not in result.stderr.lower()


# Other flags


def test_a_flag_is_not_shortened(run: Run) -> None:
    error = "\nncp_metrics: error: unrecognized arguments: --mon=last"
    assert_failed(run("--mon=last"), "^usage: ncp_metrics ", error, status=2)


TWINS = tenants(
    usage("b1", "i", "gpu", "1h"),
    usage("b2", "j", "gpu", "1h"),
    usage("a1", "k", "gpu", "1h"),
    usage("unlisted", "l", "gpu", "1h"),
    listed=[
        organization("a1", "Acme"),
        organization("b1", "Beta"),
        organization("b2", "BETA"),
        organization("x1", "b1"),
    ],
)


@table(
    "flags, billed",
    """
    a name       | --org=aCME            | a1
    an id        | --org=b2              | b2
    as listed    | --org=b2 --org=Acme   | a1 b2
    a name's id  | --org=b1              | b1
    named twice  | --org=Acme --org=a1   | a1
    """,
)
def test_org_makes_a_partial_bill_of_names_and_ids(run: Run, flags: str, billed: str) -> None:
    result = run(*flags.split(), partner=TWINS)
    assert result.cells("organization_id") == billed.split()
    assert (result.status, result.stderr) == (0, "")  # no word of the unlisted one
    assert "Partial bill, not reconciled" in result.stdout


def test_blanks_around_a_name_do_not_count(run: Run) -> None:
    result = run("--org= Acme ", partner=TWINS)
    assert result.cells("organization_id") == ["a1"]


@table(
    "flag, error",
    """
    misspelled | --org=Acmee | organization 'Acmee' is not listed; did you mean Acme
    ambiguous  | --org=beta  | organization 'beta' is ambiguous: give the id: b1, b2
    """,
)
def test_an_unknown_or_ambiguous_org_is_an_error(run: Run, flag: str, error: str) -> None:
    result = run(flag, partner=TWINS)
    assert_failed(result, f"error: --org: {error}", status=2)


@pytest.mark.parametrize("flag", ["-q", "--quiet"])
def test_quiet_prints_warnings_only(run: Run, flag: str) -> None:
    result = run(flag, prices="profile,hourly_rate\n")
    assert (result.status, result.stdout) == (3, "")
    assert result.warnings


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_verbose_prints_a_line_for_each_request(run: Run, flag: str) -> None:
    result = run(flag)
    requests = len(result.requests)
    assert result.stderr.count("ncp_metrics: request: /") == requests > 0


@table(
    "flag, shown",
    """
    short   | -h        | usage: ncp_metrics
    help    | --help    | usage: ncp_metrics
    version | --version | ncp_metrics
    """,
)
def test_help_and_version_need_no_settings(run: Run, flag: str, shown: str) -> None:
    result = run(flag, prices=None, RAFAY_CONSOLE_URL="")
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.startswith(shown)


def test_help_shows_any_directory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ncp_metrics, "__file__", "/100%/ncp_metrics.py")
    assert "/100%/pricing.csv)" in run("--help").stdout
