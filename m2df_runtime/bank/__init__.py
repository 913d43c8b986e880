"""Support clips as they are kept for one encoder: features, prototypes, calibration."""
