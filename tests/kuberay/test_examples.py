"""The manifests in examples/kuberay: what KubeRay takes them to be, and that what they name is there."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from raylaunch import LaunchConfig
from tests.cli.runner import run
from tests.head import ROOT

FOLDER = ROOT / "examples" / "kuberay"
FIELDS: dict[str, dict[str, str]] = yaml.safe_load((Path(__file__).parent / "fields.yaml").read_text())
TYPES: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
Json = Any

OBJECTS: dict[str, Json] = {
    f"{file.stem}-{one['kind']}": one
    for file in sorted(FOLDER.glob("*.yaml"))
    for one in yaml.safe_load_all(file.read_text())
}
CLUSTERS = {
    "cluster": OBJECTS["cluster-RayCluster"]["spec"],
    "service": OBJECTS["service-RayService"]["spec"]["rayClusterConfig"],
}


def problems(value: Json, wanted: str, path: str = "") -> Iterator[str]:
    """What a value has that this type does not, by path."""
    wanted = wanted.removesuffix("!")
    if wanted == "any":
        return
    if wanted.startswith("["):
        if isinstance(value, list):
            for index, one in enumerate(value):
                yield from problems(one, wanted[1:-1], f"{path}[{index}]")
        else:
            yield f"{path}: not a list"
    elif wanted == "{}":
        if not isinstance(value, dict) or not all(isinstance(one, str) for one in [*value, *value.values()]):
            yield f"{path}: not names with text"
    elif wanted in FIELDS:
        yield from _fields(value, FIELDS[wanted], path)
    elif not any(_is(value, one) for one in wanted.split("|")):
        yield f"{path}: {value!r} is not {wanted}"


def _fields(value: Json, fields: dict[str, str], path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: not an object"
        return
    yield from (f"{path}.{name}: missing" for name, kind in fields.items() if kind.endswith("!") and name not in value)
    for name, one in value.items():
        if name in fields:
            yield from problems(one, fields[name], f"{path}.{name}")
        else:
            yield f"{path}.{name}: unknown"


def _is(value: Json, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and isinstance(value, bool) == (kind == "boolean") if kind in TYPES else (
        value == kind
    )  # fmt: skip


@pytest.mark.parametrize("name", OBJECTS)
def test_every_field_is_one_of_the_objects(name: str) -> None:
    assert list(problems(OBJECTS[name], OBJECTS[name]["kind"])) == []


def test_the_three_kinds_are_shown() -> None:
    kinds = {one["kind"]: one["apiVersion"] for one in OBJECTS.values()}
    assert kinds == {"PersistentVolumeClaim": "v1"} | dict.fromkeys(("RayCluster", "RayJob", "RayService"), "ray.io/v1")


WORKER = "spec.workerGroupSpecs.0"


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("spec.headGroupSpec.rayStartParam", {}, ".spec.headGroupSpec.rayStartParam: unknown"),
        ("spec.headGroupSpec.template", None, ".spec.headGroupSpec.template: missing"),
        ("spec.headGroupSpec.rayStartParams.num-cpus", 0, ".spec.headGroupSpec.rayStartParams: not names with text"),
        ("spec.authOptions.mode", "key", ".spec.authOptions.mode: 'key' is not disabled|token"),
        (f"{WORKER}.maxReplicas", None, ".spec.workerGroupSpecs[0].maxReplicas: missing"),
        (f"{WORKER}.minReplicas", "0", ".spec.workerGroupSpecs[0].minReplicas: '0' is not integer"),
        (f"{WORKER}.replicas", True, ".spec.workerGroupSpecs[0].replicas: True is not integer"),
        (f"{WORKER}.template.spec.containers", {}, ".spec.workerGroupSpecs[0].template.spec.containers: not a list"),
        ("spec.rayVersion", 2.6, ".spec.rayVersion: 2.6 is not string"),
    ],
)
def test_a_mistake_would_be_seen(path: str, value: Json, problem: str) -> None:
    changed = copy.deepcopy(OBJECTS["cluster-RayCluster"])
    *folders, last = path.split(".")
    place = changed
    for name in folders:
        place = place[int(name)] if isinstance(place, list) else place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    assert list(problems(changed, "RayCluster")) == [problem]


def pods(cluster: Json) -> dict[str, Json]:
    """The head's pod and those of the workers."""
    workers = {one["groupName"]: one["template"]["spec"] for one in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"]["spec"], **workers}


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_ranks_have_gpus_and_the_head_has_none(cluster: Json) -> None:
    head, gpu = pods(cluster).values()
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "gpu" not in str(head["containers"][0]["resources"])
    config = LaunchConfig.from_yaml("qwen3-8b-reference.yaml")
    limits = gpu["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) == config.parallel.tensor_parallel_size
    assert int(limits["cpu"]) > config.parallel.tensor_parallel_size, "a replica takes a CPU beside its ranks"


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_every_pod_has_the_same_image_and_the_same_cache(cluster: Json) -> None:
    claim = OBJECTS["cluster-PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    image = (FOLDER / "Dockerfile").read_text()
    assert (
        f"-t {OBJECTS['cluster-RayCluster']['spec']['headGroupSpec']['template']['spec']['containers'][0]['image']} "
        in image
    )
    assert re.search(r"FROM rayproject/ray:([\d.]+)-", image)[1] == cluster["rayVersion"]  # type: ignore[index]
    for pod in pods(cluster).values():
        (container,) = pod["containers"]
        assert container["image"] == "raylaunch:0.1"
        volumes = {one["name"]: one for one in pod["volumes"]}
        mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
        assert set(mounts) == set(volumes)
        assert volumes["cache"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (home,) = [one["value"] for one in container["env"] if one["name"] == "HF_HOME"]
        assert home.startswith(f"{mounts['cache']}/")


def test_the_job_uses_the_cluster_and_its_command_is_one() -> None:
    job = OBJECTS["job-RayJob"]["spec"]
    assert job["clusterSelector"] == {"ray.io/cluster": OBJECTS["cluster-RayCluster"]["metadata"]["name"]}
    program, *arguments = shlex.split(job["entrypoint"])
    assert program == "raylaunch"
    asked = run(*arguments, "--set", "parallel.nodes=0")
    assert asked.code == 2
    assert "parallel.nodes" in asked.stderr, "all else that the command says is right"
    assert set(yaml.safe_load(job["runtimeEnvYAML"])) == {"env_vars"}


def test_the_service_deploys_what_serve_deploy_takes_and_is_ready_when_raylaunch_is() -> None:
    schema = pytest.importorskip("ray.serve.schema")
    from raylaunch.serve.deployment import ARGUMENTS

    service = OBJECTS["service-RayService"]["spec"]
    deployed = schema.ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"]))
    (application,) = deployed.applications
    assert application.import_path == "raylaunch.serve.deployment:app"
    assert set(application.args) <= set(ARGUMENTS)
    LaunchConfig.from_yaml(application.args["config"], application.args.get("set", []))
    (container,) = pods(service["rayClusterConfig"])["gpu"]["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": deployed.http_options.port}
    assert {"name": "serve", "containerPort": deployed.http_options.port} in container["ports"]
    assert deployed.http_options.host == "0.0.0.0", "kubelet asks at the pod's address"
