"""The configuration of a run: presets and TOML files, defaults written out, mistakes named.

preset, trials, seed, workers, in_flight, hours, constraints, deterministic
[space]       network = "cell", accelerators = "systolic", and decision = value or [values] to
              narrow it; network = "table" where the evaluator is a table, whose space it is
[evaluator]   name = "proxy", and its options
[controller]  name = "surrogate", and its options
[reward]      name = "mnasnet", and its options
[early_stopping]  epochs: after so many, candidates go on that are among the best 1/reduction
[fidelities]  rungs: what trainings cost, ascending, as epochs; the best 1/reduction of each are
              trained again at the next (fidelities.py), once `after` were told at the first. A
              promotion counts as a trial
[final]       top: how many designs are trained longer at the end
[limits]      of workers, as `nas.executor.Limits`: trial_timeout, trial_memory, max_attempts, ...
[cluster]     dask: the address of a scheduler, and what nas/dask_executor.py says of the rest
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from nas import cluster, controllers, evaluators, reward
from nas.early_stopping import EarlyStopping
from nas.executor import Limits
from nas.fidelities import SuccessiveHalving
from nas.outlook import Priced, Tabled, named
from nas.pricing import price_designs
from nas.run_dir import RunError
from nas.table import look_up, options
from nas.trial import HARDWARE_METRICS, STEP_METRICS, TRAINING_METRICS, Metrics
from search_spaces import FAMILIES, Space, hardware, joint
from search_spaces.space import Choices, nearest

DEFAULTS: dict[str, Any] = {
    "preset": "",
    "trials": 32,  # candidates to train; infeasible and repeated ones are not counted
    "seed": 0,
    "workers": 2,
    "in_flight": 4,  # trials asked for ahead of the last one told, whatever the workers
    "hours": 0.0,  # no new candidates after so many hours; 0: no limit
    "constraints": [],
    "space": {"network": "cell"},
    "evaluator": {"name": "proxy"},
    "controller": {"name": "surrogate"},
    "reward": {"name": "mnasnet"},
    "early_stopping": {"reduction": 3, "epochs": []},  # off without epochs
    "fidelities": {"reduction": 3, "rungs": [], "after": 0},  # off without rungs
    "deterministic": True,  # trials are told in the order of asking, however many workers
    "limits": dataclasses.asdict(Limits()),
    "final": {"top": 1},
    "cluster": {  # of Dask workers; without an address, worker processes of this machine
        "dask": "",
        "resources": {},
        "ca": "",
        "cert": "",
        "key": "",
        "patience_s": 600.0,
    },
}
LEAST = {
    "trials": 1,
    "seed": 0,
    "workers": 1,
    "in_flight": 1,
    "hours": 0,
    "top": 0,
    "reduction": 2,
    "trial_timeout": 0,
    "trial_memory": 0,
    "recycle_memory": 0,
    "heartbeat": 0.1,
    "max_attempts": 1,
    "threads": 1,
    "patience_s": 0,
}
TABLES = {
    "evaluator": evaluators.EVALUATORS,
    "controller": controllers.CONTROLLERS | controllers.FOREIGN,
    "reward": reward.REWARDS,
}
TABLE = "table"  # the network family, and the evaluator, of measured designs
HANDED_OVER = (*controllers.HANDED_OVER, "family")  # by the run, never configured


class ConfigError(ValueError):
    """A mistake in a configuration: what, the value received, what to try."""


def presets() -> dict[str, str]:
    """name -> first line of its comment, of every preset shipped."""
    found = {}
    for file in sorted(resources.files("search_spaces.presets").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            first = file.read_text("utf-8").splitlines()[0]
            found[file.name.removesuffix(".toml")] = first.lstrip("# ")
    return found


def read(source: str) -> dict:
    """The table of a preset's name or of a TOML file's path. Raises ConfigError."""
    known = presets()
    if source in known:
        text = (resources.files("search_spaces.presets") / f"{source}.toml").read_text("utf-8")
        return {"preset": source, **tomllib.loads(text)}
    path = Path(source)
    if not source.endswith(".toml"):
        raise ConfigError(f"unknown preset '{source}'; {nearest(source, known)} (or a .toml file)")
    if not path.is_file():
        raise ConfigError(f"no file {source}; presets are {', '.join(known)}")
    try:
        table = {"preset": path.stem, **tomllib.loads(path.read_text("utf-8"))}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} is not TOML: {error}") from error
    table.pop("versions", None)  # a run's own config.toml: what it ran on is no setting
    return table


def assign(table: dict, assignment: str) -> None:
    """Apply one `key=value` of --set: a key, section.key, or the name of a decision."""
    key, equals, text = assignment.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"--set takes key=value, got '{assignment}'")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string, as typed at a shell
    section, dot, rest = key.partition(".")
    if dot and isinstance(DEFAULTS.get(section), dict):
        if section != "space":  # where a name with dots is a decision's
            rest, value = nested(table.get(section, {}), rest, value)
        override(table, section, {rest: value})
    elif dot:
        override(table, "space", {key: value})
    else:
        table[key] = value


def nested(table: Mapping, key: str, value: Any) -> tuple[str, Any]:
    """A dotted key as the first of its names, and the table there with the value set in it: what
    else that table holds stays."""
    first, dot, rest = key.partition(".")
    if not dot:
        return key, value
    inner = table.get(first, {})
    if not isinstance(inner, Mapping):
        raise ConfigError(f"cannot set '{rest}' in '{first}', which is {inner!r} and no table")
    name, changed = nested(inner, rest, value)
    return first, {**inner, name: changed}


def override(table: dict, key: str, value: Any) -> None:
    """Set a key or merge a table into a section; another name drops the old one's options."""
    if not isinstance(value, Mapping) or not isinstance(DEFAULTS.get(key), dict):
        table[key] = value
        return
    section = {**DEFAULTS[key], **table.get(key, {})}
    if key in TABLES and value.get("name", section["name"]) != section["name"]:
        section = {}
    table[key] = {**section, **value}


def override_data(table: dict, path: str | Path) -> None:
    """Name where the data set or the table lies, unless `path` is empty."""
    if path:
        override(table, "evaluator", {"path": str(Path(path).resolve())})


def complete(table: Mapping) -> dict:
    """The whole configuration of `table`: every default written out, every key and value checked.

    Raises ConfigError (or a component's own ValueError), naming what is wrong and what is near.
    """
    config: dict[str, Any] = {}
    for key in table:
        if key not in DEFAULTS:
            raise ConfigError(f"unknown key '{key}'; {nearest(key, DEFAULTS)}")
    for key, default in DEFAULTS.items():
        given = table.get(key, default)
        if isinstance(default, dict):
            if not isinstance(given, Mapping):
                raise ConfigError(f"[{key}] is a table of its own; got {given!r}")
            config[key] = {**default, **given}
        else:
            config[key] = typed(key, given, default)
    for key in ("final", "early_stopping", "fidelities", "limits", "cluster"):
        for name, value in config[key].items():
            if name not in DEFAULTS[key]:
                raise ConfigError(f"unknown key '{key}.{name}'; {nearest(name, DEFAULTS[key])}")
            config[key][name] = typed(f"{key}.{name}", value, DEFAULTS[key][name])
    for key, choices in TABLES.items():
        config[key] = with_options(key, config[key], choices)
    if is_priced(config):
        config["space"].setdefault("accelerators", "systolic")
    cluster.check(config["cluster"])
    if evaluators.EVALUATORS[config["evaluator"]["name"]].in_process and config["cluster"]["dask"]:
        raise ConfigError(
            f"evaluator '{config['evaluator']['name']}' looks designs up here; leave out --dask"
        )
    make_evaluator(config)
    make_space(config)
    make_reward(config)
    make_constraints(config)
    make_early_stopping(config)
    make_fidelities(config)
    make_controller(config)
    return config


def typed(key: str, value: Any, default: Any) -> Any:
    """`value` if it has the type of `default` and is in range; whole numbers serve as floats."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default):
        names = {
            int: "a whole number",
            float: "a number",
            str: "text in quotes",
            list: "a list",
            bool: "true or false",
            dict: "a table",
        }
        raise ConfigError(f"{key} must be {names[type(default)]}; got {value!r}")
    least = LEAST.get(key.rpartition(".")[2])
    if least is not None and not value >= least:
        raise ConfigError(f"{key} must be at least {least}; got {value}")
    return value


def with_options(section: str, table: Mapping, choices: Mapping[str, type]) -> dict:
    """A section's table with the defaults of the class that its name picks, as TOML can hold it."""
    given = {key: value for key, value in table.items() if key != "name"}
    known = options(look_up(section, choices, table["name"], given, HANDED_OVER))
    filled = {key: default for key, default in known.items() if key not in HANDED_OVER}
    return {"name": table["name"], **plain({**filled, **given})}


def plain(value: Any) -> Any:
    """Mappings as dictionaries and sequences as lists."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _options(config: dict, section: str) -> dict:
    return {key: value for key, value in config[section].items() if key != "name"}


def make_space(config: dict) -> Space:
    """The joint space or the table's, narrowed as configured."""
    narrowed = dict(config["space"])
    family, accelerators = narrowed.pop("network"), narrowed.pop("accelerators", None)
    if not is_priced(config):
        space = make_evaluator(config).space
    elif accelerators in hardware.FAMILIES:
        space = joint(family, accelerators)
    else:
        hint = nearest(str(accelerators), hardware.FAMILIES)
        raise ConfigError(f"unknown accelerators '{accelerators}'; {hint}")
    groups = {name.partition(".")[0] for name in space.names}
    for name in narrowed:
        group, dot, rest = name.partition(".")
        meant = difflib.get_close_matches(group, DEFAULTS, n=1, cutoff=0.75)
        if dot and group not in groups and meant:
            raise ConfigError(f"unknown key '{name}'; did you mean '{meant[0]}.{rest}'?")
    return space.restrict(narrowed)


def is_priced(config: dict) -> bool:
    """Whether candidates run on accelerators of the hardware model. ConfigError for a network that
    there is not, or that the evaluator cannot evaluate."""
    family, evaluator = config["space"]["network"], config["evaluator"]["name"]
    if (family == TABLE) != (evaluator == TABLE):
        raise ConfigError(
            f"space.network is '{family}' and evaluator.name '{evaluator}'; a table is both: set "
            'space.network = "table" and evaluator.name = "table"'
        )
    if family != TABLE and family not in FAMILIES:
        raise ConfigError(f"unknown network '{family}'; {nearest(str(family), FAMILIES)}")
    return family != TABLE


def make_price(config: dict) -> Callable[[Sequence[Choices]], list[tuple[Metrics, str | None]]]:
    """Designs -> what is known of each before it is evaluated, and why it cannot be, or None."""
    if not is_priced(config):
        return make_evaluator(config).price
    metrics = named(make_reward(config), make_constraints(config))
    return functools.partial(price_designs, config["space"]["network"], named=metrics)


def metrics(config: dict) -> tuple[str, ...]:
    """The names of the metrics that a trial will have."""
    measured = make_evaluator(config).metrics
    return (*HARDWARE_METRICS, *STEP_METRICS, *measured) if is_priced(config) else measured


def make_reward(config: dict):
    known = metrics(config)
    return reward.make(config["reward"]["name"], known=known, **_options(config, "reward"))


def make_constraints(config: dict) -> list:
    known = metrics(config)
    return [reward.Constraint.parse(text, known) for text in config["constraints"]]


def make_controller(config: dict):
    n_objectives, rungs = make_reward(config).n_objectives, config["fidelities"]["rungs"]
    controller = controllers.make(
        config["controller"]["name"],
        make_space(config),
        seed=config["seed"],
        n_objectives=n_objectives,
        outlook=make_outlook(config),
        **_options(config, "controller"),
    )
    if not rungs:
        return controller
    return SuccessiveHalving(
        controller,
        n_rungs=len(rungs),
        reduction=config["fidelities"]["reduction"],
        after=config["fidelities"]["after"],
        n_objectives=n_objectives,
    )


def make_outlook(config: dict) -> Priced | Tabled | None:
    """What is known without training; nothing to tell apart where the reward and the constraints
    are of costs alone."""
    space, reward, constraints = make_space(config), make_reward(config), make_constraints(config)
    if is_priced(config):
        if named(reward, constraints).isdisjoint(TRAINING_METRICS):
            return None
        return Priced(config["space"]["network"], space, reward, constraints)
    table = make_evaluator(config)
    return (
        None
        if table.costs.keys() >= named(reward, constraints)
        else Tabled(table, space, reward, constraints)
    )


def evaluator_options(config: dict) -> dict:
    """What the evaluator is made from: its options, and the family of networks if it has one."""
    given = _options(config, "evaluator")
    if "family" in options(evaluators.EVALUATORS[config["evaluator"]["name"]]):
        given["family"] = config["space"]["network"]
    return given


def make_evaluator(config: dict):
    """The evaluator, not started: its options are checked here, in the parent."""
    return evaluators.EVALUATORS[config["evaluator"]["name"]](**evaluator_options(config))


def make_early_stopping(config: dict) -> EarlyStopping | None:
    """What ends trainings early; None where it is off. Raises ConfigError for impossible rungs."""
    evaluator = make_evaluator(config)
    epochs = config["early_stopping"]["epochs"]
    if not epochs:
        return None
    if "stop_below" not in inspect.signature(evaluator.evaluate).parameters:
        raise ConfigError(
            f"evaluator '{config['evaluator']['name']}' trains no candidate that could be stopped "
            "early; set early_stopping.epochs = [], or evaluator.name = proxy"
        )
    whole = all(isinstance(epoch, int) and not isinstance(epoch, bool) for epoch in epochs)
    ascending = whole and sorted(set(epochs)) == epochs
    if not ascending or epochs[0] < 1 or epochs[-1] >= evaluator.epochs:
        raise ConfigError(
            "early_stopping.epochs must be whole numbers, ascending, from 1 and below "
            f"evaluator.epochs = {evaluator.epochs}; got {epochs!r}"
        )
    return EarlyStopping(config["early_stopping"]["reduction"], epochs)


def make_fidelities(config: dict) -> list[int]:
    """What the evaluator is told of each rung; none where there is one fidelity only. Raises
    ConfigError, or the evaluator's own ValueError, for impossible rungs."""
    rungs, evaluator = config["fidelities"]["rungs"], make_evaluator(config)
    if not rungs:
        return []
    if not hasattr(evaluator, "fidelity"):
        raise ConfigError(
            f"evaluator '{config['evaluator']['name']}' has one fidelity only; set "
            "fidelities.rungs = [], or evaluator.name = proxy or table"
        )
    if config["early_stopping"]["epochs"]:
        raise ConfigError(
            "early_stopping.epochs and fidelities.rungs both end trainings early; set one of them"
        )
    numbers = all(isinstance(rung, (int, float)) for rung in rungs)
    if len(rungs) < 2 or not numbers or sorted(set(rungs)) != rungs:
        raise ConfigError(
            f"fidelities.rungs are two ascending numbers at least, as [3, 9]; got {rungs!r}"
        )
    found = [evaluator.fidelity(rung) for rung in rungs]
    if found[0] != config["evaluator"].get("epochs", 0):
        raise ConfigError(
            "the first of fidelities.rungs is the training of every candidate: evaluator.epochs, "
            f"or the first fidelity's cost of a table; got {rungs[0]!r}"
        )
    if not is_priced(config):
        for rung, index in zip(rungs, found, strict=True):
            had = {**evaluator.costs, **evaluator.fidelities[index]}
            for metric in make_reward(config).needs:
                if metric not in had:
                    raise ConfigError(
                        f"the table's fidelity of cost {rung} has no '{metric}', which the reward "
                        f"needs at every rung; name it in [[evaluator.fidelities]]"
                    )
    return found


def load_run(table: dict, data: str | Path = "") -> dict:
    """The configuration of an existing run; RunError where this version cannot read it. data: as
    of `override_data`."""
    own = {k: v for k, v in table.items() if k != "versions"}
    override_data(own, data)
    try:
        return complete(own)
    except ValueError as error:
        then, now = table.get("versions", {}).get("nas-codesign"), metadata.version("nas-codesign")
        versions = "" if then == now else f" (begun with version {then}, this is {now})"
        raise RunError(f"config.toml of the run is not valid here{versions}: {error}") from error
