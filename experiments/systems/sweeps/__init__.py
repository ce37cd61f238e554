"""A sweep as one program and the same runs one by one: equal results, and the ratio of times."""
