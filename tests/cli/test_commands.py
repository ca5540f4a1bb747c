"""The commands as a user meets them: fresh processes, real files, exact sentences, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from outsiders import MODEL, install, zoo

COMMAND = '[[command]]\nname = "{name}"\nsummary = "Made up for a test"\n'

# A plugin with one command; its module runs `body`.
CODE = """
from zoo.hooks import hookimpl

@hookimpl
def register_commands(register):
    register({name!r}, {target!r})
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-code with random weights, saved."""
    import zoo

    return zoo.load("tiny-code", weights="random").save(tmp_path_factory.mktemp("saved") / "model")


def add_command(site: Path, name: str, body: str) -> None:
    plugin = f"out_{name}"
    code = CODE.format(name=name, target=f"{plugin}.made:command")
    (install(site, plugin, registry=COMMAND.format(name=name), code=code) / "made.py").write_text(body)


# --- list -------------------------------------------------------------------------------------------------------------


def test_list_is_readable_when_piped(tmp_path: Path):
    install(tmp_path, "out_long", registry=MODEL.format(name="a-model-with-a-very-long-name-" + "x" * 150, params=5))
    done = zoo("list", site=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["name", "params", "modality", "family", "task", "license", "summary"]
    assert any(line.startswith("tiny-code ") for line in lines)
    assert "x" * 150 in done.stdout and "Made up for a test" in done.stdout


def test_list_json_has_every_key():
    done = zoo("list", "--json")
    for model in json.loads(done.stdout):
        assert {"name", "family", "modality", "task", "params", "license", "hub", "paper", "plugin"} <= set(model)
    assert "tiny-code" in {model["name"] for model in json.loads(done.stdout)}


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["--max-params", "10k"], {"small"}),
        (["--license", "mit-0"], {"small", "large"}),
        (["--family", "none"], set()),
        (["--modality", "TEXT", "--family", "LLAMA", "--license", "mit-0"], {"small", "large"}),
        (["--license", "MIT-0", "--max-params", "1.5B"], {"small"}),
        (["--modality", "text", "--license", "MIT-0"], {"small", "large"}),
    ],
)
def test_list_filters(tmp_path: Path, args: list[str], found: set[str]):
    for name, params in (("small", 1_000), ("large", 2_000_000_000)):
        install(tmp_path, f"out_{name}", registry=MODEL.format(name=name, params=params).replace('"MIT"', '"MIT-0"'))
    done = zoo("list", "--json", *args, site=tmp_path)
    assert done.returncode == 0
    assert {model["name"] for model in json.loads(done.stdout)} == found


def test_list_says_which_filter_fits_nothing():
    done = zoo("list", "--modality", "txt")
    assert (done.returncode, done.stdout) == (0, "")
    assert (
        done.stderr
        == "No model has modality 'txt'. Did you mean 'text'? There is: text, text-to-image, vision-language.\n"
    )
    assert json.loads(zoo("list", "--modality", "txt", "--json").stdout) == []


# --- info -------------------------------------------------------------------------------------------------------------


def test_info_computes_memory_and_cache():
    facts = json.loads(zoo("info", "tiny-code", "--json").stdout)
    params, config = facts["params"], facts["config"]
    assert facts["memory_bytes"] == {"fp32": params * 4, "bf16": params * 2, "int8": params, "4-bit": params // 2}
    layers, heads, width = config["num_hidden_layers"], config["num_key_value_heads"], config["head_dim"]
    assert facts["kv_cache_bytes_per_token"] == 2 * layers * heads * width * 4 and facts["kv_cache_dtype"] == "float32"
    assert facts["weights"]


def test_info_counts_the_parameters_that_loading_gives():
    import zoo as library

    facts = json.loads(zoo("info", "tiny-code", "--json").stdout)
    assert facts["params"] == library.load("tiny-code", device="meta").params


def test_info_reads_an_artifact(artifact: Path):
    facts = json.loads(zoo("info", str(artifact), "--json").stdout)
    assert facts["name"] == "tiny-code" and facts["stages"] == "none"
    assert facts["bytes"] == json.loads((artifact / "zoo.json").read_text())["bytes"] == facts["params"] * 4
    assert (facts["dtype"], facts["stored"]) == ("float32", "float32")
    assert f"saved in {artifact}" in zoo("info", str(artifact)).stdout


def test_info_of_a_compressed_model_says_what_it_has_now(tmp_path: Path):
    import zoo_compress

    import zoo as library

    model = library.load("tiny-code", weights="random")
    zoo_compress.apply(model, "inherit", {"layers": "first:3"})
    zoo_compress.apply(model, "prune.structured", {"ffn": 384, "heads": 3})
    zoo_compress.apply(model, "quantize.int8")
    place = model.save(tmp_path / "model")
    model.save(place / "stages" / "01-inherit")  # as a run leaves it beside its result
    facts = json.loads(zoo("info", str(place), "--json").stdout)
    heads = model.anatomy.stack().blocks[0].attention
    assert facts["shape"] == {
        "layers": 3,
        "width": 192,
        "heads": 3,
        "kv_heads": heads.kv_heads,
        "head_dim": heads.head_dim,
        "ffn": 384,
        "vocabulary": model.spec.config["vocab_size"],
        "context": model.spec.config["max_position_embeddings"],
    }
    assert facts["bytes"] == model.bytes and facts["stages"] == "inherit, prune.structured, quantize.int8"
    assert facts["kv_cache_bytes_per_token"] == 3 * 2 * heads.kv_heads * heads.head_dim * 4
    assert facts["memory_bytes"] == {}  # the weights are packed: what they take is `bytes`
    assert f"{model.params:,}" in zoo("info", str(place)).stdout


def test_info_reads_a_plain_checkpoint(artifact: Path, tmp_path: Path):
    for file in artifact.iterdir():
        if file.name != "zoo.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    facts = json.loads(zoo("info", str(tmp_path), "--json").stdout)
    assert facts["params"] == json.loads(zoo("info", "tiny-code", "--json").stdout)["params"]
    assert facts["family"] == "transformers" and facts["modality"] == "text"


def test_info_of_a_damaged_manifest_is_one_sentence(tmp_path: Path):
    (tmp_path / "zoo.json").write_text("{")
    done = zoo("info", str(tmp_path))
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(rf"error: {tmp_path}/zoo\.json is damaged: .*\.\n", done.stderr)


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify_passes_what_is_as_saved(artifact: Path):
    done = zoo("verify", str(artifact))
    assert (done.returncode, done.stdout) == (0, f"{artifact}: every file is as saved.\n")
    found = json.loads(zoo("verify", str(artifact), "--json").stdout)
    assert found == {"path": str(artifact), "ok": True, "problems": []}


def test_verify_takes_the_name_of_a_packaged_model():
    done = zoo("verify", "tiny-code")
    assert done.returncode == 0 and done.stdout.endswith("weights/tiny-code: every file is as saved.\n"), done.stderr


def test_verify_finds_one_flipped_byte(artifact: Path, tmp_path: Path):
    for file in artifact.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damaged = bytearray((tmp_path / "model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(damaged)
    done = zoo("verify", str(tmp_path), "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert not found["ok"] and [problem["file"] for problem in found["problems"]] == ["model.safetensors"]
    assert zoo("verify", str(tmp_path)).stdout.startswith("model.safetensors: ")


# --- plugins ----------------------------------------------------------------------------------------------------------


def test_plugins_lists_the_builtin_ones_by_name():
    found = {plugin["name"]: plugin for plugin in json.loads(zoo("plugins", "--json").stdout)}
    assert {"zoo", "zoo_compress", "zoo_slm"} <= set(found)
    assert found["zoo_slm"]["declares"]["data"] == ["stdlib"] and found["zoo_slm"]["fault"] is None
    assert zoo("plugins", "list", "--json").stdout == zoo("plugins", "--json").stdout


def test_plugins_info_says_what_one_adds():
    done = zoo("plugins", "info", "zoo_compress")
    assert "compressor lowrank.svd  " in done.stdout
    assert json.loads(zoo("plugins", "info", "zoo_compress", "--json").stdout)["name"] == "zoo_compress"


def test_a_broken_plugin_is_one_line_and_the_rest_goes_on(tmp_path: Path):
    package = install(tmp_path, "out_broken", registry="[[model]]\n")
    fault = (
        f"{package / 'registry.toml'}, [[model]] 1: 'name' is missing. "
        "Needed keys: name, family, modality, task, params, license, summary."
    )
    done = zoo("list", site=tmp_path)
    assert done.returncode == 0 and "tiny-code" in done.stdout
    assert done.stderr == f"warning: plugin out_broken: {fault}\n"
    assert zoo("list", "-q", site=tmp_path).stderr == "" == zoo("-q", "list", site=tmp_path).stderr
    found = {plugin["name"]: plugin for plugin in json.loads(zoo("plugins", "--json", site=tmp_path).stdout)}
    assert found["out_broken"]["fault"] == fault
    strict = zoo("list", site=tmp_path, ZOO_STRICT="1")
    assert (strict.returncode, strict.stdout) == (1, "")
    assert strict.stderr == f"error: Plugin out_broken: {fault}\n"


def test_no_plugins_leaves_the_shell():
    done = zoo("plugins", "--json", ZOO_PLUGINS="")
    assert [plugin["name"] for plugin in json.loads(done.stdout)] == ["zoo"]
    done = zoo("plan", ZOO_PLUGINS="")
    assert (
        done.returncode == 2
        and done.stderr == "error: Command 'plan' comes with plugin zoo_compress, which ZOO_PLUGINS leaves out.\n"
    )
    assert zoo("list", ZOO_PLUGINS="").stderr == "The catalogue is empty.\n"


# --- wrong requests ---------------------------------------------------------------------------------------------------

TOO_MUCH = "--top-p 3: input should be less than or equal to 1."


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["info", "tiny-cod"], "No model named 'tiny-cod'. Did you mean 'tiny-code'? `zoo list` shows all {models}."),
        (
            ["run", "tiny-cod", "-p", "x"],
            "No model named 'tiny-cod'. Did you mean 'tiny-code'? `zoo list` shows all {models}.",
        ),
        (["info", "./no/such"], "There is no directory ./no/such, and no model of that name."),
        (["info", "."], ". holds no model: neither zoo.json nor config.json is in it."),
        (["run", "tiny-code"], "There is no prompt. Give one with --prompt TEXT, or pipe text in."),
        (
            ["eval", "tiny-code", "--task", "perplexit"],
            "No evaluator named 'perplexit'. Did you mean 'perplexity'? Evaluators: {evaluators}.",
        ),
        (["list", "--max-params", "big"], "'big' is not a parameter count. Write it like 135000000, 135M or 1.5B."),
        (["verify", "no-such-dir"], "There is no directory no-such-dir."),
        (
            ["verify", "smollm2-360m"],
            "smollm2-360m is a name of the catalogue, and none of its weights are packaged: name the directory of a saved model.",
        ),
        (["info", "mistral"], "No model named 'mistral'. `zoo list` shows all {models}."),
        (["run", "smollm2-360m", "-p", "x", "--top-p", "3"], TOO_MUCH),  # its weights are not here: nothing was loaded
        (["run", "smollm2-360m", "-p", "x", "--seed", "-1"], "--seed -1: input should be greater than or equal to 0."),
        (
            ["run", "smollm2-360m", "-p", "x", "--temperature", "-1"],
            "--temperature -1: input should be greater than or equal to 0.",
        ),
        (["run", "smollm2-360m", "-p", "x", "--temperature", "hot"], "--temperature hot: input should be a number."),
        (
            ["run", "smollm2-360m", "-p", "x", "--max-new-tokens", "1.5"],
            "--max-new-tokens 1.5: input should be a whole number.",
        ),
        (
            ["run", "smollm2-360m", "-p", "x", "--count", "2"],
            "count = 2: at temperature 0 all texts are the likeliest one; set a temperature, such as 1.",
        ),
        (["run", "timm:resnet18", "--image", "none.png"], "none.png does not exist."),
        (
            ["plugins", "info", "zoo_sl"],
            "No plugin named 'zoo_sl'. Did you mean 'zoo_slm'? `zoo plugins` shows all {plugins}.",
        ),
        (["lst"], "No command named 'lst'. Did you mean 'list'? Commands: {commands}."),
    ],
)
def test_a_wrong_request_is_one_sentence(tmp_path: Path, args: list[str], sentence: str):
    found = json.loads(zoo("plugins", "--json", site=tmp_path).stdout)
    names = {kind: [name for plugin in found for name in plugin["declares"][kind]] for kind in found[0]["declares"]}
    done = zoo(*args, site=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: {}\n".format(
        sentence.format(
            models=len(names["model"]),
            plugins=len(found),
            evaluators=", ".join(names["evaluator"]),
            commands=", ".join(names["command"]),
        )
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["list", "--modalty", "x"], "--modality"),
        (["info"], "MODEL"),
        (["plugins", "inf"], "'info'"),
        (["--nope"], "--nope"),
        (["run", "x", "--max-new-token", "0"], "--max-new-tokens"),
    ],
)
def test_wrong_options_are_refused_before_any_work(args: list[str], says: str):
    done = zoo(*args)
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("error: ") and says in first
    assert second.endswith("--help` shows how it is used.")


def test_an_unexpected_error_is_one_line_and_v_shows_the_traceback(tmp_path: Path):
    add_command(tmp_path, "crash", 'def command() -> None:\n    "Crash."\n    raise ValueError("two\\nlines")\n')
    done = zoo("crash", site=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == "error: unexpected ValueError: two lines, in plugin out_crash (run again with -v for the traceback)\n"
    )
    for args in (["-v", "crash"], ["crash", "-v"]):
        done = zoo(*args, site=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith("Traceback") and done.stderr.endswith(
            "error: unexpected ValueError: two lines, in plugin out_crash\n"
        )


def test_an_interrupt_is_a_sentence_and_130(tmp_path: Path):
    body = 'import time\n\ndef command() -> None:\n    "Wait."\n    print("waiting", flush=True)\n    time.sleep(60)\n'
    add_command(tmp_path, "wait", body)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "zoo", "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "error: interrupted before the work was done.\n")


def test_an_interrupt_that_python_makes_another_error_of_is_one(tmp_path: Path):
    """As what is raised while a class is made: in an import, for example."""
    body = (
        "import os, signal\n\nclass Field:\n    def __set_name__(self, owner, name):\n        os.kill(os.getpid(), signal.SIGINT)\n"
        '        [None for _ in range(1000)]\n\ndef command() -> None:\n    "Make."\n    type("Made", (), {"field": Field()})\n'
    )
    add_command(tmp_path, "make", body)
    done = zoo("make", site=tmp_path)
    assert (done.returncode, done.stderr) == (130, "error: interrupted before the work was done.\n")


def test_a_reader_that_leaves_is_no_error(tmp_path: Path):
    body = 'def command() -> None:\n    "Print much."\n    for i in range(200000):\n        print(i)\n'
    add_command(tmp_path, "much", body)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "zoo", "much"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == ""


# --- the shell --------------------------------------------------------------------------------------------------------


def test_a_full_disk_behind_stdout_is_a_sentence():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "zoo", "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (2, "error: the output cannot be written: No space left on device.\n")


def test_help_lists_declared_commands_without_importing_them(tmp_path: Path):
    install(tmp_path, "out_help", registry=COMMAND.format(name="wonder"), code="raise SystemExit('imported')")
    for args in (["--help"], ["-h"], []):
        done = zoo(*args, site=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        for name in (
            "list",
            "info",
            "run",
            "eval",
            "bench",
            "verify",
            "plugins",
            "plan",
            "compress",
            "inspect",
            "wonder",
        ):
            assert re.search(rf"^  {name} +\w", done.stdout, re.MULTILINE), name
        assert "..." not in done.stdout.partition("Commands:")[2]
    done = zoo("wonder", site=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "error: Plugin out_help cannot be used: out_help.plugin cannot be imported: SystemExit: imported\n",
    )


def test_a_plan_prints_itself_and_no_warning_of_a_library():
    """What a config class warns of when it is read is nothing to the user."""
    done = zoo("plan", str(Path(__file__).parents[2] / "examples" / "quickstart.toml"))
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("Plan of tiny-code-small:")


@pytest.mark.parametrize(
    "name", ["list", "info", "run", "eval", "bench", "verify", "plugins", "plan", "compress", "inspect"]
)
def test_every_command_has_help_and_the_shared_options(name: str):
    done = zoo(name, "-h")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: zoo {name}" in done.stdout and "--verbose" in done.stdout and "--quiet" in done.stdout


def test_a_clashing_command_is_reached_by_its_plugin(tmp_path: Path):
    add_command(tmp_path, "list", 'def command() -> None:\n    "Another."\n    print("another")\n')
    assert "tiny-code" in zoo("list", site=tmp_path).stdout
    assert zoo("out_list:list", site=tmp_path).stdout == "another\n"
    assert "command 'list' is already declared by plugin zoo" in zoo("list", site=tmp_path).stderr


def test_version():
    assert re.fullmatch(r"zoo \d+\.\d+\.\d+\S*\n", zoo("--version").stdout)


def test_completion_knows_commands_and_models():
    def complete(words: str) -> list[str]:
        done = zoo(_ZOO_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1))
        return done.stdout.split()

    assert complete("zoo ins") == ["inspect"]
    assert complete("zoo info tiny-c") == ["tiny-code"]
    assert "--max-params" in complete("zoo list --m")
    assert complete("zoo plugins info zoo_sl") == ["zoo_slm"]
    assert zoo("--show-completion", "bash").returncode in (0, 2)


def on_a_terminal(*arguments: str, **env: str) -> str:
    """What a Python with these arguments writes on a terminal."""
    import pty

    master, slave = pty.openpty()
    inherited = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM")}
    with subprocess.Popen(
        [sys.executable, *arguments],
        stderr=slave,
        stdin=slave,
        stdout=slave,
        env={**inherited, "TERM": "xterm", **env},
    ):
        os.close(slave)
        time.sleep(0.1)
        text = b""
        while True:
            try:
                piece = os.read(master, 4096)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            text += piece
    os.close(master)
    return text.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_colour_only_on_a_terminal_that_wants_it():
    assert "\x1b[31merror:\x1b[0m No command" in on_a_terminal("-m", "zoo", "lst")
    assert "\x1b" not in on_a_terminal("-m", "zoo", "lst", NO_COLOR="1")
    assert "\x1b" not in zoo("lst").stderr


TABLE = """
from zoo.cli.output import print_table
rows = [("prune.structured", "1,234,567", "12.34 MB", "a long remark on it"), ("original", "512", "8.1 MB", "none")]
print_table(("use", "parameters", "on disk", "remark"), rows, right=("parameters", "on disk"))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("width", [20, 30, 40, 50, 60, 80])
def test_no_terminal_is_too_narrow_for_names_and_numbers(width: int):
    shown = on_a_terminal("-c", TABLE, COLUMNS=str(width), NO_COLOR="1")
    for whole in ("prune.structured", "1,234,567", "12.34 MB", "512", "8.1 MB", "remark", "none"):
        assert whole in shown, f"{whole} is cut:\n{shown}"


# --- run, eval, bench: these need the packaged weights ----------------------------------------------------------------


def test_run_streams_a_continuation():
    done = zoo("run", "tiny-code", "-p", "import ", "--max-new-tokens", "8")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_run_reads_stdin_and_prints_json():
    given = zoo("run", "tiny-code", "-p", "def ", "--max-new-tokens", "8", "--json")
    piped = zoo("run", "tiny-code", "--max-new-tokens", "8", "--json", stdin="def ")
    assert json.loads(given.stdout)["text"] == json.loads(piped.stdout)["text"]
    streamed = zoo("run", "tiny-code", "-p", "def ", "--max-new-tokens", "8").stdout
    assert streamed == json.loads(given.stdout)["text"] + "\n"


def test_run_is_reproducible_by_its_seed():
    def sample(seed: str) -> str:
        return zoo(
            "run", "tiny-code", "-p", "x", "--temperature", "1.5", "--seed", seed, "--max-new-tokens", "16"
        ).stdout

    assert sample("1") == sample("1") != sample("2")


def test_run_makes_several_texts():
    asked = ("run", "tiny-code", "-p", "def ", "--temperature", "1.5", "--max-new-tokens", "8", "--count", "2")
    texts = json.loads(zoo(*asked, "--json").stdout)["text"]
    assert len(texts) == 2 and texts[0] != texts[1]
    assert zoo(*asked).stdout == f"--- 1 of 2 ---\n{texts[0]}\n--- 2 of 2 ---\n{texts[1]}\n"


def test_eval_gives_a_perplexity():
    done = zoo("eval", "tiny-code", "--data", "stdlib:test[:4]", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["model"] == "tiny-code" and set(found["tasks"]) == {"perplexity"}
    assert 1 < found["tasks"]["perplexity"]["perplexity"]["value"] < 4096


def test_bench_gives_figures():
    done = zoo("bench", "tiny-code", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["tasks"]
    assert found["speed"] and 10**7 < found["memory"]["peak_rss_bytes"]["value"] < 10**10


def test_figures_are_a_table():
    done = zoo("eval", "tiny-code", "--data", "stdlib:test[:2]")
    head, names, *rows = done.stdout.splitlines()
    assert head == "tiny-code on stdlib:test[:2], 2 records", done.stderr
    assert names.split() == ["figure", "value", "interval", "unit", "n", "better"]
    assert re.fullmatch(r"bits per byte +[\d.]+ +(±[\d.]+|[\d.]+ to [\d.]+)  bit/B  \d+ windows  lower", rows[0])
    assert re.fullmatch(r"perplexity +[\d.]+ +(±[\d.]+|[\d.]+ to [\d.]+) +\d+ windows  lower", rows[1])
    done = zoo("eval", "tiny-code", "--data", "stdlib:test[:1]", "--task", "accuracy")
    assert done.stderr == "error: accuracy is for image classifiers; tiny-code is text.\n"
    done = zoo("bench", "tiny-code")
    head, names, *rows = done.stdout.splitlines()
    assert head.startswith("tiny-code on ") and head.endswith((" thread", " threads")), done.stderr
    assert [row.split("  ")[0] for row in rows] == ["prefill", "decode", "peak memory"]
    assert "token/s" in rows[0] and "3 passes" in rows[0] and rows[2].split()[-2:] == ["MB", "lower"]
