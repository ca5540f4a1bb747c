"""A GGUF file brings a chat template in its header; it is as much a stranger's program as one in a tokenizer's config."""

from __future__ import annotations

from pathlib import Path

import transformers
from gguf_writer import write
from tiny import VOCABULARY, tokenizer
from victim import Commands, chats

SHAPE = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
TEMPLATES = {
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "tries what no template may",
    "{{ messages.__init__.__globals__['__builtins__']['open']('CANARY', 'w') }}": "tries what no template may",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "was stopped: it takes more than",
}


def prepare(place: Path, canary: Path) -> Commands:
    commands: Commands = []
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=VOCABULARY, **SHAPE))
    for number, (template, says) in enumerate(TEMPLATES.items()):
        words = tokenizer()
        words.chat_template = template.replace("CANARY", str(canary))
        file = write(place / f"evil{number}.gguf", model, "llama", tokenizer=words)
        commands += chats(file, f"^error: The chat template of evil{number} {says}")
    return commands
