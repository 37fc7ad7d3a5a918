"""The report of runs as they grow, served to this machine alone; it reads, and changes nothing.

`/` is the report with what `nas status` says above it, `/state` the latter as JSON. The page asks
for that every two seconds, and loads anew where a newer report has been made. The server binds to
the loopback address and answers none but requests addressed to it by that name, so that a page of
another origin cannot read a run through a name of its own that leads here.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from nas.report import report
from nas.report.page import Html, page, paragraph, tag
from nas.run import Run
from nas.status import status

HOST = "127.0.0.1"
ERRORS = ValueError, RuntimeError, OSError  # of a run that was moved or damaged meanwhile
ASK = """
const live = document.getElementById('live'), renew = live.querySelector('input');
renew.checked = localStorage.getItem('renew') !== 'no';
renew.onchange = () => localStorage.setItem('renew', renew.checked ? 'yes' : 'no');
async function ask() {
  let state;
  try {
    const answer = await fetch('state');
    state = answer.ok ? await answer.json() : {lines: [await answer.text()]};
  } catch { state = {lines: ['the dashboard has ended']}; }
  live.querySelector('pre').textContent = state.lines.join('\\n');
  const own = live.dataset.stamp, old = state.stamp !== undefined && state.stamp !== own;
  if (old && (own === '' || (renew.checked && performance.now() > 1e4))) location.reload();
  else setTimeout(ask, 2000);
}
ask();
"""


class Dashboard:
    """What is served of the runs in `paths`. Raises ValueError for one that is none.

    A report is made in a thread of its own, and only while a page asks: pricing every new network
    on every accelerator can take seconds.
    """

    def __init__(self, paths: Sequence[str | Path]):
        self.paths = paths
        self.runs = [Run(path) for path in paths]  # kept: their sweeps remember what they priced
        waiting = paragraph("The report is being made; this page then shows it.", class_="lead")
        self.made = "", page("Search report", live(self.lines(), ""), waiting, script=ASK)
        self.error: str | None = None
        self.making: threading.Thread | None = None
        self.lock = threading.Lock()

    def stamp(self) -> str:
        """Changes when there is something new to report."""
        counts = []
        for run in self.runs:
            with run.store() as store:
                counts += [store.count("told IS NOT NULL"), len(store.finals())]
        return "-".join(map(str, counts))

    def lines(self) -> list[str]:
        """What `nas status` says of each run."""
        return [line for path in self.paths for line in status(path)]

    def page(self) -> str:
        """The last report that was made."""
        return self.made[1]

    def state(self) -> str:
        """The lines and the stamp of the last report, as JSON; begins another where it is old."""
        lines = self.lines()
        with self.lock:
            if self.error:
                lines.append(f"the report cannot be made: {self.error}")
            if self.stamp() != self.made[0] and not (self.making and self.making.is_alive()):
                self.making = threading.Thread(target=self.make, daemon=True)
                self.making.start()
        return json.dumps({"lines": lines, "stamp": self.made[0]})

    def make(self) -> None:
        """Make the report of what there is now."""
        try:
            stamp = self.stamp()
            self.made = stamp, report(self.runs, live(self.lines(), stamp), ASK)
            self.error = None
        except ERRORS as error:
            self.error = str(error)


def live(lines: Sequence[str], stamp: str) -> Html:
    """What stands above a report and is kept up to date."""
    box = tag("label", tag("input", type="checkbox"), " load anew when there is more to report")
    return tag("aside", tag("pre", "\n".join(lines)), box, id="live", data_stamp=stamp)


class Handler(BaseHTTPRequestHandler):
    """One request to a `Dashboard`."""

    def __init__(self, *given, dashboard: Dashboard):
        self.dashboard = dashboard
        super().__init__(*given)

    def do_GET(self) -> None:
        pages = {
            "/": ("text/html", self.dashboard.page),
            "/state": ("application/json", self.dashboard.state),
        }
        name = (self.headers["Host"] or "").partition(":")[0]  # a tunnel's port is another
        code, kind = HTTPStatus.OK, "text/plain"
        if name not in (HOST, "localhost"):
            code, text = HTTPStatus.FORBIDDEN, f"asked for {name!r}, this is {HOST}"
        elif self.path not in pages:
            code, text = HTTPStatus.NOT_FOUND, "there is / and /state"
        else:
            try:
                kind, make = pages[self.path]
                text = make()
            except ERRORS as error:
                code, kind, text = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", str(error)
        self.answer(code, kind, text)

    def answer(self, code: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        with contextlib.suppress(ConnectionError):  # the page was left meanwhile
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *given) -> None:
        """Nothing: each page asks every two seconds."""


def server(paths: Sequence[str | Path], port: int) -> ThreadingHTTPServer:
    """A server of the runs at `port`, 0 for a free one; not begun yet.

    Raises ValueError for a directory that is no run, and where the port cannot be had.
    """
    dashboard = Dashboard(paths)
    try:
        return ThreadingHTTPServer((HOST, port), partial(Handler, dashboard=dashboard))
    except (OSError, OverflowError) as error:
        raise ValueError(f"port {port} cannot be had ({error}); name another with --port") from None
