"""Which samples cannot be trained on yet, and what to type about it."""

from __future__ import annotations

from dataclasses import dataclass

from ..cache.errors import NotComplete


@dataclass(frozen=True, slots=True)
class Missing:
    """Names of samples whose latents or embeds are not cached yet."""

    latents: tuple[str, ...]
    embeds: tuple[str, ...]
    flavour: str
    embeds_beside: str = ""

    def refuse(self, total: int, *, then: str) -> None:
        """Raise NotComplete, naming the first sample and the command to type, if any is missing."""
        for names, what, command, beside in (
            (self.latents, "latents", "qedit cache-vae", ""),
            (self.embeds, "embeds", "qedit cache-embeds", self.embeds_beside),
        ):
            if names:
                have = "has" if len(names) == 1 else "have"
                raise NotComplete(
                    f"{len(names)} of {total} samples {have} no {what} for {self.flavour} yet, "
                    f"the first is {names[0]}{beside}.",
                    f"Run `{command}`, then `{then}` again.",
                )
