"""The hooks, all of them: what a plugin can add.

Each hook is handed `register(name, target)`, where `target` is `"package.module:attribute"` and is imported only when
the name is used. Names must also be declared in the plugin's `registry.toml`, which is what lets `zoo list` and
`zoo --help` answer without importing a plugin. docs/hooks.md says what each registered thing has to be.
"""

from __future__ import annotations

from collections.abc import Callable

import pluggy

Register = Callable[[str, str], None]

hookspec = pluggy.HookspecMarker("zoo")
hookimpl = pluggy.HookimplMarker("zoo")


@hookspec
def register_families(register: Register) -> None:
    "Add architecture families: call register('llama', 'zoo_slm.language:TransformersText') for each"


@hookspec
def register_compressors(register: Register) -> None:
    "Add compression stages: call register('lowrank.svd', 'zoo_compress.methods.lowrank:LowRankSVD') for each"


@hookspec
def register_losses(register: Register) -> None:
    "Add training losses: call register('kl', 'zoo_compress.losses.rows:ForwardKL') for each"


@hookspec
def register_evaluators(register: Register) -> None:
    "Add evaluation tasks: call register('perplexity', 'zoo_slm.evaluate:Perplexity') for each"


@hookspec
def register_data(register: Register) -> None:
    "Add data sources: call register('stdlib', 'zoo_slm.stdlib:Stdlib') for each"


@hookspec
def register_commands(register: Register) -> None:
    "Add commands to `zoo`: call register('plan', 'zoo_compress.commands:plan') for each"
