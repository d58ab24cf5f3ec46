"""contrib/kubernetes and contrib/container: what the schema says, and the programs."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.cli import qmtpmaildir
from maildirqmtp.receiver.session import MAX_LOAD
from maildirqmtp.settings import config
from maildirqmtp.settings.command_line import parse
from maildirqmtp.settings.units import parse_bytes

ROOT = Path(__file__).parent.parent
KUBERNETES = ROOT / "contrib" / "kubernetes"
CONTAINER = ROOT / "contrib" / "container"
FILES = sorted(KUBERNETES.glob("*.yaml"))
#: The oldest that is to understand it (pod-index), and one that came later.
VERSIONS = ("1.28", "1.34")
Object = dict[str, Any]


@pytest.fixture(scope="module")
def validator() -> Any:
    """The package kubernetes-validate, with the schemas of Kubernetes."""
    try:
        return importlib.import_module("kubernetes_validate")
    except ImportError:
        pytest.skip("NOT TESTED: kubernetes-validate is not installed")


def objects(path: Path) -> list[Object]:
    """Read the objects of a file."""
    try:
        yaml = importlib.import_module("yaml")
    except ImportError:
        pytest.skip("NOT TESTED: PyYAML, which comes with kubernetes-validate, is not installed")
    return list(yaml.safe_load_all(path.read_text()))


def one(path: Path, kind: str) -> Object:
    """Return the only object of a kind."""
    (found,) = [made for made in objects(path) if made["kind"] == kind]
    return found


def pod_of(path: Path) -> Object:
    """Return the specification of a file's pods."""
    return one(path, "StatefulSet")["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def containers() -> list[Any]:
    """Name each container of each file."""
    named = re.compile(r"(?m)^        - name: (\w+)\n          image:")
    return [
        pytest.param(path, name, id=f"{path.stem}-{name}")
        for path in FILES
        for name in named.findall(path.read_text())
    ]


def container(path: Path, name: str) -> Object:
    """Return a container, one that starts a pod or one that stays."""
    pod = pod_of(path)
    both = [*pod.get("initContainers", []), *pod["containers"]]
    (found,) = [made for made in both if made["name"] == name]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_the_schema(validator: Any, path: Path, version: str) -> None:
    """A key that is misspelt is ignored by a server, and what it was to do is not done."""
    made = objects(path)
    assert len(made) >= 4
    for found in made:
        validator.validate(found, version, strict=True)


def test_the_schema_finds_what_is_wrong(validator: Any) -> None:
    """Else the test above would say yes to everything."""
    broken = one(FILES[0], "StatefulSet")
    broken["spec"]["template"]["spec"]["terminationGracePeriod"] = 45
    with pytest.raises(validator.ValidationError):
        validator.validate(broken, VERSIONS[0], strict=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_what_belongs_together_has_the_same_labels(path: Path) -> None:
    """A budget, or a service, whose selector finds no pod, does nothing."""
    stateful = one(path, "StatefulSet")["spec"]
    labels = stateful["template"]["metadata"]["labels"]
    assert stateful["selector"]["matchLabels"] == labels
    assert one(path, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    ports = {port["name"] for made in pod_of(path)["containers"] for port in made["ports"]}
    services = [made for made in objects(path) if made["kind"] == "Service"]
    assert stateful["serviceName"] in {
        made["metadata"]["name"] for made in services if made["spec"].get("clusterIP") == "None"
    }
    for service in services:
        assert service["spec"]["selector"] == labels
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


@pytest.mark.parametrize(("path", "name"), containers())
def test_each_container_is_confined(path: Path, name: str) -> None:
    """No root, nothing to write but volumes, and limits."""
    pod, made = pod_of(path), container(path, name)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["terminationGracePeriodSeconds"] > 25
    assert made["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(made["resources"]["limits"]) == {"cpu", "memory"}
    volumes = {volume["name"] for volume in pod["volumes"]}
    claims = one(path, "StatefulSet")["spec"].get("volumeClaimTemplates", [])
    volumes |= {claim["metadata"]["name"] for claim in claims}
    assert {mount["name"] for mount in made["volumeMounts"]} <= volumes
    if made not in pod.get("initContainers", []):
        assert made["livenessProbe"]
        assert made["readinessProbe"]


@pytest.mark.parametrize(("path", "name"), containers())
def test_the_programs_take_the_arguments(path: Path, name: str, tmp_path: Path) -> None:
    """As they will be expanded; and the probes ask where the program listens."""
    made, pod = container(path, name), pod_of(path)
    if made.get("command") == ["qmtpmaildir"]:
        options = qmtpmaildir.make_parser().parse_args(made["args"])
        ports = {str(port["containerPort"]) for port in made["ports"]}
        assert {listen.rpartition(":")[2] for listen in options.listen} == ports
        return
    if name == "maildir":
        return
    file = tmp_path / "m.toml"
    file.write_text(one(path, "ConfigMap")["data"]["maildirqmtp.toml"])
    replicas = one(path, "StatefulSet")["spec"]["replicas"]
    mounts = {mount["name"]: mount["mountPath"] for mount in made["volumeMounts"]}
    assert f"--config={mounts['config']}/maildirqmtp.toml" in made["args"]
    shards = set()
    for ordinal in range(replicas):
        words = [
            word.replace("$(ORDINAL)", str(ordinal)).replace(mounts["config"] + "/", "")
            for word in made["args"]
        ]
        words = [w.replace("--config=maildirqmtp.toml", f"--config={file}") for w in words]
        read = config.read(str(file), parse(words))
        (route,) = read.routes
        shards.add(str(route.shard))
        assert route.maildir.startswith(mounts["mail"].encode() + b"/")
        (port,) = made["ports"]
        assert read.health_listen == ("0.0.0.0", port["containerPort"])
        for probe in ("livenessProbe", "readinessProbe"):
            assert made[probe]["httpGet"]["port"] == port["name"]
    if path.stem == "shards":
        assert shards == {f"{k}/{replicas}" for k in range(replicas)}
        assert pod["initContainers"][0]["command"][2] == f"{route.maildir.decode()}/tmp"
    else:
        assert shards == {"None"}


def test_what_receivers_hold_at_once_has_room() -> None:
    """Else the kubelet evicts the pod, or a few large messages fill the disk of its node."""
    path = KUBERNETES / "receivers.yaml"
    options = qmtpmaildir.make_parser().parse_args(container(path, "qmtpmaildir")["args"])
    connections, max_size = int(options.max_connections), parse_bytes(options.max_size)
    assert parse_bytes(options.min_free) > 0
    (tmp,) = [volume for volume in pod_of(path)["volumes"] if volume["name"] == "tmp"]
    limit = tmp["emptyDir"]["sizeLimit"]
    assert limit.endswith("Mi")
    assert int(limit[:-2]) << 20 >= connections * (max_size + MAX_LOAD)


def test_the_older_way_to_an_ordinal(tmp_path: Path) -> None:
    """A comment that somebody takes the place of args with."""
    (script,) = re.findall(r"command: \[sh, -c, '(.*)'\]", (KUBERNETES / "shards.yaml").read_text())
    script = script.replace("exec maildirqmtp", "echo")
    done = subprocess.run(
        ["sh", "-c", script], env={"HOSTNAME": "maildirqmtp-shards-3"}, capture_output=True
    )
    assert done.stdout == b"--config=... --shard=3/4\n"


def test_every_file_is_told_of() -> None:
    """In the README beside it."""
    about = (KUBERNETES / "README.md").read_text()
    assert set(re.findall(r"`(\w+\.yaml)`", about)) == {path.name for path in FILES}


# The image


def steps() -> list[tuple[str, str]]:
    """Return the instructions of the Containerfile, continued lines joined."""
    text = (CONTAINER / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_is_built_of_what_is_there() -> None:
    """Each path that is copied exists, with all that the build needs."""
    copied = [
        rest.split()[:-1] for word, rest in steps() if word == "COPY" and "--from" not in rest
    ]
    sources = {source.rstrip("/") for group in copied for source in group}
    for source in sources:
        assert (ROOT / source).exists(), source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {"pyproject.toml", "maildirqmtp", project["readme"], *project["license-files"]}
    assert needed <= sources


def test_the_image_runs_a_program_of_ours_without_root() -> None:
    """By a number, which is how runAsNonRoot knows that it is not root."""
    found = dict(steps())
    assert all(int(part) > 0 for part in found["USER"].split(":"))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    (program,) = json.loads(found["ENTRYPOINT"])
    assert program in scripts
    made = parse(json.loads(found["CMD"]))
    assert made.config == "/etc/maildirqmtp/maildirqmtp.toml"
    last = max(n for n, (word, _) in enumerate(steps()) if word == "FROM")
    assert not [rest for word, rest in steps()[last:] if word == "RUN"]


def test_the_ports_of_the_image_are_those_of_the_fleets() -> None:
    """And beyond the privileged ones, which nobody without root has."""
    exposed = dict(steps())["EXPOSE"].split()
    ports = {
        str(port["containerPort"])
        for path in FILES
        for made in pod_of(path)["containers"]
        for port in made["ports"]
    }
    assert set(exposed) == ports
    assert all(int(port) > 1_023 for port in ports)
