"""The architecture of amazon/chronos-bolt-tiny with random weights: a yardstick for speed, which forecasts nothing.

What a forecast costs does not depend on the weights' values, so none need be downloaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from chronos.chronos_bolt import ChronosBoltModelForForecasting  # type: ignore[import-untyped]
from transformers import T5Config

if TYPE_CHECKING:
    from mesp.types import FloatArray

#: `config.json` of the published weights, as far as it bears on the work done (8.65 million parameters).
CONFIG: Final[dict[str, Any]] = {
    "d_model": 256,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "num_heads": 4,
    "feed_forward_proj": "relu",
    "initializer_factor": 0.05,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "chronos_config": {
        "context_length": 2048,
        "prediction_length": 64,
        "input_patch_size": 16,
        "input_patch_stride": 16,
        "quantiles": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        "use_reg_token": True,
    },
}

#: Series in one batch; 256 to 1,024 are about equally fast.
BATCH: Final = 256


class BoltTiny:
    """The network, in the library's own code."""

    def __init__(self) -> None:
        """Draws its weights, always the same ones."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model: Any = ChronosBoltModelForForecasting(T5Config(**CONFIG)).eval()

    def quantiles(self, counts: FloatArray) -> FloatArray:
        """What it answers for counts (R, C), the published 64 steps and nine levels: (R, 9, 64)."""
        with torch.inference_mode():
            batches = torch.from_numpy(counts).split(BATCH)
            return torch.cat([self.model(context=batch).quantile_preds for batch in batches]).numpy()
