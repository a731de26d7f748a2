"""Provenance of a study: commit, versions, hardware, command. To rebuild it, also the uncommitted changes and all
installed packages.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import reco_tune

PACKAGES = ("torch", "numpy", "ray", "optuna", "mlflow", "decord", "av", "scikit-learn")
"""Packages on which a result may depend."""

MOST_CHANGES_BYTES = 64 * 1024
"""Largest size of uncommitted changes in a log."""
SECRET_FILES = re.compile(
    r"(^|/)(\.env[^/]*|\.netrc|\.pypirc|id_[a-z0-9]+|[^/]*(secret|credential)[^/]*|[^/]*\.(pem|key|p12))$", re.I
)
"""Files whose changes are never recorded."""
SECRET_LINES = re.compile(
    r"passw(or)?d|secret|credential|(api|access|auth|private)[_ -]?(key|token)|bearer\s|://[^/\s:@]+:[^/\s@]+@"
    r"|\b(AKIA[0-9A-Z]{12}|gh[pousr]_\w{20}|hf_\w{20}|sk-[\w-]{20}|xox[abp]-\w)",
    re.I,
)
"""Lines that are not recorded. It is better to leave out one too many."""


def environment() -> dict[str, Any]:
    """Part of a study's first event that is only needed to rebuild it: `packages` (name==version of all that are
    installed) and `uncommitted`, the difference between the checkout of this code and its commit. Leaves out likely
    secrets, and everything above `MOST_CHANGES_BYTES`.
    """
    packages = {f"{one.name}=={one.version}" for one in importlib.metadata.distributions() if one.name}
    return {"packages": sorted(packages, key=str.lower), "uncommitted": _without_secrets(_uncommitted())}


def _uncommitted() -> str:
    """Uncommitted changes. Empty for an installed wheel, or if git does not answer."""
    root = _checkout()
    return _git(root, "diff", "HEAD", "--no-color", "--no-ext-diff") if root else ""


def _without_secrets(diff: str) -> str:
    kept: list[str] = []
    for file in re.split(r"(?m)^(?=diff --git )", diff):
        name = file.split("\n", 1)[0].rsplit(" b/", 1)[-1]
        if SECRET_FILES.search(name):
            kept.append(f"diff --git {name}: left out, it may hold secrets\n")
        else:
            kept += (
                "[a line that may hold a secret]\n" if SECRET_LINES.search(line) else line
                for line in file.splitlines(keepends=True)
            )
    text = "".join(kept)
    whole = text.encode(errors="replace")
    if len(whole) <= MOST_CHANGES_BYTES:
        return text
    cut = whole[:MOST_CHANGES_BYTES].decode(errors="ignore")
    return f"{cut}\n[{len(whole) - MOST_CHANGES_BYTES} more bytes were left out]\n"


def study_provenance(command: str = "") -> dict[str, Any]:
    """Provenance in a study's first event."""
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
    root = _checkout()
    if root is None:
        return ""
    head = _git(root, "rev-parse", "--short=12", "HEAD").strip()
    return head + ("+" if _git(root, "status", "--porcelain", "-uno").strip() else "")


def _checkout() -> Path | None:
    """Of this code; None for an installed wheel."""
    root = Path(reco_tune.__file__).resolve().parents[1]
    return root if (root / ".git").exists() else None


def _git(root: Path, *words: str) -> str:
    """Output of git; empty if it does not answer."""
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")


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
