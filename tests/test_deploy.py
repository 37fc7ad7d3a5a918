"""What deploy/ holds: manifests by the Kubernetes schemas, scripts by what they do."""

import copy
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nas.arguments import parser

yaml = pytest.importorskip("yaml", reason="kubernetes-validate brings it; it is not installed")

DEPLOY = Path(__file__).parents[1] / "deploy"
MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def named(kind, name):
    (found,) = [m for m in MANIFESTS if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def pods() -> dict[str, dict]:
    """Name of what makes it -> template of its pods."""
    return {m["metadata"]["name"]: m["spec"]["template"] for m in MANIFESTS
            if "template" in m.get("spec", {})}  # fmt: skip


def test_manifests_are_what_kubernetes_takes():
    kubernetes = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate has the schemas; it is not installed"
    )
    version = kubernetes.latest_version()
    assert len(MANIFESTS) == 7
    for manifest in MANIFESTS:
        kubernetes.validate(manifest, version, strict=True)
    for change in ({"replicas": "four"}, {"replica": 4}):
        wrong = copy.deepcopy(named("Deployment", "nas-worker"))
        wrong["spec"] |= change
        with pytest.raises(kubernetes.ValidationError):
            kubernetes.validate(wrong, version, strict=True)


def test_manifests_name_each_other():
    made = {(m["kind"], m["metadata"]["name"]) for m in MANIFESTS}
    service = named("Service", "nas-scheduler")
    assert service["spec"]["selector"] == pods()["nas-scheduler"]["metadata"]["labels"]
    assert str(service["spec"]["ports"][0]["port"]) in pods()["nas-scheduler"]["spec"][
        "containers"][0]["args"]  # fmt: skip
    for name in ("nas-worker", "nas-search"):
        assert "tls://nas-scheduler:8786" in pods()[name]["spec"]["containers"][0]["args"]
    dask = named("ConfigMap", "nas-dask")["data"]
    for template in pods().values():
        (container,) = template["spec"]["containers"]
        assert container["envFrom"] == [{"configMapRef": {"name": "nas-dask"}}]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert mounted.keys() == volumes.keys()
        assert {Path(v).parent for k, v in dask.items() if "TLS__" in k} == {Path(mounted["tls"])}
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in made
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert named("NetworkPolicy", "nas")["spec"]["podSelector"]["matchLabels"].items() <= (
            template["metadata"]["labels"].items()
        )


def test_dask_has_the_settings_that_the_manifests_name():
    dask = pytest.importorskip("dask", reason="the extra [cluster] is not installed")
    pytest.importorskip("distributed", reason="the extra [cluster] is not installed")
    for name in named("ConfigMap", "nas-dask")["data"]:
        key = name.removeprefix("DASK_").lower().replace("__", ".")
        assert dask.config.get(key, default="missing") != "missing", key


def test_the_image_has_what_it_runs_and_is_no_root():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    words = [shlex.split(line) for line in lines if line and not line.startswith("#")]
    copied = [w for word in words if word[0] == "COPY" and "--from=build" not in word
              for w in word[1:-1] if not w.startswith("--")]  # fmt: skip
    assert copied and all((DEPLOY.parent / name).exists() for name in copied)
    users = [word[1] for word in words if word[0] == "USER"]
    assert users and not users[-1].startswith(("root", "0"))
    assert pods()["nas-search"]["spec"]["containers"][0]["args"][0] == "search-or-resume"


def test_a_job_that_begins_again_goes_on(tmp_path):
    """With a `nas` that says how it was called, and leaves what the real one does."""
    fake = tmp_path / "nas"
    fake.write_text('#!/bin/sh\necho "$@"\nmkdir -p run && touch run/lock run/trials.sqlite\n')
    fake.chmod(0o755)
    options = pods()["nas-search"]["spec"]["containers"][0]["args"][2:]

    def job() -> list[str]:
        done = subprocess.run(
            ["sh", DEPLOY / "search-or-resume", "run", *options],
            cwd=tmp_path, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split()

    asked = parser().parse_args(job())
    assert (asked.command, asked.run_dir, asked.dask) == ("search", "run", options[0])
    assert asked.trials == 64 and asked.preset == "quickstart"
    assert parser().parse_args(job()).command == "search", "it had not become a run"
    (tmp_path / "run" / "config.toml").touch()
    asked = parser().parse_args(job())
    assert (asked.command, asked.dir, asked.dask) == ("resume", "run", options[0])


def test_the_slurm_job_is_one_worker_with_one_gpu(tmp_path):
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    command = [sys.executable, DEPLOY / "slurm.py", "run", "cifar10", "--print", "--gpu",
               "--partition", "long", "--interface", "lo"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(DEPLOY.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in ("#SBATCH -p long", "#SBATCH --gres=gpu:1", "--nthreads 1", "--resources GPU=1"):
        assert part in done.stdout
    assert not list(tmp_path.iterdir()), "nothing is begun"
