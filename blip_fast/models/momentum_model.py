"""What pre-training and retrieval share on the fused path: features, contrastive loss, queues and matching."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.data.packing import PackedTexts, check_indices
from blip_fast.models.text import AttentionDropout, Stream, encoder_stream, run_layers
from blip_fast.models.vit import class_state, image_states
from blip_fast.ops import enqueue_, mine_hard_negatives, momentum_update_
from blip_fast.outputs import Negatives
from blip_fast.reference.momentum_model import MomentumModel as ReferenceMomentumModel
from blip_fast.reference.text import TextEncoder


class MomentumModel(ReferenceMomentumModel):
    """The reference's parameters, names and initialisation with fused steps.

    Attributes:
        momentum_in_forward: whether a forward pass moves the momentum copies, as published. Set it to False where the
            optimizer does it in its step (`blip_fast.optim.AdamWMomentum` with ``momentum_pairs=model.momentum_pairs()``).
        momentum_dtype: precision of the products in the momentum encoders, `torch.bfloat16` for one; None, the default, is
            that of the rest of the model. It changes the targets of the contrastive loss by rounding. The momentum
            parameters stay float32: in bfloat16 a step of 0.005 towards the online parameters would be lost in rounding.
            They are cast where they are used, which moves no more bytes than a second copy in bfloat16, written after each
            update, would.
    """

    momentum_in_forward = True
    momentum_dtype: torch.dtype | None = None

    def update_momentum(self) -> None:
        """Move the momentum copies towards the online parameters, in one launch; nothing where the optimizer does it."""
        if not self.momentum_in_forward:
            return
        params_m, params = zip(*self.momentum_pairs(), strict=True)
        momentum_update_(params_m, params, self.config.momentum)

    def features(self, image: Tensor, texts: PackedTexts) -> tuple[Tensor, Tensor, Tensor]:
        """Image states (B, L, vit_width) and the normalised features of images and texts, (B, E) each."""
        states = image_states(self.visual_encoder, image)
        image_feat = F.normalize(self.vision_proj(states[:, 0]), dim=-1)
        text_feat = F.normalize(self.text_proj(self.text_state(self.text_encoder, texts)), dim=-1)
        return states, image_feat, text_feat

    def features_m(self, image: Tensor, texts: PackedTexts, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Normalised features of the momentum encoders, (B, E) each of ``dtype``; the last layers compute one token only.

        They run in inference mode, without autograd's bookkeeping.
        """
        precision = contextlib.nullcontext()
        if self.momentum_dtype is not None:
            precision = torch.autocast(image.device.type, self.momentum_dtype)
        # while a graph is traced, the compiler cannot take inference mode, and drops the bookkeeping itself
        frozen = torch.no_grad() if torch.compiler.is_compiling() else torch.inference_mode()
        with frozen, precision:
            image_feat = F.normalize(self.vision_proj_m(class_state(self.visual_encoder_m, image)), dim=-1)
            text_feat = F.normalize(self.text_proj_m(self.text_state(self.text_encoder_m, texts)), dim=-1)
        # copies, as a backward pass takes nothing that was made in inference mode
        return image_feat.to(dtype, copy=True), text_feat.to(dtype, copy=True)

    def text_state(self, encoder: TextEncoder, texts: PackedTexts) -> Tensor:
        """State of the first token of texts that see no image, (S, text_width)."""
        dropout = AttentionDropout.of(self, texts.input_ids.device)
        return run_layers(encoder.encoder.layer, [encoder_stream(encoder, texts)], dropout)[0]

    def enqueue_rows(self, pointer: Tensor, **rows_of_queue: Tensor) -> None:
        """Put rows (B, E) of all ranks into the queues of these names, which share a pointer."""
        start = pointer.clone()
        for name, rows in zip(rows_of_queue, self.gather_features(*rows_of_queue.values()), strict=True):
            pointer.copy_(start)
            enqueue_(getattr(self, name), rows, pointer)

    def draw_negatives(
        self, sim_i2t: Tensor, sim_t2i: Tensor, ids: Tensor | None = None, epsilon: float = 1e-4, row_offset: int = 0
    ) -> Negatives:
        """Hard negatives for both directions, from a seed drawn on the device."""
        seed = torch.randint(2**62, (1,), device=sim_i2t.device)
        return mine_hard_negatives(sim_i2t, sim_t2i, ids, epsilon, seed=seed, row_offset=row_offset)

    def given_negatives(self, negatives: tuple[Tensor, Tensor], candidates: int) -> Negatives:
        """Negatives that the caller chose. ValueError where they are no rows of the candidates (checked on a CPU only)."""
        chosen = Negatives(*negatives)
        for name, indices in zip(chosen._fields, chosen, strict=True):
            check_indices(name, indices, candidates)
        return chosen

    def matching_stream(self, texts: PackedTexts, image_of_text: Tensor) -> Stream:
        """Texts with [ENC] in front, each looking at an image, of which the first token's state is wanted."""
        return encoder_stream(self.text_encoder, texts.with_first_token(self.config.enc_token_id), image_of_text)

    def matching_loss_of(self, states: Tensor, pairs: int) -> Tensor:
        """ITM loss from first-token states (3 * pairs, width): the true pairs, then two wrong ones for each."""
        labels = torch.zeros(states.shape[0], dtype=torch.int64, device=states.device)
        labels[:pairs] = 1
        return F.cross_entropy(self.itm_head(states), labels)
