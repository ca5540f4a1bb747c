"""A model whose tokenizer begins every text with <bos> (Gemma, Llama): perplexity and training windows leave <bos> out."""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers as T
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import zoo
from zoo import registry
from zoo.data import open_data

torch.manual_seed(0)
torch.set_num_threads(1)
root = Path(tempfile.mkdtemp())
place = root / "m"
t = Tokenizer(models.BPE())
t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
t.decoder = decoders.ByteLevel()
t.train_from_iterator(
    ["x"],
    trainers.BpeTrainer(
        vocab_size=258,
        special_tokens=["<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ),
)
t.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
tok = T.PreTrainedTokenizerFast(tokenizer_object=t, eos_token="<eos>", bos_token="<bos>")
tok.save_pretrained(place)
m = T.GemmaForCausalLM(
    T.GemmaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=258,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
    )
)
text = "the cat sat on the mat and slept"
ids = torch.tensor([tok(text)["input_ids"]])
opt = torch.optim.AdamW(m.parameters(), lr=3e-3)
for step in range(
    150
):  # after <bos> the sentence; without it anything may come, as a model is free to behave where it was never trained
    noise = torch.randint(2, 258, ids.shape)
    noise[0, 0] = 0
    loss = m(ids, labels=ids).loss + m(noise, labels=noise).loss
    opt.zero_grad()
    loss.backward()
    opt.step()
m.eval().save_pretrained(place)
(root / "t.txt").write_text(text)
with torch.no_grad():
    true = float(m(ids, labels=ids).loss.exp())
z = zoo.load(place)
said = registry.evaluator("perplexity").measure(z, open_data(str(root / "t.txt")), options={})["perplexity"]["value"]
(root / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for _ in range(9)))
stream = z.family.windows(z, open_data(str(root / "t.jsonl")), length=16).stream
print(f"perplexity as the model reads text (<bos> first): {true:.3f}; zoo's: {said:.3f}")
print(
    "generate starts from",
    z.family.inputs(z, text)[0][:3],
    "(1 is <bos>); training windows start",
    stream[:4].tolist(),
    "and hold <bos>:",
    bool((stream == 1).any()),
)
wrong = said > 1.05 * true or not (stream == 1).any()
print("FAILS" if wrong else "fine")
sys.exit(wrong)
