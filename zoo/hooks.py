"""What a plugin's module imports to say what it adds.

    from zoo.hooks import Register, hookimpl

    @hookimpl
    def register_losses(register: Register) -> None:
        register("mine", "my_package.losses:Mine")

There is one hook for each kind of thing, named in its row of `zoo/plugins/kinds.py`: register_families,
register_compressors, register_losses, register_evaluators, register_data, register_commands. Each is handed
`register(name, target)`, where `target` is `"package.module:attribute"` and is imported only when the name is used. Names
must also be declared in the plugin's `registry.toml`, which is what lets `zoo list` and `zoo --help` answer without
importing a plugin. docs/hooks.md says what each registered thing has to be.
"""

from __future__ import annotations

from collections.abc import Callable

import pluggy

Register = Callable[[str, str], None]

hookspec = pluggy.HookspecMarker("zoo")
hookimpl = pluggy.HookimplMarker("zoo")
