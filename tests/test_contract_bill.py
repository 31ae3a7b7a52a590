"""Whole-file runs of what a contract adds: months, negotiated rates, price changes, dimensions."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, Run
from example import HEADER
from rafay_simulator import (
    Behaviour,
    Fault,
    Instance,
    Partner,
    Simulator,
    always,
    fixed,
    metered,
    organization,
    path_has,
)


def instance(owner: str, name: str, profile: str, duty: str, **quantities: str) -> Instance:
    """Return an instance that runs a share of the time, with a label and quantities."""
    return Instance(
        organization_id=f"id-{owner}",
        organization_name=owner,
        project="p",
        profile=profile,
        name=name,
        instance_id=f"i-{name}",
        created_at="2026-01-01T00:00:00Z",
        duty=Decimal(duty),
        labels={"GPU": "1"},
        quantities={key: Decimal(value) for key, value in quantities.items()},
    )


PARTNER = Partner(
    [organization(f"id-{name}", name) for name in ("Northwind", "acme")],
    metered(
        compute=[
            instance("Northwind", "train", "gpu", "1", disk="100"),
            instance("acme", "render", "gpu", "0.5", disk="10"),
        ],
        service=[instance("acme", "lab", "notebook", "0.25", disk="1")],
    ),
)
PRICES = """\
profile,dimension,organization,profile_type,effective_from,hourly_rate
gpu,,,,,2.50
gpu,,northWIND,,,2.00
gpu,,northWIND,,2026-06-15,1.80
gpu,disk,,compute,,0.0001
notebook,,,,,0.40
notebook,,,service,2026-06-15T12:00:00Z,0.50
"""
A = "2026-06-01T00:00:00Z,2026-06-15T00:00:00Z"
B = "2026-06-15T00:00:00Z,2026-06-15T12:00:00Z"
C = "2026-06-15T12:00:00Z,2026-07-01T00:00:00Z"
TRAIN = "Northwind,id-Northwind,p,compute,gpu,train,i-train,,2026-01-01T00:00:00Z,GPU=1; disk="
RENDER = "acme,id-acme,p,compute,gpu,render,i-render,,2026-01-01T00:00:00Z,GPU=1; disk="
LAB = "acme,id-acme,p,service,notebook,lab,i-lab,,2026-01-01T00:00:00Z,GPU=1; disk="
RAW_LINES = [
    f"{TRAIN}33600.00h,{A},336.00,2.00,672.00,USD,instance",
    f"{TRAIN}33600.00h,{A},33600.00,0.0001,3.36,USD,disk",
    f"{TRAIN}1200.00h,{B},12.00,1.80,21.60,USD,instance",
    f"{TRAIN}1200.00h,{B},1200.00,0.0001,0.12,USD,disk",
    f"{TRAIN}37200.00h,{C},372.00,1.80,669.60,USD,instance",
    f"{TRAIN}37200.00h,{C},37200.00,0.0001,3.72,USD,disk",
    f"{RENDER}1680.00h,{A},168.00,2.50,420.00,USD,instance",
    f"{RENDER}1680.00h,{A},1680.00,0.0001,0.17,USD,disk",
    f"{RENDER}60.00h,{B},6.00,2.50,15.00,USD,instance",
    f"{RENDER}60.00h,{B},60.00,0.0001,0.01,USD,disk",
    f"{RENDER}1860.00h,{C},186.00,2.50,465.00,USD,instance",
    f"{RENDER}1860.00h,{C},1860.00,0.0001,0.19,USD,disk",
    f"{LAB}84.00h,{A},84.00,0.40,33.60,USD,instance",
    f"{LAB}3.00h,{B},3.00,0.40,1.20,USD,instance",
    f"{LAB}93.00h,{C},93.00,0.50,46.50,USD,instance",
]
SORTED_LINES = [*RAW_LINES[6:], *RAW_LINES[:6]]
SUMMARY = """\
Organization              Instances  Records     Hours  Amount (USD)
Northwind (id-Northwind)          1        3    720.00      1,370.40
acme (id-acme)                    2        6    540.00        981.67
Total                             3        9  1,260.00      2,352.07

Organizations without usage: 0 of 2
Reconciled with the usage of the whole partner: 9 records of 2 organizations, 1260.00 hours
Period: 2026-06-01T00:00:00Z to 2026-07-01T00:00:00Z, the end not included
Time zone: UTC
Price book: {book}, prices: 6
SHA-256 of the price book: {sha256}
Version: ncp_metrics 1.0.0
"""
LATER = "2026-07-03T06:00:00Z"


def bill(run: Run, *flags: str, prices: str = PRICES, **more: Any) -> Result:
    """Make a bill of the partner above on 3 July."""
    with Simulator(PARTNER, more.pop("behaviour", None)) as simulator:
        return run(*flags, simulator=simulator, prices=prices, now=LATER, **more)


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (["--month", "2026-06"], {}),
        (["--month=last"], {"BILLING_MONTH": "2026-05", "DAYS": "3"}),
        ([], {"BILLING_MONTH": "last", "DAYS": "3"}),
        (["--from=2026-06-01", "--to=2026-07-01"], {"BILLING_MONTH": "last"}),
        (["--from=2026-06-01T02:00:00+02:00", "--to=2026-06-30T20:00:00-04:00"], {}),
    ],
    ids=["month", "flag beats environment", "environment", "dates", "times"],
)
@pytest.mark.parametrize("count", ["total", "page", "absent"])
def test_a_month_is_billed_in_parts_by_contract_and_by_dimension(
    run: Run, tmp_path: Path, flags: list[str], settings: dict[str, str], count: Any
) -> None:
    result = bill(run, *flags, behaviour=Behaviour(count=count), **settings)
    assert (result.status, result.stderr) == (0, "")
    raw, sorted_ = result.files.values()
    assert raw == "".join(f"{line}\n" for line in [HEADER, *RAW_LINES])
    assert sorted_ == "".join(f"{line}\n" for line in [HEADER, *SORTED_LINES])
    assert result.stdout.split("Raw file")[0] == SUMMARY.format(
        book=tmp_path / "prices.csv", sha256=hashlib.sha256(PRICES.encode()).hexdigest()
    )


def test_a_month_begins_in_the_time_zone(run: Run) -> None:
    result = bill(
        run,
        "--month=2026-06",
        "--timezone=Europe/Berlin",
        prices="profile,hourly_rate\ngpu,1\nnotebook,1\n",
    )
    assert ",2026-05-31T22:00:00Z,2026-06-30T22:00:00Z,720.00," in next(iter(result.files.values()))
    assert "Time zone: Europe/Berlin\n" in result.stdout


def test_a_price_begins_in_the_time_zone(run: Run) -> None:
    result = bill(run, "--month=2026-06", TIMEZONE="Asia/Tokyo")
    assert ",2026-05-31T15:00:00Z,2026-06-14T15:00:00Z,336.00,2.00," in result.stdout + str(
        result.files
    )


def test_a_month_that_is_not_over_is_billed_up_to_now_with_a_warning(run: Run) -> None:
    result = bill(run, "--month=2026-07")
    assert result.status == 0
    assert result.stderr == (
        "ncp_metrics: warning: the bill is provisional: the month is not over, and is billed up to "
        f"{LATER}\n"
    )
    assert f",2026-07-01T00:00:00Z,{LATER},54.00," in next(iter(result.files.values()))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--month=2026-08"], "--month, BILLING_MONTH: 2026-08 has not begun"),
        (["--month=06/2026"], "'06/2026' is neither a month, such as 2026-06, nor last"),
        (["--from=05/06/2026", "--to=2026-07-01"], "'05/06/2026' is not a date or time such as"),
        (["--from=2026-06-01"], "--from, --to: one goes with the other"),
        (["--from=2026-07-01", "--to=2026-06-01"], "is it the wrong way round?"),
        (
            ["--from=2026-07-01", "--to=2026-07-04"],
            "2026-07-04 is in the future: now is 2026-07-03",
        ),
        (["--from=", "--to="], "--from, --to: one goes with the other"),
        (["--month=last", "--days=3"], "--month, --days are 2 periods: give one"),
        (["--timezone=UTC+2"], "'UTC+2' is not an IANA time zone"),
    ],
)
def test_a_period_that_is_not_plain_is_an_error_before_anything_is_asked(
    run: Run, flags: list[str], message: str
) -> None:
    with Simulator(PARTNER) as simulator:
        result = run(*flags, simulator=simulator, now=LATER)
    assert (result.status, result.stdout, result.files, simulator.requests) == (2, "", {}, [])
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_rafay_s_own_example_of_dimensions_makes_144(run: Run) -> None:
    vm = instance("acme", "vm", "vm", "1", cpu="4", gpu="2")
    partner = Partner([organization("id-acme", "acme")], metered(compute=[vm]))
    prices = "profile,dimension,hourly_rate\nvm,instance,0\nvm,cpu,0.5\nvm,gpu,2\n"
    with Simulator(partner) as simulator:
        result = run("--days=1", simulator=simulator, prices=prices)
    assert [line.split("Z,")[-1] for line in result.raw.splitlines()[1:]] == [
        "24.00,0,0.00,USD,instance",
        "96.00,0.5,48.00,USD,cpu",
        "48.00,2,96.00,USD,gpu",
    ]
    assert "Total                   1        1  24.00        144.00" in result.stdout


def test_a_profile_with_dimensions_alone_is_told_to_need_an_instance_price(run: Run) -> None:
    result = bill(run, "--month=last", prices="profile,dimension,hourly_rate\ngpu,disk,1\n")
    assert result.status == 3
    assert (
        "profile gpu has no price: 1080.00 hours (instances: 2) are not billed; if its other "
        "dimensions are all that is billed, give it an instance price of 0"
    ) in result.stderr


def test_only_the_organizations_named_are_billed_and_the_bill_is_partial(run: Run) -> None:
    results = [
        bill(run, "--month=last", *flags) for flags in (["--org", "ACME"], ["--org=id-acme"])
    ]
    for result in results:
        assert (result.status, result.stderr) == (0, "")
        assert "This bill is partial: --org names 1 of 2\n" in result.stdout
        assert "Not reconciled with the usage of the whole partner: the bill is" in result.stdout
        raw = next(iter(result.files.values()))
        assert raw == "".join(f"{line}\n" for line in [HEADER, *RAW_LINES[6:]])


def test_a_price_for_nobody_or_nothing_is_told_in_the_summary(run: Run, tmp_path: Path) -> None:
    prices = PRICES + "gpu,,Nordwind,,,1\ngpu-x9,,,,,1\ngpu,disc,,,,1\n"
    result = bill(run, "--month=last", prices=prices)
    book = tmp_path / "prices.csv"
    assert result.status == 0
    assert f"{book}: line 8: organization 'Nordwind' is not listed\n" in result.stdout
    assert f"{book}: line 9: nothing used instance of gpu-x9\n" in result.stdout
    assert f"{book}: line 10: nothing used disc of gpu\n" in result.stdout
    assert "line 2" not in result.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--org", "acne"], "--org: 'acne' is not listed; the nearest is acme"),
        (
            ["--org", "acme", "--org", "id-akme"],
            "'id-akme' is not listed; the nearest is id-acme",
        ),
    ],
)
def test_an_organization_that_is_not_listed_ends_the_run(
    run: Run, flags: list[str], message: str
) -> None:
    result = bill(run, *flags)
    assert (result.status, result.stdout, result.files) == (2, "", {})
    assert message in result.stderr


def test_two_prices_for_one_organization_by_name_and_id_end_the_run(run: Run) -> None:
    prices = "profile,organization,hourly_rate\ngpu,acme,1\ngpu,id-acme,2\n"
    result = bill(run, prices=prices)
    assert (result.status, result.files) == (2, {})
    assert "line 3: organization 'id-acme' has a price in line 2 already" in result.stderr


def test_check_tries_all_with_few_requests_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    with Simulator(PARTNER) as simulator:
        result = run("--check", "--month=last", simulator=simulator, prices=PRICES, now=LATER)
    assert (result.status, result.stderr, result.files) == (0, "", {})
    assert result.stdout == (
        f"Usage: {simulator.url} answers; compute records: 2 or more\n"
        f"Organizations: {simulator.url} answers; listed: 2, to be billed: 2\n"
        "Period: 2026-06-01T00:00:00Z to 2026-07-01T00:00:00Z, the end not included\n"
        "Time zone: UTC\n"
        f"Price book: {tmp_path / 'prices.csv'}, prices: 6\n"
        f"SHA-256 of the price book: {hashlib.sha256(PRICES.encode()).hexdigest()}\n"
        "Version: ncp_metrics 1.0.0\n"
        "All is in order; nothing was written.\n"
    )
    assert len(simulator.requests) == 3


def test_check_tells_what_a_run_would_refuse_or_warn_of(run: Run, tmp_path: Path) -> None:
    prices = PRICES + "gpu,,Nordwind,,,1\n"
    result = bill(run, "--check", "--month=2026-07", prices=prices)
    assert result.status == 0
    assert (
        f"{tmp_path / 'prices.csv'}: line 8: organization 'Nordwind' is not listed\n"
        in result.stdout
    )
    assert "the bill is provisional" in result.stdout
    refused = bill(run, "--check", "--org=acne")
    assert (refused.status, refused.stdout) == (2, "")
    assert "'acne' is not listed; the nearest is acme" in refused.stderr


def test_an_instance_that_was_always_on_has_no_more_hours_than_the_period(run: Run) -> None:
    # 54.1666... hours are metered as 54.17.
    with Simulator(PARTNER) as simulator:
        result = run(
            "--month=2026-07", simulator=simulator, prices=PRICES, now="2026-07-03T06:10:00Z"
        )
    assert "54.17" in str(result.files)
    assert "more hours than" not in result.stderr


def test_an_unlisted_organization_without_a_name_has_nobody_s_prices(run: Run) -> None:
    nameless = instance("  ", "x", "gpu", "1")
    usage = metered(compute=[nameless, instance("acme", "render", "gpu", "0.5")])
    with Simulator(Partner([organization("id-acme", "acme")], usage)) as simulator:
        result = run("--month=last", simulator=simulator, prices=PRICES, now=LATER)
    assert result.status == 0
    assert result.stderr.count("that is not listed: id-   (id-  ), records: 3") == 1
    assert ",,USD" not in str(result.files)


@pytest.mark.parametrize(
    ("where", "variable"),
    [("compute", "RAFAY_DEFAULT_API_KEY"), ("organizations", "PARTNER_API_KEY")],
)
def test_check_says_which_key_is_refused(run: Run, where: str, variable: str) -> None:
    plan = always(Fault(status=401), path_has(where))
    with Simulator(PARTNER, fault=plan) as simulator:
        result = run("--check", simulator=simulator, prices=PRICES, now=LATER)
    assert (result.status, result.stdout, result.files) == (1, "", {})
    assert f"{variable} was refused" in result.stderr


def test_an_unlisted_organization_has_its_negotiated_rate_in_every_part(run: Run) -> None:
    gone = instance("Gone", "x", "gpu", "1")
    partner = Partner([organization("id-acme", "acme")], metered(compute=[gone]))
    prices = "profile,organization,effective_from,hourly_rate\ngpu,gone,,3\ngpu,,2026-06-15,2\n"
    with Simulator(partner) as simulator:
        result = run("--month=last", simulator=simulator, prices=prices, now=LATER)
    rates = [line.split("Z,")[-1] for line in next(iter(result.files.values())).splitlines()[1:]]
    assert rates == ["336.00,3,1008.00,USD,instance", "384.00,3,1152.00,USD,instance"]


def test_the_same_usage_for_every_part_is_an_error(run: Run) -> None:
    # An API that ignores the range would have every part billed in full.
    def edit(plain: dict[str, Any]) -> dict[str, Any]:
        return {**plain, "range_to": "2026-07-01T00:00:00Z", "range_from": "2026-06-01T00:00:00Z"}

    with Simulator(PARTNER, fault=always(Fault(edit=edit), path_has("usage"))) as simulator:
        result = run("--month=last", simulator=simulator, prices=PRICES, now=LATER)
    assert (result.status, result.files) == (1, {})
    assert "asked was" in result.stderr


def test_an_empty_partner_has_files_with_a_header_only(run: Run) -> None:
    partner = Partner([organization("id-acme", "acme")], fixed())
    with Simulator(partner) as simulator:
        result = run("--month=last", simulator=simulator, now=LATER)
    assert result.status == 0
    assert set(result.files.values()) == {f"{HEADER}\n"}
    assert "Total                 0        0   0.00          0.00" in result.stdout
