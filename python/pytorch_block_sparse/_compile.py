# SPDX-License-Identifier: Apache-2.0
"""Lets one compiled graph serve layers of different numbers of blocks.

Layers compiled one by one (`torch.compile` on each block of a model) share their code, and
torch.compile recompiles it for each new shape of a parameter, eight times; then it gives up. Shapes
of parameters are never made dynamic unless `torch.compiler.config.dynamic_sources` names them, so
this module adds the tensors of a `BlockSparseMatrix` that is the `weight` of a layer. To have them
static again, remove `DYNAMIC_SOURCES` from that setting.
"""

from __future__ import annotations

from typing import Any

import torch.compiler.config

#: Matches what torch.compile calls values and index tensors: `…_modules['weight']`, then
#: `._parameters['values']` or, in newer versions, `.__dict__['_parameters']['values']`.
DYNAMIC_SOURCES = (
    r".*\._modules\['weight'\]\.(_parameters|__dict__\['_parameters'\])\['values'\],"
    r".*\._modules\['weight'\]\.(_buffers|__dict__\['_buffers'\])"
    r"\['(col_indices|block_ids|row_indices|t_block_ids|plan|packed_index)'\]"
)

_config: Any = torch.compiler.config
_config.dynamic_sources = ",".join(filter(None, (_config.dynamic_sources, DYNAMIC_SOURCES)))
