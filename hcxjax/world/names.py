"""What can be named in the world, and which names only the validation split knows.

People, places, things and events have names of two parts. The parts form a table; the cells of a few diagonals are
held out. So every part of a held-out name is well known from training names, the whole is new.
"""

from dataclasses import dataclass

TRAIN, VALIDATION = "train", "validation"
SPLITS = (TRAIN, VALIDATION)


@dataclass(frozen=True)
class Noun:
    """A word in both languages; `value` where it stands for a number."""

    korean: str
    english: str
    plural: str = ""
    value: int | None = None


@dataclass(frozen=True)
class PersonName(Noun):
    """The English name is the Korean one romanised."""

    female: bool = False


def _pairs(table: str) -> list[tuple[str, str]]:
    """`"민 Min, 서 Seo"` as pairs."""
    return [(korean, english) for korean, english in (entry.split(maxsplit=1) for entry in table.split(", "))]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# No first syllable is also a second one: otherwise a name and its particle could spell another name (지민 + 아, 민아).
_MEN = (
    _pairs(
        "민 Min, 서 Seo, 지 Ji, 현 Hyun, 도 Do, 하 Ha, 유 Yu, 태 Tae, 재 Jae, 정 Jung, 승 Seung, 시 Si, "
        "성 Seong, 주 Ju, 동 Dong, 건 Geon, 상 Sang, 기 Gi, 진 Jin"
    ),
    _pairs("준 jun, 우 woo, 호 ho, 훈 hun, 찬 chan, 혁 hyuk, 규 gyu, 석 seok, 환 hwan, 범 beom, 수 su, 율 yul, 오 oh"),
)
_WOMEN = (
    _pairs(
        "민 Min, 서 Seo, 지 Ji, 현 Hyun, 예 Ye, 하 Ha, 유 Yu, 다 Da, 소 So, 윤 Yoon, 주 Ju, 보 Bo, 세 Se, "
        "채 Chae, 가 Ga, 시 Si"
    ),
    _pairs(
        "아 ah, 연 yeon, 희 hee, 은 eun, 미 mi, 린 rin, 나 na, 원 won, 경 gyeong, 영 young, 솔 sol, 슬 seul, "
        "라 ra, 선 seon, 혜 hye, 빈 bin"
    ),
)
# Everyday words, or sounds that no one is called.
_NOT_PEOPLE = _words(
    "지우 하우 도우 태우 재우 재수 기수 하수 도수 주수 유수 성수 정수 상수 동수 진수 시오 주오 유오 서오 상오 "
    "정오 도오 하오 기오 민오 승오 성오 현오 진오 동오 건수 유율 정율 승율 성율 동율 상율 진율 기율 현율 건율 "
    "재율 태율 주율 상석 정석 주석 유석 하석 시석 도석 시범 유범 주범 하범 서범 지범 시혁 유혁 하혁 서혁 유환 "
    "시환 하환 상환 서환 하찬 시찬 상찬 하훈 유훈 서훈 시훈 하규 시규 서규 유규 도규 주규 유호 시호 상호 도호 "
    "하호 서호 기호 정호 동우 하준 유찬 도찬 동찬 건찬 서찬 진찬 시수 서수 유우 도환 도혁 건혁 건범 유아 소아 "
    "시아 하아 다아 예아 보아 가아 가나 하나 다나 소나 세나 보나 주나 채나 예나 지나 시나 서나 현나 민나 윤나 "
    "세미 다미 가미 시미 하미 채미 보미 서미 소미 지미 보라 소라 가라 다라 하라 시라 지라 주라 서라 현라 민라 "
    "윤라 예라 채라 소원 지원 하원 다원 세원 시원 가원 보원 유원 현원 민원 윤원 서원 가경 다경 시경 세경 하경 "
    "소경 보경 유경 예경 윤경 현경 하영 시영 다영 보영 가영 세선 시선 유선 다선 보선 하선 예선 주선 가선 채선 "
    "현선 주혜 하혜 세혜 시혜 보혜 가혜 채혜 서혜 예혜 보희 하희 시희 예희 다희 가희 채희 세희 시연 가연 하연 "
    "다연 주린 보린 가린 소린 다린 세린 현린 민슬 주슬 하슬 시슬 서슬 세슬 채슬 보슬 소슬 가슬 현슬 유슬 윤슬 "
    "유솔 시솔 주솔 세솔 가솔 보솔 하빈 시빈 다빈 보빈 소빈 주빈 윤빈 가은 보은 시은 현은 하은"
)
_PLACES = (
    _pairs(
        "한 Han, 청 Cheong, 금 Geum, 옥 Ok, 백 Baek, 송 Song, 달 Dal, 별 Byeol, 솔 Sol, 온 On, 새 Sae, 늘 Neul, "
        "너 Neo, 누 Nu, 두 Du"
    ),
    _pairs(
        "주 ju, 산 san, 천 cheon, 포 po, 내 nae, 골 gol, 벌 beol, 섬 seom, 재 jae, 들 deul, 평 pyeong, 말 mal, 담 dam"
    ),
)
_NOT_PLACES = _words(
    "청주 금산 옥천 백골 온천 한산 금천 옥포 한천 백산 청산 너내 누내 너들 두들 한담 너말 두말 한말 새말 두벌 "
    "한벌 누벌 두포 두재 금재 두주 새내 새벌 두천 너천 누천 너평 누산 온산 온들 온말 온내 금주 옥산 백주 늘산 "
    "늘천 늘주 송산 송천 새주 너산 너벌 너재 두산 누들 누재 청내 별말 달말 금말 너주 누주"
)
_THINGS = (
    _pairs("나무 wooden, 유리 glass, 종이 paper, 구리 copper, 돌 stone, 가죽 leather"),
    _pairs(
        "상자 box, 새 bird, 별 star, 말 horse, 배 boat, 꽃 flower, 컵 cup, 반지 ring, 종 bell, 인형 doll, "
        "물고기 fish, 나비 butterfly, 열쇠 key, 부엉이 owl, 거북이 turtle, 달 moon, 단추 button, 공 ball, "
        "구슬 bead, 접시 plate"
    ),
)
_NOT_THINGS = frozenset(
    {
        "종이 종",
        "가죽 열쇠",
        "종이 열쇠",
        "종이 단추",
        "종이 구슬",
        "가죽 종",
        "가죽 컵",
        "가죽 접시",
        "가죽 구슬",
        "가죽 배",
        "종이 반지",
        "돌 인형",
    }
)
_EVENTS = (
    _pairs(
        "등불 Lantern, 연꽃 Lotus, 달빛 Moonlight, 눈꽃 Snow, 바다 Sea, 강가 River, 숲속 Forest, 단풍 Maple, "
        "별빛 Starlight, 호수 Lake"
    ),
    _pairs(
        "축제 Festival, 시장 Market, 음악회 Concert, 전시회 Exhibition, 잔치 Feast, 장터 Fair, 연극 Play, 공연 Show"
    ),
)


def held_out(row: int, column: int) -> bool:
    "Whether the validation split owns a cell of a table of names: one in five, in every row and every column."
    return (row + 2 * column) % 5 == 0


def _cells(table, split: str, join: str, forbidden=frozenset(), make=Noun, **fields) -> tuple:
    firsts, seconds = table
    return tuple(
        make(korean, english + join + last, **fields)
        for row, (first, english) in enumerate(firsts)
        for column, (second, last) in enumerate(seconds)
        if held_out(row, column) == (split == VALIDATION) and (korean := first + join + second) not in forbidden
    )


def _people(split: str) -> tuple[PersonName, ...]:
    men = _cells(_MEN, split, "", _NOT_PEOPLE, PersonName)
    return men + _cells(_WOMEN, split, "", _NOT_PEOPLE, PersonName, female=True)


PEOPLE: dict[str, tuple[PersonName, ...]] = {split: _people(split) for split in SPLITS}
PLACES: dict[str, tuple[Noun, ...]] = {split: _cells(_PLACES, split, "", _NOT_PLACES) for split in SPLITS}
THINGS: dict[str, tuple[Noun, ...]] = {split: _cells(_THINGS, split, " ", _NOT_THINGS) for split in SPLITS}
EVENTS: dict[str, tuple[Noun, ...]] = {split: _cells(_EVENTS, split, " ") for split in SPLITS}
