"""`zoo plan`, `zoo compress`, `zoo inspect` and `zoo reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli import output
from zoo.system import quantities
from zoo.system.processes import rank, require_data_parallel
from zoo.system.signals import remark

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file (TOML).")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a value of the recipe, such as stage.1.layers=first:3 or data.train=texts; may be given several times.",
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where the result goes.  [default: runs/NAME]")
]
UntilOption = Annotated[
    str | None, typer.Option(metavar="STAGE", help="Stop after this stage: its number (from 1) or name.")
]
OnlyOption = Annotated[
    str | None, typer.Option(metavar="STAGE", help="Run only this stage, on what the earlier ones left.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Write into DIR even if it holds something else.")]
IgnoreMemoryOption = Annotated[
    bool, typer.Option("--ignore-memory", help="Begin even if the plan needs more memory than there is.")
]


def plan(
    recipe: RecipeArgument, set_: SetOption = None, out: OutOption = None, json: output.JsonOption = False
) -> None:
    """Say what a recipe would do, cost and need, without doing it."""
    from zoo_compress.recipe.folder import RunFolder
    from zoo_compress.recipe.planner import plan as make_plan
    from zoo_compress.recipe.recipe import Recipe

    parsed = Recipe.load(recipe, overrides=set_ or [])
    if out is not None:
        RunFolder(out, parsed.about.name).check()
    with output.status("Planning"):
        found = make_plan(parsed, out=out)
    if json:
        output.print_json(found.to_json())
    else:
        show_plan(found)


def compress(
    recipe: RecipeArgument,
    set_: SetOption = None,
    out: OutOption = None,
    until: UntilOption = None,
    only: OnlyOption = None,
    force: ForceOption = False,
    ignore_memory: IgnoreMemoryOption = False,
    json: output.JsonOption = False,
) -> None:
    """Run a recipe: plan, compress stage by stage, measure, save, report.

    A rerun skips what is finished, and goes on where the last one stopped or was killed.
    """
    require_data_parallel("zoo compress")
    from zoo_compress.recipe.folder import RunFolder
    from zoo_compress.recipe.planner import plan as make_plan
    from zoo_compress.recipe.progress import Terminal
    from zoo_compress.recipe.recipe import Recipe
    from zoo_compress.recipe.runner import run, selected

    parsed = Recipe.load(recipe, overrides=set_ or [])
    folder = out or Path("runs") / parsed.about.name
    selected(parsed, until=until, only=only)
    RunFolder(folder, parsed.about.name).check(force=force)
    silent = output.settings.quiet or rank() > 0  # of several processes the first speaks
    quiet = json or silent
    with remark(f"what is finished is kept in {folder}: the same command goes on from there."):
        with output.status("Planning"):
            planned = make_plan(parsed, out=folder)
        if not quiet:
            show_plan(planned)
        with Terminal(quiet=silent) as progress:
            result = run(
                parsed,
                out=out,
                until=until,
                only=only,
                force=force,
                ignore_memory=ignore_memory,
                progress=progress,
                planned=planned,
            )
    if rank():
        return
    if json:
        output.print_json(result.results)
    else:
        show_results(result.results, folder)


def inspect(
    model: output.ModelArgument, weights: output.WeightsOption = "auto", json: output.JsonOption = False
) -> None:
    """Show a model's structure: its stacks, widths, shared and packed parts, and how it was made."""
    with output.status(f"Reading {model}"):
        from zoo_compress.report.inspection import describe

        found = describe(model, weights=weights)
    if json:
        output.print_json(found)
        return
    output.print_facts(
        [
            (key.replace("_", " "), str(value))
            for key, value in found.items()
            if value is not None and not isinstance(value, list) and key != "left_out"
        ]
    )
    for stack in found["stacks"]:
        other = ("other layers",) if any("other_layers" in block for block in stack["blocks"]) else ()
        columns = ("block", "heads", "kv heads", "head dim", "ffn", *other, "traits")
        width = f" of width {stack['width']}" if stack["width"] else ""
        print(f"\n{stack['name']}: {len(stack['blocks'])} blocks{width} at {stack['path']}")
        rows = [[_cell(block.get(c.replace(" ", "_"), "")) for c in columns] for block in stack["blocks"]]
        output.print_table(columns, rows, right=columns[:5])
    if found["layers"]:
        print("\nlayers outside blocks, by the name a target may have")
        output.print_table(
            ("part", "layers", "traits"),
            [[one["name"], str(one["count"]), one["traits"]] for one in found["layers"]],
            right=("layers",),
        )
    if found["left_out"]:
        print(f"\n{found['left_out']}")
    for number, stage in enumerate(found["lineage"], 1):
        print(f"{number}. {stage['use']}  {stage['options']}")


def _cell(value: Any) -> str:
    """A fact of a block, or how many layers it has of each kind."""
    return ", ".join(f"{count} {kind}" for kind, count in value.items()) if isinstance(value, dict) else str(value)


def reproduce(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="ARTIFACT", help="The directory of a saved model: a run's, a stage's, or one saved from Python."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Keep the model that is made again here.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="DIR",
            help="Where relative paths of data and models start.  [default: the folder of the run's recipe, else the current one]",
        ),
    ] = None,
    json: output.JsonOption = False,
) -> None:
    """Make a saved model again from its own manifest, and name the first stage and tensor that differ, if any.

    The exit code is 0 where every byte is the same, 1 where something differs, 2 where it cannot be tried.
    """
    from zoo_compress.recipe.progress import Terminal
    from zoo_compress.recipe.reproduce import reproduce as make_again

    with Terminal(quiet=output.settings.quiet) as progress:
        found = make_again(path, out=out, base=base, progress=progress)
    if json:
        output.print_json(found.to_json())
    elif found.difference is None:
        names = ", ".join(one["name"] for one in found.files)
        count = f"{len(found.stages)} stage{'' if len(found.stages) == 1 else 's'}"
        print(f"{path} is reproduced to the bit: {count}, {len(found.files)} files ({names}).")
    else:
        print(f"{path} is not reproduced: {found.difference}.")
        for one in found.circumstances:
            print(f"  {one['what']}: {one['then'] or 'absent'} when it was made, {one['here'] or 'absent'} here")
    if found.difference:
        raise typer.Exit(1)


def show_plan(found: Any) -> None:
    """Print a plan as a table, with its notes below."""
    spec = found.spec
    licenses = ", ".join(f"{name}: {license}" for name, license in found.licenses.items())
    print(f"Plan of {found.recipe.about.name}: {spec.name} ({licenses}), {len(found.stages) - 1} stages")
    rows = [
        [str(number), stage.use, f"{stage.params:,}", quantities.size(stage.bytes), quantities.size(stage.peak_bytes)]
        for number, stage in enumerate(found.stages)
    ]
    output.print_table(
        ("stage", "use", "parameters", "on disk", "peak memory"),
        rows,
        right=("stage", "parameters", "on disk", "peak memory"),
    )
    for number, stage in enumerate(found.stages):
        if stage.note:
            print(f"  {number} {stage.use}: {stage.note}")
    if kernels := found.stages[-1].kernels:
        runs = "; ".join(f"{kernel} ({quantities.counted(layers, 'layers')})" for kernel, layers in kernels.items())
        print(f"  kernels of this machine: {runs}")
    for role, data in found.data.items():
        print(f"  {role}: {data.name}, {quantities.counted(len(data), 'records')}")
    if found.measured:
        usual = " (the recipe names no tasks, and this suits the model)" if found.recipe.usual else ""
        print(f"  measures: {', '.join(found.measured)}{usual}")
    for overlap in found.overlaps:
        if not overlap.of_test:
            print(f"  {overlap}")
    judged = [licence for licence in found.inherits if licence.judged]
    fine = ", ".join(f"{licence.of} ({licence.license})" for licence in found.inherits if not licence.judged)
    if fine:
        print(f"  the result inherits the licences of {fine}")
    for licence in judged:
        print(f"  the result inherits the licence of {licence}")
    print(
        f"  needs {quantities.size(found.disk_bytes)} of disk ({quantities.size(found.free_disk_bytes)} free); "
        f"{quantities.size(found.free_memory_bytes)} of memory free"
    )
    for overlap in found.overlaps:
        if overlap.of_test:
            output.warn(str(overlap))
    if found.shortage:
        output.warn(found.shortage)
    if found.disk_bytes > found.free_disk_bytes:
        output.warn(f"the plan needs {quantities.size(found.disk_bytes)} of disk, more than is free.")


def show_results(results: dict[str, Any], folder: Path) -> None:
    """Print the table of a finished run and where to look."""
    from rich.console import Console

    from zoo_compress.report.terminal import table

    console = Console()
    if not console.is_terminal:  # piped: wide enough for most columns
        console = Console(width=100)
    console.print(table(results, width=console.width))
    sessions = f" in {results['sessions']} sessions" if results["sessions"] > 1 else ""
    took = f"Took {quantities.seconds(results['seconds'])}{sessions}"
    print(f"Model: {folder}    Report: {folder / 'report.html'}    {took}")
    example = _example(results, folder)
    print((f"Try it: {example}    " if example else "") + f'Load it: zoo.load("{folder}")')


def _example(results: dict[str, Any], folder: Path) -> str:
    """The command that runs the result, with what its family takes and a prompt it was sampled with; "" where not any prompt will do."""
    import shlex

    from zoo.loading.locate import locate

    located = locate(folder)
    family, takes = located.family, located.family.options_of(located.task).names()
    if not family.task(results["model"]["task"]).takes_any_prompt:
        return ""
    samples = results["stages"][-1].get("samples") or [{}]
    prompt = str(samples[0].get("prompt") or "def ").splitlines()[0][:60]
    prompt = shlex.quote(prompt) if set(prompt) & set('"$`!\\') else f'"{prompt}"'
    words = ["zoo run", shlex.quote(str(folder))]
    words += ["--image image.png"] if "images" in takes else []
    words += [f"--prompt {prompt}"] if "prompt" in takes else []
    words += ["--out image.png"] if family.makes == "images" else []
    return " ".join(words)
