"""The training step that is planned, and its variants."""

import dataclasses
from collections.abc import Mapping
from typing import cast

import jax

from hcxjax.mesh import AXES, Layout
from hcxjax.models.config import DecoderConfig
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.planning.pods import Pod
from hcxjax.planning.topology import PodLayout
from hcxjax.protocols import Batch
from hcxjax.update import Recipe


@dataclasses.dataclass(frozen=True)
class Step:
    """One update of a run.

    Attributes:
      recipe: what is minimised and how.
      layout: the run's mesh; its devices are the pod's.
      shapes: of the batch's arrays.
    """

    recipe: Recipe
    layout: Layout
    shapes: Mapping[str, jax.ShapeDtypeStruct]

    def on(self, pod: Pod) -> PodLayout:
        """Its layout over as many devices as the pod has. ValueError where the mesh is of another size."""
        layout = PodLayout.over(self.layout, range(pod.devices))
        _ = layout.shape
        return layout

    @property
    def rows(self) -> int:
        """Rows of a batch."""
        return next(iter(self.shapes.values())).shape[0]

    @property
    def tokens(self) -> int:
        """Positions of a batch."""
        return self.rows * self.length

    @property
    def length(self) -> int:
        """Positions of a row."""
        return self.shapes["tokens_BT"].shape[1]

    @property
    def flops(self) -> float:
        """Model FLOPs of an update, as the training loop counts them."""
        return self.recipe.objective.flops(cast(Batch, self.shapes))

    @property
    def is_language_model(self) -> bool:
        """Does the arithmetic know what is trained?"""
        return isinstance(self.recipe.objective, LanguageModel) and "tokens_BT" in self.shapes

    @property
    def objective(self) -> LanguageModel:
        """ValueError where the step trains something that the arithmetic does not know."""
        if not self.is_language_model:
            raise ValueError(
                f"the arithmetic knows language models, not {type(self.recipe.objective).__name__}: plan a run of "
                "gin/stages/pretrain.gin, or compile this one alone"
            )
        return cast(LanguageModel, self.recipe.objective)

    @property
    def model(self) -> DecoderConfig:
        """The decoder's sizes."""
        return self.objective.model

    @property
    def eight_bits(self) -> bool:
        """Does the model run matmuls in int8 or fp8?"""
        return self.is_language_model and self.model.matmuls != "dtype"

    def changed(self, axes: Mapping[str, int], accumulate: int, remat: str | tuple[str, ...]) -> "Step":
        """The same update on another mesh, in other microbatches, keeping other activations."""
        objective = dataclasses.replace(self.objective, model=dataclasses.replace(self.model, remat=remat))
        recipe = dataclasses.replace(self.recipe, objective=objective, accumulate=accumulate)
        return Step(recipe, dataclasses.replace(self.layout, **axes), self.shapes)

    def bindings(self) -> dict[str, object]:
        """What makes a run file be this step: {name: value} of gin bindings."""
        axes = {f"Layout.{axis}": getattr(self.layout, axis) for axis in AXES}
        return {**axes, "ACCUMULATE": self.recipe.accumulate, "DecoderConfig.remat": self.model.remat}
