"""The fault matrix: whatever fails, both files or none, an honest status, and a useful message."""

from __future__ import annotations

import csv
import email.utils
import io
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import trustme
from conftest import QUICK, SCRIPT, Result, Run, command, environment
from example import FILES, PRICES, RAW, SMALL, SORTED, usage
from rafay_simulator import (
    DEFAULT_KEY,
    PARTNER_KEY,
    Behaviour,
    Fault,
    FaultPlan,
    Partner,
    Request,
    Simulator,
    Where,
    always,
    first,
    fixed,
    organization,
    path_has,
)

import ncp_metrics

ORGANIZATIONS = path_has("organizations")
COMPUTE = path_has("compute")
EVERYWHERE = [pytest.param(ORGANIZATIONS, id="organizations"), pytest.param(COMPUTE, id="compute")]
IMPATIENT = (*QUICK, "READ_SECONDS=0.3", "CONNECT_SECONDS=0.3")


def assert_failed(result: Result, *words: str) -> None:
    """Assert that a run failed as it should: status 1, no file, one line that says why."""
    assert (result.status, result.stdout, result.files) == (1, "", {})
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("ncp_metrics: error: ")
    for word in words:
        assert word in result.stderr
    assert DEFAULT_KEY not in result.stderr
    assert PARTNER_KEY not in result.stderr


def assert_billed(result: Result) -> None:
    """Assert that a run ended as if nothing had happened."""
    assert (result.status, result.stderr) == (0, "")
    assert result.files == FILES


def bill(run: Run, plan: FaultPlan, **more: Any) -> Result:
    """Run the program against the small partner with faults."""
    with Simulator(SMALL, fault=plan) as simulator:
        return run(simulator=simulator, prices=PRICES, **{"constants": IMPATIENT, **more})


# The network

PASSING = [
    (Fault("reset"), "reset by peer|closed connection"),
    (Fault("reset-body"), "cut off|not JSON"),
    (Fault("cut-length"), "cut off|not JSON"),
    (Fault("cut-chunked"), "cut off|not JSON"),
    (Fault("bad-gzip"), "cannot be decompressed"),
    (Fault("stall"), "no answer within 0.3 s"),
    (Fault("stall-body"), "no answer within 0.3 s"),
    (Fault(body=b"<html>Sign in</html>", content_type="text/html"), "not JSON.*<html>Sign in"),
    (Fault(body=b""), "not JSON"),
    (Fault(body=b'{"kind": '), "not JSON"),
    (Fault(body=b'{"count": NaN}'), "not JSON"),
    (Fault(body=b"[" * 100_000), "not JSON"),
    (Fault(status=429), "HTTP 429"),
    (Fault(status=429, headers={"Retry-After": "0"}), "HTTP 429"),
    (Fault(status=429, headers={"Retry-After": "99999999"}), "HTTP 429"),
    (Fault(status=429, headers={"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}), "HTTP 429"),
    (Fault(status=429, headers={"Retry-After": "soon"}), "HTTP 429"),
    (
        Fault(status=500, body=b'{"message": "unexpected error"}'),
        "HTTP 500; it says .*unexpected error",
    ),
    (Fault(status=502), "HTTP 502"),
    (Fault(status=503, headers={"Retry-After": "1"}), "HTTP 503"),
    (Fault(status=504), "HTTP 504"),
]
PASSING_IDS = [
    "-".join([fault.action, str(fault.status), *fault.headers.values(), ascii(fault.body[:9])])
    for fault, _ in PASSING
]


@pytest.mark.parametrize("where", EVERYWHERE)
@pytest.mark.parametrize("fault", [fault for fault, _ in PASSING], ids=PASSING_IDS)
def test_what_passes_is_tried_again(run: Run, fault: Fault, where: Where) -> None:
    assert_billed(bill(run, first(2, fault, where)))


@pytest.mark.parametrize(("fault", "reason"), PASSING, ids=PASSING_IDS)
def test_what_does_not_pass_ends_the_run(run: Run, fault: Fault, reason: str) -> None:
    result = bill(run, always(fault, COMPUTE))
    assert_failed(result, "compute usage of the whole partner", "/kind/compute/usage")
    assert re.search(reason, result.stderr), result.stderr
    assert "gave up after 6 attempts" in result.stderr


LATER = {
    "a further page": lambda r: r.query["offset"] == "2" and "instance_organization_id" in r.query,
    "an organization": lambda r: r.query.get("instance_organization_id") == "o1",
    "service": path_has("service"),
    "the whole partner": lambda r: (
        "usage" in r.path and r.query["limit"] != "1" and "instance_organization_id" not in r.query
    ),
}


@pytest.mark.parametrize("where", LATER.values(), ids=LATER)
@pytest.mark.parametrize("times", [1, 5])
def test_what_passes_is_tried_again_in_every_phase(run: Run, where: Where, times: int) -> None:
    plan = first(times, Fault(status=503), where)
    with Simulator(SMALL, Behaviour(count="absent", max_limit=2), fault=plan) as simulator:
        result = run(simulator=simulator, prices=PRICES)
    assert_billed(result)


@pytest.mark.parametrize("where", LATER.values(), ids=LATER)
def test_what_does_not_pass_ends_the_run_in_every_phase(run: Run, where: Where) -> None:
    plan = always(Fault(status=503), where)
    with Simulator(SMALL, Behaviour(count="absent", max_limit=2), fault=plan) as simulator:
        result = run(simulator=simulator, prices=PRICES)
    assert_failed(result, "usage of ", "/apis/billing.envmgmt.io/v1/", "gave up after 6 attempts")


def test_pauses_double_with_jitter_and_a_retry_after_is_obeyed_within_reason() -> None:
    for attempt, longest in enumerate([0.5, 1, 2, 4, 8], start=1):
        pauses = {ncp_metrics.back_off(attempt, None) for _ in range(100)}
        assert len(pauses) > 1
        assert all(longest / 2 <= pause <= longest for pause in pauses)
    assert ncp_metrics.back_off(1, 7.0) == 7
    assert ncp_metrics.back_off(1, 1e9) == 30


def test_what_cannot_be_had_names_the_organization(run: Run) -> None:
    plan = always(
        Fault(status=503), lambda request: request.query.get("instance_organization_id") == "o1"
    )
    assert_failed(bill(run, plan), "usage of Fabrikam, Inc. (o1) (/apis/billing.envmgmt.io/v1/")


def test_a_refused_connection_is_an_error_that_names_host_and_variable(run: Run) -> None:
    keys = {"RAFAY_DEFAULT_API_KEY": "default-key", "PARTNER_API_KEY": "partner-key"}
    result = run(RAFAY_CONSOLE_URL="http://127.0.0.1:9", prices=PRICES, **keys)
    assert_failed(result, "http://127.0.0.1:9 (RAFAY_CONSOLE_URL): Connection refused")


def test_an_unknown_host_is_an_error_that_names_host_and_variable(run: Run) -> None:
    with Simulator(SMALL) as simulator:
        ops = "https://no-such-host.invalid"
        result = run(simulator=simulator, prices=PRICES, RAFAY_OPS_CONSOLE_URL=ops)
    assert_failed(result, f"{ops} (RAFAY_OPS_CONSOLE_URL): ", "organizations")


def test_a_host_that_does_not_accept_the_connection_is_an_error(run: Run) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:  # fill the queue of a server that accepts nobody
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        keys = {"RAFAY_DEFAULT_API_KEY": "default-key", "PARTNER_API_KEY": "partner-key"}
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        constants = (*QUICK, "CONNECT_SECONDS=0.3", "READ_SECONDS=30.0")
        result = run(RAFAY_CONSOLE_URL=url, prices=PRICES, constants=constants, **keys)
        for each in waiting:
            each.close()
    assert_failed(result, "no connection within 0.3 s")


@pytest.mark.parametrize("action", ["stall", "drip"])
def test_a_run_ends_even_if_the_server_never_ends_its_answer(run: Run, action: Any) -> None:
    # A byte from time to time outwits a read time-out.
    constants = (
        *QUICK,
        "SILENCE_SECONDS=1.0",
        "READ_SECONDS=0.9" if action == "drip" else "READ_SECONDS=60.0",
    )
    result = bill(run, always(Fault(action, seconds=0.5), COMPUTE), constants=constants)
    assert_failed(result, "compute usage of the whole partner (/apis", "answered nothing for 1 s")


def test_an_answer_without_measure_is_an_error(run: Run) -> None:
    plan = always(Fault(body=b" " * 2**21), COMPUTE)
    assert_failed(bill(run, plan, constants=("MAX_ANSWER_BYTES=1048576",)), "larger than 1 MiB")


# TLS


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_an_unknown_authority_is_an_error_that_points_to_the_bundle(
    run: Run, tls: ssl.SSLContext
) -> None:
    with Simulator(SMALL, tls=tls) as simulator:
        result = run(simulator=simulator, prices=PRICES)
    assert_failed(result, "certificate is not trusted", "REQUESTS_CA_BUNDLE")
    assert not simulator.requests


def test_with_the_bundle_the_run_works(
    run: Run, tls: ssl.SSLContext, authority: trustme.CA, tmp_path: Path
) -> None:
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    with Simulator(SMALL, tls=tls) as simulator:
        result = run(simulator=simulator, prices=PRICES, REQUESTS_CA_BUNDLE=str(bundle))
    assert_billed(result)


def test_a_bundle_that_does_not_exist_is_an_error_at_once(run: Run, tls: ssl.SSLContext) -> None:
    with Simulator(SMALL, tls=tls) as simulator:
        result = run(simulator=simulator, prices=PRICES, REQUESTS_CA_BUNDLE="/nonexistent.pem")
    assert_failed(result, "/nonexistent.pem")


def test_a_certificate_for_another_host_is_an_error_that_says_so(
    run: Run, authority: trustme.CA, tmp_path: Path
) -> None:
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("rafay.example").configure_cert(context)
    with Simulator(SMALL, tls=context) as simulator:
        result = run(simulator=simulator, prices=PRICES, REQUESTS_CA_BUNDLE=str(bundle))
    assert_failed(result, "is that the right host?", "127.0.0.1")


def test_a_bundle_without_a_certificate_is_an_error_at_once(
    run: Run, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    with Simulator(SMALL, tls=tls) as simulator:
        junk = str(tmp_path / "junk.pem")
        result = run(simulator=simulator, prices=PRICES, REQUESTS_CA_BUNDLE=junk)
    assert_failed(result, "REQUESTS_CA_BUNDLE")


def test_https_to_a_port_that_serves_http_is_an_error_at_once(run: Run) -> None:
    with Simulator(SMALL) as simulator:
        url = simulator.url.replace("http:", "https:")
        result = run(simulator=simulator, prices=PRICES, RAFAY_CONSOLE_URL=url)
    assert_failed(result, "is https served there")


# HTTP


@pytest.mark.parametrize(
    ("where", "variable"),
    [(ORGANIZATIONS, "PARTNER_API_KEY"), (COMPUTE, "RAFAY_DEFAULT_API_KEY")],
    ids=["organizations", "compute"],
)
@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_not_tried_again_and_the_message_names_its_variable(
    run: Run, status: int, where: Where, variable: str
) -> None:
    with Simulator(SMALL, fault=always(Fault(status=status), where)) as simulator:
        result = run(simulator=simulator, prices=PRICES, WORKERS="1")
    assert_failed(result, f"HTTP {status}", f"{variable} was refused")
    assert len([request for request in simulator.requests if where(request)]) == 1


@pytest.mark.parametrize("status", [400, 404, 405, 410, 418, 204, 206, 304])
def test_an_answer_that_will_not_change_is_not_tried_again(run: Run, status: int) -> None:
    with Simulator(SMALL, fault=always(Fault(status=status), ORGANIZATIONS)) as simulator:
        result = run(simulator=simulator, prices=PRICES)
    assert_failed(result, f"HTTP {status}")
    assert len([request for request in simulator.requests if ORGANIZATIONS(request)]) == 1


def test_the_message_of_the_api_is_shown_but_cut_short_and_without_a_key(run: Run) -> None:
    said = f"bad range\x1b[2J, key {DEFAULT_KEY} or {PARTNER_KEY}\n" + "x" * 5000
    result = bill(run, always(Fault(status=400, body=said.encode()), COMPUTE))
    assert_failed(result, "HTTP 400: the API does not take the request; it says bad range\\x1b[2J")
    assert "key *** or *** xxx" in result.stderr
    assert len(result.stderr) < 700


def test_a_retry_after_in_seconds_is_waited_for(run: Run) -> None:
    plan = first(1, Fault(status=429, headers={"Retry-After": "1"}))
    began = time.monotonic()
    assert_billed(bill(run, plan, constants=()))
    assert time.monotonic() - began >= 1


def test_a_retry_after_as_a_date_is_waited_for(run: Run) -> None:
    began = time.monotonic()
    date = email.utils.formatdate(time.time() + 3, usegmt=True)
    assert_billed(
        bill(run, first(1, Fault(status=429, headers={"Retry-After": date})), constants=())
    )
    assert time.monotonic() - began >= 2


def test_a_redirect_on_the_same_host_is_followed_with_the_key(run: Run) -> None:
    def plan(request: Request) -> Fault | None:
        location = f"{request.path}/?{urlencode(request.query)}"
        slashed = request.path.endswith("/")
        return None if slashed else Fault(status=308, headers={"Location": location})

    assert_billed(bill(run, plan))


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2:{port}\\@127.0.0.1:{port}/x",
        "http://127.0.0.1:{port}@127.0.0.2:{port}/x",
        "http://127.0.0.2:{port}/x",
        "http://126.0.0.1:{port}/x",
        "http://localhost:{port}/x",
        "https://127.0.0.1:{port}/x",
        "http://127.0.0.1:1/x",
        "http://127.0.0.1:65535/x",
        "//example.invalid/x",
        "ftp://127.0.0.1/x",
        "mailto:x",
    ],
)
def test_a_key_never_follows_a_redirect_to_another_host(run: Run, location: str) -> None:
    with Simulator(SMALL) as simulator:
        port = simulator.url.rpartition(":")[2]
        simulator.fault = always(
            Fault(status=302, headers={"Location": location.format(port=port)}), COMPUTE
        )
        result = run(simulator=simulator, prices=PRICES)
    assert_failed(result, "redirects to another host", "RAFAY_CONSOLE_URL")
    assert all(request.path != "/x" for request in simulator.requests)


def test_a_redirect_in_a_circle_is_an_error(run: Run) -> None:
    plan = always(Fault(status=302, headers={"Location": "?again"}), COMPUTE)
    with Simulator(SMALL, fault=plan) as simulator:
        result = run(simulator=simulator, prices=PRICES, WORKERS="1")
    assert_failed(result, "more than 5 redirects")
    assert len([request for request in simulator.requests if COMPUTE(request)]) == 6


def test_a_redirect_to_what_is_no_url_is_an_error(run: Run) -> None:
    plan = always(Fault(status=302, headers={"Location": "http://[bad"}), COMPUTE)
    assert_failed(bill(run, plan), "redirects to another host")


# Answers


def answer(**changes: Any) -> Fault:
    """Return a fault that changes the answer's fields; `...` takes one out."""

    def edit(plain: dict[str, Any]) -> dict[str, Any]:
        changed = {**plain, **changes}
        return {name: value for name, value in changed.items() if value is not ...}

    return Fault(edit=edit)


def record(**changes: Any) -> Fault:
    """Return a fault that changes the fields of every usage record; `...` takes one out."""

    def edit(plain: dict[str, Any]) -> dict[str, Any]:
        rows = [{**row, **changes} for row in plain["instance_usage_data"]]
        plain["instance_usage_data"] = [
            {name: value for name, value in row.items() if value is not ...} for row in rows
        ]
        return plain

    return Fault(edit=edit)


def raw(pattern: str, replacement: str) -> Fault:
    """Return a fault that changes the text of the JSON."""
    return Fault(edit=lambda plain: re.sub(pattern, replacement, json.dumps(plain)).encode())


BAD_USAGE = [
    (Fault(body=b"[]"), "the answer is not a JSON object"),
    (Fault(body=b'"usage"'), "the answer is not a JSON object"),
    (Fault(body=b"{}"), "the answer is no usage"),
    (Fault(body=b'{"message": "under maintenance"}'), "the answer is no usage"),
    (answer(instance_usage_data=..., kind=...), "the answer is no usage"),
    (answer(instance_usage_data=[], range_from=..., count=0), "the answer is no usage"),
    (answer(instance_usage_data=None), "counts 4 records but lists none"),
    (answer(instance_usage_data=...), "counts 4 records but lists none"),
    (answer(instance_usage_data=[]), "counts 4 records but lists none"),
    (answer(instance_usage_data={}), "instance_usage_data is not a list"),
    (answer(instance_usage_data=""), "instance_usage_data is not a list"),
    (answer(instance_usage_data=["x"]), "a usage record is not a JSON object"),
    (answer(count=0), "counts 0 but lists 1"),
    (answer(count="4"), "count is not a whole number: '4'"),
    (answer(count=-1), "count is not a whole number: -1"),
    (answer(count=True), "count is not a whole number: True"),
    (answer(kind="service"), "the answer is of kind 'service'"),
    (answer(range_from="2026-06-02T00:00:00Z"), "asked was 2026-06-01T00:00:00Z"),
    (answer(range_to="2026-06-30T00:00:00Z"), "asked was 2026-07-01T00:00:00Z"),
    (answer(range_to=7), "not an ISO 8601 time: 7"),
    (record(instance_id=...), "instance_id is missing"),
    (record(instance_id=""), "instance train-2: instance_id is missing"),
    (record(instance_id=7), "instance_id is not text: 7"),
    (record(instance_organization_id=None), "instance_organization_id is missing"),
    (record(profile_name=" "), "instance train-2 id-train-2: profile_name is missing"),
    (record(profile_name=["gpu"]), "profile_name is not text"),
    (record(instance_name={}), "instance_name is not text"),
    (record(created_at=1780390301), "created_at is not text"),
    (record(created_at="yesterday"), "not an ISO 8601 time: 'yesterday'"),
    (record(status=1), "status is not text"),
    (record(parameters="GPU=1"), "parameters is not a list"),
    (record(parameters=["GPU"]), "a parameter is not a JSON object"),
    (record(parameters=[{"name": "GPU", "is_label": "yes"}]), "is_label is not true or false"),
    (record(parameters=[{"name": "disk", "is_label": False}]), "parameter disk: usage and raw_"),
    (record(usage=..., raw_usage=...), "instance train-2 id-train-2: usage and raw_usage are both"),
    (record(usage="20.59"), "usage is not hours such as 20.59h: '20.59'"),
    (record(usage="1,200.00h"), "usage is not hours"),
    (record(usage="NaNh"), "usage is not hours"),
    (record(usage=20.59), "usage is not text: Decimal('20.59')"),
    (record(usage="-0.01h"), "instance train-2 id-train-2: negative hours: -0.01h"),
    (record(usage="1000000.01h"), "absurd hours: 1000000.01h"),
    (record(usage="9" * 5000 + "h"), "absurd hours: 999"),
    (record(usage="", raw_usage=-0.01), "negative hours: -0.01"),
    (record(usage="", raw_usage=True), "raw_usage is not a number: True"),
    (record(raw_usage="20.59"), "raw_usage is not a number: '20.59'"),
    (raw('"usage": "20.59h"', '"raw_usage": 1e999999'), "absurd hours: 1E+999999"),
    (raw('"usage": "20.59h"', '"raw_usage": 9e99999999999999'), "absurd hours"),
    (raw('"usage": "20.59h"', '"raw_usage": NaN'), "not JSON"),
    (raw('"usage": "20.59h"', '"raw_usage": -Infinity'), "not JSON"),
]


@pytest.mark.parametrize(
    ("fault", "message"), BAD_USAGE, ids=[f"{n}-{m[:40]}" for n, (_, m) in enumerate(BAD_USAGE)]
)
def test_usage_that_cannot_be_billed_safely_ends_the_run(
    run: Run, fault: Fault, message: str
) -> None:
    assert_failed(bill(run, always(fault, COMPUTE)), message, "compute usage of ")


BAD_ORGANIZATIONS = [
    (Fault(body=b"[]"), "the answer is not a JSON object"),
    (Fault(body=b"{}"), "neither results nor items"),
    (answer(results=None), "neither results nor items"),
    (answer(results={}), "neither results nor items"),
    (answer(results=["x"]), "an organization is not a JSON object"),
    (answer(results=[{"id": "o1"}], count=1), "an organization has no usable name: {'id': 'o1'}"),
    (answer(results=[{"id": "o1", "name": " "}]), "no usable name"),
    (answer(results=[{"id": 7, "name": "A"}]), "no usable id"),
    (answer(results=[], count=0), "none is listed"),
]


@pytest.mark.parametrize(
    ("fault", "message"), BAD_ORGANIZATIONS, ids=[message for _, message in BAD_ORGANIZATIONS]
)
def test_organizations_that_cannot_be_billed_safely_end_the_run(
    run: Run, fault: Fault, message: str
) -> None:
    assert_failed(bill(run, always(fault, ORGANIZATIONS)), message, "organizations (/auth/v1/")


# The machine


def start(simulator: Simulator, directory: Path, script: bool = False) -> subprocess.Popen[str]:
    """Start the program in the background, at NOW or as the script itself."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPT)] if script else command(constants=()),
        cwd=directory,
        env=environment(simulator.environ, measured=not script),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "where",
    [
        pytest.param(lambda r: r.query.get("limit") == "1", id="first request"),
        pytest.param(ORGANIZATIONS, id="listing"),
        pytest.param(lambda r: "instance_organization_id" in r.query, id="paging"),
    ],
)
def test_a_signal_ends_a_run_that_waits_for_the_api_at_once(
    directory: Path, number: signal.Signals, where: Where
) -> None:
    reached = threading.Event()

    def plan(request: Request) -> Fault | None:
        if not where(request):
            return None
        reached.set()
        return Fault("stall")

    with Simulator(SMALL, fault=plan) as simulator:
        process = start(simulator, directory)
        assert reached.wait(30)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (128 + number, "")
    assert (
        stderr
        == f"ncp_metrics: error: stopped by {number.name}: no file was written; run it again\n"
    )
    assert not list(directory.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_leaves_both_files_or_none(
    directory: Path, number: signal.Signals
) -> None:
    many = [usage("o1", str(n), "gpu", "1.00h") for n in range(4000)]
    partner = Partner([organization("o1", "A")], fixed(compute=many))
    statuses = []
    with Simulator(partner) as simulator:
        for step in range(25):
            process = start(simulator, directory, script=True)
            # From before Python has read the script to after it has ended.
            time.sleep(0.02 + step * 0.04)
            process.send_signal(number)
            _, stderr = process.communicate(timeout=30)
            files = list(directory.iterdir())
            assert len(files) == (2 if process.returncode == 3 else 0), process.returncode
            for path in files:
                assert len(path.read_text().splitlines()) == len(many) + 1
                path.unlink()
            statuses.append(process.returncode)
            if process.returncode in (3, 128 + number):
                assert "Traceback" not in stderr
            else:  # before `main` has begun, or Python itself
                assert process.returncode in (-number, 1)
    assert 128 + number in statuses


def test_an_interrupt_while_modules_are_imported_ends_without_a_traceback(
    directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "requests.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    done = subprocess.run(
        [sys.executable, SCRIPT],
        env=environment({"PYTHONPATH": str(tmp_path)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_full_disk_leaves_no_file(directory: Path) -> None:
    for blocks in (0, 1):
        with Simulator() as simulator:
            done = subprocess.run(
                ["sh", "-c", f'ulimit -f {blocks}; exec "$@"', "sh", *command()],
                cwd=directory,
                env=environment(simulator.environ, measured=False),
                capture_output=True,
                text=True,
                check=False,
            )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            "ncp_metrics: error: cannot write to .: File too large: no file was written\n"
        )
        assert not list(directory.iterdir())


@pytest.mark.parametrize("name", ["missing", "a file"])
def test_an_output_directory_that_is_none_is_told_before_anything_is_asked(
    run: Run, tmp_path: Path, name: str
) -> None:
    (tmp_path / "a file").write_text("")
    with Simulator(SMALL) as simulator:
        result = run("--output-dir", str(tmp_path / name), simulator=simulator, prices=PRICES)
    assert (result.status, result.stdout, simulator.requests) == (2, "", [])
    assert result.stderr == (
        f"ncp_metrics: error: --output-dir: {tmp_path / name} is not a directory: "
        "create it, or name another\n"
    )
    assert not (tmp_path / "missing").exists()


def test_an_output_directory_that_goes_away_is_an_error(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "soon gone"
    out.mkdir()

    def plan(request: Request) -> None:
        if out.exists():
            out.rmdir()

    with Simulator(SMALL, fault=plan) as simulator:
        result = run("--output-dir", str(out), simulator=simulator, prices=PRICES)
    assert_failed(result, f"cannot write to {out}: No such file or directory")


def test_a_period_across_the_turn_of_the_year(run: Run) -> None:
    with Simulator() as simulator:
        result = run("--days=1", simulator=simulator, now="2027-01-01T00:00:30Z")
    assert sorted(result.files) == [
        "ncp-metrics-01012027-000030.csv",
        "ncp-metrics-sorted-01012027-000030.csv",
    ]
    for text in result.files.values():
        assert ",2026-12-31T00:00:30Z,2027-01-01T00:00:30Z," in text


def test_a_signal_while_the_files_are_published_comes_too_late(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def interrupted(source: Path, path: Path) -> None:
        link(source, path)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("os.link", interrupted)
    ncp_metrics.listen_to_signals()
    ncp_metrics.write_files([], "USD", directory, datetime(2026, 7, 1, tzinfo=timezone.utc))
    assert sorted(path.name for path in directory.iterdir()) == [RAW, SORTED]


def test_if_the_second_file_cannot_be_published_the_first_goes_away(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def fail(source: Path, path: Path) -> None:
        if path.name == SORTED:
            raise OSError(5, "Input/output error")
        link(source, path)

    def fail_too(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.link", fail)
    monkeypatch.setattr("os.rename", fail_too)
    now = datetime(2026, 7, 1, tzinfo=timezone.utc)
    with pytest.raises(ncp_metrics.OutputError, match="Input/output error: no file was written"):
        ncp_metrics.write_files([], "USD", directory, now)
    assert not list(directory.iterdir())


def test_four_runs_in_one_second_keep_eight_files(directory: Path) -> None:
    with Simulator() as simulator:
        runs = [
            subprocess.Popen(
                command(),
                cwd=directory,
                env=environment(simulator.environ),
                stdout=subprocess.DEVNULL,
            )
            for _ in range(4)
        ]
        assert [process.wait(60) for process in runs] == [0] * 4
    names = {path.name for path in directory.iterdir()}
    seconds = [f"07012026-00000{second}" for second in range(4)]
    assert names == {
        f"ncp-metrics-{kind}{second}.csv" for kind in ("", "sorted-") for second in seconds
    }
    assert len({path.read_text() for path in directory.glob("ncp-metrics-0*")}) == 1


def test_without_hard_links_both_files_appear_and_nothing_is_overwritten(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    now = datetime(2026, 7, 1, tzinfo=timezone.utc)
    (directory / RAW).write_text("mine")
    first_, second = ncp_metrics.write_files([], "USD", directory, now)
    assert (directory / RAW).read_text() == "mine"
    assert first_.name == RAW.replace("000000", "000001")
    assert sorted(directory.iterdir()) == sorted([directory / RAW, first_, second])


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", ">/dev/full", "| true"])
def test_the_files_and_the_status_stand_whoever_listens(directory: Path, redirection: str) -> None:
    with Simulator(SMALL) as simulator:
        done = subprocess.run(
            ["bash", "-c", f'set -o pipefail; "$@" {redirection}', "bash", *command()],
            cwd=directory,
            env=environment(simulator.environ),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert sorted(path.name for path in directory.iterdir()) == [RAW, SORTED]
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize(
    "locale", [{"LANG": "C"}, {"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "POSIX"}]
)
def test_a_locale_without_the_letters_changes_no_byte_of_the_files(
    run: Run, locale: dict[str, str]
) -> None:
    with Simulator(SMALL) as simulator:
        result = run(simulator=simulator, prices=PRICES, **locale)
    assert (result.status, result.stderr, result.files) == (0, "", FILES)
    assert "rsted" in result.stdout


# Security


def test_names_that_tenants_choose_break_neither_row_nor_terminal(run: Run) -> None:
    evil = 'A\r\nB\0"\u202ecod\x1b[2J,\u2028;\ud800'
    partner = Partner(
        [organization("o1", evil)],
        fixed(compute=[usage("o1", "i\x9b31m", "+cmd|' /C calc'!A0", "1.00h", status="\tx")]),
    )
    with Simulator(partner) as simulator:
        result = run(simulator=simulator, prices=PRICES)
    assert result.status == 3
    header, row = csv.reader(io.StringIO(result.raw, newline=""))
    assert len(row) == len(header)
    assert row[0] == 'A\r\nB\ufffd"\u202ecod\x1b[2J,\u2028;?'
    assert row[4:8] == ["'+cmd|' /C calc'!A0", "i\x9b31m", "id-i\x9b31m", "'\tx"]
    shown = result.stdout + result.stderr
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert 'A\\r\\nB\\x00"\\u202ecod\\x1b[2J,\\u2028;\\ud800 (o1)' in shown


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=400, body=f"x-api-key: {DEFAULT_KEY}".encode()),
        Fault(status=400, body=f"\\u003c{DEFAULT_KEY}\\u003e".encode()),
        *(Fault(body=b"x" * n + DEFAULT_KEY.encode()) for n in range(20, 460, 5)[::11]),
        Fault(body=f"<pre>x-api-key: {DEFAULT_KEY}</pre>".encode()),
        answer(count=DEFAULT_KEY),
        record(usage=DEFAULT_KEY),
        record(instance_name=DEFAULT_KEY, usage=""),
        Fault(edit=lambda plain: json.dumps({DEFAULT_KEY: 1}).encode()),
    ],
)
def test_a_key_that_the_server_repeats_is_not_shown(run: Run, fault: Fault) -> None:
    result = bill(run, always(fault, COMPUTE))
    assert_failed(result)
    assert DEFAULT_KEY[:12] not in result.stderr


@pytest.mark.parametrize(
    "text", ["abc-defg-hijk", "{abc-defg}", "u003cabc-defg\\u003e", "%20abc-defg"]
)
def test_the_longer_of_two_keys_is_taken_out_first(text: str) -> None:
    shown = ncp_metrics.redact(text, ["abc-defg", "abc-defg-hijk"])
    assert "abc" not in shown
    assert "hijk" not in shown


@pytest.mark.parametrize(
    "flags",
    [["--api-key=unset-key-1"], ["--key", "unset-key-1"], ["unset-key-1"], ["--quiet=unset-key-1"]],
)
def test_a_key_on_the_command_line_is_not_shown(run: Run, flags: list[str]) -> None:
    result = run(*flags)
    assert result.status == 2
    assert "--help lists the flags" in result.stderr
    assert "unset-key-1" not in result.stderr


def test_a_key_in_the_wrong_variable_is_not_shown(run: Run) -> None:
    with Simulator() as simulator:
        result = run(simulator=simulator, DAYS=DEFAULT_KEY, CURRENCY=PARTNER_KEY)
    assert result.status == 2
    assert "DAYS: '***' is not a whole number" in result.stderr
    assert PARTNER_KEY not in result.stderr


def test_the_password_of_a_proxy_is_not_shown(run: Run) -> None:
    keys = {"RAFAY_DEFAULT_API_KEY": "default-key", "PARTNER_API_KEY": "partner-key"}
    url = "http://me:s3cret@127.0.0.1:99999"
    result = run(RAFAY_CONSOLE_URL="https://rafay.invalid", HTTPS_PROXY=url, prices=PRICES, **keys)
    assert_failed(result, "HTTPS_PROXY")
    assert "s3cret" not in result.stderr


def test_no_key_is_in_any_output_file_or_repr(run: Run) -> None:
    with Simulator(SMALL) as simulator:
        result = run(simulator=simulator, prices=PRICES)
        told, _ = ncp_metrics.read_settings(
            {}, simulator.environ, datetime(2026, 7, 1, tzinfo=timezone.utc)
        )
    client = ncp_metrics.Client(told)
    texts = [result.stdout, result.stderr, *result.files.values()]
    texts += [repr(told), repr(client.usage_endpoint), repr(client.organizations_endpoint)]
    for key in (DEFAULT_KEY, PARTNER_KEY):
        assert not [text for text in texts if key in text]


def test_a_proxy_is_never_sent_a_key_in_clear(run: Run) -> None:
    with Simulator(SMALL) as proxy, Simulator(SMALL) as simulator:
        proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), proxy.url)
        result = run(simulator=simulator, prices=PRICES, **proxies)
    assert_billed(result)
    assert not proxy.requests


def test_https_goes_through_the_proxy_that_is_set(run: Run) -> None:
    keys = {"RAFAY_DEFAULT_API_KEY": "default-key", "PARTNER_API_KEY": "partner-key"}
    with Simulator(SMALL) as proxy:
        result = run(
            RAFAY_CONSOLE_URL="https://rafay.invalid", HTTPS_PROXY=proxy.url, prices=PRICES, **keys
        )
    assert_failed(result, "the proxy failed", "HTTPS_PROXY")


def test_a_netrc_adds_nothing_to_a_request(run: Run, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n")
    netrc.chmod(0o600)
    with Simulator(SMALL) as simulator:
        assert_billed(run(simulator=simulator, prices=PRICES, NETRC=str(netrc)))
    assert not [request for request in simulator.requests if "authorization" in request.headers]
