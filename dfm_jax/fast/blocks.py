"""How many rows of V numbers are handled together."""

BLOCK_BYTES = 2**21  # of float32, what a core's second-level cache holds a good part of


def rows_in_block(num_rows: int, num_columns: int) -> int:
    """About 2 MB of rows, one at least."""
    return max(1, min(num_rows, BLOCK_BYTES // (4 * num_columns)))
