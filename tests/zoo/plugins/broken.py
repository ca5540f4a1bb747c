"""Plugins that are wrong, one distribution for each way of being wrong, and what zoo says of each.

All of them are installed into one environment: what one does must not hide what another does. Whatever is imported of one
leaves a mark, so that it shows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wheels import Distribution, marking

API = 'api = ">=1,<2"\n'

COMMAND = '[[command]]\nname = "{name}"\nsummary = "Made up for a test"\n'

MODEL = """
[[model]]
name = "{name}"
family = "llama"
modality = "text"
task = "causal-lm"
license = "MIT"
params = 1
summary = "Made up for a test"
"""

HOOKS = """
from zoo.hooks import hookimpl

@hookimpl
def register_commands(register):
    {body}
"""


@dataclass
class Broken:
    """A distribution and what is said of it; {site} stands for site-packages, {version} for that of zoo."""

    distribution: Distribution
    fault: str = ""  # the line that every command says of it; empty: none
    refusal: str = ""  # what its command says when it is used; the command is called like the distribution
    plugin: str = ""  # who is named; default: the distribution
    # what happens to site-packages once pip has installed it
    damage: Callable[[Path, Distribution], object] | None = None

    @property
    def name(self) -> str:
        """The plugin that is named."""
        return self.plugin or self.distribution.name


# --- making them ------------------------------------------------------------------------------------------------------


def made(
    name: str,
    registry: str | bytes | None = None,
    *,
    plugin: str = "",
    catalog: str = "",
    code: str = "",
    body: str = "",
    more: str = "",
    module: str = "",
) -> Distribution:
    """A distribution with one plugin of the same name, which adds one command of the same name.

    Args:
        registry: its registry.toml; default: the command.
        plugin: what its entry points call it.
        catalog: the package that its entry point names; default: its own.
        code: what happens when the plugin is imported.
        body: what its hook does; default: register the command.
        more: what stands beside that hook.
        module: the module that the command is in.
    """
    package = name.replace("-", "_")
    plugin = plugin or name
    files = {
        f"{package}/__init__.py": marking(package) + code,
        f"{package}/registry.toml": API + COMMAND.format(name=name) if registry is None else registry,
        f"{package}/plugin.py": HOOKS.format(body=body or f"register({name!r}, '{package}.made:run')") + more,
        f"{package}/made.py": module or "def run():\n    print('it runs')\n",
    }
    return Distribution(
        name, files, {"zoo.catalog": {plugin: catalog or package}, "zoo": {plugin: f"{package}.plugin"}}
    )


def fails(name: str, reason: str, registry: str | None = None, **what: str) -> Broken:
    """One that is in order until something of it is used."""
    return Broken(made(name, registry, **what), refusal=f"Plugin {name} cannot be used: {reason}")


def lacks(name: str, reason: str, registry: str | None = None, **what: str) -> Broken:
    """One whose module is in order, but not the command."""
    return Broken(made(name, registry, **what), refusal=f"Command '{name}' of plugin {name} {reason}")


def declares(name: str, registry: str | bytes, fault: str) -> Broken:
    """One whose registry.toml is wrong; {file} stands for its path."""
    return Broken(made(name, registry), fault.replace("{file}", f"{{site}}/{name.replace('-', '_')}/registry.toml"))


def model(**changes: str) -> str:
    """A registry.toml with one model, some of whose values are changed."""
    lines = MODEL.format(name="made-up").splitlines()
    for key, value in changes.items():
        lines = [line for line in lines if not line.startswith(f"{key} =")] + [f"{key} = {value}"]
    return API + "\n".join(lines) + "\n"


def junk(file: str, data: bytes) -> Callable[[Path, Distribution], object]:
    """Overwrite a file of the metadata."""
    return lambda site, distribution: (site / distribution.info / file).write_bytes(data)


def lost(file: str) -> Callable[[Path, Distribution], object]:
    """Delete a file of the metadata."""
    return lambda site, distribution: (site / distribution.info / file).unlink()


def package_lost(site: Path, distribution: Distribution) -> None:
    shutil.rmtree(site / distribution.package)


def only_the_cache_left(site: Path, distribution: Distribution) -> None:
    shutil.rmtree(site / distribution.package)
    (site / distribution.package / "__pycache__").mkdir(parents=True)
    (site / distribution.package / "__pycache__" / "plugin.cpython-311.pyc").touch()


def metadata_lost(site: Path, distribution: Distribution) -> None:
    shutil.rmtree(site / distribution.info)


def uninstall_interrupted(site: Path, distribution: Distribution) -> None:
    """Leave what pip moves aside while it uninstalls."""
    shutil.rmtree(site / distribution.package)
    (site / distribution.info).rename(site / f"~{distribution.info[1:]}")


def registry_a_pipe(site: Path, distribution: Distribution) -> None:
    (site / distribution.package / "registry.toml").unlink()
    os.mkfifo(site / distribution.package / "registry.toml")


def registry_endless(site: Path, distribution: Distribution) -> None:
    (site / distribution.package / "registry.toml").unlink()
    (site / distribution.package / "registry.toml").symlink_to("/dev/zero")


# --- those that are wrong when something of them is used --------------------------------------------------------------

PANIC = "class Panic(BaseException): pass\nraise Panic('oh')\n"  # as a Rust extension's panic does, or pytest.skip

USED = [
    fails("raises", "raises.plugin cannot be imported: ZeroDivisionError: division by zero", code="1 / 0"),
    fails(
        "raises-lines",
        "raises_lines.plugin cannot be imported: ValueError: one two",
        code=r"raise ValueError('one\n\ttwo')",
    ),
    fails(
        "raises-a-book",
        f"raises_a_book.plugin cannot be imported: ValueError: {'x' * 500}...",
        code="raise ValueError('x' * 100_000)",
    ),
    fails(
        "raises-escapes",
        r"raises_escapes.plugin cannot be imported: ValueError: \x1b[2J\x07\u202e",
        code=r"raise ValueError('\x1b[2J\x07\u202e')",
    ),
    fails(
        "raises-mute",
        "raises_mute.plugin cannot be imported: Mute",
        code="class Mute(Exception):\n    def __str__(self): 1 / 0\nraise Mute()\n",
    ),
    fails("panics", "panics.plugin cannot be imported: Panic: oh", code=PANIC),
    fails(
        "recurses",
        "recurses.plugin cannot be imported: RecursionError: maximum recursion depth exceeded",
        code="def f(): f()\nf()\n",
    ),
    fails(
        "is-no-python",
        "is_no_python.plugin cannot be imported: SyntaxError: invalid syntax (__init__.py, line 3)",
        code="def =",
    ),
    fails("exits", "exits.plugin cannot be imported: SystemExit: 0", code="import sys\nsys.exit(0)\n"),
    fails(
        "imports-what-is-not-there",
        "imports_what_is_not_there.plugin cannot be imported: ModuleNotFoundError: No module named 'no_such_module'",
        code="import no_such_module",
    ),
    fails("raises-in-hook", "register_commands failed: ZeroDivisionError: division by zero", body="1 / 0"),
    fails("exits-in-hook", "register_commands failed: SystemExit: 3", body="raise SystemExit(3)"),
    fails("panics-in-hook", "register_commands failed: Panic: oh", body=f"exec({PANIC!r})"),
    fails(
        "registers-a-path",
        "register_commands failed: target '../x' of 'registers-a-path' is not of the form 'package.module:attribute'",
        body="register('registers-a-path', '../x')",
    ),
    fails(
        "registers-twice",
        "register_commands failed: 'registers-twice' is registered twice",
        body="[register('registers-twice', 'a:b') for _ in range(2)]",
    ),
    fails(
        "misspells",
        "a hook does not fit: unknown hook 'register_comands'. Did you mean 'register_commands'?",
        more="\n@hookimpl\ndef register_comands(register): pass\n",
    ),
    fails(
        "misnames",
        "a hook does not fit: PluginValidationError: Plugin 'misnames' for hook 'register_losses' hookimpl definition: "
        "register_losses(registrar) Argument(s) {'registrar'} are declared in the hookimpl but can not be found in the hookspec",
        more="\n@hookimpl\ndef register_losses(registrar): pass\n",
    ),
    Broken(
        made("registers-less", body="register('registers-les', 'a:b')"),
        refusal="Plugin registers-less declares command 'registers-less' in its registry.toml, but register_commands in "
        "registers_less.plugin does not register it. Did you mean 'registers-les'?",
    ),
    Broken(
        made("registers-more", body="[register(name, 'a:b') for name in ('registers-more', 'something')]"),
        refusal="Plugin registers-more registers command 'something' in registers_more.plugin, but its registry.toml has "
        "no [[command]] of that name.",
    ),
    lacks(
        "needs-what-is-not-there",
        "needs no-such-thing>=2: pip install 'no-such-thing>=2'",
        API + COMMAND.format(name="needs-what-is-not-there") + 'needs = ["no-such-thing>=2"]\n',
    ),
    lacks("target-imports", "needs no_such_module: pip install no_such_module", module="import no_such_module.part"),
    lacks(
        "target-raises",
        "cannot be loaded from target_raises.made:run: ZeroDivisionError: division by zero",
        module="1 / 0",
    ),
    lacks(
        "target-exits", "cannot be loaded from target_exits.made:run: SystemExit: bye", module="raise SystemExit('bye')"
    ),
    lacks("target-panics", "cannot be loaded from target_panics.made:run: Panic: oh", module=PANIC),
    lacks(
        "target-elsewhere",
        "cannot be loaded from target_elsewhere.made:fun: AttributeError: module 'target_elsewhere.made' has no attribute 'fun'",
        body="register('target-elsewhere', 'target_elsewhere.made:fun')",
    ),
    lacks("target-a-number", "is no command: TypeError: 3 is not a callable object", module="run = 3"),
    Broken(
        made("command-raises", module="def run(): raise ValueError('no')"),
        refusal="unexpected ValueError: no, in plugin command-raises (run again with -v for the traceback)",
    ),
]

# --- those whose registry.toml is wrong -------------------------------------------------------------------------------

KEYS = "name, family, modality, task, params, license, summary, plugin, hub, revision, sha256, paper, config, dtype, packaged, distribution, params_non_embedding, unknown, missing"
NAME = "at most 200 letters, digits, '.', '_' and '-', beginning with a letter or digit"
LINE = "one line of 1 to 500 printable characters"
RANGE = 'the range of plugin API versions it is made for, such as ">=1,<2"'
TABLES = "Tables: model, option, family, compressor, loss, evaluator, data, command."
ENDLESS = '[[family]]\nname = "endless"\nsummary = "x"\nmodality = "text"\nrecognises = ["/dev/zero:x"]\n'

DECLARED = [
    declares(
        "empty",
        "",
        "{file}: 'api' is missing: write api = \">=1,<2\", the range of plugin API versions it is made for, as its first line.",
    ),
    declares("odd-api", 'api = "1"\n', f"{{file}}: api must be {RANGE}, not '1'."),
    declares("numeric-api", "api = 1\n", f"{{file}}: api must be {RANGE}, not 1."),
    declares(
        "newer-api",
        'api = ">=2,<3"\n\n[[gadget]]\nname = "new"\n',
        "needs plugin API >=2,<3, and this zoo {version} has 1: upgrade zoo, or install a version of newer-api made for it.",
    ),
    declares(
        "older-api",
        'api = "<1"\n',
        "needs plugin API <1, and this zoo {version} has 1: install a newer version of older-api, or an older zoo.",
    ),
    declares(
        "odd-option",
        API + '[[option]]\nname = "top-p"\nsummary = "x"\n',
        "{file}, [[option]] 1 (top-p): name must be the name of an argument: lower-case letters, digits and '_', such as 'top_p', not 'top-p'.",
    ),
    declares(
        "odd-value",
        API + '[[option]]\nname = "p"\nsummary = "x"\nvalue = "a number"\n',
        "{file}, [[option]] 1 (p): value must be a word in capitals, such as NUMBER, not 'a number'.",
    ),
    declares(
        "odd-target",
        API + '[[family]]\nname = "f"\nsummary = "x"\nmodality = "text"\noptions = "os"\n',
        "{file}, [[family]] 1 (f): options must be 'package.module:Class', not 'os'.",
    ),
    declares("no-table", API + "name = 1\n", f"{{file}}: 'name' is not a table. {TABLES}"),
    declares(
        "no-list", API + "[model]\nname = 'x'\n", "{file}: 'model' must be written as [[model]], one for each model."
    ),
    declares(
        "wrong-type",
        model(params='"many"'),
        "{file}, [[model]] 1 (made-up): params must be a whole number from 0 to 2**63 - 1, not 'many'.",
    ),
    declares("wrong-name", model(name="3"), f"{{file}}, [[model]] 1: name must be {NAME}, not 3."),
    declares(
        "unknown-key",
        model(licence='"MIT"'),
        f"{{file}}, [[model]] 1 (made-up): 'licence' is not a key. Did you mean 'license'? Keys: {KEYS}.",
    ),
    declares(
        "one-key-twice",
        model() + "params = 2\n",
        "{file} is not valid TOML: Cannot overwrite a value (at line 11, column 11).",
    ),
    declares(
        "one-name-twice",
        model() + MODEL.format(name="made-up"),
        "{file}, [[model]] 2 (made-up): [[model]] 1 has the same name 'made-up'; a name occurs once.",
    ),
    declares("cut-short", model()[:-5], "{file} is not valid TOML: Unterminated string (at end of document)."),
    declares("junk", bytes(range(256)) * 8, "{file} cannot be read: byte 128 is not UTF-8 text."),
    declares(
        "nul", API + "a = '\0'\n", r"{file} is not valid TOML: Found invalid character '\x00' (at line 2, column 6)."
    ),
    declares(
        "huge", API + f"# {'x' * 50_000_000}\n", "{file} has 50,000,018 bytes, and 1,048,576 are the most that is read."
    ),
    declares("deep-list", API + "a = " + "[" * 100_000, "{file} is nested too deeply to be read."),
    declares(
        "deep-table",
        API + "a" + ".a" * 100_000 + " = 1\n",
        "{file}, line 2: more than 200 dots in one line; write long lists over several lines.",
    ),
    declares(
        "deep-config",
        model(config="{ a = " + "[" * 100 + "]" * 100 + " }"),
        "{file}, [[model]] 1 (made-up): config must be a table of values that JSON can hold, not nested deeper than 20, "
        f"not {{'a': {'[' * 71}....",
    ),
    declares(
        "huge-number",
        model(params="0x" + "f" * 4000),
        "{file}, [[model]] 1 (made-up): params must be a whole number from 0 to 2**63 - 1, not that int.",
    ),
    declares(
        "long-number",
        model(params="9" * 5000),
        "{file} is not valid TOML: Exceeds the limit (4300 digits) for integer string conversion: "
        "value has 5000 digits; use sys.set_int_max_str_digits() to increase the limit.",
    ),
    declares(
        "long-name", model(name=f"'{'n' * 5000}'"), f"{{file}}, [[model]] 1: name must be {NAME}, not '{'n' * 76}...."
    ),
    declares(
        "long-text",
        model(summary=f"'{'n' * 5000}'"),
        f"{{file}}, [[model]] 1 (made-up): summary must be {LINE}, not '{'n' * 76}....",
    ),
    declares(
        "two-lines",
        model(summary=r'"one\ntwo"'),
        rf"{{file}}, [[model]] 1 (made-up): summary must be {LINE}, not 'one\ntwo'.",
    ),
    declares(
        "escapes",
        model(summary=r'"\u001b[2Jred\u0007"'),
        rf"{{file}}, [[model]] 1 (made-up): summary must be {LINE}, not '\x1b[2Jred\x07'.",
    ),
    declares(
        "backwards",
        model(license=r'"\u202eTIM"'),
        rf"{{file}}, [[model]] 1 (made-up): license must be {LINE}, not '\u202eTIM'.",
    ),
    declares("escaping-key", API + r'"\u001b[2J" = 1' + "\n", rf"{{file}}: '\x1b[2J' is not a table. {TABLES}"),
    declares(
        "climbs",
        model(packaged='"../../../etc"'),
        "{file}, [[model]] 1 (made-up): packaged must be a relative folder inside the plugin's package, not '../../../etc'.",
    ),
    declares(
        "absolute",
        model(packaged='"/etc"'),
        "{file}, [[model]] 1 (made-up): packaged must be a relative folder inside the plugin's package, not '/etc'.",
    ),
    declares(
        "climbing-hash",
        model(sha256=f"{{ '../x' = '{'0' * 64}' }}"),
        f"{{file}}, [[model]] 1 (made-up): sha256 must be a table of file names that stay inside the repository, not {{'../x': '{'0' * 64}'}}.",
    ),
    declares(
        "endless",
        API + ENDLESS,
        "{file}, [[family]] 1 (endless): recognises must be a list of files, each with a key in it or without, "
        "such as [\"config.json:architecture\"], not ['/dev/zero:x'].",
    ),
    declares(
        "anothers-weights",
        model(plugin='"zoo_slm"'),
        "model 'made-up': plugin must be left out, or be another of anothers-weights's, not 'zoo_slm'.",
    ),
]

# --- those that take what is somebody else's --------------------------------------------------------------------------

TAKING = [
    Broken(
        made("takes-list", API + COMMAND.format(name="list"), body="register('list', 'takes_list.made:run')"),
        "command 'list' is already declared by plugin zoo; takes-list's is reached as 'takes-list:list'.",
    ),
    Broken(
        made("takes-tiny-code", API + MODEL.format(name="tiny-code"), body="pass"),
        "model 'tiny-code' is already declared by plugin zoo; takes-tiny-code's is reached as 'takes-tiny-code:tiny-code'.",
    ),
    Broken(
        made("takes-slm", plugin="zoo_slm"),
        "takes the plugin name 'zoo_slm', which is zoo's own, and is refused; uninstall it.",
    ),
    Broken(
        made("takes-core", plugin="zoo"),
        "takes the plugin name 'zoo', which is zoo's own, and is refused; uninstall it.",
    ),
    Broken(
        made("twin-one", plugin="twin.x"),
        "distributions twin-one and twin-two both take the name 'twin.x', and are refused; uninstall one of them.",
        plugin="twin.x",
    ),
    Broken(made("twin-two", plugin="Twin_X"), plugin="Twin_X"),
    Broken(
        made("points-at-ours", catalog="zoo_slm"),
        "its entry point in 'zoo.catalog' names 'zoo_slm', which is the package of plugin zoo_slm.",
    ),
    Broken(
        made("points-up", catalog=".."), "its entry point in 'zoo.catalog' must name a top-level package, not '..'."
    ),
    Broken(
        made("points-inside", catalog="points_inside.made"),
        "its entry point in 'zoo.catalog' must name a top-level package, not 'points_inside.made'.",
    ),
    Broken(
        made("points-at-a-module", catalog="this"),
        "'this' is a single module; a registry.toml needs a package to lie in.",
    ),
]

# --- those that were half uninstalled ---------------------------------------------------------------------------------

HALVED = [
    Broken(
        made("package-lost"),
        "its package 'package_lost' is not there: install distribution package-lost again, or uninstall it.",
        damage=package_lost,
    ),
    Broken(
        made("cache-left"),
        "{site}/cache_left/registry.toml cannot be read: No such file or directory.",
        damage=only_the_cache_left,
    ),
    Broken(made("metadata-lost"), damage=metadata_lost),
    Broken(made("interrupted"), damage=uninstall_interrupted),
    Broken(
        made("entries-junk"),
        "{site}/entries_junk-1.0.dist-info/entry_points.txt is damaged (it is not text): delete {site}/entries_junk-1.0.dist-info, and install it again.",
        damage=junk("entry_points.txt", b"\xff\xfe\0"),
    ),
    Broken(
        made("entries-cut"),
        "{site}/entries_cut-1.0.dist-info/entry_points.txt is damaged (line 4, 'entri', is not of the form 'name = value'): "
        "delete {site}/entries_cut-1.0.dist-info, and install it again.",
        damage=junk("entry_points.txt", b"[zoo.catalog]\nentries-cut = entries_cut\n[zoo]\nentri"),
    ),
    Broken(
        made("entries-escaping"),
        rf"its entry point '\x1b[2J' in 'zoo.catalog' is no name for a plugin: {NAME}.",
        damage=junk("entry_points.txt", b"[zoo.catalog]\n\x1b[2J = entries_escaping\n"),
    ),
    Broken(made("entries-lost"), damage=lost("entry_points.txt")),
    Broken(
        made("name-junk"),
        "{site}/name_junk-1.0.dist-info/METADATA is damaged (it is not text): delete {site}/name_junk-1.0.dist-info, and install it again.",
        damage=junk("METADATA", b"\xff\xfe\0"),
    ),
    Broken(
        made("name-lost"),
        "its metadata says no name and version, as if it were half uninstalled: install it again, or delete {site}/name_lost-1.0.dist-info.",
        damage=lost("METADATA"),
    ),
    Broken(made("record-junk"), damage=junk("RECORD", b"\xff\xfe\0")),
    Broken(made("record-lost"), damage=lost("RECORD")),
    Broken(made("registry-a-pipe"), "{site}/registry_a_pipe/registry.toml is not a file.", damage=registry_a_pipe),
    Broken(made("registry-endless"), "{site}/registry_endless/registry.toml is not a file.", damage=registry_endless),
]

# --- and those that nobody can wait for, or survive -------------------------------------------------------------------

SLEEPS = Broken(made("sleeps", code="import time\ntime.sleep(30)\n"))
KILLS = Broken(made("kills", code="import os\nos._exit(9)\n"))

# Two that declare one name: neither is broken.
SHARE = [
    Broken(
        made(name, API + COMMAND.format(name="shared"), body=f"register('shared', '{name.replace('-', '_')}.made:run')")
    )
    for name in ("shares-one", "shares-two")
]

# One whose author gave it a new name and kept the old.
RENAMED = Broken(made("renamed"))
for group in RENAMED.distribution.entries.values():
    group["old-name"] = group["renamed"]

# One of every kind, none of which can be imported.
EVERY_KIND = """
[[family]]
name = "odd-family"
modality = "text"
summary = "Made up for a test"

[[compressor]]
name = "odd-stage"
summary = "Made up for a test"

[[loss]]
name = "odd-loss"
summary = "Made up for a test"

[[evaluator]]
name = "odd-task"
summary = "Made up for a test"

[[data]]
name = "odd-data"
summary = "Made up for a test"
"""
ODD = Broken(
    made("odd", API + EVERY_KIND + MODEL.format(name="odd-model").replace("llama", "odd-family"), code="1 / 0")
)

# Stages that are in order until they are to do their work.
STAGES = {
    "at-work.raises": "raise ValueError('no')",
    "at-work.exits": "raise SystemExit(0)",
    "at-work.panics": f"exec({PANIC!r})",
}
STAGE = """
class {name}(Compressor):
    name, version = {stage!r}, 1
    Options = CompressorOptions
    def outline(self, model, options): return {{}}
    def rebuild(self, module, record): pass
    def apply(self, model, options, context): {work}
"""
AT_WORK = Broken(
    made(
        "at-work",
        API + "".join(f'[[compressor]]\nname = "{stage}"\nsummary = "Made up for a test"\n' for stage in STAGES),
        body="pass",
        more="\n@hookimpl\ndef register_compressors(register):\n"
        + "".join(f"    register({stage!r}, 'at_work.made:{stage[8:].title()}')\n" for stage in STAGES),
        module="from zoo.compressor import Compressor, CompressorOptions\n"
        + "".join(STAGE.format(name=stage[8:].title(), stage=stage, work=work) for stage, work in STAGES.items()),
    )
)

ALL = [*USED, *DECLARED, *TAKING, *HALVED, SLEEPS, KILLS, *SHARE, RENAMED, ODD, AT_WORK]
