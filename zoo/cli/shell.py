"""The shell around the commands: names to functions, options every command has, errors to sentences and exit codes.

A command is a function with typer annotations, or a `typer.Typer`, registered with `register_commands`. `zoo --help`
reads names and summaries from the declarations; a command's code is imported when it is invoked.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from zoo import plugins, registry
from zoo.cli import output
from zoo.errors import OutputError, PluginError, UnknownName, ZooError, one_line

HELP = "A model zoo whose models come with the means to make them smaller."


class Interrupted(ZooError):
    """The user stopped the work."""

    exit_code = 130


class Shell(TyperGroup):
    """The group of all commands, which are resolved when they are invoked."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name.startswith("-"):
            return None
        if cmd_name not in self.commands:
            try:
                registry.declared("command", cmd_name)  # "plugin:name", or UnknownName with the nearest
            except UnknownName:
                if ctx.resilient_parsing:  # while completing: nothing to complete
                    return None
                raise
            self.commands[cmd_name] = Lazy(cmd_name)
        return self.commands[cmd_name]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # typer would end without a word
            raise Interrupted("interrupted before the work was done.") from None


class Lazy(TyperCommand):
    """A command by name and summary; parsing its arguments imports the function behind it."""

    def __init__(self, name: str, summary: str = "") -> None:
        super().__init__(name, help=summary, rich_markup_mode=None)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        assert self.name is not None
        return command_of(self.name, registry.command(self.name)).make_context(*args, **extra)


def command_of(name: str, function: Any) -> Any:
    """Turn a function with typer annotations, or a `typer.Typer`, into a command with the options all commands have."""
    if isinstance(function, typer.Typer):
        app = function
    else:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name)(function)
    command = typer.main.get_command(app)
    command.name = name
    _share_options(command)
    return command


def _share_options(command: Any) -> None:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(_shared)
    taken = {option for param in command.params for option in param.opts}
    command.params += [param for param in typer.main.get_command(app).params if not taken & set(param.opts)]
    _spare_pydantic(command)
    for inner in getattr(command, "commands", {}).values():
        _share_options(inner)


class _AsItIs:
    """What typer would build to check a text or a flag, without importing pydantic for it."""

    def coerce(self, value: Any, **_: Any) -> Any:
        return value


def _spare_pydantic(command: Any) -> None:
    """Spare `zoo list` a third of its time: typer 0.29 imports pydantic, 80 modules, to find that a text is a text.

    Reaches into typer; where a version has no such attributes, nothing happens and nothing is lost but time.
    """
    get_params = command.get_params  # a method, since the option --help is only made there

    def spared(ctx: Any) -> Any:
        params = get_params(ctx)
        for param in params:
            descriptor = getattr(param, "type_descriptor", None)
            kind = getattr(descriptor, "annotation", None)
            custom = getattr(getattr(descriptor, "parameter_info", None), "parser", None)
            single = not getattr(param, "multiple", False) and param.nargs == 1
            plain = kind is str or (kind is bool and getattr(param, "is_flag", False))
            if plain and single and custom is None and hasattr(param, "_runtime_param"):
                param._runtime_param = _AsItIs()
        return params

    command.get_params = spared


def _set_verbose(value: bool) -> None:
    output.settings.verbose |= value


def _set_quiet(value: bool) -> None:
    output.settings.quiet |= value


def _show_version(value: bool) -> None:
    if value:
        from zoo import __version__

        typer.echo(f"zoo {__version__}")
        raise typer.Exit


_Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", callback=_set_verbose, expose_value=False, show_default=False,
                 help="Say more; show the traceback of an unexpected error."),
]  # fmt: skip
_Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_set_quiet, expose_value=False, show_default=False,
                 help="No progress and no warnings."),
]  # fmt: skip
_Version = Annotated[
    bool,
    typer.Option("--version", callback=_show_version, is_eager=True, expose_value=False, show_default=False,
                 help="Print the version."),
]  # fmt: skip


def _shared(verbose: _Verbose = False, quiet: _Quiet = False) -> None:
    """The options that every command has."""


def _root(ctx: typer.Context, version: _Version = False, verbose: _Verbose = False, quiet: _Quiet = False) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def shell() -> Any:
    """Build the group of all commands, from what the plugins declare."""
    app = typer.Typer(cls=Shell, rich_markup_mode=None)
    app.callback(
        help=HELP, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
    )(_root)  # fmt: skip
    group = typer.main.get_command(app)
    assert isinstance(group, Shell)
    for name, declared in registry.names("command").items():
        group.commands[name] = Lazy(name, declared.summary)
    _spare_pydantic(group)
    return group


def run(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error becomes one sentence on stderr."""
    output.prepare()
    try:
        code = shell().main(args, prog_name="zoo", standalone_mode=False)
        sys.stdout.flush()
        _warn_of_faults()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:  # the reader has seen enough
        _close_stdout()
        return 0
    except SystemExit as error:  # completion scripts end like this; so does typer on a broken pipe
        if isinstance(error.__context__, BrokenPipeError):
            _close_stdout()
            return 0
        raise
    except KeyboardInterrupt:
        output.error("interrupted before the work was done.")
        return Interrupted.exit_code
    except ZooError as error:
        output.error(one_line(error))
        _warn_of_faults()
        return error.exit_code
    except OSError as error:
        if error.filename is not None or not error.strerror:
            return _explain(error)
        _close_stdout()  # of what was opened already, writing fails: a full disk behind a redirection
        output.error(f"the output cannot be written: {error.strerror}.")
        return OutputError.exit_code
    except Exception as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    """Say what typer found wrong with the request, or that something unexpected happened."""
    if hasattr(error, "format_message"):  # typer's own errors; their classes are not public
        context = getattr(error, "ctx", None)
        output.error(one_line(ZooError(error.format_message())))
        if context is not None and not output.settings.quiet:
            print(f"`{context.command_path} --help` shows how it is used.", file=sys.stderr)
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, typer.Abort):
        output.error("stopped at your request.")
        return 1
    if output.settings.verbose:
        import traceback

        traceback.print_exception(error)
        output.error(f"unexpected {one_line(error)}")
    else:
        output.error(f"unexpected {one_line(error)} (run again with -v for the traceback)")
    return 1


def _warn_of_faults() -> None:
    """One line for each plugin with a fault, so that a missing name is explained; `zoo plugins` shows them itself."""
    with contextlib.suppress(PluginError):  # strict mode has already said it
        for plugin in plugins.declared():
            if plugin.fault and not output.settings.shows_faults:
                output.warn(f"plugin {plugin.name}: {plugin.fault}")


def _close_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
