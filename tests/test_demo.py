"""The page to try a model: what it computes is the models' own, and what is pasted stays text."""

import ast
import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from html.parser import HTMLParser
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
import yaml
from hub import HubServer, run_client
from packaging.requirements import Requirement
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ElectraConfig,
    ElectraForSequenceClassification,
)

from kcelectra import KcElectraConfig, KcElectraForPreTraining, clean
from kcelectra.corpus.cleaning import RULE_SETS
from kcelectra.errors import InputError
from kcelectra.pretraining.export import export_model
from kcelectra.release import demo_page
from kcelectra.release.demo import (
    MAX_CHARS,
    Answer,
    Change,
    Cleaned,
    Corruption,
    Judged,
    Piece,
    Replacement,
    classify,
    compare_rules,
    corrupt,
    is_cut,
    judge,
    split_pieces,
)
from kcelectra.release.demo_model import load_model
from kcelectra.release.demo_page import EXAMPLES, build_page, look_at, render_view, replace_in
from kcelectra.release.demo_space import GRADIO, write_space
from kcelectra.release.demo_words import WORDS
from kcelectra.tokenization import save_tokenizer

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "demo.py"
WORD = "이"  # one token, as every letter of the alphabet
TEXT = "이 영화 진짜 재밌어요 ㅋㅋ 부모님이랑 또 보고 싶네요!!"
LABELS = {"one": ("나쁨", "좋음"), "several": ("욕설", "지역", "<b>없음</b>"), "number": ("점수",)}
PROBLEMS = {"one": "single_label_classification", "several": "multi_label_classification"}
MARKUP = "<img src=x onerror=\"document.title='bad'\"> & </p><script>alert(1)</script> '\" {{value}} ${1+1}"


def make_model(tokenizer, **options):
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "initializer_range": 0.3, **options}
    return KcElectraForPreTraining(KcElectraConfig.from_size("tiny", vocab_size=len(tokenizer), **sizes))


@pytest.fixture(scope="module")
def export(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo") / "export"
    export_model(make_model(tokenizer), tokenizer, directory)
    return directory


@pytest.fixture(scope="module")
def classifiers(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("classifiers")
    for kind, labels in LABELS.items():
        torch.manual_seed(1)
        config = ElectraConfig(
            vocab_size=len(tokenizer), embedding_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=64, initializer_range=0.5, problem_type=PROBLEMS.get(kind),
            id2label=dict(enumerate(labels)),
        )  # fmt: skip
        ElectraForSequenceClassification(config).save_pretrained(directory / kind)
        save_tokenizer(tokenizer, directory / kind)
    return [str(directory / kind) for kind in LABELS]


@pytest.fixture(scope="module")
def model(export, classifiers):
    return load_model(str(export), classifiers)


def ids_of(export, text):
    tokenizer = AutoTokenizer.from_pretrained(export / "discriminator")
    return tokenizer(text, split_special_tokens=True, return_tensors="pt")["input_ids"]


@torch.no_grad()
def probabilities_of(export, ids):
    return AutoModelForPreTraining.from_pretrained(export / "discriminator").eval()(ids).logits[0].sigmoid().tolist()


# what the models say


def test_a_token_has_the_probability_of_the_plain_discriminator(model, export):
    rows = judge(model, TEXT)
    ids = ids_of(export, TEXT)
    assert [row.token for row in rows] == model.tokenizer.convert_ids_to_tokens(ids[0])[1:-1]
    assert [row.probability for row in rows] == pytest.approx(probabilities_of(export, ids)[1:-1], abs=1e-6)
    assert len({round(row.probability, 3) for row in rows}) > 5
    assert not any(row.is_replaced for row in rows)


def test_the_discriminator_judges_the_corrupted_text(model, export):
    corruption = corrupt(model, TEXT, seed=3)
    ids = model.tokenizer.convert_tokens_to_ids([row.token for row in corruption.judged])
    framed = torch.tensor([[model.tokenizer.cls_token_id, *ids, model.tokenizer.sep_token_id]])
    expected = probabilities_of(export, framed)[1:-1]
    assert [row.probability for row in corruption.judged] == pytest.approx(expected, abs=1e-6)
    originals = [row.token for row in judge(model, TEXT)]
    assert [row.is_replaced for row in corruption.judged] == [
        row.token != original for row, original in zip(corruption.judged, originals, strict=True)
    ]
    assert any(row.is_replaced for row in corruption.judged)


@torch.no_grad()
def test_the_proposals_are_those_of_the_plain_generator(model, export):
    text = f"영 {WORD} 화"
    (replacement,) = corrupt(model, text, words=[1]).replacements
    ids = ids_of(export, text)
    assert replacement.original == WORD
    ids[0, 2] = model.tokenizer.mask_token_id  # [CLS] and one token before it
    logits = AutoModelForMaskedLM.from_pretrained(export, subfolder="generator").eval()(ids).logits[0, 2]
    logits[[model.tokenizer.convert_tokens_to_ids(token) for token in ("[PAD]", "[CLS]", "[SEP]", "[MASK]")]] = -1e9
    best = logits.softmax(-1).topk(len(replacement.proposals))
    assert [token for token, _ in replacement.proposals] == model.tokenizer.convert_ids_to_tokens(best.indices)
    assert [share for _, share in replacement.proposals] == pytest.approx(best.values.tolist(), abs=1e-6)


def test_what_is_drawn_is_as_frequent_as_it_is_probable(model):
    draws = Counter()
    for seed in range(200):
        (replacement,) = corrupt(model, WORD, seed=seed).replacements
        draws[replacement.drawn] += 1
    token, share = replacement.proposals[0]
    assert 0.02 < share < 0.98
    assert draws[token] / 200 == pytest.approx(share, abs=4 * (share * (1 - share) / 200) ** 0.5)


def test_no_special_token_is_proposed_or_drawn(tokenizer, export, tmp_path):
    joint = make_model(tokenizer)
    special = [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id]
    with torch.no_grad():
        joint.generator.generator_lm_head.bias[special] = 100.0
    export_model(joint, tokenizer, tmp_path / "export")
    corruption = corrupt(load_model(str(tmp_path / "export")), TEXT, words=range(99))
    seen = [row.drawn for row in corruption.replacements]
    seen += [token for row in corruption.replacements for token, _ in row.proposals]
    assert not set(seen) & {"[PAD]", "[CLS]", "[SEP]", "[MASK]"}


def test_rows_of_the_table_that_no_token_has_are_not_drawn(tokenizer, tmp_path):
    joint = make_model(tokenizer)
    joint.resize_token_embeddings(len(tokenizer) + 50)
    with torch.no_grad():
        joint.generator.generator_lm_head.bias[-50:] = 100.0
    export_model(joint, tokenizer, tmp_path / "export")
    corruption = corrupt(load_model(str(tmp_path / "export")), TEXT)
    assert all(row.drawn for row in corruption.replacements)
    assert all(token for row in corruption.replacements for token, _ in row.proposals)


def test_the_words_that_are_chosen_are_hidden_and_no_others(model):
    pieces = split_pieces(model, TEXT)
    words = {pieces[0].word, pieces[-4].word}
    corruption = corrupt(model, TEXT, words=words)
    assert [row.original for row in corruption.replacements] == [p.token for p in pieces if p.word in words]
    others = [piece.word not in words for piece in pieces]
    assert not any(row.is_replaced for row, is_other in zip(corruption.judged, others, strict=True) if is_other)


@pytest.mark.parametrize(("num_tokens", "num_masked"), [(1, 1), (3, 1), (10, 2), (40, 6), (100, 15)])
def test_fifteen_percent_of_the_tokens_are_hidden_and_one_at_least(model, num_tokens, num_masked):
    text = " ".join([WORD] * num_tokens)
    assert len(split_pieces(model, text)) == num_tokens
    assert len(corrupt(model, text).replacements) == num_masked


def test_a_seed_chooses_positions_and_draws_and_an_other_one_others(model):
    assert corrupt(model, TEXT, seed=1) == corrupt(model, TEXT, seed=1)
    assert len({str(corrupt(model, TEXT, seed=seed).replacements) for seed in range(8)}) > 4
    chosen = [corrupt(model, TEXT, words=[0], seed=seed).replacements[0].drawn for seed in range(20)]
    assert len(set(chosen)) > 1


def test_special_tokens_in_a_comment_are_text(model):
    tokens = [piece.token for piece in split_pieces(model, "영화 [SEP] [MASK] [CLS] 영화")]
    assert not set(tokens) & {"[SEP]", "[MASK]", "[CLS]"}
    assert len(judge(model, "[MASK]")) == len(split_pieces(model, "[MASK]")) > 1


def test_pieces_name_their_text_their_word_and_what_is_unknown(model):
    pieces = split_pieces(model, "영화가 좋다 龘")
    assert "".join(piece.text for piece in pieces) == "영화가좋다龘"
    assert [piece.is_unknown for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].token == "[UNK]"
    assert sorted({piece.word for piece in pieces}) == [0, 1, 2]
    assert [model.tokenizer.convert_ids_to_tokens(piece.token_id) for piece in pieces] == [p.token for p in pieces]


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_nothing_is_made_of_nothing(model, text):
    assert split_pieces(model, text) == judge(model, text) == []
    assert corrupt(model, text) == Corruption([], [])
    assert corrupt(model, TEXT, words=[999]).replacements == []


@pytest.mark.parametrize(
    ("is_replaced", "probability", "outcome"),
    [(True, 0.51, "found"), (True, 0.5, "missed"), (False, 0.51, "false_alarm"), (False, 0.5, "")],
)
def test_a_token_is_called_replaced_above_one_half(is_replaced, probability, outcome):
    assert Judged("영화", probability, is_replaced).outcome == outcome


@torch.no_grad()
def test_classifiers_answer_as_their_problem_wants(model, classifiers):
    answers = classify(model, TEXT)
    assert [answer.classifier for answer in answers] == classifiers
    for kind, answer in zip(LABELS, answers, strict=True):
        tokenizer = AutoTokenizer.from_pretrained(answer.classifier)
        plain = AutoModelForSequenceClassification.from_pretrained(answer.classifier).eval()
        logits = plain(**tokenizer(TEXT, return_tensors="pt")).logits[0]
        expected = {"one": logits.softmax(-1), "several": logits.sigmoid(), "number": logits}[kind].tolist()
        assert dict(answer.scores) == pytest.approx(dict(zip(LABELS[kind], expected, strict=True)), abs=1e-6)
        scores = [score for _, score in answer.scores]
        assert scores == sorted(scores, reverse=True)
        assert answer.is_number == (kind == "number")


def test_a_classifier_with_few_positions_reads_a_long_comment(model):
    assert len(classify(model, "영화 좋다 " * 100)) == len(LABELS)


def test_classifiers_read_the_comment_as_it_is(model):
    raw, cleaned = "영화 👍 ㅋㅋㅋㅋㅋㅋ", clean("영화 👍 ㅋㅋㅋㅋㅋㅋ")
    shown = look_at(model, "en", raw, "v2022")["answers"]
    assert shown == render_view("answers", "en", classify(model, raw))
    assert shown != render_view("answers", "en", classify(model, cleaned))


# what cleaning changes


@pytest.mark.parametrize("rules", [rules for rules in RULE_SETS if rules != "none"])
def test_the_changes_are_the_whole_way_from_the_comment_to_its_cleaning(rules, sample_comments):
    comments = [
        *EXAMPLES,
        MARKUP,
        "",
        "\x00\x1b[31m\u200b👨\u200d👩\u200d👧",
        *(c["text"] for c in sample_comments[:150]),
    ]
    for comment in comments:
        (row,) = [row for row in compare_rules(comment) if row.rules == rules]
        assert row.text == clean(comment, rules)
        assert "".join(text for kind, text in row.changes if kind != "added") == comment
        assert "".join(text for kind, text in row.changes if kind != "removed") == row.text
        assert all(text for _, text in row.changes)


def test_the_examples_show_what_each_rule_set_is_for():
    for rules in RULE_SETS:
        assert rules == "none" or any(clean(example, rules) != example for example in EXAMPLES)
    kept = [{row.text for row in compare_rules(example)} for example in EXAMPLES]
    assert max(map(len, kept)) == 3


@pytest.mark.parametrize("comment", ["1가가가" * 250_000, "ㅋ" * 1_000_000, "👍" * 260_000, "a.b" * 350_000])
def test_a_comment_of_a_megabyte_is_cut_and_answered_soon(model, comment):
    started = time.monotonic()
    shown = look_at(model, "en", comment, "corpus")
    assert time.monotonic() - started < 10  # measured: 1 s at most on two cores
    assert f"{len(comment):,} characters; the first {MAX_CHARS}" in shown["notices"]
    assert len(shown["text"]) <= MAX_CHARS


def test_half_a_character_does_not_break_the_answer(model):
    shown = look_at(model, "ko", "영화 \ud83d 좋다 \ud83d\ude00", "none")
    assert shown["text"] == "영화 \ufffd 좋다 😀"
    assert "".join(map(str, shown.values())).encode()


def test_a_text_of_more_tokens_than_positions_is_cut_and_the_reader_is_told(tokenizer, tmp_path):
    export_model(make_model(tokenizer, max_position_embeddings=16), tokenizer, tmp_path / "export")
    model = load_model(str(tmp_path / "export"))
    long, short = "가 나 " * 20, "가 나 " * 7
    assert (is_cut(model, long), is_cut(model, short)) == (True, False)
    assert len(judge(model, long)) == len(corrupt(model, long).judged) == 14
    assert WORDS["ko"]["tokens_cut"] in look_at(model, "ko", long, "none")["notices"]
    assert look_at(model, "ko", short, "none")["notices"] == ""


# what is shown


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = Counter(), ""

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def read_html(html):
    parser = _Tags()
    parser.feed(html)
    parser.close()
    return parser


PARTS = {
    "head": [MARKUP],
    "notices": [[MARKUP]],
    "cleaned": [[Cleaned("v2022", MARKUP, [Change(kind, MARKUP) for kind in ("kept", "removed", "added")])]],
    "pieces": [[Piece(MARKUP, 1, MARKUP, 0, True)]],
    "judged": [[Judged(MARKUP, 0.9)]],
    "corruption": [[Replacement(MARKUP, MARKUP, [(MARKUP, 0.5)])], [Judged(MARKUP, 0.9, True)]],
    "answers": [[Answer(MARKUP, [(MARKUP, 0.5)], False), Answer(MARKUP, [(MARKUP, 5.0)], True)]],
}


@pytest.mark.parametrize("language", WORDS)
@pytest.mark.parametrize("part", PARTS)
def test_what_is_pasted_is_shown_as_text_and_never_as_markup(part, language):
    page = read_html(render_view(part, language, *PARTS[part]))
    assert MARKUP in page.text
    assert not set(page.tags) & {"img", "script"}


def test_what_a_model_makes_of_markup_is_text_too(model):
    shown = look_at(model, "en", MARKUP, "none")
    for part in ("cleaned", "pieces", "judged", "answers"):
        assert not set(read_html(shown[part]).tags) & {"img", "script"}
    corruption = replace_in(model, "en", shown["text"], [number for _, number in shown["words"]], 0)
    assert not set(read_html(corruption).tags) & {"img", "script"}


def test_a_probability_is_a_number_and_a_mark_beside_its_colour():
    page = read_html(render_view("judged", "en", [Judged("영화", 0.934), Judged("좋다", 0.5)]))
    assert re.sub(r"\s+", " ", page.text).endswith(" 영화▲ 93% 좋다50% ")


def test_what_was_found_is_said_in_words():
    judged = [
        Judged("가", 0.9, True),
        Judged("나", 0.1, True),
        Judged("다", 0.8),
        Judged("라", 0.2),
        Judged("마", 0.2),
    ]
    rows = [
        Replacement("ㄱ", "가", [("가", 0.6)]),
        Replacement("ㄴ", "나", []),
        Replacement("마", "마", [("ㅁ", 0.25)]),
    ]
    text = read_html(render_view("corruption", "en", rows, judged)).text
    assert "1 of 2 replaced tokens found; false alarms: 1; drawn the same as before: 1." in text
    assert "가found▲\xa090%" in text and "나missed10%" in text and "다false alarm▲\xa080%" in text and "라20%" in text
    assert "마 (the same)" in text and "ㅁ\xa025%" in text


def test_removed_and_added_are_marked_in_the_markup_itself():
    html = render_view("cleaned", "ko", compare_rules("&lt;속보&gt; 대박대박대박"))
    assert "<del>" in html and "<ins>" in html


def test_invisible_characters_are_written_out():
    text = read_html(render_view("cleaned", "en", compare_rules("가\u200b나\x1b\u202e"))).text
    assert "U+200B" in text and "U+001B" in text and "U+202E" in text
    assert not re.search("[\u200b\x1b\u202e]", text)


@pytest.mark.parametrize("language", WORDS)
def test_an_empty_comment_is_answered_with_words(model, language):
    for comment in ("", " \n\t "):
        shown = look_at(model, language, comment, "v2022")
        assert WORDS[language]["empty"] in shown["notices"]
        assert shown["words"] == [] and shown["text"] == ""


def test_a_comment_of_which_nothing_is_left_names_the_rules(model):
    shown = look_at(model, "en", "👍👍👍", "v2022")
    assert "v2022 leave nothing" in shown["notices"]
    assert "(nothing is left)" in shown["cleaned"]
    assert look_at(model, "en", "👍👍👍", "v2021")["notices"] == ""


def test_the_words_to_hide_are_those_that_the_model_read(model):
    shown = look_at(model, "ko", "영화가 ㅋㅋㅋㅋㅋㅋ 좋다!", "v2022")
    assert [word for word, _ in shown["words"]] == ["영화가", "ㅋㅋ", "좋다", "!"]
    number = dict(shown["words"])["ㅋㅋ"]
    html = replace_in(model, "ko", shown["text"], [number], None)
    assert "<td>ㅋㅋ</td>" in html


def test_both_languages_say_the_same_things():
    assert WORDS["ko"].keys() == WORDS["en"].keys()
    for key, korean in WORDS["ko"].items():
        english = WORDS["en"][key]
        assert korean != english
        assert sorted(re.findall(r"{\w+", korean)) == sorted(re.findall(r"{\w+", english)), key
        assert re.search("[가-힣]", korean) and not re.search("[가-힣]", english), key


def test_every_word_is_used():
    source = (demo_page.HERE / "demo.html.jinja").read_text(encoding="utf-8") + Path(demo_page.__file__).read_text()
    source += " ".join(f'"{Judged("", p, r).outcome}"' for p in (0.1, 0.9) for r in (True, False))
    assert [key for key in WORDS["en"] if f'"{key}"' not in source and f"t.{key}" not in source] == []


# loading


def test_an_export_and_a_repository_of_it_give_the_same(export, model, tmp_path):
    root = tmp_path / "repository"
    shutil.copytree(export / "discriminator", root)
    shutil.copytree(export / "generator", root / "generator")
    other = load_model(str(root))
    assert judge(other, TEXT) == judge(model, TEXT)
    assert corrupt(other, TEXT) == corrupt(model, TEXT)


def test_a_discriminator_alone_is_tried_without_a_generator(export, model):
    alone = load_model(str(export / "discriminator"))
    assert alone.generator is None
    assert judge(alone, TEXT) == judge(model, TEXT)


def test_a_masked_language_model_alone_is_refused_as_one(export):
    with pytest.raises(InputError, match="generator is a masked language model alone, and the page shows a discrimin"):
        load_model(str(export / "generator"))


def test_a_model_without_the_head_is_refused(export, classifiers):
    with pytest.raises(InputError, match=r"is no ElectraForPreTraining: it has no discriminator_predictions"):
        load_model(classifiers[0])
    with pytest.raises(InputError, match=r"is no AutoModelForSequenceClassification: it has no classifier\.dense"):
        load_model(str(export), [str(export / "discriminator")])


def test_the_tokenizer_of_an_other_model_is_refused(export, tmp_path):
    shutil.copytree(export, tmp_path / "export")
    config = tmp_path / "export/discriminator/tokenizer.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)[:-200]
    content["model"]["vocab"] = {token: index for index, token in enumerate(tokens)}
    config.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="their ids differ"):
        load_model(str(tmp_path / "export"))


def test_a_generator_of_an_other_vocabulary_is_refused(tokenizer, export, tmp_path):
    shutil.copytree(export, tmp_path / "export")
    other = make_model(tokenizer)
    other.resize_token_embeddings(len(tokenizer) + 200)
    other.generator.save_pretrained(tmp_path / "export/generator")
    with pytest.raises(InputError, match="their ids differ"):
        load_model(str(tmp_path / "export"))


def test_weights_in_half_precision_are_tried_in_single(export, tmp_path):
    shutil.copytree(export, tmp_path / "export")
    for half in ("discriminator", "generator"):
        model = getattr(load_model(str(export)), half).half()
        model.save_pretrained(tmp_path / "export" / half)
    tried = load_model(str(tmp_path / "export"))
    assert {model.dtype for model in (tried.discriminator, tried.generator)} == {torch.float32}


def test_half_a_file_of_weights_is_refused(export, tmp_path):
    shutil.copytree(export, tmp_path / "export")
    weights = tmp_path / "export/generator/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match="cannot load .*export.*; give a directory such as out/smoke/export"):
        load_model(str(tmp_path / "export"))


@pytest.mark.parametrize("source", ["no/such/directory", "nowhere", "../nowhere"])
def test_what_is_nowhere_is_refused_with_what_to_type(source):
    with pytest.raises(InputError, match="cannot load .*; give a directory such as out/smoke/export, or OWNER/NAME@"):
        load_model(source)


# the recipe


def run_recipe(monkeypatch, *words):
    spec = importlib.util.spec_from_file_location("demo_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo_recipe", module)
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *map(str, words)])
    spec.loader.exec_module(module)
    module.main()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --model, such as --model out/smoke/export"),
        (["--model", "x", "--share", "true"], "--share true: a tunnel would lead comments over another host"),
        (["--model", "x", "--modle", "y"], "unknown argument '--modle'; did you mean 'model'?"),
    ],
)
def test_a_wrong_command_line_is_told_what_to_type(words, message, monkeypatch):
    with pytest.raises(InputError, match=re.escape(message)):
        run_recipe(monkeypatch, *words)


def test_without_the_extra_the_recipe_says_so_before_it_looks_for_a_model(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r'extra "demo".*pip install -e "\.\[demo\]"'):
        run_recipe(monkeypatch, "--model", "no/such/directory")


def test_the_recipe_writes_a_space_and_names_its_files(monkeypatch, tmp_path, capsys):
    run_recipe(monkeypatch, "--model", "owner/model@v1", "--space_dir", tmp_path / "space")
    printed = capsys.readouterr().out
    assert "app.py\n" in printed and f"hf upload OWNER/NAME {tmp_path / 'space'} --repo-type space" in printed
    assert (tmp_path / "space/app.py").is_file()


def test_without_the_extra_the_page_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r'extra "demo".*pip install -e "\.\[demo\]"'):
        build_page(model)


# a Space


def test_a_space_is_the_page_on_a_model_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canaryThatMustNotSing")
    space = tmp_path / "space"
    files = write_space(space, "owner/model@v1", ["owner/classifier"])
    assert {"app.py", "requirements.txt", "README.md", "kcelectra/LICENSE", "kcelectra/release/demo.css"} <= set(files)
    assert not [name for name in files if "__pycache__" in name or "tmp" in name]
    assert {path.name for path in tmp_path.iterdir()} == {"space"}
    for name in files:
        assert b"canary" not in (space / name).read_bytes()
    _, header, body = (space / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(header)
    assert card["sdk"] == "gradio" and card["sdk_version"] == GRADIO and card["app_file"] == "app.py"
    assert card["models"] == ["owner/model", "owner/classifier"]
    assert card["colorFrom"] in ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
    assert "# Try owner/model" in body
    assert arguments_of(space / "app.py") == ["owner/model@v1", ["owner/classifier"]]


def test_a_space_is_not_put_in_the_place_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is where you are; give a new --space_dir"):
        write_space(".", "owner/name")


def test_a_space_pins_what_it_was_tested_with(tmp_path):
    write_space(tmp_path / "space", "owner/model")
    pins = dict(line.split("==") for line in (tmp_path / "space/requirements.txt").read_text().splitlines())
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert pins["gradio"] == tested["gradio"]
    for package in ("torch", "transformers", "jinja2"):
        assert version(package).startswith(pins[package])


LOAD = """
from kcelectra.release.demo import corrupt, judge
from kcelectra.release.demo_model import load_model
import kcelectra.release.demo_page

def look(source, classifiers=()):
    model = load_model(source, classifiers)
    rows = [row.probability for row in judge(model, sys.argv[1])]
    return [rows, model.generator is not None, len(model.classifiers)]

attempt("app", lambda: look(*json.loads(sys.argv[2])))
attempt("alone", lambda: look("owner/alone"))
attempt("no revision", lambda: look("owner/model@v9"))
attempt("no model", lambda: look("owner/nothing"))
results["files"] = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "kcelectra"]
"""


@pytest.fixture(scope="module")
def space(export, classifiers, tmp_path_factory):
    """Load the model of a Space as its `app.py` does, with the package that lies in it, from a Hub served here."""
    root = tmp_path_factory.mktemp("hub")
    models = root / "models/owner"
    shutil.copytree(export / "discriminator", models / "model/v1")
    shutil.copytree(export / "generator", models / "model/v1/generator")
    shutil.copytree(export / "discriminator", models / "alone/main")
    shutil.copytree(classifiers[0], models / "classifier/main")
    directory = root / "space"
    write_space(directory, "owner/model@v1", ["owner/classifier"])
    with HubServer(root) as hub:
        return run_client(LOAD, TEXT, json.dumps(arguments_of(directory / "app.py")), hub=hub, directory=directory)


def arguments_of(app):
    """Return what `app.py` gives to `load_model`."""
    (call,) = [
        node
        for node in ast.walk(ast.parse(app.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "load_model"
    ]
    return [ast.literal_eval(argument) for argument in call.args]


def test_a_space_loads_its_model_from_the_hub_at_its_revision(space, model):
    expected = pytest.approx([row.probability for row in judge(model, TEXT)], abs=1e-6)
    assert space.results["app"] == [expected, True, 1]
    assert any("/owner/model/resolve/v1/" in call for call in space.calls)
    assert space.elsewhere == [] and space.unknown == []


def test_a_repository_without_a_generator_is_loaded_without(space, model):
    expected = pytest.approx([row.probability for row in judge(model, TEXT)], abs=1e-6)
    assert space.results["alone"] == [expected, False, 0]


@pytest.mark.parametrize("missing", ["no revision", "no model"])
def test_what_is_not_on_the_hub_is_refused(space, missing):
    assert space.results[missing].startswith("kcelectra.errors.InputError: cannot load owner/")


def closure(names):
    """Return distributions with all that they need, extras aside; of those that are not installed, the names alone."""
    found, rest = set(), list(names)
    while rest:
        name = re.sub(r"[-_.]+", "-", rest.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            needed = map(Requirement, requires(name) or [])
        except PackageNotFoundError:
            continue
        rest += [need.name for need in needed if not need.marker or need.marker.evaluate({"extra": ""})]
    return found


def test_a_space_runs_its_own_copy_of_the_package_and_requires_what_that_imports(space):
    files = [Path(file) for file in space.results["files"]]
    assert len(files) > 8 and all(file.is_relative_to(space.directory) for file in files)
    imported = set()
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:  # a later import is for what a page does not do
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])
    foreign = {name.replace("_", "-") for name in imported - sys.stdlib_module_names - {"kcelectra"}}
    pins = [line.partition("==")[0] for line in (space.directory / "requirements.txt").read_text().splitlines()]
    assert {"torch", "transformers", "jinja2"} <= foreign <= closure(pins)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowner", "OWNER/NAME"),
        ("a/b/c", "OWNER/NAME"),
        ('owner/x"""; import os', "OWNER/NAME"),
        ("../owner/name", "OWNER/NAME"),
    ],
)
def test_a_space_of_what_is_no_repository_is_refused(source, message, tmp_path):
    with pytest.raises(InputError, match=message):
        write_space(tmp_path / "space", source)
    assert not (tmp_path / "space").exists()


def test_a_space_of_a_directory_is_refused(export, tmp_path):
    with pytest.raises(InputError, match="a Space loads from the Hub"):
        write_space(tmp_path / "space", str(export))


def test_a_revision_cannot_become_code(tmp_path):
    evil = 'owner/model@"""\nimport os  # \n"""'
    write_space(tmp_path / "space", evil)
    tree = ast.parse((tmp_path / "space/app.py").read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]


def test_a_directory_that_holds_something_is_left_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty; give another --space_dir"):
        write_space(tmp_path, "owner/model")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# the page itself

SERVE = """
import runpy, sys

def guard(event, arguments):  # no look-up and no connection but to this machine
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in (None, "127.0.0.1", "localhost", "::1", "0.0.0.0"):
        print("elsewhere:", host, flush=True)
        raise OSError(f"refused: {host}")

sys.addaudithook(guard)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
#: The contrast of an element's text with what is behind it, by WCAG 2.2; backgrounds lie on one another.
CONTRAST = """element => {
  const read = color => { const n = color.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n }
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]))
  const layers = []
  for (let e = element; e; e = e.parentElement) layers.push(read(getComputedStyle(e).backgroundColor))
  const back = layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255])
  const style = getComputedStyle(element), ink = read(style.color)
  const front = over([...ink.slice(0, 3), ink[3] * Number(style.opacity)], back)
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4
  const light = rgb => [.2126, .7152, .0722].reduce((sum, share, i) => sum + share * linear(rgb[i] / 255), 0)
  const [a, b] = [light(front), light(back)].sort((x, y) => y - x)
  return (a + .05) / (b + .05)
}"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def needs_gradio():
    if importlib.util.find_spec("gradio") is None:
        pytest.skip('no gradio, which serves the page: pip install -e ".[demo]"')


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serve(script, *words, port, directory, environment=None):
    """Run a script until it says where the page is, yield that address, and see in the end that it asked nobody."""
    log = directory / "server.log"
    command = [sys.executable, "-c", SERVE, str(script), *map(str, words)]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, cwd=directory, env=environment)
    try:
        deadline = time.monotonic() + 120
        while "Korean: " not in log.read_text():
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(30)
    assert "elsewhere:" not in log.read_text() and "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def address(needs_gradio, export, classifiers, tmp_path_factory):
    port, directory = free_port(), tmp_path_factory.mktemp("server")
    words = ["--model", export, "--classifier", *classifiers, "--port", port, "--share", "never"]
    with serve(RECIPE, *words, port=port, directory=directory) as address:
        yield address
    assert [path.name for path in directory.iterdir()] == ["server.log"]  # nothing of a comment lies about


@pytest.mark.slow
def test_the_page_answers_what_the_functions_behind_it_give(address, model):
    from gradio_client import Client

    client = Client(address, verbose=False)
    for language in WORDS:
        shown = look_at(model, language, MARKUP, "corpus")
        notices, cleaned, pieces, judged, words, corruption, answers = client.predict(
            MARKUP, "corpus", api_name=f"/look_{language}"
        )
        assert (notices, cleaned, pieces, judged) == tuple(
            shown[k] for k in ("notices", "cleaned", "pieces", "judged")
        )
        assert answers == shown["answers"] and corruption == ""
        assert [tuple(choice) for choice in words["choices"]] == shown["words"]
        replaced = client.predict([2], 7, api_name=f"/replace_{language}")
        assert replaced == replace_in(model, language, shown["text"], [2], 7)


@pytest.mark.slow
def test_a_space_shows_the_page(needs_gradio, export, classifiers, tmp_path):
    shutil.copytree(export / "discriminator", tmp_path / "hub/models/owner/model/v1")
    shutil.copytree(export / "generator", tmp_path / "hub/models/owner/model/v1/generator")
    shutil.copytree(classifiers[0], tmp_path / "hub/models/owner/classifier/main")
    write_space(tmp_path / "space", "owner/model@v1", ["owner/classifier"])
    port = free_port()
    with HubServer(tmp_path / "hub") as hub:
        environment = hub.client_env(tmp_path / "home") | {
            "GRADIO_SERVER_PORT": str(port),
            "PYTHONPATH": str(tmp_path / "space"),  # as where a script lies in `python app.py`
        }
        place = {"port": port, "directory": tmp_path, "environment": environment}
        with serve(tmp_path / "space/app.py", **place) as address:
            for path in ("", "en"):
                page = urlopen(address + path, timeout=30).read().decode()
                assert "owner/model@v1" in page
    assert hub.unknown == []


@pytest.mark.slow
def test_a_port_that_is_taken_is_refused(needs_gradio, export, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = ["--model", export, "--port", taken.getsockname()[1]]
        command = [sys.executable, str(RECIPE), *map(str, words)]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert finished.returncode == 2
    assert "give another --port" in finished.stderr and "Traceback" not in finished.stderr


@pytest.fixture(scope="module")
def browser(address):
    if importlib.util.find_spec("playwright") is None:
        pytest.skip('no playwright, which drives the browser: pip install -e ".[browser]"')
    if CHROMIUM is None:
        pytest.skip("no Chromium on the path; install chromium of the system")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Return what opens a page, and see in the end that it asked this server alone and that no script failed."""
    requests, errors, contexts = [], [], []

    def open_page(language="ko", *, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: (errors.append("a dialog"), dialog.dismiss()))
        page.goto(address + ("" if language == "ko" else language))
        page.wait_for_selector(".kc-rules")
        page.wait_for_function("lang => document.documentElement.lang === lang", arg=language)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert {url for url in requests if not url.startswith((address, "data:", "blob:"))} == set()
    assert errors == []


def look(page, language, comment):
    words = WORDS[language]
    page.get_by_label(words["comment"], exact=True).fill(comment)
    page.get_by_role("button", name=words["look"]).click()


def open_tab(page, name):
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():  # in a narrow window
        page.locator(".overflow-menu > button").click()
        tab = page.locator(".overflow-dropdown").get_by_text(name, exact=True)
    tab.click()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(("language", "scheme"), [("ko", "light"), ("en", "dark")])
def test_every_tab_shows_its_part(visit, model, language, scheme, width, tmp_path):
    page, words = visit(language, width=width, scheme=scheme), WORDS[language]
    look(page, language, "영화가 ㅋㅋㅋㅋㅋㅋ 좋다 👍")
    page.locator(".kc-result", has_text="영화가 ㅋㅋ 좋다 👍").first.wait_for()
    assert page.locator(".kc-rules del:visible").first.inner_text().strip("👍 ") == "ㅋㅋㅋㅋ"

    open_tab(page, words["pieces"])
    tokens = [piece.token for piece in split_pieces(model, "영화가 ㅋㅋ 좋다")]
    assert page.locator(".kc-tokens:visible b").all_inner_texts() == tokens

    open_tab(page, words["judged"])
    assert page.locator(".kc-tokens:visible b").all_inner_texts() == tokens
    shares = [
        f"▲\xa0{p:.0%}" if (p := row.probability) > 0.5 else f"{p:.0%}" for row in judge(model, "영화가 ㅋㅋ 좋다")
    ]
    assert page.locator(".kc-tokens:visible small").all_inner_texts() == shares

    open_tab(page, words["corruption"])
    page.get_by_role("checkbox", name="ㅋㅋ", exact=True).check()
    page.get_by_label(words["seed"]).fill("5")
    page.get_by_role("button", name=words["replace"]).click()
    page.locator(".kc-wide").wait_for()
    expected = corrupt(model, "영화가 ㅋㅋ 좋다", words=[1], seed=5)
    assert page.locator(".kc-tokens:visible b").all_inner_texts() == [row.token for row in expected.judged]
    assert page.locator(".kc-wide td").first.inner_text() == expected.replacements[0].original

    open_tab(page, words["answers"])
    assert page.locator(".kc-bars:visible").count() == len(LABELS)
    assert {"좋음", "욕설", "점수"} <= set(page.locator(".kc-bars:visible th").all_inner_texts())

    width_of_content = page.evaluate("document.documentElement.scrollWidth")
    assert width_of_content <= width  # nothing sticks out
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.slow
def test_pasted_markup_stays_text(visit):
    page = visit("en")
    page.get_by_role("radio", name="none").check()
    look(page, "en", MARKUP)
    page.locator(".kc-text", has_text="{{value}} ${1+1}").first.wait_for()
    for name in ("pieces", "judged", "corruption"):
        open_tab(page, WORDS["en"][name])
    page.get_by_role("button", name=WORDS["en"]["replace"]).click()
    page.locator(".kc-wide").wait_for()
    assert page.locator("img[src=x]").count() == 0
    assert page.title() != "bad"


@pytest.mark.slow
def test_an_example_is_looked_at_when_it_is_clicked(visit):
    page = visit("ko")
    page.get_by_text(EXAMPLES[1], exact=True).last.click()
    page.locator(".kc-result", has_text=clean(EXAMPLES[1])).first.wait_for()
    assert page.get_by_label(WORDS["ko"]["comment"], exact=True).input_value() == EXAMPLES[1]


@pytest.mark.slow
def test_nothing_and_a_megabyte_are_answered(visit):
    page = visit("en")
    look(page, "en", "")
    page.get_by_text("The comment is empty.").wait_for()
    look(page, "en", "좋" * 1_000_000)
    page.get_by_text("1,000,000 characters; the first 500").wait_for()
    look(page, "en", "짧다")
    page.get_by_text("1,000,000 characters").wait_for(state="detached")


@pytest.mark.slow
def test_the_other_language_is_one_click_away(visit):
    page = visit("ko")
    page.get_by_role("link", name="English").click()
    page.get_by_role("tab", name="Cleaning").wait_for()
    assert page.url.endswith("/en")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_written_can_be_read_on_its_colour(visit, scheme):
    page = visit("en", scheme=scheme)
    open_tab(page, WORDS["en"]["judged"])
    page.locator(".kc-judged:visible").first.evaluate("e => e.style.setProperty('--kc-p', 1)")
    ratio = page.locator(".kc-judged:visible").first.evaluate(CONTRAST)
    assert ratio > 4.5  # WCAG 2.2, 1.4.3
    for part in (".kc-help:visible", ".kc-head p", "nav a >> nth=0"):
        assert page.locator(part).first.evaluate(CONTRAST) > 4.5


@pytest.mark.slow
def test_the_browser_keeps_no_comment(visit):
    page = visit("en")
    look(page, "en", "비밀 댓글입니다")
    page.locator(".kc-result", has_text="비밀 댓글입니다").first.wait_for()
    page.wait_for_timeout(1000)  # what is kept is kept when an answer is there
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert "비밀" not in kept
