"""The joint model against the reference and against itself."""

import copy
import math

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from transformers import AutoModelForPreTraining, ElectraForMaskedLM

from kcelectra import DataCollatorForReplacedTokenDetection, KcElectraConfig, KcElectraForPreTraining
from kcelectra.pretraining import masked_head
from kcelectra.pretraining.masked_head import sample_replacements
from kcelectra.pretraining.modeling import SHARED_EMBEDDINGS
from kcelectra.pretraining.packing import Packer, frame_document

MAX_LENGTH = 64

#: PyTorch's own, while it traces.
COMPILES = pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function.* should not be instantiated",
    "ignore:The .grad attribute of a Tensor that is not a leaf",
    "ignore:`torch.jit.script_method` is deprecated",
)


@pytest.fixture
def model(tokenizer) -> KcElectraForPreTraining:
    torch.manual_seed(0)
    config = KcElectraConfig.from_size("tiny", vocab_size=len(tokenizer), num_hidden_layers=2)
    return KcElectraForPreTraining(config).eval()


@pytest.fixture
def documents(tokenizer, sample_comments) -> list[list[int]]:
    texts = [comment["text"] for comment in sample_comments[:60]]
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    pairs = zip(encoded[::2], encoded[1::2], strict=True)
    return [
        piece
        for first, second in pairs
        for piece in frame_document(first, second, max_length=MAX_LENGTH, cls_token_id=2, sep_token_id=3)
    ]


@pytest.fixture
def rows(documents) -> list[dict]:
    packer = Packer(MAX_LENGTH, pad_token_id=0)
    packed = [*packer.add(documents), *packer.flush()]
    return [{"input_ids": row, "row_id": index} for index, row in enumerate(packed)]


@pytest.fixture
def batch(tokenizer, rows) -> dict[str, torch.Tensor]:
    return DataCollatorForReplacedTokenDetection(tokenizer)(rows[:8])


def run_seeded(model, batch, seed=0):
    torch.manual_seed(seed)
    return model(**batch)


# --- initialisation and size


@pytest.mark.parametrize("vocab_size", [30522, 50135, 54343])
def test_loss_at_initialisation_is_ln_v_plus_50_ln_2(vocab_size, tokenizer, rows):
    torch.manual_seed(0)
    config = KcElectraConfig.from_size("small", vocab_size=vocab_size, num_hidden_layers=2)
    output = KcElectraForPreTraining(config)(**DataCollatorForReplacedTokenDetection(tokenizer)(rows[:8]))
    assert output.generator_loss.item() == pytest.approx(math.log(vocab_size), abs=0.1)
    assert output.discriminator_loss.item() == pytest.approx(math.log(2), abs=0.05)
    expected = output.generator_loss + 50 * output.discriminator_loss
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert output.loss.item() == pytest.approx(math.log(vocab_size) + 50 * math.log(2), abs=0.1 + 50 * 0.05)


@pytest.mark.parametrize(
    ("size", "vocab_size", "overrides", "joint", "discriminator"),
    [
        ("small", 30522, {}, 14_196_219, 13_549_057),
        ("small", 30522, {"generator_fraction": 1.0}, 23_122_875, 13_549_057),
        ("base", 30522, {}, 119_386_427, 109_483_009),
        ("large", 30522, {}, 354_655_291, 335_142_913),
        ("base", 35000, {}, 122_830_009, 112_922_113),
        ("base", 50135, {}, 134_468_824, 124_545_793),
        ("base", 54343, {}, 137_704_776, 127_777_537),
    ],
)
def test_parameter_counts_are_the_published_ones(size, vocab_size, overrides, joint, discriminator):
    with torch.device("meta"):
        model = KcElectraForPreTraining(KcElectraConfig.from_size(size, vocab_size=vocab_size, **overrides))
    model.tie_weights()
    assert model.num_parameters() == joint
    assert model.discriminator.num_parameters() == discriminator


# --- against the reference


def reference_losses(model, batch, sampled_ids):
    """NumPy transcription of the reference's losses, from hidden states on, with the draws given."""

    def softmax_cross_entropy(logits, labels):
        shifted = logits - logits.max(-1, keepdims=True)
        return np.log(np.exp(shifted).sum(-1)) - np.take_along_axis(shifted, labels[..., None], -1)[..., 0]

    def erf_gelu(x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def layer_norm(x, weight, bias):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * weight + bias

    def state(name):
        return dict(model.named_parameters(remove_duplicate=False))[name].detach().double().numpy()

    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    positions, labels = arrays["masked_positions"], arrays["masked_labels"]
    weights = (labels != -100).astype(float)
    mask = arrays["document_ids"][:, None, :, None] == arrays["document_ids"][:, None, None, :]
    context = {
        "attention_mask": torch.from_numpy(mask),
        "position_ids": batch["position_ids"],
        "token_type_ids": batch["token_type_ids"],
    }
    hidden = model.generator.electra(batch["input_ids"], **context).last_hidden_state.detach().double().numpy()
    gathered = np.take_along_axis(hidden, positions[:, :, None], axis=1)
    head = "generator.generator_predictions."
    projected = gathered @ state(head + "dense.weight").T + state(head + "dense.bias")
    projected = layer_norm(erf_gelu(projected), state(head + "LayerNorm.weight"), state(head + "LayerNorm.bias"))
    table = state("discriminator.electra.embeddings.word_embeddings.weight")
    logits = projected @ table.T + state("generator.generator_lm_head.bias")
    per_slot = softmax_cross_entropy(logits, np.maximum(labels, 0))
    generator_loss = (weights * per_slot).sum() / (weights.sum() + 1e-6)

    original = arrays["input_ids"].copy()
    fake = arrays["input_ids"].copy()
    for row, slot in zip(*np.nonzero(weights), strict=True):
        original[row, positions[row, slot]] = labels[row, slot]
        fake[row, positions[row, slot]] = sampled_ids[row, slot]
    is_fake = (fake != original).astype(float)
    body = model.discriminator.electra(torch.from_numpy(fake), **context).last_hidden_state.detach().double().numpy()
    head = "discriminator.discriminator_predictions."
    inner = erf_gelu(body @ state(head + "dense.weight").T + state(head + "dense.bias"))
    scores = (inner @ state(head + "dense_prediction.weight").T + state(head + "dense_prediction.bias"))[..., 0]
    losses = np.maximum(scores, 0) - scores * is_fake + np.log1p(np.exp(-np.abs(scores)))
    input_mask = (arrays["document_ids"] > 0).astype(float)
    return generator_loss, (losses * input_mask).sum() / (1e-6 + input_mask.sum()), is_fake


def test_losses_equal_a_numpy_transcription_of_the_reference(model, batch):
    output = run_seeded(model, batch)
    generator_loss, discriminator_loss, is_fake = reference_losses(model, batch, output.sampled_ids.numpy())
    assert output.generator_loss.item() == pytest.approx(generator_loss, rel=1e-5)
    assert output.discriminator_loss.item() == pytest.approx(discriminator_loss, rel=1e-5)
    assert output.loss.item() == pytest.approx(generator_loss + 50 * discriminator_loss, rel=1e-5)
    assert np.array_equal(output.is_replaced.numpy(), is_fake.astype(bool))


def test_gathered_loss_equals_full_vocabulary_loss(model, batch):
    """Without the discriminator's weight the run is masked language modeling as Hugging Face computes it."""
    model.config.discriminator_weight = 0.0
    labels = torch.full_like(batch["input_ids"], -100)
    is_used = batch["masked_labels"] != -100
    rows = torch.arange(len(labels))[:, None].expand_as(is_used)
    labels[rows[is_used], batch["masked_positions"][is_used]] = batch["masked_labels"][is_used]
    ids = batch["document_ids"]
    full = model.generator(
        input_ids=batch["input_ids"],
        attention_mask=ids[:, None, :, None] == ids[:, None, None, :],
        position_ids=batch["position_ids"],
        token_type_ids=batch["token_type_ids"],
        labels=labels,
    )
    output = model(**batch)
    assert output.loss.item() == pytest.approx(full.loss.item(), abs=1e-5)
    assert not output.discriminator_loss.requires_grad  # no backward pass of what nothing learns from
    assert not output.discriminator_logits.any()  # nor a forward pass
    assert torch.equal(output.sampled_ids[is_used], batch["masked_labels"][is_used])  # nor a draw


# --- corruption


def test_discriminator_reads_the_original_outside_masked_positions_and_a_sample_at_each(model, batch, monkeypatch):
    seen = {}
    forward = model.discriminator.forward

    def spy(input_ids, **kwargs):
        seen["ids"] = input_ids
        return forward(input_ids, **kwargs)

    monkeypatch.setattr(model.discriminator, "forward", spy)
    output = run_seeded(model, batch)
    is_used = batch["masked_labels"] != -100
    original = batch["input_ids"].clone()
    is_masked = torch.zeros_like(original, dtype=torch.bool)
    for row, slot in is_used.nonzero().tolist():
        position = batch["masked_positions"][row, slot]
        original[row, position] = batch["masked_labels"][row, slot]
        is_masked[row, position] = True
        assert seen["ids"][row, position] == output.sampled_ids[row, slot]
    assert torch.equal(seen["ids"][~is_masked], original[~is_masked])
    assert torch.equal(output.is_replaced, seen["ids"] != original)
    assert not (seen["ids"] == 4).any()  # [MASK] is never drawn


def make_generator_answer(model, answers, monkeypatch):
    """Let the generator be certain of `answers`, (batch, masked)."""

    def certain(hidden, *args, **kwargs):
        flat = answers.flatten()
        return hidden.sum(), flat, flat

    monkeypatch.setattr("kcelectra.pretraining.modeling.masked_language_modeling", certain)


def test_a_generator_that_copies_makes_nothing_replaced(model, batch, monkeypatch):
    make_generator_answer(model, batch["masked_labels"].clamp(min=0), monkeypatch)
    assert not model(**batch).is_replaced.any()


def test_a_generator_that_is_wrong_replaces_exactly_the_masked_positions(model, batch, monkeypatch):
    make_generator_answer(model, (batch["masked_labels"].clamp(min=5) - 5 + 1) % 500 + 5, monkeypatch)
    is_replaced = model(**batch).is_replaced
    assert torch.equal(is_replaced.sum(1), (batch["masked_labels"] != -100).sum(1))


@pytest.mark.parametrize(("chunk_elements", "multiple"), [(1, 1), (700, 1), (2**22, 1), (700, 64), (2**22, 64)])
def test_the_masked_head_equals_cross_entropy_in_value_and_gradient(chunk_elements, multiple, monkeypatch):
    monkeypatch.setattr("kcelectra.pretraining.masked_head.CHUNK_ELEMENTS", chunk_elements)
    monkeypatch.setitem(masked_head.MULTIPLES, "cpu", multiple)
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((11, 6), (50, 6), (50,)))
    labels = torch.randint(0, 50, (11,))
    labels[3] = labels[10] = -100
    total, sampled_ids, predictions = masked_head.masked_language_modeling(hidden, weight, bias, labels)
    (3 * total).backward()
    ours = [tensor.grad.clone() for tensor in (hidden, weight, bias)]
    for tensor in (hidden, weight, bias):
        tensor.grad = None
    logits = F.linear(hidden, weight, bias)
    expected = F.cross_entropy(logits, labels, reduction="sum")
    (3 * expected).backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    for gradient, tensor in zip(ours, (hidden, weight, bias), strict=True):
        torch.testing.assert_close(gradient, tensor.grad, atol=1e-5, rtol=1e-5)
    assert torch.equal(predictions, logits.argmax(-1))
    assert sampled_ids.shape == (11,) and 0 <= sampled_ids.min() and sampled_ids.max() < 50


def test_padding_changes_neither_loss(model, batch, rows, tokenizer):
    wider = {
        name: F.pad(tensor, (0, 7)) if tensor.ndim == 2 and tensor.shape[1] == MAX_LENGTH else tensor
        for name, tensor in batch.items()
    }
    plain, padded = run_seeded(model, batch), run_seeded(model, wider)
    assert padded.generator_loss.item() == pytest.approx(plain.generator_loss.item(), abs=1e-5)
    assert padded.discriminator_loss.item() == pytest.approx(plain.discriminator_loss.item(), abs=1e-5)


# --- packing


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_row_equals_its_documents_apart(model, documents, tokenizer, attention):
    model.set_attn_implementation(attention)
    collator = DataCollatorForReplacedTokenDetection(tokenizer)
    chosen = [document for document in documents if 8 <= len(document) <= 20][:4]
    packed = np.zeros(sum(map(len, chosen)) + 5, dtype=np.int64)
    packed[: sum(map(len, chosen))] = np.concatenate(chosen)
    together = collator([{"input_ids": packed, "row_id": 0}])
    start = 0
    for document in chosen:
        alone = collator([{"input_ids": document, "row_id": 0}])
        for half in (model.generator, model.discriminator):
            expected = half(torch.tensor([document]), token_type_ids=alone["token_type_ids"]).logits[0]
            actual = half(
                torch.from_numpy(packed)[None],
                attention_mask=model._attention_mask(together["document_ids"]),
                position_ids=together["position_ids"],
                token_type_ids=together["token_type_ids"],
            ).logits[0, start : start + len(document)]
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        start += len(document)


def test_a_change_in_one_document_moves_nothing_in_another(model, rows, tokenizer):
    batch = DataCollatorForReplacedTokenDetection(tokenizer)(rows[:1])
    is_first = batch["document_ids"][0] == 1
    changed = batch["input_ids"].clone()
    inner = is_first.nonzero().flatten()[1:-1]
    changed[0, inner] = (changed[0, inner] + 17) % 500 + 5
    context = {
        "attention_mask": model._attention_mask(batch["document_ids"]),
        "position_ids": batch["position_ids"],
        "token_type_ids": batch["token_type_ids"],
    }
    before = model.discriminator(batch["input_ids"], **context).logits[0]
    after = model.discriminator(changed, **context).logits[0]
    assert torch.equal(before[~is_first], after[~is_first])
    assert not torch.allclose(before[is_first], after[is_first])


def test_the_halves_are_plain_models_that_take_the_usual_mask(model, tokenizer, tmp_path):
    batch = tokenizer(["정말 재미있는 영화였다", "최고"], padding=True, return_tensors="pt")
    for half in (model.generator, model.discriminator):
        half.save_pretrained(tmp_path)
        plain = type(half).from_pretrained(tmp_path)
        assert plain.config._attn_implementation == "sdpa"
        torch.testing.assert_close(half(**batch).logits, plain.eval()(**batch).logits, atol=1e-6, rtol=0)
        assert half.train()(**batch).logits.isfinite().all()
        half.eval()


def test_the_model_leaves_its_configuration_as_it_was(tokenizer):
    config = KcElectraConfig.from_size("tiny", vocab_size=len(tokenizer))
    before = (config.to_dict(), config.generator_config._attn_implementation)
    KcElectraForPreTraining(config).resize_token_embeddings(777)
    assert (config.to_dict(), config.generator_config._attn_implementation) == before


# --- gradients


def gradient_owners(model, loss):
    model.zero_grad()
    loss.backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_discriminator_loss_reaches_no_generator_weight_but_the_shared_embeddings(model, batch):
    owners = gradient_owners(model, run_seeded(model, batch).discriminator_loss)
    assert not {name for name in owners if name.startswith("generator.")}
    assert {f"discriminator.electra.embeddings.{name}" for name in SHARED_EMBEDDINGS} <= owners
    shared = dict(model.generator.electra.embeddings.named_parameters())
    assert all(shared[name].grad is not None for name in SHARED_EMBEDDINGS)


def test_generator_loss_reaches_no_discriminator_weight_but_the_shared_embeddings(model, batch):
    owners = gradient_owners(model, run_seeded(model, batch).generator_loss)
    shared = {f"discriminator.electra.embeddings.{name}" for name in SHARED_EMBEDDINGS}
    assert {name for name in owners if name.startswith("discriminator.")} == shared
    assert any(name.startswith("generator.electra.encoder") for name in owners)


def test_loss_is_linear_in_both_weights(model, batch):
    parts = run_seeded(model, batch)
    for weights in ((0.0, 1.0), (1.0, 0.0), (3.0, 7.0)):
        model.config.generator_weight, model.config.discriminator_weight = weights
        expected = weights[0] * parts.generator_loss + weights[1] * parts.discriminator_loss
        assert run_seeded(model, batch).loss.item() == pytest.approx(expected.item(), rel=1e-6)


# --- sampling


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_sampled_frequency_is_the_probability_under_autocast(dtype, probability):
    """A low-precision uniform draw gives 0.81 to 1.00 here."""
    vocab_size, num_draws = 32_000, 2_500
    rest = math.log((1 - probability) / (vocab_size - 1))
    row = torch.full((vocab_size,), rest)
    row[7] = math.log(probability)
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(num_draws // 500):
        if dtype is torch.float32:
            logits = row.expand(1, 500, -1)
            hits += (sample_replacements(logits, generator=generator) == 7).sum().item()
        else:
            with torch.autocast("cpu", dtype=dtype):
                logits = row.to(dtype).expand(1, 500, -1)
                hits += (sample_replacements(logits, generator=generator) == 7).sum().item()
    # a 16-bit logit of -10.4 is itself off by up to 3 %
    assert hits / num_draws == pytest.approx(probability, abs=0.03)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_frequencies_follow_the_softmax_at_a_temperature(temperature):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
    num_draws = 40_000
    draws = sample_replacements(
        logits.expand(1, num_draws, -1), temperature=temperature, generator=torch.Generator().manual_seed(0)
    )
    observed = torch.bincount(draws.flatten(), minlength=5).double()
    expected = (logits / temperature).double().softmax(0) * num_draws
    chi_square = ((observed - expected) ** 2 / expected).sum().item()
    assert chi_square < 18.47  # 4 degrees of freedom, p = 0.001


def test_unsampled_tokens_are_never_drawn():
    logits = torch.zeros(1, 20_000, 6)
    logits[..., 3] = 50
    draws = sample_replacements(logits, unsampled_token_ids=[0, 3])
    assert set(draws.unique().tolist()) == {1, 2, 4, 5}


def test_scores_that_are_no_numbers_still_draw_a_token():
    """The guard skips the step; an id beyond the vocabulary would end the run before."""
    draws = sample_replacements(torch.full((1, 8, 6), math.nan))
    assert ((draws >= 0) & (draws < 6)).all()


def test_the_lowest_number_draws_no_unsampled_token_either(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.zeros(shape))  # one draw in 16 million
    assert sample_replacements(torch.zeros(1, 3, 6), unsampled_token_ids=[0, 1]).tolist() == [[2, 2, 2]]


def test_sampling_refuses_a_temperature_that_is_not_positive():
    with pytest.raises(ValueError, match="above 0"):
        sample_replacements(torch.zeros(1, 1, 5), temperature=0.0)


# --- tying


def assert_tied(model):
    ours = dict(model.discriminator.electra.embeddings.named_parameters())
    theirs = dict(model.generator.electra.embeddings.named_parameters())
    for name in SHARED_EMBEDDINGS:
        assert ours[name] is theirs[name], name
    assert model.generator.generator_lm_head.weight is ours["word_embeddings.weight"]
    assert model.generator.generator_lm_head.bias.shape == (ours["word_embeddings.weight"].shape[0],)


def test_embeddings_stay_tied_through_every_change_of_the_model(model, tmp_path):
    assert_tied(model)
    assert_tied(model.to(torch.bfloat16).to("cpu").to(torch.float32))
    model.tie_weights()
    assert_tied(model)
    assert_tied(copy.deepcopy(model))
    model.save_pretrained(tmp_path)
    assert_tied(KcElectraForPreTraining.from_pretrained(tmp_path))
    model.resize_token_embeddings(707)
    assert_tied(model)
    for parameter in model.parameters():  # as a move to XLA does
        parameter.data = parameter.data.clone()
    model.tie_weights()
    assert_tied(model)


def test_one_copy_of_the_shared_weights_is_saved_and_loads_without_a_missing_key(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, KcElectraForPreTraining)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    num_bytes = (tmp_path / "model.safetensors").stat().st_size
    assert num_bytes == pytest.approx(4 * model.num_parameters(), rel=0.02)


def test_one_optimizer_step_changes_both_views_equally(model, batch):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    assert len({id(p) for group in optimizer.param_groups for p in group["params"]}) == len(list(model.parameters()))
    before = model.get_input_embeddings().weight.detach().clone()
    run_seeded(model, batch).loss.backward()
    optimizer.step()
    assert_tied(model)
    assert not torch.equal(before, model.generator.get_input_embeddings().weight)


def test_resizing_keeps_all_vocabulary_sizes_in_step(model, tmp_path):
    model.resize_token_embeddings(777)
    assert model.config.generator_config.vocab_size == model.config.discriminator_config.vocab_size == 777
    assert model.generator.generator_lm_head.out_features == 777
    model.generator.save_pretrained(tmp_path)
    loaded, info = ElectraForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and loaded.config.vocab_size == 777


# --- the step is one static graph


def test_the_step_traces_as_one_graph_without_data_dependent_shapes(model, batch):
    exported = torch.export.export(_Losses(model), (batch,), strict=False)
    names = {str(node.target) for node in exported.graph.nodes}
    assert not {name for name in names if "nonzero" in name or "_local_scalar" in name or "masked_select" in name}


class _Losses(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model(**batch).loss


def losses_and_gradients(model, batch):
    model.zero_grad()
    output = run_seeded(model, batch)
    output.loss.backward()
    return output.generator_loss.item(), output.discriminator_loss.item(), [p.grad.clone() for p in model.parameters()]


def assert_same_training(actual, expected):
    assert actual[:2] == pytest.approx(expected[:2], rel=1e-6)
    for gradient, other in zip(actual[2], expected[2], strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-4)


@COMPILES
@pytest.mark.parametrize(("how", "num_graphs"), [("as a whole", 1), ("in parts", 6)])
def test_a_training_step_compiles_once_without_a_break_and_computes_the_same(
    how, num_graphs, model, batch, rows, tokenizer
):
    """The graphs of both passes are run as they were traced; making code of them takes a minute on a CPU."""
    backend = CompileCounterWithBackend("aot_eager")
    for layer in model.train().modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0  # a compiled step draws other numbers
    batches = [batch, DataCollatorForReplacedTokenDetection(tokenizer)(rows[8:16])]
    expected = [losses_and_gradients(model, batch) for batch in batches]
    if how == "as a whole":
        model.compile(fullgraph=True, dynamic=False, backend=backend)
    else:
        model.compile_parts(backend=backend)
    assert_same_training(losses_and_gradients(model, batches[0]), expected[0])
    assert_same_training(losses_and_gradients(model, batches[1]), expected[1])
    assert backend.frame_count == num_graphs  # layers, embeddings, three heads; layers of each half differ


@COMPILES
def test_a_step_with_dropout_compiles_without_a_break(model, batch):
    model.train().compile(fullgraph=True, dynamic=False, backend="eager")
    assert run_seeded(model, batch).loss.isfinite()


@COMPILES
def test_compiled_parts_take_all_the_shapes_that_a_run_has(model, rows, tokenizer):
    """Both halves, training and evaluation, short rows, the last of an evaluation: dynamo's own limit is 8."""
    collator = DataCollatorForReplacedTokenDetection(tokenizer)
    with torch._dynamo.config.patch(recompile_limit=2), torch.no_grad():
        model.eval().compile_parts(backend="eager")
        assert all(model(**collator(rows[:num_rows])).loss.isfinite() for num_rows in (1, 2))


@COMPILES
@pytest.mark.slow
def test_compiled_code_computes_the_same(model, batch):
    expected = losses_and_gradients(model, batch)
    with torch._inductor.config.patch(fallback_random=True):  # or it draws other replacements
        model.compile_parts()
        assert_same_training(losses_and_gradients(model, batch), expected)


def test_a_checkpointed_step_computes_the_same_with_dropout(model, batch):
    model.train()
    expected = losses_and_gradients(model, batch)
    model.activation_checkpointing_enable()
    assert_same_training(losses_and_gradients(model, batch), expected)
