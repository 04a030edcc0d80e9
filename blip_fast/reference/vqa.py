"""Visual question answering: the question is encoded with the image, the answer decoded from the question's states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from blip_fast.checkpoints.pretrained import PretrainedModel
from blip_fast.config import BlipConfig
from blip_fast.data.tokens import tokenize
from blip_fast.outputs import VQAOutput
from blip_fast.reference.decoder import DecodingSession, TextDecoder, lm_labels, lm_loss
from blip_fast.reference.generation import Decoder, LengthNorm, Limits, beam_search, single_path
from blip_fast.reference.text import TextEncoder, with_first_token
from blip_fast.reference.vit import VisionTransformer


class Ranking(NamedTuple):
    """Result of ranking C candidate answers for B questions; ``best`` (B,) indexes the candidates.

    ``kept`` (B, k) are the candidates with the likeliest first token, ``scores`` (B, k) minus their summed loss.
    """

    best: Tensor
    kept: Tensor
    scores: Tensor


class BlipVQA(PretrainedModel):
    """Image encoder, question encoder that looks at the image, answer decoder that looks at the question."""

    head = "vqa"

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.visual_encoder = VisionTransformer(config)
        self.text_encoder = TextEncoder(config)
        self.text_decoder = TextDecoder(config, state_width=config.text_width)

    def visual_states(self, image: Tensor) -> Tensor:
        """Images (B, 3, S, S) -> states (B, L, vit_width) that questions look at."""
        return self.visual_encoder(image)

    def question_states(self, image: Tensor, question_ids: Tensor, question_mask: Tensor) -> Tensor:
        """States (B, N, text_width) of questions that have seen their images; questions start with [ENC]."""
        encoder_ids = with_first_token(question_ids, self.config.enc_token_id)
        return self.text_encoder(encoder_ids, question_mask, self.visual_states(image))

    def forward(
        self,
        image: Tensor,
        question_ids: Tensor,
        question_mask: Tensor,
        answer_ids: Tensor,
        answer_mask: Tensor,
        answers_per_question: Tensor | Sequence[int],
        weights: Tensor,
    ) -> VQAOutput:
        """Answer loss: weighted sum over answers, divided by the number of questions.

        Args:
            image: (B, 3, S, S) normalised images.
            question_ids, question_mask: (B, N) questions, [CLS] first.
            answer_ids, answer_mask: (A, M) answers to all questions, one question after the other, [CLS] first.
            answers_per_question: (B,) how many of them belong to each question; the sum is A.
            weights: (A,) weight of each answer.
        """
        counts = torch.as_tensor(answers_per_question, device=image.device)
        if counts.shape != image.shape[:1] or int(counts.sum()) != len(answer_ids):
            raise ValueError(
                f"answers_per_question={counts.tolist()} for {len(image)} images and {len(answer_ids)} answers; "
                "expected one count per image, together the number of answers"
            )
        states = self.question_states(image, question_ids, question_mask).repeat_interleave(counts, dim=0)
        state_mask = question_mask.repeat_interleave(counts, dim=0)
        losses = self.answer_losses(answer_ids, answer_mask, states, state_mask)
        return VQAOutput((weights * losses).sum() / len(image))

    def answer_losses(self, answer_ids: Tensor, answer_mask: Tensor, states: Tensor, state_mask: Tensor) -> Tensor:
        """Label-smoothed loss of each answer (A, M), summed over its tokens, given its question's states: (A,)."""
        decoder_ids = with_first_token(answer_ids, self.config.dec_token_id)
        logits = self.text_decoder(decoder_ids, answer_mask, states, state_mask)
        labels = lm_labels(decoder_ids, self.config.pad_token_id)
        return lm_loss(logits, labels, self.config.label_smoothing, reduction="sequence")

    @torch.no_grad()
    def generate_ids(
        self,
        image: Tensor,
        question_ids: Tensor,
        question_mask: Tensor,
        num_beams: int = 3,
        max_length: int = 10,
        min_length: int = 1,
        length_norm: LengthNorm = "published",
    ) -> Tensor:
        """Answers (B, n <= max_length) that begin with [DEC], filled up with padding behind [SEP].

        As published, the decoder attends the padding of the questions here, unlike in training and ranking.
        """
        config = self.config
        limits = Limits(max_length, min_length, config.sep_token_id, config.pad_token_id)
        states = self.question_states(image, question_ids, question_mask)
        start = question_ids.new_full((len(image), 1), config.dec_token_id)
        session = self.decoding_session(states, num_beams, max_length)
        if num_beams == 1:
            return single_path(session, start, limits)
        return beam_search(session, start, limits, num_beams, length_norm)[0]

    def decoding_session(self, states: Tensor, copies: int, max_length: int) -> Decoder:
        """Decoding of ``copies`` answers per question, of ``max_length`` tokens at most."""
        return DecodingSession(self.text_decoder, states.repeat_interleave(copies, dim=0))

    @torch.no_grad()
    def rank_ids(
        self,
        image: Tensor,
        question_ids: Tensor,
        question_mask: Tensor,
        candidate_ids: Tensor,
        candidate_mask: Tensor,
        k: int = 128,
    ) -> Ranking:
        """Choose among candidates (C, M): the k with the likeliest first token, then the lowest loss of the answer."""
        batch, k = len(image), min(k, len(candidate_ids))
        states = self.question_states(image, question_ids, question_mask)
        start = question_ids.new_full((batch, 1), self.config.dec_token_id)
        logits = self.text_decoder(start, torch.ones_like(start), states, question_mask)[:, 0]
        kept = logits.softmax(dim=1).index_select(1, candidate_ids[:, 1]).topk(k, dim=1).indices

        answer_ids, answer_mask = candidate_ids[kept.view(-1)], candidate_mask[kept.view(-1)]
        states, state_mask = states.repeat_interleave(k, dim=0), question_mask.repeat_interleave(k, dim=0)
        scores = -self.answer_losses(answer_ids, answer_mask, states, state_mask).view(batch, k)
        best = kept.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]
        return Ranking(best, kept, scores)

    def answer(
        self, images: Tensor, questions: list[str], num_beams: int = 3, max_length: int = 10, min_length: int = 1
    ) -> list[str]:
        """Generated answers, one per image and question."""
        ids = self.generate_ids(images, *self.tokenize_questions(questions, images), num_beams, max_length, min_length)
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def rank(self, images: Tensor, questions: list[str], candidates: list[str], k: int = 128) -> list[str]:
        """The best of the candidate answers for each image and question."""
        answers = self.tokenizer(candidates, padding="longest", return_tensors="pt").to(images.device)
        questions_ids = self.tokenize_questions(questions, images)
        ranking = self.rank_ids(images, *questions_ids, answers.input_ids, answers.attention_mask, k)
        return [candidates[index] for index in ranking.best.tolist()]

    def tokenize_questions(self, questions: list[str], images: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, N) of questions, padded to the longest, cut to 35 tokens, on the images' device."""
        if len(questions) != len(images):
            raise ValueError(f"questions has {len(questions)} texts for {len(images)} images; expected one per image")
        ids, mask = tokenize(questions, "question", self.tokenizer)
        return ids.to(images.device), mask.to(images.device)
