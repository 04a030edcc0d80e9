"""Models of this library that are called as those of the published code are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from blip_fast import models
from blip_fast.data.tokens import PROMPT, tokenize
from blip_fast.reference.text import TextEncoder

Texts: TypeAlias = str | Sequence[str]


class Captioner(models.BlipCaptioner):
    """Published ``BLIP_Decoder``."""

    prompt = PROMPT

    def forward(self, image: Tensor, caption: Texts) -> Tensor:  # type: ignore[override]
        """Loss of captions, which begin with the prompt."""
        prompt_length = len(self.tokenizer(self.prompt).input_ids) - 1
        return super().forward(image, *tokenize(_list(caption), "caption", self.tokenizer), prompt_length).loss

    def generate(  # type: ignore[override]
        self,
        image: Tensor,
        sample: bool = False,
        num_beams: int = 3,
        max_length: int = 30,
        min_length: int = 10,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
    ) -> list[str]:
        """Captions without the prompt; the penalty is that of beam search, and 1.1 where ``sample`` is set."""
        penalty = None if sample else repetition_penalty
        return super().generate(  # type: ignore[return-value]
            image,
            self.prompt,
            num_beams,
            max_length,
            min_length,
            do_sample=sample,
            top_p=top_p,
            repetition_penalty=penalty,
        )


class FeatureExtractor(models.BlipFeatureExtractor):
    """Published ``BLIP_Base``; texts of unequal length are padded."""

    def forward(self, image: Tensor, caption: Texts, mode: Literal["image", "text", "multimodal"]) -> Tensor:
        """States of all tokens."""
        if mode == "image":
            return self.image_features(image)
        if mode == "text":
            return self.text_features(_list(caption))
        if mode == "multimodal":
            return self.multimodal_features(image, _list(caption))
        raise ValueError(f"mode={mode!r}; expected 'image', 'text' or 'multimodal'")


class Matching(models.BlipITM):
    """Published ``BLIP_ITM``."""

    def forward(self, image: Tensor, caption: Texts, match_head: Literal["itm", "itc"] = "itm") -> Tensor:
        """Logits (S, 2) of "no match" and "match", or cosine similarities (B, S)."""
        if match_head not in ("itm", "itc"):
            raise ValueError(f"match_head={match_head!r}; expected 'itm' or 'itc'")
        return (self.itm if match_head == "itm" else self.itc)(image, _list(caption))


class VQA(models.BlipVQA):
    """Published ``BLIP_VQA``."""

    def forward(  # type: ignore[override]
        self,
        image: Tensor,
        question: Texts,
        answer: Any = None,
        n: Sequence[int] | None = None,
        weights: Tensor | None = None,
        train: bool = True,
        inference: Literal["rank", "generate"] = "rank",
        k_test: int = 128,
    ) -> Tensor | list[str]:
        """The loss; or else written answers, or for each question the index of its best answer.

        Args:
            answer: strings in training; for "rank" the candidates as the tokenizer returns them.
            n, weights: answers of each question, and the weight of each answer.
        """
        questions = _list(question)
        if train:
            if answer is None or n is None or weights is None:
                raise ValueError("answer, n or weights is missing; expected all three where train=True")
            return super().forward(image, questions, None, answer, None, n, weights).loss
        if inference == "generate":
            return self.answer(image, questions, num_beams=3, max_length=10, min_length=1)
        if inference != "rank":
            raise ValueError(f"inference={inference!r}; expected 'rank' or 'generate'")
        if answer is None:
            raise ValueError("answer is missing; expected the candidates' tokens for inference='rank'")
        tokens = self.tokenize_questions(questions, image)
        return self.rank_ids(image, *tokens, answer.input_ids, answer.attention_mask, k_test).best


class NLVR(models.BlipNLVR):
    """Published ``BLIP_NLVR``."""

    def forward(self, image: Tensor, text: Texts, targets: Tensor, train: bool = True) -> Tensor:  # type: ignore[override]
        """The loss, or logits (B, 2); ``image`` (2B, 3, S, S) holds all first images, then all second ones."""
        pairs = image.unflatten(0, (2, -1)).transpose(0, 1)
        output = super().forward(pairs, _list(text), None, targets)
        loss = output.loss
        return loss if train and loss is not None else output.logits


class CalledTextEncoder(TextEncoder):
    """A text encoder that is called as published."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
        mode: Literal["text", "multimodal"] = "multimodal",
    ) -> BaseModelOutput:
        """States as ``last_hidden_state``."""
        hidden = super().forward(input_ids, attention_mask, encoder_hidden_states, encoder_attention_mask, mode)
        return BaseModelOutput(last_hidden_state=hidden)


class Retrieval(models.BlipRetrieval):
    """Published ``BLIP_Retrieval``."""

    def forward(self, image: Tensor, caption: Texts, alpha: float, idx: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Contrastive and matching loss."""
        output = super().forward(image, _list(caption), None, idx.view(-1), alpha)
        return output.loss_itc, output.loss_itm


class Pretrain(models.BlipPretrain):
    """Published ``BLIP_Pretrain``."""

    def forward(self, image: Tensor, caption: Texts, alpha: float) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Contrastive, matching and language-modelling loss."""
        output = super().forward(image, _list(caption), None, alpha)
        return output.loss_itc, output.loss_itm, output.loss_lm


def _list(texts: Texts) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)
