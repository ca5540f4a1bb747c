"""Vocabulary: train a tokenizer for a model."""

from __future__ import annotations

from pydantic import Field

from zoo import registry
from zoo.compressor import Compressor
from zoo.errors import Refused
from zoo.family.task import task_of
from zoo.model.context import Context
from zoo.model.lineage import Record, State
from zoo.model.model import Model
from zoo.options import CompressorOptions

END_OF_TEXT = "<|endoftext|>"
MASK, PAD = "<mask>", "<pad>"  # of masked-lm models


class TrainBPE(Compressor):
    """Train a byte-level BPE tokenizer of the model's vocabulary size on the training data.

    Bytes are the base alphabet, so every text can be encoded (Radford et al. 2019, section 2.2).
    """

    name = "vocabulary.bpe"
    tokenizes = True
    structural = False

    class Options(CompressorOptions):
        data: str = Field("train", description="which entry of the recipe's [data] table to learn merges from")

    def roles(self, options: Options) -> tuple[str, ...]:
        return (options.data,)

    def check(self, model: Model, state: State, options: Options) -> None:
        if "vocab_size" not in model.spec.config:
            raise Refused(
                f"{self.name}: {model.spec.name} ({model.spec.modality}) has no token vocabulary that could be learnt anew."
            )
        size = int(model.spec.config["vocab_size"])
        if size <= 256:
            raise Refused(
                f"{self.name}: {model.spec.name} has {size} tokens, and 256 bytes with an end of text take 257; "
                "choose a model with a larger vocab_size."
            )

        if model.origin != "random" or any(
            registry.compressor(stage.use, plugin=stage.plugin).trains for stage in model.lineage
        ):
            raise Refused(
                f"{self.name}: the weights of {model.spec.name} are trained on the tokens of the tokenizer they have, and a new one "
                'would number others. Begin with weights = "random" in [model], and train afterwards.'
            )

    def outline(self, model: Model, options: Options) -> Record:
        return {"vocabulary": int(model.spec.config["vocab_size"])}

    def apply(self, model: Model, options: Options, context: Context) -> Record:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        size, masks = int(model.spec.config["vocab_size"]), task_of(model).masks
        special = [END_OF_TEXT, PAD, MASK] if masks else [END_OF_TEXT]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        texts = [sample.prompt + sample.text for sample in context.dataset(options.data, self.name)]
        tokenizer.train_from_iterator(texts, trainer=trainer, length=len(texts))
        named = {"mask_token": MASK, "pad_token": PAD} if masks else {}
        model.processor = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            eos_token=END_OF_TEXT,
            bos_token=END_OF_TEXT,
            clean_up_tokenization_spaces=False,
            **named,
        )
        return {"vocabulary": tokenizer.get_vocab_size()}

    def rebuild(self, model: Model, record: Record) -> None:
        pass
