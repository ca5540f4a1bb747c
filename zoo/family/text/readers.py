"""Reading prompts and then token after token: with the module's cache, or all of it anew where that is not the same.

Legend: B prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from zoo.errors import RequestError, ZooError
from zoo.family.task import task_of
from zoo.family.text.shape import frequency_switches
from zoo.family.text.tokens import reads_apart, start_token

if TYPE_CHECKING:
    import torch

    from zoo.model.model import Model
    from zoo.tensors.batch import Batch

STEPS = 8  # tokens after which a cache that goes wrong has shown it, in all that were seen
CLOSE, CLOSE_IN_HALF = 1e-3, 0.1  # of the largest logit; in half precision an expert may be chosen by a hair
UNFIT = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError)


def reader_of(
    model: Model,
    prompts: Sequence[list[int]],
    first: Batch,
    pad: int,
    *,
    caches: bool | None = None,
    inference: bool = True,
) -> Reader:
    """What reads these prompts and what follows them; `first` is what the module takes beside the ids on their pass.

    Args:
        caches: whether to read with a cache; None: where the family says that it does not change what is computed.
        inference: whether tensors may be made that no gradient passes; modules keep some, and may be trained later.

    Raises:
        RequestError: the model fills gaps and continues no text, or keeps no cache where one is asked for.
    """
    if not task_of(model).writes:
        raise _keeps_nothing(model)
    kind = DecoderReader if reads_apart(model) else Reader
    if caches is None:
        family: Any = model.family
        caches = bool(family.caches(model))
    return kind(model, prompts, first, pad, caches=caches, inference=inference)


def caches_rightly(model: Model) -> bool:
    """Whether tokens that are read one by one with a cache give the logits that a whole pass gives."""
    import torch

    if keeps_no_cache(model):
        return False
    example = dict(model.family.example(model, batch=1, size=2 * STEPS))
    prompt = example["input_ids"][0].tolist()
    more = example["decoder_input_ids"][0].tolist() if reads_apart(model) else prompt[STEPS:]
    prompt = prompt if reads_apart(model) else prompt[:STEPS]
    try:
        reader = reader_of(model, [prompt], {}, 0, caches=True, inference=False)
        stepwise = [reader.logits()[0]]
        for token in more[:STEPS]:
            reader.append([token], [False])
            stepwise.append(reader.logits()[0])
        with torch.no_grad():
            whole_TV = model.family.forward(model, reader.seen())[0, -len(stepwise) :]
    except (ZooError, *UNFIT):
        return False
    close = CLOSE if whole_TV.dtype == torch.float32 else CLOSE_IN_HALF
    furthest = float((whole_TV.double() - torch.stack(stepwise).double()).abs().max())
    return not furthest > close * max(float(whole_TV.double().abs().max()), 1e-9)


def two_ways(model: Model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits (V) after the prompt of a batch and two tokens more: read at once, and one by one with a cache.

    Of a module that keeps no cache, those read at once both times.
    """
    beside = dict(batch)
    ids = beside.pop("input_ids")[0].tolist()
    more = beside.pop("decoder_input_ids")[0].tolist()[:2] if reads_apart(model) else [ids[-1]] * 2
    if not reads_apart(model) and keeps_no_cache(model):
        whole_V = model.family.forward(model, batch)[0, -1]
        return whole_V, whole_V
    reader = reader_of(model, [ids], beside, 0, caches=True, inference=False)
    reader.logits()
    # where tokens have their places by what the first block has stored, and it stores nothing (MiniMax)
    if (count := getattr(reader.cache, "get_seq_length", None)) is not None and _counted(count) == 0:
        raise ValueError("what it keeps of the tokens it has read says that it has read none")
    for token in more:
        reader.append([token], [False])
        stepwise_V = reader.logits()[0]
    return model.family.forward(model, reader.seen())[0, -1].float(), stepwise_V


def _counted(count: Callable[[], int]) -> int | None:
    """How many tokens a cache counts; None where it does not tell, as one of recurrent blocks alone."""
    try:
        return count()
    except ValueError:
        return None


class Reader:
    """A module that reads prompts, padded on the left, and then token after token; see `reader_of`."""

    def __init__(
        self, model: Model, prompts: Sequence[list[int]], first: Batch, pad: int, *, caches: bool, inference: bool
    ) -> None:
        import torch

        self.model, self.names, self.caches = model, names_of(model), caches
        self.mode = torch.inference_mode if inference else torch.no_grad
        if caches and keeps_no_cache(model):
            raise _keeps_nothing(model)
        longest = max(map(len, prompts))
        self.step_BT = torch.tensor([[pad] * (longest - len(ids)) + list(ids) for ids in prompts], device=model.device)
        mask_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
        self.mask_BT = None if bool(mask_BT.all()) else mask_BT
        self.read, self.first, self.beside, self.cache = [self.step_BT], first, first, None
        self.length, self.switches = longest, frequency_switches(model.module)

    def logits(self) -> torch.Tensor:
        """Read what has not been read yet; return the logits of the next tokens (B, V)."""
        import torch

        if any(self.length == switch + 1 for switch in self.switches):  # what the cache holds is of other frequencies
            self.step_BT, self.cache, self.beside = torch.cat(self.read, dim=1), None, self.first
        if not self.caches:
            self.step_BT = torch.cat(self.read, dim=1)
            with self.mode():
                return self.model.family.forward(self.model, {**self.seen(), **self._padding()})[:, -1].float()
        with self.mode():
            out = self.model.module(
                input_ids=self.step_BT,
                cache=self.cache,
                use_cache=True,
                logits_to_keep=1,
                **self.beside,
                **self._padding(),
            )
        self.cache, self.beside = getattr(out, "cache", None), {}
        if self.cache is None:
            raise _keeps_nothing(self.model)
        logits_BV: torch.Tensor = out.logits[:, -1].float()
        return logits_BV

    def append(self, tokens: list[int], done: list[bool]) -> None:
        """Say which tokens come next. Those of an ended text are padding, so that its positions stay where they are."""
        import torch

        self.step_BT = torch.tensor(tokens, device=self.model.device)[:, None]
        self.read.append(self.step_BT)
        self.length += 1
        if self.mask_BT is None and any(done):
            self.mask_BT = torch.ones_like(torch.cat(self.read[:-1], dim=1))
        if self.mask_BT is not None:
            alive_BT = self.mask_BT.new_tensor([[0 if ended else 1] for ended in done])
            self.mask_BT = torch.cat([self.mask_BT, alive_BT], dim=1)

    def seen(self) -> Batch:
        """All that was read, as a batch of one pass."""
        import torch

        mask = {} if self.mask_BT is None else {"attention_mask": self.mask_BT}
        return {"input_ids": torch.cat(self.read, dim=1), **mask, **self.first}

    def _padding(self) -> Batch:
        """The mask, and positions where the module takes any: else some count padding along (GPT-2)."""
        if self.mask_BT is None or (self.cache is not None and all(getattr(self.cache, "is_linear", [False]))):
            return {}  # a state (Mamba's) holds no padding to leave out
        if "position_ids" not in self.names:
            return {"attention_mask": self.mask_BT}
        positions_BT = (self.mask_BT.cumsum(-1) - 1).clamp_min(0)[:, -self.step_BT.shape[1] :]
        return {"attention_mask": self.mask_BT, "position_ids": positions_BT}


class DecoderReader(Reader):
    """An encoder that reads the prompts once, padded on the right, and a decoder that writes from its start token on."""

    def __init__(
        self, model: Model, prompts: Sequence[list[int]], first: Batch, pad: int, *, caches: bool, inference: bool
    ) -> None:
        import torch

        self.model, self.first, self.cache, self.caches = model, first, None, caches
        self.mode = torch.inference_mode if inference else torch.no_grad
        longest = max(map(len, prompts))
        ids_BT = torch.tensor([list(ids) + [pad] * (longest - len(ids)) for ids in prompts], device=model.device)
        mask_BT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in prompts], device=model.device)
        module: Any = model.module
        with self.mode():
            encoded = module.get_encoder()(input_ids=ids_BT, attention_mask=mask_BT)
        self.encoder = {"input_ids": ids_BT, "attention_mask": mask_BT}
        self.known = {"encoder_outputs": encoded, "attention_mask": mask_BT}
        self.step_BT = torch.full((len(prompts), 1), start_token(model), device=model.device)
        self.read = [self.step_BT]

    def logits(self) -> torch.Tensor:
        import torch

        if not self.caches:
            written_BT = torch.cat(self.read, dim=1)
            with self.mode():
                out = self.model.module(decoder_input_ids=written_BT, **self.known)
            last_BV: torch.Tensor = out.logits[:, -1].float()
            return last_BV
        with self.mode():
            out = self.model.module(decoder_input_ids=self.step_BT, cache=self.cache, use_cache=True, **self.known)
        self.cache = out.cache
        logits_BV: torch.Tensor = out.logits[:, -1].float()
        return logits_BV

    def append(self, tokens: list[int], done: list[bool]) -> None:
        import torch

        self.step_BT = torch.tensor(tokens, device=self.model.device)[:, None]
        self.read.append(self.step_BT)

    def seen(self) -> Batch:
        import torch

        return {**self.encoder, "decoder_input_ids": torch.cat(self.read, dim=1)}


def names_of(model: Model) -> set[str]:
    """What the module takes by name; nothing where it takes anything."""
    from inspect import Parameter, signature

    parameters = signature(type(model.module).forward).parameters.values()
    return {
        parameter.name
        for parameter in parameters
        if parameter.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    } - {"self"}


def keeps_no_cache(model: Model) -> bool:
    names = names_of(model)
    return bool(names) and "cache" not in names


def _keeps_nothing(model: Model) -> RequestError:
    return RequestError(
        f"{type(model.module).__name__} returns no cache of the tokens it read, so it cannot be generated from."
    )
