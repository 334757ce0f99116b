"""Rows of the modulation table as training reads them."""

from __future__ import annotations

from jaxtyping import BFloat16
from torch import Tensor

from ...cache.store.store import Store
from ..models.checkpoint.checkpoint import Checkpoint
from ..models.timesteps import Bits, row_key
from ..models.transformer.modulation import ModulationWeights
from ..stores.bfloat16 import tensor_of


class ModulationRows:
    """Gives the row of a timestep: from the table, or, for one it lacks, from the weights.

    Noise levels below the table's lowest are rare but possible. Their rows are computed from
    the checkpoint, which reads a third of it, and kept in memory.
    """

    def __init__(self, table: Store, checkpoint: Checkpoint) -> None:
        self._table, self._checkpoint = table, checkpoint
        self._computed: dict[Bits, Tensor] = {}

    def __call__(self, bits: Bits) -> BFloat16[Tensor, "layer channel"]:
        key = row_key(bits)
        if key in self._table:
            return tensor_of(self._table.read(key))
        if bits not in self._computed:
            found = self._checkpoint
            weights = ModulationWeights(found.transformer, remember=found.remember)
            (self._computed[bits],) = weights.rows([bits])
        return self._computed[bits]
