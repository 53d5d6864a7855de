"""Settings by their old names: they go on working, and say what they are called now."""

from __future__ import annotations

import logging

import pytest

from raylaunch.config import LaunchConfig
from raylaunch.config.sections import RecoveryConfig
from raylaunch.errors import ConfigError

OLD = [("restarts", 3, "rebuilds"), ("serve.while_rebuilding", "fail", "while_rebuilding"), ("serve.rebuild_wait", 7.5, "give_up_s")]  # fmt: skip  # noqa: E501


def nested(key: str, value: object) -> dict[str, object]:
    section, _, name = key.rpartition(".")
    return {section: {name: value}} if section else {name: value}


@pytest.mark.parametrize(("old", "value", "new"), OLD)
def test_an_old_name_works_and_says_the_new_one(
    old: str, value: object, new: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = LaunchConfig.from_dict({"model": {"path": "m"}, **nested(old, value)})
    assert getattr(made.recovery, new) == value
    assert [record.getMessage() for record in caplog.records] == [
        f"the setting {old} is recovery.{new} now; its old name goes with the next release"
    ]
    caplog.clear()
    assert made.override("name=other").recovery == made.recovery
    assert not caplog.records, "it is said once"


@pytest.mark.parametrize(("old", "value", "new"), OLD)
def test_set_by_an_old_name_wins_over_what_the_file_says(old: str, value: object, new: str) -> None:
    for inherited in ({"recovery": {new: 9 if new != "while_rebuilding" else "wait"}}, nested(old, value)):
        made = LaunchConfig.from_dict({"model": {"path": "m"}, **inherited})
        assert getattr(made.override(f"{old}={value}").recovery, new) == value


def test_a_wrong_value_is_told_by_the_new_name() -> None:
    with pytest.raises(ConfigError, match=r"recovery\.rebuilds = 'many'"):
        LaunchConfig.default(["restarts=many"])


@pytest.mark.parametrize("recovery", [{"rebuilds": 2}, RecoveryConfig()])
def test_both_names_at_once_are_refused(recovery: object) -> None:
    with pytest.raises(ConfigError, match=r"restarts = 1: is the old name of recovery\.rebuilds, which is set as well"):
        LaunchConfig.from_dict({"model": {"path": "m"}, "restarts": 1, "recovery": recovery})


def test_the_rest_of_the_sections_stays(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = LaunchConfig.from_dict(
            {"model": {"path": "m"}, "serve": {"port": 1, "rebuild_wait": 5}, "recovery": {"window_s": 60}}
        )
    assert (made.serve.port, made.recovery.give_up_s, made.recovery.window_s) == (1, 5, 60)


@pytest.mark.parametrize(("said", "of_server"), [(None, 5), (0, 0), (2, 2)])
def test_a_server_rebuilds_unless_told_otherwise(said: int | None, of_server: int) -> None:
    assert RecoveryConfig(rebuilds=said).of_server().rebuilds == of_server
