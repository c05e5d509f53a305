"""What two answers are compared by."""

import re
import string
from collections import Counter

_MARKS = re.compile("['\"《》<>〈〉()‘’]")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Return what two answers are compared by: without brackets, quotation marks and punctuation, in lower case.

    >>> normalize_answer("《Bad》 (마이클 잭슨의 앨범)")
    'bad 마이클 잭슨의 앨범'

    Source: the official script of KorQuAD 1.0, `normalize_answer`.
    """
    return " ".join(_MARKS.sub(" ", text).lower().translate(_WITHOUT_PUNCTUATION).split())


def character_f1(prediction: str, answer: str) -> float:
    """Return the F1 of the characters that two normalised answers have in common, spaces apart, 0 to 1.

    >>> round(character_f1("마이클 잭슨", "잭슨"), 3)
    0.571

    Source: the official script of KorQuAD 1.0, `f1_score`.
    """
    predicted, gold = (Counter(text.replace(" ", "")) for text in (prediction, answer))
    return 2 * (predicted & gold).total() / max(predicted.total() + gold.total(), 1)
