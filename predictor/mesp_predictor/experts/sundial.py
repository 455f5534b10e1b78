"""The family of Sundial: a small network that learns on a processor, and published weights as they are.

The published network (thuml/sundial-base-128m, 128 million parameters) forecasts at once from its own directory,
`config.json` and `model.safetensors` as downloaded, at a few series a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pydantic import Field, ValidationError

from mesp.errors import InputError
from mesp_predictor.experts.sequence import SequenceSettings, load_weights, read_config, sequence_family
from mesp_predictor.experts.sundial_network import SundialConfig, SundialNetwork

if TYPE_CHECKING:
    from pathlib import Path

#: What keys that a published `config.json` leaves out stand for: the values of the base model.
_BASE: Final = {
    "output_token_lens": [720],
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "dropout_rate": 0.1,
    "flow_loss_depth": 3,
    "num_sampling_steps": 50,
    "squash": False,
}

#: Steps that published weights are shown; they learned from up to 2880, at six times the cost.
PUBLISHED_CONTEXT: Final = 512


class SundialSettings(SequenceSettings):
    """Settings of a training; a directory under `pretrained` brings its own network."""

    network: SundialConfig = Field(SundialConfig(), description="Shape of a new network.")


def _small(settings: SundialSettings) -> SundialNetwork:
    return SundialNetwork(settings.network, settings.context)


def _rebuild(config: dict[str, Any], context: int) -> SundialNetwork:
    return SundialNetwork(SundialConfig.model_validate(config), context)


def _published(directory: Path) -> SundialNetwork:
    path = directory / "config.json"
    told = read_config(directory)
    known = {key: told[key] for key in SundialConfig.model_fields if key in told}
    try:
        shape = SundialConfig.model_validate(_BASE | known)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg']}") from error
    network = SundialNetwork(shape, PUBLISHED_CONTEXT)
    load_weights(network, directory / "model.safetensors")
    return network


SUNDIAL = sequence_family(
    smoke=SundialSettings(
        context=64,
        steps=60,
        batch=16,
        network=SundialConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, flow_loss_depth=1
        ),
    ),
    network=SundialNetwork,
    small=_small,
    rebuild=_rebuild,
    published=_published,
)
