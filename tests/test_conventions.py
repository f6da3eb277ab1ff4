"""The rules of the house, read from the source; every lint is shown a snippet that it must refuse."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = (
    {"protocols", "shapes", "checks", "checksums", "chips", "placement"},
    {"kernels", "mesh", "text", "world", "phases", "partition", "peers", "preemption"},
    {"models"},
    {"inference", "objectives", "optim", "checkpoint", "tracking", "events", "convert"},
    {"update", "warm_start"},
    {"data", "evaluation", "serving", "planning"},
    {"train", "claims"},
    {"main", "pipeline"},
)
TOP = len(FLOORS)
"""The floor of tools and tasks."""

FENCED = {
    "flax": ("hcxjax/models/", "hcxjax/mesh.py"),
    "optax": ("hcxjax/optim.py", "hcxjax/update.py"),
    "orbax": ("hcxjax/checkpoint.py",),
    "gin": ("hcxjax/main.py",),
    "mlflow": ("hcxjax/tracking.py",),
    "qwix": ("hcxjax/models/low_precision.py",),
    "tensorflow": ("hcxjax/data/", "hcxjax/evaluation/seqio_metrics.py"),
    "seqio": ("hcxjax/data/", "hcxjax/evaluation/seqio_metrics.py"),
    "safetensors": ("hcxjax/convert/",),
    **dict.fromkeys(("starlette", "uvicorn", "prometheus_client"), ("hcxjax/serving/",)),
}
"""Optional library → the files of hcxjax/ that may import it."""

LAZY = {"tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "gin", "mlflow", "mecab", "lm_eval", "qwix"}
"""Never imported when a module of hcxjax/ is."""


def sources(*folders):
    """(path from the root, text) of every Python file below the folders."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    assert files
    return [(str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")) for file in files]


HOUSE = sources("hcxjax")
CODE = sources("hcxjax", "tools", "tasks")


def imports(text):
    """(module, does it happen when this one is imported) of every import; `from a import b` counts as a and a.b."""

    def walk(node, lazy):
        for child in ast.iter_child_nodes(node):
            inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                yield from ((alias.name, not inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = "." * child.level + (child.module or "")
                yield module, not inside
                yield from ((f"{module}.{alias.name}", not inside) for alias in child.names)
            else:
                yield from walk(child, inside)

    return list(walk(ast.parse(text), False))


def part_of(path):
    """'hcxjax/models/layers.py' is of 'models', 'hcxjax/train.py' of 'train'; tools and tasks of nothing."""
    first, *rest = Path(path).with_suffix("").parts
    return rest[0] if first == "hcxjax" and rest[0] != "__init__" else None


def floor_of(part):
    return next((floor for floor, parts in enumerate(FLOORS) if part in parts), None)


def floor_complaints(path, text):
    """Imports that go up, sideways, or to and from parts that have no floor."""
    part = part_of(path)
    floor = TOP if part is None else floor_of(part)
    if floor is None:
        return [f"{path}: {part} has no floor"]
    complaints = []
    for module, _ in imports(text):
        package, _, rest = module.partition(".")
        other = rest.partition(".")[0]
        if module.startswith("."):
            complaints.append(f"{path}: relative import of {module}")
        elif package in ("tools", "tasks") and part is not None:
            complaints.append(f"{path}: {module} is above")
        elif package == "hcxjax" and other and other != part:
            if floor_of(other) is None:
                complaints.append(f"{path}: {other} has no floor")
            elif floor_of(other) >= floor:
                complaints.append(f"{path}: {other} is on floor {floor_of(other)}, {part} on {floor}")
    return complaints


def fence_complaints(path, text):
    """Optional libraries outside their fence, or imported at once where they must be lazy."""
    complaints = []
    for module, at_once in imports(text):
        library = module.partition(".")[0]
        if not path.startswith(FENCED.get(library, "")):
            complaints.append(f"{path}: {library} is imported in {', '.join(FENCED[library])} alone")
        if at_once and library in LAZY:
            complaints.append(f"{path}: {library} is imported at once")
    return complaints


def stage_complaints(path, text):
    """The trainer names no stage, not even in a comment."""
    stages = re.compile("sft|ppo|dpo|reward|pretrain|finetun|rollout|preference", re.IGNORECASE)
    return [f"{path}: {word}" for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", text) if stages.match(word)]


def legend():
    """The letters that `protocols` explains."""
    table = ast.get_docstring(ast.parse((ROOT / "hcxjax/protocols.py").read_text(encoding="utf-8")))
    return {*"".join(re.findall(r"\| ([A-Z, ]+?) +\|", table))} - {*", "}


def shape_suffix(name):
    found = re.search(r"_([A-Z0-9]*[A-Z][A-Z0-9]*)$", name)
    return found and found[1]


def equation_of(call):
    """The equation of an einsum, or of the layer `Einsum(...)` and its application; None for anything else."""
    if not isinstance(call, ast.Call):
        return None
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    if name in ("einsum", "Einsum") and call.args and isinstance(call.args[0], ast.Constant):
        return call.args[0].value
    return equation_of(call.func)


def result_of(value):
    """The equation whose result `value` is, through scaling by scalars."""
    if isinstance(value, ast.BinOp):
        return result_of(value.left) or result_of(value.right)
    return equation_of(value)


def einsum_complaints(path, text, known):
    """Letters that the legend lacks, and arrays whose names do not say the equation's letters."""
    complaints = []

    def compare(node, name, letters):
        if shape_suffix(name) != letters:
            complaints.append(f"{path}:{node.lineno}: {name} is {letters}")

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "->" in node.value:
            strange = set(re.findall("[A-Z]", node.value)) - known
            if re.fullmatch(r"[A-Z0-9,.]+->[A-Z0-9.]*", node.value) and strange:
                complaints.append(f"{path}:{node.lineno}: {node.value} has {', '.join(sorted(strange))}")
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and result_of(node.value):
            compare(node, node.targets[0].id, result_of(node.value).partition("->")[2])
        if isinstance(node, ast.Call) and (equation := equation_of(node)):
            operands = node.args if isinstance(node.func, ast.Call) else node.args[1:]
            for operand, letters in zip(operands, equation.partition("->")[0].split(","), strict=False):
                if isinstance(operand, ast.Name) and shape_suffix(operand.id):
                    compare(node, operand.id, letters)
        if isinstance(node, ast.Name | ast.arg):
            name = node.id if isinstance(node, ast.Name) else node.arg
            letters = set(shape_suffix(name) or "") if not name.isupper() else set()
            if strange := {letter for letter in letters if letter.isalpha()} - known:
                complaints.append(f"{path}:{node.lineno}: {name} has {', '.join(sorted(strange))}")
    return complaints


def name_complaints(path, text):
    """Names that say nothing."""
    complaints = []
    for word in Path(path).with_suffix("").parts:
        if word in ("utils", "util", "helpers", "common", "misc"):
            complaints.append(f"{path}: {word} says nothing")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            prefix = re.match(r"_*(do|compute|get)_", node.name)
            if prefix and node.name != "get_state":
                complaints.append(f"{path}:{node.lineno}: {node.name}")
    return complaints


def size_complaints(path, text):
    """Functions over 60 lines and files over 450: beyond what anyone reads in one go."""
    lines = len(text.splitlines())
    complaints = [f"{path}: {lines} lines"] if lines > 450 else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if length > 60:
                complaints.append(f"{path}:{node.lineno}: {node.name} has {length} lines")
    return complaints


def every(lint, files, *arguments):
    return [complaint for path, text in files for complaint in lint(path, text, *arguments)]


def test_imports_go_down():
    assert every(floor_complaints, CODE) == []


@pytest.mark.parametrize(
    ("path", "snippet"),
    [
        ("hcxjax/kernels/attention.py", "from hcxjax.models.config import DecoderConfig"),
        ("hcxjax/kernels/attention.py", "from hcxjax.mesh import constrain"),  # sideways
        ("hcxjax/inference/decode.py", "from hcxjax import objectives"),
        ("hcxjax/train.py", "def later():\n    from hcxjax.main import main"),
        ("hcxjax/train.py", "if TYPE_CHECKING:\n    import hcxjax.pipeline"),
        ("hcxjax/mesh.py", "from . import optim"),
        ("hcxjax/data/corpus.py", "from tasks.pretrain import register"),
        ("hcxjax/plumbing.py", "import os"),
        ("hcxjax/train.py", "from hcxjax.plumbing import pipe"),
    ],
)
def test_imports_that_do_not(path, snippet):
    assert floor_complaints(path, snippet)


def test_floors_let_through_what_they_should():
    assert floor_complaints("hcxjax/models/layers.py", "from hcxjax.mesh import constrain\nimport jax") == []
    assert floor_complaints("hcxjax/world/code.py", "from hcxjax.world.dice import Dice") == []
    assert floor_complaints("tools/generate.py", "from hcxjax.main import configure") == []


TRAINER_MAY = {
    "protocols",
    "shapes",
    "checks",
    "mesh",
    "optim",
    "checkpoint",
    "tracking",
    "update",
    "phases",
    "peers",
    "preemption",
    "warm_start",
    "partition",
}


def trainer_imports(text):
    parts = {module.split(".")[1] for module, _ in imports(text) if module.startswith("hcxjax.")}
    return parts - TRAINER_MAY


def test_the_trainer_knows_no_objective_model_or_data():
    assert trainer_imports((ROOT / "hcxjax/train.py").read_text(encoding="utf-8")) == set()
    assert trainer_imports("from hcxjax.objectives.language_model import LanguageModel") == {"objectives"}


def test_optional_libraries_stay_in_their_fence():
    assert every(fence_complaints, HOUSE) == []


@pytest.mark.parametrize(
    ("path", "snippet"),
    [
        ("hcxjax/objectives/ppo.py", "from flax import linen"),
        ("hcxjax/train.py", "import optax"),
        ("hcxjax/train.py", "def save():\n    import orbax.checkpoint"),
        ("hcxjax/mesh.py", "import gin"),
        ("hcxjax/main.py", "import gin"),  # the right file, but at once
        ("hcxjax/data/sources.py", "import seqio"),
        ("hcxjax/data/sources.py", "class Reader:\n    import tensorflow as tf"),
        ("hcxjax/kernels/xla.py", "def f():\n    import tensorflow"),
        ("hcxjax/data/sources.py", "try:\n    import tensorflow_datasets as tfds\nexcept ImportError:\n    pass"),
    ],
)
def test_libraries_outside_their_fence(path, snippet):
    assert fence_complaints(path, snippet)


def test_fences_have_gates():
    assert fence_complaints("hcxjax/data/sources.py", "def read():\n    import tensorflow as tf, seqio") == []
    assert fence_complaints("hcxjax/models/layers.py", "import flax.linen as nn") == []


def test_importing_main_loads_no_optional_library():
    heavy = sorted(LAZY | {"tensorboardX", "sentencepiece", "array_record", "torch", "starlette", "uvicorn"})
    program = f"import sys, hcxjax.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_trainer_names_no_stage():
    trainer = [(path, text) for path, text in HOUSE if path in ("hcxjax/train.py", "hcxjax/update.py")]
    assert len(trainer) == 2
    assert every(stage_complaints, trainer) == []


@pytest.mark.parametrize("snippet", ["if stage == 'sft':", "# PPO batches", "RewardModel", "is_pretraining = True"])
def test_trainers_that_name_one(snippet):
    assert stage_complaints("hcxjax/train.py", snippet)


def test_einsums_and_names_speak_the_legend():
    assert {*"BTSDNKGHFVLPR"} <= legend()
    assert every(einsum_complaints, HOUSE, legend()) == []


@pytest.mark.parametrize(
    "snippet",
    [
        "o_BTX = jnp.einsum('BTD,DX->BTX', x_BTD, w_DX)",
        "o_BT = jnp.einsum('BTD,DF->BTF', x_BTD, w_DF)",
        "out = jnp.einsum('BTD,DF->BTF', x_BTD, w_DF)",
        "s_BTN = jnp.einsum('BTD,DF->BTF', x_BTD, w_DF) * scale",
        "o_BTF = jnp.einsum('BTD,DF->BTF', x_BDT, w_DF)",
        "gate_BT = Einsum('BTD,DF->BTF', shape)(x_BTD)",
        "gate_BTF = Einsum('BTD,DF->BTF', shape)(x_BTF)",
        "mask_BTQ = mask > 0",
        "def f(x_BZ):\n    return x_BZ",
    ],
)
def test_einsums_and_names_that_do_not(snippet):
    assert einsum_complaints("x.py", snippet, legend())


def test_einsums_may_scale_return_and_keep_ones():
    snippet = "s_BKGTS = jnp.einsum('BTKGH,BSKH->BKGTS', q_BTKGH, k_BSKH) * scale\ntop_BKGT1 = s_BKGTS.max()\nMAX_Q = 1"
    assert einsum_complaints("x.py", snippet, legend()) == []


def test_names_say_something():
    assert every(name_complaints, CODE) == []


@pytest.mark.parametrize(
    ("path", "snippet"),
    [
        ("hcxjax/utils.py", ""),
        ("hcxjax/data/helpers/text.py", ""),
        ("hcxjax/mesh.py", "def get_mesh(): ..."),
        ("hcxjax/mesh.py", "class A:\n    def _compute_loss(self): ..."),
        ("hcxjax/mesh.py", "async def do_it(): ..."),
    ],
)
def test_names_that_do_not(path, snippet):
    assert name_complaints(path, snippet)


def test_functions_and_files_can_be_read_in_one_go():
    assert every(size_complaints, CODE) == []
    assert size_complaints("x.py", "def long():\n" + "    a = 1\n" * 60)
    assert size_complaints("x.py", "a = 1\n" * 451)
    assert size_complaints("x.py", "def right():\n" + "    a = 1\n" * 59) == []


def test_the_gin_folder_is_no_package():
    """With a gin/__init__.py, `import gin` from the root would find our folder."""
    assert (ROOT / "gin").is_dir()
    assert not list((ROOT / "gin").rglob("__init__.py"))
