"""The tokenizer that lies beside weights: kept with a run, found again, and compared before a run goes on from them."""

import logging
import os
import shutil

from hcxjax.data.hashing import fingerprint
from hcxjax.data.publishing import measured, publish
from hcxjax.data.tokenizer import CARD_FILE, COPIED_FROM, MODEL_FILE
from hcxjax.text.vocabulary import Vocabulary

_log = logging.getLogger(__name__)

FOLDER = "tokenizer"
"""In a run's RUN_DIR and in the folder of an imported model."""


def keep(vocabulary: Vocabulary, run_dir: str) -> None:
    """Copies the vocabulary's file into a run's folder, for those who read its checkpoints.

    Raises:
      ValueError: another one is there.
    """

    def copy(folder: str) -> None:
        shutil.copy(vocabulary.path, os.path.join(folder, MODEL_FILE))
        card = os.path.join(os.path.dirname(vocabulary.path), CARD_FILE)
        if os.path.exists(card):
            shutil.copy(card, folder)
        with open(os.path.join(folder, COPIED_FROM), "w", encoding="utf-8") as file:
            file.write(vocabulary.path)

    publish(os.path.join(run_dir, FOLDER), copy)
    kept(run_dir, fingerprint(vocabulary.fingerprint))


def kept(run_dir: str, known: int) -> Vocabulary:
    """The vocabulary that a run's checkpoint was trained with.

    Args:
      known: `tokenizer` in the source's state.
    Raises:
      ValueError: it is not there, or is another one.
    """
    vocabulary = Vocabulary(os.path.join(run_dir, FOLDER, MODEL_FILE))
    if fingerprint(vocabulary.fingerprint) != known:
        raise ValueError(f"the run was trained with another tokenizer than {vocabulary.path}; put its own back")
    return vocabulary


def check_same(vocabulary: Vocabulary, folder: str) -> None:
    """Whether the weights in `folder`, a run's or an imported model's, know the ids of `vocabulary`.

    Files are compared, not ids: a tokenizer that was written anew is another one. A folder that has none is warned of.

    Raises:
      ValueError: its tokenizer is another one.
    """
    places = [os.path.join(folder, FOLDER, name) for name in (MODEL_FILE, CARD_FILE)]
    there = [place for place in places if os.path.isfile(place)]
    if not there:
        _log.warning(
            "%s has no tokenizer: whether its weights know the ids of %s is not known", folder, vocabulary.path
        )
        return
    if vocabulary.fingerprint not in [measured(place)["sha256"] for place in there]:
        raise ValueError(
            f"the weights in {folder} were trained with another tokenizer than {vocabulary.path}; "
            f"set Tokenizer.path to {there[0]}"
        )
