"""`zoo plugins check` and its pytest plugin, on really installed projects: green where all is right, and where one thing is
wrong, the check that is named for it fails.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from outsiders import install
from projects import BROKEN, KINDS, OTHERS, installed, run, written

# One process for everything, since an import takes seconds: commands, one a line of JSON, and what each of them gave.
DRIVER = """
import contextlib, io, json, os, sys
import pytest, torch
torch.set_num_threads(1)
from zoo.cli import main
for kind, where, args, env in json.loads(sys.argv[1]):
    said, wrong = io.StringIO(), io.StringIO()
    os.environ |= env
    from zoo.plugins.names import refresh
    refresh()
    os.chdir(where)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
        code = int(pytest.main(["-p", "no:cacheprovider", *args]) if kind == "pytest" else main(args))
    print(json.dumps({"code": code, "out": said.getvalue(), "err": wrong.getvalue()}), flush=True)
"""
# without our models, which would only take time
ALONE = {"ZOO_PLUGINS": "zoo_compress,zoo-broken,zoo-unsound,zoo-unread,zoo-careless,zoo-heedless,out-bare"}

# What is wrong -> (kind, name of the thing, check, what is said).
CAUGHT = {
    "an outline that lies": ("compressor", "lying", "estimate", "head.weight (10, 64); the model has it (5, 64)"),
    "draws from the global state": (
        "compressor",
        "drawing",
        "side effects",
        "changes the global random state of torch",
    ),
    "follows the global state": ("compressor", "drawing", "determinism", "it leaves another model.safetensors"),
    "no seed": ("compressor", "unseeded", "determinism", "it leaves another model.safetensors"),
    "rebuilds something else": (
        "compressor",
        "forgetting",
        "save and reload",
        "loaded again it would give other outputs, first at",
    ),
    "prints": ("compressor", "loud", "apply", "prints 'halving now' on stdout"),
    "ends the process": ("compressor", "leaving", "apply", "SystemExit(3) was raised (broken.py, line "),
    "an option without description": ("compressor", "silent", "docs", "option by has no description"),
    "an option without example": ("compressor", "bare", "docs", "option by has neither default nor example"),
    "refuses too late": ("compressor", "late", "check", "was refused after it had changed the model"),
    "takes no model": ("compressor", "late", "applies to a model", "refuses every model it was tried on"),
    "no docstring": ("compressor", "undocumented", "docs", "class Undocumented has no docstring"),
    "wrong parameters": (
        "model",
        "miscounted-tiny",
        "build",
        "has 81,098 parameters, but registry.toml says params = 12,345",
    ),
    "parts that do not belong together": ("model", "misplaced-tiny", "anatomy", "exchanged in all its parts"),
    "blocks left out": (
        "model",
        "incomplete-tiny",
        "anatomy",
        "no stack is at blocks, where 2 blocks have 83% of the parameters",
    ),
    "no gradient": ("model", "idling-tiny", "gradients", "no gradient reaches unused.weight, unused.bias"),
    "generates by chance": ("model", "wavering-tiny", "generate", "wavering-tiny"),
    "initialises by chance": ("model", "unsteady-tiny", "random weights", "head.bias is not the same twice"),
    "not finite": ("model", "infinite-tiny", "forward", "gives values that are not finite"),
    "sets the global state": (
        "model",
        "stirring-tiny",
        "side effects",
        "running it changes the global random state of torch",
    ),
    "another in each process": (
        "model",
        "counting-tiny",
        "save and reload",
        "reloaded in a fresh process, differs in output",
    ),
    "no tokenizer saved": (
        "model",
        "mute-tiny",
        "save and reload",
        "the saved model cannot generate; `save_processor` has to write what `load_processor` reads (mute-tiny has no",
    ),
    "a task without a class": (
        "family",
        "aimless",
        "family",
        "has the task 'summarising', but `task` returns that of 'causal-lm'; write one with a class of your own",
    ),
    "state in a family": ("model", "hoarding-tiny", "side effects", "changes what it keeps in itself (computed)"),
    "a family in train mode": (
        "model",
        "wakeful-tiny",
        "forward",
        "`build` leaves it in train mode; return module.eval()",
    ),
    "a loss without gradient": ("loss", "detached", "gradient", "is not differentiated by what the student says"),
    "a loss with another minimum": ("loss", "astray", "minimum", "where student and teacher are the same, and"),
    "a loss that mixes rows": ("loss", "mixing", "chunks", "depends on the rows beside it"),
    "a loss that is not finite": ("loss", "undefined", "value", "is not finite"),
    "a loss of another shape": ("loss", "averaged", "value", "a number for each row"),
    "a loss that draws": ("loss", "dicing", "side effects", "changes the global random state of torch"),
    "sparse without a trait": ("compressor", "sparing", "traits", "50% of head.weight are zeros after it, and nothing"),
    "a trait of nothing": ("compressor", "misleading", "traits", "it gives a trait to tail, which is not in the model"),
    "data of a role that is not named": (
        "compressor",
        "reading",
        "data",
        "it reads calibration data, which `roles` does not name; return ('calibration',) from it",
    ),
    "state in the instance": (
        "compressor",
        "remembering",
        "side effects",
        "it changes what it keeps in itself (seen); one instance serves every model",
    ),
    "train mode": ("compressor", "awaking", "condition", "it leaves the module in train mode; call"),
    "no gradients later": (
        "compressor",
        "freezing",
        "condition",
        "it leaves positions, patches.weight without a gradient",
    ),
    "a default dtype": (
        "compressor",
        "settling",
        "side effects",
        "it changes torch's default dtype; leave what others",
    ),
    "gradients off": ("compressor", "ungraded", "side effects", "it changes whether torch keeps gradients"),
    "a working directory": ("compressor", "roaming", "side effects", "it changes the working directory"),
    "a function of torch": ("compressor", "patching", "side effects", "it changes torch.nn.functional.gelu"),
    "a method of torch": ("compressor", "overriding", "side effects", "it changes torch.nn.Linear.half"),
    "Ctrl-C": ("compressor", "deaf", "side effects", "it changes what Ctrl-C does"),
    "a tokenizer dropped": (
        "compressor",
        "dropping",
        "condition",
        "it drops the model's processor, which reads prompts",
    ),
    "another tokenizer": ("compressor", "respelling", "condition", "another tokenizer; say `tokenizes = True`"),
    "negative memory": ("compressor", "negative", "estimate", "`working_bytes` gives -"),
    "the order of a set, in a stage": (
        "compressor",
        "hashing",
        "determinism",
        "in another process, with one seed, it leaves other tensors; does it follow the order of a set?",
    ),
    "an option called use": ("compressor", "using", "docs", "an option called `use` cannot be set, since recipes"),
    "a cache ignored": ("model", "cacheless-tiny", "cache", "it gives other logits than read at once; docs/hooks.md"),
    "not causal": ("model", "peeking-tiny", "order", "depends on the one after it; a causal model masks"),
    "samples mixed": ("model", "mingling-tiny", "samples", "for a sample depends on those beside it in the batch"),
    "the order of a set, in a family": (
        "model",
        "hashed-tiny",
        "random weights",
        "its random weights are others in another process",
    ),
    "state in a loss": ("loss", "counting", "side effects", "changes what it keeps in itself (calls)"),
    "more than all": ("evaluator", "beyond", "figures", "right is 137.5 %, and a share in percent is 0 to 100"),
    "less than nothing": ("evaluator", "below", "figures", "right is -3.0 %, and a share in percent is 0 to 100"),
    "percent that are not said to be": (
        "evaluator",
        "hundredfold",
        "figures",
        'top_5_accuracy is 37.5, and a share is 0 to 1; write percent with "unit": "%"',
    ),
    "a share called percent": (
        "evaluator",
        "hundredth",
        "figures",
        "is 0.75 %, which is the share of 3 of 4 records; multiply it by 100",
    ),
    "a model left in train mode": ("evaluator", "rousing", "side effects", "changes the model it measures"),
    "the order of a set, in a figure": (
        "evaluator",
        "sorting",
        "determinism",
        "in another process, for the same model",
    ),
    "train is test": ("data", "leaking", "splits", "4 of the 4 records of test are also in train"),
    "an empty text": ("data", "blank", "records", "lines:train:4: 'text' is empty, so there is nothing to learn"),
    "another content later": ("data", "wearing", "determinism", "holds something else when it is opened again"),
    "another place later": ("data", "moving", "determinism", "holds something else when it is opened again"),
    "nan": ("evaluator", "not-a-number", "figures", "value is nan, not a finite number"),
    "outside the interval": ("evaluator", "outside", "figures", "is 3.0, outside its interval 4.0 to 5.0"),
    "a figure by chance": ("evaluator", "guessing", "determinism", "for the same model and data"),
    "changes the model": ("evaluator", "meddling", "side effects", "changes the model it measures"),
    "measures nothing": ("evaluator", "choosy", "measure", "choosy measures nothing."),
    "no records": ("data", "empty", "resolve", "holds no records"),
    "records of one place": ("data", "anonymous", "records", "two records are from 'somewhere'"),
    "the order of a set": ("data", "unordered", "determinism", "holds something else in a fresh process"),
    "data that draws": ("data", "shuffling", "side effects", "changes the global random state of random"),
    "help without words": ("command", "wordless", "help", "does not say what the command does"),
    "no help": ("command", "failing", "help", "--help` ends with 1: error: Command 'failing'"),
    "padding is read": ("model", "unmasked-tiny", "padding", "read together, give other logits than each alone; its"),
    "a context too long": ("model", "overlong-tiny", "length", "it says that it takes 130 tokens, and fails on them ("),
    "fewer names than classes": (
        "model",
        "nameless-tiny",
        "forward",
        "`labels` names 9 classes, and the module has 10",
    ),
    "the environment": ("compressor", "exporting", "side effects", "it changes the environment of processes; leave"),
    "all warnings hidden": ("compressor", "hushing", "side effects", "it changes which warnings are shown; leave"),
    "logs off": ("compressor", "muffling", "side effects", "it changes which logs are shown; leave"),
    "another cuDNN": ("compressor", "tuning", "side effects", "it changes the way of products on CUDA; leave"),
    "a hook left": ("compressor", "hooking", "condition", "it leaves a hook on head in the model, which is not saved"),
    "gradients left": ("compressor", "accruing", "condition", "it leaves the gradient of head.weight in the model"),
    "records written into": ("compressor", "marking", "side effects", "it changes the records it is given"),
    "a weight twice": ("loss", "weighing", "value", "with weight = 3; leave the weight to the stage, which multiplies"),
    "records changed by an evaluator": ("evaluator", "lowering", "side effects", "changes the records it measures on"),
    "a hook of an evaluator": ("evaluator", "watching", "side effects", "leaves a hook on "),
    "less time than none": ("evaluator", "backwards", "figures", "wait_s is -0.25, and none is less than nothing"),
    "an invisible text": ("data", "invisible", "records", "verses:train:4: 'text' is empty, so there is nothing"),
    "no picture": ("data", "pictureless", "records", "image"),
    "no class": ("data", "unlabelled", "records", "verses:train:4: the 'label' of its image is empty"),
    "a prompt that is a list": ("data", "listing", "records", "verses:train:4: 'prompt' is list, not text"),
    "a target that is not there": ("plugin", "", "registrations", "has no attribute 'failing'"),
}
# What fails besides, as it has to.
FOLLOW = {
    ("compressor", "bare", "check"),
    ("compressor", "bare", "applies to a model"),
    ("model", "infinite-tiny", "generate"),
    ("model", "infinite-tiny", "samples"),
    ("model", "infinite-tiny", "side effects"),
    ("model", "peeking-tiny", "cache"),
    ("model", "mingling-tiny", "cache"),
    ("compressor", "forgetting", "determinism"),  # which saves, too
    ("compressor", "respelling", "save and reload"),  # of the family that saves none
    ("data", "wearing", "side effects"),
    ("data", "moving", "side effects"),
}
RIGHT = (
    "fine",
    "measuring",
    "scaling",
    "plain",
    "lines",
    "lazy",
    "gap",
    "halving",
    "tallying",
    "verses",
)  # beside what is wrong

# checked by the command; the compressor by pytest
CONTRACT = ("loss", "family", "evaluator", "data", "command", "catalogue", *OTHERS)
BARE = """
import torch
from zoo.hooks import hookimpl
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Write and install all projects, and run every command in one process."""
    folder = tmp_path_factory.mktemp("projects")
    site = folder / "site"
    projects = written(folder)
    installed(projects, site)
    install(site, "out_bare", distribution="out-bare", code=BARE)
    own = [str(folder / f"zoo-{kind}-it" / "tests") for kind in CONTRACT]
    one = str(folder / "zoo-compressor-it")
    quiet = ["-q", "--tb=short", "--import-mode=importlib"]  # their files have the same names
    asked = {
        "own tests": ("pytest", str(folder), [*quiet, "-c", str(folder / "pytest.ini"), *own], {}),
        "pytest": ("pytest", one, ["-rs"], {}),
        **{
            f"check {kind}": ("zoo", str(site), ["plugins", "check", f"zoo-{kind}-it", "--json", "-q"], {})
            for kind in CONTRACT
        },
        "table": ("zoo", str(site), ["plugins", "check", "Zoo_Loss.it", "--only", "chunks"], {}),
        "nothing": ("zoo", str(site), ["plugins", "check", "zoo-loss-it", "--only", "chunk"], {}),
        "ours": ("zoo", str(site), ["plugins", "check", "zoo_slm", "--only", "tiny-code", "--json"], {}),
        **{name: ("zoo", str(site), ["plugins", "check", name, "--json"], ALONE) for name in BROKEN},
        "bare": ("zoo", str(site), ["plugins", "check", "out_bare", "--json"], ALONE),
        "broken pytest": ("pytest", str(site), ["-q", "--zoo-plugin", "zoo-broken", "-k", "plugin or nothing"], ALONE),
        "no such plugin": ("pytest", str(site), ["-q", "--zoo-plugin", "zoo-brocken"], ALONE),
    }
    (folder / "pytest.ini").write_text("[pytest]\n")
    done = run(DRIVER, json.dumps(list(asked.values())), site=site)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(asked), done.stderr
    return dict(zip(asked, lines, strict=True))


def results(answer: Any) -> dict[tuple[str, str, str], Any]:
    return {(one["kind"], one["name"], one["check"]): one for one in json.loads(answer["out"])["checks"]}


def test_the_own_tests_of_every_new_project_pass(answers: dict[str, Any]):
    assert answers["own tests"]["code"] == 0, answers["own tests"]["out"]
    assert len(CONTRACT) == len(KINDS) - 1 + len(OTHERS)


def test_a_new_compressor_passes_its_tests_and_the_contract_in_pytest(answers: dict[str, Any]):
    answer = answers["pytest"]
    assert answer["code"] == 0, answer["out"]
    assert "SKIPPED" not in answer["out"].replace("none are declared", ""), "the new stage applies to every model"


@pytest.mark.parametrize("kind", CONTRACT)
def test_every_new_project_keeps_the_contract(kind: str, answers: dict[str, Any]):
    answer = answers[f"check {kind}"]
    wrong = [one for one in results(answer).values() if one["result"] == "failed"]
    assert answer["code"] == 0 and not wrong, wrong or answer["err"]
    adds = {"catalogue": "model", **dict.fromkeys(OTHERS, "family")}.get(kind, kind)
    assert {one["kind"] for one in results(answer).values()} >= {"plugin", adds}


def test_a_language_model_of_random_weights_is_asked_to_write(answers: dict[str, Any]):
    """It is given a tokenizer to be asked with, so that nothing is left out but what it has not."""
    found = results(answers["check text"])
    unasked = {check for (kind, _, check), one in found.items() if one["result"] == "not applicable"}
    assert unasked == {"packaged weights", "padding"}, found  # it reads prompts one after the other
    assert found["model", "zoo-text-it:text-it-tiny", "generate"]["result"] == "ok"


def test_our_own_language_model_keeps_the_contract(answers: dict[str, Any]):
    answer = answers["ours"]
    assert answer["code"] == 0 and {one["result"] for one in results(answer).values()} == {"ok"}, answer


def failed(answers: dict[str, Any]) -> dict[tuple[str, str, str], str]:
    """(kind, name without its plugin, check) -> what is said, of every check that failed in the broken projects."""
    everything = {key: one for name in BROKEN for key, one in results(answers[name]).items()}
    return {
        (kind, name.partition(" on ")[0].partition(":")[2], check): one["reason"]
        for (kind, name, check), one in everything.items()
        if one["result"] == "failed"
    }


@pytest.mark.parametrize("what", CAUGHT)
def test_what_is_wrong_is_caught_by_the_check_of_that_name(what: str, answers: dict[str, Any]):
    kind, name, check, said = CAUGHT[what]
    reason = failed(answers)[kind, name, check]
    assert said in reason
    assert "\n" not in reason and "zoo/testing" not in reason


def test_nothing_else_fails(answers: dict[str, Any]):
    """What is right passes everything, and what is wrong in one way passes the checks of the others, but for what follows from it."""
    assert {answers[name]["code"] for name in BROKEN} == {1}
    expected = {(kind, name, check) for kind, name, check, _ in CAUGHT.values()}
    assert failed(answers).keys() - expected == FOLLOW
    every = {name.partition(" on ")[0].partition(":")[2] for other in BROKEN for _, name, _ in results(answers[other])}
    assert every.issuperset(RIGHT)


def test_a_plugin_that_says_nothing_of_itself_is_caught(answers: dict[str, Any]):
    found = {
        check: one["reason"] for (_, _, check), one in results(answers["bare"]).items() if one["result"] == "failed"
    }
    assert found["declarations"] == "registry.toml declares nothing: add a [[model]], a [[compressor]], ..."
    assert (
        found["import"]
        == "out_bare.plugin imports torch at once; register names as texts, and import inside what they name"
    )
    assert found["docs"].startswith("distribution out-bare names no licence; add license = ")


def test_the_table_says_what_was_checked_and_how_it_went(answers: dict[str, Any]):
    answer = answers["table"]
    assert answer["code"] == 0
    lines = answer["out"].splitlines()
    assert lines[0].split() == ["kind", "name", "check", "seconds", "result"]
    assert lines[1].split()[:3] == ["loss", "zoo-loss-it:loss-it-kl", "chunks"] and lines[1].endswith("ok")
    assert lines[2].startswith("zoo-loss-it: 1 checks in ") and lines[2].endswith("1 ok, 0 failed, 0 not applicable.")
    assert "checking loss zoo-loss-it:loss-it-kl" in answer["err"]


def test_what_is_not_there_to_check_names_the_nearest(answers: dict[str, Any]):
    assert answers["nothing"]["code"] == 2
    assert "There is nothing called 'chunk' to check. Did you mean 'chunks'?" in answers["nothing"]["err"]


def test_a_failing_item_shows_the_sentence_and_no_traceback_of_ours(answers: dict[str, Any]):
    answer = answers["broken pytest"]
    assert answer["code"] == 1
    assert "zoo-broken: plugin::registrations" in answer["out"]
    assert "has no attribute 'failing'" in answer["out"]
    assert "Traceback" not in answer["out"] and "perform" not in answer["out"]
    assert answers["no such plugin"]["code"] == 4
    assert "No plugin named 'zoo-brocken'. Did you mean 'zoo-broken'?" in answers["no such plugin"]["err"]


def test_the_pytest_plugin_costs_nothing_where_it_is_not_asked(tmp_path: Path):
    (tmp_path / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
    code = "import pytest, sys; code = pytest.main(['-q', '-p', 'no:cacheprovider', sys.argv[1]]); print(code, sorted({'torch', 'numpy', 'pydantic', 'typer'} & set(sys.modules)))"
    done = run(code, str(tmp_path), site=tmp_path)
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout
