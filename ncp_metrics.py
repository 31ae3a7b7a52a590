#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["requests>=2.25.1", "python-dateutil>=2.8.1"]
# ///
"""Bill the usage that a Rafay partner's controller meters, as CSV files for a billing system.

README.md is the manual. From top to bottom, this file follows the data: settings and price book,
organizations, usage and its control, lines of the bill, warnings, files, summary.
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
import io
import json
import multiprocessing.pool
import os
import re
import secrets
import shutil
import ssl
import sys
import threading
import time
import unicodedata
import zoneinfo
from argparse import ArgumentTypeError
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import lru_cache, partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple, TextIO
from urllib.parse import urlencode

import requests
import urllib3
from dateutil import tz
from dateutil.parser import isoparse
from dateutil.relativedelta import relativedelta

# Constants and errors

UTC = timezone.utc
VERSION = "ncp_metrics 3.0.0"

PROFILE_TYPES = ("compute", "service")
INSTANCE = "instance"  # the dimension that every instance has: its own hours
ALL_PROFILES = "*"  # the profile of a minimum that counts all of them
USAGE, FEE, MINIMUM = "usage", "fee", "minimum"  # the charges

PAGE_SIZE = 400  # rows; what Rafay's own API collection asks for
WHOLE_LIST_SIZE = 10_000  # rows; for a list that contradicted itself
PAGES_TOGETHER = 100  # of one list, asked for in one round
MAX_ROWS = 4_000_000  # of one list
CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0  # of silence; Rafay's documented call took 2.7 s
ATTEMPTS = 6
BACKOFF_SECONDS = 0.5  # before the second attempt; doubled before each later one
RETRY_AFTER_SECONDS = 30.0  # the longest wait that a server may ask for
STEP_SECONDS = 0.5  # the longest wait in one go, and so the longest that a signal may go unnoticed
SETTLING = timedelta(hours=1)  # Rafay: usage is aggregated within about an hour
MIN_KEY_LENGTH = 8  # characters; redacting a shorter text would garble every message
MAX_MESSAGE = 1000  # characters
MAX_QUOTE = 10_000  # characters of a server's text that are looked at
MAX_HINTS = 5  # nearest names: each is slow to find

MAX_INSTANCE_HOURS = Decimal(10**6)  # of one record; more is a defect
MAX_QUANTITY_HOURS = Decimal(10**21)  # of one parameter; more is a defect
DECIMALS = {  # of amounts, where they are not two (ISO 4217)
    **dict.fromkeys("BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF".split(), 0),
    **dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), 3),
}
EXACT = decimal.Context(prec=1_000_000)  # digits: sums and products are never rounded

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
HOURS = re.compile(r"[0-9]+(\.[0-9]+)?h")
DATE_OR_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2})?(Z|[+-][0-9]{2}:[0-9]{2})?)?"
)
# Line breaks and other control characters, and surrogates, which UTF-8 cannot hold.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Failure(Exception):
    """The run ends without a file; each argument is one line on stderr."""

    status = 1


class Mistake(Failure):
    """Settings, flags or the price book are wrong."""

    status = 2


class Transient(Exception):
    """A request failed that may succeed when it is made again."""

    retry_after = 0.0  # seconds, if the server said so


class Stopped(BaseException):
    """A signal, the argument, ends the run."""


def round_half_up(value: Decimal, digits: int) -> Decimal:
    """Round to so many decimals; nothing else rounds hours or money."""
    return value.quantize(Decimal(1).scaleb(-digits), decimal.ROUND_HALF_UP)


# Screen


class Screen:
    """What people see: the summary on stdout; progress, warnings and errors on stderr."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.quiet = False
        keys = []
        for name in ("RAFAY_DEFAULT_API_KEY", "PARTNER_API_KEY"):
            key = environ.get(name, "").strip()
            if len(key) >= MIN_KEY_LENGTH:
                keys.append(re.escape(key))
        keys.sort(key=len, reverse=True)  # one may begin with the other
        self.keys = re.compile("|".join(keys) or "(?!)", re.IGNORECASE)
        self.longest_key = max(map(len, keys), default=0)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a locale may lack letters

    def redact(self, text: str) -> str:
        """Return a text without API keys, and without what steers a terminal."""
        shown = self.keys.sub("***", text)
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in shown)

    def beginning(self, text: str, most: int) -> str:
        """Return the beginning of a text, redacted before it is cut: no part of a key is left."""
        shown = self.keys.sub("***", text[:MAX_QUOTE])
        if len(text) > MAX_QUOTE:
            # A key that was cut is not found: leave out as much as one is long.
            shown = shown[: len(shown) - self.longest_key]
        return self.redact(" ".join(shown.split()))[:most]

    def say(self, lines: Iterable[str]) -> None:
        """Print lines on stdout."""
        self.progress("")
        if not self.quiet:
            self._write(sys.stdout, "".join(f"{self.redact(line)}\n" for line in lines))

    def report(self, about: str, texts: Iterable[str]) -> None:
        """Print warnings, errors or requests on stderr."""
        self.progress("")
        lines = [f"ncp_metrics: {about}: {self.redact(text)}\n" for text in texts]
        self._write(sys.stderr, "".join(lines))

    def progress(self, text: str) -> None:
        """Rewrite the progress line, on a terminal only."""
        if not self.quiet and sys.stderr and sys.stderr.isatty():
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            self._write(sys.stderr, f"\r\x1b[K{self.beginning(text, width - 1)}")

    def _write(self, stream: TextIO | None, text: str) -> None:
        """Write, whether or not anybody reads it: what was written to disk stands either way."""
        if not stream:
            return
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            # What is left in the buffer must not fail again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# Settings


class Settings(argparse.Namespace):
    """What flags and environment say, checked."""

    # What argparse sets; until read_settings has run, some are None.
    month: str
    days: int
    start: str
    end: str
    timezone: tzinfo
    currency: str
    pricing: str
    output_dir: Path
    reconcile: bool
    org: list[str]
    check: bool
    invoice: bool
    quiet: bool
    verbose: bool
    # What read_settings adds.
    console_url: str
    ops_console_url: str
    default_api_key: str
    partner_api_key: str
    workers: int
    digits: int  # decimals of an amount
    period: Period  # what is billed: up to now at most
    whole_month: Period | None = None  # all of the calendar month that is billed, if it is one
    provisional = False  # whether usage of the month may still arrive


def parse_text(text: str) -> str:
    """Return a text that is not blank: an unset variable in a flag is a mistake."""
    if not text.strip():
        raise ArgumentTypeError("is blank")
    return text.strip()


def parse_key(text: str) -> str:
    """Return an API key; no message shows it."""
    if len(text) < MIN_KEY_LENGTH or not re.fullmatch("[!-~]+", text):
        raise ArgumentTypeError(f"is not a key: {MIN_KEY_LENGTH} or more printable characters")
    return text


def parse_url(text: str) -> str:
    """Return a console's URL without a path; no message shows it, as it may hold a password."""
    if "://" not in text:
        text = f"https://{text}"
    wrong = ArgumentTypeError("must be host, host:port or https://host (http:// for loopback only)")
    try:
        url = urllib3.util.parse_url(text)
        (url.host or "").encode("idna")  # refuses what no look-up would accept
    except (urllib3.exceptions.LocationParseError, UnicodeError):
        raise wrong from None
    console = f"{url.scheme}://{url.netloc}"
    # An API key never crosses a network in clear.
    is_loopback = re.fullmatch(r"localhost|127(\.[0-9]{1,3}){3}|\[::1\]", url.host or "")
    is_safe = url.scheme == "https" or (url.scheme == "http" and is_loopback)
    # Whatever else a URL may have, such as a path or a password, makes a difference here.
    is_plain = console == text.lower().removesuffix("/")
    if not url.host or url.port == 0 or not is_plain or not is_safe:
        raise wrong
    return console


def parse_form(text: str, form: str, meaning: str) -> str:
    """Return a text that has the form of a regular expression."""
    if not re.fullmatch(form, text):
        raise ArgumentTypeError(f"{text!r} is not {meaning}")
    return text


def parse_number(text: str, most: int) -> int:
    """Return a whole number of 1 or more."""
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= most:
        raise ArgumentTypeError(f"{text!r} is not a number from 1 to {most}")
    return int(text)


def parse_zone(text: str) -> tzinfo:
    """Return the zone of an IANA name; UTC needs no zone files."""
    if text == "UTC":
        return UTC
    try:
        return zoneinfo.ZoneInfo(text)
    except (KeyError, ValueError, OSError):
        raise ArgumentTypeError(f"{text!r} is not an IANA zone, such as Europe/Berlin") from None


def parse_directory(text: str) -> Path:
    """Return a directory that files can be written to."""
    path = Path(parse_text(text))
    if not os.path.isdir(path) or not os.access(path, os.W_OK | os.X_OK):
        raise ArgumentTypeError(f"{text!r} is not a writable directory")
    return path.absolute()


parse_month = partial(
    parse_form, form="last|2[0-9]{3}-(0[1-9]|1[0-2])", meaning="a month, such as 2026-06 or last"
)
parse_currency = partial(parse_form, form="[A-Z]{3}", meaning="an ISO 4217 code, such as USD")
parse_days = partial(parse_number, most=3650)

EPILOG = """\
variables without a flag, of which the first three are required:
  RAFAY_CONSOLE_URL      rafay.acme.com, host:port or https://rafay.acme.com/
  RAFAY_DEFAULT_API_KEY  the key that reads usage
  PARTNER_API_KEY        the key that lists organizations
  RAFAY_OPS_CONSOLE_URL  the Ops Console's host (default: RAFAY_CONSOLE_URL)
  WORKERS                requests in flight, 1 to 32 (default: 8)

exit status:
  0             files written, everything priced
  1             failed (network, API, disk): no file written
  2             settings, flags or price book wrong: no file written
  3             files written, but something may not be billed: see the warnings
  129, 130, 143 stopped by SIGHUP, SIGINT, SIGTERM: no file written
"""


def make_parser(variables: Mapping[str, str], screen: Screen) -> argparse.ArgumentParser:
    """Return the parser of the flags, whose defaults come from the environment."""

    class Parser(argparse.ArgumentParser):
        """Plain argparse, but an API key that is given as a flag is not repeated."""

        def error(self, message: str) -> Any:
            super().error(screen.redact(message))

    parser = Parser(
        prog="ncp_metrics",
        description="Bill the usage that a Rafay controller meters: hours x rate, as CSV files.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add_period = parser.add_mutually_exclusive_group().add_argument

    def add_setting(flag: str, variable: str, default: str, parse: Any, text: str) -> None:
        value = variables.get(variable, default)
        shown = default.replace("%", "%%")  # argparse would expand it
        about = f"{text} ({variable}; default: {shown})"
        add(flag, type=parse, default=value, help=about)

    # BILLING_MONTH and DAYS are read later: any flag for a period overrules them. So is RECONCILE.
    add_period("--month", type=parse_month, help="2026-06 or last (BILLING_MONTH; default: none)")
    add_period("--days", type=parse_days, help="the last days, 1 to 3650 (DAYS; default: 30)")
    add_period("--from", dest="start", type=parse_text, help="ISO 8601 date or time, with --to")
    add("--to", dest="end", type=parse_text, help="the end, which is excluded")
    add_setting("--timezone", "TIMEZONE", "UTC", parse_zone, "IANA zone in which months begin")
    add_setting("--currency", "CURRENCY", "USD", parse_currency, "ISO 4217 code of every amount")
    pricing = str(Path(__file__).with_name("pricing.csv"))
    add_setting("--pricing", "PRICING_FILE", pricing, parse_text, "the price book")
    add_setting("--output-dir", "OUTPUT_DIR", ".", parse_directory, "where the files go")
    reconcile = "do not compare with the partner-wide usage (RECONCILE=0; default: 1)"
    add("--no-reconcile", dest="reconcile", action="store_false", help=reconcile)
    add("--org", action="append", default=[], type=parse_text, help="bill only this; repeatable")
    add("--check", action="store_true", help="make the bill, but write no file")
    add("--invoice", action="store_true", help="also write sums by tenant, profile and rate")
    add("-q", "--quiet", action="store_true", help="print warnings and errors only")
    add("-v", "--verbose", action="store_true", help="print a line for each request")
    add("--version", action="version", version=VERSION)
    return parser


def read_variable(
    variables: Mapping[str, str], name: str, parse: Callable[[str], Any], default: str = ""
) -> Any:
    """Return the value of a variable that has no flag; raises Mistake."""
    try:
        return parse(variables.get(name, default))
    except ArgumentTypeError as error:
        raise Mistake(f"{name}: {error}") from None


def read_consoles(settings: Settings, variables: Mapping[str, str], screen: Screen) -> None:
    """Set the consoles and their API keys; raises Mistake."""
    read = partial(read_variable, variables)
    required = ("RAFAY_CONSOLE_URL", "RAFAY_DEFAULT_API_KEY", "PARTNER_API_KEY")
    missing = [name for name in required if name not in variables]
    if missing:
        raise Mistake(f"not set: {', '.join(missing)}: see --help")
    settings.default_api_key = read("RAFAY_DEFAULT_API_KEY", parse_key)
    settings.partner_api_key = read("PARTNER_API_KEY", parse_key)
    settings.console_url = read("RAFAY_CONSOLE_URL", parse_url)
    settings.ops_console_url = read("RAFAY_OPS_CONSOLE_URL", parse_url, settings.console_url)
    urls = f"{settings.console_url} {settings.ops_console_url}"
    if screen.redact(urls) != urls:  # otherwise it would be sent to DNS, as a host name
        raise Mistake("RAFAY_CONSOLE_URL, RAFAY_OPS_CONSOLE_URL: one holds an API key")


def read_settings(
    argv: Sequence[str] | None, environ: Mapping[str, str], now: datetime, screen: Screen
) -> Settings:
    """Return the settings; raises Mistake, or SystemExit as argparse does."""
    variables = {name: text.strip() for name, text in environ.items() if text.strip()}
    read = partial(read_variable, variables)
    try:
        settings = make_parser(variables, screen).parse_args(argv, Settings())
        settings.pricing = os.path.abspath(settings.pricing)
    except FileNotFoundError:
        raise Mistake("the working directory is gone") from None
    read_consoles(settings, variables, screen)
    settings.digits = DECIMALS.get(settings.currency, 2)
    settings.workers = read("WORKERS", partial(parse_number, most=32), "8")
    if settings.reconcile:
        parse_switch = partial(parse_form, form="[01]", meaning="1 or 0")
        settings.reconcile = read("RECONCILE", parse_switch, "1") == "1"
    if not (settings.month or settings.days or settings.start or settings.end):
        if "BILLING_MONTH" in variables:
            settings.month = read("BILLING_MONTH", parse_month)
        else:
            settings.days = read("DAYS", parse_days, "30")
    try:
        choose_period(settings, now.replace(microsecond=0))
    except (ValueError, OverflowError) as error:
        raise Mistake(f"--month, --days, --from, --to: {error}") from None
    return settings


# Period


class Period(NamedTuple):
    """Aware UTC moments: the start is included, the end is not."""

    start: datetime
    end: datetime


def choose_period(settings: Settings, now: datetime) -> None:
    """Set period (up to now at most), whole_month and provisional; raises ValueError."""
    if (settings.start is None) != (settings.end is None):
        raise ValueError("--from and --to go together")
    if settings.days:
        settings.period = Period(now - timedelta(days=settings.days), now)
        return
    zone = settings.timezone
    if settings.month == "last":
        this_month = month_of(now, zone)
        period = month_of(this_month.start - timedelta(days=1), zone)
    elif settings.month:
        period = month_of(parse_time(f"{settings.month}-01", zone), zone)
    else:
        period = Period(parse_time(settings.start, zone), parse_time(settings.end, zone))
        if period.end > now:
            raise ValueError(f"{settings.end} is after now, {format_time(now, zone)}")
    settings.period = Period(period.start, min(period.end, now))
    if settings.period.start >= settings.period.end:
        raise ValueError(f"from {format_time(period.start, zone)} on, the period is empty")
    if period == month_of(period.start, zone):
        settings.whole_month = period
        settings.provisional = now < period.end + SETTLING


def month_of(moment: datetime, zone: tzinfo) -> Period:
    """Return the calendar month, in a zone, that a moment is in."""
    first_day = moment.astimezone(zone).date().replace(day=1)
    next_first_day = first_day + relativedelta(months=1)
    return Period(midnight(first_day, zone), midnight(next_first_day, zone))


def midnight(day: date, zone: tzinfo) -> datetime:
    """Return when a day begins: an hour later where clocks go forward at midnight."""
    # Of a midnight that is skipped, this is the moment at which the clocks go forward (PEP 495).
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


@lru_cache(maxsize=1000)
def parse_time(text: str, zone: tzinfo) -> datetime:
    """Return an ISO 8601 date or time, in the zone unless it has an offset; raises ValueError."""
    try:
        if not DATE_OR_TIME.fullmatch(text):
            raise ValueError
        local = isoparse(text)
        if "T" not in text:
            return midnight(local.date(), zone)
        local = local.replace(tzinfo=local.tzinfo or zone)
        if tz.datetime_ambiguous(local) or not tz.datetime_exists(local):
            raise ValueError  # the clocks change: there are none or two of these moments
        return local.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is not a date or time, such as 2026-06-01 or 2026-06-01T00:00+02:00"
        ) from None


@lru_cache(maxsize=1000)
def format_time(moment: datetime, zone: tzinfo = UTC) -> str:
    """Return a time in a zone as `2026-06-01T00:00:00+02:00`; an offset of zero is `Z`."""
    local = moment.astimezone(zone)
    return local.isoformat(timespec="seconds").replace("+00:00", "Z")


# Organizations


class Organization(NamedTuple):
    """A tenant, as listed."""

    id: str
    name: str
    external_id: str = ""  # the provider's customer number

    @property
    def identity(self) -> str:
        """Return the key of its row: the same row twice in a list is a contradiction."""
        return self.id

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"


WHOLE_PARTNER = Organization("all", "the whole partner")


class Directory:
    """Organizations, found by id, or by name, ignoring case."""

    def __init__(self, organizations: Iterable[Organization]) -> None:
        self.by_id: dict[str, Organization] = {}
        self.by_name = defaultdict[str, list[Organization]](list)
        self.hints_left = MAX_HINTS
        for organization in organizations:
            self.by_id[organization.id] = organization
            self.by_name[organization.name.casefold()].append(organization)

    def find(self, text: str) -> list[Organization]:
        """Return the organization with this id, or else those with this name."""
        # The id comes first: no tenant gets another's price by choosing its id as a name.
        if text in self.by_id:
            return [self.by_id[text]]
        return self.by_name.get(text.casefold(), [])

    def explain(self, text: str) -> str:
        """Say why a text does not name one organization; at first, with the nearest name."""
        ids = ", ".join(organization.id for organization in self.find(text))
        if ids:
            return f"organization {text!r} is ambiguous: give the id: {ids}"
        reason = f"organization {text!r} is not listed"
        if self.hints_left:
            self.hints_left -= 1
            for name in difflib.get_close_matches(text.casefold(), self.by_name, n=1, cutoff=0.8):
                reason += f"; did you mean {self.by_name[name][0].name}?"
        return reason


def choose_organizations(texts: Sequence[str], listed: list[Organization]) -> list[Organization]:
    """Return the organizations that --org names, as listed; all if it names none."""
    if not texts:
        return listed
    directory = Directory(listed)
    chosen: list[Organization] = []
    for text in texts:
        found = directory.find(text)
        if len(found) != 1:
            raise Mistake(f"--org: {directory.explain(text)}")
        chosen += found
    return [organization for organization in listed if organization in chosen]


# Price book

Use = tuple[str, str, str]  # organization id, profile type, profile
Prices = Mapping[
    str, "Price | None"
]  # by dimension; None: none is in force, but one is at another time of the period
RATE_COLUMNS = {"hourly_rate": USAGE, "monthly_rate": FEE, "monthly_minimum": MINIMUM}
PRICE_COLUMNS = """profile hourly_rate monthly_rate monthly_minimum dimension organization
profile_type effective_from effective_to currency description""".split()
BEGINNING = datetime.min.replace(tzinfo=UTC)
END = datetime.max.replace(tzinfo=UTC)


class Price(NamedTuple):
    """A line of the price book; a blank organization or profile type means all of them."""

    line: int
    source: str  # the file and the line
    charge: str
    profile: str
    dimension: str
    organization: str  # name or id, as in the book; an id once it has been resolved
    profile_type: str
    start: datetime
    end: datetime
    rate: Decimal  # currency units for an hour, or for a month


class PriceFile(NamedTuple):
    """The price book as it was read, before the organizations are known."""

    path: str
    sha256: str
    prices: list[Price]


def read_price_file(settings: Settings) -> PriceFile:
    """Return all lines of the price book; raises Mistake with all that is wrong in them."""
    path = settings.pricing
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise Mistake(f"{path}: {error.strerror}") from None
    prices = parse_prices(path, content, settings)
    return PriceFile(path, hashlib.sha256(content).hexdigest(), prices)


def parse_prices(path: str, content: bytes, settings: Settings) -> list[Price]:
    """Return the prices in a file; raises Mistake with all mistakes."""
    prices: list[Price] = []
    mistakes: list[str] = []
    columns: list[str] = []
    # Line by line: no cell may hold a line break, and a stray quote must not swallow prices.
    lines = re.split("\r\n|\n|\r", content.decode("utf-8-sig", "surrogateescape"))
    for number, line in enumerate(lines, start=1):
        is_blank = not line.replace(",", "").strip()  # a spreadsheet writes ",,"
        if is_blank or line.startswith("#"):
            continue
        source = f"{path}: line {number}"
        try:
            row = split_cells(line)
            if columns:
                cells = name_cells(row, columns)
                prices.append(parse_price(number, source, cells, settings))
            else:
                columns = check_columns(row)
        except (csv.Error, ValueError, OverflowError) as error:
            mistakes.append(f"{source}: {error}")
            if not columns:
                break
    if not columns and not mistakes:
        mistakes.append(f"{path}: needs a header, such as profile,hourly_rate")
    mistakes.extend(find_repeated(prices))
    if mistakes:
        raise Mistake(*mistakes)
    return prices


def split_cells(line: str) -> list[str]:
    """Return the cells of a line, trimmed; raises ValueError or csv.Error."""
    for char in line:
        # Such as a zero-width space, which would end a contract in silence.
        if not char.isprintable() and unicodedata.category(char) != "Zs":
            raise ValueError(f"{char!r} does not print or is not UTF-8: save the file as CSV UTF-8")
    cells = next(csv.reader([line], strict=True))
    return [cell.strip() for cell in cells]


def check_columns(row: list[str]) -> list[str]:
    """Return the header; raises ValueError."""
    for cell in row:
        if cell not in PRICE_COLUMNS or row.count(cell) > 1:
            raise ValueError(
                f"column {cell!r} is unknown or repeated: use {', '.join(PRICE_COLUMNS)}"
            )
    return row


def name_cells(row: list[str], columns: list[str]) -> dict[str, str]:
    """Return the cells of a line by column, blank where there is no such column."""
    if len(row) != len(columns):
        raise ValueError(f"{len(row)} cells, but the header has {len(columns)}")
    cells = dict.fromkeys(PRICE_COLUMNS, "")
    cells.update(zip(columns, row))
    return cells


def parse_price(line: int, source: str, cells: Mapping[str, str], settings: Settings) -> Price:
    """Return the price in a line; raises ValueError."""
    rates = [column for column in RATE_COLUMNS if cells[column]]
    if len(rates) != 1:
        raise ValueError(f"{len(rates)} rates: give one of {', '.join(RATE_COLUMNS)}")
    column = rates[0]
    charge = RATE_COLUMNS[column]
    if not cells["profile"]:
        raise ValueError("profile is missing")
    if cells["profile"] == ALL_PROFILES and charge != MINIMUM:
        raise ValueError(f"profile {ALL_PROFILES!r} is for a monthly_minimum only")
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", cells[column]):
        raise ValueError(f"{column} {cells[column]!r} is not a plain decimal, such as 2.50")
    if cells["profile_type"] not in ("", *PROFILE_TYPES):
        raise ValueError(f"profile_type {cells['profile_type']!r} is neither compute nor service")
    start = parse_validity("effective_from", BEGINNING, cells, settings.timezone)
    end = parse_validity("effective_to", END, cells, settings.timezone)
    if start >= end:
        raise ValueError("effective_to is not later than effective_from")
    if cells["currency"] not in ("", settings.currency):
        raise ValueError(f"currency {cells['currency']!r} is not CURRENCY, {settings.currency}")
    if charge != USAGE:
        check_monthly(column, cells, settings)
    return Price(
        line=line,
        source=source,
        charge=charge,
        profile=cells["profile"],
        dimension=cells["dimension"] or INSTANCE,
        organization=cells["organization"],
        profile_type=cells["profile_type"],
        start=start,
        end=end,
        rate=Decimal(cells[column]),
    )


def parse_validity(
    column: str, if_blank: datetime, cells: Mapping[str, str], zone: tzinfo
) -> datetime:
    """Return the moment at which a price begins or ends; raises ValueError."""
    if not cells[column]:
        return if_blank
    try:
        moment = parse_time(cells[column], zone)
    except ValueError as error:
        raise ValueError(f"{column} {error}") from None
    if not cells["hourly_rate"] and moment != month_of(moment, zone).start:
        raise ValueError(f"{column} {cells[column]!r} is not the first moment of a month in {zone}")
    return moment


def check_monthly(column: str, cells: Mapping[str, str], settings: Settings) -> None:
    """Raise ValueError if a fee or minimum says what only an hourly rate can say."""
    if not cells["organization"]:
        raise ValueError(f"organization is missing: a {column} needs one")
    for other in ("dimension", "profile_type"):
        if cells[other]:
            raise ValueError(f"{other} {cells[other]!r} is not allowed with {column}")
    decimals = cells[column].partition(".")[2]
    if len(decimals) > settings.digits:
        raise ValueError(f"{column} {cells[column]!r} has more decimals than {settings.currency}")


def find_repeated(prices: Iterable[Price]) -> list[str]:
    """Return a mistake for each second price of the same thing from the same moment."""
    first: dict[Any, Price] = {}
    mistakes = []
    for price in prices:
        # Whatever its rate, and however long it holds.
        thing = price._replace(line=0, source="", end=END, rate=Decimal(0))
        other = first.setdefault(thing, price)
        if other is not price:
            mistakes.append(f"{price.source}: line {other.line} already has this price")
    return mistakes


class PriceBook:
    """The prices in force at some time of the period, with ids in place of names."""

    def __init__(
        self, file: PriceFile, period: Period, organizations: Iterable[Organization]
    ) -> None:
        self.file = file
        self.period = period
        self.prices: list[Price] = []
        self.unknown: list[str] = []  # a warning for each price of an unknown organization
        directory = Directory(organizations)
        mistakes = []
        for price in file.prices:
            if price.start >= period.end or price.end <= period.start:
                continue
            found = directory.find(price.organization)
            if not price.organization:
                self.prices.append(price)
            elif len(found) == 1:
                self.prices.append(price._replace(organization=found[0].id))
            else:
                problem = f"{price.source}: {directory.explain(price.organization)}"
                if found:
                    mistakes.append(problem)
                else:
                    self.unknown.append(problem)
        mistakes.extend(find_repeated(self.prices))  # a name and an id may be one organization
        if mistakes:
            raise Mistake(*mistakes)
        self._hourly = defaultdict[Any, list[Price]](list)  # by organization and profile
        self._monthly = defaultdict[str, dict[Any, Price]](dict)  # by organization
        # A blank profile type sorts first: what is more specific, or later, comes last and wins.
        for price in sorted(self.prices, key=attrgetter("profile_type", "start")):
            if price.charge == USAGE:
                self._hourly[price.organization, price.profile].append(price)
            else:
                self._monthly[price.organization][price.charge, price.profile] = price

    def hourly(self, use: Use) -> list[Price]:
        """Return the prices that may apply; of those in force for a dimension, the last counts."""
        organization_id, profile_type, profile = use
        everyones = self._hourly.get(("", profile), [])
        own = self._hourly.get((organization_id, profile), [])
        return [price for price in everyones + own if price.profile_type in ("", profile_type)]

    def find(self, use: Use, moment: datetime) -> Prices:
        """Return the price in force for each dimension that has one at some time of the period."""
        found: dict[str, Price | None] = {}
        for price in self.hourly(use):
            found.setdefault(price.dimension, None)
            if price.start <= moment < price.end:
                found[price.dimension] = price
        return found

    def changes(self, use: Use) -> set[datetime]:
        """Return when, inside the period, another line of the book comes into force, or none is."""
        moments: set[datetime] = set()
        for price in self.hourly(use):
            moments |= {price.start, price.end}
        changes = set()
        before = self.find(use, self.period.start)
        for moment in sorted(moments):
            if self.period.start < moment < self.period.end:
                after = self.find(use, moment)
                if after != before:
                    changes.add(moment)
                before = after
        return changes

    def monthly(self, organization_id: str) -> list[Price]:
        """Return fees, then minimums, in the order of the book; `*` is last, as it counts all."""
        prices = self._monthly.get(organization_id, {}).values()
        return sorted(
            prices,
            key=lambda price: (price.charge == MINIMUM, price.profile == ALL_PROFILES, price.line),
        )


# Answers of the API

JsonObject = dict[str, Any]

REQUIRED_TEXTS = ("instance_organization_id", "instance_id", "profile_name")
OPTIONAL_TEXTS = """instance_organization_name instance_project_id instance_project_name profile_id
instance_name created_at deleted_at status start_time end_time usage""".split()


def read_usage(row: JsonObject) -> Any:
    """Return the text of `usage`, or else the number of `raw_usage`, or else None.

    Rafay: `usage` is decimal hours with a scale of 2, the unit for billing; `raw_usage` is the
    same quantity unrounded.
    """
    raw_usage = row.get("raw_usage")
    if raw_usage is not None and type(raw_usage) not in (int, Decimal):
        raise Failure(f"raw_usage {raw_usage!r} is not a number of hours")
    return row["usage"] or raw_usage


def parse_hours(usage: Any, what: str, most: Decimal) -> Decimal:
    """Return the hours of what `read_usage` returned; a number is rounded half up to 0.01."""
    if usage is None or (type(usage) is str and not HOURS.fullmatch(usage)):
        raise Failure(f"{what}: usage {usage!r} is missing or is not hours, such as 20.59h")
    hours = Decimal(str(usage).removesuffix("h"))
    if not 0 <= hours <= most:
        raise Failure(f"{what}: usage {usage} is negative or implausibly large")
    if type(usage) is not str:
        hours = round_half_up(hours, 2)
    return trim_hours(hours)


def trim_hours(hours: Decimal) -> Decimal:
    """Return exact hours with two decimals, or more as needed."""
    # main() sets the context EXACT for the thread in which answers are parsed: no rounding here.
    return hours.normalize() + Decimal("0.00")


class Listing(NamedTuple):
    """What an API list contains."""

    organization: Organization  # or WHOLE_PARTNER
    profile_type: str  # blank for the list of organizations
    period: Period

    def __str__(self) -> str:
        if not self.profile_type:
            return "organizations"
        return f"{self.profile_type} usage of {self.organization}"


class Ask(NamedTuple):
    """A page to ask for."""

    listing: Listing
    offset: int
    limit: int


class Page(NamedTuple):
    """What the answer to an Ask says."""

    offset: int  # as asked for
    limit: int  # as asked for, or as lowered by the server
    rows: list[Any]  # organizations or records
    counted: int  # rows in all, or on this page: that is not documented; 0 if not given
    has_next: bool  # whether the server says that there is another page


class Parameter(NamedTuple):
    """A parameter of an instance, as answered; its quantity is worked out when it is billed."""

    name: str
    is_label: bool | None  # None if not given
    label_value: str
    usage: Any  # as read_usage returns it

    def hours(self) -> Decimal:
        """Return the hours of its own usage; raises Failure."""
        return parse_hours(self.usage, self.name, MAX_QUANTITY_HOURS)

    def quantity(self) -> Decimal:
        """Return quantity x hours: what is metered, but for a label its value x its usage."""
        if self.is_label is None and self.label_value:
            raise Failure(f"{self.name} has a label_value, but no is_label")
        if not self.is_label:
            return self.hours()
        if not re.fullmatch(r"[0-9]{1,21}(\.[0-9]+)?", self.label_value):
            raise Failure(f"label {self.label_value!r} of {self.name} is not a plain decimal")
        return trim_hours(Decimal(self.label_value) * self.hours())

    def describe(self) -> str:
        """Return `GPU=1` for a label, `storage_size=1200.00h` for what is metered."""
        if self.is_label or self.usage is None:
            return f"{self.name}={self.label_value}"
        return f"{self.name}={self.hours():f}h"


class Record(NamedTuple):
    """The metered usage of an instance in a period."""

    organization: Organization
    profile_type: str
    period: Period  # as asked for
    project: str
    project_id: str
    profile: str
    profile_id: str
    instance: str
    instance_id: str
    start_time: str  # as answered
    end_time: str  # as answered
    status: str
    created_at: str  # in UTC, whole seconds
    hours: Decimal
    parameters: str  # for people
    priced: tuple[Parameter, ...]  # those that may have a price

    @property
    def subject(self) -> tuple[str, ...]:
        """Return what is metered, in the whole period or in a part of it."""
        # The first is the organization's id, the last the instance's.
        ids = (self.project_id, self.profile_id, self.instance_id)
        return (self.organization.id, self.project, self.profile, *ids)

    @property
    def identity(self) -> tuple[str, ...]:
        """Return the key of its row: the same row twice in a list is a contradiction."""
        return (*self.subject, self.start_time, self.end_time)

    def __str__(self) -> str:
        return f"instance {self.instance} ({self.instance_id})"


def parse_page(ask: Ask, answer: JsonObject, priced_names: set[str]) -> Page:
    """Return what a decoded answer says; raises Failure if it is not as documented."""
    has_next = False
    if ask.listing.profile_type:
        rows: list[Any] = parse_usage(ask.listing, answer, priced_names)
    else:
        rows = parse_organizations(answer)
        has_next = bool(answer.get("next"))
    limit = parse_count(answer, "limit") or ask.limit
    counted = parse_count(answer, "count")
    return Page(ask.offset, min(limit, ask.limit), rows, counted, has_next)


def parse_count(answer: JsonObject, name: str) -> int:
    """Return a number of rows; 0 if it is not given."""
    number = answer.get(name)
    if number is None:
        return 0
    if type(number) is not int or number < 0:
        raise Failure(f"{name} {number!r} is not a number of rows")
    return number


def parse_objects(answer: JsonObject, name: str) -> list[JsonObject]:
    """Return a list of JSON objects; some Go encoders write an empty one as null."""
    rows = answer.get(name)
    if rows is None:
        return []
    if type(rows) is not list:
        raise Failure(f"{name} is not a list")
    for row in rows:
        if type(row) is not dict:
            raise Failure(f"{name}: {row!r} is not a JSON object")
    return rows


def clean_texts(row: JsonObject, required: Iterable[str], optional: Iterable[str]) -> None:
    """Trim texts in place; those that are null or not given become blank; raises Failure."""
    for name in (*required, *optional):
        text = row.get(name)
        if text is None:
            row[name] = ""
        elif type(text) is str:
            row[name] = text.strip()
        else:
            raise Failure(f"{name} {text!r} is not text")
    for name in required:
        if not row[name]:
            raise Failure(f"{name} is missing")


def parse_organizations(answer: JsonObject) -> list[Organization]:
    """Return the organizations on a page; raises Failure."""
    if "results" not in answer and "items" not in answer:
        raise Failure("neither results nor items: is this another API?")
    organizations = []
    for row in parse_objects(answer, "results") or parse_objects(answer, "items"):
        clean_texts(row, required=("id", "name"), optional=["external_id"])
        organizations.append(Organization(row["id"], row["name"], row["external_id"]))
    return organizations


def parse_usage(listing: Listing, answer: JsonObject, priced_names: set[str]) -> list[Record]:
    """Return the records on a page, if it is of the kind and period that were asked for."""
    rows = parse_objects(answer, "instance_usage_data")
    clean_texts(answer, (), ("kind", "range_from", "range_to"))
    if not rows and not answer["kind"] and not answer["range_from"]:
        raise Failure("no instance_usage_data, kind or range_from: is this another API?")
    if answer["kind"] not in ("", listing.profile_type):
        raise Failure(f"kind is {answer['kind']}, not {listing.profile_type} as requested")
    # A server that keeps less than the period must not shorten the bill in silence.
    for name, asked in zip(("range_from", "range_to"), listing.period):
        if normalize_time(answer[name]) not in ("", format_time(asked)):
            raise Failure(f"{name} is {answer[name]}, not {format_time(asked)} as requested")
    records = []
    for row in rows:
        try:
            records.append(parse_record(listing, row, priced_names))
        except Failure as error:
            instance = f"{row.get('instance_name')} ({row.get('instance_id')})"
            raise Failure(f"instance {instance}: {error}") from None
    return records


def parse_record(listing: Listing, row: JsonObject, priced_names: set[str]) -> Record:
    """Return a usage record; raises Failure."""
    clean_texts(row, REQUIRED_TEXTS, OPTIONAL_TEXTS)
    organization = listing.organization
    organization_id = row["instance_organization_id"]
    if organization is WHOLE_PARTNER:
        name = row["instance_organization_name"] or organization_id
        organization = Organization(organization_id, name)
    if organization.id != organization_id:
        raise Failure(f"belongs to organization {organization_id}: the API ignored the filter")
    status = row["status"]
    if not status and row["deleted_at"] > "0002":  # Go writes a time that is not set as year 1
        status = "deleted"
    parameters = []
    priced = []
    for each in parse_objects(row, "parameters"):
        parameter = parse_parameter(each)
        parameters.append(parameter.describe())
        if parameter.name in priced_names:
            priced.append(parameter)
    # Texts that most records share are kept once.
    return Record(
        organization=organization,
        profile_type=listing.profile_type,
        period=listing.period,
        project=intern(row["instance_project_name"]),
        project_id=intern(row["instance_project_id"]),
        profile=intern(row["profile_name"]),
        profile_id=intern(row["profile_id"]),
        instance=row["instance_name"],
        instance_id=row["instance_id"],
        start_time=intern(row["start_time"]),
        end_time=intern(row["end_time"]),
        status=status,
        created_at=normalize_time(row["created_at"]),
        hours=parse_hours(read_usage(row), INSTANCE, MAX_INSTANCE_HOURS),
        parameters="; ".join(parameters),
        priced=tuple(priced),
    )


def parse_parameter(row: JsonObject) -> Parameter:
    """Return a parameter as answered; raises Failure."""
    clean_texts(row, required=["name"], optional=("label_value", "usage"))
    is_label = row.get("is_label")
    if is_label is not None and type(is_label) is not bool:
        raise Failure(f"is_label {is_label!r} of {row['name']} is not true or false")
    return Parameter(
        name=intern(row["name"]),
        is_label=is_label,
        label_value=intern(row["label_value"]),
        usage=read_usage(row),
    )


@lru_cache(maxsize=10_000)
def normalize_time(text: str) -> str:
    """Return an ISO 8601 time, UTC unless it has an offset, as `2026-06-01T00:00:00Z`."""
    if not text:
        return ""
    try:
        moment = isoparse(text)
        return format_time(moment.replace(tzinfo=moment.tzinfo or UTC))
    except (ValueError, OverflowError):
        raise Failure(f"{text!r} is not an ISO 8601 time") from None


# Client

USAGE_PATH = "/apis/billing.envmgmt.io/v1/metrics/partner/instance/kind/{}/usage"
ORGANIZATIONS_PATH = "/auth/v1/organizations"
NO_PROXY = {"http": ""}  # it comes before those in the environment


class Request(NamedTuple):
    """A request for a page."""

    console: str  # its URL
    path: str
    query: JsonObject
    headers: dict[str, str]  # with the API key
    settings: str  # the names of those to check if it fails


def make_request(ask: Ask, settings: Settings) -> Request:
    """Return the request for a page, as in Rafay's API collections."""
    organization, profile_type, period = ask.listing
    query: JsonObject = {"limit": ask.limit, "offset": ask.offset}
    if not profile_type:
        headers = {"X-RAFAY-API-KEYID": settings.partner_api_key}
        names = "RAFAY_OPS_CONSOLE_URL (or else RAFAY_CONSOLE_URL) and PARTNER_API_KEY"
        return Request(settings.ops_console_url, ORGANIZATIONS_PATH, query, headers, names)
    query["range_from"] = format_time(period.start)
    query["range_to"] = format_time(period.end)
    if organization is not WHOLE_PARTNER:
        query["instance_organization_id"] = organization.id
    headers = {"x-api-key": settings.default_api_key}
    names = "RAFAY_CONSOLE_URL and RAFAY_DEFAULT_API_KEY"
    return Request(settings.console_url, USAGE_PATH.format(profile_type), query, headers, names)


class Session(requests.Session):
    """Follows redirects on the same scheme, host and port only, and keeps no cookies."""

    def rebuild_auth(self, prepared_request: Any, response: Any) -> None:
        """Raise if a redirect would take the API key elsewhere; called before each is followed."""
        prepared_request.headers.pop("Cookie", None)
        # As urllib3, which connects, reads the URLs: other parsers read some differently.
        pool = urllib3.connection_from_url(response.url)
        if not pool.is_same_host(prepared_request.url):
            raise requests.TooManyRedirects


class Client:
    """The one place that makes requests, in as many threads as WORKERS says."""

    def __init__(self, settings: Settings, priced_names: set[str], screen: Screen) -> None:
        self.settings = settings
        self.priced_names = priced_names  # of the parameters that a price of the book is for
        self.screen = screen
        self.retrying: dict[Ask, str] = {}  # why they are tried again
        self.local = threading.local()  # holds each thread's session
        try:
            # Its threads are daemons: they hold up neither a signal nor the end of the run.
            self.pool = multiprocessing.pool.ThreadPool(settings.workers)
        except (RuntimeError, AttributeError):  # the latter while it cleans up after the former
            raise Failure("cannot start that many threads: lower WORKERS") from None

    def get_pages(self, asks: Sequence[Ask]) -> Iterator[Page]:
        """Yield the pages in the order asked for; raises Failure."""
        self.asked = len(asks)
        self.received = 0  # of these pages
        fetching: list[Any] = []
        for ask in asks:
            fetching.append((ask, self.pool.apply_async(self._fetch, (ask,))))
            # Few are fetched ahead: an answer takes more memory than the records in it.
            if len(fetching) > 2 * self.settings.workers:
                yield self._receive(*fetching.pop(0))
        for ask, result in fetching:
            yield self._receive(ask, result)

    def _receive(self, ask: Ask, result: Any) -> Page:
        """Wait for an answer, and return what it says; raises Failure."""
        while not result.ready():
            about = self.retrying.get(ask, ask.listing)
            self.screen.progress(f"{self.received}/{self.asked}: {about}")
            result.wait(STEP_SECONDS)
        self.received += 1
        try:
            return parse_page(ask, result.get(), self.priced_names)
        except Failure as error:
            raise Failure(f"{ask.listing}: {error}") from None

    def _fetch(self, ask: Ask) -> JsonObject:
        """Return a decoded answer, after up to ATTEMPTS requests; raises Failure."""
        request = make_request(ask, self.settings)
        wait = BACKOFF_SECONDS
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._attempt(request)
            except Transient as error:
                problem = error
            if attempt < ATTEMPTS:
                self.retrying[ask] = f"retrying: {problem}"
                time.sleep(min(problem.retry_after or wait, RETRY_AFTER_SECONDS))
                wait *= 2
        raise Failure(f"gave up after {ATTEMPTS} attempts, run it again later: {problem}")

    def _attempt(self, request: Request) -> JsonObject:
        """Make a request and return the decoded answer; raises Failure or Transient."""
        outcome = "no answer"
        began = time.monotonic()
        try:
            response = self._send(request)
            outcome = f"HTTP {response.status_code}"
            answer = decode(response, request)
            for name, value in answer.items():
                if type(value) is list:
                    outcome += f", {len(value)} rows"
                if name in ("count", "limit"):
                    outcome += f", {name} {value}"
            for key in (self.settings.default_api_key, self.settings.partner_api_key):
                if key.encode() in response.content:  # it would get into the files
                    raise Failure(f"{request.console}: the answer holds an API key")
            return answer
        finally:
            seconds = time.monotonic() - began
            target = f"{request.path}?{urlencode(request.query, errors='replace')}"
            if self.settings.verbose:
                self.screen.report("request", [f"{target}: {outcome}, {seconds:.2f} s"])

    def _send(self, request: Request) -> requests.Response:
        """Return the response to a request; raises Failure or Transient."""
        if not hasattr(self.local, "session"):
            self.local.session = Session()
        session: Session = self.local.session
        session.cookies.clear()
        try:
            return session.get(
                request.console + request.path,
                params=request.query,
                headers=request.headers,
                auth=lambda prepared: prepared,  # or requests would read ~/.netrc
                # Over http, a proxy would be sent the key in clear.
                proxies=NO_PROXY if request.console.startswith("http://") else None,
                timeout=(CONNECT_SECONDS, READ_SECONDS),
            )
        except (OSError, ValueError, TypeError, urllib3.exceptions.HTTPError) as error:
            raise translate_error(error, f"{request.console}: check {request.settings}") from None


def decode(response: requests.Response, request: Request) -> JsonObject:
    """Return the JSON of an answer, its fractions as Decimal; raises Failure or Transient."""
    status = response.status_code
    problem = f"HTTP {status}"
    if status == 200:
        problem += ": the answer is not a JSON object"
        with suppress(ValueError, RecursionError, decimal.DecimalException):
            answer = json.loads(response.content, parse_float=Decimal)
            if type(answer) is dict:
                return answer
    said = response.content[: 10 * MAX_QUOTE].decode("utf-8", "replace")
    if status not in (200, 408, 425, 429) and status < 500:
        raise Failure(f"{problem}: check {request.settings}: {said}")
    transient = Transient(f"{problem}: {said}")
    with suppress(Exception):  # without the header, or whatever the library makes of a wrong one
        header = response.headers["Retry-After"]
        transient.retry_after = float(urllib3.Retry().parse_retry_after(header))
    raise transient


def translate_error(error: Exception, where: str) -> Exception:
    """Return Failure or Transient, without texts of requests: one may hold a proxy's password."""
    cause: BaseException = error
    while cause.__context__ is not None:
        cause = cause.__context__
    if isinstance(error, (requests.TooManyRedirects, ValueError, TypeError)):
        return Failure(
            f"{where}: redirects to another host or in a loop, or HTTPS_PROXY is invalid"
        )
    # For a CA bundle that does not exist, requests raises a plain OSError.
    is_of_http = isinstance(error, (requests.RequestException, urllib3.exceptions.HTTPError))
    is_of_tls = isinstance(error, requests.exceptions.SSLError)
    cut_off = isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
    if not is_of_http or (is_of_tls and not cut_off):
        hint = "is the certificate for this host, and its CA in REQUESTS_CA_BUNDLE?"
        return Failure(f"{where}: TLS failed: {cause}: {hint}")
    reason = getattr(cause, "strerror", None) or type(error).__name__
    return Transient(f"{where}: {reason}: check the network, or HTTPS_PROXY")


# Paging


class Pages:
    """What has been read so far of one list."""

    def __init__(self, listing: Listing, limit: int) -> None:
        self.listing = listing
        self.limit = limit
        self.rows: dict[Any, Any] = {}  # by identity
        self.counted = 0  # the most rows that an answer counted
        self.page_size = 0  # rows of the first page: the server may give fewer than the limit
        self.complete = False
        self.contradiction = ""  # why the list cannot be believed

    def next_asks(self) -> list[Ask]:
        """Return the pages to ask for together: all that are counted, or else the next."""
        received = len(self.rows)
        # If the last page that is counted may be full, the one after it is among them.
        end = max(self.counted, received) + 1
        offsets = range(received, end, self.page_size or 1)
        return [Ask(self.listing, offset, self.limit) for offset in offsets[:PAGES_TOGETHER]]

    def add(self, page: Page) -> None:
        """Add the page that comes next."""
        if self.contradiction:
            return
        if page.offset != len(self.rows):
            self.contradiction = f"the page before row {page.offset} is not full"
            return
        for row in page.rows:
            if row.identity in self.rows:
                self.contradiction = f"{row} is listed twice"
                return
            self.rows[row.identity] = row
        if len(self.rows) > MAX_ROWS:
            raise Failure(f"{self.listing}: more than {MAX_ROWS:,} rows: it does not seem to end")
        self.page_size = self.page_size or len(page.rows)
        self.counted = max(self.counted, page.counted)
        has_more = page.has_next or self.counted > len(self.rows)
        if has_more and not page.rows:
            self.contradiction = f"{len(self.rows)} of {self.counted} counted rows were listed"
        # What `count` means does not matter: a page that is not full ends the list.
        self.complete = not has_more and len(page.rows) < page.limit


def read_lists(client: Client, listings: Iterable[Listing]) -> dict[Listing, list[Any]]:
    """Return the rows of lists; the pages that they need next are asked for together."""
    rows_of: dict[Listing, list[Any]] = {}
    reading = [Pages(listing, PAGE_SIZE) for listing in listings]
    while reading:
        pages_of = {pages.listing: pages for pages in reading}
        asks = [ask for pages in reading for ask in pages.next_asks()]
        for ask, page in zip(asks, client.get_pages(asks)):
            pages_of[ask.listing].add(page)
        unfinished = []
        for pages in reading:
            if pages.contradiction:
                if pages.limit == WHOLE_LIST_SIZE:
                    raise Failure(
                        f"{pages.listing}: {pages.contradiction}, twice: usage changes while it "
                        "is read, or the API ignores offset: run it again later"
                    )
                unfinished.append(Pages(pages.listing, WHOLE_LIST_SIZE))
            elif pages.complete:
                rows_of[pages.listing] = list(pages.rows.values())
            else:
                unfinished.append(pages)
        reading = unfinished
    return rows_of


# Usage

Usage = dict[Listing, list[Record]]


def list_usage(organizations: Iterable[Organization], period: Period) -> list[Listing]:
    """Return the lists of the usage of organizations, in the order of the raw file."""
    return [
        Listing(organization, profile_type, period)
        for organization in organizations
        for profile_type in PROFILE_TYPES
    ]


def reconcile(client: Client, usage: Usage, whole: Listing) -> None:
    """Compare usage with the whole partner's list, and add what is missing; raises Failure."""
    # All that was read is also in the whole partner's list. If that ends after as many records,
    # nothing is missing, whatever a `count` says.
    number = sum(len(usage[each]) for each in usage if each.profile_type == whole.profile_type)
    [beyond] = client.get_pages([Ask(whole, offset=number, limit=1)])
    if not beyond.rows:
        return
    records = read_lists(client, [whole])[whole]
    usage.update(read_lists(client, compare(usage, whole, records)))
    differing = compare(usage, whole, records)
    if differing:
        hint = "differs from the partner-wide usage: run it again later, or with --no-reconcile"
        raise Failure(*(f"{each}: {shorten(differing[each])}: {hint}" for each in differing))
    # A list that is not complete proves nothing. No record may follow, unless offset is ignored:
    # then the same one follows everywhere.
    end = len(records)
    asks = [Ask(whole, offset, limit=1) for offset in (end, end + PAGE_SIZE)]
    following, further_on = client.get_pages(asks)
    if following.rows != further_on.rows:
        raise Failure(f"{whole}: more records than it listed: run it again later")


def compare(
    usage: Usage, whole: Listing, records_of_all: Sequence[Record]
) -> dict[Listing, list[str]]:
    """Return the lists that differ from that of the whole partner, and in which instances.

    Records are counted by subject; their hours are not compared, as those of running ones grow.
    """
    organizations = {record.organization.id: record.organization for record in records_of_all}
    own = Counter[Any]()
    for listing, records in usage.items():
        organizations[listing.organization.id] = listing.organization
        if listing.profile_type == whole.profile_type:
            own.update(record.subject for record in records)
    of_all = Counter(record.subject for record in records_of_all)
    differing = defaultdict[Listing, list[str]](list)
    for subject in (own - of_all) + (of_all - own):
        listing = whole._replace(organization=organizations[subject[0]])
        differing[listing].append(subject[-1])
    return differing


def shorten(names: Iterable[str], most: int = 5) -> str:
    """Return the first few of many names."""
    every = list(names)
    if len(every) > most:
        every[most:] = [f"and {len(every) - most} more"]
    return ", ".join(every)


def split_usage(client: Client, usage: Usage, book: PriceBook) -> None:
    """Read usage of profiles whose price changes inside the period again, in the parts between.

    Other profiles of the same list keep the records of the whole period.
    """
    changing = defaultdict[Listing, set[str]](set)  # profiles
    parts_of: dict[Listing, list[Listing]] = {}
    for listing, records in usage.items():
        moments: set[datetime] = set()
        for profile in {record.profile for record in records}:
            changes = book.changes((listing.organization.id, listing.profile_type, profile))
            if changes:
                moments |= changes
                changing[listing].add(profile)
        if moments:
            parts_of[listing] = split_listing(listing, moments)
    usage_in_parts = read_lists(client, [part for parts in parts_of.values() for part in parts])
    for listing, parts in parts_of.items():
        whole = usage[listing]
        in_parts = [record for part in parts for record in usage_in_parts[part]]
        check_parts(listing, whole, in_parts)
        unchanged = [record for record in whole if record.profile not in changing[listing]]
        changed = [record for record in in_parts if record.profile in changing[listing]]
        usage[listing] = unchanged + changed


def split_listing(listing: Listing, moments: Iterable[datetime]) -> list[Listing]:
    """Return a list of usage in the parts between moments inside its period."""
    parts = []
    start = listing.period.start
    for end in [*sorted(moments), listing.period.end]:
        parts.append(listing._replace(period=Period(start, end)))
        start = end
    return parts


def check_parts(listing: Listing, whole: Iterable[Record], in_parts: Iterable[Record]) -> None:
    """Raise Failure if an instance is in the whole period only, or in parts of it only."""
    subjects = {record.subject for record in whole}
    differing = subjects.symmetric_difference(record.subject for record in in_parts)
    if differing:
        instances = shorten(sorted(subject[-1] for subject in differing))
        raise Failure(
            f"{listing}: {instances}: listed in the whole period only, or only in its parts "
            "between price changes: run it again later"
        )


# Billing


class Line(NamedTuple):
    """A line of the bill; its fields are the columns of the files."""

    organization: str
    organization_id: str
    external_id: str
    project: str = ""
    profile_type: str = ""
    profile: str = ""
    instance: str = ""
    instance_id: str = ""
    status: str = ""
    created_at: str = ""
    parameters: str = ""
    period_start: datetime = BEGINNING
    period_end: datetime = END
    charge: str = USAGE
    dimension: str = INSTANCE
    usage_hours: Decimal | None = None  # of the dimension, trimmed; None for fees and minimums
    billing_rate: Decimal | None = None  # None also where there is no price
    billing_amount: Decimal | None = None  # currency units; None where there is no price
    currency: str = ""


class Bill(NamedTuple):
    """What is billed, and what it was made from."""

    settings: Settings
    book: PriceBook
    organizations: Sequence[Organization]  # all that are billed, also those without usage
    reconciled: str  # what the summary says of it
    lines: list[Line]  # in the order of the raw file
    overlong: list[str]  # records with more hours than their period
    unbilled: list[str]  # warnings of what may not be billed: they make the exit status 3
    doubts: list[str]  # warnings of what to look at, though the bill is complete
    unused: list[str]  # hourly prices in force that nobody used


def group_lines(lines: Iterable[Line], key: Callable[[Line], Any]) -> dict[Any, list[Line]]:
    """Return lines by what they have in common, in the order of the first of each."""
    groups: dict[Any, list[Line]] = {}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return groups


def add_hours(lines: Iterable[Line]) -> Decimal:
    """Return the sum of the hours."""
    return trim_hours(Decimal(sum(line.usage_hours or 0 for line in lines)))


def add_amounts(lines: Iterable[Line]) -> Decimal | None:
    """Return the sum of the amounts; None if no line has one."""
    amounts = [line.billing_amount for line in lines if line.billing_amount is not None]
    return sum(amounts, Decimal(0)) if amounts else None


def bill_organization(bill: Bill, organization: Organization, usage: Usage) -> None:
    """Add the lines of an organization's usage, then those of its fees and minimums."""
    lines: list[Line] = []
    find = lru_cache(maxsize=None)(bill.book.find)
    for listing in list_usage([organization], bill.settings.period):
        for record in usage.pop(listing, []):  # its lines take its place in memory
            use = (organization.id, record.profile_type, record.profile)
            prices = find(use, record.period.start)
            lines += bill_record(record, prices, bill.settings)
            if is_overlong(record, prices):
                bill.overlong.append(f"{record} of {organization}")
    lines += bill_month(bill, organization, lines)
    bill.lines.extend(lines)


def measure(record: Record, prices: Prices) -> dict[str, Decimal]:
    """Return the hours of the instance, and quantity x hours of each parameter with a price."""
    hours_of = {INSTANCE: record.hours}
    for parameter in record.priced:
        if parameter.name in hours_of:
            raise Failure(f"{parameter.name} is listed twice")
        if parameter.name in prices:
            hours_of[parameter.name] = parameter.quantity()
    return hours_of


def bill_record(record: Record, prices: Prices, settings: Settings) -> list[Line]:
    """Return the line of an instance, then one for each parameter that has a price."""
    try:
        hours_of = measure(record, prices)
    except Failure as error:
        raise Failure(f"{record} of {record.organization}: {error}") from None
    lines = []
    for dimension, hours in hours_of.items():
        rate = amount = None
        price = prices.get(dimension)
        if price:
            rate = price.rate
            amount = round_half_up(hours * rate, settings.digits)
        line = Line(
            organization=record.organization.name,
            organization_id=record.organization.id,
            external_id=record.organization.external_id,
            project=record.project,
            profile_type=record.profile_type,
            profile=record.profile,
            instance=record.instance,
            instance_id=record.instance_id,
            status=record.status,
            created_at=record.created_at,
            parameters=record.parameters,
            period_start=record.period.start,
            period_end=record.period.end,
            dimension=dimension,
            usage_hours=hours,
            billing_rate=rate,
            billing_amount=amount,
            currency=settings.currency,
        )
        lines.append(line)
    return lines


def is_overlong(record: Record, prices: Prices) -> bool:
    """Return whether an instance, or a billed label of it, has more hours than its period."""
    hours = record.hours
    for parameter in record.priced:
        if parameter.is_label and prices.get(parameter.name):
            hours = max(hours, parameter.hours())
    seconds = (record.period.end - record.period.start) // timedelta(seconds=1)
    return (hours - Decimal("0.01")) * 3600 > seconds


def bill_month(bill: Bill, organization: Organization, usage_lines: list[Line]) -> list[Line]:
    """Return the fees, and what an organization's usage falls short of its minimums."""
    settings = bill.settings
    month = settings.whole_month
    if month is None:
        return []
    lines_of = group_lines(usage_lines, attrgetter("profile"))
    lines: list[Line] = []
    for price in bill.book.monthly(organization.id):
        amount = round_half_up(price.rate, settings.digits)
        if price.charge == MINIMUM:
            counted = lines_of.get(price.profile, [])
            if price.profile == ALL_PROFILES:
                counted = usage_lines + [line for line in lines if line.charge == MINIMUM]
            amount -= add_amounts(counted) or 0
            if amount <= 0:
                continue
            if not counted:
                bill.doubts.append(
                    f"{price.source}: the minimum {price.profile} of {organization} is billed in "
                    "full, as nothing was used: is that line right?"
                )
        line = Line(
            organization=organization.name,
            organization_id=organization.id,
            external_id=organization.external_id,
            profile=price.profile,
            period_start=month.start,
            period_end=month.end,
            charge=price.charge,
            dimension="month",
            billing_amount=amount,
            currency=settings.currency,
        )
        lines.append(line)
    return lines


# Warnings


def group_organization(line: Line) -> tuple[str, str]:
    """Return a line's organization: its id, and its name as people see it."""
    return line.organization_id, f"{line.organization} ({line.organization_id})"


def check_usage(bill: Bill) -> None:
    """Add warnings of usage without a price, and of more hours than there can be."""
    unpriced = [line for line in bill.lines if line.usage_hours and line.billing_amount is None]
    for lines in group_lines(unpriced, attrgetter("profile", "dimension")).values():
        what = f"{lines[0].dimension} of {lines[0].profile} has no price"
        whose = shorten([name for _, name in group_lines(lines, group_organization)], most=3)
        bill.unbilled.append(f"{what}: {add_hours(lines):f} hours of {whose} are not billed")
    if bill.overlong:
        bill.doubts.append(f"more hours than the period has: {shorten(bill.overlong)}")


def check_prices(bill: Bill) -> None:
    """Add warnings about prices in force, and those that nobody used."""
    whose = {organization.id: str(organization) for organization in bill.organizations}
    whose[""] = "everyone"
    used = find_used(bill)
    known = {price.profile for price in bill.book.prices if not price.organization}
    known.update(line.profile for line in bill.lines if line.charge == USAGE)
    for price in bill.book.prices:
        if price.organization not in whose:
            continue
        whom = (price.organization, price.profile_type)
        if price.charge != USAGE:
            if not bill.settings.whole_month:
                what = f"{price.charge} {price.profile}: the period is not a calendar month"
                bill.unbilled.append(f"{price.source}: no {what}")
        elif (price.profile, price.dimension, *whom) not in used:
            profile = f"{price.profile_type} {price.profile}".strip()
            what = f"{price.dimension} of {profile}, for {whose[price.organization]}"
            if price.organization or not bill.settings.org:  # others may have used it
                bill.unused.append(f"{price.source}: {what}")
            if (price.profile, INSTANCE, *whom) in used:
                missing = f"no record of {price.profile} has {price.dimension}"
                bill.unbilled.append(f"{price.source}: nothing to bill: {missing}")
            elif price.profile not in known:
                bill.doubts.append(f"{price.source}: nobody used {what}: is the profile right?")


def find_used(bill: Bill) -> set[tuple[str, ...]]:
    """Return what has usage: profile, dimension, organization id and type, both blank for any."""
    used: set[tuple[str, ...]] = set()
    columns = attrgetter("profile", "dimension", "organization_id", "profile_type")
    things = {columns(line) for line in bill.lines if line.charge == USAGE}
    for profile, dimension, organization_id, profile_type in things:
        for whose in (organization_id, ""):
            used.add((profile, dimension, whose, profile_type))
            used.add((profile, dimension, whose, ""))
    return used


# Files

FILE_NAMES = ("ncp-metrics", "ncp-metrics-sorted", "ncp-metrics-invoice")


@lru_cache(maxsize=10_000)
def format_text(text: str) -> str:
    """Return a text on one line that no spreadsheet takes for a formula."""
    if not text.isprintable():
        text = CONTROL.sub(" ", text)
    if text.startswith(("=", "+", "-", "@")):
        return f"'{text}"
    return text


def format_row(values: Iterable[Any], zone: tzinfo = UTC) -> str:
    """Return a row of CSV: numbers and times as they are, texts made safe."""
    cells = []
    for value in values:
        if type(value) is str:
            cells.append(format_text(value))
        elif value is None:
            cells.append("")
        elif type(value) is Decimal:
            cells.append(f"{value:f}")
        else:
            cells.append(format_time(value, zone))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


INVOICE_COLUMNS = """organization organization_id external_id period_start period_end charge profile
dimension instances usage_hours billing_rate billing_amount currency""".split()


def make_invoice(lines: Iterable[Line], period: Period) -> list[list[Any]]:
    """Return an organization's lines added up by charge, profile, dimension and rate."""
    invoice = []
    columns = attrgetter("charge", "profile", "dimension", "billing_rate")
    for same in group_lines(lines, columns).values():
        values = same[0]._asdict()
        values["period_start"], values["period_end"] = period
        values["instances"] = Decimal(len({line.instance_id for line in same} - {""}))
        values["billing_amount"] = add_amounts(same)
        if values["charge"] == USAGE:
            values["usage_hours"] = add_hours(same)
        invoice.append([values[column] for column in INVOICE_COLUMNS])
    return invoice


# The sorted file is in this order within an organization.
sort_key = attrgetter(
    "project", "profile_type", "profile", "instance", "instance_id", "period_start", "period_end"
)


def write_lines(bill: Bill, raw: TextIO, in_order: TextIO, invoice: TextIO) -> None:
    """Write the lines of the bill as they are, sorted, and added up."""
    zone = bill.settings.timezone
    raw.write(format_row(Line._fields))
    in_order.write(format_row(Line._fields))
    invoice.write(format_row(INVOICE_COLUMNS))
    # Lines are sorted one organization at a time and read back as text from the raw file: that
    # takes little memory, and each is formatted once.
    groups = []  # the lines of each organization, and where they begin in the raw file
    for id_, own in groupby(bill.lines, key=attrgetter("organization_id")):
        lines = list(own)
        groups.append((lines[0].organization.casefold(), id_, raw.tell(), lines))
        for line in lines:
            raw.write(format_row(line, zone))
    for _, _, start, lines in sorted(groups):
        raw.seek(start)
        pairs = sorted(zip(lines, raw), key=lambda pair: sort_key(pair[0]))
        in_order.writelines(row for _, row in pairs)
        if bill.settings.invoice:
            for values in make_invoice([line for line, _ in pairs], bill.settings.period):
                invoice.write(format_row(values, zone))


def write_files(bill: Bill, now: datetime) -> list[Path]:
    """Write all files, or none; return their paths; raises Failure."""
    directory = bill.settings.output_dir
    private = directory / f".ncp-metrics-{secrets.token_hex(8)}"
    names = [private / name for name in FILE_NAMES]
    create = partial(open, mode="x+", encoding="utf-8", newline="\n")
    try:
        os.mkdir(private, 0o700)
        with create(names[0]) as raw, create(names[1]) as in_order, create(names[2]) as invoice:
            write_lines(bill, raw, in_order, invoice)
            for file in (raw, in_order, invoice):
                file.flush()
                os.fsync(file.fileno())
        if not bill.settings.invoice:  # it was begun in any case
            del names[2]
        handle_signals(ignore_signal)  # from here on, they change neither files nor status
        return publish(names, directory, now)
    except OSError as error:
        raise Failure(f"cannot write to {directory}: {error.strerror}: no file written") from None
    finally:
        shutil.rmtree(private, ignore_errors=True)


def publish(files: Sequence[Path], directory: Path, now: datetime) -> list[Path]:
    """Give files their names, of the first second from now on that is free for all of them."""
    while True:
        paths: list[Path] = []
        try:
            for file in files:
                path = directory / f"{file.name}-{now:%m%d%Y-%H%M%S}.csv"
                try:
                    os.link(file, path)
                except OSError:  # it exists, or there are no hard links here: claim it
                    path.touch(exist_ok=False)
                paths.append(path)
            for file, path in zip(files, paths):
                os.replace(file, path)  # changes nothing for two links to one file
            return paths
        except OSError as error:
            for path in paths:
                path.unlink()
            if not isinstance(error, FileExistsError):
                raise
        now += timedelta(seconds=1)


# Summary


def describe_lines(name: str, lines: Sequence[Line], width: int) -> str:
    """Return a row of the summary; no amount where nothing has a price."""
    instances = {line.instance_id for line in lines if line.charge == USAGE}
    hours = add_hours(line for line in lines if line.dimension == INSTANCE)
    amount = add_amounts(lines)
    shown = "" if amount is None else f"{amount:,f}"
    return f"{name:{width}} {len(instances):9} {hours:14,f} {shown:>18}".rstrip()


def make_table(bill: Bill, heading: str, group: Callable[[Line], tuple[str, str]]) -> list[str]:
    """Return a table with a row for each group of lines, and their total; two may look alike."""
    groups = group_lines(bill.lines, group)
    width = max(len(name) for name in [heading, *(name for _, name in groups)])
    amount = f"Amount ({bill.settings.currency})"
    rows = [f"{heading:{width}} Instances {'Hours':>14} {amount:>18}"]
    for (_, name), lines in groups.items():
        rows.append(describe_lines(name, lines, width))
    rows.append(describe_lines("Total", bill.lines, width))
    return rows


def group_profile(line: Line) -> tuple[str, str]:
    """Return the group of lines of a profile, or of a fee or minimum."""
    name = line.profile if line.charge == USAGE else f"{line.profile} ({line.charge})"
    return line.charge, name


def describe_period(settings: Settings) -> str:
    """Return the period that is billed, as people read it."""
    start = format_time(settings.period.start, settings.timezone)
    end = format_time(settings.period.end, settings.timezone)
    return f"{start} to {end} (end excluded)"


def summarize(bill: Bill) -> list[str]:
    """Return the summary: what is billed, and what an auditor asks for."""
    settings, price_file = bill.settings, bill.book.file
    lines = [f"Period: {describe_period(settings)}", ""]
    lines += make_table(bill, "Organization", group_organization)
    lines.append("")
    lines += make_table(bill, "Profile", group_profile)
    prices = f"{price_file.path}, prices: {len(price_file.prices)}"
    lines += [
        "",
        bill.reconciled,
        f"Time zone: {settings.timezone}, version: {VERSION}",
        f"Price book: {prices}, SHA-256: {price_file.sha256}",
    ]
    return lines


# Run


def stop(number: int, _frame: object) -> None:
    """End the run because of a signal; further ones do not disturb the end."""
    handle_signals(ignore_signal)
    raise Stopped(signal.Signals(number))


def ignore_signal(_number: int, _frame: object) -> None:
    """Do nothing. SIG_IGN would not do: a signal may have arrived, but not been handled."""


def handle_signals(handler: Any) -> None:
    """Set the handler of signals, except of those ignored from the start, as by nohup."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def read_bill(settings: Settings, price_file: PriceFile, client: Client) -> Bill:
    """Read what is to be billed, and return the bill; raises Failure."""
    period = settings.period
    [listed] = read_lists(client, [Listing(WHOLE_PARTNER, "", period)]).values()
    if not listed:
        raise Failure("no organizations are listed: is PARTNER_API_KEY the right key?")
    book = PriceBook(price_file, period, listed)  # finds ambiguous names before the long reading
    organizations = choose_organizations(settings.org, listed)
    usage = read_lists(client, list_usage(organizations, period))
    unlisted: list[Organization] = []
    if settings.org:
        reconciled = "Partial bill, not reconciled"
    elif not settings.reconcile:
        reconciled = "Not reconciled"
    else:
        for whole in list_usage([WHOLE_PARTNER], period):
            reconcile(client, usage, whole)
        unlisted = sorted({listing.organization for listing in usage} - set(organizations))
        organizations = organizations + unlisted
        book = PriceBook(price_file, period, organizations)
        records = sum(len(records) for records in usage.values())
        reconciled = f"Reconciled with the partner-wide usage: {records} records"
    split_usage(client, usage, book)
    bill = Bill(settings, book, organizations, reconciled, [], [], [], [], [])  # filled below
    if not settings.org:
        bill.unbilled.extend(book.unknown)
    for organization in unlisted:
        bill.doubts.append(f"{organization} is not listed but has usage: it is billed")
    if settings.provisional:
        bill.doubts.append("the bill is provisional: usage of this month may still arrive")
    for organization in organizations:
        bill_organization(bill, organization, usage)
    return bill


def run(
    argv: Sequence[str] | None, environ: Mapping[str, str], now: datetime, screen: Screen
) -> int:
    """Make a bill; return the exit status; raises Failure."""
    settings = read_settings(argv, environ, now, screen)
    screen.quiet = settings.quiet
    price_file = read_price_file(settings)
    priced_names = {price.dimension for price in price_file.prices} - {INSTANCE}
    client = Client(settings, priced_names, screen)
    with client.pool:  # no thread begins another request after it
        bill = read_bill(settings, price_file, client)
    check_usage(bill)
    check_prices(bill)
    warnings = bill.doubts + bill.unbilled
    screen.report("warning", warnings)
    summary = summarize(bill)
    paths = [] if settings.check else write_files(bill, now)
    summary += [f"File: {path}" for path in paths]
    summary += [f"Nobody used: {price}" for price in bill.unused if settings.check]
    status = 3 if bill.unbilled else 0
    summary.append(f"Warnings: {len(warnings)}, status: {status}")
    if warnings:  # a mail with nothing but this line is understood
        files = ", ".join(map(str, paths)) or "none"
        about = f"{len(warnings)}, status: {status}, period: {describe_period(settings)}"
        screen.report("warnings", [f"{about}, files: {files}"])
    screen.say(summary)
    return status


def main(
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> int:
    """Run the command; return its exit status, or raise SystemExit as argparse does."""
    screen = Screen(environ)
    try:
        try:
            handle_signals(stop)
            gc.set_threshold(100_000)  # records hold no cycles: seldom look for them
            with decimal.localcontext(EXACT):  # of this thread, which does all sums of money
                status = run(argv, environ, clock().astimezone(UTC), screen)
        except Failure as failure:
            errors = [screen.beginning(text, MAX_MESSAGE) for text in failure.args]
            screen.report("error", errors)
            status = failure.status
        handle_signals(ignore_signal)
        return status
    except Stopped as stopped:
        [number] = stopped.args
        screen.report("error", [f"stopped by {number.name}: no file was written"])
        return int(128 + number)
    finally:
        for number in SIGNALS:  # Python's end would restore the default actions
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    raise SystemExit(main())
