"""What two answers are compared by."""

import re
import string

_MARKS = re.compile("['\"《》<>〈〉()‘’]")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Return what two answers are compared by: without brackets, quotation marks and punctuation, in lower case.

    >>> normalize_answer("《Bad》 (마이클 잭슨의 앨범)")
    'bad 마이클 잭슨의 앨범'

    Source: the official script of KorQuAD 1.0, `normalize_answer`.
    """
    return " ".join(_MARKS.sub(" ", text).lower().translate(_WITHOUT_PUNCTUATION).split())
