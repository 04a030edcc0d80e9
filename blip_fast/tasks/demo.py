"""The demo: a small BLIP pre-trained on 182 bundled drawings, then tried on 26 that it has not seen."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from blip_fast.config import BlipConfig
from blip_fast.data.demo_pairs import demo_pairs
from blip_fast.data.pretrain import PretrainData
from blip_fast.data.tokenizer import load_tokenizer, restrict_vocabulary
from blip_fast.data.transforms import eval_transform, train_transform
from blip_fast.models import BlipCaptioner, BlipPretrain
from blip_fast.tasks.evaluation.pairs import encode_pairs, matching_logits, recalls, retrieval_scores
from blip_fast.tasks.pretrain import PretrainSettings, pretrain
from blip_fast.training.loop import StepReport
from blip_fast.training.meters import MetricLog
from blip_fast.training.seeding import deterministic_algorithms, seed_everything

DEFAULT_STEPS = 540
BATCH_SIZE = 26
_EPOCHS = 12
_LAST_LR_SHARE = 0.1
_MODEL: dict[str, Any] = {
    "image_size": 64,
    "vit_patch": 8,
    "max_position_embeddings": 32,
    "queue_size": 52,
    "momentum": 0.98,
}
# More threads than this make operations of this size slower.
_MAX_THREADS = 4


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """A finished demo. Scores are (26 images, 26 texts): cosine of features, ITM probability of a match, re-ranked."""

    model: BlipPretrain
    tokenizer: PreTrainedTokenizerFast
    settings: PretrainSettings
    seed: int
    train_pairs: PretrainData
    test_pairs: PretrainData
    log: MetricLog
    cosine: torch.Tensor
    matching: torch.Tensor
    reranked: torch.Tensor
    captions: list[str]
    exact: list[bool]
    seconds: dict[str, float]

    def metrics(self) -> dict[str, Any]:
        """Everything measured, as plain numbers and strings; only ``seconds`` differs between runs with one seed."""
        count = len(self.test_pairs)
        true = self.matching.diagonal()
        false = self.matching[~torch.eye(count, dtype=torch.bool)]
        return {
            "seed": self.seed,
            "settings": self.settings.to_dict(),
            "model": self.model.config.to_dict(),
            "pairs": {"train": len(self.train_pairs), "held_out": count},
            "retrieval": {
                "chance": {"r1": 1 / count, "r5": 5 / count},
                "contrastive": recalls(self.cosine),
                "reranked": recalls(self.reranked),
            },
            "matching": {
                "true_pairs_accepted": float((true > 0.5).double().mean()),
                "false_pairs_rejected": float((false <= 0.5).double().mean()),
                "true_pairs_mean": float(true.double().mean()),
                "false_pairs_mean": float(false.double().mean()),
            },
            "captions": {
                "exact": sum(self.exact) / count,
                "held_out": [
                    {"image_id": record.image_id, "truth": truth, "generated": caption, "exact": exact}
                    for record, truth, caption, exact in zip(
                        self.test_pairs.records, self.test_pairs.captions, self.captions, self.exact, strict=True
                    )
                ],
            },
            "log": {name: self.log.series(name) for name in self.log.names},
            "seconds": self.seconds,
        }


def demo_settings(steps: int, pairs: int) -> PretrainSettings:
    """The recipe with its schedule stretched over ``steps``: warm-up in the first of twelve epochs, then step decay."""
    passes = max(round(steps * BATCH_SIZE / (pairs * _EPOCHS)), 1)
    return PretrainSettings(
        total_steps=steps,
        batch_size=BATCH_SIZE,
        init_lr=2e-3,
        warmup_steps=pairs * passes // BATCH_SIZE,
        lr_decay_rate=_LAST_LR_SHARE ** (1 / _EPOCHS),
        max_tokens=12,
        passes_per_epoch=passes,
        workers=0,
        max_bad_samples=0,
    )


def run_demo(
    steps: int, seed: int, device: torch.device, on_step: Callable[[StepReport, MetricLog], None]
) -> DemoResult:
    """Pre-train and evaluate; the same arguments on the same machine give the same numbers to the bit."""
    with deterministic_algorithms(), few_threads():
        generator = seed_everything(seed)
        image_size = _MODEL["image_size"]
        train_pairs = demo_pairs("train", train_transform(image_size, flip=False, augment=False))
        test_pairs = demo_pairs("test", eval_transform(image_size))
        settings = demo_settings(steps, len(train_pairs))
        # Some 400 entries instead of 30,524: a step takes half the time, and no caption changes.
        tokenizer = restrict_vocabulary(load_tokenizer(), train_pairs.captions)
        model = BlipPretrain(BlipConfig.tiny(vocab_size=len(tokenizer), **_MODEL)).to(device)
        started = time.perf_counter()
        log, _ = pretrain(model, tokenizer, train_pairs, settings, device, generator, on_step)
        trained = time.perf_counter()
        model.eval()
        encoded = encode_pairs(model, tokenizer, test_pairs, settings.max_tokens, device)
        logits = matching_logits(model, encoded, model.config.enc_token_id)
        ids = caption_ids(model, encoded.images, settings.max_tokens)
        return DemoResult(
            model=model,
            tokenizer=tokenizer,
            settings=settings,
            seed=seed,
            train_pairs=train_pairs,
            test_pairs=test_pairs,
            log=log,
            cosine=(encoded.image_features @ encoded.text_features.T).cpu(),
            matching=logits.softmax(dim=-1)[..., 1].cpu(),
            reranked=retrieval_scores(encoded, logits).cpu(),
            captions=[decode_caption(tokenizer, row) for row in ids],
            exact=same_texts(tokenizer, ids, encoded.input_ids),
            seconds={"training": trained - started, "evaluation": time.perf_counter() - trained},
        )


def caption_ids(model: BlipPretrain, images: torch.Tensor, max_tokens: int) -> torch.Tensor:
    """Captions (N, <= max_tokens) of images, [DEC] first, by the decoder of a pre-trained model (beam search)."""
    captioner = BlipCaptioner(model.config).to(images.device).eval()
    state = model.state_dict()
    captioner.load_state_dict({name: state[name] for name in captioner.state_dict()})
    start = torch.tensor([model.config.dec_token_id])
    return captioner.generate_ids(images, start, num_beams=3, max_length=max_tokens, min_length=2)


def decode_caption(tokenizer: PreTrainedTokenizerFast, ids: torch.Tensor) -> str:
    """Text of ids (n) without special tokens; hyphens stand between their words as they do in the captions."""
    return tokenizer.decode(ids, skip_special_tokens=True).replace(" - ", "-")


def same_texts(tokenizer: PreTrainedTokenizerFast, ids: torch.Tensor, others: torch.Tensor) -> list[bool]:
    """Whether each row of ids (N, n) and of others (N, m) is the same text; special tokens do not count."""
    special = set(tokenizer.all_special_ids)

    def words(row: torch.Tensor) -> list[int]:
        return [token for token in row.tolist() if token not in special]

    return [words(row) == words(other) for row, other in zip(ids, others, strict=True)]


@contextlib.contextmanager
def few_threads() -> Iterator[None]:
    """Within the block torch uses at most four threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, _MAX_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)
