"""The documentation: its commands are commands, its settings are settings, its pages build with every link checked."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from reco_tune.cli import app
from reco_tune.reporting.sections.glossary import GLOSSARY
from reco_tune.settings import Experiment, Space

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(
        page for page in sorted((ROOT / "docs").rglob("*.md")) if not page.name[:2].isdigit()
    ),  # records keep their words
]


def shell_commands(page: Path) -> Iterator[list[str]]:
    """The `reco-tune` commands in a page's shell blocks, with continued lines joined and comments cut off."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for start in (place for place, word in enumerate(words) if word == "reco-tune"):
                yield words[start + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_has_that_verb_and_those_options(page: Path) -> None:
    for words in shell_commands(page):
        command: Any = typer.main.get_command(app)
        while hasattr(command, "commands") and words and not words[0].startswith("-"):
            assert words[0] in command.commands, f"{page.name}: reco-tune {words[0]}"
            command, words = command.commands[words[0]], words[1:]
        options = {name for option in command.params for name in option.opts} | {"--help", "--debug"}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= options, (page.name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_overridden_setting_exists(page: Path) -> None:
    keys = {f"{name}.{key}" for name, field in Experiment.model_fields.items() for key in _keys(field.annotation)}
    for words in shell_commands(page):
        given = [words[place + 1].split("=")[0] for place, word in enumerate(words) if word == "--set"]
        known = keys | {
            key for key in given if key.split(".options.")[0] + ".options" in keys
        }  # a part's own are its own
        wrong = [key for key in given if key not in known and key.split(".")[0] not in Space.model_fields]
        assert not wrong, (page.name, wrong)


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    assert len(targets) > 10
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_glossary_of_the_page_is_that_of_the_documentation() -> None:
    text = (ROOT / "docs" / "reference" / "glossary.md").read_text()
    entries = re.findall(r"\*\*(.+?)\*\*\n:   (.+(?:\n    .+)*)", text)
    assert {word: " ".join(told.split()) for word, told in entries} == GLOSSARY


def test_the_model_of_the_tutorial_is_a_decoder_and_its_study_a_study(tmp_path: Path) -> None:
    """Written as the page says, in an empty folder; in a process of its own, because other tests have a `mine` too."""
    text = (ROOT / "docs" / "tutorials" / "your-model.md").read_text()
    blocks = dict(re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', text, re.DOTALL))
    for title, content in {"mine/__init__.py": "", **blocks}.items():
        (tmp_path / title).parent.mkdir(exist_ok=True)
        (tmp_path / title).write_text(content)
    space = "from pathlib import Path; from reco_tune.settings import load_space; load_space(Path('gru.yaml'))"
    done = subprocess.run(
        [sys.executable, "-c", f"import check; {space}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout == "the decoder is right\n", done.stderr


def test_the_documentation_builds_with_every_link_checked(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    settings = (tmp_path / "site" / "reference" / "settings.html").read_text()
    for key in ("window.length_tokens", "objective.continuity_weight", "training.learning_rate", "sampler.kind"):
        assert f"<code>{key}</code>" in settings
    assert "<code>kernel_distance</code>" in (tmp_path / "site" / "reference" / "metrics.html").read_text()
    assert "reco-tune resume" in (tmp_path / "site" / "reference" / "commands.html").read_text()


def _keys(section: Any) -> list[str]:
    return list(section.model_fields) if hasattr(section, "model_fields") else []
