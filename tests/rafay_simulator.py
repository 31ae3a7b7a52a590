"""A stand-in for a Rafay controller: real HTTP on a loopback port, standard library only.

In tests it is a context manager (`with Simulator() as simulator:`); on the command line,
`python tests/rafay_simulator.py COMMAND...` runs COMMAND with its settings in the environment.
"""

from __future__ import annotations

import gzip
import http.client
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
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal, Optional, final
from urllib.parse import parse_qsl, urlencode, urlsplit

DEFAULT_KEY = "stand-in-default-key"
PARTNER_KEY = "stand-in-partner-key"

PARTNER_ID = "q1w2e3r"
DEFAULT_ORGANIZATION_ID = "zx9cv8b"
ORGANIZATIONS_PATH = re.compile(r"/auth/v1/organizations(?:/([^/]+))?")
USAGE_PATH = re.compile(
    r"/apis/billing\.envmgmt\.io/v1/metrics/partner"
    r"/(instance|profile)/kind/(compute|service)/usage"
)
UTC_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d{1,9})?(?:Z|\+00:00)")
DEFAULT_LIMIT = 10
CHUNK_SIZE = 1024
LAST_CHUNK = b"0\r\n\r\n"

Record = dict[str, Any]
Records = Callable[[str, datetime, datetime, Optional[str]], list[Record]]


@dataclass(frozen=True)
class Instance:
    """An instance whose usage follows from the range asked for: hours in range x duty."""

    organization_id: str
    organization_name: str
    project: str
    profile: str
    name: str
    instance_id: str
    created_at: str
    duty: Decimal  # share of the period that it ran: 1 = always, 0.25 = six hours a day
    labels: Mapping[str, str] = field(default_factory=dict)
    quantities: Mapping[str, Decimal] = field(default_factory=dict)

    def record(self, start: datetime, end: datetime) -> Record:
        """Meter the instance for a range, whatever the instance's own life."""
        microseconds = Decimal((end - start) // timedelta(microseconds=1))
        hours = microseconds * self.duty / 3_600_000_000
        labels = [
            {**parameter(name, hours, is_label=True), "label_value": value}
            for name, value in self.labels.items()
        ]
        quantities = [
            parameter(name, quantity * hours, is_label=False)
            for name, quantity in self.quantities.items()
        ]
        return {
            "instance_organization_id": self.organization_id,
            "instance_organization_name": self.organization_name,
            "instance_project_id": made_up_id(self.organization_id, self.project).hex[:7],
            "instance_project_name": self.project,
            "profile_id": str(made_up_id(self.profile)),
            "profile_name": self.profile,
            "instance_id": self.instance_id,
            "instance_name": self.name,
            "created_at": self.created_at,
            "parameters": labels + quantities,
            **metered_hours(hours),
            "start_time": iso(start),
            "end_time": iso(end),
        }


@dataclass(frozen=True)
class Partner:
    """What the controller knows: organizations, and records by kind, range and organization."""

    organizations: Sequence[Mapping[str, Any]]
    records: Records


def metered(compute: Sequence[Instance] = (), service: Sequence[Instance] = ()) -> Records:
    """Work records out from instances and the range asked for."""
    instances = {"compute": compute, "service": service}

    def records(kind: str, start: datetime, end: datetime, only: str | None) -> list[Record]:
        asked = (each for each in instances[kind] if only in (None, each.organization_id))
        return [each.record(start, end) for each in asked]

    return records


def fixed(
    compute: Iterable[Mapping[str, Any]] = (), service: Iterable[Mapping[str, Any]] = ()
) -> Records:
    """Serve records as they are; only an absent start_time or end_time is set."""
    given: dict[tuple[str, str | None], list[Mapping[str, Any]]] = defaultdict(list)
    for kind, records_of_kind in (("compute", compute), ("service", service)):
        for record in records_of_kind:
            given[kind, None].append(record)
            given[kind, str(record.get("instance_organization_id"))].append(record)

    def records(kind: str, start: datetime, end: datetime, only: str | None) -> list[Record]:
        asked = {"start_time": iso(start), "end_time": iso(end)}
        return [{**asked, **record} for record in given[kind, only]]

    return records


def organization(
    organization_id: str, name: str, *, active: bool = True, external_id: str = ""
) -> Record:
    """Write an organization as the API lists it."""
    return {
        "id": organization_id,
        "name": name,
        "settings": {"currency": "USD"},
        "active": active,
        "approved": True,
        "partner_id": PARTNER_ID,
        "is_default_org": organization_id == DEFAULT_ORGANIZATION_ID,
        "external_id": external_id,
    }


def profile_totals(records: Sequence[Record], start: datetime, end: datetime) -> list[Record]:
    """Add up the hours of each profile: a guess, as Rafay documents the request, but no answer."""
    hours: dict[tuple[str, str | None], Decimal] = defaultdict(Decimal)
    for one in records:
        raw = str(one.get("raw_usage") or one["usage"].rstrip("h"))
        hours[one["profile_name"], one.get("profile_id")] += Decimal(raw)
    asked = {"start_time": iso(start), "end_time": iso(end)}
    return [
        {"profile_id": id_, "profile_name": name, **metered_hours(total), **asked}
        for (name, id_), total in hours.items()
    ]


def metered_hours(hours: Decimal) -> Record:
    """Write `usage`, half up to 0.01h, and `raw_usage`, to six decimals."""
    usage = hours.quantize(Decimal("0.01"), ROUND_HALF_UP)
    return {"usage": f"{usage:f}h", "raw_usage": round(float(hours), 6)}


def parameter(name: str, hours: Decimal, *, is_label: bool) -> Record:
    """Write a parameter with its fields in the order that Rafay recorded."""
    usage, raw_usage = metered_hours(hours).values()
    return {"name": name, "usage": usage, "is_label": is_label, "raw_usage": raw_usage}


def made_up_id(*names: str) -> uuid.UUID:
    """Make an identifier that is the same in every run."""
    return uuid.uuid5(uuid.NAMESPACE_URL, "/".join(names))


def iso(moment: datetime) -> str:
    """Write ISO 8601 UTC with the Z that the API uses."""
    return moment.isoformat().replace("+00:00", "Z")


# Name, id and, for some, the provider's own customer number.
SMALL_ORGANIZATIONS = {
    "Northwind Labs": ("4kd82ma", "0010042"),
    "acme robotics": ("p7w3xq9", ""),
    "Zephyr Analytics": ("z9n4h6d", ""),  # without any usage
    "Fabrikam, Inc.": ("2mv8tzk", "CRM-2077"),
    "Électricité Øst": ("e5r1l0c", ""),
    "Contoso Health": ("8bq6y2s", ""),  # deactivated, its usage still to be billed
    "Tailspin Vision": (
        "t6j5g0v",
        "",
    ),  # its parameters are all labels, as in Rafay's recorded answer
}
SMALL_PROFILES = {
    "gpu-h100-x1": {"GPU": "1", "GPU Model": "H100"},
    "gpu-h100-x8": {"GPU": "8", "GPU Model": "H100"},
    "gpu-a100-x1": {"GPU": "1", "GPU Model": "A100"},
    "gpu-l40s-x1": {"GPU": "1", "GPU Model": "L40S"},
    "cpu-standard-8": {"CPU": "8", "CPU Architecture": "amd64"},
    "inference-llm-small": {"GPU": "1", "GPU Model": "L40S"},
    "notebook-jupyter": {"GPU": "1", "GPU Model": "A100"},
    "notebook-cpu-free": {},
    "vm-gpu-l40s": {  # the five labels that Rafay recorded
        "CPU": "24",
        "Disk": "150",
        "ServiceID": "019c510c-0000-707d-aef7-000000000001",
        "GPU": "1",
        "Memory": "256",
    },
}
# Organization, project, profile, instance, duty, and gigabytes, if they are metered.
SMALL_COMPUTE = [
    ("acme robotics", "perception", "gpu-h100-x8", "sim-cluster", "1", "4000"),
    ("Fabrikam, Inc.", "default", "gpu-a100-x1", "render-a", "0.25", "500"),
    ("Northwind Labs", "platform", "cpu-standard-8", "bastion", "1", "100"),
    ("Électricité Øst", "prévision", "gpu-l40s-x1", "météo-1", "0.5", "250"),
    ("Contoso Health", "imaging", "gpu-a100-x1", "ct-1", "0.125", "800"),
    ("acme robotics", "perception", "cpu-standard-8", "label-tool", "0.375", "64"),
    ("Fabrikam, Inc.", "default", "cpu-standard-8", "license-server", "1", "40"),
    *(
        ("Northwind Labs", "research", "gpu-h100-x1", f"train-{n:02}", f"0.{n:02}", "1200")
        for n in range(1, 24)
    ),
    ("Tailspin Vision", "development", "vm-gpu-l40s", "dev-vm-1", "0.65"),
    ("Tailspin Vision", "development", "vm-gpu-l40s", "dev-vm-2", "1"),
]
SMALL_SERVICE = [
    ("Northwind Labs", "research", "inference-llm-small", "chat-eval", "0.75", "80"),
    ("Fabrikam, Inc.", "default", "notebook-cpu-free", "intern-notebook", "0.2", "5"),
    ("acme robotics", "planning", "notebook-jupyter", "grasp-notes", "0.333", "20"),
    ("Électricité Øst", "prévision", "inference-llm-small", "assistant", "1", "80"),
    ("Northwind Labs", "research", "notebook-cpu-free", "onboarding", "0.05", "5"),
]


def small_instance(n: int, row: Sequence[str]) -> Instance:
    """Make the nth instance of the small partner from a row of the tables above."""
    name, project, profile, instance, duty, *gigabytes = row
    return Instance(
        organization_id=SMALL_ORGANIZATIONS[name][0],
        organization_name=name,
        project=project,
        profile=profile,
        name=instance,
        instance_id=str(made_up_id(name, project, instance)),
        created_at=f"2025-{n % 9 + 1:02}-{n % 28 + 1:02}T08:{n:02}:41Z",
        duty=Decimal(duty),
        labels=SMALL_PROFILES[profile],
        quantities={"storage_size": Decimal(gigabytes[0])} if gigabytes else {},
    )


def small_partner() -> Partner:
    """Make a small believable partner; Northwind Labs has 24 compute instances."""
    compute, service = (
        [small_instance(n, row) for n, row in enumerate(rows)]
        for rows in (SMALL_COMPUTE, SMALL_SERVICE)
    )
    organizations = [
        organization(id_, name, active=name != "Contoso Health", external_id=external_id)
        for name, (id_, external_id) in SMALL_ORGANIZATIONS.items()
    ]
    return Partner(organizations, metered(compute, service))


@dataclass(frozen=True)
class Behaviour:
    """What Rafay's documents leave open, one switch each; the defaults are a plain server."""

    count: Literal["total", "page", "absent"] = "total"
    max_count: int | None = None  # no list is counted further than this; all of it is served
    max_limit: int = 400  # a larger limit is lowered without a word
    honour_offset: bool = True  # usage only, like the next three
    honour_filter: bool = True
    empty: Literal["list", "null", "absent"] = "list"
    shift: bool = False  # between pages a record comes in front: one is repeated, one is lost
    organization_list: Literal["results", "items"] = "results"
    next_link: Literal["url", "absent"] = "url"  # of organizations
    slash_redirect: bool = False
    gzip: bool = True
    chunked: bool = True
    rendered: bool = False  # each answer is rendered once only: for measuring clients


@dataclass(frozen=True)
class Request:
    """A request as it arrived: header names in lower case."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]


Break = Literal["reset", "reset-body", "cut-length", "cut-chunked", "bad-gzip"]
Action = Literal["answer", Break, "stall", "stall-body", "drip"]


@dataclass(frozen=True)
class Fault:
    """What a request gets in place of its plain answer: an answer, an edit, or broken transport.

    Fault(status=503), Fault(edit=function), Fault("reset"); `seconds` is the pace of a drip.
    `edit` takes the plain answer's JSON and gives JSON, or bytes to send as they are.
    """

    action: Action = "answer"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0
    edit: Callable[[Any], Any] | None = None


Where = Callable[[Request], bool]
FaultPlan = Callable[[Request], Optional[Fault]]


def path_has(text: str) -> Where:
    """Match the requests whose path contains a text."""
    return lambda request: text in request.path


anywhere = path_has("")


def first(n: int, fault: Fault, where: Where = anywhere) -> FaultPlan:
    """Give the fault to the first n matching requests."""
    faults = iter([fault] * n)
    return lambda request: next(faults, None) if where(request) else None


def always(fault: Fault, where: Where = anywhere) -> FaultPlan:
    """Give the fault to every matching request."""
    return lambda request: fault if where(request) else None


@dataclass(frozen=True)
class Reply:
    """An answer before it is encoded for the wire."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    wires: dict[tuple[bool, bool], bytes] = field(default_factory=dict, init=False)

    def wire(self, *, zipped: bool, chunked: bool) -> bytes:
        """Write it as it goes over the wire, once for all."""
        if (zipped, chunked) not in self.wires:
            self.wires[zipped, chunked] = b"".join(self.encoded(zipped=zipped, chunked=chunked))
        return self.wires[zipped, chunked]

    def encoded(self, *, zipped: bool, chunked: bool) -> tuple[bytes, bytes]:
        """Write head and body as they go over the wire."""
        headers = {"Server": "istio-envoy", "Content-Type": "application/json"}
        body = self.body
        if zipped:
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body)
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
            pieces = (body[at : at + CHUNK_SIZE] for at in range(0, len(body), CHUNK_SIZE))
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + LAST_CHUNK
        else:
            headers["Content-Length"] = str(len(body))
        headers.update(self.headers)
        lines = [f"HTTP/1.1 {self.status} {http.client.responses.get(self.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1"), body


def json_reply(answer: Any, status: int = 200) -> Reply:
    """Write an answer in JSON, compact and in UTF-8."""
    text = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
    return Reply(status, text.encode("utf-8", "surrogatepass"))


class RefusedError(Exception):
    """A request is answered with an error; its arguments are the status and the message."""


def utc_time(query: Mapping[str, str], name: str) -> datetime:
    """Read a moment from the query: ISO 8601 UTC; fractions of a second are cut off."""
    match = UTC_TIME.fullmatch(query.get(name, ""))
    if not match:
        raise RefusedError(400, f"invalid {name}: {query.get(name)!r}")
    return datetime.fromisoformat(f"{match[1]}+00:00")


@final
class Simulator:
    """The controller, from `with` to the end of the block."""

    url: str  # such as http://127.0.0.1:49152, no trailing slash
    environ: dict[str, str]  # the settings that lead a program here

    def __init__(
        self,
        partner: Partner | None = None,
        behaviour: Behaviour | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        **more: Any,
    ) -> None:
        """Serve the small partner and behave plainly, unless told otherwise; more: see `reset`."""
        self.tls = tls
        self.closing = threading.Event()
        self._in_flight = 0
        self._lock = threading.Lock()
        self.reset(partner, behaviour, **more)

    def reset(
        self,
        partner: Partner | None = None,
        behaviour: Behaviour | None = None,
        *,
        fault: FaultPlan | None = None,
        latency: float = 0.0,
    ) -> None:
        """Serve as if it had just been started with these."""
        self.partner = partner or small_partner()
        self.behaviour = behaviour or Behaviour()
        self.fault = fault
        self.latency = latency
        self.requests: list[Request] = []  # every one, in order of arrival
        self.peak = 0  # most requests in flight at once
        self._replies: dict[tuple[str, ...], Reply] = {}

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

    def serve(self, request: Request) -> tuple[Reply, Fault | None]:
        """Reply to a request; with the reply comes the fault to deliver it with, if any."""
        with self._lock:
            self.requests.append(request)
            self._in_flight += 1
            self.peak = max(self.peak, self._in_flight)
        try:
            fault = self.fault(request) if self.fault else None
            self.closing.wait(self.latency)
            reply = self._remembered(request) if self.behaviour.rendered else self._plain(request)
            if fault is not None and fault.edit:
                edited = fault.edit(json.loads(reply.body))
                if isinstance(edited, bytes):
                    return Reply(200, edited), None
                return replace(reply, body=json_reply(edited).body), None
            return reply, fault
        finally:
            # Before the reply is sent, or the client's next request would be counted with it.
            with self._lock:
                self._in_flight -= 1

    def _remembered(self, request: Request) -> Reply:
        """Reply as to the same request before."""
        key = (request.path, *map(repr, sorted(request.query.items())))
        if key not in self._replies:
            self._replies[key] = self._plain(request)
        return self._replies[key]

    def _plain(self, request: Request) -> Reply:
        """Reply as a controller in good health."""
        path = request.path.removesuffix("/")
        if self.behaviour.slash_redirect and path == request.path:
            location = f"{self.url}{path}/" + ("?" if request.query else "")
            return Reply(301, b"{}", {"Location": location + urlencode(request.query)})
        try:
            if usage := USAGE_PATH.fullmatch(path):
                return json_reply(self._usage(usage[1], usage[2], request))
            if organizations := ORGANIZATIONS_PATH.fullmatch(path):
                return json_reply(self._organizations(organizations[1], request))
            raise RefusedError(404, "not found")
        except RefusedError as refusal:
            status, message = refusal.args
            return json_reply({"message": message}, status)
        except ValueError as error:  # of a number or time in the query
            return json_reply({"message": str(error)}, 400)

    def _page(self, request: Request) -> tuple[int, int]:
        """Offset and limit, the limit lowered to what the server gives at most."""
        limit = int(request.query.get("limit") or DEFAULT_LIMIT)
        return int(request.query.get("offset") or 0), min(limit, self.behaviour.max_limit)

    def _count(self, total: int, on_page: int) -> dict[str, Any]:
        """Give the `count` of a list, or nothing."""
        if self.behaviour.max_count is not None:
            total = min(total, self.behaviour.max_count)
        counts = {"total": {"count": total}, "page": {"count": on_page}, "absent": {}}
        return counts[self.behaviour.count]

    def _organizations(self, only: str | None, request: Request) -> Mapping[str, Any]:
        """Answer with one organization, or with a page of them all.

        How Rafay matches names is not documented: here a part of one will do, in any case.
        """
        if request.headers.get("x-rafay-api-keyid") != PARTNER_KEY:
            raise RefusedError(401, "missing or invalid API key")
        listed = self.partner.organizations
        if only:
            for one in listed:
                if one["id"] == only:
                    return one
            raise RefusedError(404, "not found")
        offset, limit = self._page(request)
        if name := request.query.get("name"):
            listed = [one for one in listed if name.casefold() in one["name"].casefold()]
        if external_id := request.query.get("external_id"):
            listed = [one for one in listed if one.get("external_id") == external_id]
        page = listed[offset : offset + limit]

        answer = {**self._count(len(listed), len(page)), self.behaviour.organization_list: page}
        if self.behaviour.next_link == "url":
            query = urlencode({**request.query, "limit": limit, "offset": offset + limit})
            more = offset + limit < len(listed)
            answer["next"] = f"{self.url}{request.path}?{query}" if more else None
        return answer

    def _usage(self, by: str, kind: str, request: Request) -> Record:
        """Answer with a page of the usage of one kind, by instance or by profile."""
        if request.headers.get("x-api-key") != DEFAULT_KEY:
            raise RefusedError(401, "missing or invalid API key")
        start, end = (utc_time(request.query, name) for name in ("range_from", "range_to"))
        if end < start:
            raise RefusedError(400, "range_to is before range_from")
        offset, limit = self._page(request)
        only = request.query.get("instance_organization_id") or None
        records = self.partner.records(
            kind, start, end, only if self.behaviour.honour_filter else None
        )
        if by == "profile":
            records = profile_totals(records, start, end)
        if offset and self.behaviour.shift:
            records = records[-1:] + records[:-1]
        begin = offset if self.behaviour.honour_offset else 0
        page = records[begin : begin + limit]
        name = f"{by}_usage_data"
        answer: Record = {
            "kind": kind,
            "partner_id": PARTNER_ID,
            "organization_id": DEFAULT_ORGANIZATION_ID,
            name: page,
            **self._count(len(records), len(page)),
            "offset": offset,
            "limit": limit,
            "range_from": iso(start),
            "range_to": iso(end),
        }
        if not page and self.behaviour.empty == "null":
            answer[name] = None
        if not page and self.behaviour.empty == "absent":
            del answer[name]
            if answer.get("count") == 0:
                del answer["count"]
        return answer


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
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: the log is `Simulator.requests`."""

    def do_GET(self) -> None:
        simulator, target = self.server.simulator, urlsplit(self.path)
        closing = simulator.closing  # as of now: a fault may end the run, and with it what stalls
        query = dict(parse_qsl(target.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply, fault = simulator.serve(Request(target.path, query, headers))
        behaviour = simulator.behaviour
        zipped = behaviour.gzip and "gzip" in self.headers.get("Accept-Encoding", "")
        chunked = behaviour.chunked and self.request_version != "HTTP/1.0"
        if fault is None:
            self.connection.sendall(reply.wire(zipped=zipped, chunked=chunked))
        elif fault.action == "answer":
            reply = Reply(fault.status, fault.body, fault.headers)
            self.connection.sendall(reply.wire(zipped=False, chunked=False))
        else:
            self.close_connection = True
            self._break(fault, reply, zipped, chunked, closing)

    def _break(
        self, fault: Fault, reply: Reply, zipped: bool, chunked: bool, closing: threading.Event
    ) -> None:
        """Deliver a reply in the way that the fault says, if at all."""
        send = self.connection.sendall
        if fault.action == "bad-gzip":
            reply = replace(reply, headers={**reply.headers, "Content-Encoding": "gzip"})
            zipped = False
        if fault.action in ("cut-length", "cut-chunked"):
            chunked = fault.action == "cut-chunked"
        head, body = reply.encoded(zipped=zipped, chunked=chunked)
        sent = {"reset": b"", "stall": b"", "drip": head, "bad-gzip": head + body}
        sent["cut-chunked"] = head + body[: -len(LAST_CHUNK)]
        send(sent.get(fault.action, head + body[: len(body) // 2]))
        if fault.action == "drip":
            for at in range(len(body)):
                if closing.wait(fault.seconds):
                    break
                send(body[at : at + 1])
        if fault.action in ("stall", "stall-body"):
            closing.wait()
        if fault.action in ("reset", "reset-body"):  # in place of an orderly end
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.rfile.close()  # the socket is open for as long as a file on it is


def main() -> int:
    """Run a command against the small partner; return its exit status, as a shell would."""
    command = sys.argv[1:]
    if not command:
        print("usage: rafay_simulator.py COMMAND [ARGUMENT...]", file=sys.stderr)
        return 2
    with Simulator() as simulator:
        environ = {**os.environ, **simulator.environ}
        environ.pop("RAFAY_OPS_CONSOLE_URL", None)
        try:
            child = subprocess.Popen(command, env=environ)
        except OSError as error:
            print(f"rafay_simulator: {command[0]}: {error.strerror}", file=sys.stderr)
            return 127
        # Ctrl-C in a terminal goes to the child as well; its status is awaited.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        status = child.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    raise SystemExit(main())
