"""From a trained checkpoint to a bundle: five ONNX graphs, each proved equal to torch before it is written."""
