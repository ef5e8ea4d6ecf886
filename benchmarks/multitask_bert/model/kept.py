"""The outputs of an encoder's frozen layers, made once for each input and kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.multitask_bert.model.packing import Packing

if TYPE_CHECKING:
    from benchmarks.multitask_bert.batches.tokens import Tokens
    from benchmarks.multitask_bert.model.encoder import MinBert

GIB = 2**30
MAX_BYTES = 2 * GIB


class KeptOutputs:
    """Keeps what the frozen layers of an encoder make of each input.

    Inputs go through these layers one at a time. Their outputs are therefore the same to the last
    bit whichever others are in the batch, and neither a resume, nor another bound, nor a run that
    went before changes a number.

    Args:
        max_bytes: of all that is kept. An input for which no room is left goes through the layers
            whenever it is asked for.

    Example:
        >>> from benchmarks.multitask_bert.batches.tokens import Tokens
        >>> from benchmarks.multitask_bert.model.encoder import EncoderConfig, MinBert
        >>> encoder = MinBert(EncoderConfig(vocab_size=9, hidden_size=4, num_layers=2, num_heads=1,
        ...                                 intermediate_size=8))
        >>> encoder.num_frozen = 1
        >>> ids, kept = torch.tensor([[5, 6, 7], [8, 0, 0]]), KeptOutputs()
        >>> kept.of(encoder, Tokens(ids, ids != 0)).shape, kept.num_bytes
        (torch.Size([4, 4]), 96)
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._outputs: dict[bytes, Tensor] = {}
        self._owner: object = None

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptOutputs:
        return self  # the copy of a model has the same frozen layers

    def belong_to(self, owner: object) -> None:
        """Forgets the outputs unless they are those of this owner.

        Args:
            owner: what tells frozen layers, and how they compute, from others.
        """
        if owner != self._owner:
            self._outputs.clear()
            self.num_bytes, self._owner = 0, owner

    def of(self, encoder: MinBert, tokens: Tokens) -> Tensor | None:  # [N, D]
        """Looks up or makes the outputs of a batch, of all its real tokens.

        Returns:
            None where a row has padding between its tokens: what its layers make of it depends on
            the batch. On a GPU its host waits for the token ids.
        """
        ids, mask = tokens.ids.cpu(), tokens.mask.cpu()
        if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            return None
        found = []
        for row, length in enumerate(mask.sum(1).tolist()):
            key = ids[row, :length].numpy().tobytes()
            outputs = self._outputs.get(key)
            if outputs is None:
                outputs = _make(encoder, tokens.ids[row, :length])
                num_bytes = len(key) + outputs.nbytes
                if self.num_bytes + num_bytes <= self.max_bytes:
                    self._outputs[key] = outputs
                    self.num_bytes += num_bytes
            found.append(outputs)
        return torch.cat(found)


def _make(
    encoder: MinBert,
    ids: Tensor,  # [L] int64
) -> Tensor:  # [L, D]
    # Tensors made in inference mode, as in an evaluation, cannot be trained on later.
    with torch.inference_mode(False), torch.no_grad():
        ids = ids[None].clone()
        return encoder.frozen_outputs(ids, Packing(ids.shape, None), None, None)
