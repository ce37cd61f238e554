"""A sweep as one program beside the same runs one by one: equal results, and the ratio of times."""
