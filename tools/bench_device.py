"""How kernels and steps are timed on whatever device there is, and what the numbers were measured with."""

import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SIDES = ("jax", "torch")
"""Each in a process of its own: neither library leaves the other much of a GPU's memory."""


def timed(call: Callable[[], Any], wait: Callable[[Any], object], seconds: float) -> float:
    """Seconds a call: the mean of as many as fit into `seconds`, sent one after another and awaited together.

    Two calls before them, of which the first compiles, are not counted.
    """
    wait(call())
    began = time.perf_counter()
    wait(call())
    count = max(1, min(200, int(seconds / (time.perf_counter() - began))))
    result, began = None, time.perf_counter()
    for _ in range(count):
        result = call()
    wait(result)
    return (time.perf_counter() - began) / count


def steps_of(step: Callable[[], Any], count: int) -> dict[str, float]:
    """Seconds of a training step that returns when it has ended: the median of `count`, after two; and of the first."""
    began = time.perf_counter()
    step()
    first = time.perf_counter() - began
    step()
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return {"step_s": statistics.median(seconds), "first_step_s": first}


def attempted(measure: Callable[[], Any]) -> Any:
    """What `measure` says, or {"error": why not}: no room for one case must not cost the others."""
    try:
        return measure()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"}


def jax_versions() -> dict[str, str]:
    """What jax's side is measured with."""
    import jax
    from jax._src.lib import cuda_versions, version_str

    device = jax.devices()[0]
    found = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": version_str,
        "jax platform": device.platform,
        "jax device": device.device_kind,
    }
    if cuda_versions is not None and device.platform == "gpu":
        found["jax cuDNN"] = str(cuda_versions.cudnn_get_version())
    return found | driver()


def torch_versions() -> dict[str, str]:
    """What PyTorch's side is measured with."""
    import torch

    found = {"torch": torch.__version__, "torch device": platform.machine()}
    if torch.cuda.is_available():
        found |= {"torch device": torch.cuda.get_device_name(), "torch cuDNN": str(torch.backends.cudnn.version())}
    return found


def driver() -> dict[str, str]:
    """NVIDIA's driver, where there is one."""
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"driver": done.stdout.splitlines()[0].strip()}


def installed(side: str) -> bool:
    """Is the side's library there? It is not imported."""
    return importlib.util.find_spec(side) is not None


def child(side: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The JSON object that a process of its own prints last; {"error": why} where it was killed."""
    call = [sys.executable, "-m", "tools.bench", *arguments, "--side", side]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"error": f"ended with status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def median(values: Sequence[Any]) -> float | None:
    """Of the numbers among them; None where there is none."""
    numbers = [value for value in values if isinstance(value, int | float)]
    return statistics.median(numbers) if numbers else None


def write(path: Path | None, results: Mapping[str, Any]) -> None:
    """The results as JSON, where a file is asked for."""
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n")
