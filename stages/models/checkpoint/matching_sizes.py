"""The check that a model's weights are those that its configuration describes, by headers alone."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ....cache.errors import WrongUse
from ..memory_estimate.dimensions import Dimensions
from .checkpoint import Checkpoint
from .config_values import config_in
from .weights_header import tensor_shapes


def refuse_other_sizes(checkpoint: Checkpoint, *, spared: Collection[str] = ()) -> None:
    """Raise if the transformer or the text encoder has other layers than its config.json says.

    Else that would be found when it is loaded, hours after the first picture was encoded.

    Args:
        spared: parts that are not looked at, as in `open_checkpoint`.

    Raises:
        WrongUse: names the first tensor that differs.
    """
    shapes = tensor_shapes(checkpoint.transformer)
    sizes = Dimensions.of_config(config_in(checkpoint.transformer), zero_cond_t=False)
    for layer, (inputs, outputs) in sizes.linears().items():
        found = shapes.get(f"{layer}.weight")
        if found != (outputs, inputs):
            says = f"{layer}.weight is {list(found) if found else 'missing'}"
            _refuse(checkpoint.transformer, says, f"[{outputs}, {inputs}]")
    if "text_encoder" in spared:
        return
    config = config_in(checkpoint.text_encoder)
    text, vision = (config.get(part) or config for part in ("text_config", "vision_config"))
    counts = {"layers": text.get("num_hidden_layers"), "visual.blocks": vision.get("depth")}
    names = " ".join(tensor_shapes(checkpoint.text_encoder))
    for kind, count in counts.items():
        if count and (f"{kind}.{count - 1}." not in names or f"{kind}.{count}." in names):
            _refuse(checkpoint.text_encoder, f"the number of {kind} differs", str(count))


def _refuse(folder: Path, found: str, wanted: str) -> None:
    raise WrongUse(
        f"The weights in {folder} are not those of its config.json: {found}, not {wanted}.",
        "Put back the config.json that belongs to the weights, or download the model again.",
    )
