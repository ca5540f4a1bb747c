"""How many tokens a model takes is not max_position_embeddings for RoBERTa's kin (two positions are the padding's), nor 1024 for others."""

import sys
import tempfile
from pathlib import Path

import torch
import transformers as T
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import zoo
from zoo import registry
from zoo.data import open_data
from zoo.errors import ZooError

torch.manual_seed(0)
torch.set_num_threads(1)
root = Path(tempfile.mkdtemp())
bad = []
t = Tokenizer(models.BPE())
t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
t.decoder = decoders.ByteLevel()
t.train_from_iterator(
    ["x"],
    trainers.BpeTrainer(
        vocab_size=260,
        special_tokens=["<s>", "<pad>", "</s>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ),
)
tok = T.PreTrainedTokenizerFast(
    tokenizer_object=t,
    bos_token="<s>",
    eos_token="</s>",
    pad_token="<pad>",
    mask_token="<mask>",
    cls_token="<s>",
    sep_token="</s>",
)
(root / "text.txt").write_text("some plain words to read. " * 60)
data = open_data(str(root / "text.txt"))
small = dict(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    vocab_size=320,
    max_position_embeddings=66,
    pad_token_id=1,
    bos_token_id=0,
    eos_token_id=2,
)
for name in ("Roberta", "XLMRoberta", "Camembert", "MPNet", "Esm", "Longformer"):
    more = {"Esm": {"mask_token_id": 3}, "Longformer": {"attention_window": 8}}.get(name, {})
    place = root / name
    getattr(T, f"{name}ForMaskedLM")(getattr(T, f"{name}Config")(**small, **more)).eval().save_pretrained(place)
    tok.save_pretrained(place)
    z = zoo.load(place)
    for what, do in {
        "perplexity": lambda: registry.evaluator("perplexity").measure(z, data, options={}),
        "a training window": lambda: z.family.forward(
            z, z.family.collate(z, [z.family.windows(z, data, length=512)[0]])
        ),
        "filling <mask> in 64 more characters": lambda: z.generate("<mask>" + "z" * 64),
    }.items():
        try:
            do()
            print("right", name, what)
        except ZooError as e:
            print("right", name, what, "refused:", str(e)[:80])
        except Exception as e:
            bad.append(name)
            print(
                "WRONG",
                name,
                f"(says it takes {z.family.context_length(z)})",
                what,
                "->",
                type(e).__name__,
                str(e)[:70],
            )
T.MptForCausalLM(T.MptConfig(d_model=32, n_layers=2, n_heads=2, vocab_size=320, max_seq_len=32)).save_pretrained(
    root / "mpt"
)
z = zoo.load(root / "mpt")
print("MPT with max_seq_len = 32: zoo says", z.family.context_length(z))
bad += ["mpt"] * (z.family.context_length(z) != 32)
print("FAILS" if bad else "fine", sorted(set(bad)))
sys.exit(bool(bad))
