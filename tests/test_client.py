"""Failing servers and networks, what becomes of API keys, what --verbose and progress show."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import socket
import ssl
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import urlencode

import pytest
import trustme
from conftest import (
    KEYS,
    Run,
    always,
    anywhere,
    assert_billed,
    assert_failed,
    cases,
    first,
    path_has,
    table,
)
from example import SMALL, tenants, usage
from rafay_simulator import (
    DEFAULT_KEY,
    PARTNER_KEY,
    Action,
    Fault,
    Request,
    Simulator,
    organization,
)

import ncp_metrics

ORGANIZATIONS = path_has("organizations")  # the first request of a run, alone in its list
ONCE = {"ATTEMPTS": 1}
BUSY = Fault(status=503)


# Retries


@table(
    "name, value",
    """
    tries             | ATTEMPTS            | 6
    first wait        | BACKOFF_SECONDS     | 0.5
    longest wait      | RETRY_AFTER_SECONDS | 30.0
    to connect        | CONNECT_SECONDS     | 10.0
    of silence        | READ_SECONDS        | 60.0
    rows of a list    | MAX_ROWS            | 4000000
    """,
)
def test_a_limit_that_tests_change_is_that_of_the_contract(name: str, value: str) -> None:
    assert str(getattr(ncp_metrics, name)) == value


@table(
    "action, status, body, reason",
    """
    connection reset     | reset       | 200 |                  | check the network
    body too short       | cut-length  | 200 |                  | run it again later
    last chunk missing   | cut-chunked | 200 |                  | check the network
    broken gzip          | bad-gzip    | 200 |                  | ContentDecodingError
    no answer            | stall       | 200 |                  | ReadTimeout
    half an answer       | stall-body  | 200 |                  | check the network
    a web page           | answer      | 200 | <html>Sign in    | not a JSON object: <html>Sign in
    an empty body        | answer      | 200 |                  | not a JSON object
    a list               | answer      | 200 | []               | not a JSON object
    an absurd number     | answer      | 200 | {"count": 1e9999999999999999999} | not a JSON object
    request time-out     | answer      | 408 |                  | HTTP 408
    too early            | answer      | 425 |                  | HTTP 425
    too many requests    | answer      | 429 |                  | HTTP 429
    server error         | answer      | 500 | unexpected error | HTTP 500: unexpected error
    service unavailable  | answer      | 503 |                  | HTTP 503
    """,
)
def test_a_failure_ends_the_run_only_if_it_lasts(
    run: Run, action: Action, status: str, body: str, reason: str
) -> None:
    fault = Fault(action, int(status), body=body.encode())
    constants = {"READ_SECONDS": 0.6, "CONNECT_SECONDS": 900.0, "ATTEMPTS": 2}
    result = run(fault=always(fault), constants=constants)
    assert_failed(result, f"organizations: gave up after 2 attempts.*{reason}")
    assert_billed(run(fault=first(1, fault), constants=constants))


def test_an_answer_that_is_nested_too_deeply_is_none(run: Run) -> None:
    result = run(fault=always(Fault(body=b"[" * 100_000)))
    assert_failed(result, "not a JSON object")


@table(
    "path, status, reason",
    """
    part of the answer    | organizations | 206 | HTTP 206
    no such organizations | organizations | 404 | HTTP 404: check RAFAY_OPS_CONSOLE_URL .* PARTNER_
    no such usage         | compute       | 404 | HTTP 404: check RAFAY_CONSOLE_URL
    usage is forbidden    | compute       | 403 | HTTP 403: .* RAFAY_DEFAULT_API_KEY
    """,
)
def test_what_will_not_change_is_not_tried_again(
    run: Run, path: str, status: str, reason: str
) -> None:
    fault = Fault(status=int(status), body=b'{"results": []}')
    result = run(fault=always(fault, path_has(path)))
    assert_failed(result, f"error: {path}[^:]*: {reason}")


def test_a_request_is_made_up_to_six_times(run: Run) -> None:
    result = run(fault=always(BUSY, ORGANIZATIONS))
    assert_failed(result, "organizations: gave up after 6 attempts")
    assert result.asked(ORGANIZATIONS) == 6
    assert_billed(run(fault=first(5, BUSY)))


@table(
    "retry_after, least",
    """
    seconds, too many  | 900                           | 0.3
    a date             | Fri, 31 Dec 9999 23:59:59 GMT | 0.3
    a date in the past | Mon, 01 Jan 2001 00:00:00 GMT | 0.1
    no date            | Mon, 99 Foo 2026 99:99:99 GMT | 0.1
    half a date        | Oct 9 , 9:                    | 0.1
    a fraction         | 1.5                           | 0.1
    blank              |                               | 0.1
    """,
)
def test_a_pause_is_as_long_as_the_server_says_or_doubles(
    run: Run, retry_after: str, least: str
) -> None:
    moments = []

    def fail(request: Request) -> Fault:
        moments.append(time.monotonic())
        return Fault(status=503, headers={"Retry-After": retry_after})

    constants = {"ATTEMPTS": 3, "BACKOFF_SECONDS": 0.1, "RETRY_AFTER_SECONDS": 0.3}
    run(fault=fail, constants=constants)
    begin, middle, end = moments
    assert middle - begin >= float(least)
    assert end - middle >= max(float(least), 0.2)


def test_the_last_attempt_is_not_followed_by_a_pause(run: Run) -> None:
    constants = {**ONCE, "BACKOFF_SECONDS": 900.0, "RETRY_AFTER_SECONDS": 900.0}
    assert_failed(run(fault=always(BUSY), constants=constants))


# The network


@table(
    "url, reason",
    """
    unknown  | https://no-such-host.invalid | check the network
    refused  | http://127.0.0.1:1           | Connection refused: check the network
    """,
)
def test_an_unusable_host_is_named(run: Run, url: str, reason: str) -> None:
    result = run(RAFAY_CONSOLE_URL=url, constants=ONCE)
    assert_failed(result, f"{url}: check .*RAFAY_CONSOLE_URL.*{reason}")


def test_a_host_that_accepts_no_connection_is_named(run: Run) -> None:
    constants = {**ONCE, "CONNECT_SECONDS": 0.2, "READ_SECONDS": 900.0}
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        address = server.getsockname()
        with socket.create_connection(address):  # it is never accepted, and fills the queue
            url = f"http://127.0.0.1:{address[1]}"
            result = run(RAFAY_CONSOLE_URL=url, constants=constants)
    assert_failed(result, f"{url}: .*ConnectTimeout")


def test_a_redirect_on_the_same_host_is_followed_with_the_key_and_no_cookie(run: Run) -> None:
    def add_slash(request: Request) -> Fault | None:
        if request.path.endswith("/"):
            return None
        location = f"{request.path}/?{urlencode(request.query)}"
        return Fault(status=308, headers={"Location": location, "Set-Cookie": "a=b; Path=/"})

    result = run(fault=add_slash, WORKERS="1")
    assert_billed(result)
    assert result.asked(lambda request: "cookie" in request.headers) == 0


@table(
    "location",
    r"""
    another host            | http://127.0.0.2:{port}/x
    another name            | http://localhost:{port}/x
    another scheme          | https://127.0.0.1:{port}/x
    another port            | http://127.0.0.1:65535/x
    another host, same port | //example.invalid:{port}/x
    the host as a user      | http://127.0.0.1:{port}@127.0.0.2:{port}/x
    read in two ways        | http://127.0.0.2:{port}/\@127.0.0.1:{port}/x
    a circle                | ?limit=1
    no URL                  | http://[bad
    """,
)
def test_no_redirect_leaves_the_host(run: Run, stand_in: Simulator, location: str) -> None:
    port = stand_in.url.rpartition(":")[2]
    headers = {"Location": location.format(port=port)}
    redirect = Fault(status=302, headers=headers)
    result = run(fault=always(redirect, path_has("compute")))
    assert_failed(result, r"northwind \(o2\): http.*RAFAY_CONSOLE_URL.*redirects to another host")
    assert result.asked(path_has("/x")) == 0


@pytest.fixture
def secure(directory: Path) -> Iterator[Simulator]:
    """Serve https on 127.0.0.1, with a certificate of the authority in `ca.pem`."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    (directory / "junk.pem").write_text("junk")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Simulator(SMALL, tls=context) as simulator:
        yield simulator


def test_a_server_is_trusted_if_the_bundle_certifies_its_host(
    run: Run, monkeypatch: pytest.MonkeyPatch, secure: Simulator
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "ca.pem")
    assert_billed(run(RAFAY_CONSOLE_URL=secure.url))
    other_name = secure.url.replace("127.0.0.1", "localhost")
    assert_failed(run(RAFAY_CONSOLE_URL=other_name), "organizations: https.*localhost.*certificate")


@table(
    "bundle, reason",
    """
    no bundle      |             | certificate.*in REQUESTS_CA_BUNDLE
    no such file   | missing.pem | missing.pem.*in REQUESTS_CA_BUNDLE
    no certificate | junk.pem    | in REQUESTS_CA_BUNDLE
    """,
)
def test_a_server_that_is_not_trusted_is_an_error_at_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, secure: Simulator, bundle: str, reason: str
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    result = run(RAFAY_CONSOLE_URL=secure.url)
    assert_failed(result, f"organizations: {secure.url}: .*TLS failed: .*{reason}")


def test_a_tls_handshake_that_is_cut_off_may_be_tried_again(run: Run, secure: Simulator) -> None:
    def cut_off(connection: Any, *_: object) -> None:
        connection.shutdown(socket.SHUT_RDWR)

    assert secure.tls
    secure.tls.sni_callback = cut_off
    result = run(RAFAY_CONSOLE_URL=secure.url, constants=ONCE)
    assert_failed(result, "gave up after 1 attempts.*check the network")


def test_over_http_neither_a_proxy_nor_netrc_is_used(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with Simulator(SMALL) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        result = run()
    assert_billed(result)
    assert proxy.requests == []
    assert result.asked(lambda request: "authorization" in request.headers) == 0


@table(
    "proxy, reason",
    """
    no host             | http://                         | HTTPS_PROXY is invalid
    only a user         | http://me:s3cret9x@             | HTTPS_PROXY is invalid
    an open bracket     | http://[                        | HTTPS_PROXY is invalid
    only a port         | http://:1                       | HTTPS_PROXY is invalid
    no such port        | http://me:s3cret9x@[::1]:99999  | HTTPS_PROXY is invalid
    nobody listens      | http://me:s3cret9x@127.0.0.1:9  | refused: check .* or HTTPS_PROXY
    password with slash | http://me:s3cr/et9x@127.0.0.1:9 | HTTPS_PROXY
    password with hash  | http://me:s3cr#et9x@127.0.0.1:9 | HTTPS_PROXY
    password with at    | http://me:s3cr@et9x@127.0.0.1:9 | HTTPS_PROXY
    no scheme           | me:s3cr/et9x@127.0.0.1:9        | HTTPS_PROXY
    """,
)
def test_over_https_a_proxy_is_used_and_its_password_never_shown_in_part(
    run: Run, monkeypatch: pytest.MonkeyPatch, proxy: str, reason: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    constants = {**ONCE, "CONNECT_SECONDS": 0.5}
    result = run(RAFAY_CONSOLE_URL="https://rafay.invalid", constants=constants)
    assert_failed(result, reason)
    assert not re.search("s3cr|et9x", result.stderr)


def test_threads_may_be_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError))
    assert_failed(run(), "lower WORKERS")


@pytest.mark.parametrize(("workers", "number"), [("3", 3), ("", 8)])
def test_as_many_requests_are_in_flight_as_workers(run: Run, workers: str, number: int) -> None:
    in_flight = []
    numbers = []
    all_of_them = threading.Barrier(number, timeout=5)

    def linger(request: Request) -> None:
        in_flight.append(request)
        numbers.append(len(in_flight))
        if "instance_organization_id" in request.query:
            all_of_them.wait()
            time.sleep(0.05)  # another one would arrive meanwhile
        in_flight.remove(request)

    listed = [organization(str(each), str(each)) for each in range(number)]
    result = run(partner=tenants(listed=listed), fault=linger, WORKERS=workers)
    assert result.status == 0
    assert max(numbers) == number


# API keys

# One begins with the other, and no other text on stderr has the letters q and x.
SHORT_KEY, LONG_KEY = "q+x+q+xq", "q+x+q+xq+qqxx+qqxx+qqxx"
ALIKE = {"RAFAY_DEFAULT_API_KEY": SHORT_KEY, "PARTNER_API_KEY": LONG_KEY}


def test_each_key_is_sent_to_its_own_host_only_and_shown_nowhere(run: Run) -> None:
    with Simulator(SMALL) as ops:
        result = run(RAFAY_OPS_CONSOLE_URL=ops.url)
    assert_billed(result)
    assert DEFAULT_KEY not in str(ops.requests)
    assert PARTNER_KEY not in str(result.requests)
    assert not KEYS.search(f"{result.stdout}{result.files}")


@pytest.mark.parametrize("key", [SHORT_KEY, LONG_KEY, LONG_KEY.upper()])
def test_a_key_that_the_server_repeats_is_not_shown_in_part(run: Run, key: str) -> None:
    body = f"<pre>{key}</pre>\\u003c{key}"
    echo = Fault(status=400, body=body.encode())
    result = run(fault=always(echo), **ALIKE)
    assert_failed(result, r"HTTP 400: .*<pre>\*\*\*</pre>")
    assert not re.search("[qx]", result.stderr, re.IGNORECASE)


@pytest.mark.parametrize("looked_at", [1000, 10_000])
def test_no_part_of_a_key_is_left_where_a_long_text_is_cut(run: Run, looked_at: int) -> None:
    repeated = f"{LONG_KEY} "
    for blanks in range(len(repeated)):
        body = " " * blanks + repeated * 100
        echo = Fault(status=400, body=body.encode())
        result = run(fault=always(echo), constants={"MAX_QUOTE": looked_at}, **ALIKE)
        assert_failed(result, r"(\*\*\* ){20}")
        assert not re.search("[qx]", result.stderr)


def test_the_text_of_an_error_is_shown_cut_short_and_safe_for_a_terminal(run: Run) -> None:
    body = b"bad range\x1b[2J\n" + b"y" * 5000
    result = run(fault=always(Fault(status=400, body=body)))
    assert_failed(result, r"400.*bad range[^\x1b]*\[2J y")
    assert len(result.stderr) < 2000


@pytest.mark.parametrize("key", [DEFAULT_KEY, PARTNER_KEY])
def test_a_key_in_an_answer_is_an_error_and_in_no_file(run: Run, key: str) -> None:
    result = run(partner=tenants(usage("o1", f"vm {key}", "gpu", "1h")))
    assert_failed(result, "compute.*Acme.*the answer holds an API key")


# --verbose and progress


def test_verbose_prints_each_request_and_what_its_answer_says(run: Run) -> None:
    result = run("--verbose", WORKERS="1")
    printed = re.findall(r"(?m)^ncp_metrics: request: (\S+): .*, \d\.\d\d s$", result.stderr)
    asked = [f"{request.path}?{urlencode(request.query)}" for request in result.requests]
    assert printed == asked
    assert re.search("compute.*=o2: HTTP 200, 2 rows, count 2, limit 400, ", result.stderr)
    assert not KEYS.search(result.stderr)


FAILING = {
    "no answer": (Fault("reset"), "no answer"),
    "a key as count": (Fault(edit=lambda _: {"count": DEFAULT_KEY}), r"HTTP 200, count \*\*\*"),
}


@cases("fault, outcome", FAILING)
def test_verbose_prints_each_request_that_fails(run: Run, fault: Fault, outcome: str) -> None:
    result = run("--verbose", fault=always(fault))
    printed = re.findall(f"(?m)^ncp_metrics: request: .*: {outcome}, ", result.stderr)
    assert len(printed) == result.asked(anywhere)
    assert not KEYS.search(result.stderr)


Draw = Callable[..., str]


@pytest.fixture
def draw(run: Run, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Return a function that runs the program on a terminal, and returns what that shows."""

    def draw(*flags: str, columns: int) -> str:
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        busy = Fault(status=503, body=b"overloaded " * 9)
        constants = {"STEP_SECONDS": 0.05, "BACKOFF_SECONDS": 0.1, "RETRY_AFTER_SECONDS": 0.1}
        with open(follower, "w", encoding="utf-8") as terminal:
            monkeypatch.setattr(sys, "stderr", terminal)
            run(*flags, fault=first(1, busy), latency=0.06, constants=constants, WORKERS="1")
            terminal.write("END")
        shown = os.read(leader, 10_000).decode()
        os.close(leader)
        return shown.removesuffix("END")

    return draw


def test_quiet_draws_no_progress(draw: Draw) -> None:
    assert draw("--quiet", columns=80) == ""


@pytest.mark.parametrize(("columns", "longest"), [(40, 39), (0, 79)])
def test_progress_stays_on_one_line_of_a_terminal_and_is_cleared(
    draw: Draw, columns: int, longest: int
) -> None:
    shown = draw(columns=columns)
    lines = shown.split("\r\x1b[K")
    assert "0/1: retrying: HTTP 503: overloaded" in shown
    assert "3/8: service usage of Empty (o3)" in shown
    assert max(map(len, lines)) == longest
    assert lines[-1] == ""
