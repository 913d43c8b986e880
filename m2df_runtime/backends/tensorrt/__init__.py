"""TensorRT engines: files, memory, execution."""
