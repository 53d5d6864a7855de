"""What SGLang's source says, read without importing it."""

from __future__ import annotations

import pytest

from raylaunch.errors import ConfigError
from raylaunch.sglang.source import Hook, argument_classes, digest_of, known_arguments, known_load_formats, misfits

MODULE = """
try:
    from fast import work
except ImportError:
    def work(first, second=2, *, named, **rest): ...

LIMIT: int = 1

class Engine(Base):
    size: int

    def __init__(self, args):
        self.state = args
        other.attribute = 1

    async def run(self, *jobs): ...
"""


@pytest.fixture
def folder(tmp_path):
    """An SGLang of one module."""
    (tmp_path / "sglang" / "srt" / "deep").mkdir(parents=True)
    (tmp_path / "sglang" / "srt" / "deep" / "__init__.py").write_text("def here(): ...")
    (tmp_path / "sglang" / "srt" / "module.py").write_text(MODULE)
    (tmp_path / "sglang" / "srt" / "broken.py").write_text("def (")
    return tmp_path / "sglang"


@pytest.mark.parametrize("file", ["server_args.py", "arg_groups/choices.py"])
def test_load_formats_are_found_where_the_version_has_them(file, folder):
    assert known_load_formats(folder) == ()
    (folder / "srt" / file).parent.mkdir(exist_ok=True)
    (folder / "srt" / file).write_text('OTHER = []\nLOAD_FORMAT_CHOICES = ["auto", "pt"]\n')
    known_load_formats.cache_clear()
    assert known_load_formats(folder) == ("auto", "pt")


@pytest.mark.parametrize(
    "hook",
    [
        Hook("sglang.srt.module", "work", "first, second, *, named, **rest"),
        Hook("sglang.srt.module", "work", "first, ..."),
        Hook("sglang.srt.module", "work"),
        Hook("sglang.srt.module", "LIMIT"),
        Hook("sglang.srt.module", "Engine.__init__", "self, args"),
        Hook("sglang.srt.module", "Engine.run", "self, *jobs"),
        Hook("sglang.srt.module", "Engine.size"),
        Hook("sglang.srt.module", "Engine.state"),
        Hook("sglang.srt.deep", "here", ""),
        Hook("sglang.srt.gone", "work", optional=True),
        Hook("sglang.srt.module", "gone", optional=True),
        Hook("sglang.srt.module", "gone", only_with="sglang.srt.gone"),
    ],
    ids=str,
)
def test_what_fits(hook, folder):
    assert misfits([hook], folder) == []


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        (Hook("sglang.srt.gone", "work"), "sglang.srt.gone.work is not there"),
        (Hook("sglang.srt.broken", "work"), "sglang.srt.broken.work is not there"),
        (Hook("sglang.srt.module", "Engine.attribute"), "sglang.srt.module.Engine.attribute is not there"),
        (Hook("sglang.srt.module", "gone", only_with="sglang.srt.deep"), "sglang.srt.module.gone is not there"),
        (
            Hook("sglang.srt.module", "Engine.run", "self, jobs, ..."),
            "sglang.srt.module.Engine.run takes (self, *jobs), and not (self, jobs, ...)",
        ),
        (
            Hook("sglang.srt.module", "work", "first, second"),
            "sglang.srt.module.work takes (first, second, *, named, **rest), and not (first, second)",
        ),
    ],
    ids=str,
)
def test_what_does_not_is_named_with_what_is_there(hook, said, folder):
    assert misfits([hook, Hook("sglang.srt.module", "LIMIT")], folder) == [said]


def test_what_was_found_to_fit_is_looked_at_again_once_a_file_or_a_hook_is_another(folder):
    hooks = [Hook("sglang.srt.module", "Engine.size"), Hook("sglang.srt.gone", "work", optional=True)]
    before = digest_of(hooks, folder)
    assert digest_of(hooks, folder) == before
    assert digest_of(hooks[:1], folder) != before
    module = folder / "srt" / "module.py"
    module.write_text(module.read_text() + "\n")
    assert digest_of(hooks, folder) != before


def forget() -> None:
    known_arguments.cache_clear()
    argument_classes.cache_clear()


def test_server_arguments_are_fields_of_one_class_or_of_many(folder):
    with pytest.raises(ConfigError, match="cannot be read"):
        known_arguments(folder)
    file = folder / "srt" / "server_args.py"
    file.write_text("class PortArgs:\n  name: str\nclass ServerArgs:\n  model_path: str\n  _told: bool = False\n")
    assert known_arguments(folder) == ("model_path",)
    forget()
    file.write_text("class ServerArgs:\n  pass\n")
    fields = folder / "srt" / "arg_groups" / "fields"
    fields.mkdir(parents=True)
    for name in ("model", "parallel"):
        (fields / f"{name}.py").write_text(f"class Fields:\n  {name}_size: int = 1\n")
    assert known_arguments(folder) == ("model_size", "parallel_size")
