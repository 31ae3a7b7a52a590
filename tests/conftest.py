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
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.dummy import DummyProcess
from pathlib import Path

import pytest
from example import NOW, PRICES, SMALL
from rafay_simulator import (
    DEFAULT_KEY,
    PARTNER_KEY,
    Behaviour,
    FaultPlan,
    Partner,
    Request,
    Simulator,
)

sys.dont_write_bytecode = True  # no __pycache__ beside the script

import ncp_metrics

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "ncp_metrics.py"
KEYS = re.compile(f"{DEFAULT_KEY}|{PARTNER_KEY}")
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
# The program waits as it always does, only shorter.
QUICK = {
    "CONNECT_SECONDS": 5.0,
    "READ_SECONDS": 10.0,
    "BACKOFF_SECONDS": 0.002,
    "RETRY_AFTER_SECONDS": 0.02,
}


@dataclass(frozen=True)
class Result:
    """What one run left behind, and what it asked the stand-in for."""

    status: int
    stdout: str
    stderr: str
    files: dict[str, str]
    requests: list[Request]

    @property
    def raw(self) -> str:
        """The text of the raw file."""
        return self._file("ncp-metrics-[0-9]")

    @property
    def sorted(self) -> str:
        """The text of the sorted file."""
        return self._file("ncp-metrics-sorted-")

    def _file(self, begin: str) -> str:
        [text] = [text for name, text in self.files.items() if re.match(begin, name)]
        return text

    @property
    def rows(self) -> list[dict[str, str]]:
        """The lines of the raw file."""
        return list(csv.DictReader(io.StringIO(self.raw, newline="")))

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


def cases(names: str, table: Mapping[str, object]) -> pytest.MarkDecorator:
    """Run a test with each value of a table; the keys say what the cases are."""
    return pytest.mark.parametrize(names, list(table.values()), ids=list(table))


def environment(settings: Mapping[str, str], *, measured: bool = True) -> dict[str, str]:
    """Return the settings, and the harmless part of this process's environment.

    Coverage is not measured where its own locks and files would be what fails.
    """
    prefixes = ("PATH", "COV") if measured else ("PATH",)
    kept = {name: os.environ[name] for name in os.environ if name.startswith(prefixes)}
    own = {"HOME": "/nonexistent", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**kept, **own, **settings}


def command(*flags: str, constants: Mapping[str, float] | None = None, now: str = NOW) -> list[str]:
    """Return the command line of a run at a time, with constants of the module changed."""
    changed = [f"{name}={value}" for name, value in {**QUICK, **(constants or {})}.items()]
    return [sys.executable, str(ROOT / "tests/driver.py"), now, *changed, "--", *flags]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test the same environment, and the tests their signals back."""
    for name in os.environ:
        if name.lower().endswith("_proxy") or name in ("NETRC", "REQUESTS_CA_BUNDLE", "TZ"):
            monkeypatch.delenv(name)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    for number, handler in handlers.items():
        signal.signal(number, handler)


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


def contents(directory: Path) -> dict[str, str]:
    """Return the text of each file in a directory."""
    return {path.name: path.read_bytes().decode() for path in sorted(directory.iterdir())}


Prepare = Callable[..., dict[str, str]]


@pytest.fixture
def prepare(stand_in: Simulator, tmp_path: Path) -> Prepare:
    """Reset the stand-in, write the price book, and return the settings of a run."""

    def prepare(
        partner: Partner | None = SMALL,
        behaviour: Behaviour | None = None,
        fault: FaultPlan | None = None,
        latency: float = 0.0,
        prices: str | bytes | None = PRICES,
        **settings: str,
    ) -> dict[str, str]:
        stand_in.reset(partner, behaviour, fault=fault, latency=latency)
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
        *flags: str, constants: Mapping[str, float] | None = None, now: str = NOW, **more: object
    ) -> Result:
        environ = prepare(**more)
        before = set(threading.enumerate())
        capsys.readouterr()
        moment = datetime.fromisoformat(now.replace("Z", "+00:00"))
        with monkeypatch.context() as changed:
            changed.chdir(directory)
            for name, value in {**QUICK, **(constants or {})}.items():
                changed.setattr(ncp_metrics, name, value)
            try:
                status = ncp_metrics.main(flags, environ, lambda: moment)
            except SystemExit as end:  # --help, --version
                status = int(end.code or 0)
            stand_in.release()
            stdout, stderr = capsys.readouterr()
            requests = list(stand_in.requests)
            for thread in set(threading.enumerate()) - before:
                if isinstance(thread, DummyProcess):  # of the program's pool
                    thread.join(5)
                    assert not thread.is_alive(), thread.name
        return Result(status, stdout, stderr, contents(directory), requests)

    return run


@pytest.fixture
def run_process(stand_in: Simulator, prepare: Prepare, directory: Path) -> Run:
    """Run the program as a process; keywords as for `run`.

    `wrapper` is put in front of the command; settings that are not the program's own, such as
    HTTPS_PROXY or LC_ALL, are passed in the same way.
    """

    def run_process(
        *flags: str,
        constants: Mapping[str, float] | None = None,
        now: str = NOW,
        wrapper: Sequence[str] = (),
        measured: bool = True,
        **more: object,
    ) -> Result:
        environ = prepare(**more)
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
        requests = list(stand_in.requests)
        return Result(done.returncode, done.stdout, done.stderr, contents(directory), requests)

    return run_process
