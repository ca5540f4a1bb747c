"""What zoo_snapgen registers; each name is declared in registry.toml, and imported when it is first used."""

from __future__ import annotations

from zoo.hooks import Register, hookimpl


@hookimpl
def register_families(register: Register) -> None:
    register("snapgen", "zoo_snapgen.family:DiffusersPipeline")
    register("diffusers", "zoo_snapgen.family:DiffusersPipeline")


@hookimpl
def register_losses(register: Register) -> None:
    register("velocity", "zoo_snapgen.losses:Velocity")
    register("velocity-kd", "zoo_snapgen.losses:VelocityKD")
    register("timestep-aware", "zoo_snapgen.losses:TimestepAware")
    register("reconstruction", "zoo_snapgen.losses:Reconstruction")


@hookimpl
def register_data(register: Register) -> None:
    register("digits-captions", "zoo_snapgen.data:DigitsCaptions")


@hookimpl
def register_evaluators(register: Register) -> None:
    register("prompt-agreement", "zoo_snapgen.evaluators:PromptAgreement")
    register("frechet", "zoo_snapgen.evaluators:Frechet")
    register("velocity-error", "zoo_snapgen.evaluators:VelocityError")
    register("real-images", "zoo_snapgen.evaluators:RealImages")
