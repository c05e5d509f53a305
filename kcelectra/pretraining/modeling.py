# mypy: disable-error-code="assignment"
# ModelOutput wants a default for each field, though all are always set.
"""The joint model: a generator that proposes replacements and a discriminator that finds them.

Dimension key: B batch, L max_length, K masked positions per row, E embedding, H hidden, V vocabulary.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    PreTrainedModel,
)
from transformers.models.electra.modeling_electra import (
    ElectraDiscriminatorPredictions,
    ElectraEmbeddings,
    ElectraGeneratorPredictions,
    ElectraLayer,
)
from transformers.utils import ModelOutput

from kcelectra.errors import InputError
from kcelectra.pretraining.attention import mask_documents
from kcelectra.pretraining.collator import IGNORED
from kcelectra.pretraining.configuration import KcElectraConfig
from kcelectra.pretraining.dropout import ATTENTION, use_fast_dropout
from kcelectra.pretraining.embeddings import DisentangledEmbedding, disentangle
from kcelectra.pretraining.masked_head import masked_language_modeling

#: Shared by both halves, as by the reference's variable scope `electra/embeddings`; `ElectraForMaskedLM` itself ties
#: the output embedding of the generator to its input embedding.
SHARED_EMBEDDINGS = (
    "word_embeddings.weight",
    "position_embeddings.weight",
    "token_type_embeddings.weight",
    "LayerNorm.weight",
    "LayerNorm.bias",
)


class MaskedHead(torch.nn.Module):
    """`masked_language_modeling`, as a part that can be compiled by itself."""

    def forward(self, *inputs: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        """See `masked_language_modeling`."""
        return masked_language_modeling(*inputs, **options)


#: What `compile_parts` compiles; the rest of a step handles no hidden states but to hand them on.
PARTS = (ElectraEmbeddings, ElectraLayer, ElectraGeneratorPredictions, ElectraDiscriminatorPredictions, MaskedHead)
RECOMPILE_LIMIT = 32


@dataclass
class KcElectraForPreTrainingOutput(ModelOutput):
    """What a pretraining step computes.

    Args:
        loss: scalar float32, `generator_weight * generator_loss + discriminator_weight * discriminator_loss`.
        generator_loss: scalar float32, nats per masked position.
        discriminator_loss: scalar float32, nats per token that is not padding.
        discriminator_logits: (batch, length) float32; above 0 means "replaced".
        is_replaced: (batch, length) bool; what the discriminator is to find.
        generator_predictions: (batch, masked) int64, the generator's most probable tokens.
        sampled_ids: (batch, masked) int64, the tokens drawn; the original where a slot holds no position.
    """

    loss: Tensor = None
    generator_loss: Tensor = None
    discriminator_loss: Tensor = None
    discriminator_logits: Tensor = None
    is_replaced: Tensor = None
    generator_predictions: Tensor = None
    sampled_ids: Tensor = None


class KcElectraForPreTraining(PreTrainedModel):
    """A generator and a discriminator with shared embeddings, trained jointly on replaced token detection.

    Takes the batches of `DataCollatorForReplacedTokenDetection` and works with the stock `transformers.Trainer`.
    `generator` and `discriminator` are plain Hugging Face models; `kcelectra.export_checkpoint` writes them apart.
    """

    config: KcElectraConfig
    config_class = KcElectraConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _tied_weights_keys = {
        f"generator.electra.embeddings.{name}": f"discriminator.electra.embeddings.{name}"
        for name in SHARED_EMBEDDINGS
    }

    def __init__(self, config: KcElectraConfig) -> None:
        super().__init__(copy.deepcopy(config))  # what is set on the halves below must not reach other models
        self.discriminator = ElectraForPreTraining(self.config.discriminator_config)
        self.generator = ElectraForMaskedLM(self.config.generator_config)
        self.masked_head = MaskedHead()
        use_fast_dropout(self)
        self.use_attention(self.config._attn_implementation)
        self.is_generator_frozen = False
        is_disentangled = self.config.embedding_sharing == "gdes"
        if is_disentangled:
            self._tied_weights_keys = {}
        self.post_init()
        if is_disentangled:  # after the weights are initialised: differences begin at 0
            disentangle(self.discriminator.electra.embeddings, self.generator.electra.embeddings)

    def use_attention(self, back_end: str) -> None:
        """Let a back end of `attention.BACK_ENDS` compute attention from now on."""
        self.config._attn_implementation = back_end
        for half in (self.generator, self.discriminator):
            half.config._attn_implementation = ATTENTION if back_end == "sdpa" else back_end

    def freeze_generator(self) -> None:
        """Train the discriminator alone from now on; the generator only draws, without dropout.

        Raises:
            InputError: the halves share their embeddings in full.

        Source: Dong et al. 2023 (Fast-ELECTRA), arXiv 2310.07347.
        """
        if self.config.embedding_sharing != "gdes":
            raise InputError(
                "a frozen generator has embeddings that do not move, and the discriminator would share them in full; "
                "give --embedding_sharing gdes"
            )
        self.is_generator_frozen = True
        self.config.generator_weight = 0.0
        self.generator.requires_grad_(False).eval()

    def freeze_discriminator(self) -> None:
        """Train the generator alone from now on, with the embeddings that the halves share."""
        of_generator = {id(parameter) for parameter in self.generator.parameters()}
        for parameter in self.discriminator.parameters():
            parameter.requires_grad_(id(parameter) in of_generator)

    def train(self, mode: bool = True) -> "KcElectraForPreTraining":
        """Turn dropout on or off; a frozen generator has none."""
        super().train(mode)
        if self.is_generator_frozen:
            self.generator.eval()
        return self

    def forward(
        self,
        input_ids: Tensor,
        masked_positions: Tensor,
        masked_labels: Tensor,
        document_ids: Tensor,
        position_ids: Tensor,
        token_type_ids: Tensor,
        num_masked: Tensor | None = None,
        num_tokens: Tensor | None = None,
        row_id: Tensor | None = None,
        sampling_temperature: Tensor | None = None,
        *,
        generator_only: bool = False,
        short_length: int | None = None,
    ) -> KcElectraForPreTrainingOutput:
        """Compute both losses of one batch of packed rows.

        Args:
            input_ids: (batch, length) int64, masked tokens replaced by `[MASK]`: what the generator reads.
            masked_positions: (batch, masked) int64, distinct positions in a row; 0 where a slot is not used.
            masked_labels: (batch, masked) int64, the original tokens; -100 where a slot is not used.
            document_ids: (batch, length) int64, 1, 2, ... along a row and 0 for padding. A token attends to its own
                document only, so a packed row computes what its documents would compute apart.
            position_ids: (batch, length) int64, restarting at 0 in each document.
            token_type_ids: (batch, length) int64, 0 up to the first `[SEP]` of a document, then 1.
            num_masked: scalar, divisor of the generator's loss; the number of used slots here if None.
                `KcElectraTrainer` gives the count over all accumulated batches and processes.
            num_tokens: scalar, divisor of the discriminator's loss; the number of non-padding tokens here if None.
            row_id: (batch,) int64; names a row in a message, not used in the computation.
            sampling_temperature: scalar, in place of the configuration's; a tensor, because compiled code is made anew
                for each number.
            generator_only: leave the discriminator's loss out of `loss`; it is computed without gradients. Where the
                configuration weighs it 0, nothing is drawn, the discriminator does not run and its logits are 0:
                masked language modelling alone.
            short_length: divides the length; both halves see rows that are cut there. A document across a cut becomes
                two that do not see each other, whose tokens keep their positions.

        Returns:
            The losses, and what their metrics are computed from.

        Source: Clark et al. 2020, section 2; google-research/electra `run_pretraining.py`. Differs from the reference:
        one draw per masked position (there, duplicate positions average the ids of two draws).
        """
        generator_only = generator_only or not self.config.discriminator_weight
        is_token = document_ids > 0
        rows = -1, short_length or input_ids.shape[1]
        context = {
            "attention_mask": self._attention_mask(document_ids.view(rows)),
            "token_type_ids": token_type_ids.view(rows),
            "position_ids": position_ids.view(rows),
        }
        temperature: float | Tensor | None = None  # nothing is drawn
        if self.config.discriminator_weight:
            temperature = self.config.sampling_temperature if sampling_temperature is None else sampling_temperature
        is_used = masked_labels != IGNORED
        generator_nats, sampled_ids, predictions = self._generate(
            input_ids, masked_positions, masked_labels, context, temperature
        )
        generator_loss = generator_nats / (is_used.sum() if num_masked is None else num_masked)
        original_ids = torch.where(is_used, masked_labels, input_ids.gather(1, masked_positions))  # (B, K)
        sampled_ids = torch.where(is_used, sampled_ids, original_ids)
        corrupted_ids = input_ids.scatter(1, masked_positions, sampled_ids)  # (B, L)
        is_replaced = corrupted_ids != input_ids.scatter(1, masked_positions, original_ids)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not generator_only):
            if self.config.discriminator_weight:
                discriminator_logits = self.discriminator(corrupted_ids.view(rows), **context).logits.float()
                discriminator_logits = discriminator_logits.view_as(is_token)  # (B, L)
            else:
                discriminator_logits = torch.zeros_like(is_token, dtype=torch.float32)
            discriminator_loss = _mean_binary_cross_entropy(discriminator_logits, is_replaced, is_token, num_tokens)
        loss = self.config.generator_weight * generator_loss
        if not generator_only:
            loss = loss + self.config.discriminator_weight * discriminator_loss
        elif distributed.is_initialized():  # a process group waits for a gradient of each parameter
            parameters = self.discriminator.parameters()
            waited_for = (each for each in parameters if each.requires_grad and not isinstance(each, DTensor))
            loss = loss + 0.0 * sum(parameter.sum() for parameter in waited_for)
        return KcElectraForPreTrainingOutput(
            loss=loss,
            generator_loss=generator_loss,
            discriminator_loss=discriminator_loss,
            discriminator_logits=discriminator_logits,
            is_replaced=is_replaced,
            generator_predictions=predictions,
            sampled_ids=sampled_ids,
        )

    def _generate(
        self,
        input_ids: Tensor,
        masked_positions: Tensor,
        masked_labels: Tensor,
        context: dict[str, Any],
        temperature: float | Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Score the vocabulary at the masked positions only; return summed nats, draws and predictions, (B, K)."""
        hidden = self.generator.electra(input_ids.view_as(context["position_ids"]), **context).last_hidden_state
        hidden = hidden.view(*input_ids.shape, -1)  # (B, L, H)
        index = masked_positions[:, :, None].expand(-1, -1, hidden.shape[-1])
        projected = self.generator.generator_predictions(hidden.gather(1, index))  # (B, K, E)
        nats, sampled_ids, predictions = self.masked_head(
            projected.flatten(0, 1),
            self.generator.generator_lm_head.weight,
            self.generator.generator_lm_head.bias,
            masked_labels.flatten(),
            temperature=temperature,
            unsampled_token_ids=self.config.unsampled_token_ids,
        )
        return nats, sampled_ids.view_as(masked_labels), predictions.view_as(masked_labels)

    def _attention_mask(self, document_ids: Tensor) -> Tensor | BlockMask:
        return mask_documents(document_ids, back_end=self.config._attn_implementation, dtype=self.dtype)

    def compile_parts(self, *, backend: str | Callable = "inductor") -> None:
        """Compile the parts of a step in place, each kind once; parameters keep their names.

        A step compiles as a whole too, without a break, but for as long as it has layers.
        """
        # layers of both halves are one kind, in training and evaluation, for short rows and a last batch: more than 8
        torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
        for module in self.modules():
            if isinstance(module, PARTS):
                module.compile(fullgraph=True, dynamic=False, backend=backend)

    def get_input_embeddings(self) -> torch.nn.Embedding:
        """Return the word embedding table that both halves read, (vocab, embedding)."""
        return self.generator.electra.embeddings.word_embeddings

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> torch.nn.Embedding:
        """Resize the shared table, the generator's output layer and all three `vocab_size` entries.

        The inherited method leaves the sub-configurations behind, and the exported generator would not load.
        """
        words = self.discriminator.electra.embeddings.word_embeddings
        is_disentangled = isinstance(words, DisentangledEmbedding)
        for half in (self.generator,) if is_disentangled else (self.discriminator, self.generator):
            half.resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if is_disentangled:
            words.resize()
            self.discriminator.config.vocab_size = self.generator.config.vocab_size
        self.tie_weights()
        return self.get_input_embeddings()


def _mean_binary_cross_entropy(logits: Tensor, labels: Tensor, is_counted: Tensor, divisor: Tensor | None) -> Tensor:
    losses = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none") * is_counted
    return losses.sum() / (is_counted.sum() if divisor is None else divisor)


AutoModel.register(KcElectraConfig, KcElectraForPreTraining)
AutoModelForPreTraining.register(KcElectraConfig, KcElectraForPreTraining)
