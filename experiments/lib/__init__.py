"""What studies share: the driver, tables of compared gates, and texts in parts."""
