"""m2df runtime: show a camera an action one to five times and recognise it from then on.

Bundle, support bank, query to prediction, on numpy and one inference engine; no PyTorch.
"""

import os

# Whoever loads ONNX Runtime in this process later: its builds from PyPI write a device's id and a database of
# events into the user's cache, and try to send them, unless this is set before it loads.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.1.0"
