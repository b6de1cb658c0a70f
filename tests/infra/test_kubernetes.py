"""Every overlay builds, is valid to the letter, and keeps the promises of docs/cluster.md.

kubectl builds the overlays (mark `kustomize`). Kinds of Kubernetes are checked by the schemas of kubernetes-validate,
kinds of KubeRay by its own (mark `kuberay`: a folder named by KUBERAY_CRDS, or ../shared/data/kuberay-crds). Where one
of them is missing, make leaves these tests out and says so.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from jobs.core.config import load_config
from jobs.launch import read_arguments as read_launch_arguments
from jobs.submit.command import read_arguments as read_submit_arguments
from jobs.sweep.plan import COMMANDS
from jobs.training.config import TrainConfig

REPOSITORY = Path(__file__).resolve().parents[2]
OVERLAYS = REPOSITORY / "infra" / "kubernetes" / "overlays"
NAMES = ("cpu-smoke", "one-gpu", "spot-8x8")
BUILDS = [build for name in NAMES for build in (name, f"{name}/jobs")]
CRDS = Path(os.environ.get("KUBERAY_CRDS", REPOSITORY.parent / "shared" / "data" / "kuberay-crds"))
KUBERNETES = "1.33"
RAY_KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs"}
IMMUTABLE = re.compile(r"[\w./-]+(:\d+\.\d+\.\d+-(cpu|cuda)|@sha256:[0-9a-f]{64})")
SECRET = re.compile(r"kind: Secret\b|ACCESS_KEY|SESSION_TOKEN|runtimeEnv|://[^/\s]*@|password", re.IGNORECASE)

Node = dict[str, Any]

pytestmark = pytest.mark.kustomize


@cache
def built_text(build: str) -> str:
    finished = subprocess.run(
        ["kubectl", "kustomize", str(OVERLAYS / build)], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@cache
def parsed(build: str) -> list[Node]:
    return list(yaml.load_all(built_text(build), yaml.CSafeLoader))


def built(build: str) -> list[Node]:
    """A copy, which a test may change."""
    return deepcopy(parsed(build))


def of_kind(build: str, kind: str) -> list[Node]:
    return [manifest for manifest in built(build) if manifest["kind"] == kind]


def cluster(name: str) -> Node:
    spec: Node = of_kind(name, "RayCluster")[0]["spec"]
    return spec


def settings(name: str) -> dict[str, str]:
    data: dict[str, str] = of_kind(name, "ConfigMap")[0]["data"]
    return data


def ray_clusters(build: str) -> list[Node]:
    jobs = [job["spec"]["rayClusterSpec"] for job in of_kind(build, "RayJob")]
    return [*jobs, *(manifest["spec"] for manifest in of_kind(build, "RayCluster"))]


def ray_pods(spec: Node) -> list[Node]:
    """Head first."""
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def pods(build: str) -> list[Node]:
    """The specification of every pod that a build may start, the autoscaler's container in its head's."""
    found = []
    for spec in ray_clusters(build):
        head, *workers = deepcopy(ray_pods(spec))
        head["containers"].append({"name": "autoscaler", **spec["autoscalerOptions"]})
        found += [head, *workers]
    found += [job["spec"]["submitterPodTemplate"]["spec"] for job in of_kind(build, "RayJob")]
    found += [job["spec"]["jobTemplate"]["spec"]["template"]["spec"] for job in of_kind(build, "CronJob")]
    return found + [deployment["spec"]["template"]["spec"] for deployment in of_kind(build, "Deployment")]


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


@cache
def crd_schema(plural: str) -> Node:
    path = CRDS / f"ray.io_{plural}.yaml"
    if not path.exists():
        pytest.fail(
            f"no schemas of KubeRay at {CRDS}; set KUBERAY_CRDS to helm-chart/kuberay-operator/crds of a checkout of "
            "ray-project/kuberay, or leave out the mark `kuberay`"
        )
    versions = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]  # 20,000 lines: the C loader
    schema: Node = next(entry["schema"]["openAPIV3Schema"] for entry in versions if entry["name"] == "v1")
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


@cache
def closed_validator(plural: str) -> jsonschema.Draft4Validator:
    schema = refuse_unknown_keys(crd_schema(plural))
    # The API server knows `metadata` by itself; CRDs leave it open.
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft4Validator(schema)


def schema_errors(manifest: Node) -> list[str]:
    assert manifest["apiVersion"] == "ray.io/v1"
    errors = closed_validator(RAY_KINDS[manifest["kind"]]).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in errors]


def restricted_violations(pod: Node) -> Iterator[str]:
    """What Pod Security "restricted" refuses of a pod (kubernetes.io/docs/concepts/security/pod-security-standards)."""
    allowed_volumes = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected",
                       "secret"}  # fmt: skip
    for volume in pod.get("volumes", []):
        if not set(volume) - {"name"} <= allowed_volumes:
            yield f"volume {volume['name']}"
    yield from (key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key))
    of_pod = pod.get("securityContext", {})
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        context = container.get("securityContext", {})
        name = container["name"]
        both = {**of_pod, **context}
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{name}: privileges"
        if context.get("capabilities", {}).get("drop") != ["ALL"] or context["capabilities"].get("add"):
            yield f"{name}: capabilities"
        if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0:
            yield f"{name}: root"
        if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name}: seccomp"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{name}: port of the host"


def environment(container: Node) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


def expanded(text: str, variables: dict[str, str]) -> list[str]:
    """The words that a shell makes of a command line."""
    script = f'for word in {text}; do printf "%s\\n" "$word"; done'
    finished = subprocess.run(
        ["bash", "-euc", script],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout.splitlines()


@pytest.mark.parametrize("build", BUILDS)
def test_kinds_of_kubernetes_are_valid_to_the_letter(build: str) -> None:
    checked = [manifest for manifest in built(build) if manifest["kind"] not in RAY_KINDS]
    for manifest in checked:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    assert {manifest["kind"] for manifest in built(build)} >= ({"RayJob"} if build.endswith("jobs") else {"CronJob"})


@pytest.mark.kuberay
@pytest.mark.parametrize("build", BUILDS)
def test_kinds_of_kuberay_are_valid_to_the_letter(build: str) -> None:
    checked = [manifest for manifest in built(build) if manifest["kind"] in RAY_KINDS]
    assert not [error for manifest in checked for error in schema_errors(manifest)]
    assert len(checked) == (5 if build.endswith("jobs") else 1)


@pytest.mark.kuberay
def test_a_misspelt_key_and_a_wrong_type_are_seen() -> None:
    (manifest,) = (job for job in of_kind("one-gpu/jobs", "RayJob") if job["metadata"]["name"] == "pretrain")
    manifest["spec"]["backOffLimit"] = 3
    manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplicas"] = "none"
    manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    assert len(schema_errors(manifest)) == 3
    (cron,) = of_kind("one-gpu", "CronJob")
    cron["spec"]["concurrencyPolicie"] = "Forbid"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(cron, KUBERNETES, strict=True)


@pytest.mark.parametrize("build", BUILDS)
def test_no_value_was_left_unfilled(build: str) -> None:
    """What is still in capitals where an amount or an image belongs, or still the name that a base gives an image."""
    assert not re.search(r"(cpu|memory|schedule|nvidia\.com/gpu): \"?[A-Z_]+\b", built_text(build))
    assert not re.search(r"image: hiera-video-", built_text(build))


@pytest.mark.parametrize("build", BUILDS)
def test_every_pod_passes_pod_security_restricted(build: str) -> None:
    assert pods(build)
    assert not [found for pod in pods(build) for found in restricted_violations(pod)]
    for namespace in of_kind(build, "Namespace"):
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        (lambda pod: pod["containers"][0].pop("securityContext"), "ray-head: privileges"),
        (lambda pod: pod["containers"][0]["securityContext"].update(runAsUser=0), "ray-head: root"),
        (lambda pod: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "volume x"),
        (lambda pod: pod.update(hostNetwork=True), "hostNetwork"),
        (lambda pod: pod["containers"][0]["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]),
         "ray-head: capabilities"),
    ],
)  # fmt: skip
def test_a_pod_that_is_not_restricted_is_seen(change: Callable[[Node], Any], violation: str) -> None:
    head = pods("cpu-smoke")[0]
    change(head)
    assert violation in list(restricted_violations(head))


@pytest.mark.parametrize("build", BUILDS)
def test_images_do_not_move(build: str) -> None:
    images = {container["image"] for pod in pods(build) for container in pod["containers"] if "image" in container}
    assert images
    assert all(IMMUTABLE.fullmatch(image) for image in images), images
    assert ("cuda" in str(images)) == (not build.startswith("cpu-smoke"))


@pytest.mark.parametrize("build", BUILDS)
def test_no_secret_stands_in_a_manifest(build: str) -> None:
    assert not SECRET.search(built_text(build))


@pytest.mark.parametrize(
    "text", ["kind: Secret\n", "AWS_SECRET_ACCESS_KEY: x", "postgresql://u:p@db/mlflow", "PASSWORD"]
)
def test_a_secret_is_seen(text: str) -> None:
    assert SECRET.search(text)


@pytest.mark.parametrize("build", BUILDS)
def test_only_the_autoscaler_gets_a_token_of_kubernetes(build: str) -> None:
    assert all(account["automountServiceAccountToken"] is False for account in of_kind(build, "ServiceAccount"))
    for pod in pods(build):
        assert pod["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] != "default"
        tokens = {volume["name"] for volume in pod.get("volumes", []) if "serviceAccountToken" in str(volume)}
        holders = [container["name"] for container in pod["containers"]
                   if tokens & {mount["name"] for mount in container.get("volumeMounts", [])}]  # fmt: skip
        assert holders == (["autoscaler"] if tokens else [])


@pytest.mark.parametrize("name", NAMES)
def test_every_account_and_every_pod_has_network_rules(name: str) -> None:
    accounts = {account["metadata"]["name"] for account in of_kind(name, "ServiceAccount")}
    assert {pod["serviceAccountName"] for build in (name, f"{name}/jobs") for pod in pods(build)} <= accounts
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(name, "NetworkPolicy")}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (to_storage,) = policies["object-storage"]["egress"]
    assert to_storage["to"] == [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}]
    into_ray = policies["ray"]["ingress"]
    open_to = {rule["ports"][0]["port"]: [set(peer) for peer in rule["from"]] for rule in into_ray if "ports" in rule}
    assert open_to == {8265: [{"podSelector"}, {"namespaceSelector"}], 8080: [{"namespaceSelector"}]}
    (into_mlflow,) = policies["mlflow"]["ingress"]
    assert into_mlflow["from"] == [{"podSelector": {"matchLabels": {"hiera-video/role": "ray"}}}]


def test_roles_of_the_network_rules_are_roles_of_pods() -> None:
    templates = [job["spec"]["submitterPodTemplate"] for job in of_kind("one-gpu/jobs", "RayJob")]
    templates += [job["spec"]["jobTemplate"]["spec"]["template"] for job in of_kind("one-gpu", "CronJob")]
    templates += [group["template"] for spec in ray_clusters("one-gpu") for group in
                  (spec["headGroupSpec"], *spec["workerGroupSpecs"])]  # fmt: skip
    templates += [deployment["spec"]["template"] for deployment in of_kind("one-gpu", "Deployment")]
    roles = {template["metadata"]["labels"]["hiera-video/role"] for template in templates}
    named = set(re.findall(r"hiera-video/role: (\w+)", yaml.safe_dump_all(of_kind("one-gpu", "NetworkPolicy"))))
    assert roles == named == {"ray", "submitter", "mlflow"}


@pytest.mark.parametrize("build", BUILDS)
def test_pods_live_longer_than_what_they_announce(build: str) -> None:
    for spec in ray_clusters(build):
        for pod in ray_pods(spec):
            variables = environment(pod["containers"][0])
            grace = pod["terminationGracePeriodSeconds"]
            assert grace > float(variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) >= 60
            assert grace > float(variables.get("RAY_JOB_STOP_WAIT_TIME_S", "0"))
        assert environment(ray_pods(spec)[0]["containers"][0])["RAY_JOB_STOP_WAIT_TIME_S"] == "300"
    for cron in of_kind(build, "CronJob"):
        assert cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 300


def test_the_shell_of_the_operator_hands_sigterm_on() -> None:
    """KubeRay starts `bash -c "ulimit ...; ray start --block"`: the last command takes the shell's place."""
    script = "ulimit -n 1024; sleep 30"
    with subprocess.Popen(["/bin/bash", "-c", "--", script]) as process:
        name = Path(f"/proc/{process.pid}/comm")
        for _ in range(100):
            if name.read_text().strip() == "sleep":
                break
            subprocess.run(["sleep", "0.05"], check=True)
        process.terminate()
        assert process.wait(timeout=5) == -15


@pytest.mark.parametrize("name", NAMES)
def test_jobs_and_nights_end(name: str) -> None:
    for job in of_kind(f"{name}/jobs", "RayJob"):
        spec = job["spec"]
        assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
        assert spec["shutdownAfterJobFinishes"] is True
        assert spec["backoffLimit"] > 0
    (cron,) = of_kind(name, "CronJob")
    assert cron["apiVersion"] == "batch/v1"
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    night = cron["spec"]["jobTemplate"]["spec"]
    assert 0 < night["activeDeadlineSeconds"] < 24 * 3600
    assert cron["spec"]["schedule"] == settings(name)["TAG_SCHEDULE"]


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_is_not_retried(name: str) -> None:
    for job in of_kind(f"{name}/jobs", "RayJob"):
        words = expanded(job["spec"]["entrypoint"], settings(name))
        assert read_launch_arguments(words[3:]).stop_on_mistake
    (cron,) = of_kind(name, "CronJob")
    night = cron["spec"]["jobTemplate"]["spec"]
    (container,) = night["template"]["spec"]["containers"]
    (rule,) = night["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}


@pytest.mark.parametrize("name", NAMES)
def test_entrypoints_are_commands_that_the_programs_accept(name: str) -> None:
    """As the shell of the submitter's pod expands them, with the settings of the overlay."""
    for job in of_kind(f"{name}/jobs", "RayJob"):
        (submitter,) = job["spec"]["submitterPodTemplate"]["spec"]["containers"]
        assert submitter["envFrom"] == [{"configMapRef": {"name": "hiera-video-settings"}}]
        words = expanded(job["spec"]["entrypoint"], settings(name))
        assert words[:3] == ["python", "-m", "jobs.launch"]
        launched = read_launch_arguments(words[3:])
        command, *arguments = launched.job
        assert command == job["metadata"]["name"]
        config = load_config(COMMANDS[command], command, arguments)
        assert_lasting(config)
        assert_gpus(launched.gpus, config, name)


@pytest.mark.parametrize("name", NAMES)
def test_the_night_submits_what_the_programs_accept(name: str) -> None:
    (cron,) = of_kind(name, "CronJob")
    (container,) = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["bash", "-c"]
    variables = settings(name) | {"NIGHT": "nightly-tag-1"}
    words = expanded(container["args"][0], variables)
    assert words[:4] == ["exec", "python", "-m", "jobs.submit"]
    config = read_submit_arguments(words[4:])
    assert config.id == "nightly-tag-1"
    command, *arguments = config.job
    assert command == "tag"
    assert_lasting(load_config(COMMANDS["tag"], "tag", arguments))
    # Service and secret of the standing cluster are named after it by the operator.
    (standing,) = of_kind(name, "RayCluster")
    assert environment(container)["RAY_ADDRESS"] == f"http://{standing['metadata']['name']}-head-svc:8265"
    token = next(entry for entry in container["env"] if entry["name"] == "RAY_AUTH_TOKEN")
    assert token["valueFrom"]["secretKeyRef"] == {"name": standing["metadata"]["name"], "key": "auth_token"}


def assert_lasting(config: Any) -> None:
    """Everything that outlives a cluster is in object storage."""
    paths = [getattr(config, key) for key in ("source", "data", "init", "output") if getattr(config, key, None)]
    assert len(paths) >= 2
    assert all(path.startswith("s3://") for path in paths)


def assert_gpus(asked: int, config: Any, name: str) -> None:
    """What a job asks for is what the cluster may have, and what the training uses."""
    found = settings(name)
    most = int(found.get("GPU_PODS", "0")) * int(found.get("GPUS_PER_POD", "0"))
    assert asked in (0, most)
    if isinstance(config, TrainConfig) and most:
        assert asked == config.worker_numbers[-1] == most


@pytest.mark.parametrize("build", BUILDS)
def test_the_cluster_is_that_of_the_settings(build: str) -> None:
    name = build.partition("/")[0]
    found = settings(name)
    for spec in ray_clusters(build):
        assert spec["rayVersion"] == pinned("ray")
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
        assert set(groups) == ({"cpu"} if name == "cpu-smoke" else {"cpu", "gpu"})
        assert all(group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"] for group in groups.values())
        assert groups["cpu"]["maxReplicas"] == int(found["CPU_PODS"])
        if "gpu" in groups:
            (worker,) = groups["gpu"]["template"]["spec"]["containers"]
            assert groups["gpu"]["maxReplicas"] == int(found["GPU_PODS"])
            assert worker["resources"]["limits"]["nvidia.com/gpu"] == found["GPUS_PER_POD"]
            assert worker["image"] == found["IMAGE_CUDA"]


@pytest.mark.parametrize("name", NAMES)
def test_a_job_has_the_standing_cluster_with_keys_of_its_own(name: str) -> None:
    standing = yaml.safe_dump(cluster(name))
    for job in of_kind(f"{name}/jobs", "RayJob"):
        own = yaml.safe_dump(job["spec"]["rayClusterSpec"])
        assert own.replace(f"keys-{job['metadata']['name']}", "keys-cluster") == standing
        assert own.count(f"keys-{job['metadata']['name']}") == len(ray_pods(cluster(name)))


def test_spot_machines_are_tolerated_spread_and_rank_below_the_head() -> None:
    classes = {found["metadata"]["name"]: found["value"] for found in of_kind("spot-8x8", "PriorityClass")}
    head, cpu, gpu = ray_pods(cluster("spot-8x8"))
    assert classes[head["priorityClassName"]] > classes[cpu["priorityClassName"]] == classes[gpu["priorityClassName"]]
    assert "spot" in {toleration["key"] for toleration in gpu["tolerations"]}
    assert "tolerations" not in head
    assert gpu["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"


@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_not_evicted(name: str) -> None:
    (budget,) = of_kind(name, "PodDisruptionBudget")
    assert budget["spec"] == {"maxUnavailable": 0, "selector": {"matchLabels": {"ray.io/node-type": "head"}}}


@pytest.mark.parametrize("name", NAMES)
def test_mlflow_is_found_where_the_settings_say(name: str) -> None:
    (service,) = of_kind(name, "Service")
    (deployment,) = of_kind(name, "Deployment")
    address = settings(name)["MLFLOW_TRACKING_URI"]
    assert address == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    allowed = next(value.partition("=")[2] for value in container["args"] if value.startswith("--allowed-hosts="))
    assert address.removeprefix("http://") in allowed.split(",")
    assert environment(container)["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)


@pytest.mark.parametrize("name", NAMES)
def test_settings_differ_in_nothing_but_their_file(name: str) -> None:
    """An overlay is its list of components and its settings: nothing else is written there."""
    files = {str(path.relative_to(OVERLAYS / name)) for path in (OVERLAYS / name).rglob("*") if path.is_file()}
    assert files == {"kustomization.yaml", "jobs/kustomization.yaml", "settings/kustomization.yaml",
                     "settings/settings.yaml"}  # fmt: skip
    assert shlex.split(settings(name)["PRETRAIN_KEYS"])[1].startswith("workers=")
