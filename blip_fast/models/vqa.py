"""Visual question answering on the fused operations: all answers of a question share its keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blip_fast.data.packing import IGNORED, PackedTexts, pack
from blip_fast.data.tokens import strings_of, tokenize
from blip_fast.generation import Generated, GeneratedIds, OptionArguments, Options, generate, prompts_of
from blip_fast.models.strings import Texts, own_images, pack_texts
from blip_fast.models.text import AttentionDropout, LookAt, decoder_stream, encoder_stream, run_layers, token_losses
from blip_fast.models.vit import image_states
from blip_fast.outputs import VQAOutput
from blip_fast.reference.vqa import BlipVQA as ReferenceVQA
from blip_fast.reference.vqa import Ranking

if TYPE_CHECKING:
    from typing_extensions import Unpack


class BlipVQA(ReferenceVQA):
    """Image encoder, question encoder that looks at the image, answer decoder that looks at the question."""

    def forward(
        self,
        image: Tensor,
        question_ids: Texts,
        question_mask: Tensor | None,
        answer_ids: Texts,
        answer_mask: Tensor | None,
        answers_per_question: Tensor | Sequence[int],
        weights: Tensor,
    ) -> VQAOutput:
        """Answer loss: weighted sum over answers, divided by the number of questions. Arguments are the reference's.

        Questions and answers may come packed, or as strings.
        """
        answers = pack_texts(answer_ids, answer_mask, "answer", self, image.device)
        counts = torch.as_tensor(answers_per_question)
        readable = counts.device.type == "cpu" and not torch.compiler.is_compiling()
        if counts.shape != image.shape[:1] or (readable and int(counts.sum()) != len(answers)):
            raise ValueError(
                f"answers_per_question={counts.tolist()} for {len(image)} images and {len(answers)} answers; "
                "expected one count per image, together the number of answers"
            )
        if weights.shape != (len(answers),):
            raise ValueError(f"weights has shape {tuple(weights.shape)}; expected ({len(answers)},), one per answer")
        questions = torch.arange(len(image), device=image.device)
        question_of_answer = questions.repeat_interleave(counts.to(image.device), output_size=len(answers))
        states, lengths = self.packed_question_states(image, question_ids, question_mask)
        losses = self.packed_answer_losses(answers, states, lengths, question_of_answer)
        return VQAOutput((weights * losses).sum() / len(image))

    def packed_question_states(
        self, image: Tensor, question_ids: Texts, question_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """States (B, N, text_width) of questions that have seen their images, 0 at padding; and their lengths (B,)."""
        texts = pack_texts(question_ids, question_mask, "question", self, image.device)
        texts = texts.with_first_token(self.config.enc_token_id)
        dropout = AttentionDropout.of(self, image.device)
        own = own_images(texts, len(image), image.device)
        stream = encoder_stream(self.text_encoder, texts, own, first_only=False)
        look = LookAt(self.visual_states(image))
        (hidden,) = run_layers(self.text_encoder.encoder.layer, [stream], dropout, look)
        return texts.unpack(hidden), texts.cu_seqlens.diff()

    def packed_answer_losses(
        self, answers: PackedTexts, states: Tensor, lengths: Tensor, question_of_answer: Tensor
    ) -> Tensor:
        """Label-smoothed loss of each answer, summed over its tokens, given its question's states: (A,)."""
        answers = answers.with_first_token(self.config.dec_token_id)
        hidden = self._decode(answers, states, lengths, question_of_answer)
        labels, smoothing = answers.next_tokens(), self.config.label_smoothing
        losses = token_losses(self.text_decoder, hidden, labels, smoothing, "none")
        return answers.unpack(losses).sum(1)

    def visual_states(self, image: Tensor) -> Tensor:
        """Images (B, 3, S, S) -> states (B, L, vit_width) that questions look at."""
        return image_states(self.visual_encoder, image)

    def generate_ids(
        self,
        image: Tensor,
        question_ids: Tensor,
        question_mask: Tensor,
        num_beams: int = 3,
        max_length: int = 10,
        min_length: int = 1,
        *,
        return_scores: bool = False,
        **options: Unpack[OptionArguments],
    ) -> Tensor | GeneratedIds:
        """Answers (B * num_return_sequences, n <= max_length) that begin with [DEC], padding behind [SEP].

        As published, the decoder attends the padding of the questions here, unlike in training and ranking. Options and
        ``return_scores`` are those of :meth:`BlipCaptioner.generate_ids <blip_fast.models.BlipCaptioner.generate_ids>`.
        """
        settings = Options(num_beams, max_length, min_length, **options)
        with torch.no_grad():
            states = self.question_states(image, question_ids, question_mask.to(image.device))
            prompts = prompts_of(question_ids.new_tensor([self.config.dec_token_id]), len(image), self.config)
            result = generate(self.text_decoder, states, prompts, settings, self.config)
        return result if return_scores else result.ids

    def answer(  # type: ignore[override]  # scores come in another form than texts
        self,
        images: Tensor,
        questions: Sequence[str],
        num_beams: int = 3,
        max_length: int = 10,
        min_length: int = 1,
        *,
        return_scores: bool = False,
        **options: Unpack[OptionArguments],
    ) -> list[str] | list[Generated]:
        """Generated answers, ``num_return_sequences`` for each image and its question; see :meth:`generate_ids`.

        ``return_scores`` gives :class:`blip_fast.generation.Generated` with log-probabilities in place of strings.
        """
        tokens = self.tokenize_questions(list(questions), images)
        result = self.generate_ids(images, *tokens, num_beams, max_length, min_length, return_scores=True, **options)
        assert isinstance(result, GeneratedIds)
        texts = self.tokenizer.batch_decode(result.ids, skip_special_tokens=True)
        return result.with_texts(texts) if return_scores else texts

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
        states, lengths = self.packed_question_states(image, question_ids, question_mask)
        return self._rank(states, lengths, candidate_ids, candidate_mask, k)

    def _rank(self, states: Tensor, lengths: Tensor, candidate_ids: Tensor, candidate_mask: Tensor, k: int) -> Ranking:
        """Candidates (C, M) for questions of states (B, N, text_width)."""
        if k < 1:
            raise ValueError(f"k={k}; expected at least 1")
        batch, k = len(states), min(k, len(candidate_ids))
        start = pack(candidate_ids.new_full((batch, 1), self.config.dec_token_id))
        questions = torch.arange(batch, device=states.device)
        hidden = self._decode(start, states, lengths, questions)
        probabilities = self.text_decoder.cls(hidden).softmax(dim=1).index_select(1, candidate_ids[:, 1])
        kept = probabilities.topk(k, dim=1).indices

        # the last token of an answer predicts nothing: a third of the tokens of most answers
        mask, chosen = candidate_mask[:, 1:], kept.flatten()
        inputs, targets = pack(candidate_ids[:, :-1], mask), pack(candidate_ids[:, 1:], mask)
        answers = inputs.select(chosen, chosen.numel() * inputs.max_length).with_first_token(self.config.dec_token_id)
        labels = targets.select(chosen, chosen.numel() * targets.max_length).input_ids
        labels = labels.masked_fill(labels == self.config.pad_token_id, IGNORED)
        hidden = self._decode(answers, states, lengths, questions.repeat_interleave(k))
        losses = token_losses(self.text_decoder, hidden, labels, self.config.label_smoothing, "none")
        losses = answers.unpack(losses).sum(1)
        scores = -losses.view(batch, k)
        return Ranking(kept.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0], kept, scores)

    def rank(  # type: ignore[override]  # scores come in another form than texts
        self,
        images: Tensor,
        questions: Sequence[str],
        candidates: Sequence[str],
        k: int = 128,
        *,
        return_scores: bool = False,
    ) -> list[str] | list[Generated]:
        """The best of the candidate answers for each image and question; see :meth:`rank_ids`.

        ``return_scores`` gives :class:`blip_fast.generation.Generated` in place of strings: log-probabilities of the chosen
        answer, [SEP] included.
        """
        answer_ids, answer_mask = tokenize(candidates, "answer", self.tokenizer)
        question_ids, question_mask = (part.cpu() for part in self.tokenize_questions(list(questions), images))
        question_ids, answer_ids = question_ids.to(images.device), answer_ids.to(images.device)
        with torch.no_grad():
            states, lengths = self.packed_question_states(images, question_ids, question_mask)
            best = self._rank(states, lengths, answer_ids, answer_mask, k).best
            texts = [strings_of(candidates)[index] for index in best.tolist()]
            if not return_scores:
                return texts
            chosen = (answer_ids[best], answer_mask[best.to(answer_mask.device)])
            return self._answer_logprobs(*chosen, states, lengths).with_texts(texts)

    def _answer_logprobs(
        self, answer_ids: Tensor, answer_mask: Tensor, states: Tensor, lengths: Tensor
    ) -> GeneratedIds:
        """Log-probabilities of answers (B, M), one for each question."""
        answers = pack(answer_ids, answer_mask).with_first_token(self.config.dec_token_id)
        hidden = self._decode(answers, states, lengths, torch.arange(len(answers), device=states.device))
        labels = answers.next_tokens()
        logprobs = self.text_decoder.cls(hidden).float().log_softmax(dim=1).gather(1, labels.clamp(min=0)[:, None])
        logprobs = answers.unpack(logprobs[:, 0] * (labels >= 0)).roll(1, dims=1)
        generated = answers.padded_mask()
        generated[:, 0] = False
        return GeneratedIds(answers.unpack(answers.input_ids), logprobs, generated)

    def _decode(self, answers: PackedTexts, states: Tensor, lengths: Tensor, question_of_answer: Tensor) -> Tensor:
        """Final states (T, text_width) of answers that begin with [DEC], each looking at its question's states."""
        dropout = AttentionDropout.of(self, states.device)
        stream = decoder_stream(self.text_decoder, answers, question_of_answer)
        layers = self.text_decoder.bert.encoder.layer
        (hidden,) = run_layers(layers, [stream], dropout, LookAt(states, lengths))
        return hidden
