"""Hooks on another package's functions: put on in order, taken out in any outcome."""

from __future__ import annotations

import sys
import types

import pytest
from raylaunch_actors.sglang_engine.hooks import Hooks, Seam

from raylaunch.errors import RankFault
from raylaunch.sglang.source import Hook


class Thing:
    def say(self, word):
        return f"said {word}"


@pytest.fixture(autouse=True)
def package(monkeypatch):
    module = types.ModuleType("some_package")
    module.Thing, module.double = Thing, lambda x: 2 * x
    monkeypatch.setitem(sys.modules, "some_package", module)
    return module


def around(text):
    def wrap(original):
        return lambda *arguments: f"{text}({original(*arguments)})"

    return wrap


def test_what_is_hooked_first_lies_inside(package):
    hooks = Hooks()
    hooks.install(
        [Seam(Hook("some_package", "Thing.say"), around("a")), Seam(Hook("some_package", "Thing.say"), around("b"))]
    )
    assert Thing().say("x") == "b(a(said x))"
    hooks.remove()
    assert Thing().say("x") == "said x"


def test_functions_and_methods_are_put_back_as_they_were(package):
    before = package.double, Thing.__dict__["say"]
    hooks = Hooks()
    hooks.install(
        [Seam(Hook("some_package", "double"), around("f")), Seam(Hook("some_package", "Thing.say"), around("m"))]
    )
    assert package.double(2) == "f(4)"
    hooks.remove()
    hooks.remove()
    assert (package.double, Thing.__dict__["say"]) == before


@pytest.mark.parametrize("path", ["Other.say", "Thing.shout"])
def test_a_seam_that_is_not_there_is_named_and_nothing_stays_hooked(path):
    with pytest.raises(RankFault, match=rf"has no some_package\.{path}"):
        Hooks().install(
            [Seam(Hook("some_package", "Thing.say"), around("a")), Seam(Hook("some_package", path), around("b"))]
        )
    assert Thing().say("x") == "said x"


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(RankFault, match=r"no_such_package\.f"):
        Hooks().install([Seam(Hook("no_such_package", "f"), around("a"))])


def test_an_optional_seam_may_be_missing():
    Hooks().install([Seam(Hook("no_such_package", "f", optional=True), around("a"))])


def test_what_belongs_to_a_module_that_is_gone_is_not_missed():
    Hooks().install([Seam(Hook("some_package", "gone", only_with="no_such_package"), around("a"))])
    with pytest.raises(RankFault, match=r"has no some_package\.gone"):
        Hooks().install([Seam(Hook("some_package", "gone", only_with="json"), around("a"))])
