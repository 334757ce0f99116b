"""A sample as `pair` leaves it for the later stages: pictures with their geometry, and captions.

It imports no picture library: `train` uses this file too.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...cache.files.fingerprint import key_of

NULL_CAPTION = " "


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and the geometry it is used with.

    Attributes:
        dataset: id of the dataset it belongs to.
        path: relative to that dataset's folder, with "/" between folders.
        digest: content digest of the file's bytes.
        width, height: of the whole upright picture, in pixels.
        box: left, top, right, bottom of what is used, in (fractional) pixels of the
            upright picture; the whole picture is (0, 0, width, height).
        size: (width, height) in pixels that the box is resized to for the VAE.
        vl_size: the same for the vision language encoder; None for targets.
    """

    dataset: str
    path: str
    digest: str
    width: int
    height: int
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    vl_size: tuple[int, int] | None = None

    @property
    def whole(self) -> bool:
        """True if nothing is cropped away."""
        return self.box == (0.0, 0.0, float(self.width), float(self.height))

    @property
    def _box_for_keys(self) -> list[float] | None:
        return None if self.whole else [float(edge) for edge in self.box]

    @property
    def latent_key(self) -> str:
        """The key of this picture's latent row at this geometry."""
        return key_of({"picture": self.digest, "box": self._box_for_keys, "size": list(self.size)})

    @property
    def weight_key(self) -> str:
        """The key of the row of loss weights that this mask gives at this geometry."""
        return key_of({"mask": self.digest, "box": self._box_for_keys, "size": list(self.size)})

    @property
    def vl_part(self) -> dict[str, object]:
        """The picture's part of a prefix key: the input of the vision language encoder."""
        assert self.vl_size is not None, "only references are shown to the prompt encoder"
        return {
            "picture": self.digest,
            "box": self._box_for_keys,
            "size": list(self.vl_size),
        }


@dataclass(frozen=True, slots=True)
class Sample:
    """A pair: one target, one to three references in their order, one or more captions.

    Attributes:
        name: the target's path, or "<dataset id>:<path>" where two main datasets hold the path.
        group: the same for samples that take turns: one target with one reference at a time,
            of which an epoch shows one. "" for a sample that stands alone.
        mask: where the loss counts, and how much; in the target's geometry.
    """

    name: str
    dataset: str
    target: Picture
    references: tuple[Picture, ...]
    captions: tuple[str, ...]
    group: str = ""
    mask: Picture | None = None

    @property
    def prefix_key(self) -> str:
        """The key of the image prefix: the ordered references as the encoder sees them."""
        return key_of({"references": [picture.vl_part for picture in self.references]})

    def tail_key(self, caption: str) -> str:
        """Return the key of the text tail of `caption` after this sample's image prefix."""
        return key_of({"prefix": self.prefix_key, "caption": caption})
