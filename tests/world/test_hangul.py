import pytest

from hcxjax.world.hangul import PARTICLES, attach, final_consonant

# Written by hand: particle: every word with it.
TABLE = """
은: 민준은 지호는 서울은 민준(Minjun)은 지호(Jiho)는 3은 4는
이: 민준이 지호가 달골이 6이 9가
을: 민준을 지호를 옥섬을 0을 2를
과: 민준과 지호와 서울과 1과 5와
으로: 부산으로 제주로 서울로 달골로 옥섬으로 지하철로 트럭으로 버스로 1로 3으로 7로 8로 9로
아: 민준아 지호야 은솔아
이랑: 민준이랑 지호랑 은솔이랑
이나: 떡이나 사과나
이라는: 민준이라는 지호라는 달골이라는
이라고: 민준이라고 지호라고
이고: 경찰관이고 의사고
이다: 경찰관이다 의사다 달이다
이에요: 민준이에요 지호예요 서울이에요
이야: 별이야 나비야
이었: 경찰관이었 의사였
"""
ROWS = [line.split(": ") for line in TABLE.strip().split("\n")]


@pytest.mark.parametrize(("particle", "written"), [(key, word) for key, words in ROWS for word in words.split()])
def test_particles_agree_with_the_last_sound(particle, written):
    closed, open_ = PARTICLES[particle]
    # The longer form is looked for first: 달골이라는 also ends in 라는.
    ending = next(form for form in sorted((closed, open_), key=len, reverse=True) if written.endswith(form))
    assert attach(written.removesuffix(ending), particle) == written


def test_the_table_knows_every_particle():
    assert {key for key, _ in ROWS} == set(PARTICLES)


def test_a_word_of_unknown_sound_is_refused():
    for word in ("Minjun", "", "끝!"):
        with pytest.raises(ValueError, match="last sound"):
            final_consonant(word)
