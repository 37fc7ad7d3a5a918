"""A run as a whole: begin it, go on with it, read what it found. The Python interface."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from nas import cluster, feasibility
from nas import config as configuration
from nas.dask_executor import DaskExecutor
from nas.dask_executor import make as make_dask_executor
from nas.executor import InProcess, Limits, LocalExecutor
from nas.progress import Progress
from nas.reward import Pareto
from nas.run_dir import RunDir, RunError, next_run, write_whole
from nas.search import Search
from nas.store import Store
from nas.sweep import Sweep
from nas.trial import Trial, trial_seed
from search_spaces import Space

if TYPE_CHECKING:
    import pandas

RUNS = Path("runs")
log = logging.getLogger("nas")


class Run:
    """A run on disk, read without changing it. data: where its data set or table lies now, if that
    was moved."""

    def __init__(self, path: str | Path, data: str | Path = ""):
        self.dir = RunDir(path)
        self.dir.check_run()
        written, decided = [], None
        if self.dir.store.exists():
            with self.store() as store:
                written = [store.get(name) for name in ("config", "config_before")]
                decided = store.get("space")
        self.table = self.dir.read_config(written)
        self.config = configuration.load_run(self.table, data)
        self.space: Space = configuration.make_space(self.config)
        if decided not in (None, self.space.text()):
            raise RunError(
                f"{self.dir.path} was begun where its space was another; it differs in "
                f"{self.space.difference(decided)}; use the version it was begun with"
            )
        self.reward = configuration.make_reward(self.config)
        self.front = Pareto(objectives=self.reward.goals)  # what the front shown is over
        self.constraints = configuration.make_constraints(self.config)
        self.evaluator = configuration.make_evaluator(self.config)
        self.sweep: Sweep | None = None  # where there are accelerators to sweep over
        if configuration.is_priced(self.config):
            self.sweep = Sweep(
                self.config["space"]["network"], self.space, self.constraints, self.reward.needs
            )

    def __repr__(self) -> str:
        return f"Run('{self.dir.path}')"

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        """The store, open for reading."""
        store = Store(self.dir.store, read_only=True)
        try:
            yield store
        finally:
            store.close()

    def trials(self) -> list[Trial]:
        with self.store() as store:
            return store.trials()

    def trial(self, id: int) -> Trial:
        """One trial; ValueError where there is none of that id."""
        with self.store() as store:
            found = store.trials("id = ?", (id,))
        if not found:
            raise ValueError(f"{self.dir.path} has no trial {id}; 'nas report' lists what it has")
        return found[0]

    def finals(self) -> dict[int, tuple[dict, str]]:
        """trial id -> (metrics, weights file name) of the designs trained longer at the end."""
        with self.store() as store:
            return store.finals()

    def leaderboard(self) -> pandas.DataFrame:
        """One row a design, best first; see nas/leaderboard.py for the columns."""
        from nas.leaderboard import leaderboard

        return leaderboard(self)

    def write_results(self) -> None:
        """Write leaderboard.csv and report.html into the run directory."""
        from nas.report import report

        table = self.leaderboard()
        write_whole(self.dir.leaderboard, table.to_csv(index=False, lineterminator="\n"))
        write_whole(self.dir.report, report([self]))


def search(
    preset: str = "quickstart",
    *,
    run_dir: str | Path | None = None,
    data: str | Path = "",
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
    assignments: tuple[str, ...] = (),
    **overrides: Any,
) -> Run:
    """Begin a run and stay until its leaderboard: `nas.search("quickstart", trials=40)`.

    preset: the name of a preset or the path of a TOML file. run_dir: a new directory, by default
    the next `runs/<preset>-NNN`. data: where the data set or the table lies. settings: a table as
    the TOML file has it, merged over the preset. assignments: `key=value` texts as `--set` takes
    them. overrides: top-level keys such as trials, seed, workers, hours.

    Raises ValueError (ConfigError, DataError, RunError) before anything is written; SearchError or
    ExecutorError where the run cannot go on, with everything so far kept.
    """
    table = configuration.read(preset)
    for key, value in {**(settings or {}), **overrides}.items():
        configuration.override(table, key, value)
    for assignment in assignments:
        configuration.assign(table, assignment)
    configuration.override_data(table, data)
    config = configuration.complete(table)
    if config["evaluator"].get("teacher"):  # a resumed run may begin in another folder
        config["evaluator"]["teacher"] = str(Path(config["evaluator"]["teacher"]).resolve())
    config["cluster"] = cluster.resolved(config["cluster"])
    cluster.check_here(config["cluster"])
    configuration.make_evaluator(config).check(configuration.make_space(config))
    feasibility.check(config)
    return begin(config, run_dir or new_run_dir(config["preset"]), progress=progress)


def begin(config: dict, path: str | Path, *, progress: bool = True) -> Run:
    """Begin a run of a checked, complete configuration in a new directory. Raises as `search`."""
    run_dir = RunDir(path)
    run_dir.check_new()
    run_dir.path.mkdir(parents=True, exist_ok=True)
    with run_dir.locked():
        for left in run_dir.path.glob("trials.sqlite*"):  # of a beginning that was cut short
            left.unlink()
        text = tomli_w.dumps({**config, "versions": versions()})
        with contextlib.closing(Store(run_dir.store, create=True)) as store:
            store.set("config", text)
            store.set("space", configuration.make_space(config).text())
        run_dir.create(text)
        return _go_on(Run(run_dir.path), config["cluster"], progress=progress)


def resume(
    path: str | Path, *, data: str | Path = "", progress: bool = True, **overrides: Any
) -> Run:
    """Go on with a run from where it was left. data: where the data set or the table lies now, if
    it was moved. overrides: trials, workers, hours, limits, cluster.

    A run that was ended at any instant gives the trials and the leaderboard that it would have
    given undisturbed. It goes on here unless a cluster is named: a scheduler can run code on its
    clients, and the run may be a stranger's. Raises as `search` does.
    """
    run = Run(path, data)
    table = dict(run.config)
    for key, value in overrides.items():
        configuration.override(table, key, value)
    config = configuration.complete(table)
    config["cluster"] = cluster.resolved(config["cluster"])
    where = config["cluster"] if "cluster" in overrides else None
    if where:
        cluster.check_here(where)
    elif config["cluster"]["dask"]:
        log.warning(
            "the run was on a Dask cluster and goes on here; to go on there, stop it and name the "
            "cluster: --dask %s",
            config["cluster"]["dask"],
        )
    configuration.make_evaluator(config).check(configuration.make_space(config))
    with run.store() as store:
        n_done = store.count("status IN ('complete', 'failed') AND repeats IS NULL")
    if overrides.get("trials", n_done) < n_done:
        raise configuration.ConfigError(
            f"trials is {overrides['trials']:,}, but {path} has {n_done:,} already; name more to "
            "search on, or leave it out"
        )
    if n_done >= config["trials"]:
        log.warning(
            "all %d trials of %s are done; to search on, name more: --trials %d",
            n_done,
            path,
            2 * n_done,
        )
    with run.dir.locked():
        then, now = run.table.get("versions", {}), versions()
        for name in sorted(then.keys() | now.keys()):
            if then.get(name) != now.get(name):
                log.warning(
                    "the run began with %s %s, this is %s: figures may differ",
                    name,
                    then.get(name, "unknown"),
                    now.get(name, "unknown"),
                )
        if data or config != run.config:
            text = tomli_w.dumps({**config, "versions": then})
            with contextlib.closing(Store(run.dir.store)) as store, store.transaction():
                store.set("config_before", run.dir.config.read_bytes().decode())
                store.set("config", text)
            run.dir.create(text)
        return _go_on(Run(path), where, progress=progress)


def new_run_dir(preset: str) -> Path:
    """The next unused `runs/<preset>-NNN`."""
    return next_run(RUNS, Path(preset).stem)


def versions() -> dict[str, str]:
    """What the figures of a run depend on beside its configuration: software and hardware."""
    names = "nas-codesign", "tensorflow", "tensorflow-cpu", "keras", "numpy"
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return {
        **found,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": processor(),
        "cores": str(os.cpu_count()),
    }


def processor() -> str:
    """The processor's model, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


class LogFile(logging.FileHandler):
    """The run's log. Where it cannot be written, what stops the run says so once."""

    def handleError(self, record: logging.LogRecord) -> None:
        """No traceback a line."""


@contextlib.contextmanager
def _logging(path: Path) -> Iterator[None]:
    handler = LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: what runs is parked, everything told kept."""

    def interrupt(*_):
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: signals are its own business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _go_on(run: Run, where: Mapping[str, Any] | None, *, progress: bool) -> Run:
    """Search until the budget is spent, train the finalists, write the results."""
    config, begun = run.config, time.monotonic()

    def out_of_time() -> bool:
        return bool(config["hours"]) and time.monotonic() - begun > 3600 * config["hours"]

    with run.store() as store:  # before a writer clears the log of a damaged one away
        store.check(thorough=False)
    with (
        contextlib.closing(Store(run.dir.store)) as store,
        _logging(run.dir.log),
        _interruptible(),
        contextlib.ExitStack() as stack,
    ):
        if store.get("config") is None:  # of a run that began before it was kept here
            store.set("config", run.dir.config.read_bytes().decode())
        controller = configuration.make_controller(config)
        n_start = getattr(controller, "n_start", 0)
        if config["trials"] <= n_start:
            log.warning(
                "the controller %s proposes its first %d designs at random, and the run has no "
                "more than %d trials; name more, or fewer to begin with ('nas list controllers')",
                config["controller"]["name"],
                n_start,
                config["trials"],
            )
        executor = stack.enter_context(make_executor(run, store.save_workers, where=where))
        watch = stack.enter_context(Progress(config["trials"], run, store, shown=progress))
        log.info("searching in %s: %s", run.dir.path, run.space)
        store.log(f"searching, {store.count('told IS NOT NULL')} trials told so far")
        search = Search(
            price=configuration.make_price(config),
            space=run.space,
            controller=controller,
            reward=run.reward,
            constraints=run.constraints,
            executor=executor,
            store=store,
            n_trials=config["trials"],
            in_flight=config["in_flight"],
            seed=config["seed"],
            out_of_time=out_of_time,
            watch=watch,
            early_stopping=configuration.make_early_stopping(config),
            deterministic=config["deterministic"],
            fidelities=configuration.make_fidelities(config),
        )
        try:
            search.run()
            store.check(thorough=True)
            train_finals(run, executor, store, watch)
        except KeyboardInterrupt:
            park(executor, search, store)
            raise
        store.log("searched to the end")
        store.save_workers([])
        shutil.rmtree(run.dir.checkpoints / "partial", ignore_errors=True)
        log.info("writing the leaderboard and the report")
    run.write_results()
    return run


def park(executor: InProcess | LocalExecutor | DaskExecutor, search: Search, store: Store) -> None:
    """End what runs, its state kept, and record what landed meanwhile."""
    log.warning("stopping: running trainings keep their state; interrupt again to end at once")
    for result in executor.park():
        if result["kind"] == "trial":
            search.land(result)
        elif "metrics" in result:
            store.save_final(result["id"], result["metrics"], weights_name(result["id"]))
    store.log("interrupted")
    store.save_workers([])


def make_executor(
    run: Run,
    on_change: Callable[[list[dict]], None] = lambda workers: None,
    n_workers: int | None = None,
    where: Mapping[str, Any] | None = None,
) -> InProcess | LocalExecutor | DaskExecutor:
    """Where the run's evaluator runs, on as many workers as configured unless said otherwise;
    `on_change` is told what they do. where: a `[cluster]` table."""
    if run.evaluator.in_process:
        return InProcess(run.evaluator)
    n_workers = n_workers or run.config["workers"]
    name, options = run.config["evaluator"]["name"], configuration.evaluator_options(run.config)
    named = {"limits": Limits(**run.config["limits"]), "on_change": on_change}
    folder = run.dir.checkpoints
    if where and where["dask"]:
        return make_dask_executor(where, n_workers, name, options, folder, **named)
    return LocalExecutor(n_workers, name, options, run.dir.log, folder, **named)


def weights_name(trial: int) -> str:
    """The name of a final training's weights, under checkpoints/."""
    return f"trial-{trial:06d}.weights.h5"


def train_finals(
    run: Run, executor: InProcess | LocalExecutor | DaskExecutor, store: Store, watch: Progress
) -> None:
    """Train the best designs longer, score them on the test images, keep their weights.

    Which ones: the first `final.top` different trials of the leaderboard. Those already trained
    are passed over, so that a resumed run does only what is missing.
    """
    if not run.evaluator.final_metrics:
        return
    table = run.leaderboard()
    trials = {trial.id: trial for trial in store.trials("status = 'complete'")}
    wanted = list(dict.fromkeys(table["trial"]))[: run.config["final"]["top"]]
    missing = [id for id in wanted if id not in store.finals()]
    for id in missing:
        executor.submit(
            {
                "id": id,
                "kind": "final",
                "seed": trial_seed(trials[id].seed, 1),
                "choices": run.space.decode(trials[id].proposal.encoding),
                "weights": str((run.dir.checkpoints / weights_name(id)).resolve()),
            }
        )
    for done in range(len(missing)):
        watch.say(f"final training {done + 1} of {len(missing)}")
        result = executor.wait()
        if "error" in result:
            raise RunError(f"the final training of trial {result['id']} failed: {result['error']}")
        store.save_final(result["id"], result["metrics"], weights_name(result["id"]))
        log.info(
            "trial %d, trained longer: %s",
            result["id"],
            ", ".join(
                f"{name} {result['metrics'][name]:.4g}" for name in run.evaluator.final_metrics
            ),
        )
