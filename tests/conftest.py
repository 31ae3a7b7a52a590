"""What the tests share: the program run in the test process, or as a process of its own."""

from __future__ import annotations

import csv
import gc
import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.dummy import DummyProcess
from pathlib import Path
from types import MappingProxyType
from typing import Optional

import pytest
from example import BILLED, NOW, PRICES, SMALL
from rafay_simulator import (
    DEFAULT_KEY,
    PARTNER_KEY,
    Behaviour,
    Fault,
    Partner,
    Request,
    Simulator,
    read_table,
)

sys.dont_write_bytecode = True  # no __pycache__ beside the script

import ncp_metrics

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "ncp_metrics.py"
KEYS = re.compile(f"{DEFAULT_KEY}|{PARTNER_KEY}")
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
NO_CHANGE: Mapping[str, float] = MappingProxyType({})
NO_FILES: Mapping[str, str] = MappingProxyType({})
# The program waits as it always does, only shorter.
QUICK = {
    "CONNECT_SECONDS": 5.0,
    "READ_SECONDS": 10.0,
    "BACKOFF_SECONDS": 0.002,
    "RETRY_AFTER_SECONDS": 0.02,
}


Files = dict[str, str]
Where = Callable[[Request], bool]
FaultPlan = Callable[[Request], Optional[Fault]]


def path_has(text: str) -> Where:
    """Match the requests whose path contains a text."""
    return lambda request: text in request.path


anywhere = path_has("")


def no_fault(request: Request) -> None:
    """Give each request its plain answer."""


def first(number: int, fault: Fault, where: Where = anywhere) -> FaultPlan:
    """Give the fault to the first so many matching requests."""
    faults = iter([fault] * number)
    return lambda request: next(faults, None) if where(request) else None


def always(fault: Fault, where: Where = anywhere) -> FaultPlan:
    """Give the fault to every matching request."""
    return lambda request: fault if where(request) else None


@dataclass(frozen=True)
class Result:
    """What one run printed and wrote, and what it asked the stand-in for."""

    status: int
    stdout: str
    stderr: str
    files: Files  # those that were not there before
    requests: list[Request]

    def read(self, begin: str) -> list[dict[str, str]]:
        """Return the lines of the file whose name begins like this."""
        [text] = [text for name, text in self.files.items() if re.match(begin, name)]
        return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))

    @property
    def rows(self) -> list[dict[str, str]]:
        """The lines of the raw file."""
        return self.read("ncp-metrics-[0-9]")

    @property
    def sorted(self) -> list[dict[str, str]]:
        """The lines of the sorted file."""
        return self.read("ncp-metrics-sorted-")

    @property
    def invoice(self) -> list[dict[str, str]]:
        """The lines of the invoice file."""
        return self.read("ncp-metrics-invoice-")

    def cells(self, *columns: str) -> list[str]:
        """Return some columns of each line of the raw file, with a space in between."""
        return [" ".join(row[column] for column in columns) for row in self.rows]

    def asked(self, where: Where) -> int:
        """Return the number of matching requests."""
        return sum(map(where, self.requests))

    @property
    def errors(self) -> list[str]:
        """The lines of stderr that are errors, without their beginning."""
        return re.findall("^ncp_metrics: error: (.*)", self.stderr, re.MULTILINE)

    @property
    def warnings(self) -> list[str]:
        """The lines of stderr that are warnings, without their beginning."""
        return re.findall("^ncp_metrics: warning: (.*)", self.stderr, re.MULTILINE)


Run = Callable[..., Result]


def assert_failed(result: Result, *patterns: str, status: int = 1) -> None:
    """Assert that a run failed without a file, with one error that matches, and without a key."""
    assert (result.status, result.stdout, result.files) == (status, "", {})
    lines = result.stderr.splitlines()
    usage = [line for line in lines if line.startswith(("usage: ", " "))]  # of argparse
    assert len(result.errors) == len(lines) - len(usage) == 1, result.stderr
    assert [each for each in patterns if not re.search(each, result.stderr)] == [], result.stderr
    assert not KEYS.search(result.stderr)


def assert_billed(result: Result) -> None:
    """Assert that the example was billed, without a warning."""
    assert (result.status, result.stderr, len(result.files)) == (0, "", 2)
    assert result.cells("instance", "usage_hours", "billing_amount") == BILLED


def cases(names: str, table: Mapping[str, object]) -> pytest.MarkDecorator:
    """Run a test with each value of a table; the keys say what the cases are."""
    return pytest.mark.parametrize(names, list(table.values()), ids=list(table))


def table(names: str, text: str) -> pytest.MarkDecorator:
    """Run a test with each row of a table: what the case is, then a text for each name."""
    rows = [pytest.param(*cells, id=case) for case, *cells in read_table(text)]
    return pytest.mark.parametrize(names, rows)


def environment(settings: Mapping[str, str], *, measured: bool = True) -> dict[str, str]:
    """Return the settings, and the harmless part of this process's environment.

    Coverage is not measured where its own locks and files would be what fails.
    """
    prefixes = ("PATH", "COV") if measured else ("PATH",)
    kept = {name: os.environ[name] for name in os.environ if name.startswith(prefixes)}
    own = {"HOME": "/nonexistent", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**kept, **own, **settings}


Constants = Mapping[str, float]


def command(*flags: str, constants: Constants = NO_CHANGE, now: str = NOW) -> list[str]:
    """Return the command line of a run at a time, with constants of the module changed."""
    changed = [f"{name}={value}" for name, value in {**QUICK, **constants}.items()]
    return [sys.executable, str(ROOT / "tests/driver.py"), now, *changed, "--", *flags]


@contextmanager
def signals_kept() -> Iterator[None]:
    """Give signals their handlers back at the end."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test the same environment, and the tests their signals back."""
    for name in os.environ:
        if name.lower().endswith("_proxy") or name in ("NETRC", "REQUESTS_CA_BUNDLE", "TZ"):
            monkeypatch.delenv(name)
    with signals_kept():
        yield


@pytest.fixture(scope="session")
def stand_in() -> Iterator[Simulator]:
    """Start the stand-in that serves all tests of a process; `run` resets it."""
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Make an empty directory for the files of a run."""
    path = tmp_path / "out"
    path.mkdir()
    return path


def contents(directory: Path, before: Mapping[str, str] = NO_FILES) -> Files:
    """Return the text of each file in a directory, but for those that were there before."""
    files = {}
    for path in sorted(directory.iterdir()):
        text = path.read_bytes().decode()
        if before.get(path.name) != text:
            files[path.name] = text
    return files


Prepare = Callable[..., dict[str, str]]


@pytest.fixture
def prepare(stand_in: Simulator, tmp_path: Path) -> Prepare:
    """Reset the stand-in, write the price book, and return the settings of a run."""

    def prepare(
        partner: Partner | None = SMALL,
        behaviour: Behaviour | None = None,
        fault: FaultPlan = no_fault,
        latency: float = 0.0,
        prices: str | bytes | None = PRICES,
        **settings: str,
    ) -> dict[str, str]:
        stand_in.reset(partner, behaviour, fault, latency)
        environ = dict(stand_in.environ)
        if prices is not None:
            book = tmp_path / "prices.csv"
            book.write_bytes(prices if isinstance(prices, bytes) else prices.encode())
            environ["PRICING_FILE"] = str(book)
        return {**environ, **settings}

    return prepare


@pytest.fixture
def run(
    stand_in: Simulator,
    prepare: Prepare,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run `main` in this process, in the empty directory, against the stand-in.

    Keywords: `partner`, `behaviour`, `fault`, `latency` of the stand-in; `prices`, the text of
    the price book, None for the shipped one; `constants` of the module; `now`; all others are
    settings in the environment.
    """

    def run(
        *flags: str, constants: Constants = NO_CHANGE, now: str = NOW, **more: object
    ) -> Result:
        environ = prepare(**more)
        files = contents(directory)
        threads = set(threading.enumerate())
        threshold = gc.get_threshold()
        capsys.readouterr()
        moment = datetime.fromisoformat(now.replace("Z", "+00:00"))
        with monkeypatch.context() as changed, signals_kept():
            changed.chdir(directory)
            for name, value in {**QUICK, **constants}.items():
                changed.setattr(ncp_metrics, name, value)
            try:
                status = ncp_metrics.main(flags, environ, lambda: moment)
            except SystemExit as end:  # --help, --version
                status = int(end.code or 0)
            gc.set_threshold(*threshold)
            stand_in.release()
            stdout, stderr = capsys.readouterr()
            for thread in set(threading.enumerate()) - threads:
                if isinstance(thread, DummyProcess):  # of the program's pool
                    thread.join(5)
                    assert not thread.is_alive(), thread.name
        new = contents(directory, files)
        return Result(status, stdout, stderr, new, list(stand_in.requests))

    return run


@pytest.fixture
def run_process(stand_in: Simulator, prepare: Prepare, directory: Path) -> Run:
    """Run the program as a process; keywords as for `run`.

    `wrapper` is put in front of the command; settings that are not the program's own, such as
    HTTPS_PROXY or LC_ALL, are passed in the same way.
    """

    def run_process(
        *flags: str,
        constants: Constants = NO_CHANGE,
        now: str = NOW,
        wrapper: Sequence[str] = (),
        measured: bool = True,
        **more: object,
    ) -> Result:
        environ = prepare(**more)
        files = contents(directory)
        done = subprocess.run(
            [*wrapper, *command(*flags, constants=constants, now=now)],
            cwd=directory,
            env=environment(environ, measured=measured),
            capture_output=True,
            encoding="utf-8",
            timeout=50,
            check=False,
        )
        stand_in.release()
        assert "Traceback" not in done.stderr, done.stderr
        new = contents(directory, files)
        return Result(done.returncode, done.stdout, done.stderr, new, list(stand_in.requests))

    return run_process
