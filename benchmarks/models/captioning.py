"""Captions of BLIP-base at 384 px, 20 tokens: transformers, the published way, and with one set of image keys.

All variants have the same random weights, and no text may end early, so that all do the same number of steps; their ids must
be equal. Transformers divides scores by the generated length, hence so do all. On a GPU too in fp32: in bf16 other words might
be chosen. The last cases leave the image encoder out: the states are given, and the limit is the time in which the weights
that the steps need (those of the image's keys and values among them, once) are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from blip_fast import models, reference
from blip_fast.config import BlipConfig
from blip_fast.generation import Options, generate, prompts_of

from ..job import Aim, Case, Setting, Variant
from ..peers.huggingface import hugging_face_captioner
from ..weights import same_weights

PLACE = 2
PROMPT = (101, 1037, 3861, 1997, 102)  # a picture of
LENGTH = 20
STEPS = LENGTH - len(PROMPT) + 1
# Over transformers' batch 4 with 3 beams, its batch 1, the published way; share of the limit.
AIMS = {"cpu": (2.5, 1.8, 3.5, 0.5), "cuda": (5.0, 4.0, 8.0, 0.5)}
Run = Callable[[Tensor], Tensor]


class Captioners:
    """One set of weights in all variants; each takes images and returns ids (B, 20)."""

    def __init__(self, config: BlipConfig, device: torch.device) -> None:
        torch.manual_seed(0)
        self.config = config
        self.published = reference.BlipCaptioner(config).to(device).eval()
        self.fast = same_weights(self.published, models.BlipCaptioner)
        self.transformers = hugging_face_captioner(self.published).to(device).eval()
        self.prompt = torch.tensor(PROMPT, device=device)

    def run_ours(self, model: reference.BlipCaptioner, beams: int) -> Run:
        """A model of ours, or the reference."""
        return lambda images: model.generate_ids(images, self.prompt, beams, LENGTH, LENGTH, length_norm="generated")

    def run_transformers(self, beams: int) -> Run:
        """Transformers' `generate`."""

        @torch.no_grad()
        def run(images: Tensor) -> Tensor:
            prompts = self.prompt.repeat(len(images), 1)
            return self.transformers.generate(images, prompts, num_beams=beams, max_length=LENGTH, min_length=LENGTH)

        return run

    def decode(self, beams: int) -> Run:
        """What follows on the image encoder, from its states (B, L, vit_width)."""
        options = Options(beams, LENGTH, LENGTH, length_norm="generated")

        def run(states: Tensor) -> Tensor:
            prompts = prompts_of(self.prompt, len(states), self.config)
            return generate(self.fast.text_decoder, states, prompts, options, self.config).ids

        return run

    def decode_with_transformers(self, beams: int) -> Run:
        """The same with transformers' text decoder."""

        @torch.no_grad()
        def run(states: Tensor) -> Tensor:
            start = self.prompt[:-1].index_fill(0, self.prompt.new_zeros(1), self.config.dec_token_id)
            return self.transformers.text_decoder.generate(
                input_ids=start.repeat(len(states), 1),
                encoder_hidden_states=states,
                encoder_attention_mask=states.new_ones(states.shape[:2], dtype=torch.long),
                eos_token_id=self.config.sep_token_id,
                pad_token_id=self.config.pad_token_id,
                num_beams=beams,
                max_length=LENGTH,
                min_length=LENGTH,
            )

        return run

    def bytes_read(self) -> int:
        """Weights of the decoder's layers and head, read once per step; those of image keys and values once."""
        layers, projections, head = self.decoder_weights()
        return 4 * (STEPS * (layers + head) + projections)

    def flops(self, batch: int, beams: int) -> int:
        """Image encoder, keys and values once per image, prompt once per image, then ``beams`` tokens per step."""
        config = self.config
        tokens = (config.image_size // config.vit_patch) ** 2 + 1
        layers, projections, head = self.decoder_weights()
        encoder = (
            2 * tokens * _weights(self.fast.visual_encoder.blocks) + 4 * tokens**2 * config.vit_width * config.vit_depth
        )
        read = len(PROMPT) - 1 + (STEPS - 1) * beams  # tokens
        seen = 4 * tokens * config.text_width * config.text_layers
        predicted = 1 + (STEPS - 1) * beams
        return batch * (encoder + 2 * tokens * projections + read * (2 * layers + seen) + predicted * 2 * head)

    def decoder_weights(self) -> tuple[int, int, int]:
        """How many weights the decoder's layers have, without and only those of image keys and values; and the head."""
        decoder = self.fast.text_decoder
        modules = [layer.crossattention.self for layer in decoder.bert.encoder.layer]
        projections = sum(part.weight.numel() for module in modules for part in (module.key, module.value))
        return _weights(decoder.bert.encoder) - projections, projections, _weights(decoder.cls)


def cases(setting: Setting) -> Iterable[Case]:
    """Two layers in both encoders, or with ``--full`` twelve."""
    layers = dict(text_layers=2, vit_depth=2) if setting.quick else {}
    config = BlipConfig.base(image_size=384, vit_patch=16, **layers)
    captioners = Captioners(config, setting.device)
    many, one, published, share = AIMS[setting.device.type]
    size = f"{config.text_layers} layers, "

    def images(batch: int) -> Callable[[int], tuple[Tensor, ...]]:
        shape = (batch, 3, config.image_size, config.image_size)
        return lambda seed: (_random(shape, seed, setting.device),)

    def states(batch: int) -> Callable[[int], tuple[Tensor, ...]]:
        shape = (batch, (config.image_size // config.vit_patch) ** 2 + 1, config.vit_width)
        return lambda seed: (_random(shape, seed, setting.device),)

    for batch, beams, aim in ((4, 3, many), (1, 1, one)):
        yield Case(
            name=f"{size}batch {batch}, {_search(beams)}",
            inputs=images(batch),
            variants=[
                Variant("transformers", captioners.run_transformers(beams), role="baseline"),
                Variant("blip_fast", captioners.run_ours(captioners.fast, beams), role="ours"),
            ],
            tolerance=0,
            flops=captioners.flops(batch, beams),
            aims=[Aim(aim, over="transformers")],
            items=(batch, "images"),
            input_sets=2,
        )
    yield Case(
        name=f"{size}batch 1, {_search(3)}, the published way",
        inputs=images(1),
        variants=[
            Variant("reference", captioners.run_ours(captioners.published, 3), role="baseline"),
            Variant("blip_fast", captioners.run_ours(captioners.fast, 3), role="ours"),
        ],
        tolerance=0,
        flops=captioners.flops(1, 3),
        aims=[Aim(published, over="reference")],
        items=(1, "images"),
        input_sets=2,
    )
    for batch, beams in ((1, 1), (4, 3)):
        yield Case(
            name=f"{size}decoding alone, batch {batch}, {_search(beams)}",
            inputs=states(batch),
            variants=[
                Variant("transformers", captioners.decode_with_transformers(beams), role="baseline"),
                Variant("blip_fast", captioners.decode(beams), role="ours"),
            ],
            tolerance=0,
            bytes=captioners.bytes_read(),
            aims=[Aim(share)],
            items=(batch, "images"),
            input_sets=2,
        )


def _random(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 2)


def _search(beams: int) -> str:
    return "greedy" if beams == 1 else f"{beams} beams"
