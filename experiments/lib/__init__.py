"""What studies share: the driver, gates to compare, tables, and texts in parts."""
