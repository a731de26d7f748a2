"""A real MLflow server on the loopback interface, which can be killed and started again. Not a test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from reco_tune.tracking import store


class MlflowServer:
    """Serves a sqlite file in `folder` for the length of the block."""

    def __init__(self, folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        self.uri = f"http://127.0.0.1:{port}"
        self._log = folder / "log"
        database = f"sqlite:///{folder}/mlflow.db"
        store.connect(database)  # several server processes must not make it at once
        self._command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ]
        self._command += [
            "--backend-store-uri",
            database,
            "--artifacts-destination",
            str(folder / "artifacts"),
            *arguments,
        ]
        self._environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Returns when it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except urllib.error.HTTPError:
                return  # it wants to know who asks
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"mlflow server did not start: {self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """With its children, which would go on serving."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.kill()
