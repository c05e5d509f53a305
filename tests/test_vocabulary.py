"""The published vocabularies: their layout, how v2021 was built, and that no model gets the tokenizer of another."""

import re
from itertools import product
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import BertConfig, ElectraConfig, PreTrainedTokenizerFast

from kcelectra.errors import InputError
from kcelectra.manifest import read_manifest
from kcelectra.tokenization import (
    SPECIAL_TOKENS,
    append_donor,
    check_pairing,
    identify_vocabulary,
    load_tokenizer,
    read_vocabulary,
)
from kcelectra.tokenization.loading import as_bert_tokenizer, identify_model, identify_tokenizer
from kcelectra.tokenization.training import extend_tokenizer
from kcelectra.tokenization.vocabulary import PUBLISHED, append_unused, hash_vocabulary

VOCAB_DIR = Path(__file__).parents[2] / "shared" / "data" / "vocab"
needs_vocab = pytest.mark.skipif(not VOCAB_DIR.is_dir(), reason=f"needs the published vocabularies in {VOCAB_DIR}")
KCBERT, V2021, V2022, V2023 = PUBLISHED
FILES = {"kcbert": KCBERT, "kcelectra_v2021": V2021, "kcelectra_v2022": V2022}


def read(name: str) -> list[str]:
    return read_vocabulary(VOCAB_DIR / f"{name}_vocab.txt")


def write(path: Path, tokens: list[str]) -> Path:
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return path


# the table and the files


@needs_vocab
@pytest.mark.parametrize("name", FILES)
def test_a_published_vocabulary_is_recognised_by_its_content(name):
    known, tokens = FILES[name], read(name)
    assert (known.size, known.sha256) == (len(tokens), hash_vocabulary(tokens))
    assert identify_tokenizer(load_tokenizer(VOCAB_DIR / f"{name}_vocab.txt")) is known
    swapped = [*tokens[:-2], tokens[-1], tokens[-2]]
    assert identify_vocabulary(swapped) is identify_vocabulary(tokens[:-1]) is None


def test_the_revisions_are_whole_commits_of_the_histories_on_the_hub():
    """Source: shared/reference/kcelectra.md, 1.1; a branch or a short hash would not do for long."""
    assert [known.revision[:7] for known in PUBLISHED] == ["99fc27e", "a6f029f", "4cf9eb1", "5deca41"]
    assert all(re.fullmatch("[0-9a-f]{40}", known.revision) for known in PUBLISHED)
    assert [known.repo_id for known in PUBLISHED] == ["beomi/kcbert-base", *["beomi/KcELECTRA-base"] * 3]


@needs_vocab
@pytest.mark.parametrize("name", ["kcelectra_dev25000", "koelectra_v1"])
def test_another_vocabulary_is_not_taken_for_a_published_one(name):
    assert identify_tokenizer(load_tokenizer(VOCAB_DIR / f"{name}_vocab.txt")) is None


@needs_vocab
def test_the_published_vocabularies_are_laid_out_as_the_notes_say():
    """Source: shared/reference/kcelectra.md, 1.3."""
    kcbert, dev, v2021, v2022 = map(read, ["kcbert", "kcelectra_dev25000", "kcelectra_v2021", "kcelectra_v2022"])
    for tokens, num_continuing in ((kcbert, 10_066), (dev, 8866), (v2021, 11_493), (v2022, 13_391)):
        assert tuple(tokens[:5]) == SPECIAL_TOKENS
        assert {len(token) for token in tokens[5:4005]} == {1} != {len(tokens[4005])}
        assert sum(token.startswith("##") for token in tokens) == num_continuing
    assert v2021[:25_000] == dev
    assert v2021[49_135:] == [f"[unused{index}]" for index in range(1000)]
    assert v2022[34_949:34_951] == ["<s>", "</s>"]
    assert not [token for token in [*kcbert, *v2021[:49_135], *v2022] if token.startswith("[unused")]
    common = [len(set(a) & set(b)) for a, b in ((kcbert, v2021), (kcbert, v2022), (v2021, v2022))]
    assert common == [25_117, 28_065, 43_661]
    assert kcbert[:10] == v2021[:10] == v2022[:10] and v2021[:97] == v2022[:97]
    assert kcbert[10] != v2021[10] and kcbert[10] != v2022[10] and v2021[97] != v2022[97]


# donors


def test_a_donor_gives_what_is_missing_in_its_order_and_each_of_its_tokens_is_counted():
    own = [*SPECIAL_TOKENS, "가", "##가", "나"]
    donor = ["[PAD]", "[unused0]", "하", "가", "[unused17]", "##나", "##가", "[unused]", "[unusedx]", "[SEP]", "나라"]
    tokens, counts = append_donor(own, donor)
    assert tokens == [*own, "하", "##나", "[unused]", "[unusedx]", "나라"]
    assert counts == {"num_tokens": 11, "num_unused": 2, "num_overlap": 4, "num_appended": 5}
    assert append_unused(tokens, 2) == [*tokens, "[unused0]", "[unused1]"]
    assert append_unused(["[unused5]"], 0) == ["[unused5]"]
    with pytest.raises(InputError, match=r"holds \[unusedN\] tokens already; leave out --num_unused"):
        append_unused(["가", "[unused5]"], 1)


@needs_vocab
def test_v2021_is_rebuilt_byte_by_byte_of_its_own_vocabulary_and_a_donor(tmp_path):
    dev, v2021 = read("kcelectra_dev25000"), read("kcelectra_v2021")
    donor = [f"[unused{index}]" for index in range(40)]
    for index, token in enumerate(v2021[25_000:49_135]):
        donor += [token, dev[-index]] if index < 10_000 else [token]
    output_dir, donor_vocab = tmp_path / "v2021", write(tmp_path / "donor.txt", donor)
    base_vocab = VOCAB_DIR / "kcelectra_dev25000_vocab.txt"
    tokenizer = extend_tokenizer(base_vocab, output_dir, donor_vocab=donor_vocab, num_unused=1000)
    assert (output_dir / "vocab.txt").read_bytes() == (VOCAB_DIR / "kcelectra_v2021_vocab.txt").read_bytes()
    assert identify_tokenizer(tokenizer) is V2021
    facts = read_manifest(output_dir)
    counts = {"num_tokens": 34_175, "num_unused": 40, "num_overlap": 10_000, "num_appended": 24_135}
    assert (facts["num_own"], facts["num_tokens"], facts["donor"]) == (25_000, 50_135, counts)
    assert facts["sha256"] == V2021.sha256


# damaged files

GOOD = "".join(f"{token}\n" for token in (*SPECIAL_TOKENS, "가", "나")).encode()
DAMAGED = {
    "duplicate": (
        GOOD + "다\n가\n".encode(),
        r"line 9 repeats '가' of line 6 \(1 of 9 tokens occur twice\); take the",
    ),
    "blank": (GOOD + b"\n\xea\xb0\x80\n", "line 8 is blank; give one token a line"),
    "blank end": (GOOD + b"\n", "line 8 is blank; give one token a line"),
    "white space": (GOOD + "다 라\n".encode(), "line 8 holds white space: '다 라'; give one token a line"),
    "one CRLF": (GOOD + "다\r\n".encode(), r"line 8 holds white space: '다\\r'"),
    "CRLF": (GOOD.replace(b"\n", b"\r\n"), r"has the line ends of Windows; convert it with `sed -i 's/\\r\$//' "),
    "not UTF-8": (GOOD + b"\xff\xfe\n", "cannot read the vocabulary .*: line 8 is not UTF-8; save it as UTF-8"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "line 1 is not UTF-8; save it as UTF-8"),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, "byte order mark|not 0 to 4"),
    "missing": (None, "cannot read the vocabulary .*No such file"),
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("role", ["base", "donor"])
def test_a_damaged_file_is_named_with_its_line_and_the_cure_and_nothing_is_written(tmp_path, kind, role):
    content, expected = DAMAGED[kind]
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_bytes(GOOD)
    if content is not None:
        bad.write_bytes(content)
    files = set(tmp_path.iterdir())
    base, donor = (bad, good) if role == "base" else (good, bad)
    with pytest.raises(InputError, match=expected) as error:
        extend_tokenizer(base, tmp_path / "out", donor_vocab=donor)
    assert str(bad) in str(error.value)
    assert set(tmp_path.iterdir()) == files


def test_a_path_can_be_read_with_the_line_ends_of_windows_where_ids_do_not_depend_on_them(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(GOOD.replace(b"\n", b"\r\n"))
    assert read_vocabulary(tmp_path / "vocab.txt", allow_crlf=True) == GOOD.decode().split()
    assert len(load_tokenizer(tmp_path / "vocab.txt")) == 7


@pytest.mark.parametrize(
    "tokens, ids",
    [
        (["[PAD]", "[UNK]", "[CLS]", "[SEP]", "가"], "[0, 1, 2, 3, None]"),
        (["가", *SPECIAL_TOKENS], "[1, 2, 3, 4, 5]"),
        (["[PAD]", "[UNK]", "[SEP]", "[CLS]", "[MASK]"], "[0, 1, 3, 2, 4]"),
        ([], "[None, None, None, None, None]"),
    ],
)
def test_a_base_with_its_special_tokens_elsewhere_is_refused(tmp_path, tokens, ids):
    base = write(tmp_path / "base.txt", tokens)
    with pytest.raises(InputError) as error:
        extend_tokenizer(base, tmp_path / "out", num_unused=10)
    assert f"have the ids {ids}, not 0 to 4; give a WordPiece vocabulary" in str(error.value)
    assert list(tmp_path.iterdir()) == [base]


def test_what_was_not_given_is_not_in_the_manifest_as_a_name(tmp_path):
    base = write(tmp_path / "base.txt", [*SPECIAL_TOKENS, "가"])
    extend_tokenizer(base, tmp_path / "out")
    settings = read_manifest(tmp_path / "out")["settings"]
    assert (settings["base_vocab"], settings["donor_vocab"], settings["num_unused"]) == (str(base), None, 0)


def test_a_negative_number_of_unused_tokens_is_refused(tmp_path):
    base = write(tmp_path / "base.txt", [*SPECIAL_TOKENS, "가"])
    with pytest.raises(InputError, match="--num_unused"):
        extend_tokenizer(base, tmp_path / "out", num_unused=-3)
    assert list(tmp_path.iterdir()) == [base]


@pytest.mark.parametrize("changed", ["base", "donor"])
def test_a_file_that_has_changed_since_is_not_taken_for_the_same(tmp_path, changed):
    files = {name: write(tmp_path / f"{name}.txt", [*SPECIAL_TOKENS, name]) for name in ("base", "donor")}

    def extend():
        return extend_tokenizer(files["base"], tmp_path / "out", donor_vocab=files["donor"])

    assert extend().get_vocab() == extend().get_vocab()
    write(files[changed], [*SPECIAL_TOKENS, "가", "나"])
    with pytest.raises(InputError, match="holds another tokenizer"):
        extend()


# pairings


def make_byte_level() -> PreTrainedTokenizerFast:
    """Make one of 30,000 tokens with the padding of 2023; the file itself could not be had."""
    vocabulary = {token: index for index, token in enumerate(["<s>", "<unk>", "</s>", "<pad>"])}
    vocabulary |= {f"t{index}": index for index in range(4, 30_000)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


@pytest.fixture(scope="module")
def tokenizers():
    if not VOCAB_DIR.is_dir():
        pytest.skip(f"needs the published vocabularies in {VOCAB_DIR}")
    loaded = {known: load_tokenizer(VOCAB_DIR / f"{name}_vocab.txt") for name, known in FILES.items()}
    return loaded | {V2023: make_byte_level()}


def make_config(known, vocab_size: int | None = None) -> BertConfig | ElectraConfig:
    kind = BertConfig if known is KCBERT else ElectraConfig
    return kind(vocab_size=vocab_size or known.size, pad_token_id=known.pad_token_id)


@pytest.mark.parametrize("model, tokenizer", list(product(PUBLISHED, PUBLISHED)), ids=lambda known: known.name[:15])
def test_a_published_model_takes_its_own_tokenizer_alone(tokenizers, model, tokenizer):
    config = make_config(model)
    assert identify_model(config) is model
    if model is tokenizer:
        check_pairing(tokenizers[tokenizer], config)
        return
    with pytest.raises(InputError) as error:
        check_pairing(tokenizers[tokenizer], config)
    message = str(error.value)
    assert f'load AutoTokenizer.from_pretrained("{model.repo_id}", revision="{model.revision}")' in message
    assert f"is that of {tokenizer.name}, {tokenizer.size} tokens" in message
    assert tokenizer.revision not in message


@pytest.mark.parametrize("known", PUBLISHED, ids=lambda known: known.name[:15])
def test_a_table_padded_to_a_multiple_of_128_is_accepted_and_no_longer_one(tokenizers, known):
    check_pairing(tokenizers[known], make_config(known, -(-known.size // 128) * 128))
    check_pairing(tokenizers[known], make_config(known, known.size + 127))
    for vocab_size in (known.size - 1, known.size + 128):
        expected = f"the model has {vocab_size} tokens.*or a model of .*: revision {known.revision} of {known.repo_id}"
        with pytest.raises(InputError, match=expected):
            check_pairing(tokenizers[known], make_config(known, vocab_size))


@needs_vocab
def test_v2021_with_words_in_the_place_of_its_unused_tokens_is_still_a_tokenizer_of_its_model():
    tokens = read("kcelectra_v2021")
    replaced = as_bert_tokenizer([*tokens[:-1000], *(f"새말{index}" for index in range(1000))])
    check_pairing(replaced, make_config(V2021))
    with pytest.raises(InputError, match=V2022.revision):
        check_pairing(replaced, make_config(V2022))


def test_a_model_and_a_tokenizer_of_ones_own_are_known_by_their_sizes(tmp_path):
    tokenizer = as_bert_tokenizer([*SPECIAL_TOKENS, "가", "##가"])
    for vocab_size in (7, 128, 134):
        check_pairing(tokenizer, ElectraConfig(vocab_size=vocab_size))
    for vocab_size in (6, 135):
        expected = f"the model has {vocab_size} tokens, and the tokenizer has 7 .*: load the tokenizer from where the"
        with pytest.raises(InputError, match=expected):
            check_pairing(tokenizer, ElectraConfig(vocab_size=vocab_size))
    with pytest.raises(InputError, match=f"the model of KcELECTRA v2021 has 50135 .* has 7 .*{V2021.revision}"):
        check_pairing(tokenizer, ElectraConfig(vocab_size=50_135))
    tokenizer.save_pretrained(tmp_path)
    assert len(load_tokenizer(tmp_path, config=ElectraConfig(vocab_size=7))) == 7
    with pytest.raises(InputError, match="load the tokenizer from where the model is"):
        load_tokenizer(tmp_path, config=ElectraConfig(vocab_size=6))
