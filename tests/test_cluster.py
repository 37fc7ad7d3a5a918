"""Searches on a Dask cluster: schedulers and workers are processes that tests start and kill."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import nas
from nas import cluster, cluster_worker, config, dask_cluster, dask_executor
from nas.cli import main
from nas.dask_executor import DaskExecutor
from nas.executor import ExecutorError, Limits

distributed = pytest.importorskip("distributed", reason="the extra [cluster] is not installed")

ROOT = Path(__file__).parents[1]
SLEEPING = "tests.sleeping:Sleeping"
SETTINGS = {
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}
IN_PROCESS = {"threads_per_worker": 1, "processes": False, "protocol": "tcp://",
              "dashboard_address": "127.0.0.1:0"}  # fmt: skip


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Processes(contextlib.ExitStack):
    """A scheduler and workers, killed at the end."""

    def __init__(self, folder, protocol="tcp", options=()):
        super().__init__()
        self.folder, self.options, self.protocol = folder, options, protocol
        self.log = self.enter_context((folder / "dask.log").open("a"))
        self.address = f"{protocol}://127.0.0.1:{free_port()}"
        self.scheduler = self.start_scheduler()

    def start(self, *command, **environment) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, *map(str, command), *self.options],
            cwd=self.folder, stdout=self.log, stderr=subprocess.STDOUT,
            env={**os.environ, **SETTINGS, "PYTHONPATH": str(ROOT), **environment},
        )  # fmt: skip
        self.callback(process.wait)
        self.callback(process.kill)
        return process

    def start_scheduler(self, *options):
        port = self.address.rpartition(":")[2]
        return self.start("-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port",
                          port, "--protocol", self.protocol, "--no-dashboard", "--no-show",
                          *options)  # fmt: skip

    def start_worker(self, *options, by=("-m", "distributed.cli.dask_worker"), **environment):
        return self.start(*by, self.address, "--nthreads", 1, "--no-dashboard", "--no-nanny",
                          "--local-directory", self.folder, *options, **environment)  # fmt: skip


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Processes start slowly on a busy machine."""
    monkeypatch.setattr(dask_cluster, "CONNECT_S", 120.0)


@pytest.fixture
def processes(tmp_path):
    with Processes(tmp_path) as started:
        yield started


def tasks(n, **choices):
    return [{"id": i, "kind": "trial", "seed": i, "choices": choices} for i in range(n)]


def results(executor, sent) -> dict[int, dict]:
    """The results of tasks by id, each of which lands exactly once."""
    for task in sent:
        executor.submit(task)
    landed = [executor.wait() for _ in sent]
    assert sorted(r["id"] for r in landed) == sorted(t["id"] for t in sent)
    assert executor.n_open == 0
    with pytest.raises(ExecutorError, match="nothing was submitted"):
        executor.wait()
    return {r["id"]: r for r in landed}


def test_tasks_run_on_workers_that_keep_their_evaluators(tmp_path):
    limits = Limits(threads=3)
    with DaskExecutor("local", SLEEPING, {}, tmp_path, n_workers=2, limits=limits) as executor:
        executor.wait_until_ready()
        found = results(executor, tasks(8, seconds=0.05))
        pids = {r["metrics"]["pid"] for r in found.values()}
        assert len(pids) == 2 and os.getpid() not in pids
        assert sum(r["metrics"]["n"] == 1 for r in found.values()) == 2, "started once each"
        assert {r["metrics"]["accuracy"] for r in found.values()} == {i / 97 for i in range(8)}
        assert {r["metrics"]["threads"] for r in found.values()} == {"3"}
        assert {r["metrics"]["folder"] for r in found.values()} == {str(tmp_path)}, "it is shared"
        for task in tasks(3, seconds=60):
            executor.submit(task)
    assert not (tmp_path / cluster_worker.TOKEN).exists()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids), "closing ends what runs"


def test_what_a_candidate_does_is_its_own_failure(tmp_path):
    limits = Limits(max_attempts=2)
    with DaskExecutor("local", SLEEPING, {}, n_workers=1, limits=limits) as executor:
        found = results(executor, [
            {"id": 0, "kind": "trial", "seed": 0, "choices": {"seconds": "soon"}},
            {"id": 1, "kind": "trial", "seed": 0, "choices": {"kills": "worker"}},
            {"id": 2, "kind": "trial", "seed": 0, "choices": {}},
        ])  # fmt: skip
    assert found[0]["error"].startswith("TypeError")
    assert "its worker ended by signal 9, at attempt 2 of 2" in found[1]["error"]
    assert "metrics" in found[2]


def test_parking_ends_what_runs_and_what_waits(tmp_path):
    limits, said = Limits(heartbeat=0.1), []
    with DaskExecutor("local", SLEEPING, {}, tmp_path, n_workers=2, limits=limits,
                      on_change=said.append) as executor:  # fmt: skip
        for task in [*tasks(1, seconds=0.5), *tasks(4, seconds=60)[1:]]:
            executor.submit(task)
        assert executor.wait()["id"] == 0
        begun = time.monotonic()
        assert executor.park(1.0) == [] and time.monotonic() - begun < 30
    assert {worker["kind"] for workers in said for worker in workers} <= {"trial", "idle"} and said


def test_weights_come_back_as_bytes(tmp_path):
    weights = tmp_path / "trial.weights.h5"
    task = {"id": 4, "kind": "final", "seed": 9, "choices": {}, "weights": str(weights)}
    with DaskExecutor("local", SLEEPING, {}, n_workers=1) as executor:
        result = results(executor, [task])[4]
    assert weights.read_bytes() == b"weights of 9" and "weights" not in result
    assert Path(result["metrics"]["wrote"]).parent != tmp_path
    assert not Path(result["metrics"]["wrote"]).exists()


def test_a_worker_that_cannot_start_stops_the_search(tmp_path):
    with (
        DaskExecutor("local", "tests.sleeping:Nothing", {}, n_workers=1) as executor,
        pytest.raises(ExecutorError, match="a worker could not start: AttributeError"),
    ):
        executor.submit(tasks(1)[0])
        executor.wait()


def test_a_lost_worker_and_what_joins_later(processes, tmp_path):
    """One of two is killed in the middle of a trial; a task that kills its Dask worker is given to
    one that came later, then it has failed."""
    first, _ = processes.start_worker(), processes.start_worker()
    with DaskExecutor(processes.address, SLEEPING, {}, tmp_path) as executor:
        while len(executor.cluster.client.nthreads()) < 2:
            time.sleep(0.05)
        executor.wait_until_ready()
        for task in tasks(4, seconds=0.6):
            executor.submit(task)
        time.sleep(0.3)
        first.kill()
        landed = [executor.wait() for _ in range(4)]
        assert sorted(r["id"] for r in landed) == [0, 1, 2, 3]
        assert all("metrics" in r for r in landed)
        executor.submit({"id": 9, "kind": "trial", "seed": 0, "choices": {"kills": "dask"}})
        time.sleep(0.3)
        processes.start_worker()
        result = executor.wait()
        assert result["id"] == 9 and "its Dask worker was lost 2 times" in result["error"]


def test_a_restarted_scheduler_gets_what_is_open(processes, tmp_path):
    processes.start_worker()
    with DaskExecutor(processes.address, SLEEPING, {}, tmp_path) as executor:
        for task in tasks(5, seconds=0.3):
            executor.submit(task)
        landed = [executor.wait()]
        processes.scheduler.kill()
        processes.scheduler.wait()
        processes.start_scheduler()
        processes.start_worker()
        landed += [executor.wait() for _ in range(4)]
        assert sorted(r["id"] for r in landed) == list(range(5)) and executor.n_open == 0
        assert all("metrics" in r for r in landed)


def test_a_scheduler_that_stays_away_ends_the_search(tmp_path, monkeypatch):
    with (
        distributed.LocalCluster(n_workers=1, **IN_PROCESS) as leaving,
        DaskExecutor(leaving.scheduler_address, SLEEPING, {}, tmp_path) as executor,
    ):
        executor.submit(tasks(1, seconds=20)[0])
        executor.cluster.patience_s = 0.5
        monkeypatch.setattr(dask_cluster, "CONNECT_S", 0.5)
        leaving.close()
        with pytest.raises(ExecutorError, match=r"was lost for 0.5 s: no Dask scheduler at"):
            executor.wait()


def test_a_cluster_that_adapts_brings_workers_for_trials(tmp_path):
    with distributed.LocalCluster(n_workers=0, **IN_PROCESS) as adapting:
        adapting.adapt(minimum=0, maximum=2, interval="100ms")
        with DaskExecutor(adapting.scheduler_address, SLEEPING, {}, tmp_path) as executor:
            found = results(executor, tasks(8, seconds=0.8))
            assert len({r["metrics"]["pid"] for r in found.values()}) == 2


def test_a_trial_takes_what_a_worker_offers(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    offering = {**IN_PROCESS, "threads_per_worker": 2, "resources": {"GPU": 1}}
    with distributed.LocalCluster(n_workers=1, **offering) as offers:
        address = offers.scheduler_address
        gpu = {"resources": {"GPU": 1}}
        with DaskExecutor(address, SLEEPING, {}, tmp_path, **gpu) as executor:
            found = results(executor, tasks(3, seconds=0.2))
            assert len({r["metrics"]["pid"] for r in found.values()}) == 1, "one at a time"
            assert {r["metrics"]["gpu"] for r in found.values()} == {"3"}
        with pytest.raises(ExecutorError, match=r"no worker that offers TPU=2 came to .* within"):
            DaskExecutor(address, SLEEPING, {}, tmp_path, resources={"TPU": 2}, patience_s=0.3)
        with DaskExecutor(address, SLEEPING, {}, tmp_path) as executor:
            assert results(executor, tasks(1))[0]["metrics"]["gpu"] == "-1"


# a Dask worker that finds the project nowhere
WITHOUT = """
import sys
from pathlib import Path
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
sys.path = [p for p in sys.path if not (Path(p or ".") / "nas").is_dir()]
from distributed.cli.dask_worker import main
main()
"""


def test_code_and_data_are_sent_to_workers_that_lack_them(processes, tmp_path, monkeypatch):
    """Also to one that comes when all that had them are gone."""
    (tmp_path / "without.py").write_text(WITHOUT)
    (tmp_path / "sleeper.py").write_text((ROOT / "tests/sleeping.py").read_text())
    lacks = {"by": ("without.py",), "PYTHONPATH": ""}
    worker = processes.start_worker(**lacks)
    data = tmp_path / "data"
    data.mkdir()
    (data / "digits.txt").write_text("3141")
    probe = dask_cluster._probe()

    def lacking():
        return lambda paths: {**probe(paths), "lacks": ["path"]}

    monkeypatch.setattr(dask_cluster, "_probe", lacking)
    options = {"path": str(data)}
    with DaskExecutor(processes.address, "sleeper:Sleeping", options) as executor:
        data.rename(tmp_path / "gone")
        for task in tasks(3, seconds=0.4):
            executor.submit(task)
        landed = [executor.wait()]
        worker.kill()
        processes.start_worker(**lacks)
        landed += [executor.wait() for _ in range(2)]
    assert sorted(r["id"] for r in landed) == [0, 1, 2]
    for about in (r["metrics"] for r in landed):
        assert about["said"] == "3141" and not about["path"].startswith(str(data))
        assert f"nas-{cluster_worker.code_digest()}.zip" in about["package"]
    assert len({r["metrics"]["pid"] for r in landed}) == 2


def test_other_code_on_the_workers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dask_executor, "code_digest", lambda: "0123456789ab")
    with pytest.raises(ExecutorError, match=r"the code on tcp://.* differs from the code here"):
        DaskExecutor("local", SLEEPING, {}, tmp_path)


def test_too_much_data_is_not_sent(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(bytes(100))
    monkeypatch.setattr(dask_cluster, "MAX_SHIPPED_BYTES", 99)
    with pytest.raises(ExecutorError, match="too large to send"):
        dask_cluster._contents(tmp_path)


def test_tls(tmp_path, caplog):
    made = subprocess.run([ROOT / "deploy/certificates", tmp_path], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"openssl makes no certificate here: {made.stderr}")
    tls = {name: str(tmp_path / f"{name}.pem") for name in cluster.TLS}
    names = {"ca": "--tls-ca-file", "cert": "--tls-cert", "key": "--tls-key"}
    options = [part for name, file in tls.items() for part in (names[name], file)]
    with Processes(tmp_path, "tls", options) as secured:
        secured.start_worker()
        with DaskExecutor(secured.address, SLEEPING, {}, tmp_path, tls=tls) as executor:
            assert "metrics" in results(executor, tasks(1))[0]
        with pytest.raises(ExecutorError, match="no Dask scheduler at tls://"):
            DaskExecutor(secured.address, SLEEPING, {}, tmp_path)
    assert "not encrypted" not in caplog.text


@pytest.mark.parametrize("address, inside", [
    ("tcp://127.0.0.1:8786", True), ("tcp://[::1]:8786", True), ("tcp://localhost:1", True),
    ("tcp://192.0.2.1:8786", False), ("tcp://head:8786", False),
])  # fmt: skip
def test_loopback(address, inside):
    assert dask_cluster._is_loopback(address) is inside


def test_an_open_network_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(dask_cluster, "CONNECT_S", 0.2)
    with pytest.raises(ExecutorError, match=r"no Dask scheduler at tcp://.* leave out --dask"):
        DaskExecutor(f"tcp://127.0.0.1:{free_port()}", SLEEPING, {})
    monkeypatch.setattr(dask_cluster, "CONNECT_S", 60.0)
    DaskExecutor("local", SLEEPING, {}, n_workers=1).close()
    assert "not encrypted" not in caplog.text
    monkeypatch.setattr(dask_cluster, "_is_loopback", lambda address: False)
    DaskExecutor("local", SLEEPING, {}, n_workers=1).close()
    assert "not encrypted: whoever reaches it can run code" in caplog.text


SMALL = {"trials": 2, "seed": 1, "workers": 1, "final": {"top": 0}, "progress": False,
         "evaluator": {"images": 200, "epochs": 1},
         "space": {"cell.width": 8, "cell.depth": 1, "train.batch": 64, "hw.clock_mhz": 400,
                   "hw.rows": 16, "hw.columns": 16, "hw.bandwidth_gbps": 16,
                   "hw.sram_input_kib": 64, "hw.sram_weight_kib": 64}}  # fmt: skip


def test_a_search_ends_as_the_one_on_this_machine(processes, tmp_path, monkeypatch, caplog):
    """Real trainings; a scheduler file names the cluster. Another may go on there, if asked."""
    monkeypatch.setattr("nas.report.report", lambda runs: "")  # it takes longer than trainings
    processes.start_worker()
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": processes.address}))
    ours = nas.search(run_dir=tmp_path / "a", cluster={"dask": file.as_uri()}, **SMALL)
    theirs = nas.search(run_dir=tmp_path / "b", **SMALL)
    assert len([t for t in ours.trials() if t.status == "complete"]) == 2
    assert ours.dir.leaderboard.read_bytes() == theirs.dir.leaderboard.read_bytes()
    monkeypatch.setattr("nas.run._go_on", lambda run, where, progress: wheres.append(where) or run)
    wheres = []
    there = {"dask": processes.address}
    assert nas.resume(tmp_path / "b", cluster=there).config["cluster"]["dask"] == processes.address
    assert nas.Run(tmp_path / "b").config == {**theirs.config, "cluster": {
        **theirs.config["cluster"], **there}}  # fmt: skip
    nas.resume(tmp_path / "b")
    assert [where and where["dask"] for where in wheres] == [processes.address, None]
    assert f"name the cluster: --dask {processes.address}" in caplog.text


@pytest.mark.parametrize("settings, match", [
    ({"dask": "scheduler:8786"}, "cluster.dask is 'scheduler:8786'; it must be tcp://HOST:PORT"),
    ({"dask": "http://here"}, "cluster.dask is 'http://here'"),
    ({"dask": "tls://a:1", "ca": "ca.pem"}, "cluster.cert, cluster.key is missing"),
    ({"dask": "local", "ca": "a", "cert": "b", "key": "c"}, "never leaves this machine"),
    ({"resources": {"GPU": 0}}, "cluster.resources.GPU is 0"),
    ({"resources": {"GPU": True}}, "cluster.resources.GPU is True"),
    ({"dask": 5}, "dask must be text in quotes; got 5"),
    ({"pasience_s": 5}, "unknown key 'cluster.pasience_s'"),
])  # fmt: skip
def test_mistakes_in_the_table(settings, match):
    with pytest.raises(ValueError, match=match):
        config.complete({"cluster": settings})


def test_a_table_needs_no_cluster():
    table = {**config.read("nasbench201"), "cluster": {"dask": "local"}}
    table["evaluator"]["path"] = "table.csv"
    with pytest.raises(ValueError, match="looks designs up here; leave out --dask"):
        config.complete(table)


@pytest.mark.parametrize("address, match", [
    ("local", "--dask needs the extra: pip install 'nas-codesign[cluster]'"),
    ("file:///no/such.json", "no scheduler file /no/such.json"),
])  # fmt: skip
def test_what_is_missing_here_is_one_line(address, match, tmp_path, monkeypatch, capsys):
    if address == "local":
        found = cluster.importlib.util.find_spec
        monkeypatch.setattr(
            cluster.importlib.util,
            "find_spec",
            lambda name: (name != "distributed" and found(name)) or None,
        )
    with pytest.raises(SystemExit) as ended:
        main(["search", "quickstart", "--run", str(tmp_path / "r"), "--dask", address])
    assert ended.value.code == 2 and not (tmp_path / "r").exists()
    said = capsys.readouterr().err
    assert match in said and said.count("\n") == 1
