"""Quantize the layers of a model on many workers, through joblib.

A layer's codes depend on its weight and on what calibration learned of its inputs, and on nothing
else. If these inputs are those of the model before quantization, layers wait for no other, and
each is one task. (``quantize_model`` takes the inputs that the quantized layers before make, which
is better and goes block after block.)

joblib runs the tasks on processes of this machine (``loky``). The same call runs on a cluster when
its backend is registered: ``ray.util.joblib.register_ray()`` and ``backend="ray"``, or a
``dask.distributed.Client`` and ``backend="dask"``.

Chapter: Many machines: training and quantizing at scale.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch

from qlab.calibrate import BlockRunner, LayerInputs
from qlab.core import QTensor, Scheme
from qlab.errors import QlabError
from qlab.methods import get_method
from qlab.nn import QuantLinear, linear_layers, replace_layer, weight_of


def quantize_on_workers(
    model: torch.nn.Module,
    method: str = "rtn",
    scheme: str | Scheme = "int4-g128",
    calibration: Sequence[torch.Tensor] | None = None,
    *,
    jobs: int = 2,
    backend: str = "loky",
    options: Any = None,
    skip: tuple[str, ...] = ("lm_head",),
) -> tuple[Any, dict[str, float]]:
    """Quantize the linear layers of a decoder, each as a task of its own.

    Args:
        model: left as it is.
        method: of ``qlab.methods``, one that sees a layer at a time.
        scheme: of the weights.
        calibration: token ids, int64 (1, length) each, for methods that need data. The inputs are
            gathered here, before the tasks start.
        jobs: workers at a time.
        backend: joblib's: ``loky`` (processes), ``threading``, ``sequential``; ``ray`` or ``dask``
            once registered.
        options: the method's.
        skip: last names of layers to leave alone.

    Returns: a copy of the model with QuantLinear layers, the same whatever jobs and backend are;
        and the seconds of each task on its worker.

    Raises: QlabError for an unknown method, scheme or backend, missing calibration data, a method
        that treats the model as a whole, or a layer that cannot be quantized (named).

    Chapter: Many machines: training and quantizing at scale.
    """
    import joblib

    chosen, scheme = get_method(method), Scheme.parse(scheme)
    settings = chosen.options_from(options)
    if chosen.prepare is not None or scheme.granularity.kind == "global":
        raise QlabError(
            f"method '{method}' with scheme '{scheme}' looks at several layers at once: "
            "use quantize_model"
        )
    needs = chosen.needs_of(settings) if chosen.needs_calibration else ()
    if "cross" in needs:
        raise QlabError(f"method '{method}' compares with quantized layers: use quantize_model")
    if chosen.needs_calibration and not calibration:
        raise QlabError(f"method '{method}' needs calibration data: pass calibration=...")
    small = copy.deepcopy(model)
    layers = dict(linear_layers(small, skip))
    if not layers:
        raise QlabError("the model has no linear layers to quantize")
    known = gathered(small, calibration or (), needs, skip) if needs else {}
    tasks = (
        joblib.delayed(one_layer)(name, weight_of(layer), known.get(name), method, scheme, settings)
        for name, layer in layers.items()
    )
    try:
        with joblib.parallel_config(backend=backend, n_jobs=jobs):
            done = joblib.Parallel()(tasks)
    except ValueError as error:
        raise QlabError(
            f"joblib has no backend '{backend}' ({error}): use loky, or register it first"
        ) from None
    for name, q, _ in done:
        layer: Any = layers[name]
        replace_layer(small, name, QuantLinear(q, layer.bias))
    return small, {name: seconds for name, _, seconds in done}


def one_layer(
    name: str,
    weight: torch.Tensor,
    inputs: LayerInputs | None,
    method: str,
    scheme: Scheme,
    options: Any,
) -> tuple[str, QTensor, float]:
    """What a worker does: (name, codes, seconds). One thread, since the workers are many.

    Raises: QlabError naming the layer.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.perf_counter()
    try:
        q = get_method(method).quantize(weight, inputs, scheme, options)
    except QlabError as error:
        raise QlabError(f"layer '{name}': {error}") from None
    finally:
        torch.set_num_threads(threads)
    return name, q, time.perf_counter() - began


def gathered(
    model: torch.nn.Module,
    calibration: Sequence[torch.Tensor],
    needs: Sequence[str],
    skip: tuple[str, ...] = ("lm_head",),
) -> dict[str, LayerInputs]:
    """Layer name -> what the model as it is says of its inputs, of all layers in the blocks.

    Layers that share an input share one object.
    """
    found = {}
    for block in BlockRunner(model, calibration, skip=skip):
        for group in block.groups():
            for name, inputs in block.gather(group.layers, tuple(needs)).items():
                found[block.full_name(name)] = inputs
    return found
