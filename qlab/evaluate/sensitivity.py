"""Sensitivity: how much does the model suffer when one layer, and no other, is quantized?

Measured, by perplexity and by the KL divergence to the model as it is; and guessed, by proxies that
need no run of the model for each layer:

    error     ‖X(Ŵ - W)ᵀ‖² / ‖XWᵀ‖²         of the layer's own output
    fisher    Σ g² (ŵ - w)² / 2            with g² the mean squared gradient of a text's loss
    hessian   tr(H) / n · ‖Ŵ - W‖² / 2      with H the loss's second derivative in the layer

Sources: Dong et al. 2019, HAWQ, arXiv 1905.03696, and 2020, HAWQ-V2, arXiv 1911.03852, for the
trace of the Hessian; Kim et al. 2024, SqueezeLLM, arXiv 2306.07629, for Fisher's information.

Chapter: Sensitivity and mixed precision.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qlab.blockwise import output_error
from qlab.calibrate import BlockRunner
from qlab.core import QTensor, Scheme
from qlab.errors import QlabError
from qlab.evaluate.perplexity import cut, score_texts
from qlab.methods import get_method
from qlab.nn import linear_layers, plain_layer, replace_layer, weight_of

PROXIES = ("error", "fisher", "hessian")


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one layer does.

    Attributes:
        layer: its name.
        scheme: of its weight.
        kl: divergence to the model as it is, mean over positions, in nats.
        perplexity: of the model with this one layer quantized.
        increase: relative to the perplexity of the model as it is.
        nbytes: of the quantized layer.
        weights: number of weights.
    """

    layer: str
    scheme: str
    kl: float
    perplexity: float
    increase: float
    nbytes: int
    weights: int


def layer_sensitivity(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    schemes: str | Sequence[str],
    *,
    method: str = "rtn",
    options: Any = None,
    layers: Sequence[str] | None = None,
    skip: tuple[str, ...] = ("lm_head",),
    jobs: int = 1,
    backend: str | None = None,
) -> list[Sensitivity]:
    """Quantize one layer at a time, in each scheme, and measure the whole model.

    The runs are independent, and go through joblib: ``jobs`` processes on this machine, or, with a
    registered ``backend`` such as Ray's or Dask's, on a cluster.

    Args:
        model: a transformers decoder; left as it is.
        texts: what is measured on.
        schemes: one or several.
        method: one that needs no calibration.
        layers: names; default: all linear layers but ``skip``.
        jobs: as joblib's ``n_jobs``; -1 is all cores.
        backend: as joblib's; None for its own.

    Returns: one row a layer and scheme, layers in the model's order.

    Raises: QlabError for an unknown layer, a method that needs calibration, or empty text.

    Chapter: Sensitivity and mixed precision.
    """
    from joblib import Parallel, delayed

    chosen = get_method(method)
    if chosen.needs_calibration:
        raise QlabError(
            f"method '{method}' is calibrated on a model whose other layers it quantizes: "
            "measure sensitivity with 'rtn', 'mse' or another that needs no data"
        )
    words = [Scheme.parse(s).name for s in ([schemes] if isinstance(schemes, str) else schemes)]
    known = [name for name, _ in linear_layers(model, skip)]
    names = known if layers is None else list(layers)
    if unknown := [name for name in names if name not in known]:
        raise QlabError(f"no linear layer '{unknown[0]}': there are {', '.join(known[:3])}, ...")
    reference = _reference(model, tokenizer, texts)
    work = [(name, word) for name in names for word in words]
    run = Parallel(n_jobs=jobs, backend=backend)
    rows: list[Sensitivity] = run(
        delayed(_one)(model, tokenizer, list(texts), name, word, method, options, reference)
        for name, word in work
    )
    return rows


@dataclass(frozen=True)
class _Reference:
    """The model as it is: log-probabilities of each window, and its perplexity."""

    log_probs: list[torch.Tensor]
    perplexity: float


def _reference(model: Any, tokenizer: Any, texts: Sequence[str]) -> _Reference:
    scores = score_texts(model, tokenizer, texts)
    ppl = math.exp(sum(s.nll for s in scores) / sum(s.tokens for s in scores))
    return _Reference(_log_probs(model, tokenizer, texts), ppl)


@torch.no_grad()
def _log_probs(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[torch.Tensor]:
    context = int(getattr(model.config, "max_position_embeddings", 2048))
    windows = [w for text in texts for w in cut(tokenizer, text, context)]
    return [
        torch.log_softmax(model(input_ids=torch.tensor([w.ids])).logits[0].float(), -1)
        for w in windows
    ]


def _one(
    model: Any,
    tokenizer: Any,
    texts: list[str],
    name: str,
    word: str,
    method: str,
    options: Any,
    reference: _Reference,
) -> Sensitivity:
    """One layer in one scheme."""
    layer = model.get_submodule(name)
    chosen = get_method(method)
    q = chosen.quantize(weight_of(layer), None, Scheme.parse(word), options or chosen.options())
    changed = _with_layer(model, name, q)
    kl, nll, tokens = 0.0, 0.0, 0
    context = int(getattr(model.config, "max_position_embeddings", 2048))
    windows = [w for text in texts for w in cut(tokenizer, text, context)]
    found = _log_probs(changed, tokenizer, texts)
    positions = 0
    for window, p, now in zip(windows, reference.log_probs, found, strict=True):
        kl += float((p.exp() * (p - now))[:-1].sum(-1).double().sum())
        positions += len(window.ids) - 1
        ids = torch.tensor(window.ids)
        first = len(ids) - window.scored
        nll -= float(now[first - 1 : -1].gather(1, ids[first:, None]).double().sum())
        tokens += window.scored
    ppl = math.exp(nll / tokens)
    return Sensitivity(
        name,
        q.scheme.name,
        kl / positions,
        ppl,
        ppl / reference.perplexity - 1,
        q.nbytes,
        layer.weight.numel(),
    )


def _with_layer(model: Any, name: str, q: QTensor) -> Any:
    """A model that shares everything with ``model`` but one layer, which computes with Ŵ."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    changed = copy.deepcopy(model, memo)
    replace_layer(changed, name, plain_layer(q, model.get_submodule(name).bias))
    return changed


def proxies(
    model: Any,
    calibration: Sequence[torch.Tensor],
    scheme: str,
    *,
    method: str = "rtn",
    which: Sequence[str] = PROXIES,
    skip: tuple[str, ...] = ("lm_head",),
    probes: int = 8,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Guesses of each layer's sensitivity: proxy -> layer -> value. Larger is more sensitive.

    Args:
        calibration: token ids, int64 (1, length) each.
        which: of ``PROXIES``.
        probes: random vectors of the estimate of the trace (Hutchinson), spread over the samples.

    Raises: QlabError for an unknown proxy or no data.

    Chapter: Sensitivity and mixed precision.
    """
    if unknown := set(which) - set(PROXIES):
        raise QlabError(f"unknown proxy '{min(unknown)}': there are {', '.join(PROXIES)}")
    if not calibration:
        raise QlabError("proxies need calibration data: pass story.calibration()")
    chosen = get_method(method)
    layers = dict(linear_layers(model, skip))
    quantized = {
        name: chosen.quantize(weight_of(layer), None, Scheme.parse(scheme), chosen.options())
        for name, layer in layers.items()
    }
    delta = {
        name: (q.dequantize() - weight_of(layers[name])).float() for name, q in quantized.items()
    }
    found: dict[str, dict[str, float]] = {}
    if "error" in which:
        found["error"] = {}
        for block in BlockRunner(model, calibration, skip=skip):
            names = [name for name, _ in block.linear_layers()]
            for name, inputs in block.gather(names, ("hessian",)).items():
                full = block.full_name(name)
                weight = weight_of(layers[full])
                found["error"][full] = output_error(weight, quantized[full], inputs.hessian) or 0.0
    if "fisher" in which:
        squares = mean_squared_gradients(model, calibration, list(layers))
        found["fisher"] = {
            name: 0.5 * float((squares[name] * delta[name].square()).sum()) for name in layers
        }
    if "hessian" in which:
        traces = hessian_traces(model, calibration, list(layers), probes, seed)
        found["hessian"] = {
            name: 0.5 * traces[name] / delta[name].numel() * float(delta[name].square().sum())
            for name in layers
        }
    return found


def mean_squared_gradients(
    model: Any, calibration: Sequence[torch.Tensor], layers: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Mean over samples of the squared gradient of the summed loss of a sample, divided by its
    tokens: the diagonal of the empirical Fisher information, float32 (out, in) a layer."""
    twin = _trainable(model, layers)
    weights = {name: twin.get_submodule(name).weight for name in layers}
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    for ids in calibration:
        loss = twin(input_ids=ids, labels=ids).loss
        tokens = ids.numel() - 1
        for name, g in zip(layers, torch.autograd.grad(loss, list(weights.values())), strict=True):
            total[name] += g.square() * tokens  # loss is a mean: (tokens · g)² / tokens
    return {name: _oriented(twin, name, t / len(calibration)) for name, t in total.items()}


def hessian_traces(
    model: Any,
    calibration: Sequence[torch.Tensor],
    layers: Sequence[str],
    probes: int = 8,
    seed: int = 0,
) -> dict[str, float]:
    """Estimated trace of the Hessian of the mean loss in each layer's weight (Hutchinson).

    With v of random signs, E[vᵀ H v] = tr(H). One product H v costs two backward passes. A mixed
    term of two layers has mean zero, so one vector serves all layers at once.
    """
    twin = _trainable(model, layers)
    # The fused attention has no second derivative.
    twin.config._attn_implementation = "eager"
    weights = [twin.get_submodule(name).weight for name in layers]
    random = torch.Generator().manual_seed(seed)
    total = dict.fromkeys(layers, 0.0)
    for probe in range(probes):
        ids = calibration[probe % len(calibration)]
        loss = twin(input_ids=ids, labels=ids).loss
        grads = torch.autograd.grad(loss, weights, create_graph=True)
        signs = [torch.randint(0, 2, w.shape, generator=random).float() * 2 - 1 for w in weights]
        dot = sum((g * v).sum() for g, v in zip(grads, signs, strict=True))
        for name, v, hv in zip(layers, signs, torch.autograd.grad(dot, weights), strict=True):
            total[name] += float((v * hv).sum()) / probes
    return total


def _trainable(model: Any, layers: Sequence[str]) -> Any:
    """A copy in which only these layers' weights have gradients."""
    twin = copy.deepcopy(model).float().eval()
    twin.requires_grad_(False)
    for name in layers:
        twin.get_submodule(name).weight.requires_grad_(True)
    return twin


def _oriented(model: Any, name: str, value: torch.Tensor) -> torch.Tensor:
    """As (out_features, in_features)."""
    return value.T if type(model.get_submodule(name)).__name__ == "Conv1D" else value


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's: 1 if both put the layers in the same order, -1 in the opposite one."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)
