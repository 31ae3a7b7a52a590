#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["requests>=2.25.1", "python-dateutil>=2.8.1"]
# ///
"""Bill the usage metered by a Rafay partner: hours x rate, as two CSV files.

usage: ncp_metrics.py [--month MONTH | --days DAYS | --from TIME --to TIME]
                      [--org NAME_OR_ID]... [--check] [-q] [other settings]

settings and their defaults, by environment or flag (which wins):
{settings}
  --from, --to               ISO 8601 dates or times, the end excluded
  --no-reconcile             same as RECONCILE=0
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

for example:
  ncp_metrics.py --check
  ncp_metrics.py --month last --output-dir /srv/billing
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while the imports take their time

import argparse
import csv
import decimal
import difflib
import gc
import hashlib
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
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import lru_cache, partial, reduce
from http.cookiejar import DefaultCookiePolicy
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import requests
import urllib3
from dateutil import tz
from dateutil.parser import isoparse
from dateutil.relativedelta import relativedelta

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
MAX_HINTS = 5  # at the nearest name: each search is slow
MAX_QUOTE = 300  # characters of a server's text in a message

# ISO 4217: the minor unit of each currency.
UNITS = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
HUNDREDTHS = """
AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE
CHF CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD
HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK
MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD
RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH
USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR ZMW ZWG"""
THOUSANDTHS = "BHD IQD JOD KWD LYD OMR TND"
MINOR_UNITS = {
    code: Decimal(1).scaleb(-digits)
    for digits, codes in ((0, UNITS), (2, HUNDREDTHS), (3, THOUSANDTHS), (4, "CLF UYW"))
    for code in codes.split()
}

# Wide enough for every sum and product: only `billing_amount` rounds money.
EXACT = decimal.Context(prec=1_000_000, rounding=decimal.ROUND_HALF_UP)
NO_HOURS = Decimal("0.00")
ROUNDING = Decimal("0.01")  # hours by which the usage of a record may be rounded up
DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?")
LABEL = re.compile(r"[0-9]{1,21}(\.[0-9]+)?")
HOURS = re.compile(r"-?[0-9]+(\.[0-9]+)?h")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # or not a character
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
LOOPBACK = re.compile(r"https?://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.I)


class Failure(Exception):
    """The run ends with this exit status; each argument is one line on stderr."""

    status = 1


class SettingsError(Failure):
    """Settings, flags or price book are wrong."""

    status = 2


class Transient(Exception):
    """What failed may succeed when it is tried again."""

    retry_after: float | None = None  # seconds


class Stopped(BaseException):
    """A signal, whose number is the argument, ends the run."""


# Settings


class Settings(NamedTuple):
    """What a run is told, checked."""

    rafay_console_url: str
    rafay_default_api_key: str
    partner_api_key: str
    rafay_ops_console_url: str
    timezone: tzinfo
    currency: str
    pricing_file: str
    output_dir: str
    workers: int
    reconcile: int
    organizations: Sequence[str]  # of --org
    period: Period
    provisional: bool  # of a month that is not over


def check_url(text: str) -> str:
    """Return a console's URL without a trailing slash."""
    host = r"[\w-]+(?:\.[\w-]+)*|\[[\da-fA-F:.]+\]"
    match = re.fullmatch(rf"(?:(https?)://)?({host})(:\d{{1,5}})?/?", text, re.A | re.I)
    if not match or not 0 < int((match[3] or ":443")[1:]) < 65536:
        raise ValueError("not a host, such as rafay.acme.com, host:port or https://host/")
    url = f"{(match[1] or 'https').lower()}://{match[2]}{match[3] or ''}"
    if url.startswith("http:") and not LOOPBACK.fullmatch(url):
        raise ValueError("http:// would send the API key in clear: use https://")
    return url


def check_text(pattern: str, meaning: str, text: str) -> str:
    """Return a text that matches a pattern."""
    if not re.fullmatch(pattern, text):
        raise ValueError(f"not {meaning}")
    return text


def check_number(low: int, high: int, text: str) -> int:
    """Return a whole number, both bounds included."""
    if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise ValueError(f"not a whole number from {low} to {high}")
    return int(text)


def check_zone(text: str) -> tzinfo:
    """Return the zone of an IANA name; UTC needs no zone files."""
    with suppress(KeyError, ValueError, OSError):  # not found, or not a zone
        if re.fullmatch(r"[A-Z][\w+-]*(/[\w+-]+)*", text):
            return timezone.utc if text == "UTC" else zoneinfo.ZoneInfo(text)
    raise ValueError("not an IANA time zone, such as Europe/Berlin")


def check_directory(text: str) -> str:
    """Return the absolute path of a directory that files can be written to."""
    path = os.path.abspath(text)
    if not os.path.isdir(path) or not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"{path} is not a directory that you can write to")
    return path


PRICING = str(Path(__file__).with_name("pricing.csv"))
check_key = partial(check_text, "[!-~]+", "a key: it has a space or another invalid character")
check_month = partial(check_text, "last|2[0-9]{3}-(0[1-9]|1[0-2])", "a month: give 2026-06 or last")
check_currency = partial(check_text, "|".join(MINOR_UNITS), "an ISO 4217 currency, such as USD")
# Variable, flag, default (None: required), check, which raises ValueError, and meaning. A check
# never shows the value, except a path: it may be a misplaced API key.
SETTINGS: tuple[tuple[str, str, str | None, Callable[[str], object], str], ...] = (
    ("RAFAY_CONSOLE_URL", "", None, check_url, "the console, such as rafay.acme.com (required)"),
    ("RAFAY_DEFAULT_API_KEY", "", None, check_key, "the API key that reads usage (required)"),
    ("PARTNER_API_KEY", "", None, check_key, "the API key that lists organizations (required)"),
    ("RAFAY_OPS_CONSOLE_URL", "", "", check_url, "the host that lists them (RAFAY_CONSOLE_URL)"),
    ("BILLING_MONTH", "--month", "", check_month, "a calendar month: 2026-06, or last (none)"),
    ("DAYS", "--days", "30", partial(check_number, 1, 3650), "the last so many days, to 3650 (30)"),
    ("TIMEZONE", "--timezone", "UTC", check_zone, "IANA zone where months and dates begin (UTC)"),
    ("CURRENCY", "--currency", "USD", check_currency, "ISO 4217 code of every amount (USD)"),
    ("PRICING_FILE", "--pricing", PRICING, os.path.abspath, "the price book (beside the script)"),
    ("OUTPUT_DIR", "--output-dir", ".", check_directory, "where the files go (working directory)"),
    ("WORKERS", "", "8", partial(check_number, 1, 32), "requests in flight, 1 to 32 (8)"),
    ("RECONCILE", "", "1", partial(check_number, 0, 1), "compare with partner-wide usage (1)"),
)


def parse_flags(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the flags, and what is wrong with them; --help and --version end the program."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "ncp_metrics", formatter_class=raw, add_help=False, allow_abbrev=False, exit_on_error=False
    )
    add_text = partial(parser.add_argument, type=str.strip)
    rows = []
    for variable, flag, _, _, meaning in SETTINGS:
        rows.append(f"  {', '.join(filter(None, (variable, flag))):25}  {meaning}")
        if flag:
            add_text(flag, dest=variable)
    parser.add_argument("--no-reconcile", dest="RECONCILE", action="store_const", const="0")
    add_text("--from", dest="start")
    add_text("--to", dest="end")
    add_text("--org", action="append", default=[])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("-q", "--quiet", action="store_true")
    help_text = (__doc__ or "").replace("{settings}", "\n".join(rows))
    parser.add_argument("-h", "--help", action="version", version=help_text)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    try:
        flags, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        # What follows in the message, and in unknown arguments, may be an API key.
        problem = f"{error.argument_name}: {error.message.partition(chr(39))[0].strip()}"
        return parser.parse_args([]), [f"{problem}; see --help"]
    names = [text.partition("=")[0] for text in unknown if text.startswith("--")]
    return flags, [f"unknown argument {' '.join(names)}; see --help"] if unknown else []


def read_settings(
    flags: argparse.Namespace, environ: Mapping[str, str], now: datetime
) -> tuple[Settings, list[str]]:
    """Return the settings, None for each that is wrong, and all that is wrong with them."""
    values: dict[str, Any] = {"organizations": flags.org}
    problems = []
    for variable, flag, default, check, _ in SETTINGS:
        by_flag = getattr(flags, variable, None)
        text = by_flag or environ.get(variable, "").strip() or default
        values[variable.lower()] = None
        try:
            if text is None:
                raise ValueError("not set; see --help")
            values[variable.lower()] = check(text) if text else text
        except (ValueError, OSError) as error:  # OSError: the working directory is gone
            problems.append(f"{flag if by_flag else variable}: {error}")
    values["timezone"] = values["timezone"] or timezone.utc
    now = now.astimezone(timezone.utc).replace(microsecond=0)
    period = Period(now, now)
    month, days, zone = values.pop("billing_month"), values.pop("days"), values["timezone"]
    try:
        period = choose_period(flags, month, days or 1, zone, now)
    except ValueError as error:
        problems.append(str(error))
    past = Period(period.start, min(period.end, now))
    return Settings(**values, period=past, provisional=period.end > now), problems


# Period


class Period(NamedTuple):
    """What is billed, or a part of it: aware UTC moments, start included, end excluded."""

    start: datetime
    end: datetime


ALWAYS = Period(*(moment.replace(tzinfo=timezone.utc) for moment in (datetime.min, datetime.max)))


def choose_period(
    flags: argparse.Namespace, month: str, days: int, zone: tzinfo, now: datetime
) -> Period:
    """Return the period, which may end later than now if it is a month; raises ValueError."""
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
        return Period(now - timedelta(days=days), now)
    if month == "last":
        month = f"{now.astimezone(zone) - relativedelta(months=1):%Y-%m}"
    following = isoparse(month) + relativedelta(months=1)
    start = parse_moment("--month", f"{month}-01", zone)
    if start >= now:
        raise ValueError(f"--month, BILLING_MONTH: {month} has not begun")
    return Period(start, parse_moment("--month", f"{following:%Y-%m-%d}", zone))


def parse_moment(name: str, text: str, zone: tzinfo) -> datetime:
    """Return an ISO 8601 date or time, in the zone unless it has an offset; raises ValueError."""
    clock = r"T\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)?"
    try:
        if not re.fullmatch(rf"\d{{4}}-\d\d-\d\d({clock})?", text, re.A):
            raise ValueError
        moment = isoparse(text)
        local = moment if moment.tzinfo else moment.replace(tzinfo=zone)
        if "T" not in text:  # where clocks go forward at midnight, the day begins an hour later
            local = tz.resolve_imaginary(local)
        utc = local.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        example = "2026-06-01 or 2026-06-01T00:00:00Z"
        raise ValueError(f"{name} {text!r} is not a date or time, such as {example}") from None
    unclear = tz.datetime_ambiguous(local) or not tz.datetime_exists(local)
    if "T" in text and not moment.tzinfo and unclear:
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


class PriceBook:
    """Prices, found by organization (blank: everyone), then by profile and dimension."""

    def __init__(self, path: str, sha256: str, period: Period, prices: Sequence[Price]) -> None:
        self.path, self.sha256, self.period, self.prices = path, sha256, period, prices
        self.index: dict[str, dict[Thing, list[Price]]] = defaultdict(lambda: defaultdict(list))
        self.parameters: dict[str, set[str]] = defaultdict(set)  # by profile
        self.unknown: list[str] = []  # what is said of prices of unknown organizations
        self.problems: list[str] = []
        self.schedule = lru_cache(maxsize=None)(self._schedule)
        # The most specific first: for one profile type, then the latest.
        specific = attrgetter("profile_type", "effective_from")
        for price in sorted(prices, key=specific, reverse=True):
            same = self.index[price.organization][price.profile, price.dimension]
            if same and specific(same[-1]) == specific(price):
                problem = f"line {same[-1].line} already has this price"
                self.problems.append(f"{path}: line {price.line}: {problem}")
            same.append(price)
            self.parameters[price.profile].update({price.dimension} - {INSTANCE})

    def _schedule(self, owner: str, kind: str, thing: Thing) -> list[tuple[datetime, Price | None]]:
        """Return the price in force at the start of the period, and after each change in it."""
        # An organization's own prices come before those for everyone; the first in force wins.
        own, everyones = (self.index.get(id_, {}).get(thing, []) for id_ in (owner, ""))
        prices = [price for price in (*own, *everyones) if price.profile_type in ("", kind)]
        start, end = self.period
        moments = {start, *(p.effective_from for p in prices), *(p.effective_to for p in prices)}
        schedule: list[tuple[datetime, Price | None]] = []
        for moment in sorted(each for each in moments if start <= each < end):
            in_force = (p for p in prices if p.effective_from <= moment < p.effective_to)
            price = next(in_force, None)
            if not schedule or price is not schedule[-1][1]:
                schedule.append((moment, price))
        return schedule

    def find(self, owner: str, kind: str, thing: Thing, at: datetime) -> Price | None:
        """Return the price in force at a moment of the period, None if there is none."""
        return [price for moment, price in self.schedule(owner, kind, thing) if moment <= at][-1]

    def priced(self, owner: str, kind: str, profile: str) -> list[str]:
        """Return the parameters of a profile with a price in force at some time of the period."""
        names = self.parameters.get(profile, ())
        return [n for n in names if any(p for _, p in self.schedule(owner, kind, (profile, n)))]

    def changes(self, owner: str) -> dict[Thing, set[datetime]]:
        """Return when, in the period, prices change of what it (blank: everyone) has prices for."""
        return {
            thing: {moment for kind in KINDS for moment, _ in self.schedule(owner, kind, thing)[1:]}
            for thing in self.index.get(owner, ())
        }


PRICE_COLUMNS = (
    "profile hourly_rate dimension organization profile_type effective_from effective_to "
    "currency description"
).split()


def read_price_book(settings: Settings) -> PriceBook:
    """Return the price book, and in it all that is wrong, by file and line."""
    path, problems, prices = settings.pricing_file or os.devnull, [], []
    columns: list[str] = []
    content = b""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        problems.append(f"{path}: {error.strerror}: see --pricing in --help")
    text = content.decode("utf-8-sig", "surrogateescape")
    # Line by line: no cell may hold a line break, and a stray quote must not swallow prices.
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        if line.startswith("#") or not line.replace(",", "").strip():
            continue  # a spreadsheet's blank line is ",,"
        try:
            cells = parse_cells(line)
            if columns:
                prices.append(parse_price(number, columns, cells, settings))
            else:
                columns = check_columns(cells)
        except ValueError as error:
            problems.append(f"{path}: line {number}: {error}")
            if not columns:
                break
    if not columns and not problems:
        problems.append(f"{path}: needs a header, such as profile,hourly_rate")
    book = PriceBook(path, hashlib.sha256(content).hexdigest(), settings.period, prices)
    book.problems = problems + book.problems
    return book


def parse_cells(line: str) -> list[str]:
    """Return the cells of a line of CSV, trimmed; raises ValueError."""
    if CONTROL.search(line):
        raise ValueError("a tab or another control character, or not UTF-8: save it as CSV UTF-8")
    try:
        return [cell.strip() for cell in next(csv.reader([line], strict=True))]
    except csv.Error as error:
        raise ValueError(f"not CSV: {error}") from None


def check_columns(columns: list[str]) -> list[str]:
    """Return the columns of a price book, each known and there once; raises ValueError."""
    for name in (*columns, "profile", "hourly_rate"):
        if name not in PRICE_COLUMNS or columns.count(name) != 1:
            known = ",".join(PRICE_COLUMNS)
            raise ValueError(f"unknown, missing or duplicate column {name!r}: use {known}")
    return columns


def parse_price(line: int, columns: list[str], row: list[str], settings: Settings) -> Price:
    """Return the price in a line; raises ValueError."""
    if len(row) != len(columns):
        raise ValueError(f"{len(row)} cells, but the header has {len(columns)}")
    cells = defaultdict(str, zip(columns, row))
    profile, kind, rate = cells["profile"], cells["profile_type"], cells["hourly_rate"]
    currency = settings.currency or cells["currency"]  # a wrong CURRENCY has been reported
    for column, valid, meaning in (
        ("profile", profile, "the name of a profile"),
        ("hourly_rate", DECIMAL.fullmatch(rate), "a plain decimal, such as 2.50"),
        ("profile_type", kind in ("", *KINDS), "compute, service or blank"),
        ("currency", cells["currency"] in ("", currency), f"CURRENCY, {currency}"),
    ):
        if not valid:
            raise ValueError(f"{column} {cells[column]!r} is not {meaning}")
    start, end = (
        parse_moment(name, cells[name], settings.timezone) if cells[name] else unbounded
        for name, unbounded in zip(("effective_from", "effective_to"), ALWAYS)
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
            self.by_name[each.name.casefold()].append(each)

    def find(self, text: str) -> list[Organization]:
        """Return the organization of an id, else those of a name."""
        # The id comes first: no tenant gets the price of another by taking its id for a name.
        own = self.by_id.get(text)
        return [own] if own else self.by_name.get(text.casefold(), [])

    def problem(self, text: str) -> str:
        """Return why a text names no organization, or more than one."""
        ids = ", ".join(each.id for each in self.find(text))
        reason = f"ambiguous: give the id: {ids}" if ids else f"not listed{self.hint(text)}"
        return f"organization {text!r} is {reason}"

    def hint(self, text: str, searched: int = 0) -> str:
        """Return a hint at the nearest name, blank if none is close."""
        return did_you_mean(text, [each.name for each in self.by_id.values()], searched)


def did_you_mean(text: str, names: Collection[str], searched: int = 0) -> str:
    """Return a hint at the nearest name, blank if none is close, or after enough slow searches."""
    by_key = {name.casefold(): name for name in names} if searched < MAX_HINTS else {}
    near = difflib.get_close_matches(text.casefold(), by_key, n=1, cutoff=0.8)
    return "".join(f"; did you mean {by_key[key]}?" for key in near)


def resolve(book: PriceBook, names: Names) -> PriceBook:
    """Return the book with ids in place of names; raises SettingsError."""
    prices, problems = [], []
    unknown: list[str] = []
    for price in book.prices:
        owners, where = names.find(price.organization), f"{book.path}: line {price.line}"
        if not price.organization:
            prices.append(price)
        elif len(owners) == 1:
            prices.append(price._replace(organization=owners[0].id))
        elif owners:
            problems.append(f"{where}: {names.problem(price.organization)}")
        elif price.effective_from < book.period.end and book.period.start < price.effective_to:
            hint = names.hint(price.organization, len(unknown))
            owner = f"organization {price.organization!r}"
            unknown.append(f"{where}: {owner} is neither listed nor metered{hint}")
    resolved = PriceBook(book.path, book.sha256, book.period, prices)
    if problems or resolved.problems:
        raise SettingsError(*problems, *resolved.problems)
    resolved.unknown = unknown
    return resolved


def choose(wanted: Sequence[str], names: Names) -> list[Organization]:
    """Return the organizations that --org names, or else all, as listed; raises SettingsError."""
    found = {text: names.find(text) for text in wanted}
    problems = [f"--org: {names.problem(text)}" for text in found if len(found[text]) != 1]
    if problems:
        raise SettingsError(*problems)
    chosen = {owner for owners in found.values() for owner in owners}
    return [each for each in names.by_id.values() if each in chosen or not wanted]


# Answers


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
    quantities: Sequence[tuple[str, Decimal]]  # quantity x hours of each parameter with a price

    def __str__(self) -> str:
        return f"instance {self.instance} ({self.instance_id})"


# What makes records of two lists the same; those of one list also have the same times.
subject_of = attrgetter("organization.id", "project", "profile", "ids", "instance_id")
RECORD_TEXTS = (
    "instance_organization_id profile_name instance_id instance_organization_name "
    "instance_project_name instance_project_id profile_id instance_name status created_at "
    "deleted_at start_time end_time"
).split()


class Listing(NamedTuple):
    """A page of a list of the API: of organizations, or of the usage of one organization or all."""

    kind: str = ""  # blank for organizations
    period: Period = ALWAYS
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


# Return the parameters that have a price, by organization id, kind and profile.
Priced = Callable[[str, str, str], Collection[str]]


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
        if answer.get(name) is not None and parse_time(answer[name]) != format_moment(moment):
            raise Failure(f"{name} is {answer[name]!r}, asked was {format_moment(moment)}")
    if rows is None and (kind or listing.offset):  # so some Go encoders write an empty list
        rows = []
    rows = objects(rows, "instance_usage_data" if kind else "results")
    if not rows and not kind and not listing.offset:
        raise Failure("none is listed: is PARTNER_API_KEY the partner's key?")
    lacking = count and not rows and not listing.offset
    if count is not None and (type(count) is not int or count < len(rows) or lacking):
        raise Failure(f"the answer has count {count!r} but lists {len(rows)}")
    parsed: list[Any] = []
    for row in rows:
        try:
            if kind:
                parsed.append(parse_record(row, listing, priced))
            else:
                parsed.append(Organization(*texts_of(row, ("id", "name", "external_id"), 2)))
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


def texts_of(row: dict[str, Any], names: Sequence[str], required: int = 0) -> list[str]:
    """Return text fields, trimmed, of which the first ones are required; raises Failure."""
    texts = [row.get(name, "") for name in names]
    if set(map(type, texts)) != {str}:
        for name, text in zip(names, texts):
            if type(text) is not str and text is not None:
                raise Failure(f"{name} is not text: {text!r}")
        texts = [text or "" for text in texts]
    texts = list(map(str.strip, texts))
    if not all(texts[:required]):
        raise Failure(f"{names[texts.index('')]} is missing")
    return texts


def parse_record(row: dict[str, Any], listing: Listing, priced: Priced) -> Record:
    """Return a usage record, whose common texts are shared with others; raises Failure."""
    texts = texts_of(row, RECORD_TEXTS, required=3)
    owner_id, profile, instance_id, owner_name, project, project_id, profile_id, *texts = texts
    instance, status, created_at, deleted_at, start, end = texts
    owner = listing.organization
    if owner and owner_id != owner.id:
        raise Failure(f"is of organization {owner_id}: the API ignored the organization filter")
    names = priced(owner.id, listing.kind, profile) if owner else ()
    parameters, quantities = parse_parameters(row.get("parameters"), names)
    # Go writes a time that was never set as year 1.
    deleted = "deleted" if deleted_at and not deleted_at.startswith("0001-") else ""
    return Record(
        owner or Organization(sys.intern(owner_id), owner_name or owner_id, ""),
        listing.kind,
        listing.period,
        sys.intern(project),
        sys.intern(profile),
        sys.intern(f"{project_id}/{profile_id}"),
        instance,
        instance_id,
        sys.intern(f"{start}/{end}"),
        sys.intern(status or deleted),
        created_at and parse_time(created_at),
        sys.intern(parameters),
        metered_hours(row, MAX_INSTANCE_HOURS),
        quantities,
    )


def parse_time(text: Any) -> str:
    """Return an ISO 8601 time, UTC unless it has an offset, as `2026-06-01T00:00:00Z`."""
    try:
        try:  # ten times as fast as isoparse, for times as documented
            moment = datetime.fromisoformat(text[:-1] if text[-1:] == "Z" else text)
        except ValueError:
            moment = isoparse(text)
        moment = moment.replace(tzinfo=moment.tzinfo or timezone.utc).astimezone(timezone.utc)
        return format_moment(moment)
    except (TypeError, ValueError, OverflowError):
        raise Failure(f"{text!r} is not an ISO 8601 time") from None


def parse_parameters(rows: Any, priced: Collection[str]) -> tuple[str, list[tuple[str, Decimal]]]:
    """Return `GPU=1; storage_size=1200.00h`, and the quantities to bill; raises Failure.

    A label describes the instance: its quantity is its value, its usage the instance's hours.
    """
    texts, quantities = [], {}
    for parameter in objects([] if rows is None else rows, "parameters"):
        name, label = texts_of(parameter, ("name", "label_value"), required=1)
        is_label = parameter.get("is_label")
        try:
            if is_label is not None and type(is_label) is not bool:  # some leave false out
                raise Failure(f"is_label is {is_label!r}")
            if name in priced or not is_label:
                usage = metered_hours(parameter, MAX_QUANTITY_HOURS)
            if name in quantities:
                raise Failure("has a price, but is listed twice")
            if name in priced and is_label and not LABEL.fullmatch(label):
                raise Failure(f"has a price, but its label {label!r} is not a plain decimal")
            if name in priced:
                quantities[name] = EXACT.multiply(Decimal(label), usage) if is_label else usage
        except Failure as error:
            raise Failure(f"parameter {name}: {error}") from None
        texts.append(f"{name}={label}" if is_label else f"{name}={usage:f}h")
    return "; ".join(texts), list(quantities.items())


def metered_hours(row: dict[str, Any], most: Decimal) -> Decimal:
    """Return `usage`, hours with two decimals, else `raw_usage` rounded half up; raises Failure."""
    [usage], raw_usage = texts_of(row, ["usage"]), row.get("raw_usage")
    if raw_usage is not None and type(raw_usage) not in (int, Decimal):
        raise Failure(f"raw_usage is not a number: {raw_usage!r}")
    if not usage and raw_usage is None:
        raise Failure("usage and raw_usage are missing")
    if usage and not HOURS.fullmatch(usage):
        raise Failure(f"usage is not hours, such as 20.59h: {usage!r}")
    hours = Decimal(usage[:-1] or raw_usage or 0)
    if not hours.is_finite() or not 0 <= hours <= most:
        sign = "negative" if hours.is_signed() else "absurd"
        raise Failure(f"{sign} hours: {usage or raw_usage}")
    # Adding 0.00 gives two decimals at least, and takes the sign off a zero.
    return EXACT.add(hours if usage else EXACT.quantize(hours, NO_HOURS), NO_HOURS)


# Client

NO_PROXIES = dict.fromkeys(("http", "https", "all"), "")


class Session(requests.Session):
    """Keeps no cookies, and follows redirects on the same scheme, host and port only."""

    def __init__(self) -> None:
        super().__init__()
        self.max_redirects = MAX_REDIRECTS
        self.headers["User-Agent"] = f"ncp_metrics/{__version__}"
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))

    def rebuild_auth(
        self, prepared_request: requests.PreparedRequest, response: requests.Response
    ) -> None:
        """Raise if a redirect would take the API key elsewhere; called before each is followed."""
        prepared_request.headers.pop("Cookie", None)  # requests sends those of the redirect
        # As urllib3, which connects, reads the URLs: other parsers read some differently.
        origin = urllib3.connection_from_url(response.url)
        if not origin.is_same_host(prepared_request.url or ""):
            raise requests.TooManyRedirects


class Client:
    """The one place that makes requests, in WORKERS daemon threads with a session each."""

    def __init__(self, settings: Settings, screen: Screen) -> None:
        self.settings, self.screen = settings, screen
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

    def get(self, asks: Sequence[Listing], answers: Any = None) -> list[Page]:
        """Return pages in the order asked for, now or before; raises the first Failure."""
        pages: list[Page] = []
        answers = answers or self.pool.imap(self.get_page, asks)
        answered_at = time.monotonic()
        while len(pages) < len(asks):
            self.screen.progress(f"{len(pages)}/{len(asks)}: {self.retrying or asks[len(pages)]}")
            try:
                pages.append(answers.next(timeout=STEP_SECONDS))
                answered_at = time.monotonic()
            except multiprocessing.TimeoutError:
                if time.monotonic() - answered_at > SILENCE_SECONDS:
                    reason = f"no answer to any request for {SILENCE_SECONDS:g} s"
                    raise Failure(f"{asks[0]}: {reason}: run it again later") from None
        return pages

    def get_page(self, listing: Listing) -> Page:
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
            self.retrying = f"retrying {reason}"
            if attempt == ATTEMPTS or self.stopping.wait(wait):
                break
        raise Failure(f"{reason}; gave up after {attempt} attempts: run it again later")

    def _request(self, listing: Listing) -> Any:
        """Make one request and return the decoded JSON; raises Failure or Transient."""
        settings, path, query = self.settings, ORGANIZATIONS_PATH, {}
        host, key, header = "RAFAY_OPS_CONSOLE_URL", "PARTNER_API_KEY", "X-RAFAY-API-KEYID"
        if listing.kind:
            host, key, header = "RAFAY_CONSOLE_URL", "RAFAY_DEFAULT_API_KEY", "x-api-key"
            path = USAGE_PATH.format(listing.kind)
            query = dict(zip(("range_from", "range_to"), map(format_moment, listing.period)))
        if listing.organization:
            query["instance_organization_id"] = listing.organization.id
        if not settings.rafay_ops_console_url:
            host = "RAFAY_CONSOLE_URL"
        url = getattr(settings, host.lower())
        try:
            with self.sessions[threading.get_ident()].get(
                url + path,
                params={"limit": str(listing.limit), "offset": str(listing.offset), **query},
                headers={header: getattr(settings, key.lower())},
                auth=lambda request: request,  # or requests would read ~/.netrc
                # Over http, a proxy would be sent the key in clear.
                proxies=NO_PROXIES if LOOPBACK.fullmatch(url) else None,
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
            raise explain(error, f"{url} ({host})") from None
        return decode(response, body, host, key)


def decode(response: requests.Response, body: bytearray, host: str, key: str) -> Any:
    """Return the JSON of an answer, its fractions as Decimal; raises Failure or Transient."""
    status, said = response.status_code, body.decode("utf-8", "replace").strip()
    if status == 200:
        try:
            return json.loads(body, parse_float=Decimal, parse_constant=Decimal)
        except (ValueError, RecursionError, decimal.DecimalException):
            raise Transient(f"the answer is not JSON: {said!r}") from None
    refused = f": {key} was refused: is it the right key, and still valid?"
    hints = {401: refused, 403: refused, 404: f": is {host} the right host?"}
    reason = f"HTTP {status}{hints.get(status, '')}{said and f'; the server says: {said}'}"
    if status < 500 and status not in (408, 425, 429):
        raise Failure(reason)
    failed = Transient(reason)
    # What is neither seconds nor a date is ignored.
    with suppress(urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        failed.retry_after = urllib3.Retry().get_retry_after(response.raw)
    raise failed


def explain(error: Exception, where: str) -> Exception:
    """Return Failure or Transient, without texts of requests: one may hold a proxy's password."""
    cause: BaseException = error
    while cause.__cause__ or (cause.__context__ and not cause.__suppress_context__):
        cause = cause.__cause__ or cause.__context__ or cause
    if isinstance(error, requests.TooManyRedirects):
        return Failure(f"{where}: redirects to another host, or in a circle: is it the right host?")
    if isinstance(error, requests.exceptions.SSLError) and not isinstance(cause, ssl.SSLEOFError):
        said = getattr(cause, "verify_message", None) or cause
        return Failure(f"{where}: TLS failed: {said}: is its certificate in REQUESTS_CA_BUNDLE?")
    if isinstance(error, (ValueError, TypeError)):
        return Failure(f"{where}: this, a redirect or HTTPS_PROXY is not a valid URL")
    if not isinstance(error, (requests.RequestException, urllib3.exceptions.HTTPError)):
        return Failure(f"{where}: {cause}: check REQUESTS_CA_BUNDLE")
    reason = getattr(cause, "strerror", None) or "connection closed, or the answer is damaged"
    if isinstance(error, requests.ConnectTimeout):
        reason = f"no connection within {CONNECT_SECONDS:g} s"
    elif isinstance(cause, socket.timeout):
        reason = f"no answer within {READ_SECONDS:g} s"
    elif isinstance(error, requests.exceptions.ProxyError):
        reason += ": the proxy failed: check HTTPS_PROXY and NO_PROXY"
    return Transient(f"{where}: {reason}")


# Paging

Lists = dict[Listing, list[Any]]  # the rows of each list


def follow_pages(
    listing: Listing, count_is_total: bool, together: bool
) -> Generator[list[Listing], list[Page], list[Any]]:
    """Yield which pages to ask for, be sent them, return all rows; raises Transient.

    `count` is the total if another answer has shown it, or if it exceeds what its page holds; then
    the remaining pages are asked for together. Otherwise pages follow one another up to an empty
    one, since a short page may be due to a lowered limit.
    """
    rows: dict[object, Any] = {}
    received = total = size = 0  # rows: so far, in all, of the first page
    offsets, asked = [0], 1
    while True:
        for page in (yield [listing._replace(offset=offset) for offset in offsets]):
            add_rows(rows, page.rows)
            received += len(page.rows)
            known = count_is_total or page.counted > len(page.rows)
            total = max(total, page.counted * known, received * page.last)
            size = size or len(page.rows)
        full = len(page.rows) == (size if offsets[-1] else PAGE_SIZE)
        if not page.rows or (0 < total <= received and (page.last or not full)):
            if received < total:
                raise Transient(f"{received} of {total} counted rows were listed")
            return list(rows.values())
        missing = max(total - received, 0) if together else 0
        # If the counted rows end with a full page, the one after it, too: it may be capped.
        more = missing // size + 1
        asked += more
        if asked > MAX_PAGES:
            raise Failure(f"{listing}: more than {MAX_PAGES} pages: it seems to have no end")
        offsets = [received + number * size for number in range(more)]


def add_rows(rows: dict[object, Any], page: Sequence[Any]) -> None:
    """Add the rows of a page, each once; one on two pages may mean that another is missed."""
    new: dict[object, Any] = {}
    for row in page:
        key = (subject_of(row), row.times) if isinstance(row, Record) else row.id
        if new.setdefault(key, row) != row:
            raise Transient(f"{row} is listed twice, with different content")
        if key in rows:
            raise Transient(f"{row} is on two pages: it moved, or the API ignores offset")
    rows.update(new)


def read_lists(client: Client, listings: Sequence[Listing], together: bool = True) -> Lists:
    """Return the rows of lists; one that contradicts itself is read once more, page by page."""
    lists: Lists = {listing: [] for listing in listings}
    again: list[Listing] = []
    reading = {
        listing: follow_pages(listing, client.count_is_total and listing.kind != "", together)
        for listing in listings
    }
    asks = {listing: next(pages) for listing, pages in reading.items()}
    while asks:
        answers = iter(client.get([ask for asked in asks.values() for ask in asked]))
        for listing, asked in list(asks.items()):
            try:
                asks[listing] = reading[listing].send(list(itertools.islice(answers, len(asked))))
                continue
            except StopIteration as end:
                lists[listing] = end.value
            except Transient as error:
                if not together:
                    raise Failure(f"{listing}: {error}; run it again later") from None
                again.append(listing)
            del asks[listing]
    return {**lists, **(read_lists(client, again, together=False) if again else {})}


# Usage and reconciliation


def read_first(client: Client, period: Period) -> tuple[list[Organization], dict[str, int | None]]:
    """Return the organizations, and how many records there are of each kind, None if unknown."""
    probes = [Listing(kind, period, limit=1) for kind in KINDS]
    started = client.pool.imap(client.get_page, probes)
    [organizations] = read_lists(client, [Listing()]).values()
    pages = client.get(probes, started)
    client.count_is_total = any(page.counted > len(page.rows) for page in pages)
    known = [client.count_is_total or not page.rows for page in pages]
    totals = [page.counted if each else None for page, each in zip(pages, known)]
    return organizations, dict(zip(KINDS, totals))


def read_usage(client: Client, owners: Iterable[Organization], book: PriceBook) -> Lists:
    """Return the usage of organizations, in parts in which what each pays does not change."""
    client.priced = lru_cache(maxsize=None)(book.priced)
    everyones = {thing: moments for thing, moments in book.changes("").items() if moments}
    listings = []
    for owner in owners:
        changes = {**everyones, **book.changes(owner.id)}.values()
        edges = [book.period.start, *sorted(set().union(*changes)), book.period.end]
        parts = [Period(start, end) for start, end in zip(edges, edges[1:])]
        listings += [Listing(kind, part, owner) for kind in KINDS for part in parts]
    return read_lists(client, listings)


def tally(usage: Lists, kind: str, split: Collection[str]) -> Counter[tuple[str, ...]]:
    """Return the number of records of each subject, or 1 where its organization is split."""
    lists = (records for listing, records in usage.items() if listing.kind == kind)
    counts = Counter(map(subject_of, itertools.chain.from_iterable(lists)))
    return Counter({each: 1 if each[0] in split else number for each, number in counts.items()})


def count_records(usage: Lists, kind: str, period: Period) -> int:
    """Return how many records of a kind there would be if no organization's period were split."""
    lists = [(each.period, records) for each, records in usage.items() if each.kind == kind]
    split = (map(subject_of, records) for part, records in lists if part != period)
    whole = (len(records) for part, records in lists if part == period)
    return sum(whole) + len(set(itertools.chain.from_iterable(split)))


def differences(usage: Lists, wholes: Lists) -> dict[tuple[str, Organization], list[str]]:
    """Return, by kind and organization, the instances that differ in presence or number."""
    owned = [(each, each.organization) for each in usage if each.organization]
    owners = {owner.id: owner for _, owner in owned}
    differing = defaultdict(list)
    for whole in wholes:
        split = {owner.id for each, owner in owned if each.period != whole.period}
        own, other = tally(usage, whole.kind, split), tally(wholes, whole.kind, split)
        for subject in {**own, **other}:
            if own[subject] != other[subject]:
                differing[whole.kind, owners[subject[0]]].append(subject[-1])
    return differing


def reconcile(client: Client, usage: Lists, wholes: Lists) -> None:
    """Read organizations that differ from the partner-wide usage once more; raises Failure."""
    differing = differences(usage, wholes)
    again = [each for each in usage if (each.kind, each.organization) in differing]
    usage.update(read_lists(client, again))
    hint = "run it again later, or with --no-reconcile"
    problems = [
        f"{kind} usage of {owner} differs from the partner-wide usage: "
        f"{', '.join(instances[:5])}: {hint}"
        for (kind, owner), instances in differences(usage, wholes).items()
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


class Bill(NamedTuple):
    """What is billed, in the order of the raw file."""

    settings: Settings
    book: PriceBook
    organizations: Sequence[Organization]
    records: Sequence[Record]
    lines: Sequence[Line]


def billing_amount(hours: Decimal, rate: Decimal, currency: str) -> Decimal:
    """Return hours x rate in currency units, rounded once, half up, to the minor unit."""
    return EXACT.quantize(EXACT.multiply(hours, rate), MINOR_UNITS[currency])


def bill_records(records: Iterable[Record], book: PriceBook, currency: str) -> list[Line]:
    """Return, for each record, a line for its hours and one for each priced parameter."""
    find = lru_cache(maxsize=None)(book.find)
    lines = []
    for record in records:
        for dimension, hours in ((INSTANCE, record.hours), *record.quantities):
            thing = record.profile, dimension
            price = find(record.organization.id, record.kind, thing, record.period.start)
            amount = billing_amount(hours, price.rate, currency) if price else None
            lines.append(Line(record, dimension, hours, price, amount))
    return lines


def describe_unpriced(bill: Bill) -> list[str]:
    """Return a warning for each profile and dimension with usage that has no price."""
    unpriced: dict[Thing, list[Line]] = defaultdict(list)
    for line in bill.lines:
        if not line.price and line.hours:
            unpriced[line.record.profile, line.dimension].append(line)
    warnings: list[str] = []
    profiles = {price.profile for price in bill.book.prices}
    for (profile, dimension), lines in unpriced.items():
        hours = format_hours(reduce(EXACT.add, (line.hours for line in lines)))
        instances = {(line.record.organization.id, line.record.instance_id) for line in lines}
        hint = "" if profile in profiles else did_you_mean(profile, profiles, len(warnings))
        warnings.append(
            f"{dimension} of profile {profile} has no price: {hours} hours are not billed; "
            f"instances: {len(instances)}{hint}"
        )
    return warnings


def describe_parameters(bill: Bill) -> tuple[list[str], list[str]]:
    """Return warnings about prices of parameters that no record has, and which only some have."""
    book, warnings, notes = bill.book, [], []
    if not any(book.parameters.values()):
        return [], []
    found = Counter(line.price.line for line in bill.lines if line.price)
    could: Counter[Price] = Counter()  # records that a price could bill
    group_of = attrgetter("organization.id", "kind", "profile", "period.start")
    for (owner, kind, profile, start), number in Counter(map(group_of, bill.records)).items():
        for name in book.priced(owner, kind, profile):
            price = book.find(owner, kind, (profile, name), start)
            could.update({price: number} if price else {})
    for price, number in sorted(could.items()):
        if not found[price.line]:
            missing = f"no record of {price.profile} has a parameter {price.dimension}"
            warnings.append(f"{book.path}: line {price.line}: {missing}: nothing is billed for it")
        elif found[price.line] < number:
            some = f"{found[price.line]} of {number} records"
            notes.append(f"{price.dimension} of {price.profile}: {some}")
    return warnings, notes


def describe_overlong(bill: Bill) -> list[str]:
    """Return a warning of instances with more hours, in all their records, than the period."""
    start, end = bill.book.period
    length = Decimal((end - start) // timedelta(seconds=1)) / 3600
    over: list[str] = []
    for _, own in itertools.groupby(bill.records, attrgetter("organization.id")):
        hours: dict[str, Decimal] = defaultdict(Decimal)
        for record in own:
            hours[record.instance_id] += record.hours - ROUNDING
        over += (instance for instance, total in hours.items() if total > length)
    text = f"more hours than the period has: check {', '.join(over[:5])}; instances: {len(over)}"
    return [text] if over else []


# Files

COLUMNS = (
    "organization organization_id external_id project profile_type profile instance instance_id "
    "status created_at parameters period_start period_end charge dimension usage_hours "
    "billing_rate billing_amount currency"
).split()


def format_hours(hours: Decimal) -> str:
    """Return exact hours with two decimals, or more as needed."""
    whole, _, fraction = f"{hours:f}".partition(".")
    return f"{whole}.{fraction.rstrip('0'):0<2}"


def text_cell(text: str) -> str:
    """Return a text on one line that no spreadsheet takes for a formula."""
    text = text if text.isprintable() else CONTROL.sub(" ", text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


@lru_cache(maxsize=10_000)
def shared_cells(*texts: str) -> Sequence[str]:
    """Return the cells of texts that many lines have in common."""
    return tuple(map(text_cell, texts))


def format_line(line: Line, currency: str) -> tuple[str, ...]:
    """Return the cells of a line, one for each column."""
    record, owner = line.record, line.record.organization
    return (
        *shared_cells(owner.name, owner.id, owner.external_id),
        *shared_cells(record.project, record.kind, record.profile),
        *map(text_cell, (record.instance, record.instance_id)),
        *shared_cells(record.status, record.created_at, record.parameters),
        *map(format_moment, record.period),
        "usage",
        text_cell(line.dimension),
        format_hours(line.hours),
        f"{line.price.rate:f}" if line.price else "",
        "" if line.amount is None else f"{line.amount:f}",
        currency,
    )


def sort_places(lines: Sequence[Line]) -> Iterator[int]:
    """Yield the places of lines by organization name, ignoring case, and id, then by the rest."""
    fields = attrgetter("project", "kind", "profile", "instance", "instance_id", "period")
    places = defaultdict(list)
    for place, line in enumerate(lines):
        owner = line.record.organization
        places[owner.name.casefold(), owner.id].append(place)
    for key in sorted(places):  # one by one, since the sort keys take much memory
        yield from sorted(places[key], key=lambda place: fields(lines[place].record))


class Encoder:
    """A file for csv.writer that hands each row back, as bytes."""

    def write(self, row: str) -> bytes:
        """Return the row."""
        return row.encode("utf-8", "replace")


def write_files(bill: Bill, now: datetime) -> list[str]:
    """Write the raw and the sorted file, or neither; return their paths; raises Failure.

    From the moment that the files get their names, signals are held back.
    """
    directory, currency = bill.settings.output_dir, bill.settings.currency
    scratch = Path(directory, f".ncp-metrics-{random.getrandbits(64):016x}")
    row = csv.writer(Encoder(), lineterminator="\n").writerow
    try:
        scratch.mkdir(mode=0o700)
        with open(scratch / "raw", "xb+") as raw, open(scratch / "sorted", "xb") as in_order:
            offsets = [raw.write(row(COLUMNS))]
            in_order.write(row(COLUMNS))
            for line in bill.lines:
                offsets.append(offsets[-1] + raw.write(row(format_line(line, currency))))
            for place in sort_places(bill.lines):
                raw.seek(offsets[place])
                in_order.write(raw.readline())
            for file in (raw, in_order):
                file.flush()
                os.fsync(file.fileno())
        handle_signals(hold)
        return publish(scratch, now)
    except OSError as error:
        reason = f"cannot write to {directory}: {error.strerror}"
        raise Failure(f"{reason}: no file was written") from None
    finally:
        handle_signals(hold)
        shutil.rmtree(scratch, ignore_errors=True)


def publish(scratch: Path, now: datetime) -> list[str]:
    """Give the files their names, of the first second from now on that is free for both."""
    while True:
        stamp = f"{now:%m%d%Y-%H%M%S}.csv"
        names = {"raw": f"ncp-metrics-{stamp}", "sorted": f"ncp-metrics-sorted-{stamp}"}
        paths: list[Path] = []
        try:
            for source, name in names.items():
                try:
                    os.link(scratch / source, scratch.with_name(name))
                except OSError:  # it exists, or there are no hard links here: claim it
                    scratch.with_name(name).touch(exist_ok=False)
                paths.append(scratch.with_name(name))
            for source, path in zip(names, paths):
                os.replace(scratch / source, path)  # changes nothing for two links to one file
            return [str(path) for path in paths]
        except OSError as error:
            for path in paths:
                path.unlink()
            if not isinstance(error, FileExistsError):
                raise
        now += timedelta(seconds=1)


# Screen


class Screen:
    """What people see: the summary on stdout; progress, warnings and errors on stderr."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.quiet = False
        self.drawn_at = 0.0
        keys = {environ.get(n, "").strip() for n in ("RAFAY_DEFAULT_API_KEY", "PARTNER_API_KEY")}
        # A key is also found JSON-escaped and percent-encoded.
        hidden = [
            "".join(
                rf"(?:\\{{0,9}}(?:{re.escape(c)}|u00(?i:{ord(c):02x}))|%(?:25)*(?i:{ord(c):02x}))"
                for c in key
            )
            for key in sorted(keys - {""}, key=len, reverse=True)
        ]
        self.secrets = re.compile("|".join(hidden) or "(?!)")

    def redact(self, text: str) -> str:
        """Return a text without API keys, nor what steers a terminal; before it is cut short."""
        text = self.secrets.sub("***", text)
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)

    def say(self, *texts: str, about: str = "") -> None:
        """Print lines of the summary, or, if they are about that, warnings or errors."""
        if self.drawn_at:
            self._write(sys.stderr, "\r\x1b[K")
            self.drawn_at = 0.0
        if about or not self.quiet:
            begin = f"ncp_metrics: {about}: " if about else ""
            shown = "".join(f"{begin}{self.redact(text)}\n" for text in texts)
            self._write(sys.stderr if about else sys.stdout, shown)

    def progress(self, text: str) -> None:
        """Rewrite the progress line, on a terminal only and ten times a second at most."""
        now = time.monotonic()
        if self.quiet or not sys.stderr or not sys.stderr.isatty() or now < self.drawn_at + 0.1:
            return
        self.drawn_at = now
        width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        self._write(sys.stderr, f"\r\x1b[K{self.redact(text)[: width - 1]}")

    def _write(self, stream: TextIO | None, text: str) -> None:
        """Write, whether or not anybody reads it: what was written to disk stands either way."""
        if not stream:
            return
        try:
            # A locale may lack letters.
            stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
            stream.flush()
        except (OSError, Stopped) as error:
            # What is left in the buffer must neither fail nor wait again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if isinstance(error, Stopped):
                raise


def summarize(bill: Bill) -> list[str]:
    """Return the table of organizations with usage, their total, and how many had none."""
    zero = 0 * MINOR_UNITS[bill.settings.currency]
    rows: list[tuple[str, ...]] = [
        ("Organization", "Instances", "Hours", f"Amount ({bill.settings.currency})")
    ]
    totals = [Decimal(0), NO_HOURS, zero]
    for owner, own in itertools.groupby(bill.lines, attrgetter("record.organization")):
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
    everybody = len(bill.organizations)
    return [
        *("  ".join([n.ljust(widths[0]), *map(str.rjust, row, widths[1:])]) for n, *row in rows),
        "",
        f"Organizations without usage: {everybody - len(rows) + 2} of {everybody}",
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
    """Handle a signal by doing nothing; unlike SIG_IGN, also one that has already come."""


def read_bill(client: Client, raw_book: PriceBook) -> tuple[Bill, str]:
    """Return the bill, and what was reconciled; raises Failure."""
    settings, period = client.settings, raw_book.period
    listed, totals = read_first(client, period)
    names = Names(listed)
    owners = choose(settings.organizations, names)
    book = resolve(raw_book, names)
    usage = read_usage(client, owners, book)
    note = "Not reconciled with the partner-wide usage: RECONCILE is 0"
    if settings.organizations:
        note = f"Partial bill: {len(owners)} of {len(listed)} organizations; not reconciled"
    elif settings.reconcile:
        open_kinds = [kind for kind in KINDS if count_records(usage, kind, period) != totals[kind]]
        wholes = read_lists(client, [Listing(kind, period) for kind in open_kinds])
        named = {r.organization.id: r.organization for rows in wholes.values() for r in rows}
        unlisted = [named[id_] for id_ in sorted(named.keys() - names.by_id.keys())]
        owners += unlisted
        book = resolve(raw_book, Names(owners))
        usage.update(read_usage(client, unlisted, book))
        reconcile(client, usage, wholes)
        warnings = [f"{each} is not listed but has usage: it is billed" for each in unlisted]
        client.screen.say(*warnings, about="warning")
        note = f"Reconciled with the partner-wide usage: {sum(map(len, usage.values()))} records"
    records = list(itertools.chain.from_iterable(usage.values()))
    lines = bill_records(records, book, settings.currency)
    return Bill(settings, book, owners, records, lines), note


def check(client: Client, book: PriceBook) -> int:
    """Try both keys, hosts and kinds, and the names in the price book; return the exit status."""
    statuses, screen = {0}, client.screen
    for listing in (Listing(), *(Listing(kind, book.period, limit=1) for kind in KINDS)):
        try:
            if listing.kind:
                [page] = client.get([listing])
                screen.say(f"{listing}: {max(page.counted, len(page.rows))} records or more")
                continue
            names = Names(read_lists(client, [listing])[listing])
            chosen = choose(client.settings.organizations, names)
            screen.say(f"{listing}: {len(names.by_id)} listed, {len(chosen)} to bill")
            unknown = resolve(book, names).unknown
            screen.say(*unknown, about="warning")
            statuses.update([3] if unknown else [])
        except Failure as failure:
            screen.say(*failure.args, about="error")
            statuses.add(failure.status)
    screen.say(*audit(client.settings, book))
    if statuses == {0}:
        screen.say("Everything works; nothing was written.")
    return min(statuses - {0}, default=0)


def run(
    argv: Sequence[str] | None, environ: Mapping[str, str], now: datetime, screen: Screen
) -> tuple[int, list[str]]:
    """Make a bill, or check; return the exit status and the summary; raises Failure."""
    flags, problems = parse_flags(argv)
    screen.quiet = flags.quiet
    settings, more = read_settings(flags, environ, now)
    book = read_price_book(settings)
    if problems or more or book.problems:
        raise SettingsError(*problems, *more, *book.problems)
    with Client(settings, screen) as client:
        if flags.check:
            return check(client, book), []
        bill, note = read_bill(client, book)
    barren, notes = describe_parameters(bill)
    unbilled = [*describe_unpriced(bill), *bill.book.unknown, *barren]
    doubts = describe_overlong(bill)
    if settings.provisional:
        doubts.append(
            f"the bill is provisional: the month ends after {format_moment(settings.period.end)}"
        )
    screen.say(*doubts, *unbilled, about="warning")
    summary = [*summarize(bill), *notes, note, *audit(settings, book)]
    raw, in_order = write_files(bill, now)
    return 3 if unbilled else 0, [*summary, f"Raw file: {raw}", f"Sorted file: {in_order}"]


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
            status, summary = run(argv, environ, clock().astimezone(timezone.utc), screen)
            handle_signals(stop)  # a summary that nobody reads can be interrupted
            screen.say(*summary)
        except Failure as failure:
            status = failure.status
            screen.say(*failure.args[:MAX_PROBLEMS], about="error")
            if len(failure.args) > MAX_PROBLEMS:
                screen.say(f"and {len(failure.args) - MAX_PROBLEMS} more", about="error")
    except Stopped as stopped:
        number: int = stopped.args[0]
        if status is None:
            status = 128 + number
            name = signal.Signals(number).name
            screen.say(f"stopped by {name}: no file was written", about="error")
    finally:
        # From here on, Python would give each signal its default action back.
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
