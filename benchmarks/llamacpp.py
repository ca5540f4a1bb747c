"""A GGUF file read by zoo beside the same file run by llama.cpp: the log-probabilities of next tokens, and time to load.

python benchmarks/llamacpp.py [FILE] [--prompts 8] [--json FILE]

Needs `pip install xllamacpp` (llama.cpp as a wheel). Without a file it takes that of smollm2-135m-instruct-q4. llama.cpp
rounds activations to eight bits wherever weights are blocks, so that the two differ a little; in a file of floats they do not.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import zoo
from zoo.data.open import open_data
from zoo.loading.locate import locate

LIKELIEST = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--prompts", type=int, default=8, help="beginnings of held-out files of the standard library")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    file = asked.file or locate("smollm2-135m-instruct-q4").fetched()
    prompts = [sample.text[:200] for sample in open_data(f"stdlib:test[:{asked.prompts}]")]

    start = time.perf_counter()
    model = zoo.load(file)
    seconds = {"zoo": time.perf_counter() - start}
    start = time.perf_counter()
    server = _llama(file)
    seconds["llama.cpp"] = time.perf_counter() - start

    differences, same = [], 0
    for prompt in prompts:
        theirs = _likeliest(server, prompt)
        ids = torch.tensor([model.processor(prompt).input_ids])
        with torch.no_grad():
            ours = torch.log_softmax(model.module(ids).logits[0, -1].float(), -1)
        differences += [abs(float(ours[token]) - value) for token, value in theirs.items()]
        same += int(ours.argmax()) == next(iter(theirs))
    print(f"{file.name}: {len(prompts)} prompts, the {LIKELIEST} likeliest next tokens of llama.cpp")
    print(f"log-probabilities differ by {mean(differences):.4f} on average, {max(differences):.4f} at most")
    print(f"the likeliest token is the same for {same} of {len(prompts)}")
    print(f"loading takes {seconds['zoo'] / seconds['llama.cpp']:.1f} times as long")
    if asked.json:
        found = {
            "file": str(file),
            "differences": differences,
            "same": same,
            "prompts": len(prompts),
            "seconds": seconds,
        }
        asked.json.write_text(json.dumps(found))


def _llama(file: Path) -> Any:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.warmup = str(file), 512, False
    parameters.cpuparams.n_threads = torch.get_num_threads()
    return xllamacpp.Server(parameters)


def _likeliest(server: Any, prompt: str) -> dict[int, float]:
    """The likeliest next tokens with their log-probabilities, the likeliest first."""
    answer = server.handle_completions({"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": LIKELIEST})
    answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
    found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {token["id"]: token["logprob"] for token in found}


if __name__ == "__main__":
    main()
