"""Vocabularies side by side."""

import json
import struct
from pathlib import Path

import pytest

from kcelectra.errors import InputError
from kcelectra.release.tokenizer_report import MEASURES, describe_tokenizers, write_tokenizer_report
from kcelectra.tokenization import save_tokenizer, train_tokenizer
from kcelectra.tokenization.loading import as_bert_tokenizer
from kcelectra.tokenization.vocabulary import SPECIAL_TOKENS


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Two of the tasks, tiny."""
    directory = tmp_path_factory.mktemp("data")
    (directory / "nsmc").mkdir()
    (directory / "nsmc/ratings_test.txt").write_text("id\tdocument\tlabel\n1\t영화가 좋다ㅋㅋ 👍\t1\n2\t노잼|핵\t0\n")
    answer = {"answer_start": 0, "text": "영화"}
    paragraph = {"context": "영화가 좋다", "qas": [{"question": "무엇?", "answers": [answer]}]}
    (directory / "korquad").mkdir()
    (directory / "korquad/KorQuAD_v1.0_dev.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    return directory


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizers")
    save_tokenizer(as_bert_tokenizer([*SPECIAL_TOKENS, "영화", "##가", "좋다", "##ㅋㅋ", "👍"]), directory / "apart")
    train_tokenizer(["영화가 좋다ㅋㅋ 👍"] * 5, directory / "joined", vocab_size=40, limit_alphabet=6)
    return [directory / "apart" / "vocab.txt", directory / "joined"]


@pytest.fixture(scope="module")
def report(sources, data_dir, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("report")
    written = write_tokenizer_report(sources, output_dir, data_dir=data_dir, texts=["영화가 좋다"] * 3)
    return written, output_dir


def test_the_json_holds_what_is_returned(report):
    written, output_dir = report
    assert json.loads((output_dir / "tokenizers.json").read_text(encoding="utf-8")) == written


def test_every_set_is_measured_with_every_vocabulary(report):
    written, _ = report
    assert list(written["vocabularies"]) == ["vocab", "joined"]
    for one in written["vocabularies"].values():
        assert list(one["coverage"]) == ["nsmc", "korquad", "corpus"]
        assert {key for coverage in one["coverage"].values() for key in coverage} >= set(MEASURES)
    assert written["vocabularies"]["vocab"]["span_ceiling"] == 1.0
    assert written["vocabularies"]["joined"]["span_ceiling"] == 0.0
    assert written["max_lengths"] == {"nsmc": 128, "korquad": 512, "corpus": 128}


def test_tasks_without_a_file_are_named(report):
    written, output_dir = report
    assert "paws (paws/test_2k.tsv)" in written["missing"] and len(written["missing"]) == 8
    page = (output_dir / "README.md").read_text(encoding="utf-8")
    assert "Not measured, as there is no such file: naver-ner (naver_ner/test.tsv), paws" in page


def test_tokens_in_common_are_counted_both_ways(report):
    written, _ = report
    assert written["overlap"]["vocab"]["vocab"] == 10
    assert written["overlap"]["vocab"]["joined"] == written["overlap"]["joined"]["vocab"] >= len(SPECIAL_TOKENS)


def test_every_table_of_the_page_is_whole(report):
    _, output_dir = report
    page = (output_dir / "README.md").read_text(encoding="utf-8")
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3 + len(MEASURES)
    for table in tables:
        assert len(table) == 4
        assert len({line.count("|") for line in table}) == 1
    assert "노잼" in tables[-1][2]


def test_characters_outside_the_alphabet_are_on_the_page(report):
    _, output_dir = report
    page = (output_dir / "README.md").read_text(encoding="utf-8")
    assert "joined: outside its alphabet are" in page


def test_the_plot_is_a_picture_one_can_read(report):
    _, output_dir = report
    data = (output_dir / "tokenizers.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert width > 1000 and height > 400


def test_the_terminal_gets_a_line_a_vocabulary(report):
    lines = describe_tokenizers(report[0]).splitlines()
    assert len(lines) == 3
    assert "100.0%" in lines[1] and "0.0%" in lines[2]


def test_comments_alone_are_enough(sources, tmp_path):
    report = write_tokenizer_report(sources, tmp_path, texts=["영화가 좋다"])
    assert report["vocabularies"]["joined"]["span_ceiling"] is None
    assert "(corpus, KorQuAD)" in describe_tokenizers(report)


def test_equal_names_are_told_apart_and_published_ones_have_theirs(shared_data, sources, tmp_path):
    other = tmp_path / "joined"
    save_tokenizer(as_bert_tokenizer([*SPECIAL_TOKENS, "가"]), other)
    given = [sources[1], other, shared_data / "vocab" / "kcelectra_v2022_vocab.txt"]
    report = write_tokenizer_report(given, tmp_path / "report", texts=["영화"])
    assert list(report["vocabularies"]) == ["joined", str(other), "KcELECTRA v2022"]


def test_nothing_to_measure_on_is_an_error(sources, tmp_path):
    with pytest.raises(
        InputError, match="no file of a task in .*, such as nsmc/ratings_test.txt; give another --data_dir"
    ):
        write_tokenizer_report(sources, tmp_path / "report", data_dir=tmp_path)
    assert not Path(tmp_path / "report").exists()


def test_a_tokenizer_that_is_not_there_is_named_and_nothing_is_written(sources, data_dir, tmp_path):
    with pytest.raises(InputError, match="cannot load a tokenizer from .*nowhere"):
        write_tokenizer_report([*sources, tmp_path / "nowhere"], tmp_path / "report", data_dir=data_dir)
    assert not (tmp_path / "report").exists()
