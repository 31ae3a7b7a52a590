"""What a run can be told, and how it says that it was told something wrong."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import iso4217
import pytest
from dateutil.tz import gettz

import ncp_metrics
from ncp_metrics import (
    MINOR_UNITS,
    Period,
    Settings,
    check_api_key,
    check_console_url,
    check_currency,
    read_settings,
    whole_number,
)

REQUIRED = {
    "RAFAY_CONSOLE_URL": "rafay.acme.com",
    "RAFAY_DEFAULT_API_KEY": "ra2.default.key",
    "PARTNER_API_KEY": "ra2.partner.key",
}
NOW = datetime(2026, 7, 1, 10, 20, 46, tzinfo=timezone.utc)


def last_days(days: int) -> Period:
    """Return the last so many days up to NOW."""
    return Period(NOW - timedelta(days=days), NOW)


def read_right(flags: Mapping[str, str] | None = None, /, **environ: str) -> Settings:
    """Read settings of which nothing is wrong, the required ones among them."""
    settings, problems = read_settings(flags or {}, {**REQUIRED, **environ}, NOW)
    assert problems == []
    return settings


def read_wrong(flags: Mapping[str, str] | None = None, /, **environ: str) -> list[str]:
    """Return what is wrong with settings, the required ones among them."""
    _, problems = read_settings(flags or {}, {**REQUIRED, **environ}, NOW)
    return problems


# Where a setting comes from


def test_three_variables_suffice_and_the_rest_has_defaults() -> None:
    settings = read_right()
    assert settings == Settings(
        console_url="https://rafay.acme.com",
        ops_console_url="https://rafay.acme.com",
        default_api_key="ra2.default.key",
        partner_api_key="ra2.partner.key",
        period=last_days(30),
        provisional=False,
        timezone=gettz("UTC") or timezone.utc,
        timezone_name="UTC",
        currency="USD",
        pricing_file=Path(ncp_metrics.__file__).parent / "pricing.csv",
        output_dir=Path("."),
        workers=8,
        reconciling=True,
        wanted=(),
        checking=False,
    )


def test_each_variable_of_the_environment_is_read(tmp_path: Path) -> None:
    settings = read_right(
        RAFAY_OPS_CONSOLE_URL="https://ops.acme.com",
        DAYS="7",
        TIMEZONE="Asia/Tokyo",
        CURRENCY="EUR",
        PRICING_FILE="/etc/ncp/prices.csv",
        OUTPUT_DIR=str(tmp_path),
        WORKERS="3",
        RECONCILE="0",
    )
    assert settings == Settings(
        console_url="https://rafay.acme.com",
        ops_console_url="https://ops.acme.com",
        default_api_key="ra2.default.key",
        partner_api_key="ra2.partner.key",
        period=last_days(7),
        provisional=False,
        timezone=gettz("Asia/Tokyo") or timezone.utc,
        timezone_name="Asia/Tokyo",
        currency="EUR",
        pricing_file=Path("/etc/ncp/prices.csv"),
        output_dir=tmp_path,
        workers=3,
        reconciling=False,
        wanted=(),
        checking=False,
    )


def test_a_flag_wins_over_the_environment(tmp_path: Path) -> None:
    settings = read_right(
        {
            "DAYS": "7",
            "CURRENCY": "JPY",
            "PRICING_FILE": "flag.csv",
            "OUTPUT_DIR": str(tmp_path),
        },
        DAYS="8",
        CURRENCY="EUR",
        PRICING_FILE="environment.csv",
        OUTPUT_DIR="/nonexistent",
    )
    assert (settings.period, settings.currency) == (last_days(7), "JPY")
    assert (settings.pricing_file, settings.output_dir) == (Path("flag.csv"), tmp_path)


def test_a_flag_wins_over_a_variable_that_is_wrong() -> None:
    assert read_right({"DAYS": "7"}, DAYS="a week").period == last_days(7)


@pytest.mark.parametrize("blank", ["", " ", "\t\n"], ids=repr)
def test_a_blank_variable_is_unset(blank: str) -> None:
    optional = ("RAFAY_OPS_CONSOLE_URL", "DAYS", "CURRENCY", "PRICING_FILE", "OUTPUT_DIR")
    assert read_right(**dict.fromkeys((*optional, "WORKERS"), blank)) == read_right()


@pytest.mark.parametrize("blank", ["", " ", None], ids=repr)
def test_a_blank_flag_leaves_the_environment_to_speak(blank: str | None) -> None:
    settings, _ = read_settings({"CURRENCY": blank}, {**REQUIRED, "CURRENCY": "EUR"}, NOW)
    assert settings.currency == "EUR"


def test_a_value_is_trimmed() -> None:
    settings = read_right({"DAYS": " 7 "}, PARTNER_API_KEY=" key\n", CURRENCY="EUR ")
    assert settings.period == last_days(7)
    assert (settings.partner_api_key, settings.currency) == ("key", "EUR")


@pytest.mark.parametrize("blank", [None, "", " "], ids=["absent", "empty", "space"])
@pytest.mark.parametrize("variable", REQUIRED)
def test_a_required_variable_that_is_not_set_is_named(variable: str, blank: str | None) -> None:
    environ = {**REQUIRED, variable: blank}
    given = {name: value for name, value in environ.items() if value is not None}
    _, problems = read_settings({}, given, NOW)
    assert [problem.partition(":")[0] for problem in problems] == [f"{variable} is not set"]


# What is wrong with it


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("DAYS", "0", "'0' is not a whole number from 1 to 3650"),
        ("DAYS", "3651", "'3651' is not a whole number from 1 to 3650"),
        ("WORKERS", "0", "'0' is not a whole number from 1 to 32"),
        ("WORKERS", "33", "'33' is not a whole number from 1 to 32"),
        ("CURRENCY", "EURO", "'EURO' is not an ISO 4217 currency code, such as USD"),
        (
            "RAFAY_CONSOLE_URL",
            "http://rafay.acme.com",
            "is http:// and would send the API key in clear: use https://",
        ),
        (
            "RAFAY_OPS_CONSOLE_URL",
            "http://ops.acme.com",
            "is http:// and would send the API key in clear: use https://",
        ),
        (
            "PARTNER_API_KEY",
            "two words",
            "holds a space, a line break or another character that no API key has",
        ),
        (
            "RAFAY_DEFAULT_API_KEY",
            "two words",
            "holds a space, a line break or another character that no API key has",
        ),
    ],
)
def test_a_wrong_value_is_reported_with_its_variable(
    variable: str, value: str, problem: str
) -> None:
    assert read_wrong(**{variable: value}) == [f"{variable}: {problem}"]


@pytest.mark.parametrize(
    ("variable", "value", "read"),
    [
        ("DAYS", "1", last_days(1)),
        ("DAYS", "3650", last_days(3650)),
        ("WORKERS", "1", 1),
        ("WORKERS", "32", 32),
    ],
)
def test_the_bounds_are_allowed(variable: str, value: str, read: object) -> None:
    settings = read_right(**{variable: value})
    assert {"DAYS": settings.period, "WORKERS": settings.workers}[variable] == read


def test_a_wrong_value_of_a_flag_is_reported_with_the_flag() -> None:
    assert read_wrong({"CURRENCY": "usd"}, CURRENCY="EUR") == [
        "--currency: 'usd' is not an ISO 4217 currency code, such as USD"
    ]


def test_an_output_directory_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    [problem] = read_wrong(OUTPUT_DIR=str(tmp_path / "none"))
    assert f"{tmp_path / 'none'} is not a directory" in problem


def test_an_output_directory_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    [problem] = read_wrong(OUTPUT_DIR=str(tmp_path / "file"))
    assert f"{tmp_path / 'file'} is not a directory" in problem


def test_an_output_directory_that_cannot_be_written_to_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    [problem] = read_wrong(OUTPUT_DIR=str(tmp_path))
    assert f"{tmp_path} cannot be written to" in problem


def test_all_that_is_wrong_is_reported_at_once() -> None:
    _, problems = read_settings(
        {"DAYS": "0", "CURRENCY": "usd"},
        {
            "RAFAY_CONSOLE_URL": "http://acme.com",
            "PARTNER_API_KEY": "a b",
            "OUTPUT_DIR": "/nonexistent",
            "WORKERS": "0",
        },
        NOW,
    )
    assert {problem.replace(":", " ").split()[0] for problem in problems} == {
        "RAFAY_CONSOLE_URL",
        "RAFAY_DEFAULT_API_KEY",
        "PARTNER_API_KEY",
        "--days",
        "--currency",
        "OUTPUT_DIR",
        "WORKERS",
    }


# Secrets


def test_the_repr_of_the_settings_hides_the_keys() -> None:
    text = repr(read_right(RAFAY_DEFAULT_API_KEY="hunter2", PARTNER_API_KEY="hunter3"))
    assert "hunter" not in text


@pytest.mark.parametrize("variable", ["RAFAY_DEFAULT_API_KEY", "PARTNER_API_KEY"])
@pytest.mark.parametrize("key", ["hunter2 ", "hunter2\tx", "x\nhunter2", "hunter2é"], ids=repr)
def test_no_problem_shows_a_key(variable: str, key: str) -> None:
    _, problems = read_settings({"DAYS": "0"}, {variable: key}, NOW)
    assert "hunter2" not in "".join(problems)


@pytest.mark.parametrize("variable", ["RAFAY_CONSOLE_URL", "RAFAY_OPS_CONSOLE_URL"])
@pytest.mark.parametrize(
    "url",
    [
        "https://admin:hunter2@rafay.acme.com",
        "http://admin:hunter2@rafay.acme.com",
        "admin:hunter2@rafay.acme.com",
        "ftp://admin:hunter2@rafay.acme.com",
        "admin:hunter2://rafay.acme.com",
        "https://rafay.acme.com:hunter2",
        "https://rafay.acme.com/?key=hunter2",
        "https://[hunter2]",
    ],
)
def test_no_problem_shows_the_password_of_a_url(variable: str, url: str) -> None:
    problems = read_wrong(**{variable: url})
    assert problems
    assert "hunter2" not in "".join(problems)


# Console


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("rafay.acme.com", "https://rafay.acme.com"),
        ("rafay.acme.com/", "https://rafay.acme.com"),
        ("rafay.acme.com:8443", "https://rafay.acme.com:8443"),
        ("rafay:8443", "https://rafay:8443"),
        ("https://rafay.acme.com", "https://rafay.acme.com"),
        ("https://rafay.acme.com/", "https://rafay.acme.com"),
        ("https://rafay.acme.com:8443/", "https://rafay.acme.com:8443"),
        ("HTTPS://rafay.acme.com", "https://rafay.acme.com"),
        ("192.0.2.7", "https://192.0.2.7"),
        ("[2001:db8::7]:8443", "https://[2001:db8::7]:8443"),
        ("http://localhost", "http://localhost"),
        ("http://LOCALHOST:8080", "http://LOCALHOST:8080"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("http://127.9.9.9", "http://127.9.9.9"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_a_console_is_a_host_with_or_without_scheme_and_port(text: str, url: str) -> None:
    assert check_console_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "http://rafay.acme.com",
        "HTTP://rafay.acme.com",
        "http://192.0.2.7",
        "http://0.0.0.0",
        "http://[2001:db8::7]",
        "http://localhost.acme.com",
        "http://127.0.0.1.acme.com",
    ],
)
def test_http_is_for_a_loopback_host_only(text: str) -> None:
    with pytest.raises(ValueError, match="in clear"):
        check_console_url(text)


@pytest.mark.parametrize("text", ["ftp://rafay.acme.com", "file:///etc", "://rafay.acme.com"])
def test_another_scheme_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="scheme"):
        check_console_url(text)


@pytest.mark.parametrize("text", ["admin@acme.com", "https://admin:pw@acme.com", "http://a@[::1]"])
def test_a_user_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="user name or password"):
        check_console_url(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://",
        "https:///",
        "https:rafay.acme.com",
        "rafay.acme.com/console",
        "rafay.acme.com//",
        "rafay.acme.com?a=b",
        "rafay.acme.com#top",
        "rafay .acme.com",
        "rafay.acme.com\n",
        "rafay..acme.com",
        "rafay.acme.com:",
        "rafay.acme.com:https",
        "rafay.acme.com:٨٤٤٣",
        "rafay\\acme.com",
        "räfäy.acme.com",
        "https://https://rafay.acme.com",
        "2001:db8::7",
    ],
    ids=ascii,
)
def test_what_is_not_just_a_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a host"):
        check_console_url(text)


@pytest.mark.parametrize("text", ["acme.com:0", "acme.com:65536", "acme.com:99999"])
def test_an_impossible_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="port"):
        check_console_url(text)


def test_the_highest_port_is_a_port() -> None:
    assert check_console_url("acme.com:65535") == "https://acme.com:65535"


# Keys, numbers, currencies


def test_a_key_is_taken_as_it_is() -> None:
    key = "".join(map(chr, range(ord("!"), ord("~") + 1)))
    assert check_api_key(key) == key


@pytest.mark.parametrize(
    "text", ["", "a b", "key\n", "a\r\nb", "\tkey", "kéy", "k\u200bey", "\x7f"]
)
def test_a_key_with_a_character_that_no_header_carries_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no API key has"):
        check_api_key(text)


@pytest.mark.parametrize(("text", "number"), [("5", 5), ("7", 7), ("12", 12)])
def test_a_whole_number_is_from_the_low_to_the_high_bound(text: str, number: int) -> None:
    assert whole_number(5, 12)(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "4",
        "13",
        "-7",
        "+7",
        "7.0",
        "7e0",
        "1_0",
        "0x7",
        "seven",
        "٧",
        "７",
        "7 ",
        "7\n",
        "9" * 5000,
    ],
    ids=lambda text: ascii(text[:9]),
)
def test_anything_else_is_no_whole_number(text: str) -> None:
    with pytest.raises(ValueError, match="is not a whole number from 5 to 12"):
        whole_number(5, 12)(text)


@pytest.mark.parametrize("code", ["USD", "JPY", "KWD", "CLF"])
def test_a_currency_is_an_iso_4217_code(code: str) -> None:
    assert check_currency(code) == code


@pytest.mark.parametrize(
    "text", ["", "usd", "US$", "$", "US", "USDT", "XAU", "XXX", "USD\n", "840"]
)
def test_anything_else_is_no_currency(text: str) -> None:
    with pytest.raises(ValueError, match="is not an ISO 4217 currency code"):
        check_currency(text)


def test_the_minor_units_are_those_of_iso_4217_and_no_others() -> None:
    exponents = {each.code: each.exponent for each in iso4217.Currency}
    assert MINOR_UNITS == {
        code: Decimal(1).scaleb(-exponent)
        for code, exponent in exponents.items()
        if exponent is not None
    }


# Period


def test_an_output_directory_of_an_impossible_name_is_reported() -> None:
    [problem] = read_wrong(OUTPUT_DIR="a" * 300)
    assert "is not a directory" in problem


def test_the_hours_of_a_period_are_those_of_its_days() -> None:
    assert last_days(30).hours == 30 * 24
