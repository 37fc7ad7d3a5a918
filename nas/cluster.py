"""The `[cluster]` table of a configuration; needs no Dask."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

SCHEMES = ("tcp", "tls", "ws", "wss", "ucx", "file")
TLS = {"ca": "tls_ca_file", "cert": "tls_client_cert", "key": "tls_client_key"}  # ours: Dask's
EXTRA = "--dask needs the extra: pip install 'nas-codesign[cluster]'"


class ClusterError(ValueError):
    """A `[cluster]` table that cannot be meant: what, the value received, what to try."""


def check(table: Mapping[str, Any]) -> None:
    """Raise ClusterError for a `[cluster]` table that could work nowhere; needs no Dask."""
    address = table["dask"]
    scheme = urlsplit(address).scheme
    if address not in ("", "local") and (scheme not in SCHEMES or "://" not in address):
        raise ClusterError(
            f"cluster.dask is '{address}'; it must be tcp://HOST:PORT, tls://HOST:PORT, "
            "file:///PATH of a scheduler file, or local"
        )
    given = [name for name in TLS if table[name]]
    if given and len(given) < len(TLS):
        missing = ", ".join(f"cluster.{name}" for name in TLS if name not in given)
        raise ClusterError(f"TLS needs a ca, a cert and a key: {missing} is missing")
    if given and address == "local":
        raise ClusterError("cluster.dask is 'local', which never leaves this machine: no TLS there")
    for name, amount in table["resources"].items():
        number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
        if not number or not 0 < amount < math.inf:
            raise ClusterError(
                f"cluster.resources.{name} is {amount!r}; it must be what one trial takes, such as "
                "cluster.resources = {GPU = 1}"
            )


def check_here(table: Mapping[str, Any]) -> None:
    """Raise ClusterError where this machine lacks Dask, a scheduler file or a certificate."""
    if not table["dask"]:
        return
    if importlib.util.find_spec("distributed") is None:
        raise ClusterError(EXTRA)
    for name in TLS:
        if table[name] and not Path(table[name]).is_file():
            raise ClusterError(f"cluster.{name}: no file {table[name]}")
    file = scheduler_file(table["dask"])
    if file and not file.is_file():
        raise ClusterError(
            f"no scheduler file {file}; 'dask scheduler --scheduler-file {file}' writes it"
        )


def resolved(table: Mapping[str, Any]) -> dict[str, Any]:
    """A `[cluster]` table with whole paths: a resumed run may begin in another folder."""
    whole = {name: str(Path(table[name]).resolve()) for name in TLS if table[name]}
    file = scheduler_file(table["dask"])
    return {**table, **whole, **({"dask": file.resolve().as_uri()} if file else {})}


def scheduler_file(address: str) -> Path | None:
    """The path in `file:///path/scheduler.json`, or None for another address."""
    parts = urlsplit(address)
    return Path(unquote(parts.netloc + parts.path)) if parts.scheme == "file" else None
