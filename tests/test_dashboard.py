"""The dashboard: a report that follows its run, for this machine alone."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from nas.dashboard import HOST, server
from nas.store import Store
from nas.trial import Proposal, Status, Trial
from tests.test_report import begin, fill, text, training


def get(port: int, path: str, host: str = "localhost") -> tuple[int, str]:
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    connection.request("GET", path, headers={"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def state_after(port: int, stamp: str) -> dict:
    """The state, once a report newer than `stamp` has been made."""
    deadline = time.monotonic() + 60
    while True:
        state = json.loads(get(port, "/state")[1])
        if state["stamp"] != stamp:
            return state
        assert time.monotonic() < deadline, "no newer report is made"
        time.sleep(0.05)


@pytest.fixture
def watched(tmp_path):
    """A run with results, and the port at which it is served."""
    run = fill(begin(tmp_path / "first"))
    with server([run.dir.path], 0) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield run, serving.server_address[1]
        serving.shutdown()
        thread.join()


def test_it_shows_the_status_at_once_and_the_report_when_it_is_made(watched):
    run, port = watched
    code, waiting = get(port, "/")
    assert code == 200 and "is being made" in text(waiting)
    assert f"{run.dir.path}: " in text(waiting) and "The leaderboard" not in waiting
    state = state_after(port, "")
    assert state["lines"][0].startswith(f"{run.dir.path}: ")
    _, page = get(port, "/")
    assert "The leaderboard" in page and f'data-stamp="{state["stamp"]}"' in page
    assert get(port, "/")[1] == page, "made once"
    assert all(name in page for name in ("script-src 'sha256-", "connect-src 'self'"))


def test_a_trial_told_gives_a_newer_report(watched):
    run, port = watched
    before = state_after(port, "")["stamp"]
    assert "99.0 %" not in text(get(port, "/")[1])
    store = Store(run.dir.store)
    best = run.trials()[0].proposal.encoding
    n = store.count()
    metrics = run.trials()[0].metrics | training(0.99)
    store.insert(Trial(n, Proposal(best), n, Status.COMPLETE, metrics), told=0)
    store.close()
    state_after(port, before)
    assert "99.0 %" in text(get(port, "/")[1])


def test_none_but_this_machine_is_answered(watched):
    _, port = watched
    for host in ("evil.example", f"evil.example:{port}", "", "127.0.0.1.evil.example"):
        code, said = get(port, "/state", host)
        assert code == 403 and "stamp" not in said
    assert get(port, "/state", f"{HOST}:{port}")[0] == 200
    assert get(port, "/state", "localhost:9000")[0] == 200, "through a tunnel"
    for path in ("/../config.toml", "/config.toml", "/state?x"):
        assert get(port, path)[0] == 404


def test_a_run_that_is_damaged_meanwhile_is_said(watched):
    run, port = watched
    run.dir.store.write_bytes(b"no longer a store" * 100)
    code, said = get(port, "/state")
    assert code == 500 and "nas repair" in said


def test_what_cannot_be_served_is_said_before(tmp_path):
    with pytest.raises(ValueError, match="it has no config"):
        server([tmp_path], 0)
    run = begin(tmp_path / "empty")
    with server([run.dir.path], 0) as first:
        port = first.server_address[1]
        with pytest.raises(ValueError, match=f"port {port} cannot be had.*--port"):
            server([run.dir.path], port)
    with pytest.raises(ValueError, match="port 70000 cannot be had"):
        server([run.dir.path], 70000)


def test_the_command_says_where_and_ends_quietly(tmp_path):
    run = begin(tmp_path / "empty")
    command = [sys.executable, "-m", "nas.cli", "dashboard", str(run.dir.path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        said = process.stdout.readline().decode()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/ shows", said)[1])
        state_after(port, "")
        assert "No design" in text(get(port, "/")[1])
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0 and process.stderr.read() == b""
