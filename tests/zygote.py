"""Fresh `zoo` processes without the ten seconds it takes to import torch: one process imports, and forks for each request.

    with Zygote() as zygote:
        done = zygote.run("compress", "recipe.toml", cwd=tmp_path)
        with zygote.start("compress", "recipe.toml", cwd=tmp_path, setup="...") as process:
            process.kill(signal.SIGINT)
        assert process.done.code == 130

Several may run at the same time. Each leads a process group of its own, with whatever it starts.
The parent never computes anything, so no thread is lost in the fork.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = r"""
import contextlib, ctypes, gc, json, os, sys, traceback
import torch, transformers, accelerate.utils, safetensors.torch, pydantic, rich.progress, psutil, typer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
import zoo.cli, zoo.loading.load, zoo.family.text.generate
import zoo_compress.recipe.runner, zoo_compress.train.loop, zoo_compress.methods.distill, zoo_compress.commands
import zoo_slm.language, zoo_slm.evaluators

for name in json.loads(sys.argv[1]):
    __import__(name)
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        print(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.setpgid(0, 0)
            with contextlib.suppress(AttributeError):
                ctypes.CDLL(None).prctl(1, 9)  # Linux: be killed when the parent is gone
            for number, path in ((1, asked["out"]), (2, asked["err"])):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.chdir(asked["cwd"])
            os.environ |= asked["env"]
            exec(asked["setup"], {"__name__": "setup"})
            code = zoo.cli.main(asked["args"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    os.setpgid(pid, pid)  # whoever comes first
    print(pid, flush=True)
"""


@dataclass
class Done:
    """A finished process; `code` is negative for the signal that killed it."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Process:
    """A process that runs; leaving the block waits for its end, after an exception by killing it."""

    done: Done

    def __init__(self, zygote: Zygote, pid: int, out: Path, err: Path) -> None:
        self.zygote, self.pid, self.out, self.err = zygote, pid, out, err

    def kill(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process, or to all it has started as well."""
        os.killpg(self.pid, number) if group else os.kill(self.pid, number)

    def wait(self) -> Done:
        code = int(self.zygote.ask({"wait": self.pid}))
        self.done = Done(code, self.out.read_text(), self.err.read_text())
        return self.done

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind:
            self.kill(signal.SIGKILL)
        self.wait()


class Zygote:
    """The process that has imported everything, and the modules `also`.

    Args:
        python: that of another environment.
        variables: of the process's environment.
    """

    def __init__(self, *also: str, python: str | Path = sys.executable, **variables: str) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith("ZOO_")}
        self.folder = tempfile.TemporaryDirectory()
        self.errors = (Path(self.folder.name) / "server").open("w+")
        self.started = 0
        self.server = subprocess.Popen(
            [str(python), "-c", SERVER, json.dumps(also)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**env, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables},
            cwd=self.folder.name,
        )
        assert self.answer() == "ready"

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.server.stdin and self.server.stdout
        self.server.stdin.close()
        self.server.wait(timeout=60)
        self.server.stdout.close()
        self.errors.close()
        self.folder.cleanup()

    def answer(self) -> str:
        assert self.server.stdout
        line = self.server.stdout.readline().strip()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(self.errors.read())
        return line

    def ask(self, request: dict[str, Any]) -> str:
        assert self.server.stdin
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return self.answer()

    def start(self, *args: str, cwd: Path, setup: str = "", env: dict[str, str] | None = None) -> Process:
        """Start `zoo ARGS` in the folder `cwd`, after running the code `setup` in it."""
        self.started += 1
        out, err = (Path(self.folder.name) / f"{name}-{self.started}" for name in ("out", "err"))
        request = {"args": args, "cwd": str(cwd), "setup": setup, "out": str(out), "err": str(err), "env": env or {}}
        return Process(self, int(self.ask(request)), out, err)

    def run(self, *args: str, cwd: Path, setup: str = "", env: dict[str, str] | None = None) -> Done:
        """Run `zoo ARGS` to its end."""
        with self.start(*args, cwd=cwd, setup=setup, env=env) as process:
            pass
        return process.done
