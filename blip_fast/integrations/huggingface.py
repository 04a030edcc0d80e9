"""Captioners and VQA models of transformers that generate with blip_fast: the same object, weights, arguments and ids."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from blip_fast.checkpoints.huggingface import published_name
from blip_fast.checkpoints.loading import fit
from blip_fast.config import BlipConfig
from blip_fast.generation import Options, generate, prompts_of
from blip_fast.models import BlipCaptioner, BlipVQA

if TYPE_CHECKING:
    from transformers import BlipForConditionalGeneration, BlipForQuestionAnswering

    from blip_fast.checkpoints.pretrained import PretrainedModel

    Speedable = TypeVar("Speedable", BlipForConditionalGeneration, BlipForQuestionAnswering)
    Model = TypeVar("Model", bound=PretrainedModel)

NEW_TOKENS = 20  # where no length is asked for, as in transformers
PASSED_ON = ("num_beams", "do_sample", "top_p", "top_k", "temperature", "repetition_penalty", "num_return_sequences")
LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens")
DEFAULTS = dict(num_beams=1, do_sample=False, top_p=1.0, top_k=50, temperature=1.0, repetition_penalty=1.0)
WITHOUT_EFFECT = {
    *("transformers_version", "_from_model_config", "use_cache", "cache_implementation"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),  # transformers takes the model's, too
}
NEUTRAL = {"length_penalty": 1.0, "typical_p": 1.0, "encoder_repetition_penalty": 1.0, "num_beam_groups": 1}


def speed_up(model: Speedable) -> Speedable:
    """Make ``model.generate`` run on blip_fast: image keys projected once, no copies of caches. Returns the same model.

    Weights are shared, not copied: the model may be trained, moved, cast, loaded and saved as before; hooks are not called.
    Greedy search, beam search and sampling give what transformers gives, dropout is off, and shorter prompts of a batch,
    padded on the right, give what they give alone. ``del model.generate`` puts transformers' own back.

    Args:
        model: a ``BlipForConditionalGeneration`` or a ``BlipForQuestionAnswering`` of transformers.

    Raises TypeError for another class, ValueError where the model has layers that BLIP has not. ``generate`` raises
    ValueError where it was given such layers afterwards, adapters for example, and for an option that changes the result
    and is none of transformers' ``num_beams``, ``do_sample``, ``top_p``, ``top_k``, ``temperature``,
    ``repetition_penalty``, ``num_return_sequences``, ``max_length``, ``max_new_tokens``, ``min_length`` and
    ``min_new_tokens``.
    """
    from transformers import BlipForConditionalGeneration, BlipForQuestionAnswering

    ours: PretrainedModel
    method: Callable[..., Tensor]
    if isinstance(model, BlipForConditionalGeneration):
        ours, method = shared_model(model, BlipCaptioner), caption_ids
    elif isinstance(model, BlipForQuestionAnswering):
        ours, method = shared_model(model, BlipVQA), answer_ids
    else:
        raise TypeError(
            f"model is a {type(model).__name__}; expected a BlipForConditionalGeneration or a BlipForQuestionAnswering"
        )
    holder: Any = model
    holder.blip_fast_model = (ours,)  # in a tuple it is no part of transformers' model
    holder.generate = types.MethodType(method, model)
    return model


def shared_model(model: Any, model_class: type[Model]) -> Model:
    """Our model on the parameters of transformers'."""
    with torch.device("meta"):
        ours = model_class(BlipConfig.from_hf(model.config.to_dict()))
    parameters = {published_name(name): part for name, part in model.named_parameters(remove_duplicate=False)}
    trained = {part: part.requires_grad for part in parameters.values()}
    matching, report = fit(ours, parameters)
    if report.initial or report.unexpected or report.reshaped:
        name = [*report.initial, *report.unexpected, *report.reshaped][0]
        raise ValueError(f"model differs from BLIP in '{name}'; expected the layers that transformers gives it")
    ours.load_state_dict(matching, assign=True)
    for part, flag in trained.items():  # which assigning sets
        part.requires_grad_(flag)
    return ours.eval()


def current_model(model: Any) -> Any:
    """Our model that was made for one of transformers'; a new one where parameters have been replaced or added since."""
    (ours,) = model.blip_fast_model
    if {*map(id, ours.parameters())} != {*map(id, model.parameters())}:
        ours = shared_model(model, type(ours))
        model.blip_fast_model = (ours,)
    return ours


def caption_ids(
    self: Any,
    pixel_values: Tensor,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    interpolate_pos_encoding: bool = False,
    generation_config: Any = None,
    **options: Any,
) -> Tensor:
    """Ids (B * num_return_sequences, n): arguments and result of transformers' ``generate``."""
    captioner = current_model(self)
    refuse_other_sizes(interpolate_pos_encoding)
    prompts = prompt_ids(input_ids, attention_mask, len(pixel_values), captioner.config).to(pixel_values.device)
    options = fused_options(self, generation_config, options, prompts.shape[1], captioner.config)
    return captioner.generate_ids(pixel_values, prompts, **options)


@torch.no_grad()
def answer_ids(
    self: Any,
    input_ids: Tensor,
    pixel_values: Tensor,
    attention_mask: Tensor | None = None,
    interpolate_pos_encoding: bool = False,
    generation_config: Any = None,
    **options: Any,
) -> Tensor:
    """Ids (B * num_return_sequences, n): arguments and result of transformers' ``generate``.

    As there, questions keep their first token (the published code puts [ENC]), and answers look at padding too.
    """
    vqa = current_model(self)
    refuse_other_sizes(interpolate_pos_encoding)
    questions = torch.as_tensor(input_ids, device=pixel_values.device)
    mask = torch.ones_like(questions) if attention_mask is None else attention_mask
    states = vqa.text_encoder(questions, mask, vqa.visual_states(pixel_values))
    start = prompts_of(questions.new_tensor([vqa.config.dec_token_id]), len(questions), vqa.config)
    settings = Options(**fused_options(self, generation_config, options, 1, vqa.config))
    return generate(vqa.text_decoder, states, start, settings, vqa.config).ids


def refuse_other_sizes(interpolate_pos_encoding: bool) -> None:
    """ValueError where positions should be interpolated."""
    if interpolate_pos_encoding:
        raise ValueError("interpolate_pos_encoding=True; expected images of the size that the model has positions for")


def prompt_ids(input_ids: Tensor | None, attention_mask: Tensor | None, batch: int, config: BlipConfig) -> Tensor:
    """(B, N): [DEC] and the prompts; of ``input_ids`` the last column is dropped, as in transformers."""
    if input_ids is None:
        return torch.full((batch, 1), config.dec_token_id)
    ids = torch.as_tensor(input_ids)
    mask = ids != config.pad_token_id if attention_mask is None else attention_mask.bool()
    plain = ids.ndim == 2 and ids.shape[1] > 1 and mask.shape == ids.shape and bool(mask[:, 0].all())
    if not plain or bool((mask[:, 1:] > mask[:, :-1]).any()):
        raise ValueError("input_ids and attention_mask are no prompts padded on the right; expected (B, N) each, N > 1, "
                         "with tokens first and padding behind them")  # fmt: skip
    first = torch.arange(ids.shape[1], device=ids.device) == 0
    return ids.masked_fill(~mask, config.pad_token_id).masked_fill(first, config.dec_token_id)[:, :-1]


def fused_options(
    model: Any, generation_config: Any, options: dict[str, Any], prompt_length: int, config: BlipConfig
) -> dict[str, Any]:
    """Fields of :class:`Options` for arguments of transformers' ``generate``, then those of the model."""
    configs = [model.text_decoder.generation_config, *([] if generation_config is None else [generation_config])]
    for stored in reversed(configs):
        options = stored.to_diff_dict() | {name: value for name, value in options.items() if value is not None}
    for name in sorted(options.keys() - {*PASSED_ON, *LENGTHS, *WITHOUT_EFFECT}):
        value = options[name]
        if isinstance(value, Tensor) or (value and value != NEUTRAL.get(name)):
            raise ValueError(f"{name}={value!r} is nothing that blip_fast generates with; expected some of "
                             f"{', '.join((*PASSED_ON, *LENGTHS))}")  # fmt: skip
    result = DEFAULTS | {name: options[name] for name in PASSED_ON if name in options}
    if result["do_sample"] and result["num_beams"] > 1:
        raise ValueError(f"num_beams={result['num_beams']} with do_sample=True; expected one of the two")
    longest = min(prompt_length + NEW_TOKENS, config.max_position_embeddings)
    lengths = dict(
        max_length=_limit("max", longest, options, prompt_length), min_length=_limit("min", 0, options, prompt_length)
    )
    return result | lengths | dict(length_norm="generated")


def _limit(kind: str, default: int, options: dict[str, Any], prompt_length: int) -> int:
    """Tokens of a whole text, "max" or "min"; those that are new count before those of the text, as in transformers."""
    new = options.get(f"{kind}_new_tokens")
    return options.get(f"{kind}_length", default) if new is None else prompt_length + new
