"""The contract tests as pytest items, one a check; pytest finds this module through the entry point group `pytest11`.

    [tool.pytest.ini_options]
    zoo_plugin = "zoo-example"

or `pytest --zoo-plugin zoo-example`. The items come after the other tests, unless files or single tests are named, and
`-k` selects among them: `pytest -k "estimate"`. Nothing heavy is imported before a check runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from zoo.errors import ZooError
from zoo.testing.check import Check, perform


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a project, or a command line, say which plugin to check."""
    text = "run zoo's contract tests on everything the plugin NAME adds"
    parser.getgroup("zoo").addoption("--zoo-plugin", action="append", default=[], metavar="NAME", help=text)
    parser.addini("zoo_plugin", f"{text}; several names are separated by spaces", type="args", default=[])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "zoo: a contract test of zoo, over what a plugin adds")


@pytest.hookimpl(tryfirst=True)  # before -k and -m choose
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add an item for every check of the plugins asked for."""
    asked = config.getoption("--zoo-plugin") or ([] if _names_tests(config) else config.getini("zoo_plugin"))
    if not asked or config.getoption("--help", default=False):
        return
    from zoo.testing.contract import checks

    for name in dict.fromkeys(asked):
        try:
            plugin_checks = checks(name)
        except ZooError as error:
            raise pytest.UsageError(f"zoo_plugin = {name!r}: {error}") from None
        owner = Contract.from_parent(session, name=name, nodeid=name)
        made = [ContractItem.from_parent(owner, name=_name(check), check=check) for check in plugin_checks]
        # so that they are counted
        config.hook.pytest_collectreport(report=pytest.CollectReport(name, "passed", None, [*made]))
        items += made


def pytest_unconfigure(config: pytest.Config) -> None:
    folder = config.stash.get(FOLDER, None)
    if folder is not None:
        folder.cleanup()


FOLDER = pytest.StashKey["tempfile.TemporaryDirectory[str]"]()


class Contract(pytest.Collector):
    """The contract of one plugin: what its items belong to."""

    def collect(self) -> Iterable[pytest.Item]:
        return []


class ContractItem(pytest.Item):
    """One check."""

    def __init__(self, *, check: Check, **about: Any) -> None:
        super().__init__(**about)
        self.check = check
        self.add_marker("zoo")

    def runtest(self) -> None:
        """Run the check; its sentence is the failure's text."""
        if FOLDER not in self.config.stash:
            self.config.stash[FOLDER] = tempfile.TemporaryDirectory(prefix="zoo-check-")
        result = perform(self.check, Path(self.config.stash[FOLDER].name))
        if result.outcome == "not applicable":
            pytest.skip(result.reason)
        if result.outcome == "failed":
            raise Broken(result.reason) from result.error

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *args: Any) -> Any:
        """Show the sentence; with -v -v also how it came about."""
        if isinstance(excinfo.value, Broken) and self.config.get_verbosity() < 2:
            return str(excinfo.value)
        return super().repr_failure(excinfo, *args)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, f"{self.parent.name if self.parent else ''}: {self.name}"


class Broken(Exception):
    """A contract that is not kept."""


def _name(check: Check) -> str:
    """What an item is called after its plugin: "compressor tiny-thing on tiny-code::estimate"."""
    subject = "" if check.kind == "plugin" else " " + check.name.partition(":")[2]
    return f"{check.kind}{subject}::{check.check}"


def _names_tests(config: pytest.Config) -> bool:
    """Whether the command line names files or single tests, which then are all that is wanted."""
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    return named and not any(Path(argument).is_dir() for argument in config.args)
