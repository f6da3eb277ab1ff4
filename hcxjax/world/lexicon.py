"""The words that every split shares: jobs, foods, animals, spots, numbers and the like."""

from hcxjax.world.names import Noun


def _nouns(table: str) -> tuple[Noun, ...]:
    return tuple(Noun(korean, english) for korean, english in (entry.split(maxsplit=1) for entry in table.split(", ")))


def _counted(table: str) -> tuple[Noun, ...]:
    """`"사과 apple/apples"`."""
    return tuple(Noun(noun.korean, one, many) for noun in _nouns(table) for one, many in [noun.english.split("/")])


def number(value: int) -> Noun:
    """A number in digits."""
    return Noun(str(value), str(value), value=value)


JOBS = _nouns(
    "의사 doctor, 화가 artist, 요리사 cook, 선생님 teacher, 기자 reporter, 농부 farmer, 가수 singer, "
    "경찰관 police officer, 소방관 firefighter, 목수 carpenter, 어부 fisher, 배우 actor, 사진작가 photographer, "
    "약사 pharmacist, 미용사 hairdresser, 제빵사 baker, 정원사 gardener, 사서 librarian, 조종사 pilot, "
    "편집자 editor, 기술자 engineer, 번역가 translator"
)
FOODS = _counted(
    "사과 apple/apples, 달걀 egg/eggs, 감자 potato/potatoes, 살구 apricot/apricots, 떡 rice cake/rice cakes, "
    "빵 bun/buns, 복숭아 peach/peaches, 당근 carrot/carrots, 귤 tangerine/tangerines, 만두 dumpling/dumplings, "
    "호두 walnut/walnuts, 레몬 lemon/lemons, 양파 onion/onions, 오이 cucumber/cucumbers, "
    "참외 melon/melons, 도넛 donut/donuts"
)
COLORS = _nouns(
    "빨간색 red, 파란색 blue, 노란색 yellow, 초록색 green, 하얀색 white, 검은색 black, 분홍색 pink, "
    "보라색 purple, 주황색 orange"
)
HOBBIES = _nouns(
    "낚시 fishing, 등산 hiking, 수영 swimming, 요리 cooking, 독서 reading, 뜨개질 knitting, 바둑 baduk, "
    "농구 basketball, 축구 soccer, 달리기 running, 캠핑 camping, 배드민턴 badminton, 체스 chess, 산책 walking"
)
PETS = _nouns(
    "강아지 dog, 고양이 cat, 토끼 rabbit, 앵무새 parrot, 햄스터 hamster, 오리 duck, 염소 goat, 닭 hen, "
    "조랑말 pony, 거위 goose"
)
SPOTS = _nouns(
    "시장 market, 도서관 library, 공원 park, 기차역 station, 학교 school, 빵집 bakery, 바닷가 beach, "
    "박물관 museum, 정류장 bus stop, 우체국 post office, 놀이터 playground, 극장 theater, 식당 restaurant, "
    "미술관 art museum, 꽃집 flower shop"
)
VEHICLES = _nouns("버스 bus, 기차 train, 자전거 bike, 자동차 car, 트럭 truck, 지하철 subway, 택시 taxi, 여객선 ferry")
DAYS = _nouns(
    "월요일 Monday, 화요일 Tuesday, 수요일 Wednesday, 목요일 Thursday, 금요일 Friday, 토요일 Saturday, 일요일 Sunday"
)
WEATHERS = _nouns(
    "비가_왔 it_rained, 눈이_왔 it_snowed, 바람이_많이_불었 it_was_windy, 하늘이_맑았 the_sky_was_clear, "
    "안개가_끼었 it_was_foggy, 날씨가_따뜻했 it_was_warm, 날씨가_추웠 it_was_cold, 구름이_많았 it_was_cloudy"
)
WEATHERS = tuple(Noun(noun.korean.replace("_", " "), noun.english.replace("_", " ")) for noun in WEATHERS)
"""Past stems, to be followed by an ending, and whole English clauses."""
COUNTS = tuple(
    Noun(count.korean, count.english, value=value)
    for value, count in enumerate(
        _nouns("한 one, 두 two, 세 three, 네 four, 다섯 five, 여섯 six, 일곱 seven, 여덟 eight, 아홉 nine"), start=1
    )
)
"""One to nine as they stand before a counter."""
