"""Scripts that write no blanks between words, and the words of a text of any script."""

import re

# Thai, Lao, Myanmar, Khmer, kana and Han, as the inside of a class of characters: each letter counts as a word.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")  # one word, or one letter of those scripts
