"""Visual dialogue: which of many answers is the true one, given an image, its caption and what was said before.

From the paper (section 5.5, Figure 5c; there is no published code): embeddings of image and caption are concatenated and
passed to the dialogue encoder through cross-attention; history, question and answer are the encoder's text; the ITM loss
trains it to tell true answers from false ones. What the paper leaves open is read here as follows.

- The caption goes through the text encoder without an image, [CLS] first, and all of its last states are looked at. Both
  encoders are one module in its two modes, as in pre-training, so that every pre-trained checkpoint is complete.
- States of images come first, then those of the caption; nothing else tells them apart. Where the image encoder is
  wider than the text encoder (the large one), a linear layer ``caption_proj`` widens the caption's states.
- A text is [ENC], the utterances so far from the oldest to the question, then the answer; [SEP] ends each of them.
- The loss is the mean over all answers given. Answers are ranked by the probability of a match.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_fast.checkpoints.pretrained import PretrainedModel
from blip_fast.config import BlipConfig
from blip_fast.outputs import VisDialOutput
from blip_fast.reference.text import TextEncoder, with_first_token
from blip_fast.reference.vit import VisionTransformer


class DialogueRanking(NamedTuple):
    """Result of ranking C answers for each of B dialogues: ``best`` (B,) and log-probabilities ``scores`` (B, C)."""

    best: Tensor
    scores: Tensor


class BlipVisDial(PretrainedModel):
    """Image encoder, and a text encoder that reads captions by themselves and dialogues with image and caption."""

    head = "visdial"

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.visual_encoder = VisionTransformer(config)
        self.text_encoder = TextEncoder(config)
        self.itm_head = nn.Linear(config.text_width, 2)
        same_width = config.text_width == config.vit_width
        self.caption_proj = nn.Identity() if same_width else nn.Linear(config.text_width, config.vit_width)

    def forward(
        self,
        image: Tensor,
        caption_ids: Tensor,
        caption_mask: Tensor,
        dialogue_ids: Tensor,
        dialogue_mask: Tensor,
        answer_ids: Tensor,
        answer_mask: Tensor,
        labels: Tensor | None = None,
        image_of_dialogue: Tensor | None = None,
    ) -> VisDialOutput:
        """Loss (with labels) and logits (B, C, 2) of "false" and "true".

        Args:
            image: (I, 3, S, S) normalised images.
            caption_ids, caption_mask: (I, N) their captions, [CLS] first.
            dialogue_ids, dialogue_mask: (B, D) utterances up to the question, [CLS] first, [SEP] behind each.
            answer_ids, answer_mask: (B, C, M) answers to each question, [CLS] (which is dropped) first, [SEP] last.
            labels: (B, C) int64, 1 for a true answer.
            image_of_dialogue: (B,) image of each dialogue; None pairs them one to one. Rounds of one dialogue can
                share their image.
        """
        image_of_dialogue = self.images_of(image_of_dialogue, len(image), len(dialogue_ids), image.device)
        states, state_mask = self.context(image, caption_ids, caption_mask)
        answers = self.answers_per_dialogue(answer_ids, len(dialogue_ids))
        ids, mask = join_texts(
            dialogue_ids.repeat_interleave(answers, dim=0),
            dialogue_mask.repeat_interleave(answers, dim=0),
            answer_ids.flatten(0, 1),
            answer_mask.flatten(0, 1),
        )
        image_of_text = image_of_dialogue.repeat_interleave(answers)
        ids = with_first_token(ids, self.config.enc_token_id)
        hidden = self.text_encoder(ids, mask, states[image_of_text], state_mask[image_of_text])
        return self.output(self.itm_head(hidden[:, 0]).unflatten(0, (-1, answers)), labels)

    def context(self, image: Tensor, caption_ids: Tensor, caption_mask: Tensor) -> tuple[Tensor, Tensor]:
        """What dialogues look at: states (I, L + N, vit_width) of images and captions, and their mask (I, L + N)."""
        image_states = self.visual_encoder(image)
        caption_states = self.caption_proj(self.text_encoder(caption_ids, caption_mask, mode="text"))
        mask = torch.cat([caption_mask.new_ones(image_states.shape[:2]), caption_mask], dim=1)
        return torch.cat([image_states, caption_states], dim=1), mask

    def output(self, logits: Tensor, labels: Tensor | None) -> VisDialOutput:
        """The matching loss of logits (B, C, 2), where labels (B, C) are known."""
        if labels is None:
            return VisDialOutput(None, logits)
        if labels.shape != logits.shape[:2]:
            raise ValueError(f"labels has shape {tuple(labels.shape)}; expected {tuple(logits.shape[:2])}")
        return VisDialOutput(F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits)

    @torch.no_grad()
    def rank_ids(
        self,
        image: Tensor,
        caption_ids: Tensor,
        caption_mask: Tensor,
        dialogue_ids: Tensor,
        dialogue_mask: Tensor,
        answer_ids: Tensor,
        answer_mask: Tensor,
        image_of_dialogue: Tensor | None = None,
    ) -> DialogueRanking:
        """Rank the answers (VisDial has a pool of C = 100 for each question). Arguments are those of :meth:`forward`."""
        inputs = (image, caption_ids, caption_mask, dialogue_ids, dialogue_mask, answer_ids, answer_mask)
        scores = self(*inputs, image_of_dialogue=image_of_dialogue).logits.log_softmax(dim=-1)[..., 1]
        return DialogueRanking(scores.argmax(dim=1), scores)

    @staticmethod
    def images_of(image_of_dialogue: Tensor | None, images: int, dialogues: int, device: torch.device) -> Tensor:
        """(B,) image of each dialogue, by default the one of the same number."""
        if image_of_dialogue is not None:
            return image_of_dialogue
        if images != dialogues:
            raise ValueError(
                f"image has {images} images for {dialogues} dialogues; expected as many or image_of_dialogue"
            )
        return torch.arange(dialogues, device=device)

    @staticmethod
    def answers_per_dialogue(answer_ids: Tensor, dialogues: int) -> int:
        """C of answers (B, C, M)."""
        if answer_ids.ndim != 3 or answer_ids.shape[0] != dialogues:
            raise ValueError(f"answer_ids has shape {tuple(answer_ids.shape)}; expected ({dialogues}, C, M)")
        return answer_ids.shape[1]


def join_texts(first_ids: Tensor, first_mask: Tensor, second_ids: Tensor, second_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Right-padded texts (S, D) each continued by one of (S, M) without its first token: ids and mask (S, D + M - 1)."""
    lengths = first_mask.sum(1, keepdim=True)
    columns = torch.arange(first_ids.shape[1] + second_ids.shape[1] - 1, device=first_ids.device)
    columns = columns.expand(len(first_ids), -1)
    before = columns.clamp(max=first_ids.shape[1] - 1)
    behind = (columns - lengths + 1).clamp(0, second_ids.shape[1] - 1)
    ids = torch.where(columns < lengths, first_ids.gather(1, before), second_ids.gather(1, behind))
    mask = (columns < lengths + second_mask.sum(1, keepdim=True) - 1).to(first_mask.dtype)
    return ids * mask, mask
