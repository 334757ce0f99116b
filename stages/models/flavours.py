"""The flavours of Qwen-Image-Edit: the inputs of their encoders and the pipelines they belong to.

Everything else about a model (channels, latent statistics, `zero_cond_t`) is read from the
checkpoint's own config files, never from here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MEGAPIXEL_AREA = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Flavour:
    """One way of conditioning the model.

    Areas are in square pixels. `zero_cond_t`: reference tokens are modulated at t = 0.
    `overrides_zero_cond_t`: switched on over a checkpoint whose config says otherwise.
    """

    name: str
    repository: str
    pipeline: str
    max_references: int
    vae_area: int
    vl_area: int
    numbered_pictures: bool
    zero_cond_t: bool
    overrides_zero_cond_t: bool = False

    @property
    def zero_cond_t_on_disk(self) -> bool:
        """The `zero_cond_t` that the config of its checkpoint says."""
        return self.zero_cond_t and not self.overrides_zero_cond_t


_V1 = Flavour(
    name="edit-v1",
    repository="Qwen/Qwen-Image-Edit",
    pipeline="QwenImageEditPipeline",
    max_references=1,
    vae_area=MEGAPIXEL_AREA,
    vl_area=MEGAPIXEL_AREA,
    numbered_pictures=False,
    zero_cond_t=False,
)
_V2 = Flavour(
    name="edit-v2",
    repository="Qwen/Qwen-Image-Edit-2509",
    pipeline="QwenImageEditPlusPipeline",
    max_references=3,
    vae_area=MEGAPIXEL_AREA,
    vl_area=384 * 384,
    numbered_pictures=True,
    zero_cond_t=False,
)
_V2_PLUS = replace(_V2, name="edit-v2+", zero_cond_t=True, overrides_zero_cond_t=True)
_V3 = replace(_V2, name="edit-v3", repository="Qwen/Qwen-Image-Edit-2511", zero_cond_t=True)
FLAVOURS = {flavour.name: flavour for flavour in (_V1, _V2, _V2_PLUS, _V3)}
