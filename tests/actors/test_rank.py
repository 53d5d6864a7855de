"""What a rank looks at before anything else."""

from __future__ import annotations

import platform

import pytest
from raylaunch_actors.rank import require_same_files

from raylaunch.errors import RankFault
from raylaunch.package import digest_of_package, package_files


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
