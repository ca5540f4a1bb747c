"""The developer's loop: `nox` formats, lints, checks types and runs the quick tests, in the environment it is called from.

nox -s tests     the whole suite
nox -s docs      write the reference pages again
nox -l           all sessions
"""

from __future__ import annotations

import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"  # the environment is the developer's: `pip install -e ".[dev]"`
nox.options.sessions = ["format", "lint", "types", "quick"]

SUITE = ("pytest", "-n", "auto", "--dist", "loadfile")
PAGES = {
    "docs/hooks.md": "docs/write_hooks.py",
    "docs/stages.md": "docs/write_stages.py",
    "docs/matrix.md": "tests/contract/matrix.py",
    "docs/sweep.md": "tests/sweep/page.py",  # in its present form; its results take an hour for each library
}


def run(session: nox.Session, *module: str, **options: object) -> None:
    """Run a module of this very environment, activated or not."""
    session.run(sys.executable, "-m", *module, **options)


@nox.session
def format(session: nox.Session) -> None:
    """Format every Python file."""
    run(session, "ruff", "format", ".")


@nox.session
def lint(session: nox.Session) -> None:
    """Look for mistakes, and mend those that can be mended safely."""
    run(session, "ruff", "check", "--fix", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    run(session, "mypy")


@nox.session
def quick(session: nox.Session) -> None:
    """Run the subset of tests that touches every room, in under 90 s on two cores."""
    run(session, *SUITE, "-m", "quick", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the whole suite."""
    run(session, *SUITE, *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Write the reference pages from the code."""
    for page, script in PAGES.items():
        draft = Path(session.create_tmp(), "page.md")
        with draft.open("w", encoding="utf-8") as file:
            session.run(sys.executable, script, env={"PYTHONPATH": "tests"}, stdout=file, stderr=None)
        draft.replace(page)
