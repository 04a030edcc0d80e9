"""The way from states and prompts to texts: a session and the search that the options ask for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blip_fast.config import BlipConfig
from blip_fast.generation.beam import beam_search
from blip_fast.generation.greedy import greedy_search
from blip_fast.generation.kept import kept_session
from blip_fast.generation.options import Options
from blip_fast.generation.prompts import Prompts
from blip_fast.generation.sampling import sample
from blip_fast.generation.scores import GeneratedIds
from blip_fast.generation.session import DecodingSession
from blip_fast.generation.static import GraphedSession
from blip_fast.generation.texts import Limits
from blip_fast.reference.decoder import TextDecoder


def generate(
    decoder: TextDecoder, states: Tensor, prompts: Prompts, options: Options, config: BlipConfig
) -> GeneratedIds:
    """B * ``options.num_return_sequences`` texts, those of a prompt one behind the other.

    Args:
        decoder: whose texts they are.
        states: (B, L, state_width) what they look at.
        prompts: B beginnings.
        options: how they are generated.
        config: the model's.

    Raises ValueError where a prompt is as long as ``options.max_length``, this is more than the model's positions, beams are
    more than half of its vocabulary, or seeds are not as many as prompts.
    """
    check_max_length(options.max_length, config)
    if not options.do_sample:
        check_num_beams(options.num_beams, config)
    limits = Limits.of(options, config)
    with torch.inference_mode():
        result = search(decoder, states, prompts, limits, options)
    return GeneratedIds(*(tensor.clone() for tensor in result))  # a model may be trained on them


def check_max_length(max_length: int, config: BlipConfig) -> None:
    """ValueError where texts may become longer than the model has positions for."""
    if max_length > config.max_position_embeddings:
        raise ValueError(
            f"max_length={max_length}; expected at most max_position_embeddings={config.max_position_embeddings}"
        )


def check_num_beams(num_beams: int, config: BlipConfig) -> None:
    """ValueError where a beam has fewer continuations than a search ranks, which is two for each beam."""
    if 2 * num_beams > config.vocab_size:
        raise ValueError(f"num_beams={num_beams}; expected at most half of vocab_size={config.vocab_size}")


def search(decoder: TextDecoder, states: Tensor, prompts: Prompts, limits: Limits, options: Options) -> GeneratedIds:
    """The search that ``options`` ask for; on a GPU with graphs of its steps."""
    copies = options.num_return_sequences if options.do_sample else options.num_beams
    sizes = (decoder, states, copies, limits.max_length)
    # A graph would keep autocast's copies of weights, and replays call no hooks.
    if states.is_cuda and not torch.is_autocast_enabled("cuda") and not has_hooks(decoder):
        with kept_session(GraphedSession, *sizes) as session:
            return search_in(session, prompts, limits, options)
    return search_in(DecodingSession(*sizes), prompts, limits, options)


def has_hooks(model: nn.Module) -> bool:
    """Whether calling a module of the model does more than its forward method."""
    return any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def search_in(session: DecodingSession, prompts: Prompts, limits: Limits, options: Options) -> GeneratedIds:
    """The search that ``options`` ask for in a session."""
    if options.do_sample:
        return sample(session, prompts, limits, options)
    if options.num_beams == 1:
        return greedy_search(session, prompts, limits)
    return beam_search(session, prompts, limits, options)
