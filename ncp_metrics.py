#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = [
#     "requests>=2.25.1",
#     "python-dateutil>=2.8.1",
# ]
# ///
"""Bill the usage that a Rafay partner's tenants metered: hours x price, as two CSV files.

Data flows one way through this file: settings -> price book -> organizations -> usage ->
lines -> files -> summary. README.md is the manual.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # The imports take a moment: until `main` listens, Ctrl-C ends the process without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import csv
import decimal
import gc
import hashlib
import io
import json
import os
import queue
import random
import re
import shutil
import socket
import ssl
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from difflib import get_close_matches
from functools import lru_cache, reduce
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO
from urllib.parse import urljoin, urlsplit
from zoneinfo import ZoneInfo

import requests
import urllib3
from dateutil import tz
from dateutil.parser import isoparse
from dateutil.relativedelta import relativedelta

__version__ = "1.0.0"

KINDS = ("compute", "service")
INSTANCE = "instance"  # the dimension that every instance has: its own hours
USAGE_PATH = "/apis/billing.envmgmt.io/v1/metrics/partner/instance/kind/{kind}/usage"
ORGANIZATIONS_PATH = "/auth/v1/organizations"
PAGE_SIZE = 400  # what Rafay's own API collection asks for

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0  # of silence; Rafay's recorded example took 2.7 s
ATTEMPTS = 6
BACKOFF_SECONDS = 0.5  # before the second attempt, doubled before each further one
RETRY_AFTER_SECONDS = 30.0  # the longest that a Retry-After is obeyed
SILENCE_SECONDS = 900.0  # without an answer to any request, whatever the server does
STEP_SECONDS = 0.5  # the longest wait in one go: a signal is handled in between at the latest
MAX_REDIRECTS = 5
MAX_ANSWER_BYTES = 64 * 2**20
MAX_PAGES = 10_000  # of one list

MAX_INSTANCE_HOURS = Decimal(10**6)  # a century: a defect, not usage
MAX_QUANTITY_HOURS = Decimal(10**21)  # bytes may be metered as quantities

MAX_PROBLEMS = 20  # shown of one price book, in an error or in the summary

# ISO 4217: the least amount in each currency.
MINOR_UNITS = {
    **dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), Decimal("0.001")),
    **dict.fromkeys("CLF UYW".split(), Decimal("0.0001")),
    **dict.fromkeys(
        "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split(), Decimal(1)
    ),
    **dict.fromkeys(
        "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD "
        "CAD CDF CHE CHF CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP "
        "GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK "
        "LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO "
        "NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS "
        "SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST "
        "XAD XCD XCG YER ZAR ZMW ZWG".split(),
        Decimal("0.01"),
    ),
}

# Money is never rounded but where `billing_amount` says so: more digits than any file holds.
EXACT = decimal.Context(prec=1_000_000, rounding=decimal.ROUND_HALF_UP)
ZERO_HOURS = Decimal("0.00")


class Failure(Exception):
    """The run ends with this exit status; each problem becomes one line on stderr."""

    status = 1

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems


class SettingsError(Failure):
    """Settings, flags or price book are wrong: nothing was asked, nothing written."""

    status = 2


class ApiError(Failure):
    """The API could not be had, or its answer cannot be billed."""


class Unsettled(ApiError):
    """A list contradicts itself: it may have changed while it was read."""


class OutputError(Failure):
    """The files could not be written."""


class Transient(Exception):
    """An attempt failed in a way that another one may not."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Stopped(BaseException):
    """A signal ends the run."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


STOPPING_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def handle_signals(handler: Callable[[int, object], None]) -> None:
    """Handle the signals that stop a run, except those ignored from the start, as by nohup."""
    for each in STOPPING_SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, handler)


def heed_signals() -> None:
    """Let the next signal raise Stopped, and further ones change nothing."""

    def stop(number: int, _frame: object) -> None:
        disregard_signals()
        raise Stopped(number)

    handle_signals(stop)


def disregard_signals() -> None:
    """Let no signal stop what must be finished now, such as cleaning up.

    A handler that does nothing: with SIG_IGN, a second signal that has come already makes Python
    print a traceback.
    """
    handle_signals(lambda _number, _frame: None)


class Period(NamedTuple):
    """What is billed, or a part of it: aware UTC instants, the start included, the end not."""

    start: datetime
    end: datetime

    @property
    def hours(self) -> Decimal:
        """The length in hours."""
        return Decimal(int((self.end - self.start).total_seconds())) / 3600


class Organization(NamedTuple):
    """A tenant, as listed."""

    id: str
    name: str

    @property
    def key(self) -> str:
        """What makes two rows of a list the same organization."""
        return self.id

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"


class Record(NamedTuple):
    """The metered usage of one instance: its hours, and the rest as text.

    `quantities` are quantity x hours of the parameters that the price book prices.
    """

    organization_id: str
    organization_name: str
    project: str
    profile: str
    instance: str
    instance_id: str
    status: str
    created_at: str
    parameters: str
    hours: Decimal
    quantities: Sequence[tuple[str, Decimal]]

    @property
    def key(self) -> tuple[str, str]:
        """What makes two rows of a list the same instance."""
        return self.organization_id, self.instance_id

    def __str__(self) -> str:
        return f"instance {self.instance} ({self.instance_id})"


class Usage(NamedTuple):
    """What one organization used of one kind in one period."""

    organization: Organization
    kind: str
    period: Period
    records: list[Record]


class Line(NamedTuple):
    """A line of the bill: one dimension of one instance in one period.

    `hours` are that dimension's; rate and amount, in currency units, are None without a price.
    """

    usage: Usage
    record: Record
    dimension: str
    hours: Decimal
    rate: Decimal | None
    amount: Decimal | None


# Settings


class Setting(NamedTuple):
    """A variable of the environment, and the flag of the same meaning if there is one."""

    variable: str
    flag: str
    default: str
    meaning: str


REQUIRED = "required"
SETTINGS = (
    Setting(
        "RAFAY_CONSOLE_URL",
        "",
        REQUIRED,
        "the Console, such as rafay.acme.com, host:port or https://rafay.acme.com/",
    ),
    Setting("RAFAY_DEFAULT_API_KEY", "", REQUIRED, "the API key that reads usage"),
    Setting("PARTNER_API_KEY", "", REQUIRED, "the API key that lists organizations"),
    Setting(
        "RAFAY_OPS_CONSOLE_URL",
        "",
        "RAFAY_CONSOLE_URL",
        "the Ops Console, where organizations are listed, if it is another host",
    ),
    Setting("BILLING_MONTH", "--month", "none", "bill a calendar month: 2026-06, or last"),
    Setting("DAYS", "--days", "30", "bill the last so many days, up to now: 1 to 3650"),
    Setting("TIMEZONE", "--timezone", "UTC", "IANA zone in which a month or a date begins"),
    Setting("CURRENCY", "--currency", "USD", "ISO 4217 code of every amount"),
    Setting("PRICING_FILE", "--pricing", "pricing.csv beside the script", "the price book"),
    Setting("OUTPUT_DIR", "--output-dir", "the working directory", "where the two files go"),
    Setting("WORKERS", "", "8", "requests in flight at once: 1 to 32"),
    Setting(
        "RECONCILE",
        "--no-reconcile",
        "1",
        "compare with the usage of the whole partner: 1, or 0 to skip it",
    ),
)
EXIT_STATUSES = (
    ("0", "both files written, all usage priced"),
    ("1", "failed (network, API, disk): no file written"),
    ("2", "settings, flags or price book wrong: nothing asked, nothing written"),
    ("3", "both files written, but usage above 0 hours has no price"),
    ("129, 130, 143", "stopped by SIGHUP, SIGINT, SIGTERM: no file written"),
)


class Settings(NamedTuple):
    """What a run is told, checked; the repr hides the keys."""

    console_url: str
    ops_console_url: str
    default_api_key: str
    partner_api_key: str
    period: Period
    provisional: bool
    timezone: tzinfo
    timezone_name: str
    currency: str
    pricing_file: Path
    output_dir: Path
    workers: int
    reconciling: bool
    wanted: Sequence[str]
    checking: bool

    def __repr__(self) -> str:
        return f"Settings(console_url={self.console_url!r}, ...)"


class Parser(argparse.ArgumentParser):
    """Flags whose errors are reported like every other error."""

    def error(self, message: str) -> NoReturn:
        """Raise SettingsError, without the words that argparse quotes: one may be an API key."""
        raise SettingsError(re.sub(" '.*'", "", message) + "; --help lists the flags")


def parse_flags(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the flags, and what is wrong with the rest of the command line.

    Raises SettingsError, or SystemExit after --help and --version.
    """
    defaults = [(REQUIRED if s.default == REQUIRED else f"default: {s.default}") for s in SETTINGS]
    parser = Parser(
        prog="ncp_metrics",
        description="Bill the usage metered by a Rafay partner: hours x price, as two CSV files.",
        epilog="environment (a flag of the same meaning wins; blank counts as unset):\n"
        + "".join(f"  {s.variable:<22} {s.meaning} ({d})\n" for s, d in zip(SETTINGS, defaults))
        + "\nexit status:\n"
        + "".join(f"  {status:<13} {meaning}\n" for status, meaning in EXIT_STATUSES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for setting in SETTINGS:
        if setting.flag == "--no-reconcile":
            help_text = "do not compare with the usage of the whole partner"
            parser.add_argument(
                setting.flag, dest="RECONCILE", action="store_const", const="0", help=help_text
            )
        elif setting.flag:
            help_text = f"{setting.meaning} (default: {setting.default})"
            name = setting.flag[2:].upper()
            parser.add_argument(setting.flag, dest=setting.variable, metavar=name, help=help_text)
    for flag, which in zip(RANGE, ("begins: included", "ends: not included")):
        help_text = f"where the period {which}; ISO 8601 date or time"
        parser.add_argument(flag, dest=flag, metavar="TIME", help=help_text)
    help_text = "bill this organization only; may be repeated"
    parser.add_argument("--org", action="append", default=[], metavar="NAME_OR_ID", help=help_text)
    help_text = "try settings, price book, keys and hosts with a few requests; write nothing"
    parser.add_argument("--check", action="store_true", help=help_text)
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    flags, unknown = parser.parse_known_args(argv)
    # What is no flag may be an API key.
    names = [text.partition("=")[0] for text in unknown if text.startswith("--")] or ["(no flag)"]
    problems = [f"unknown argument {name}: --help lists the flags" for name in names]
    return flags, problems if unknown else []


class Given:
    """What flags and environment give for the settings, and what is wrong with it."""

    def __init__(self, flags: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self.flags = flags
        self.environ = environ
        self.problems: list[str] = []

    def text(self, variable: str) -> str:
        """Return the text of a setting, blank if there is none: a flag's, or the variable's."""
        flag = (self.flags.get(variable) or "").strip()
        return flag or self.environ.get(variable, "").strip()

    def read(self, setting: Setting, check: Callable[[str], Any], default: str) -> Any:
        """Return what a check makes of a setting, None if it is wrong."""
        text = self.text(setting.variable)
        if not text and setting.default == REQUIRED:
            self.problems.append(f"{setting.variable} is not set: it is {setting.meaning}")
            return None
        try:
            return check(text or default)
        except ValueError as error:
            by_flag = (self.flags.get(setting.variable) or "").strip()
            self.problems.append(f"{setting.flag if by_flag else setting.variable}: {error}")
            return None

    def period(self, days: int | None, zone: tzinfo, now: datetime) -> tuple[Period, bool]:
        """Return the period to bill, and whether it is provisional."""
        try:
            return choose_period(self.flags, self.text("BILLING_MONTH"), days or 1, zone, now)
        except ValueError as error:
            self.problems.append(str(error))
            return Period(now, now), False


def read_settings(
    flags: Mapping[str, Any], environ: Mapping[str, str], now: datetime
) -> tuple[Settings, list[str]]:
    """Return the settings, None for each that is wrong, and all that is wrong with them."""
    given = Given(flags, environ)
    by_variable = {setting.variable: setting for setting in SETTINGS}

    def read(variable: str, check: Callable[[str], Any], default: str | None = None) -> Any:
        setting = by_variable[variable]
        return given.read(setting, check, setting.default if default is None else default)

    console_url = read("RAFAY_CONSOLE_URL", check_console_url)
    zone = read("TIMEZONE", check_timezone) or timezone.utc
    period, provisional = given.period(read("DAYS", whole_number(1, 3650)), zone, now)
    settings = Settings(
        console_url=console_url,
        ops_console_url=read("RAFAY_OPS_CONSOLE_URL", check_console_url, console_url or "-"),
        default_api_key=read("RAFAY_DEFAULT_API_KEY", check_api_key),
        partner_api_key=read("PARTNER_API_KEY", check_api_key),
        period=period,
        provisional=provisional,
        timezone=zone,
        timezone_name=given.text("TIMEZONE") or "UTC",
        currency=read("CURRENCY", check_currency),
        pricing_file=read("PRICING_FILE", Path, str(Path(__file__).with_name("pricing.csv"))),
        output_dir=read("OUTPUT_DIR", check_directory, os.curdir),
        workers=read("WORKERS", whole_number(1, 32)),
        reconciling=read("RECONCILE", whole_number(0, 1)) == 1,
        wanted=tuple(text.strip() for text in flags.get("org") or ()),
        checking=bool(flags.get("check")),
    )
    return settings, given.problems


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_console_url(text: str) -> str:
    """Return a Console's URL without a trailing slash; raises ValueError.

    The text never gets into the message: it may hold a password.
    """
    scheme, separator, rest = text.partition("://")
    scheme, rest = (scheme.lower(), rest) if separator else ("https", text)
    if scheme not in ("https", "http"):
        raise ValueError("begins with another scheme than https://")
    if "@" in rest:
        raise ValueError("holds a user name or password: name the host only")
    label = "[A-Za-z0-9_-]{1,63}"
    if not re.fullmatch(rf"({label}(\.{label})*|\[[0-9A-Fa-f:.]+\])(:[0-9]{{1,5}})?/?", rest):
        raise ValueError("is not a host, such as rafay.acme.com, host:port or https://host/")
    try:
        url = urlsplit(f"{scheme}://{rest.rstrip('/')}")
        host, port = url.hostname or "", url.port
        if port == 0 or (rest.startswith("[") and ip_address(host).version == 4):
            raise ValueError
    except ValueError:
        raise ValueError("has an impossible address or port") from None
    if scheme == "http" and not is_loopback(host):
        raise ValueError("is http:// and would send the API key in clear: use https://")
    return url.geturl()


def check_api_key(text: str) -> str:
    """Return the API key; raises ValueError, which does not show it."""
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("holds a space, a line break or another character that no API key has")
    return text


def check_currency(text: str) -> str:
    """Return the ISO 4217 code; raises ValueError."""
    if text not in MINOR_UNITS:
        raise ValueError(f"{text!r} is not an ISO 4217 currency code, such as USD")
    return text


def check_directory(text: str) -> Path:
    """Return a directory that files can be written to; raises ValueError."""
    path = os.path.abspath(text)
    if not os.path.isdir(text):
        raise ValueError(f"{path} is not a directory: create it, or name another")
    if not os.access(text, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be written to: name another, or change its permissions")
    return Path(text)


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Return a check for a whole number, both bounds included; it raises ValueError."""

    def check(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return check


def check_timezone(text: str) -> tzinfo:
    """Return the zone of an IANA name; raises ValueError."""
    # dateutil would take files, and rules such as UTC+3 (which means the opposite in POSIX).
    zone = (
        tz.gettz(text) if re.fullmatch(r"[A-Z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*", text) else None
    )
    if not isinstance(zone, (tz.tzfile, tz.tzutc)):
        raise ValueError(f"{text!r} is not an IANA time zone, such as UTC or Europe/Berlin")
    if is_misread(zone, text):
        raise ValueError(f"python-dateutil misreads this machine's {text}: upgrade it")
    return zone


def is_misread(zone: tzinfo, name: str) -> bool:
    """Whether dateutil and the standard library read a zone differently.

    Before 3.0, dateutil takes the zones of a machine whose files are "slim" for UTC.
    """
    try:
        other = ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False  # there are no files: dateutil brings its own
    days = [datetime(2026, month, 1) for month in (1, 7)]
    return any(
        day.replace(tzinfo=zone).utcoffset() != day.replace(tzinfo=other).utcoffset()
        for day in days
    )


# Period


RANGE = ("--from", "--to")


def choose_period(
    flags: Mapping[str, Any], month: str, days: int, zone: tzinfo, now: datetime
) -> tuple[Period, bool]:
    """Return the period that a flag, else BILLING_MONTH, else DAYS asks for.

    The second value says whether it is provisional: a month that is not over. Raises ValueError.
    """
    now = now.astimezone(timezone.utc).replace(microsecond=0)
    given = {name: (flags.get(name) or "").strip() for name in ("BILLING_MONTH", "DAYS", *RANGE)}
    # Blank is unset by contract, but an empty variable after --from is not to bill 30 days.
    between_times = any(flags.get(name) is not None for name in RANGE)
    asked = {"--month": given["BILLING_MONTH"], "--from": between_times, "--days": given["DAYS"]}
    names = [name for name, there in asked.items() if there]
    if len(names) > 1:
        raise ValueError(f"{', '.join(names)} are {len(names)} periods: give one")
    if names == ["--from"]:
        return between(given["--from"], given["--to"], zone, now), False
    if month and names != ["--days"]:
        return calendar_month(month, zone, now)
    return Period(now - timedelta(days=days), now), False


def calendar_month(text: str, zone: tzinfo, now: datetime) -> tuple[Period, bool]:
    """Return a month, `2026-06` or `last`, up to now, and whether it is not over.

    Raises ValueError.
    """
    if text == "last":
        first = now.astimezone(zone).replace(tzinfo=None, day=1, hour=0, minute=0, second=0)
        first -= relativedelta(months=1)
    elif re.fullmatch(r"2[0-9]{3}-(0[1-9]|1[0-2])", text):
        first = datetime(int(text[:4]), int(text[5:]), 1)
    else:
        raise ValueError(
            f"--month, BILLING_MONTH: {text!r} is neither a month, such as 2026-06, nor last"
        )
    start = begin_of_day(first, zone)
    if start >= now:
        raise ValueError(f"--month, BILLING_MONTH: {text} has not begun")
    end = begin_of_day(first + relativedelta(months=1), zone)
    return Period(start, min(end, now)), end > now


def between(start_text: str, end_text: str, zone: tzinfo, now: datetime) -> Period:
    """Return the period of --from and --to; raises ValueError."""
    if not (start_text and end_text):
        raise ValueError("--from, --to: one goes with the other")
    try:
        start, end = parse_moment(start_text, zone), parse_moment(end_text, zone)
    except ValueError as error:
        raise ValueError(f"--from, --to: {error}") from None
    if start >= end:
        raise ValueError("--from, --to: the period has no length: is it the wrong way round?")
    if end > now:
        raise ValueError(f"--to: {end_text} is in the future: now is {format_instant(now)}")
    return Period(start, end)


def parse_moment(text: str, zone: tzinfo) -> datetime:
    """Return an ISO 8601 date or time, in the zone unless it has an offset, as aware UTC.

    A date is its first moment. Raises ValueError.
    """
    match = MOMENT.fullmatch(text.strip())
    try:
        if not match:
            raise ValueError
        moment = isoparse(match.group())
        if not match.group("time"):
            return begin_of_day(moment, zone)
        local = moment if moment.tzinfo else moment.replace(tzinfo=zone)
        utc = local.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is not a date or time such as 2026-06-01 or 2026-06-01T00:00:00Z"
        ) from None
    if not moment.tzinfo and (tz.datetime_ambiguous(local) or not tz.datetime_exists(local)):
        raise ValueError(
            f"{text!r} comes twice or never, since clocks change: add an offset, such as +02:00"
        )
    return utc


MOMENT = re.compile(
    "[0-9]{4}-[0-9]{2}-[0-9]{2}(?P<time>T[0-9]{2}:[0-9]{2}(:[0-9]{2})?(Z|[+-][0-9]{2}:[0-9]{2})?)?"
)


def begin_of_day(day: datetime, zone: tzinfo) -> datetime:
    """Return the first moment of a day in a zone, as aware UTC."""
    # Where clocks go forward at midnight, the day begins an hour later.
    return tz.resolve_imaginary(day.replace(tzinfo=zone)).astimezone(timezone.utc)


def split_period(period: Period, prices: Iterable[Price]) -> list[Period]:
    """Return the parts of the period in which no price changes, in order."""
    changes = {price.effective_from for price in prices if price.effective_from}
    inside = sorted(change for change in changes if period.start < change < period.end)
    instants = [period.start, *inside, period.end]
    return [Period(start, end) for start, end in zip(instants, instants[1:])]


# Price book


Thing = tuple[str, str]
"""A profile, and a dimension of it."""


class Price(NamedTuple):
    """A line of the price book; a blank organization or profile type means all of them."""

    line: int
    profile: str
    dimension: str
    organization: str
    profile_type: str
    effective_from: datetime | None
    rate: Decimal

    @property
    def key(self) -> tuple[object, ...]:
        """What is priced: two prices of the same thing are one too many."""
        owner = self.organization.casefold()
        return self.profile, self.dimension, owner, self.profile_type, self.effective_from


class PriceBook:
    """The prices by profile and dimension, the most specific first."""

    def __init__(self, path: Path, sha256: str, prices: Iterable[Price]) -> None:
        self.path = path
        self.sha256 = sha256
        ever = datetime.min.replace(tzinfo=timezone.utc)
        self.prices = sorted(
            prices,
            key=lambda price: (
                bool(price.organization),
                bool(price.profile_type),
                price.effective_from or ever,
            ),
            reverse=True,
        )
        self.by_thing: dict[Thing, list[Price]] = defaultdict(list)
        for price in self.prices:
            self.by_thing[price.profile, price.dimension].append(price)
        self.dimensions = {thing for thing in self.by_thing if thing[1] != INSTANCE}

    def find_rate(self, usage: Usage, profile: str, dimension: str) -> Decimal | None:
        """Return the rate, in currency units for an hour, in force when the usage's period begins.

        None if there is no price. An organization's own price comes before one for everyone, one
        for the profile type before one for both, and then the latest one.
        """
        for price in self.by_thing.get((profile.strip(), dimension), ()):
            if (
                price.organization in ("", usage.organization.id)
                and price.profile_type in ("", usage.kind)
                and (not price.effective_from or price.effective_from <= usage.period.start)
            ):
                return price.rate
        return None


CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
LINE_ENDS = re.compile(r"\r\n|\n|\r")
REQUIRED_COLUMNS = ("profile", "hourly_rate")
OPTIONAL_COLUMNS = tuple(
    "dimension organization profile_type effective_from currency description".split()
)


def read_price_book(path: Path, currency: str | None, zone: tzinfo) -> tuple[PriceBook, list[str]]:
    """Return the price book, and all that is wrong with it, by file and line.

    `currency` None stands for a setting that is wrong itself.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        reason = f"{error.strerror or error}: PRICING_FILE or --pricing names the price book"
        return PriceBook(path, "", ()), [f"{path}: {reason}"]
    except UnicodeDecodeError as error:
        line = len(LINE_ENDS.split(error.object[: error.start].decode("latin-1")))
        return PriceBook(path, "", ()), [f"{path}: line {line}: not UTF-8: save it as CSV UTF-8"]
    prices: dict[object, Price] = {}
    problems: list[str] = []
    columns: list[str] = []
    for number, row in price_rows(text):
        try:
            if isinstance(row, csv.Error):
                raise ValueError(f"not CSV: {row}")
            if CONTROL.search("".join(row)):
                raise ValueError("holds a tab or another control character")
            if not columns:
                columns = check_columns(row)
                continue
            price = check_price(number, columns, row, currency, zone)
            first = prices.setdefault(price.key, price)
            if first is not price:
                raise ValueError(f"{price.profile!r} has a price in line {first.line} already")
        except ValueError as error:
            problems.append(f"{path}: line {number}: {error}")
            if not columns:
                break
    if not columns and not problems:
        problems.append(f"{path}: is empty: it needs a header, profile,hourly_rate, and prices")
    book = PriceBook(path, hashlib.sha256(content).hexdigest(), prices.values())
    return book, shorten(problems)


def shorten(texts: list[str]) -> list[str]:
    """Return the first MAX_PROBLEMS texts, and how many more there are."""
    more = len(texts) - MAX_PROBLEMS
    return texts if more <= 0 else [*texts[:MAX_PROBLEMS], f"and {more} more like these"]


def price_rows(text: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Yield line number and cells of each line that is neither blank nor a comment."""
    # Line by line: no cell may hold a line break, and a stray quote must not swallow a price.
    for number, line in enumerate(LINE_ENDS.split(text), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            cells = next(csv.reader([line], strict=True))
        except csv.Error as error:
            yield number, error
        else:
            if any(cell.strip(" ") for cell in cells):  # a spreadsheet's blank line is ",,"
                yield number, cells


def check_columns(header: list[str]) -> list[str]:
    """Return the column names; raises ValueError."""
    columns = [name.strip() for name in header]
    known = REQUIRED_COLUMNS + OPTIONAL_COLUMNS
    for name in columns:
        if name not in known:
            raise ValueError(f"unknown column {name!r}: known are {', '.join(known)}, with commas")
        if columns.count(name) > 1:
            raise ValueError(f"column {name!r} stands there twice")
    for name in REQUIRED_COLUMNS:
        if name not in columns:
            raise ValueError(f"column {name!r} is missing")
    return columns


def check_price(
    number: int, columns: list[str], row: list[str], currency: str | None, zone: tzinfo
) -> Price:
    """Return the price in a line of the price book; raises ValueError."""
    if len(row) != len(columns):
        raise ValueError(f"{len(row)} cells, but the header has {len(columns)}")
    cells = dict(zip(columns, (cell.strip() for cell in row)))
    for name in (*REQUIRED_COLUMNS, "currency"):
        if cells.get(name) == "":
            raise ValueError(f"{name} is missing")
    rate = cells["hourly_rate"]
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", rate):
        raise ValueError(f"hourly_rate {rate!r} is not a plain decimal such as 2.50")
    if currency and cells.get("currency", currency) != currency:
        raise ValueError(f"currency {cells['currency']!r} is not CURRENCY, {currency}")
    kind, since = cells.get("profile_type", ""), cells.get("effective_from", "")
    if kind not in ("", *KINDS):
        raise ValueError(f"profile_type {kind!r} is neither compute nor service nor blank")
    try:
        effective_from = parse_moment(since, zone) if since else None
    except ValueError as error:
        raise ValueError(f"effective_from {error}") from None
    return Price(
        number,
        cells["profile"],
        cells.get("dimension") or INSTANCE,
        cells.get("organization", ""),
        kind,
        effective_from,
        Decimal(rate),
    )


def match_organizations(text: str, organizations: Iterable[Organization]) -> list[Organization]:
    """Return the organization that has this id, else those of this name, ignoring case.

    A tenant must not get another one's price by taking its id for a name.
    """
    name = text.strip().casefold()
    organizations = list(organizations)
    return [each for each in organizations if each.id == text] or [
        each for each in organizations if each.name.strip().casefold() == name
    ]


def resolve_contracts(
    book: PriceBook, organizations: Iterable[Organization]
) -> tuple[PriceBook, list[str]]:
    """Return the price book with ids for organizations, and whose prices are not listed.

    Raises SettingsError if a name is that of several organizations, or if an organization has two
    prices for the same thing, one by name and one by id.
    """
    organizations = list(dict.fromkeys(organizations))
    names = {price.organization for price in book.prices}
    matching = {name: match_organizations(name, organizations) if name else [] for name in names}
    unlisted, problems = [], []
    prices: dict[object, Price] = {}
    for price in sorted(book.prices):  # by line
        where = f"{book.path}: line {price.line}: organization {price.organization!r}"
        matches = matching[price.organization]
        if price.organization and not matches:
            unlisted.append(f"{where} is not listed")
        if len(matches) > 1:
            ids = ", ".join(each.id for each in matches)
            problems.append(f"{where} is the name of several: give the id, one of {ids}")
        resolved = price._replace(organization=matches[0].id) if matches else price
        first = prices.setdefault(resolved.key, resolved)
        if first is not resolved:
            problems.append(f"{where} has a price in line {first.line} already")
    if problems:
        raise SettingsError(*problems)
    return PriceBook(book.path, book.sha256, prices.values()), unlisted


# Answers of the API


HOURS = re.compile(r"-?[0-9]+(\.[0-9]+)?h")
UTC_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


class Listing(NamedTuple):
    """One list of the API: organizations, or usage of a kind, of one tenant or of the partner."""

    kind: str
    period: Period | None = None
    organization: Organization | None = None

    @property
    def path(self) -> str:
        """The path of its URL."""
        return USAGE_PATH.format(kind=self.kind) if self.period else ORGANIZATIONS_PATH

    def __str__(self) -> str:
        """Name it for a person."""
        if not self.period:
            return f"organizations ({self.path})"
        return f"{self.kind} usage of {self.organization or 'the whole partner'} ({self.path})"


class PageRequest(NamedTuple):
    """A page of a list: `limit` rows from `offset` on."""

    listing: Listing
    offset: int
    limit: int


class Page(NamedTuple):
    """The rows of one answer, and its `count`, whatever that counts."""

    rows: list[Organization] | list[Record]
    counted: int | None


def parse_page(request: PageRequest, answer: Any, dimensions: Container[Thing] = ()) -> Page:
    """Check one decoded answer; raises ApiError. `dimensions` are those that have prices."""
    if not isinstance(answer, dict):
        raise ApiError("the answer is not a JSON object")
    count = answer.get("count")
    if count is not None and (type(count) is not int or count < 0):
        raise ApiError(f"the answer's count is not a whole number: {count!r}")
    rows: list[Organization] | list[Record]
    if request.listing.period:
        rows = parse_usage(request, answer, dimensions)
    else:
        rows = parse_organizations(request, answer)
    if count is not None and count < len(rows):
        raise ApiError(f"the answer counts {count} but lists {len(rows)}")
    return Page(rows, count)


def parse_organizations(request: PageRequest, answer: dict[str, Any]) -> list[Organization]:
    """Return the organizations of an answer; raises ApiError."""
    rows = answer.get("results", answer.get("items"))
    if rows is None and request.offset and answer.get("count") is not None:
        rows = []  # beyond the last page
    if not isinstance(rows, list):
        raise ApiError("the answer has no list, neither results nor items")
    organizations = []
    for row in rows:
        if not isinstance(row, dict):
            raise ApiError("an organization is not a JSON object")
        for name in ("id", "name"):
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise ApiError(f"an organization has no usable {name}: {row!r}")
        organizations.append(Organization(row["id"], row["name"]))
    return organizations


def parse_usage(
    request: PageRequest, answer: dict[str, Any], dimensions: Container[Thing]
) -> list[Record]:
    """Return the records of an answer; raises ApiError."""
    listing = request.listing
    if answer.get("kind") not in (None, listing.kind):
        raise ApiError(f"the answer is of kind {answer['kind']!r}")
    for name, instant in zip(("range_from", "range_to"), listing.period or ()):
        if answer.get(name) is not None and parse_instant(answer[name]) != instant:
            asked = format_instant(instant)
            raise ApiError(f"the answer's {name} is {answer[name]!r}, asked was {asked}")
    rows = answer.get("instance_usage_data")
    if rows is None:  # how some Go encoders write an empty list
        rows = []
    if not isinstance(rows, list):
        raise ApiError("the answer's instance_usage_data is not a list")
    if not rows and not (answer.get("kind") and answer.get("range_from")):
        raise ApiError("the answer is no usage: it has neither records nor kind and range_from")
    if not rows and answer.get("count") and not request.offset:
        raise ApiError(f"the answer counts {answer['count']} records but lists none")
    records = [parse_record(row, dimensions) for row in rows]
    if listing.organization:
        for record in records:
            if record.organization_id != listing.organization.id:
                raise ApiError(
                    f"the answer holds instance {record.instance_id} of organization "
                    f"{record.organization_id}: the filter by organization was ignored"
                )
    return records


def parse_record(row: Any, dimensions: Container[Thing] = ()) -> Record:
    """Check one usage record; raises ApiError that names the instance."""
    if not isinstance(row, dict):
        raise ApiError("a usage record is not a JSON object")
    try:
        profile = sys.intern(text_of(row, "profile_name", required=True))
        parameters, quantities = parameters_of(row.get("parameters"), profile.strip(), dimensions)
        return Record(
            # Thousands of records share these texts.
            sys.intern(text_of(row, "instance_organization_id", required=True)),
            sys.intern(text_of(row, "instance_organization_name")),
            sys.intern(text_of(row, "instance_project_name")),
            profile,
            text_of(row, "instance_name"),
            text_of(row, "instance_id", required=True),
            status_of(row),
            created_at_of(row),
            parameters,
            metered_hours(row),
            quantities,
        )
    except ApiError as error:
        names = [str(row[key]) for key in ("instance_name", "instance_id") if row.get(key)]
        raise ApiError(f"instance {cut_short(' '.join(names), 100)}: {error}") from None


def text_of(row: dict[str, Any], name: str, required: bool = False) -> str:
    """Return a text field, blank if it is absent or null; raises ApiError."""
    value = row.get(name)
    if value is None:
        value = ""
    if type(value) is not str:
        raise ApiError(f"{name} is not text: {value!r}")
    if required and not value.strip():
        raise ApiError(f"{name} is missing")
    return value


def status_of(row: dict[str, Any]) -> str:
    """Return the status that the API gives; nothing is guessed."""
    deleted_at = text_of(row, "deleted_at")
    # Go writes a time that was never set as year 1.
    deleted = "deleted" if deleted_at and not deleted_at.startswith("0001-") else ""
    return sys.intern(text_of(row, "status") or deleted)


def created_at_of(row: dict[str, Any]) -> str:
    """Return when the instance was made, as ISO 8601 UTC, or blank; raises ApiError."""
    text = text_of(row, "created_at").strip()
    if not text:
        return ""
    if UTC_TIME.fullmatch(text):  # as documented, ten times as fast as isoparse
        try:
            datetime.fromisoformat(text[:-1])
        except ValueError:
            pass
        else:
            return text
    return format_instant(parse_instant(text))


def parameters_of(
    parameters: Any, profile: str, dimensions: Container[Thing]
) -> tuple[str, Sequence[tuple[str, Decimal]]]:
    """Return `GPU=1; storage_size=1200.00h`: labels as value, quantities as metered.

    With it come the metered quantities x hours of the profile's dimensions. Raises ApiError.
    """
    if parameters is None:
        return "", ()
    if not isinstance(parameters, list):
        raise ApiError(f"parameters is not a list: {parameters!r}")
    texts: list[str] = []
    quantities: dict[str, Decimal] = {}
    for parameter in parameters:
        if not isinstance(parameter, dict):
            raise ApiError("a parameter is not a JSON object")
        name = text_of(parameter, "name", required=True).strip()
        is_label = parameter.get("is_label")  # some Go encoders leave a false out
        if is_label is not None and type(is_label) is not bool:
            raise ApiError(f"parameter {name}: is_label is not true or false")
        if is_label:
            texts.append(f"{name}={text_of(parameter, 'label_value')}")
            continue
        try:
            hours = metered_hours(parameter, MAX_QUANTITY_HOURS)
        except ApiError as error:
            raise ApiError(f"parameter {name}: {error}") from None
        texts.append(f"{name}={plain(hours)}h")
        if (profile, name) in dimensions:
            if name in quantities:
                raise ApiError(f"parameter {name} comes twice, and it has a price")
            quantities[name] = hours
    return "; ".join(texts), tuple(quantities.items())


def metered_hours(row: dict[str, Any], most: Decimal = MAX_INSTANCE_HOURS) -> Decimal:
    """Return the metered hours: `usage`, else `raw_usage` rounded half up to 0.01.

    `usage` is decimal hours with a scale of 2, the unit that Rafay documents for billing; at
    least two decimals are returned. Raises ApiError.
    """
    usage, raw_usage = text_of(row, "usage").strip(), row.get("raw_usage")
    if raw_usage is not None and type(raw_usage) not in (int, Decimal):
        raise ApiError(f"raw_usage is not a number: {raw_usage!r}")
    if usage:
        if not HOURS.fullmatch(usage):
            raise ApiError(f"usage is not hours such as 20.59h: {usage!r}")
        hours = Decimal(usage[:-1])
    elif raw_usage is not None:
        hours = Decimal(raw_usage)
    else:
        raise ApiError("usage and raw_usage are both missing")
    if hours < 0:
        raise ApiError(f"negative hours: {usage or raw_usage}")
    if hours > most:
        raise ApiError(f"absurd hours: {usage or raw_usage}")
    # Adding 0.00 gives two decimals at least, and takes the sign off a zero.
    return EXACT.add(hours if usage else EXACT.quantize(hours, ZERO_HOURS), ZERO_HOURS)


def parse_instant(text: Any) -> datetime:
    """Return an ISO 8601 time, UTC unless it has an offset, as aware UTC; raises ApiError."""
    try:
        instant = isoparse(text if isinstance(text, str) else "")
        if instant.tzinfo is None:
            instant = instant.replace(tzinfo=timezone.utc)
        return instant.astimezone(timezone.utc)
    except (TypeError, ValueError, OverflowError):
        raise ApiError(f"not an ISO 8601 time: {text!r}") from None


@lru_cache(maxsize=100)
def format_instant(instant: datetime) -> str:
    """Return an aware UTC time as `2026-06-01T00:00:00Z`."""
    return instant.replace(tzinfo=None, microsecond=0).isoformat() + "Z"


def cut_short(text: str, most: int) -> str:
    """Return a text that is not too long for a message."""
    return text if len(text) <= most else text[:most] + "..."


def redact(text: str, keys: Iterable[str]) -> str:
    """Take API keys, and passwords in URLs, out of a text."""
    for key in sorted(keys, key=len, reverse=True):
        # A short one may be a part of a word: no key is, but a test's may be.
        text = re.sub(re.escape(key) if len(key) > 7 else rf"\b{re.escape(key)}\b", "***", text)
    return re.sub(r"//[^/\s]*@", "//***@", text)


# Requests


class Endpoint(NamedTuple):
    """Where a list is asked for, and with which key; the repr hides it."""

    url: str
    url_variable: str
    key_header: str
    key: str
    key_variable: str

    def __repr__(self) -> str:
        return f"Endpoint(url={self.url!r}, ...)"


class Session(requests.Session):
    """A session that does not look at redirects: the Client follows them, on one host only."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Find none."""


class Client:
    """The one place that makes requests: time-outs, retries, redirects, errors."""

    def __init__(self, settings: Settings, dimensions: Container[Thing] = ()) -> None:
        self.dimensions = dimensions
        self.stopping = threading.Event()
        self.usage_endpoint = Endpoint(
            settings.console_url,
            "RAFAY_CONSOLE_URL",
            "x-api-key",
            settings.default_api_key,
            "RAFAY_DEFAULT_API_KEY",
        )
        self.organizations_endpoint = Endpoint(
            settings.ops_console_url,
            "RAFAY_OPS_CONSOLE_URL"
            if settings.ops_console_url != settings.console_url
            else "RAFAY_CONSOLE_URL",
            "X-RAFAY-API-KEYID",
            settings.partner_api_key,
            "PARTNER_API_KEY",
        )

    def get_page(self, session: requests.Session, request: PageRequest) -> Page:
        """Return one page, after up to ATTEMPTS requests; raises ApiError."""
        listing = request.listing
        query = {"limit": str(request.limit), "offset": str(request.offset)}
        if listing.period:
            query["range_from"] = format_instant(listing.period.start)
            query["range_to"] = format_instant(listing.period.end)
        if listing.organization:
            query["instance_organization_id"] = listing.organization.id
        endpoint = self.usage_endpoint if listing.period else self.organizations_endpoint
        for attempt in range(1, ATTEMPTS + 1):
            try:
                answer = self._get(session, endpoint, listing.path, query)
                return parse_page(request, answer, self.dimensions)
            except (ApiError, Transient) as error:
                # A server may repeat what it was sent.
                reason = redact(
                    str(error), (self.usage_endpoint.key, self.organizations_endpoint.key)
                )
                failed = f"{listing}: {cut_short(reason, 400)}"
                if isinstance(error, ApiError):
                    raise ApiError(failed) from None
                wait = back_off(attempt, error.retry_after)
            if attempt < ATTEMPTS and self.stopping.wait(wait):
                break
        raise ApiError(f"{failed}; gave up after {attempt} attempts: run it again later")

    def _get(
        self, session: requests.Session, endpoint: Endpoint, path: str, query: dict[str, str]
    ) -> Any:
        """Make one request, following redirects on the same host; return the decoded JSON."""
        url = endpoint.url + path
        for _ in range(MAX_REDIRECTS + 1):
            try:
                with self._send(session, endpoint, url, query) as response:
                    body = read_body(response)
            except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
                raise explain_failure(error, endpoint) from None
            if not response.is_redirect:
                check_status(response, body, endpoint)
                return decode_body(body)
            url, query = redirect_target(response, endpoint), {}
        raise ApiError(f"more than {MAX_REDIRECTS} redirects")

    def _send(
        self, session: requests.Session, endpoint: Endpoint, url: str, query: dict[str, str]
    ) -> requests.Response:
        def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers[endpoint.key_header] = endpoint.key
            return request

        # No proxy in front of this machine itself: over http it would be sent the key in clear.
        local = is_loopback(urlsplit(url).hostname or "")
        return session.get(
            url,
            params=query,
            auth=sign,  # an explicit auth, so that requests does not look into ~/.netrc
            proxies={"http": "", "https": "", "all": ""} if local else None,
            timeout=(CONNECT_SECONDS, READ_SECONDS),
            allow_redirects=False,
            stream=True,
        )


def check_status(response: requests.Response, body: bytes, endpoint: Endpoint) -> None:
    """Raise Transient or ApiError unless the status is 200."""
    status = response.status_code
    if status == 200:
        return
    hints = {
        400: ": the API does not take the request",
        401: f": {endpoint.key_variable} was refused: is it the right, valid key?",
        403: f": {endpoint.key_variable} was refused: is it a key with the rights for this?",
        404: f": does {endpoint.url_variable} name the right host?",
    }
    said = " ".join(body.decode("utf-8", "replace").split())
    reason = f"HTTP {status}{hints.get(status, '')}" + (f"; it says {said}" if said else "")
    if status == 429 or status >= 500:
        raise Transient(reason, parse_retry_after(response.headers.get("Retry-After")))
    raise ApiError(reason)


def read_body(response: requests.Response) -> bytes:
    """Return the whole decompressed body; raises ApiError if it is larger than any answer is."""
    body = bytearray()
    for chunk in response.iter_content(2**16):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise ApiError(f"the answer is larger than {MAX_ANSWER_BYTES // 2**20} MiB")
    return bytes(body)


def decode_body(body: bytes) -> Any:
    """Return the JSON, its fractions as Decimal; raises Transient if it is none."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        return json.loads(body, parse_float=Decimal, parse_constant=refuse)
    except (ValueError, RecursionError, decimal.DecimalException):
        text = " ".join(body[:1000].decode("utf-8", "replace").split())
        raise Transient(f"the answer is not JSON: {text!r}") from None


def explain_failure(error: Exception, endpoint: Endpoint) -> Exception:
    """Turn what requests or urllib3 raised into Transient or ApiError, for a person."""
    where = f"{endpoint.url} ({endpoint.url_variable})"
    cause = first_cause(error)
    reason = f"{where}: {getattr(cause, 'strerror', None) or cause}"
    if isinstance(cause, socket.timeout):
        if isinstance(error, requests.exceptions.ConnectTimeout):
            return Transient(f"{where}: no connection within {CONNECT_SECONDS:g} s")
        return Transient(f"{where}: no answer within {READ_SECONDS:g} s")
    if isinstance(error, requests.exceptions.SSLError) and not isinstance(cause, ssl.SSLEOFError):
        if "certificate" in str(cause).lower() or "match" in str(cause):
            return ApiError(
                f"{reason}: its certificate is not trusted: is that the right host? For a private "
                "CA, let REQUESTS_CA_BUNDLE name the file with the CA's certificate"
            )
        return ApiError(f"{reason}: is https served there?")
    if isinstance(error, requests.exceptions.ProxyError):
        return Transient(f"{reason}: the proxy failed: check HTTPS_PROXY and NO_PROXY")
    if isinstance(error, requests.exceptions.ContentDecodingError):
        return Transient(f"{where}: the answer cannot be decompressed")
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return Transient(f"{where}: the answer was cut off")
    if isinstance(error, (requests.ConnectionError, urllib3.exceptions.HTTPError)):
        return Transient(reason)
    return ApiError(f"{reason}: check that URL, HTTPS_PROXY and REQUESTS_CA_BUNDLE")


def first_cause(error: BaseException) -> BaseException:
    """Return what an exception began with."""
    while True:
        hidden = error.__cause__ is None and error.__suppress_context__
        earlier = None if hidden else error.__cause__ or error.__context__
        if earlier is None:
            return error
        error = earlier


def redirect_target(response: requests.Response, endpoint: Endpoint) -> str:
    """Return the URL, on the same host, that an answer redirects to; raises ApiError.

    requests itself would take the API key along to another host. Whatever the location looks
    like, its path is all that is taken from it.
    """
    try:
        url = urllib3.util.parse_url(urljoin(response.url, response.headers["location"]))
        own = urllib3.util.parse_url(endpoint.url)
        ports = {"http": 80, "https": 443}
        same = (url.scheme, url.host) == (own.scheme, own.host) and (
            url.port or ports.get(url.scheme or "")
        ) == (own.port or ports.get(own.scheme or ""))
        if same:
            return endpoint.url + url.request_uri
    except (ValueError, urllib3.exceptions.LocationParseError):
        pass
    raise ApiError(
        "the answer redirects to another host, which does not get the API key: "
        f"does {endpoint.url_variable} name the right one?"
    )


def parse_retry_after(header: str | None) -> float | None:
    """Return the seconds of a `Retry-After` in seconds or as a date, None if it is neither."""
    if header is None:
        return None
    try:
        seconds: float = urllib3.Retry().parse_retry_after(header)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None
    return seconds


def back_off(attempt: int, retry_after: float | None) -> float:
    """Return the seconds to wait after an attempt: doubling, with jitter, or as the server says."""
    if retry_after is not None:
        return min(retry_after, RETRY_AFTER_SECONDS)
    return BACKOFF_SECONDS * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.0)


# Paging


Reader = Generator[list[PageRequest], list[Page], list[Any]]
"""Asks for pages, is sent them in the order asked, and returns all rows of its list.

A generator, since it can say which pages may be asked for at the same time without knowing who
asks for them: paging stays free of threads, and the threads of the Pool know nothing of paging.
"""


def read_listing(listing: Listing, count_is_total: bool) -> Reader:
    """Return all rows of a list, each once, in the API's order; raises ApiError.

    A list that contradicts itself may have changed while it was read: it is read once more.
    """
    try:
        return (yield from follow_pages(listing, count_is_total, together=True))
    except Unsettled:
        return (yield from follow_pages(listing, count_is_total, together=False))


def follow_pages(listing: Listing, count_is_total: bool, together: bool) -> Reader:
    """Follow the pages of a list to its end; raises Unsettled or another ApiError.

    `count` is the total if another answer has shown it (`count_is_total`) or if it exceeds what
    its page holds: then the other pages are known, and asked for `together` or one by one.
    Otherwise pages follow one another up to an empty one, since a short page may be due to a
    lowered limit.
    """
    rows: dict[Any, Any] = {}
    repeated: list[Any] = []
    asked = received = 0
    total: int | None = None
    offsets, limit = range(1), PAGE_SIZE
    while offsets:
        asked += len(offsets)
        if asked > MAX_PAGES:
            raise ApiError(f"{listing}: has more than {MAX_PAGES} pages: it seems to have no end")
        pages = yield [PageRequest(listing, offset, limit) for offset in offsets]
        for page in pages:
            repeated += collect(rows, page, listing)
            received += len(page.rows)
            counted = page.counted
            if counted is not None and (count_is_total or counted > len(page.rows)):
                total = max(total or 0, counted)
        if not pages[-1].rows:
            break
        if total is None:
            offsets = range(received, received + 1)
        elif together:
            limit = min(limit, len(pages[0].rows))  # the server may have lowered it
            offsets = range(received, total, limit)
        else:
            offsets = range(received, total)[:1]
    if received < (total or 0):
        raise Unsettled(f"{listing}: only {received} of the {total} counted could be read")
    if repeated and len(rows) != total:
        raise Unsettled(
            f"{listing}: {repeated[0]} is listed twice: the list changes while it is read"
        )
    return list(rows.values())


def collect(rows: dict[Any, Any], page: Page, listing: Listing) -> list[Any]:
    """Add the rows of the next page, and return those that were on earlier pages, too.

    These are a sign that rows move between pages while they are read, so that another one may
    never come. A row that comes twice on one page counts once. Raises Unsettled about a row that
    comes twice with different content, and about a page that holds nothing new.
    """
    on_page: dict[Any, Any] = {}
    for row in page.rows:
        if on_page.setdefault(row.key, row) != row:
            raise Unsettled(f"{listing}: {row} is listed twice, with different content")
    repeated = [row for key, row in on_page.items() if key in rows]
    for row in repeated:
        if rows[row.key] != row:
            raise Unsettled(f"{listing}: {row} is listed twice, with different content")
    if page.rows and len(repeated) == len(on_page):
        raise Unsettled(
            f"{listing}: a page holds nothing new: it seems that the API ignores offset"
        )
    rows.update(on_page)
    return repeated


class Pool:
    """WORKERS threads, each with a session of its own, that get pages for readers.

    They are daemons: nothing waits for a server that does not answer once the run is over.
    `progress` is told which share of the readers has ended, how many rows were read, and how many
    seconds are left for the pages that are known by then.
    """

    def __init__(
        self, client: Client, workers: int, progress: Callable[[float, int, float], None]
    ) -> None:
        self.client = client
        self.workers = workers
        self.progress = progress
        self.count_is_total = False  # until an answer shows it
        self.asked: queue.SimpleQueue[tuple[int, int, PageRequest] | None] = queue.SimpleQueue()
        self.answered: queue.SimpleQueue[tuple[int, int, Page | Exception]] = queue.SimpleQueue()

    def __enter__(self) -> Pool:
        for _ in range(self.workers):
            threading.Thread(target=self._work, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.client.stopping.set()
        for _ in range(self.workers):
            self.asked.put(None)

    def read(self, listings: Iterable[Listing]) -> list[list[Any]]:
        """Return the rows of each list, in the order of the lists; raises ApiError."""
        return self.run([read_listing(listing, self.count_is_total) for listing in listings])

    def run(self, readers: Sequence[Reader]) -> list[list[Any]]:
        """Run readers at the same time; return what each returns, in their order.

        Raises ApiError as soon as one fails.
        """
        results: list[list[Any]] = [[] for _ in readers]
        pages: dict[int, list[Page]] = {}  # of each reader, as far as they have come
        waiting: dict[int, dict[int, PageRequest]] = {}  # what each reader waits for, by place
        asked = answered = rows = 0
        began_at = time.monotonic()

        def advance(index: int) -> int:
            """Send a reader its pages, and ask for so many more; or take its result."""
            try:
                reader = readers[index]
                asks = reader.send(pages.pop(index)) if index in pages else next(reader)
            except StopIteration as end:
                results[index] = end.value
                del waiting[index]
                return 0
            pages[index] = [Page([], None)] * len(asks)
            waiting[index] = dict(enumerate(asks))
            for place, request in enumerate(asks):
                self.asked.put((index, place, request))
            return len(asks)

        for index in range(len(readers)):
            asked += advance(index)
        while waiting:
            index, place, page = self._next_answer(waiting)
            pages[index][place] = page
            del waiting[index][place]
            answered += 1
            rows += len(page.rows)
            if not waiting[index]:
                asked += advance(index)
            left = (time.monotonic() - began_at) * (asked - answered) / answered
            self.progress(1 - len(waiting) / len(readers), rows, left)
        return results

    def _next_answer(
        self, waiting: Mapping[int, Mapping[int, PageRequest]]
    ) -> tuple[int, int, Page]:
        deadline = time.monotonic() + SILENCE_SECONDS
        while True:
            left = deadline - time.monotonic()
            try:
                # In steps: a signal that comes just before a wait is handled only after it.
                index, place, answer = self.answered.get(timeout=max(0, min(left, STEP_SECONDS)))
                break
            except queue.Empty:
                if left > 0:
                    continue
            request = next(request for each in waiting.values() for request in each.values())
            raise ApiError(
                f"{request.listing}: the API has answered nothing for {SILENCE_SECONDS:g} s: "
                "run it again later"
            )
        if isinstance(answer, Exception):
            raise answer
        return index, place, answer

    def _work(self) -> None:
        with Session() as session:
            session.headers["User-Agent"] = f"ncp_metrics/{__version__}"
            for index, place, request in iter(self.asked.get, None):
                if self.client.stopping.is_set():
                    return
                answer: Page | Exception
                try:
                    answer = self.client.get_page(session, request)
                except Exception as error:  # raised again in the main thread
                    answer = error
                self.answered.put((index, place, answer))


# Usage


Slice = tuple[str, Period]
"""A kind, and a part of the period: what one list of usage is asked for."""


def first_page(listing: Listing, limit: int) -> Reader:
    """Return the first page of a list alone."""
    return (yield [PageRequest(listing, 0, limit)])


def probe(pool: Pool, slices: Sequence[Slice]) -> dict[Slice, int | None]:
    """Ask for the first record of each slice, of the whole partner.

    Return the number of its records, None where the answer does not tell. It also tells whether
    the key works, and whether `count` is a total.
    """
    results = pool.run([first_page(Listing(*each), 1) for each in slices])
    pages = {each: page for each, [page] in zip(slices, results)}
    pool.count_is_total |= any((page.counted or 0) > len(page.rows) for page in pages.values())
    return {
        each: (page.counted if pool.count_is_total else None) if page.rows else 0
        for each, page in pages.items()
    }


def read_organizations(pool: Pool) -> list[Organization]:
    """Return the organizations as listed; raises ApiError, also if there are none."""
    listing = Listing("organizations")
    [organizations] = pool.run([read_listing(listing, False)])
    if not organizations:
        raise ApiError(
            f"{listing}: none is listed, so there is nothing to bill: "
            "does PARTNER_API_KEY belong to the partner?"
        )
    return organizations


def choose_organizations(
    wanted: Sequence[str], organizations: Sequence[Organization]
) -> list[Organization]:
    """Return the wanted organizations, as listed, all if none is named; raises SettingsError."""
    chosen: list[Organization] = []
    problems = []
    for text in wanted:
        matches = match_organizations(text, organizations)
        if not matches:
            names = [each.name for each in organizations] + [each.id for each in organizations]
            problems.append(f"--org: {text!r} is not listed; {nearest(text, names)}")
        elif len(matches) > 1:
            ids = ", ".join(each.id for each in matches)
            problems.append(f"--org: {text!r} is the name of several: give the id, one of {ids}")
        chosen += matches
    if problems:
        raise SettingsError(*problems)
    return [each for each in organizations if each in chosen or not wanted]


def nearest(text: str, names: Iterable[str]) -> str:
    """Say which of the names is the nearest to a text."""
    by_folded = {name.casefold(): name for name in names}
    near = get_close_matches(text.casefold(), by_folded, n=1, cutoff=0.0)
    return f"the nearest is {by_folded[near[0]]}" if near else "there is nothing at all"


def read_usage(pool: Pool, usage: Sequence[Usage]) -> list[Usage]:
    """Return the usage with its records as the API gives them now; raises ApiError."""
    results = pool.read(Listing(each.kind, each.period, each.organization) for each in usage)
    return [each._replace(records=records) for each, records in zip(usage, results)]


# Reconciliation


def reconcile(
    pool: Pool,
    usage: list[Usage],
    totals: Mapping[Slice, int | None],
    warn: Callable[[str], None],
) -> list[Usage]:
    """Return the organizations' usage, completed from the usage of the whole partner.

    Where the records of a slice do not add up to its total, the whole partner's are read, and
    compared instance by instance. An organization that disagrees is asked once more, since usage
    may have arrived in between. Raises ApiError if instances are still missing on either side.
    """
    lists = {(each.organization, each.kind, each.period): each for each in usage}
    records: dict[Slice, int] = defaultdict(int)
    for each in usage:
        records[each.kind, each.period] += len(each.records)
    open_slices = [slice_ for slice_, total in totals.items() if records[slice_] != total]
    wholes = pool.read(Listing(*slice_) for slice_ in open_slices)
    unlisted: dict[Organization, int] = defaultdict(int)
    for slice_, whole in zip(open_slices, wholes):
        for each in group_unlisted(*slice_, [*lists.values()], whole):
            lists[each.organization, each.kind, each.period] = each
            unlisted[each.organization] += len(each.records)
        part = [each for each in lists.values() if (each.kind, each.period) == slice_]
        differing = {id_ for id_, _ in differences(part, whole)}
        for each in read_usage(pool, [each for each in part if each.organization.id in differing]):
            lists[each.organization, each.kind, each.period] = each
        part = [each for each in lists.values() if (each.kind, each.period) == slice_]
        settle(part, differences(part, whole), warn)
    for organization, count in unlisted.items():
        warn(
            f"usage of an organization that is not listed: {organization}, records: {count}: "
            "billed under the name that its records give"
        )
    order = {key[0]: place for place, key in reversed(list(enumerate(lists)))}
    return sorted(
        lists.values(),
        key=lambda each: (order[each.organization], KINDS.index(each.kind), each.period.start),
    )


def group_unlisted(
    kind: str, period: Period, usage: Sequence[Usage], whole: Sequence[Record]
) -> list[Usage]:
    """Return the usage of organizations that only the records of the whole partner name."""
    known = {each.organization.id: each.organization for each in usage}
    listed = {each.organization.id for each in usage if (each.kind, each.period) == (kind, period)}
    unlisted: dict[str, Usage] = {}
    for record in whole:
        id_ = record.organization_id
        if id_ not in listed:
            organization = known.setdefault(
                id_, Organization(id_, record.organization_name.strip() or id_)
            )
            unlisted.setdefault(id_, Usage(organization, kind, period, [])).records.append(record)
    return list(unlisted.values())


Difference = tuple["Record | None", "Record | None"]
"""One instance as its organization's list, and as the whole partner's, has it."""


def differences(
    usage: Sequence[Usage], whole: Sequence[Record]
) -> dict[tuple[str, str], Difference]:
    """Return, by key, the instances that are missing, or billed otherwise, in one of both."""

    def billed(record: Record) -> tuple[object, ...]:
        return record.profile, record.hours, record.quantities

    own = {record.key: record for each in usage for record in each.records}
    others = {record.key: record for record in whole}
    pairs = ((key, own.get(key), others.get(key)) for key in {**own, **others})
    return {
        key: (mine, other)
        for key, mine, other in pairs
        if not mine or not other or billed(mine) != billed(other)
    }


def settle(
    usage: Sequence[Usage],
    differing: Mapping[tuple[str, str], Difference],
    warn: Callable[[str], None],
) -> None:
    """Raise ApiError about instances that only one of both has; warn about other differences."""
    problems = []
    for each in usage:
        listing = Listing(each.kind, each.period, each.organization)
        own = {key[1]: pair for key, pair in differing.items() if key[0] == each.organization.id}
        missing = [instance for instance, pair in own.items() if None in pair]
        if missing:
            problems.append(
                f"{listing}: it and the usage of the whole partner disagree about instances "
                f"{cut_short(', '.join(missing), 400)}: run it again later; if that stays, "
                "--no-reconcile bills what the organizations' own lists say"
            )
        elif own:
            warn(
                f"{listing}: the usage of the whole partner has other usage or another profile for "
                f"instances {cut_short(', '.join(own), 400)}: usage may still be arriving; billed "
                "is what the organization's own list says"
            )
    if problems:
        raise ApiError(*problems)


# Billing


def billing_amount(hours: Decimal, rate: Decimal, currency: str) -> Decimal:
    """Return hours x rate in currency units, rounded once, half up, to the minor unit."""
    return EXACT.quantize(EXACT.multiply(hours, rate), MINOR_UNITS[currency])


def bill(usage: Iterable[Usage], book: PriceBook, currency: str) -> list[Line]:
    """Return the lines of the bill, in order.

    Each record has a line for its own hours, priced or not, and one for each other dimension that
    has a price.
    """
    lines = []
    for each in usage:
        rates: dict[Thing, Decimal | None] = {}
        for record in each.records:
            for dimension, hours in ((INSTANCE, record.hours), *record.quantities):
                thing = record.profile, dimension
                if thing not in rates:
                    rates[thing] = book.find_rate(each, *thing)
                rate = rates[thing]
                if rate is not None:
                    amount = billing_amount(hours, rate, currency)
                    lines.append(Line(each, record, dimension, hours, rate, amount))
                elif dimension == INSTANCE:
                    lines.append(Line(each, record, dimension, hours, None, None))
    return lines


def sort_lines(lines: Iterable[Line]) -> Iterator[Line]:
    """Yield lines by organization name (ignoring case), then by what tells them apart."""
    by_organization = defaultdict(list)
    for line in lines:
        organization = line.usage.organization
        by_organization[organization.name.casefold(), organization.id].append(line)
    for key in sorted(by_organization):
        yield from sorted(
            by_organization[key],
            key=lambda line: (
                line.record.project,
                line.usage.kind,
                line.record.profile,
                line.record.instance,
                line.record.instance_id,
                line.usage.period.start,
            ),
        )


# Files


COLUMNS = tuple(
    "organization organization_id project profile_type profile instance instance_id status "
    "created_at parameters period_start period_end usage_hours billing_rate billing_amount "
    "currency dimension".split()
)
FILES = ("Raw", "Sorted")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def format_line(line: Line, currency: str) -> tuple[str, ...]:
    """Return the cells of a line, one for each column."""
    (organization, kind, period, _), record, dimension, hours, rate, amount = line
    return (
        shared_cell(organization.name),
        shared_cell(organization.id),
        shared_cell(record.project),
        kind,
        shared_cell(record.profile),
        text_cell(record.instance),
        text_cell(record.instance_id),
        shared_cell(record.status),
        record.created_at,
        text_cell(record.parameters),
        format_instant(period.start),
        format_instant(period.end),
        plain(hours),
        plain(rate),
        plain(amount),
        currency,
        shared_cell(dimension),
    )


def text_cell(text: str) -> str:
    """Return a text that no spreadsheet runs as a formula, and that breaks no row.

    A NUL ends the row, or the file, in many a reader of CSV: it becomes U+FFFD.
    """
    return ("'" + text if text.startswith(FORMULA) else text).replace("\0", "\ufffd")


shared_cell = lru_cache(maxsize=1000)(text_cell)  # for what many lines have in common


def plain(number: Decimal | None) -> str:
    """Return a plain decimal, blank if there is none."""
    return "" if number is None else f"{number:f}"


class LineFeeds:
    """Ends each row of csv.writer with a line feed alone.

    The writer quotes a cell for the characters of its line terminator: with CR LF as terminator
    it quotes both, which CPython before 3.13 otherwise does not.
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, row: str) -> None:
        """Write one row."""
        self.file.write(row[:-2] + "\n")


def write_csv(path: Path, lines: Iterable[Line], currency: str) -> None:
    """Write a new file and have it on the disk; raises OSError."""
    with open(path, "x", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(LineFeeds(file), lineterminator="\r\n")
        writer.writerow(COLUMNS)
        writer.writerows(format_line(line, currency) for line in lines)
        file.flush()
        os.fsync(file.fileno())


def file_names(now: datetime) -> tuple[str, str]:
    """Return the names of the raw and of the sorted file, by the time in UTC."""
    timestamp = now.astimezone(timezone.utc).strftime("%m%d%Y-%H%M%S")
    return f"ncp-metrics-{timestamp}.csv", f"ncp-metrics-sorted-{timestamp}.csv"


def write_files(lines: Sequence[Line], currency: str, directory: Path, now: datetime) -> list[Path]:
    """Write the raw and the sorted file, or neither; return their paths; raises OutputError.

    Signals are disregarded from the moment that the files appear.
    """
    scratch = directory / f".ncp-metrics-{random.getrandbits(64):016x}"
    try:
        scratch.mkdir(mode=0o700)
        written = [scratch / "raw", scratch / "sorted"]
        write_csv(written[0], lines, currency)
        write_csv(written[1], sort_lines(lines), currency)
        disregard_signals()
        return publish(written, directory, now)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write to {directory}: {reason}: no file was written") from None
    finally:
        disregard_signals()
        shutil.rmtree(scratch, ignore_errors=True)


def publish(written: Sequence[Path], directory: Path, now: datetime) -> list[Path]:
    """Give the files their final names, of the first second from now on that is free for both."""
    while True:
        paths = [directory / name for name in file_names(now)]
        published: list[Path] = []
        try:
            for source, path in zip(written, paths):
                rename_new(source, path)
                published.append(path)
            return paths
        except FileExistsError:
            now += timedelta(seconds=1)
        finally:
            if len(published) < len(paths):
                for path in published:
                    path.unlink()


def rename_new(source: Path, path: Path) -> None:
    """Give a file another name; raises FileExistsError rather than replace what stands there."""
    try:
        os.link(source, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(path) from None
        os.rename(source, path)


# Summary


class Total:
    """Sums over lines: instances, records, their hours, and the amount in currency units.

    The hours are those of the instances alone: other dimensions are metered in other units.
    """

    def __init__(self, currency: str) -> None:
        self.instances: set[str] = set()
        self.records = 0
        self.hours = ZERO_HOURS
        self.amount = billing_amount(Decimal(0), Decimal(0), currency)

    def add(self, line: Line) -> None:
        """Add a line; one without a price has no amount."""
        if line.dimension == INSTANCE:
            self.instances.add(line.record.instance_id)
            self.records += 1
            self.hours = EXACT.add(self.hours, line.hours)
        if line.amount is not None:
            self.amount = EXACT.add(self.amount, line.amount)

    def figures(self) -> tuple[Decimal, ...]:
        """Return instances, records, hours and amount."""
        return Decimal(len(self.instances)), Decimal(self.records), self.hours, self.amount


def totals_by(
    key: Callable[[Line], str], lines: Iterable[Line], currency: str
) -> defaultdict[str, Total]:
    """Return the totals of the lines that have the same key, in order of appearance."""
    totals: defaultdict[str, Total] = defaultdict(lambda: Total(currency))
    for line in lines:
        totals[key(line)].add(line)
    return totals


def unpriced_totals(lines: Iterable[Line], currency: str) -> dict[str, Total]:
    """Return the totals of each profile whose instances have no price."""
    unpriced = (line for line in lines if line.rate is None)
    return totals_by(lambda line: line.record.profile, unpriced, currency)


def describe_unpriced(totals: Mapping[str, Total], book: PriceBook) -> list[str]:
    """Return a sentence for each profile without a price, with the nearest name in the book."""
    sentences = []
    for profile, total in totals.items():
        there = [price for price in book.prices if price.profile == profile.strip()]
        if not there:
            hint = f"in the price book, {nearest(profile, {each.profile for each in book.prices})}"
        elif all(price.dimension != INSTANCE for price in there):
            hint = "if its other dimensions are all that is billed, give it an instance price of 0"
        else:
            numbers = cut_short(", ".join(str(price.line) for price in sorted(there)), 40)
            hint = f"what the price book has for it, in line {numbers}, does not hold here"
        sentences.append(
            f"profile {profile} has no price: {plain(total.hours)} hours "
            f"(instances: {len(total.instances)}) are not billed; {hint}"
        )
    return sentences


def describe_unused(book: PriceBook, usage: Iterable[Usage]) -> list[str]:
    """Return a sentence for each price whose profile, or dimension of it, nothing used."""
    used: set[Thing] = set()
    for each in usage:
        profiles = {record.profile for record in each.records}
        used.update((profile.strip(), INSTANCE) for profile in profiles)
        if book.dimensions:
            for record in each.records:
                used.update((record.profile.strip(), name) for name, _ in record.quantities)
    return [
        f"{book.path}: line {price.line}: nothing used {price.dimension} of {price.profile}"
        for price in sorted(book.prices)
        if (price.profile, price.dimension) not in used
    ]


def describe_doubts(settings: Settings, usage: Iterable[Usage]) -> list[str]:
    """Return what to look at before the bill is sent."""
    doubts = []
    if settings.provisional:
        end = format_instant(settings.period.end)
        doubts.append(f"the bill is provisional: the month is not over, and is billed up to {end}")
    overlong = []
    for each in usage:
        most = each.period.hours + Decimal("0.005")  # usage is rounded half up to 0.01
        overlong += [(each, record) for record in each.records if record.hours > most]
    for each, record in overlong[:1]:
        doubts.append(
            f"instances with more hours than the period has: {len(overlong)}; the first is "
            f"{record} of {each.organization}, {plain(record.hours)}"
        )
    return doubts


def summarize(usage: Sequence[Usage], lines: Sequence[Line], settings: Settings) -> list[str]:
    """Return the table of the summary: organizations with usage, the total, those without."""
    organizations = list(dict.fromkeys(each.organization for each in usage))
    by_id = totals_by(lambda line: line.usage.organization.id, lines, settings.currency)
    nothing = Total(settings.currency).figures()
    figures = [nothing, *(total.figures() for total in by_id.values())]
    everything = [reduce(EXACT.add, column) for column in zip(*figures)]
    rows: list[tuple[str, ...]] = [
        ("Organization", "Instances", "Records", "Hours", f"Amount ({settings.currency})")
    ]
    for each in organizations:
        if each.id in by_id:
            name = cut_short(printable(str(each)), 60)
            rows.append((name, *(f"{figure:,f}" for figure in by_id[each.id].figures())))
    rows.append(("Total", *(f"{figure:,f}" for figure in everything)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    without = len(organizations) - len(by_id)
    return [
        *("  ".join([n.ljust(widths[0]), *map(str.rjust, row, widths[1:])]) for n, *row in rows),
        "",
        f"Organizations without usage: {without} of {len(organizations)}",
    ]


def describe_reconciled(usage: Sequence[Usage]) -> str:
    """Say what was reconciled."""
    records = [record for each in usage for record in each.records]
    organizations = {record.organization_id for record in records}
    hours = reduce(EXACT.add, (record.hours for record in records), ZERO_HOURS)
    return (
        f"Reconciled with the usage of the whole partner: {len(records)} records of "
        f"{len(organizations)} organizations, {plain(hours)} hours"
    )


def describe_run(settings: Settings, book: PriceBook) -> list[str]:
    """Return what an auditor asks for: period, zone, price book, version."""
    start, end = map(format_instant, settings.period)
    return [
        f"Period: {start} to {end}, the end not included",
        f"Time zone: {settings.timezone_name}",
        f"Price book: {book.path.absolute()}, prices: {len(book.prices)}",
        f"SHA-256 of the price book: {book.sha256}",
        f"Version: ncp_metrics {__version__}",
    ]


def printable(text: str) -> str:
    """Return a text with what could steer a terminal, or reorder a line, as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


class Screen:
    """What a person sees: the summary on stdout; progress, warnings and errors on stderr."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self.keys = [key.strip() for key in keys if key.strip()]
        self.quiet = False
        self.drawn_at = 0.0
        self.begin("organizations")
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # in a locale without the letters

    def say(self, *texts: str) -> None:
        """Print lines of the summary."""
        self.clear_progress()
        if not self.quiet:
            self._print(sys.stdout, "".join(f"{printable(text)}\n" for text in texts))

    def warn(self, *texts: str) -> None:
        """Print warnings."""
        self._complain("warning", texts)

    def error(self, *texts: str) -> None:
        """Print errors."""
        self._complain("error", texts)

    def begin(self, phase: str, organizations: int = 0) -> None:
        """Name what progress is of from now on."""
        self.phase = phase
        self.organizations = organizations

    def progress(self, ended: float, rows: int, left: float) -> None:
        """Rewrite the progress line, on a terminal only and ten times a second at most.

        `ended` is the share of the organizations, `left` are seconds.
        """
        now = time.monotonic()
        if self.quiet or sys.stderr is None or not sys.stderr.isatty() or now < self.drawn_at + 0.1:
            return
        self.drawn_at = now
        of = self.organizations
        done = f"{int(ended * of)} of {of} organizations, " if of else ""
        text = f"{self.phase}: {done}{rows} records, {left:.0f} s left"
        self._print(sys.stderr, f"\r\x1b[K{text}")

    def clear_progress(self) -> None:
        """Remove the progress line."""
        if self.drawn_at:
            self._print(sys.stderr, "\r\x1b[K")
            self.drawn_at = 0.0

    def _complain(self, level: str, texts: Sequence[str]) -> None:
        self.clear_progress()
        for text in texts:
            line = printable(redact(text, self.keys))
            self._print(sys.stderr, f"ncp_metrics: {level}: {line}\n")

    def _print(self, stream: TextIO | None, text: str) -> None:
        """Print, whether or not anybody reads it: what was written to disk stands either way."""
        if stream is None:
            return
        try:
            stream.write(text)
            stream.flush()
        except (OSError, Stopped) as error:
            # What is left in the buffer must neither fail nor wait again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if isinstance(error, Stopped):
                raise


# The run


def read_inputs(
    argv: Sequence[str] | None, environ: Mapping[str, str], now: datetime, screen: Screen
) -> tuple[Settings, PriceBook]:
    """Return settings and price book; raises SettingsError with all that is wrong with both."""
    flags, problems = parse_flags(argv)
    screen.quiet = flags.quiet
    settings, more_problems = read_settings(vars(flags), environ, now)
    book, price_problems = read_price_book(
        settings.pricing_file, settings.currency, settings.timezone
    )
    if problems or more_problems or price_problems:
        raise SettingsError(*problems, *more_problems, *price_problems)
    return settings, book


def try_out(pool: Pool, settings: Settings, book: PriceBook) -> list[str]:
    """Try both keys and both hosts with few requests, and say what is there; raises Failure."""
    [[page]] = pool.run([first_page(Listing(KINDS[0], settings.period), 1)])
    organizations = read_organizations(pool)
    chosen = choose_organizations(settings.wanted, organizations)
    _, unlisted = resolve_contracts(book, organizations)
    return [
        f"Usage: {settings.console_url} answers; {KINDS[0]} records: "
        f"{max(page.counted or 0, len(page.rows))} or more",
        f"Organizations: {settings.ops_console_url} answers; listed: {len(organizations)}, "
        f"to be billed: {len(chosen)}",
        *shorten(unlisted),
        *describe_doubts(settings, ()),
        *describe_run(settings, book),
        "All is in order; nothing was written.",
    ]


def read_all(
    pool: Pool, settings: Settings, book: PriceBook, screen: Screen
) -> tuple[list[Usage], PriceBook, list[str]]:
    """Return all usage to bill, the price book by ids, and what the summary says of both.

    Raises Failure.
    """
    parts = split_period(settings.period, book.prices)
    totals = probe(pool, [(kind, part) for kind in KINDS for part in parts])
    listed = read_organizations(pool)
    resolve_contracts(book, listed)
    organizations = choose_organizations(settings.wanted, listed)
    screen.begin("usage", len(organizations))
    usage = read_usage(
        pool, [Usage(each, *slice_, []) for each in organizations for slice_ in totals]
    )
    if settings.wanted:
        notes = [
            f"This bill is partial: --org names {len(organizations)} of {len(listed)}",
            "Not reconciled with the usage of the whole partner: the bill is partial",
        ]
    elif settings.reconciling:
        screen.begin("comparison with the whole partner")
        usage = reconcile(pool, usage, totals, screen.warn)
        notes = [describe_reconciled(usage)]
    else:
        notes = ["Not reconciled with the usage of the whole partner: RECONCILE is 0"]
    everybody = [*listed, *(each.organization for each in usage)]
    book, unlisted = resolve_contracts(book, everybody)
    unused = [] if settings.wanted else describe_unused(book, usage)
    return usage, book, [*notes, *shorten([*unlisted, *unused])]


def main(
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
) -> int:
    """Run the command; return its exit status."""
    screen = Screen(environ.get(name, "") for name in ("RAFAY_DEFAULT_API_KEY", "PARTNER_API_KEY"))
    status: int | None = None
    try:
        heed_signals()
        gc.set_threshold(100_000)  # records hold no cycles: seldom look for them
        try:
            now = clock()
            settings, book = read_inputs(argv, environ, now, screen)
            with Pool(Client(settings, book.dimensions), settings.workers, screen.progress) as pool:
                if settings.checking:
                    screen.say(*try_out(pool, settings, book))
                    return 0
                usage, book, notes = read_all(pool, settings, book, screen)
            lines = bill(usage, book, settings.currency)
            unpriced = unpriced_totals(lines, settings.currency)
            unbilled = describe_unpriced(unpriced, book)
            screen.warn(*describe_doubts(settings, usage), *unbilled)
            summary = summarize(usage, lines, settings)
            paths = write_files(lines, settings.currency, settings.output_dir, now)
            status = 3 if any(total.hours for total in unpriced.values()) else 0
            heed_signals()
            screen.say(*summary, *(f"Not billed: {text}" for text in unbilled), *notes)
            screen.say(*describe_run(settings, book))
            screen.say(*(f"{name} file: {path.absolute()}" for name, path in zip(FILES, paths)))
            return status
        except Failure as failure:
            screen.error(*failure.problems)
            return failure.status
    except Stopped as stopped:
        if status is not None:
            return status
        name = signal.Signals(stopped.signal_number).name
        screen.error(f"stopped by {name}: no file was written; run it again")
        return 128 + stopped.signal_number


if __name__ == "__main__":
    exit_status = main()
    # From here on Python would give each signal its default action back.
    for stopping in STOPPING_SIGNALS:
        signal.signal(stopping, signal.SIG_IGN)
    raise SystemExit(exit_status)
