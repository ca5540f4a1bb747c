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

from zoo import registry
from zoo.cli import output
from zoo.errors import OutputError, PluginError, RequestError, ZooError, on_command_line, one_line
from zoo.plugins import manager
from zoo.plugins.names import declaration, of_kind, plugin_of
from zoo.system import signals
from zoo.system.writing import refused

HELP = "A model zoo whose models come with the means to make them smaller."


class Interrupted(ZooError):
    """A signal stopped the work."""

    def __init__(self, error: KeyboardInterrupt) -> None:
        super().__init__(str(error) or f"interrupted {signals.BEFORE}")
        self.exit_code = getattr(error, "exit_code", 130)


class Shell(TyperGroup):
    """The group of all commands, which are resolved when they are invoked."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name.startswith("-"):
            return None
        if cmd_name not in self.commands:
            try:
                declaration("command", cmd_name)  # "plugin:name", or refused with the nearest
            except RequestError:
                if ctx.resilient_parsing:  # while completing: nothing to complete
                    return None
                raise
            self.commands[cmd_name] = Lazy(cmd_name)
        return self.commands[cmd_name]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # typer would end without a word
            raise Interrupted(error) from None
        except SystemExit as error:  # a command may end as it likes; what it uses of other plugins may not
            plugin = _whose(error)
            if plugin and plugin != plugin_of("command", ctx.invoked_subcommand):
                raise PluginError(
                    f"Plugin {plugin} ended the program before the work was done ({one_line(error)})."
                ) from error
            raise


class Lazy(TyperCommand):
    """A command by name and summary; parsing its arguments imports the function behind it."""

    def __init__(self, name: str, summary: str = "") -> None:
        super().__init__(name, help=summary, rich_markup_mode=None)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        assert self.name is not None
        function = registry.command(self.name)
        try:
            command = command_of(self.name, function)
        except Exception as error:  # no function, or a parameter that typer cannot read from a command line
            plugin = plugin_of("command", self.name)
            raise PluginError(f"Command {self.name!r} of plugin {plugin} is no command: {one_line(error)}") from error
        return command.make_context(*args, **extra)


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


class _OnlyIfGiven:
    """What typer would build to check a number or anything else, once there is a value to check."""

    def __init__(self, param: Any) -> None:
        self.param = param

    def coerce(self, value: Any, **context: Any) -> Any:
        if value is None:
            return None
        self.param._runtime_param = None
        return self.param.get_runtime_param().coerce(value, **context)


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
            if single and custom is None and hasattr(param, "_runtime_param"):
                param._runtime_param = _AsItIs() if plain else _OnlyIfGiven(param)
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
    typer.Option(
        "--verbose",
        "-v",
        callback=_set_verbose,
        expose_value=False,
        show_default=False,
        help="Say more; show the traceback of an unexpected error.",
    ),
]
_Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        callback=_set_quiet,
        expose_value=False,
        show_default=False,
        help="No progress and no warnings.",
    ),
]
_Version = Annotated[
    bool,
    typer.Option(
        "--version",
        callback=_show_version,
        is_eager=True,
        expose_value=False,
        show_default=False,
        help="Print the version.",
    ),
]


def _shared(verbose: _Verbose = False, quiet: _Quiet = False) -> None:
    """The options that every command has."""


def _root(ctx: typer.Context, version: _Version = False, verbose: _Verbose = False, quiet: _Quiet = False) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def shell() -> Any:
    """Build the group of all commands, from what the plugins declare."""
    app = typer.Typer(cls=Shell, rich_markup_mode=None)
    app.callback(help=HELP, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})(
        _root
    )
    group = typer.main.get_command(app)
    assert isinstance(group, Shell)
    for name, declared in of_kind("command").items():
        group.commands[name] = Lazy(name, declared.summary)
    _spare_pydantic(group)
    return group


def run(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error becomes one sentence on stderr, and so does a signal."""
    output.prepare()
    try:
        with signals.stoppable(), on_command_line(), output.warnings_shown():
            return _run(args)
    except KeyboardInterrupt as error:
        return _say(Interrupted(error))


def _run(args: Sequence[str] | None) -> int:
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
        raise
    except ZooError as error:
        _say(error)
        _warn_of_faults()
        return error.exit_code
    except OSError as error:
        if error.filename is not None and (reason := refused(error)):
            return _say(OutputError(f"{error.filename} cannot be written: {reason}."))
        if error.filename is not None or not error.strerror:
            return _explain(error)
        _close_stdout()  # of what was opened already, writing fails: a full disk behind a redirection
        output.error(f"the output cannot be written: {error.strerror}.")
        return OutputError.exit_code
    except BaseException as error:  # not only Exception: whatever a plugin thinks of
        # Python turns what a signal raises in some places, such as a class that is being made, into another error
        signals.check()
        return _explain(error)


def _say(error: ZooError) -> int:
    output.error(one_line(error))
    return error.exit_code


def _explain(error: BaseException) -> int:
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
    from zoo.system.memory import ran_out

    if ran_out(error):
        output.error(
            "memory ran out; what was being written is as it was before. `zoo plan` says how much a recipe needs."
        )
        return 1
    plugin = _whose(error)
    said = f"unexpected {one_line(error)}" + (f", in plugin {plugin}" if plugin else "")
    if output.settings.verbose:
        import traceback

        traceback.print_exception(error)
        output.error(said)
    else:
        output.error(f"{said} (run again with -v for the traceback)")
    return 1


def _whose(error: BaseException) -> str:
    """The plugin, none of ours, that the work had been handed to when it failed, or ""."""
    found, trace = "", error.__traceback__
    with contextlib.suppress(Exception):  # of the plugins, while explaining something else
        packages = {
            plugin.path.name: plugin.name for plugin in manager.plugins_in_use() if plugin.path and not plugin.ours
        }
        while trace is not None:
            package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
            found, trace = packages.get(package, found), trace.tb_next
    return found


def _warn_of_faults() -> None:
    """One line for each plugin with a fault, so that a missing name is explained; `zoo plugins` shows them itself."""
    with contextlib.suppress(PluginError):  # strict mode has already said it
        for plugin in manager.plugins_in_use():
            if plugin.fault and not output.settings.shows_faults:
                output.warn(f"plugin {plugin.name}: {plugin.fault}")
        if fault := manager.disabled_fault():
            output.warn(fault)


def _close_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
