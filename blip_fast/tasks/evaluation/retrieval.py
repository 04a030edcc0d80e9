"""Two-stage retrieval as published: cosine of features, then matching logits of the most similar pairs.

Ranks divide the images. Each keeps the states of its own images only (published: every rank those of all, 8.9 GB for the 5,000
test images of COCO), encodes them once, and scores the pairs in which they take part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from blip_fast.models.retrieval import BlipRetrieval, rerank
from blip_fast.tasks.evaluation.shards import join_shards, shard

TEXTS_PER_PASS = 256


@torch.no_grad()
def retrieval_scores(
    model: BlipRetrieval,
    own_images: Iterable[Tensor],
    images: int,
    texts: tuple[Tensor, Tensor],
    k_test: int,
    rank: int = 0,
    ranks: int = 1,
    encode: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores (I, T) of texts for each image and (T, I) of images for each text, on every rank; -100 where not ranked.

    Args:
        model: in eval mode, on the device where everything is computed.
        own_images: batches (b, 3, S, S) of the images in ``shard(images, rank, ranks)``, in order.
        images: how many there are on all ranks together.
        texts: ids (T, N) on the CPU, [CLS] first, and their mask.
        k_test: candidates that are matched in each row.
        rank, ranks: this process among those that call together; one alone by default.
        encode: what makes states and features of a batch; ``model.encode_images`` by default.
    """
    device, own = model.temp.device, shard(images, rank, ranks)
    states: list[Tensor] = []
    features = []
    for batch in own_images:
        batch_states, batch_features = (encode or model.encode_images)(batch.to(device, non_blocking=True))
        states += batch_states.cpu()
        features.append(batch_features.float())
    if len(states) != len(own):
        raise ValueError(f"own_images holds {len(states)} images; expected {len(own)}, the share of rank {rank} of "
                         f"{ranks}")  # fmt: skip
    width = model.config.embed_dim
    image_features = join_shards(
        torch.cat(features) if features else torch.empty(0, width, device=device), images, ranks
    )
    input_ids, attention_mask = texts
    text_features = encode_texts(model, input_ids, attention_mask)
    with torch.autocast(device.type, enabled=False):  # similarities rank candidates: full precision, as published
        sims = image_features @ text_features.t()
    scores_i2t, scores_t2i = rerank(
        model, sims, states, input_ids.to(device), attention_mask, k_test, TEXTS_PER_PASS, first_image=own.start
    )
    return join_shards(scores_i2t, images, ranks), join_shards(scores_t2i.t().contiguous(), images, ranks).t()


@torch.no_grad()
def encode_texts(model: BlipRetrieval, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Normalised features (T, E) of texts (T, N), float32, in passes of 256."""
    device = model.temp.device
    parts = zip(input_ids.split(TEXTS_PER_PASS), attention_mask.split(TEXTS_PER_PASS), strict=True)
    return torch.cat([model.encode_texts(ids.to(device), mask).float() for ids, mask in parts])
