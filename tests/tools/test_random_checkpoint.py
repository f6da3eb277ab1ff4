"""Random checkpoints are ones that can be imported."""

import json

import pytest

from hcxjax.convert.config import read_config
from hcxjax.convert.model import HuggingFaceModel
from tools.random_checkpoint import SEED_05B, SPECIALS, byte_tokenizer, main, shaped

TINY = ["num_layers=1", "embed_dim=16", "mlp_dim=24", "num_heads=2", "num_kv_heads=1", "head_dim=8"]


def test_a_shape_by_fields(tmp_path, capsys):
    shape = ["--shape", *TINY, "vocab_size=300", "tie_embeddings=false", "--dtype", "float16"]
    assert main([str(tmp_path / "one"), *shape]) == 0
    model = HuggingFaceModel(tmp_path / "one")
    assert (model.config.vocab_size, model.config.tie_embeddings) == (300, False)
    assert set(model.dtypes().values()) == {"F16"}
    assert main([str(tmp_path / "two"), *shape]) == 0
    assert main([str(tmp_path / "three"), *shape, "--seed", "1"]) == 0
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "three")]
    assert files[0] == files[1] != files[2]
    assert read_config(tmp_path / "one")["eos_token_id"] == [256, 262, 263]


def test_seed_has_its_parameters_and_specials():
    assert SEED_05B.parameters == 566_281_216
    assert shaped([]) == SEED_05B
    _, ids = byte_tokenizer(SEED_05B.vocab_size)
    assert ids == SPECIALS
    assert ids["<|im_start|>"] == 100272


def test_its_tokenizer_is_one(tmp_path):
    pytest.importorskip("tokenizers")
    from hcxjax.text.vocabulary import Vocabulary

    for size in (300, 110592):
        tokenizer, ids = byte_tokenizer(size)
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
        vocabulary = Vocabulary(str(tmp_path / "tokenizer.json"))
        assert dict(vocabulary.specials) == ids
        assert vocabulary.encode("한a") == [*"한a".encode()]
        assert vocabulary.encode("<|stop|>", specials=True) == [ids["<|stop|>"]]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("layers=2", "--shape has 'layers=2'; fields are"),
        ("num_layers=two", "whose value is no number"),
        ("vocab_size=100", "vocab_size is 100; 256 bytes and 8 specials need 264"),
        ("num_kv_heads=3", "num_heads is 16; it must be a multiple"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, shape, message):
    assert main([str(tmp_path / "out"), "--shape", shape]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_exists_stays(tmp_path, capsys):
    (tmp_path / "mine").touch()
    assert main([str(tmp_path), "--shape", *TINY, "vocab_size=300"]) == 1
    assert "exists" in capsys.readouterr().err
