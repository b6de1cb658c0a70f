"""What `infra/` holds agrees with the programs and pins of this repository, and with KubeRay's schemas.

The schemas are not part of the project: a folder with KubeRay's two CRD files, named by KUBERAY_CRDS or lying at
../shared/data/kuberay-crds. Where there is none, make leaves out the two tests that read them.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
KUBERAY = REPOSITORY / "infra" / "kuberay"
CRDS = Path(os.environ.get("KUBERAY_CRDS", REPOSITORY.parent / "shared" / "data" / "kuberay-crds"))
RAY_MANIFESTS = {"raycluster.yaml": "rayclusters", "rayjob-pretrain.yaml": "rayjobs"}

Node = dict[str, Any]


def documents(name: str) -> list[Node]:
    return list(yaml.safe_load_all((KUBERAY / name).read_text()))


def cluster_spec(name: str) -> Node:
    spec: Node = documents(name)[0]["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(cluster: Node) -> list[Node]:
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def containers(cluster: Node) -> list[Node]:
    return [container for pod in pods(cluster) for container in pod["spec"]["containers"]]


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


def crd_schema(plural: str, version: str) -> Node:
    path = CRDS / f"ray.io_{plural}.yaml"
    if not path.exists():
        pytest.fail(
            f"no schemas of KubeRay at {CRDS}; set KUBERAY_CRDS to helm-chart/kuberay-operator/crds of a checkout of "
            "ray-project/kuberay, or leave out the mark `kuberay`"
        )
    versions = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]  # 20,000 lines: the C loader
    schema: Node = next(entry["schema"]["openAPIV3Schema"] for entry in versions if entry["name"] == version)
    return schema


def refuse_unknown_keys(schema: Any) -> Any:
    """An API server drops keys that the schema does not name, silently; a test should say so instead."""
    if isinstance(schema, list):
        return [refuse_unknown_keys(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: refuse_unknown_keys(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def schema_errors(manifest: Node, plural: str) -> list[str]:
    group, _, version = manifest["apiVersion"].partition("/")
    assert group == "ray.io"
    schema = refuse_unknown_keys(crd_schema(plural, version))
    # The API server knows `metadata` by itself; CRDs leave it open.
    schema["properties"]["metadata"] = {"type": "object"}
    return [f"{error.json_path}: {error.message}" for error in jsonschema.Draft4Validator(schema).iter_errors(manifest)]


@pytest.mark.kuberay
@pytest.mark.parametrize(("name", "plural"), RAY_MANIFESTS.items())
def test_manifest_fits_the_schema_of_kuberay(name: str, plural: str) -> None:
    manifests = documents(name)
    assert len(manifests) == 1
    assert schema_errors(manifests[0], plural) == []


@pytest.mark.kuberay
def test_a_misspelt_key_and_a_wrong_type_break_the_schema() -> None:
    manifest = documents("rayjob-pretrain.yaml")[0]
    manifest["spec"]["backOffLimit"] = 3
    manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplicas"] = "none"
    manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    assert len(schema_errors(manifest, "rayjobs")) == 3


@pytest.mark.parametrize("name", RAY_MANIFESTS)
def test_the_head_takes_no_work_and_workers_may_shrink_to_nothing(name: str) -> None:
    cluster = cluster_spec(name)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu"}
    assert all(group["minReplicas"] == 0 < group["maxReplicas"] for group in groups.values())
    gpus = [container["resources"]["limits"].get("nvidia.com/gpu") for container in containers(cluster)]
    assert gpus == [None, None, "1"]


@pytest.mark.parametrize("name", RAY_MANIFESTS)
def test_the_cluster_asks_for_a_token(name: str) -> None:
    assert cluster_spec(name)["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("name", RAY_MANIFESTS)
def test_ray_and_python_are_those_of_the_pins(name: str) -> None:
    assert cluster_spec(name)["rayVersion"] == pinned("ray")
    dockerfile = (REPOSITORY / "infra" / "Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.11\.\d+-slim-bookworm$", dockerfile, re.MULTILINE)
    assert dockerfile.count("--constraint constraints.txt") == dockerfile.count("pip install")


def test_every_image_is_one_pinned_image() -> None:
    mlflow = next(document for document in documents("mlflow.yaml") if document["kind"] == "Deployment")
    everywhere = [mlflow["spec"]["template"]["spec"]["containers"][0]]
    for name in RAY_MANIFESTS:
        everywhere += containers(cluster_spec(name))
    images = {container["image"] for container in everywhere}
    assert len(images) == 1
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+", images.pop())


@pytest.mark.parametrize("name", [*RAY_MANIFESTS, "mlflow.yaml", "places.yaml"])
def test_no_secret_stands_in_a_manifest(name: str) -> None:
    text = (KUBERAY / name).read_text()
    assert not re.search(r"kind: Secret|ACCESS_KEY|SESSION_TOKEN|AUTH_TOKEN|runtimeEnv|://[^/\s]*@", text)


def test_the_entrypoint_is_a_program_with_a_recipe_of_this_repository() -> None:
    python, flag, module, recipe, *settings = entrypoint()
    assert (python, flag) == ("python", "-m")
    assert (REPOSITORY / f"{module.replace('.', '/')}.py").exists()
    assert (REPOSITORY / "jobs" / "recipes" / module.partition(".")[2] / f"{recipe}.yaml").exists()
    assert all("=" in setting for setting in settings)


def test_everything_that_outlives_a_cluster_is_in_object_storage() -> None:
    places = dict(setting.split("=", 1) for setting in entrypoint()[4:])
    assert places["data"].startswith("s3://")
    assert places["output"].startswith("s3://")
    for name in RAY_MANIFESTS:
        volumes = [volume for pod in pods(cluster_spec(name)) for volume in pod["spec"]["volumes"]]
        assert all(set(volume) == {"name", "emptyDir"} for volume in volumes)


def test_the_gpus_of_all_training_workers_are_there_when_the_program_starts() -> None:
    workers = int(next(setting.partition("=")[2] for setting in entrypoint() if setting.startswith("workers=")))
    _, gpu = cluster_spec("rayjob-pretrain.yaml")["workerGroupSpecs"]
    gpus = int(gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert workers == gpu["replicas"] * gpus <= gpu["maxReplicas"] * gpus


def test_the_job_and_the_standing_cluster_are_the_same_cluster() -> None:
    job, standing = cluster_spec("rayjob-pretrain.yaml"), cluster_spec("raycluster.yaml")
    for group in [*job["workerGroupSpecs"], *standing["workerGroupSpecs"]]:
        del group["replicas"]
    assert job == standing


def test_mlflow_is_found_where_the_places_say() -> None:
    service, _, deployment = documents("mlflow.yaml")
    address = documents("places.yaml")[0]["data"]["MLFLOW_TRACKING_URI"]
    assert address == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    allowed = next(value.partition("=")[2] for value in arguments if value.startswith("--allowed-hosts="))
    assert address.removeprefix("http://") in allowed.split(",")


def entrypoint() -> list[str]:
    return shlex.split(documents("rayjob-pretrain.yaml")[0]["spec"]["entrypoint"])
