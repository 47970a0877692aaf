"""Bytes that each worker holds in training: data parallelism, and ZeRO's three stages.

For P parameters on N workers, in the usual mixed precision with AdamW:

    weights      2 P    bfloat16, what the forward and backward pass use
    gradients    2 P    bfloat16
    optimizer   12 P    float32: a master copy of the weights, two moments

    stage 0     2 P    +  2 P    +  12 P        every worker holds everything
    stage 1     2 P    +  2 P    +  12 P / N    the optimizer's state is sharded
    stage 2     2 P    +  2 P/N  +  12 P / N    the gradients too
    stage 3     2 P/N  +  2 P/N  +  12 P / N    the weights too

Offload moves a worker's share of the optimizer's state from the device to the memory of its host,
with its share of the gradients, which the step needs there; in stage 3 its share of the weights
too, if asked for. Activations, and buffers for messages, come on top.

Source: Rajbhandari et al. 2020 (arXiv 1910.02054), sections 3.1 and 5, figure 1; Ren et al. 2021
(arXiv 2101.06840) for offload. Chapter: Many machines: training and quantizing at scale.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlab.errors import QlabError

OFFLOADS = ("none", "optimizer", "optimizer and weights")


@dataclass(frozen=True)
class Precision:
    """Bytes a parameter of each of the three.

    Chapter: Many machines: training and quantizing at scale.
    """

    weight: float = 2
    gradient: float = 2
    optimizer: float = 12


MIXED = Precision()
FLOAT32 = Precision(4, 4, 8)  # no master copy: the weights are float32 already


@dataclass(frozen=True)
class Held:
    """Bytes of one worker.

    Attributes:
        weights, gradients, optimizer: on the device.
        host: in the memory of the host instead.

    Chapter: Many machines: training and quantizing at scale.
    """

    weights: float
    gradients: float
    optimizer: float
    host: float = 0.0

    @property
    def device(self) -> float:
        """Bytes on the device."""
        return self.weights + self.gradients + self.optimizer


def zero_memory(
    parameters: float,
    workers: int,
    stage: int,
    offload: str = "none",
    precision: Precision = MIXED,
) -> Held:
    """What each worker holds between two steps.

    Args:
        parameters: P.
        workers: N, at least 1.
        stage: 0 (plain data parallelism) to 3.
        offload: ``none``; ``optimizer``, from stage 2 on with the gradients (stage 1 has all of
            them on each device); ``optimizer and weights``, in stage 3.
        precision: bytes of a weight, a gradient and the optimizer's state.

    Raises: QlabError for a stage, an offload or a number of workers that does not exist, and for
        an offload that the stage does not allow.

    Chapter: Many machines: training and quantizing at scale.
    """
    if stage not in (0, 1, 2, 3):
        raise QlabError(f"stage {stage}: ZeRO has 1, 2 and 3, and 0 is none")
    if workers < 1 or parameters < 0:
        raise QlabError(f"{parameters} parameters on {workers} workers: count both from 1")
    if offload not in OFFLOADS:
        raise QlabError(f"unknown offload '{offload}': there are {', '.join(OFFLOADS)}")
    if offload != "none" and stage == 0:
        raise QlabError("offload needs a stage: without one there is no share to move")
    if offload == "optimizer and weights" and stage != 3:
        raise QlabError(f"stage {stage} holds all weights on each device: their offload is stage 3")
    weights = precision.weight * parameters / (workers if stage >= 3 else 1)
    gradients = precision.gradient * parameters / (workers if stage >= 2 else 1)
    optimizer = precision.optimizer * parameters / (workers if stage >= 1 else 1)
    host = 0.0
    if offload != "none":
        optimizer, host = 0.0, optimizer
        if stage >= 2:
            gradients, host = 0.0, host + gradients
    if offload == "optimizer and weights":
        weights, host = 0.0, host + weights
    return Held(weights, gradients, optimizer, host)
