"""Gradient-disentangled embedding sharing (GDES): one half reads the tables of the other and does not move them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.electra.modeling_electra import ElectraEmbeddings

TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")


class DisentangledEmbedding(nn.Module):
    """A table that is the sum of another one, which it does not train, and of a difference, which it does.

    The difference is 0 at first. Weight decay draws it there, as any table, so a row that is seldom read goes back to
    the other table's. A step adds the rows that it looks up, never the tables. The state of a plain embedding can be
    loaded too: the difference is then what that has more.

    Args:
        shared: the other table; it is moved and saved by its owner alone.

    Source: He et al. 2021 (DeBERTaV3), section 3.3; microsoft/DeBERTa `RTDModel`, whose difference decays too.
    """

    def __init__(self, shared: nn.Embedding) -> None:
        super().__init__()
        self._shared = (shared,)  # a tuple, because it is no part of this module
        zeros = torch.zeros_like(shared.weight)
        self.delta = nn.Embedding(len(zeros), zeros.shape[1], padding_idx=shared.padding_idx, _weight=zeros)

    @property
    def weight(self) -> Tensor:
        """The sum, (rows, embedding): what a plain embedding that computes the same has."""
        return self._shared[0].weight.detach() + self.delta.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Look up rows of the sum."""
        return F.embedding(ids, self._shared[0].weight.detach()) + self.delta(ids)

    @torch.no_grad()
    def resize(self) -> None:
        """Follow a shared table that has got other rows; the difference of a new one is 0."""
        self.delta.num_embeddings = self._shared[0].num_embeddings
        num_new = self.delta.num_embeddings - len(self.delta.weight)
        self.delta.weight.data = F.pad(self.delta.weight, (0, 0, 0, num_new))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        plain = state_dict.pop(f"{prefix}weight", None)
        if plain is not None:
            state_dict[f"{prefix}delta.weight"] = plain - self._shared[0].weight.detach()
        super()._load_from_state_dict(state_dict, prefix, *args)


def disentangle(reader: ElectraEmbeddings, owner: ElectraEmbeddings) -> None:
    """Let embeddings read all tables of others, with a difference of their own; the LayerNorm is each one's own.

    Args:
        reader: its tables are replaced by `DisentangledEmbedding`.
        owner: gets the weights that `reader` has.

    Differs from the reference: the token types are read too (DeBERTaV3 has none).
    """
    owner.load_state_dict(reader.state_dict())
    for name in TABLES:
        setattr(reader, name, DisentangledEmbedding(getattr(owner, name)))


def plain_state_dict(half: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a half as the Hugging Face model that computes the same has them."""
    state = half.state_dict()
    for name, module in half.named_modules():
        if isinstance(module, DisentangledEmbedding):
            state[f"{name}.weight"] = module.weight.detach()
            del state[f"{name}.delta.weight"]
    return state
