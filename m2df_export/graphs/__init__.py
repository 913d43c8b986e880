"""What is exported, and how it becomes ONNX."""
