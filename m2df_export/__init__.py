"""m2df export: checkpoint to bundle (ONNX graphs, precisions, parity report)."""
