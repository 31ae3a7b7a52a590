"""A stand-in for a Rafay controller: real HTTP on a loopback port, standard library only.

`python tests/rafay_simulator.py COMMAND...` runs COMMAND with settings that lead to it. In tests,
it is a context manager: `with Simulator() as simulator:`.

It answers the two requests of the program. What Rafay has published of them are paths, keys, query
parameters, and one answer of usage: one row, with the fields of the records below, but no metered
quantity. That organizations come as `results` with `next` is what independent clients read. All
else is a guess: the meaning of `count`, pages, errors, the other fields of organizations.

From top to bottom: what it serves, an example, the server. How it misbehaves, at the end, is for
tests of what nobody has published, and of failing servers and networks.
"""

from __future__ import annotations

import gzip
import http.server
import json
import os
import re
import signal
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal, NamedTuple, Optional
from urllib.parse import parse_qsl, urlencode, urlsplit

Json = dict[str, Any]

# What it serves

DEFAULT_KEY = "stand-in-default-key"
PARTNER_KEY = "stand-in-partner-key"
PARTNER_ID = "q1w2e3r"
DEFAULT_ORGANIZATION_ID = "zx9cv8b"

ORGANIZATIONS_PATH = "/auth/v1/organizations"
USAGE_PATH = re.compile(
    r"/apis/billing\.envmgmt\.io/v1/metrics/partner/instance/kind/(compute|service)/usage"
)
LAST_CHUNK = b"0\r\n\r\n"
UTC_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?Z")


class Request(NamedTuple):
    """A request as it arrived; header names are in lower case."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]


class RefusedError(Exception):
    """A request is answered with an error; the arguments are its status and message."""


# Returns the records of a kind (compute or service) in a range, of one organization or of all.
Records = Callable[[str, datetime, datetime, Optional[str]], list[Json]]


@dataclass(frozen=True)
class Partner:
    """What a controller knows."""

    organizations: Sequence[Json]
    records: Records

    def answer(self, request: Request) -> Json:
        """Answer a request; raises RefusedError or ValueError."""
        path = request.path.removesuffix("/")
        if path == ORGANIZATIONS_PATH:
            require_key(request, "x-rafay-api-keyid", PARTNER_KEY)
            return self.list_organizations(request)
        usage = USAGE_PATH.fullmatch(path)
        if usage:
            require_key(request, "x-api-key", DEFAULT_KEY)
            return self.list_usage(usage[1], request.query)
        raise RefusedError(404, "not found")

    def list_organizations(self, request: Request) -> Json:
        """Answer with a page of organizations, and the address of the next one."""
        offset, limit = read_page(request.query)
        end = offset + limit
        url = None
        if end < len(self.organizations):
            query = {**request.query, "offset": end}
            url = f"{request.path}?{urlencode(query)}"
        return {
            "count": len(self.organizations),
            "next": url,
            "results": self.organizations[offset:end],
        }

    def list_usage(self, kind: str, query: Mapping[str, str]) -> Json:
        """Answer with a page of the usage of a kind."""
        offset, limit = read_page(query)
        start = read_time(query, "range_from")
        end = read_time(query, "range_to")
        organization_id = query.get("instance_organization_id") or None
        records = self.records(kind, start, end, organization_id)
        times = {"start_time": iso(start), "end_time": iso(end)}
        return {
            "kind": kind,
            "partner_id": PARTNER_ID,
            "organization_id": DEFAULT_ORGANIZATION_ID,
            "instance_usage_data": [
                {**times, **record} for record in records[offset : offset + limit]
            ],
            "count": len(records),
            "offset": offset,
            "limit": limit,
            "range_from": iso(start),
            "range_to": iso(end),
        }


def require_key(request: Request, header: str, key: str) -> None:
    """Refuse a request without the right API key."""
    if request.headers.get(header) != key:
        raise RefusedError(401, "missing or invalid API key")


def read_page(query: Mapping[str, str]) -> tuple[int, int]:
    """Return offset and limit; without a limit, a page of usage has 10 rows."""
    return int(query.get("offset") or 0), int(query.get("limit") or 10)


def read_time(query: Mapping[str, str], name: str) -> datetime:
    """Return a moment in UTC; its answer to milliseconds had whole seconds."""
    match = UTC_TIME.fullmatch(query.get(name, ""))
    if not match:
        raise RefusedError(400, f"invalid {name}")
    return datetime.fromisoformat(f"{match[1]}+00:00")


def iso(moment: datetime) -> str:
    """Write ISO 8601 UTC with the Z that the API uses."""
    return moment.isoformat().replace("+00:00", "Z")


def organization(id_: str, name: str, *, active: bool = True, external_id: str = "") -> Json:
    """Write an organization."""
    return {
        "id": id_,
        "name": name,
        "settings": {"currency": "USD"},
        "active": active,
        "approved": True,
        "partner_id": PARTNER_ID,
        "is_default_org": False,
        "external_id": external_id,
    }


@dataclass(frozen=True)
class Instance:
    """An instance that runs a share of whatever period is asked for."""

    fields: Json  # of its record, but for its usage and parameters
    duty: Decimal  # 1: always; 0.25: six hours a day
    labels: Mapping[str, str] = field(default_factory=dict)
    quantities: Mapping[str, str] = field(default_factory=dict)

    def record(self, start: datetime, end: datetime) -> Json:
        """Write the record of its usage in a range."""
        seconds = (end - start) // timedelta(seconds=1)
        hours = self.duty * seconds / 3600
        parameters = []
        for name, value in self.labels.items():
            label = {"name": name, "is_label": True, **metered_hours(hours), "label_value": value}
            parameters.append(label)
        for name, quantity in self.quantities.items():
            usage = metered_hours(hours * Decimal(quantity))
            parameters.append({"name": name, "is_label": False, **usage})
        return {**self.fields, "parameters": parameters, **metered_hours(hours)}


def metered_hours(hours: Decimal) -> Json:
    """Write `usage`, which has two decimals, and `raw_usage`, which is not rounded."""
    usage = hours.quantize(Decimal("0.01"), ROUND_HALF_UP)
    return {"usage": f"{usage}h", "raw_usage": round(float(hours), 6)}


def made_up_id(*names: str) -> str:
    """Make an id that is the same in every run."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(names)))


def metered(compute: Sequence[Instance] = (), service: Sequence[Instance] = ()) -> Records:
    """Return a function that meters instances in the range asked for."""
    instances = {"compute": compute, "service": service}

    def records(kind: str, start: datetime, end: datetime, only: str | None) -> list[Json]:
        every = [instance.record(start, end) for instance in instances[kind]]
        return [each for each in every if only in (None, each["instance_organization_id"])]

    return records


# An example: a small believable partner

# Name, id, the provider's own customer number, whether it is active. Zephyr has no usage.
ORGANIZATIONS = """
Northwind Labs   | 4kd82ma | 0010042  | yes
acme robotics    | p7w3xq9 |          | yes
Zephyr Analytics | z9n4h6d |          | yes
Fabrikam, Inc.   | 2mv8tzk | CRM-2077 | yes
Électricité Øst  | e5r1l0c |          | yes
Contoso Health   | 8bq6y2s |          | no
Tailspin Vision  | t6j5g0v |          | yes
"""
# Profile, labels; vm-gpu-l40s has the five labels of the answer that Rafay published.
PROFILES = """
gpu-h100-x1         | GPU=1, GPU Model=H100
gpu-h100-x8         | GPU=8, GPU Model=H100
gpu-a100-x1         | GPU=1, GPU Model=A100
gpu-l40s-x1         | GPU=1, GPU Model=L40S
cpu-standard-8      | CPU=8, CPU Architecture=amd64
inference-llm-small | GPU=1, GPU Model=L40S
notebook-jupyter    | GPU=1, GPU Model=A100
notebook-cpu-free   |
vm-gpu-l40s | CPU=24, Disk=150, ServiceID=019c510c-0000-707d-aef7-000000000001, GPU=1, Memory=256
"""
# Organization, project, profile, instance, duty, metered gigabytes.
COMPUTE = """
acme robotics   | perception  | gpu-h100-x8    | sim-cluster    | 1     | 4000
Fabrikam, Inc.  | default     | gpu-a100-x1    | render-a       | 0.25  | 500
Northwind Labs  | platform    | cpu-standard-8 | bastion        | 1     | 100
Électricité Øst | prévision   | gpu-l40s-x1    | météo-1        | 0.5   | 250
Contoso Health  | imaging     | gpu-a100-x1    | ct-1           | 0.125 | 800
acme robotics   | perception  | cpu-standard-8 | label-tool     | 0.375 | 64
Fabrikam, Inc.  | default     | cpu-standard-8 | license-server | 1     | 40
Northwind Labs  | research    | gpu-h100-x1    | train-01       | 0.01  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-02       | 0.02  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-03       | 0.03  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-04       | 0.04  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-05       | 0.05  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-06       | 0.06  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-07       | 0.07  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-08       | 0.08  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-09       | 0.09  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-10       | 0.10  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-11       | 0.11  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-12       | 0.12  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-13       | 0.13  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-14       | 0.14  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-15       | 0.15  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-16       | 0.16  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-17       | 0.17  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-18       | 0.18  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-19       | 0.19  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-20       | 0.20  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-21       | 0.21  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-22       | 0.22  | 1200
Northwind Labs  | research    | gpu-h100-x1    | train-23       | 0.23  | 1200
Tailspin Vision | development | vm-gpu-l40s    | dev-vm-1       | 0.65  |
Tailspin Vision | development | vm-gpu-l40s    | dev-vm-2       | 1     |
"""
SERVICE = """
Northwind Labs  | research  | inference-llm-small | chat-eval       | 0.75  | 80
Fabrikam, Inc.  | default   | notebook-cpu-free   | intern-notebook | 0.2   | 5
acme robotics   | planning  | notebook-jupyter    | grasp-notes     | 0.333 | 20
Électricité Øst | prévision | inference-llm-small | assistant       | 1     | 80
Northwind Labs  | research  | notebook-cpu-free   | onboarding      | 0.05  | 5
"""


def read_table(text: str) -> list[list[str]]:
    """Return the cells of a table."""
    rows = []
    for line in text.strip().splitlines():
        rows.append([cell.strip() for cell in line.split("|")])
    return rows


def small_partner() -> Partner:
    """Make the example."""
    ids = {}
    organizations = []
    for name, id_, external_id, active in read_table(ORGANIZATIONS):
        ids[name] = id_
        organizations.append(
            organization(id_, name, active=active == "yes", external_id=external_id)
        )
    labels = {}
    for profile, text in read_table(PROFILES):
        labels[profile] = dict(label.split("=") for label in text.split(", ") if label)

    def read_instances(text: str) -> list[Instance]:
        instances = []
        for cells in read_table(text):
            name, project, profile, instance, duty, gigabytes = cells
            fields = {
                "instance_organization_id": ids[name],
                "instance_organization_name": name,
                "instance_project_id": made_up_id(ids[name], project)[:7],
                "instance_project_name": project,
                "profile_id": made_up_id(profile),
                "profile_name": profile,
                "instance_id": made_up_id(name, project, instance),
                "instance_name": instance,
                "created_at": "2025-06-02T08:51:41Z",
            }
            quantities = {"storage_size": gigabytes} if gigabytes else {}
            instances.append(Instance(fields, Decimal(duty), labels[profile], quantities))
        return instances

    return Partner(organizations, metered(read_instances(COMPUTE), read_instances(SERVICE)))


# The server


class Reply(NamedTuple):
    """An answer before it is encoded for the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def json_reply(status: int, answer: Any) -> Reply:
    """Return a reply in JSON."""
    text = json.dumps(answer, ensure_ascii=False)
    headers = {"Content-Type": "application/json"}
    return Reply(status, headers, text.encode("utf-8", "surrogatepass"))


class Simulator:
    """The controller, from `with` to the end of the block."""

    url: str  # such as http://127.0.0.1:49152
    environ: dict[str, str]  # the settings that lead a program here

    def __init__(self, partner: Partner | None = None, tls: ssl.SSLContext | None = None) -> None:
        """Serve the small partner and behave plainly, unless told otherwise."""
        self.tls = tls
        self.closing = threading.Event()
        self.reset(partner)

    def reset(
        self,
        partner: Partner | None = None,
        behaviour: Behaviour | None = None,
        fault: Callable[[Request], Fault | None] = lambda request: None,
        latency: float = 0.0,
    ) -> None:
        """Serve as if it had just been started with these."""
        self.partner = partner or small_partner()
        self.behaviour = behaviour or Behaviour()
        self.fault = fault
        self.latency = latency
        self.requests: list[Request] = []  # every one, in order of arrival

    def release(self) -> None:
        """End what is stalled."""
        self.closing.set()
        self.closing = threading.Event()

    def __enter__(self) -> Simulator:
        """Start to serve."""
        self._server = _Server(self)
        scheme = "https" if self.tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self.environ = {
            "RAFAY_CONSOLE_URL": self.url,
            "RAFAY_DEFAULT_API_KEY": DEFAULT_KEY,
            "PARTNER_API_KEY": PARTNER_KEY,
        }
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop, and end what is stalled."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def serve(self, request: Request) -> tuple[Reply, Action]:
        """Return the reply to a request, and how to deliver it."""
        self.requests.append(request)
        fault = self.fault(request)
        self.closing.wait(self.latency)
        reply = self._reply(request)
        if fault:
            return fault.apply(reply)
        return reply, "answer"

    def _reply(self, request: Request) -> Reply:
        """Return the reply of a controller that behaves as it was told to."""
        try:
            answer = self.partner.answer(self.behaviour.distort_request(request))
            return json_reply(200, self.behaviour.distort_answer(request, answer))
        except RefusedError as refusal:
            status, message = refusal.args
            return json_reply(status, {"message": message})
        except ValueError as error:  # of a number in the query
            return json_reply(400, {"message": str(error)})


# Not http.server.HTTPServer: that one looks its host's name up, which takes seconds on some hosts.
class _Server(socketserver.ThreadingTCPServer):
    """A thread for each connection."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, simulator: Simulator) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.simulator = simulator
        if simulator.tls:  # a handshake is left to the connection's own thread, at its first read
            self.socket = simulator.tls.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients may go away at any time; anything else is a bug, and is shown.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave together
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: the log is `Simulator.requests`."""

    def do_GET(self) -> None:
        simulator = self.server.simulator
        closing = simulator.closing  # as of now: a fault may end the run, and with it what stalls
        target = urlsplit(self.path)
        query = dict(parse_qsl(target.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply, action = simulator.serve(Request(target.path, query, headers))
        if action == "answer":
            self.send(reply)
        else:
            damage(self, reply, action, closing)

    def send(self, reply: Reply, chunked: bool = True, missing: int = 0) -> None:
        """Send a reply, but for so many bytes at its end; JSON is compressed and in one chunk."""
        body = reply.body
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        is_json = "Content-Type" in reply.headers
        if is_json and "gzip" in self.headers.get("Accept-Encoding", ""):
            self.send_header("Content-Encoding", "gzip")
            body = gzip.compress(body)
        if is_json and chunked:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%b\r\n" % (len(body), body) + LAST_CHUNK
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) - missing])
        self.wfile.flush()


def main() -> int:
    """Run a command against the small partner; return its exit status, as a shell would."""
    command = sys.argv[1:]
    if not command or command[0].startswith("-"):
        print(f"usage: rafay_simulator.py COMMAND...\n\n{__doc__}", file=sys.stderr)
        return 2
    with Simulator() as simulator:
        environ = {**os.environ, **simulator.environ, "RAFAY_OPS_CONSOLE_URL": ""}
        try:
            child = subprocess.Popen(command, env=environ)
        except OSError as error:
            print(f"rafay_simulator: {command[0]}: {error.strerror}", file=sys.stderr)
            return 127
        # Ctrl-C in a terminal goes to the child as well; its status is awaited.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        status = child.wait()
    return status if status >= 0 else 128 - status


# How it misbehaves


@dataclass(frozen=True)
class Behaviour:
    """What Rafay's documents leave open."""

    count: Literal["total", "page", "absent"] = "total"
    max_count: int = 10**9  # no list is counted further than this
    lag: int = 0  # rows that are not counted yet
    max_limit: int = 400  # a larger limit is lowered
    echo_limit: bool = True  # the answer says to what; if not, it says what was asked for
    honour_offset: bool = True  # of usage
    honour_filter: bool = True

    def distort_request(self, request: Request) -> Request:
        """Return what is answered in place of a request."""
        query = dict(request.query)
        query["limit"] = str(min(int(query.get("limit") or 10), self.max_limit))
        if "kind" in request.path:
            if not self.honour_offset:
                query["offset"] = "0"
            if not self.honour_filter:
                query["instance_organization_id"] = ""
        return request._replace(query=query)

    def distort_answer(self, request: Request, answer: Json) -> Json:
        """Return what is sent in place of an answer."""
        changed = dict(answer)
        if "limit" in answer and not self.echo_limit:
            changed["limit"] = int(request.query["limit"])
        changed["count"] = max(min(answer["count"], self.max_count) - self.lag, 0)
        if self.count == "page":
            rows = answer["instance_usage_data"] if "kind" in answer else answer["results"]
            changed["count"] = len(rows)
        if self.count == "absent":
            del changed["count"]
        return changed


Action = Literal["answer", "reset", "cut-length", "cut-chunked", "bad-gzip", "stall", "stall-body"]


@dataclass(frozen=True)
class Fault:
    """What a request gets in place of its plain answer.

    Fault(status=503, body=b"busy"): another answer. Fault(edit=function): the plain answer's JSON,
    changed to other JSON or to bytes. Fault("reset"): the plain answer, delivered like that.
    """

    action: Action = "answer"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    edit: Callable[[Any], Any] | None = None

    def apply(self, reply: Reply) -> tuple[Reply, Action]:
        """Return the reply that is sent in place of a plain one, and how."""
        if self.edit:
            edited = self.edit(json.loads(reply.body))
            if not isinstance(edited, bytes):
                return json_reply(200, edited), "answer"
            return reply._replace(body=edited), "answer"
        if self.action == "answer":
            return Reply(self.status, self.headers, self.body), "answer"
        return reply, self.action


def damage(handler: _Handler, reply: Reply, action: Action, closing: threading.Event) -> None:
    """Deliver a reply as the action says, if at all, and end the connection."""
    handler.close_connection = True
    if action == "bad-gzip":
        handler.send(reply._replace(headers={"Content-Encoding": "gzip"}))
    if action == "cut-chunked":
        handler.send(reply, missing=len(LAST_CHUNK))
    if action in ("cut-length", "stall-body"):
        handler.send(reply, chunked=False, missing=20)  # more than gzip has after the data
    if action in ("stall", "stall-body"):
        closing.wait()
    if action == "reset":  # in place of an orderly end
        linger = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        handler.connection.close()
        handler.rfile.close()  # the socket is open for as long as a file on it is


if __name__ == "__main__":
    raise SystemExit(main())
