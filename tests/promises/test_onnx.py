"""ONNX: the network is exported through the reference, and onnxruntime computes the same."""

import pytest
import torch
from promises.every_op import every_op, images

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_runs_in_onnxruntime(tmp_path):
    model, path = every_op(), tmp_path / "model.onnx"
    dynamic = ({0: torch.export.Dim("n", min=2, max=64)},)
    torch.onnx.export(model, (images(4),), path, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (argument.name for argument in session.get_inputs())
    for n in (4, 7):
        (y,) = session.run(None, {name: images(n).contiguous().numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(y), model(images(n)), rtol=1e-4, atol=1e-5)
