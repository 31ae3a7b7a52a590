#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["requests>=2.25.1", "python-dateutil>=2.8.1"]
# ///
"""Bill the usage metered by a Rafay partner: hours x rate, as two CSV files.

usage: ncp_metrics.py [--month MONTH | --days DAYS | --from TIME --to TIME]
                      [--org NAME_OR_ID]... [--check] [-q] [other settings]

settings and their defaults, by environment or flag (which wins):
  RAFAY_CONSOLE_URL          the console, such as rafay.acme.com (required)
  RAFAY_DEFAULT_API_KEY      the API key that reads usage (required)
  PARTNER_API_KEY            the API key that lists organizations (required)
  RAFAY_OPS_CONSOLE_URL      the host that lists them (RAFAY_CONSOLE_URL)
  BILLING_MONTH, --month     a calendar month: 2026-06, or last (none)
  DAYS, --days               the last so many days, 1 to 3650 (30)
  --from, --to               ISO 8601 dates or times, the end excluded (none)
  TIMEZONE, --timezone       IANA zone in which months and dates begin (UTC)
  CURRENCY, --currency       ISO 4217 code of every amount (USD)
  PRICING_FILE, --pricing    the price book (pricing.csv beside the script)
  OUTPUT_DIR, --output-dir   where the files go (the working directory)
  WORKERS                    requests in flight, 1 to 32 (8)
  RECONCILE, --no-reconcile  compare with the partner-wide usage: 1 or 0 (1)
  --org NAME_OR_ID           bill this organization only; repeatable
  --check                    try settings, keys and hosts; write nothing
  -q, --quiet                print warnings and errors only
  -h, --help; --version      print this help; the version

exit status:
  0              both files written, everything priced
  1              failed (network, API, disk): no file written
  2              settings, flags or price book wrong: no file written
  3              both files written, but something may be unbilled: see stderr
  129, 130, 143  stopped by SIGHUP, SIGINT, SIGTERM: no file written

Examples:
  ncp_metrics.py --check
  ncp_metrics.py --month last --output-dir /srv/billing

"""

# Data flows one way, from section to section: settings, period and price book; organizations;
# usage and its reconciliation; lines; files; summary. README.md is the manual.

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Importing takes a moment: until `main` handles signals, Ctrl-C ends the process quietly.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import csv
import decimal
import difflib
import functools
import gc
import hashlib
import io
import itertools
import json
import multiprocessing.pool
import os
import random
import re
import shutil
import socket
import ssl
import sys
import threading
import time
import zoneinfo
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import lru_cache, partial
from http.cookiejar import DefaultCookiePolicy
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

import requests
import urllib3
from dateutil import tz
from dateutil.parser import isoparse
from dateutil.relativedelta import relativedelta
from requests import PreparedRequest, Response

__version__ = "2.0.0"

# Constants and errors

KINDS = ("compute", "service")
INSTANCE = "instance"  # the dimension that every instance has: its own hours
USAGE_PATH = "/apis/billing.envmgmt.io/v1/metrics/partner/instance/kind/{}/usage"
ORGANIZATIONS_PATH = "/auth/v1/organizations"
PAGE_SIZE = 400  # rows; what Rafay's own API collection asks for

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0  # of silence; a call in Rafay's documents took 2.7 s
ATTEMPTS = 6
BACKOFF_SECONDS = 0.5  # before the second attempt, doubled before each further one
RETRY_AFTER_SECONDS = 30.0  # the longest Retry-After that is obeyed
SILENCE_SECONDS = 900.0  # without an answer to any request
STEP_SECONDS = 0.5  # the longest wait in one go: a signal just before it is handled after it
MAX_REDIRECTS = 5
MAX_ANSWER_BYTES = 64 * 2**20
MAX_PAGES = 10_000  # of one list
MAX_INSTANCE_HOURS = Decimal(10**6)  # a century: a defect, not usage
MAX_QUANTITY_HOURS = Decimal(10**21)  # quantities may be metered in bytes
MAX_PROBLEMS = 20  # shown at once
MAX_QUOTE = 300  # characters of a server's text in a message

# ISO 4217: the minor unit of each currency.
HUNDREDTHS = """
AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE
CHF CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD
HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK
MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD
RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH
USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR ZMW ZWG
"""
MINOR_UNITS = {
    **dict.fromkeys(HUNDREDTHS.split(), Decimal("0.01")),
    **dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), Decimal("0.001")),
    **dict.fromkeys("CLF UYW".split(), Decimal("0.0001")),
    **dict.fromkeys(
        "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split(), Decimal(1)
    ),
}

# Wide enough for every sum and product: only `billing_amount` rounds money.
EXACT = decimal.Context(prec=1_000_000, rounding=decimal.ROUND_HALF_UP)
NO_HOURS = Decimal("0.00")
ROUNDING = Decimal("0.01")  # hours by which the usage of a record may be rounded up
DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # or not a character
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
LOOPBACK = re.compile(r"https?://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.I)


class Failure(Exception):
    """The run ends with this exit status; each argument is one line on stderr."""

    status = 1


class SettingsError(Failure):
    """Settings, flags or price book are wrong."""

    status = 2


class Contradiction(Failure):
    """A list contradicts itself: it may have changed while it was read."""


class Transient(Exception):
    """An attempt failed in a way that the next one may not."""

    retry_after: float | None = None  # seconds


class Stopped(BaseException):
    """A signal, whose number is the argument, ends the run."""


# Settings


class Settings(NamedTuple):
    """What a run is told, checked: a field for each variable, then what flags add."""

    rafay_console_url: str
    rafay_default_api_key: str
    partner_api_key: str
    rafay_ops_console_url: str
    billing_month: str
    days: int
    timezone: tzinfo
    currency: str
    pricing_file: Path
    output_dir: Path
    workers: int
    reconcile: int
    organizations: Sequence[str]
    period: Period
    provisional: bool  # of a month that is not over


def check_url(text: str) -> str:
    """Return a console's URL without a trailing slash; the error never shows the text."""
    host = r"[\w-]+(?:\.[\w-]+)*|\[[\da-fA-F:.]+\]"
    match = re.fullmatch(rf"(?:(https?)://)?({host})(:\d{{1,5}})?/?", text, re.A | re.I)
    if not match or not 0 < int((match[3] or ":443")[1:]) < 65536:
        raise ValueError("not a host, such as rafay.acme.com, host:port or https://host/")
    url = f"{(match[1] or 'https').lower()}://{match[2]}{match[3] or ''}"
    if url.startswith("http:") and not LOOPBACK.fullmatch(url):
        raise ValueError("http:// would send the API key in clear: use https://")
    return url


def check_text(pattern: str, meaning: str, text: str) -> str:
    """Return a text that matches a pattern; the error never shows it, as it may be an API key."""
    if not re.fullmatch(pattern, text):
        raise ValueError(f"not {meaning}")
    return text


def check_zone(text: str) -> tzinfo:
    """Return the zone of an IANA name; UTC needs no zone files."""
    try:
        if re.fullmatch(r"[A-Z][\w+-]*(/[\w+-]+)*", text):
            return timezone.utc if text == "UTC" else zoneinfo.ZoneInfo(text)
    except (KeyError, ValueError, OSError):
        pass  # not found, or not a zone
    raise ValueError(f"{text!r} is not an IANA time zone, such as Europe/Berlin")


def check_path(text: str) -> Path:
    """Return a path that stays the same if the working directory goes away."""
    try:
        return Path(os.path.abspath(text))
    except OSError:
        raise ValueError(f"{text} is in a working directory that no longer exists") from None


def check_directory(text: str) -> Path:
    """Return a directory that files can be written to."""
    path = check_path(text)
    if not os.path.isdir(path) or not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"{path} is not a directory that you can write to")
    return path


def check_number(low: int, high: int, text: str) -> int:
    """Return a whole number, both bounds included."""
    if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise ValueError(f"{text!r} is not a whole number from {low} to {high}")
    return int(text)


check_key = partial(check_text, "[!-~]+", "a key: it has a space or another invalid character")
check_month = partial(check_text, "last|2[0-9]{3}-(0[1-9]|1[0-2])", "a month: give 2026-06 or last")
check_currency = partial(check_text, "|".join(MINOR_UNITS), "an ISO 4217 currency, such as USD")
# Variable, flag, default (None: required) and check, which raises ValueError.
SETTINGS: tuple[tuple[str, str, str | None, Callable[[str], object]], ...] = (
    ("RAFAY_CONSOLE_URL", "", None, check_url),
    ("RAFAY_DEFAULT_API_KEY", "", None, check_key),
    ("PARTNER_API_KEY", "", None, check_key),
    ("RAFAY_OPS_CONSOLE_URL", "", "", check_url),
    ("BILLING_MONTH", "--month", "", check_month),
    ("DAYS", "--days", "30", partial(check_number, 1, 3650)),
    ("TIMEZONE", "--timezone", "UTC", check_zone),
    ("CURRENCY", "--currency", "USD", check_currency),
    ("PRICING_FILE", "--pricing", str(Path(__file__).with_name("pricing.csv")), check_path),
    ("OUTPUT_DIR", "--output-dir", os.curdir, check_directory),
    ("WORKERS", "", "8", partial(check_number, 1, 32)),
    ("RECONCILE", "", "1", partial(check_number, 0, 1)),
)


class Parser(argparse.ArgumentParser):
    """Flags, explained by the text above, whose errors are reported like every other error."""

    def format_help(self) -> str:
        """Return the help."""
        return __doc__ or ""

    def error(self, message: str) -> NoReturn:
        """Raise SettingsError, without the values that argparse quotes: one may be an API key."""
        raise SettingsError(re.sub(r""" (['"]).*\1""", "", message) + "; see --help")


def parse_flags(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the flags, and what is wrong with them; raises SettingsError or SystemExit."""
    parser = Parser(prog="ncp_metrics", allow_abbrev=False)
    for variable, flag, _, _ in SETTINGS:
        if flag:
            parser.add_argument(flag, dest=variable, type=str.strip)
    parser.add_argument("--no-reconcile", dest="RECONCILE", action="store_const", const="0")
    parser.add_argument("--from", dest="start", type=str.strip)
    parser.add_argument("--to", dest="end", type=str.strip)
    parser.add_argument("--org", type=str.strip, action="append", default=[])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("-q", "--quiet", action="store_true")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    flags, unknown = parser.parse_known_args(argv)
    # Only the names of flags are shown: the rest may be an API key.
    names = [text.partition("=")[0] for text in unknown if text.startswith("--")]
    problem = f"unknown argument {' '.join(names)}; see --help"
    return flags, [problem] if unknown else []


def read_settings(
    flags: argparse.Namespace, environ: Mapping[str, str], now: datetime
) -> tuple[Settings, list[str]]:
    """Return the settings, None for each that is wrong, and all that is wrong with them."""
    values: dict[str, Any] = {"organizations": flags.org}
    problems = []
    for variable, flag, default, check in SETTINGS:
        by_flag = getattr(flags, variable, None)
        text = by_flag or environ.get(variable, "").strip() or default
        values[variable.lower()] = None
        try:
            if text is None:
                raise ValueError("not set; see --help")
            values[variable.lower()] = check(text) if text else text
        except ValueError as error:
            problems.append(f"{flag if by_flag else variable}: {error}")
    values["timezone"] = values["timezone"] or timezone.utc
    now = now.astimezone(timezone.utc).replace(microsecond=0)
    try:
        period = choose_period(flags, values, now)
    except ValueError as error:
        problems.append(str(error))
        period = Period(now, now)
    values["period"] = Period(period.start, min(period.end, now))
    values["provisional"] = period.end > now
    return Settings(**values), problems


# Period


class Period(NamedTuple):
    """What is billed, or a part of it: aware UTC moments, start included, end excluded."""

    start: datetime
    end: datetime


ALWAYS = Period(*(moment.replace(tzinfo=timezone.utc) for moment in (datetime.min, datetime.max)))
NO_PERIOD = ALWAYS  # of organizations


def choose_period(flags: argparse.Namespace, values: Mapping[str, Any], now: datetime) -> Period:
    """Return the period, which may end later than now if it is a month; raises ValueError."""
    month, zone = values["billing_month"], values["timezone"]
    # Blank is unset elsewhere, but a blank --from must not bill 30 days.
    from_to = flags.start is not None or flags.end is not None
    if bool(flags.BILLING_MONTH) + bool(flags.DAYS) + from_to > 1:
        raise ValueError("--month, --days and --from/--to exclude each other: give one period")
    if from_to:
        start = parse_moment("--from", flags.start or "", zone)
        end = parse_moment("--to", flags.end or "", zone)
        if start >= end:
            raise ValueError("--from, --to: the end must be after the start")
        if end > now:
            raise ValueError(f"--to: {flags.end} is in the future: it is {format_moment(now)}")
        return Period(start, end)
    if flags.DAYS or not month:
        return Period(now - timedelta(days=values["days"] or 1), now)
    if month == "last":
        month = f"{now.astimezone(zone) - relativedelta(months=1):%Y-%m}"
    following = isoparse(month) + relativedelta(months=1)
    start = parse_moment("--month", f"{month}-01", zone)
    end = parse_moment("--month", f"{following:%Y-%m-%d}", zone)
    if start >= now:
        raise ValueError(f"--month, BILLING_MONTH: {month} has not begun")
    return Period(start, end)


def parse_moment(name: str, text: str, zone: tzinfo) -> datetime:
    """Return an ISO 8601 date or time, in the zone unless it has an offset; raises ValueError."""
    clock = r"T\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)?"
    try:
        if not re.fullmatch(rf"\d{{4}}-\d\d-\d\d({clock})?", text, re.A):
            raise ValueError
        moment = isoparse(text)
        if "T" not in text:
            # Where clocks go forward at midnight, the day begins an hour later.
            return tz.resolve_imaginary(moment.replace(tzinfo=zone)).astimezone(timezone.utc)
        local = moment if moment.tzinfo else moment.replace(tzinfo=zone)
        utc = local.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        example = "2026-06-01 or 2026-06-01T00:00:00Z"
        raise ValueError(f"{name} {text!r} is not a date or time, such as {example}") from None
    if not moment.tzinfo and (tz.datetime_ambiguous(local) or not tz.datetime_exists(local)):
        raise ValueError(f"{name} {text!r}: the clocks change: add an offset, such as +02:00")
    return utc


@lru_cache(maxsize=1000)
def format_moment(moment: datetime) -> str:
    """Return an aware UTC time as `2026-06-01T00:00:00Z`."""
    return moment.replace(tzinfo=None, microsecond=0).isoformat() + "Z"


# Price book

Thing = tuple[str, str]  # what has a price: a profile, and a dimension of it


class Price(NamedTuple):
    """A line of the price book; a blank organization or profile type means every one."""

    line: int
    profile: str
    dimension: str
    organization: str  # a name or an id; once resolved, an id
    profile_type: str
    effective_from: datetime
    effective_to: datetime  # excluded
    rate: Decimal  # currency units for an hour

    def in_force(self, period: Period) -> bool:
        """Whether the price holds at some time of a period."""
        return self.effective_from < period.end and period.start < self.effective_to


class PriceBook:
    """Prices, found by organization (blank: everyone), then by profile and dimension."""

    def __init__(self, path: Path, sha256: str, prices: Iterable[Price]) -> None:
        self.path = path
        self.sha256 = sha256
        self.prices = list(prices)
        self.index: dict[str, dict[Thing, list[Price]]] = defaultdict(lambda: defaultdict(list))
        self.dimensions: dict[str, set[str]] = defaultdict(set)  # by profile
        self.problems: list[str] = []
        self.has_parameters = any(price.dimension != INSTANCE for price in self.prices)
        # The most specific first: for one profile type, then the latest.
        specific = attrgetter("profile_type", "effective_from")
        for price in sorted(self.prices, key=specific, reverse=True):
            same = self.index[price.organization][price.profile, price.dimension]
            if same and specific(same[-1]) == specific(price):
                problem = f"line {same[-1].line} already has this price"
                self.problems.append(f"{path}: line {price.line}: {problem}")
            same.append(price)
            self.dimensions[price.profile].add(price.dimension)

    def candidates(self, organization_id: str, kind: str, thing: Thing) -> Iterator[Price]:
        """Yield what an organization can pay: its own prices, then those for everyone."""
        for owner in (organization_id, ""):
            for price in self.index.get(owner, {}).get(thing, ()):
                if price.profile_type in ("", kind):
                    yield price

    def find(self, organization_id: str, kind: str, thing: Thing, at: datetime) -> Price | None:
        """Return the price in force at a moment, None if there is none."""
        for price in self.candidates(organization_id, kind, thing):
            if price.effective_from <= at < price.effective_to:
                return price
        return None

    def priced(self, organization_id: str, kind: str, profile: str, period: Period) -> set[str]:
        """Return the parameters of a profile with a price in force at some time of a period."""
        return {
            dimension
            for dimension in self.dimensions.get(profile, set()) - {INSTANCE}
            for price in self.candidates(organization_id, kind, (profile, dimension))
            if price.in_force(period)
        }

    def changes(self, organization_id: str, period: Period) -> dict[datetime, set[Thing]]:
        """Return when, in a period, prices change of what it (blank: everyone) has prices for."""
        changes = defaultdict(set)
        for thing, kind in itertools.product(self.index.get(organization_id, ()), KINDS):
            for price in self.candidates(organization_id, kind, thing):
                for moment in (price.effective_from, price.effective_to):
                    if period.start < moment < period.end:
                        before = self.find(organization_id, kind, thing, moment - moment.resolution)
                        if self.find(organization_id, kind, thing, moment) is not before:
                            changes[moment].add(thing)
        return changes

    def split(self, organization_ids: Iterable[str], period: Period) -> dict[str, list[Period]]:
        """Return, by organization, the parts of a period in which what it pays does not change."""
        everyones = self.changes("", period)
        parts = {}
        for id_ in organization_ids:
            own = self.index.get(id_, {}).keys()
            moments = {moment for moment, things in everyones.items() if not things <= own}
            edges = [period.start, *sorted(moments.union(self.changes(id_, period))), period.end]
            parts[id_] = [Period(start, end) for start, end in zip(edges, edges[1:])]
        return parts


PRICE_COLUMNS = (
    "profile hourly_rate dimension organization profile_type effective_from effective_to "
    "currency description"
).split()


def read_price_book(path: Path, currency: str, zone: tzinfo) -> tuple[PriceBook, list[str]]:
    """Return the price book, and all that is wrong with it, by file and line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return PriceBook(path, "", ()), [f"{path}: {error.strerror}: see --pricing in --help"]
    prices, problems = [], []
    columns: list[str] = []
    text = content.decode("utf-8-sig", "surrogateescape")
    # Line by line: no cell may hold a line break, and a stray quote must not swallow prices.
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        if line.startswith("#") or not line.replace(",", "").strip():
            continue  # a spreadsheet's blank line is ",,"
        try:
            cells = parse_cells(line)
            if not columns:
                check_columns(cells)
                columns = cells
            elif len(cells) != len(columns):
                raise ValueError(f"{len(cells)} cells, but the header has {len(columns)}")
            else:
                named = defaultdict(str, zip(columns, cells))
                prices.append(parse_price(number, named, currency, zone))
        except ValueError as error:
            problems.append(f"{path}: line {number}: {error}")
            if not columns:
                break
    if not columns and not problems:
        problems.append(f"{path}: needs a header, such as profile,hourly_rate")
    book = PriceBook(path, hashlib.sha256(content).hexdigest(), prices)
    return book, problems + book.problems


def parse_cells(line: str) -> list[str]:
    """Return the cells of a line of CSV, trimmed; raises ValueError."""
    if CONTROL.search(line):
        raise ValueError("a tab or another control character, or not UTF-8: save it as CSV UTF-8")
    try:
        return [cell.strip() for cell in next(csv.reader([line], strict=True))]
    except csv.Error as error:
        raise ValueError(f"not CSV: {error}") from None


def check_columns(columns: Sequence[str]) -> None:
    """Raise ValueError unless these are the columns of a price book, each once."""
    known = ",".join(PRICE_COLUMNS)
    for name in columns:
        if name not in PRICE_COLUMNS or columns.count(name) > 1:
            raise ValueError(f"unknown or duplicate column {name!r}: use some of {known}")
    for name in ("profile", "hourly_rate"):
        if name not in columns:
            raise ValueError(f"column {name!r} is missing")


def parse_price(line: int, cells: Mapping[str, str], currency: str, zone: tzinfo) -> Price:
    """Return the price in a line; raises ValueError."""
    profile, kind, rate = cells["profile"], cells["profile_type"], cells["hourly_rate"]
    for column, valid, meaning in (
        ("profile", profile, "the name of a profile"),
        ("hourly_rate", DECIMAL.fullmatch(rate), "a plain decimal, such as 2.50"),
        ("profile_type", kind in ("", *KINDS), "compute, service or blank"),
        # A wrong CURRENCY is None here: that has been reported.
        ("currency", not currency or cells["currency"] in ("", currency), f"CURRENCY, {currency}"),
    ):
        if not valid:
            raise ValueError(f"{column} {cells[column]!r} is not {meaning}")
    start, end = (
        parse_moment(column, cells[column], zone) if cells[column] else unbounded
        for column, unbounded in zip(("effective_from", "effective_to"), ALWAYS)
    )
    if start >= end:
        raise ValueError("effective_to must be later than effective_from")
    dimension = cells["dimension"] or INSTANCE
    return Price(line, profile, dimension, cells["organization"], kind, start, end, Decimal(rate))


# Organizations


class Organization(NamedTuple):
    """A tenant, as listed."""

    id: str
    name: str
    external_id: str

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"


class Names:
    """Organizations by id and by name, as a price book or --org may give them."""

    def __init__(self, organizations: Iterable[Organization]) -> None:
        self.by_id = {each.id: each for each in organizations}
        self.by_name: dict[str, list[Organization]] = defaultdict(list)
        for each in self.by_id.values():
            self.by_name[each.name.strip().casefold()].append(each)

    def find(self, text: str) -> list[Organization]:
        """Return the organization of an id, else those of a name."""
        # The id comes first: no tenant gets the price of another by taking its id for a name.
        if text in self.by_id:
            return [self.by_id[text]]
        return self.by_name.get(text.casefold(), [])

    def did_you_mean(self, text: str) -> str:
        """Return a hint at the nearest name, blank if none is close."""
        near = difflib.get_close_matches(text.casefold(), self.by_name, n=1, cutoff=0.8)
        return f"; did you mean {self.by_name[near[0]][0].name}?" if near else ""

    def problem(self, text: str) -> str:
        """Return why a text names no organization, or more than one."""
        ids = ", ".join(each.id for each in self.find(text))
        reason = f"ambiguous: give the id: {ids}" if ids else "not listed" + self.did_you_mean(text)
        return f"organization {text!r} is {reason}"


def resolve(book: PriceBook, names: Names) -> tuple[PriceBook, list[Price]]:
    """Return the book with ids, and the prices of unknown organizations; raises SettingsError."""
    prices, unknown, problems = [], [], []
    for price in book.prices:
        owners = names.find(price.organization)
        if not price.organization:
            prices.append(price)
        elif not owners:
            unknown.append(price)
        elif len(owners) == 1:
            prices.append(price._replace(organization=owners[0].id))
        else:
            where = f"{book.path}: line {price.line}"
            problems.append(f"{where}: {names.problem(price.organization)}")
    resolved = PriceBook(book.path, book.sha256, prices)
    if problems or resolved.problems:
        raise SettingsError(*problems, *resolved.problems)
    return resolved, unknown


def choose(wanted: Sequence[str], names: Names) -> list[Organization]:
    """Return the organizations that --org names, or else all, as listed; raises SettingsError."""
    found = {text: names.find(text) for text in wanted}
    problems = [f"--org: {names.problem(text)}" for text in found if len(found[text]) != 1]
    if problems:
        raise SettingsError(*problems)
    chosen = {owner for owners in found.values() for owner in owners}
    return [each for each in names.by_id.values() if each in chosen or not wanted]


# Answers

HOURS = re.compile(r"-?[0-9]+(\.[0-9]+)?h")
Quantities = Sequence[tuple[str, Decimal]]  # quantity x hours of each parameter with a price


class Record(NamedTuple):
    """The metered usage of an instance in a period."""

    organization: Organization
    kind: str
    period: Period
    project: str
    profile: str
    ids: str  # of project and profile
    instance: str
    instance_id: str
    times: str  # start and end, as answered
    status: str
    created_at: str
    parameters: str
    hours: Decimal
    quantities: Quantities

    def __str__(self) -> str:
        return f"instance {self.instance} ({self.instance_id})"


SUBJECT = ("organization.id", "project", "profile", "ids", "instance_id")
subject_of = attrgetter(*SUBJECT)  # what makes records of two lists the same
identity_of = attrgetter(*SUBJECT, "times")  # the same in one list


class Listing(NamedTuple):
    """A page of a list of the API: of organizations, or of the usage of one organization or all."""

    kind: str = ""  # blank for organizations
    period: Period = NO_PERIOD
    organization: Organization | None = None
    offset: int = 0
    limit: int = PAGE_SIZE

    def __str__(self) -> str:
        usage = f"{self.kind} usage of {self.organization or 'the whole partner'}"
        return usage if self.kind else "organizations"


class Page(NamedTuple):
    """The rows of an answer, its `count` or 0, and whether `next` is null."""

    rows: list[Any]
    counted: int
    last: bool


# Return the parameters that have a price, by organization, kind and profile.
Priced = Callable[[Organization, str, str], Collection[str]]


def parse_page(listing: Listing, answer: Any, priced: Priced) -> Page:
    """Check a decoded answer; raises Failure."""
    [answer] = objects([answer], "the answer")
    kind, count, rows = listing.kind, answer.get("count"), answer.get("instance_usage_data")
    if not kind:
        rows = answer.get("results", answer.get("items"))
    elif answer.get("kind") not in (None, kind):
        raise Failure(f"the answer is of kind {answer['kind']!r}")
    elif not rows and not (answer.get("kind") and answer.get("range_from")):
        raise Failure("the answer lists nothing and lacks kind or range_from: is it another API?")
    for name, moment in zip(("range_from", "range_to"), listing.period if kind else ()):
        if answer.get(name) is not None and parse_time(answer[name]) != moment:
            raise Failure(f"{name} is {answer[name]!r}, asked was {format_moment(moment)}")
    if rows is None and (kind or listing.offset):  # so some Go encoders write an empty list
        rows = []
    rows = objects(rows, "instance_usage_data" if kind else "results")
    lacking = count and not rows and not listing.offset
    if count is not None and (type(count) is not int or count < len(rows) or lacking):
        raise Failure(f"the answer has count {count!r} but lists {len(rows)}")
    parsed: list[Any] = []
    for row in rows:
        try:
            parsed.append(parse_record(row, listing, priced) if kind else parse_organization(row))
        except Failure as error:
            names = [row.get(key) for key in ("name", "id", "instance_name", "instance_id")]
            what = "instance" if kind else "organization"
            raise Failure(f"{what} {' '.join(str(n) for n in names if n)}: {error}") from None
    return Page(parsed, count or 0, not kind and answer.get("next", "") is None)


def objects(rows: Any, what: str) -> list[dict[str, Any]]:
    """Return a list of JSON objects; raises Failure if it is anything else."""
    if not isinstance(rows, list) or not set(map(type, rows)) <= {dict}:
        raise Failure(f"{what}: not as documented (JSON objects)")
    return rows


def parse_organization(row: dict[str, Any]) -> Organization:
    """Return a row of the list of organizations; raises Failure."""
    id_, name = (text_of(row, key, required=True) for key in ("id", "name"))
    return Organization(id_, name, text_of(row, "external_id"))


def parse_record(row: dict[str, Any], listing: Listing, priced: Priced) -> Record:
    """Return a usage record, whose common texts are shared with others; raises Failure."""
    id_ = sys.intern(text_of(row, "instance_organization_id", required=True))
    name = sys.intern(text_of(row, "instance_organization_name").strip())
    organization = listing.organization or Organization(id_, name or id_, "")
    if id_ != organization.id:
        raise Failure(f"is of organization {id_}: the API ignored the organization filter")
    profile = sys.intern(text_of(row, "profile_name", required=True).strip())
    names = priced(organization, listing.kind, profile) if listing.organization else ()
    parameters, quantities = parse_parameters(row.get("parameters"), names)
    deleted_at, created_at = text_of(row, "deleted_at"), text_of(row, "created_at").strip()
    # Go writes a time that was never set as year 1.
    deleted = "deleted" if deleted_at and not deleted_at.startswith("0001-") else ""
    return Record(
        organization,
        listing.kind,
        listing.period,
        sys.intern(text_of(row, "instance_project_name")),
        profile,
        sys.intern(f"{text_of(row, 'instance_project_id')}/{text_of(row, 'profile_id')}"),
        text_of(row, "instance_name"),
        text_of(row, "instance_id", required=True),
        sys.intern(f"{text_of(row, 'start_time')}/{text_of(row, 'end_time')}"),
        sys.intern(text_of(row, "status") or deleted),
        created_at and format_moment(parse_time(created_at)),
        sys.intern(parameters),
        metered_hours(row, MAX_INSTANCE_HOURS),
        quantities,
    )


def text_of(row: dict[str, Any], name: str, required: bool = False) -> str:
    """Return a text field, blank if absent or null; raises Failure."""
    text = row.get(name)
    if type(text) is not str:
        if text is not None:
            raise Failure(f"{name} is not text: {text!r}")
        text = ""
    if required and not text.strip():
        raise Failure(f"{name} is missing")
    return text


def parse_time(text: Any) -> datetime:
    """Return an ISO 8601 time, UTC unless it has an offset, as aware UTC; raises Failure."""
    try:
        if type(text) is not str:
            raise TypeError
        try:  # ten times as fast as isoparse, for times as documented
            moment = datetime.fromisoformat(text[:-1] if text[-1:] == "Z" else text)
        except ValueError:
            moment = isoparse(text)
        return moment.replace(tzinfo=moment.tzinfo or timezone.utc).astimezone(timezone.utc)
    except (TypeError, ValueError, OverflowError):
        raise Failure(f"{text!r} is not an ISO 8601 time") from None


def parse_parameters(parameters: Any, priced: Collection[str]) -> tuple[str, Quantities]:
    """Return `GPU=1; storage_size=1200.00h`, and the quantities to bill; raises Failure.

    A label describes the instance: its quantity is its value, its usage the instance's hours.
    """
    texts = []
    quantities: dict[str, Decimal] = {}
    for parameter in objects([] if parameters is None else parameters, "parameters"):
        name = text_of(parameter, "name", required=True).strip()
        try:
            is_label = parameter.get("is_label")
            if is_label is not None and type(is_label) is not bool:  # some leave false out
                raise Failure(f"is_label is {is_label!r}")
            label = text_of(parameter, "label_value").strip() if is_label else ""
            usage = NO_HOURS
            if name in priced or not is_label:
                usage = metered_hours(parameter, MAX_QUANTITY_HOURS)
            if name in quantities:
                raise Failure("has a price, but is listed twice")
            if name in priced and is_label and not DECIMAL.fullmatch(label):
                raise Failure(f"has a price, but its label {label!r} is not a plain decimal")
            if name in priced and is_label and Decimal(label) > MAX_QUANTITY_HOURS:
                raise Failure(f"has a price, but its label {label!r} is absurd")
            if name in priced:
                quantities[name] = EXACT.multiply(Decimal(label), usage) if is_label else usage
        except Failure as error:
            raise Failure(f"parameter {name}: {error}") from None
        texts.append(f"{name}={label}" if is_label else f"{name}={usage:f}h")
    return "; ".join(texts), tuple(quantities.items())


def metered_hours(row: dict[str, Any], most: Decimal) -> Decimal:
    """Return `usage`, hours with two decimals, else `raw_usage` rounded half up; raises Failure."""
    usage, raw_usage = text_of(row, "usage").strip(), row.get("raw_usage")
    if raw_usage is not None and type(raw_usage) not in (int, Decimal):
        raise Failure(f"raw_usage is not a number: {raw_usage!r}")
    if not usage and raw_usage is None:
        raise Failure("usage and raw_usage are missing")
    if usage and not HOURS.fullmatch(usage):
        raise Failure(f"usage is not hours, such as 20.59h: {usage!r}")
    hours = Decimal(usage[:-1] if usage else raw_usage or 0)
    if not hours.is_finite() or not 0 <= hours <= most:
        raise Failure(
            f"{'negative' if hours.is_signed() else 'absurd'} hours: {usage or raw_usage}"
        )
    # Adding 0.00 gives two decimals at least, and takes the sign off a zero.
    return EXACT.add(hours if usage else EXACT.quantize(hours, NO_HOURS), NO_HOURS)


# Client

NO_PROXIES = dict.fromkeys(("http", "https", "all"), "")


class Endpoint(NamedTuple):
    """Where, and with which key, a list is asked for."""

    url: str
    url_variable: str
    key: str
    key_variable: str
    key_header: str


class Session(requests.Session):
    """Keeps no cookies, and follows redirects on the same scheme, host and port only."""

    def __init__(self) -> None:
        super().__init__()
        self.max_redirects = MAX_REDIRECTS
        self.headers["User-Agent"] = f"ncp_metrics/{__version__}"
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))

    def rebuild_auth(self, prepared_request: PreparedRequest, response: Response) -> None:
        """Raise if a redirect would take the API key elsewhere; called before each is followed."""
        prepared_request.headers.pop("Cookie", None)  # requests sends those of the redirect
        # As urllib3, which connects, reads the URLs: other parsers read some differently.
        origin = urllib3.connection_from_url(response.url)
        if not origin.is_same_host(prepared_request.url or ""):
            raise requests.TooManyRedirects


class Client:
    """The one place that makes requests, in WORKERS daemon threads with a session each."""

    def __init__(self, settings: Settings, screen: Screen) -> None:
        url, ops_url = settings.rafay_console_url, settings.rafay_ops_console_url
        key, partner_key = settings.rafay_default_api_key, settings.partner_api_key
        variable, ops_variable = "RAFAY_CONSOLE_URL", "RAFAY_OPS_CONSOLE_URL"
        where = (ops_url, ops_variable) if ops_url else (url, variable)
        self.usage = Endpoint(url, variable, key, "RAFAY_DEFAULT_API_KEY", "x-api-key")
        self.organizations = Endpoint(*where, partner_key, "PARTNER_API_KEY", "X-RAFAY-API-KEYID")
        self.screen = screen
        self.priced: Priced = lambda *_: ()  # until the price book is resolved
        self.count_is_total = False  # of usage, until an answer shows it
        self.retrying = ""  # what is tried again, and why
        self.stopping = threading.Event()
        self.sessions: dict[int, Session] = defaultdict(Session)  # by thread
        try:
            self.pool = multiprocessing.pool.ThreadPool(settings.workers)
        except (RuntimeError, AttributeError, OSError):  # the pool may fail to clean up, too
            raise Failure("cannot start so many threads: lower WORKERS") from None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.pool.terminate()

    def use(self, book: PriceBook, period: Period) -> None:
        """Keep, from now on, the quantities of parameters that a price book prices."""
        self.priced = lru_cache(maxsize=None)(
            lambda owner, kind, profile: book.priced(owner.id, kind, profile, period)
        )

    def start(self, asks: Sequence[Listing]) -> Any:
        """Ask for pages, without waiting for them."""
        return self.pool.imap(self._get_page, asks)

    def get(self, asks: Sequence[Listing], answers: Any = None) -> list[Page]:
        """Return pages in the order asked for, by `start` or now; raises the first Failure."""
        pages: list[Page] = []
        answers = answers or self.start(asks)
        answered_at = time.monotonic()
        while len(pages) < len(asks):
            self.screen.progress(f"{len(pages)} of {len(asks)} answers{self.retrying}")
            try:
                pages.append(answers.next(timeout=STEP_SECONDS))
                answered_at = time.monotonic()
            except multiprocessing.TimeoutError:
                if time.monotonic() - answered_at > SILENCE_SECONDS:
                    reason = f"no answer to any request for {SILENCE_SECONDS:g} s"
                    raise Failure(f"{asks[0]}: {reason}: run it again later") from None
        return pages

    def _get_page(self, listing: Listing) -> Page:
        """Return a page after up to ATTEMPTS requests; raises Failure."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                page = parse_page(listing, self._request(listing), self.priced)
                self.retrying = ""
                return page
            except (Failure, Transient) as error:
                # A server may repeat what it was sent: redact before cutting.
                said = self.screen.redact(f"{listing}: {' '.join(str(error).split())}")
                reason = said if len(said) <= MAX_QUOTE else f"{said[:MAX_QUOTE]}..."
                if isinstance(error, Failure):
                    raise Failure(reason) from None
                wait = BACKOFF_SECONDS * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.0)
                if error.retry_after is not None:
                    wait = min(error.retry_after, RETRY_AFTER_SECONDS)
            self.retrying = f", retrying {reason}"
            if attempt == ATTEMPTS or self.stopping.wait(wait):
                break
        raise Failure(f"{reason}; gave up after {attempt} attempts: run it again later")

    def _request(self, listing: Listing) -> Any:
        """Make one request and return the decoded JSON; raises Failure or Transient."""
        endpoint, path = self.organizations, ORGANIZATIONS_PATH
        query = {"limit": str(listing.limit), "offset": str(listing.offset)}
        if listing.kind:
            endpoint, path = self.usage, USAGE_PATH.format(listing.kind)
            query["range_from"], query["range_to"] = map(format_moment, listing.period)
        if listing.organization:
            query["instance_organization_id"] = listing.organization.id
        try:
            with self.sessions[threading.get_ident()].get(
                endpoint.url + path,
                params=query,
                headers={endpoint.key_header: endpoint.key},
                auth=lambda request: request,  # or requests would read ~/.netrc
                # Over http, a proxy would be sent the key in clear.
                proxies=NO_PROXIES if LOOPBACK.fullmatch(endpoint.url) else None,
                timeout=(CONNECT_SECONDS, READ_SECONDS),
                stream=True,
            ) as response:
                body = bytearray()
                for chunk in response.iter_content(2**16):
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise Failure(f"the answer is larger than {MAX_ANSWER_BYTES // 2**20} MiB")
        # requests raises TypeError if a proxy has a user but no host.
        except (OSError, ValueError, TypeError, urllib3.exceptions.HTTPError) as error:
            raise explain(error, f"{endpoint.url} ({endpoint.url_variable})") from None
        return decode(response, body, endpoint)


def decode(response: Response, body: bytearray, endpoint: Endpoint) -> Any:
    """Return the JSON of an answer, its fractions as Decimal; raises Failure or Transient."""
    status, said = response.status_code, body.decode("utf-8", "replace").strip()
    if status == 200:
        try:
            return json.loads(body, parse_float=Decimal, parse_constant=Decimal)
        except (ValueError, RecursionError, decimal.DecimalException):
            raise Transient(f"the answer is not JSON: {said!r}") from None
    refused = f": {endpoint.key_variable} was refused: is it the right key, and still valid?"
    hints = {401: refused, 403: refused, 404: f": is {endpoint.url_variable} the right host?"}
    reason = f"HTTP {status}{hints.get(status, '')}{said and f'; the server says: {said}'}"
    if status < 500 and status not in (408, 425, 429):
        raise Failure(reason)
    failed = Transient(reason)
    try:
        failed.retry_after = urllib3.Retry().get_retry_after(response.raw)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        failed.retry_after = None  # neither seconds nor a date
    raise failed


def explain(error: Exception, where: str) -> Exception:
    """Return Failure or Transient, without texts of requests: one may hold a proxy's password."""
    cause: BaseException = error
    while cause.__cause__ or (cause.__context__ and not cause.__suppress_context__):
        cause = cause.__cause__ or cause.__context__ or cause
    reason = getattr(cause, "strerror", None) or "connection closed, or the answer is damaged"
    if isinstance(error, requests.TooManyRedirects):
        return Failure(f"{where}: redirects to another host, or in a circle: is it the right host?")
    if isinstance(error, requests.ConnectTimeout):
        return Transient(f"{where}: no connection within {CONNECT_SECONDS:g} s")
    if isinstance(cause, socket.timeout):
        return Transient(f"{where}: no answer within {READ_SECONDS:g} s")
    if isinstance(error, requests.exceptions.ProxyError):
        return Transient(f"{where}: {reason}: the proxy failed: check HTTPS_PROXY and NO_PROXY")
    if isinstance(error, requests.exceptions.SSLError) and not isinstance(cause, ssl.SSLEOFError):
        said = getattr(cause, "verify_message", None) or cause
        return Failure(f"{where}: TLS failed: {said}: is its certificate in REQUESTS_CA_BUNDLE?")
    if isinstance(error, (ValueError, TypeError)):
        return Failure(f"{where}: this, a redirect or HTTPS_PROXY is not a valid URL")
    if isinstance(error, (requests.RequestException, urllib3.exceptions.HTTPError)):
        return Transient(f"{where}: {reason}")
    return Failure(f"{where}: {cause}: check REQUESTS_CA_BUNDLE")


# Paging

Lists = dict[Listing, list[Any]]  # the rows of each list


class Rows:
    """The rows of one list, as far as its pages have come, and the pages it still needs."""

    def __init__(self, listing: Listing, count_is_total: bool, together: bool) -> None:
        self.listing = listing
        self.count_is_total = count_is_total  # as another answer has shown
        self.together = together
        self.rows: dict[object, Any] = {}
        self.asks = [listing]
        self.pages = 1
        self.received = self.total = self.size = 0  # rows: so far, in all, of the first page

    def add(self, pages: Sequence[Page]) -> None:
        """Add the pages asked for; say in `asks` which come next; raises Contradiction.

        `count` is the total if another answer has shown it, or if it exceeds what its page holds;
        then the remaining pages are asked for together. Otherwise pages follow one another up to
        an empty one, since a short page may be due to a lowered limit.
        """
        for page in pages:
            self._add_rows(page.rows)
            known = self.count_is_total or page.counted > len(page.rows)
            self.total = max(self.total, page.counted * known, self.received * page.last)
            self.size = self.size or len(page.rows)
        full = len(page.rows) == (self.size if self.asks[-1].offset else PAGE_SIZE)
        ended = 0 < self.total <= self.received and (page.last or not full)
        if ended or not page.rows:
            self.asks = []
            if self.received < self.total:
                raise Contradiction(f"{self.received} of {self.total} counted rows were listed")
            return
        more = 1
        if self.together and self.received < self.total:
            # If the counted rows end with a full page, the one after it, too: it may be capped.
            more = (self.total - self.received) // self.size + 1
        self.pages += more
        if self.pages > MAX_PAGES:
            raise Failure(f"{self.listing}: more than {MAX_PAGES} pages: it seems to have no end")
        offsets = (self.received + number * self.size for number in range(more))
        self.asks = [self.listing._replace(offset=offset) for offset in offsets]

    def _add_rows(self, rows: Sequence[Any]) -> None:
        """Add the rows of a page, each once; one on two pages may mean that another is missed."""
        identity = identity_of if self.listing.kind else attrgetter("id")
        new: dict[object, Any] = {}
        for row in rows:
            if new.setdefault(identity(row), row) != row:
                raise Contradiction(f"{row} is listed twice, with different content")
        for row in (row for key, row in new.items() if key in self.rows):
            raise Contradiction(f"{row} is on two pages: it moved, or the API ignores offset")
        self.rows.update(new)
        self.received += len(rows)


def read_lists(client: Client, listings: Sequence[Listing], together: bool = True) -> Lists:
    """Return the rows of lists; one that contradicts itself is read once more, page by page."""
    reading = [Rows(each, client.count_is_total and each.kind != "", together) for each in listings]
    results: Lists = {listing: [] for listing in listings}
    again: list[Listing] = []
    while reading:
        pages = iter(client.get([ask for rows in reading for ask in rows.asks]))
        for rows in reading:
            try:
                rows.add(list(itertools.islice(pages, len(rows.asks))))
            except Contradiction as error:
                if not together:
                    raise Failure(f"{rows.listing}: {error}; run it again later") from None
                again.append(rows.listing)
                rows.asks = []
            if not rows.asks:
                results[rows.listing] = list(rows.rows.values())
                rows.rows.clear()  # the keys take as much memory as the rows
        reading = [rows for rows in reading if rows.asks]
    return {**results, **(read_lists(client, again, together=False) if again else {})}


# Usage and reconciliation


def read_first(client: Client, period: Period) -> tuple[list[Organization], dict[str, int | None]]:
    """Return the organizations, and how many records there are of each kind, None if unknown."""
    probes = [Listing(kind, period, limit=1) for kind in KINDS]
    started = client.start(probes)
    [organizations] = read_lists(client, [Listing()]).values()
    if not organizations:
        raise Failure("organizations: none is listed: is PARTNER_API_KEY the partner's key?")
    pages = client.get(probes, started)
    client.count_is_total = any(page.counted > len(page.rows) for page in pages)
    known = [client.count_is_total or not page.rows for page in pages]
    totals = [page.counted if each else None for page, each in zip(pages, known)]
    return organizations, dict(zip(KINDS, totals))


def listings_of(owners: Sequence[Organization], book: PriceBook, period: Period) -> list[Listing]:
    """Return the lists of usage to read: of each organization, kind and part of the period."""
    parts = book.split([owner.id for owner in owners], period)
    return [
        Listing(kind, part, owner) for owner in owners for kind in KINDS for part in parts[owner.id]
    ]


def split_ids(usage: Lists) -> set[str]:
    """Return the ids of the organizations whose period is split."""
    lists = Counter((listing.kind, listing.organization) for listing in usage)
    return {owner.id for (_, owner), number in lists.items() if owner and number > 1}


def tally(usage: Lists, kind: str, split: Collection[str]) -> Counter[tuple[str, ...]]:
    """Return the number of records of each subject, or 1 where its organization is split."""
    lists = (records for listing, records in usage.items() if listing.kind == kind)
    counts = Counter(map(subject_of, itertools.chain.from_iterable(lists)))
    return Counter({each: 1 if each[0] in split else number for each, number in counts.items()})


def count_records(usage: Lists, kind: str) -> int:
    """Return how many records of a kind there would be if no organization were split."""
    lists = defaultdict(list)
    for listing, records in usage.items():
        if listing.kind == kind:
            lists[listing.organization].append(records)
    return sum(
        len(parts[0]) if len(parts) == 1 else len(set(map(subject_of, itertools.chain(*parts))))
        for parts in lists.values()
    )


def differences(usage: Lists, wholes: Lists) -> dict[tuple[str, str], list[str]]:
    """Return, by kind and organization id, the instances that differ in presence or number."""
    split = split_ids(usage)
    differing = defaultdict(list)
    for whole in wholes:
        own, other = tally(usage, whole.kind, split), tally(wholes, whole.kind, split)
        for subject in {**own, **other}:
            if own[subject] != other[subject]:
                differing[whole.kind, subject[0]].append(subject[-1])
    return differing


def reconcile(client: Client, usage: Lists, wholes: Lists) -> None:
    """Read organizations that differ from the partner-wide usage once more; raises Failure."""
    differing = differences(usage, wholes)
    owners = {listing: listing.organization for listing in usage if listing.organization}
    again = [listing for listing, owner in owners.items() if (listing.kind, owner.id) in differing]
    usage.update(read_lists(client, again))
    names = {owner.id: owner for owner in owners.values()}
    hint = "run it again later, or with --no-reconcile"
    problems = [
        f"{kind} usage of {names[id_]} differs from the partner-wide usage: "
        f"{', '.join(instances[:5])}: {hint}"
        for (kind, id_), instances in differences(usage, wholes).items()
    ]
    if problems:
        raise Failure(*problems)


# Billing


class Line(NamedTuple):
    """A line of the bill; without a price, it has no amount, in currency units, either."""

    record: Record
    dimension: str
    hours: Decimal  # of the dimension
    price: Price | None
    amount: Decimal | None
    charge: str = "usage"


def billing_amount(hours: Decimal, rate: Decimal, currency: str) -> Decimal:
    """Return hours x rate in currency units, rounded once, half up, to the minor unit."""
    return EXACT.quantize(EXACT.multiply(hours, rate), MINOR_UNITS[currency])


def sum_exactly(numbers: Iterable[Decimal], start: Decimal = NO_HOURS) -> Decimal:
    """Return a sum without rounding."""
    return functools.reduce(EXACT.add, numbers, start)


def bill_records(records: Iterable[Record], book: PriceBook, currency: str) -> list[Line]:
    """Return, for each record, a line for its hours and one for each priced parameter."""
    lines = []
    prices: dict[tuple[object, ...], Price | None] = {}
    for record in records:
        owner, kind, start = record.organization.id, record.kind, record.period.start
        for dimension, hours in ((INSTANCE, record.hours), *record.quantities):
            key = owner, kind, start, record.profile, dimension
            if key not in prices:
                prices[key] = book.find(owner, kind, (record.profile, dimension), start)
            price = prices[key]
            amount = billing_amount(hours, price.rate, currency) if price else None
            lines.append(Line(record, dimension, hours, price, amount))
    return lines


def describe_unpriced(lines: Iterable[Line], book: PriceBook) -> list[str]:
    """Return a sentence for each profile and dimension with usage that has no price."""
    unpriced: dict[Thing, list[Line]] = defaultdict(list)
    for line in lines:
        if not line.price and line.hours:
            unpriced[line.record.profile, line.dimension].append(line)
    sentences: list[str] = []
    for (profile, dimension), own in unpriced.items():
        near = []
        if profile not in book.dimensions and len(sentences) < MAX_PROBLEMS:
            near = difflib.get_close_matches(profile, book.dimensions, n=1, cutoff=0.8)
        hours = format_hours(sum_exactly(line.hours for line in own))
        instances = len({(each.record.organization.id, each.record.instance_id) for each in own})
        sentences.append(
            f"{dimension} of profile {profile} has no price: {hours} hours are not billed; "
            f"instances: {instances}" + "".join(f"; did you mean {name}?" for name in near)
        )
    return sentences


def describe_parameters(
    lines: Iterable[Line], records: Iterable[Record], book: PriceBook, period: Period
) -> tuple[list[str], list[str]]:
    """Return warnings about prices of parameters that no record has, and which only some have."""
    if not book.has_parameters:
        return [], []
    found = Counter(line.price.line for line in lines if line.price)
    could: Counter[Price] = Counter()
    group_of = attrgetter("organization.id", "kind", "profile", "period")
    groups = Counter(map(group_of, records))
    for (owner, kind, profile, part), number in groups.items():
        for name in book.priced(owner, kind, profile, period):
            price = book.find(owner, kind, (profile, name), part.start)
            if price:
                could[price] += number
    warnings, notes = [], []
    for price, number in sorted(could.items()):
        if not found[price.line]:
            missing = f"no record of {price.profile} has a parameter {price.dimension}"
            warnings.append(f"{book.path}: line {price.line}: {missing}: nothing is billed for it")
        elif found[price.line] < number:
            has = f"{found[price.line]} of {number} records"
            notes.append(f"{price.dimension} of {price.profile}: {has}")
    return warnings, notes


def describe_unknown(
    prices: Iterable[Price], book: PriceBook, names: Names, period: Period
) -> list[str]:
    """Return a sentence for each price in force of an organization that is not known."""
    return [
        f"{book.path}: line {price.line}: organization {price.organization!r} is neither listed "
        f"nor metered{names.did_you_mean(price.organization) if number < MAX_PROBLEMS else ''}"
        for number, price in enumerate(each for each in prices if each.in_force(period))
    ]


def describe_overlong(records: Iterable[Record], period: Period) -> list[str]:
    """Return a sentence about instances with more hours, in all their records, than the period."""
    length = Decimal((period.end - period.start) // timedelta(seconds=1)) / 3600
    over: list[str] = []
    for _, own in itertools.groupby(records, attrgetter("organization.id")):
        hours: dict[str, Decimal] = defaultdict(Decimal)
        for record in own:
            hours[record.instance_id] += record.hours - ROUNDING
        over += (instance for instance, total in hours.items() if total > length)
    text = f"more hours than the period has: check {', '.join(over[:5])}; instances: {len(over)}"
    return [text] if over else []


# Files

COLUMNS = (
    *("organization", "organization_id", "external_id", "project", "profile_type", "profile"),
    *("instance", "instance_id", "status", "created_at", "parameters", "period_start"),
    *("period_end", "charge", "dimension", "usage_hours", "billing_rate", "billing_amount"),
    "currency",
)
shared_texts = attrgetter(  # the first six columns
    *("organization.name", "organization.id", "organization.external_id"),
    *("project", "kind", "profile"),
)
sort_fields = attrgetter("project", "kind", "profile", "instance", "instance_id", "period")


def format_hours(hours: Decimal) -> str:
    """Return exact hours with two decimals, or more as needed."""
    whole, _, fraction = f"{hours:f}".partition(".")
    return f"{whole}.{fraction.rstrip('0'):0<2}"


def text_cell(text: str) -> str:
    """Return a text on one line that no spreadsheet takes for a formula."""
    text = text if text.isprintable() else CONTROL.sub(" ", text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


shared_cell = lru_cache(maxsize=10_000)(text_cell)  # for what many lines have in common


def format_line(line: Line, currency: str) -> tuple[str, ...]:
    """Return the cells of a line, one for each column."""
    record, rate = line.record, line.price and line.price.rate
    return (
        *map(shared_cell, shared_texts(record)),
        text_cell(record.instance),
        text_cell(record.instance_id),
        shared_cell(record.status),
        record.created_at,
        shared_cell(record.parameters),
        format_moment(record.period.start),
        format_moment(record.period.end),
        line.charge,
        shared_cell(line.dimension),
        format_hours(line.hours),
        "" if rate is None else f"{rate:f}",
        "" if line.amount is None else f"{line.amount:f}",
        currency,
    )


def sort_places(lines: Sequence[Line]) -> Iterator[int]:
    """Yield the places of lines by organization name, ignoring case, and id, then by the rest."""
    places = defaultdict(list)
    for place, line in enumerate(lines):
        owner = line.record.organization
        places[owner.name.casefold(), owner.id].append(place)
    for key in sorted(places):  # one by one, since the sort keys take much memory
        yield from sorted(places[key], key=lambda place: sort_fields(lines[place].record))


class Encoder:
    """A file for csv.writer that hands each row back, as bytes."""

    def write(self, row: str) -> bytes:
        """Return the row."""
        return row.encode("utf-8", "replace")


def write_files(lines: Sequence[Line], currency: str, directory: Path, now: datetime) -> list[Path]:
    """Write the raw and the sorted file, or neither; return their paths; raises Failure.

    From the moment that the files get their names, signals are held back.
    """
    scratch = directory / f".ncp-metrics-{random.getrandbits(64):016x}"
    row = csv.writer(Encoder(), lineterminator="\n").writerow
    try:
        scratch.mkdir(mode=0o700)
        with open(scratch / "raw", "xb+") as raw, open(scratch / "sorted", "xb") as in_order:
            raw.write(row(COLUMNS))
            in_order.write(row(COLUMNS))
            offsets = [raw.tell()]
            for line in lines:
                offsets.append(offsets[-1] + raw.write(row(format_line(line, currency))))
            for place in sort_places(lines):
                raw.seek(offsets[place])
                in_order.write(raw.readline())
            for file in (raw, in_order):
                file.flush()
                os.fsync(file.fileno())
        handle_signals(hold)
        return publish(scratch, directory, now)
    except OSError as error:
        reason = f"cannot write to {directory}: {error.strerror}"
        raise Failure(f"{reason}: no file was written") from None
    finally:
        handle_signals(hold)
        shutil.rmtree(scratch, ignore_errors=True)


def publish(scratch: Path, directory: Path, now: datetime) -> list[Path]:
    """Give the files their names, of the first second from now on that is free for both."""
    timestamp = f"{now.astimezone(timezone.utc):%m%d%Y-%H%M%S}"
    names = {"raw": f"ncp-metrics-{timestamp}.csv", "sorted": f"ncp-metrics-sorted-{timestamp}.csv"}
    claimed: list[Path] = []
    try:
        for source, name in names.items():
            try:
                os.link(scratch / source, directory / name)
            except OSError:  # it exists, or there are no hard links here: claim it by a new file
                (directory / name).touch(exist_ok=False)
            claimed.append(directory / name)
        for source, path in zip(names, claimed):
            os.replace(scratch / source, path)  # changes nothing where both are links to one file
        return claimed
    except OSError as error:
        for path in claimed:
            path.unlink()
        if isinstance(error, FileExistsError):
            return publish(scratch, directory, now + timedelta(seconds=1))
        raise


# Screen


def secret_pattern(environ: Mapping[str, str]) -> re.Pattern[str]:
    """Return a pattern of what is never shown: API keys, and passwords in URLs.

    They are also found JSON-escaped and percent-encoded; of a proxy's password, each part.
    """
    texts = {environ.get(name, "").strip() for name in ("RAFAY_DEFAULT_API_KEY", "PARTNER_API_KEY")}
    for name, value in environ.items():
        if name.lower().endswith("_proxy"):
            login = re.sub(r"^\w+://", "", value).rpartition("@")[0]
            texts.update((login, *re.split("[/?#@]", login.partition(":")[2])))
    patterns = []
    for text in sorted(filter(None, texts), key=lambda text: (-len(text), text)):
        pattern = "".join(
            rf"(?:\\{{0,9}}(?:{re.escape(char)}|u00(?i:{ord(char):02x}))|%(?:25)*(?i:{ord(char):02x}))"
            for char in text
        )
        # A short one may be part of a word.
        patterns.append(pattern if len(text) > 7 else rf"(?<!\w){pattern}(?!\w)")
    return re.compile("|".join(patterns) or "(?!)")


def hide_login(word: re.Match[str]) -> str:
    """Return a word without the login of a URL in it."""
    scheme, slashes, rest = word[0].partition("//")
    _, at, host = rest.rpartition("@")
    return f"{scheme}//***@{host}" if slashes and at else word[0]


class Screen:
    """What people see: the summary on stdout; progress, warnings and errors on stderr."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.secrets = secret_pattern(environ)
        self.quiet = False
        self.doing = "reading"
        self.drawn_at = 0.0
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # for a locale without the letters

    def redact(self, text: str) -> str:
        """Return a text without secrets; to be called before anything is cut off.

        What could steer a terminal, or reorder a line, becomes an escape.
        """
        text = re.sub(r"\S+", hide_login, self.secrets.sub("***", text))
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)

    def say(self, *texts: str, about: str = "") -> None:
        """Print lines of the summary, or, if they are about that, warnings or errors."""
        begin, stream = f"ncp_metrics: {about}: " if about else "", sys.stderr
        if self.drawn_at:
            self._write(stream, "\r\x1b[K")
            self.drawn_at = 0.0
        if about or not self.quiet:
            shown = "".join(f"{begin}{self.redact(text)}\n" for text in texts)
            self._write(stream if about else sys.stdout, shown)

    def progress(self, text: str) -> None:
        """Rewrite the progress line, on a terminal only and ten times a second at most."""
        now = time.monotonic()
        if self.quiet or not sys.stderr or not sys.stderr.isatty() or now < self.drawn_at + 0.1:
            return
        self.drawn_at = now
        width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        self._write(sys.stderr, f"\r\x1b[K{self.redact(f'{self.doing}: {text}')[: width - 1]}")

    def _write(self, stream: TextIO | None, text: str) -> None:
        """Write, whether or not anybody reads it: what was written to disk stands either way."""
        try:
            if stream:
                stream.write(text)
                stream.flush()
        except (OSError, Stopped) as error:
            if stream:
                # What is left in the buffer must neither fail nor wait again when Python ends.
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if isinstance(error, Stopped):
                raise


def summarize(lines: Iterable[Line], organizations: int, currency: str) -> list[str]:
    """Return the table of organizations with usage, their total, and how many had none."""
    zero = 0 * MINOR_UNITS[currency]
    rows: list[tuple[str, ...]] = [("Organization", "Instances", "Hours", f"Amount ({currency})")]
    totals = [Decimal(0), NO_HOURS, zero]
    for owner, own in itertools.groupby(lines, attrgetter("record.organization")):
        instances, hours, amount = set(), NO_HOURS, zero
        for line in own:
            instances.add(line.record.instance_id)
            if line.dimension == INSTANCE:
                hours = EXACT.add(hours, line.hours)
            amount = EXACT.add(amount, line.amount or zero)
        figures = [Decimal(len(instances)), hours, amount]
        totals = list(map(EXACT.add, totals, figures))
        rows.append((str(owner), *(f"{figure:,f}" for figure in figures)))
    rows.append(("Total", *(f"{figure:,f}" for figure in totals)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        *("  ".join([n.ljust(widths[0]), *map(str.rjust, row, widths[1:])]) for n, *row in rows),
        "",
        f"Organizations without usage: {organizations - len(rows) + 2} of {organizations}",
    ]


def audit(settings: Settings, book: PriceBook) -> list[str]:
    """Return what an auditor asks for."""
    start, end = map(format_moment, settings.period)
    return [
        f"Period: {start} to {end} (excluded)",
        f"Time zone: {settings.timezone}",
        f"Price book: {book.path}, prices: {len(book.prices)}",
        f"SHA-256 of the price book: {book.sha256}",
        f"Version: ncp_metrics {__version__}",
    ]


# Run


def handle_signals(handler: Callable[[int, object], None]) -> None:
    """Handle the signals that stop a run, except those ignored from the start, as by nohup."""
    for each in SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, handler)


def stop(number: int, _frame: object) -> None:
    """Handle a signal: end the run, and let no further signal disturb that."""
    handle_signals(hold)
    raise Stopped(number)


def hold(_number: int, _frame: object) -> None:
    """Handle a signal by doing nothing, while something must be finished.

    With SIG_IGN, Python would print a traceback about a second signal that has come already.
    """


class Bill(NamedTuple):
    """What was read, in the order of the bill, and what is to be said of it."""

    organizations: Sequence[Organization]
    records: Sequence[Record]
    book: PriceBook
    unknown: Sequence[str]  # warnings about prices of unknown organizations
    note: str


def read_bill(client: Client, settings: Settings, raw_book: PriceBook, screen: Screen) -> Bill:
    """Return all usage to bill; raises Failure."""
    period = settings.period
    screen.doing = "organizations"
    listed, totals = read_first(client, period)
    names = Names(listed)
    organizations = choose(settings.organizations, names)
    book, unknown = resolve(raw_book, names)
    client.use(book, period)
    screen.doing = f"usage of {len(organizations)} organizations"
    usage = read_lists(client, listings_of(organizations, book, period))
    note = "Not reconciled with the partner-wide usage: RECONCILE is 0"
    if settings.organizations:
        note = f"Partial bill: {len(organizations)} of {len(listed)} organizations; not reconciled"
    elif settings.reconcile:
        screen.doing = "partner-wide usage"
        open_kinds = [kind for kind in KINDS if count_records(usage, kind) != totals[kind]]
        wholes = read_lists(client, [Listing(kind, period) for kind in open_kinds])
        named = {r.organization.id: r.organization for rows in wholes.values() for r in rows}
        unlisted = [named[id_] for id_ in sorted(named.keys() - names.by_id.keys())]
        names = Names([*listed, *unlisted])
        book, unknown = resolve(raw_book, names)
        client.use(book, period)
        usage.update(read_lists(client, listings_of(unlisted, book, period)))
        reconcile(client, usage, wholes)
        for each in unlisted:
            screen.say(f"{each} is not listed but has usage: it is billed", about="warning")
        organizations += unlisted
        note = f"Reconciled with the partner-wide usage: {sum(map(len, usage.values()))} records"
    records = list(itertools.chain.from_iterable(usage.values()))
    warnings = describe_unknown(unknown, book, names, period)
    return Bill(organizations, records, book, warnings, note)


def check(client: Client, settings: Settings, book: PriceBook, screen: Screen) -> int:
    """Try both keys, hosts and kinds, and the names in the price book; return the exit status."""
    statuses = {0}
    screen.doing = "check"
    for listing in (Listing(), *(Listing(kind, settings.period, limit=1) for kind in KINDS)):
        try:
            if listing.kind:
                [page] = client.get([listing])
                number = max(page.counted or 0, len(page.rows))
                screen.say(f"{listing}: {number} records or more")
                continue
            [listed] = read_lists(client, [listing]).values()
            names = Names(listed)
            if not listed:
                raise Failure(
                    "organizations: none is listed: is PARTNER_API_KEY the partner's key?"
                )
            chosen = choose(settings.organizations, names)
            screen.say(f"{listing}: {len(listed)} listed, {len(chosen)} to bill")
            unknown = describe_unknown(resolve(book, names)[1], book, names, settings.period)
            screen.say(*unknown, about="warning")
            statuses.update([3] if unknown else [])
        except Failure as failure:
            screen.say(*failure.args, about="error")
            statuses.add(failure.status)
    screen.say(*audit(settings, book))
    if statuses == {0}:
        screen.say("Everything works; nothing was written.")
    return min(statuses - {0}, default=0)


def write_bill(
    settings: Settings, bill: Bill, facts: Sequence[str], screen: Screen, now: datetime
) -> tuple[int, list[str]]:
    """Write the files and warnings; return the exit status and the summary; raises Failure."""
    period, currency, book = settings.period, settings.currency, bill.book
    lines = bill_records(bill.records, book, currency)
    barren, notes = describe_parameters(lines, bill.records, book, period)
    unbilled = [*describe_unpriced(lines, book), *bill.unknown, *barren]
    doubts = describe_overlong(bill.records, period)
    if settings.provisional:
        doubts.append(f"the bill is provisional: the month ends after {format_moment(period.end)}")
    screen.say(*doubts, *unbilled, about="warning")
    summary = [*summarize(lines, len(bill.organizations), currency), *notes, bill.note]
    raw, in_order = write_files(lines, currency, settings.output_dir, now)
    files = [f"Raw file: {raw}", f"Sorted file: {in_order}"]
    return 3 if unbilled else 0, [*summary, *facts, *files]


def run(
    argv: Sequence[str] | None, environ: Mapping[str, str], now: datetime, screen: Screen
) -> tuple[int, list[str]]:
    """Make a bill, or check; return the exit status and the summary; raises Failure."""
    flags, problems = parse_flags(argv)
    screen.quiet = flags.quiet
    settings, more = read_settings(flags, environ, now)
    book, most = read_price_book(settings.pricing_file, settings.currency, settings.timezone)
    if problems or more or most:
        raise SettingsError(*problems, *more, *most)
    with Client(settings, screen) as client:
        if flags.check:
            return check(client, settings, book, screen), []
        bill = read_bill(client, settings, book, screen)
    return write_bill(settings, bill, audit(settings, book), screen, now)


def main(
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
) -> int:
    """Run the command; return its exit status."""
    screen = Screen(environ)
    status: int | None = None
    try:
        try:
            handle_signals(stop)
            gc.set_threshold(100_000)  # records hold no cycles: seldom look for them
            status, summary = run(argv, environ, clock(), screen)
            handle_signals(stop)  # a summary that nobody reads can be interrupted
            screen.say(*summary)
            return status
        except Failure as failure:
            hidden = len(failure.args) - MAX_PROBLEMS
            rest = [f"and {hidden} more"] if hidden > 0 else []
            screen.say(*failure.args[:MAX_PROBLEMS], *rest, about="error")
            return failure.status
    except Stopped as stopped:
        number: int = stopped.args[0]
        if status is None:
            name = signal.Signals(number).name
            screen.say(f"stopped by {name}: no file was written", about="error")
            return 128 + number
        return status
    finally:
        # From here on, Python would give each signal its default action back.
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)


if __name__ == "__main__":
    raise SystemExit(main())
