"""The report of `m2df-eval --report`: what few-shot papers show of a model, as one self-contained HTML page."""
