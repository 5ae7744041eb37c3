"""ONNX classifiers and regressors of several makers, repaired, and then run by ONNX Runtime alone."""

import logging
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_diabetes, load_wine
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import nn

import isthmus
from isthmus.errors import InputError
from isthmus.nets.onnx_model import OnnxModel
from isthmus.patch.graft import patches, ungraft


def converted(model, x, **options):
    from skl2onnx import to_onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            return to_onnx(model, x[:1], **options)
        finally:
            logging.disable(logging.NOTSET)


def fitted(model, x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        return model.fit(x, y)


def run(proto, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: x}), strict=True))


def require_same_weights(before, after):
    """Every initializer and every node's attributes are there, byte for byte."""
    held = {tensor.name: tensor.SerializeToString() for tensor in after.graph.initializer}
    for tensor in before.graph.initializer:
        assert held[tensor.name] == tensor.SerializeToString()
    new = {node.name: node for node in after.graph.node if not node.name.startswith("isthmus/")}
    assert len(new) == len(before.graph.node)
    for node in before.graph.node:
        kept = [attribute.SerializeToString() for attribute in new[node.name].attribute]
        assert kept == [attribute.SerializeToString() for attribute in node.attribute]


@pytest.fixture(scope="module")
def wine():
    x, y = load_wine(return_X_y=True)
    names = np.array(["Barolo", "Grignolino", "Barbera"])
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], names[y[order]], y[order]


CLASSIFIERS = {
    "mlp": lambda: MLPClassifier((6,), max_iter=20, random_state=0),
    "trees": lambda: GradientBoostingClassifier(
        n_estimators=1, max_depth=1, learning_rate=0.01, random_state=0
    ),
    "logistic": lambda: LogisticRegression(max_iter=3),
}


@pytest.mark.parametrize("zipmap", [False, True], ids=["tensor", "zipmap"])
@pytest.mark.parametrize("named", [False, True], ids=["numbers", "names"])
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classifiers(wine, kind, named, zipmap):
    x, names, numbers = wine
    y = names if named else numbers
    dtype = np.float64 if kind == "mlp" and named and not zipmap else np.float32
    x = x.astype(dtype)
    model = fitted(CLASSIFIERS[kind](), x[:80], y[:80])
    proto = converted(model, x, **({} if zipmap else {"options": {"zipmap": False}}))
    label = proto.graph.output[0].name
    before = run(proto, x)
    assert (before[label][:80] != y[:80]).any()
    found = isthmus.patch(proto, (x[:80], y[:80].tolist()), reference=x[80:])
    assert found.repaired == found.proven == (before[label][:80] != y[:80]).sum()
    after = run(found.model.proto, x)
    assert list(after) == list(before)
    assert (after[label][:80] == y[:80]).all()
    kept = found.task.kept.x.numpy()
    for one, two in zip(run(proto, kept).values(), run(found.model.proto, kept).values(), strict=True):
        assert list(one) == list(two) if isinstance(one, list) else np.array_equal(one, two)
    require_same_weights(proto, found.model.proto)
    scores = after[proto.graph.output[1].name]
    if zipmap:
        assert all(max(row, key=row.get) == wanted for row, wanted in zip(scores[:80], y[:80], strict=True))
    else:
        np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
        assert (np.array(sorted(set(y.tolist())))[scores[:80].argmax(1)] == y[:80]).all()


@pytest.mark.parametrize("kind", ["trees", "mlp"])
def test_regressors(kind):
    x, y = load_diabetes(return_X_y=True)
    x = x.astype(np.float32)
    models = {
        "trees": GradientBoostingRegressor(n_estimators=5, random_state=0),
        "mlp": MLPRegressor(hidden_layer_sizes=(8,), max_iter=30, random_state=0),
    }
    proto = converted(fitted(models[kind], x, y), x)
    found = isthmus.patch(proto, isthmus.from_arrays(x[:30], y[:30], task="regression"), reference=x[30:])
    assert found.repaired == found.proven == 30
    (output,) = run(found.model.proto, x[:30]).values()
    assert np.abs(output[:, 0].astype(np.float64) - y[:30]).max() <= np.finfo(np.float32).eps * y.max()
    kept = found.task.kept.x.numpy()
    assert np.array_equal(*(next(iter(run(each, kept).values())) for each in (proto, found.model.proto)))
    require_same_weights(proto, found.model.proto)


def test_a_patch_on_a_patch_and_both_taken_out(wine):
    x, names, _ = wine
    x = x.astype(np.float32)
    proto = converted(fitted(CLASSIFIERS["mlp"](), x[:80], names[:80]), x)
    first = isthmus.patch(proto, (x[:40], names[:40].tolist()), reference=x[80:])
    others = np.concatenate([x[:40], x[80:]])
    second = isthmus.patch(first.model, (x[40:80], names[40:80].tolist()), reference=others)
    assert patches(second.model.proto) == 2
    labels = run(second.model.proto, x[:80])["output_label"]
    assert (labels[40:] == names[40:80]).all()
    require_same_weights(proto, second.model.proto)
    back = ungraft(ungraft(second.model.proto))
    assert patches(back) == 0
    nodes = [{node.SerializeToString() for node in each.graph.node} for each in (proto, back)]
    assert nodes[0] == nodes[1]
    assert list(back.graph.initializer) == list(proto.graph.initializer)


def test_a_network_from_torch_with_its_weights_in_a_file_beside_it(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    ).eval()
    x, y = torch.rand(60, 1, 8, 8), torch.randint(0, 3, (20,))
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (x[:2],), dynamo=True, verbose=False)  # batches of two, always
    program.save(str(path), external_data=True)
    assert (tmp_path / "net.onnx.data").exists()
    data = isthmus.from_arrays(x[:20].flatten(1), y)  # rows take the shape that the graph declares
    found = isthmus.patch(str(path), data, reference=x[20:])
    assert found.repaired == found.proven == len(found.task.cases.wrong) > 5
    out = tmp_path / "repaired.onnx"
    backend = isthmus.export_onnx(found, out)
    assert (backend.name, backend.wrong, backend.rows) == ("onnxruntime", 0, 20)
    session = onnxruntime.InferenceSession(out.read_bytes(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: part.numpy()})[0] for part in x[:20].split(2)]
    assert np.array_equal(np.concatenate(parts).argmax(1), y.numpy())
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(out)).graph.initializer}
    for key, value in before.items():
        assert value.tobytes() == after[key].tobytes()


def linear(outputs, inputs=4, input_kind=TensorProto.FLOAT, opset=13, flat=False, more=()):
    """A graph by hand: y = W x, perhaps of a vector, with further outputs."""
    random = np.random.default_rng(0)
    weight = numpy_helper.from_array(random.normal(size=(inputs, outputs)).astype(np.float32), "W")
    nodes = [helper.make_node("Cast", ["x"], ["c"], to=TensorProto.FLOAT, name="cast")]
    nodes.append(helper.make_node("MatMul", ["c", "W"], ["m" if flat else "y"], name="times"))
    held = [weight]
    if flat:
        held.append(numpy_helper.from_array(np.array([-1]), "one"))
        nodes.append(helper.make_node("Reshape", ["m", "one"], ["y"], name="flat"))
    nodes += [node for node, _ in more]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", input_kind, ["N", inputs])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"] if flat else ["N", outputs]),
            *(entry for _, entry in more),
        ],
        held,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def test_a_regressor_of_plain_vectors_and_integers():
    proto = linear(1, input_kind=TensorProto.INT64, flat=True)
    random = np.random.default_rng(1)
    x = random.integers(-9, 10, (60, 4))
    y = random.normal(size=10)
    found = isthmus.patch(proto, isthmus.from_arrays(x[:10], y, task="regression"), reference=x[10:])
    output = run(found.model.proto, x[:10])["y"]
    assert output.shape == (10,)
    assert np.abs(output - y).max() <= found.certificate.tolerance
    with pytest.raises(InputError, match="takes integers"):
        isthmus.patch(proto, isthmus.from_arrays(x[:10] + 0.5, y, task="regression"))


def test_inner_graphs_see_the_model_as_it_was():
    """An If reads the scores from within; it goes on with the old ones."""
    branch = helper.make_graph(
        [helper.make_node("Identity", ["y"], ["inner"], name="inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["N", 3])],
    )
    always = helper.make_node(
        "Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)), name="yes"
    )
    choice = helper.make_node("If", ["yes"], ["old"], then_branch=branch, else_branch=branch, name="if")
    read = helper.make_node("ArgMax", ["old"], ["index"], axis=1, keepdims=0, name="best")
    told = helper.make_node("Gather", ["names", "index"], ["label"], name="look")
    entry = helper.make_tensor_value_info("label", TensorProto.INT64, ["N"])
    proto = linear(3, more=[(always, entry), (choice, entry), (read, entry), (told, entry)])
    del proto.graph.output[2:]
    proto.graph.initializer.append(numpy_helper.from_array(np.array([10, 20, 30]), "names"))
    onnx.checker.check_model(proto)
    random = np.random.default_rng(1)
    x = random.normal(size=(50, 4)).astype(np.float32)
    y = random.choice([10, 20, 30], 12)
    found = isthmus.patch(proto, (x[:12], y), reference=x[12:])
    after = run(found.model.proto, x[:12])
    assert (after["label"] == y).all()
    assert (np.array([10, 20, 30])[after["y"].argmax(1)] == y).all()


def test_graphs_that_cannot_be_repaired(tmp_path):
    def said(proto, match):
        with pytest.raises(InputError, match=match) as refusal:
            OnnxModel(proto, "the model")
        assert str(refusal.value).endswith(".")

    said(linear(2, opset=8), "opset 8; convert it to 9")
    said(linear(2, input_kind=TensorProto.STRING), "not a tensor of numbers")
    label = (
        helper.make_node("ArgMax", ["y"], ["l"], axis=1, keepdims=0, name="best"),
        helper.make_tensor_value_info("l", TensorProto.INT64, ["N"]),
    )
    said(linear(2, more=[label]), "no node says which labels")
    twice = (
        helper.make_node("Neg", ["y"], ["z"], name="neg"),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 2]),
    )
    said(linear(2, more=[twice]), "outputs y, z")
    two = linear(2)
    two.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]))
    said(two, "inputs x, w")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x99not a model")
    with pytest.raises(InputError, match="not a sound ONNX file"):
        isthmus.patch(str(broken), (np.zeros((1, 4)), [0]))


@pytest.mark.parametrize("kind", ["bagging", "neighbors", "stumps"])
def test_names_that_other_nodes_hold_as_well(kind):
    """Inner estimators, and rows that are looked up, have vectors of ints of their own."""
    from sklearn.datasets import make_classification
    from sklearn.ensemble import BaggingClassifier, RandomForestClassifier
    from sklearn.neighbors import KNeighborsClassifier

    x, y = make_classification(500, 12, n_informative=8, n_classes=3, random_state=1)
    x, y = x.astype(np.float32), y + 1
    models = {
        "bagging": BaggingClassifier(n_estimators=3, random_state=0),
        "neighbors": KNeighborsClassifier(3),
        "stumps": RandomForestClassifier(5, random_state=0),
    }
    model = models[kind].fit(x[:300], y[:300])
    proto = converted(model, x, options={id(model): {"zipmap": False}}, target_opset=18)
    wanted = np.where(run(proto, x[300:340])["label"] == 1, 2, 1)
    found = isthmus.patch(proto, (x[300:340], wanted), reference=x[340:])
    after = run(found.model.proto, x[300:340])
    assert (after["label"] == wanted).all()
    assert (model.classes_[after["probabilities"].argmax(1)] == wanted).all()
    np.testing.assert_allclose(after["probabilities"].sum(1), 1, rtol=1e-5)


def test_a_graph_whose_labels_contradict_its_scores():
    """A binary support vector machine gives its votes in the other order."""
    from sklearn.datasets import make_classification
    from sklearn.svm import SVC

    x, y = make_classification(300, 6, random_state=1)
    x = x.astype(np.float32)
    model = SVC().fit(x[:200], y[:200])
    proto = converted(model, x, options={id(model): {"zipmap": False}})
    with pytest.raises(InputError, match="labels are not those of the largest"):
        isthmus.patch(proto, (x[200:], 1 - y[200:]))


def test_inputs_that_are_no_numbers_are_left_to_the_model(wine):
    x, _, numbers = wine
    x = x.astype(np.float32)
    proto = linear(3, inputs=13, more=[])
    found = isthmus.patch(proto, (x[:60], numbers[:60]), reference=x[60:])
    strange = x[:4].copy()
    strange[0, 0], strange[1, 1], strange[2, 2] = np.nan, np.inf, -np.inf
    strange[3] = 0.0
    before, after = run(proto, strange)["y"], run(found.model.proto, strange)["y"]
    assert before.tobytes() == after.tobytes()
