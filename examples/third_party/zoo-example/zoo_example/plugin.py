"""What this plugin registers: names to where they are defined, imported when they are first used."""

from __future__ import annotations

from zoo.hooks import Register, hookimpl


@hookimpl
def register_families(register: Register) -> None:
    register("mingru", "zoo_example.family:MinGRUFamily")


@hookimpl
def register_losses(register: Register) -> None:
    register("reverse-kl", "zoo_example.losses:ReverseKL")


@hookimpl
def register_data(register: Register) -> None:
    register("pydoc", "zoo_example.data:Pydoc")


@hookimpl
def register_compressors(register: Register) -> None:
    register("palette.kmeans", "zoo_example.palette:PaletteKMeans")


@hookimpl
def register_evaluators(register: Register) -> None:
    register("top-k-accuracy", "zoo_example.evaluators:TopKAccuracy")


@hookimpl
def register_commands(register: Register) -> None:
    register("spectrum", "zoo_example.spectrum:spectrum")
