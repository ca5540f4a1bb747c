"""Mutated recipes, registries, manifests and GGUF files: only clean errors, in bounded time and memory, and nothing else happens.

    python tests/stress/fuzz.py [--cases 20000] [--seed 0] [--kinds recipe,registry,manifest,gguf] [--corpus DIR] [--json FILE]

A case is a valid document, changed: keys dropped, doubled, renamed, values of other types, extreme numbers, deep nesting,
odd characters, bytes flipped, the text cut. It is given to what reads such documents (see `Readers`). Whatever is not a
`ZooError` of one printable line, takes more than six seconds of processor time (a plan runs every stage on shapes) or 200 MB, writes a file, starts a process,
opens a socket, imports a module that the document names, or moves a random generator, is a finding: hypothesis shrinks it,
and it is kept in the corpus, which the test suite runs (test_fuzz.py).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.dont_write_bytecode = True
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "NO_COLOR": "1"}

import numpy as np  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from zoo.artifact.manifest import manifest_text  # noqa: E402
from zoo.errors import ZooError, one_line  # noqa: E402

KINDS = ("recipe", "registry", "manifest", "gguf")


def sealed(data: Any) -> str:
    """A manifest whose seal fits, so that what is behind the seal is read too."""
    try:
        return manifest_text(data)
    except (ValueError, TypeError, AttributeError):
        return json.dumps(data)


CORPUS = Path(__file__).parent / "corpus"
SECONDS, MEGABYTES, CHARACTERS = 6.0, 200, 1000

# --- documents --------------------------------------------------------------------------------------------------------

PRUNING = """
[recipe]
name = "pruned"
seed = 3
summary = "a smaller one"

[model]
name = "./model"
dtype = "float32"
stored = "bfloat16"

[data]
train = "texts[:4]"
calibration = "texts[:2]"
test = "texts[4:]"

[[stage]]
use = "inherit"
layers = [0, 1, 3]
target = "language"

[[stage]]
use = "prune.structured"
ffn = 48
heads = 0.5
importance = "activation"
samples = 4
length = 32

[[stage]]
use = "prune.magnitude"
sparsity = 0.5
target = "language.blocks[1:]"

[[stage]]
use = "quantize.int8"
skip = ["*.down_proj"]

[evaluate]
tasks = ["perplexity"]
baselines = ["xz"]
prompts = ["def f(x):"]
control = true
speed = { prefill = 16, decode = 4, repeats = 1 }

[evaluate.perplexity]
max_tokens = 400
"""
FACTORS = """
[recipe]
name = "factored"

[model]
name = "./model"
weights = "random"

[data]
calibration = "texts[:50%]"

[[stage]]
use = "share.ffn"
start = "first"
target = "language.blocks[:2]"

[[stage]]
use = "lowrank.svd"
rank = 6
whiten = true
target = "language.attention"
batch = 2

[[stage]]
use = "quantize.nf4"
blocksize = 64
nested = true
embedding = true

[evaluate]
tasks = []
speed = false
"""
LEARNING = """
[recipe]
name = "learnt"

[model]
name = "./model"

[data]
train = "texts[:4]"

[[stage]]
use = "distill"
teacher = "./model"
loss = [{ use = "kl", weight = 1.0, temperature = 2.0 }, { use = "hidden", layers = "last" }]
only = ["model"]
steps = 6
batch = 2
length = 16
lr = 1e-3
warmup = 1
decay = 0.3
decay_shape = "cosine"

[evaluate]
tasks = []
speed = false
"""
REGISTRY = """
api = ">=1"

[[model]]
name = "strange"
family = "transformers"
modality = "text"
task = "causal-lm"
params = 12345
license = "Apache-2.0"
summary = "A strange model"
hub = "nobody/strange"
revision = "0123456789abcdef0123456789abcdef01234567"
sha256 = { "model.safetensors" = "%s" }
paper = "2404.00001"
dtype = "bfloat16"
config = { model_type = "llama", hidden_size = 32, num_hidden_layers = 2, vocab_size = 96, num_attention_heads = 4, intermediate_size = 64 }

[[model]]
name = "plain"
family = "odd"
modality = "vision"
task = "image-classification"
params = 0
license = "MIT"
summary = "Nothing much"
packaged = "weights/plain"

[[family]]
name = "odd"
summary = "An odd family"
modality = "vision"
recognises = ["odd.json", "config.json:oddness"]
prefix = "odd"
task = "image-classification"
needs = ["torch"]

[[compressor]]
name = "prune.oddly"
summary = "Prune oddly"

[[evaluator]]
name = "oddity"
summary = "How odd"

[[data]]
name = "odds"
summary = "Odds and ends"

[[command]]
name = "odder"
summary = "Odder and odder"
""" % ("0" * 64)
EVIL = [
    "../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "os:system",
    "__import__('os').system('true')",
    "\x1b[31mred\x1b[0m",
    "\x07\x08\x7f",
    "a\nb\r\nc",
    "\u202eevil",
    "\ufeff",
    "\u2028",
    "é" * 50,
    "🙂",
    "x" * 5000,
    "%s{0}{name}",
    "stage.1.use",
    "texts[:0]",
    "texts[9:1]",
    "texts[:1000000000000]",
    "texts[50%:10%]",
    "hub:a/b",
    "stdlib:nothing",
    ".",
    "..",
    "~",
    "",
    " ",
    "language.blocks[:-99999999999]",
    "language.blocks[99999999999:]",
    "first:99999999999",
    "every:0",
    "zoo_slm:tiny-code",
    "torch",
    "antigravity",
    "this",
]


@dataclass
class Document:
    """A valid document: its text (of a GGUF file, its bytes as Latin-1), how to parse and write it, and where it is read."""

    kind: str
    name: str
    text: str
    path: Path
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        return self.text.encode("latin-1" if self.kind == "gguf" else "utf-8")

    @property
    def data(self) -> Any:
        return json.loads(self.text) if self.kind == "manifest" else tomllib.loads(self.text)

    def written(self, data: Any) -> bytes:
        text = sealed(data) if self.kind == "manifest" else toml(data)
        return text.encode(errors="surrogatepass")


def toml(data: Any) -> str:
    """Write nested values as TOML; what it has no word for is written so that reading it fails."""
    if not isinstance(data, dict):
        return _inline(data)
    plain = [f"{_key(key)} = {_inline(value)}" for key, value in data.items() if not _is_table(value)]
    tables = [piece for key, value in data.items() if _is_table(value) for piece in _tables(key, value)]
    return "\n".join([*plain, *tables]) + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
    )


def _tables(key: Any, value: Any) -> list[str]:
    opened, closed = ("[", "]") if isinstance(value, dict) else ("[[", "]]")
    bodies = [value] if isinstance(value, dict) else value
    return [
        "\n".join([f"\n{opened}{_key(key)}{closed}", *(f"{_key(k)} = {_inline(v)}" for k, v in body.items())])
        for body in bodies
    ]


def _key(key: Any) -> str:
    return json.dumps(str(key), ensure_ascii=False).replace("\x7f", "\\u007f")


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_inline(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(value).replace("inf", "inf") if isinstance(value, int | float) else _key(value)


# --- mutations --------------------------------------------------------------------------------------------------------

numbers = st.sampled_from(
    [
        0,
        1,
        -1,
        2,
        3,
        7,
        64,
        2**31,
        2**63 - 1,
        2**63,
        2**64,
        -(2**63),
        10**18,
        10**30,
        10**400,
        0.0,
        -0.0,
        0.5,
        1.0,
        1e-300,
        1e300,
        1.5,
        float("nan"),
        float("inf"),
        float("-inf"),
    ]
)
words = st.sampled_from(EVIL) | st.text(max_size=12)
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
places = st.integers(0, 2**16)
changes = st.one_of(
    st.tuples(st.just("drop"), places),
    st.tuples(st.just("double"), places),
    st.tuples(st.just("rename"), places, words),
    st.tuples(st.just("set"), places, values),
    st.tuples(st.just("set"), places, numbers),
    st.tuples(st.just("move"), places, places),
    st.tuples(st.just("add"), places, words, values),
    st.tuples(st.just("nest"), places, st.sampled_from([1, 10, 100, 300])),
    st.tuples(st.just("retype"), places),
    st.tuples(st.just("edit"), places, places, words),
    st.tuples(st.just("scale"), places, numbers),
)
damages = st.one_of(
    st.tuples(st.just("flip"), places, st.integers(0, 7)),
    st.tuples(st.just("cut"), places),
    st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("repeat"), places, st.integers(1, 2000)),
    st.tuples(
        st.just("insert"),
        places,
        st.sampled_from([b"[" * 2000, b"[" * 100_000, b'{"a":' * 50_000, b"{a=" * 5000, b"[" * 900 + b"]" * 900]),
    ),
)
cases = st.tuples(
    st.integers(0, 99),
    st.one_of(
        st.tuples(st.lists(changes, min_size=1, max_size=3), st.just([])),
        st.tuples(st.lists(changes, max_size=1), st.lists(damages, min_size=1, max_size=2)),
    ),
)


def mutated(document: Document, changing: list[Any], damaging: list[Any]) -> bytes:
    """Apply changes to the parsed document, then damages to its bytes."""
    content = _changed(document, changing) if changing else document.content
    for damage in damaging:
        content = _damage(content, *damage)
    return content


def _changed(document: Document, changing: list[Any]) -> bytes:
    """Change the parsed document and write it; what cannot be written stays as it was."""
    if document.kind == "gguf":
        return _renumbered(document.content, changing)
    holder = {"": document.data}
    limit = sys.getrecursionlimit()
    sys.set_int_max_str_digits(0)
    sys.setrecursionlimit(10_000)
    try:
        for change in changing:
            _change(holder, *change)
        return document.written(holder[""])
    except (TypeError, ValueError):
        return document.content
    finally:
        sys.set_int_max_str_digits(4300)
        sys.setrecursionlimit(limit)


def _renumbered(content: bytes, changing: list[Any]) -> bytes:
    """Put extreme numbers where some stand: counts, lengths, dimensions and offsets are eight bytes, types four."""
    for _, at, *more in changing:
        number = next((value for value in more if isinstance(value, int) and not isinstance(value, bool)), 2**32)
        width = 4 if at % 3 == 0 else 8
        place = at % (len(content) + 1)
        content = content[:place] + (number % 2 ** (8 * width)).to_bytes(width, "little") + content[place + width :]
    return content


def _spots(holder: Any) -> list[tuple[Any, Any]]:
    """Every place of a value: (container, key), the deeper the later."""
    found, waiting = [], [holder]
    while waiting:
        one = waiting.pop(0)
        for key in list(one) if isinstance(one, dict) else range(len(one)):
            found.append((one, key))
            if isinstance(one[key], dict | list) and len(found) < 3000:
                waiting.append(one[key])
    return found


def _change(holder: Any, how: str, at: int, *more: Any) -> None:
    spots = _spots(holder)
    container, key = spots[at % len(spots)]
    value = container[key]
    if how == "drop" and key != "":
        del container[key]
    elif how == "double":
        container.append(copy.deepcopy(value)) if isinstance(container, list) else container.update(
            {f"{key}2": copy.deepcopy(value)}
        )
    elif how == "rename" and isinstance(container, dict) and key != "":
        container[more[0]] = container.pop(key)
    elif how == "set":
        container[key] = copy.deepcopy(more[0])
    elif how == "move":
        other, place = spots[more[0] % len(spots)]
        container[key] = copy.deepcopy(other[place])
    elif how == "add" and isinstance(value, dict | list):
        value.append(more[1]) if isinstance(value, list) else value.update({more[0]: more[1]})
    elif how == "nest":
        for _ in range(more[0]):
            value = [value] if at % 2 else {"a": value}
        container[key] = value
    elif how == "retype":
        container[key] = str(value) if not isinstance(value, str) else [value] if at % 2 else len(value)
    elif how == "edit" and isinstance(value, str):
        place = more[0] % (len(value) + 1)
        container[key] = value[:place] + more[1] + value[place + at % 2 :]
    elif how == "scale" and isinstance(value, int | float):
        with contextlib.suppress(OverflowError):
            container[key] = value * more[0] if at % 2 else value + more[0]


def _damage(content: bytes, how: str, at: int, *more: Any) -> bytes:
    place = at % (len(content) + 1)
    if how == "cut":
        return content[:place]
    if how == "insert":
        return content[:place] + more[0] + content[place:]
    if how == "repeat":
        return content[:place] + content[place : place + 1] * more[0] + content[place:]
    place = at % max(1, len(content))
    return content[:place] + bytes(byte ^ (1 << more[0]) for byte in content[place : place + 1]) + content[place + 1 :]


# --- readers ----------------------------------------------------------------------------------------------------------


class Readers:
    """A folder with a model, texts, artifacts and an installed plugin; and what reads each kind of document there."""

    def __init__(self, folder: Path) -> None:
        from contract import cases as contract
        from tiny import checkpoint, texts

        self.folder = folder
        os.chdir(folder)
        with quiet():
            checkpoint(folder / "model", num_hidden_layers=4)
        texts(folder / "texts")
        self.documents = {
            "recipe": [
                Document("recipe", name, text, folder / "recipe.toml")
                for name, text in (("pruning", PRUNING), ("factors", FACTORS), ("learning", LEARNING))
            ]
        }
        self.documents["registry"] = [Document("registry", "odd", REGISTRY, self._plugin())]
        self.documents["manifest"] = list(self._artifacts(contract))
        self.documents["gguf"] = [self._gguf()]

    def _gguf(self) -> Document:
        """A file of a small model, nearly all of it header."""
        import transformers
        from gguf_writer import write
        from tiny import VOCABULARY, tokenizer

        shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=VOCABULARY, **shape))
        file = write(self.folder / "model.gguf", model, "llama", tokenizer=tokenizer())
        return Document("gguf", "llama", file.read_bytes().decode("latin-1"), file)

    def _plugin(self) -> Path:
        """Install a plugin with a catalogue."""
        site = self.folder / "site"
        about = site / "zoo_odd-1.0.dist-info"
        (site / "zoo_odd").mkdir(parents=True)
        about.mkdir()
        (site / "zoo_odd" / "__init__.py").write_text("")
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: zoo-odd\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text("[zoo.catalog]\nzoo_odd = zoo_odd\n")
        (about / "RECORD").write_text("")
        sys.path.insert(0, str(site))
        return site / "zoo_odd" / "registry.toml"

    def _artifacts(self, contract: Any) -> Iterator[Document]:
        """Three saved models: a language model, a pruned convolutional net, a vision-language model."""
        from zoo_compress.recipe.runner import apply

        made = {
            "llama": (
                "llama-tied",
                [
                    contract.stage("inherit", layers=[0, 2, 3]),
                    contract.SHARE,
                    contract.stage("lowrank.svd", ratio=None, rank=6, target="language.attention"),
                    contract.stage("quantize.nf4", embedding=True),
                ],
            ),
            "qwen3": (
                "qwen3",
                [("prune.structured", {"ffn": 0.25, "heads": 0.5, "width": 24}), contract.MAGNITUDE, contract.INT8],
            ),
            "resnet": ("resnet", [("prune.structured", {"ratio": 0.25, "target": "all"}), contract.INT8]),
            "vlm": ("tiny-vlm", [("prune.structured", {"ffn": 0.25}), contract.INT8]),
            "t2i": (
                "tiny-t2i",
                [
                    ("prune.structured", {"ratio": 0.25, "target": "unet"}),
                    contract.stage("share.ffn", target="unet.mid"),
                    contract.INT8,
                ],
            ),
        }
        for name, (base, stages) in made.items():
            with quiet():
                model = contract.base(base, self.folder / "bases")
                for use, options in stages:
                    apply(model, use, options, contract.context(model))
                place = model.save(self.folder / name)
            tensors = {tensor: tuple(value.shape) for tensor, value in model.tensors().items()}
            yield Document(
                "manifest",
                name,
                (place / "zoo.json").read_text(),
                place / "zoo.json",
                {"tensors": tensors, "aliases": model.aliases()},
            )

    def read(self, document: Document, content: bytes, watch: Watch | None = None) -> str:
        """Give a mutated document to all that reads such, watched; say how far it came."""
        reader: Callable[[Document], str] = getattr(self, f"read_{document.kind}")
        document.path.write_bytes(content)
        try:
            return watch.run(lambda: reader(document)) if watch else reader(document)
        finally:
            document.path.write_bytes(document.content)

    def read_recipe(self, document: Document) -> str:
        from zoo_compress.recipe.planner import plan
        from zoo_compress.recipe.recipe import Recipe

        plan(Recipe.load(document.path))
        return "planned"

    def read_registry(self, document: Document) -> str:
        from zoo import catalog
        from zoo.plugins import declarations, kinds
        from zoo.plugins.names import of_kind, recognise, refresh

        refresh()
        try:
            declared = declarations.read(document.path, plugin="zoo_odd")
        except ZooError as error:
            self.command("list")  # goes on without it
            raise error
        for spec in catalog.models():
            catalog.info(spec.name)
        for kind in kinds.KINDS:
            of_kind(kind)
        self.command("list")
        self.command("list", "--json")
        self.command("plugins")
        for spec in declared.models[:2]:
            self.command("info", spec.name)
        recognise(self.folder / "model")
        return "listed"

    def read_manifest(self, document: Document) -> str:
        import zoo
        from zoo.artifact import store
        from zoo.artifact.manifest import read_manifest

        folder = document.path.parent
        said = self.command("info", str(folder)), self.command("verify", str(folder))
        read_manifest(folder)
        problems = store.verify(folder)
        model = zoo.load(folder, device="meta")
        found = {tensor: tuple(value.shape) for tensor, value in model.tensors().items()}, model.aliases()
        if found != (document.extra["tensors"], document.extra["aliases"]):
            raise Finding(
                "another model",
                f"{document.name}: tensors differ from those in the files: {sorted(set(found[0].items()) ^ set(document.extra['tensors'].items()))[:3]}",
            )
        if not problems:
            zoo.load(folder)
        return "loaded" if not problems else f"skeleton, files wrong {said and ''}".strip()

    def read_gguf(self, document: Document) -> str:
        import zoo

        zoo.load(document.path, device="meta")
        self.command("info", str(document.path))
        zoo.load(document.path)
        return "loaded"

    def command(self, *args: str) -> int:
        """Run a command here; whatever it prints is printable, and an error is one line."""
        from zoo import cli

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = int(cli.main(list(args)))
        printed = out.getvalue() + err.getvalue()
        if "unexpected" in err.getvalue() and "run again with -v" in err.getvalue():
            raise Finding(f"zoo {args[0]}: unexpected error", err.getvalue().strip())
        if bad := next((c for c in printed if not c.isprintable() and c != "\n"), ""):
            raise Finding(f"zoo {args[0]}: prints a control character", f"{bad!r} in {printed[:300]!r}")
        if longest := max((len(line) for line in err.getvalue().splitlines()), default=0) > CHARACTERS + 200:
            raise Finding(f"zoo {args[0]}: prints a line of {longest} characters", err.getvalue()[:200])
        return code


# --- watching ---------------------------------------------------------------------------------------------------------


class Finding(Exception):
    """Something that must not happen; `what` tells it from other findings."""

    def __init__(self, what: str, text: str = "") -> None:
        super().__init__(f"{what}: {text}")
        self.what = what


class Overtime(BaseException):
    """Two seconds of processor time have gone."""


class Watch:
    """Sees what a case does beside raising: files, processes, sockets, imports, random state, time, memory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.on, self.seen = str(folder), False, list[str]()
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGPROF, self._over)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if (
            event == "open"
            and isinstance(args[0], str | bytes)
            and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            if os.fsdecode(args[0]) != os.devnull:
                self.seen.append(f"opens {args[0]!r} for writing")
        elif event.startswith(
            (
                "subprocess.",
                "os.system",
                "os.exec",
                "os.posix_spawn",
                "os.fork",
                "socket.connect",
                "socket.getaddrinfo",
                "pickle.find_class",
                "os.mkdir",
                "os.rename",
                "os.remove",
                "os.rmdir",
                "os.link",
                "os.symlink",
                "shutil.",
                "ctypes.dlopen",
            )
        ):
            # a folder that is tried out, see why_unwritable
            if not (event in ("os.mkdir", "os.rmdir") and f"{os.sep}.zoo." in str(args[0])):
                self.seen.append(f"{event} {args[:2]!r}")
        elif event == "import" and args[0] in ("antigravity", "this", "os:system"):
            self.seen.append(f"imports {args[0]}")

    def _over(self, *_: Any) -> None:
        raise Overtime

    def run(self, work: Callable[[], str]) -> str:
        """Do the work; return what came of it, or raise a Finding."""
        before, peak = _random_state(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.seen.clear()
        self.on = True
        # again, where a callback of the collector swallows it
        signal.setitimer(signal.ITIMER_PROF, SECONDS, SECONDS / 8)
        try:
            outcome = work()
        except ZooError as error:
            outcome = _refused(error)
        except Overtime as error:
            raise Finding(f"takes more than {SECONDS:g} s, {_place(error)}") from None
        except Finding:
            raise
        except BaseException as error:
            raise Finding(f"{type(error).__name__} {_place(error)}", str(error)[:300]) from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.on = False
        if self.seen:
            raise Finding(self.seen[0].split(" ")[0], "; ".join(self.seen)[:500])
        if _random_state() != before:
            raise Finding("moves a random generator")
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1000
        if grown > MEGABYTES:
            raise Finding(f"takes {grown:.0f} MB", outcome)
        return outcome


def _refused(error: ZooError) -> str:
    said = one_line(error)
    if not said or len(said) > CHARACTERS:
        raise Finding(f"an error of {len(str(error))} characters, {_place(error)}", said[:300])
    if bad := next((c for c in said if not c.isprintable()), ""):
        raise Finding(f"an error with a control character, {_place(error)}", f"{bad!r} in {said[:300]!r}")
    return f"refused: {type(error).__name__}"


def _place(error: BaseException) -> str:
    """The innermost line of ours that an error came through."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "zoo" in frame.filename and "stress" not in frame.filename
    ]
    return f"in {Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "nowhere of ours"


def _random_state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return random.getstate(), (name, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass
class Fuzz:
    """Runs cases of one kind until there were enough; every finding is met once, and shrunk."""

    readers: Readers
    watch: Watch
    corpus: Path
    counts: Counter[str] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)

    def document(self, kind: str, choice: int) -> Document:
        """Of recipes one in ten trains, since planning that takes long."""
        documents = self.readers.documents[kind]
        if kind == "recipe":
            return documents[2 if choice >= 90 else choice % 2]
        return documents[choice % len(documents)]

    def replay(self, kind: str, folder: Path) -> None:
        """Read what was found earlier and kept: it must be refused now."""
        documents = {document.name: document for document in self.readers.documents[kind]}
        for file in sorted(folder.glob(f"{kind}-*")):
            name = file.name.split("-")[1]
            try:
                outcome = self.readers.read(documents[name], file.read_bytes(), self.watch)
                if not outcome.startswith("refused"):
                    raise Finding(f"{file.name} is not refused", outcome)
                self.counts[f"{kind}: found earlier, {outcome}"] += 1
            except Finding as finding:
                self.findings[finding.what] = str(finding)
                print(f"FOUND AGAIN {file.name}: {str(finding)[:700]}", flush=True)

    def run(self, kind: str, count: int, *, begin: int) -> None:
        left = count
        while left > 0:
            done = self._batch(kind, left, begin=begin + len(self.findings))
            left -= max(1, done)

    def _batch(self, kind: str, count: int, *, begin: int) -> int:
        """Run cases until one is a new finding, which hypothesis then shrinks; return how many there were before that."""
        ran, found = 0, dict[str, tuple[Document, bytes, Finding]]()

        @seed(begin)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            report_multiple_bugs=False,
        )
        @given(cases)
        def one(case: Any) -> None:
            nonlocal ran
            choice, (changing, damaging) = case
            document = self.document(kind, choice)
            content = mutated(document, changing, damaging)
            ran += not found
            try:
                outcome = self.readers.read(document, content, self.watch)
            except Finding as finding:
                if finding.what in self.findings:
                    self.counts[f"{kind}: met again: {finding.what[:60]}"] += not found
                    return
                if found and finding.what not in found:
                    return  # another one, while this one is shrunk
                found[finding.what] = document, content, finding
                raise
            self.counts[f"{kind}: {outcome}"] += not found

        with contextlib.suppress(Finding):
            one()
        for what, (document, content, finding) in found.items():
            self.findings[what] = str(finding)
            self._keep(document, content, finding)
        return ran

    def _keep(self, document: Document, content: bytes, finding: Finding) -> None:
        self.corpus.mkdir(parents=True, exist_ok=True)
        suffix = document.path.suffix
        name = f"{document.kind}-{document.name}-{hashlib.sha256(content).hexdigest()[:8]}{suffix}"
        (self.corpus / name).write_bytes(content)
        print(
            f"FOUND {document.kind} {document.name}: {str(finding)[:700]}\n  kept as {self.corpus / name}", flush=True
        )


def prepared(folder: Path) -> tuple[Readers, Watch]:
    """Everything the cases need, imported and run once, so that no case pays for it."""
    os.environ["ZOO_CONFIG_DIR"] = str(folder / "config")
    os.environ["HF_HOME"] = str(folder / "hf")
    readers = Readers(folder)
    with quiet():
        import datasets  # noqa: F401  # what "hub:" data is read with

        from zoo import cli

        for documents in readers.documents.values():
            for document in documents:
                readers.read(document, document.content)
        cli.main(["list"])
    gc.collect()
    gc.freeze()  # plans collect garbage; of what is here now there is none
    return readers, Watch(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="where findings are kept")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    corpus, out = asked.corpus.absolute(), asked.json and asked.json.absolute()
    folder = Path(tempfile.mkdtemp(prefix="fuzz.")).resolve()
    try:
        readers, watch = prepared(folder)
        fuzz, started, kinds = Fuzz(readers, watch, corpus), time.monotonic(), asked.kinds.split(",")
        for kind in kinds:
            clock = time.monotonic()
            fuzz.replay(kind, CORPUS)
            fuzz.run(kind, -(-asked.cases // len(kinds)), begin=asked.seed)
            print(f"{kind}: {time.monotonic() - clock:.0f} s", flush=True)
    finally:
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)
    for label, count in sorted(fuzz.counts.items()):
        print(f"{count:7,}  {label}")
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"{sum(fuzz.counts.values()):,} cases, {len(fuzz.findings)} findings, {seconds:.0f} s, peak {peak:.0f} MB")
    if out:
        out.write_text(
            json.dumps(
                {"counts": fuzz.counts, "findings": fuzz.findings, "seconds": seconds, "peak_mb": peak}, indent=1
            )
            + "\n"
        )
    return 1 if fuzz.findings else 0


if __name__ == "__main__":
    sys.exit(main())
