"""What studies share: the driver, statistics, gates to compare, tables, and texts in parts."""
