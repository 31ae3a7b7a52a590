"""The script stays small enough to be read in one sitting, and needs nothing more to run."""

import ast
import re

from conftest import ROOT, SCRIPT

SOURCE = SCRIPT.read_text(encoding="utf-8")
FUNCTIONS = [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.FunctionDef)]


def test_the_script_has_at_most_1450_lines_in_at_most_100_functions() -> None:
    assert len(SOURCE.splitlines()) <= 1450
    assert len(FUNCTIONS) <= 100


def test_a_function_has_at_most_35_lines() -> None:
    lines = {each.name: (each.end_lineno or 0) - each.lineno + 1 for each in FUNCTIONS}
    assert [name for name in lines if lines[name] > 35] == []


def test_the_script_names_the_same_dependencies_as_requirements_txt() -> None:
    [named] = re.findall(r"^# dependencies = \[(.*)\]$", SOURCE, re.MULTILINE)
    needed = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert re.findall('"(.*?)"', named) == needed
