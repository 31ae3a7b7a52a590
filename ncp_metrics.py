#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["requests>=2.25.1", "python-dateutil>=2.8.1"]
# ///
"""Bill the usage metered by a Rafay partner, and fees, as two CSV files.

settings and their defaults, by environment or flag (which wins):
{settings}
  --from, --to               ISO 8601 dates or times, end excluded
  --no-reconcile             same as RECONCILE=0
  --org NAME_OR_ID           bill this organization only; repeatable
  --check                    report how the API answers and what needs a price
  -q, --quiet                print warnings and errors only
  -h, --help; --version      print this help; the version

exit status:
  0              both files written, everything priced
  1              failed (network, API, disk): no file written
  2              settings, flags or price book wrong: no file written
  3              both files written, but something may be unbilled: see stderr
  129, 130, 143  stopped by SIGHUP, SIGINT, SIGTERM: no file written
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
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import requests
import urllib3
from dateutil import tz
from dateutil.parser import isoparse

# Constants and errors

VERSION = "ncp_metrics 2.0.0"
KINDS = ("compute", "service")
INSTANCE = "instance"  # the dimension that every instance has: its own hours
PAGE_SIZE = 400  # rows; what Rafay's own API collection asks for
CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0  # READ: of silence; a documented call took 2.7 s
ATTEMPTS, BACKOFF_SECONDS = 6, 0.5  # before the second attempt, then doubled each time
RETRY_AFTER_SECONDS, SILENCE_SECONDS = 30.0, 900.0  # the longest that is obeyed; without an answer
STEP_SECONDS = 0.5  # the longest wait in one go: a signal just before it is handled after it
MAX_PAGES, MAX_ANSWER_BYTES = 10_000, 64 * 2**20  # of a list; of a page
MAX_INSTANCE_HOURS, MAX_QUANTITY_HOURS = Decimal(10**6), Decimal(10**21)  # more is a defect
MAX_HINTS, MAX_QUOTE = 5, 300  # nearest names, slow to find; characters of a server's text
# Of ISO 4217, with the digits of their minor unit where these are not 2.
CURRENCIES = """
AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD3 BIF0 BMD BND BOB BOV BRL BSD BTN BWP BYN BZD
CAD CDF CHE CHF CHW CLF4 CLP0 CNY COP COU CRC CUP CVE CZK DJF0 DKK DOP DZD EGP ERN ETB EUR FJD FKP
GBP GEL GHS GIP GMD GNF0 GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD3 IRR ISK0 JMD JOD3 JPY0 KES KGS KHR
KMF0 KPW KRW0 KWD3 KYD KZT LAK LBP LKR LRD LSL LYD3 MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN
MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR3 PAB PEN PGK PHP PKR PLN PYG0 QAR RON RSD RUB RWF0 SAR SBD
SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND3 TOP TRY TTD TWD TZS UAH UGX0
USD USN UYI0 UYU UYW4 UZS VED VES VND0 VUV0 WST XAD XAF0 XCD XCG XOF0 XPF0 YER ZAR ZMW ZWG"""
MINOR_UNITS = {c[:3]: Decimal(1).scaleb(-int(c[3:] or 2)) for c in CURRENCIES.split()}
EXACT = decimal.Context(prec=1_000_000, rounding=decimal.ROUND_HALF_UP)  # for sums and products
NO_HOURS, ROUNDING = Decimal("0.00"), Decimal("0.01")  # ROUNDING: of the usage of a record
LABEL = re.compile(r"[0-9]{1,21}(\.[0-9]+)?")
HOURS = re.compile(r"-?[0-9]+(\.[0-9]+)?h")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # or not a character
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
PORT = r"(:([1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5]))?"
LOOPBACK = re.compile(rf"https?://(localhost|127(\.\d{{1,3}}){{3}}|\[::1\]){PORT}", re.I)


class Failure(Exception):
    """The run ends with this exit status; each other argument is one line on stderr."""

    def __init__(self, *problems: str, status: int = 1) -> None:
        super().__init__(*problems)
        self.status = status


class Transient(Exception):
    """What failed may succeed when it is tried again."""

    retry_after = 0.0  # seconds, if more than 0


class Stopped(BaseException):
    """The signal that is the argument ends the run."""


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
    period: Period  # up to now at most
    month: Period | None  # all of the calendar month that is billed, also if it is not over


def read_url(text: str) -> str:
    """Return a console's URL without a trailing slash."""
    url = text.lower().removesuffix("/")
    return url if "://" in url else f"https://{url}"


def read_zone(text: str) -> tzinfo:
    """Return the zone of an IANA name; UTC needs no zone files."""
    return timezone.utc if text == "UTC" else zoneinfo.ZoneInfo(text)


def read_folder(text: str) -> str:
    """Return the absolute path of a directory that files can be written to; or raise OSError."""
    path = os.path.abspath(text)
    if not os.path.isdir(path) or not os.access(path, os.W_OK | os.X_OK):
        raise OSError
    return path


PRICING = str(Path(__file__).with_name("pricing.csv"))
# http:// is for loopback only: an API key never crosses a network in clear.
URL = rf"(?i:(https://)?([\w-]+(\.[\w-]+)*|\[[\da-f:.]+\]){PORT}|{LOOPBACK.pattern})/?"
DAYS = "[1-9][0-9]{0,2}|[12][0-9]{3}|3[0-5][0-9]{2}|36[0-4][0-9]|3650"
# Variable, flag, default (None: required), pattern, reader, meaning. Values may be keys: show none.
SETTINGS: tuple[tuple[str, str, str | None, str, Callable[[str], object], str], ...] = (
    ("RAFAY_CONSOLE_URL", "", None, URL, read_url, "console host:port or https://host (required)"),
    ("RAFAY_DEFAULT_API_KEY", "", None, "[!-~]+", str, "the API key that reads usage (required)"),
    ("PARTNER_API_KEY", "", None, "[!-~]+", str, "the key that lists organizations (required)"),
    ("RAFAY_OPS_CONSOLE_URL", "", "", URL, read_url, "Ops Console, https:// (RAFAY_CONSOLE_URL)"),
    ("BILLING_MONTH", "--month", "", r"last|2\d{3}-(0[1-9]|1[0-2])", str, "2026-06 or last (none)"),
    ("DAYS", "--days", "30", DAYS, int, "the last so many days, 1 to 3650 (30)"),
    ("TIMEZONE", "--timezone", "UTC", "[A-Z].*", read_zone, "IANA zone where months begin (UTC)"),
    ("CURRENCY", "--currency", "USD", "|".join(MINOR_UNITS), str, "ISO 4217 code of amounts (USD)"),
    ("PRICING_FILE", "--pricing", PRICING, "", os.path.abspath, "price book (beside the script)"),
    ("OUTPUT_DIR", "--output-dir", ".", "", read_folder, "writable directory (working directory)"),
    ("WORKERS", "", "8", "[1-9]|[12][0-9]|3[0-2]", int, "requests in flight, 1 to 32 (8)"),
    ("RECONCILE", "", "1", "[01]", int, "compare with partner-wide usage: 1 or 0 (1)"),
)


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags, with what is wrong with them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.set_defaults(problems=[])
    rows = []
    for variable, flag, *_, meaning in SETTINGS:
        rows.append(f"  {', '.join(filter(None, (variable, flag))):25}  {meaning}")
        if flag:
            parser.add_argument(flag, dest=variable, type=str.strip)
    parser.add_argument("--no-reconcile", dest="RECONCILE", action="store_const", const="0")
    parser.add_argument("--from", dest="start", type=str.strip)
    parser.add_argument("--to", dest="end", type=str.strip)
    parser.add_argument("--org", action="append", default=[], type=str.strip)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("-q", "--quiet", action="store_true")
    help_text = (__doc__ or "").replace("{settings}", "\n".join(rows))
    parser.add_argument("-h", "--help", dest="text", action="store_const", const=help_text)
    parser.add_argument("--version", dest="text", action="store_const", const=VERSION)
    try:
        flags, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:  # its message, and values below, may be API keys
        flags, unknown = parser.parse_args([]), str(error.argument_name).split("/")
    if unknown:
        names = re.findall("^--[a-z-]{1,20}(?==|$)", "\n".join(unknown), re.MULTILINE)
        flags.problems.append(f"{' '.join(names) or '(hidden)'}: unknown, or misused: see --help")
    return flags


def read_settings(flags: argparse.Namespace, environ: Mapping[str, str], now: datetime) -> Settings:
    """Return the settings, None for each that is wrong; add to the problems of the flags."""
    values: dict[str, Any] = {**dict.fromkeys(Settings._fields), "timezone": timezone.utc}
    for variable, flag, default, pattern, read, meaning in SETTINGS:
        by_flag = getattr(flags, variable, None)
        text = by_flag or environ.get(variable, "").strip() or default
        try:
            if text is None or (text and pattern and not re.fullmatch(pattern, text, re.A)):
                raise ValueError
            values[variable.lower()] = text and read(text)
        except (KeyError, ValueError, OSError):  # no such zone; the working directory is gone
            wrong = f"not {'valid' if text else 'set'}: expected {meaning.rpartition(' (')[0]}"
            flags.problems.append(f"{flag if by_flag else variable}: {wrong}")
    told = values.pop("billing_month", None), values.pop("days", None), values["timezone"]
    try:
        values["period"], values["month"] = choose_period(flags, *told, now.replace(microsecond=0))
    except (ValueError, OverflowError) as error:
        flags.problems.append(str(error))
    return Settings(**values)._replace(organizations=flags.org)


# Period


class Period(NamedTuple):
    """What is billed, or a part of it: aware UTC moments, start included, end excluded."""

    start: datetime
    end: datetime


def choose_period(
    flags: argparse.Namespace, month: str | None, days: int | None, zone: tzinfo, now: datetime
) -> tuple[Period, Period | None]:
    """Return the period up to now at most, and all of it if it is a month; raises ValueError."""
    from_to = flags.start is not None or flags.end is not None  # a blank one bills no 30 days
    if bool(flags.BILLING_MONTH) + bool(flags.DAYS) + from_to > 1:
        raise ValueError("--month, --days and --from/--to exclude each other: give one period")
    if not from_to and (flags.DAYS or not month):
        return Period(now - timedelta(days=days or 1), now), None
    if from_to:
        texts = ("--from", flags.start or ""), ("--to", flags.end or "")
        period = Period(*(parse_moment(name, text, zone) for name, text in texts))
    elif month == "last":
        period = calendar_month(calendar_month(now, zone).start - timedelta(days=1), zone)
    else:
        period = calendar_month(parse_moment("--month", f"{month}-01", zone), zone)
    if period.start >= min(period.end, now) or (from_to and period.end > now):
        start, end, at = map(format_moment, (*period, now))
        raise ValueError(f"--month/--from/--to: {start} to {end} is empty or ends after now, {at}")
    whole = period if period == calendar_month(period.start, zone) else None
    return period._replace(end=min(period.end, now)), whole


def calendar_month(moment: datetime, zone: tzinfo) -> Period:
    """Return the calendar month of a moment in a zone."""
    first = moment.astimezone(zone).date().replace(day=1)
    days = first, (first + timedelta(days=32)).replace(day=1)
    return Period(*(parse_moment("month", f"{day}", zone) for day in days))


@lru_cache(maxsize=1000)
def parse_moment(name: str, text: str, zone: tzinfo) -> datetime:
    """Return an ISO 8601 date or time, in the zone unless it has an offset; raises ValueError."""
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)?)?", text, re.A):
            raise ValueError
        local = isoparse(text)
        local = local.replace(tzinfo=local.tzinfo or zone)
        if "T" not in text:  # where clocks go forward at midnight, the day begins an hour later
            local = tz.resolve_imaginary(local)
        elif tz.datetime_ambiguous(local) or not tz.datetime_exists(local):  # the clocks change
            raise ValueError
        return local.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise ValueError(f"{name} {text!r} is no date, nor like 2026-06-01T00:00+02:00") from None


@lru_cache(maxsize=1000)
def format_moment(moment: datetime) -> str:
    """Return an aware UTC time as `2026-06-01T00:00:00Z`."""
    return moment.replace(tzinfo=None, microsecond=0).isoformat() + "Z"


# Price book

Thing = tuple[str, str]  # what has a price: a profile, and a dimension of it
USAGE, FEE, MINIMUM = "usage", "fee", "minimum"  # charges
RATES = {"hourly_rate": USAGE, "monthly_rate": FEE, "monthly_minimum": MINIMUM}
ALL = "*"  # the profile of a minimum for all profiles
VALIDITY = {"effective_from": "1900-01-01", "effective_to": "9000-01-01"}
TEXT_COLUMNS = ("profile", *RATES, "organization", "profile_type", "currency", "description")
IF_BLANK = {**dict.fromkeys(TEXT_COLUMNS, ""), "dimension": INSTANCE, **VALIDITY}  # all columns


class Price(NamedTuple):
    """A line of the price book; a blank organization or profile type means every one."""

    line: int
    profile: str
    dimension: str
    organization: str  # a name or an id; once resolved, an id
    profile_type: str
    validity: Period
    charge: str
    rate: Decimal  # currency units for an hour, or for a month


class PriceBook:
    """Prices, found by charge and organization (blank: everyone), then by what has the price."""

    def __init__(self, settings: Settings, sha256: str) -> None:
        self.settings, self.sha256 = settings, sha256
        self.path, self.period = settings.pricing_file, settings.period
        self.columns: list[str] = []
        self.prices: list[Price] = []
        self.index: dict[tuple[str, str], dict[Thing, Any]] = defaultdict(lambda: defaultdict(dict))
        self.parameters: dict[str, set[str]] = defaultdict(set)  # by profile
        self.unknown: list[str] = []  # what is said of prices of unknown organizations
        self.ranked = lru_cache(maxsize=None)(self._ranked)
        self.changes = lru_cache(maxsize=None)(self._changes)

    def add(self, price: Price) -> None:
        """Add a price; raises ValueError if the same thing has one from the same moment."""
        same = self.index[price.charge, price.organization][price.profile, price.dimension]
        first = same.setdefault((price.profile_type, price.validity.start), price)
        if first is not price:
            raise ValueError(f"line {first.line} already has this price")
        self.prices.append(price)
        self.parameters[price.profile].update({price.dimension} - {INSTANCE})

    def _ranked(self, owner: str, kind: str, thing: Thing) -> list[Price]:
        """Return the prices of a thing, of which the first in force wins: the own come first."""
        own, everyones = (self.index.get((USAGE, id_), {}).get(thing, {}) for id_ in (owner, ""))
        ranked = [*sorted(own.items(), reverse=True), *sorted(everyones.items(), reverse=True)]
        return [price for (for_kind, _), price in ranked if for_kind in ("", kind)]

    def find(self, owner: str, kind: str, thing: Thing, at: datetime) -> Price | None:
        """Return the price in force at a moment of the period, None if there is none."""
        prices = self.ranked(owner, kind, thing)
        return next((p for p in prices if p.validity.start <= at < p.validity.end), None)

    def priced(self, owner: str, kind: str, profile: str) -> list[str]:
        """Return the parameters of a profile with a price, which `resolve` keeps if in force."""
        names = self.parameters.get(profile, ())
        return [name for name in names if self.ranked(owner, kind, (profile, name))]

    def parts(self, owner: str) -> list[Period]:
        """Return the parts of the period in which what an organization pays does not change."""
        edges = set().union(*{**self.changes(""), **self.changes(owner)}.values())
        moments = [self.period.start, *sorted(edges), self.period.end]
        return [*map(Period, moments, moments[1:])]

    def _changes(self, owner: str) -> dict[Thing, set[datetime]]:
        """Return when prices of an owner (blank: everyone's that do) change in the period."""
        changes, (start, end) = {}, self.period
        for thing in self.index.get((USAGE, owner), ()):
            prices = [price for kind in KINDS for price in self.ranked(owner, kind, thing)]
            moments = {start, *itertools.chain.from_iterable(p.validity for p in prices)}
            inside = sorted(moment for moment in moments if start <= moment < end)
            found = [[self.find(owner, kind, thing, each) for kind in KINDS] for each in inside]
            later = zip(inside[1:], found, found[1:])
            changes[thing] = {moment for moment, before, after in later if before != after}
        return {thing: moments for thing, moments in changes.items() if moments or owner}


def read_price_book(settings: Settings, problems: list[str]) -> PriceBook:
    """Return the price book; add to the problems all that is wrong with it, by file and line."""
    path, columns = str(settings.pricing_file), list[str]()
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise Failure(*problems, f"{path}: {error.strerror}", status=2) from None
    book = PriceBook(settings, hashlib.sha256(content).hexdigest())
    # Line by line: no cell may hold a line break, and a stray quote must not swallow prices.
    lines = re.split(r"\r\n|\n|\r", content.decode("utf-8-sig", "surrogateescape"))
    for number, line in enumerate(lines, start=1):
        if line.startswith("#") or not line.replace(",", "").strip():
            continue  # a spreadsheet's blank line is ",,"
        try:
            if CONTROL.search(line):
                raise ValueError("a control character, or not UTF-8: save it as CSV UTF-8")
            cells = [cell.strip() for cell in next(csv.reader([line], strict=True))]
            if columns:
                book.add(parse_price(number, columns, cells, settings))
            elif wrong := [c for c in cells if c not in IF_BLANK or cells.count(c) > 1]:
                raise ValueError(f"unknown or repeated columns {wrong}: use {', '.join(IF_BLANK)}")
            else:
                book.columns = columns = cells
        except (csv.Error, ValueError, OverflowError) as error:
            problems.append(f"{path}: line {number}: {error}")
            if not columns:
                return book
    if not columns:
        problems.append(f"{path}: needs a header, such as profile,hourly_rate")
    return book


def parse_price(line: int, columns: list[str], row: list[str], settings: Settings) -> Price:
    """Return the price in a line; raises ValueError."""
    if len(row) != len(columns):
        raise ValueError(f"{len(row)} cells, but the header has {len(columns)}")
    cells = {**IF_BLANK, **{column: cell for column, cell in zip(columns, row) if cell}}
    rates = [column for column in RATES if cells[column]]
    if len(rates) != 1:
        raise ValueError(f"{len(rates)} rates: give one of {', '.join(RATES)}")
    [rate], currency, zone = rates, settings.currency, settings.timezone
    charge, hourly = RATES[rate], rate == "hourly_rate"
    for column, pattern, meaning in (
        ("profile", ".+" if charge == MINIMUM else rf"(?!\{ALL}$).+", "a name (* is for minimums)"),
        (rate, r"[0-9]+(\.[0-9]+)?", "a plain decimal, such as 2.50"),
        ("organization", ".*" if hourly else ".+", f"a name or id, needed for a {rate}"),
        ("dimension", ".*" if hourly else INSTANCE, f"blank, as needed for a {rate}"),
        ("profile_type", "(compute|service)?" if hourly else "", f"possible with a {rate}"),
        ("currency", f"({currency or '.*'})?", f"CURRENCY, {currency}"),
    ):
        if not re.fullmatch(pattern, cells[column]):
            raise ValueError(f"{column} {cells[column]!r} is not {meaning}")
    validity = Period(*(parse_moment(each, cells[each], zone) for each in VALIDITY))
    if validity.start >= validity.end:
        raise ValueError("effective_to must be later than effective_from")
    for name, moment in zip(VALIDITY, validity):
        if not hourly and moment != calendar_month(moment, zone).start:
            raise ValueError(f"{name} {cells[name]!r} is not the first moment of a month in {zone}")
    unit = f"{MINOR_UNITS.get(currency, cells[rate])}"
    if not hourly and len(cells[rate].partition(".")[2]) > len(unit.partition(".")[2]):
        raise ValueError(f"{rate} {cells[rate]!r} has more decimals than {currency}")
    names = cells["profile"], cells["dimension"], cells["organization"], cells["profile_type"]
    return Price(line, *names, validity, charge, Decimal(cells[rate]))


# Organizations


class Organization(NamedTuple):
    """A tenant, as listed."""

    id: str
    name: str
    external_id: str

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"


def find_owners(texts: Iterable[str], listed: Iterable[Organization]) -> dict[str, list[str]]:
    """Return, for each text, the ids of the organization with that id, else of those so named."""
    # The id comes first: no tenant gets the price of another by taking its id for a name.
    ids = {each.id for each in listed}
    by_name = defaultdict(list)
    for each in listed:
        by_name[each.name.casefold()].append(each.id)
    return {text: [text] if text in ids else by_name[text.casefold()] for text in texts}


def describe_owner(text: str, ids: Sequence[str], listed: Iterable[Organization]) -> str:
    """Return why a text is not the name or id of one organization, and the nearest name."""
    if ids:
        return f"organization {text!r} is ambiguous: give the id: {', '.join(ids)}"
    names = {each.name.casefold(): each.name for each in listed}
    near = difflib.get_close_matches(text.casefold(), names, n=1, cutoff=0.8)
    hint = "".join(f"; did you mean {names[name]}?" for name in near)
    return f"organization {text!r} is not listed{hint}"


def resolve(book: PriceBook, listed: Sequence[Organization]) -> PriceBook:
    """Return the book with ids in place of names; raises Failure."""
    resolved, problems = PriceBook(book.settings, book.sha256), []
    found = find_owners([price.organization for price in book.prices], listed)
    for price in book.prices:
        text, where = price.organization, f"{book.path}: line {price.line}"
        if price.validity.start >= book.period.end or price.validity.end <= book.period.start:
            continue
        try:
            if not text or len(found[text]) == 1:
                resolved.add(price._replace(organization=found[text][0] if text else ""))
            elif found[text]:
                raise ValueError(describe_owner(text, found[text], listed))
            else:
                hints = listed if len(resolved.unknown) < MAX_HINTS else ()
                resolved.unknown.append(f"{where}: {describe_owner(text, [], hints)}")
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if problems:
        raise Failure(*problems, status=2)
    return resolved


def choose(wanted: Sequence[str], listed: Sequence[Organization]) -> list[Organization]:
    """Return the organizations that --org names, or else all, as listed; raises Failure."""
    found = find_owners(wanted, listed)
    wrong = [describe_owner(text, ids, listed) for text, ids in found.items() if len(ids) != 1]
    if wrong:
        raise Failure(*(f"--org: {each}" for each in wrong), status=2)
    return [each for each in listed if [each.id] in found.values() or not wanted]


# Answers

Priced = Callable[[str, str, str], Collection[str]]  # parameters, by organization, kind, profile
# What makes records of two lists the same; those of one list also have the same times.
subject_of = attrgetter("organization.id", "project", "profile", "ids", "instance_id")
identity_of = attrgetter("organization.id", "project", "profile", "ids", "instance_id", "times")
RECORD_TEXTS = """instance_organization_id profile_name instance_id instance_organization_name
instance_project_name instance_project_id profile_id instance_name status created_at deleted_at
start_time end_time""".split()


class Record(NamedTuple):
    """The metered usage of an instance in a period; the defaults are for lines of no usage."""

    organization: Organization
    kind: str
    period: Period
    profile: str
    project: str = ""
    ids: str = ""  # of project and profile
    instance: str = ""
    instance_id: str = ""
    times: str = ""  # start and end, as answered
    status: str = ""
    created_at: str = ""
    parameters: str = ""
    hours: Decimal = NO_HOURS
    quantities: tuple[tuple[str, Decimal], ...] = ()  # x hours, of each parameter with a price


class Listing(NamedTuple):
    """A page of a list of the API: of organizations, or of the usage of one organization or all."""

    kind: str  # blank for organizations
    period: Period
    organization: Organization | None = None
    offset: int = 0
    limit: int = PAGE_SIZE

    def __str__(self) -> str:
        usage = f"{self.kind} usage of {self.organization or 'the whole partner'}"
        return usage if self.kind else "organizations"


class Page(NamedTuple):
    """The rows of an answer, its `count` (0: unknown), its limit, and whether `next` is null."""

    rows: list[Any]
    counted: int
    limit: int
    last: bool


def parse_page(listing: Listing, answer: Any, priced: Priced) -> Page:
    """Check a decoded answer; raises Failure."""
    [answer] = objects([answer], "the answer")
    kind, count = listing.kind, answer.get("count")
    limit = answer.get("limit") if kind else None
    parsed, field = list[Any](), "instance_usage_data" if kind else "results"
    rows = objects(answer.get(field) if kind else answer.get(field) or answer.get("items"), field)
    known = answer.get("kind") and answer.get("range_from") if kind else listing.offset
    if not rows and not known:
        raise Failure(f"no {field}, kind or range_from: is it another API, or the wrong key?")
    asked = (kind, *map(format_moment, listing.period)) if kind else ()
    for name, expected in zip(("kind", "range_from", "range_to"), asked):
        said = answer.get(name) or expected
        if said != expected and (name == "kind" or parse_time(str(said)) != expected):
            raise Failure(f"{name} is {said!r}, asked was {expected}")
    if any(type(n) is not int or n < 0 for n in (count, limit) if n is not None):
        raise Failure(f"count {count!r} or limit {limit!r} is not a number of rows")
    for row in rows:
        try:
            texts = [] if kind else texts_of(row, Organization._fields, required=2)
            parsed.append(parse_record(row, listing, priced) if kind else Organization(*texts))
        except Failure as error:
            keys = ("name", "id", "instance_name", "instance_id")
            raise Failure(f"{[row[key] for key in keys if row.get(key)]}: {error}") from None
    last = not kind and answer.get("next", "") is None
    return Page(parsed, count or 0, min(limit or PAGE_SIZE, PAGE_SIZE), last)


def objects(rows: Any, what: str) -> list[dict[str, Any]]:
    """Return a list of JSON objects, empty for null; raises Failure if it is anything else."""
    if rows is not None and (type(rows) is not list or not set(map(type, rows)) <= {dict}):
        raise Failure(f"{what}: not as documented (JSON objects)")
    return rows or []  # some Go encoders write an empty list as null


def texts_of(row: dict[str, Any], names: Sequence[str], required: int = 0) -> list[str]:
    """Return text fields, trimmed, of which the first ones are required; raises Failure."""
    try:
        texts = ["" if text is None else text.strip() for text in map(row.get, names)]
    except AttributeError:
        wrong = {n: row[n] for n in names if type(row.get(n)) not in (str, type(None))}
        raise Failure(f"is not text: {wrong}") from None
    if "" in texts[:required]:
        raise Failure(f"{names[texts.index('')]} is missing")
    return texts


def parse_record(row: dict[str, Any], listing: Listing, priced: Priced) -> Record:
    """Return a usage record, whose common texts are shared with others; raises Failure."""
    texts = texts_of(row, RECORD_TEXTS, required=3)
    owner_id, profile, instance_id, owner_name, project, project_id, profile_id, *rest = texts
    instance, status, created_at, deleted_at, start, end = rest
    owner = listing.organization or Organization(sys.intern(owner_id), owner_name or owner_id, "")
    if owner_id != owner.id:
        raise Failure(f"is of organization {owner_id}: the API ignored the organization filter")
    names = priced(owner_id, listing.kind, profile)
    parameters, quantities = parse_parameters(row.get("parameters"), names)
    deleted = "deleted" if deleted_at and not deleted_at.startswith("0001-") else ""  # unset in Go
    return Record(
        *(owner, listing.kind, listing.period),
        *(sys.intern(profile), sys.intern(project), sys.intern(f"{project_id}/{profile_id}")),
        *(instance, instance_id, sys.intern(f"{start}/{end}"), sys.intern(status or deleted)),
        *(created_at and parse_time(created_at), parameters),
        *(metered_hours(row, MAX_INSTANCE_HOURS), tuple(quantities.items())),
    )


@lru_cache(maxsize=10_000)
def parse_time(text: str) -> str:
    """Return an ISO 8601 time, UTC unless it has an offset, as `2026-06-01T00:00:00Z`."""
    try:
        documented = len(text) == 20 and text[-1] == "Z"  # isoparse is ten times slower
        moment = datetime.fromisoformat(text[:-1]) if documented else isoparse(text)
        return format_moment(moment.astimezone(timezone.utc) if moment.tzinfo else moment)
    except (ValueError, OverflowError):
        raise Failure(f"{text!r} is not an ISO 8601 time") from None


def parse_parameters(rows: Any, priced: Collection[str]) -> tuple[str, dict[str, Decimal]]:
    """Return `GPU=1; storage_size=1200.00h`, and the quantities to bill; raises Failure."""
    texts, quantities = [], {}
    for parameter in objects(rows, "parameters"):
        name, label = texts_of(parameter, ("name", "label_value"), required=1)
        is_label, has_price = parameter.get("is_label"), name in priced
        if is_label is not None and type(is_label) is not bool:  # some leave false out
            raise Failure(f"{name}: is_label is {is_label!r}")
        if has_price or not is_label:
            usage = metered_hours(parameter, MAX_QUANTITY_HOURS)
        if has_price and (name in quantities or (is_label and not LABEL.fullmatch(label))):
            raise Failure(f"{name}: listed twice, or its label {label!r} is not a plain decimal")
        if has_price:  # a label's quantity is its value, its usage the instance's hours
            quantities[name] = EXACT.multiply(Decimal(label), usage) if is_label else usage
        texts.append(f"{name}={label}" if is_label else f"{name}={usage:f}h")
    return "; ".join(texts), quantities


def metered_hours(row: dict[str, Any], most: Decimal) -> Decimal:
    """Return `usage`, hours with two decimals, else `raw_usage` rounded half up; raises Failure."""
    usage, raw_usage = row.get("usage"), row.get("raw_usage")
    usage = "" if usage is None else str(usage).strip()
    valid = HOURS.fullmatch(usage) if usage else raw_usage is not None
    if not valid or (raw_usage is not None and type(raw_usage) not in (int, Decimal)):
        said = f"{row.get('name', '')} usage {usage!r} with raw_usage {raw_usage!r}"
        raise Failure(f"{said} is missing, or is not hours, such as 20.59h")
    hours = Decimal(usage[:-1] or raw_usage or 0)
    if not 0 <= hours <= most:
        raise Failure(f"{row.get('name', '')} has negative or absurd hours: {usage or raw_usage}")
    # Adding 0.00 gives two decimals at least, and takes the sign off a zero.
    return EXACT.add(hours if usage else EXACT.quantize(hours, NO_HOURS), NO_HOURS)


# Client


class Session(requests.Session):
    """Follows redirects on the same scheme, host and port only, and sends none of their cookies."""

    def rebuild_auth(self, prepared_request: Any, response: Any) -> None:
        """Raise if a redirect would take the API key elsewhere; called before each is followed."""
        prepared_request.headers.pop("Cookie", None)
        # As urllib3, which connects, reads the URLs: other parsers read some differently.
        if not urllib3.connection_from_url(response.url).is_same_host(prepared_request.url):
            raise requests.TooManyRedirects


class Client:
    """The one place that makes requests, in WORKERS daemon threads with a session each."""

    def __init__(self, settings: Settings, screen: Screen) -> None:
        self.settings, self.screen = settings, screen
        self.priced: Priced = lambda *_: ()  # until the price book is resolved
        self.count_is_total = False  # whether usage's `count` is of all pages: see read_first
        self.retrying = ""  # what is tried again, and why
        self.answers: Any = None  # by listing, as they came: kept for `check` only
        self.slowest = 0.0  # seconds that an answer took
        self.statuses = {0}  # of what was attempted
        self.sessions: dict[int, Session] = defaultdict(Session)  # by thread
        try:
            self.pool = multiprocessing.pool.ThreadPool(settings.workers)
        except (RuntimeError, AttributeError, OSError):  # the pool may fail to clean up, too
            raise Failure("cannot start so many threads: lower WORKERS") from None
        self.close = self.pool.terminate  # lets no thread begin another page

    def get(self, asks: Sequence[Listing], answers: Any = None) -> list[Page]:
        """Return pages in the order asked for, now or before; raises the first Failure."""
        pages: list[Page] = []
        answers, answered_at = answers or self.pool.imap(self.get_page, asks), time.monotonic()
        while len(pages) < len(asks):
            if time.monotonic() - answered_at > SILENCE_SECONDS:
                raise Failure(f"no answer to any request for {SILENCE_SECONDS:g} s: try later")
            self.screen.progress(f"{len(pages)}/{len(asks)}: {self.retrying or asks[len(pages)]}")
            with suppress(multiprocessing.TimeoutError):
                pages.append(answers.next(timeout=STEP_SECONDS))
                answered_at, self.retrying = time.monotonic(), ""
        return pages

    def attempt(self, read: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function returns; None if it fails, which is reported, or has ended."""
        try:
            return read(*arguments)
        except StopIteration:
            return None
        except Failure as failure:
            self.screen.say(*failure.args, about="error")
            self.statuses.add(failure.status)

    def get_page(self, listing: Listing) -> Page:
        """Return a page after up to ATTEMPTS requests; raises Failure."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                asked_at = time.monotonic()
                answer = self._request(listing)
                self.slowest = max(self.slowest, time.monotonic() - asked_at)
                if self.answers is not None:
                    self.answers[listing] = answer
                return parse_page(listing, answer, self.priced)
            except (Failure, Transient) as error:
                # A server may repeat what it was sent: redact before cutting.
                said = self.screen.redact(f"{listing}: {' '.join(str(error).split())}")[:MAX_QUOTE]
                if isinstance(error, Failure):
                    raise Failure(said) from None
                backoff = BACKOFF_SECONDS * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.0)
                wait = min(error.retry_after, RETRY_AFTER_SECONDS) or backoff
            self.retrying = f"retrying: {said.partition(': ')[2]}"
            time.sleep(wait if attempt < ATTEMPTS else 0)
        raise Failure(f"{said}; gave up after {attempt} attempts: run it again later")

    def _request(self, listing: Listing) -> Any:
        """Make one request and return the decoded JSON; raises Failure or Transient."""
        settings, owner = self.settings, listing.organization
        host = "RAFAY_OPS_CONSOLE_URL" if settings.rafay_ops_console_url else "RAFAY_CONSOLE_URL"
        key, header, path = "PARTNER_API_KEY", "X-RAFAY-API-KEYID", "/auth/v1/organizations"
        query: dict[str, Any] = {"limit": listing.limit, "offset": listing.offset}
        if listing.kind:
            host, key, header = "RAFAY_CONSOLE_URL", "RAFAY_DEFAULT_API_KEY", "x-api-key"
            path = f"/apis/billing.envmgmt.io/v1/metrics/partner/instance/kind/{listing.kind}/usage"
            query.update(zip(("range_from", "range_to"), map(format_moment, listing.period)))
            query["instance_organization_id"] = owner.id if owner else None  # None is not sent
        url, body = getattr(settings, host.lower()), bytearray()
        session = self.sessions[threading.get_ident()]
        session.cookies.clear()
        try:
            with session.get(
                url + path,
                params=query,
                headers={header: getattr(settings, key.lower())},
                auth=lambda request: request,  # or requests would read ~/.netrc
                # Over http, a proxy would be sent the key in clear.
                proxies={"http": "", "https": "", "all": ""} if LOOPBACK.fullmatch(url) else None,
                timeout=(CONNECT_SECONDS, READ_SECONDS),
                stream=True,
            ) as response:
                for chunk in response.iter_content(2**16):
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise Failure(f"the answer is larger than {MAX_ANSWER_BYTES // 2**20} MiB")
        except (OSError, ValueError, TypeError, urllib3.exceptions.HTTPError) as error:
            raise explain(error, f"{url} ({host})") from None
        return decode(response, body, f"{host} and {key}")


def decode(response: requests.Response, body: bytearray, settings: str) -> Any:
    """Return the JSON of an answer, its fractions as Decimal; raises Failure or Transient."""
    status = response.status_code
    if status == 200:
        with suppress(ValueError, RecursionError, decimal.DecimalException):
            return json.loads(body, parse_float=Decimal, parse_constant=str)
    said = body.decode("utf-8", "replace").strip()
    if status < 500 and status not in (200, 408, 425, 429):
        raise Failure(f"HTTP {status}: check {settings}: {said}")
    failed = Transient(f"HTTP {status}: {'the answer is not JSON: ' * (status == 200)}{said}")
    with suppress(urllib3.exceptions.InvalidHeader, ValueError, OverflowError):  # not a time
        failed.retry_after = urllib3.Retry().get_retry_after(response.raw) or 0.0
    raise failed


def explain(error: Exception, where: str) -> Exception:
    """Return Failure or Transient, without texts of requests: one may hold a proxy's password."""
    cause: BaseException = error
    while cause.__cause__ or (cause.__context__ and not cause.__suppress_context__):
        cause = cause.__cause__ or cause.__context__ or cause
    tls = isinstance(error, requests.exceptions.SSLError) and not isinstance(cause, ssl.SSLEOFError)
    if isinstance(error, (requests.TooManyRedirects, ValueError, TypeError)):  # proxy of no host
        return Failure(f"{where}: redirects to another host or in a circle, or bad HTTPS_PROXY")
    if tls or not isinstance(error, (requests.RequestException, urllib3.exceptions.HTTPError)):
        return Failure(f"{where}: TLS failed: {cause}: is its certificate in REQUESTS_CA_BUNDLE?")
    reason = getattr(cause, "strerror", None) or "connection closed, or the answer is damaged"
    if isinstance(cause, socket.timeout):
        reason = f"no connection within {CONNECT_SECONDS} s, or no answer within {READ_SECONDS} s"
    return Transient(f"{where}: {reason}: check the network, or HTTPS_PROXY")


# Paging, usage and reconciliation

Lists = dict[Listing, list[Any]]  # the rows of each list
Reading = Generator[list[Listing], list[Page], list[Any]]


def follow_pages(listing: Listing, count_is_total: bool, together: bool = True) -> Reading:
    """Yield the pages to ask for next, receive them by `send`, return all rows; raises Failure."""
    rows: dict[object, tuple[int, Any]] = {}  # by identity: rows before its page, row (once each)
    received = total = size = 0  # rows: so far, in all, of the first page
    offsets = range(1)
    try:
        while True:
            for page in (yield [listing._replace(offset=offset) for offset in offsets]):
                for row in page.rows:
                    key = identity_of(row) if listing.kind else row.id
                    if rows.setdefault(key, (received, row)) != (received, row):
                        name = f"{row.instance} ({row.instance_id})" if listing.kind else row
                        raise Transient(f"{name} is listed twice: moved, or the API ignores offset")
                received += len(page.rows)
                known = count_is_total or page.counted > len(page.rows)
                total = max(total, page.counted if known else 0, received if page.last else 0)
                size = size or len(page.rows)
            # `page` is now the last of the round. Without a total, only an empty one is the end.
            full = len(page.rows) >= (size if offsets[-1] else page.limit)
            if not page.rows or (0 < total <= received and (page.last or not full)):
                break
            # One page beyond the counted rows is asked for, too: the count may be capped.
            more = max(total - received, 0) // size + 1 if together else 1
            offsets = range(received, received + more * size, size)
            if offsets[-1] >= MAX_PAGES * size:
                raise Failure(f"{listing}: more than {MAX_PAGES} pages: it seems to have no end")
        if received < total:
            raise Transient(f"{received} of {total} counted rows were listed")
    except Transient as error:
        if not together:
            raise Failure(f"{listing}: {error}; run it again later") from None
        return (yield from follow_pages(listing, count_is_total, together=False))
    return [row for _, row in rows.values()]


def read_lists(client: Client, listings: Sequence[Listing]) -> Lists:
    """Return the rows of lists; the pages that they need next are asked for together."""
    lists: Lists = {listing: [] for listing in listings}
    reading = {listing: follow_pages(listing, client.count_is_total) for listing in listings}
    answers: dict[Listing, Any] = dict.fromkeys(listings)
    while answers:
        asks = {}
        for listing, pages in answers.items():
            try:
                asks[listing] = reading[listing].send(pages)
            except StopIteration as end:
                lists[listing] = end.value
        got = iter(client.get(list(itertools.chain.from_iterable(asks.values()))))
        answers = {each: list(itertools.islice(got, len(asked))) for each, asked in asks.items()}
    return lists


def read_first(client: Client, period: Period) -> tuple[list[Organization], dict[str, int]]:
    """Return the organizations, and how many records there are of each kind, if that is known."""
    probes = [Listing(kind, period, limit=1) for kind in KINDS]
    started = client.pool.imap(client.get_page, probes)
    [organizations] = read_lists(client, [Listing("", period)]).values()
    pages = list(zip(KINDS, client.get(probes, started)))
    is_total = client.count_is_total = any(page.counted > len(page.rows) for _, page in pages)
    return organizations, {k: p.counted for k, p in pages if p.counted * is_total or not p.rows}


def read_usage(client: Client, owners: Iterable[Organization], book: PriceBook) -> Lists:
    """Return the usage of organizations, in parts in which what each pays does not change."""
    client.priced = lru_cache(maxsize=None)(book.priced)
    listings = [Listing(k, p, each) for each in owners for k in KINDS for p in book.parts(each.id)]
    return read_lists(client, listings)


def count_records(usage: Lists, kind: str, period: Period) -> int:
    """Return how many records of a kind there would be if no organization's period were split."""
    lists = [(each.period != period, rows) for each, rows in usage.items() if each.kind == kind]
    whole = sum(len(rows) for split, rows in lists if not split)
    return whole + len({subject_of(row) for split, rows in lists if split for row in rows})


def reconcile(client: Client, usage: Lists, wholes: Lists, again: bool = True) -> None:
    """Compare with the partner-wide usage, after one more try where it differs; raises Failure."""
    differing = defaultdict(list)
    owners = {each.organization.id: each.organization for each in usage if each.organization}
    for whole, others in wholes.items():
        lists = {each: records for each, records in usage.items() if each.kind == whole.kind}
        split = {each.organization for each in lists if each.period != whole.period}
        own = Counter(map(subject_of, itertools.chain.from_iterable(lists.values())))
        other = Counter(map(subject_of, others))
        for subject in (own - other) | (other - own):
            owner = owners[subject[0]]
            if not (own[subject] and other[subject] and owner in split):
                differing[str(whole._replace(organization=owner))].append(subject[-1])
    if differing and again:
        usage.update(read_lists(client, [each for each in usage if str(each) in differing]))
        reconcile(client, usage, wholes, again=False)
    elif differing:
        hint = "differs from the partner-wide usage: run it again later, or with --no-reconcile"
        raise Failure(*(f"{each}: {', '.join(ids[:5])}: {hint}" for each, ids in differing.items()))


# Billing


class Line(NamedTuple):
    """A line of the bill; without a price, it has no amount, in currency units, either."""

    record: Record
    charge: str  # USAGE, FEE, or MINIMUM: a shortfall
    dimension: str
    hours: Decimal  # of the dimension
    price: Price | None
    amount: Decimal | None


def bill_owner(owner: Organization, records: Iterable[Record], book: PriceBook) -> list[Line]:
    """Return an organization's lines: usage, rounded once, half up; fees; shortfalls."""
    month, unit = book.settings.month, MINOR_UNITS[book.settings.currency]
    find = lru_cache(maxsize=None)(book.find)
    lines = []
    for record in records:
        for dimension, hours in ((INSTANCE, record.hours), *record.quantities):
            thing = record.profile, dimension
            price = find(record.organization.id, record.kind, thing, record.period.start)
            amount = (hours * price.rate).quantize(unit) if price else None
            lines.append(Line(record, USAGE, dimension, hours, price, amount))
    same = (book.index.get((charge, owner.id), {}).values() for charge in (FEE, MINIMUM))
    latest = [prices[max(prices)] for prices in itertools.chain.from_iterable(same)]
    if not month or not latest:
        return lines
    billed: dict[str, Decimal] = defaultdict(Decimal)  # without fees, by profile and for ALL
    for line in lines:
        for profile in (line.record.profile, ALL):
            billed[profile] += line.amount or 0
    # The minimum for ALL comes last: it counts what the others add.
    for each in sorted(latest, key=lambda price: (price.profile == ALL, price.line)):
        amount = each.rate.quantize(unit)
        if each.charge == MINIMUM:
            amount -= billed[each.profile]
            if amount <= 0:
                continue
            billed[ALL] += amount
        record = Record(owner, "", month, each.profile)
        lines.append(Line(record, each.charge, "month", NO_HOURS, each, amount))
    return lines


class Bill(NamedTuple):
    """What is billed, in the order of the raw file, and what is to be said of it."""

    book: PriceBook
    organizations: Sequence[Organization]
    lines: Sequence[Line]

    def unpriced(self) -> list[str]:
        """Return a warning for each profile and dimension with usage that has no price."""
        unpriced: dict[Thing, Decimal] = defaultdict(Decimal)
        for line in self.lines:
            if not line.price and line.hours:
                unpriced[line.record.profile, line.dimension] += line.hours
        return [
            f"{dimension} of {profile} has no price: {format_hours(hours)} hours are not billed"
            for (profile, dimension), hours in unpriced.items()
        ]

    def parameters(self) -> tuple[list[str], list[str]]:
        """Return warnings of prices of parameters that no record has, and which only some have."""
        book, warnings, notes, billable = self.book, [], [], Counter[Price]()
        billed = Counter(line.price for line in self.lines if line.dimension != INSTANCE)
        group_of = attrgetter("organization.id", "kind", "profile", "period")
        records = (line.record for line in self.lines if line.dimension == INSTANCE)
        groups = Counter(map(group_of, records if any(book.parameters.values()) else ()))
        for (owner, kind, profile, period), number in groups.items():
            for name in book.priced(owner, kind, profile):
                price = book.find(owner, kind, (profile, name), period.start)
                billable.update({price: number} if price else {})
        for price, number in sorted(billable.items()):
            text = f"{price.dimension} of {price.profile}: {billed[price]} of {number} records"
            if not billed[price]:
                warnings.append(f"{book.path}: line {price.line}: nothing to bill: {text}")
            elif billed[price] < number:
                notes.append(text)
        return warnings, notes

    def left_out(self) -> list[str]:
        """Return a warning for each fee and minimum in force if the period is not a month."""
        owners = {each.id for each in self.organizations if not self.book.settings.month}
        return [
            f"{self.book.path}: line {p.line}: no {p.charge} {p.profile}: not a calendar month"
            for p in self.book.prices
            if p.charge != USAGE and p.organization in owners
        ]

    def doubts(self) -> list[str]:
        """Return warnings that leave the status: too many hours, and a month not yet over."""
        (start, end), month = self.book.period, self.book.settings.month
        doubts, over, seconds = list[str](), list[str](), (end - start) // timedelta(seconds=1)
        for _, own in itertools.groupby(self.lines, attrgetter("record.organization.id")):
            hours: dict[str, Decimal] = defaultdict(Decimal)
            for line in own:
                if line.dimension == INSTANCE:
                    hours[line.record.instance_id] += line.hours - ROUNDING
            over += [instance for instance, total in hours.items() if total * 3600 > seconds]
        if over:
            doubts.append(f"more hours than the period has: {len(over)}: {', '.join(over[:5])}")
        if month and month.end > end:
            doubts.append(f"the bill is provisional: the month ends after {format_moment(end)}")
        return doubts

    def summary(self) -> list[str]:
        """Return the table of organizations that are billed, and what the total is made of."""
        currency, everybody = self.book.settings.currency, len(self.organizations)
        zero = 0 * MINOR_UNITS[currency]
        figures: dict[str, Sequence[Decimal | int]] = {}
        for owner, own in itertools.groupby(self.lines, attrgetter("record.organization")):
            lines = list(own)
            instances = Decimal(len({x.record.instance_id for x in lines} - {""}))
            hours = sum((x.hours for x in lines if x.dimension == INSTANCE), NO_HOURS)
            figures[str(owner)] = instances, hours, sum((x.amount or 0 for x in lines), zero)
        idle = everybody - sum(1 for instances, *_ in figures.values() if instances)
        figures["Total"] = [*map(sum, zip((Decimal(0), NO_HOURS, zero), *figures.values()))]
        paid = {c: [x.amount or zero for x in self.lines if x.charge == c] for c in (FEE, MINIMUM)}
        rows = [["Organization", "Instances", "Hours", f"Amount ({currency})"]]
        rows += [[name, *map("{:,f}".format, row)] for name, row in figures.items()]
        parts = [f"Of the total, {c}s: {sum(x, zero):,f}" for c, x in paid.items() if x]
        return [*align(rows), "", *parts, f"Organizations without usage: {idle} of {everybody}"]


def align(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table as text: what its rows are about on the left, figures on the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join([n.ljust(widths[0]), *map(str.rjust, r, widths[1:])]) for n, *r in rows]


# Files

HEADER = """organization,organization_id,external_id,project,profile_type,profile,instance,\
instance_id,status,created_at,parameters,period_start,period_end,charge,dimension,usage_hours,\
billing_rate,billing_amount,currency\n"""


def format_hours(hours: Decimal) -> str:
    """Return exact hours with two decimals, or more as needed."""
    whole, _, fraction = f"{hours:f}".partition(".")
    return f"{whole}.{fraction.rstrip('0'):0<2}"


@lru_cache(maxsize=10_000)
def text_cell(text: str) -> str:
    """Return a text on one line that no spreadsheet takes for a formula."""
    text = text if text.isprintable() else CONTROL.sub(" ", text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def format_line(line: Line, currency: str) -> tuple[str, ...]:
    """Return the cells of a line, one for each column."""
    record, owner = line.record, line.record.organization
    return (
        *map(text_cell, (owner.name, owner.id, owner.external_id, record.project, record.kind)),
        *map(text_cell, (record.profile, record.instance, record.instance_id, record.status)),
        *map(text_cell, (record.created_at, record.parameters)),
        *map(format_moment, record.period),
        *map(text_cell, (line.charge, line.dimension)),
        format_hours(line.hours) if line.charge == USAGE else "",
        f"{line.price.rate:f}" if line.price else "",
        "" if line.amount is None else f"{line.amount:f}",
        currency,
    )


def write_files(bill: Bill, now: datetime) -> list[str]:
    """Write the raw and the sorted file, or neither; return what they are; raises Failure."""
    directory, currency = bill.book.settings.output_dir, bill.book.settings.currency
    temp = Path(directory, f".ncp-metrics-{random.getrandbits(64):016x}")
    create = partial(open, mode="x+", encoding="utf-8", newline="\n")
    sort_key = attrgetter("project", "kind", "profile", "instance", "instance_id", "period")
    groups = []  # of lines, one for each organization, and where they begin in the raw file
    try:
        temp.mkdir(mode=0o700)
        with create(temp / "ncp-metrics") as raw, create(temp / "ncp-metrics-sorted") as in_order:
            raw.write(HEADER)
            in_order.write(HEADER)
            rows = csv.writer(raw, lineterminator="\n")
            for owner, own in itertools.groupby(bill.lines, attrgetter("record.organization")):
                groups.append((owner.name.casefold(), owner.id, raw.tell(), list(own)))
                rows.writerows(format_line(line, currency) for line in groups[-1][-1])
            for _, _, begin, lines in sorted(groups):
                raw.seek(begin)
                pairs = sorted(zip(lines, raw), key=lambda pair: sort_key(pair[0].record))
                in_order.writelines(text for _, text in pairs)
            for file in (raw, in_order):
                file.flush()
                os.fsync(file.fileno())
        handle_signals(stopping=False)  # from here on, a signal changes neither files nor status
        return publish(temp, now)
    except OSError as error:
        raise Failure(f"cannot write to {directory}: {error.strerror}: no file written") from None
    finally:
        handle_signals(stopping=False)
        shutil.rmtree(temp, ignore_errors=True)


def publish(temp: Path, now: datetime) -> list[str]:
    """Give the files their names, of the first second from now on that is free for all."""
    while True:
        paths: dict[Path, Path] = {}
        with suppress(FileExistsError), ExitStack() as undo:
            for file in sorted(temp.iterdir()):
                path = paths[file] = temp.with_name(f"{file.name}-{now:%m%d%Y-%H%M%S}.csv")
                try:
                    os.link(file, path)
                except OSError:  # it exists, or there are no hard links here: claim it
                    path.touch(exist_ok=False)
                undo.callback(path.unlink)
            for file, path in paths.items():
                os.replace(file, path)  # changes nothing for two links to one file
            undo.pop_all()
            return [f"File: {path}" for path in paths.values()]
        now += timedelta(seconds=1)


# Screen


class Screen:
    """What people see: the summary on stdout; progress, warnings and errors on stderr."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.quiet = False
        keys = {environ.get(n, "").strip() for n in ("RAFAY_DEFAULT_API_KEY", "PARTNER_API_KEY")}
        # Each character of a key may also be JSON-escaped or percent-encoded.
        char = r"(?:\\{{0,9}}(?:{0}|u00(?i:{1:02x}))|%(?:25)*(?i:{1:02x}))"
        hidden = ["".join(char.format(re.escape(c), ord(c)) for c in key) for key in keys if key]
        self.secrets = re.compile("|".join(sorted(hidden, key=len, reverse=True)) or "(?!)")

    def redact(self, text: str) -> str:
        """Return a text without API keys, nor what steers a terminal; before it is cut short."""
        shown = self.secrets.sub("***", text)
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in shown)

    def say(self, *texts: str, about: str = "") -> None:
        """Print texts: on stderr if they are about a warning or error, else on stdout."""
        self.progress("")
        stream, begin = (sys.stderr, f"ncp_metrics: {about}: ") if about else (sys.stdout, "")
        if stream and (about or not self.quiet):
            self._write(stream, "".join(f"{begin}{self.redact(text)}\n" for text in texts))

    def progress(self, text: str) -> None:
        """Rewrite the progress line, on a terminal only."""
        if not self.quiet and sys.stderr and sys.stderr.isatty():
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            self._write(sys.stderr, f"\r\x1b[K{self.redact(text)[: width - 1]}")

    def _write(self, stream: TextIO, text: str) -> None:
        """Write, whether or not anybody reads it: what was written to disk stands either way."""
        try:  # a locale may lack letters
            stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
            stream.flush()
        except (OSError, Stopped) as error:
            # What is left in the buffer must neither fail nor wait again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if isinstance(error, Stopped):
                raise


def audit(book: PriceBook) -> list[str]:
    """Return what an auditor asks for."""
    return [
        f"Period: {' to '.join(map(format_moment, book.period))} (end excluded)",
        f"Time zone: {book.settings.timezone}, version: {VERSION}",
        f"Price book: {book.path}, prices: {len(book.prices)}, SHA-256: {book.sha256}",
    ]


# First contact

Sample = tuple[list[Record], bool]  # some usage of a kind, and whether this is all


def check(client: Client, raw_book: PriceBook) -> int:
    """Report how the controller answers and what needs a price; return the exit status."""
    settings, say, everyone = client.settings, client.screen.say, Listing("", raw_book.period)
    answers = client.answers = dict[Listing, Any]()
    listed = (client.attempt(read_lists, client, [everyone]) or {everyone: []})[everyone]
    owners = (client.attempt(choose, settings.organizations, listed) or []) if listed else []
    book = (client.attempt(resolve, raw_book, listed) if listed else None) or raw_book
    client.priced = book.priced
    lists = [answer for answer in answers.values() if isinstance(answer, dict)]
    off = sum(False in (r.get("active"), r.get("approved")) for a in lists for r in rows_of(a))
    known = ("results", "items"), ("count", "next")
    keys = [", ".join(k for k in each if any(k in a for a in lists)) or "none" for each in known]
    say(f"organizations: {len(listed)}, inactive: {off}, to bill: {len(owners)}")
    say(f"organizations, list key: {keys[0]}; paging: {keys[1]}")
    samples = [take_sample(client, Listing(kind, book.period), owners) for kind in KINDS]
    number = len(KINDS) * sum(len(book.parts(each.id)) for each in owners)
    wait = number * client.slowest / settings.workers
    say(f"slowest answer: {client.slowest:.2f} s; a bill: {number} lists, {wait:.0f} s or more")
    say("", *describe_profiles(answers, book))
    if owners and book is not raw_book:
        client.attempt(report_unbilled, client, raw_book, listed, samples)
    works = "Nothing seen would fail a bill; nothing was written."
    say("", *audit(raw_book), *([works] if client.statuses == {0} else []))
    return min(client.statuses - {0}, default=0)


def rows_of(answer: Any) -> list[dict[str, Any]]:
    """Return the rows of an answer as far as they are objects, whatever else is wrong with it."""
    names = ("instance_usage_data", "results", "items") if isinstance(answer, dict) else ()
    lists = [answer[name] for name in names if isinstance(answer.get(name), list)]
    return [row for rows in lists for row in rows if isinstance(row, dict)]


def take_sample(client: Client, whole: Listing, owners: Sequence[Organization]) -> Sample:
    """Report how usage is listed, by two pages and one of an organization; return what is used."""
    pages, asks, own = list[Page](), [whole], None
    reading = follow_pages(whole, count_is_total=False, together=False)
    next(reading)
    while asks and len(pages) < 2:
        got = client.attempt(client.get, asks) or []
        pages += got
        asks = got and client.attempt(reading.send, got)
    records = [row for page in pages for row in page.rows]
    if records:
        # The last one: an ignored filter would answer with the first ones.
        owner = owners[0] if client.settings.organizations and owners else records[-1].organization
        owned = {subject_of(row) for row in records if row.organization.id == owner.id}
        listing, size = whole._replace(organization=owner), len(pages[0].rows)
        own = client.attempt(read_own, client, listing, owned, size)
    rows = [r for each, a in client.answers.items() if each.kind == whole.kind for r in rows_of(a)]
    facts = describe_usage(pages, own, rows) if pages else ["usage: failed, see the error"]
    client.screen.say(*(f"{whole.kind} {fact}" for fact in facts))
    return list({identity_of(row): row for row in (*records, *(own or ()))}.values()), not asks


def read_own(client: Client, listing: Listing, owned: set[Any], size: int) -> list[Record]:
    """Return a page of an organization's own usage; raises Failure if it lacks what is owned."""
    [page] = client.get([listing])
    if owned - set(map(subject_of, page.rows)) and len(page.rows) < min(page.limit, size):
        raise Failure(f"{listing}: lacks instances that the partner-wide usage has")
    return page.rows


def describe_usage(pages: Sequence[Page], own: list[Record] | None, raw: list[Any]) -> list[str]:
    """Return what one or two pages, and one of an organization, show of what is undocumented."""
    first, counted, size = pages[0].rows, pages[0].counted, len(pages[0].rows)
    second = {identity_of(row): row for page in pages[1:] for row in page.rows}
    rows = list({**{identity_of(row): row for row in first}, **second}.values())
    fresh = len(second.keys() - set(map(identity_of, first)))
    fits = pages[1:] and not second and counted <= size
    seen = "everything fits on one page" if fits else "the first page only"
    count = limit = offset = honoured = f"not seen: {seen if first else 'no usage'}"
    if first and not counted:
        count = "not given"
    elif fresh or counted != size:
        count = "a total" if counted > size else "not a total"
    lowered = min(pages[0].limit, size if fresh else PAGE_SIZE)
    if fresh or lowered < PAGE_SIZE:
        limit = f"lowered to {lowered}" if lowered < PAGE_SIZE else "not lowered"
    if second:
        offset = "moves on" if fresh == len(second) else "records move" if fresh else "ignored"
    elif first and (not pages[1:] or counted > size):
        offset = "failed, see the error"
    if first:
        several = len({row.organization.id for row in rows}) > 1
        honoured = "honoured" if several else "not seen: usage of one organization only"
        honoured = "failed, see the error" if own is None else honoured
    fields = [name for name in ("status", "deleted_at") if any(row.get(name) for row in raw)]
    whole = not first or (pages[1:] and (not fresh or counted == len(rows)))
    return [
        f"usage, records: {max(counted, len(rows))}{'' if whole else ' or more'}",
        f"usage, count: {count}",
        f"usage, limit: {limit}",
        f"usage, offset: {offset}",
        f"usage, organization filter: {honoured}",
        f"usage, further records of an instance: {len(rows) - len({r.instance_id for r in rows})}",
        f"usage, status fields: {', '.join(fields) or 'none'}",
    ]


def describe_profiles(answers: Mapping[Listing, Any], book: PriceBook) -> list[str]:
    """Return a table of the profiles in the answers, with list prices at the period's end."""
    things: Counter[tuple[str, str, str, str]] = Counter()
    usage = [(each.kind, row) for each, a in answers.items() if each.kind for row in rows_of(a)]
    for kind, row in {(k, *map(str, map(r.get, RECORD_TEXTS))): (k, r) for k, r in usage}.values():
        with suppress(Failure):  # what is not as documented is reported elsewhere
            [profile] = texts_of(row, ["profile_name"])
            things[profile, kind, "", ""] += 1
            for each in objects(row.get("parameters"), "parameters"):
                name, label = texts_of(each, ["name", "label_value"])
                nature = f"{'number' if LABEL.fullmatch(label) else 'text'} label"
                things[profile, kind, name, nature if each.get("is_label") else "quantity"] += 1
    table = [["Profile", "Kind", "Records", f"List price ({book.settings.currency})"]]
    for (profile, kind, name, nature), number in sorted(things.items()):
        thing = profile, name or INSTANCE
        price = book.find("", kind, thing, book.period.end - timedelta(seconds=1))
        shown = f"{price.rate:f}" if price else "" if name else "no price"
        table.append([f"  {name}" if name else profile, nature or kind, f"{number}", shown])
    return align(table)


def report_unbilled(
    client: Client, raw_book: PriceBook, listed: list[Organization], samples: list[Sample]
) -> None:
    """Warn of what a bill would warn of, and print the lines that the price book lacks."""
    records = sorted(itertools.chain(*(rows for rows, _ in samples)), key=subject_of)
    settings, named = client.settings, {r.organization.id: r.organization for r in records}
    new = [named[id_] for id_ in sorted(named.keys() - {each.id for each in listed})]
    known = [*listed, *(new if settings.reconcile and not settings.organizations else ())]
    book, owners = resolve(raw_book, known), choose(settings.organizations, known)
    ids = {each.id for each in owners}
    records = [record for record in records if record.organization.id in ids]
    parts = [r._replace(period=part) for r in records for part in book.parts(r.organization.id)]
    nobody = Organization("", "", "")
    bill = Bill(book, owners, bill_owner(nobody, parts, book))
    unpriced = [each.rpartition(":")[0] for each in bill.unpriced()]  # without the hours of parts
    complete = client.statuses == {0} and all(whole for _, whole in samples)
    unused = bill.parameters()[0] if complete else []
    unbilled = [*unpriced, *book.unknown, *bill.left_out(), *unused]
    doubts = bill._replace(lines=bill_owner(nobody, records, book)).doubts()
    client.screen.say(*doubts, *unbilled, about="warning")
    client.statuses.update([3] if unbilled else [])
    lacking = [x.record for x in bill.lines if x.hours and not x.price and x.dimension == INSTANCE]
    lacking.sort(key=attrgetter("period.start"), reverse=True)
    starts = {record.profile: record.period.start for record in lacking}  # the earliest
    client.screen.say(*price_lines(starts, raw_book))


def price_lines(starts: Mapping[str, datetime], book: PriceBook) -> list[str]:
    """Return lines of the price book, without a rate, for profiles, from when they have none."""
    # A second price from the same moment would be refused.
    taken = {profile for profile in starts if (profile, INSTANCE) in book.index[USAGE, ""]}
    needed = ["profile", "hourly_rate", *(["effective_from"] if taken else [])]
    columns, text = list(dict.fromkeys([*book.columns, *needed])), io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    for profile in sorted(each for each in starts if each.isprintable() and each[0] not in "#*"):
        begins = format_moment(starts[profile]) if profile in taken else ""
        writer.writerow({"profile": profile, "effective_from": begins})
    lines = text.getvalue().splitlines()
    return ["", f"Add, with a rate ({','.join(columns)}):", *lines] if lines else []


# Run


def handle_signals(stopping: bool) -> None:
    """Let signals end the run, or do nothing; except those ignored from the start, as by nohup."""

    def handle(number: int, _frame: object) -> None:
        """Raise Stopped, once, if signals end the run."""
        if stopping:
            handle_signals(stopping=False)  # let no further signal disturb the end
            raise Stopped(signal.Signals(number))

    for each in SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, handle)


def read_bill(client: Client, raw_book: PriceBook) -> tuple[Bill, str]:
    """Return the bill, and what was reconciled; raises Failure."""
    settings, period = client.settings, raw_book.period
    listed, totals = read_first(client, period)
    owners = choose(settings.organizations, listed)
    book = resolve(raw_book, listed)
    usage = read_usage(client, owners, book)
    note = f"{'Partial bill' if settings.organizations else 'Bill'}, not reconciled"
    if settings.reconcile and not settings.organizations:
        differ = [k for k in KINDS if count_records(usage, k, period) != totals.get(k)]
        wholes = read_lists(client, [Listing(kind, period) for kind in differ])
        named = {r.organization.id: r.organization for rows in wholes.values() for r in rows}
        unlisted = [named[id_] for id_ in sorted(named.keys() - {each.id for each in listed})]
        owners += unlisted
        book = resolve(raw_book, owners)
        usage.update(read_usage(client, unlisted, book))
        reconcile(client, usage, wholes)
        billed = [f"{each} is not listed but has usage: it is billed" for each in unlisted]
        client.screen.say(*billed, about="warning")
        counted = sum(count_records(usage, kind, period) for kind in KINDS)
        note = f"Reconciled with the partner-wide usage: {counted} records"
    lines: list[Line] = []
    for owner, listings in itertools.groupby(usage, attrgetter("organization")):
        lines += bill_owner(owner, itertools.chain(*map(usage.__getitem__, listings)), book)
    return Bill(book, owners, lines), note


def run(
    argv: Sequence[str] | None, environ: Mapping[str, str], now: datetime, screen: Screen
) -> tuple[int, list[str]]:
    """Make a bill, or check; return the exit status and the summary; raises Failure."""
    flags = parse_flags(argv)
    if flags.text:
        return 0, flags.text.splitlines()
    screen.quiet = flags.quiet
    settings = read_settings(flags, environ, now)
    book = read_price_book(settings, flags.problems)
    if flags.problems:
        raise Failure(*flags.problems, status=2)
    with closing(Client(settings, screen)) as client:
        if flags.check:
            return check(client, book), []
        bill, note = read_bill(client, book)
    unused, notes = bill.parameters()
    unbilled = [*bill.unpriced(), *bill.book.unknown, *bill.left_out(), *unused]
    screen.say(*bill.doubts(), *unbilled, about="warning")
    summary = [*audit(book)[:1], "", *bill.summary(), *notes, note, *audit(book)[1:]]
    return 3 if unbilled else 0, [*summary, *write_files(bill, now)]


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
            handle_signals(stopping=True)
            gc.set_threshold(100_000)  # records hold no cycles: seldom look for them
            decimal.setcontext(EXACT)  # of this thread, which does all sums of money
            status, summary = run(argv, environ, clock().astimezone(timezone.utc), screen)
            handle_signals(stopping=True)  # a summary that nobody reads can be interrupted
            screen.say(*summary)
        except Failure as failure:
            status = failure.status
            screen.say(*failure.args, about="error")
        handle_signals(stopping=False)
    except Stopped as stopped:
        if status is None:  # otherwise the run had ended
            status = 128 + stopped.args[0]
            screen.say(f"stopped by {stopped.args[0].name}: no file was written", about="error")
    finally:
        for each in SIGNALS:  # Python would give each its default action back
            signal.signal(each, signal.SIG_IGN)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
