"""Which processes share rows: consecutive ranks form a ring or a tensor-parallel group and see the same rows.

With 8 processes and a ring of 4, ranks 0 to 3 work on the rows of data-parallel rank 0 and ranks 4 to 7 on those of
data-parallel rank 1. Pure: imports neither torch nor DeepSpeed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The place of process ``rank`` among ``world``. Raises ValueError when the sizes do not divide ``world``."""

    rank: int
    world: int
    ring: int = 1  # --ring_attn_size: ranks that share a sequence
    tensor: int = 1  # --ds_tensor_parallel_size: ranks that share each weight matrix

    def __post_init__(self) -> None:
        if self.ring > 1 and self.tensor > 1:
            raise ValueError(
                f"--ring_attn_size {self.ring} and --ds_tensor_parallel_size {self.tensor} both divide the work on a "
                "row: leave one of them out"
            )
        if self.world % self.sharing:
            flag = "--ring_attn_size" if self.ring > 1 else "--ds_tensor_parallel_size"
            raise ValueError(
                f"{flag} {self.sharing} does not divide the {self.world} processes of this model: start a multiple "
                f"of {self.sharing}"
            )

    @property
    def sharing(self) -> int:
        """Ranks that see the same rows."""
        return self.ring * self.tensor

    @property
    def data_rank(self) -> int:
        """Whose rows this process sees: 0 … ``data_world`` − 1."""
        return self.rank // self.sharing

    @property
    def data_world(self) -> int:
        """Into how many parts the rows are divided."""
        return self.world // self.sharing

    @property
    def speaks(self) -> bool:
        """Whether this process is the first of those that share its rows: it counts them, so that they count once."""
        return self.rank % self.sharing == 0

    @property
    def writes(self) -> bool:
        """Whether this is the one process that writes files."""
        return self.rank == 0
