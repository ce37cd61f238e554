"""What studies share: the driver, statistics, gates to compare, tables, text that is
partitioned.
"""
