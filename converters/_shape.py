"""The sizes of a text model, by the names that the families' tables use."""

from __future__ import annotations

from dataclasses import dataclass

from converters._delta_rows import NO_DELTA, DeltaShape


@dataclass(frozen=True)
class Shape:
    """The sizes that the tensors follow; widths count numbers."""

    layers: int
    width: int
    ffn_width: int
    heads: int
    kv_heads: int
    head_width: int
    vocab: int
    experts: int = 0
    expert_width: int = 0
    shared_width: int = 0
    conv: int = 0
    ssm_inner: int = 0
    ssm_state: int = 0
    ssm_heads: int = 0
    ssm_groups: int = 0
    one: int = 1
    dense_layers: int = 0
    # of latent attention
    q_rank: int = 0
    kv_rank: int = 0
    rotated_width: int = 0
    plain_width: int = 0
    value_width: int = 0
    nothing: int = 0
    # of layers that differ
    input_width: int = 0
    owns_kv: int = 1
    owns_v: int = 1
    delta: DeltaShape = NO_DELTA

    @property
    def latent_key(self) -> int:
        """Rows of the projection to what is stored of a token."""
        return self.kv_rank + self.rotated_width

    @property
    def q_direct(self) -> int:
        """Rows of the query projection of a model whose queries have no latent."""
        return 0 if self.q_rank else self.heads * (self.plain_width + self.rotated_width)

    @property
    def q_indirect(self) -> int:
        """And of one whose queries do."""
        return self.heads * (self.plain_width + self.rotated_width) if self.q_rank else 0

    @property
    def heads_out(self) -> int:
        """Columns of the output projection."""
        return self.heads * self.value_width

    @property
    def q_width(self) -> int:
        """Rows of the query projection."""
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        """Rows of the key and of the value projection."""
        return self.kv_heads * self.head_width

    @property
    def qkv_width(self) -> int:
        """Rows of the three projections in one tensor."""
        return self.q_width + 2 * self.kv_width

    @property
    def two_ffn_width(self) -> int:
        """Rows of gate and up in one tensor."""
        return 2 * self.ffn_width

    @property
    def two_expert_width(self) -> int:
        """Rows of an expert's gate and up in one tensor."""
        return 2 * self.expert_width

    @property
    def inputs_width(self) -> int:
        """Width of what a token gives to all layers."""
        return self.layers * self.input_width

    @property
    def three_widths(self) -> int:
        """Rows of three vectors as wide as the model."""
        return 3 * self.width

    @property
    def two_q_width(self) -> int:
        """Rows of the query projection, with a gate behind each head."""
        return 2 * self.q_width

    def size(self, name: str) -> int:
        """A size by its name; those of linear attention begin with "delta."."""
        part, _, inner = name.rpartition(".")
        size: int = getattr(getattr(self, part) if part else self, inner)
        return size

    @property
    def ssm_conv(self) -> int:
        """Channels of Mamba-2's convolution: x, B and C."""
        return self.ssm_inner + 2 * self.ssm_groups * self.ssm_state

    @property
    def ssm_in(self) -> int:
        """Rows of its projection: the gate, those channels, a time step for each head."""
        return self.ssm_inner + self.ssm_conv + self.ssm_heads

    @property
    def ssm_group(self) -> int:
        """Dimensions that are normed together."""
        return self.ssm_inner // self.ssm_groups
