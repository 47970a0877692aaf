"""Models with quantized activations against PyTorch, torchao and ONNX Runtime.

Layer by layer the codes and the sums of integers are the same, bit for bit. A whole model cannot
be: its attention and its norms are computed in float32 in another order, which moves an input by a
unit in the last place, which moves a code where a value lies at the edge of its step, and every
layer after it sees another rounding. So whole models are compared by perplexity, and the tolerance
is measured: it is that of our own model after a change of its embeddings by a millionth.
"""

import contextlib
import copy
import logging
import warnings

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch

import qlab
from qlab.activations import ActivationQuant, integer_linear
from qlab.calibrate import capture
from qlab.core import Scheme, from_codes
from qlab.export import OnnxModel, save_onnx
from qlab.nn import QuantLinear, linear_layers, weight_of

RNG = np.random.default_rng(0)
INPUTS = {
    "normal": RNG.normal(size=(50, 64)),
    "shifted": RNG.normal(size=(50, 64)) + 5,
    "heavy tails": RNG.standard_t(2, size=(50, 64)),
    "zeros": np.zeros((3, 64)),
    "ones": np.ones((3, 64)),
    "minus ones": -np.ones((3, 64)),
    "one outlier": np.eye(64) * 1e30,
    "huge": RNG.normal(size=(5, 64)) * 3e37,
    "tiny": RNG.normal(size=(5, 64)) * 1e-35,
    "one token": RNG.normal(size=(1, 64)),
    "one number": np.full((1, 64), 3.0),
}
INPUTS = {name: x.astype(np.float32) for name, x in INPUTS.items()}
each_input = pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)


# --- one layer -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dynamic_session():
    """DynamicQuantizeLinear and MatMulInteger, what `quantize_dynamic` puts for a MatMul."""
    import onnxruntime
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["codes", "w", "zero"], ["sums"]),
    ]
    ins = [("x", TensorProto.FLOAT), ("w", TensorProto.INT8)]
    outs = [
        ("codes", TensorProto.UINT8),
        ("scale", TensorProto.FLOAT),
        ("zero", TensorProto.UINT8),
        ("sums", TensorProto.INT32),
    ]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(n, t, [None, None]) for n, t in ins],
        [helper.make_tensor_value_info(n, t, None) for n, t in outs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString())


@each_input
def test_onnxruntime_dynamic_codes_and_sums_are_ours(dynamic_session, x):
    w = np.random.default_rng(1).integers(-127, 128, (64, 9)).astype(np.int8)
    codes, scale, zero, sums = dynamic_session.run(None, {"x": x, "w": w})
    ours = ActivationQuant(Scheme.parse("uint8-tensor")).quantize(torch.from_numpy(x))
    assert float(scale) == float(ours.scale)
    assert int(zero) == int(ours.zero_point)
    assert np.array_equal(codes, ours.codes.numpy())
    # With both scales 1 our product is the sum of integers itself.
    one = torch.ones(1, 1)
    a = from_codes(ours.codes, one, ours.zero_point, ours.scheme)
    b = from_codes(torch.from_numpy(w.T.copy()), torch.ones(9, 1), None, Scheme.parse("int8"))
    assert np.array_equal(integer_linear(a, b).numpy(), sums.astype(np.float32))


def test_a_subnormal_step_is_where_we_differ(dynamic_session):
    """ONNX Runtime lets the scale be subnormal, ours is at least the smallest normal float32."""
    x = (RNG.normal(size=(5, 64)) * 1e-40).astype(np.float32)
    scale = dynamic_session.run(["scale"], {"x": x, "w": np.zeros((64, 1), np.int8)})[0]
    ours = ActivationQuant(Scheme.parse("uint8-tensor")).quantize(torch.from_numpy(x))
    assert float(scale) < float(ours.scale) == 2.0**-126


@contextlib.contextmanager
def torch_engine(name):
    """PyTorch's quantized kernels of that name, and without the warning that they are deprecated:
    that they are is why we compare."""
    old = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.quantized.engine = old


# fbgemm and x86 reduce the range of activations to 7 bits, so that the sum of two products fits 16.
each_engine = pytest.mark.parametrize(
    "engine, inputs", [("qnnpack", "uint8-tensor"), ("fbgemm", "uint7-tensor")]
)


def torch_layer(engine):
    """torch's dynamic layer, and ours of the same weight, as a function of the inputs' scheme."""
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    weight = torch.randn(12, 64, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Sequential(torch.nn.Linear(64, 12, bias=False))
    model[0].weight.data = weight
    model = quantize_dynamic(model, {"0": per_channel_dynamic_qconfig}, torch.qint8)
    stored = model[0].weight()
    scale = stored.q_per_channel_scales().float()[:, None]
    same_up_to_ties(stored.int_repr(), weight)
    ours = from_codes(stored.int_repr(), scale, None, Scheme.parse("int8-full-channel"))
    return model, lambda word: QuantLinear(ours, None, ActivationQuant(Scheme.parse(word)))


def larger_than_their_smallest(weight):
    """Rows whose scale is above the smallest that PyTorch and torchao use."""
    return weight.abs().amax(1) > 127.5 * torch.finfo(torch.float32).eps


def same_up_to_ties(theirs, weight):
    """The codes are those of `int8-full-channel` or differ by one on a tie.

    The symmetric scale of PyTorch and torchao is the largest value over 127.5, which is what
    `full` means. They multiply by its inverse where we divide, so a tie may fall to the other side;
    and the largest value of each row is one, being 127.5 steps. Their smallest scale is float32's
    epsilon, so rows of smaller weights (dead ones) are left out.
    """
    usual = larger_than_their_smallest(weight)
    weight, theirs = weight[usual], theirs[usual]
    q = qlab.quantize(weight, "int8-full-channel")
    differ = theirs != q.codes
    y = (weight / q.scale)[differ].abs()
    assert ((y % 1 - 0.5).abs() < 2.0**-14).all()
    assert ((theirs.int() - q.codes.int()).abs() <= 1).all()


@each_engine
@pytest.mark.parametrize("name", [name for name in INPUTS if name != "tiny"])
def test_torch_dynamic_layer_is_ours(name, engine, inputs):
    x = torch.from_numpy(INPUTS[name])
    with torch_engine(engine):
        model, ours = torch_layer(engine)
        theirs = model(x)
    layer = ours(inputs)
    got = layer(x)
    # Beyond the largest float32 both are infinite.
    held = theirs.isfinite()
    assert torch.equal(got[~held], theirs[~held])
    # Their scale is computed in float64, so it may differ from ours in the last digit of float32,
    # which moves a code by one step where a value lies at an edge: allow that in 1% of the outputs.
    step = layer.activations.quantize(x).scale.item() * layer.weight.abs().max().item()
    difference = (got - theirs)[held].abs()
    rounding = 1e-5 * theirs[held].abs().max().item()
    assert (difference <= 1.01 * step + rounding).all()
    assert (difference <= rounding).float().mean() >= 0.99


@each_engine
def test_torch_has_a_smallest_step_of_activations(engine, inputs):
    """6.1e-5, SMALL_SCALE_THRESHOLD of its sources: what is far smaller becomes 0. Not ours."""
    x = torch.from_numpy(INPUTS["tiny"])
    with torch_engine(engine):
        model, ours = torch_layer(engine)
        assert (model(x) == 0).all()
    exact = x @ model[0].weight().dequantize().T
    assert qlab.sqnr(exact, ours(inputs)(x)) > 20


@each_input
def test_torchao_codes_are_ours(x):
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        quantize_affine,
    )

    x = torch.from_numpy(x)
    eps = torch.finfo(torch.float32).eps  # its smallest scale
    block = (1, x.shape[1])
    scale, zero = choose_qparams_affine(x, MappingType.SYMMETRIC, block, torch.int8, eps=eps)
    theirs = quantize_affine(x, block, scale, zero, torch.int8, -128, 127)
    q = ActivationQuant(Scheme.parse("int8-full-token")).quantize(x)
    usual = x.abs().amax(1) > 127.5 * eps
    assert torch.equal(q.scale[usual, 0], scale.flatten()[usual])
    same_up_to_ties(theirs[usual], x[usual])


# --- a whole model -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The storyteller as an ONNX file, some texts to measure and to calibrate on."""
    logging.getLogger().setLevel(logging.ERROR)  # ONNX Runtime advises to preprocess the graph
    story = qlab.story.load()
    file = tmp_path_factory.mktemp("onnx") / "story.onnx"
    save_onnx(story.model, file)
    return story, file, story.validation()[:6], story.calibration()[:3]


def measure(model, exported):
    story, _, texts, _ = exported
    # One text at a time: with a range for the whole batch, padding would count.
    return qlab.perplexity(model, story.tokenizer, texts, batch=1)


@pytest.fixture(scope="module")
def noise(exported):
    """Relative spread of our own perplexity over changes that no program could be blamed for."""
    story = exported[0]
    small, _ = qlab.quantize_model(
        story.model, "rtn", "int8-channel", activations="uint8-tensor", observer="dynamic"
    )
    values = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)

        def jitter(module, args, out, generator=generator):
            return out * (1 + 1e-6 * torch.randn(out.shape, generator=generator))

        hook = small.model.embed_tokens.register_forward_hook(jitter)
        values.append(measure(small, exported))
        hook.remove()
    return float(np.std(values, ddof=1) / np.mean(values))


def agree(ours, theirs, noise):
    """Within five standard deviations of the difference of two noisy numbers, at least 0.5%.

    Four values give the standard deviation to a factor of two or so, hence the floor.
    """
    return abs(ours / theirs - 1) <= max(5 * 2**0.5 * noise, 0.005)


def test_noise_is_noise(noise):
    assert 0 < noise < 0.005


def test_the_exported_file_computes_what_the_model_computes(exported):
    story, file, _, _ = exported
    model = OnnxModel(file, story.model.config)
    names = {node.name for node in onnx.load(file, load_external_data=False).graph.node}
    assert {name for name, _ in linear_layers(story.model, skip=())} <= names
    assert measure(model, exported) == pytest.approx(measure(story.model, exported), rel=1e-5)
    # Batch and length are free.
    ids = torch.randint(3, 4000, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = story.model(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_onnxruntime_dynamic(exported, noise, tmp_path):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    story, file, _, _ = exported
    out = tmp_path / "dynamic.onnx"
    quantize_dynamic(
        file,
        out,
        op_types_to_quantize=["MatMul"],  # else the table of embeddings gets one scale for all
        nodes_to_exclude=["lm_head"],
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    small, _ = qlab.quantize_model(
        story.model, "rtn", "int8-channel", activations="uint8-tensor", observer="dynamic"
    )
    same_weights(out, story.model, small)
    theirs = measure(OnnxModel(out, story.model.config), exported)
    assert agree(measure(small, exported), theirs, noise)


def same_weights(file, model, small):
    """The weight codes of the file are ours, all of them."""
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}
    matrices = {a.T.tobytes() for a in stored.values() if a.dtype == np.int8 and a.ndim == 2}
    for name, _ in linear_layers(model):
        assert small.get_submodule(name).qweight.codes.numpy().tobytes() in matrices, name


class Reader:
    """Calibration data as ONNX Runtime asks for it."""

    def __init__(self, calibration):
        self.batches = iter({"input_ids": ids.numpy()} for ids in calibration)

    def get_next(self):
        return next(self.batches, None)


@pytest.mark.engine("export onnx", "onnxruntime")
@pytest.mark.engine("method rtn", "onnxruntime")
def test_onnxruntime_static(exported, noise, tmp_path):
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    story, file, _, calibration = exported
    out = tmp_path / "static.onnx"
    quantize_static(
        file,
        out,
        Reader(calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=[name for name, _ in linear_layers(story.model)],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )
    small, _ = qlab.quantize_model(
        story.model, "rtn", "int8-channel", calibration, activations="uint8-tensor"
    )
    same_weights(out, story.model, small)
    # The ranges: each layer's input has the scale and the zero point of ours.
    graph = onnx.load(out).graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    quantized = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    feeds = {node.output[0]: node.input[0] for node in graph.node if "Dequantize" in node.op_type}
    seen = 0
    for node in graph.node:
        if node.name in dict(linear_layers(story.model)):
            layer = small.get_submodule(node.name)
            source = quantized[feeds[node.input[0]]]
            # The inputs differ in the last digits of float32 between the two programs.
            assert float(stored[source.input[1]]) == pytest.approx(
                layer.input_scale.item(), rel=1e-4
            )
            assert abs(int(stored[source.input[2]]) - layer.input_zero_point.item()) <= 1
            seen += 1
    assert seen == 28
    theirs = measure(OnnxModel(out, story.model.config), exported)
    assert agree(measure(small, exported), theirs, noise)


@each_engine
def test_torch_dynamic(exported, noise, engine, inputs):
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    story = exported[0]
    names = [name for name, _ in linear_layers(story.model)]
    with torch_engine(engine):
        model = quantize_dynamic(
            story.model, dict.fromkeys(names, per_channel_dynamic_qconfig), torch.qint8
        )
        theirs = measure(model, exported)
    small, _ = qlab.quantize_model(
        story.model, "rtn", "int8-full-channel", activations=inputs, observer="dynamic"
    )
    for name in names:
        stored = model.get_submodule(name).weight().int_repr()
        same_up_to_ties(stored, weight_of(story.model.get_submodule(name)))
    ours, exact = measure(small, exported), measure(story.model, exported)
    assert agree(ours, theirs, noise)
    if inputs == "uint7-tensor":
        # One bit less costs far more than the tolerance, so the agreement says something.
        assert theirs / exact - 1 > 3 * abs(ours / theirs - 1)


def test_torchao(exported, noise):
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    story = exported[0]
    names = {name for name, _ in linear_layers(story.model)}
    model = copy.deepcopy(story.model)
    quantize_(model, Int8DynamicActivationInt8WeightConfig(), filter_fn=lambda m, n: n in names)
    small, _ = qlab.quantize_model(
        story.model, "rtn", "int8-full-channel", activations="int8-full-token"
    )
    for name in names:
        weight = model.get_submodule(name).weight
        ours = small.get_submodule(name).qweight
        plain = weight_of(story.model.get_submodule(name))
        usual = larger_than_their_smallest(plain)
        assert usual.float().mean() > 0.5
        assert torch.equal(weight.scale.detach().reshape(-1, 1)[usual], ours.scale[usual])
        same_up_to_ties(weight.qdata, plain)
    assert agree(measure(small, exported), measure(model, exported), noise)


def test_the_ranges_of_a_static_model_come_from_its_inputs(exported):
    """The hooks of `capture` see what the layer multiplies: checked on the first layer by hand."""
    story, _, _, calibration = exported
    block = story.model.model.layers[0]
    with torch.no_grad():
        seen = [block.input_layernorm(story.model.model.embed_tokens(ids)) for ids in calibration]
    stats = capture(story.model, calibration, ["minmax"])["model.layers.0.self_attn.q_proj"]
    assert stats.minimum == min(float(x.min()) for x in seen)
    assert stats.maximum == max(float(x.max()) for x in seen)
    assert weight_of(block.self_attn.q_proj).shape == (256, 256)
