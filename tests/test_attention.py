"""Attention back ends: one choice, the same result."""

import pytest
import torch

from kcelectra import DataCollatorForReplacedTokenDetection, KcElectraConfig, KcElectraForPreTraining
from kcelectra.errors import InputError
from kcelectra.pretraining.attention import BACK_ENDS, choose_attention
from kcelectra.pretraining.packing import Packer, frame_document

LENGTH = 48

#: PyTorch's own, while it traces.
COMPILES = pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function.* should not be instantiated",
    "ignore:The .grad attribute of a Tensor that is not a leaf",
    "ignore:`torch.jit.script_method` is deprecated",
)


@pytest.fixture
def batch(tokenizer, sample_comments):
    """Rows of several documents, of which the last holds padding."""
    encoded = tokenizer([comment["text"] for comment in sample_comments[:24]], add_special_tokens=False)["input_ids"]
    documents = [
        piece
        for comment, reply in zip(encoded[::2], encoded[1::2], strict=True)
        for piece in frame_document(comment, reply, max_length=LENGTH, cls_token_id=2, sep_token_id=3)
    ]
    packer = Packer(LENGTH, pad_token_id=0)
    rows = [*packer.add(documents), *packer.flush()][-4:]
    batch = DataCollatorForReplacedTokenDetection(tokenizer)(
        [{"input_ids": row, "row_id": index} for index, row in enumerate(rows)]
    )
    assert batch["document_ids"].max() > 1 and (batch["document_ids"] == 0).any()
    return batch


def build(attention, tokenizer, *, device="cpu"):
    torch.manual_seed(0)
    config = KcElectraConfig.from_size(
        "tiny",
        vocab_size=len(tokenizer),
        num_hidden_layers=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return KcElectraForPreTraining._from_config(config, attn_implementation=attention).to(device).train()


def losses_and_gradients(model, batch):
    torch.manual_seed(0)
    output = model(**batch)
    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"generator": output.generator_loss, "discriminator": output.discriminator_loss, **gradients}


def assert_back_ends_agree(actual, expected, *, rel=1e-6):
    assert actual["generator"].item() == pytest.approx(expected["generator"].item(), rel=rel)
    assert actual["discriminator"].item() == pytest.approx(expected["discriminator"].item(), rel=rel)


@COMPILES
@pytest.mark.parametrize(
    ("attention", "is_bfloat16"),
    [
        ("sdpa", False),
        ("flex_attention", False),
        pytest.param("flex_attention", True, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_step_on_packed_rows_has_the_losses_and_gradients_of_eager_attention(
    attention, is_bfloat16, tokenizer, batch, monkeypatch
):
    # PyTorch has no kernel for the backward pass of flex attention on a CPU; as a graph that is not compiled it runs
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    expected = losses_and_gradients(build("eager", tokenizer), batch)
    model = build(attention, tokenizer)
    model.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
        actual = losses_and_gradients(model, batch)
    if is_bfloat16:
        assert_back_ends_agree(actual, expected, rel=1e-3)
        ours, theirs = (torch.cat([each.flatten() for each in tensors.values()]) for tensors in (actual, expected))
        assert (ours - theirs).norm() < 0.03 * theirs.norm()
    else:
        assert_back_ends_agree(actual, expected)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@COMPILES
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores for float32")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU; the same is tested on the CPU, uncompiled")
@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
def test_compiled_back_ends_agree_on_a_gpu(attention, tokenizer, batch):
    batch = {name: tensor.to("cuda") for name, tensor in batch.items()}
    expected = losses_and_gradients(build("eager", tokenizer, device="cuda"), batch)
    model = build(attention, tokenizer, device="cuda")
    with torch._inductor.config.patch(fallback_random=True):
        model.compile_parts()
        actual = losses_and_gradients(model, batch)
    assert_back_ends_agree(actual, expected)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("requested", "device_type", "dropout", "expected"),
    [
        ("auto", "cuda", 0.0, "flex_attention"),
        ("auto", "cuda", 0.1, "sdpa"),
        ("auto", "cpu", 0.0, "sdpa"),
        ("auto", "xla", 0.0, "sdpa"),
        ("eager", "cuda", 0.0, "eager"),
        ("sdpa", "cuda", 0.0, "sdpa"),
        ("flex_attention", "cuda", 0.0, "flex_attention"),
    ],
)
def test_the_back_end_follows_device_and_dropout_unless_it_is_named(requested, device_type, dropout, expected):
    assert choose_attention(requested, device_type=device_type, dropout=dropout) == expected


@pytest.mark.parametrize(("device_type", "dropout"), [("cuda", 0.1), ("cpu", 0.0)])
def test_flex_attention_is_refused_where_it_cannot_train(device_type, dropout):
    with pytest.raises(InputError, match=rf"this is {device_type} with attention_probs_dropout_prob {dropout}"):
        choose_attention("flex_attention", device_type=device_type, dropout=dropout)


def test_an_unknown_back_end_is_refused_by_name():
    with pytest.raises(InputError, match=f"'flash'; use auto or one of {', '.join(BACK_ENDS)}"):
        choose_attention("flash", device_type="cuda", dropout=0.0)
