"""Go on from released weights: a discriminator, with its generator or with a new one that is warmed up first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from kcelectra.errors import InputError
from kcelectra.hub import split_revision
from kcelectra.pretraining.configuration import SHARED_SIZES, KcElectraConfig
from kcelectra.pretraining.modeling import SHARED_EMBEDDINGS, KcElectraForPreTraining
from kcelectra.tokenization import check_pairing
from kcelectra.tokenization.loading import tokens_by_id
from kcelectra.tokenization.vocabulary import require_special_tokens

HALVES: dict[str, Any] = {"discriminator": ElectraForPreTraining, "generator": ElectraForMaskedLM}


@dataclass(frozen=True)
class GeneratorWarmup:
    """The first steps of a run whose discriminator is trained already: only the generator's own weights move.

    A new generator would change the embeddings that it shares with the discriminator by large and useless gradients,
    and show it fakes that are none. The discriminator computes its metrics meanwhile. Everything is a function of the
    number of updates, so a resumed run does what an uninterrupted one does.

    Args:
        num_steps: updates that it takes; 0 for none.
    """

    num_steps: int

    def holds(self, step: int) -> bool:
        """Return whether the discriminator stays as it is in the update after `step` others."""
        return step < self.num_steps

    def drop_gradients(self, model: KcElectraForPreTraining) -> None:
        """Take the gradients of the discriminator and of what it shares away, before they are clipped and used.

        An optimizer passes over a weight without a gradient. For one whose gradient is 0 it keeps moments, and AdamW
        makes it smaller.
        """
        for part in (model.discriminator, model.generator.electra.embeddings):
            for parameter in part.parameters():
                parameter.grad = None

    def schedule(self, base: Callable[[int], float], *, warmup_steps: int) -> Callable[[int], float]:
        """Return a schedule that rises to its peak and stays there, and then is `base` from its start.

        Args:
            base: share of the peak learning rate by step, for the steps that come after.
            warmup_steps: that it rises for.
        """

        def schedule(step: int) -> float:
            if not self.holds(step):
                return base(step - self.num_steps)
            return step / warmup_steps if step < warmup_steps else 1.0

        return schedule


def released_tokenizer(source: str, half: str = "discriminator") -> PreTrainedTokenizerBase:
    """Load the tokenizer of a released model.

    Args:
        source: as in `load_released`.
        half: discriminator or generator.

    Raises:
        InputError: there is none, it is not the model's, or it is no vocabulary for pretraining.
    """
    with _explain(source, half):
        root, where = _locate(source, half)
        config = AutoConfig.from_pretrained(root, **where)
        if config.model_type != "electra":
            raise InputError(
                f"{source} is a model of type {config.model_type}; give an ELECTRA, of a checkpoint its export"
            )
        tokenizer = AutoTokenizer.from_pretrained(root, **where)
        check_pairing(tokenizer, config)
    require_special_tokens(tokens_by_id(tokenizer), source)
    return tokenizer


def load_released(
    discriminator: str | ElectraConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    generator: str | None = None,
    embeddings: str | None = None,
    generator_fraction: float | None = None,
    generator_layers: int | None = None,
    hidden_dropout: float | None = None,
    attention_dropout: float | None = None,
    **own: Any,
) -> KcElectraForPreTraining:
    """Load a released discriminator, or a generator, or both as a joint model.

    A half that is new has the embeddings of the other.

    Args:
        discriminator: a directory, or a repository of the Hub as OWNER/NAME or OWNER/NAME@REVISION, that is an
            `ElectraForPreTraining` or holds one as `discriminator/`; or the `ElectraForMaskedLM` that `generator` is
            too, with a new head (two-stage training, Clark et al. 2020, section 3.2); or the configuration of a new
            one, whose embeddings get the sizes of the generator's.
        tokenizer: of the run; its tokens have the ids that they have in the model.
        generator: the same for an `ElectraForMaskedLM`, or one as `generator/`; new, with random weights, if None.
        embeddings: whose embeddings both get where those of the two differ: discriminator or generator. With
            `embedding_sharing="gdes"` each keeps its own, but for the last bit.
        generator_fraction: width of a new generator as a share of the discriminator's; see
            `KcElectraConfig.from_discriminator`.
        generator_layers: depth of a new generator; see there.
        hidden_dropout: share of hidden units that both halves drop, 0 to 1; what each says itself if None.
        attention_dropout: the same of attention weights.
        **own: any field of `KcElectraConfig`.

    Returns:
        The model, float32. Rows of its tables that have no token are never drawn as a replacement.

    Raises:
        InputError: a model cannot be loaded, has not all weights, or has other tokens; the halves do not fit each
            other; or their embeddings differ and `embeddings` is not given.
    """
    if embeddings not in (None, *HALVES):
        raise InputError(f"--init_embeddings is {embeddings!r}; give {' or '.join(HALVES)}")
    if generator is None and embeddings is not None:
        raise InputError("a new generator has no embeddings to choose from; leave out --init_embeddings")
    if generator is not None and (generator_fraction, generator_layers) != (None, None):
        raise InputError(f"{generator} is as it is; leave out --generator_fraction and --generator_layers")
    given = {"discriminator": discriminator, "generator": generator}
    halves = {
        half: _load_half(source, half, tokenizer, takes_new_head=discriminator == generator)
        for half, source in given.items()
        if isinstance(source, str)
    }
    if generator is None:
        config = KcElectraConfig.from_discriminator(
            halves["discriminator"].config,
            generator_fraction=generator_fraction,
            generator_layers=generator_layers,
            **own,
        )
    else:
        config = _join(given, halves, own)
    if config.embedding_sharing == "gdes" and embeddings is not None:
        raise InputError("with --embedding_sharing gdes each half keeps its embeddings; leave out --init_embeddings")
    if config.embedding_sharing == "full" and embeddings is None and len(halves) == len(HALVES):
        _require_equal_embeddings(given, halves)
    dropouts = {"hidden_dropout_prob": hidden_dropout, "attention_probs_dropout_prob": attention_dropout}
    for half_config in (config.generator_config, config.discriminator_config):
        half_config.update({name: share for name, share in dropouts.items() if share is not None})
    config.unsampled_token_ids += range(len(tokenizer), config.discriminator_config.vocab_size)
    model = KcElectraForPreTraining(config)
    for half in sorted(HALVES, key=lambda half: half == (embeddings or "discriminator")):  # the last one's are kept
        if half in halves:
            getattr(model, half).load_state_dict(halves[half].state_dict())
        else:
            (other,) = halves.values()
            getattr(model, half).electra.embeddings.load_state_dict(other.electra.embeddings.state_dict())
    return model


def _load_half(source: str, half: str, tokenizer: PreTrainedTokenizerBase, *, takes_new_head: bool = False) -> Any:
    _require_same_tokens(tokenizer, released_tokenizer(source, half), source, half)
    with _explain(source, half):
        root, where = _locate(source, half)
        model, report = HALVES[half].from_pretrained(root, dtype=torch.float32, output_loading_info=True, **where)
    missing = sorted(report["missing_keys"])
    is_masked_model = any(key.startswith("generator_") for key in report["unexpected_keys"])
    if takes_new_head and is_masked_model and all(key.startswith("discriminator_predictions.") for key in missing):
        missing = []  # of the new head
    if missing:  # transformers fills them with random numbers
        raise InputError(f"{source} holds no {half}: it has no {missing[0]}; give what pretraining exported")
    model.config.name_or_path = ""  # it would be saved with the model
    return model


@contextmanager
def _explain(source: str, half: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"cannot load the {half} {source}: {reason}; give as --init_{half} a directory such as out/smoke/export, "
            "or OWNER/NAME@REVISION"
        ) from error


def _locate(source: str, half: str) -> tuple[str, dict[str, Any]]:
    """Return the directory or repository of a half, and the revision and the folder in it."""
    root, revision = split_revision(source)
    where = {"revision": revision}
    inner = cached_file(root, f"{half}/config.json", **where, _raise_exceptions_for_missing_entries=False)
    return root, {**where, "subfolder": half if inner else ""}


def _require_same_tokens(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, source: str, half: str
) -> None:
    pairs = enumerate(zip_longest(tokens_by_id(ours), tokens_by_id(theirs)))
    different = [(index, our, their) for index, (our, their) in pairs if our != their]
    if different:
        index, our, their = different[0]
        cure = "--tokenizer to use that one" if half == "discriminator" else "--init_generator for a new one"
        raise InputError(
            f"the tokenizer of the run is not that of {source}: they differ in {len(different)} ids, {index} is "
            f"{our!r} here and {their!r} there; leave out {cure}"
        )


def _join(given: dict[str, Any], halves: dict[str, Any], own: dict[str, Any]) -> KcElectraConfig:
    generator = halves["generator"].config
    if "discriminator" in halves:
        discriminator, name = halves["discriminator"].config, given["discriminator"]
    else:
        discriminator, name = given["discriminator"], "a new discriminator"
        for size in SHARED_SIZES:
            setattr(discriminator, size, getattr(generator, size))
    try:
        if not generator.tie_word_embeddings:
            raise InputError("its output embeddings are not its input embeddings; give one that shares them")
        return KcElectraConfig(generator, discriminator, **own)
    except InputError as error:
        raise InputError(
            f"{given['generator']} does not fit {name}: {error}, or leave out --init_generator for a new one"
        ) from error


def _require_equal_embeddings(given: dict[str, Any], halves: dict[str, Any]) -> None:
    theirs = halves["discriminator"].electra.embeddings.state_dict()
    ours = halves["generator"].electra.embeddings.state_dict()
    differences = [_compare(name, ours[name], theirs[name]) for name in SHARED_EMBEDDINGS]
    if any(differences):
        raise InputError(
            f"the embeddings of {given['generator']} are not those of {given['discriminator']}: "
            f"{', '.join(filter(None, differences))}; a joint model has one of each. Keep both: give "
            "--embedding_sharing gdes. Or keep one half as it is, and let the other learn them anew: give "
            "--init_embeddings discriminator or --init_embeddings generator"
        )


def _compare(name: str, ours: Tensor, theirs: Tensor) -> str:
    """Return by how much two tables differ, an empty text if not at all."""
    distance = (ours - theirs).abs().view(len(ours), -1).amax(dim=1)
    num_different = int((distance != 0).sum())
    return f"{name} in {num_different} of {len(ours)} rows by up to {distance.max():.2g}" if num_different else ""
