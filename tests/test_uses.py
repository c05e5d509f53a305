"""What users do with an export, with `pipeline` and with sentence-transformers: no code of ours between."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    pipeline,
)

from kcelectra import KcElectraConfig, KcElectraForPreTraining
from kcelectra.pretraining.export import export_model
from kcelectra.tokenization import save_tokenizer

COMMENTS = ["이 영화 진짜 최고", "별로", "배우 연기가 좋아서 끝까지 봤어요 추천합니다"]


@pytest.fixture(scope="module")
def export_dir(tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    config = KcElectraConfig.from_size("tiny", vocab_size=len(tokenizer), num_hidden_layers=2, initializer_range=0.2)
    directory = tmp_path_factory.mktemp("export") / "export"
    export_model(KcElectraForPreTraining(config), tokenizer, directory)
    return directory


def finetuned(model_class, export_dir, directory, **options):
    torch.manual_seed(0)
    model = model_class.from_pretrained(export_dir / "discriminator", **options)
    model.save_pretrained(directory)
    save_tokenizer(AutoTokenizer.from_pretrained(export_dir / "discriminator"), directory)
    return str(directory)


# pipeline


def test_fill_mask_gives_what_the_generator_would_put(export_dir):
    fill = pipeline("fill-mask", str(export_dir / "generator"), device="cpu")
    text = f"이 영화 진짜 {fill.tokenizer.mask_token}"
    answers = fill(text, top_k=3)
    encoded = fill.tokenizer(text, return_tensors="pt")
    logits = AutoModelForMaskedLM.from_pretrained(export_dir, subfolder="generator")(**encoded).logits
    (position,) = (encoded["input_ids"][0] == fill.tokenizer.mask_token_id).nonzero()[0]
    expected = logits[0, position].softmax(dim=-1).topk(3)
    assert [answer["token"] for answer in answers] == expected.indices.tolist()
    assert [answer["score"] for answer in answers] == pytest.approx(expected.values.tolist(), rel=1e-5)


def test_the_discriminator_scores_each_token_as_replaced(export_dir):
    tokenizer = AutoTokenizer.from_pretrained(export_dir / "discriminator")
    model = AutoModelForPreTraining.from_pretrained(export_dir / "discriminator").eval()
    batch = tokenizer(COMMENTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = model(**batch).logits.sigmoid()
        alone = model(**tokenizer(COMMENTS[1], return_tensors="pt")).logits.sigmoid()
    assert scores.shape == batch["input_ids"].shape
    torch.testing.assert_close(scores[1, : alone.shape[1]], alone[0])


def test_feature_extraction_gives_a_vector_a_token(export_dir):
    extract = pipeline("feature-extraction", str(export_dir / "discriminator"), device="cpu")
    for comment, (vectors,) in zip(COMMENTS, extract(COMMENTS), strict=True):
        assert np.shape(vectors) == (len(extract.tokenizer(comment)["input_ids"]), extract.model.config.hidden_size)


def test_text_classification_names_the_labels(export_dir, tmp_path):
    directory = finetuned(
        ElectraForSequenceClassification,
        export_dir,
        tmp_path,
        id2label={0: "부정", 1: "긍정"},
        label2id={"부정": 0, "긍정": 1},
    )
    answers = pipeline("text-classification", directory, device="cpu")(COMMENTS, top_k=None)
    assert all({answer["label"] for answer in answer_set} == {"부정", "긍정"} for answer_set in answers)
    assert all(sum(answer["score"] for answer in answer_set) == pytest.approx(1) for answer_set in answers)


def test_token_classification_points_into_the_text(export_dir, tmp_path):
    labels = {0: "O", 1: "PER-B", 2: "PER-I"}
    directory = finetuned(ElectraForTokenClassification, export_dir, tmp_path, id2label=labels)
    answers = pipeline("token-classification", directory, device="cpu", ignore_labels=[])(COMMENTS[2])
    assert len(answers) == len(AutoTokenizer.from_pretrained(directory).tokenize(COMMENTS[2]))
    for answer in answers:
        assert answer["word"].removeprefix("##") == COMMENTS[2][answer["start"] : answer["end"]]


# sentence-transformers


def test_sentence_transformers_takes_an_export_and_averages_its_tokens(export_dir):
    model = SentenceTransformer(str(export_dir / "discriminator"), device="cpu")
    embeddings = model.encode(COMMENTS)
    tokenizer = AutoTokenizer.from_pretrained(export_dir / "discriminator")
    encoder = AutoModel.from_pretrained(export_dir / "discriminator").eval()
    for comment, embedding in zip(COMMENTS, embeddings, strict=True):
        with torch.no_grad():
            hidden = encoder(**tokenizer(comment, return_tensors="pt")).last_hidden_state
        np.testing.assert_allclose(embedding, hidden[0].mean(dim=0), atol=1e-5)
    assert model.similarity(embeddings, embeddings).diagonal().tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_sentence_transformers_cuts_at_the_positions_there_are(export_dir):
    model = SentenceTransformer(str(export_dir / "discriminator"), device="cpu")
    assert model.max_seq_length == 512
    long = " ".join(COMMENTS * 200)
    assert np.isfinite(model.encode(long)).all()


def test_what_sentence_transformers_saves_it_loads(export_dir, tmp_path):
    model = SentenceTransformer(str(export_dir / "discriminator"), device="cpu")
    model.save(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_array_equal(again.encode(COMMENTS), model.encode(COMMENTS))
    assert json.loads((tmp_path / "saved/config.json").read_text())["model_type"] == "electra"


def test_a_cross_encoder_scores_pairs_with_a_finetuned_model(export_dir, tmp_path):
    directory = finetuned(ElectraForSequenceClassification, export_dir, tmp_path, num_labels=1)
    pairs = [(COMMENTS[0], COMMENTS[1]), (COMMENTS[0], COMMENTS[2])]
    scores = CrossEncoder(directory, device="cpu").predict(pairs, activation_fn=torch.nn.Identity())
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = ElectraForSequenceClassification.from_pretrained(directory).eval()
    with torch.no_grad():
        expected = [model(**tokenizer(*pair, return_tensors="pt")).logits.item() for pair in pairs]
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)
