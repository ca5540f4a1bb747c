"""What zoo_compress registers; each name is declared in registry.toml, and imported when it is first used."""

from __future__ import annotations

from zoo.hooks import Register, hookimpl


@hookimpl
def register_compressors(register: Register) -> None:
    register("inherit", "zoo_compress.methods.inherit:Inherit")
    register("prune.magnitude", "zoo_compress.methods.prune.magnitude:PruneMagnitude")
    register("prune.wanda", "zoo_compress.methods.prune.wanda:PruneWanda")
    register("prune.sparsegpt", "zoo_compress.methods.prune.sparsegpt:PruneSparseGPT")
    register("prune.structured", "zoo_compress.methods.prune.structured:PruneStructured")
    register("quantize.int4", "zoo_compress.methods.quantize.int4:QuantizeInt4")
    register("quantize.int8", "zoo_compress.methods.quantize.int8:QuantizeInt8")
    register("quantize.nf4", "zoo_compress.methods.quantize.nf4:QuantizeNF4")
    register("share.ffn", "zoo_compress.methods.share:ShareFFN")
    register("lowrank.svd", "zoo_compress.methods.lowrank:LowRankSVD")
    register("distill", "zoo_compress.methods.distill:Distill")
    register("train", "zoo_compress.methods.train:Train")
    register("vocabulary.bpe", "zoo_compress.methods.vocabulary:TrainBPE")


@hookimpl
def register_losses(register: Register) -> None:
    register("kl", "zoo_compress.losses.rows:ForwardKL")
    register("cross-entropy", "zoo_compress.losses.rows:CrossEntropy")
    register("hidden", "zoo_compress.losses.features:HiddenState")
    register("cosine", "zoo_compress.losses.embeddings:Cosine")
    register("rkd", "zoo_compress.losses.embeddings:RelationalKD")


@hookimpl
def register_evaluators(register: Register) -> None:
    register("speed", "zoo_compress.measure:Speed")
    register("similarity", "zoo_compress.similarity:Similarity")


@hookimpl
def register_commands(register: Register) -> None:
    register("plan", "zoo_compress.commands:plan")
    register("compress", "zoo_compress.commands:compress")
    register("inspect", "zoo_compress.commands:inspect")
    register("reproduce", "zoo_compress.commands:reproduce")
