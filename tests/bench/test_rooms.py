"""The limits on the size of packages, files and functions are kept (benchmarks/rooms.py), and passing one is noticed."""

import importlib

import pytest

from saga_lib.common.paths import REPOSITORY


@pytest.fixture
def rooms(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("rooms")


def test_every_limit_is_kept(rooms, capsys):
    assert rooms.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", ["saga_lib", "reading core", "file", "function"])
def test_a_limit_that_is_passed_is_an_error(rooms, monkeypatch, capsys, name):
    monkeypatch.setitem(rooms.LIMITS, name, 10)
    assert rooms.main([]) == 0 and rooms.main(["--check"]) == 1
    assert "over the limit: " in capsys.readouterr().out
