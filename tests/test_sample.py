"""Claims about the embedded sample: its order, its determinism, and what of a real crawl it holds."""

import hashlib
import re
import unicodedata
from collections import defaultdict

import pytest

from kcelectra.corpus.sample import generate_sample

ROWS = list(generate_sample())
TEXTS = [row["text"] for row in ROWS]

# phenomenon, pattern, how many of the 2,000 comments hold it at least
PHENOMENA = [
    ("a run of ㅋ", r"ㅋ{2}", 60),
    ("a run of ㅎ", r"ㅎ{2}", 60),
    ("a run of ㅠ", r"ㅠ{2}", 60),
    ("a run of ㅜ", r"ㅜ{2}", 60),
    ("a run of twelve", r"(ㅋ|ㅎ|ㅠ|ㅜ)\1{11}", 10),
    ("a plain emoji", "[😂😭🔥]", 20),
    ("the ZWJ family", "👨\u200d👩\u200d👧\u200d👦", 5),
    ("the ZWJ woman technologist", "👩🏽?\u200d💻", 5),
    ("a skin tone", "[\U0001f3fb-\U0001f3ff]", 20),
    ("a flag", "[\U0001f1e6-\U0001f1ff]{2}", 5),
    ("a heart with VS16", "❤\ufe0f", 5),
    ("an https URL with path and query", r"https://\S+/\S+\?\S+=", 10),
    ("an http URL", r"http://\S+", 10),
    ("a www host without a scheme", r"(?<!/)www\.\S+", 10),
    ("a bare domain", r"(?<![./\w])example\.co\.kr/", 10),
    ("a portal mask in Latin letters", "OOO", 10),
    ("a portal mask in circles", "○○○", 10),
    ("NFD Hangul", "[\u1100-\u1112][\u1161-\u1175]", 30),
    ("the bell", "\x07", 5),
    ("a terminal escape", r"\x1b\[31m", 5),
    ("a zero-width space", "\u200b", 5),
    ("a direction override", "\u202e", 5),
    ("a byte order mark", "\ufeff", 5),
    ("Hanja", "[\u4e00-\u9fff]", 20),
    ("a line feed", r"(?<!\r)\n", 10),
    ("a Windows line break", r"\r\n", 10),
    ("a tab", r"\t", 10),
    ("&amp;", "&amp;", 3),
    ("&lt;", "&lt;", 3),
    ("&quot;", "&quot;", 3),
    ("&#39;", "&#39;", 3),
    ("&nbsp;", "&nbsp;", 3),
    ("a run of !", "!{4}", 10),
    ("a run of full stops", r"\.{4}", 10),
    ("a run of ~", "~{4}", 10),
    ("a run of ;", ";{3}", 10),
    ("a repeated pair of letters", "(ㅋㅎ){3}", 5),
    ("a repeated word", r"(대박){3}", 5),
    ("a price", r"\d+000원", 5),
    ("a year", r"20\d\d년", 5),
    ("the dot ᆢ", "(?<![\u1100-\u1112])\u11a2", 5),
    ("the dot ᆞ", "(?<![\u1100-\u1112])\u119e", 5),
    ("full-width letters", "[Ａ-Ｚ]{2}", 10),
    ("♥", "♥", 10),
    ("♡", "♡", 10),
    ("★", "★", 10),
    ("no spaces", "^[가-힣]{12,}", 20),
    ("어떻게 as 어떡해", "어떡해", 2),
    ("돼요 as 되요", "되요", 2),
    ("네요 as 내요", "내요", 5),
]


@pytest.fixture(scope="module")
def larger_sample():
    """Ten times the default sample in one NFC string without control characters, so that rare inflections occur."""
    text = "\n".join(row["text"] for row in generate_sample(20_000))
    return unicodedata.normalize("NFC", re.sub("\x1b\\[31m|[\x07\u200b\u202e\ufeff]", "", text))


def test_one_seed_gives_one_sequence():
    assert list(generate_sample(500, seed=3)) == list(generate_sample(500, seed=3))


def test_every_python_gives_the_same_bytes():
    digest = hashlib.sha256("\0".join(TEXTS).encode()).hexdigest()
    assert digest == "25a5e738e851c1ab60a7feb4e96816c7f4457d16903c7cd61a23cc4d8c1dad05", (
        "the sample changed: if you meant it, put the new digest here"
    )


def test_another_seed_gives_other_comments():
    others = [row["text"] for row in generate_sample(seed=1)]
    assert sum(one == other for one, other in zip(TEXTS, others, strict=True)) < 100


def test_a_smaller_sample_is_the_start_of_a_larger_one():
    assert list(generate_sample(123)) == ROWS[:123]


@pytest.mark.parametrize("num_comments", [1, 2, 999, 2000])
def test_exactly_the_number_of_comments_asked_for(num_comments):
    assert len(list(generate_sample(num_comments))) == num_comments


@pytest.mark.parametrize("num_comments", [0, -1])
def test_fewer_than_one_comment_is_refused_with_what_to_type(num_comments):
    with pytest.raises(ValueError, match=rf"num_comments is {num_comments}, .*type generate_sample\(2000\)"):
        generate_sample(num_comments)


def test_comment_ids_are_unique():
    assert len({row["comment_id"] for row in ROWS}) == len(ROWS)


def test_a_reply_directly_follows_its_top_level_parent_in_the_same_thread():
    parent = None
    for row in ROWS:
        if row["parent_id"] is None:
            parent = row
        else:
            assert (row["parent_id"], row["thread"]) == (parent["comment_id"], parent["thread"])


def test_about_three_comments_in_ten_are_replies():
    assert 0.25 < sum(row["parent_id"] is not None for row in ROWS) / len(ROWS) < 0.35


def test_threads_come_one_after_the_other():
    threads = [row["thread"] for row in ROWS]
    assert threads == sorted(threads)
    assert len(set(threads)) > 20
    assert all(re.fullmatch(r"thread-\d{4}", thread) for thread in threads)


@pytest.mark.parametrize(("pattern", "at_least"), [p[1:] for p in PHENOMENA], ids=[p[0] for p in PHENOMENA])
def test_the_sample_holds(pattern, at_least):
    assert sum(bool(re.search(pattern, text)) for text in TEXTS) >= at_least


def test_every_host_is_reserved_for_examples(larger_sample):
    hosts = re.findall(r"[a-z0-9.-]+\.(?:com|kr|net|org)\b", larger_sample)
    assert {host.removeprefix("www.") for host in hosts} == {"example.com", "example.co.kr"}


def test_about_four_percent_repeat_an_earlier_comment_also_across_threads():
    threads = defaultdict(list)
    for row in ROWS:
        if len(row["text"]) >= 15:  # shorter ones also meet by chance
            threads[row["text"]].append(row["thread"])
    assert 0.02 < sum(len(names) - 1 for names in threads.values()) / len(ROWS) < 0.06
    assert any(len(set(names)) > 1 for names in threads.values())


def test_between_five_and_twelve_percent_are_shorter_than_ten_characters():
    assert 0.05 < sum(len(text) < 10 for text in TEXTS) / len(TEXTS) < 0.12


def test_comments_are_as_long_as_real_ones():
    lengths = [len(text) for text in TEXTS]
    assert 25 <= sum(lengths) / len(lengths) <= 60
    assert min(lengths) <= 4
    assert sum(length >= 140 for length in lengths) >= 20
    assert all(text.strip() for text in TEXTS)


def test_most_comments_are_distinct():
    assert len(set(TEXTS)) >= 1200


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("결말은", "결말는"),
        ("연기는", "연기은"),
        ("바람이", "바람가"),
        ("배터리가", "배터리이"),
        ("결말을", "결말를"),
        ("케이스를", "케이스을"),
        ("느려요", "느리어"),
        ("빨라요", "빠르아"),
        ("예뻐요", "예쁘어"),
        ("아쉬워요", "아쉽어"),
        ("시원해요", "시원하어"),
        ("이렇게 긴 ", "이렇게 길은"),
        ("재밌는", "재밌은"),
    ],
)
def test_particles_and_endings_agree(larger_sample, right, wrong):
    assert right in larger_sample
    assert wrong not in larger_sample
