"""What the price book may say, and how it is told that it says something else."""

from __future__ import annotations

from datetime import timezone
from decimal import Decimal
from pathlib import Path

import pytest

from ncp_metrics import MAX_PROBLEMS, read_price_book

HEADER = "profile,hourly_rate\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the price book of a test is."""
    return tmp_path / "prices.csv"


Rates = dict[str, Decimal]


def read(path: Path, text: str | bytes, currency: str = "USD") -> tuple[Rates, list[str]]:
    """Write a price book and read it; return its rates by profile, and what is wrong with it."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_again(path, currency)


def read_again(path: Path, currency: str = "USD") -> tuple[Rates, list[str]]:
    """Read a price book."""
    book, problems = read_price_book(path, currency, timezone.utc)
    return {price.profile: price.rate for price in book.prices}, problems


def rates(**texts: str) -> Rates:
    """Return a price book with rates as they are written."""
    return {profile: Decimal(text) for profile, text in texts.items()}


# Good books


@pytest.mark.parametrize(
    ("text", "book"),
    [
        pytest.param(HEADER + "gpu,2.50\ncpu,0.192\n", rates(gpu="2.50", cpu="0.192"), id="plain"),
        pytest.param(HEADER, {}, id="header only"),
        pytest.param(HEADER + "gpu,2.50", rates(gpu="2.50"), id="no line end at the end"),
        pytest.param("\ufeff" + HEADER + "gpu,2.50\n", rates(gpu="2.50"), id="byte order mark"),
        pytest.param("\ufeff# a\n" + HEADER + "gpu,1\n", rates(gpu="1"), id="mark, comment"),
        pytest.param("profile,hourly_rate\r\ngpu,2.50\r\n", rates(gpu="2.50"), id="CR LF"),
        pytest.param("profile,hourly_rate\rgpu,2.50\r", rates(gpu="2.50"), id="CR"),
        pytest.param(f"# a, b\n{HEADER}#gpu,1\ngpu,2\n", rates(gpu="2"), id="comments"),
        pytest.param(HEADER + '# 12" rack\ngpu,2\n', rates(gpu="2"), id="comment with a quote"),
        pytest.param(f"\n \n{HEADER}\n\t\ngpu,2\n\n", rates(gpu="2"), id="blank lines"),
        pytest.param(f",\n{HEADER},,\ngpu,2\n , \n", rates(gpu="2"), id="blank spreadsheet lines"),
        pytest.param(" profile , hourly_rate\n gpu ,\u00a02 \n", rates(gpu="2"), id="trimmed"),
        pytest.param("hourly_rate,profile\n2,gpu\n", rates(gpu="2"), id="other order of columns"),
        pytest.param(
            "profile,description,hourly_rate\ngpu,1 x GPU,2\ncpu,,1\n",
            rates(gpu="2", cpu="1"),
            id="description, also blank",
        ),
        pytest.param(
            "currency,profile,hourly_rate\nUSD,gpu,2\n USD ,cpu,1\n",
            rates(gpu="2", cpu="1"),
            id="currency",
        ),
        pytest.param(HEADER + '"gpu, big","2.50"\n', {"gpu, big": Decimal("2.50")}, id="quoted"),
        pytest.param(HEADER + '"the ""gpu""",2\n', {'the "gpu"': Decimal(2)}, id="doubled quotes"),
        pytest.param(HEADER + "free,0\ntoo,0.00\n", rates(free="0", too="0"), id="price 0"),
        pytest.param(HEADER + "gpu,007\n", rates(gpu="7"), id="leading zeros"),
        pytest.param(HEADER + "gpu,2\nGPU,3\n", rates(gpu="2", GPU="3"), id="case matters"),
        pytest.param(HEADER + "gpu é 漢,2\n", {"gpu é 漢": Decimal(2)}, id="any language"),
        pytest.param(HEADER + "a\u2028b,2\n", {"a\u2028b": Decimal(2)}, id="line separator"),
    ],
)
def test_a_good_book_is_read(path: Path, text: str, book: Rates) -> None:
    assert read(path, text) == (book, [])


def test_a_rate_keeps_all_its_digits(path: Path) -> None:
    digits = "12345678901234567890." + "0123456789" * 50
    book, _ = read(path, HEADER + f"gpu,{digits}\n")
    assert format(book["gpu"], "f") == digits


def test_a_currency_column_says_the_currency_of_the_run(path: Path) -> None:
    text = "profile,hourly_rate,currency\ngpu,250,JPY\n"
    assert read(path, text, "JPY") == (rates(gpu="250"), [])


def test_a_book_of_200_000_lines_is_read_whole(path: Path) -> None:
    lines = 200_000
    text = HEADER + "".join(f"profile-{number},0.{number:06}\n" for number in range(lines))
    book, problems = read(path, text)
    assert problems == []
    assert book == {f"profile-{number}": Decimal(number).scaleb(-6) for number in range(lines)}


# Bad lines: each of these follows a good one, and is line 3


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        pytest.param(",1", "profile is missing", id="no profile"),
        pytest.param(" ,1", "profile is missing", id="blank profile"),
        pytest.param("cpu,", "hourly_rate is missing", id="no rate"),
        pytest.param("cpu", "1 cells, but the header has 2", id="cell missing"),
        pytest.param("cpu,1,", "3 cells, but the header has 2", id="cell too many"),
        pytest.param("cpu,1,50", "3 cells, but the header has 2", id="decimal comma"),
        pytest.param("gpu,2", "'gpu' has a price in line 2 already", id="same profile and price"),
        pytest.param(" gpu ,3", "'gpu' has a price in line 2 already", id="same when trimmed"),
        pytest.param('"gpu",3', "'gpu' has a price in line 2 already", id="same when unquoted"),
        pytest.param('"cpu,1', "not CSV: unexpected end of data", id="quote not closed"),
        pytest.param('"c"pu,1', "not CSV: ',' expected after '\"'", id="text after a quote"),
        pytest.param("c\tpu,1", "holds a tab or another control character", id="tab inside"),
        pytest.param("cpu\t,1", "holds a tab or another control character", id="tab at the end"),
        pytest.param("cpu,1\t", "holds a tab or another control character", id="tab after rate"),
        pytest.param("c\x1bpu,1", "holds a tab or another control character", id="escape"),
        pytest.param("c\x0bpu,1", "holds a tab or another control character", id="vertical tab"),
        pytest.param("c\x7fpu,1", "holds a tab or another control character", id="delete"),
        pytest.param("c\x85pu,1", "holds a tab or another control character", id="C1"),
    ],
)
def test_a_bad_line_is_reported_by_file_and_line(path: Path, line: str, problem: str) -> None:
    assert read(path, f"{HEADER}gpu,2\n{line}\n")[1] == [f"{path}: line 3: {problem}"]


@pytest.mark.parametrize(
    "rate",
    [
        *("-1", "+1", "- 1", "-0"),
        *("1,50", "1.000,50", "1 000", "1'000", "1_000", "1\u00a0000"),
        *("$1", "1 USD", "1€", "1%"),
        *("1e3", "1E-3", "0x1", "1/2", "1.2.3"),
        *("NaN", "nan", "sNaN", "Infinity", "-Infinity", "inf"),
        *("free", "n/a", "-", "=1", "'1"),
        *("１", "１.５", "٣", "²", "½"),
    ],
    ids=ascii,
)
def test_a_rate_that_is_no_plain_decimal_is_reported(path: Path, rate: str) -> None:
    _, problems = read(path, f'{HEADER}gpu,2\ncpu,"{rate}"\n')
    problem = f"hourly_rate {rate!r} is not a plain decimal such as 2.50"
    assert problems == [f"{path}: line 3: {problem}"]


@pytest.mark.parametrize("currency", ["EUR", "usd", "$"])
def test_another_currency_is_reported(path: Path, currency: str) -> None:
    _, problems = read(path, f"profile,currency,hourly_rate\ngpu,USD,2\ncpu,{currency},1\n")
    assert problems == [f"{path}: line 3: currency {currency!r} is not CURRENCY, USD"]


def test_a_currency_that_is_missing_is_reported(path: Path) -> None:
    _, problems = read(path, "profile,currency,hourly_rate\ngpu,USD,2\ncpu,,1\n")
    assert problems == [f"{path}: line 3: currency is missing"]


def test_a_nul_is_reported(path: Path) -> None:
    [problem] = read(path, HEADER + "gpu,2\nc\0pu,1\n")[1]
    assert problem.startswith(f"{path}: line 3: ")


# Bad headers


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        pytest.param("hourly_rate", "column 'profile' is missing", id="no profile"),
        pytest.param("profile", "column 'hourly_rate' is missing", id="no rate"),
        pytest.param(
            "profile,hourly_rate,profile", "column 'profile' stands there twice", id="twice"
        ),
        *(
            pytest.param(
                header,
                f"unknown column {name!r}: known are profile, hourly_rate, dimension, "
                "organization, profile_type, effective_from, currency, description, with commas",
                id=header,
            )
            for header, name in [
                ("profile,hourly_rate,discount", "discount"),
                ("profile,hourly_rate,", ""),
                ("Profile,hourly_rate", "Profile"),
                ("profile;hourly_rate", "profile;hourly_rate"),
                ("gpu,2.50", "gpu"),
            ]
        ),
        pytest.param('"profile,hourly_rate', "not CSV: unexpected end of data", id="not CSV"),
    ],
)
def test_a_bad_header_is_reported_once_by_file_and_line(
    path: Path, header: str, problem: str
) -> None:
    text = f"# prices\n{header}\ngpu,-2\ncpu,-1\n"
    assert read(path, text) == ({}, [f"{path}: line 2: {problem}"])


@pytest.mark.parametrize("text", ["", "\ufeff", "\n\n", "# nothing\n", ",,\n"], ids=repr)
def test_a_book_without_a_header_is_reported(path: Path, text: str) -> None:
    [problem] = read(path, text)[1]
    assert problem.startswith(f"{path}: is empty: it needs a header")


# All of it at once


def test_every_bad_line_is_reported_with_its_own_number(path: Path) -> None:
    lines = ["# prices", HEADER.strip(), "", "gpu,-2", "#", "cpu,1", ",,", "gpu,x", "cpu,2", ",1"]
    assert read(path, "\r\n".join(lines))[1] == [
        f"{path}: line 4: hourly_rate '-2' is not a plain decimal such as 2.50",
        f"{path}: line 8: hourly_rate 'x' is not a plain decimal such as 2.50",
        f"{path}: line 9: 'cpu' has a price in line 6 already",
        f"{path}: line 10: profile is missing",
    ]


def test_a_stray_quote_does_not_hide_what_follows(path: Path) -> None:
    book, problems = read(path, HEADER + '"gpu,2\ncpu,1\n"nic,3\n')
    assert book == rates(cpu="1")
    assert [problem.split(": ")[1] for problem in problems] == ["line 2", "line 4"]


def test_so_many_bad_lines_are_all_shown(path: Path) -> None:
    _, problems = read(path, HEADER + "gpu,x\n" * MAX_PROBLEMS)
    assert [problem.split(": ")[1] for problem in problems] == [
        f"line {number + 2}" for number in range(MAX_PROBLEMS)
    ]


def test_of_more_bad_lines_the_rest_is_counted(path: Path) -> None:
    _, problems = read(path, HEADER + "gpu,x\n" * (MAX_PROBLEMS + 7))
    assert len(problems) == MAX_PROBLEMS + 1
    assert problems[-1] == "and 7 more like these"


# No book at all


def test_a_book_that_is_not_there_is_reported(tmp_path: Path) -> None:
    [problem] = read_again(tmp_path / "none.csv")[1]
    assert problem.startswith(f"{tmp_path / 'none.csv'}: No such file or directory")


def test_a_directory_is_no_book(tmp_path: Path) -> None:
    [problem] = read_again(tmp_path)[1]
    assert problem.startswith(f"{tmp_path}: Is a directory")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param(b"profile,hourly_rate\n# ok\nm\xe9t\xe9o,2\n", 3, id="Latin-1"),
        pytest.param(b"profile,hourly_rate\r\ngpu,2\r\ngpu,2 \x80\r\n", 3, id="CR LF"),
        pytest.param(b"# \xff\nprofile,hourly_rate\n", 1, id="in a comment"),
        pytest.param("profile,hourly_rate\n".encode("utf-16"), 1, id="UTF-16"),
        pytest.param(b"profile,hourly_rate\ngpu,\xed\xa0\x80\n", 2, id="surrogate"),
    ],
)
def test_a_book_that_is_not_utf_8_is_reported_by_line(path: Path, text: bytes, line: int) -> None:
    assert read(path, text) == ({}, [f"{path}: line {line}: not UTF-8: save it as CSV UTF-8"])
