"""What a rank looks at before anything else."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest
from raylaunch_actors.rank import require_same_files

from raylaunch.errors import RankFault
from raylaunch.package import digest_of_package, package_files

ENDS_AT_ONCE = """
from raylaunch.config import LaunchConfig
from raylaunch.model_check import check_model
from raylaunch.resolved import launch_of
from raylaunch_actors.rank import RankBase
from raylaunch_actors.spec import RankSpec
config = LaunchConfig.default(["log.format={format}"])
resolved = launch_of(config, check_model(config))
files = ("0" * 16, "/theirs/raylaunch")
spec = RankSpec(**vars(resolved), rank=1, local_rank=1, group="tiny-012345", bind_host="h", driver_files=files)
assert RankBase(spec).boot().code == "F19"
"""


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [True, False])
def test_why_a_rank_ends_is_in_its_log(as_json):
    program = ENDS_AT_ONCE.format(format="json" if as_json else "text")
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    if as_json:
        record = json.loads(said)
        assert (record["launch"], record["rank"], record["fault"]) == ("tiny-012345", 1, "F19")
        said = record["traceback"]
    assert "Traceback (most recent call last)" in said
    assert "this rank has imported raylaunch from" in said


def test_a_rank_with_other_files_than_the_driver_names_both_folders():
    require_same_files(package_files(), package_files())
    require_same_files(("", ""), package_files())  # a specification that was made by hand
    with pytest.raises(RankFault) as caught:
        require_same_files(("0" * 16, "/theirs/raylaunch"), ("1" * 16, "/mine/raylaunch"))
    assert caught.value.code == "F19"
    assert f"from /mine/raylaunch on {platform.node()}, the driver from /theirs/raylaunch" in str(caught.value)


def test_the_digest_is_of_names_and_contents_of_both_sides(tmp_path):
    def tree(name, **files):
        for file, text in files.items():
            path = tmp_path / name / f"{file.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return digest_of_package(str(tmp_path / name / "raylaunch"))

    first = tree("a", raylaunch__a="x", raylaunch__b__c="y", raylaunch_actors__r="z")
    assert tree("b", raylaunch__a="x", raylaunch__b__c="y", actors__raylaunch_actors__r="z") == first, "a checkout"
    (tmp_path / "b/raylaunch/__pycache__").mkdir()
    (tmp_path / "b/raylaunch/__pycache__/a.pyc").write_text("")
    assert tree("b") == first, "what Python itself leaves does not count"
    assert tree("c", raylaunch__a="x", raylaunch__b__d="y", raylaunch_actors__r="z") != first
    assert tree("d", raylaunch__a="x", raylaunch__b__c="y", raylaunch_actors__r="other") != first
