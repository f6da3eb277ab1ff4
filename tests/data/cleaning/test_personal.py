"""Personal data: what is masked, what is left, and check digits worked out by hand."""

import pytest

from hcxjax.data.cleaning.checkdigits import is_card, is_resident_number, luhn
from hcxjax.data.cleaning.personal import PersonalData

# 800101-123456c: 2*8+3*0+4*0+5*1+6*0+7*1+8*1+9*2+2*3+3*4+4*5+5*6 = 122, 122 mod 11 = 1, c = 11 - 1 = 10, so 0.
RESIDENT = "800101-1234560"
# 850315-512345c: 16+15+0+15+6+35+40+9+4+9+16+25 = 190, 190 mod 11 = 3, c = 13 - 3 = 10, so 0.
FOREIGNER = "850315-5123450"
# 5555 5555 5555 4444 and 3782 822463 10005 are the networks' own test numbers.
CARD, AMEX = "5555-5555-5555-4444", "3782-822463-10005"


def masked(text):
    outcome = PersonalData(number="#")(text)
    assert outcome.dropped is None
    return outcome.text, dict(outcome.changes)


@pytest.mark.parametrize(
    "number",
    [
        *("010-2345-6789", "010.2345.6789", "010 2345 6789", "01023456789", "011-234-5678", "016-9876-5432"),
        *("+82-10-2345-6789", "+82 10 2345 6789", "+821023456789", "+82 (0)10-2345-6789", "82-10-2345-6789"),
        *("０１０－２３４５－６７８９", "010–2345–6789", "(010) 2345-6789", "010)2345-6789"),
        *(
            "02-345-6789",
            "02-3456-7890",
            "031-234-5678",
            "(02) 345-6789",
            "02)345-6789",
            "064-765-4321",
            "070-2345-6789",
        ),
        *("+82-2-345-6789", "+82 31 234 5678", "0507-1234-5678".replace("1234", "2234")),
    ],
)
def test_telephone_numbers_are_removed(number):
    assert masked(f"연락은 {number}로 주세요.") == ("연락은 #로 주세요.", {"phone number": 1})
    assert masked(f"Tel.{number}, 그리고 {number}") == ("Tel.#, 그리고 #", {"phone number": 2})


def test_a_landline_without_hyphens_must_be_called_one():
    assert masked("전화: 0223456789 / 팩스 02.345.6789")[1] == {"phone number": 2}
    assert masked("값은 0223456789와 02.345.6789")[1] == {}


@pytest.mark.parametrize(
    "text",
    [
        *("고객센터 1588-1234", "080-123-4567", "119", "버전 1.010-2345-6789", "v010-2345-6789", "0x01023456789a"),
        *("제02-2345-6789호", "3.01023456789", "id_01023456789", "2010-2345-6789", "010-2345-67890", "010-1234-567"),
        *("[0.1234567890123456, 0.4111111111111111]", "1609459200000", "9223372036854775807", "ISBN 978-89-01-23456-4"),
        *("9788901234564", "4111111111111111", "4000 4000 4000 4000 4000", "2003 2011 2014 2017", "800101-1234561"),
        *("801301-1234567", "800230-1234567", "5555-5555-5555-4445", "민법 제750조 2020.10.20", "2021-03-04 05:06:07"),
        *(
            "X@W.T",
            "x@y.dot(z)",
            "git@github.com:owner/name",
            "me@example.com",
            "a@b.test",
            "name@2x.png",
            "@decorator.com",
        ),
        *("lodash@4.17.21", "noreply@github.com", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ],
)
def test_what_only_looks_like_it_stays(text):
    assert masked(text) == (text, {})
    assert masked(f"앞 {text}, 뒤")[1] == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hong.gildong@naver.com", "***@naver.com"),
        ("메일은 hong_1@mail.co.kr로", "메일은 ***@mail.co.kr로"),
        ("<a href='mailto:a+b@korea.ac.kr'>", "<a href='mailto:***@korea.ac.kr'>"),
        ("홍길동hong＠naver．com 끝", "홍길동***＠naver．com 끝"),
        ("a@naver.com, b@gmail.com.", "***@naver.com, ***@gmail.com."),
    ],
)
def test_an_address_keeps_its_domain(text, expected):
    assert masked(text)[0] == expected


@pytest.mark.parametrize(
    "number", [RESIDENT, FOREIGNER, "８００１０１－１２３４５６０", "800101 - 1234560", "8001011234560"]
)
def test_resident_numbers_are_removed(number):
    assert masked(f"홍길동 {number} 서울") == ("홍길동 # 서울", {"resident number": 1})


def test_numbers_without_a_check_digit_need_a_hyphen_or_a_name():
    assert masked("201005-3000001")[1] == {"resident number": 1}  # born when the last digits are random
    assert masked("2010053000001")[1] == {}
    assert masked("주민등록번호 2010053000001")[1] == {"resident number": 1}
    assert masked("200905-3000001")[1] == {}
    assert masked("주민번호: 800101-1234561")[1] == {"resident number": 1}  # changed since, so that its check is random


@pytest.mark.parametrize("number", [CARD, CARD.replace("-", " "), AMEX, f"카드 {CARD.replace('-', '')}"])
def test_card_numbers_are_removed(number):
    assert masked(f"결과 {number}.")[1] == {"card number": 1}


def test_check_digits():
    assert is_resident_number("8001011234560") and not is_resident_number("8001011234561")
    assert is_resident_number("8503155123450") and not is_resident_number("8503155123451")
    assert not is_resident_number("800101123456")
    assert is_resident_number("0002294000000", strict=False)  # 29 February 2000; 1900 had none
    assert not is_resident_number("0002292000000", strict=False)
    assert luhn("79927398713") and not luhn("79927398710")  # the example of the algorithm's description
    assert is_card("4111111111111111") and not is_card("1111111111111117") and not is_card("41111111111111")


def test_one_document_may_hold_them_all_and_a_long_line_takes_no_time():
    text = f"{RESIDENT}, {CARD}, 010-2345-6789, a@naver.com"
    assert masked(text)[0] == "#, #, #, ***@naver.com"
    long = "a1b2-" * 20_000 + "9" * 100_000 + "a." * 50_000 + "@" + "b." * 50_000
    assert masked(long)[1] == {}
