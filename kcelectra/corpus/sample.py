"""Embedded sample: synthetic Korean comments in threads, so that every stage runs and is tested with no download.

A comment is drawn from a small grammar (a topic's nouns and adjectives, with particles and endings that agree), then
passes `_NOISES`, the table of what a real crawl adds. All text was composed here; "/" separates alternatives.
"""

import json
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from random import Random

from kcelectra.manifest import write_atomically


@dataclass(frozen=True)
class _Topic:
    heads: str
    things: str
    uses: str  # what was done to a thing: stems that end in ㅆ
    aspects: str  # noun:praise,praise:blame,blame where praise and blame are adjective stems
    events: str  # stems that end in ㅆ, or in 싶 for a wish


# fmt: off
_TOPICS = (
    _Topic("이 영화/이번 작품/이 감독 영화", "쿠키 영상/예고편/원작 소설", "찾아봤/다시 봤/챙겨 봤",
           "연출:훌륭하,새롭:산만하,평범하/결말:통쾌하,깔끔하:뻔하,허무하/음악:웅장하,아름답:시끄럽,어색하/"
           "연기:대단하,자연스럽:어색하,답답하/초반부:재밌,신선하:지루하,길/대사:웃기,찰지:유치하,뻔하",
           "조조로 봤/부모님이랑 보고 왔/마지막 장면에서 울었/중간에 살짝 졸았/한 번 더 보고 싶/감독판도 보고 싶"),
    _Topic("오늘 경기/이번 경기/어제 경기", "하이라이트/후반전/연장전/중계", "다시 봤/놓쳤/끝까지 지켜봤",
           "수비:탄탄하,완벽하:불안하,허술하/패스:정확하,빠르:느리,부정확하/역습:빠르,날카롭:느리,답답하/"
           "골키퍼:든든하,대단하:불안하,아쉽/심판:공정하,침착하:답답하,이상하/응원:뜨겁,대단하:조용하,아쉽",
           "새벽에 일어나서 봤/치킨 시켜 놓고 봤/추가 시간에 소리 질렀/전반만 보고 껐/다음에는 직관 가고 싶"),
    _Topic("이 레시피/이 요리", "양파/된장/마늘/두부/고춧가루/참기름", "넣었/빼고 만들었/조금 줄였/깜빡하고 안 넣었",
           "국물:시원하,깊:싱겁,느끼하/양념:맛있,완벽하:짜,맵/설명:자세하,친절하:부족하,복잡하/"
           "식감:부드럽,쫄깃하:질기,퍽퍽하/불 조절:쉽,간단하:어렵,까다롭/재료:간단하,저렴하:비싸,많",
           "그대로 따라 했/밥을 두 그릇 먹었/물을 너무 많이 부었/냄비를 태웠/주말에 또 해 먹고 싶/손님상에 올리고 싶"),
    _Topic("이 폰/이번 모델/신형 폰", "케이스/보호 필름/충전기/이어폰", "새로 샀/같이 주문했/선물로 받았",
           "배터리:든든하,넉넉하:부족하,아쉽/카메라:선명하,훌륭하:흐리,평범하/화면:밝,시원하:어둡,답답하/"
           "디자인:예쁘,세련되:투박하,촌스럽/가격:착하,괜찮:비싸,부담스럽/무게:가볍,적당하:무겁,부담스럽",
           "3년 만에 바꿨/매장에서 만져 봤/떨어뜨려서 액정이 깨졌/사진 찍는 재미가 생겼/동생한테도 사 주고 싶"),
    _Topic("오늘 날씨/요즘 날씨/이번 주 날씨", "우산/외투/장화/양산/목도리", "챙겼/꺼냈/두고 나왔/새로 샀",
           "바람:시원하,상쾌하:차갑,세/하늘:맑,예쁘:흐리,어둡/햇살:따뜻하,포근하:뜨겁,따갑/"
           "공기:깨끗하,상쾌하:탁하,답답하/빗소리:좋,차분하:시끄럽,요란하/기온:적당하,괜찮:낮,높",
           "소나기 맞고 뛰었/빨래가 금방 말랐/창문 열고 잤/감기에 걸렸/일기예보가 또 틀렸/바다 보러 가고 싶"),
    _Topic("이 드라마/이번 회/어제 방송", "첫 방송/재방송/마지막 회/지난 회", "놓쳤/몰아서 봤/챙겨 봤",
           "전개:빠르,시원하:느리,답답하/주인공:귀엽,멋있:답답하,얄밉/대본:탄탄하,치밀하:허술하,엉성하/"
           "반전:놀랍,신선하:뻔하,억지스럽/엔딩:애틋하,완벽하:허무하,답답하/분위기:따뜻하,잔잔하:무겁,어둡",
           "밤새 정주행했/가족들이랑 같이 봤/보다가 소름 돋았/범인이 누군지 모르겠/처음부터 다시 보고 싶"),
    _Topic("이 게임/이번 업데이트/이번 시즌", "한정 아이템/새 캐릭터/칭호/전설 무기", "얻었/놓쳤/자랑했",
           "그래픽:화려하,예쁘:투박하,아쉽/조작감:부드럽,편하:어렵,뻑뻑하/보상:넉넉하,푸짐하:짜,부족하/"
           "서버:쾌적하,빠르:불안하,느리/난이도:적당하,쉽:어렵,높/운영:친절하,꼼꼼하:답답하,불친절하",
           "주말 내내 달렸/친구랑 같이 시작했/보스한테 열 번 졌/점검 때문에 못 들어갔/빨리 만렙 찍고 싶"),
    _Topic("오늘 출근길/요즘 퇴근길/월요일 출근길", "급행/첫차/막차/셔틀버스", "놓쳤/겨우 탔/한참 기다렸",
           "지하철:한산하,쾌적하:복잡하,답답하/버스:빠르,편하:느리,불편하/배차 간격:짧,적당하:길,답답하/"
           "도로:한산하,시원하:복잡하,답답하/좌석:넓,편하:부족하,불편하/냉방:시원하,적당하:세,약하",
           "운 좋게 앉아서 왔/문 앞에 끼어서 왔/졸다가 역을 지나쳤/또 지각했/재택근무하고 싶/딱 10분만 더 자고 싶"),
)
# {slots} come from `_sentence`, with a particle or an ending after ":"; words in capitals come from `_REGISTER`.
_SHAPES = (
    "{open}{noun:이} {degree}{adj:OPINION}/{open}{noun:은} {degree}{adj:OPINION}/{head:은} {noun:이} {adj:OPINION}/"
    "{noun:이} {adj:고} {other:도} {same:OPINION}/{noun:은} {adj:N데} {other:은} {degree}{opposite:OPINION}/"
    "{noun:은} {adj:지만} {other:은} {opposite:OPINION}/{event:N데} {noun:이} {degree}{adj:OPINION}/{event:EVENT}/"
    "이렇게 {adj:N} {noun:은} FIRST/{noun:이} {adj:A서} {feeling:FEEL}/{noun:이} {adj:U니까} {degree}{feeling:FEEL}/"
    "{noun:을} 생각하면 {feeling:FEEL}/{when}{thing:을} {use:EVENT}/{thing:을} {use:N데} {noun:은} {adj:OPINION}/"
)
_BIASED_SHAPES = (  # praise, blame; so are _FEELINGS
    "{noun} 하나는 {degree}{adj:OPINION}/{head:은} {noun:이} 다 했EVENT/{noun} 덕분에 {feeling:FEEL}",
    "{noun} 때문에 {feeling:FEEL}/{noun:이} 조금만 더 {opposed:P으면} 좋겠EVENT/{noun:이} 이러면 안 MAY/"
    "{noun:이} 원래 이렇게 {adj:ASK}",
)
_FEELINGS = ("만족스럽/행복하/기분 좋/뿌듯하", "속상하/실망스럽/짜증스럽/허탈하")
_REGISTER = {  # informal (반말), polite (존댓말)
    "OPINION": ("다/L네/A/P음/더라/던데/N 듯/지 않냐?", "L네요/A요/P어요/더라고요/던데요/N 것 같아요/지 않나요?/군요"),
    "FEEL": ("다/네/A/P음/P다", "네요/A요/P어요/P습니다"),
    "EVENT": ("음/다/네/어", "어요/습니다/네요"),
    "FIRST": ("처음이다/처음이네/오랜만이다/처음 봄", "처음이에요/처음이네요/오랜만이에요/처음 봅니다"),
    "ASK": ("N 거임?/N 거냐?", "N가요?/N 건가요?"),
    "MAY": ("돼/되지/되는 거 아님?", "돼요/되죠/되는 거 아닌가요?"),
    "PRAISE": ("강추/최고다/대박/이건 인정/굿굿/나만 좋았나?", "강추합니다/추천해요/믿어도 돼요/저만 좋았나요?"),
    "BLAME": ("실망이다/비추/답이 없다/이걸 어떻게 참음?", "실망이에요/저만 그런가요?/어떻게 참아요?/이래도 돼요?"),
    "AGREE": ("ㅇㅈ/ㄹㅇ/인정/그러게/맞음/내 말이", "맞아요/저도요/공감합니다/동의해요/그러게요"),
    "REFUSE": ("글쎄/그건 아닌 듯/난 반대/난 다르게 봄", "글쎄요/저는 반대예요/그게 말이 돼요?"),
}
_OPENERS = "////솔직히 /개인적으로 /근데 /아니 /일단 /확실히 /다들 그러던데 /다른 건 몰라도 "
_DEGREES = "///진짜 /너무 /완전 /정말 /꽤 /은근 /생각보다 /엄청 "
_TIMES = "///어제 /방금 /지난주에 /결국 /저번에 /이번에도 "
_SHORT = "ㅋㅋ/굿/인정/ㅇㅈ/ㄹㅇ/대박/최고/헐/ㄷㄷ/ㅠㅠ/1빠/좋아요/맞아요/와우/응원합니다/ㅎㅎ/반박 불가"
_TYPOS = (("어떻게", "어떡해"), ("돼", "되"), ("네요", "내요"), ("는데", "는대"), ("했", "햇"), ("않", "안"))
_PARTICLES = {"": "", "도": "도", "은": "는", "이": "가", "을": "를"}  # after a consonant: after a vowel
_INFINITIVES = {"빠르": "빨라", "예쁘": "예뻐", "세련되": "세련돼"}  # those that `_infinitive` cannot derive
# fmt: on


def _pick(rng: Random, choices: str, separator: str = "/") -> str:
    return rng.choice(choices.split(separator))


def _shift(text: str, steps: int) -> str:
    return text[:-1] + chr(ord(text[-1]) + steps)


def _final(text: str) -> int:
    return (ord(text[-1]) - 0xAC00) % 28  # the final consonant as Unicode orders it: 0 none, 8 ㄹ, 17 ㅂ, 18 ㅄ, 20 ㅆ


def _infinitive(stem: str) -> str:
    """Return the 아/어 form: 좋아, 길어, 시원해, 느려, 비싸, 아쉬워."""
    vowel = (ord(stem[-1]) - 0xAC00) // 28 % 21  # 0 ㅏ, 6 ㅕ, 8 ㅗ, 20 ㅣ
    if _final(stem):
        return _shift(stem, -17) + "워" if _final(stem) == 17 else stem + ("아" if vowel in (0, 8) else "어")
    return _INFINITIVES.get(stem, _shift(stem, 28 if stem.endswith("하") else -14 * 28 if vowel == 20 else 0))


class _Word(str):
    """A noun or stem that inflects: its format spec is a particle, which agrees, or an ending.

    An ending may open with A infinitive (좋아), P past (좋았), N adnominal (좋은), U linked (좋으), L no ㄹ (기).
    """

    def __format__(self, spec: str) -> str:
        stem = str(self)
        if spec in _PARTICLES:
            return stem + (spec if spec and _final(stem) else _PARTICLES[spec])
        final, infinitive = _final(stem), _infinitive(stem)
        linked = {0: stem, 8: _shift(stem, -8), 17: _shift(stem, -17) + "우"}.get(final, stem + "으")
        forms = {"A": infinitive, "P": _shift(infinitive, 20), "U": linked, "L": linked if final == 8 else stem}
        forms["N"] = stem + "는" if final in (18, 20) else _shift(linked, 4)
        return forms.get(spec[0], stem + spec[0]) + spec[1:]


def _sentence(rng: Random, topic: _Topic, aspect: str, *, is_praise: bool, is_polite: bool) -> str:
    side = 0 if is_praise else 1
    shape = _pick(rng, _SHAPES + _BIASED_SHAPES[side])
    for name, choices in _REGISTER.items():
        shape = shape.replace(name, _pick(rng, choices[is_polite]))
    noun, *adjectives = aspect.replace(",", "/").split(":")
    rest = "/".join(other for other in topic.aspects.split("/") if other != aspect)
    other, *others = _pick(rng, rest).replace(",", "/").split(":")
    slots = {"noun": noun, "adj": adjectives[side], "opposed": adjectives[1 - side]}
    slots |= {"other": other, "same": others[side], "opposite": others[1 - side], "feeling": _FEELINGS[side]}
    slots |= {"head": topic.heads, "thing": topic.things, "use": topic.uses, "event": topic.events}
    slots |= {"open": _OPENERS, "degree": _DEGREES, "when": _TIMES}
    return shape.format_map({name: _Word(_pick(rng, choices)) for name, choices in slots.items()})


def _comment(rng: Random, topic: _Topic, aspect: str, *, is_praise: bool, stance: str) -> str:
    """Return one to nine sentences on one side, the first about `aspect`; a reply opens with its stance."""
    is_polite = rng.random() < 0.5
    sentences = [_pick(rng, _REGISTER[stance][is_polite])] if stance else []
    for place in range(rng.choice((1,) * 9 + (2,) * 6 + (3,) * 3 + (7,))):
        subject = _pick(rng, topic.aspects) if place else aspect
        sentences.append(_sentence(rng, topic, subject, is_praise=is_praise, is_polite=is_polite))
    if rng.random() < 0.3:
        sentences.append(_pick(rng, _REGISTER["PRAISE" if is_praise else "BLAME"][is_polite]))
    stop = rng.choice((" ", " ", ". ", ".. ", "~ "))
    return "".join(text + (" " if text.endswith("?") else stop) for text in sentences).rstrip()


_Noise = Callable[[Random, str], str]


def _prefix(phrases: str) -> _Noise:
    return lambda rng, text: f"{_pick(rng, phrases).format(n=rng.randrange(10, 26))} {text}"


def _append(units: str, low: int, high: int, *, glue: str = "") -> _Noise:
    return lambda rng, text: f"{text}{glue}{_pick(rng, units, ' ') * rng.randrange(low, high + 1)}"


def _insert(rng: Random, text: str) -> str:
    cut = rng.randrange(len(text) + 1)
    return text[:cut] + _pick(rng, "\x07 \x1b[31m \u200b \u202e \ufeff", " ") + text[cut:]


def _misspell(rng: Random, text: str) -> str:
    for right, wrong in _TYPOS:
        text = text.replace(right, wrong)
    return text


# Name, share of comments, function. In this order: what rewrites the text, what adds to it, what acts on code points.
_NOISES: tuple[tuple[str, float, _Noise], ...] = (
    ("short", 0.11, lambda rng, text: _pick(rng, _SHORT)),
    ("misspelling", 0.12, _misspell),
    ("missing spaces", 0.06, lambda rng, text: text.replace(" ", "")),
    ("number", 0.04, _prefix("{n}000원이면 싼 거임/20{n}년에도 다시 찾아옴/5점 만점에 4점/{n}분 만에 댓글 달아 봄")),
    ("Hanja", 0.02, _prefix("大韓民國 어디를 가도/美 현지 반응도 비슷함/前 직장 동료 말로는/男女 불문하고")),
    ("mask", 0.03, _prefix("OOO 씨 말대로/○○○ 팬이지만/OOO 님 보고 계신가요?/여기 ○○○ 같은 사람 많네")),
    ("entity", 0.04, _prefix("&lt;한줄평&gt;/&quot;실화냐&quot;/&#39;진심&#39;/Q&amp;A 보고 왔는데/&nbsp;")),
    ("repetition", 0.04, _append("ㅋㅎ 대박 제발 ㄷㄷ 와우", 3, 6, glue=" ")),
    ("punctuation", 0.12, _append("! . ~ ; ?", 2, 7)),
    ("laughter", 0.25, _append("ㅋ ㅎ ㅠ ㅜ", 2, 12)),
    ("middle dots", 0.03, _append("ᆢ ᆞ", 2, 4)),
    ("full width", 0.02, _append("ＢＥＳＴ ＯＫ ＷＯＷ", 1, 1, glue=" ")),
    ("symbol", 0.04, _append("♥ ♡ ★", 1, 5)),
    ("emoji", 0.08, _append("😂 😭 🔥 👍🏽 🙏🏻 ❤\ufe0f 🇰🇷 👨\u200d👩\u200d👧\u200d👦 👩🏽\u200d💻", 1, 3)),
    ("URL", 0.03, _append("https://www.example.com/watch?v=a1b2c3&t=42 http://example.com/7.html", 1, 1, glue=" ")),
    ("bare host", 0.03, _append("www.example.com/board/7 example.co.kr/p/300?from=talk", 1, 1, glue=" ")),
    ("line break", 0.06, lambda rng, text: text.replace(" ", _pick(rng, "\n/\r\n/\t"), rng.randrange(1, 3))),
    ("control", 0.04, _insert),
    ("NFD", 0.03, lambda rng, text: unicodedata.normalize("NFD", text)),
)


def _add_noise(rng: Random, text: str) -> str:
    for _, share, noise in _NOISES:
        if rng.random() < share:
            text = noise(rng, text)
    return text


def _threads(rng: Random) -> Iterator[dict[str, str | None]]:
    texts: list[str] = []
    for thread in count():
        topic = rng.choice(_TOPICS)
        topic = replace(topic, heads=_pick(rng, topic.heads))
        for _ in range(rng.randrange(6, 30)):
            parent_id, aspect, is_praise = f"comment-{len(texts):06d}", _pick(rng, topic.aspects), rng.random() < 0.55
            for place in range(1 + (rng.randrange(1, 4) if rng.random() < 0.22 else 0)):
                row = {"comment_id": f"comment-{len(texts):06d}", "parent_id": parent_id if place else None}
                stance = rng.choice(("AGREE", "AGREE", "REFUSE", "")) if place else ""
                text = _comment(rng, topic, aspect, is_praise=is_praise != (stance == "REFUSE"), stance=stance)
                texts.append(rng.choice(texts) if texts and rng.random() < 0.04 else _add_noise(rng, text))
                yield row | {"thread": f"thread-{thread:04d}", "text": texts[-1]}


def generate_sample(num_comments: int = 2000, *, seed: int = 0) -> Iterator[dict[str, str | None]]:
    """Return synthetic comments thread by thread, every reply directly after its parent or a reply to that parent.

    A smaller sample is the start of a larger one of the same seed.

    Args:
        num_comments: how many comments, at least 1.
        seed: the same seed gives the same comments, on every platform.

    Returns:
        An iterator of dicts: "comment_id", unique; "parent_id", the top-level comment that it replies to, or None;
        "thread", such as "thread-0007"; "text", as raw as a crawl leaves it.

    Raises:
        ValueError: num_comments is less than 1.
    """
    if num_comments < 1:
        raise ValueError(f"num_comments is {num_comments}, expected at least 1: type generate_sample(2000)")
    return islice(_threads(Random(seed)), num_comments)


def write_sample(directory: str | Path) -> Path:
    """Write the sample as `comments.jsonl`, if it is not there, and return the path."""
    path = Path(directory, "comments.jsonl")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(
            path, "".join(f"{json.dumps(comment, ensure_ascii=False)}\n" for comment in generate_sample())
        )
    return path
