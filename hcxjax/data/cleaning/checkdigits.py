"""Check digits of numbers that name a person: they tell such a number from any other of its length."""

import calendar

_CENTURIES = {
    "9": 1800,
    "0": 1800,
    "1": 1900,
    "2": 1900,
    "5": 1900,
    "6": 1900,
    "3": 2000,
    "4": 2000,
    "7": 2000,
    "8": 2000,
}
_WEIGHTS = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
_FOREIGN = "5678"
_RANDOM_SINCE = (2020, 10)
"""Numbers given since October 2020 have six random digits at the end, without a check (주민등록법 시행규칙 제2조)."""

# First digits and lengths: ISO/IEC 7812 and the networks' own tables; 9 is for cards that hold in Korea alone.
_CARDS = (
    (("4",), (13, 16, 19)),
    (tuple(map(str, range(51, 56))), (16,)),
    (tuple(map(str, range(2221, 2721))), (16,)),
    (("34", "37"), (15,)),
    (tuple(map(str, range(3528, 3590))), (16,)),
    (("300", "301", "302", "303", "304", "305", "36", "38"), (14,)),
    (("6011", "644", "645", "646", "647", "648", "649", "65"), (16,)),
    (("62",), (16, 17, 18, 19)),
    (("9",), (16,)),
)


def is_resident_number(digits: str, *, strict: bool = True, bare: bool = False) -> bool:
    """Whether 13 digits are a Korean resident-registration number, a foreigner's included.

    YYMMDD, a digit for sex and century, six more of which the last is a check: c = (11 - s mod 11) mod 10, where s is
    the sum of the first twelve digits by the weights 2 3 4 5 6 7 8 9 2 3 4 5; (13 - s mod 11) mod 10 for foreigners.
    Who was born before October 2020 and changed the number since has none; such a number is missed.

    Args:
      strict: the check digit must hold for births before October 2020, from when on there is none. Otherwise a date
        and a sex are enough: for numbers that a text calls so.
      bare: the number stands without a hyphen, and births that have no check digit are too little evidence.
    """
    if len(digits) != 13 or not digits.isdecimal():
        return False
    year, month, day = _CENTURIES[digits[6]] + int(digits[:2]), int(digits[2:4]), int(digits[4:6])
    if not 1 <= month <= 12 or not 1 <= day <= calendar.monthrange(year, month)[1]:
        return False
    if not strict:
        return True
    if (year, month) >= _RANDOM_SINCE:
        # Half a century of births that are still to come are no births.
        return not bare and year < 2050
    rest = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, digits, strict=False)) % 11
    check = (13 - rest) % 10 if digits[6] in _FOREIGN else (11 - rest) % 10
    return int(digits[12]) == check


def is_card(digits: str) -> bool:
    """Whether digits are a payment card's number: first digits and length of a network, and Luhn's check."""
    known = any(len(digits) in lengths and digits.startswith(prefixes) for prefixes, lengths in _CARDS)
    return known and len(set(digits)) > 1 and luhn(digits)


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B: every second digit from the right is doubled, digits of the products are added up."""
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0
