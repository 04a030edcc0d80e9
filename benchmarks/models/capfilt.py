"""CapFilt at 384 px: caption and filter web pictures, against the same pipeline on transformers; and the filter stage alone.

Both pipelines draw a caption of up to 20 tokens per picture, with ``top_k=1`` so that both must write the same, and give the
matching probabilities of it and of the web text. ``transformers`` encodes each picture once for each model; ``transformers, as
documented`` calls its retrieval class with a picture per text. Ours computes cosines too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from blip_fast import models, reference
from blip_fast.capfilt.matching import match_probabilities
from blip_fast.capfilt.models import CapFiltModels, join_models
from blip_fast.capfilt.samples import WebSample
from blip_fast.capfilt.scoring import UnitScorer
from blip_fast.capfilt.settings import ScoreSettings
from blip_fast.config import BlipConfig
from blip_fast.data.packing import pack

from ..captions import caption_lengths, padded_texts
from ..job import Aim, Case, Setting, Variant
from ..peers.huggingface import HuggingFaceCapFilt, HuggingFaceMatching
from ..weights import same_weights

PLACE = 75
SIZE = 384
TOKENS = (SIZE // 16) ** 2 + 1
PICTURES = 2
WEB_TEXTS = ("a photograph of a brown dog that runs over wet sand", "best holiday deals 2019, book early and save")
TEXTS_PER_IMAGE = 3
PADDED_LENGTH = 35
SCORE = ScoreSettings(top_k=1)
PIPELINE_AIM = Aim(2.5, over="transformers")
FILTER_AIM = Aim(2.0, over="one pass per pair")


def cases(setting: Setting) -> Iterable[Case]:
    """BLIP-base with one image encoder for both models, and the filter stage; with ``--full`` also with two encoders."""
    config = BlipConfig.base(image_size=SIZE)
    yield _pipeline(config, True, setting.device)
    yield _filter_stage(config, setting.device)
    if not setting.quick:
        yield _pipeline(config, False, setting.device)


def _pipeline(config: BlipConfig, shared: bool, device: torch.device) -> Case:
    torch.manual_seed(0)
    captioner, matching = models.BlipCaptioner(config).eval(), models.BlipITM(config).eval()
    if shared:
        matching.visual_encoder.load_state_dict(captioner.visual_encoder.state_dict())
    peer = HuggingFaceCapFilt(captioner, matching).to(device).eval()
    ours = join_models(captioner.to(device), matching.to(device))
    assert ours.shared == shared

    def inputs(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        return (torch.randn(PICTURES, 3, SIZE, SIZE, generator=generator, device=device),)

    encoders = "one image encoder" if shared else "two image encoders"
    return Case(
        name=f"{config.text_layers} layers, {PICTURES} pictures, {encoders}",
        inputs=inputs,
        variants=[
            Variant("transformers", lambda images: peer(images, WEB_TEXTS, SCORE), role="baseline"),
            Variant("transformers, as documented", lambda images: peer(images, WEB_TEXTS, SCORE, as_documented=True)),
            Variant("blip_fast", lambda images: run(ours, images), role="ours"),
        ],
        tolerance=1e-4,
        aims=(PIPELINE_AIM,),
        items=(PICTURES, "pictures"),
        input_sets=2,
    )


def run(loaded: CapFiltModels, images: Tensor) -> Any:
    """Matching probabilities (B, 2) of web text and caption by the library's own scorer."""
    scorer = UnitScorer(loaded, SCORE, images.device, None, 1)
    samples = [WebSample(n, str(n), "", text) for n, text in enumerate(WEB_TEXTS)]
    records = scorer.score_images(samples, [images] * len(loaded.encoders))
    return torch.tensor([[record["web"]["itm"], record["synthetic"][0]["itm"]] for record in records])


def _filter_stage(config: BlipConfig, device: torch.device) -> Case:
    torch.manual_seed(0)
    config = BlipConfig.from_dict(config.to_dict() | {"vit_depth": 1})
    published = reference.BlipITM(config).to(device).eval()
    fast = same_weights(published, models.BlipITM)
    transformers = HuggingFaceMatching(published).to(device).eval()
    images = 4
    image_of_text = torch.arange(images, device=device).repeat_interleave(TEXTS_PER_IMAGE)

    def inputs(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        states = torch.randn(images, TOKENS, config.vit_width, generator=generator, device=device)
        ids, mask = padded_texts(caption_lengths(images * TEXTS_PER_IMAGE, seed), PADDED_LENGTH, config, seed)
        ids[:, 0] = config.enc_token_id
        return states, ids.to(device), mask

    @torch.no_grad()
    def per_pair(states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """As published: a padded text with its own copy of the states, whose keys and values are projected for it."""
        hidden = published.text_encoder(ids, mask.to(device), states[image_of_text], mode="multimodal")
        return published.itm_head(hidden[:, 0]).softmax(-1)[:, 1]

    @torch.no_grad()
    def run_transformers(states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        width = int(mask.sum(1).max())  # padded to the longest text
        return transformers(ids[:, :width], mask[:, :width].to(device), states[image_of_text]).softmax(-1)[:, 1]

    return Case(
        name=f"filter alone: {config.text_layers} layers, {images} pictures, {TEXTS_PER_IMAGE} texts each",
        inputs=inputs,
        variants=[
            Variant("one pass per pair", per_pair, role="baseline"),
            Variant("transformers", run_transformers),
            Variant(
                "blip_fast",
                lambda states, ids, mask: match_probabilities(fast, states, pack(ids, mask), image_of_text),
                role="ours",
            ),
        ],
        tolerance=1e-5,
        aims=(FILTER_AIM,),
        items=(images * TEXTS_PER_IMAGE, "pairs"),
        input_sets=2,
    )
