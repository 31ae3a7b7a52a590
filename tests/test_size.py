"""The script stays small enough to be read in one sitting."""

from __future__ import annotations

import ast

import pytest
from conftest import SCRIPT

SOURCE = SCRIPT.read_text(encoding="utf-8")
FUNCTIONS = [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.FunctionDef)]


def test_the_script_has_at_most_1350_lines() -> None:
    assert len(SOURCE.splitlines()) <= 1350


def test_the_script_has_at_most_100_functions() -> None:
    assert len(FUNCTIONS) <= 100


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda node: node.name)
def test_a_function_has_at_most_35_lines(function: ast.FunctionDef) -> None:
    assert (function.end_lineno or 0) - function.lineno < 35
