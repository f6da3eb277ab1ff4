"""Personal data masked in place: e-mail addresses, Korean telephone, resident-registration and card numbers."""

import dataclasses
import re
from collections.abc import Callable
from typing import NamedTuple

from hcxjax.data.cleaning.checkdigits import is_card, is_resident_number
from hcxjax.data.cleaning.steps import Outcome

# Forms that people type for 0-9 and for the hyphen and so on, one for one, so that places stay the same.
_WIDE = {0xFF10 + digit: str(digit) for digit in range(10)}
_WIDE |= {ord(dash): "-" for dash in "‐‑‒–—―−－ー"}
_WIDE |= {ord("＠"): "@", ord("．"): ".", ord("（"): "(", ord("）"): ")", ord("＋"): "+", 0x3000: " ", 0xA0: " "}
_DASHES = "".join(chr(code) for code, plain in _WIDE.items() if plain == "-")
# Dashes and hard spaces are common in prose; only between digits do they matter.
_ANY_WIDE = re.compile(rf"[０-９＠．]|[0-9)）][{_DASHES}\u3000\xa0）]\s?[0-9(]")

# What may not stand beside a number: letters and digits make it a name, a hash or a longer number; a point and a digit
# make it a version or a fraction; 호 makes it the number of a rule.
_BEFORE = r"(?<![0-9A-Za-z_#$])(?<![0-9][-.:])(?<![A-Za-z][-/])"
_AFTER = r"(?![0-9A-Za-z_호])(?![-.][0-9A-Za-z])"
_ANY_NUMBER = re.compile(r"[0-9(+][-0-9 .()+]{8,}")
"""What every number below is a part of; it costs a tenth of looking for each kind everywhere."""

_DOMAIN = re.compile(r"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8})([A-Za-z]{2,12})(?![A-Za-z0-9_(\[-])")
_LOCAL = re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_+-])?$")
_DOMAINS = """
com net org edu gov mil int info biz name dev app cloud online site shop store tech blog wiki xyz email work art asia
club live news top world zone systems software company solutions digital network academy page pro team kr jp cn tw hk
sg in id th vn ph my au nz us ca mx br ar cl co pe uk ie fr de at ch it es pt nl be lu dk se no fi is pl cz sk hu ro
bg gr tr ru ua by kz ee lv lt si hr rs il ae sa eg za ng ke io ai me tv cc to ly gl gg fm ws eu
"""
_ENDINGS = frozenset(_DOMAINS.split())
"""Top-level domains that mail comes from. Any word would do for `a@b.word`, and so would a matrix product."""
_NOBODY = re.compile(r"(?:^|\.)(?:example\.(?:com|net|org|edu)|test|invalid|localhost|example)$", re.IGNORECASE)
_NOBODIES = frozenset(["git", "hg", "svn", "noreply", "no-reply", "donotreply"])

_ABROAD = r"(?:\+82|\(\+?82\)|82-)[-. ]?\(?0?\)?[-. ]?"
_MOBILE = re.compile(
    rf"{_BEFORE}(?:(?:{_ABROAD}|0)(?:10(?P<a>[-. ]?)[2-9][0-9]{{3}}(?P=a)[0-9]{{4}}"
    rf"|1[16789](?P<b>[-.])[2-9][0-9]{{2,3}}(?P=b)[0-9]{{4}})"
    rf"|\(?01[016789]\)[-. ]?[2-9][0-9]{{2,3}}[-. ]?[0-9]{{4}}){_AFTER}"
)
_AREA = r"(?:2|3[1-3]|4[1-4]|5[1-5]|6[1-4]|70|50[2-8])"
_LANDLINE = re.compile(
    rf"{_BEFORE}(?:0{_AREA}-|\(0{_AREA}\)[- ]?|0{_AREA}\)[- ]?|{_ABROAD}{_AREA}[- ])"
    rf"[2-9][0-9]{{2,3}}[- ][0-9]{{4}}{_AFTER}"
)
_LANDLINE_SAID = re.compile(rf"{_BEFORE}0{_AREA}[-. ]?[2-9][0-9]{{2,3}}[-. ]?[0-9]{{4}}{_AFTER}")
_RESIDENT = re.compile(rf"{_BEFORE}[0-9]{{6}}(?P<gap> ?- ?|)[0-9]{{7}}{_AFTER}")
_CARD = re.compile(
    rf"{_BEFORE}(?:[0-9]{{4}}(?P<gap>[- ])[0-9]{{4}}(?P=gap)[0-9]{{4}}(?P=gap)[0-9]{{1,7}}"
    rf"|3[0-9]{{3}}(?P<other>[- ])[0-9]{{6}}(?P=other)[0-9]{{4,5}}|[0-9]{{13,19}}){_AFTER}"
)
_PHONE_SAID = re.compile(
    r"전화|연락처|휴대폰|핸드폰|팩스|문의|대표번호|☎|☏|\b(?:tel|fax|phone|mobile|call|t|f|h\.?p)\b", re.I
)
_RESIDENT_SAID = re.compile(
    r"주민\s?(?:등록\s?)?번호|외국인\s?(?:등록\s?)?번호|거소\s?신고\s?번호|resident registration", re.I
)
_CARD_SAID = re.compile(r"카드|결제|신용|체크|\b(?:cards?|visa|master ?card|amex|credit|debit|payment)\b", re.I)
_ROW = re.compile(r"[0-9]\s\||\|\s[0-9]")
_NEAR = 24
"""Characters before a number in which a word may say what it is."""


class Mask(NamedTuple):
    """Something found: characters `start` to `end`, in whose place `text` goes."""

    start: int
    end: int
    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class PersonalData:
    """Masks what identifies a person; keeps the document.

    HyperCLOVA X keeps the domain of an e-mail, puts a fixed pattern for its local part, and removes telephone numbers
    (arXiv:2404.01954, section 2.1). The functions of this module say by which rules each is found. What is public is
    kept: numbers of 1588 and its kind, 080, addresses at example.com (RFC 2606), git@ and no-reply.

    Attributes:
      local_part: what stands for the part of an address before @.
      number: what stands for a number; nothing, as in the report.
    """

    local_part: str = "***"
    number: str = ""

    def __call__(self, text: str) -> Outcome:
        plain = text.translate(_WIDE) if not text.isascii() and _ANY_WIDE.search(text) else text
        changes: dict[str, int] = {}
        pieces, at = [], 0
        found = [*emails(plain, self.local_part), *numbers(plain, self.number)]
        for mask in sorted(found):
            if mask.start < at:
                continue
            pieces += [text[at : mask.start], mask.text]
            at = mask.end
            changes[mask.kind] = changes.get(mask.kind, 0) + 1
        return Outcome("".join([*pieces, text[at:]]), None, changes) if changes else Outcome(text)


def emails(text: str, local_part: str = "***") -> list[Mask]:
    """Local parts of e-mail addresses: RFC 5321's length (64), the characters that providers give out, a domain that
    mail comes from."""
    found = []
    for match in _DOMAIN.finditer(text):
        if match[2].lower() not in _ENDINGS or _NOBODY.search(match[1] + match[2]):
            continue
        local = _LOCAL.search(text, max(0, match.start() - 66), match.start())
        if local and local[0].lower() not in _NOBODIES:
            found.append(Mask(local.start(), match.start(), "e-mail", local_part))
    return found


def numbers(text: str, instead: str = "") -> list[Mask]:
    """Resident-registration, card and telephone numbers; where two overlap, the first in this order.

    Telephones: the area codes, mobile and internet prefixes of the numbering plan (전기통신번호관리세칙), after 0
    or +82; the number proper begins with 2 to 9. A landline number without hyphens must be called one by a word before.
    """
    found: list[Mask] = []
    for run in _ANY_NUMBER.finditer(text):
        taken: set[int] = set()
        for kind, pattern, holds in _RULES:
            # Two characters more, for what may not stand beside a number.
            for match in pattern.finditer(text, run.start(), run.end() + 2):
                if taken.isdisjoint(range(*match.span())) and holds(text, match):
                    found.append(Mask(*match.span(), kind, instead))
                    taken.update(range(*match.span()))
    return found


def _said(text: str, match: re.Match[str], words: re.Pattern[str]) -> bool:
    return words.search(text, max(0, match.start() - _NEAR), match.start()) is not None


def _resident(text: str, match: re.Match[str]) -> bool:
    """A number that is called one needs a date in it; any other a check digit that holds, if it was born with one."""
    digits = re.sub(r"[^0-9]", "", match[0])
    said = _said(text, match, _RESIDENT_SAID)
    return is_resident_number(digits, strict=not said, bare=not said and not match["gap"])


def _card(text: str, match: re.Match[str]) -> bool:
    """A run of digits is a card number only where a word says so: one in ten passes Luhn's check. With spaces between
    its groups it may be a row of a table, which goes on before or after."""
    digits = re.sub(r"[^0-9]", "", match[0])
    if not is_card(digits):
        return False
    row = match["gap"] == " " and _ROW.search(
        text[max(0, match.start() - 2) : match.start()] + "|" + text[match.end() : match.end() + 2]
    )
    return _said(text, match, _CARD_SAID) or (len(digits) < len(match[0]) and not row)


def _always(text: str, match: re.Match[str]) -> bool:
    return True


def _phone_said(text: str, match: re.Match[str]) -> bool:
    return _said(text, match, _PHONE_SAID)


_RULES: tuple[tuple[str, re.Pattern[str], Callable[[str, re.Match[str]], bool]], ...] = (
    ("resident number", _RESIDENT, _resident),
    ("card number", _CARD, _card),
    ("phone number", _MOBILE, _always),
    ("phone number", _LANDLINE, _always),
    ("phone number", _LANDLINE_SAID, _phone_said),
)
