"""A user's files that ranks would import in place of ours, or of what ranks need, are one message before the launch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import raylaunch_actors

import raylaunch
from raylaunch.package import package_files
from raylaunch.startup.shadows import Shadow, _needed, importable, shadows, worker_entries

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = (
    "import sys, importlib.util as u\n"
    "sys.path.insert(0, sys.argv[1])\n"
    "print({n: u.find_spec(n).origin for n in sys.argv[2:] if u.find_spec(n)})"
)


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        ({"torch.py": None}, {"torch": "torch.py"}),
        ({"torch": ["__init__.py", "a.py"]}, {"torch": "torch/__init__.py"}),
        ({"torch": ["a.py"]}, {}),
        ({"torch": [], "torch.py": None}, {"torch": "torch.py"}),
        ({"torch.py": None, "torch": ["__init__.py"]}, {"torch": "torch/__init__.py"}),
        ({"ray.pyc": None}, {"ray": "ray.pyc"}),
        ({"ray.abi3.so": None}, {"ray": "ray.abi3.so"}),
        ({"torch.txt": None, "my-torch.py": None, "torch.py.bak": None, "Makefile": None}, {}),
    ],
)
def test_what_a_folder_offers(tree, names, tmp_path):
    assert importable(tree) == names
    for entry, files in tree.items():  # and as Python itself has it
        if files is None:
            (tmp_path / entry).touch()
        else:
            (tmp_path / entry).mkdir()
            for file in files:
                (tmp_path / entry / file).touch()
    asked = [name for name in (entry.partition(".")[0] for entry in tree) if name.isidentifier()]
    done = subprocess.run([sys.executable, "-S", "-c", SAMPLE, tmp_path, *asked], capture_output=True, text=True)
    found = {name: origin for name, origin in eval(done.stdout).items() if origin}
    assert found == {name: str(tmp_path / file) for name, file in names.items()}


REAL = {"torch": "/site/torch/__init__.py", "yaml": "/site/yaml.py", "nvidia": "", "random": "/std/random.py"}


@pytest.mark.parametrize(
    ("trees", "deliberate", "found"),
    [
        ({"/w": {"torch.py": None}}, (), ["/w/torch.py"]),
        ({"/w": {"mine.py": None, "tests": ["__init__.py"]}}, (), []),
        ({"/w": {"torch": ["x.py"]}}, (), []),
        ({"/w": {"nvidia": ["__init__.py"]}}, (), ["/w/nvidia/__init__.py"]),
        ({"/w": {"torch.py": None}, "/s": {"torch": ["__init__.py"], "random.py": None}}, (),
         ["/s/random.py", "/w/torch.py"]),
        ({"/site": {"torch": ["__init__.py"], "yaml.py": None}}, (), []),
        ({"/w": {"torch": ["__init__.py"], "yaml.py": None}}, ("/w",), ["/w/yaml.py"]),
        ({"/w": {"raylaunch": ["__init__.py"], "raylaunch_actors.py": None}}, ("/w",),
         ["/w/raylaunch/__init__.py", "/w/raylaunch_actors.py"]),
    ],
)  # fmt: skip
def test_which_modules_are_taken_the_place_of(trees, deliberate, found):
    made = shadows(list(trees), trees.__getitem__, REAL.get, deliberate)
    assert [one.file for one in made] == found


def test_a_package_is_told_from_a_module():
    assert Shadow("torch", "/w/torch/__init__.py").is_package
    assert not Shadow("torch", "/w/torch.py").is_package


@pytest.mark.parametrize(
    ("script", "path", "entries"),
    [
        ("/v/bin/raylaunch", ["/v/bin", "/v/site"], ("/cwd", "/v/bin")),
        ("/v/site/raylaunch/__main__.py", ["/cwd", "/v/site"], ("/cwd",)),
        ("/app/main.py", ["/app", "/v/site"], ("/cwd", "/app")),
        ("/cwd/main.py", ["/cwd", "/v/site"], ("/cwd",)),
        ("", ["/cwd"], ("/cwd",)),
    ],
)
def test_the_folders_that_ray_adds(script, path, entries):
    assert worker_entries(script, path, "/cwd") == entries


def test_what_ranks_can_need():
    needed = _needed(("torch", "pydantic"))
    assert {"torch", "pydantic", "pydantic-core", "typing-extensions", "jinja2"} <= needed
    assert not {"pytest", "ruff", "transformers"} & needed


# ---- as a user starts it


def start(how, folder, *more, **variables):
    """Runs ``generate`` in ``folder``; a model that does not exist ends it where nothing is shadowed."""
    script = folder / "app" / "main.py"
    if how == "script":
        script.parent.mkdir(exist_ok=True)
        script.write_text(
            "from raylaunch import Engine, LaunchConfig\n"
            "Engine(LaunchConfig.default(['model.path=/no/model'])).start()\n"
        )
    arguments = ["generate", "--prompt", "x", "--set", "model.path=/no/model", *more]
    command = {
        "command": [str(Path(sys.executable).parent / "raylaunch"), *arguments],
        "-m": [sys.executable, "-m", "raylaunch", *arguments],
        "script": [sys.executable, str(script)],
    }[how]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr.strip().splitlines()


NOT_SHADOWED = "model.path = '/no/model': no such folder"


def slowly(*cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    ("how", "file"),
    [("command", "torch.py"), ("-m", "random.py"), ("script", "ray.py")]
    + slowly(("command", "tokenizers/__init__.py"), ("command", "queue.py"), ("command", "zmq.so"), ("-m", "typer.py"))
    + slowly(("-m", "pydantic/__init__.py"), ("-m", "ray/__init__.py"), ("script", "numpy.py"), ("command", "yaml.py")),
)
def test_one_message_names_file_and_remedy(tmp_path, how, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("raise RuntimeError('this is the user\\'s')\n")
    code, lines = start(how, tmp_path)
    assert code == (1 if how == "script" else 2)
    assert f"'{tmp_path / file}': it takes the place of " in lines[-1]
    assert f"Ray has ranks look in {tmp_path} first: rename it, or run from another folder" in lines[-1]
    assert how == "script" or len(lines) == 1


@pytest.mark.parametrize("how", ["command", *slowly(("-m",), ("script",))])
def test_folders_of_a_users_that_do_no_harm(tmp_path, how):
    for name in ("actors", "configs", "tests", "examples", "docs", "utils", "models", "data"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError\n")
    for name in ("torch", "sglang", "transformers", "raylaunch_models", "numpy"):
        (tmp_path / name).mkdir(exist_ok=True)  # no packages: such as a folder that a clone is in
    for name in ("main.py", "test.py", "config.py", "conftest.py", "setup.py"):
        (tmp_path / name).write_text("raise RuntimeError\n")
    _, lines = start(how, tmp_path)
    assert NOT_SHADOWED in lines[-1]


@pytest.mark.parametrize(
    ("how", "file"),
    [("command", "raylaunch.py")]
    + slowly(("script", "raylaunch/__init__.py"), ("command", "raylaunch_actors/__init__.py")),
)
def test_what_is_called_as_ours_is(tmp_path, how, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("mine = 1\n")
    _, lines = start(how, tmp_path)
    assert f"'{tmp_path / file}': ranks would import it, and this process has imported /" in lines[-1]
    assert "rename it, or run from another folder" in lines[-1]


def test_a_checkout_as_the_working_directory():
    _, lines = start("command", ROOT)
    assert NOT_SHADOWED in lines[-1]


def copy_of_ours(folder):
    for package, below in ((raylaunch, "."), (raylaunch_actors, "actors")):
        source = Path(package.__file__).parent
        shutil.copytree(source, folder / below / source.name, ignore=shutil.ignore_patterns("__pycache__"))


def test_a_copy_of_the_same_does_no_harm_and_another_version_does(tmp_path):
    """As where it is installed, and run in a checkout."""
    copy_of_ours(tmp_path)
    _, lines = start("command", tmp_path)
    assert NOT_SHADOWED in lines[-1]
    with (tmp_path / "actors/raylaunch_actors/gate.py").open("a") as file:
        file.write("# changed\n")
    _, lines = start("command", tmp_path)
    assert f"'{tmp_path}/raylaunch/__init__.py': ranks would import it" in lines[-1]
    assert package_files()[1] in lines[-1]


def test_a_patched_package_that_was_put_on_the_path_by_hand_is_meant(tmp_path):
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors/__init__.py").touch()
    _, lines = start("command", tmp_path)
    assert "takes the place of safetensors" in lines[-1]
    _, lines = start("command", tmp_path, PYTHONPATH=str(tmp_path))
    assert NOT_SHADOWED in lines[-1]


def test_a_working_directory_that_is_gone(tmp_path):
    (tmp_path / "gone").mkdir()
    program = Path(sys.executable).parent / "raylaunch"
    command = f"cd '{tmp_path}/gone' && rmdir '{tmp_path}/gone' && exec {program} generate --prompt x"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"ConfigError working directory = '{tmp_path}/gone': no longer exists: cd to one that does"
    ]
