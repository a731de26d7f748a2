"""Where a study ran and with what: commit, versions, hardware, command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import reco_tune

PACKAGES = ("torch", "numpy", "ray", "optuna", "mlflow", "decord", "av", "scikit-learn")
"""Packages that a result may depend on."""


def study_provenance(command: str = "") -> dict[str, Any]:
    """What a study's first event says of where it ran."""
    return {
        "commit": _commit(),
        "version": importlib.metadata.version("reco-tune"),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "hardware": _hardware(),
        "command": command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "platform": platform.platform(),
    }


def _commit() -> str:
    """Commit of the checkout that this code lies in; empty for an installed wheel. `+` marks uncommitted changes."""
    root = Path(reco_tune.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10
        )
        changes = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def _hardware() -> str:
    """`2 x Intel(R) Xeon(R) ..., 1 x NVIDIA ...`."""
    parts = [f"{len(os.sched_getaffinity(0))} x {_processor()}"]
    names = [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]
    parts += [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    return ", ".join(parts)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
