"""m2df runtime: show a camera an action one to five times and recognise it from then on.

Bundle, support bank, query to prediction, on numpy and one inference engine; no PyTorch.
"""

__version__ = "0.1.0"
