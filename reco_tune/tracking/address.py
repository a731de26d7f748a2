"""Checks addresses of MLflow without importing MLflow, so that an error appears at once."""

from __future__ import annotations

import os
import shlex
import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from reco_tune.errors import TrackingError

SERVERS, DATABASES, MANAGED = ("http", "https"), ("sqlite", "postgresql", "mysql", "mssql"), ("databricks",)
"""Address schemes that MLflow accepts. Its file store accepts no new data."""
ANSWER_SECONDS = 5.0
"""How long a server may take to answer."""


def check_address(uri: str, way_out: str = "start it, or leave --tracking-uri out and `sync` to it later") -> None:
    """
    Checks an address of MLflow.

    Args:
        way_out: what a user can do if no server answers.

    Raises:
        TrackingError: if the address is invalid, or no server answers.
    """
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise TrackingError(f"{uri} is not an address ({error}); {_EXAMPLES}") from error
    scheme = parts.scheme.partition("+")[0] or uri
    if scheme not in (*SERVERS, *DATABASES, *MANAGED):
        raise TrackingError(f"{shown(uri)} is not an address of MLflow; {_EXAMPLES}")
    if database(uri) in (Path(), Path(":memory:")):
        raise TrackingError(f"{uri} names no file; {_EXAMPLES}")
    if scheme in SERVERS:
        if not host:
            raise TrackingError(f"{uri} names no server; {_EXAMPLES}")
        if not (_proxy(scheme, host) or listens(host, port or (443 if scheme == "https" else 80))):
            raise TrackingError(f"the tracking server {shown(uri)} does not answer; {way_out}")


def reading_address(experiment: str, uri: str | None) -> str:
    """The address to read an experiment from: `uri`, or MLFLOW_TRACKING_URI.

    Raises:
        TrackingError: if it is missing, or its database does not exist.
    """
    where = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not where:
        raise TrackingError(
            f"mlflow:{experiment} needs the address of MLflow; give --tracking-uri or set MLFLOW_TRACKING_URI, for"
            " example to sqlite:///STUDY_DIR/mlflow.db"
        )
    check_address(where)
    file = database(where)
    if file is not None and not file.is_file():  # MLflow would create an empty database
        raise TrackingError(
            f"mlflow:{experiment}: the database {file} does not exist; give the mlflow.db of a study folder"
        )
    return where


def database(uri: str) -> Path | None:
    """File of a sqlite address, `.` if it names no file; None for other addresses."""
    if not uri.startswith("sqlite:"):
        return None
    return Path(uri.partition("://")[2].partition("?")[0].removeprefix("/"))


def shown(uri: str) -> str:
    """The address without its password, for messages."""
    try:
        password = urlsplit(uri).password
    except ValueError:
        password = None
    return uri.replace(f":{password}@", ":***@") if password else uri


def restore_command(uri: str, experiment: str) -> str:
    """The command that restores a deleted experiment."""
    return f"MLFLOW_TRACKING_URI={shlex.quote(shown(uri))} mlflow experiments restore --experiment-id {experiment}"


def listens(host: str, port: int) -> bool:
    """Whether a server accepts connections there."""
    try:
        with socket.create_connection((host, port), ANSWER_SECONDS):
            return True
    except OSError:
        return False


def _proxy(scheme: str, host: str) -> bool:
    """Whether requests go through a proxy. Only the proxy then knows whether the server answers."""
    return scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)


_EXAMPLES = "give an http address such as http://mlflow:5000, or a file as sqlite:////folder/mlflow.db"
