"""The files of docs/cluster: as far as they can be checked without SLURM and Kubernetes."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from reco_tune.cli import app

FOLDER = Path(__file__).parents[1] / "docs" / "cluster"
RAY_JOB = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"}
"""Keys of a RayJob's spec (ray.io/v1) that are used; Kubernetes drops what it does not know without a word."""
WORKERS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
CONTAINER = {"name", "image", "resources", "volumeMounts"}


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / "rayjob.yaml").read_text()))


def test_the_slurm_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")], check=True)


def test_the_ray_job_has_the_keys_of_its_kind(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob") and set(job) == {
        "apiVersion",
        "kind",
        "metadata",
        "spec",
    }
    assert set(job["spec"]) == RAY_JOB
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert set(cluster["headGroupSpec"]) == {"rayStartParams", "template"}
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == WORKERS and group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), (
            "strings, or the operator refuses them"
        )
        pod = group["template"]["spec"]
        assert set(pod) == {"containers", "volumes"}
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert set(container) == CONTAINER
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_cluster_runs_the_locked_version_of_ray(job: dict[str, Any]) -> None:
    locked = re.search(r"^ray==(.+)$", (FOLDER.parents[1] / "requirements.lock").read_text(), re.MULTILINE)
    assert locked and job["spec"]["rayClusterSpec"]["rayVersion"] == locked[1]


def test_their_commands_are_commands(job: dict[str, Any]) -> None:
    """Every `reco-tune` line of both files names a verb and options that there are."""
    texts = [(FOLDER / "slurm.sh").read_text(), job["spec"]["entrypoint"]]
    lines = [line for text in texts for line in re.findall(r"reco-tune (?:run|resume) [^&;'`\n]*", text)]
    assert len(lines) >= 4
    verbs: Any = typer.main.get_command(app)
    for line in lines:
        _, verb, *rest = shlex.split(line.rstrip("\\ "))
        known = {option for parameter in verbs.commands[verb].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known, line
