"""When do experts win? How much data, how many experts, partitioned how."""
