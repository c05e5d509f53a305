"""All that is written on the page to try a model, in Korean and English."""

#: Korean and English of all that is written on the page.
_TEXTS = {
    "intro": (
        "댓글을 붙여 넣으면 어떻게 정제되고 어떤 토큰으로 나뉘는지, 판별기와 생성기가 어떻게 보는지 보여 줍니다.",
        "Paste a comment: how it is cleaned and cut into tokens, and what the two halves of the model make of it.",
    ),
    "comment": ("댓글", "Comment"),
    "placeholder": ("댓글을 입력하거나 붙여 넣으세요", "Type or paste a comment"),
    "rules": ("모델이 읽기 전에 쓸 정제 규칙", "Rules that clean it before the model reads it"),
    "no_rules": ("정제하지 않음", "none"),
    "look": ("살펴보기", "Look at it"),
    "examples": ("예시", "Examples"),
    "empty": ("댓글이 비어 있습니다.", "The comment is empty."),
    "nothing_left": ("(남는 글자 없음)", "(nothing is left)"),
    "all_removed": (
        "규칙 {rules}로 정제하면 남는 글자가 없습니다. 다른 규칙을 골라 보세요.",
        "The rules {rules} leave nothing of this comment; choose others.",
    ),
    "cut": (
        "댓글이 {chars:,}자입니다. 앞 {limit}자만 봅니다.",
        "The comment has {chars:,} characters; the first {limit} are looked at.",
    ),
    "tokens_cut": (
        "모델이 읽는 토큰 수를 넘어 뒷부분은 보지 않습니다.",
        "It has more tokens than the model reads; the end is not looked at.",
    ),
    "cleaned": ("정제", "Cleaning"),
    "cleaned_help": (
        "규칙마다 바뀐 곳과 결과입니다. 취소선은 지운 글자, 밑줄은 더한 글자입니다.",
        "What each rule set changes, and the result. Struck out is removed, underlined is added.",
    ),
    "result": ("결과", "Result"),
    "pieces": ("토큰", "Tokens"),
    "pieces_help": (
        "정제한 댓글의 토큰과 그 번호입니다. ##는 앞말에 이어지고, [UNK]는 어휘에 없는 말입니다.",
        "The tokens of the cleaned comment, and their ids. ## continues a word; [UNK] is not in the vocabulary.",
    ),
    "pieces_count": ("토큰 {pieces}개, 그중 [UNK] {unknown}개", "{pieces} tokens, {unknown} of them [UNK]"),
    "judged": ("바뀐 토큰 찾기", "Replaced tokens"),
    "judged_help": (
        "판별기가 보기에 토큰이 바뀌었을 확률입니다. 색이 진할수록 높고, 50%를 넘으면 ▲를 붙입니다.",
        "How probable a replacement is, says the discriminator. The stronger the colour, the more; ▲ is above 50%.",
    ),
    "corruption": ("가리고 바꾸기", "Mask and replace"),
    "corruption_help": (
        "가릴 말을 고르세요. 고르지 않으면 토큰의 15%를 무작위로 가립니다. 생성기가 채우면 판별기가 찾습니다. "
        "굵은 테두리는 실제로 바뀐 토큰입니다.",
        "Choose words to hide; without a choice, 15% of the tokens are hidden at random. The generator fills them in, "
        "and the discriminator looks for them. A thick border is what was really replaced.",
    ),
    "no_generator": ("이 모델에는 생성기가 없습니다.", "This model comes without a generator."),
    "words": ("가릴 말", "Words to hide"),
    "seed": ("시드", "Seed"),
    "replace": ("가리고 바꾸기", "Mask and replace"),
    "summary": (
        "바뀐 토큰 {replaced}개 중 {found}개를 찾았습니다. 잘못 짚은 토큰 {false_alarms}개, 같게 뽑힌 토큰 {same}개.",
        "{found} of {replaced} replaced tokens found; false alarms: {false_alarms}; drawn the same as before: {same}.",
    ),
    "found": ("찾음", "found"),
    "missed": ("놓침", "missed"),
    "false_alarm": ("잘못 짚음", "false alarm"),
    "hidden": ("가린 토큰", "Hidden"),
    "drawn": ("뽑힌 토큰", "Drawn"),
    "same": ("원래와 같음", "the same"),
    "proposals": ("생성기의 후보", "The generator's proposals"),
    "answers": ("분류", "Classifiers"),
    "answers_help": (
        "미세조정한 모델이 정제하지 않은 댓글을 보고 낸 답입니다.",
        "What fine-tuned models say of the comment as it is, not cleaned.",
    ),
}
WORDS = {language: {key: texts[index] for key, texts in _TEXTS.items()} for index, language in enumerate(("ko", "en"))}
